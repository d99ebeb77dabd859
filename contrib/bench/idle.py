"""What an idle daemon costs: CPU until `system.ping` is answered, memory without its children, and a ping's time.

Run as `python contrib/bench/idle.py [RUNS]`, in an environment that has aiosd. Each run is a new daemon in an empty
folder of its own. Prints one row a run and the medians.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from aiosctl.client import Client
from aiosd.protocol.system import SystemPing
from tests.daemon import Daemon

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """User and system seconds of the process itself, by its scheduler's clock (ns)."""
    total = 0.0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0]) / 1e9
    return total


def rss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS")


def one() -> tuple[float, float, float, float]:
    """Seconds of CPU to the first pong, of wall to it, MB when idle, microseconds a later ping (median)."""
    with tempfile.TemporaryDirectory() as folder:
        daemon = Daemon(Path(folder) / "home")
        began = time.perf_counter()
        with daemon:
            assert daemon.process is not None
            daemon.call(SystemPing())
            wall, cpu = time.perf_counter() - began, cpu_s(daemon.process.pid)
            with Client(daemon.socket) as client:
                pings = []
                for _ in range(2000):
                    start = time.perf_counter()
                    client.call(SystemPing())
                    pings.append(time.perf_counter() - start)
            return cpu, wall, rss_mb(daemon.process.pid), statistics.median(pings) * 1e6


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    print("CPU s to pong   wall s   RSS MB   ping us")
    rows = [one() for _ in range(runs)]
    for row in [*rows, tuple(statistics.median(column) for column in zip(*rows, strict=True))]:
        print("{:13.3f} {:8.2f} {:8.1f} {:9.0f}".format(*row))
    print("the last row is the medians")


if __name__ == "__main__":
    main()
