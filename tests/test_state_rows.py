"""Sessions, turns, tasks and events in the ledger: what is put in comes out, page by page, and stays apart."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosd.errors import InvalidParams, InvalidState, NotFound
from aiosd.protocol.sessions import SessionRun
from aiosd.records import (
    Candidate,
    Decision,
    Input,
    Kept,
    Memory,
    MessageEvent,
    ProgressEvent,
    RouteEvent,
    Session,
    Source,
    StateEvent,
    Task,
    TaskResult,
    TaskState,
    Tokens,
    ToolCallEvent,
    ToolResultEvent,
    ToolUse,
    Turn,
    UsageEvent,
)
from aiosd.state import columns, memories, sessions, tasks
from aiosd.state.database import Connection, connect, counts, open_database
from aiosd.state.migrations import SCRIPTS
from aiosd.state.upgrade import APPLICATION_ID

T0 = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
PAGES = 50
"""More than there can be in these tests."""
NOBODY = str(UUID(int=404))


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    c = connect(tmp_path_factory.mktemp("ledger") / "aiosd.db")
    yield c
    c.close()


@contextmanager
def undone(c: Connection) -> Iterator[None]:
    """What is written within is taken back, so that many examples share one file."""
    c.execute("BEGIN")
    try:
        yield
    finally:
        c.execute("ROLLBACK")


@pytest.fixture
def c(ledger: Connection) -> Iterator[Connection]:
    with undone(ledger):
        yield ledger


def session(**changes: Any) -> Session:
    return msgspec.structs.replace(
        Session(
            session_id=str(uuid4()),
            user_id="ada",
            title="thesis",
            agent=None,
            permissions=("memory", "read(src/**)"),
            privacy="local",
            priority="background",
            max_usd=0.25,
            workspace="/home/ada/thesis",
            write=True,
            state="open",
            created_at=T0,
            used_at=T0,
        ),
        **changes,
    )


def a_session(c: Connection, **changes: Any) -> str:
    new = session(**changes)
    sessions.insert(c, new, system=None)
    return new.session_id


def a_task(c: Connection, session_id: str, **changes: Any) -> Task:
    return tasks.insert(
        c,
        str(uuid4()),
        session_id,
        params=SessionRun(session_id=session_id, task="count the words"),
        priority="normal",
        created_at=T0,
        **changes,
    )


def turn(text: str, at: datetime = T0) -> Turn:
    return Turn(role="user", content=text, created_at=at, task_id=None, privacy="any")


def state(task_id: str, seq: int, state: TaskState, after_s: float = 0) -> StateEvent:
    return StateEvent(task_id=task_id, seq=seq, at=T0 + timedelta(seconds=after_s), state=state)


def usage(task_id: str, seq: int, cost_usd: float, after_s: float = 0) -> UsageEvent:
    return UsageEvent(
        task_id=task_id, seq=seq, at=T0 + timedelta(seconds=after_s), usage=Tokens(), cost_usd=cost_usd
    )


DECISION = Decision(
    tier="fast",
    chosen="small",
    reason="the only local one",
    candidates=(Candidate(backend="small", model="m", local=True),),
    took_s=0.5,
)
SOURCE = Source(kind="file", ref="README.md:42", text="aiosd is a daemon")


def journal(task_id: str) -> tuple[Kept, ...]:
    """One event of every kind."""
    at = T0 + timedelta(seconds=1)
    arguments = {"path": "README.md", "deep": {"list": [1, None, 2.5, "ß\0"]}, "big": 10**30}
    return (
        state(task_id, 1, "working", 1),
        ProgressEvent(task_id=task_id, seq=2, at=at, stage="recalled"),
        RouteEvent(task_id=task_id, seq=3, at=at, decision=DECISION),
        MessageEvent(
            task_id=task_id,
            seq=4,
            at=at,
            text="let me look",
            thinking="hm",
            tool_calls=(ToolUse(call_id="1", name="read_file", arguments=arguments),),
            stop_reason="end_turn",
            generated=True,
            abstained=False,
            backend="small",
            model="m",
            sources=(SOURCE,),
        ),
        ToolCallEvent(
            task_id=task_id,
            seq=5,
            at=at,
            call_id="1",
            name="read_file",
            arguments=arguments,
            status="in_progress",
        ),
        ToolResultEvent(
            task_id=task_id,
            seq=6,
            at=at,
            call_id="1",
            name="read_file",
            status="completed",
            text="# aiosd",
            sources=(SOURCE,),
        ),
        UsageEvent(
            task_id=task_id,
            seq=7,
            at=at,
            usage=Tokens(input_tokens=1000, output_tokens=20),
            cost_usd=0.002,
        ),
        state(task_id, 8, "completed", 2),
    )


def outcome(task: Task) -> TaskResult:
    return TaskResult(
        task_id=task.task_id,
        session_id=task.session_id,
        state="completed",
        result={"words": 7},
        stop_reason="end_turn",
        generated=True,
        abstained=False,
        backend="small",
        model="m",
        sources=(SOURCE,),
        usage=Tokens(input_tokens=1000, output_tokens=20),
        cost_usd=0.002,
        decision=DECISION,
    )


# --- columns -------------------------------------------------------------------------------------------


aware = st.datetimes(
    min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30), timezones=st.timezones()
) | st.datetimes(timezones=st.just(UTC))


@given(aware, aware)
def test_times_come_back_exactly_in_utc_and_sort_as_they_are(one: datetime, other: datetime) -> None:
    back = columns.moment(columns.micros(one))
    assert back == one.astimezone(UTC)
    assert back.tzinfo is UTC
    assert (columns.micros(one) < columns.micros(other)) == (one.astimezone(UTC) < other.astimezone(UTC))


def test_a_time_that_is_no_moment_is_refused() -> None:
    with pytest.raises(InvalidParams, match="has no zone"):
        columns.micros(datetime(2026, 1, 1))
    with pytest.raises(InvalidParams, match="outside the years"):
        columns.micros(datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14))))


NO_IDS = ["", "7", "' OR 1 --", "\0", "\ud800", "x" * 10_000, str(UUID(int=1)) + "\n", "{" + NOBODY + "}"]


@pytest.mark.parametrize("id", [*NO_IDS, NOBODY])
def test_an_id_that_is_none_or_nobodys_is_not_found(c: Connection, id: str) -> None:
    asked: list[Callable[[Connection, str], object]] = [
        sessions.get,
        sessions.system,
        sessions.close,
        sessions.delete,
        lambda c, id: sessions.touch(c, id, T0),
        lambda c, id: sessions.add_turn(c, id, turn("hello")),
        lambda c, id: sessions.turns(c, id, 10),
        a_task,
        lambda c, id: a_task(c, id, idempotency_key="k"),
        tasks.get,
        tasks.params,
        tasks.events,
        lambda c, id: tasks.append(c, state(id, 1, "working")),
        lambda c, id: tasks.finish(c, id, result=None, error=None),
        memories.get,
    ]
    for ask in asked:
        with pytest.raises(NotFound) as caught:
            ask(c, id)
        assert len(str(caught.value)) < 200
        str(caught.value).encode()


# --- sessions ------------------------------------------------------------------------------------------


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(
    st.builds(
        session,
        user_id=text,
        title=text,
        agent=st.none() | text,
        permissions=st.lists(text, max_size=3).map(tuple),
        privacy=st.sampled_from(["any", "local"]),
        priority=st.sampled_from(["interactive", "normal", "background"]),
        max_usd=st.none() | st.floats(min_value=0, allow_infinity=False),
        workspace=st.none() | text,
        write=st.booleans(),
        state=st.sampled_from(["open", "closed"]),
        created_at=aware.map(lambda at: at.astimezone(UTC)),
        used_at=aware.map(lambda at: at.astimezone(UTC)),
    ),
    st.none() | text,
)
def test_a_session_comes_back_as_it_was(ledger: Connection, new: Session, system: str | None) -> None:
    with undone(ledger):
        sessions.insert(ledger, new, system=system)
        assert sessions.get(ledger, new.session_id) == new
        assert sessions.system(ledger, new.session_id) == system


def test_a_closed_session_stays_closed_and_the_last_use_is_the_latest(c: Connection) -> None:
    id = a_session(c)
    sessions.close(c, id)
    sessions.close(c, id)
    sessions.touch(c, id, T0 + timedelta(hours=2))
    sessions.touch(c, id, T0 + timedelta(hours=1))
    assert sessions.get(c, id).state == "closed"
    assert sessions.get(c, id).used_at == T0 + timedelta(hours=2)


def test_turns_come_the_oldest_first_and_those_of_one_time_as_they_were_added(c: Connection) -> None:
    id, other = a_session(c), a_session(c)
    said = [turn(f"line {i}", T0 + timedelta(seconds=i // 3)) for i in range(7)]
    for line in said:
        sessions.add_turn(c, id, line)
        sessions.add_turn(c, other, turn("another session's"))
    assert sessions.turns(c, id, 3) == tuple(said[4:])
    assert sessions.turns(c, id, 10**30) == tuple(said)
    assert sessions.turns(c, id, 0) == sessions.turns(c, id, -1) == ()


def test_notes_stand_among_the_turns_until_they_are_forgotten(c: Connection) -> None:
    id, other = a_session(c, user_id="ada"), a_session(c, user_id="ada")
    before, after = turn("before", T0), turn("after", T0 + timedelta(seconds=2))
    sessions.add_turn(c, id, before)
    sessions.add_turn(c, id, after)
    note = memory(session_id=id, created_at=T0 + timedelta(seconds=1), privacy="local")
    not_said = [
        memory(session_id=id, kind="task"),
        memory(session_id=id, user_id="bob"),
        memory(session_id=other),
    ]
    memories.add(c, [note, *not_said])
    noted = Turn(role="note", content=note.content, created_at=note.created_at, task_id=None, privacy="local")
    assert sessions.turns(c, id, 9) == (before, noted, after)
    assert sessions.turns(c, id, 2) == (noted, after)
    memories.delete(c, [note.memory_id])
    assert sessions.turns(c, id, 9) == (before, after)


def test_deleting_a_session_takes_all_of_it_but_its_memories_and_what_it_spent(c: Connection) -> None:
    gone, stays = a_session(c), a_session(c)
    for id in (gone, stays):
        sessions.add_turn(c, id, turn("hello"))
        tasks.append(c, *journal(a_task(c, id).task_id))
        memories.add(c, [memory(session_id=id)])
    sessions.delete(c, gone)
    for table, left in (("sessions", 1), ("turns", 1), ("tasks", 1), ("events", 8), ("memories", 2)):
        assert c.execute(f"SELECT count(*) FROM {table}").fetchone() == (left,), table
    assert tasks.spent(c, since=T0) == pytest.approx(0.004)
    assert tasks.spent(c, session_id=gone) == pytest.approx(0.002)


def memory(**changes: Any) -> Memory:
    return msgspec.structs.replace(
        Memory(
            memory_id=str(uuid4()),
            user_id="ada",
            session_id=NOBODY,
            content="tea at five",
            speaker=None,
            kind="note",
            source="user",
            trust=1.0,
            privacy="any",
            created_at=T0,
            metadata={},
        ),
        **changes,
    )


# --- tasks ---------------------------------------------------------------------------------------------


def test_a_task_is_queued_with_the_next_number(c: Connection) -> None:
    id = a_session(c)
    params = SessionRun(
        session_id=id, task="größer\0", inputs=(Input(name="stdin", text="x\n"),), schema={"type": "object"}
    )
    one = tasks.insert(c, str(uuid4()), id, params=params, priority="interactive", created_at=T0)
    two = a_task(c, id, parent_id=one.task_id)
    assert one == Task(
        task_id=one.task_id,
        number=one.number,
        session_id=id,
        parent_id=None,
        task="größer\0",
        state="queued",
        priority="interactive",
        created_at=T0,
        started_at=None,
        ended_at=None,
        steps=0,
        cost_usd=0.0,
        result=None,
        error=None,
    )
    assert tasks.get(c, one.task_id) == one
    assert tasks.params(c, one.task_id) == params
    assert (two.number, two.parent_id) == (one.number + 1, one.task_id)


def test_a_number_is_never_given_twice(c: Connection) -> None:
    id = a_session(c)
    last = max(a_task(c, id).number for _ in range(3))
    sessions.delete(c, id)
    assert a_task(c, a_session(c)).number == last + 1


def test_the_same_key_in_the_same_session_is_the_same_task(c: Connection) -> None:
    id, other = a_session(c), a_session(c)
    one = a_task(c, id, idempotency_key="monday")
    assert a_task(c, id, idempotency_key="monday") == one
    assert a_task(c, id, idempotency_key="tuesday").number == one.number + 1
    assert a_task(c, other, idempotency_key="monday").session_id == other
    assert a_task(c, id).task_id != a_task(c, id).task_id


def test_the_events_are_the_journal_and_the_row_says_where_it_stands(c: Connection) -> None:
    task = a_task(c, a_session(c))
    events = journal(task.task_id)
    tasks.append(c, *events[:4])
    assert tasks.get(c, task.task_id) == msgspec.structs.replace(
        task, state="working", started_at=T0 + timedelta(seconds=1), steps=1
    )
    tasks.append(c, *events[4:])
    result = outcome(task)
    tasks.finish(c, task.task_id, result=result, error=None)
    assert tasks.get(c, task.task_id) == msgspec.structs.replace(
        task,
        state="completed",
        started_at=T0 + timedelta(seconds=1),
        ended_at=T0 + timedelta(seconds=2),
        steps=1,
        cost_usd=0.002,
        result=result,
    )
    assert tasks.events(c, task.task_id) == events
    assert tasks.events(c, task.task_id, 6) == events[6:]
    assert tasks.events(c, task.task_id, 10**30) == ()
    assert tasks.events(c, task.task_id, -1) == events


def test_a_task_keeps_its_error(c: Connection) -> None:
    task = a_task(c, a_session(c))
    error = NotFound("no file README.md", hint="ls").to_wire()
    tasks.append(c, state(task.task_id, 1, "failed"))
    tasks.finish(c, task.task_id, result=None, error=error)
    assert tasks.get(c, task.task_id).error == error


def test_an_events_number_is_used_once(c: Connection) -> None:
    task = a_task(c, a_session(c))
    tasks.append(c, state(task.task_id, 1, "working"))
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        tasks.append(c, state(task.task_id, 1, "input_required"))


@pytest.mark.parametrize("end", ["completed", "failed", "cancelled"])
def test_an_end_is_final_whoever_comes_second(c: Connection, end: TaskState) -> None:
    task = a_task(c, a_session(c))
    tasks.append(c, state(task.task_id, 1, "working"), state(task.task_id, 2, end, 5))
    for late in ("working", "completed", "cancelled"):
        with pytest.raises(InvalidState, match=f"is {end}"):
            tasks.append(c, state(task.task_id, 3, late, 9))
    assert tasks.get(c, task.task_id).ended_at == T0 + timedelta(seconds=5)


def test_a_task_that_goes_on_after_a_restart_started_when_it_started(c: Connection) -> None:
    id = a_session(c)
    queued, working, asking, done = (a_task(c, id) for _ in range(4))
    tasks.append(c, state(done.task_id, 1, "working"), state(done.task_id, 2, "completed"))
    tasks.append(c, state(asking.task_id, 1, "working"), state(asking.task_id, 2, "input_required", 3))
    tasks.append(c, state(working.task_id, 1, "working", 1), state(working.task_id, 2, "working", 60))
    assert tasks.get(c, working.task_id).started_at == T0 + timedelta(seconds=1)
    assert [task.number for task in tasks.unended(c)] == [queued.number, working.number, asking.number]


def test_spending_is_counted_by_task_session_and_time(c: Connection) -> None:
    one, other = a_session(c), a_session(c)
    cheap, dear, free = a_task(c, one), a_task(c, one), a_task(c, other)
    tasks.append(c, usage(cheap.task_id, 1, 0.5), usage(cheap.task_id, 2, 0.25, 3600))
    tasks.append(c, usage(dear.task_id, 1, 4.0, 7200), usage(free.task_id, 1, 0.0))
    assert tasks.spent(c) == 4.75
    assert tasks.spent(c, task_id=cheap.task_id) == 0.75
    assert tasks.spent(c, session_id=one, since=T0 + timedelta(hours=1)) == 4.25
    assert tasks.spent(c, session_id=other) == 0.0
    assert tasks.spent(c, task_id=NOBODY) == 0.0
    assert tasks.get(c, cheap.task_id).cost_usd == 0.75


# --- pages ---------------------------------------------------------------------------------------------


@given(
    used_s=st.lists(st.integers(0, 5), max_size=12),
    added_s=st.lists(st.integers(-3, 9), max_size=6),
    limit=st.integers(-1, 5),
)
def test_pages_of_sessions_hold_each_once_while_others_are_added(
    ledger: Connection, used_s: list[int], added_s: list[int], limit: int
) -> None:
    with undone(ledger):
        c = ledger
        there = {
            a_session(c, used_at=T0 + timedelta(seconds=s), state="open" if s % 2 else "closed")
            for s in used_s
        }
        for chosen in (None, "open", "closed"):
            seen: list[Session] = []
            cursor, adding = None, list(added_s)
            for _ in range(PAGES):
                page, cursor = sessions.page(c, state=chosen, limit=limit, cursor=cursor)
                assert len(page) <= max(limit, 1)
                seen += page
                if cursor is None:
                    break
                if adding:
                    a_session(c, used_at=T0 + timedelta(seconds=adding.pop()), state=chosen or "open")
            assert cursor is None, "the pages do not end"
            ids = [one.session_id for one in seen]
            assert len(ids) == len(set(ids))
            assert {id for id in there if chosen in (None, sessions.get(c, id).state)} <= set(ids)
            assert [one.used_at for one in seen] == sorted((one.used_at for one in seen), reverse=True)


@given(owners=st.lists(st.integers(0, 2), max_size=12), limit=st.integers(1, 4))
def test_pages_of_tasks_hold_each_once_while_others_are_added(
    ledger: Connection, owners: list[int], limit: int
) -> None:
    with undone(ledger):
        c = ledger
        ids = [a_session(c) for _ in range(3)]
        made = [a_task(c, ids[owner]) for owner in owners]
        for task in made[::2]:
            tasks.append(c, state(task.task_id, 1, "cancelled"))
        for session_id in (None, ids[0]):
            for chosen in (None, "queued", "cancelled"):
                expected = [
                    task.number
                    for task in map(tasks.get, [c] * len(made), [task.task_id for task in made])
                    if session_id in (None, task.session_id) and chosen in (None, task.state)
                ]
                seen: list[int] = []
                cursor = None
                for _ in range(len(made) + 1):
                    page, cursor = tasks.page(
                        c,
                        session_id=session_id,
                        state=chosen,
                        limit=limit,
                        cursor=cursor,
                    )
                    seen += [task.number for task in page]
                    if cursor is None:
                        break
                    a_task(c, ids[0])
                assert cursor is None, "the pages do not end"
                made += [task for task in tasks.unended(c) if task.number not in {m.number for m in made}]
                assert seen == expected[::-1]


def test_a_page_has_a_thousand_rows_at_most(c: Connection) -> None:
    id = a_session(c)
    for _ in range(1001):
        a_task(c, id)
    for limit in (1000, 1001, 10**30):
        page, cursor = tasks.page(c, session_id=id, state=None, limit=limit, cursor=None)
        assert len(page) == 1000 and cursor is not None
    page, cursor = tasks.page(c, session_id=id, state=None, limit=1000, cursor=cursor)
    assert len(page) == 1 and cursor is None


@pytest.mark.parametrize(
    "cursor",
    ["", "1", "W10=", "WzEs", "é", "\ud800", "WzFd\n", "WyJhIiwyXQ==", "WzEsMl0", "WzEsMiwzXQ==", "bnVsbA=="]
    + ["Wzk5OTk5OTk5OTk5OTk5OTk5OTk5XQ==", "Wzk5OTk5OTk5OTk5OTk5OTk5OTk5LDFd"],
)
def test_a_cursor_that_is_none_is_invalid(c: Connection, cursor: str) -> None:
    asked: list[Callable[[], object]] = [
        lambda: sessions.page(c, state=None, limit=1, cursor=cursor),
        lambda: tasks.page(c, session_id=None, state=None, limit=1, cursor=cursor),
        lambda: memories.page(c, memories.Scope("ada", None), limit=1, cursor=cursor),
    ]
    for ask in asked:
        with pytest.raises(InvalidParams, match="cursor"):
            ask()


@given(st.text())
def test_any_text_is_a_cursor_or_invalid(ledger: Connection, cursor: str) -> None:
    with pytest.raises(InvalidParams):
        tasks.page(ledger, session_id=None, state=None, limit=1, cursor=cursor)


# --- files of older versions ---------------------------------------------------------------------------


def of_version_1() -> tuple[Session, Task, tuple[Kept, ...], Memory]:
    """What stands in tests/data/ledger-1.sql."""
    old = session(session_id=str(UUID(int=1)), agent="reviewer")
    task = Task(
        task_id=str(UUID(int=2)),
        number=7,
        session_id=old.session_id,
        parent_id=None,
        task="count the words",
        state="completed",
        priority="normal",
        created_at=T0,
        started_at=T0 + timedelta(seconds=1),
        ended_at=T0 + timedelta(seconds=2),
        steps=1,
        cost_usd=0.002,
        result=None,
        error=None,
    )
    task = msgspec.structs.replace(task, result=outcome(task))
    note = memory(
        memory_id=str(UUID(int=3)), session_id=old.session_id, speaker="Ada", metadata={"page": [1, "ß"]}
    )
    return old, task, journal(task.task_id), note


@pytest.mark.anyio
@pytest.mark.parametrize("version", [1])
async def test_a_file_of_an_older_version_opens_with_all_that_was_in_it(tmp_path: Path, version: int) -> None:
    path = tmp_path / "aiosd.db"
    dump = Path(__file__).parent / "data" / f"ledger-{version}.sql"
    raw = sqlite3.connect(path)
    raw.executescript(dump.read_text())
    raw.close()
    old, task, events, note = of_version_1()
    async with open_database(path) as database:
        assert await database.read(lambda c: sessions.get(c, old.session_id)) == old
        assert await database.read(lambda c: sessions.system(c, old.session_id)) == "You review."
        said, _noted = await database.read(lambda c: sessions.turns(c, old.session_id, 9))
        assert said == turn("hello")
        assert await database.read(lambda c: tasks.get(c, task.task_id)) == task
        assert await database.read(lambda c: tasks.params(c, task.task_id)) == SessionRun(
            session_id=old.session_id, task="count the words"
        )
        assert await database.read(lambda c: tasks.events(c, task.task_id)) == events
        assert await database.read(tasks.spent) == 0.002
        assert await database.read(lambda c: memories.rows(c, 0, 9)) == [(5, note)]
        assert await database.read(counts) == {"sessions": 1, "tasks": 1, "memories": 1}
        following = await database.write(lambda c: a_task(c, old.session_id))
        assert following.number == 8


@pytest.mark.anyio
async def test_the_number_of_a_turn_that_is_gone_is_not_used_again_nor_by_a_file_of_an_older_version(
    tmp_path: Path,
) -> None:
    path = tmp_path / "aiosd.db"
    raw = sqlite3.connect(path)
    raw.executescript((Path(__file__).parent / "data" / "ledger-1.sql").read_text())
    for script in SCRIPTS[1:4]:  # up to where a session says how far it is consolidated
        raw.executescript(script)
    raw.execute("UPDATE sessions SET consolidated = 70")  # by turns that were dropped since
    raw.execute("PRAGMA user_version = 4")
    raw.commit()
    raw.close()
    old = of_version_1()[0].session_id
    async with open_database(path) as database:

        def said(c: Connection, session_id: str, text: str) -> tuple[int, int]:
            sessions.add_turn(c, session_id, turn(text))
            return sessions.moment_now(c)

        before = await database.read(lambda c: sessions.turns(c, old, 9))
        other = await database.write(a_session)
        assert (await database.write(lambda c: said(c, other, "one")))[0] == 71
        upto = await database.write(lambda c: said(c, other, "two"))
        await database.write(lambda c: sessions.delete(c, other))
        await database.write(lambda c: said(c, old, "later"))
        assert await database.read(lambda c: sessions.turns(c, old, 9, upto)) == before
        assert "later" in [t.content for t in await database.read(lambda c: sessions.turns(c, old, 9))]


def test_the_dump_of_version_1_is_marked_as_ours() -> None:
    dump = (Path(__file__).parent / "data" / "ledger-1.sql").read_text()
    assert f"PRAGMA application_id = {APPLICATION_ID};" in dump
