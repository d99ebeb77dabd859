"""The index of what may leave, made on a Qdrant server beside the one in use, which answers meanwhile.

Nothing here changes but the server, so that a migration can fail at any moment, and can be begun again: it goes on from
what the server has. Whose memories the server gets is decided where its rows are read (Follower).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from heapq import nlargest

from aiosd.errors import InvalidState
from aiosd.memory import ranking
from aiosd.memory.follower import Follower
from aiosd.memory.parted import Index, Progress
from aiosd.memory.points import Where
from aiosd.memory.ranking import CANDIDATES, Found
from aiosd.records import Memory
from aiosd.state import memories
from aiosd.state.database import Database

SAMPLE = 20
"""Recalls that are compared: a minute of it at the slowest embedder."""

FIRST = 10
"""Of each, what the index in use finds first, by words and by meaning, is to be found on the server too."""

AGREEING = 0.9
"""Share of those that the server must find. Words weigh a little otherwise without what is private, and a server's search by
meaning is approximate; an index with holes, or of another model, stays far below."""

ASKED_CHARS = 300
"""Of a memory, with whose words the indexes are asked for it."""


async def migrate(database: Database, index: Index, target: Follower, url: str) -> AsyncIterator[Progress]:
    """Fills `target` and compares it with `index`; the last says how far they agree. Raises AiosError: InvalidState where
    the server does not keep, or does not find, what it should."""
    progress = Progress(0, 0)
    async for progress in target.fill():
        yield progress
    sample = await database.read(lambda c: memories.sample(c, SAMPLE, "any"))
    found = expected = 0
    for memory in sample:
        here, there = await _asked(index, memory), await _asked(target, memory)
        wanted = {id for scores in (here.words, here.meaning) for id in _first(scores)}
        wanted &= await database.read(lambda c: memories.there(c, list(wanted), "any"))  # noqa: B023
        expected += len(wanted)
        found += len(wanted & (there.words.keys() | there.meaning.keys()))
    share = found / expected if expected else 1.0
    if share < AGREEING:
        raise InvalidState(
            f"{url} finds {share:.0%} of what is found here, in {len(sample)} recalls: it is not to be used",
            hint=f"aiosctl memory migrate {url}",
        )
    yield Progress(progress.done, progress.total, f"{len(sample)} recalls compared, {share:.0%} found alike")


async def _asked(index: Index, memory: Memory) -> Found:
    """What an index finds for a memory's own words."""
    text = memory.content[:ASKED_CHARS]
    return await index.query(
        text, ranking.meaning(text, None), Where(user_id=memory.user_id, session_id=None)
    )


def _first(scores: Mapping[str, float]) -> list[str]:
    """The best, without those that say no more than what found no place any more."""
    least = min(scores.values()) if len(scores) >= CANDIDATES else 0.0
    return [id for id, score in nlargest(FIRST, scores.items(), key=lambda each: each[1]) if score > least]
