"""What ends a task before its model would: steps, tokens, repetition, and its user."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosd import records as r
from aiosd.errors import Overloaded
from aiosd.models.repetition import EVERY_CHARS, LEAST_CHARS, LEAST_TIMES, WINDOW, repeats_from
from aiosd.protocol.tasks import TaskCancel, TaskGet
from aiosd.tasks.admission import MAX_OPEN, MAX_OPEN_OF_USER, check_room
from tests.daemon import Daemon
from tests.doubles.http_double import Script
from tests.doubles.ollama_double import OllamaDouble

pytestmark = pytest.mark.anyio

T = TypeVar("T")


async def aside(work: Callable[[], T]) -> T:
    return await anyio.to_thread.run_sync(work)


def config(model: OllamaDouble) -> str:
    return f'[models.backends.small]\nkind = "ollama"\nmodel = "small"\nurl = "{model.url}"\n'


def called(expression: str) -> Script:
    return Script(text=("Let me see.",), calls=(("calculator", f'{{"expression": "{expression}"}}'),))


async def test_the_third_call_of_the_same_is_not_made_and_ends_the_task_with_the_reason(
    tmp_path: Path,
) -> None:
    async with OllamaDouble(called("1+1")) as model:
        with Daemon(tmp_path / "home", config(model)) as daemon:
            session = await aside(daemon.session)
            model.scripts = [called("1+1"), called("2+2")]  # which is no row yet
            result = await aside(lambda: daemon.run(session, "Compute"))
            shown = await aside(lambda: daemon.ctl("run", "Compute"))
            task = await aside(lambda: daemon.call(TaskGet(task_id=result.task_id)))
    assert (result.state, result.stop_reason, result.result) == ("completed", "repetition", "Let me see.")
    assert task.steps == 5
    assert "the same call of `calculator` 3 times in a row" in shown.stderr
    assert "the answer stops early: repetition" in shown.stderr


async def test_a_task_that_has_used_its_tokens_takes_no_further_step(tmp_path: Path) -> None:
    async with OllamaDouble() as model:
        with Daemon(tmp_path / "home", config(model)) as daemon:
            session = await aside(daemon.session)
            model.scripts = [called(f"{n}+1") for n in range(10)]  # 18 tokens each
            result = await aside(lambda: daemon.run(session, "Compute", max_total_tokens=40))
    assert result.stop_reason == "max_tokens"
    assert result.usage.input_tokens + result.usage.output_tokens == 3 * 18


async def test_a_reply_that_only_repeats_itself_is_cut_and_its_stream_closed(tmp_path: Path) -> None:
    spun = "Well. " + "To be or not to be. " * 200
    async with OllamaDouble(Script(text=(spun,), fault="hang_after")) as model:
        with Daemon(tmp_path / "home", config(model)) as daemon:
            session = await aside(daemon.session)
            with anyio.fail_after(30):
                result = await aside(lambda: daemon.run(session, "Speak"))
                await model.dropped.wait()
    assert (result.result, result.stop_reason) == ("Well. To be or not to be", "repetition")


@given(st.text(alphabet="ab ", max_size=50), st.text(alphabet="abc", min_size=1, max_size=300))
def test_any_repetition_is_found_and_cut_behind_its_first_time(before: str, unit: str) -> None:
    times = max(LEAST_TIMES, LEAST_CHARS // len(unit)) + 1 + EVERY_CHARS // len(unit)
    cut = repeats_from(before + unit * times)
    assert cut is not None
    assert cut <= len(before) + len(unit)
    assert (before + unit * times).startswith((before + unit)[:cut])


@pytest.mark.parametrize("size", [1, 2, 249, 250, 251, 999, WINDOW // LEAST_TIMES])
def test_the_shortest_repetition_that_counts_is_found_and_a_character_less_is_none(size: int) -> None:
    prose = "".join(f"Line {n} says that {n * n} is the square of {n}.\n" for n in range(300))
    piece = prose[-size:].swapcase().replace("\n", "~")
    long = max(LEAST_CHARS, LEAST_TIMES * size)
    spun = (piece * LEAST_CHARS)[-long:]
    assert repeats_from(prose + spun) == len(prose) + size
    assert repeats_from(prose + "#" + spun[1:]) is None


def test_prose_tables_and_rulers_are_no_repetition() -> None:
    prose = "".join(f"Line {n} says that {n * n} is the square of {n}.\n" for n in range(300))
    table = "| a | b |\n" * (LEAST_CHARS // 12)
    for text in (prose, table, "-" * (LEAST_CHARS - 1), "x" * WINDOW + prose, ""):
        assert repeats_from(text) is None


DAEMONIZING = """
import os, time
from aiosd.tools import tool

