"""One request and one backend: its slot, its deadline, its deltas, and a reply that fits its schema."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from io import StringIO
from types import AsyncGeneratorType

import anyio
import anyio.lowlevel
import msgspec

from aiosd.errors import NoModelFits
from aiosd.models import repetition, router
from aiosd.models.answer import Form, Misfit
from aiosd.models.backend import (
    BackendFailed,
    Delta,
    Done,
    Message,
    ModelRequest,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    Wait,
)
from aiosd.models.estimator import Observed
from aiosd.models.member import Member, Overdue, Patience, Size, size
from aiosd.records import Tokens, ToolUse

CLOSE_S = 2.0
"""For a backend to let go of a stream."""

OnDelta = Callable[[TextDelta | ThinkingDelta], Awaitable[None]]
OnWait = Callable[[Wait], Awaitable[None]]
Reserve = Callable[[float], Awaitable[None]]


class Bill:
    """What a request has cost so far, with the attempts that failed."""

    def __init__(self) -> None:
        self.usd = 0.0


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """One request to the pool, with its caller's ends."""

    request: ModelRequest
    size: Size
    form: Form | None
    on_delta: OnDelta | None
    on_wait: OnWait | None
    reserve: Reserve | None
    bill: Bill


class Got(msgspec.Struct, frozen=True, kw_only=True):
    """What one backend gave."""

    text: str
    thinking: str
    calls: tuple[ToolUse, ...]
    done: Done
    usage: Tokens
    local: bool
    """It was sent as a local backend is: what it gave may hold what must not leave."""


async def ask(
    member: Member,
    asked: Asked,
    *,
    patience: Patience | None,
    clock: Callable[[], float],
    repairing: bool = False,
) -> Got:
    """One backend's whole reply; with a schema, one that fits it, at the second try if need be.

    `patience` is for its first token; None where nobody else could be asked.
    """
    got = await _stream(member, asked, patience=patience, clock=clock)
    if asked.form is None or got.calls or got.done.abstained or got.done.stop_reason == "refusal":
        return got
    try:
        text = asked.form.read(got.text)
    except Misfit as wrong:
        if got.done.stop_reason == "repetition":
            raise _useless(
                member, asked, got.text, "repeated itself instead of answering in the schema"
            ) from None
        if got.done.stop_reason == "max_tokens":
            why = f"was cut off by max_tokens = {asked.request.max_tokens} before its JSON was whole"
            raise _useless(member, asked, got.text, why) from None
        if repairing:
            why = f"did not answer in the schema, asked twice: {wrong}"
            raise _useless(member, asked, got.text, why) from None
        again = msgspec.structs.replace(asked, request=_repair(asked.request, got, wrong))
        second = await ask(member, again, patience=patience, clock=clock, repairing=True)
        return msgspec.structs.replace(
            second, thinking=got.thinking + second.thinking, usage=_sum(got.usage, second.usage)
        )
    if asked.on_delta is not None:
        await asked.on_delta(TextDelta(text))
    return msgspec.structs.replace(got, text=text)


async def _stream(
    member: Member, asked: Asked, *, patience: Patience | None, clock: Callable[[], float]
) -> Got:
    """One dispatch. Raises BackendFailed where another backend may follow, NoModelFits where none may."""
    backend = member.backend
    local = backend.local
    request = router.outgoing(asked.request, local=local)
    most_usd = 0.0
    if member.paid:
        most_usd = member.cost_usd(_most(request))
        if asked.reserve is not None:
            await asked.reserve(asked.bill.usd + most_usd)
    collector = Collector(asked.on_delta, clock, hold_text=asked.form is not None)
    began_s = clock()
    try:
        # No deadline once the first token came.
        with anyio.move_on_after(None if patience is None else patience.limit_s) as waiting:
            if router.must_stay(request) and not backend.local:  # known only since it was chosen
                raise BackendFailed("it turned out to be remote", fault="request")
            async with closing(backend.stream(request)) as deltas:
                async for delta in deltas:
                    if not collector.began:
                        waiting.deadline = math.inf
                    if waiting.cancel_called:  # the very moment: it is too late for this delta
                        await anyio.lowlevel.checkpoint()
                    await collector.take(delta)
                    if collector.done is None and collector.repeats():
                        break  # which closes the stream
        if waiting.cancelled_caught:
            assert patience is not None
            raise Overdue(patience)
        if collector.done is None and collector.cut is None:
            raise BackendFailed(f"`{backend.model}` ended its reply before it was done")
    except BackendFailed as exc:
        if collector.began:  # what it will be billed for is not known: at most this
            asked.bill.usd += most_usd
        if not collector.passed_on:
            raise
        member.failed(exc, clock())
        why = f"broke off in the middle of its reply: {exc}"
        raise _useless(member, asked, collector.text, why) from None
    done = collector.done or Done(stop_reason="repetition", usage=Tokens())
    usage = done.usage
    # A paid server that does not say what it used has used what was reserved, for all we know.
    asked.bill.usd += most_usd if usage == Tokens() else member.cost_usd(usage)
    if collector.done is not None:
        sized = asked.size if request is asked.size.request else size(request)
        member.answered(_observed(sized, collector, began_s, clock()), collector.done, clock())
    return Got(
        text=collector.text,
        thinking=collector.thinking,
        calls=collector.calls,
        done=done,
        usage=usage,
        local=local,
    )


