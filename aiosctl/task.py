"""aiosctl task: what was run, what runs, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Literal

import msgspec
import typer

from aiosctl import render, resolve
from aiosctl.answer import Watch
from aiosctl.client import Client
from aiosctl.options import AnswerAlone, Cursor, Deadline, IdsAlone, Limit, OfSession, TaskId
from aiosctl.run import GRACE_S
from aiosctl.verb import Verb, answer, connect, globals_of, noun
from aiosd.errors import InvalidState, from_wire
from aiosd.protocol.tasks import (
    TaskAttach,
    TaskCancel,
    TaskGet,
    TaskList,
    TaskPrioritize,
    TaskResolve,
    Tasks,
    TaskWait,
)
from aiosd.records import AnyEvent, Priority, Task, TaskState, ToolCallEvent, ToolResultEvent

BELOW = "↳ "
"""Before a task that another one started, once for each above it."""

app = noun("Tasks: what was run, what runs, and what came of it.")


@app.command("list", cls=Verb)
def task_list(
    ctx: typer.Context,
    session_id: OfSession = None,
    state: Annotated[TaskState | None, typer.Option(help="Only these.")] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
    tree: Annotated[bool, typer.Option("--tree", help="Under each task those it started.")] = False,
    quiet: IdsAlone = False,
) -> None:
    """List tasks, the newest first.

    \b
    aiosctl task list -s @last
    aiosctl task list --tree
    aiosctl task list --state working -q | xargs -n1 aiosctl task cancel
    """

    def text(found: Tasks) -> None:
        listed = _in_tree(found.tasks) if tree else [(0, each) for each in found.tasks]
        if quiet:
            render.ids(each.task_id for _, each in listed)
        else:
            ids = render.short([each.task_id for _, each in listed])
            render.table(
                ["number", "id", "state", "created", "steps", "usd", "task"],
                [
                    (
                        each.number,
                        id,
                        each.state,
                        each.created_at,
                        each.steps,
                        each.cost_usd,
                        BELOW * depth + each.task,
                    )
                    for id, (depth, each) in zip(ids, listed, strict=True)
                ],
            )
        render.more("task list", found.next_cursor)

    with connect(ctx) as client:
        if session_id is not None:
            session_id = resolve.session(client, session_id)
        answer(ctx, client, TaskList(session_id=session_id, state=state, limit=limit, cursor=cursor), text)


def _in_tree(found: Sequence[Task]) -> list[tuple[int, Task]]:
    """Each task with its depth, and behind it those it started, the first one first. One whose parent is not among
    them stands at the top."""
    ids = {each.task_id for each in found}
    below: dict[str | None, list[Task]] = {}
    for each in found:
        below.setdefault(each.parent_id if each.parent_id in ids else None, []).append(each)
    listed: list[tuple[int, Task]] = []
    waiting = [(0, each) for each in reversed(below.get(None, []))]
    while waiting:
        depth, each = waiting.pop()
        listed.append((depth, each))
        waiting += [(depth + 1, child) for child in below.get(each.task_id, [])]
    return listed


@app.command("show", cls=Verb)
def task_show(ctx: typer.Context, id: TaskId) -> None:
    """Show a task, with its result or its error.

    \b
    aiosctl task show 12
    """
    with connect(ctx) as client:
        answer(ctx, client, TaskGet(task_id=resolve.task(client, id)), _shown)


def _shown(task: Task) -> None:
    """Of its result the text, of its error the sentence: the rest is for --json."""
    properties = render.properties(task)
    if task.error is not None:
        properties["error"] = str(from_wire(task.error))
    if task.result is not None:
        properties |= {"backend": task.result.backend, "stop_reason": task.result.stop_reason}
        properties["result"] = None if task.result.abstained else render.value(task.result.result)
    render.fields(properties.items())


@app.command("wait", cls=Verb)
def task_wait(
    ctx: typer.Context,
    id: TaskId,
    deadline: Deadline = None,
    quiet: AnswerAlone = False,
) -> None:
    """Wait for a task's end and print its answer, as run does. Ctrl-C leaves the task alone.

    \b
    aiosctl task wait @last
    aiosctl wait 12 --deadline 5m
    id=$(aiosctl run --detach "..."); aiosctl task wait "$id" --deadline 5m
    """
    with connect(ctx) as client:
        params = TaskWait(task_id=resolve.task(client, id), timeout_s=deadline)
        raw = client.ask(params, timeout_s=None if deadline is None else deadline + GRACE_S)
    json = globals_of(ctx).json
    if status := Watch(live=False, quiet=quiet or json).finish(raw, params.method, json=json):
        raise typer.Exit(status)


@app.command("cancel", cls=Verb)
def task_cancel(ctx: typer.Context, id: TaskId) -> None:
    """Cancel a task.

    \b
    aiosctl task cancel 12
    aiosctl kill @last
    """

    def text(task: Task) -> None:
        render.out(f"task {task.number} {task.state}")

    with connect(ctx) as client:
        answer(ctx, client, TaskCancel(task_id=resolve.task(client, id)), text)


@app.command("priority", cls=Verb)
def task_priority(
    ctx: typer.Context,
    id: TaskId,
    priority: Annotated[Priority, typer.Argument(help="Who is served first.")],
) -> None:
    """Change how urgent a task is, from its next step on.

    \b
    aiosctl task priority 12 background
    """

    def text(task: Task) -> None:
        render.out(f"task {task.number} {task.priority}")

    with connect(ctx) as client:
        answer(ctx, client, TaskPrioritize(task_id=resolve.task(client, id), priority=priority), text)


@app.command("resolve", cls=Verb)
def task_resolve(
    ctx: typer.Context,
    id: TaskId,
    action: Annotated[
        Literal["retry", "skip", "done"], typer.Argument(help="Run it again, leave it, or take it as done.")
    ],
    call_id: Annotated[
        str | None, typer.Option("--call", metavar="ID", help="This call; without it, every one in doubt.")
    ] = None,
) -> None:
    """Say what became of a tool call that the daemon's end cut short; the task goes on from there.

    \b
    aiosctl task resolve @last done
    """

    def text(task: Task) -> None:
        render.out(f"task {task.number} {task.state}")

    with connect(ctx) as client:
        task_id = resolve.task(client, id)
        calls = [call_id] if call_id is not None else _in_doubt(client, task_id)
        for call in calls[:-1]:
            client.call(TaskResolve(task_id=task_id, call_id=call, action=action))
        answer(ctx, client, TaskResolve(task_id=task_id, call_id=calls[-1], action=action), text)


def _in_doubt(client: Client, task_id: str) -> list[str]:
    """The ids of the calls that nobody knows the end of; one empty id where there is none, for the daemon to refuse."""
    status: dict[str, str] = {}

    def hear(method: str, params: msgspec.Raw) -> None:
        match msgspec.json.decode(params, type=AnyEvent):
            case ToolCallEvent() | ToolResultEvent() as event:
                status[event.call_id] = event.status
            case _:
                pass

    with suppress(InvalidState):  # so ends the replay of a task that waits for its user
        client.ask(TaskAttach(task_id=task_id), on_notification=hear)
    return [call for call, last in status.items() if last == "unknown"] or [""]
