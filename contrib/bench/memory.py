"""What memory costs: milliseconds a remember and a recall, and MB, in a store of many memories.

Run as `python contrib/bench/memory.py [MEMORIES]` (100,000 without an argument, which takes five minutes), in an
environment that has aiosd. The memories of 100 sessions are put without vectors, which the time to embed would hide;
a recall asks within one session, and one of the whole user. Then as many with vectors of 384 numbers by chance, as a
server might give them, in this process: so its MB are the benchmark's own, and embedding costs nothing. Then, with the
weights, texts remembered a second.
"""

from __future__ import annotations

import logging
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal
from uuid import uuid4

import anyio

sys.path.insert(0, str(Path(__file__).parents[2]))

from aiosctl.client import Client
from aiosd.memory.embedding import LocalModel
from aiosd.memory.memory import open_memory
from aiosd.protocol.memory import MemoryRecall, MemoryRemember, NewMemory
from aiosd.protocol.sessions import SessionCreate
from aiosd.records import Embedded, Session
from aiosd.state.database import open_database
from aiosd.state.memories import Scope
from contrib.bench.idle import rss_mb
from tests.daemon import Daemon

SESSIONS = 100
BATCH = 1_000
CALLS = 200
DIM = 384

chance = random.Random(1)
words = [
    "".join(chance.choice("bcdfglmnprst") + chance.choice("aeiou") for _ in range(3)) for _ in range(5_000)
]


def text() -> str:
    """Twenty words, the first of the list more often than the last."""
    return " ".join(words[int(len(words) * chance.random() ** 2)] for _ in range(20))


def p50_ms(call: Callable[[], object]) -> float:
    took = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        took.append(time.perf_counter() - start)
    return statistics.median(took) * 1e3


def tell(client: Client, session_id: str, n: int) -> None:
    client.call(
        MemoryRemember(
            session_id=session_id,
            memories=tuple(NewMemory(content=text(), speaker="Ann") for _ in range(n)),
        )
    )


def ask(client: Client, session_id: str, scope: Literal["user", "session"]) -> None:
    client.call(MemoryRecall(query=text()[:40], session_id=session_id, scope=scope, n=10))


def measure(folder: Path, embedder: str, count: int) -> None:
    daemon = Daemon(folder / embedder, config=f'[memory]\nembedder = "{embedder}"\n')
    with daemon, Client(daemon.socket) as client:
        sessions = [client.call(SessionCreate(permissions=("memory",))).session_id for _ in range(SESSIONS)]
        began = time.perf_counter()
        for start in range(0, count, BATCH):
            tell(client, sessions[start // BATCH % SESSIONS], min(BATCH, count - start))
        rate = count / (time.perf_counter() - began)
        one = sessions[0]
        remember = p50_ms(lambda: tell(client, one, 1))
        session = p50_ms(lambda: ask(client, one, "session"))
        user = p50_ms(lambda: ask(client, one, "user"))
        assert daemon.process is not None
        pid = daemon.process.pid
        tell_row(embedder, count, rate, remember, session, user, rss_mb(pid), rss_mb(worker_of(pid)))


async def measure_vectors(folder: Path, count: int) -> None:
    pool = [tuple(chance.gauss(0, 1) for _ in range(DIM)) for _ in range(1_000)]
    done = anyio.Event()

    async def embed(texts: Sequence[str]) -> Embedded:
        return Embedded(vectors=tuple(chance.choice(pool) for _ in texts), model="chance", dim=DIM)

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == "memories are embedded":
                done.set()

    logger = logging.getLogger("aiosd.memory.embedding")
    logger.setLevel(logging.INFO)
    logger.addHandler(Heard())
    sessions = [record(f"{number}") for number in range(SESSIONS)]
    async with (
        open_database(folder / "aiosd.db") as database,
        open_memory(database, folder / "index", None, LocalModel("chance", embed)) as memories,
    ):
        began = time.perf_counter()
        for start in range(0, count, BATCH):
            texts = [NewMemory(content=text(), speaker="Ann") for _ in range(BATCH)]
            if start + BATCH >= count:
                texts += texts[:1]  # more than is waited for, so that it is told when all have their vectors
            await memories.remember(sessions[start // BATCH % SESSIONS], texts)
        await done.wait()
        rate = count / (time.perf_counter() - began)

        async def p50(call: Callable[[], Awaitable[object]]) -> float:
            took = []
            for _ in range(CALLS):
                start = time.perf_counter()
                await call()
                took.append(time.perf_counter() - start)
            return statistics.median(took) * 1e3

        own = Scope("ann", sessions[0].session_id)
        remember = await p50(lambda: memories.remember(sessions[0], [NewMemory(content=text())]))
        session = await p50(lambda: memories.recall(own, text()[:40], n=10))
        user = await p50(lambda: memories.recall(Scope("ann", None), text()[:40], n=10))
        pid = os.getpid()
        tell_row("chance", count, rate, remember, session, user, rss_mb(pid), rss_mb(worker_of(pid)))


def worker_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def record(name: str) -> Session:
    now = datetime.now(UTC)
    return Session(
        session_id=str(uuid4()),
        user_id="ann",
        title=name,
        agent=None,
        permissions=("memory",),
        privacy="any",
        priority="normal",
        max_usd=None,
        workspace=None,
        write=False,
        state="open",
        created_at=now,
        used_at=now,
    )


def tell_row(embedder: str, count: int, *figures: float) -> None:
    rate, remember, session, user, daemon, worker = figures
    print(
        f"{embedder:8} {count:8} {rate:10.0f} {remember:14.1f} {session:18.1f} {user:15.1f}"
        f" {daemon:10.0f} {worker:10.0f}",
        flush=True,
    )


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    print(
        "embedder memories  texts/s in  remember p50 ms  recall session ms  recall user ms  daemon MB  worker MB"
    )
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), "none", count)
        anyio.run(measure_vectors, Path(folder) / "chance", count)
        measure(Path(folder), "minilm", min(count, 2_000))


if __name__ == "__main__":
    main()
