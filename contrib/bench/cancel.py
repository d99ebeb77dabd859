"""From closing a stream of the gguf backend to a free slot of llama.cpp, in ms.

Run as `python contrib/bench/cancel.py [TIMES]`, in an environment with the extra `test`. The model is made here and
never stops by itself. Each stream is closed after its third piece, and /slots asked until the slot is free. Prints
the median, the worst and the limit; the exit status is 1 if the worst is over it.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from contextlib import aclosing
from pathlib import Path

import anyio

sys.path.insert(0, str(Path(__file__).parents[2]))

from aiosd.models.backend import Message, ModelRequest
from aiosd.models.gguf import Gguf
from tests import make_gguf
from tests.llama import busy, serving

LIMIT_MS = 100.0


async def one(backend: Gguf) -> float:
    """Milliseconds, the last question included."""
    request = ModelRequest(messages=(Message(role="user", content="hi"),), max_tokens=100_000)
    async with aclosing(backend.stream(request)) as stream:
        for _ in range(3):
            await anext(stream)
        assert await busy(backend) == 1
        closed = time.perf_counter()
    while await busy(backend):
        pass
    return (time.perf_counter() - closed) * 1000


async def run(times: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = make_gguf.write(Path(folder) / "endless.gguf", dim=256, layers=8, endless=True)
        async with serving(path, within_s=600) as backend:
            took = [await one(backend) for _ in range(times)]
    print(f"median {statistics.median(took):.1f} ms, worst {max(took):.1f} ms, limit {LIMIT_MS:.0f} ms")
    return int(max(took) > LIMIT_MS)


if __name__ == "__main__":
    sys.exit(anyio.run(run, int(sys.argv[1]) if len(sys.argv) > 1 else 50))
