"""The pool as a scheduler: who waits, who leaves, what is loaded, and what is remembered of speeds."""

from __future__ import annotations

import statistics
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import TaskGroup

from aiosd.errors import BudgetExhausted, NoModelFits, Overloaded
from aiosd.models import slots
from aiosd.models.backend import BackendFailed, Embedded, Reply, Wait
from aiosd.models.pool import Pool, open_pool
from aiosd.records import Tokens
from aiosd.state.database import open_database
from tests.doubles.ollama_double import OllamaDouble
from tests.doubles.pools import Clock, Scripted, configured, near, pool_of, user, why

pytestmark = pytest.mark.anyio


class Paced(Scripted):
    """It takes its time by the clock: nobody waits for it. `resident` says what it was told to say."""

    def __init__(self, clock: Clock, *, first_s: float = 0.5, token_s: float = 0.1, tokens: int = 20) -> None:
        super().__init__()
        self.clock = clock
        self.first_s, self.token_s, self.tokens = first_s, token_s, tokens
        self.usage = Tokens(input_tokens=100, output_tokens=tokens)

    async def speak(self) -> AsyncIterator[str]:
        self.clock.now += self.first_s
        yield "word "
        for _ in range(self.tokens - 1):
            self.clock.now += self.token_s
            yield "word "


def elsewhere(backend: Scripted, *, price: float = 10.0) -> Scripted:
    backend.local, backend.price_in, backend.price_out = False, price, price
    return backend


class Gated(Scripted):
    """It answers nobody before `gate` is open."""

    def __init__(self, *, slots: int = 1) -> None:
        super().__init__(slots=slots)
        self.gate = anyio.Event()

    async def speak(self) -> AsyncIterator[str]:
        await self.gate.wait()
        yield "done"


class Cold(Paced):
    """Its model takes `load_s` by the clock, at the first request."""

    def __init__(self, clock: Clock, load_s: float) -> None:
        super().__init__(clock)
        self.load_s = load_s
        self.loads = 0
        self.loaded = False
        self.loading = anyio.Event()
        self.go = anyio.Event()
        self.fails = False

    async def resident(self) -> bool | None:
        return self.loaded

    async def speak(self) -> AsyncIterator[str]:
        if not self.loaded:
            self.loads += 1
            self.loading.set()
            await self.go.wait()
            self.clock.now += self.load_s
            if self.fails:
                raise BackendFailed("out of memory", retry_after_s=60.0)
            self.loaded = True
        async for word in super().speak():
            yield word


class Ears:
    """What callers are told while they wait."""

    def __init__(self) -> None:
        self.waits: list[Wait] = []

    async def on_wait(self, wait: Wait) -> None:
        self.waits.append(wait)

    @property
    def stages(self) -> list[str]:
        return [w.stage for w in self.waits]


# --- the queue -----------------------------------------------------------------------------------------


async def test_the_more_urgent_request_gets_the_slot_first() -> None:
    backend, ears = Gated(), Ears()
    async with pool_of({}, {"gated": backend}) as pool, anyio.create_task_group() as tasks:

        async def one(what: str, **rest: Any) -> None:
            await pool.reply(user(what, **rest), on_wait=ears.on_wait)

        waiting: dict[str, dict[str, Any]] = {
            "running": {},
            "late": {"priority": "background"},
            "plain": {},
            "hurried": {"latency_budget_ms": 1000},
            "first": {"priority": "interactive"},
        }
        for what, rest in waiting.items():
            tasks.start_soon(partial(one, what, **rest))
            await anyio.wait_all_tasks_blocked()
        assert [w.place for w in ears.waits] == [1, 1, 1, 1]
        assert [(i.in_flight, i.queued) for i in await pool.backends() if i.name == "gated"] == [(1, 4)]
        backend.gate.set()
    asked = [request.messages[0].content for request in backend.asked]
    assert asked == ["running", "first", "hurried", "plain", "late"]


async def asked_in_turn(backend: Gated, pool: Pool, tasks: TaskGroup, *priorities: str) -> list[Reply]:
    """One request after the other comes in, each named by its priority; the list fills with replies as they are given."""
    replies: list[Reply] = []

    async def one(priority: str) -> None:
        replies.append(await pool.reply(user(priority, priority=priority, task_id=priority)))

    for priority in priorities:
        tasks.start_soon(one, priority)
        await anyio.wait_all_tasks_blocked()
    return replies


