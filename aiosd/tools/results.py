"""What a tool gave, in MCP's shape: from a value it returned, or from an exception it raised."""

from __future__ import annotations

from typing import Any

import msgspec

from aiosd.records import Text, ToolResult

MAX_TEXT = 100_000
"""Characters of text in one answer: more would fill any model's window. What is longer is kept in a file (tools.outputs)."""

MAX_KEPT = 4 * 1024 * 1024
"""Bytes of text that a tool may give."""

MAX_ENCODED = 6 * 1024 * 1024
"""Bytes of it as JSON: a line between two of our processes holds 8 MiB, and one byte may take six."""


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
