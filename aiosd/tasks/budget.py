"""Money: what a dispatch may cost at most is held before anything is sent, so that no cap is ever passed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Literal

import anyio
import msgspec
from msgspec import UNSET, UnsetType

from aiosd.errors import BudgetExhausted, InvalidParams
from aiosd.protocol.budget import Limit
from aiosd.records import Session
from aiosd.state import sessions, settings, tasks
from aiosd.state.database import Connection, Database

DAY = "budget.day_usd"
"""The setting's name."""


def billionths(usd: float) -> int:
    """What is compared: forty floats of $0.05 are a little more than $2.00. The ledger adds up the same."""
    return math.floor(usd * 1e9 + 0.5)


def held(usd: float) -> float:
    """`usd` in whole billionths, and never less than what any cost up to it is counted as."""
    return math.ceil(round(usd * 1e9, 3)) / 1e9


class Cap(msgspec.Struct, frozen=True):
    """One limit: `spent` is on the books, `held` is under way. All in dollars."""

    name: Literal["day", "session", "task"]
    cap_usd: float | None
    spent_usd: float
    held_usd: float
    session_id: str = ""
    """Of a session's."""


def check(usd: float, caps: Sequence[Cap]) -> None:
    """Raises BudgetExhausted for the first cap that `usd` more could pass."""
    for cap in caps:
        if cap.cap_usd is None:
            continue
        left = billionths(cap.cap_usd) - billionths(cap.spent_usd) - billionths(cap.held_usd)
        if billionths(held(usd)) > left:
            raise BudgetExhausted(
                f"this could cost ${usd:.4f} and the {cap.name}'s cap of ${cap.cap_usd:.2f} has ${max(left, 0) / 1e9:.4f}"
                " left; nothing was sent",
                hint=_raise(cap, usd),
                cap=cap.name,
                left_usd=max(left, 0) / 1e9,
            )


def _raise(cap: Cap, usd: float) -> str:
    """The command that makes room for `usd`, in whole cents."""
    needed = billionths(cap.spent_usd) + billionths(cap.held_usd) + billionths(held(usd))
    enough = f"{math.ceil(needed / 1e7) / 100:.2f}"
    match cap.name:
        case "day":
            return f"aiosctl budget set {enough}"
        case "session":
            return f"aiosctl budget set --session {cap.session_id} {enough}"
        case "task":
            return f'aiosctl run --max-usd {enough} "..."'


