"""The pool over real sockets: who is asked, what follows a failure, and what never leaves the machine."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import anyio
import pytest

from aiosd.errors import BudgetExhausted, NoModelFits, NotFound
from aiosd.models import breaker, member
from aiosd.models.backend import TextDelta, ThinkingDelta, Wait
from aiosd.records import Tokens
from tests.doubles.http_double import Fault, HttpDouble, Script
from tests.doubles.ollama_double import OllamaDouble
from tests.doubles.openai_double import OpenAIDouble
from tests.doubles.pools import (
    NOWHERE,
    Clock,
    Ears,
    Scripted,
    far,
    near,
    near_and_far,
    paid,
    pool_of,
    user,
    why,
)

pytestmark = pytest.mark.anyio


async def test_a_local_backend_answers_before_a_remote_one() -> None:
    ears = Ears()
    async with near_and_far(Script(thinking="Hm.")) as (pool, local, remote):
        reply = await pool.reply(user(), on_delta=ears.on_delta)
    assert (reply.text, reply.thinking, reply.stop_reason) == ("Hello there.", "Hm.", "end_turn")
    assert (reply.backend, reply.model, reply.generated, reply.cost_usd) == ("here", "small", True, 0.0)
    assert reply.usage == Tokens(input_tokens=11, output_tokens=7)
    assert reply.decision.reason == "the only local one of tier balanced"
    assert reply.decision.tier == "balanced"
    assert why(reply) == {"here": None, "there": "not needed", "extractive": "not in tier balanced"}
    assert ears.heard == [ThinkingDelta("Hm."), TextDelta("Hello"), TextDelta(" there"), TextDelta(".")]
    assert (len(local.chats()), len(remote.chats())) == (1, 0)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first token is due at once, also of a backend that nothing is known of."""
    monkeypatch.setattr(breaker, "UNLEARNT_S", 0.0)
    monkeypatch.setattr(breaker, "LEAST_PATIENCE_S", 0.5)
    monkeypatch.setattr(breaker, "PATIENCE", 0.0)
    monkeypatch.setattr(member, "LOAD_S", 0.5)


STATUSES = [400, 401, 403, 404, 429, 500, 503]


@pytest.mark.parametrize("status", STATUSES)
async def test_a_local_refusal_is_followed_by_the_next_one(status: int) -> None:
    async with near_and_far(Script(status=status)) as (pool, local, _):
        reply = await pool.reply(user())
    assert (reply.backend, reply.text) == ("there", "Hello there.")
    assert why(reply)["here"]
    assert reply.decision.reason == "no local backend answered"
    assert len(local.chats()) == 1


@pytest.mark.parametrize("status", STATUSES)
async def test_a_remote_refusal_is_followed_by_the_next_one(status: int) -> None:
    async with (
        OpenAIDouble(Script(status=status)) as first,
        OpenAIDouble() as second,
        pool_of({"first": far(first), "second": far(second)}) as pool,
    ):
        reply = await pool.reply(user())
    assert reply.backend == "second"
    assert why(reply)["first"]


async def test_a_refused_connection_is_followed_by_the_next_one() -> None:
    async with OpenAIDouble() as remote, pool_of({"here": near(NOWHERE), "there": far(remote)}) as pool:
        reply = await pool.reply(user())
        assert (
            why(reply)["here"]
            == f"no Ollama answers at {NOWHERE}; install it from https://ollama.com/download"
        )
        again = await pool.reply(user())
    assert "asked again in 2 s" in (why(again)["here"] or "")


@pytest.mark.parametrize("kind", ["ollama", "openai"])
@pytest.mark.parametrize("fault", ["cut", "error_line", "unfinished", "garbage"])
async def test_a_reply_that_breaks_before_anything_was_passed_on_is_followed_by_the_next_one(
    kind: str, fault: Fault
) -> None:
    async with (
        OllamaDouble(Script(fault=fault)) as a,
        OpenAIDouble(Script(fault=fault)) as b,
        OpenAIDouble() as c,
    ):
        first = near(a.url) if kind == "ollama" else far(b)
        async with pool_of({"first": first, "second": far(c)}) as pool:
            reply = await pool.reply(user())
    assert (reply.backend, reply.text) == ("second", "Hello there.")


