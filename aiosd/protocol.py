"""What aiosd and aiosctl say to each other: the one place the contract is written.

A method is the type of its params; its `method` is its name on the wire, its `returns` the type of its
result. One is added here, then in `methods.py`, then as a verb of aiosctl.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

import msgspec

from aiosd.records import (
    Agent,
    BackendInfo,
    Decision,
    Embedded,
    Input,
    Memory,
    Message,
    Priority,
    Privacy,
    Record,
    Reply,
    ScoredMemory,
    Session,
    SessionState,
    Task,
    TaskResult,
    TaskState,
    TaskType,
    Tier,
    Tool,
    ToolResult,
    ToolSpec,
    Turn,
)

PROTOCOL = 1
"""Raised when an old client could misread a new daemon."""

TASK_EVENT = "task.event"
"""The notification that carries an event to whoever watches its task."""

MODEL_TEXT = "model.text"
"""The notification that carries a piece of the text that a streamed `model.infer` writes: `{text}`."""

R = TypeVar("R")

Positive = Annotated[int, msgspec.Meta(ge=1)]


class Params(
    msgspec.Struct, Generic[R], frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Params of one method, by name; `R` is its result."""

    method: ClassVar[str]
    returns: ClassVar[Any]


class Pong(Record, frozen=True, kw_only=True):
    pong: Literal[True] = True
    version: str
    pid: int


class SystemPing(Params[Pong], frozen=True, kw_only=True):
    """Answers at once."""

    method = "system.ping"
    returns = Pong


class Info(Record, frozen=True, kw_only=True):
    version: str
    protocol: int
    uptime_s: float
    paths: dict[str, str]
    sandbox: str
    """How tools are walled off: a tier of aiosd.tools.sandbox, or `none`, where none runs."""
    embedder: str
    """What turns text into vectors; `none` is BM25 alone."""
    counts: dict[str, int]
    backends: tuple[str, ...]
    problems: tuple[str, ...] = ()
    """What was passed over, and why: files of the user's tools that do not load."""


class SystemInfo(Params[Info], frozen=True, kw_only=True):
    """What runs, where it keeps things, and how much there is."""

    method = "system.info"
    returns = Info


class SystemShutdown(Params[None], frozen=True, kw_only=True):
    """Stops the daemon as SIGTERM does: the answer comes first."""

    method = "system.shutdown"
    returns = None


class RpcDiscover(Params[dict[str, Any]], frozen=True, kw_only=True):
    """This document: OpenRPC 1.3, made from the method table."""

    method = "rpc.discover"
    returns = dict[str, Any]


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


class TaskResolve(Params[Task], frozen=True, kw_only=True):
    """Says what became of a tool call that had begun when the daemon stopped: run it again, go on without it, or
    take it as done."""

    task_id: str
    call_id: str
    action: Literal["retry", "skip", "done"]

    method = "task.resolve"
    returns = Task


class TaskAttach(Params[TaskResult], frozen=True, kw_only=True):
    """Replays the task's events after `after_seq`, goes on live, and ends with the result."""

    task_id: str
    after_seq: int = 0

    method = "task.attach"
    returns = TaskResult


class NewMemory(Record, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    content: str
    speaker: str | None = None
    created_at: datetime | None = None
    kind: str = "note"
    source: str = "user"
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)


class Remembered(Record, frozen=True, kw_only=True, omit_defaults=True):
    memory_id: str | None = None
    memory_ids: tuple[str, ...] | None = None


class MemoryRemember(Params[Remembered], frozen=True, kw_only=True):
    """Answers once what was given is on the disk: one `content`, or many `memories`."""

    session_id: str
    content: str | None = None
    speaker: str | None = None
    created_at: datetime | None = None
    kind: str = "note"
    source: str = "user"
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)
    memories: tuple[NewMemory, ...] | None = None

    method = "memory.remember"
    returns = Remembered


class Recalled(Record, frozen=True, kw_only=True):
    memories: tuple[ScoredMemory, ...]


