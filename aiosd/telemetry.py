"""Logging: events with fields, on stderr, as JSON lines for a machine or as text for a terminal."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, TextIO

PRIORITIES = {"CRITICAL": 2, "ERROR": 3, "WARNING": 4, "INFO": 6, "DEBUG": 7}
"""Of syslog(3) by level."""

_ABOUT: ContextVar[Mapping[str, str]] = ContextVar("about", default=MappingProxyType({}))

_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def fields(record: logging.LogRecord) -> dict[str, Any]:
    """What `extra=` gave."""
    return {k: v for k, v in vars(record).items() if k not in _PLAIN}


class JsonLines(logging.Formatter):
    """One JSON object a line, whatever stands in the message."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **fields(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class Journal(JsonLines):
    """For journald: each line begins with its priority, as in sd-daemon(3)."""

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        return f"<{PRIORITIES.get(record.levelname, 6)}>{line}"


class Readable(logging.Formatter):
    """`12:00:00 INFO  ready  socket=/run/...`"""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        extra = "".join(f"  {k}={v}" for k, v in fields(record).items())
        line = f"{time} {record.levelname:<7} {record.getMessage()}{extra}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _Masked(logging.Formatter):
    def __init__(self, inner: logging.Formatter, mask: Callable[[str], str]) -> None:
        super().__init__()
        self._inner = inner
        self._mask = mask

    def format(self, record: logging.LogRecord) -> str:
        return self._mask(self._inner.format(record))


@contextmanager
def masked(mask: Callable[[str], str]) -> Iterator[None]:
    """What is logged in this block has gone through `mask`, line by line: children say what they like on stderr."""
    handlers = logging.getLogger().handlers
    before = [handler.formatter for handler in handlers]
    for handler in handlers:
        handler.setFormatter(_Masked(handler.formatter or logging.Formatter(), mask))
    try:
        yield
    finally:
        for handler, formatter in zip(handlers, before, strict=True):
            handler.setFormatter(formatter)


@contextmanager
def about(**ids: str) -> Iterator[None]:
    """What is logged in this block, and by what it starts, carries these ids."""
    token = _ABOUT.set({**_ABOUT.get(), **ids})
    try:
        yield
    finally:
        _ABOUT.reset(token)


def _add_ids(record: logging.LogRecord) -> bool:
    for name, id in _ABOUT.get().items():
        vars(record).setdefault(name, id)
    return True


def log_to(stream: TextIO, level: str, environ: Mapping[str, str]) -> None:
    """Sends every logger's records of this level and above to `stream`."""
    handler = logging.StreamHandler(stream)
    handler.addFilter(_add_ids)
    if stream.isatty():
        handler.setFormatter(Readable())
    else:
        handler.setFormatter(Journal() if _is_journal(stream, environ) else JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for chatty in ("httpx", "httpx2", "httpcore", "httpcore2", "openai", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether journald reads this stream: JOURNAL_STREAM in systemd.exec(5)."""
    stat = os.fstat(stream.fileno())
    return environ.get("JOURNAL_STREAM") == f"{stat.st_dev}:{stat.st_ino}"
