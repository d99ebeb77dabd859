"""Pools over doubles, and what their tests have in common."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio

from aiosd import config
from aiosd.config import Config
from aiosd.models.backend import (
    Backend,
    Done,
    Message,
    ModelRequest,
    Reply,
    TextDelta,
    ThinkingDelta,
    ToolSpec,
)
from aiosd.models.pool import Pool, open_pool
from aiosd.records import Tokens
from tests.doubles.http_double import Script
from tests.doubles.ollama_double import OllamaDouble
from tests.doubles.openai_double import OpenAIDouble

NOWHERE = "http://127.0.0.1:1"
"""Nothing listens on port 1."""
TOOL = ToolSpec(name="search", description="", input_schema={"type": "object"})
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def user(text: str = "hi", **rest: Any) -> ModelRequest:
    return ModelRequest(messages=(Message(role="user", content=text),), **rest)


def near(url: str, model: str = "small", **rest: Any) -> config.Backend:
    return config.Backend(kind="ollama", url=url, model=model, **rest)


def far(double: OpenAIDouble, **rest: Any) -> config.Backend:
    """The double as a server elsewhere would be."""
    return config.Backend(kind="openai", url=double.base, model="m", local=False, **rest)


def paid(double: OpenAIDouble) -> config.Backend:
    return far(double, price_in=2.5, price_out=10.0)


def configured(backends: Mapping[str, config.Backend], **tiers: tuple[str, ...]) -> Config:
    return Config(models=config.Models(backends=dict(backends), tiers=tiers))  # type: ignore[arg-type]


class Clock:
    """Time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Ears:
    """What a caller of the pool hears."""

    def __init__(self) -> None:
        self.heard: list[TextDelta | ThinkingDelta] = []

    async def on_delta(self, delta: TextDelta | ThinkingDelta) -> None:
        self.heard.append(delta)


@asynccontextmanager
async def pool_of(
    backends: Mapping[str, config.Backend],
    extra: Mapping[str, Backend] = {},
    *,
    environ: Mapping[str, str] = {},
    clock: Callable[[], float] | None = None,
    **tiers: tuple[str, ...],
) -> AsyncIterator[Pool]:
    with anyio.fail_after(60):
        async with open_pool(configured(backends, **tiers), environ, extra, clock=clock or Clock()) as pool:
            yield pool


@asynccontextmanager
async def near_and_far(
    near_script: Script | None = None,
    far_script: Script | None = None,
    *,
    paid_far: bool = False,
    **rest: Any,
) -> AsyncIterator[tuple[Pool, OllamaDouble, OpenAIDouble]]:
    """A pool that lists a remote backend before a local one."""
    async with OllamaDouble(near_script) as local, OpenAIDouble(far_script) as remote:
        there = paid(remote) if paid_far else far(remote)
        async with pool_of({"there": there, "here": near(local.url)}, **rest) as pool:
            yield pool, local, remote


def why(reply: Reply) -> dict[str, str | None]:
    return {c.backend: c.rejected for c in reply.decision.candidates}


class Scripted:
    """A backend in this process."""

    def __init__(self, *words: str, slots: int = 1) -> None:
        self.name = "scripted"
        self.kind = "scripted"
        self.model = "scripted"
        self.url: str | None = None
        self.local = True
        self.slots = slots
        self.price_in = 0.0
        self.price_out = 0.0
        self.words = words
        self.usage = Tokens()
        self.asked: list[ModelRequest] = []
        self.closed = 0
        self.at_work = 0
        self.most = 0

    async def speak(self) -> AsyncIterator[str]:
        for word in self.words:
            yield word

    async def stream(self, request: ModelRequest) -> AsyncIterator[Any]:
        self.asked.append(request)
        self.at_work += 1
        self.most = max(self.most, self.at_work)
        try:
            async for word in self.speak():
                yield TextDelta(word)
            yield Done(stop_reason="end_turn", usage=self.usage)
        finally:
            self.at_work -= 1

    async def probe(self) -> str | None:
        return None

    async def aclose(self) -> None:
        self.closed += 1
