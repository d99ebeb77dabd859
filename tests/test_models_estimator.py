"""How long backends take, as learnt: tables of durations, no clock."""

from __future__ import annotations

import random
import statistics
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosd.models.breaker import Breaker, patience_s
from aiosd.models.estimator import Learnt, Observed, Prediction, assumed, learn, learn_load, predict


def seen(total_s: float, **rest: Any) -> Observed:
    known: dict[str, Any] = {
        "task_type": "reasoning",
        "max_tokens": 400,
        "prompt_chars": 4000,
        "prompt_tokens": 1000,
        "output_tokens": 200,
    }
    return Observed(total_s=total_s, **known | rest)


def guess(learnt: Learnt, prompt_tokens: float = 1000, max_tokens: int = 400) -> Prediction:
    return predict(
        learnt, wait_s=0, load_s=0, prompt_tokens=prompt_tokens, max_tokens=max_tokens, task_type="reasoning"
    )


def test_the_first_answer_takes_the_place_of_what_was_assumed() -> None:
    learnt = assumed(local=True)
    learn(learnt, seen(22.0, first_s=2.0))
    assert guess(learnt).first_s == pytest.approx(2.0)
    assert guess(learnt).output_s == pytest.approx(20.0, rel=0.01)
    assert learnt.chars_per_token == 4.0


def test_a_time_of_which_only_the_whole_is_known_teaches_too() -> None:
    learnt = assumed(local=False)
    learn(learnt, seen(22.0))
    assert guess(learnt).total_s == pytest.approx(22.0, rel=0.01)


def test_long_prompts_are_told_from_slow_starts() -> None:
    learnt = assumed(local=True)
    for i in range(60):
        tokens = (100, 4000)[i % 2]
        first_s = 0.5 + tokens / 200
        learn(learnt, seen(first_s + 4.0, prompt_tokens=tokens, prompt_chars=tokens * 4, first_s=first_s))
    for tokens in (100, 2000, 4000):
        assert guess(learnt, tokens).first_s == pytest.approx(0.5 + tokens / 200, rel=0.2)


def test_what_is_waited_and_loaded_for_is_part_of_the_prediction() -> None:
    made = predict(
        assumed(local=True), wait_s=3, load_s=14, prompt_tokens=1, max_tokens=1, task_type="coding"
    )
    assert made.total_s == pytest.approx(17 + made.work_s)


def test_a_load_is_learnt_apart() -> None:
    learnt = assumed(local=True)
    learn_load(learnt, 90.0)
    assert (learnt.load_s, learnt.loads, learnt.calls) == (90.0, 1, 0)


@pytest.mark.parametrize("jitter", [0.0, 0.15])
def test_after_20_calls_half_of_the_predictions_are_within_a_fifth(jitter: float) -> None:
    rng = random.Random(1)
    learnt, errors = assumed(local=True), []
    for n in range(60):
        tokens, written = rng.randint(200, 4000), rng.randint(180, 220)
        first_s = (0.3 + tokens / 300) * rng.lognormvariate(0, jitter)
        total_s = first_s + written / (14 * rng.lognormvariate(0, jitter))
        if n >= 20:
            errors.append(abs(guess(learnt, tokens).total_s - total_s) / total_s)
        learn(
            learnt,
            seen(
                total_s, first_s=first_s, prompt_tokens=tokens, prompt_chars=4 * tokens, output_tokens=written
            ),
        )
    assert statistics.median(errors) <= 0.2


observations = st.builds(
    Observed,
    task_type=st.sampled_from(["reasoning", "coding"]),
    max_tokens=st.integers(0, 8000),
    prompt_chars=st.integers(0, 10**6),
    prompt_tokens=st.integers(0, 10**6),
    output_tokens=st.integers(0, 10**5),
    total_s=st.floats(0, 1e5),
    first_s=st.none() | st.floats(0, 1e5),
    prompt_s=st.none() | st.floats(0, 1e5),
)


@given(st.lists(observations, max_size=20), st.booleans())
def test_whatever_backends_report_predictions_stay_sane_and_can_be_stored(
    all_seen: list[Observed], local: bool
) -> None:
    learnt = assumed(local=local)
    for one in all_seen:
        learn(learnt, one)
    made = guess(learnt)
    assert 0 <= made.first_s < 1e13 and 0 <= made.output_s < 1e13
    assert learnt.chars_per_token > 0
    assert msgspec.json.decode(msgspec.json.encode(learnt), type=Learnt) == learnt


# --- patience and rest -------------------------------------------------------------------------------


def test_patience_is_thrice_the_prediction_and_two_seconds_at_least() -> None:
    made = Prediction(5, 90, 1.5, 20)
    assert patience_s(made, calls=9, overdue=0, whole=False) == 4.5
    assert patience_s(Prediction(0, 0, 0.1, 0), calls=9, overdue=0, whole=False) == 2.0
    # A tool call comes whole at its end, a guess is no prediction, and a slow machine is found out.
    assert patience_s(made, calls=9, overdue=0, whole=True) == 64.5
    assert patience_s(made, calls=0, overdue=0, whole=False) == 30.0
    assert patience_s(made, calls=9, overdue=2, whole=False) == 18.0


def test_a_backend_rests_as_long_as_it_asks_and_longer_each_time_in_a_row() -> None:
    breaker, now, rests = Breaker(), 0.0, []
    for _ in range(6):
        breaker.failed("busy", 5.0, now)
        rests.append(breaker.retry_in_s(now))
        now += rests[-1] or 0.0
        assert breaker.down(now) is None
    assert rests == [5.0, 10.0, 20.0, 40.0, 40.0, 40.0]
    breaker.failed("busy", 300.0, now)
    assert breaker.retry_in_s(now) == 300.0
    now += 300
    breaker.answered()
    breaker.failed("busy", 5.0, now)
    assert breaker.down(now) == "busy (asked again in 5 s)"


def test_what_fails_while_it_rests_is_the_same_failure() -> None:
    breaker = Breaker()
    for _ in range(8):
        breaker.failed("busy", 5.0, 100.0)
    assert breaker.retry_in_s(100.0) == 5.0
    breaker.failed("no key", float("inf"), 101.0)
    assert "not asked again" in (breaker.down(1e9) or "")


def test_failures_that_do_not_say_for_how_long_count_from_the_third_on() -> None:
    breaker = Breaker()
    breaker.failed("status 500", None, 0.0)
    breaker.failed("status 500", None, 0.0)
    assert breaker.down(0.0) is None
    breaker.failed("status 500", None, 0.0)
    assert breaker.down(0.0) is not None
