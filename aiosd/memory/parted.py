"""What finds memories: one index, or two that share them out by privacy."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from heapq import nlargest
from typing import NamedTuple, Protocol

import anyio

from aiosd.memory.points import Where
from aiosd.memory.ranking import CANDIDATES, Found


class Progress(NamedTuple):
    done: int
    total: int
    """Memories."""
    detail: str = ""
    """What was found beside that."""


class Index(Protocol):
    """What finds memories."""

    @property
    def embedder(self) -> str: ...

    async def caught_up(self, forgotten: Collection[str] = ()) -> None: ...

    async def query(self, text: str, meaning: str, where: Where, *, is_private: bool = False) -> Found: ...

    def reindex(self) -> AsyncIterator[Progress]: ...


class Parted:
    """Private memories in one index, the others in another. A private query is asked of the first alone."""

    def __init__(self, private: Index, other: Index) -> None:
        self._private = private
        self._other = other

    @property
    def embedder(self) -> str:
        return self._private.embedder

    async def caught_up(self, forgotten: Collection[str] = ()) -> None:
        async with anyio.create_task_group() as both:
            both.start_soon(self._private.caught_up, forgotten)
            both.start_soon(self._other.caught_up, forgotten)

    async def query(self, text: str, meaning: str, where: Where, *, is_private: bool = False) -> Found:
        """The best of both. Raises ChildDied, DeadlineExceeded where either does not work: half an answer would
        look like a whole one."""
        found = await self._private.query(text, meaning, where)
        if is_private:
            return found
        other = await self._other.query(text, meaning, where)
        return Found(_best(found.words | other.words), _best(found.meaning | other.meaning))

    async def reindex(self) -> AsyncIterator[Progress]:
        done = total = 0
        async for done, total, _ in self._private.reindex():
            yield Progress(done, total)
        async for more, others, _ in self._other.reindex():
            yield Progress(done + more, total + others)


def _best(scores: Mapping[str, float]) -> dict[str, float]:
    return dict(nlargest(CANDIDATES, scores.items(), key=lambda each: each[1]))
