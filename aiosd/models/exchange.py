"""One request and one backend: its slot, its deadline, its deltas, and a reply that fits its schema."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import msgspec

from aiosd.errors import NoModelFits
from aiosd.models import router
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
)
from aiosd.models.member import Member
from aiosd.records import Tokens, ToolUse

CLOSE_S = 2.0
"""For a backend to let go of a stream."""

OnDelta = Callable[[TextDelta | ThinkingDelta], Awaitable[None]]
OnWait = Callable[[str], Awaitable[None]]
Reserve = Callable[[float], Awaitable[None]]


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """One request to the pool, with its caller's ends."""

    request: ModelRequest
    form: Form | None
    on_delta: OnDelta | None
    on_wait: OnWait | None
    reserve: Reserve | None


class Got(msgspec.Struct, frozen=True, kw_only=True):
    """What one backend gave."""

    text: str
    thinking: str
    calls: tuple[ToolUse, ...]
    done: Done
    usage: Tokens
    cost_usd: float


async def ask(member: Member, asked: Asked, *, last: bool, clock: Callable[[], float]) -> Got:
    """One backend's whole reply; with a schema, one that fits it, at the second try if need be."""
    request = asked.request
    got = await _stream(member, asked, last=last, clock=clock)
    if asked.form is None or got.calls or got.done.abstained or got.done.stop_reason == "refusal":
        return got
    try:
        text = asked.form.read(got.text)
    except Misfit as wrong:
        if got.done.stop_reason == "max_tokens":
            raise NoModelFits(
                f"`{member.name}` was cut off by max_tokens = {request.max_tokens} before its JSON was whole",
                backend=member.name,
                model=member.backend.model,
                text=got.text,
            ) from None
        again = msgspec.structs.replace(request, messages=(*request.messages, *_repair(got.text, wrong)))
        second = await _stream(member, msgspec.structs.replace(asked, request=again), last=last, clock=clock)
        try:
            text = asked.form.read(second.text)
        except Misfit as still:
            raise NoModelFits(
                f"`{member.name}` did not answer in the schema, asked twice: {still}",
                hint=router.LIST,
                backend=member.name,
                model=member.backend.model,
                text=second.text,
            ) from None
        got = msgspec.structs.replace(
            second,
            thinking=got.thinking + second.thinking,
            usage=Tokens(
                input_tokens=got.usage.input_tokens + second.usage.input_tokens,
                output_tokens=got.usage.output_tokens + second.usage.output_tokens,
            ),
            cost_usd=got.cost_usd + second.cost_usd,
        )
    if asked.on_delta is not None:
        await asked.on_delta(TextDelta(text))
    return msgspec.structs.replace(got, text=text)


async def _stream(member: Member, asked: Asked, *, last: bool, clock: Callable[[], float]) -> Got:
    """One dispatch. Raises BackendFailed where another backend may follow, NoModelFits where none may."""
    request, backend = asked.request, member.backend
    most_usd = 0.0
    if member.paid:
        most_usd = member.cost_usd(_most(request))
        if asked.reserve is not None:
            await asked.reserve(most_usd)
    collector = Collector(asked.on_delta, hold_text=asked.form is not None)
    # While there is another one to ask, the first word must come in time. No deadline once it came.
    budget_ms = None if last else request.latency_budget_ms
    try:
        with anyio.move_on_after(None if budget_ms is None else budget_ms / 1000) as waiting:
            async with member.slot(asked.on_wait):
                if router.must_stay(request) and not backend.local:  # known only since the plan was made
                    raise BackendFailed("it turned out to be remote", fault="request")
                async with _closing(backend.stream(request)) as deltas:
                    async for delta in deltas:
                        waiting.deadline = math.inf
                        if waiting.cancel_called:  # the very moment: it is too late for this delta
                            await anyio.lowlevel.checkpoint()
                        await collector.take(delta)
                        if collector.done is not None:
                            break
        if waiting.cancelled_caught:
            raise BackendFailed(f"no word from it within {budget_ms} ms", fault="request")
        if collector.done is None:
            raise BackendFailed(f"`{backend.model}` ended its reply before it was done")
    except BackendFailed as exc:
        if not collector.passed_on:
            raise
        member.failed(exc, clock())
        raise NoModelFits(
            f"`{member.name}` broke off in the middle of its reply: {exc}",
            backend=member.name,
            model=backend.model,
            text=collector.text,
        ) from None
    usage = collector.done.usage
    return Got(
        text=collector.text,
        thinking=collector.thinking,
        calls=collector.calls,
        done=collector.done,
        usage=usage,
        # A paid server that does not say what it used has used what was reserved, for all we know.
        cost_usd=most_usd if usage == Tokens() else member.cost_usd(usage),
    )


class Collector:
    """A reply as it comes in; what may be seen of it already is passed on."""

    def __init__(self, on_delta: OnDelta | None, *, hold_text: bool) -> None:
        self._on_delta = on_delta
        self._hold_text = hold_text
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._calls: list[ToolUse] = []
        self.done: Done | None = None
        self.passed_on = False
        """Something of it was seen: another backend's reply cannot follow it."""

    async def take(self, delta: Delta) -> None:
        match delta:
            case TextDelta():
                self._text.append(delta.text)
                if not self._hold_text:
                    await self.pass_on(delta)
            case ThinkingDelta():
                self._thinking.append(delta.text)
                await self.pass_on(delta)
            case ToolCallDelta():
                self._calls.append(delta.call)
            case Done():
                self.done = delta

    async def pass_on(self, delta: TextDelta | ThinkingDelta) -> None:
        if self._on_delta is not None:
            self.passed_on = True
            await self._on_delta(delta)

    @property
    def text(self) -> str:
        return "".join(self._text)

    @property
    def thinking(self) -> str:
        return "".join(self._thinking)

    @property
    def calls(self) -> tuple[ToolUse, ...]:
        return tuple(self._calls)


@asynccontextmanager
async def _closing(stream: AsyncIterator[Delta]) -> AsyncIterator[AsyncIterator[Delta]]:
    """Closed however it ends, cancelled too: that is what stops the model."""
    try:
        yield stream
    finally:
        if isinstance(stream, AsyncGenerator):
            with anyio.move_on_after(CLOSE_S, shield=True):
                await stream.aclose()


def _most(request: ModelRequest) -> Tokens:
    """The most tokens that a request can be: every tokenizer makes at least one byte of a token."""
    size = sum(
        len(m.content.encode()) + len(msgspec.json.encode(m.tool_calls)) + 16 for m in request.messages
    )
    size += len(msgspec.json.encode((request.tools, request.schema)))
    return Tokens(input_tokens=size, output_tokens=request.max_tokens)


def _repair(text: str, wrong: Misfit) -> tuple[Message, Message]:
    return (
        Message(role="assistant", content=text),
        Message(
            role="user",
            content=f"That does not fit the schema: {wrong}. Answer again with the JSON alone, nothing around it.",
        ),
    )
