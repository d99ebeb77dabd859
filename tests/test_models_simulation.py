"""The rules of the pool against simpler ones, in the simulation: as many seeds as are reported."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

SEEDS = range(10, 30)


@pytest.fixture(scope="module")
def sim() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).parents[1] / "contrib/bench/simulation.py"))


def row(sim: dict[str, Any], rule: str, per_s: float, fault: str = "") -> Any:
    return sim["mean"]([sim["row"](sim["RULES"][rule](seed, per_s, fault).run()) for seed in SEEDS])


@pytest.mark.parametrize(
    ("per_s", "fault", "most_missed"),
    [(0.2, "", 5.5), (0.4, "", 8.7), (0.2, "429", 9.0), (0.2, "both", 10.0)],
)
def test_fewer_budgets_are_missed_for_less_money_and_nothing_private_leaves(
    sim: dict[str, Any], per_s: float, fault: str, most_missed: float
) -> None:
    ours, least_busy = row(sim, "aiosd", per_s, fault), row(sim, "least-busy", per_s, fault)
    assert ours.missed <= most_missed
    assert ours.missed <= least_busy.missed
    assert ours.usd_per_1000 < least_busy.usd_per_1000
    assert (ours.failed, ours.leaks) == (0, 0)
