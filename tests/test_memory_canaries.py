"""Private words in random graphs of sessions, runs, fallbacks and what is made of them: no remote model hears one, and
no remote index has one."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import anyio.to_thread
import pytest

from aiosctl.client import Client
from aiosd.errors import AiosError
from aiosd.memory.index import Index
from aiosd.protocol.memory import Exported, MemoryExport, MemoryRemember
from aiosd.protocol.sessions import SessionClose, SessionCreate, SessionRun
from aiosd.records import Session
from aiosd.tasks.consolidation import PROMPT, SHORT_CHARS
from tests.daemon import Daemon
from tests.doubles.http_double import Script
from tests.doubles.ollama_double import OllamaDouble
from tests.doubles.openai_double import OpenAIDouble
from tests.doubles.qdrant_double import QdrantDouble

CANARY = "canary-"
"""How every private word begins. The local model repeats those that it reads; then its answers are private."""

MUCH = "and so on " * (SHORT_CHARS // 10)
"""With this, a session is summed up by a model when it closes."""

SIDE_BY_SIDE = 8
"""Graphs, on one daemon."""

ON_ONE = 100
"""Graphs of one daemon, and of one index: its double looks at every point for each query."""

CONFIG = """
[memory]
embedder = "{embedder}"
qdrant_url = "{index}"
[models.tiers]
fast = ["there", "here"]
balanced = ["there", "here"]
capable = ["there", "here"]
[models.backends.here]
kind = "ollama"
model = "small"
url = "{near}"
[models.backends.there]
kind = "openai"
model = "m"
url = "{far}"
local = false
"""


def echo(body: dict[str, Any]) -> Script:
    said = [word for word in json.dumps(body["messages"]).split() if CANARY in word]
    return Script(text=(f"Noted: {' '.join(said[:3]) or 'nothing'}",))


class Doubles:
    def __init__(self, chance: random.Random, near: OllamaDouble, far: OpenAIDouble) -> None:
        self.far = far
        near.choose = lambda body: Script(status=500) if chance.random() < 0.2 else echo(body)
        far.choose = lambda body: Script(status=500) if chance.random() < 0.1 else Script(text=("Fine.",))


def graph(client: Client, chance: random.Random, number: int) -> None:
    """Three sessions of one user, some private, and what happens in them."""
    sessions = [
        client.call(SessionCreate(user_id=f"user-{number}", privacy=chance.choice(["any", "local"])))
        for _ in range(3)
    ]
    for step in range(8):
        session = chance.choice(sessions)
        word = f"{CANARY}{number}-{step}" if session.privacy == "local" else "birds"
        match chance.randrange(4):
            case 0:
                client.call(
                    MemoryRemember(session_id=session.session_id, content=f"the plan for spring is {word}")
                )
            case 1 | 2:
                more = MUCH if chance.random() < 0.3 else ""
                run(client, session, f"What is the plan for spring, {word}? {more}", chance)
            case _ if len(sessions) > 1:
                client.call(SessionClose(session_id=session.session_id))
                sessions.remove(session)


def run(client: Client, session: Session, task: str, chance: random.Random) -> None:
    backend = chance.choice([None, None, "here", "there", "there", "there"])
    try:
        client.call(SessionRun(session_id=session.session_id, task=task, backend=backend), timeout_s=None)
    except AiosError:
        pass  # its model failed, and no other might read it


class Asked(NamedTuple):
    """Requests, without which silence shows nothing."""

    far: int
    near: int
    sums: int
    """Of those near, to sum up a session."""


async def heard(home: Path, numbers: range, embedder: str) -> Asked:
    """Raises AssertionError where a private word, or a number made of one, came to what is remote."""
    chance = random.Random(numbers.start)
    async with OllamaDouble() as near, OpenAIDouble() as far, QdrantDouble() as index:
        Doubles(chance, near, far)
        config = CONFIG.format(near=near.url, far=far.base, embedder=embedder, index=index.url)

        def live() -> list[Exported]:
            def some(first: int) -> None:
                with Client(daemon.socket) as client:
                    for number in numbers[first::SIDE_BY_SIDE]:
                        graph(client, random.Random(number), number)

            with Daemon(home, config=config) as daemon, Client(daemon.socket) as client:
                with ThreadPoolExecutor(SIDE_BY_SIDE) as threads:
                    list(threads.map(some, range(SIDE_BY_SIDE)))
                kept: list[Exported] = []
                cursor = None
                while True:
                    page = client.call(MemoryExport(cursor=cursor))
                    kept += page.memories
                    if (cursor := page.next_cursor) is None:
                        return kept

        kept = await anyio.to_thread.run_sync(live)
        private = {memory.memory_id for memory in kept if memory.privacy == "local"}
        canaries = [memory for memory in kept if CANARY in memory.content]
        assert {memory.privacy for memory in canaries} == {"local"}
        assert len(canaries) > len(numbers)
        assert not [seen for seen in far.seen if CANARY in json.dumps(seen.body)]
        there = index.ids()
        assert len(there) > len(numbers), "the remote index was hardly used"
        assert not there & private
        (home / "words").mkdir()
        as_numbers = Index(home / "words")
        open_word, private_word = (set(as_numbers.asked_words(word)[0]) for word in ("birds", CANARY))
        as_numbers.close()
        assert open_word <= index.words() and private_word and not private_word & index.words()
        told = "".join(json.dumps(seen.body) for seen in index.seen)
        assert CANARY not in told and not [id for id in private if id in told]
        sums = sum(PROMPT in body["messages"][0]["content"] for body in near.chats())
        return Asked(len(far.chats()), len(near.chats()), sums)


@pytest.mark.anyio
async def test_no_private_word_reaches_a_remote_model_or_index(tmp_path: Path) -> None:
    asked = await heard(tmp_path, range(15), "auto")
    assert asked.far > 7 and asked.near > 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.anyio
async def test_no_private_word_of_a_thousand_graphs_reaches_a_remote_model_or_index(tmp_path: Path) -> None:
    asked = [
        await heard(tmp_path / str(start), range(start, start + ON_ONE), "none")
        for start in range(0, 1_000, ON_ONE)
    ]
    far, near, sums = map(sum, zip(*asked, strict=True))
    # After failures in a row its breaker keeps the next away from the one near, so how many come there is by chance.
    assert far > 500 and near > 100 and sums > 10
