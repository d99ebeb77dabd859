"""Conversations, each with its own rights, workspace and memory."""

from __future__ import annotations

from typing import Any, Literal

from aiosd.protocol.base import Params
from aiosd.records import (
    Input,
    Priority,
    Privacy,
    Record,
    Session,
    SessionState,
    TaskResult,
    TaskType,
    Tier,
)


class SessionCreate(Params[Session], frozen=True, kw_only=True):
    """Opens a session. What it may do is fixed here and cannot be widened later."""

    user_id: str | None = None
    title: str | None = None
    agent: str | None = None
    system: str | None = None
    permissions: tuple[str, ...] | None = None
    privacy: Privacy = "any"
    priority: Priority = "normal"
    max_usd: float | None = None
    workspace: str | None = None
    write: bool = False

    method = "session.create"
    returns = Session


class Sessions(Record, frozen=True, kw_only=True, omit_defaults=True):
    sessions: tuple[Session, ...]
    next_cursor: str | None = None


class SessionList(Params[Sessions], frozen=True, kw_only=True):
    """Sessions, the last used first."""

    state: SessionState | None = None
    limit: int = 100
    cursor: str | None = None

    method = "session.list"
    returns = Sessions


class SessionGet(Params[Session], frozen=True, kw_only=True):
    """One session."""

    session_id: str

    method = "session.get"
    returns = Session


class SessionClose(Params[Session], frozen=True, kw_only=True):
    """No more runs; what it remembers stays."""

    session_id: str

    method = "session.close"
    returns = Session


class SessionDelete(Params[None], frozen=True, kw_only=True):
    """Removes the session with its turns and tasks; with `forget`, its memories too."""

    session_id: str
    forget: bool = False

    method = "session.delete"
    returns = None


class SessionRun(Params[TaskResult], frozen=True, kw_only=True):
    """Runs a task to its end and answers its result; with `stream`, its events come before; with `detach`, the
    answer is the Task at once."""

    session_id: str
    task: str
    inputs: tuple[Input, ...] = ()
    tier: Tier | None = None
    """Default: the agent's, else balanced."""
    task_type: TaskType = "reasoning"
    backend: str | None = None
    max_tokens: int = 2000
    latency_budget_ms: int | None = None
    timeout_s: float | None = None
    max_steps: int | None = None
    max_total_tokens: int | None = None
    """Read and written in all steps together; the step that passes it is the last one."""
    max_usd: float | None = None
    schema: dict[str, Any] | None = None
    tools: tuple[str, ...] | None = None
    """Narrows what the session offers; empty offers none."""
    approve: Literal["ask", "never"] = "ask"
    stream: bool = False
    detach: bool = False
    idempotency_key: str | None = None

    method = "session.run"
    returns = TaskResult
