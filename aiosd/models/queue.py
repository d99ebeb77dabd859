"""The daemon's one scheduler: what waits for the slots of all backends, and what takes the next free one.

It stands here and not in the servers because what a server has taken in can be neither ordered nor taken back
(Ollama's own queue has no end, and no way to see it). Pure: the clock is an argument.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from aiosd.models.estimator import Prediction
from aiosd.records import Priority

AGEING_S = 60.0
"""Each such time in the queue is worth one priority, so that nothing waits for ever."""
FAIR_S = 2.0
"""A session's second request at a time is taken for this much less urgent than its first, the third for twice as
much: one session with fifty tasks does not keep the others waiting."""
PATIENCE_S = 60.0
"""What stands in for the deadline of a request without one."""
SPILL = 2.0
"""How many times the prediction of a remote backend must be left of the deadline when work leaves a local queue."""
OVERDUE = 0.1
"""Of its prediction: how long a request that passed it is taken to need still."""

MOST_YIELDS = 3
"""How often one background request gives up its slot: then it is served to its end."""
YIELD = 0.25
"""Of its own time to the first token: so long an interactive request waits for a slot before one is broken off for it."""

_RANKS: Mapping[Priority, int] = {"interactive": 0, "normal": 1, "background": 2}


class Waiting(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A request in the queue of one backend. Times are the clock's."""

    number: int
    """Counted up; older ones first where all else is equal."""
    backend: str
    priority: Priority = "normal"
    session_id: str | None = None
    stays: bool = False
    """No remote backend may take it."""
    arrived_s: float
    deadline_s: float
    turn: int = 0
    """Requests of the same session that were waiting or served when it came."""
    first_s: float = 0.0
    """How long its first token is predicted to take, once it has a slot."""
    work_s: float = 0.0
    """How long it is predicted to hold a slot."""
    yields: bool = False
    """Its slot may be taken from it in the middle."""


Order = tuple[int, bool, float, int]


def order(now: float, waiting: Waiting) -> Order:
    """The place in the queue, the smallest first: by priority, which waiting raises; what cannot leave before what
    can; the earliest deadline, fair between sessions; the oldest."""
    rank = _RANKS[waiting.priority] - int((now - waiting.arrived_s) / AGEING_S)
    return (rank, not waiting.stays, waiting.deadline_s + waiting.turn * FAIR_S, waiting.number)


def next(now: float, waiting: Iterable[Waiting], free: Mapping[str, int]) -> Waiting | None:
    """The one to start now, out of those whose backend has a free slot."""
    able = [w for w in waiting if free.get(w.backend, 0) > 0]
    return min(able, key=lambda w: order(now, w)) if able else None


def deadline_s(arrived_s: float, budget_s: float | None) -> float:
    return arrived_s + (PATIENCE_S if budget_s is None else budget_s)


def spill_s(arrived_s: float, budget_s: float | None, elsewhere: Prediction, most_wait_s: float) -> float:
    """When a request that still waits leaves for a remote backend: as late as its budget lets it, and without one
    after `most_wait_s` in the queue."""
    if budget_s is None:
        return arrived_s + most_wait_s
    return arrived_s + budget_s - SPILL * elsewhere.total_s


def wait_s(slots: int, running: Sequence[float], ahead: Sequence[float]) -> float:
    """Seconds until a slot is free for who comes after `ahead`: `running` is what those at work still need, `ahead`
    what each of those before it will, in order."""
    if len(running) + len(ahead) < slots:
        return 0.0
    free_at = [0.0] * max(0, slots - len(running)) + list(running)
    heapq.heapify(free_at)
    for work_s in ahead:
        heapq.heappush(free_at, heapq.heappop(free_at) + work_s)
    # More may run than there are slots, once the config was changed or a cancelled one is still let go of.
    for _ in range(len(running) - slots):
        heapq.heappop(free_at)
    return free_at[0]


class Running(msgspec.Struct, frozen=True, gc=False):
    """A request on its slot."""

    waiting: Waiting
    """As it waited for it."""
    started_s: float
    yielded: bool = False
    """It was broken off, and lets go of its slot in a moment."""

    def left_s(self, now: float) -> float:
        work_s = self.waiting.work_s
        return max(OVERDUE * work_s, self.started_s + work_s - now)


def patient_until_s(waiting: Waiting) -> float:
    """When an interactive request is to have a slot."""
    return waiting.arrived_s + YIELD * waiting.first_s


def yielding(now: float, waiting: Iterable[Waiting], running: Iterable[Running]) -> Running | None:
    """The one of these that gives its slot to an interactive request: of the background, what began last loses least.

    None where each interactive request gets a slot in time without it."""
    urgent = [w for w in waiting if w.priority == "interactive"]
    if not urgent:
        return None
    patience_s = min(map(patient_until_s, urgent)) - now
    running = list(running)
    if sum(r.yielded or r.left_s(now) <= patience_s for r in running) >= len(urgent):
        return None
    able = [r for r in running if r.waiting.priority == "background" and r.waiting.yields and not r.yielded]
    return max(able, key=lambda r: (r.started_s, r.waiting.number)) if able else None


