"""Calls that wait for their user's word, and the words that come for them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from uuid import uuid4

import anyio

from aiosd.audit import Audit
from aiosd.errors import InvalidState, PermissionDenied
from aiosd.records import ApprovalDecision, ApprovalEvent, Session
from aiosd.state import approvals
from aiosd.state.database import Database

APPROVE_S = 120.0
"""Seconds that a call waits for a word; then the answer is no."""

_NO = {
    "user": "its user said no",
    "timeout": f"nobody said yes within {APPROVE_S:g} s",
    "nobody": "nobody was there who could say yes",
}


class _Waiting:
    def __init__(self, request: ApprovalEvent, session: Session) -> None:
        self.request = request
        self.session = session
        self.said = anyio.Event()
        self.decision: ApprovalDecision | None = None


class Approvals:
    def __init__(
        self, database: Database, audit: Audit, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._database = database
        self._audit = audit
        self._clock = clock
        self._waiting: dict[tuple[str, str], _Waiting] = {}

    @property
    def waiting(self) -> tuple[ApprovalEvent, ...]:
        """The oldest first."""
        return tuple(each.request for each in self._waiting.values())

    async def always(self, session: Session) -> tuple[str, ...]:
        """What the session's user answered once and for all."""
        rules = await self._database.read(lambda c: approvals.rules(c, session.user_id))
        return tuple(each.rule for each in rules)

    async def word(
        self, request: ApprovalEvent, session: Session, timeout_s: float = APPROVE_S
    ) -> ApprovalDecision | None:
        """What the user says; None where nobody does in time. Cancelled, the request is there no more."""
        key = (request.task_id, request.call_id)
        waiting = self._waiting[key] = _Waiting(request, session)
        try:
            with anyio.move_on_after(timeout_s):
                await waiting.said.wait()
            return waiting.decision
        finally:
            del self._waiting[key]

    async def answer(self, task_id: str, call_id: str, decision: ApprovalDecision) -> None:
        """Gives the word to the call that waits; `always` is on the disk before it goes on. Raises InvalidState where
        no such call waits: the first word counts."""
        waiting = self._waiting.get((task_id, call_id))
        if waiting is None or waiting.decision is not None:
            raise InvalidState("no such call waits for approval", hint="aiosctl approvals list")
        waiting.decision = decision
        rule = waiting.request.rule
        if rule is not None and decision.endswith("_always"):
            entry = rule if decision == "allow_always" else f"!{rule}"
            now = self._clock()
            await self._database.write(
                lambda c: approvals.keep(c, str(uuid4()), waiting.session.user_id, entry, now)
            )
        waiting.said.set()

    async def settled(self, event: ApprovalEvent, session: Session) -> None:
        """Writes down what was decided. Raises PermissionDenied for a no."""
        entry = self._audit.entry(
            "approval",
            event.name,
            session_id=session.session_id,
            task_id=event.task_id,
            call_id=event.call_id,
            decision=event.decision,
            by=event.by,
            rule=event.rule,
            why=event.why,
        )
        await self._audit.keep(entry)
        if event.decision is None or event.decision.startswith("reject"):
            raise PermissionDenied(
                f"`{event.name}` was not called: {event.why}, and {_NO[event.by or 'user']}"
            )
