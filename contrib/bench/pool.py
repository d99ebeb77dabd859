"""What the pool costs: a decision among 8 backends, and a call through the pool against one of the bare backend.

Run as `python contrib/bench/pool.py [CALLS]`, in an environment that has aiosd. CPU time of this process, so that a
busy machine does not count. The server is a double in a process of its own, and both ways of calling it take turns.
"""

from __future__ import annotations

import gc
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import anyio

from aiosd import config
from aiosd.models.backend import Message, ModelRequest
from aiosd.models.member import size
from aiosd.models.pool import open_pool
from tests.doubles.openai_double import OpenAIDouble
from tests.doubles.pools import Scripted, configured

REQUEST = ModelRequest(messages=(Message(role="user", content="hi " * 200),), max_tokens=100)
ROUND = 5
"""Calls of one kind before the other kind has its turn."""


def cost_us(values: Sequence[float], at: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * at))] * 1e6


async def decisions(n: int) -> list[float]:
    """CPU seconds of each choice among 8 backends, all of them fit, with what is predicted for each."""
    backends = {f"b{i}": Scripted() for i in range(8)}
    for i, backend in enumerate(backends.values()):
        backend.local = i < 4
        backend.price_out = 0.0 if i < 4 else float(i)
    took = []
    async with open_pool(configured({}), {}, backends) as pool:
        members = await pool._members()
        del members["extractive"]
        for i in range(n):
            request = ModelRequest(messages=REQUEST.messages, latency_budget_ms=(None, 5000, 60_000)[i % 3])
            began = time.thread_time()
            pool._choose(size(request), members, {}, pool._clock())
            took.append(time.thread_time() - began)
    return took


def serve(ready: Connection) -> None:
    async def run() -> None:
        async with OpenAIDouble() as double:
            ready.send(double.base)
            await anyio.sleep(math.inf)

    anyio.run(run)


async def alone(n: int) -> float:
    """CPU seconds of a call through the pool to a backend in this process, which itself takes some microseconds."""
    async with open_pool(configured({}), {}, {"here": Scripted("one", "two", "three")}) as pool:
        began = time.process_time()
        for _ in range(n):
            await pool.reply(REQUEST)
        return (time.process_time() - began) / n


async def calls(n: int, base: str) -> tuple[list[float], list[float]]:
    """CPU seconds of a call, by rounds: through the bare backend, and through the pool."""
    section = config.Backend(kind="openai", url=base, model="m")
    bare, pooled = [], []
    async with open_pool(configured({"here": section}), {}) as pool:
        backend = (await pool._members())["here"].backend
        for i in range(n // ROUND + 1):
            began = time.process_time()
            for _ in range(ROUND):
                async for _ in backend.stream(REQUEST):
                    pass
            between = time.process_time()
            for _ in range(ROUND):
                await pool.reply(REQUEST)
            if i:  # the first round makes the client
                bare.append((between - began) / ROUND)
                pooled.append((time.process_time() - between) / ROUND)
    return bare, pooled


def main() -> None:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    gc.freeze()
    took = anyio.run(decisions, 5 * n)
    print(f"decision, 8 backends: p50 {cost_us(took, 0.5):.1f} us, p99 {cost_us(took, 0.99):.1f} us CPU")
    print(f"a call without any client: {anyio.run(alone, n) * 1e6:.0f} us CPU")
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    try:
        bare, pooled = anyio.run(calls, n, ours.recv())
    finally:
        server.terminate()
    extra = [b - a for a, b in zip(bare, pooled, strict=True)]
    print(f"a call of the bare backend: {cost_us(bare, 0.5):.0f} us CPU (median of rounds)")
    print(f"through the pool: {cost_us(pooled, 0.5):.0f} us, {statistics.median(extra) * 1e6:.0f} us more")


if __name__ == "__main__":
    main()