@pytest.mark.parametrize("fault", ["cut", "error_line", "unfinished", "garbage"])
async def test_two_models_are_never_spliced(fault: Fault) -> None:
    ears = Ears()
    async with near_and_far(Script(fault=fault)) as (pool, _, remote):
        with pytest.raises(NoModelFits) as caught:
            await pool.reply(user(), on_delta=ears.on_delta)
        assert remote.chats() == []
    assert str(caught.value).startswith("`here` broke off in the middle of its reply: ")
    assert caught.value.data == {
        "backend": "here",
        "model": "small",
        "text": "Hello",
        "cost_usd": 0.0,
    }
    assert ears.heard == [TextDelta("Hello")]


async def test_when_everyone_fails_each_reason_is_given() -> None:
    async with near_and_far(Script(status=500, error="out of memory"), Script(status=429)) as (pool, _, _):
        with pytest.raises(NoModelFits) as caught:
            await pool.reply(user())
    assert "`here`: " in str(caught.value)
    assert "out of memory" in str(caught.value)
    assert "`there`: " in str(caught.value)
    assert "Ways out" in str(caught.value)
    assert caught.value.hint == "aiosctl model list"


async def test_a_busy_server_is_left_alone_for_as_long_as_it_says() -> None:
    clock = Clock()
    async with near_and_far(clock=clock) as (pool, local, _):
        local.scripts.append(Script(status=429, headers={"Retry-After": "30"}))
        assert (await pool.reply(user())).backend == "there"
        clock.now += 29
        second = await pool.reply(user())
        assert second.backend == "there"
        assert second.decision.reason == "no local backend is up"
        assert "asked again in 1 s" in (why(second)["here"] or "")
        assert len(local.chats()) == 1
        clock.now += 1
        assert (await pool.reply(user())).backend == "here"


async def test_a_refused_key_is_not_tried_again() -> None:
    clock = Clock()
    async with (
        OpenAIDouble(key="right") as locked,
        OpenAIDouble() as open_,
        pool_of({"a": far(locked), "b": far(open_)}, clock=clock) as pool,
    ):
        await pool.reply(user())
        clock.now += 1e9
        reply = await pool.reply(user())
    assert "not asked again until the config changes" in (why(reply)["a"] or "")
    assert len(locked.chats()) == 1


async def test_a_request_that_a_model_refuses_is_no_reason_to_leave_the_model_alone() -> None:
    async with near_and_far() as (pool, local, _):
        local.scripts.append(Script(status=400))
        assert (await pool.reply(user())).backend == "there"
        assert (await pool.reply(user())).backend == "here"


async def test_a_named_backend_is_the_only_one_asked() -> None:
    async with near_and_far(far_script=Script(status=500)) as (pool, local, _):
        with pytest.raises(NoModelFits):
            await pool.reply(user(backend="there"))
        assert local.chats() == []
        with pytest.raises(NotFound, match="no backend `nobody`"):
            await pool.reply(user(backend="nobody"))


# --- deadlines, slots, cancelling ----------------------------------------------------------------------


async def test_a_first_word_that_comes_too_late_goes_to_the_next_one(impatient: None) -> None:
    async with near_and_far(Script(fault="hang")) as (pool, local, _):
        await pool.backends()  # the packages of both are imported
        reply = await pool.reply(user())
        assert reply.backend == "there"
        assert reply.decision.reason == "no local backend answered"
        assert why(reply)["here"] == "no word from it within 500 ms"
        await local.dropped.wait()
        # It is left alone for a while.
        assert "asked again in 20 s" in (why(await pool.reply(user()))["here"] or "")


async def test_the_only_one_may_take_its_time_and_so_may_what_has_begun(impatient: None) -> None:
    gate = anyio.Event()

    class Slow(Scripted):
        async def speak(self) -> AsyncIterator[str]:
            yield "one"
            await gate.wait()
            yield " two"

    async def on_delta(delta: TextDelta | ThinkingDelta) -> None:
        # Long after its time: the second word is not held to it.
        await anyio.sleep(0.7)
        gate.set()

    class Late(Scripted):
        async def speak(self) -> AsyncIterator[str]:
            await anyio.sleep(0.7)
            yield "late"

    async with pool_of({}, {"late": Late()}) as pool:
        assert (await pool.reply(user())).text == "late"
    async with OpenAIDouble() as remote, pool_of({"there": far(remote)}, {"slow": Slow()}) as pool:
        reply = await pool.reply(user(), on_delta=on_delta)
    assert (reply.backend, reply.text) == ("slow", "one two")


