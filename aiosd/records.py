"""The nouns of aiosd, each declared once: stored and sent as they are. Then the events of a task.

Times are ISO 8601 in UTC, money is US dollars, ids are UUIDs as text.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

Privacy = Literal["any", "local"]
"""`local` text never leaves the machine."""
Priority = Literal["interactive", "normal", "background"]
SessionState = Literal["open", "closed"]
TaskState = Literal["queued", "working", "input_required", "completed", "failed", "cancelled"]
ENDED: frozenset[str] = frozenset({"completed", "failed", "cancelled"})
CallStatus = Literal["pending", "in_progress", "completed", "failed", "unknown"]
ApprovalDecision = Literal["allow_once", "allow_always", "reject_once", "reject_always"]
StopReason = Literal["end_turn", "max_tokens", "max_steps", "repetition", "refusal", "cancelled"]
"""`repetition`: the model wrote or called the same again and again, and was stopped."""
Tier = Literal["fast", "balanced", "capable"]
TaskType = Literal["reasoning", "coding", "summarization", "embedding"]
SourceKind = Literal["memory", "input", "tool", "file"]


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A noun of the wire: stored and sent as it is."""


class Session(Record, frozen=True, kw_only=True):
    session_id: str
    user_id: str
    title: str
    agent: str | None
    permissions: tuple[str, ...]
    privacy: Privacy
    priority: Priority
    max_usd: float | None
    workspace: str | None
    """The folder that tools may see; None is a private empty one."""
    write: bool
    state: SessionState
    created_at: datetime
    used_at: datetime


class Source(Record, frozen=True, kw_only=True):
    """Where a part of an answer comes from. `ref` is a memory id, `NAME:LINE` of an input or file, or a tool's name."""

    kind: SourceKind
    ref: str
    text: str


class Tokens(Record, frozen=True, kw_only=True):
    input_tokens: int = 0
    output_tokens: int = 0


class Candidate(Record, frozen=True, kw_only=True):
    """A backend that was considered. `rejected` says why it was not asked, or how it failed; None for the chosen one."""

    backend: str
    model: str
    local: bool
    rejected: str | None = None
    predicted_s: float | None = None
    """From the request to the end of the answer; None where nothing was predicted."""


class Decision(Record, frozen=True, kw_only=True):
    """Why this backend answered: every reply carries one."""

    tier: Tier
    chosen: str
    reason: str
    candidates: tuple[Candidate, ...]
    took_s: float | None = None
    sent_s: float | None = None
    """From the request to when the backend that answered was sent it: the waits for a slot and for a model to load."""
    dropped: str | None = None
    """What was left out of the prompt to fit the model's window, in a sentence."""
    truncated: str | None = None
    """Where the backend read less of the prompt than it was sent: a sentence that says how much."""


class TaskResult(Record, frozen=True, kw_only=True):
    task_id: str
    session_id: str
    state: TaskState
    result: Any
    """Text, or the object when a schema was given."""
    stop_reason: StopReason
    generated: bool
    """False where every word is quoted from a source."""
    abstained: bool
    backend: str | None
    model: str | None
    sources: tuple[Source, ...]
    usage: Tokens
    cost_usd: float
    decision: Decision | None


class Task(Record, frozen=True, kw_only=True):
    task_id: str
    number: int
    """Counted up for one user's daemon, never reused."""
    session_id: str
    parent_id: str | None
    task: str
    state: TaskState
    priority: Priority
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    steps: int
    cost_usd: float
    result: TaskResult | None
    error: dict[str, Any] | None
    """A JSON-RPC error object."""


class Memory(Record, frozen=True, kw_only=True):
    memory_id: str
    user_id: str
    session_id: str
    content: str
    speaker: str | None
    kind: str
    """What it is: `note` when given, `task` for a completed run, or the caller's own word."""
    source: str
    """What made it: `user`, `task:ID`, `tool:NAME`, or the caller's own word."""
    trust: float
    """0 to 1; what the user said is 1."""
    privacy: Privacy
    created_at: datetime
    metadata: dict[str, Any]


class ScoredMemory(Memory, frozen=True, kw_only=True):
    score: float
    """0 to 1, the more the better the match."""


