"""The aiosctl command: its verbs, and the one place where an error becomes a sentence and an exit status."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from typing import NoReturn

import msgspec
import typer
from typer._click.exceptions import ClickException  # what every usage error is; typer 0.26 exports only some

from aiosctl import agent, memory, model, run, session, system, task, tool
from aiosctl.client import ErrorObject
from aiosctl.render import complaint
from aiosctl.verb import Globals, Group, Verb
from aiosd.errors import AiosError, InternalError, InvalidParams
from aiosd.paths import paths

app = typer.Typer(
    cls=Group,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="""Talk to aiosd, the AI operating system of this user.

    \b
    aiosctl run "what does this project do?" -f README.md
    git diff | aiosctl run "review this"
    aiosctl run -s @last "and the tests?"
    """,
)
app.command("run", cls=Verb)(run.run)
app.add_typer(session.app, name="session")
app.add_typer(task.app, name="task")
app.add_typer(tool.app, name="tool")
app.add_typer(memory.app, name="memory")
app.add_typer(model.app, name="model")
app.add_typer(agent.app, name="agent")
app.command("ping", cls=Verb)(system.ping)
app.command("status", cls=Verb)(system.status)


@app.callback()
def _root() -> None:
    """Makes a group of the commands; its options are Group's."""


def main() -> NoReturn:
    """Runs the command line of this process, and ends it."""
    _prepare_streams()
    given = Globals()
    status = _run(sys.argv[1:], given)
    try:
        sys.stdout.flush()
    except OSError as exc:
        # What is left in the buffer has to go somewhere, or the interpreter complains once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not status:
            complaint(f"standard output: {exc.strerror}", None)
            status = 1
    raise SystemExit(status)


def _run(argv: list[str], given: Globals) -> int:
    try:
        args = [os.fsencode(arg).decode() for arg in argv]  # the locale may be C, what we are given is not
        status = typer.main.get_command(app).main(
            args or ["--help"], prog_name="aiosctl", standalone_mode=False, obj=given
        )
        return status if isinstance(status, int) else 0
    except AiosError as exc:
        return _failed(exc, given)
    except ClickException as exc:
        given.json |= "--json" in argv  # it failed before it was met
        where = getattr(getattr(exc, "ctx", None), "command_path", "aiosctl")
        return _failed(InvalidParams(exc.format_message(), hint=f"{where} --help"), given)
    except UnicodeDecodeError:
        return _failed(InvalidParams("an argument is not UTF-8 text"), given)
    except KeyboardInterrupt:
        return 130
    except OSError as exc:
        name = f"{exc.filename}: " if exc.filename else ""
        return _failed(AiosError(f"{name}{exc.strerror or exc}"), given)


def _failed(exc: AiosError, given: Globals) -> int:
    if given.debug:
        traceback.print_exception(exc)
    if given.json:
        wire = exc.__cause__.error if isinstance(exc.__cause__, ErrorObject) else exc.to_wire()
        sys.stderr.write(msgspec.json.encode(wire).decode() + "\n")
    else:
        bug = f"tail {paths().log}" if isinstance(exc, InternalError) else None
        complaint(str(exc) or type(exc).__name__, exc.hint or bug)
    return exc.exit_status


def _prepare_streams() -> None:
    """Standard streams as a Unix program has them: all three open, UTF-8 whatever the locale says.

    A reader that goes away (`| head -1`) ends us without a word.
    """
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    for number, mode in enumerate(("r", "w", "w")):
        name = ("stdin", "stdout", "stderr")[number]
        if getattr(sys, name) is None:  # closed: else our socket would take its number
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 -- open for as long as we run
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]  # a TextIOWrapper
