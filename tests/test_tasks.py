"""The rules of a task: what comes next, what a model is sent, what may be spent, who hears of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosd import records as r
from aiosd.errors import BudgetExhausted
from aiosd.events import BACKLOG, Broker
from aiosd.protocol.sessions import SessionRun
from aiosd.state import sessions, tasks
from aiosd.state.database import Connection, Database, open_database
from aiosd.state.upgrade import LedgerFailed
from aiosd.tasks import context, steps
from aiosd.tasks.agent import Agent
from aiosd.tasks.approval import Approvals
from aiosd.tasks.budget import Budget, Cap, check
from aiosd.tasks.hands import Hands
from aiosd.tasks.runner import Runner
from tests.daemon import Daemon

pytestmark = pytest.mark.anyio

T = TypeVar("T")

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
TASK = str(uuid4())


def event(cls: type[Any], **fields: Any) -> Any:
    return cls(task_id=TASK, seq=1, at=NOW, **fields)


def message(*calls: str, text: str = "", backend: str = "b") -> r.MessageEvent:
    uses = tuple(r.ToolUse(call_id=c, name=f"tool_{c}", arguments={}) for c in calls)
    found: r.MessageEvent = event(
        r.MessageEvent,
        text=text,
        thinking="",
        tool_calls=uses,
        stop_reason="end_turn",
        generated=True,
        abstained=False,
        backend=backend,
        model="m",
        sources=(),
    )
    return found


def begun(call: str, status: str = "in_progress") -> Any:
    return event(r.ToolCallEvent, call_id=call, name=f"tool_{call}", arguments={}, status=status)


def ended(call: str) -> Any:
    return event(r.ToolResultEvent, call_id=call, name=f"tool_{call}", status="completed", text="t")


WORKING = event(r.StateEvent, state="working")
RECALLED = event(r.ProgressEvent, stage="recalled")
QUEUED = event(r.ProgressEvent, stage="queued", detail="place 2")


@pytest.mark.parametrize(
    ("journal", "action"),
    [
        ([], steps.Recall),
        ([WORKING], steps.Recall),
        ([WORKING, QUEUED], steps.Recall),
        ([WORKING, RECALLED], steps.Infer),
        ([WORKING, RECALLED, QUEUED], steps.Infer),
        ([WORKING, RECALLED, message("a")], steps.CallTools),
        ([WORKING, RECALLED, message("a"), begun("a")], steps.Doubt),
        ([WORKING, RECALLED, message("a"), begun("a"), begun("a", "unknown")], steps.Doubt),
        ([WORKING, RECALLED, message("a"), begun("a", "unknown"), begun("a", "pending")], steps.CallTools),
        ([WORKING, RECALLED, message("a", "b"), begun("a"), ended("a")], steps.CallTools),
        ([WORKING, RECALLED, message("a", "b"), begun("a"), begun("b"), ended("b")], steps.Doubt),
        ([WORKING, RECALLED, message("a"), begun("a"), ended("a")], steps.Infer),
        ([WORKING, RECALLED, message("a"), begun("a"), ended("a"), message("a")], steps.CallTools),
        ([WORKING, RECALLED, message()], steps.Answer),
    ],
)
def test_the_next_step_follows_from_the_journal_alone(journal: Sequence[r.Kept], action: type) -> None:
    assert type(steps.next(journal)) is action


def test_a_call_in_doubt_is_made_again_only_if_that_does_no_harm() -> None:
    journal = [WORKING, RECALLED, message("a", "b"), begun("a"), begun("b"), ended("b")]
    assert isinstance(steps.next(journal, repeatable={"tool_a"}), steps.CallTools)
    assert isinstance(steps.next(journal, repeatable={"tool_b"}), steps.Doubt)


def test_only_the_calls_without_a_result_are_made() -> None:
    action = steps.next([WORKING, RECALLED, message("a", "b"), begun("a"), ended("a")])
    assert isinstance(action, steps.CallTools)
    assert [call.call_id for call in action.calls] == ["b"]


def test_an_agent_that_always_wants_a_tool_ends_at_its_step_limit() -> None:
    journal: list[r.Kept] = [WORKING, RECALLED]
    for n in range(100):
        match steps.next(journal, max_steps=5):
            case steps.Infer():
                journal.append(message(f"c{n}"))
            case steps.CallTools(calls):
                journal += [e for c in calls for e in (begun(c.call_id), ended(c.call_id))]
            case steps.Answer() as answer:
                assert answer.stopped == "max_steps"
                assert sum(isinstance(e, r.MessageEvent) for e in journal) == 5
                return
    raise AssertionError("it never ended")


# --- privacy: no text that must stay is in what a remote backend is sent ---------------------------------------

SECRET = "SECRET"
texts = st.text(alphabet="abc ", min_size=1, max_size=20)
privacies: st.SearchStrategy[r.Privacy] = st.sampled_from(["any", "local"])


@st.composite
def turns(draw: st.DrawFn) -> r.Turn:
    privacy = draw(privacies)
    return r.Turn(
        role=draw(st.sampled_from(["user", "assistant", "note"])),
        content=draw(texts) + (SECRET if privacy == "local" else ""),
        created_at=NOW,
        task_id=None,
        privacy=privacy,
    )


@st.composite
def memories(draw: st.DrawFn) -> r.ScoredMemory:
    privacy = draw(privacies)
    return r.ScoredMemory(
        memory_id=str(uuid4()),
        user_id="ann",
        session_id=str(uuid4()),
        content=draw(texts) + (SECRET if privacy == "local" else ""),
        speaker=None,
        kind=draw(st.sampled_from(["note", "task"])),
        source="user",
        trust=1.0,
        privacy=privacy,
        created_at=NOW,
        metadata={},
        score=0.5,
    )


def session(privacy: r.Privacy) -> r.Session:
    return r.Session(
        session_id=str(uuid4()),
        user_id="ann",
        title="t",
        agent=None,
        permissions=(),
        privacy=privacy,
        priority="normal",
        max_usd=None,
        workspace=None,
        write=False,
        state="open",
        created_at=NOW,
        used_at=NOW,
    )


def route(backend: str, *, local: bool) -> Any:
    candidate = r.Candidate(backend=backend, model="m", local=local)
    decision = r.Decision(tier="balanced", chosen=backend, reason="", candidates=(candidate,))
    return event(r.RouteEvent, decision=decision)


@given(st.lists(turns(), max_size=30), st.lists(memories(), max_size=6), privacies, st.lists(st.booleans()))
async def test_what_must_stay_is_never_in_what_may_leave(
    spoken: list[r.Turn], recalled: list[r.ScoredMemory], privacy: r.Privacy, local_replies: list[bool]
) -> None:
    journal: list[r.Kept] = [WORKING, event(r.ProgressEvent, stage="recalled", memories=tuple(recalled))]
    params = SessionRun(session_id="s", task="the task")
    for local in [*local_replies, False]:
        request = context.request(session(privacy), None, params, spoken, journal, (), "balanced")
        seen_by_remote = request.messages if request.public is None else request.public
        if request.privacy == "any":
            assert SECRET not in repr(seen_by_remote)
        everything: list[r.Turn | r.ScoredMemory] = [*spoken, *recalled]
        held = [x for x in everything if x.privacy == "local"]
        if request.public is not None:
            assert request.withheld == len(held)
        # A model on this machine repeats what it was told: so everything after it may hold the secret.
        told = SECRET if local and held else ""
        if local or request.privacy == "any":
            backend = "here" if local else "there"
            journal += [route(backend, local=local), message(text=told, backend=backend)]


async def test_what_was_asked_before_is_no_passage_to_quote() -> None:
    def remembered(kind: str) -> r.ScoredMemory:
        return r.ScoredMemory(
            memory_id=kind,
            user_id="ann",
            session_id="s",
            content=kind,
            speaker=None,
            kind=kind,
            source="user",
            trust=1.0,
            privacy="any",
            created_at=NOW,
            metadata={},
            score=0.5,
        )

    journal = [event(r.ProgressEvent, stage="recalled", memories=(remembered("task"), remembered("note")))]
    params = SessionRun(session_id="s", task="t", inputs=(r.Input(name="a.txt", text="b"),))
    request = context.request(session("any"), None, params, (), journal, (), "balanced")
    assert [(s.kind, s.ref) for s in request.passages] == [("memory", "note"), ("input", "a.txt")]
    assert request.messages[-1].content == "t"


# --- money ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usd", "caps", "refused"),
    [
        (1.0, [], None),
        (1.0, [Cap("day", None, 100.0, 100.0)], None),
        (1.0, [Cap("day", 2.0, 0.5, 0.5)], None),
        (1.01, [Cap("day", 2.0, 0.5, 0.5)], "day"),
        (0.01, [Cap("task", 1.0, 0.0, 0.0), Cap("session", 0.0, 0.0, 0.0)], "session"),
        (0.5, [Cap("task", 1.0, 2.0, 0.0)], "task"),
    ],
)
def test_a_dispatch_that_could_pass_a_cap_is_refused(
    usd: float, caps: list[Cap], refused: str | None
) -> None:
    if refused is None:
        check(usd, caps)
    else:
        with pytest.raises(BudgetExhausted, match=f"the {refused}'s cap") as caught:
            check(usd, caps)
        assert caught.value.data["left_usd"] >= 0


async def test_fifty_tasks_at_once_never_spend_more_than_the_days_cap(tmp_path: Path) -> None:
    async with open_database(tmp_path / "db") as database:
        budget = Budget(database, 2.00, lambda: NOW)
        ours = session("any")
        await database.write(lambda c: sessions.insert(c, ours, system=None))
        refused = 0

        async def spend() -> None:
            nonlocal refused
            task_id = str(uuid4())
            params = SessionRun(session_id=ours.session_id, task="t")
            await database.write(
                lambda c: tasks.insert(
                    c, task_id, ours.session_id, params=params, priority="normal", created_at=NOW
                )
            )
            for seq in (1, 2):
                try:
                    await budget.hold(ours, task_id, None, 0.10)
                except BudgetExhausted:
                    refused += 1
                    return
                cost = r.UsageEvent(task_id=task_id, seq=seq, at=NOW, usage=r.Tokens(), cost_usd=0.07)
                await database.write(lambda c, cost=cost: tasks.append(c, cost))  # type: ignore[misc]
                await budget.release(task_id)

        async with anyio.create_task_group() as together:
            for _ in range(50):
                together.start_soon(spend)
        total = await database.read(lambda c: tasks.spent(c, since=NOW))
        assert 1.00 < total <= 2.00
        assert refused > 0


# --- watching ----------------------------------------------------------------------------------------------


def text(offset: int, words: str) -> r.TextEvent:
    return r.TextEvent(task_id=TASK, seq=1, at=NOW, offset=offset, text=words)


async def test_deltas_that_wait_are_merged_and_kept_events_stay_in_order() -> None:
    broker = Broker()
    with broker.watch(TASK) as watcher:
        broker.publish(WORKING, text(0, "a"), text(1, "b"), RECALLED, text(2, "c"))
        got = await watcher.next()
    assert got == [WORKING, text(0, "ab"), RECALLED, text(2, "c")]


async def test_a_watcher_too_far_behind_is_sent_to_the_ledger() -> None:
    broker = Broker()
    with broker.watch(TASK) as watcher:
        broker.publish(*[WORKING] * (BACKLOG + 1))
        assert await watcher.next() is None
        broker.publish(RECALLED)
        assert await watcher.next() == [RECALLED]


async def test_deltas_for_a_reader_that_does_not_read_are_bounded() -> None:
    broker = Broker()
    with broker.watch(TASK) as watcher:
        for i in range(100_000):
            broker.publish(text(i * 10, "x" * 10))
        got = await watcher.next()
    assert got is not None
    assert sum(len(e.text) for e in got if isinstance(e, r.TextEvent)) < 100_000


async def test_watching_a_task_that_nobody_works_on_ends(tmp_path: Path) -> None:
    async with open_database(tmp_path / "db") as database, anyio.create_task_group() as running:
        ours = session("any")
        await database.write(lambda c: sessions.insert(c, ours, system=None))
        params = SessionRun(session_id=ours.session_id, task="t")

        def leave(c: Connection) -> None:
            tasks.insert(c, TASK, ours.session_id, params=params, priority="normal", created_at=NOW)
            tasks.append(c, r.StateEvent(task_id=TASK, seq=1, at=NOW, state="queued"))

        await database.write(leave)
        hands = Hands(
            database=database,
            broker=Broker(),
            memory=None,  # type: ignore[arg-type]  # nothing runs here
            registry=None,  # type: ignore[arg-type]
            pool=None,  # type: ignore[arg-type]
            budget=Budget(database, None, lambda: NOW),
            agents={},
            consolidation=None,  # type: ignore[arg-type]
            approvals=Approvals(database, None),  # type: ignore[arg-type]
        )
        with anyio.fail_after(30):
            assert [e.seq async for e in Runner(hands, running).watch(TASK)] == [1]


def test_every_kept_event_reaches_every_watcher_once_and_before_the_answer(daemon: Daemon) -> None:
    result = daemon.run(daemon.session(), "What is 2 + 3?")
    for after in (0, 2):
        lines = daemon.raw(
            b'{"jsonrpc":"2.0","id":1,"method":"task.attach","params":{"task_id":"%s","after_seq":%d}}\n'
            % (result.task_id.encode(), after)
        ).splitlines()
        assert b'"id":1' in lines[-1]
        events = [_event(line) for line in lines[:-1]]
        assert [e["seq"] for e in events] == list(range(after + 1, after + 1 + len(events)))
        assert (events[-1]["kind"], events[-1]["state"]) == ("state", "completed")
    kinds = {e["kind"] for e in events}
    assert {"route", "message", "tool_call", "tool_result", "usage"} <= kinds


def _event(line: bytes) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(line)["params"]
    return parsed


class FullOnce(Database):
    """Has no room for the first change that comes through it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._is_full = True

    async def write(self, change: Callable[[Connection], T]) -> T:
        if self._is_full:
            self._is_full = False
            raise LedgerFailed("the ledger failed: database or disk is full")
        return await self._database.write(change)