@pytest.mark.parametrize("slots", [1, 2])
async def test_a_backend_works_on_as_many_requests_as_it_has_slots(slots: int) -> None:
    gate = anyio.Event()
    waits: list[Wait] = []

    class Gated(Scripted):
        async def speak(self) -> AsyncIterator[str]:
            await gate.wait()
            yield "done"

    async def on_wait(what: Wait) -> None:
        waits.append(what)
        if len(waits) == 4 - slots:
            gate.set()

    backend = Gated(slots=slots)
    async with pool_of({}, {"gated": backend}) as pool, anyio.create_task_group() as tasks:
        for _ in range(4):

            async def one() -> None:
                assert (await pool.reply(user(), on_wait=on_wait)).text == "done"

            tasks.start_soon(one)
    assert backend.most == slots
    assert [(w.stage, w.place) for w in waits] == [("queued", n + 1) for n in range(4 - slots)]
    assert {w.detail for w in waits} == {f"queued: `gated` is at work on {slots} already"}
    assert backend.closed == 1


@pytest.mark.parametrize("fault", ["hang", "hang_after"])
async def test_a_cancelled_reply_lets_go_of_the_model_and_of_its_slot(fault: Fault) -> None:
    async with OllamaDouble() as double, pool_of({"here": near(double.url)}) as pool:
        double.scripts.append(Script(fault=fault))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pool.reply, user())
            await double.arrived.wait()
            assert [i.in_flight for i in await pool.backends() if i.name == "here"] == [1]
            tasks.cancel_scope.cancel()
        await double.dropped.wait()
        assert (await pool.reply(user())).text == "Hello there."


async def test_a_caller_that_fails_closes_the_stream() -> None:
    async def on_delta(delta: TextDelta | ThinkingDelta) -> None:
        raise RuntimeError("the caller's own")

    async with near_and_far(Script(fault="hang_after")) as (pool, local, remote):
        with pytest.raises(RuntimeError, match="the caller's own"):
            await pool.reply(user(), on_delta=on_delta)
        await local.dropped.wait()
        assert remote.chats() == []


# --- money ---------------------------------------------------------------------------------------------


async def test_a_paid_backend_serves_when_no_local_one_is_up_and_names_its_price() -> None:
    async with OpenAIDouble() as remote, pool_of({"here": near(NOWHERE), "there": paid(remote)}) as pool:
        await pool.reply(user())
        reply = await pool.reply(user())
    assert (
        reply.decision.reason == "paid: no local backend is up, $2.50 in and $10.00 out for a million tokens"
    )
    assert reply.cost_usd == pytest.approx(11 * 2.5e-6 + 7 * 10e-6)


async def test_the_most_it_can_cost_is_reserved_before_a_paid_dispatch() -> None:
    reserved: list[float] = []
    async with OpenAIDouble() as remote, pool_of({"there": paid(remote)}) as pool:

        async def reserve(usd: float) -> None:
            assert remote.chats() == []
            reserved.append(usd)

        reply = await pool.reply(user("x" * 1000, max_tokens=100), reserve=reserve)
    (usd,) = reserved
    assert usd >= 1000 * 2.5e-6 + 100 * 10e-6 > reply.cost_usd


async def test_a_refused_reservation_sends_nothing_and_asks_the_next_one() -> None:
    async def reserve(usd: float) -> None:
        raise BudgetExhausted("the day's budget is spent")

    async with OpenAIDouble() as dear, pool_of({"dear": paid(dear)}, {"slow": Scripted("done")}) as pool:
        reply = await pool.reply(user(latency_budget_ms=1), reserve=reserve)
        assert (reply.backend, why(reply)["dear"]) == ("slow", "the day's budget is spent")
        with pytest.raises(BudgetExhausted, match="the day's budget is spent"):
            await pool.reply(user(backend="dear"), reserve=reserve)
        assert dear.chats() == []


async def test_what_was_spent_already_is_reserved_with_what_follows() -> None:
    reserved: list[float] = []

    async def reserve(usd: float) -> None:
        reserved.append(usd)

    async with (
        OpenAIDouble(Script(fault="cut")) as broken,
        OpenAIDouble() as whole,
        pool_of({"a": paid(broken), "b": paid(whole)}) as pool,
    ):
        await pool.reply(user(), reserve=reserve)
    first, second = reserved
    assert second == pytest.approx(2 * first)


async def test_nothing_is_reserved_for_what_is_free() -> None:
    async def reserve(usd: float) -> None:
        raise BudgetExhausted("no")

    async with near_and_far(paid_far=True) as (pool, _, _):
        assert (await pool.reply(user(), reserve=reserve)).backend == "here"