class _Lane:
    """One backend's slots."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.closed = False
        self.running: dict[int, Running] = {}
        self.waiting: dict[int, Waiting] = {}


class Queue:
    """What waits and what runs. It does nothing by itself: whoever changes it asks `start` what follows."""

    def __init__(self) -> None:
        self._lanes: dict[str, _Lane] = {}
        self._count = 0
        self._sessions: dict[str, int] = {}

    def lane(self, name: str, slots: int) -> None:
        """A backend's slots, as they are from now on."""
        lane = self._lanes.get(name)
        if lane is None:
            self._lanes[name] = _Lane(slots)
        else:
            lane.slots = slots

    def running(self, name: str) -> int:
        return len(self._lanes[name].running)

    def waiting(self, name: str) -> int:
        return len(self._lanes[name].waiting)

    def idle(self, name: str) -> bool:
        """Whether a slot is free, and nobody before one for it."""
        lane = self._lanes[name]
        return not lane.waiting and len(lane.running) < lane.slots

    def place(self, now: float, waiting: Waiting) -> int:
        """How many are before it, and 1."""
        mine = order(now, waiting)
        return 1 + sum(order(now, w) < mine for w in self._lanes[waiting.backend].waiting.values())

    def close(self, name: str) -> None:
        """Starts nothing there until it is opened: its model loads."""
        self._lanes[name].closed = True

    def open(self, name: str) -> None:
        self._lanes[name].closed = False

    def turns(self, session_id: str | None) -> int:
        """Requests of a session that wait or run."""
        return self._sessions.get(session_id, 0) if session_id is not None else 0

    def ahead_s(
        self,
        now: float,
        name: str,
        priority: Priority,
        *,
        stays: bool,
        arrived_s: float,
        deadline_s: float,
        turn: int,
    ) -> float:
        """How long such a request would wait there."""
        if self.idle(name):
            return 0.0
        lane = self._lanes[name]
        like = Waiting(
            number=self._count + 1,
            backend=name,
            priority=priority,
            stays=stays,
            arrived_s=arrived_s,
            deadline_s=deadline_s,
            turn=turn,
        )
        mine = order(now, like)
        before = sorted((order(now, w), w.work_s) for w in lane.waiting.values())
        running = [r.left_s(now) for r in lane.running.values()]
        return wait_s(lane.slots, running, [work_s for its, work_s in before if its < mine])

    def add(self, waiting: Waiting) -> None:
        self._lanes[waiting.backend].waiting[waiting.number] = waiting
        self._counted(waiting.session_id, 1)

    def number(self) -> int:
        self._count += 1
        return self._count

    def start(self, now: float) -> Waiting | None:
        """Takes the next one out of the queue and gives it a slot."""
        free = {
            name: lane.slots - len(lane.running)
            for name, lane in self._lanes.items()
            if lane.waiting and not lane.closed
        }
        if not free:
            return None
        chosen = next(now, (w for name in free for w in self._lanes[name].waiting.values()), free)
        if chosen is not None:
            lane = self._lanes[chosen.backend]
            del lane.waiting[chosen.number]
            lane.running[chosen.number] = Running(chosen, now)
        return chosen

    def make_way(self, now: float, name: str) -> Waiting | None:
        """What is to be broken off there for an interactive request that waits."""
        lane = self._lanes[name]
        chosen = yielding(now, lane.waiting.values(), lane.running.values())
        if chosen is None:
            return None
        lane.running[chosen.waiting.number] = msgspec.structs.replace(chosen, yielded=True)
        return chosen.waiting

    def prioritize(self, waiting: Waiting, priority: Priority) -> Waiting:
        """What waits or runs, as it does from now on."""
        lane = self._lanes[waiting.backend]
        changed = msgspec.structs.replace(waiting, priority=priority)
        if waiting.number in lane.waiting:
            lane.waiting[waiting.number] = changed
        elif (running := lane.running.get(waiting.number)) is not None:
            lane.running[waiting.number] = msgspec.structs.replace(running, waiting=changed)
        return changed

    def leave(self, waiting: Waiting) -> None:
        """Out of the queue or off its slot."""
        lane = self._lanes[waiting.backend]
        if lane.waiting.pop(waiting.number, None) or lane.running.pop(waiting.number, None):
            self._counted(waiting.session_id, -1)

    def _counted(self, session_id: str | None, by: int) -> None:
        if session_id is None:
            return
        n = self._sessions.get(session_id, 0) + by
        if n:
            self._sessions[session_id] = n
        else:
            del self._sessions[session_id]
