"""What every model backend is asked and gives: one request in, a stream of deltas out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import msgspec

from aiosd.records import (
    Embedded,
    Message,
    Priority,
    Privacy,
    Reply,
    Source,
    StopReason,
    TaskType,
    Tier,
    Tokens,
    ToolSpec,
    ToolUse,
)

__all__ = [
    "Backend",
    "BackendFailed",
    "Delta",
    "Done",
    "Embedded",
    "Embedder",
    "Message",
    "ModelRequest",
    "Reply",
    "Spare",
    "TextDelta",
    "ThinkingDelta",
    "ToolCallDelta",
    "ToolSpec",
    "Wait",
]


class Spare(Message, frozen=True, kw_only=True):
    """A message that may be shortened or left out where a window is too small for all of it: `window.fit` says in
    which order. `content` is the whole of it."""

    kind: Literal["turn", "memory", "result", "input"]
    head: str = ""
    """Stays where no piece does."""
    title: str = ""
    """Stands between the head and the pieces, where there are any."""
    pieces: tuple[str, ...] = ()
    """A line or more each."""
    refs: tuple[str, ...] = ()
    """Of a `memory`: the ids of what the pieces say, as long as these."""

    def with_pieces(self, pieces: Sequence[str]) -> Spare:
        content = self.head + (self.title + "\n".join(pieces) if pieces else "")
        return msgspec.structs.replace(
            self, content=content, pieces=tuple(pieces), refs=self.refs[: len(pieces)]
        )


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
    session_id: str | None = None
    """Whose it is: the queue is fair between sessions."""
    task_id: str | None = None
    """Whose it is: a task's priority may change while it waits."""
    priority: Priority = "normal"
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
    sent: tuple[str, ...] = ()
    """Of one that generates: ids of the memories that were in the prompt."""
    load_s: float | None = None
    """Loading the model for this request, 0 where it was resident; None where the backend does not say."""
    prompt_s: float | None = None
    """Reading the part of the prompt that was not cached."""
    output_s: float | None = None
    """Writing the answer, its first token included."""
    dropped: str | None = None
    """What was left out of the prompt to fit the model's window, in a sentence."""
    truncated: str | None = None
    """Where the backend read less of the prompt than it was sent: a sentence that says how much."""


Delta = TextDelta | ThinkingDelta | ToolCallDelta | Done


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """What a request waits for, as told to its caller."""

    stage: Literal["queued", "loading", "retrying"]
    detail: str
    place: int | None = None
    """In the queue, from 1."""
    eta_s: float | None = None
    """How long it is predicted to take still."""


class BackendFailed(Exception):
    """A backend did not answer: str() says how. The pool decides what follows; it never crosses the wire."""

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        fault: Literal["backend", "request"] = "backend",
        busy: bool = False,
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.busy = busy
        """The server said itself when to ask again, and will likely answer then."""
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


@runtime_checkable
class Embedder(Protocol):
    """A backend that also turns texts into vectors."""

    model: str
    local: bool

    async def embed(self, texts: Sequence[str]) -> Embedded:
        """A vector for each text, in their order. Raises BackendFailed, also where the model makes none."""
        ...
