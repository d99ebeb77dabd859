"""What the walls around tools cost: a call in each tier beside the same call with no walls, and a host's start.

Run as `python contrib/bench/tools.py [CALLS]`, in an environment that has aiosd. The hosts take turns, call by call, so
that a noisy machine is as noisy for each. Exits with 1 where a call in the best walls takes more than 1.3 times a bare
fork, or 5 ms, by the medians.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from aiosd import framing
from aiosd.tools.hosts import ENVIRONMENT
from aiosd.tools.sandbox import Plan, Tier

BARE = """
import sys
from aiosd import stdio
from aiosd.tools import host, sandbox
class Bare:
    tier, why, hold = sandbox.Tier.NONE, "", True
    def enter(self): pass
host.build = lambda plan: Bare()
host.main()
"""
"""The tool host as it is, but for its walls."""

MOST_TIMES, MOST_MS = 1.3, 5.0


class Host:
    def __init__(self, name: str, command: Sequence[str], folder: str) -> None:
        self.name = name
        self.times: list[float] = []
        began = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-P", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=ENVIRONMENT,
            cwd=folder,
            bufsize=0,
        )
        self.tier = self._ask("describe", {})["sandbox"]
        self.start_ms = (time.perf_counter() - began) * 1e3

    def call(self) -> None:
        began = time.perf_counter()
        answer = self._ask(
            "call", {"name": "calculator", "arguments": {"expression": "2+3"}, "timeout_s": 30}
        )
        self.times.append((time.perf_counter() - began) * 1e3)
        assert answer["content"][0]["text"] == "5"

    def close(self) -> None:
        self._process.communicate(timeout=30)

    def _ask(self, method: str, params: dict[str, Any]) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(framing.request(1, method, params))
        line = b""
        while not line.endswith(b"\n"):
            piece = self._process.stdout.read(65536)
            assert piece, f"{self.name} ended"
            line += piece
        return msgspec.json.decode(line)["result"]


def hosts(folder: str) -> list[Host]:
    plans = [
        (name, msgspec.json.encode(Plan(workspace=folder, tiers=tiers)).decode())
        for name, tiers in (("none (bare fork)", ()), *((str(t), (t,)) for t in Tier if t is not Tier.NONE))
    ]
    started = [Host(plans[0][0], ["-c", BARE, plans[0][1]], folder)]
    started += [Host(name, ["-m", "aiosd.tools.host", plan], folder) for name, plan in plans[1:]]
    for host in started[1:]:
        if host.tier != host.name:
            print(f"{host.name}: not on this machine")
            host.close()
    return [host for host in started if host is started[0] or host.tier == host.name]


def main() -> int:
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder).resolve())
        starts: dict[str, list[float]] = {}
        for _ in range(10):
            for host in hosts(path):
                starts.setdefault(host.name, []).append(host.start_ms)
                host.close()
        running = hosts(path)
        for number in range(calls + 20):
            for host in running:
                host.call()
                if number < 20:
                    host.times.clear()
        for host in running:
            host.close()
    bare = statistics.median(running[0].times)
    print("walls                          call ms: p50     p99   x bare   start ms: p50")
    for host in running:
        p50, p99 = statistics.median(host.times), statistics.quantiles(host.times, n=100)[98]
        start = statistics.median(starts[host.name])
        print(f"{host.name:30} {p50:12.2f} {p99:7.2f} {p50 / bare:8.2f} {start:15.1f}")
    best = statistics.median(running[1].times) if len(running) > 1 else float("inf")
    return 0 if best <= MOST_TIMES * bare and best <= MOST_MS else 1


if __name__ == "__main__":
    sys.exit(main())