def _observed(asked: Size, collector: Collector, began_s: float, now: float) -> Observed:
    done, request = collector.done, asked.request
    assert done is not None
    load_s = done.load_s or 0.0
    first_s = None if collector.first_s is None else max(0.0, collector.first_s - began_s - load_s)
    return Observed(
        task_type=request.task_type,
        max_tokens=request.max_tokens,
        prompt_chars=asked.prompt_chars,
        prompt_tokens=done.usage.input_tokens,
        output_tokens=done.usage.output_tokens or (len(collector.text) + len(collector.thinking)) // 4,
        total_s=max(0.0, now - began_s - load_s),
        first_s=first_s,
        prompt_s=done.prompt_s,
    )


def _useless(member: Member, asked: Asked, text: str, why: str) -> NoModelFits:
    """A reply that came and cannot be used. Nobody else is asked: it was seen, or another would do no better."""
    return NoModelFits(
        f"`{member.name}` {why}",
        backend=member.name,
        model=member.backend.model,
        text=text,
        cost_usd=asked.bill.usd,
    )


class Collector:
    """A reply as it comes in; what may be seen of it already is passed on."""

    def __init__(self, on_delta: OnDelta | None, clock: Callable[[], float], *, hold_text: bool) -> None:
        self._on_delta = on_delta
        self._clock = clock
        self._hold_text = hold_text
        self._text = StringIO()
        self._thinking = StringIO()
        self._calls: list[ToolUse] = []
        self.done: Done | None = None
        self.began = False
        self.first_s: float | None = None
        """When the first token came; None where there was none but in a tool call, which comes whole."""
        self.cut: int | None = None
        """Where the text, which only repeats itself from there on, ends."""
        self._unseen: list[str] = []
        """Text that was not looked at yet, and how much that is."""
        self._unseen_chars = 0
        self._end = ""
        """Of what was."""
        self.passed_on = False
        """Something of it was seen: another backend's reply cannot follow it."""

    async def take(self, delta: Delta) -> None:
        self.began = True
        if self.first_s is None and isinstance(delta, TextDelta | ThinkingDelta):
            self.first_s = self._clock()
        match delta:
            case TextDelta():
                self._text.write(delta.text)
                self._unseen.append(delta.text)
                self._unseen_chars += len(delta.text)
                if not self._hold_text:
                    await self.pass_on(delta)
            case ThinkingDelta():
                self._thinking.write(delta.text)
                await self.pass_on(delta)
            case ToolCallDelta():
                self._calls.append(delta.call)
            case Done():
                self.done = delta

    def repeats(self) -> bool:
        """Whether nothing new is to be expected. It looks now and then."""
        if self._unseen_chars < repetition.EVERY_CHARS:
            return False
        self._end = (self._end + "".join(self._unseen))[-repetition.WINDOW :]
        self._unseen.clear()
        self._unseen_chars = 0
        if repetition.repeats_from(self._end) is not None:
            self.cut = repetition.repeats_from(self._text.getvalue())
        return self.cut is not None

    async def pass_on(self, delta: TextDelta | ThinkingDelta) -> None:
        if self._on_delta is not None:
            self.passed_on = True
            await self._on_delta(delta)

    @property
    def text(self) -> str:
        return self._text.getvalue()[: self.cut]

    @property
    def thinking(self) -> str:
        return self._thinking.getvalue()

    @property
    def calls(self) -> tuple[ToolUse, ...]:
        return tuple(self._calls)


class closing:
    """Closed however it ends, cancelled too: that is what stops the model."""

    def __init__(self, stream: AsyncIterator[Delta]) -> None:
        self._stream = stream

    async def __aenter__(self) -> AsyncIterator[Delta]:
        return self._stream

    async def __aexit__(self, *exc: object) -> None:
        # One that has come to its end has closed by itself.
        if isinstance(self._stream, AsyncGeneratorType) and self._stream.ag_frame is not None:
            with anyio.move_on_after(CLOSE_S, shield=True):
                await self._stream.aclose()


def _most(request: ModelRequest) -> Tokens:
    """The most tokens that a request can be: every tokenizer makes at least one byte of a token."""
    size = sum(
        len(m.content.encode()) + len(msgspec.json.encode(m.tool_calls)) + 16 for m in request.messages
    )
    size += len(msgspec.json.encode((request.tools, request.schema)))
    return Tokens(input_tokens=size, output_tokens=request.max_tokens)


def _sum(a: Tokens, b: Tokens) -> Tokens:
    return Tokens(
        input_tokens=a.input_tokens + b.input_tokens, output_tokens=a.output_tokens + b.output_tokens
    )


def _repair(request: ModelRequest, got: Got, wrong: Misfit) -> ModelRequest:
    """The request once more, with what came and what is wrong with it."""
    why = f"That does not fit the schema: {wrong}. Answer again with the JSON alone, nothing around it."
    more = (Message(role="assistant", content=got.text), Message(role="user", content=why))
    if request.public is None:
        return msgspec.structs.replace(request, messages=(*request.messages, *more))
    if got.local:
        return msgspec.structs.replace(
            request, messages=(*request.messages, *more), public=None, privacy="local"
        )
    return msgspec.structs.replace(request, public=(*request.public, *more))
