"""What memory costs: milliseconds a remember and a recall, and MB, in a store of many memories.

Run as `python contrib/bench/memory.py [MEMORIES]` (100,000 without an argument, which takes five minutes), in an
environment that has aiosd. The memories of 100 sessions are put without vectors, which the time to embed would hide;
a recall asks within one session, and one of the whole user. Then, with the weights, texts remembered a second.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).parents[2]))

from aiosctl.client import Client
from aiosd.protocol.memory import MemoryRecall, MemoryRemember, NewMemory
from aiosd.protocol.sessions import SessionCreate
from contrib.bench.idle import rss_mb
from tests.daemon import Daemon

SESSIONS = 100
BATCH = 1_000
CALLS = 200

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
        worker = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
        print(
            f"{embedder:8} {count:8} {rate:10.0f} {remember:14.1f} {session:18.1f} {user:15.1f}"
            f" {rss_mb(pid):10.0f} {rss_mb(worker):10.0f}",
            flush=True,
        )


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    print(
        "embedder memories  texts/s in  remember p50 ms  recall session ms  recall user ms  daemon MB  worker MB"
    )
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), "none", count)
        measure(Path(folder), "minilm", min(count, 2_000))


if __name__ == "__main__":
    main()
