"""aiosctl run: a task, from its words to its answer."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import typer

from aiosctl import inputs, render, resolve, session
from aiosctl.answer import Watch
from aiosctl.asking import Asker
from aiosctl.client import Client, typed
from aiosctl.options import AgentName, AnswerAlone, Backend, Deadline, Files, MaxUsd, sessions
from aiosctl.quick import Handed, here, title
from aiosctl.verb import connect, globals_of
from aiosd.errors import AiosError, Cancelled, InvalidParams, NoDaemon, NotFound
from aiosd.protocol.sessions import SessionCreate, SessionRun
from aiosd.protocol.tasks import TaskCancel
from aiosd.records import Task, Tier

CANCEL_S = 5.0
"""Seconds that Ctrl-C waits for the daemon to take its word."""

GRACE_S = 10.0
"""Seconds over a task's deadline in which the daemon can still answer that it passed."""


def run(
    ctx: typer.Context,
    task: Annotated[
        str | None, typer.Argument(metavar="TASK", help="What to do. Without it: standard input.")
    ] = None,
    session_id: Annotated[
        str | None,
        typer.Option(
            "--session",
            "-s",
            metavar="ID",
            help="In this session; without it in a new one.",
            autocompletion=sessions,
        ),
    ] = None,
    go_on_here: Annotated[
        bool, typer.Option("--continue", "-c", help="In the last session of this folder, if there is one.")
    ] = False,
    file: Files = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="Instructions of a new session.")] = None,
    agent: AgentName = None,
    write: Annotated[bool, typer.Option("--write", help="A new session may change this folder.")] = False,
    private: Annotated[
        bool, typer.Option("--private", help="Nothing of a new session leaves this machine.")
    ] = False,
    tier: Annotated[Tier | None, typer.Option(help="How able a model is asked.")] = None,
    backend: Backend = None,
    deadline: Deadline = None,
    max_usd: MaxUsd = None,
    max_steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Most replies of the model.")
    ] = None,
    schema: Annotated[
        str | None, typer.Option(metavar="FILE", help="JSON Schema that the answer is to fit.")
    ] = None,
    tools: Annotated[
        str | None, typer.Option(metavar="A,B", help='Only these of the session\'s tools; "" is none.')
    ] = None,
    approve: Annotated[
        Literal["ask", "never"], typer.Option(help="What happens where a tool asks first: never is a no.")
    ] = "ask",
    output_format: Annotated[
        Literal["text", "json", "stream-json"],
        typer.Option(
            "--output-format", help="json is --json; stream-json is an event a line, then the result."
        ),
    ] = "text",
    detach: Annotated[bool, typer.Option("--detach", help="Print the task's id and do not wait.")] = False,
    quiet: AnswerAlone = False,
) -> None:
    """Run a task and print its answer.

    \b
    aiosctl run "what does this project do?" -f README.md
    git diff | aiosctl run "review this"
    aiosctl run -c "and the tests?"
    aiosctl run --schema release.json "which version is this?" -f CHANGELOG.md
    while read f; do aiosctl run -f "$f" -- "summarize"; done < files

    Exits with 78 when nothing answers it, 124 when its time is up, 130 when it was cancelled.
    """
    if session_id and go_on_here:
        raise InvalidParams("--session and --continue both name a session: give one")
    fixed = {"--system": system, "--agent": agent, "--write": write, "--private": private}
    if (session_id or go_on_here) and (named := [name for name, value in fixed.items() if value]):
        raise InvalidParams(
            f"{', '.join(named)} is for a new session: what this one may do was fixed when it was made"
        )
    workspace = here()
    if write and workspace is None:
        raise InvalidParams("--write: this folder is too much to give away; go to one below it")
    words, given = inputs.task_and_inputs(task, file or [])
    shape = read_schema(schema) if schema else None
    given_globals = globals_of(ctx)
    given_globals.json |= output_format != "text"  # errors are documents, too
    lines = output_format == "stream-json"
    json = given_globals.json and not lines
    with connect(ctx) as client:
        if session_id:
            session_id = resolve.session(client, session_id, state="open")
        elif go_on_here:
            session_id = resolve.session_here(client, workspace)
        if session_id is None:
            new = SessionCreate(
                title=title(words),
                agent=agent,
                system=system,
                privacy="local" if private else "any",
                workspace=workspace,
                write=write,
            )
            session_id = client.call(new).session_id
        params = SessionRun(
            session_id=session_id,
            task=words,
            inputs=given,
            tier=tier,
            backend=backend,
            timeout_s=deadline,
            max_steps=max_steps,
            max_usd=max_usd,
            schema=shape,
            tools=None if tools is None else session.names(tools),
            approve=approve,
            stream=not detach,
            detach=detach,
        )
        if detach:
            raw = client.ask(params)
            if json:
                render.document(raw)
            else:
                _detached(typed(raw, Task, params.method))
            return
        limit = None if deadline is None else deadline + GRACE_S
        watch = Watch(
            live=render.for_people() and not given_globals.json,
            quiet=quiet or given_globals.json,
            lines=lines,
        )
        raw = _watched(client, watch, lambda: client.ask(params, timeout_s=limit, on_notification=watch))
    if status := watch.finish(raw, params.method, json=json):
        raise typer.Exit(status)


