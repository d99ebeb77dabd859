"""What memory costs: milliseconds a remember and a recall, and MB, in a store of many memories.

Run as `python contrib/bench/memory.py [MEMORIES] [IDLE_S]` (100,000 without an argument, which takes five minutes), in
an environment that has aiosd. The memories of 100 sessions are put without vectors, which the time to embed would hide;
a recall asks within one session, and one of the whole user: the median of the clock, and CPU of the daemon with its
worker, which a busy machine changes less. With IDLE_S (the worker ends after 300) the daemon is then left alone for as
long, and weighed with all its children. Then as many with vectors of 384 numbers by chance, as a server might give
them, in this process: so its MB are the benchmark's own, and embedding costs nothing. Then, with the weights, texts
remembered a second, beside what the bare embedder makes of as many in this process.
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
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple
from uuid import uuid4

import anyio

sys.path.insert(0, str(Path(__file__).parents[2]))

from aiosctl.client import Client
from aiosd.memory.embedder import MiniLM
from aiosd.memory.embedding import TEXTS, LocalModel
from aiosd.memory.memory import open_memory
from aiosd.memory.weights import find
from aiosd.protocol.memory import MemoryRecall, MemoryRemember, NewMemory
from aiosd.protocol.sessions import SessionCreate
from aiosd.records import Embedded, Session
from aiosd.state.database import open_database
from aiosd.state.memories import Scope
from contrib.bench.idle import cpu_s, rss_mb
from tests.daemon import Daemon

SESSIONS = 100
BATCH = 1_000
CALLS = 200
DIM = 384
EMBEDDED = 100
"""Memories in one call where they are embedded meanwhile."""

chance = random.Random(1)
words = [
    "".join(chance.choice("bcdfglmnprst") + chance.choice("aeiou") for _ in range(3)) for _ in range(5_000)
]


def text() -> str:
    """Twenty words, the first of the list more often than the last."""
    return " ".join(words[int(len(words) * chance.random() ** 2)] for _ in range(20))


class Cost(NamedTuple):
    p50_ms: float
    cpu_ms: float
    """Of the daemon and its worker, by call."""


async def cost(pid: int, call: Callable[[], Awaitable[object]]) -> Cost:
    """Of CALLS calls to the daemon, which is this process or its child."""
    took = []
    before = cpu_s(pid) + cpu_s(worker_of(pid))
    for _ in range(CALLS):
        start = time.perf_counter()
        await call()
        took.append(time.perf_counter() - start)
    cpu = cpu_s(pid) + cpu_s(worker_of(pid)) - before
    return Cost(statistics.median(took) * 1e3, cpu / CALLS * 1e3)


def tell(client: Client, session_id: str, n: int) -> None:
    client.call(
        MemoryRemember(
            session_id=session_id,
            memories=tuple(NewMemory(content=text(), speaker="Ann") for _ in range(n)),
        )
    )


async def measure(folder: Path, count: int, idle_s: float) -> None:
    """By words alone, through the real daemon."""
    daemon = Daemon(folder / "none", config='[memory]\nembedder = "none"\n')
    with daemon, Client(daemon.socket) as client:
        sessions = [client.call(SessionCreate(permissions=("memory",))).session_id for _ in range(SESSIONS)]
        began = time.perf_counter()
        for start in range(0, count, BATCH):
            tell(client, sessions[start // BATCH % SESSIONS], min(BATCH, count - start))
        rate = count / (time.perf_counter() - began)
        one = sessions[0]

        async def remember() -> None:
            tell(client, one, 1)

        async def recall(scope: Literal["user", "session"]) -> None:
            client.call(MemoryRecall(query=text()[:40], session_id=one, scope=scope, n=10))

        assert daemon.process is not None
        pid = daemon.process.pid
        costs = [
            await cost(pid, each) for each in (remember, partial(recall, "session"), partial(recall, "user"))
        ]
        tell_row("none", count, rate, costs, pid)
        if idle_s:
            await anyio.sleep(idle_s)
            print(
                f"after {idle_s:g} s idle: {rss_mb(pid) + sum(map(rss_mb, children(pid))):.0f} MB", flush=True
            )


def measure_embedding(folder: Path, count: int) -> None:
    """Texts a second with the weights, and what the embedder makes of such texts by itself."""
    weights = find(os.environ)
    if weights is None:
        print("no weights here: nothing is embedded")
        return
    bare = MiniLM(weights)
    daemon = Daemon(folder / "minilm", config='[memory]\nembedder = "minilm"\n')
    with daemon, Client(daemon.socket) as client:
        session_id = client.call(SessionCreate(permissions=("memory",))).session_id
        tell(client, session_id, 1)  # loads the model
        assert daemon.process is not None
        pid = worker_of(daemon.process.pid)
        whole = alone = whole_cpu = alone_cpu = 0.0
        for _ in range(0, count, EMBEDDED):  # by turns, so that both meet the same machine
            began, cpu = time.perf_counter(), cpu_s(pid)
            tell(client, session_id, EMBEDDED)
            whole, whole_cpu = whole + time.perf_counter() - began, whole_cpu + cpu_s(pid) - cpu
            texts = [f"Ann: {text()}" for _ in range(EMBEDDED)]
            began, cpu = time.perf_counter(), time.process_time()
            for start in range(0, EMBEDDED, TEXTS):
                bare.embed(texts[start : start + TEXTS])
            alone, alone_cpu = alone + time.perf_counter() - began, alone_cpu + time.process_time() - cpu
        print(
            f"minilm: {count / whole:.0f} texts/s, {count / whole_cpu:.0f} a CPU second of the worker;"
            f" the bare embedder {count / alone:.0f}/s, {count / alone_cpu:.0f} a CPU second:"
            f" shares {alone / whole:.2f} and {alone_cpu / whole_cpu:.2f}; worker {rss_mb(pid):.0f} MB"
        )


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

        own = Scope("ann", sessions[0].session_id)

        async def remember() -> None:
            await memories.remember(sessions[0], [NewMemory(content=text())])

        async def recall(scope: Scope) -> None:
            await memories.recall(scope, text()[:40], n=10)

        every = (remember, partial(recall, own), partial(recall, Scope("ann", None)))
        costs = [await cost(os.getpid(), each) for each in every]
        tell_row("chance", count, rate, costs, os.getpid())


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def worker_of(pid: int) -> int:
    return children(pid)[0]


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


def tell_row(embedder: str, count: int, rate: float, costs: Sequence[Cost], pid: int) -> None:
    each = " ".join(f"{wall:13.1f} {cpu:6.1f}" for wall, cpu in costs)
    print(
        f"{embedder:8} {count:8} {rate:10.0f} {each} {rss_mb(pid):9.0f} {rss_mb(worker_of(pid)):9.0f}"
        f" {os.getloadavg()[0]:8.1f}",
        flush=True,
    )


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    idle_s = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
    print(
        "embedder memories texts/s in  remember p50    CPU   session p50    CPU      user p50    CPU daemon MB"
        " worker MB     load  (ms)"
    )
    with tempfile.TemporaryDirectory() as folder:
        anyio.run(measure, Path(folder), count, idle_s)
        anyio.run(measure_vectors, Path(folder) / "chance", count)
        measure_embedding(Path(folder), min(count, 1_000))


if __name__ == "__main__":
    main()
