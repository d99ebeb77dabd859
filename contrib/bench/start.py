"""What starting aiosctl costs in CPU, as ratios to `python -c pass` measured in the same rounds.

Run as `python contrib/bench/start.py [ROUNDS]`, in an environment that has aiosd installed. A daemon with a model
that answers at once runs beside it. Each round runs every command once, so that a busy machine is busy for all; prints
the median of each command's own user and system time (of its children none), in milliseconds and as a ratio, and of the
clock's. What a shell asks for at a TAB is one of them: the numbers of tasks come from the daemon.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.aiosctl_double import Double

SCRIPT = str(Path(sys.executable).with_name("aiosctl"))

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "aiosctl ping": [SCRIPT, "ping"],
    'aiosctl run "hi"': [SCRIPT, "run", "hi"],
    "aiosctl ping --no-start": [SCRIPT, "ping", "--no-start"],
    'aiosctl run -q "hi"': [SCRIPT, "run", "-q", "hi"],
    "aiosctl session create": [SCRIPT, "session", "create"],
    "aiosctl --help": [SCRIPT, "--help"],
    "aiosctl wait <TAB>": [
        *("env", "_AIOSCTL_COMPLETE=complete_bash", "COMP_WORDS=aiosctl wait ", "COMP_CWORD=2"),
        SCRIPT,
    ],
}


def took_ms(argv: list[str], environ: dict[str, str]) -> tuple[float, float]:
    """Of CPU, and by the clock."""
    began = time.perf_counter()
    process = subprocess.Popen(
        argv, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stderr.close()
    assert process.returncode == 0, (argv, said)
    return (usage.ru_utime + usage.ru_stime) * 1000, (time.perf_counter() - began) * 1000


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 21
    with tempfile.TemporaryDirectory() as folder, Double(Path(folder) / "s"):
        environ = {"PATH": os.environ["PATH"], "HOME": folder, "AIOSD_SOCKET": f"{folder}/s"}
        spent: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
        for _ in range(rounds + 1):
            for name, argv in COMMANDS.items():
                spent[name].append(took_ms(argv, environ))
    print(f"load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}, median of {rounds} rounds")
    print("CPU ms   ratio   wall ms   command")
    floor = 0.0
    for name, each in spent.items():
        cpu, wall = map(statistics.median, zip(*each[1:], strict=True))  # the first round wrote the byte code
        floor = floor or cpu
        print(f"{cpu:6.1f}  {cpu / floor:6.2f}   {wall:7.1f}   {name}")


if __name__ == "__main__":
    main()
