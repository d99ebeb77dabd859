"""The README's picture of a terminal: commands run for real, in a pseudo-terminal against a daemon of their own, drawn
by rich. Run as `python contrib/picture.py`, in an environment with the extra `test`; writes contrib/terminal.svg."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console
from rich.text import Text

from tests.daemon import Daemon

ROOT = Path(__file__).parents[1]
TARGET = Path(__file__).with_name("terminal.svg")
WIDTH = 100

COMMANDS = (
    'aiosctl run -q "What is 12 * (3 + 4)?"',
    'aiosctl run -q "Which Python do you need?" < README.md',
    'aiosctl run -q "Remember that the deploy host is falcon-7"',
    'aiosctl run -q "What is the deploy host?"',
    'printf "What is 2 ** 10?\\n" | while read -r task; do aiosctl run -q "$task"; done',
    "aiosctl trace @last",
)


def shown(command: str, environ: dict[str, str]) -> str:
    """What the command writes on a terminal of WIDTH columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 40, WIDTH, 0, 0))
    process = subprocess.Popen(
        ["bash", "-c", command], cwd=ROOT, env=environ, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    said = bytearray()
    try:
        while piece := os.read(ours, 65536):
            said += piece
    except OSError:  # EIO: the other side is closed
        pass
    os.close(ours)
    process.wait()
    return said.decode().replace("\r\n", "\n")


def main() -> None:
    console = Console(record=True, width=WIDTH, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    with tempfile.TemporaryDirectory(dir=Path.home()) as home, Daemon(Path(home) / "aiosd") as daemon:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environ = daemon.environ | {"PATH": path, "TERM": "xterm-256color", "COLUMNS": str(WIDTH)}
        for command in COMMANDS:
            console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
            console.print(Text.from_ansi(shown(command, environ)))
    console.save_svg(str(TARGET), title="aiosd")


if __name__ == "__main__":
    main()
