"""Who serves a request, as tables: no sockets, no clock."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosd.config import TIERS
from aiosd.errors import NoModelFits, NotFound
from aiosd.models.backend import Message, ModelRequest, ToolSpec
from aiosd.models.estimator import Prediction
from aiosd.models.router import MARGIN, MOST_WAIT_S, Standing, choose, must_stay

TOOL = ToolSpec(name="t", description="", input_schema={"type": "object"})


def ask(**rest: Any) -> ModelRequest:
    return ModelRequest(messages=(Message(role="user", content="hi"),), **rest)


def standing(name: str, place: int = 0, **rest: Any) -> Standing:
    known: dict[str, Any] = {
        "kind": "ollama",
        "model": f"{name}-model",
        "local": True,
        "ranks": dict.fromkeys(TIERS, place),
    }
    return Standing(name=name, **known | rest)


SMALL = standing("small", 1)
BIG = standing("big", 2)
LAN = standing("lan", 3, kind="openai", local=False)
CLOUD = standing("cloud", 0, kind="openai", local=False, price_in=2.5, price_out=10.0, cost_usd=0.01)
QUOTES = standing("extractive", 4, kind="extractive", model="extractive")
DOWN = standing("small", 1, down="nothing answers at http://127.0.0.1:11434")


def takes(work_s: float, *, wait_s: float = 0.0, load_s: float = 0.0) -> Prediction:
    return Prediction(wait_s, load_s, work_s / 2, work_s / 2)


@pytest.mark.parametrize(
    ("request_", "standings", "chosen"),
    [
        (ask(), [CLOUD, LAN, BIG, SMALL], "small"),
        (ask(), [CLOUD, DOWN], "cloud"),
        (ask(), [standing("b"), standing("a")], "a"),
        (ask(backend="cloud"), [SMALL, CLOUD], "cloud"),
        (ask(backend="big"), [SMALL, standing("big", ranks={})], "big"),
        (ask(tier="fast"), [SMALL, standing("big", ranks={"capable": 0})], "small"),
        (ask(privacy="local"), [CLOUD, LAN, SMALL], "small"),
        (ask(task_type="embedding"), [CLOUD, LAN, SMALL], "small"),
        (ask(tools=(TOOL,)), [standing("small", takes_tools=False), BIG], "big"),
        (ask(), [QUOTES, CLOUD], "cloud"),
        (ask(), [CLOUD, LAN], "lan"),
    ],
)
def test_who_serves_where_nothing_is_known_of_speeds(
    request_: ModelRequest, standings: list[Standing], chosen: str
) -> None:
    assert choose(request_, standings).chosen.name == chosen


def here(work_s: float, **rest: Any) -> Standing:
    wait_s, load_s = rest.pop("wait_s", 0.0), rest.pop("load_s", 0.0)
    return standing("here", predicted=takes(work_s, wait_s=wait_s, load_s=load_s), **rest)


def there(work_s: float, usd: float = 0.01, name: str = "there") -> Standing:
    return standing(name, 9, local=False, price_in=usd, price_out=usd, cost_usd=usd, predicted=takes(work_s))


CENT = "$0.01 in and $0.01 out for a million tokens"
SMALL_ONLY = {"fast": 0, "balanced": 0}


@pytest.mark.parametrize(
    ("left_s", "standings", "chosen"),
    [
        # The fastest local one that fits with the margin, though a remote one is faster.
        (10, [here(5), standing("other", predicted=takes(6)), there(1)], "here"),
        (10, [here(10 / MARGIN), there(1)], "here"),
        (10, [here(10 / MARGIN + 0.1), there(1)], "there"),
        # Waiting and loading count.
        (10, [here(2, wait_s=6), there(1)], "there"),
        (10, [here(2, load_s=6), there(1)], "there"),
        # Of the remote ones that fit, the cheapest.
        (10, [here(50), there(1, 0.02), there(2, 0.01, "cheap"), there(9, 0.001, "late")], "cheap"),
        # Where none fits, whoever is done first, wherever it is.
        (10, [here(11), there(12)], "here"),
        (10, [here(12), there(11)], "there"),
        (-1, [here(2), there(1)], "there"),
        # Work that may leave does not queue where larger work is served, if it could be served elsewhere.
        (100, [here(5, wait_s=1), standing("small", ranks=SMALL_ONLY, predicted=takes(9))], "here"),
        (
            100,
            [here(5, wait_s=1), standing("small", ranks=SMALL_ONLY, predicted=takes(9)), there(1)],
            "small",
        ),
        (100, [here(5), standing("small", ranks=SMALL_ONLY, predicted=takes(9)), there(1)], "here"),
        (100, [here(5, wait_s=1), there(1)], "here"),
    ],
)
def test_a_budget_steers(left_s: float, standings: list[Standing], chosen: str) -> None:
    assert choose(ask(latency_budget_ms=100_000), standings, left_s).chosen.name == chosen


@pytest.mark.parametrize(
    ("standings", "chosen"),
    [
        ([here(3600), there(1)], "here"),
        ([here(1, load_s=300), there(1)], "here"),
        ([here(1, wait_s=MOST_WAIT_S - 0.1), there(1)], "here"),
        ([here(1, wait_s=MOST_WAIT_S), there(1)], "there"),
        ([here(1, wait_s=MOST_WAIT_S), there(60)], "here"),
        ([here(1, wait_s=MOST_WAIT_S)], "here"),
        ([here(1, down="gone"), there(60)], "there"),
    ],
)
def test_without_a_budget_money_is_spent_only_where_the_queue_is_long_or_nobody_is_up(
    standings: list[Standing], chosen: str
) -> None:
    assert choose(ask(), standings).chosen.name == chosen


def test_what_waits_at_home_spills_to_the_cheapest_remote_one() -> None:
    made = choose(ask(latency_budget_ms=1), [here(0.0001), there(1, 0.02), there(2, 0.01, "cheap")], 0.001)
    assert made.spill is not None and made.spill.name == "cheap"
    assert choose(ask(privacy="local"), [here(1), there(1)]).spill is None


@pytest.mark.parametrize(
    ("request_", "standings", "says"),
    [
        (ask(), [], "no model fits a balanced request: there is none"),
        (ask(), [DOWN], "`small`: nothing answers at http://127.0.0.1:11434"),
        (ask(privacy="local"), [CLOUD], "`cloud`: it is remote, and this text stays on the machine"),
        (ask(privacy="local", backend="cloud"), [CLOUD, SMALL], "it is remote"),
        (ask(task_type="embedding"), [CLOUD], "it is remote"),
        (ask(tier="capable"), [QUOTES], "`extractive`: it only quotes, and this needs a model"),
        (ask(task_type="coding"), [QUOTES], "no model fits a balanced request for coding: `extractive`"),
        (ask(schema={}), [QUOTES], "cannot fill a schema"),
        (ask(tools=(TOOL,)), [standing("small", takes_tools=False)], "`small-model` takes no tools"),
        (ask(tier="fast"), [standing("small", ranks={"capable": 0})], "there is none"),
    ],
)
def test_who_fits_nobody_is_told_why_and_the_ways_out(
    request_: ModelRequest, standings: list[Standing], says: str
) -> None:
    with pytest.raises(NoModelFits) as caught:
        choose(request_, standings)
    assert says in str(caught.value)
    assert "install Ollama" in str(caught.value)
    assert "[models.backends] in config.toml" in str(caught.value)
    assert caught.value.hint in ("aiosctl model setup", "aiosctl model list")


@pytest.mark.parametrize(
    ("reason", "way"),
    [
        ("Ollama has no model `m`; get it with: aiosctl model pull m", "aiosctl model pull m"),
        ("no Ollama answers at http://h; start it with: ollama serve", "ollama serve"),
        ("get it with: /a/python -m pip install 'aiosd[gguf]'", "/a/python -m pip install 'aiosd[gguf]'"),
        ("no server answers at http://127.0.0.1:9/v1; is it running?", None),
        ("http://h failed with status 500: out of memory", None),
    ],
)
def test_a_reason_that_ends_in_a_command_has_it_as_its_hint(reason: str, way: str | None) -> None:
    with pytest.raises(NoModelFits) as caught:
        choose(ask(), [msgspec.structs.replace(DOWN, down=reason)])
    assert caught.value.hint == (way or "aiosctl model list")
    assert ("install Ollama" in str(caught.value)) == (way is None)


def test_an_unknown_name_is_not_found_and_the_known_ones_are_named() -> None:
    with pytest.raises(NotFound, match="no backend `nobody`; there are: `small`, `cloud`"):
        choose(ask(backend="nobody"), [SMALL, CLOUD])


FAILED = standing("small", 1, down="it broke", tried=True)


@pytest.mark.parametrize(
    ("request_", "standings", "left_s", "reason"),
    [
        (ask(), [SMALL, BIG], None, "the fastest local one of tier balanced"),
        (ask(), [SMALL, CLOUD], None, "the only local one of tier balanced"),
        (ask(), [FAILED, BIG], None, "the next local one of tier balanced"),
        (ask(backend="small"), [SMALL], None, "asked for by name"),
        (ask(), [DOWN, LAN], None, "no local backend is up"),
        (ask(), [LAN], None, "no local backend serves tier balanced"),
        (ask(tools=(TOOL,)), [standing("s", takes_tools=False), LAN], None, "no local backend can take it"),
        (ask(), [FAILED, LAN], None, "no local backend answered"),
        (
            ask(),
            [DOWN, CLOUD],
            None,
            "paid: no local backend is up, $2.50 in and $10.00 out for a million tokens",
        ),
        (
            ask(),
            [here(1, wait_s=12), there(1)],
            None,
            f"paid: the queue of every local one would take 12 s, {CENT}",
        ),
        (
            ask(latency_budget_ms=5000),
            [here(1)],
            5.0,
            "the fastest local one of tier balanced that fits the budget of 5 s",
        ),
        (
            ask(latency_budget_ms=5000),
            [here(9), there(1)],
            5.0,
            f"paid: no local one fits the budget of 5 s, and it does at the least cost, {CENT}",
        ),
        (
            ask(latency_budget_ms=5000),
            [here(9)],
            5.0,
            "none fits the budget of 5 s for certain, and it is predicted to be done first",
        ),
        (ask(), [QUOTES], None, "no model is there, so it quotes"),
        (ask(), [FAILED, QUOTES], None, "no model answered, so it quotes"),
    ],
)
def test_each_choice_gives_its_reason_and_a_paid_one_its_price(
    request_: ModelRequest, standings: list[Standing], left_s: float | None, reason: str
) -> None:
    assert choose(request_, standings, left_s).reason == reason


def test_what_was_rejected_stands_beside_the_choice() -> None:
    made = choose(ask(privacy="local"), [SMALL, CLOUD, LAN])
    assert {c.backend: c.rejected is not None for c in made.rejected} == {"cloud": True, "lan": True}


standings_ = st.builds(
    Standing,
    name=st.sampled_from("abcdef"),
    kind=st.sampled_from(["ollama", "openai", "extractive"]),
    model=st.just("m"),
    local=st.booleans(),
    ranks=st.dictionaries(st.sampled_from(TIERS), st.integers(0, 5)),
    price_in=st.sampled_from([0.0, 1.0]),
    price_out=st.sampled_from([0.0, 1.0]),
    takes_tools=st.booleans(),
    down=st.sampled_from([None, "down"]),
    predicted=st.builds(Prediction, *[st.sampled_from([0.0, 1.0, 20.0])] * 4),
    cost_usd=st.sampled_from([0.0, 0.1]),
)
requests = st.builds(
    ask,
    tier=st.sampled_from(TIERS),
    task_type=st.sampled_from(["reasoning", "coding", "summarization", "embedding"]),
    privacy=st.sampled_from(["any", "local"]),
    backend=st.sampled_from([None, "a", "b"]),
    tools=st.sampled_from([(), (TOOL,)]),
)


@given(
    requests,
    st.lists(standings_, max_size=6, unique_by=lambda s: s.name),
    st.sampled_from([None, -1.0, 0.5, 5.0, 60.0]),
)
def test_whatever_stands_there_the_choice_keeps_its_promises(
    request_: ModelRequest, standings: list[Standing], left_s: float | None
) -> None:
    try:
        made = choose(request_, standings, left_s)
    except (NoModelFits, NotFound):
        return
    able = (made.chosen, *made.others)
    assert all(s.down is None for s in able)
    assert all(s.local for s in able) or not must_stay(request_)
    assert all(s.takes_tools for s in able) or not request_.tools
    assert made.spill is None or (made.chosen.local and not made.spill.local and made.spill in made.others)
    assert made.chosen.kind != "extractive" or all(s.kind == "extractive" for s in able) or request_.backend
    assert made.reason.startswith("paid: ") == made.chosen.paid
    known = [s.name for s in able] + [c.backend for c in made.rejected]
    if request_.backend is None:
        assert sorted(known) == sorted(s.name for s in standings)
    assert choose(request_, standings[::-1], left_s).chosen == made.chosen
    # Without a budget, a paid remote one serves only where no local one is up, or all have long queues.
    local = [s for s in able if s.local and s.kind != "extractive"]
    if left_s is None and request_.backend is None and made.chosen.paid and not made.chosen.local and local:
        assert all(s.predicted.wait_s >= MOST_WAIT_S for s in local if "capable" not in s.ranks)
