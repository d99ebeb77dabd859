"""Private words in random graphs of sessions, runs, fallbacks and what is made of them: no remote model hears one."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from aiosctl.client import Client
from aiosd.errors import AiosError
from aiosd.protocol.memory import MemoryExport, MemoryRemember
from aiosd.protocol.sessions import SessionClose, SessionCreate, SessionRun
from aiosd.records import Session
from aiosd.tasks.consolidation import PROMPT, SHORT_CHARS
from tests.daemon import Daemon
from tests.doubles.http_double import Script
from tests.doubles.ollama_double import OllamaDouble
from tests.doubles.openai_double import OpenAIDouble

CANARY = "canary-"
"""How every private word begins. The local model repeats those that it reads; then its answers are private."""

MUCH = "and so on " * (SHORT_CHARS // 10)
"""With this, a session is summed up by a model when it closes."""

SIDE_BY_SIDE = 8
"""Graphs, on one daemon."""

CONFIG = """
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
        near.choose = lambda body: Script(status=500) if chance.random() < 0.3 else echo(body)
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


async def heard(tmp_path: Path, graphs: int) -> None:
    chance = random.Random(graphs)
    async with OllamaDouble() as near, OpenAIDouble() as far:
        Doubles(chance, near, far)
        config = CONFIG.format(near=near.url, far=far.base)

        def live() -> int:
            def some(first: int) -> None:
                with Client(daemon.socket) as client:
                    for number in range(first, graphs, SIDE_BY_SIDE):
                        graph(client, random.Random(number), number)

            with Daemon(tmp_path / "home", config=config) as daemon, Client(daemon.socket) as client:
                with ThreadPoolExecutor(SIDE_BY_SIDE) as threads:
                    list(threads.map(some, range(SIDE_BY_SIDE)))
                page = client.call(MemoryExport(limit=1000)).memories
                private = [memory for memory in page if CANARY in memory.content]
                assert {memory.privacy for memory in private} == {"local"}
                return len(private)

        assert await anyio.to_thread.run_sync(live) > min(graphs, 200)  # of the first page of memories
        sent = [json.dumps(seen.body) for seen in far.seen]
        assert len(far.chats()) > graphs / 2, "the remote model was hardly asked, so this shows nothing"
        assert len(near.chats()) > graphs / 4  # after failures in a row its breaker keeps the next away
        assert any(PROMPT in body["messages"][0]["content"] for body in near.chats()), (
            "no session was summed up"
        )
        assert not [body for body in sent if CANARY in body]


@pytest.mark.anyio
async def test_no_private_word_reaches_a_remote_model(tmp_path: Path) -> None:
    await heard(tmp_path, 15)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.anyio
async def test_no_private_word_of_a_thousand_graphs_reaches_a_remote_model(tmp_path: Path) -> None:
    await heard(tmp_path, 1_000)
