"""Memories found by what they mean: with the embedder in the worker, whatever becomes of either."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest.mock import patch

import anyio
import pytest

from aiosd.config import Config, Memory
from aiosd.daemon import weights_of
from aiosd.errors import ConfigError, NoModelFits
from aiosd.memory.embedding import LocalModel
from aiosd.memory.memory import Memories, scope_of
from aiosd.memory.weights import INSTALL, MODEL, SHA256, find
from aiosd.protocol.memory import MemoryRecall, MemoryRemember, NewMemory
from aiosd.protocol.system import SystemInfo
from aiosd.records import Embedded, Session
from tests.daemon import Daemon
from tests.doubles.openai_double import OpenAIDouble
from tests.test_memory import contents, opened, session
from tests.test_memory_recovery import LONG_S, kill, listening, openings, worker, zero

pytestmark = pytest.mark.anyio

FACTS = {
    "Who is my doctor?": "Dr Weber is the physician who treats me",
    "What pets are there?": "Two kittens and a parrot live with us",
    "How much do I earn?": "My salary is 3,000 a month",
}
"""Questions that share no word with what answers them."""


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.INFO, "aiosd"):
        yield


@pytest.fixture(scope="module")
def weights() -> Path:
    found = find(os.environ)
    if found is None:
        pytest.skip("the weights of contrib/weights.txt are not installed")
    return found


def notes(*texts: str) -> list[NewMemory]:
    return [NewMemory(content=text) for text in texts]


async def wrong(memories: Memories, one: Session) -> dict[str, list[str]]:
    """What the questions find first where that is not what answers them."""
    first = {q: await contents(memories, scope_of(one), q, n=1) for q in FACTS}
    return {q: found for q, found in first.items() if found != [FACTS[q]]}


async def test_what_is_remembered_is_found_by_its_meaning_at_once_and_after_a_restart(
    tmp_path: Path, weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ann = session()
    async with opened(tmp_path, weights) as (memories, _):
        await memories.remember(ann, notes(*FACTS.values()))
        assert memories.embedder == MODEL
        assert await wrong(memories, ann) == {}
        assert await contents(memories, scope_of(ann), " \n") == []
    async with opened(tmp_path, weights) as (memories, _):
        assert await wrong(memories, ann) == {}
    assert openings(caplog)[-1] == (3, True, 0)


async def test_a_long_memory_is_found_by_any_part_of_it(tmp_path: Path, weights: Path) -> None:
    ann = session()
    filling = "The committee discussed the budget for the coming year at length. " * 60
    long = f"{filling} {FACTS['What pets are there?']}. {filling}"
    async with opened(tmp_path, weights) as (memories, _):
        await memories.remember(ann, notes("The car is blue", long, "It rained in May"))
        assert await contents(memories, scope_of(ann), "the animals at home", n=1) == [long]


async def test_meaning_shows_nobody_what_another_said_and_never_what_is_forgotten(
    tmp_path: Path, weights: Path
) -> None:
    ann, also_ann, alone, ben = session(), session(), session(permissions=("read",)), session("ben")
    async with opened(tmp_path, weights) as (memories, _):
        for who, what in ((ann, "cat"), (also_ann, "dog"), (alone, "horse"), (ben, "parrot")):
            await memories.remember(who, notes(f"I have a {what}"))
            await memories.remember(who, notes(*[f"The {what} is an animal"] * 30))
        for who, whats in (
            (ann, {"cat", "dog", "horse"}),
            (also_ann, {"cat", "dog", "horse"}),
            (alone, {"horse"}),
            (ben, {"parrot"}),
        ):
            found = await contents(memories, scope_of(who), "Which pets?", n=100)
            seen = {what for what in ("cat", "dog", "horse", "parrot") if any(what in text for text in found)}
            assert seen == whats
        await memories.forget(user_id="ann")
        assert await contents(memories, scope_of(ann), "Which pets?") == []
        assert await contents(memories, scope_of(ben), "Which pets?") != []


async def test_weights_that_come_later_serve_what_was_remembered_without_them(
    tmp_path: Path, weights: Path
) -> None:
    ann = session()
    async with opened(tmp_path) as (memories, _):
        await memories.remember(ann, notes(*FACTS.values(), *(f"stone{i}x" for i in range(300))))
        assert memories.embedder == "none"
        assert len(await wrong(memories, ann)) == 3
    with listening("memories are embedded") as embedded:
        async with opened(tmp_path, weights) as (memories, _):
            assert await contents(memories, scope_of(ann), "stone7x", n=1) == ["stone7x"]
            with anyio.fail_after(LONG_S):
                await embedded.wait()
            assert await wrong(memories, ann) == {}
    async with opened(tmp_path) as (memories, _):
        assert await contents(memories, scope_of(ann), "salary", n=1) == [FACTS["How much do I earn?"]]


async def test_killing_the_worker_while_it_embeds_leaves_nothing_without_a_vector(
    tmp_path: Path, weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ann = session()
    async with opened(tmp_path) as (memories, _):
        await memories.remember(ann, notes(*FACTS.values(), *(f"stone number {i}" for i in range(200))))
    with listening("memories are embedded") as embedded:
        async with opened(tmp_path, weights) as (memories, _):
            for _ in range(3):
                kill(worker(caplog))
                assert await contents(memories, scope_of(ann), "salary", n=1) != []
                await memories.remember(ann, notes("one more"))
            with anyio.fail_after(LONG_S):
                await embedded.wait()
            assert await wrong(memories, ann) == {}


@pytest.mark.parametrize("file", ["offsets", "vectors"])
async def test_damaged_vectors_are_made_again(tmp_path: Path, weights: Path, file: str) -> None:
    ann = session()
    async with opened(tmp_path, weights) as (memories, _):
        await memories.remember(ann, notes(*FACTS.values()))
    (storage,) = (tmp_path / "index").glob(f"shard-*/segments/*/vector_storage-{MODEL}")
    chunks = [path for path in storage.rglob("chunk_*") if file in path.relative_to(storage).parts[0]]
    assert chunks
    for chunk in chunks:
        zero(chunk.parent, chunk.name)
    async with opened(tmp_path, weights) as (memories, _):
        await memories.remember(ann, notes("one more"))
        assert await contents(memories, scope_of(ann), "salary", n=1) == [FACTS["How much do I earn?"]]


async def test_wrong_weights_are_refused_and_words_still_find(tmp_path: Path, weights: Path) -> None:
    ann = session()
    other = tmp_path / "weights"
    other.mkdir()
    shutil.copy(weights / "tokenizer.json", other)
    (other / "model.safetensors").write_bytes(b"something else")
    async with opened(tmp_path, other) as (memories, _):
        await memories.remember(ann, notes(*FACTS.values()))
        assert memories.embedder.startswith("none: ")
        assert f"expected {SHA256['model.safetensors']}" in memories.embedder
        assert await contents(memories, scope_of(ann), "salary", n=1) == [FACTS["How much do I earn?"]]
    async with opened(tmp_path, weights) as (memories, _):
        await memories.remember(ann, notes("one more"))
        assert memories.embedder == MODEL


def test_the_daemon_says_which_embedder_it_has(tmp_path: Path, weights: Path) -> None:
    with Daemon(tmp_path / "without", '[memory]\nembedder = "none"\n') as daemon:
        assert daemon.call(SystemInfo()).embedder == "none"
    with Daemon(tmp_path / "with", '[memory]\nembedder = "minilm"\n') as daemon:
        one = daemon.session()
        daemon.call(MemoryRemember(session_id=one.session_id, content="tea"))
        assert daemon.call(SystemInfo()).embedder == MODEL


def test_weights_that_the_config_names_and_that_are_not_here_stop_the_daemon(tmp_path: Path) -> None:
    found = Config(memory=Memory(embedder="minilm"))
    with patch("importlib.util.find_spec", return_value=None), pytest.raises(ConfigError) as refused:
        weights_of(found, {"HOME": str(tmp_path)})
    assert refused.value.hint == INSTALL


# --- a model of a local server -------------------------------------------------------------------------

TOPICS = (("doctor", "physician"), ("pets", "kittens"), ("earn", "salary"))


def meaning(text: str) -> list[float]:
    """Of any length, as some servers give it."""
    return [float(sum(text.count(word) for word in words)) * 7 for words in TOPICS] + [0.5]


class Server:
    """A model that can be away."""

    def __init__(self, name: str = "near:m", more: int = 0) -> None:
        self.name = name
        self.more = more
        self.is_away = False
        self.texts: list[str] = []

    @property
    def model(self) -> LocalModel:
        return LocalModel(self.name, self.embed)

    async def embed(self, texts: Sequence[str]) -> Embedded:
        await anyio.lowlevel.checkpoint()
        if self.is_away:
            raise NoModelFits("nobody listens")
        self.texts += texts
        vectors = tuple((*meaning(text), *[0.0] * self.more) for text in texts)
        return Embedded(vectors=vectors, model="m", dim=len(vectors[0]))


async def test_a_local_server_embeds_in_parts_and_another_model_embeds_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ann, server = session(), Server()
    long = f"{'The committee met again. ' * 200}kittens{' Then it rained.' * 200}"
    async with opened(tmp_path, model=server.model) as (memories, _):
        await memories.remember(ann, notes(*FACTS.values()))
        assert await wrong(memories, ann) == {}
        assert memories.embedder == "near:m"
        (memory_id,) = await memories.remember(ann, notes(long))
        assert max(len(text.encode()) for text in server.texts) <= 700
        assert long in await contents(memories, scope_of(ann), "pets", n=2)
        await memories.forget(memory_id=memory_id)
        await memories.remember(ann, notes("\U0001f600" * 1_000))
    server.texts.clear()
    async with opened(tmp_path, model=server.model) as (memories, _):
        assert await wrong(memories, ann) == {}
        assert len(server.texts) == 3  # the queries: nothing is embedded twice
    other = Server("near:other/model", more=3)
    with listening("memories are embedded") as embedded:
        async with opened(tmp_path, model=other.model) as (memories, _):
            assert await contents(memories, scope_of(ann), "salary", n=1) == [FACTS["How much do I earn?"]]
            with anyio.fail_after(LONG_S):
                await embedded.wait()
            assert await wrong(memories, ann) == {}
    assert openings(caplog)[-1] == (4, True, 0)


async def test_a_server_that_is_away_costs_the_meaning_until_it_is_back(tmp_path: Path) -> None:
    ann, server = session(), Server()
    async with opened(tmp_path, model=server.model) as (memories, _):
        server.is_away = True
        with anyio.fail_after(LONG_S):
            await memories.remember(ann, notes(*FACTS.values()))
            assert len(await wrong(memories, ann)) == 3
            assert await contents(memories, scope_of(ann), "salary", n=1) == [FACTS["How much do I earn?"]]
        with listening("memories are embedded") as embedded:
            server.is_away = False
            with anyio.fail_after(LONG_S):
                await embedded.wait()
        assert await wrong(memories, ann) == {}


async def test_the_daemon_embeds_by_the_backend_that_the_config_names(tmp_path: Path) -> None:
    async with OpenAIDouble() as double:
        double.meaning = meaning
        config = (
            f'[models.backends.near]\nkind = "openai"\nurl = "{double.base}"\nmodel = "m"\n'
            '[memory]\nembedder = "near"\n'
        )
        daemon = Daemon(tmp_path, config)
        await anyio.to_thread.run_sync(daemon.start)
        try:
            one = await anyio.to_thread.run_sync(daemon.session)
            for text in FACTS.values():
                tell = MemoryRemember(session_id=one.session_id, content=text)
                await anyio.to_thread.run_sync(daemon.call, tell)
            for question, answer in FACTS.items():
                ask = MemoryRecall(query=question, session_id=one.session_id, n=1)
                found = await anyio.to_thread.run_sync(daemon.call, ask)
                assert [memory.content for memory in found.memories] == [answer]
            info = await anyio.to_thread.run_sync(daemon.call, SystemInfo())
            assert info.embedder == "near:m"
        finally:
            await anyio.to_thread.run_sync(daemon.kill)
