"""What was run and what runs."""

from __future__ import annotations

from typing import Literal

from aiosd.protocol.base import Params
from aiosd.records import Priority, Record, Span, Task, TaskResult, TaskState

TASK_EVENT = "task.event"
"""The notification that carries an event to whoever watches its task."""


class TaskGet(Params[Task], frozen=True, kw_only=True):
    """One task, with its result once it has ended."""

    task_id: str

    method = "task.get"
    returns = Task


class Tasks(Record, frozen=True, kw_only=True, omit_defaults=True):
    tasks: tuple[Task, ...]
    next_cursor: str | None = None


class TaskList(Params[Tasks], frozen=True, kw_only=True):
    """Tasks, the newest first."""

    session_id: str | None = None
    state: TaskState | None = None
    limit: int = 100
    cursor: str | None = None

    method = "task.list"
    returns = Tasks


class TaskWait(Params[TaskResult], frozen=True, kw_only=True):
    """Answers the task's result once it has ended; `timeout_s` bounds the waiting, not the task."""

    task_id: str
    timeout_s: float | None = None

    method = "task.wait"
    returns = TaskResult


class TaskCancel(Params[Task], frozen=True, kw_only=True):
    """Ends the task; answers it as it then is."""

    task_id: str

    method = "task.cancel"
    returns = Task


class TaskPrioritize(Params[Task], frozen=True, kw_only=True):
    """Changes how urgent a task is: its next step waits for a model's slot with this priority."""

    task_id: str
    priority: Priority

    method = "task.prioritize"
    returns = Task


class TaskResolve(Params[Task], frozen=True, kw_only=True):
    """Says what became of a tool call that had begun when the daemon stopped: run it again, go on without it, or
    take it as done."""

    task_id: str
    call_id: str
    action: Literal["retry", "skip", "done"]

    method = "task.resolve"
    returns = Task


class Trace(Record, frozen=True, kw_only=True):
    spans: tuple[Span, ...]
    """The task's own first, then its parts in the order in which they began."""


class TaskTrace(Params[Trace], frozen=True, kw_only=True):
    """Where the task's time went: starting, recall, queue, load, model, tools, with tokens and money."""

    task_id: str

    method = "task.trace"
    returns = Trace


class TaskAttach(Params[TaskResult], frozen=True, kw_only=True):
    """Replays the task's events after `after_seq`, goes on live, and ends with the result."""

    task_id: str
    after_seq: int = 0

    method = "task.attach"
    returns = TaskResult