class Turn(Record, frozen=True, kw_only=True):
    """A line of a session's working memory."""

    role: Literal["user", "assistant", "note"]
    content: str
    created_at: datetime
    task_id: str | None
    privacy: Privacy
    trust: float = 1.0
    """Of a note: that of the memory it is."""


class Tool(Record, frozen=True, kw_only=True, rename={"input_schema": "inputSchema"}):
    """A tool as MCP describes one, with what it takes to use it."""

    name: str
    description: str
    input_schema: dict[str, Any]
    """JSON Schema 2020-12 of the arguments, an object."""
    annotations: dict[str, Any]
    """MCP's hints: readOnlyHint, destructiveHint, idempotentHint, openWorldHint."""
    permissions: tuple[str, ...]
    rate_limit: int | None
    """Calls a minute, per user."""
    hosts: tuple[str, ...] = ()
    """What it may reach; without any it has no network."""


class Text(Record, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """A content block of MCP."""

    text: str


class ToolResult(
    Record,
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    rename={"structured_content": "structuredContent", "is_error": "isError"},
):
    """What a tool gave, in MCP's shape."""

    content: tuple[Text, ...]
    is_error: bool
    structured_content: Any = None


COMMAND_S = 100.0
"""Seconds for a program that a tool runs: less than a call may take, so that what it wrote is not lost."""


class Command(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A program that is a tool. `{name}` in a part of `argv` is an argument of the tool."""

    argv: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    permissions: tuple[str, ...] = ()
    description: str = ""
    read_only: bool = False
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=COMMAND_S)] = COMMAND_S


class AlwaysRule(Record, frozen=True, kw_only=True):
    """What a user answered once and for all: it settles what asks in any of the user's sessions, and widens none."""

    rule_id: str
    user_id: str
    rule: str
    """An entry as in permissions: `name(pattern)` allows, `!name(pattern)` rejects."""
    created_at: datetime


class AuditEntry(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A line of the audit log. `hash` covers it and, through the hash before, every line above it."""

    seq: int
    at: datetime
    kind: Literal["call", "result", "approval", "egress"]
    what: str
    """The tool, or the host and port that was to be reached."""
    session_id: str | None = None
    task_id: str | None = None
    detail: dict[str, Any] = msgspec.field(default_factory=dict)
    hash: str = ""


class Agent(Record, frozen=True, kw_only=True):
    """A named way of working, from the config."""

    name: str
    system: str | None
    tier: Tier
    permissions: tuple[str, ...] | None


class BackendInfo(Record, frozen=True, kw_only=True):
    name: str
    kind: str
    model: str
    url: str | None
    local: bool
    tiers: tuple[Tier, ...]
    state: Literal["up", "down", "unknown"]
    reason: str | None
    """Why it is down."""
    hint: str | None = None
    """A command that may bring it up."""
    slots: int
    in_flight: int
    price_in: float
    price_out: float
    """Dollars per million tokens."""
    resident: bool | None = None
    """Whether its model is loaded; None where the backend cannot say."""
    queued: int = 0
    """Requests that wait for a slot."""
    tokens_per_s: float | None = None
    """Written, as learnt; None before the first answer, as with first_token_s."""
    first_token_s: float | None = None
    """From sending to the first token, without reading the prompt."""
    retry_in_s: float | None = None
    """Until it is asked again, where it is left alone for now."""


class Input(Record, frozen=True, kw_only=True):
    """A text given with a task: what was piped in, a file."""

    name: str
    text: str


class ToolUse(Record, frozen=True, kw_only=True):
    """A model asks for a tool."""

    call_id: str
    name: str
    arguments: dict[str, Any]


class Message(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One message of a conversation with a model, the oldest first."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: tuple[ToolUse, ...] = ()
    """Of an assistant's message."""
    call_id: str | None = None
    """Of a tool's message: the call it answers."""
    name: str | None = None
    """Of a tool's message: the tool."""
    failed: bool = False
    """Of a tool's message: it is an error."""


class ToolSpec(
    Record, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"input_schema": "inputSchema"}
):
    """A tool as a model sees it."""

    name: str
    description: str
    input_schema: dict[str, Any]


class Reply(Record, frozen=True, kw_only=True):
    """A model's whole reply, with who gave it and why."""

    text: str
    thinking: str
    tool_calls: tuple[ToolUse, ...]
    stop_reason: StopReason
    generated: bool
    abstained: bool
    sources: tuple[Source, ...]
    usage: Tokens
    cost_usd: float
    backend: str
    model: str
    decision: Decision


class Span(Record, frozen=True, kw_only=True):
    """A stretch of a task's time, as OpenTelemetry has them; the trace is the task."""

    span_id: str
    parent_id: str | None
    """None of the task's own."""
    name: str
    """invoke_agent, start, search_memory, prepare, chat MODEL, queue, load, execute_tool NAME, approval,
    input_required, keep, or stop."""
    started_at: datetime
    ended_at: datetime | None
    """None of what goes on."""
    attributes: dict[str, Any]
    """By OpenTelemetry's semantic conventions for generative AI; those without a name there begin with `aiosd.`."""


class Embedded(Record, frozen=True, kw_only=True):
    """Vectors in the order of the texts."""

    vectors: tuple[tuple[float, ...], ...]
    model: str
    dim: int


# --- events of a task ----------------------------------------------------------------------------------


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """Something that happened in a task. The numbered ones are kept, and are the task's journal."""

    task_id: str
    seq: int
    """1, 2, ... without gaps; a delta carries the number of the last kept event before it."""
    at: datetime


class StateEvent(Event, frozen=True, kw_only=True, tag="state"):
    state: TaskState


class ProgressEvent(Event, frozen=True, kw_only=True, tag="progress", omit_defaults=True):
    """What is waited for; `recalled`: what memory gave for the task; `indexing`: how far the index has come; `stopped`:
    why it ends before its model would."""

    stage: Literal["queued", "loading", "recalled", "retrying", "indexing", "stopped"]
    detail: str = ""
    place: int | None = None
    eta_s: float | None = None
    done: int | None = None
    total: int | None = None
    memories: tuple[ScoredMemory, ...] = ()
    upto: tuple[int, int] | None = None
    """Of `recalled`: the last turn and memory there were, up to which the task sees its session. None in old journals."""


class RouteEvent(Event, frozen=True, kw_only=True, tag="route"):
    decision: Decision
    began_at: datetime | None = None
    """When the model was asked for; kept since it is no event of its own. None in old journals."""
    first_token_at: datetime | None = None
    tools: str | None = None
    """The digest of the tools that were offered, under which the ledger has them. None in old journals."""


class MessageEvent(Event, frozen=True, kw_only=True, tag="message"):
    """A model's whole reply; it replaces the deltas before it."""

    text: str
    thinking: str
    tool_calls: tuple[ToolUse, ...]
    stop_reason: StopReason
    generated: bool
    abstained: bool
    backend: str
    model: str
    sources: tuple[Source, ...]


class ToolCallEvent(Event, frozen=True, kw_only=True, tag="tool_call"):
    call_id: str
    name: str
    arguments: dict[str, Any]
    status: CallStatus


class ToolResultEvent(Event, frozen=True, kw_only=True, tag="tool_result"):
    call_id: str
    name: str
    status: CallStatus
    text: str
    sources: tuple[Source, ...] = ()


class ApprovalEvent(Event, frozen=True, kw_only=True, tag="approval"):
    """A call that waits for the user's word, and then the word: `decision` is None while it waits."""

    call_id: str
    name: str
    arguments: dict[str, Any]
    why: str
    """Why it asks: a clause."""
    rule: str | None
    """What `always` would keep; None where no rule says it, and `always` counts for this call alone."""
    decision: ApprovalDecision | None = None
    by: Literal["user", "timeout", "nobody"] | None = None
    """Who decided: `nobody` where nobody watches the task, or it was run with approve = never."""


class UsageEvent(Event, frozen=True, kw_only=True, tag="usage"):
    usage: Tokens
    cost_usd: float


class TextEvent(Event, frozen=True, kw_only=True, tag="text"):
    """A piece of the reply being written, from `offset` characters on. Not kept; may be merged or dropped."""

    offset: int
    text: str


class ThinkingEvent(Event, frozen=True, kw_only=True, tag="thinking"):
    offset: int
    text: str


Delta = TextEvent | ThinkingEvent
Kept = (
    StateEvent
    | ProgressEvent
    | RouteEvent
    | MessageEvent
    | ToolCallEvent
    | ToolResultEvent
    | ApprovalEvent
    | UsageEvent
)
AnyEvent = Kept | Delta