async def test_a_background_reply_gives_its_slot_to_an_interactive_one_and_is_made_afterwards() -> None:
    backend = Gated()
    async with pool_of({}, {"gated": backend}) as pool, anyio.create_task_group() as tasks:
        replies = await asked_in_turn(backend, pool, tasks, "background", "interactive")
        assert [request.priority for request in backend.asked] == ["background", "interactive"]
        assert (backend.at_work, backend.most) == (1, 1)
        backend.gate.set()
    assert [request.priority for request in backend.asked] == ["background", "interactive", "background"]
    assert [reply.text for reply in replies] == ["done", "done"]


async def test_a_background_reply_about_to_end_keeps_its_slot_unless_it_does_not_end() -> None:
    class Late(Gated):
        async def speak(self) -> AsyncIterator[str]:
            if self.asked[-1].priority == "background":
                await self.gate.wait()
            self.gate.set()
            yield "done"

    clock, backend = Clock(), Late()
    async with pool_of({}, {"gated": backend}, clock=clock) as pool, anyio.create_task_group() as tasks:
        tasks.start_soon(pool.reply, user(priority="background", max_tokens=1))
        await anyio.wait_all_tasks_blocked()
        clock.now += 0.4  # nearly all of what is foretold for a token of a model that is not known yet
        tasks.start_soon(pool.reply, user(priority="interactive", max_tokens=1))
        await anyio.wait_all_tasks_blocked()
        assert [request.priority for request in backend.asked] == ["background"]
        clock.now += 0.4  # as much as its own first token takes is over
    assert [request.priority for request in backend.asked] == ["background", "interactive", "background"]


async def test_what_is_no_background_or_costs_money_is_never_broken_off() -> None:
    for priority, price in (("normal", 0.0), ("interactive", 0.0), ("background", 1.0)):
        backend = Gated()
        backend.price_out = price
        async with pool_of({}, {"gated": backend}) as pool, anyio.create_task_group() as tasks:
            await asked_in_turn(backend, pool, tasks, priority, "interactive")
            assert [request.priority for request in backend.asked] == [priority]
            backend.gate.set()


async def test_a_background_reply_is_broken_off_three_times_at_most() -> None:
    class Endless(Gated):
        async def speak(self) -> AsyncIterator[str]:
            if self.asked[-1].priority == "background":
                await self.gate.wait()
            clock.now += 5
            yield "done"

    clock, backend = Clock(), Endless()
    async with pool_of({}, {"gated": backend}, clock=clock) as pool, anyio.create_task_group() as tasks:
        await asked_in_turn(backend, pool, tasks, "background", *["interactive"] * 6)
        assert [request.priority for request in backend.asked].count("background") == 4
        backend.gate.set()
    assert len(backend.asked) == 4 + 6


async def test_a_task_made_urgent_while_it_waits_is_served_before_the_others() -> None:
    backend = Gated()
    async with pool_of({}, {"gated": backend}) as pool, anyio.create_task_group() as tasks:
        await asked_in_turn(backend, pool, tasks, "interactive", "normal", "background")
        pool.prioritize("background", "interactive")
        backend.gate.set()
    assert [request.messages[0].content for request in backend.asked] == [
        "interactive",
        "background",
        "normal",
    ]


async def test_a_queue_that_is_full_refuses_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "MOST_WAITING", 2)
    backend = Gated()
    async with pool_of({}, {"gated": backend}) as pool, anyio.create_task_group() as tasks:
        await asked_in_turn(backend, pool, tasks, "normal", "normal", "normal")
        with pytest.raises(Overloaded, match="2 requests wait for `gated`"):
            await pool.reply(user("one too many"))
        backend.gate.set()
    assert len(backend.asked) == 3


