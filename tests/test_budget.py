"""Money: no cap is ever passed, whatever runs at once, and caps are shown and changed while the daemon runs."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import pytest

from aiosd import records as r
from aiosd.errors import AiosError, BudgetExhausted, InvalidParams, NotFound
from aiosd.protocol.budget import BudgetGet, BudgetSet
from aiosd.protocol.tasks import TaskCancel, TaskWait
from tests.daemon import Daemon
from tests.doubles.http_double import Script
from tests.doubles.ollama_double import OllamaDouble
from tests.doubles.openai_double import OpenAIDouble
from tests.test_runs import aside

pytestmark = pytest.mark.anyio

PRICE_USD = 0.05
"""Of each reply, which is also the most that it can cost: 100 tokens of output, and none of input are paid for."""
CAP_USD = 2.00
FIT = 40
"""Replies that the cap has room for."""


class Metered(OpenAIDouble):
    """A hosted model: it bills every request that reaches it, and answers none before `together` are there."""

    def __init__(self, together: int = 1) -> None:
        super().__init__()
        self.usage = {"prompt_tokens": 11, "completion_tokens": 100, "total_tokens": 111}
        self.together = together
        self.billed_usd = 0.0
        self._enough = anyio.Event()

    async def _answer(self, seen: Any, reader: Any, writer: Any) -> None:
        if seen.path.endswith("/chat/completions"):
            self.billed_usd += PRICE_USD
            self.together -= 1
            if self.together == 0:
                self._enough.set()
            await self._enough.wait()
        await super()._answer(seen, reader, writer)


def config(paid: Metered, local: OllamaDouble | None = None, day_usd: float | None = CAP_USD) -> str:
    text = "" if day_usd is None else f"[budget]\nday_usd = {day_usd}\n"
    text += (
        "[models.tiers]\ncapable = ['there']\n"
        + ("fast = ['here']\n" if local is not None else "")
        + f'[models.backends.there]\nkind = "openai"\nmodel = "m"\nurl = "{paid.base}"\nlocal = false\n'
        f"slots = 64\nprice_out = {PRICE_USD / 100 * 1e6}\n"
    )
    if local is not None:
        text += f'[models.backends.here]\nkind = "ollama"\nmodel = "small"\nurl = "{local.url}"\nslots = 4\n'
    return text


def ask(
    daemon: Daemon, session: r.Session, tier: r.Tier = "capable", **rest: Any
) -> r.TaskResult | AiosError:
    try:
        return daemon.run(session, "Hello", tier=tier, max_tokens=100, tools=(), **rest)
    except AiosError as exc:
        return exc


async def test_fifty_tasks_at_once_never_pass_the_days_cap_and_local_work_goes_on(tmp_path: Path) -> None:
    """As many as the cap has room for are under way at the same time; the meter is the model's own."""
    async with Metered(FIT) as paid, OllamaDouble() as local:

        def work() -> tuple[list[r.TaskResult | AiosError], list[r.TaskResult | AiosError], float]:
            with Daemon(tmp_path / "home", config(paid, local)) as daemon, ThreadPoolExecutor(60) as threads:
                session = daemon.session(permissions=())
                dear = [threads.submit(ask, daemon, session) for _ in range(50)]
                free = [threads.submit(ask, daemon, session, "fast") for _ in range(10)]
                outcomes = [each.result() for each in dear]
                (day,) = daemon.call(BudgetGet()).limits
                return outcomes, [each.result() for each in free], day.spent_usd

        outcomes, free, spent = await aside(work)
        assert len(paid.chats()) == FIT
    assert paid.billed_usd == pytest.approx(CAP_USD)
    assert round(paid.billed_usd, 9) <= CAP_USD
    assert spent == pytest.approx(paid.billed_usd)
    done = [each for each in outcomes if isinstance(each, r.TaskResult)]
    refused = [each for each in outcomes if isinstance(each, BudgetExhausted)]
    assert (len(done), len(refused)) == (FIT, 10)
    assert all("nothing was sent" in str(exc) for exc in refused)
    assert all(isinstance(each, r.TaskResult) and each.backend == "here" for each in free)


