"""Outputs too long for an answer, kept whole where the session's tools can read them: the model is shown the beginning and the
end, and goes on with read_file, search_files or a program of its own.

A folder of the daemon's a session, mounted read-only into its tool hosts, gone with the session.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

import msgspec

from aiosd.records import Text, ToolResult
from aiosd.tools.results import MAX_TEXT

SHOWN = 30_000
"""Characters that are shown of the beginning, and of the end."""

MAX_FILES = 32
"""Outputs kept of one session; the oldest makes room. Each has at most results.MAX_KEPT bytes."""


class Outputs:
    def __init__(self, base: Path) -> None:
        self._base = base

    def folder(self, session_id: str) -> Path:
        """Made if it is not there: what is not there cannot be mounted."""
        folder = self._base / session_id
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder.resolve()  # tools see it where it really lies

    def shortened(self, session_id: str, result: ToolResult) -> ToolResult:
        """The result with its text short enough for an answer, and with the name of the file that has all of it."""
        text = "\n".join(block.text for block in result.content)
        dropped = f"{len(text) - 2 * SHOWN} of {len(text)} characters are left out here"
        try:
            where = f"{dropped}; all of them are in `{self._keep(session_id, text)}`, to be read from there"
        except OSError as exc:
            where = f"{dropped}, and could not be kept: {exc.strerror}"
        short = f"{text[:SHOWN]}\n[... {where} ...]\n{text[-SHOWN:]}"
        return msgspec.structs.replace(result, content=(Text(text=short),), structured_content=None)

    def end(self, session_id: str) -> None:
        shutil.rmtree(self._base / session_id, ignore_errors=True)

    @staticmethod
    def is_long(result: ToolResult) -> bool:
        return sum(len(block.text) for block in result.content) > MAX_TEXT

    def _keep(self, session_id: str, text: str) -> Path:
        """Whole or not at all. Raises OSError."""
        folder = self.folder(session_id)
        kept = sorted(int(path.stem) for path in folder.glob("*.txt"))
        for number in kept[: max(0, len(kept) + 1 - MAX_FILES)]:
            (folder / f"{number}.txt").unlink(missing_ok=True)
        number = kept[-1] + 1 if kept else 1
        while True:  # calls end side by side
            path = folder / f"{number}.txt"
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                break
            except FileExistsError:
                number += 1
        try:
            with open(descriptor, "w", encoding="utf-8", errors="replace", newline="") as file:
                file.write(text)
        except OSError:
            with suppress(OSError):
                path.unlink()
            raise
        return path