@tool(permissions=["*"])
def daemonize(pipe: str) -> str:
    "Leaves its process group twice over."
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        held = os.open(pipe, os.O_WRONLY)
        os.write(held, b"x")
        time.sleep(1000)
    held = os.open(pipe, os.O_WRONLY)
    time.sleep(1000)
"""


async def test_cancelling_kills_what_a_tool_has_daemonized_within_two_seconds(tmp_path: Path) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    (home / "tools").mkdir(parents=True)
    (home / "tools" / "t.py").write_text(DAEMONIZING)
    work.mkdir()
    pipe = work / "pipe"
    os.mkfifo(pipe)
    script = Script(text=("Wait.",), calls=(("daemonize", f'{{"pipe": "{pipe}"}}'),))

    def cancelled(daemon: Daemon) -> tuple[r.Task, float]:
        session = daemon.session(workspace=str(work), write=True)
        task = daemon.start_task(session, "Go")
        with pipe.open("rb") as held:
            assert held.read(1) == b"x"
            began = time.monotonic()
            ended = daemon.call(TaskCancel(task_id=task.task_id))
            assert held.read() == b""  # once nobody holds the other end
            return ended, time.monotonic() - began

    async with OllamaDouble(script) as model:
        with Daemon(home, config(model)) as daemon:
            with anyio.fail_after(60):
                ended, took_s = await aside(lambda: cancelled(daemon))
    assert ended.state == "cancelled" and ended.error is not None
    assert ended.error["data"]["ended"] == ["the tool `daemonize`"]
    assert ended.error["data"]["result"]["result"] == "Wait."
    assert took_s <= 2


@pytest.mark.parametrize(
    ("open_of", "refused"),
    [
        ({}, False),
        ({"ann": MAX_OPEN_OF_USER - 1}, False),
        ({"ann": MAX_OPEN_OF_USER}, True),
        ({"bob": MAX_OPEN_OF_USER, "ann": 1}, False),
        ({"bob": MAX_OPEN - 1}, False),
        ({"bob": MAX_OPEN_OF_USER, "cid": MAX_OPEN - MAX_OPEN_OF_USER}, True),
    ],
)
def test_one_user_cannot_take_all_the_room_there_is(open_of: dict[str, int], refused: bool) -> None:
    if not refused:
        return check_room(open_of, "ann")
    with pytest.raises(Overloaded, match="tasks"):
        check_room(open_of, "ann")


async def test_a_user_whose_room_is_full_is_told_so_and_another_is_served(tmp_path: Path) -> None:
    def filled(daemon: Daemon) -> None:
        ann, bob = daemon.session(user_id="ann"), daemon.session(user_id="bob")
        for _ in range(MAX_OPEN_OF_USER):
            daemon.start_task(ann, "Go")
        with pytest.raises(Overloaded, match="ann has 500 tasks open"):
            daemon.start_task(ann, "Go")
        assert daemon.start_task(bob, "Go").state == "queued"

    async with OllamaDouble(Script(fault="hang")) as model:
        with Daemon(tmp_path, config(model)) as daemon:
            with anyio.fail_after(100):
                await aside(lambda: filled(daemon))
