"""A backend in the pool, with what the pool knows of it: slots, prices, and whether it is left alone for now."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

import anyio

from aiosd.config import TIERS
from aiosd.models.backend import Backend, BackendFailed
from aiosd.models.ollama import Ollama
from aiosd.models.router import Standing
from aiosd.records import BackendInfo, Candidate, Tier, Tokens


class Member:
    """`ranks` is its place in each tier that it serves. Its name is the config's, whatever it calls itself."""

    def __init__(self, name: str, backend: Backend, ranks: Mapping[Tier, int]) -> None:
        self.name = name
        self.backend = backend
        self.ranks = ranks
        self._slots = anyio.CapacityLimiter(backend.slots)
        self._down = ""
        self._down_until = -math.inf

    def standing(self, now: float) -> Standing:
        backend = self.backend
        return Standing(
            name=self.name,
            kind=backend.kind,
            model=backend.model,
            local=backend.local,
            ranks=self.ranks,
            price_in=backend.price_in,
            price_out=backend.price_out,
            takes_tools=not isinstance(backend, Ollama) or backend.takes_tools,
            down=self.down(now),
        )

    def down(self, now: float) -> str | None:
        if now >= self._down_until:
            return None
        if math.isinf(self._down_until):
            return f"{self._down} (not asked again until the config changes)"
        return f"{self._down} (asked again in {self._down_until - now:.0f} s)"

    def failed(self, exc: BackendFailed, now: float) -> None:
        """It is left alone for as long as the failure says; a later plan asks it again when that is over."""
        if exc.retry_after_s is not None:
            self._down, self._down_until = str(exc), now + exc.retry_after_s

    @property
    def paid(self) -> bool:
        return self.backend.price_in > 0 or self.backend.price_out > 0

    def cost_usd(self, usage: Tokens) -> float:
        prices = self.backend.price_in * usage.input_tokens + self.backend.price_out * usage.output_tokens
        return prices / 1e6

    def candidate(self, rejected: str | None) -> Candidate:
        backend = self.backend
        return Candidate(backend=self.name, model=backend.model, local=backend.local, rejected=rejected)

    @asynccontextmanager
    async def slot(self, on_wait: Callable[[str], Awaitable[None]] | None) -> AsyncIterator[None]:
        """One of its slots; on_wait is told when there is none free."""
        holder = object()  # not the task: one task may hold several
        try:
            self._slots.acquire_on_behalf_of_nowait(holder)
        except anyio.WouldBlock:
            if on_wait is not None:
                await on_wait(f"queued: `{self.name}` is at work on {self._slots.borrowed_tokens} already")
            await self._slots.acquire_on_behalf_of(holder)
        try:
            yield
        finally:
            self._slots.release_on_behalf_of(holder)

    def info(self, reason: str | None) -> BackendInfo:
        """`reason` is why it is down, None while it is up."""
        backend = self.backend
        return BackendInfo(
            name=self.name,
            kind=backend.kind,
            model=backend.model,
            url=backend.url,
            local=backend.local,
            tiers=tuple(tier for tier in TIERS if tier in self.ranks),
            state="up" if reason is None else "down",
            reason=reason,
            slots=backend.slots,
            in_flight=self._slots.borrowed_tokens,
            price_in=backend.price_in,
            price_out=backend.price_out,
        )
