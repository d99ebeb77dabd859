"""What starting aiosctl costs in CPU, as ratios to `python -c pass` measured in the same rounds.

Run as `python contrib/bench/start.py [ROUNDS]`, in an environment that has aiosd installed. A daemon with a model
that answers at once runs beside it. Each round runs every command once, so that a busy machine is busy for all; prints
the median of each command's own user and system time (of its children none), in milliseconds and as a ratio.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
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
}


def cpu_ms(argv: list[str], environ: dict[str, str]) -> float:
    process = subprocess.Popen(
        argv, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stderr.close()
    assert process.returncode == 0, (argv, said)
    return (usage.ru_utime + usage.ru_stime) * 1000


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 21
    with tempfile.TemporaryDirectory() as folder, Double(Path(folder) / "s"):
        environ = {"PATH": os.environ["PATH"], "HOME": folder, "AIOSD_SOCKET": f"{folder}/s"}
        spent: dict[str, list[float]] = {name: [] for name in COMMANDS}
        for _ in range(rounds + 1):
            for name, argv in COMMANDS.items():
                spent[name].append(cpu_ms(argv, environ))
    print(f"load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}, median of {rounds} rounds")
    print("CPU ms   ratio   command")
    floor = statistics.median(spent["python -c pass"][1:])
    for name, each in spent.items():
        middle = statistics.median(each[1:])  # the first round wrote the byte code
        print(f"{middle:6.1f}  {middle / floor:6.2f}   {name}")


if __name__ == "__main__":
    main()