async def test_a_paid_server_that_does_not_say_what_it_used_has_used_what_was_reserved() -> None:
    async with OpenAIDouble() as remote, pool_of({"there": paid(remote)}) as pool:
        remote.usage = None
        assert (await pool.reply(user(max_tokens=100))).cost_usd >= 100 * 10e-6


async def test_what_a_broken_paid_reply_may_have_cost_is_counted() -> None:
    async with OpenAIDouble(Script(fault="cut")) as dear, OpenAIDouble() as dearer:
        backends = {"dear": paid(dear), "dearer": far(dearer, price_in=10.0, price_out=20.0)}
        async with pool_of(backends) as pool:
            reply = await pool.reply(user(max_tokens=100))
        assert reply.backend == "dearer"
        assert reply.cost_usd >= 100 * 10e-6 + 11 * 10e-6 + 7 * 20e-6
        async with pool_of({"dear": paid(dear)}) as pool:
            with pytest.raises(NoModelFits) as caught:
                await pool.reply(user(max_tokens=100))
            assert caught.value.data["cost_usd"] >= 100 * 10e-6
            dear.script = Script(status=500)
            with pytest.raises(NoModelFits) as caught:
                await pool.reply(user())
            assert caught.value.data["cost_usd"] == 0.0


async def test_a_key_in_the_environment_alone_is_never_used() -> None:
    async with OpenAIDouble() as remote:
        environ = {"OPENAI_API_KEY": "sk-secret", "OPENAI_BASE_URL": remote.base, "OLLAMA_HOST": NOWHERE}
        async with pool_of({}, environ=environ) as pool:
            assert [i.name for i in await pool.backends()] == ["ollama", "extractive"]
            with pytest.raises(NoModelFits):
                await pool.reply(user(tier="capable"))
        assert remote.seen == []


# --- the list ------------------------------------------------------------------------------------------


async def test_backends_says_how_each_one_stands() -> None:
    async with AsyncExitStack() as stack:
        ollama = await stack.enter_async_context(OllamaDouble())
        doubles: list[HttpDouble] = [
            await stack.enter_async_context(OpenAIDouble(key="right")),
            await stack.enter_async_context(OpenAIDouble()),
        ]
        locked, remote = doubles
        assert isinstance(locked, OpenAIDouble)
        assert isinstance(remote, OpenAIDouble)
        backends = {
            "here": near(ollama.url, slots=2),
            "gone": near(NOWHERE),
            "absent": near(ollama.url, "tiny"),
            "locked": far(locked),
            "there": paid(remote),
        }
        async with pool_of(backends, fast=("here", "there"), capable=("there",)) as pool:
            infos = {info.name: info for info in await pool.backends()}
    assert {name: info.state for name, info in infos.items()} == {
        "here": "up",
        "gone": "down",
        "absent": "down",
        "locked": "down",
        "there": "up",
        "extractive": "up",
    }
    assert (
        infos["gone"].reason == f"no Ollama answers at {NOWHERE}; install it from https://ollama.com/download"
    )
    assert infos["absent"].reason == "Ollama has no model `tiny`; get it with: aiosctl model pull tiny"
    assert "without a key" in (infos["locked"].reason or "")
    assert (infos["there"].tiers, infos["there"].price_out) == (("fast", "capable"), 10.0)
    assert (infos["here"].slots, infos["here"].local, infos["there"].local) == (2, True, False)


async def test_where_all_are_busy_a_short_pause_that_they_ask_for_is_waited_for() -> None:
    waits: list[Wait] = []

    async def on_wait(wait: Wait) -> None:
        waits.append(wait)

    async with OllamaDouble() as double:
        double.scripts.append(Script(status=503, headers={"Retry-After": "1"}))
        async with pool_of({"here": near(double.url)}, clock=time.monotonic) as pool:
            reply = await pool.reply(user(), on_wait=on_wait)
            double.scripts.append(Script(status=503, headers={"Retry-After": "16"}))
            with pytest.raises(NoModelFits, match="is busy"):
                await pool.reply(user())
    assert reply.backend == "here"
    assert [w.stage for w in waits] == ["retrying", "retrying"]
    assert waits[1].detail == "`here`: busy, asked again in 1 s"
    assert waits[1].eta_s == pytest.approx(1, abs=0.5)


async def test_a_pause_longer_than_the_callers_deadline_is_not_begun() -> None:
    async with OllamaDouble() as double:
        double.scripts.append(Script(status=429, headers={"Retry-After": "9"}))
        async with pool_of({"here": near(double.url)}, clock=time.monotonic) as pool:
            with anyio.fail_after(8), pytest.raises(NoModelFits, match="is busy"):
                await pool.reply(user())
