"""The hands of the queue: who waits is woken when its turn comes, leaves for a remote backend, or waits for a load."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskGroup

from aiosd.errors import Overloaded
from aiosd.models import queue
from aiosd.models.backend import BackendFailed, Message, ModelRequest, Wait
from aiosd.models.exchange import Asked, closing
from aiosd.models.member import LOAD_S, Load, Member, Size
from aiosd.models.queue import Queue, Waiting
from aiosd.models.router import MOST_WAIT_S, Choice, Standing
from aiosd.records import Priority

RELOAD_S = 60.0
"""How long a model that did not load is left alone."""
MOST_WAITING = 2000
"""Requests in one backend's queue; one more is refused at once, instead of being promised what cannot be kept."""
FIRST = ModelRequest(messages=(Message(role="user", content="hi"),), max_tokens=1)
"""The shortest request there is: every server loads its model for one. A backend with a way of its own has `preload`."""

logger = logging.getLogger(__name__)


class Moved(Exception):
    """The backend that a request waited for is left alone from now on: choose again."""


class Seat:
    """A request's place in the queue, then its slot."""

    def __init__(self, waiting: Waiting, standing: Standing, *, task_id: str | None = None) -> None:
        self.waiting = waiting
        self.task_id = task_id
        self.work = anyio.CancelScope()
        """Whoever holds the slot works inside of it: it is cancelled where the slot is taken in the middle."""
        self.standing = standing
        """Where it waits or is served; another one once it has left the queue for a remote backend."""
        self.granted = False
        self.wake: anyio.Event | None = None
        """Made by who waits: most requests find a free slot."""
        self.failure: BackendFailed | Moved | None = None
        self.spilled = False
        """It was its time to leave the queue, whether it could or not."""
        self.left = ""
        """Why it is served elsewhere than was chosen."""

    def awake(self) -> None:
        """Something of the above has changed."""
        if self.wake is not None:
            self.wake.set()