def read_schema(name: str) -> dict[str, Any]:
    try:
        with open(name.encode(), "rb") as file:
            found = msgspec.json.decode(file.read())
    except OSError as exc:
        raise NotFound(f"{name}: {exc.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise InvalidParams(f"{name} is not JSON: {exc}") from None
    if not isinstance(found, dict):
        raise InvalidParams(f"{name} is JSON but no JSON Schema: that is an object")
    return found


def _detached(task: Task) -> None:
    if render.for_people():
        render.out(f"task {task.number} {task.state}; its answer: aiosctl task wait {task.number}")
    else:
        render.out(task.task_id)


def go_on(handed: Handed) -> int:
    """With a plain run that `quick` has sent: the exit status."""
    watch = Watch(live=False, quiet=False)
    path = Path(handed.path).absolute()
    with Client.adopted(handed.fd, path, last_id=handed.request_id, received=handed.received) as client:
        if handed.interrupted:
            watch.interrupt(signal.SIGINT, None)
        raw = _watched(client, watch, lambda: client.awaited(SessionRun.method, on_notification=watch))
    return watch.finish(raw, SessionRun.method, json=False)


def watched(client: Client, params: SessionRun, *, json: bool) -> int:
    """Runs a task and shows it, on a terminal as it comes, or as a document: the exit status."""
    watch = Watch(live=render.for_people() and not json, quiet=json)
    raw = _watched(client, watch, lambda: client.ask(params, timeout_s=None, on_notification=watch))
    return watch.finish(raw, params.method, json=json)


def _watched(client: Client, watch: Watch, asked: Callable[[], bytes]) -> bytes:
    """The result, once it is there. Ctrl-C cancels the task: it would go on without us."""
    watch.asker = Asker(client.path)
    before = signal.signal(signal.SIGINT, watch.interrupt)
    try:
        with watch:
            return asked()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # one more leaves at once
        raise _cancel(client, watch.task_id) from None
    except NoDaemon as exc:
        if watch.task_id is None:
            raise
        hint = f"aiosctl task show {watch.task_id}"
        raise NoDaemon(f"{exc}; if it still runs, so does the task", hint=hint) from exc
    finally:
        signal.signal(signal.SIGINT, before)


def _cancel(client: Client, task_id: str | None) -> Cancelled:
    if task_id is None:
        return Cancelled("left before aiosd had named the task: it may go on", hint="aiosctl task list")
    try:
        # Another connection: this one may be full of requests that are answered in their order.
        with Client(client.path, trace=client.trace) as second:
            second.call(TaskCancel(task_id=task_id), timeout_s=CANCEL_S)
    except KeyboardInterrupt:
        return Cancelled("left at once: the task may go on", hint=f"aiosctl attach {task_id}")
    except (AiosError, OSError) as exc:
        hint = f"aiosctl task cancel {task_id}"
        return Cancelled(f"left, but the task could not be cancelled: {exc}", hint=hint)
    return Cancelled("the task was cancelled")
