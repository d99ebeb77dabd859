"""What takes the next free slot, as tables: the clock is an argument."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosd.models import queue
from aiosd.models.estimator import Prediction
from aiosd.models.queue import AGEING_S, FAIR_S, Queue, Running, Waiting, next, spill_s, wait_s, yielding

numbers = itertools.count(1)


def waits(**rest: Any) -> Waiting:
    known: dict[str, Any] = {
        "backend": "b",
        "arrived_s": 0.0,
        "deadline_s": 60.0,
        "number": numbers.__next__(),
    }
    return Waiting(**known | rest)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"priority": "interactive"}, {"priority": "normal", "stays": True, "deadline_s": 1.0}),
        ({"priority": "normal"}, {"priority": "background", "stays": True, "deadline_s": 1.0}),
        ({"stays": True}, {"deadline_s": 1.0}),
        ({"deadline_s": 10.0}, {"deadline_s": 11.0}),
        # The session that asked for more at a time is taken for less urgent.
        ({"turn": 0, "deadline_s": 61.0}, {"turn": 2, "deadline_s": 60.0}),
        # Who has waited long enough is as urgent as the next priority, then more so than any.
        ({"priority": "background", "arrived_s": -AGEING_S, "deadline_s": 1.0}, {"priority": "normal"}),
        ({"priority": "background", "arrived_s": -3 * AGEING_S}, {"priority": "interactive", "stays": True}),
        ({"number": 0}, {"number": 1}),
    ],
)
def test_who_is_next(first: dict[str, Any], then: dict[str, Any]) -> None:
    a, b = waits(**first), waits(**then)
    assert next(0.0, [b, a], {"b": 1}) == next(0.0, [a, b], {"b": 1}) == a


def test_only_who_waits_for_a_free_slot_is_started() -> None:
    a, b = waits(backend="a", priority="interactive"), waits(backend="b")
    assert next(0.0, [a, b], {"b": 1, "a": 0}) == b
    assert next(0.0, [a, b], {}) is None


@pytest.mark.parametrize(
    ("slots", "running", "ahead", "wait"),
    [
        (1, [], [], 0.0),
        (2, [9.0], [], 0.0),
        (1, [3.0], [], 3.0),
        (1, [3.0], [4.0], 7.0),
        (2, [3.0, 9.0], [], 3.0),
        (2, [3.0, 9.0], [4.0], 7.0),
        (2, [3.0, 9.0], [4.0, 10.0], 9.0),
        (2, [3.0, 9.0], [4.0, 1.0], 8.0),
        (1, [3.0, 5.0], [], 5.0),
    ],
)
def test_the_wait_is_that_of_whoever_is_before_one(
    slots: int, running: list[float], ahead: list[float], wait: float
) -> None:
    assert wait_s(slots, running, ahead) == wait


def test_what_waits_leaves_when_twice_the_remote_prediction_is_left_of_its_budget() -> None:
    assert spill_s(100.0, 20.0, Prediction(0, 0, 1, 2), most_wait_s=10.0) == 114.0
    assert spill_s(100.0, None, Prediction(0, 0, 1, 2), most_wait_s=10.0) == 110.0


def one(q: Queue, session_id: str, **rest: Any) -> Waiting:
    waiting = waits(session_id=session_id, turn=q.turns(session_id), number=q.number(), work_s=1.0, **rest)
    q.add(waiting)
    return waiting


def test_a_session_with_fifty_tasks_does_not_keep_another_waiting() -> None:
    q = Queue()
    q.lane("b", 1)
    for _ in range(50):
        one(q, "greedy")
    mine = one(q, "mine", deadline_s=60.0 + FAIR_S / 2)
    started = []
    while (waiting := q.start(0.0)) is not None:
        started.append(waiting)
        q.leave(waiting)
    assert started.index(mine) == 1
    assert len(started) == 51
    assert q.turns("greedy") == q.turns("mine") == 0


def test_a_queue_that_is_closed_while_a_model_loads_starts_nothing() -> None:
    q = Queue()
    q.lane("b", 1)
    q.close("b")
    waiting = one(q, "s")
    assert q.start(0.0) is None
    q.open("b")
    assert q.start(0.0) == waiting


def test_the_wait_foretold_counts_those_ahead_alone() -> None:
    q = Queue()
    q.lane("b", 1)
    for deadline_s in (60.0, 60.0, 10.0):
        one(q, "s", deadline_s=deadline_s)
    q.start(0.0)

    def foretold(**rest: Any) -> float:
        like: dict[str, Any] = {"stays": False, "arrived_s": 0.0, "deadline_s": 60.0, "turn": 0}
        return q.ahead_s(0.25, "b", rest.pop("priority", "normal"), **like | rest)

    assert foretold(turn=9) == 2.75
    assert foretold(deadline_s=5.0) == foretold(priority="interactive") == foretold(stays=True) == 0.75


def runs(started_s: float, **rest: Any) -> Running:
    known: dict[str, Any] = {"priority": "background", "yields": True, "work_s": 10.0}
    return Running(waits(**known | rest), started_s)


URGENT = waits(priority="interactive", first_s=8.0)
"""It came at 0 s and is patient until 2 s."""


@pytest.mark.parametrize(
    ("now", "running", "broken_off"),
    [
        (0.0, [], None),
        (0.0, [runs(-1.0)], 0),
        (0.0, [runs(-1.0), runs(-0.5)], 1),  # what began last loses least
        (0.0, [runs(-8.5)], None),  # it ends in time by itself
        (0.0, [runs(-7.5)], 0),
        (1.0, [runs(-8.0)], None),
        (1.8, [runs(-7.5)], 0),  # a tenth of its time at least is foretold, and that is too much by now
        (2.0, [runs(-12.0)], 0),  # it was to end by now, and has not
        (0.0, [runs(-8.5), runs(-1.0)], None),
        (0.0, [runs(-8.5, priority="interactive"), runs(-1.0)], None),
        (0.0, [runs(-1.0, priority="normal")], None),
        (0.0, [runs(-1.0, yields=False)], None),
        (0.0, [msgspec.structs.replace(runs(-1.0), yielded=True)], None),
        (0.0, [msgspec.structs.replace(runs(-1.0), yielded=True), runs(-2.0)], None),
    ],
)
def test_what_is_broken_off_for_an_interactive_request(
    now: float, running: list[Running], broken_off: int | None
) -> None:
    assert yielding(now, [URGENT, waits()], running) == (None if broken_off is None else running[broken_off])
    assert yielding(now, [waits()], running) is None


def test_each_interactive_request_has_one_broken_off_and_no_more() -> None:
    q = Queue()
    q.lane("b", 3)
    for _ in range(3):
        one(q, "s", priority="background", yields=True)
        q.start(0.0)
    for n in range(1, 6):
        one(q, "s", priority="interactive")
        assert (q.make_way(0.0, "b") is not None) == (n <= 3)
        assert q.make_way(0.0, "b") is None


arrivals = st.lists(
    st.tuples(
        st.sampled_from(["interactive", "normal", "background"]),
        st.booleans(),
        st.floats(0.1, 600),
        st.sampled_from(["s", "t", None]),
    ),
    min_size=1,
    max_size=30,
)


@given(arrivals, st.integers(1, 3))
def test_everything_that_waits_is_started_once(asked: list[Any], slots: int) -> None:
    q = Queue()
    q.lane("b", slots)
    added = []
    for priority, stays, deadline_s, session_id in asked:
        waiting = waits(
            number=q.number(), priority=priority, stays=stays, deadline_s=deadline_s, session_id=session_id
        )
        q.add(waiting)
        added.append(waiting)
    started = []
    while True:
        while (waiting_ := q.start(0.0)) is not None:
            started.append(waiting_)
            assert q.running("b") <= slots
        if len(started) == len(added):
            break
        q.leave(started[-1])
    assert sorted(w.number for w in started) == sorted(w.number for w in added)


def test_nothing_starves_under_a_stream_of_what_is_more_urgent() -> None:
    """One request comes each second, urgent and bound to stay; the slot takes each a second."""
    q = Queue()
    q.lane("b", 1)
    old = one(q, "old", priority="background", deadline_s=queue.deadline_s(0.0, None))
    for second in range(1000):
        now = float(second)
        one(q, "new", priority="interactive", stays=True, arrived_s=now, deadline_s=now + 1)
        started = q.start(now)
        assert started is not None
        q.leave(started)
        if started == old:
            break
    assert started == old
    assert second <= 4 * AGEING_S
