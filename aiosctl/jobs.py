"""aiosctl ps, attach, logs and why: what goes on, and what came about how."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime
from typing import Annotated

import msgspec
import typer

from aiosctl import render, resolve
from aiosctl.answer import Watch, not_chosen
from aiosctl.asking import Asker
from aiosctl.options import AnswerAlone, IdsAlone, TaskId, tasks
from aiosctl.verb import answer, connect, globals_of
from aiosd.errors import NotFound, from_wire
from aiosd.paths import paths, user_name
from aiosd.protocol.memory import MemoryWhy
from aiosd.protocol.tasks import TaskAttach, TaskGet, TaskList, Tasks
from aiosd.records import Task, TaskState

OPEN: tuple[TaskState, ...] = ("working", "input_required", "queued")
"""States that have not ended, the busiest first."""

MOST = 1000
"""Tasks of one state that are listed."""


def ps(ctx: typer.Context, quiet: IdsAlone = False) -> None:
    """List the tasks that have not ended, those at work first.

    \b
    aiosctl ps
    aiosctl ps -q | xargs -n1 aiosctl kill
    """
    with connect(ctx) as client:
        found = [task for state in OPEN for task in client.call(TaskList(state=state, limit=MOST)).tasks]
    if globals_of(ctx).json:
        render.document(msgspec.json.encode(Tasks(tasks=tuple(found))))
    elif quiet:
        render.ids(each.task_id for each in found)
    else:
        now = datetime.now(UTC)
        render.table(
            ["number", "state", "priority", "for", "steps", "usd", "task"],
            [
                (each.number, each.state, each.priority, age(each, now), each.steps, each.cost_usd, each.task)
                for each in found
            ],
        )


def age(task: Task, now: datetime) -> str:
    """Since it began, or was given: `42s`, `3m07s`, `2h05m`."""
    return span((now - (task.started_at or task.created_at)).total_seconds())


def span(seconds: float) -> str:
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def attach(ctx: typer.Context, id: TaskId, quiet: AnswerAlone = False) -> None:
    """Watch a task from its first event on, and print its answer as run does. Ctrl-C leaves the task alone.

    \b
    aiosctl attach @last
    """
    json = globals_of(ctx).json
    watch = Watch(live=render.for_people() and not json, quiet=quiet or json)
    with connect(ctx) as client:
        watch.asker = Asker(client.path)
        params = TaskAttach(task_id=resolve.task(client, id))
        with watch:
            raw = client.ask(params, timeout_s=None, on_notification=watch)
    if status := watch.finish(raw, params.method, json=json):
        raise typer.Exit(status)


def logs(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as more is written.")] = False,
    n: Annotated[int, typer.Option("-n", min=0, metavar="N", help="Last lines.")] = 50,
) -> None:
    """Print the daemon's log: its file, or systemd's journal where that keeps it.

    \b
    aiosctl logs -n 20
    aiosctl logs -f | grep '"level": "error"'
    """
    log = paths().log
    if log.exists():
        argv = ["tail", "-n", str(n), *(["-F"] if follow else []), "--", str(log)]
    elif shutil.which("journalctl"):
        argv = [
            "journalctl",
            "--user",
            "--unit",
            "aiosd",
            "-o",
            "cat",
            "-n",
            str(n),
            *(["-f"] if follow else []),
        ]
    else:
        raise NotFound(f"{log}: no daemon has written there yet", hint="aiosctl ping")
    os.execvp(argv[0], argv)


def why(
    ctx: typer.Context,
    id: Annotated[str, typer.Argument(metavar="ID", help="Of a task or a memory.", autocompletion=tasks)],
) -> None:
    """Tell how a task came to its answer, or a memory to be there: given what, by whom and why, at what cost.

    \b
    aiosctl why @last
    aiosctl why "$(aiosctl memory list -q | head -1)"
    """
    with connect(ctx) as client:
        try:
            task_id = resolve.task(client, id)
            if resolve.whole(id):
                client.call(TaskGet(task_id=id))
        except NotFound:
            from aiosctl.memory import lineage  # late: mostly it is a task

            memory_id = resolve.memory(client, id, user_name())
            answer(ctx, client, MemoryWhy(memory_id=memory_id), lineage)
        else:
            answer(ctx, client, TaskGet(task_id=task_id), reasons)


def reasons(task: Task) -> None:
    """A task as a story, a line a fact."""
    pairs: list[tuple[str, render.Cell]] = [
        ("task", f"{task.number}: {task.task}"),
        ("state", task.state),
    ]
    if task.started_at and task.ended_at:
        waited = (task.started_at - task.created_at).total_seconds()
        took = (task.ended_at - task.started_at).total_seconds()
        pairs.append(("took", f"{took:.1f} s, {task.steps} steps, after {waited:.1f} s in the queue"))
    if task.error is not None:
        failure = from_wire(task.error)
        pairs.append(("error", str(failure)))
        if failure.hint:
            pairs.append(("try", failure.hint))
    if (result := task.result) is not None:
        how = (
            "abstained" if result.abstained else "generated" if result.generated else "quoted, not generated"
        )
        pairs.append(("answer", f"{how}, {result.stop_reason}"))
        pairs.append(("backend", f"{result.backend} ({result.model})" if result.model else result.backend))
        if result.decision is not None:
            pairs.append(("because", result.decision.reason))
            pairs += [(f"not {c.backend}", not_chosen(c)) for c in result.decision.candidates if c.rejected]
        usage = result.usage
        pairs.append(("tokens", f"{usage.input_tokens} in, {usage.output_tokens} out"))
        pairs.append(("usd", task.cost_usd))
        pairs += [(f"from {each.kind}", f"{each.ref}: {each.text}") for each in result.sources]
    render.fields(pairs)
