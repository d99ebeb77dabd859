"""What tools did and what was decided about them, in a chain of hashes."""

from __future__ import annotations

from aiosd.protocol.base import Params
from aiosd.records import AuditEntry, Record


class Entries(Record, frozen=True, kw_only=True, omit_defaults=True):
    entries: tuple[AuditEntry, ...]
    next_cursor: str | None = None


class AuditTail(Params[Entries], frozen=True, kw_only=True):
    """The last entries, the oldest of them first."""

    n: int = 20

    method = "audit.tail"
    returns = Entries


class AuditExport(Params[Entries], frozen=True, kw_only=True):
    """All entries, the oldest first."""

    limit: int = 1000
    cursor: str | None = None

    method = "audit.export"
    returns = Entries


class Verified(Record, frozen=True, kw_only=True):
    """`entries` are as they were written. `head` is the last hash: kept elsewhere, it shows a chain made anew."""

    entries: int
    head: str
    broken: int | None = None
    """The first entry that is not what was written."""
    why: str | None = None


class AuditVerify(Params[Verified], frozen=True, kw_only=True):
    """Recomputes every hash."""

    method = "audit.verify"
    returns = Verified