class Budget:
    """Holds of what runs now, by task and session. Made by open_budget."""

    def __init__(
        self,
        database: Database,
        day_usd: float | None,
        clock: Callable[[], datetime],
        *,
        set_usd: float | None | UnsetType = UNSET,
    ) -> None:
        self._database = database
        self.config_usd = day_usd
        """The day's cap as the config says; it may be read again."""
        self._set_usd = set_usd
        self._clock = clock
        self._held: dict[str, tuple[frozenset[str], float]] = {}
        """By who holds it: the tasks and sessions that it counts for, and dollars."""
        self._lock = anyio.Lock()

    @property
    def day_usd(self) -> float | None:
        return self.config_usd if self._set_usd is UNSET else self._set_usd

    async def hold(self, session: Session, task_id: str, task_usd: float | None, usd: float) -> None:
        """Sets `usd` aside for the task's next dispatch, under its own caps and those of every task above it. Raises
        BudgetExhausted."""
        async with self._lock:

            def read(c: Connection) -> tuple[float, list[tuple[tasks.Ancestor, float, float]]]:
                return tasks.spent(c, task_id=task_id), [
                    (up, tasks.spent(c, task_id=up.task_id), tasks.spent(c, session_id=up.session_id))
                    for up in tasks.ancestors(c, task_id)
                ]

            of_task, above = await self._database.read(read)
            day, of_session = await self._caps(session.session_id, but=task_id)
            caps = [Cap("task", task_usd, of_task, self._holds(task_id, but=task_id)), *of_session, day]
            counts = {task_id, session.session_id}
            for up, in_task, in_session in above:
                counts |= {up.task_id, up.session_id}
                in_its_session = self._holds(up.session_id, but=task_id)
                caps.append(Cap("task", up.task_usd, in_task, self._holds(up.task_id, but=task_id)))
                caps.append(Cap("session", up.session_usd, in_session, in_its_session, up.session_id))
            check(usd, caps)
            self._held[task_id] = (frozenset(counts), held(usd))
        if usd:  # a daemon that is killed in the middle of the dispatch must not forget it
            await self._database.write(lambda c: tasks.hold(c, task_id, held(usd)))

    async def hold_apart(self, holder: str, usd: float) -> None:
        """Sets `usd` of the day aside for a dispatch outside of any session. Raises BudgetExhausted."""
        async with self._lock:
            day, _ = await self._caps(None, but=holder)
            check(usd, [day])
            self._held[holder] = (frozenset(), held(usd))

    async def limits(self, session_id: str | None) -> tuple[Limit, ...]:
        """The day's and this session's. Raises NotFound."""
        async with self._lock:
            day, of_session = await self._caps(session_id)
        return tuple(map(_limit, (day, *of_session)))

    async def set(
        self,
        day_usd: float | None | Literal["config"] | UnsetType,
        session_id: str | None,
        max_usd: float | None | UnsetType,
    ) -> None:
        """Changes caps, all or none; UNSET changes nothing. What is under way goes on. Raises NotFound, InvalidParams."""
        for name, usd in (("day_usd", day_usd), ("max_usd", max_usd)):
            if isinstance(usd, int | float) and not 0 <= usd < math.inf:
                raise InvalidParams(f"{name}: expected dollars, 0 or more, got {usd:g}")

        def keep(c: Connection) -> None:
            if session_id is not None and max_usd is not UNSET:
                sessions.cap(c, session_id, max_usd)
            if day_usd == "config":
                settings.remove(c, DAY)
            elif day_usd is not UNSET:
                settings.put(c, DAY, day_usd)

        async with self._lock:
            await self._database.write(keep)
            if day_usd == "config":
                self._set_usd = UNSET
            elif day_usd is not UNSET:
                self._set_usd = day_usd

    async def _caps(self, session_id: str | None, but: str | None = None) -> tuple[Cap, tuple[Cap, ...]]:
        """The day's and the session's as they stand, without what `but` holds. The session's cap is read anew: it may
        have been changed since the task began."""
        midnight = self._clock().replace(hour=0, minute=0, second=0, microsecond=0)

        def read(c: Connection) -> tuple[float, tuple[tuple[float | None, float], ...]]:
            of_day = tasks.spent(c, since=midnight)
            if session_id is None:
                return of_day, ()
            max_usd = sessions.get(c, session_id).max_usd
            return of_day, ((max_usd, tasks.spent(c, session_id=session_id)),)

        of_day, of_session = await self._database.read(read)
        under_way = sum((usd for holder, (_, usd) in self._held.items() if holder != but), 0.0)
        day = Cap("day", self.day_usd, of_day, under_way)
        in_session = 0.0 if session_id is None else self._holds(session_id, but=but)
        return day, tuple(
            Cap("session", cap, spent, in_session, session_id or "") for cap, spent in of_session
        )

    def _holds(self, id: str, *, but: str | None) -> float:
        """What counts for this task or session and is under way, without what `but` holds."""
        counted = (usd for holder, (ids, usd) in self._held.items() if holder != but and id in ids)
        return sum(counted, 0.0)

    async def release(self, task_id: str) -> None:
        """The dispatch is over and what it cost is on the books."""
        # Under the lock: between a reader's sums and its check nothing may move from held to spent.
        async with self._lock:
            self._held.pop(task_id, None)


async def open_budget(database: Database, day_usd: float | None, clock: Callable[[], datetime]) -> Budget:
    """`day_usd` is the config's; what was set since holds over it."""
    return Budget(database, day_usd, clock, set_usd=await database.read(lambda c: settings.get(c, DAY)))


def _limit(cap: Cap) -> Limit:
    left = None if cap.cap_usd is None else max(0.0, cap.cap_usd - cap.spent_usd - cap.held_usd)
    return Limit(
        scope="day" if cap.name == "day" else "session",
        cap_usd=cap.cap_usd,
        spent_usd=cap.spent_usd,
        held_usd=cap.held_usd,
        left_usd=left,
    )
