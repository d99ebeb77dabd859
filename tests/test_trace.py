"""Where a task's time went: the spans of its journal, `task.trace`, and the waterfall of aiosctl."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from aiosctl.trace import waterfall
from aiosd import records as r
from aiosd.protocol.tasks import TaskTrace
from aiosd.tasks.trace import spans
from tests.daemon import Daemon
from tests.doubles.http_double import Script
from tests.doubles.openai_double import OpenAIDouble

pytestmark = pytest.mark.anyio

START = datetime(2026, 11, 22, 12, tzinfo=UTC)
ID = "01234567-89ab-4cde-8f01-23456789abcd"


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def task(**fields: Any) -> r.Task:
    return r.Task(
        **{
            "task_id": ID,
            "number": 7,
            "session_id": ID,
            "parent_id": None,
            "task": "secret words",
            "state": "completed",
            "priority": "normal",
            "created_at": at(0),
            "started_at": None,
            "ended_at": None,
            "steps": 0,
            "cost_usd": 0.0,
            "result": None,
            "error": None,
            **fields,
        }
    )


def decision(sent_s: float | None) -> r.Decision:
    return r.Decision(tier="balanced", chosen="small", reason="", candidates=(), sent_s=sent_s)


def message(*calls: r.ToolUse) -> dict[str, Any]:
    return {
        "text": "secret words",
        "thinking": "",
        "tool_calls": calls,
        "stop_reason": "end_turn",
        "generated": True,
        "abstained": False,
        "backend": "small",
        "model": "m-1",
        "sources": (),
    }


CALL = r.ToolUse(call_id="c1", name="fetch", arguments={"q": "secret words"})

SLOW = """
import time
from aiosd.tools import tool

@tool(permissions=["*"], read_only=True)
def slow(seconds: float) -> str:
    "Takes its time."
    time.sleep(seconds)
    return "at last"
