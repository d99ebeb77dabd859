"""The aiosctl command: its verbs, and the one place where an error becomes a sentence and an exit status."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from typing import NoReturn

import typer
from typer._click.core import Command, Context
from typer._click.exceptions import ClickException, UsageError  # typer 0.26 exports only some
from typer._click.formatting import HelpFormatter
from typer._click.shell_completion import CompletionItem

from aiosctl import completion
from aiosctl.client import NotOurProtocol
from aiosctl.quick import Handed
from aiosctl.render import complaint
from aiosctl.verb import Globals, Group, Verb, complain, noun
from aiosd.errors import AiosError, InvalidParams, MethodNotFound

COMMANDS = {
    "run": ("run:run", "Run a task and print its answer."),
    "chat": ("chat:chat", "Talk in one session, a task a line."),
    "ps": ("jobs:ps", "List the tasks that have not ended, those at work first."),
    "top": ("top:top", "Watch tasks, queues, backends, spend and memory."),
    "attach": (
        "jobs:attach",
        "Watch a task from its first event on, and print its answer as run does. Ctrl-C leaves the task alone.",
    ),
    "wait": (
        "task:task_wait",
        "Wait for a task's end and print its answer, as run does. Ctrl-C leaves the task alone.",
    ),
    "kill": ("task:task_cancel", "Cancel a task."),
    "why": (
        "jobs:why",
        "Tell how a task came to its answer, or a memory to be there: given what, by whom and why, at what cost.",
    ),
    "stats": ("stats:stats", "Add up runs, tokens, money and misses by model and agent."),
    "session": ("session:app", "Sessions: conversations with their own rights and memory."),
    "task": ("task:app", "Tasks: what was run, what runs, and what came of it."),
    "approvals": ("approvals:app", "Approvals: calls that wait for your word, and your standing answers."),
    "audit": ("audit:app", "The audit log: what tools did, and what was decided about them."),
    "memory": ("memory:app", "Memory: what is known about your work, across sessions."),
    "tool": ("tool:app", "Tools: what models may call."),
    "model": ("model:app", "Models: the backends that answer."),
    "budget": ("budget:app", "Budget: what models may cost, and what they did."),
    "mcp": ("mcp:app", "MCP servers, whose tools sessions may use."),
    "agent": ("agent:app", "Agents: named ways of working, from the config."),
    "ping": ("system:ping", "Ask the daemon whether it is there."),
    "status": ("system:status", "Show what runs, where it keeps things, and how much there is."),
    "doctor": (
        "doctor:doctor",
        "Look at all that aiosd needs, and give the line that mends what is wrong.",
    ),
    "config": ("config:app", "Config: which models, tools and limits there are."),
    "logs": ("jobs:logs", "Print the daemon's log: its file, or systemd's journal where that keeps it."),
    "completion": (
        "completion:completion",
        "Print what makes a shell complete verbs, options, ids and names.",
    ),
    "trace": (
        "trace:trace",
        "Show where a task's time went: recall, queue, load, model, tools, with tokens and money.",
    ),
    "metrics": ("system:metrics", "Print what the daemon has counted, as Prometheus reads it."),
    "reload": ("system:reload", "Read the config again."),
    "service": ("service:app", "The daemon as a systemd user service."),
}
"""In the order of --help: the module that has a noun's verbs (`app`) or a verb alone, and what it is for."""


class Root(Group):
    """All commands. A module is imported when its command is: each costs milliseconds that no other has to pay."""

    def list_commands(self, ctx: Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        if cmd_name not in COMMANDS:
            return None
        place, _ = COMMANDS[cmd_name]
        module, _, name = place.partition(":")
        found = getattr(import_module(f"aiosctl.{module}"), name)
        if isinstance(found, typer.Typer):
            command: Command = typer.main.get_group(found)
        else:
            alone = noun("")
            alone.command(cls=Verb)(found)
            command = typer.main.get_command(alone)
        command.name = cmd_name
        return command

    def resolve_command(self, ctx: Context, args: list[str]) -> tuple[str | None, Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except UsageError as exc:
            from difflib import get_close_matches  # late: for a slip of the finger

            if near := get_close_matches(args[0], COMMANDS):
                exc.message += f" Did you mean {near[0]!r}?"
            raise

    def shell_complete(self, ctx: Context, incomplete: str) -> list[CompletionItem]:
        named = [CompletionItem(n, help=h) for n, (_, h) in COMMANDS.items() if n.startswith(incomplete)]
        return [*named, *Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


app = typer.Typer(
    cls=Root,
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


@app.callback()
def _root() -> None:
    """Makes a group of the commands; its options are Group's."""


def main(handed: Handed | None = None) -> NoReturn:
    """Runs the command line of this process, and ends it; or goes on with a run that has begun."""
    _prepare_streams()
    completion.prepare()
    status = _run(sys.argv[1:], Globals(), handed)
    try:
        sys.stdout.flush()
    except OSError as exc:
        # What is left in the buffer has to go somewhere, or the interpreter complains once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not status:
            complaint(f"standard output: {exc.strerror}", None)
            status = 1
    raise SystemExit(status)


def _run(argv: list[str], given: Globals, handed: Handed | None) -> int:
    try:
        if handed is not None:
            from aiosctl.run import go_on  # late, as every command

            return go_on(handed)
        args = [os.fsencode(arg).decode() for arg in argv]  # the locale may be C, what we are given is not
        status = typer.main.get_command(app).main(
            args or ["--help"], prog_name="aiosctl", standalone_mode=False, obj=given
        )
        return status if isinstance(status, int) else 0
    except (MethodNotFound, InvalidParams, NotOurProtocol) as exc:
        return _failed(_of_another_time(exc, given), given)
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


def _of_another_time(exc: AiosError, given: Globals) -> AiosError:
    """A daemon from before an upgrade may not know what it was asked: then the way out is to restart it."""
    from importlib.metadata import version  # late, all three: nothing else here needs them

    from aiosctl import start
    from aiosd.protocol.system import SystemPing

    try:
        with start.connect(option=given.socket, may_start=False, quiet=True, trace=False) as client:
            daemon = client.call(SystemPing(), timeout_s=PING_S)
            unit = start.has_unit(client.path, os.environ)
    except AiosError:
        return exc
    ours = version("aiosd")
    if daemon.version == ours:
        return exc
    return NotOurProtocol(
        f"the daemon is aiosd {daemon.version}, this aiosctl is {ours}, and they do not understand each other ({exc});"
        " restart the daemon, open tasks go on",
        hint="systemctl --user restart aiosd.service" if unit else f"kill {daemon.pid}; aiosctl ping",
    )


PING_S = 2.0
"""For the version of a daemon that did not understand."""


def _failed(exc: AiosError, given: Globals) -> int:
    if given.debug:
        import traceback  # late: 4 ms

        traceback.print_exception(exc)
    complain(exc, json=given.json)
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
