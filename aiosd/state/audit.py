"""The rows of the audit log: only ever added to, each with a hash over itself and the hash before it.

What changes one entry, or leaves one out, breaks the chain there. Who may write the file can make the whole chain
anew: the last hash, kept elsewhere (`audit.verify` gives it), shows that too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from aiosd.errors import InvalidState
from aiosd.records import AuditEntry
from aiosd.state.columns import Integer, cut, place, within
from aiosd.state.database import Connection

GENESIS = "0" * 64
"""The hash before the first entry."""

VERIFIED = 5000
"""Entries that one query verifies, so that others get their turn."""

_COLUMNS = "seq, CAST(body AS BLOB), CAST(hash AS BLOB)"
"""As bytes: what somebody has changed need be no text."""

_entry = msgspec.json.Decoder(AuditEntry)


class Checked(msgspec.Struct, frozen=True):
    """How far the chain has been verified: up to this entry, whose hash this is."""

    seq: int = 0
    hash: str = GENESIS
    broken: int | None = None
    """The entry that is not what was written."""
    why: str = ""
    done: bool = False


def append(c: Connection, *entries: AuditEntry) -> None:
    """Their `seq` and `hash` are given here."""
    if not entries:
        return
    last = c.execute("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1").fetchone() or (0, GENESIS)
    seq, before = last
    for entry in entries:
        seq += 1
        body = msgspec.json.encode(msgspec.structs.replace(entry, seq=seq, hash=""))
        before = _hash(before, body).decode()
        c.execute("INSERT INTO audit (seq, body, hash) VALUES (?, ?, ?)", (seq, body.decode(), before))


def tail(c: Connection, n: int) -> tuple[AuditEntry, ...]:
    """The last ones, the oldest first."""
    rows = c.execute(f"SELECT {_COLUMNS} FROM audit ORDER BY seq DESC LIMIT ?", (within(n),)).fetchall()
    return _entries(rows[::-1])


def page(c: Connection, *, limit: int, cursor: str | None) -> tuple[tuple[AuditEntry, ...], str | None]:
    """The oldest first."""
    after = 0 if cursor is None else place(cursor, tuple[Integer])[0]
    limit = within(limit)
    rows, following = cut(
        c.execute(
            f"SELECT {_COLUMNS} FROM audit WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit + 1)
        ).fetchall(),
        limit,
        lambda row: (row[0],),
    )
    return _entries(rows), following


def verify(c: Connection, checked: Checked) -> Checked:
    """Goes on from there, some thousands of entries at once."""
    seq, before = checked.seq, checked.hash
    rows = c.execute(
        f"SELECT {_COLUMNS}, typeof(body) FROM audit WHERE seq > ? ORDER BY seq LIMIT ?", (seq, VERIFIED)
    ).fetchall()
    for found, body, kept, kind in rows:
        if found != seq + 1:
            return Checked(seq, before, seq + 1, "it is missing")
        if kind != "text" or _hash(before, body) != kept:
            return Checked(seq, before, found, "it, or its hash, is not what was written")
        seq, before = found, kept.decode()
    if len(rows) == VERIFIED:
        return Checked(seq, before)
    given = c.execute("SELECT seq FROM sqlite_sequence WHERE name = 'audit'").fetchone()
    if given is not None and given[0] > seq:
        return Checked(seq, before, seq + 1, f"it is missing: entries up to {given[0]} were written")
    return Checked(seq, before, done=True)


def _hash(before: str, body: bytes) -> bytes:
    return hashlib.sha256(before.encode() + b"\n" + body).hexdigest().encode()


def _entries(rows: Sequence[tuple[Any, ...]]) -> tuple[AuditEntry, ...]:
    """Raises InvalidState for one that somebody has made unreadable."""
    found = []
    for seq, body, kept, *_ in rows:
        try:
            found.append(msgspec.structs.replace(_entry.decode(body), hash=kept.decode()))
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise InvalidState(
                f"entry {seq} of the audit log cannot be read: it was changed", hint="aiosctl audit verify"
            ) from None
    return tuple(found)
