"""What every model backend is asked and gives: one request in, a stream of deltas out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Literal, Protocol

import msgspec

from aiosd.records import Decision, Privacy, Source, StopReason, TaskType, Tier, Tokens, ToolUse


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One message of the conversation, the oldest first."""

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


class ToolSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A tool as a model sees it."""

    name: str
    description: str
    input_schema: dict[str, Any]


class ModelRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`tier`, `privacy`, `backend` and `latency_budget_ms` route it; the rest is what the model is sent."""

    messages: tuple[Message, ...]
    tier: Tier = "balanced"
    task_type: TaskType = "reasoning"
    max_tokens: int = 2000
    latency_budget_ms: int | None = None
    tools: tuple[ToolSpec, ...] = ()
    schema: dict[str, Any] | None = None
    privacy: Privacy = "any"
    """`local` goes to local backends only."""
    public: tuple[Message, ...] | None = None
    """What a remote backend is sent instead of `messages`, where some of those hold text that must not leave."""
    withheld: int = 0
    """Texts that `public` leaves out."""
    backend: str | None = None
    passages: tuple[Source, ...] = ()
    """What the messages contain that may be quoted: `text` is a whole memory, input or tool result, `ref` its
    name. What earlier tasks asked is not among them. Generating backends do not look at it."""


class TextDelta(msgspec.Struct, frozen=True):
    text: str


class ThinkingDelta(msgspec.Struct, frozen=True):
    text: str


class ToolCallDelta(msgspec.Struct, frozen=True):
    """A whole call; a backend joins its pieces before it gives one."""

    call: ToolUse


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """The last delta of every stream."""

    stop_reason: StopReason
    usage: Tokens
    generated: bool = True
    abstained: bool = False
    sources: tuple[Source, ...] = ()
    """What a backend that quotes has quoted."""
    load_s: float | None = None
    """Loading the model for this request, 0 where it was resident; None where the backend does not say."""
    prompt_s: float | None = None
    """Reading the part of the prompt that was not cached."""
    output_s: float | None = None
    """Writing the answer, its first token included."""
    truncated: str | None = None
    """Where the backend read less of the prompt than it was sent: a sentence that says how much."""


Delta = TextDelta | ThinkingDelta | ToolCallDelta | Done


class Embedded(msgspec.Struct, frozen=True, kw_only=True):
    """Vectors in the order of the texts. A backend that has them offers `embed(texts) -> Embedded`."""

    vectors: tuple[tuple[float, ...], ...]
    model: str
    dim: int


class BackendFailed(Exception):
    """A backend did not answer: str() says how. The pool decides what follows; it never crosses the wire."""

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        fault: Literal["backend", "request"] = "backend",
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.fault = fault
        """`request` is a request that this backend will always refuse: no reason to call the backend down."""


class Backend(Protocol):
    """One file a backend implements this. Streams are always used upstream: closing one frees the slot at once."""

    name: str
    kind: str
    model: str
    url: str | None
    local: bool
    slots: int
    price_in: float
    price_out: float

    def stream(self, request: ModelRequest) -> AsyncIterator[Delta]:
        """The reply, ending in Done. Raises BackendFailed, also in the middle."""
        ...

    async def probe(self) -> str | None:
        """None if it can answer now, else why not, in a sentence with what to do. Takes at most 2 s."""
        ...

    async def aclose(self) -> None: ...


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """A whole reply with who gave it and why."""

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