async def test_one_session_with_many_tasks_does_not_keep_the_others_waiting() -> None:
    backend = Gated()
    async with pool_of({}, {"gated": backend}) as pool, anyio.create_task_group() as tasks:
        for n in range(20):
            tasks.start_soon(pool.reply, user(f"greedy {n}", session_id="greedy"))
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(pool.reply, user("mine", session_id="mine"))
        await anyio.wait_all_tasks_blocked()
        backend.gate.set()
    assert [request.messages[0].content for request in backend.asked].index("mine") <= 2


async def test_a_request_cancelled_in_the_queue_leaves_no_trace_there() -> None:
    backend = Gated()
    async with pool_of({}, {"gated": backend}) as pool, anyio.create_task_group() as tasks:
        tasks.start_soon(pool.reply, user("running"))
        await anyio.wait_all_tasks_blocked()
        with anyio.move_on_after(0.05):
            await pool.reply(user("gone"))
        assert [(i.in_flight, i.queued) for i in await pool.backends() if i.name == "gated"] == [(1, 0)]
        backend.gate.set()
    assert [request.messages[0].content for request in backend.asked] == ["running"]


async def test_what_waits_at_home_goes_out_before_its_budget_runs_short() -> None:
    clock = Clock()
    here, there = Gated(), elsewhere(Paced(clock, first_s=0.01, token_s=0.0))
    async with pool_of({}, {"here": here, "there": there}, clock=clock) as pool:
        await pool.reply(user(backend="there"))  # it is known to be fast
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pool.reply, user("running", backend="here"))
            await anyio.wait_all_tasks_blocked()
            # 0.3 s: waiting for the slot at home is predicted to take longer, so it goes out at once.
            reply = await pool.reply(user("short", latency_budget_ms=300))
            assert reply.backend == "there"
            here.gate.set()


async def test_what_spills_says_why_and_what_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "MOST_WAIT_S", 0.05)
    here, there = Gated(), elsewhere(Scripted("out there"))
    ears = Ears()
    async with pool_of({}, {"here": here, "there": there}) as pool, anyio.create_task_group() as tasks:
        tasks.start_soon(pool.reply, user("running", max_tokens=10))
        await anyio.wait_all_tasks_blocked()
        reply = await pool.reply(user("waiting", max_tokens=10), on_wait=ears.on_wait)
        assert (reply.backend, reply.text) == ("there", "out there")
        assert reply.decision.reason.startswith("paid: it waited 0 s for a slot of `here`, $10.00 in")
        assert why(reply) == {"there": None, "here": "not needed", "extractive": "not in tier balanced"}
        assert ears.stages == ["queued"]
        with anyio.move_on_after(0.2) as waited:  # what must not leave waits on
            await pool.reply(user("private", privacy="local"))
        assert waited.cancelled_caught
        here.gate.set()
    assert [request.messages[0].content for request in there.asked] == ["waiting"]


async def test_where_the_budget_forbids_to_leave_it_waits_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "MOST_WAIT_S", 0.05)
    here, there = Gated(), elsewhere(Scripted("out there"))
    refused = anyio.Event()

    async def reserve(usd: float) -> None:
        refused.set()
        raise BudgetExhausted("the day's budget is spent")

    replies = []
    async with pool_of({}, {"here": here, "there": there}) as pool, anyio.create_task_group() as tasks:

        async def one() -> None:
            replies.append(await pool.reply(user(max_tokens=10), reserve=reserve))

        tasks.start_soon(one)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(one)
        await refused.wait()
        here.gate.set()
    assert [reply.backend for reply in replies] == ["here", "here"]
    assert why(replies[1])["there"] == "the day's budget is spent"
    assert there.asked == []


async def test_who_waits_for_a_backend_that_goes_down_is_served_elsewhere() -> None:
    class Breaking(Gated):
        async def speak(self) -> AsyncIterator[str]:
            async for word in super().speak():
                raise BackendFailed("it went away", retry_after_s=30.0)
                yield word

    here, there = Breaking(), elsewhere(Scripted("out there"), price=0.0)
    replies = []
    async with pool_of({}, {"here": here, "there": there}) as pool, anyio.create_task_group() as tasks:

        async def one() -> None:
            replies.append(await pool.reply(user(max_tokens=1)))

        for _ in range(5):
            tasks.start_soon(one)
        await anyio.wait_all_tasks_blocked()
        assert (len(here.asked), there.asked) == (1, [])
        here.gate.set()
    assert [reply.backend for reply in replies] == ["there"] * 5
    assert len(here.asked) == 1


