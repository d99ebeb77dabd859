"""aiosctl on a terminal, and what stands on it in the end."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from typing import Protocol, Self

from rich.cells import cell_len

from tests.aiosctl_double import AIOSCTL, WAIT_S, Ctl

SPUN = re.compile(r"\r(?:[|/\\-] [^\r\n]*)?\x1b\[K")
"""What a spinner draws: it says nothing of a task that has ended."""


def screen(seen: str, columns: int) -> list[str]:
    """The lines of a terminal that was sent this, as far as aiosctl commands one. Colours are left out."""
    lines, row, at = [""], 0, 0
    for found in re.finditer(r"\x1b\[\??(\d*)([A-Za-z])|(\r)|(\n)|(.)", seen, re.DOTALL):
        count, command, back, down, char = found.groups()
        if command == "A":
            row -= int(count or 1)
        elif command == "J":
            lines[row:] = [lines[row][:at]]
        elif command == "K":
            lines[row] = lines[row][:at]
        elif back:
            at = 0
        elif down:
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif char:
            width = cell_len(char)
            if at + width > columns:
                row, at = row + 1, 0
                lines += [""] * (row + 1 - len(lines))
            lines[row] = lines[row][:at].ljust(at) + char + lines[row][at + 1 :]
            at += width
    return lines


class Terminal:
    """aiosctl on a terminal of its own: standard input, output and errors. It ends with its block at the latest."""

    LEADER = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    """A terminal must control its process for Ctrl-C to reach it."""

    def __init__(self, ctl: Ctl, *args: str, columns: int = 80, command: Sequence[str] = AIOSCTL) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.LEADER, *command, *args],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            cwd=ctl.folder,
            env={"TERM": "xterm", "COLUMNS": ""} | ctl.env,
        )
        os.close(theirs)
        self._seen = bytearray()
        self._met = 0
        self._columns = columns

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()
        self._process.kill()
        self._process.wait(WAIT_S)

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def until(self, text: str) -> None:
        """Reads until this is on the terminal, after what was waited for before."""
        while (at := self._seen.find(text.encode(), self._met)) < 0:
            assert self._read(), f"it ended with {self._seen!r} on the terminal"
        self._met = at + len(text.encode())

    def end(self) -> tuple[int, str]:
        """Its exit status and all it wrote."""
        while self._read():
            pass
        self._close()
        return self._process.wait(WAIT_S), SPUN.sub("", self._seen.decode().replace("\r\n", "\n"))

    def hang_up(self) -> None:
        """The terminal is closed, as by a connection that breaks: that ends it."""
        self._close()
        self._process.wait(WAIT_S)

    def screen(self) -> list[str]:
        """What stands there in the end."""
        self.end()
        return screen(self._seen.decode(), self._columns)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._ours], [], [], WAIT_S)
        if not ready:
            raise TimeoutError(f"nothing more after {self._seen!r}")
        try:
            data = os.read(self._ours, 65536)
        except OSError:  # EIO: the other side is closed
            return False
        self._seen += data
        return bool(data)

    def _close(self) -> None:
        if self._ours >= 0:
            os.close(self._ours)
            self._ours = -1


class OnTerminal(Protocol):
    def __call__(
        self, ctl: Ctl, *args: str, columns: int = 80, command: Sequence[str] = AIOSCTL
    ) -> Terminal: ...