class Slots:
    """The slots of all backends. Loads go on in `tasks`, whoever asked for them."""

    def __init__(self, clock: Callable[[], float], tasks: TaskGroup) -> None:
        self._clock = clock
        self._tasks = tasks
        self._queue = Queue()
        self._seats: dict[int, Seat] = {}
        self._members: dict[str, Member] = {}

    def add(self, member: Member) -> None:
        self._members[member.name] = member
        self._queue.lane(member.name, member.backend.slots)

    def counts(self, name: str) -> tuple[int, int]:
        """At work, and waiting."""
        return self._queue.running(name), self._queue.waiting(name)

    def wait_s(self, now: float, member: Member, asked: Size, arrived_s: float, *, stays: bool) -> float:
        if self._queue.idle(member.name):
            return 0.0
        request = asked.request
        return self._queue.ahead_s(
            now,
            member.name,
            request.priority,
            stays=stays,
            arrived_s=arrived_s,
            deadline_s=_deadline_s(request, arrived_s),
            turn=self._queue.turns(request.session_id),
        )

    @asynccontextmanager
    async def slot(
        self, asked: Asked, choice: Choice, arrived_s: float, *, yields: bool
    ) -> AsyncIterator[Seat]:
        """A slot of the chosen backend, or of the one it spills to. Raises Moved, BackendFailed where its model did not
        load, and Overloaded.

        With `yields`, what is done inside `seat.work` is cancelled when an interactive request wants the slot and this
        one is of the background. Only what is free of charge does: what was begun would be paid twice."""
        stays = all(s.local for s in (choice.chosen, *choice.others))
        waiting = self._waiting(asked.request, choice.chosen, arrived_s, stays=stays, yields=yields)
        if self._queue.waiting(waiting.backend) >= MOST_WAITING:
            raise Overloaded(f"{MOST_WAITING} requests wait for `{waiting.backend}` already; try again later")
        seat = Seat(waiting, choice.chosen, task_id=asked.request.task_id)
        self._sit(seat)
        try:
            member = self._members[choice.chosen.name]
            if member.cold and member.load is None:
                self._load(member)
            self._pump()
            if not seat.granted:
                self._make_way(waiting.backend)
                await self._wait(seat, asked, choice, arrived_s)
            yield seat
        finally:
            name = seat.waiting.backend
            if self._members[name].breaker.down(self._clock()) is not None:
                self._evict(name)
            self._stand(seat)

    def prioritize(self, task_id: str, priority: Priority) -> None:
        """Changes what the task's requests wait with, those that wait now too."""
        for seat in self._seats.values():
            if seat.task_id == task_id:
                seat.waiting = self._queue.prioritize(seat.waiting, priority)
                self._make_way(seat.waiting.backend)

    # --- the queue

    def _make_way(self, name: str) -> None:
        """For an interactive request that waits, a background one gives up its slot, one each."""
        while (yielded := self._queue.make_way(self._clock(), name)) is not None:
            self._seats[yielded.number].work.cancel()

    def _waiting(
        self, request: ModelRequest, to: Standing, arrived_s: float, *, stays: bool, yields: bool
    ) -> Waiting:
        return Waiting(
            number=self._queue.number(),
            backend=to.name,
            priority=request.priority,
            session_id=request.session_id,
            stays=stays,
            arrived_s=arrived_s,
            deadline_s=_deadline_s(request, arrived_s),
            turn=self._queue.turns(request.session_id),
            first_s=to.predicted.first_s,
            work_s=to.predicted.work_s,
            yields=yields and to.local and not self._members[to.name].paid,
        )

    def _sit(self, seat: Seat) -> None:
        self._seats[seat.waiting.number] = seat
        self._queue.add(seat.waiting)

    def _stand(self, seat: Seat) -> None:
        """Lets go of a place or a slot, whichever it is."""
        if self._seats.pop(seat.waiting.number, None) is not None:
            self._queue.leave(seat.waiting)
            self._pump()

    def _pump(self) -> None:
        now = self._clock()
        while (waiting := self._queue.start(now)) is not None:
            seat = self._seats[waiting.number]
            seat.granted = True
            seat.awake()

    def _evict(self, name: str) -> None:
        """It is left alone from now on: those who wait for it choose again."""
        for seat in self._waiting_for(name):
            self._queue.leave(seat.waiting)
            del self._seats[seat.waiting.number]
            seat.failure = Moved()
            seat.awake()

    def _waiting_for(self, name: str) -> list[Seat]:
        return [s for s in self._seats.values() if s.waiting.backend == name and not s.granted]

    async def _wait(self, seat: Seat, asked: Asked, choice: Choice, arrived_s: float) -> None:
        await self._tell(seat, asked)
        while not seat.granted:
            if seat.failure is not None:
                raise seat.failure
            now = self._clock()
            spills_s = self._spills_at(seat, asked.request, choice, arrived_s)
            presses_s = queue.patient_until_s(seat.waiting)
            if seat.waiting.priority != "interactive" or presses_s <= now:
                presses_s = math.inf
            until_s = min(spills_s, presses_s)
            seat.wake = anyio.Event()
            with anyio.move_on_after(None if math.isinf(until_s) else until_s - now):
                await seat.wake.wait()
            if seat.wake.is_set():
                continue
            if presses_s < spills_s:
                self._make_way(seat.waiting.backend)  # what was to end by now has not
            elif choice.spill is not None:
                self._spill(seat, asked.request, choice.spill, arrived_s)

    async def _tell(self, seat: Seat, asked: Asked) -> None:
        if asked.on_wait is None:
            return
        now, member = self._clock(), self._members[seat.waiting.backend]
        if member.load is not None:
            about_s = member.load.left_s(now)
            detail = f"loading {member.backend.model}, about {math.ceil(about_s)} s"
            await asked.on_wait(Wait(stage="loading", detail=detail, eta_s=about_s))
        else:
            detail = f"queued: `{member.name}` is at work on {self._queue.running(member.name)} already"
            place = self._queue.place(now, seat.waiting)
            eta_s = seat.standing.predicted.wait_s
            await asked.on_wait(Wait(stage="queued", detail=detail, place=place, eta_s=eta_s))

    def _spills_at(self, seat: Seat, request: ModelRequest, choice: Choice, arrived_s: float) -> float:
        if choice.spill is None or seat.spilled:
            return math.inf
        member = self._members[seat.waiting.backend]
        if request.latency_budget_ms is None:
            if member.load is not None:  # a load is no queue, and nothing that money should be spent on
                return math.inf
            arrived_s = max(arrived_s, member.loaded_s)
        return queue.spill_s(arrived_s, _budget_s(request), choice.spill.predicted, MOST_WAIT_S)

    def _spill(self, seat: Seat, request: ModelRequest, to: Standing, arrived_s: float) -> None:
        """To the queue of a remote backend, unless that one is left alone by now."""
        seat.spilled = True
        now = self._clock()
        if self._members[to.name].breaker.down(now) is not None:
            return
        seat.left = f"it waited {now - arrived_s:.0f} s for a slot of `{seat.waiting.backend}`"
        self._stand(seat)
        seat.standing = to
        seat.waiting = self._waiting(request, to, arrived_s, stays=False, yields=False)
        self._sit(seat)
        self._pump()

    # --- loads

    def _load(self, member: Member) -> None:
        """Loads its model as an act of its own: whoever waits for it may go, and it goes on."""
        member.load = Load(self._clock(), member.learnt.load_s)
        self._queue.close(member.name)
        self._tasks.start_soon(self._loading, member)

    async def _loading(self, member: Member) -> None:
        failure: BackendFailed | None = None
        model = member.backend.model
        try:
            with anyio.fail_after(LOAD_S):
                if (preload := getattr(member.backend, "preload", None)) is not None:
                    await preload()
                else:
                    async with closing(member.backend.stream(FIRST)) as deltas:
                        async for _ in deltas:
                            pass
        except TimeoutError:
            failure = BackendFailed(f"`{model}` did not load within {LOAD_S:.0f} s", retry_after_s=RELOAD_S)
        except BackendFailed as exc:
            failure = exc
        except Exception:  # a bug in a backend is no reason for the daemon to end
            logger.exception("a model did not load", extra={"backend": member.name})
            failure = BackendFailed(
                f"`{model}` did not load; the daemon's log says why", retry_after_s=RELOAD_S
            )
        now = self._clock()
        if failure is None:
            member.loaded(now)
        else:
            member.failed(failure, now)
        member.load = None
        self._queue.open(member.name)
        for seat in self._waiting_for(member.name):
            seat.failure = failure
            seat.awake()  # also where it loaded: from now on they may spill
        if failure is None:
            self._pump()


def _budget_s(request: ModelRequest) -> float | None:
    return None if request.latency_budget_ms is None else request.latency_budget_ms / 1000


def _deadline_s(request: ModelRequest, arrived_s: float) -> float:
    return queue.deadline_s(arrived_s, _budget_s(request))
