"""What a tool gave, in MCP's shape: from a value it returned, or from an exception it raised.

What is too long for an answer is kept whole where the session's tools can read it: the model is shown the beginning and the
end, and goes on with read_file, search_files or a program of its own.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from aiosd.records import Text, ToolResult

MAX_TEXT = 100_000
"""Characters of text in one answer: more would fill any model's window. What is longer is kept in a file."""

MAX_KEPT = 4 * 1024 * 1024
"""Bytes of text that a tool may give."""

MAX_ENCODED = 6 * 1024 * 1024
"""Bytes of it as JSON: a line between two of our processes holds 8 MiB, and one byte may take six."""

SHOWN = 30_000
"""Characters that are shown of the beginning, and of the end."""

MAX_FILES = 32
"""Outputs kept of one session; the oldest makes room. Each has at most MAX_KEPT bytes."""


def of_value(name: str, value: object) -> ToolResult:
    """Text as it is, None as no text, all else as JSON; an object is also given as `structuredContent`, unless
    its text had to be cut."""
    if value is None:
        return _result("")
    if isinstance(value, str):
        return _result(value)
    try:
        encoded = msgspec.json.encode(value)
        plain: Any = msgspec.json.decode(encoded)
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        kind = type(value).__name__
        return _result(f"TypeError: `{name}` returned a `{kind}` that JSON cannot hold: {exc}", is_error=True)
    whole = len(encoded) <= MAX_TEXT
    return _result(encoded.decode(), structured=plain if whole and isinstance(plain, dict) else None)


def of_exception(exc: BaseException) -> ToolResult:
    """The type and the message: the traceback is for the log, not for a model."""
    try:
        message = str(exc)
    except Exception:  # noqa: BLE001 - the exception is the user's class, and so is its str()
        message = ""
    return _result(f"{type(exc).__name__}: {message}".removesuffix(": "), is_error=True)


def _result(text: str, *, is_error: bool = False, structured: Any = None) -> ToolResult:
    return ToolResult(content=(Text(text=capped(text)),), is_error=is_error, structured_content=structured)


def capped(text: str) -> str:
    """At most MAX_KEPT bytes of UTF-8, then a note that says how many were cut. Lone surrogates become `?`."""
    raw = text.encode("utf-8", errors="replace")
    most = MAX_KEPT
    if len(msgspec.json.encode(raw[:most].decode("utf-8", errors="ignore"))) > MAX_ENCODED:
        most = MAX_ENCODED // 6
    if len(raw) <= most:
        return raw.decode()
    kept = raw[:most].decode("utf-8", errors="ignore")
    return f"{kept}\n[cut here: {len(raw) - len(kept.encode())} of {len(raw)} bytes are left out]"


class Outputs:
    """The long ones of each session: a folder of the daemon's, mounted read-only into its tool hosts, gone with the session."""

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

    def clear(self, session_ids: Collection[str]) -> None:
        """Deletes those of these sessions; the folders stay, for they are mounted."""
        for session_id in session_ids:
            for path in (self._base / session_id).glob("*.txt"):
                path.unlink(missing_ok=True)

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
