"""What the daemon and the worker say about memories: what the index is given, and what it is asked."""

from __future__ import annotations

import msgspec


class Point(msgspec.Struct, frozen=True, array_like=True):
    """A memory as the index wants it."""

    memory_id: str
    seq: int
    """Its place among all memories, from 1; it grows and is never used again."""
    text: str
    user_id: str
    session_id: str
    kind: str
    source: str
    created_at: int
    """Microseconds since 1970, UTC."""


class Text(msgspec.Struct, frozen=True, array_like=True):
    """What the vector of a memory is made of."""

    memory_id: str
    text: str


class Where(msgspec.Struct, frozen=True, kw_only=True):
    """What a memory must be to be found; None is anything."""

    user_id: str
    session_id: str | None
    kind: str | None = None
    source: str | None = None
    as_of: int | None = None
    """Not created after this, in microseconds since 1970."""


class Position(msgspec.Struct, frozen=True):
    """How far the index has come: it holds `count` points, of which the last is this one."""

    count: int
    last_seq: int
    """0 where there are none."""
    last_id: str | None
    embedder: str
    """The model that its vectors come from; "" without one."""
    lacking: int
    """Points that have no vector of it yet."""