class MemoryRecall(Params[Recalled], frozen=True, kw_only=True):
    """What fits the query best, for a session (as far as it may see) or for a user."""

    query: str
    session_id: str | None = None
    user_id: str | None = None
    scope: Literal["user", "session"] = "user"
    n: int = 5
    as_of: datetime | None = None
    kind: str | None = None
    source: str | None = None

    method = "memory.recall"
    returns = Recalled


class Context(Record, frozen=True, kw_only=True):
    text: str
    """`[created_at] content`, one entry a line."""
    entries: tuple[Turn, ...]


class MemoryContext(Params[Context], frozen=True, kw_only=True):
    """The session's working memory: its last turns, the oldest first."""

    session_id: str
    last_n: int = 10

    method = "memory.context"
    returns = Context


class Memories(Record, frozen=True, kw_only=True, omit_defaults=True):
    memories: tuple[Memory, ...]
    next_cursor: str | None = None


class MemoryList(Params[Memories], frozen=True, kw_only=True):
    """Memories of a session or a user, the newest first."""

    session_id: str | None = None
    user_id: str | None = None
    limit: int = 100
    cursor: str | None = None

    method = "memory.list"
    returns = Memories


class MemoryGet(Params[Memory], frozen=True, kw_only=True):
    """One memory."""

    memory_id: str

    method = "memory.get"
    returns = Memory


class Forgotten(Record, frozen=True, kw_only=True):
    forgotten: int


class MemoryForget(Params[Forgotten], frozen=True, kw_only=True):
    """Removes what fits every condition given; one at least. With `dry_run`, counts only."""

    memory_id: str | None = None
    query: str | None = None
    session_id: str | None = None
    user_id: str | None = None
    source: str | None = None
    before: datetime | None = None
    dry_run: bool = False

    method = "memory.forget"
    returns = Forgotten


class Tools(Record, frozen=True, kw_only=True):
    tools: tuple[Tool, ...]


class ToolList(Params[Tools], frozen=True, kw_only=True):
    """Every tool, or those a session may use."""

    session_id: str | None = None

    method = "tool.list"
    returns = Tools


class ToolGet(Params[Tool], frozen=True, kw_only=True):
    """One tool."""

    name: str

    method = "tool.get"
    returns = Tool


class ToolCall(Params[ToolResult], frozen=True, kw_only=True):
    """Calls a tool with a session's rights; the owner's own act, so it needs no approval."""

    session_id: str
    name: str
    arguments: dict[str, Any] = msgspec.field(default_factory=dict)

    method = "tool.call"
    returns = ToolResult


class Agents(Record, frozen=True, kw_only=True):
    agents: tuple[Agent, ...]


class AgentList(Params[Agents], frozen=True, kw_only=True):
    """The agents of the config."""

    method = "agent.list"
    returns = Agents


class Backends(Record, frozen=True, kw_only=True):
    backends: tuple[BackendInfo, ...]


class ModelList(Params[Backends], frozen=True, kw_only=True):
    """The backends as they stand now; each is probed."""

    method = "model.list"
    returns = Backends


class ModelAsked(msgspec.Struct, frozen=True, kw_only=True):
    """What `model.route` and `model.infer` are asked."""

    messages: Annotated[tuple[Message, ...], msgspec.Meta(min_length=1)]
    tier: Tier = "balanced"
    task_type: TaskType = "reasoning"
    max_tokens: Positive = 2000
    latency_budget_ms: Positive | None = None
    """Steers the choice; no deadline."""
    tools: tuple[ToolSpec, ...] = ()
    schema: dict[str, Any] | None = None
    privacy: Privacy = "any"
    backend: str | None = None


class ModelRoute(ModelAsked, Params[Decision], frozen=True, kw_only=True):
    """Which backend would be asked now and why; no model is sent anything."""

    method = "model.route"
    returns = Decision


class ModelInfer(ModelAsked, Params[Reply], frozen=True, kw_only=True):
    """One reply of a model, without a session: nothing is remembered. What it costs counts against the day's
    cap. With `stream` its text comes before as `model.text {text}` notifications, so ask for one at a time."""

    stream: bool = False

    method = "model.infer"
    returns = Reply


class ModelEmbed(Params[Embedded], frozen=True, kw_only=True):
    """Texts as vectors, made on this machine or not at all."""

    texts: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]

    method = "model.embed"
    returns = Embedded