"""

STORY: list[tuple[float, type[r.Event], dict[str, Any]]] = [
    (0.0, r.StateEvent, {"state": "queued"}),
    (0.1, r.StateEvent, {"state": "working"}),
    (0.3, r.ProgressEvent, {"stage": "recalled"}),
    (0.5, r.ProgressEvent, {"stage": "loading", "detail": "loading m-1"}),
    (0.9, r.ProgressEvent, {"stage": "queued"}),
    (2.0, r.RouteEvent, {"decision": decision(0.6), "began_at": at(0.4), "first_token_at": at(1.5)}),
    (2.0, r.MessageEvent, message(CALL)),
    (2.0, r.UsageEvent, {"usage": r.Tokens(input_tokens=10, output_tokens=5), "cost_usd": 0.25}),
    (2.0, r.ToolCallEvent, {"call_id": "c1", "name": "fetch", "arguments": {}, "status": "in_progress"}),
    (
        2.5,
        r.ApprovalEvent,
        {"call_id": "c1", "name": "fetch", "arguments": {}, "why": "it asks", "rule": None},
    ),
    (
        3.5,
        r.ApprovalEvent,
        {
            "call_id": "c1",
            "name": "fetch",
            "arguments": {},
            "why": "it asks",
            "rule": None,
            "decision": "allow_once",
            "by": "user",
        },
    ),
    (
        4.0,
        r.ToolResultEvent,
        {"call_id": "c1", "name": "fetch", "status": "completed", "text": "secret words"},
    ),
    (5.0, r.RouteEvent, {"decision": decision(0.0), "began_at": at(4.0)}),
    (5.0, r.MessageEvent, message()),
    (5.0, r.UsageEvent, {"usage": r.Tokens(input_tokens=20, output_tokens=7), "cost_usd": 0.5}),
    (5.1, r.StateEvent, {"state": "completed"}),
]


def journal(upto: int = len(STORY)) -> list[Any]:
    return [
        cls(task_id=ID, seq=i, at=at(when), **fields)
        for i, (when, cls, fields) in enumerate(STORY[:upto], start=1)
    ]


def drawn(found: Sequence[r.Span]) -> list[tuple[str, float, float | None, str | None]]:
    names = {span.span_id: span.name for span in found}
    return [
        (
            span.name,
            (span.started_at - START).total_seconds(),
            None if span.ended_at is None else (span.ended_at - START).total_seconds(),
            names.get(span.parent_id or ""),
        )
        for span in found
    ]


def share(found: Sequence[r.Span], start: datetime, end: datetime) -> float:
    """Of the time between the two that lies in some part of the task."""
    covered, upto = 0.0, start
    for span in sorted(found[1:], key=lambda s: s.started_at):
        ended = span.ended_at or end
        covered += max(0.0, (ended - max(span.started_at, upto)).total_seconds())
        upto = max(upto, ended)
    return covered / (end - start).total_seconds()


def test_a_journal_tells_where_every_moment_went() -> None:
    root = "invoke_agent"
    assert drawn(spans(task(), journal())) == [
        (root, 0.0, 5.1, None),
        ("start", 0.0, 0.1, root),
        ("search_memory", 0.1, 0.3, root),
        ("prepare", 0.3, 0.4, root),
        ("chat m-1", 0.4, 2.0, root),
        ("load", 0.5, 0.9, "chat m-1"),
        ("queue", 0.9, 1.0, "chat m-1"),
        ("execute_tool fetch", 2.0, 4.0, root),
        ("approval", 2.5, 3.5, "execute_tool fetch"),
        ("chat m-1", 4.0, 5.0, root),
        ("keep", 5.0, 5.1, root),
    ]


def test_spans_carry_tokens_money_and_times_and_no_content() -> None:
    found = spans(task(), journal())
    assert found[0].attributes["gen_ai.usage.output_tokens"] == 12
    assert found[0].attributes["aiosd.cost_usd"] == 0.75
    (chat, _) = [span for span in found if span.name == "chat m-1"]
    assert chat.attributes["gen_ai.response.time_to_first_chunk"] == 1.1
    assert chat.attributes["gen_ai.response.finish_reasons"] == ["tool_call"]
    assert "secret" not in repr(found)


@pytest.mark.parametrize("upto", range(1, len(STORY)))
def test_the_parts_of_a_cut_short_journal_cover_its_time_too(upto: int) -> None:
    cut = journal(upto)
    end = cut[-1].at + timedelta(seconds=1)
    failed = r.StateEvent(task_id=ID, seq=upto + 1, at=end, state="failed")
    found = spans(task(state="failed"), [*cut, failed])
    assert share(found, at(0), end) == pytest.approx(1.0)
    assert all(span.ended_at is not None for span in found)
    assert any(span.attributes.get("error.type") == "failed" for span in found[1:])


def test_what_goes_on_has_no_end() -> None:
    found = spans(task(state="working"), journal(9))
    assert (found[0].ended_at, found[-1].name, found[-1].ended_at) == (None, "execute_tool fetch", None)


@pytest.mark.parametrize("width", [30, 80, 200])
def test_a_waterfall_fits_its_terminal(width: int) -> None:
    lines = list(waterfall(spans(task(), journal()), at(6), width))
    assert max(map(len, lines)) <= max(width, 40)
    if width == 200:
        assert "30→12 tokens, $0.7500" in lines[0]
        assert lines[4].index("█") < lines[5].index("█") < lines[9].index("█")


async def test_the_parts_lie_in_what_the_caller_waited_for(tmp_path: Path) -> None:
    """How much of it they make up is a matter of what else the machine does: the tests above say that nothing of a
    journal's time is left out."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "slow.py").write_text(SLOW)
    async with OpenAIDouble() as model:
        calling = Script(text=(), calls=(("slow", '{"seconds": 1.5}'),))
        model.scripts = [calling, Script(text=("Done.",))]
        config = f'[models.backends.m]\nkind = "openai"\nmodel = "m"\nurl = "{model.base}"\n'

        def work() -> None:
            with Daemon(tmp_path, config) as daemon:
                session = daemon.session()
                before = datetime.now(UTC)
                result = daemon.run(session, "hello")
                after = datetime.now(UTC)
                found = daemon.call(TaskTrace(task_id=result.task_id)).spans
                ends = [(span.started_at, span.ended_at or after) for span in found]
                assert all(before <= began <= ended <= after for began, ended in ends), drawn(found)
                (slow,) = [span for span in found if span.name == "execute_tool slow"]
                assert slow.ended_at is not None and slow.ended_at - slow.started_at >= timedelta(seconds=1.5)
                shown = daemon.ctl("trace", "@last")
                assert [line.split("\t")[0] for line in shown.stdout.splitlines()] == [s.name for s in found]
                assert "22→14 tokens" in shown.stdout

        await anyio.to_thread.run_sync(work)