async def test_a_session_and_a_task_have_caps_of_their_own(tmp_path: Path) -> None:
    async with Metered() as paid:

        def work() -> list[r.TaskResult | AiosError]:
            with Daemon(tmp_path / "home", config(paid, day_usd=None)) as daemon:
                session, other = daemon.session(max_usd=0.12), daemon.session()
                small = ask(daemon, other, max_usd=0.04)
                outcomes = [small, *(ask(daemon, session) for _ in range(3)), ask(daemon, other)]
                daemon.call(BudgetSet(session_id=session.session_id, max_usd=0.15))
                return [*outcomes, ask(daemon, session), ask(daemon, session)]

        small, first, second, third, other, raised, over = await aside(work)
        assert len(paid.chats()) == 4
    for exc, cap in ((small, "task"), (third, "session"), (over, "session")):
        assert isinstance(exc, BudgetExhausted) and f"the {cap}'s cap" in str(exc)
    assert all(isinstance(each, r.TaskResult) for each in (first, second, other, raised))
    assert isinstance(third, AiosError)
    assert (third.hint or "").startswith("aiosctl budget set --session ") and (third.hint or "").endswith(
        " 0.15"
    )


async def test_a_cap_that_is_set_holds_over_a_restart_until_the_config_is_asked_for(tmp_path: Path) -> None:
    async with Metered() as paid:

        def work() -> list[str]:
            with Daemon(tmp_path / "home", config(paid)) as daemon:
                ask(daemon, daemon.session())
                shown = [daemon.ctl("budget", "show").stdout, daemon.ctl("budget", "set", "0.07").stdout]
                daemon.stop()
                daemon.start()
                refused = daemon.ctl("model", "infer", "--tier", "capable", "--max-tokens", "100", "Hi")
                assert refused.returncode == 77
                assert "the day's cap of $0.07 has $0.02" in refused.stderr
                assert "  try: aiosctl budget set 0.10" in refused.stderr
                for usd in ("none", "config"):
                    document = daemon.ctl("budget", "set", usd, "--json").stdout
                    shown.append(str(json.loads(document)["limits"][0]["cap_usd"]))
                return shown

        shown = await aside(work)
    assert shown == [
        "day\t2.0000\t0.0500\t0.0000\t1.9500\n",
        "day\t0.0700\t0.0500\t0.0000\t0.0200\n",
        "None",
        "2.0",
    ]


def test_a_cap_that_is_none_is_refused_and_nothing_changes(daemon: Daemon) -> None:
    session = daemon.session(max_usd=1.0)
    sid = session.session_id
    bad: list[tuple[BudgetSet, type[AiosError], str]] = [
        (BudgetSet(day_usd=-1.0), InvalidParams, "day_usd: expected dollars, 0 or more, got -1"),
        (BudgetSet(session_id=sid, max_usd=-0.5), InvalidParams, "max_usd: expected dollars"),
        (BudgetSet(session_id=sid), InvalidParams, "both session_id and max_usd"),
        (BudgetSet(), InvalidParams, "expected day_usd"),
        (BudgetSet(day_usd=1.0, session_id="x", max_usd=1.0), NotFound, "no session"),
    ]
    for params, kind, text in bad:
        with pytest.raises(kind, match=text):
            daemon.call(params)
    day, of_session = daemon.call(BudgetGet(session_id=sid)).limits
    assert (day.cap_usd, day.left_usd, of_session.cap_usd, of_session.left_usd) == (None, None, 1.0, 1.0)
    wrong = daemon.ctl("budget", "set", "much")
    assert wrong.returncode == 2 and "expected dollars or none, got `much`" in wrong.stderr


async def test_a_reply_that_a_cancel_or_a_kill_cut_short_counts_at_the_most_it_can_cost(
    tmp_path: Path,
) -> None:
    """Its server bills it, and nobody hears how much."""
    async with Metered() as paid:
        with Daemon(tmp_path / "home", config(paid)) as daemon:
            session = await aside(lambda: daemon.session(permissions=()))

            async def begun() -> r.Task:
                paid.script, paid.arrived = Script(text=("half",), fault="hang_after"), asyncio.Event()
                task = await aside(
                    lambda: daemon.start_task(session, "Hello", tier="capable", max_tokens=100, tools=())
                )
                with anyio.fail_after(30):
                    await paid.arrived.wait()
                return task

            task = await begun()
            cancelled = await aside(lambda: daemon.call(TaskCancel(task_id=task.task_id)))
            task = await begun()
            await aside(daemon.kill)
            paid.script = Script()
            await aside(daemon.start)
            killed = await aside(lambda: daemon.call(TaskWait(task_id=task.task_id)))
            (day,) = (await aside(lambda: daemon.call(BudgetGet()))).limits
    assert cancelled.cost_usd == PRICE_USD
    assert killed.cost_usd == 2 * PRICE_USD
    assert day.spent_usd == pytest.approx(paid.billed_usd) == pytest.approx(3 * PRICE_USD)
