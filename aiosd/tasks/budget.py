"""Money: what a dispatch may cost at most is held before anything is sent, so that no cap is ever passed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

import anyio
import msgspec

from aiosd.errors import BudgetExhausted
from aiosd.records import Session
from aiosd.state import tasks
from aiosd.state.database import Connection, Database


class Cap(msgspec.Struct, frozen=True):
    """One limit: `spent` is on the books, `held` is under way. All in dollars."""

    name: str
    cap_usd: float | None
    spent_usd: float
    held_usd: float


def check(usd: float, caps: Sequence[Cap]) -> None:
    """Raises BudgetExhausted for the first cap that `usd` more could pass."""
    for cap in caps:
        if cap.cap_usd is None:
            continue
        left = cap.cap_usd - cap.spent_usd - cap.held_usd
        if usd > left:
            raise BudgetExhausted(
                f"this could cost ${usd:.4f} and the {cap.name}'s cap of ${cap.cap_usd:.2f} has ${max(left, 0):.4f}"
                " left; nothing was sent",
                cap=cap.name,
                left_usd=max(left, 0.0),
            )


class Budget:
    """Holds of what runs now, by task and session."""

    def __init__(self, database: Database, day_usd: float | None, clock: Callable[[], datetime]) -> None:
        self._database = database
        self.day_usd = day_usd
        self._clock = clock
        self._held: dict[str, tuple[str, float]] = {}
        self._lock = anyio.Lock()

    async def hold(self, session: Session, task_id: str, task_usd: float | None, usd: float) -> None:
        """Sets `usd` aside for the task's next dispatch. Raises BudgetExhausted."""
        async with self._lock:
            midnight = self._clock().replace(hour=0, minute=0, second=0, microsecond=0)

            def spent(c: Connection) -> tuple[float, float, float]:
                return (
                    tasks.spent(c, task_id=task_id),
                    tasks.spent(c, session_id=session.session_id),
                    tasks.spent(c, since=midnight),
                )

            of_task, of_session, of_day = await self._database.read(spent)
            others = [(s, held) for t, (s, held) in self._held.items() if t != task_id]
            in_session = sum(held for s, held in others if s == session.session_id)
            check(
                usd,
                [
                    Cap("task", task_usd, of_task, 0.0),
                    Cap("session", session.max_usd, of_session, in_session),
                    Cap("day", self.day_usd, of_day, sum(held for _, held in others)),
                ],
            )
            self._held[task_id] = (session.session_id, usd)

    async def hold_apart(self, holder: str, usd: float) -> None:
        """Sets `usd` of the day aside for a dispatch outside of any session. Raises BudgetExhausted."""
        async with self._lock:
            now = self._clock()
            midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
            of_day = await self._database.read(lambda c: tasks.spent(c, since=midnight))
            held = sum(held for name, (_, held) in self._held.items() if name != holder)
            check(usd, [Cap("day", self.day_usd, of_day, held)])
            self._held[holder] = ("", usd)

    async def release(self, task_id: str) -> None:
        """The dispatch is over and what it cost is on the books."""
        # Under the lock: between a reader's sums and its check nothing may move from held to spent.
        async with self._lock:
            self._held.pop(task_id, None)
