"""Who is asked, in which order, as a table: no sockets, no clock."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosd.config import TIERS
from aiosd.errors import NoModelFits, NotFound
from aiosd.models.backend import Message, ModelRequest, ToolSpec
from aiosd.models.router import Standing, must_stay, plan

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
CLOUD = standing("cloud", 0, kind="openai", local=False, price_in=2.5, price_out=10.0)
QUOTES = standing("extractive", 4, kind="extractive", model="extractive")
DOWN = standing("small", 1, down="nothing answers at http://127.0.0.1:11434")


@pytest.mark.parametrize(
    ("request_", "standings", "order"),
    [
        (ask(), [CLOUD, LAN, BIG, SMALL], ["small", "big", "cloud", "lan"]),
        (ask(), [CLOUD, DOWN], ["cloud"]),
        (ask(), [standing("b"), standing("a")], ["a", "b"]),
        (ask(backend="cloud"), [SMALL, CLOUD], ["cloud"]),
        (ask(backend="big"), [SMALL, standing("big", ranks={})], ["big"]),
        (ask(tier="fast"), [SMALL, standing("big", ranks={"capable": 0})], ["small"]),
        (ask(privacy="local"), [CLOUD, LAN, SMALL], ["small"]),
        (ask(task_type="embedding"), [CLOUD, LAN, SMALL], ["small"]),
        (ask(tools=(TOOL,)), [standing("small", takes_tools=False), BIG], ["big"]),
        (
            ask(),
            [standing("extractive", 0, kind="extractive"), CLOUD, SMALL],
            ["small", "cloud", "extractive"],
        ),
    ],
)
def test_order(request_: ModelRequest, standings: list[Standing], order: list[str]) -> None:
    assert [attempt.name for attempt in plan(request_, standings).attempts] == order


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
        plan(request_, standings)
    assert says in str(caught.value)
    assert "install Ollama" in str(caught.value)
    assert "[models.backends] in config.toml" in str(caught.value)
    assert caught.value.hint in ("aiosctl model setup", "aiosctl model list")


def test_an_unknown_name_is_not_found_and_the_known_ones_are_named() -> None:
    with pytest.raises(NotFound, match="no backend `nobody`; there are: `small`, `cloud`"):
        plan(ask(backend="nobody"), [SMALL, CLOUD])


@pytest.mark.parametrize(
    ("request_", "standings", "reasons"),
    [
        (
            ask(),
            [SMALL, BIG],
            ["the first local one of tier balanced", "the next local one of tier balanced"],
        ),
        (ask(backend="small"), [SMALL], ["asked for by name"]),
        (ask(), [DOWN, LAN], ["no local backend is up"]),
        (ask(), [LAN], ["no local backend serves tier balanced"]),
        (ask(tools=(TOOL,)), [standing("s", takes_tools=False), LAN], ["no local backend can take it"]),
        (ask(), [SMALL, LAN], ["the first local one of tier balanced", "no local backend answered"]),
        (
            ask(),
            [DOWN, CLOUD],
            ["paid: no local backend is up, $2.50 in and $10.00 out for a million tokens"],
        ),
        (ask(), [QUOTES], ["no model is there, so it quotes"]),
    ],
)
def test_each_attempt_gives_its_reason_and_a_paid_one_its_price(
    request_: ModelRequest, standings: list[Standing], reasons: list[str]
) -> None:
    assert [attempt.reason for attempt in plan(request_, standings).attempts] == reasons


def test_what_was_rejected_stands_beside_the_plan() -> None:
    made = plan(ask(privacy="local"), [SMALL, CLOUD, LAN])
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
)
requests = st.builds(
    ask,
    tier=st.sampled_from(TIERS),
    task_type=st.sampled_from(["reasoning", "coding", "summarization", "embedding"]),
    privacy=st.sampled_from(["any", "local"]),
    backend=st.sampled_from([None, "a", "b"]),
    tools=st.sampled_from([(), (TOOL,)]),
)


@given(requests, st.lists(standings_, max_size=6, unique_by=lambda s: s.name))
def test_whatever_stands_there_the_plan_keeps_its_promises(
    request_: ModelRequest, standings: list[Standing]
) -> None:
    by_name = {s.name: s for s in standings}
    try:
        made = plan(request_, standings)
    except (NoModelFits, NotFound):
        return
    chosen = [by_name[attempt.name] for attempt in made.attempts]
    assert chosen
    assert all(s.down is None for s in chosen)
    assert all(s.local for s in chosen) or not must_stay(request_)
    assert all(s.takes_tools for s in chosen) or not request_.tools
    models = [s for s in chosen if s.kind != "extractive"]
    assert [s.local for s in models] == sorted((s.local for s in models), reverse=True)
    assert all(
        s.local or a.reason.startswith("paid: ") == s.paid for s, a in zip(chosen, made.attempts, strict=True)
    )
    assert plan(request_, standings[::-1]).attempts == made.attempts
