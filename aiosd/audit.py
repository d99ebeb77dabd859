"""What tools did and what was decided about them, written down before it takes effect.

Arguments may be private and are a user's to forget, so an entry has what the call was about and a hash of all of its
arguments, never these themselves; values of configured keys are masked.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

from aiosd.records import AuditEntry
from aiosd.secrets import Secrets
from aiosd.state import audit
from aiosd.state.database import Database


class Audit:
    def __init__(
        self, database: Database, secrets: Secrets, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._database = database
        self.secrets = secrets
        self._clock = clock

    def entry(
        self,
        kind: Literal["call", "result", "approval", "egress"],
        what: str,
        *,
        session_id: str | None,
        task_id: str | None = None,
        **detail: Any,
    ) -> AuditEntry:
        """To be kept by `keep`, or in a transaction of the caller's own."""
        return self.secrets.masked(
            AuditEntry(
                seq=0,
                at=self._clock(),
                kind=kind,
                what=what,
                session_id=session_id,
                task_id=task_id,
                detail={name: value for name, value in detail.items() if value is not None},
            )
        )

    async def keep(self, entry: AuditEntry) -> None:
        """Returns once the entry is on the disk."""
        await self._database.write(lambda c: audit.append(c, entry))
