"""A terminal while somebody watches a task: the answer as it is written, and what is waited for until then.

Text appears as it comes. When a paragraph, list or code block of Markdown is complete, it is taken back and drawn by rich, so
that the screen never holds more than one block in its raw form.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import threading
import time
from types import TracebackType
from typing import Self

from aiosctl import render

FRAMES = "|/-\\"
"""ASCII, for every locale and font."""
TURN_S = 0.1
PATIENCE_S = 0.4
"""Seconds before anything is said of waiting: what is quicker needs no word."""

_MARKED = re.compile(
    r"^ {0,3}(?:#{1,6} |[-*+] |\d{1,9}[.)] |>|```|~~~|\|)|\*\*|__|`|\[[^\]]+\]\(|(?<!\w)[*_]\w", re.MULTILINE
)
_LINES = re.compile(r"[^\n]*\n|[^\n]+")
_FENCE = re.compile(r" {0,3}(```|~~~)")


def is_markdown(text: str) -> bool:
    """Whether anything in it would look otherwise when it is drawn."""
    return _MARKED.search(text) is not None


def rows(text: str, columns: int) -> int:
    """Lines of a terminal that a text takes which ends in a line end. Tabs stop every 8."""
    from rich.cells import get_character_cell_size  # late: only for what is taken back

    count = 0
    for line in text.split("\n")[:-1]:
        at = 0
        count += 1
        for char in line:
            width = 8 - at % 8 if char == "\t" else get_character_cell_size(char)
            if at + width > columns:
                # A tab never goes past the last column.
                at, count = (at, count) if char == "\t" else (width, count + 1)
            else:
                at += width
    return count


def can_move(environ: os._Environ[str] | dict[str, str] = os.environ) -> bool:
    """Whether the terminal can go back and write over what is there."""
    return environ.get("TERM", "dumb") not in ("", "dumb")


class Page:
    """The answer on standard output, a terminal."""

    def __init__(self) -> None:
        self._block = ""
        """What stands there in its raw form, from the beginning of a line on."""
        self._fence: str | None = None
        """What ends the code block that we are in."""
        self.verbatim = not can_move()
        """Nothing is drawn: it is a quote, or the terminal cannot."""

    def write(self, text: str) -> None:
        for line in _LINES.findall(text):
            # First: Ctrl-C may come as soon as it is written.
            self._block += line
            render.out(line, end="")
            if line.endswith("\n") and self._ends_block():
                self._draw()
        sys.stdout.flush()

    @property
    def line_open(self) -> bool:
        return bool(self._block) and not self._block.endswith("\n")

    def end(self) -> None:
        """The text is complete: what follows starts on a line of its own."""
        if self.line_open:
            self._block += "\n"
            render.out("")
        self._draw()
        self._fence = None
        sys.stdout.flush()

    def leave(self) -> None:
        """The text will not be completed. What stands there stays, after the ^C that the terminal wrote."""
        render.out("")
        self._block, self._fence = "", None
        sys.stdout.flush()

    def _ends_block(self) -> bool:
        line = self._block[:-1].rpartition("\n")[2]
        mark = _FENCE.match(line)
        if self._fence is None:
            if mark:
                self._fence = mark[1]
            return not line.strip() and not mark
        if mark and mark[1] == self._fence and not line.strip().strip(self._fence[0]):
            self._fence = None
            return True
        return False

    def _draw(self) -> None:
        block, self._block = self._block, ""
        if self.verbatim or not is_markdown(block):
            return
        columns, lines = shutil.get_terminal_size()
        shown = render.safe(block)
        height = rows(shown, columns)
        if height >= lines:
            return  # its beginning has left the screen, and cannot be taken back
        after = "\n" if block.endswith("\n\n") else ""
        sys.stdout.write(f"\x1b[{height}A\x1b[J{drawn(shown, columns)}{after}")


def drawn(markdown: str, columns: int) -> str:
    """As it looks on a terminal of this width, by rich."""
    from io import StringIO

    from rich.console import Console  # late: 0.2 s, and only people need it
    from rich.markdown import Markdown

    console = Console(file=StringIO(), force_terminal=True, width=columns)
    console.print(Markdown(markdown, code_theme="ansi_dark", hyperlinks=False))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]  # the StringIO
    return text.strip("\n") + "\n"


class Spinner:
    """One line at the foot of standard error, a terminal, that says what is waited for and how long it has been."""

    def __init__(self) -> None:
        self._text: str | None = None
        self._since = time.monotonic()
        self._drawn = False
        self._turn = 0
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._spin, daemon=True)

    def __enter__(self) -> Self:
        if can_move():
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()
        with self._changed:
            self._closed = True
            self._changed.notify()

    def show(self, text: str) -> None:
        """From now on this is waited for."""
        with self._changed:
            if self._text is None:
                self._since = time.monotonic()
            self._text = " ".join(text.split())
            self._changed.notify()

    def clear(self) -> None:
        """Something else is to be written."""
        with self._changed:
            self._text = None
            if self._drawn:
                sys.stderr.write("\r\x1b[K")
                sys.stderr.flush()
                self._drawn = False

    def _spin(self) -> None:
        with self._changed:
            while not self._closed:
                if self._text is None:
                    self._changed.wait()
                    continue
                waited = time.monotonic() - self._since
                if waited >= PATIENCE_S:
                    self._draw(f"{FRAMES[self._turn % len(FRAMES)]} {self._text} ({waited:.0f} s)")
                    self._turn += 1
                self._changed.wait(TURN_S)

    def _draw(self, line: str) -> None:
        room = shutil.get_terminal_size().columns - 1
        text = render.safe(line, sys.stderr)[:room]
        sys.stderr.write(f"\r{text}\x1b[K")
        sys.stderr.flush()
        self._drawn = True