# --- money ---------------------------------------------------------------------------------------------


async def test_an_idle_slow_model_at_home_is_never_passed_over_for_money() -> None:
    """3 tokens a second, 100 runs as they are by default."""
    clock = Clock()
    here = Paced(clock, first_s=20.0, token_s=1 / 3, tokens=120)
    there = elsewhere(Paced(clock, first_s=0.3, token_s=0.01))
    async with pool_of({}, {"there": there, "here": here}, clock=clock) as pool:
        for _ in range(100):
            assert (await pool.reply(user())).cost_usd == 0.0
    assert there.asked == []


# --- predictions ---------------------------------------------------------------------------------------


async def test_after_20_calls_half_of_the_predictions_are_within_a_fifth() -> None:
    clock = Clock()
    backend, errors = Paced(clock), []
    async with pool_of({}, {"here": backend}, clock=clock) as pool:
        for n in range(60):
            backend.first_s = (0.4, 0.6, 0.5)[n % 3]
            backend.token_s = (0.12, 0.1, 0.08, 0.1)[n % 4]
            reply = await pool.reply(user())
            (chosen,) = (c for c in reply.decision.candidates if c.rejected is None)
            assert chosen.predicted_s is not None and reply.decision.took_s is not None
            errors.append(abs(chosen.predicted_s - reply.decision.took_s) / reply.decision.took_s)
    assert statistics.median(errors[20:]) <= 0.2


async def test_what_was_learnt_survives_a_restart(tmp_path: Path) -> None:
    clock = Clock()

    async def first_prediction(model: str) -> float | None:
        backend = Paced(clock, first_s=3.0)
        backend.model = model
        async with (
            open_database(tmp_path / "aiosd.db") as database,
            open_pool(configured({}), {}, {"here": backend}, database=database, clock=clock) as pool,
        ):
            (chosen, *_) = (await pool.route(user())).candidates
            assert backend.asked == []
            await pool.reply(user())
            return chosen.predicted_s

    before, after, other = [await first_prediction(m) for m in ("one", "one", "another")]
    assert after == pytest.approx(3.0 + 19 * 0.1, rel=0.1)
    assert before == other != after


async def test_a_route_names_the_choice_and_sends_nothing() -> None:
    here, there = Scripted("here"), elsewhere(Scripted("there"))
    async with pool_of({}, {"there": there, "here": here}) as pool:
        decision = await pool.route(user())
        assert (decision.chosen, decision.took_s) == ("here", None)
        assert decision.reason == "the only local one of tier balanced"
        assert {c.backend: c.rejected for c in decision.candidates} == {
            "here": None,
            "there": "not needed",
            "extractive": "not in tier balanced",
        }
        assert all((c.predicted_s is None) == (c.backend == "extractive") for c in decision.candidates)
        with pytest.raises(NoModelFits):
            await pool.route(user(privacy="local", backend="there"))
    assert here.asked == there.asked == []


# --- loading -------------------------------------------------------------------------------------------


async def test_a_first_load_of_90_seconds_is_one_load_announced_and_waited_for() -> None:
    clock = Clock()
    cold, there = Cold(clock, 90.0), elsewhere(Paced(clock))
    ears, replies = Ears(), []
    async with pool_of({}, {"cold": cold, "there": there}, clock=clock) as pool:
        async with anyio.create_task_group() as tasks:

            async def one() -> None:
                replies.append(await pool.reply(user(max_tokens=20), on_wait=ears.on_wait))

            for _ in range(3):
                tasks.start_soon(one)
            await cold.loading.wait()
            await anyio.wait_all_tasks_blocked()
            assert (
                ears.waits == [Wait(stage="loading", detail="loading scripted, about 15 s", eta_s=15.0)] * 3
            )
            cold.go.set()
        assert [reply.backend for reply in replies] == ["cold"] * 3
        assert (cold.loads, len(cold.asked), there.asked) == (1, 4, [])
        cold.loaded = False
        clock.now += 600  # long enough for it to be asked again whether it is loaded
        await pool.reply(user(), on_wait=ears.on_wait)
        assert ears.waits[-1].eta_s == pytest.approx(92.4, abs=1)
        assert cold.loads == 2


