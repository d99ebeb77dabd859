"""Memories on a Qdrant server: as found as in the embedded index, and never a private one among them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import pytest
from qdrant_client import AsyncQdrantClient

from aiosd.child import ChildDied
from aiosd.memory import weights
from aiosd.memory.embedding import LocalModel
from aiosd.memory.memory import Memories, open_memory, scope_of
from aiosd.memory.remote import Server, connect
from aiosd.protocol.memory import NewMemory
from aiosd.records import Embedded
from aiosd.state.database import open_database
from tests.test_memory import FACTS, contents, session
from tests.test_memory_recovery import listening

pytestmark = [
    pytest.mark.anyio,
    # Its own mode in memory says that it has no payload indexes, and that it stands in for a server.
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

LONG_S = 30.0


class StandIn:
    """qdrant-client's mode in memory in a server's place, or with AIOSD_TEST_QDRANT=url a server. It outlives who
    connects to it, may be down, and keeps everything it was sent."""

    def __init__(self, name: str) -> None:
        url = os.environ.get("AIOSD_TEST_QDRANT")
        self._client = connect(url, None)() if url else AsyncQdrantClient(":memory:")
        self.sent: list[str] = []
        self.is_down = False
        self.server = Server("http://stand-in", name, lambda: self)  # type: ignore[arg-type, return-value]

    def __getattr__(self, method: str) -> Callable[..., Any]:
        async def asked(*args: Any, **kwargs: Any) -> Any:
            if self.is_down:
                raise ConnectionRefusedError("connection refused")
            self.sent.append(f"{method} {args} {kwargs}")
            return await getattr(self._client, method)(*args, **kwargs)

        return asked

    async def close(self) -> None:
        """The client of one daemon; the server stays."""

    async def ids(self) -> set[str]:
        found, _ = await self._client.scroll(self.server.collection, limit=10_000)
        return {str(record.id) for record in found}


@pytest.fixture
async def server() -> AsyncIterator[StandIn]:
    there = StandIn(f"aiosd-test-{uuid4().hex[:12]}")
    yield there
    await there._client.delete_collection(there.server.collection)
    await there._client.close()


@asynccontextmanager
async def opened(
    folder: Path, server: StandIn, weights: Path | None = None, model: LocalModel | None = None
) -> AsyncIterator[Memories]:
    async with (
        open_database(folder / "aiosd.db") as database,
        open_memory(database, folder / "index", weights, model, server.server) as memories,
    ):
        yield memories


@pytest.fixture
def minilm() -> Path:
    found = weights.find(os.environ)
    if found is None:
        pytest.skip("without the weights of MiniLM")
    return found


async def test_what_is_on_the_server_is_recalled_with_what_is_private(
    tmp_path: Path, server: StandIn
) -> None:
    ann, secret, ben = session(), session(privacy="local"), session("ben")
    async with opened(tmp_path, server) as memories:
        ids = await memories.remember(ann, [NewMemory(content=fact) for fact in FACTS.values()])
        (hidden,) = await memories.remember(secret, [NewMemory(content="the zebra is called Otto")])
        await memories.remember(ben, [NewMemory(content="zebra zebra zebra")])
        first = {q: (await contents(memories, scope_of(ann), q, n=1))[:1] for q in FACTS}
        missed = [q for q, found in first.items() if found != [FACTS[q]]]
        assert len(missed) <= 1, missed  # the stand-in counts words a little otherwise than the engine
        assert await contents(memories, scope_of(ann), "zebra") == ["the zebra is called Otto"]
        assert await server.ids() >= set(ids)
        assert hidden not in await server.ids()
        assert await memories.forget(memory_id=ids[0]) == 1
        assert ids[0] not in await server.ids()
        assert await contents(memories, scope_of(ann), "Lisbon") == []


async def test_meaning_is_found_on_the_server(tmp_path: Path, server: StandIn, minilm: Path) -> None:
    ann = session()
    async with opened(tmp_path, server, minilm) as memories:
        await memories.remember(ann, [NewMemory(content=f"the {c} car is fast") for c in ("red", "blue")])
        await memories.remember(ann, [NewMemory(content="our puppy sleeps all day")])
        assert (await contents(memories, scope_of(ann), "Is there a dog?", n=1)) == [
            "our puppy sleeps all day"
        ]
    async with opened(tmp_path, server, minilm) as memories:  # its vectors are kept
        assert (await contents(memories, scope_of(ann), "a dog?", n=1)) == ["our puppy sleeps all day"]
    assert sum(each.startswith("update_vectors") for each in server.sent) == 2


async def test_nothing_private_reaches_the_server(tmp_path: Path, server: StandIn, minilm: Path) -> None:
    ann, secret = session(), session(privacy="local")
    async with opened(tmp_path, server, minilm) as memories:
        await memories.remember(ann, [NewMemory(content="tea at four")])
        told = len(server.sent)
        (hidden,) = await memories.remember(secret, [NewMemory(content="canary sings in the mine")])
        asked = [
            each for each in server.sent[told:] if hidden in each or each.startswith(("upsert", "update"))
        ]
        assert asked == []
        told = len(server.sent)
        found = await memories.recall(scope_of(secret), "does the canary sing?")
        assert [memory.memory_id for memory in found] == [hidden]
        assert [each for each in server.sent[told:] if each.startswith("query")] == []
        assert await memories.recall(scope_of(ann), "tea")
        assert [each for each in server.sent[told:] if each.startswith("query")]
        done = [progress async for progress in memories.reindex()]
        assert (done[-1].done, done[-1].total) == (2, 2)
    assert not [each for each in server.sent if hidden in each or "canary" in each or "tea at four" in each]


async def test_a_server_that_is_down_costs_no_memory_and_has_it_once_it_is_back(
    tmp_path: Path, server: StandIn, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "aiosd")
    monkeypatch.setattr("aiosd.memory.remote.RETRY_S", 0.2)
    ann = session()
    async with opened(tmp_path, server) as memories:
        await memories.remember(ann, [NewMemory(content="stone one")])
        server.is_down = True
        with anyio.fail_after(LONG_S):
            (kept,) = await memories.remember(ann, [NewMemory(content="stone two")])
            with pytest.raises(ChildDied, match="memory server http://stand-in does not answer: .*refused"):
                await memories.recall(scope_of(ann), "stone")
            with listening("memory index caught up") as caught_up:
                server.is_down = False
                await caught_up.wait()
            assert set(await contents(memories, scope_of(ann), "stone")) == {"stone one", "stone two"}
        assert kept in await server.ids()


async def test_a_server_that_lost_everything_is_filled_again(tmp_path: Path, server: StandIn) -> None:
    ann = session()
    async with opened(tmp_path, server) as memories:
        await memories.remember(ann, [NewMemory(content=f"stone{i}x") for i in range(20)])
    await server._client.delete_collection(server.server.collection)
    async with opened(tmp_path, server) as memories:
        found = [await contents(memories, scope_of(ann), f"stone{i}x", n=1) for i in range(20)]
        assert found == [[f"stone{i}x"] for i in range(20)]


async def test_a_local_server_embeds_for_the_memory_server_too(tmp_path: Path, server: StandIn) -> None:
    async def embed(texts: list[str]) -> Embedded:
        vectors = tuple((1.0, 0.0, 0.0) if "dog" in t or "puppy" in t else (0.0, 1.0, 0.0) for t in texts)
        return Embedded(vectors=vectors, model="toy", dim=3)

    ann = session()
    async with opened(tmp_path, server, None, LocalModel("toy", embed)) as memories:  # type: ignore[arg-type]
        for text in ("the puppy sleeps", "rain"):  # with the first it shows how long the vectors are
            await memories.remember(ann, [NewMemory(content=text)])
        assert await contents(memories, scope_of(ann), "dog", n=1) == ["the puppy sleeps"]