async def test_what_could_not_be_kept_is_kept_with_what_follows_it(tmp_path: Path) -> None:
    async with open_database(tmp_path / "db") as database:
        ours = session("any")
        params = SessionRun(session_id=ours.session_id, task="t")
        queued = r.StateEvent(task_id=TASK, seq=1, at=NOW, state="queued")

        def start(c: Connection) -> r.Task:
            sessions.insert(c, ours, system=None)
            task = tasks.insert(c, TASK, ours.session_id, params=params, priority="normal", created_at=NOW)
            tasks.append(c, queued)
            return task

        task = await database.write(start)
        hands = Hands(
            database=FullOnce(database),
            broker=Broker(),
            memory=None,  # type: ignore[arg-type]  # nothing runs here
            registry=None,  # type: ignore[arg-type]
            pool=None,  # type: ignore[arg-type]
            budget=Budget(database, None, lambda: NOW),
            agents={},
            consolidation=None,  # type: ignore[arg-type]
            approvals=Approvals(database, None),  # type: ignore[arg-type]
        )
        agent = Agent(hands, ours, None, task, params, (queued,), (), (0, 0))
        with pytest.raises(LedgerFailed):
            await agent._record(agent._new(r.StateEvent, state="working"))
        await agent._record(agent._new(r.ProgressEvent, stage="recalled"))
        kept = await database.read(lambda c: tasks.events(c, TASK))
    assert [event.seq for event in kept] == [1, 2, 3]