async def test_a_load_is_no_queue_that_money_is_spent_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "MOST_WAIT_S", 0.0)
    clock = Clock()
    cold, there = Cold(clock, 90.0), elsewhere(Paced(clock))
    async with (
        pool_of({}, {"cold": cold, "there": there}, clock=clock) as pool,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(pool.reply, user())
        await cold.loading.wait()
        await anyio.wait_all_tasks_blocked()
        cold.go.set()
    assert there.asked == []


async def test_a_load_goes_on_when_whoever_asked_for_it_goes() -> None:
    clock = Clock()
    cold = Cold(clock, 90.0)
    async with pool_of({}, {"cold": cold}, clock=clock) as pool:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pool.reply, user("gone"))
            await cold.loading.wait()
            tasks.cancel_scope.cancel()
        cold.go.set()
        assert (await pool.reply(user("stays"))).backend == "cold"
    assert cold.loads == 1
    assert [request.messages[0].content for request in cold.asked] == ["hi", "stays"]


async def test_a_load_that_fails_is_followed_by_the_next_backend() -> None:
    clock = Clock()
    cold, there = Cold(clock, 1.0), elsewhere(Paced(clock), price=0.0)
    cold.fails = True
    cold.go.set()
    async with pool_of({}, {"cold": cold, "there": there}, clock=clock) as pool:
        reply = await pool.reply(user())
        assert (reply.backend, why(reply)["cold"]) == ("there", "out of memory")
        assert "asked again in" in (why(await pool.reply(user()))["cold"] or "")
    assert cold.loads == 1


async def test_a_load_ends_with_the_pool() -> None:
    cold = Cold(Clock(), 1.0)
    async with pool_of({}, {"cold": cold}) as pool, anyio.create_task_group() as tasks:
        tasks.start_soon(pool.reply, user())
        await cold.loading.wait()
        tasks.cancel_scope.cancel()
    assert cold.at_work == 0


async def test_a_budget_that_a_load_would_pass_goes_to_a_model_that_is_ready() -> None:
    clock = Clock()
    cold, there = Cold(clock, 90.0), elsewhere(Paced(clock))
    async with pool_of({}, {"cold": cold, "there": there}, clock=clock) as pool:
        await pool.reply(user(backend="there"))
        assert (await pool.reply(user(max_tokens=40, latency_budget_ms=8000))).backend == "there"
    assert cold.loads == 0


# --- vectors -------------------------------------------------------------------------------------------


class Embedding(Scripted):
    fails = False

    async def embed(self, texts: Sequence[str]) -> Embedded:
        if self.fails:
            raise BackendFailed("no", retry_after_s=9.0)
        return Embedded(vectors=tuple((float(len(t)),) for t in texts), model=self.model, dim=1)


async def test_vectors_are_made_on_this_machine_or_not_at_all() -> None:
    remote, near = elsewhere(Embedding()), Embedding()
    async with pool_of({}, {"remote": remote, "plain": Scripted(), "near": near}) as pool:
        assert (await pool.embed(["a", "bc"])).vectors == ((1.0,), (2.0,))
        near.fails = True
        with pytest.raises(NoModelFits, match="`near`: no"):
            await pool.embed(["a"])
        with pytest.raises(NoModelFits, match="asked again in 9 s"):
            await pool.embed(["a"])


async def test_an_ollama_that_says_its_model_is_not_loaded_is_made_to_load_it_first() -> None:
    ears = Ears()
    async with OllamaDouble() as double, pool_of({"here": near(double.url)}) as pool:
        double.loaded = set()
        for _ in range(2):
            await pool.reply(user("the task"), on_wait=ears.on_wait)
        assert ears.stages == ["loading"]
        load, first, second = double.chats()
    # A server that keeps nothing would load it again for the task.
    assert (load["messages"], load["keep_alive"]) == ([], "5m")
    assert load["options"]["num_ctx"] == first["options"]["num_ctx"]
    assert [body["messages"][0]["content"] for body in (first, second)] == ["the task", "the task"]
    assert "keep_alive" not in first
