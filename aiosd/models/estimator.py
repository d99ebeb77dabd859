"""How long a backend will take, from how long it took. Pure: durations come in, predictions go out.

Each figure is an exponentially weighted mean whose first observations count most: the first one replaces what was
assumed, after which each moves the mean by at least STEP. What was assumed for a backend that never answered is
low on purpose, so that a budget is not promised to a model nobody has measured.
"""

from __future__ import annotations

import msgspec

from aiosd.records import TaskType

STEP = 0.15
"""Weight of the newest observation, once there are enough. Chosen in contrib/bench/simulation.py."""
LEAST_S = 1e-6
"""Durations are kept above zero, since they are scaled."""
TRUSTED_CALLS = 3
"""Calls after which a prediction is more than a guess."""


class Learnt(msgspec.Struct, kw_only=True):
    """What is known of one backend; stored as it is."""

    first_s: float
    """From sending to the first token, without the time for reading the prompt."""
    prompt_token_s: float
    output_token_s: float
    load_s: float
    chars_per_token: float = 4.0
    ratios: dict[TaskType, float] = msgspec.field(default_factory=dict)
    """Tokens written of those allowed, by kind of task."""
    calls: int = 0
    loads: int = 0
    ratio_calls: dict[TaskType, int] = msgspec.field(default_factory=dict)


def assumed(*, local: bool) -> Learnt:
    """A backend before its first answer: a model of 8 billion weights on a plain machine, or a hosted one."""
    if local:
        return Learnt(first_s=0.4, prompt_token_s=1 / 400, output_token_s=1 / 15, load_s=15.0)
    return Learnt(first_s=0.8, prompt_token_s=1 / 3000, output_token_s=1 / 50, load_s=0.0)


RATIO = 0.5
"""Assumed for a kind of task that a backend has not answered yet."""


class Prediction(msgspec.Struct, frozen=True, gc=False):
    """Seconds of one request at one backend, in the order in which they pass."""

    wait_s: float
    """In our queue."""
    load_s: float
    first_s: float
    """From the slot to the first token."""
    output_s: float

    @property
    def work_s(self) -> float:
        """How long it holds a slot."""
        return self.first_s + self.output_s

    @property
    def total_s(self) -> float:
        return self.wait_s + self.load_s + self.first_s + self.output_s


class Observed(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One answer that came whole."""

    task_type: TaskType
    max_tokens: int
    prompt_chars: int
    prompt_tokens: int
    """0 where the backend did not say."""
    output_tokens: int
    total_s: float
    """From the slot to the end, without a load."""
    first_s: float | None = None
    """To the first token; None where it was not seen, as with a tool call that comes whole at the end."""
    prompt_s: float | None = None
    """Reading the prompt, where the backend says so."""


def predict(
    learnt: Learnt,
    *,
    wait_s: float,
    load_s: float,
    prompt_tokens: float,
    max_tokens: int,
    task_type: TaskType,
) -> Prediction:
    """`wait_s` is what the queue ahead takes, `load_s` what is left of a load; 0 for a model that is resident."""
    output_tokens = max_tokens * learnt.ratios.get(task_type, RATIO)
    return Prediction(
        wait_s,
        load_s,
        learnt.first_s + prompt_tokens * learnt.prompt_token_s,
        output_tokens * learnt.output_token_s,
    )


def learn(learnt: Learnt, seen: Observed) -> None:
    """One more answer. Where a time has two causes, its error is shared as the prediction was."""
    step = _step(learnt.calls)
    tokens = seen.prompt_tokens or seen.prompt_chars / learnt.chars_per_token
    if seen.prompt_tokens and seen.prompt_chars:
        learnt.chars_per_token += step * (seen.prompt_chars / seen.prompt_tokens - learnt.chars_per_token)
    if seen.first_s is None:
        was = learnt.first_s + tokens * learnt.prompt_token_s + seen.output_tokens * learnt.output_token_s
        by = 1 + step * (max(seen.total_s, LEAST_S) / was - 1)
        learnt.first_s *= by
        learnt.prompt_token_s *= by
        learnt.output_token_s *= by
    else:
        _learn_first(learnt, seen.first_s, tokens, seen.prompt_s, step)
        if seen.output_tokens > 1:
            token_s = max((seen.total_s - seen.first_s) / (seen.output_tokens - 1), LEAST_S)
            learnt.output_token_s += step * (token_s - learnt.output_token_s)
    n = learnt.ratio_calls.get(seen.task_type, 0)
    ratio = learnt.ratios.get(seen.task_type, RATIO)
    learnt.ratios[seen.task_type] = ratio + _step(n) * (seen.output_tokens / max(1, seen.max_tokens) - ratio)
    learnt.ratio_calls[seen.task_type] = n + 1
    learnt.calls += 1


def learn_load(learnt: Learnt, took_s: float) -> None:
    learnt.load_s += _step(learnt.loads) * (took_s - learnt.load_s)
    learnt.loads += 1


def _learn_first(learnt: Learnt, first_s: float, tokens: float, prompt_s: float | None, step: float) -> None:
    if prompt_s is not None and tokens:
        rest_s = max(first_s - prompt_s, LEAST_S)
        learnt.first_s += step * (rest_s - learnt.first_s)
        # Seconds for a token, and not tokens a second: a prompt out of the cache takes almost none.
        learnt.prompt_token_s += step * (max(prompt_s / tokens, LEAST_S) - learnt.prompt_token_s)
        return
    was = learnt.first_s + tokens * learnt.prompt_token_s
    error = step * (max(first_s, LEAST_S) - was)
    share = learnt.first_s / was
    learnt.first_s = max(learnt.first_s + error * share, LEAST_S)
    if tokens:
        learnt.prompt_token_s = max(learnt.prompt_token_s + error * (1 - share) / tokens, LEAST_S)


def _step(n: int) -> float:
    """The weight of observation number n, from 0: the first takes the place of what was assumed."""
    return max(STEP, 1 / (n + 1))
