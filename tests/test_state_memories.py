"""Memories in the ledger: no query with a scope gives a row outside it, and what is there is given whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosd.errors import InvalidParams, NotFound
from aiosd.records import Memory
from aiosd.state import memories
from aiosd.state.database import Connection, connect
from aiosd.state.memories import Scope

T0 = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
PAGES = 50
"""More than there can be in these tests."""
SESSIONS = [str(UUID(int=n)) for n in range(3)]


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    c = connect(tmp_path_factory.mktemp("ledger") / "aiosd.db")
    yield c
    c.close()


@pytest.fixture
def c(ledger: Connection) -> Iterator[Connection]:
    ledger.execute("BEGIN")
    yield ledger
    ledger.execute("ROLLBACK")


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
users = st.sampled_from(["ada", "bob", "Ada", "ada ", "", "%", "ada' OR 1 --"])
json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)
some = st.lists(
    st.builds(
        Memory,
        memory_id=st.uuids().map(str),
        user_id=users,
        session_id=st.sampled_from(SESSIONS),
        content=text,
        speaker=st.none() | text,
        kind=st.sampled_from(["note", "task", ""]),
        source=st.sampled_from(["user", "task:1", ""]),
        trust=st.floats(0, 1),
        privacy=st.sampled_from(["any", "local"]),
        created_at=st.integers(0, 5).map(lambda s: T0 + timedelta(seconds=s)),
        metadata=st.dictionaries(text, json, max_size=2),
    ),
    max_size=12,
    unique_by=lambda memory: memory.memory_id,
)
scopes = st.builds(Scope, user_id=users, session_id=st.none() | st.sampled_from(SESSIONS))


def sees(scope: Scope, memory: Memory) -> bool:
    return scope.user_id == memory.user_id and scope.session_id in (None, memory.session_id)


def new(**changes: object) -> Memory:
    return msgspec.structs.replace(
        Memory(
            memory_id=str(uuid4()),
            user_id="ada",
            session_id=SESSIONS[0],
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


def paged(c: Connection, scope: Scope, limit: int, more: Sequence[Memory] = ()) -> list[Memory]:
    """All pages; between each two of them one of `more` is added."""
    adding = list(more)
    seen: list[Memory] = []
    cursor: str | None = None
    for _ in range(PAGES):
        page, cursor = memories.page(c, scope, limit=limit, cursor=cursor)
        assert len(page) <= limit
        seen += page
        if cursor is None:
            return seen
        if adding:
            memories.add(c, [adding.pop()])
    pytest.fail("the pages do not end")


@given(
    some,
    scopes,
    scopes,
    st.integers(1, 4),
    st.none() | st.sampled_from(["user", "task:1"]),
    st.none() | st.integers(0, 6),
)
def test_no_query_with_a_scope_gives_a_row_outside_it(
    ledger: Connection,
    all: list[Memory],
    scope: Scope,
    other: Scope,
    limit: int,
    source: str | None,
    before_s: int | None,
) -> None:
    c = ledger
    inside = {memory.memory_id: memory for memory in all if sees(scope, memory)}
    everything = [memory.memory_id for memory in all]
    before = None if before_s is None else T0 + timedelta(seconds=before_s)
    c.execute("BEGIN")
    try:
        memories.add(c, all)
        assert memories.fetch(c, everything * 2, scope) == inside
        seen = paged(c, scope, limit)
        assert {memory.memory_id: memory for memory in seen} == inside and len(seen) == len(inside)
        added = list(inside.values())
        assert seen == sorted(added, key=lambda one: (one.created_at, added.index(one)), reverse=True)
        assert memories.select(c, scope) == tuple(inside)
        noted = [memory for memory in seen if memory.kind != "task"]
        assert list(memories.notes(c, scope, limit)) == noted[:limit]
        assert memories.select(c, scope, ids=everything * 2) == tuple(inside)
        assert memories.select(c, scope, ids=[]) == ()
        for memory in all:
            own = (memory.memory_id,) if sees(scope, memory) else ()
            assert memories.select(c, scope, memory_id=memory.memory_id) == own
            assert memories.select(c, scope, ids=own, memory_id=memory.memory_id) == own
        assert memories.select(c, scope, source=source, before=before, ids=everything) == tuple(
            memory.memory_id
            for memory in inside.values()
            if source in (None, memory.source) and (before is None or memory.created_at < before)
        )
        # A cursor is a place, not a right: one that another scope was given leads nowhere new.
        _, foreign = memories.page(c, other, limit=limit, cursor=None)
        page, _ = memories.page(c, scope, limit=1000, cursor=foreign)
        assert {memory.memory_id for memory in page} <= set(inside)
    finally:
        c.execute("ROLLBACK")


@given(some, some, st.integers(1, 4))
def test_pages_hold_each_once_the_newest_first_while_others_are_added(
    ledger: Connection, there: list[Memory], more: list[Memory], limit: int
) -> None:
    c = ledger
    there = [msgspec.structs.replace(memory, user_id="ada") for memory in there]
    known = {memory.memory_id for memory in there}
    more = [
        msgspec.structs.replace(memory, user_id="ada") for memory in more if memory.memory_id not in known
    ]
    c.execute("BEGIN")
    try:
        memories.add(c, there)
        seen = paged(c, Scope("ada", None), limit, more)
    finally:
        c.execute("ROLLBACK")
    ids = [memory.memory_id for memory in seen]
    assert len(ids) == len(set(ids))
    assert known <= set(ids)
    assert [memory.created_at for memory in seen] == sorted((m.created_at for m in seen), reverse=True)


@given(some)
def test_rows_come_whole_in_an_order_that_only_grows(ledger: Connection, all: list[Memory]) -> None:
    c = ledger
    c.execute("BEGIN")
    try:
        before = max((seq for seq, _ in memories.rows(c, 0, 1_000)), default=0)
        memories.add(c, all)
        rows = memories.rows(c, before, 100)
        assert [memory for _, memory in rows] == all
        assert [seq for seq, _ in rows] == sorted({seq for seq, _ in rows})
        for seq, memory in rows:
            assert memories.get(c, memory.memory_id) == memory
            assert memories.rows(c, seq - 1, 1) == [(seq, memory)]
            assert memories.count(c, upto=seq) == rows.index((seq, memory)) + 1
        assert memories.count(c) == len(all)
        for privacy in ("any", "local"):
            assert [memory for _, memory in memories.rows(c, before, 100, privacy)] == [
                memory for memory in all if memory.privacy == privacy
            ]
    finally:
        c.execute("ROLLBACK")


def test_what_is_forgotten_is_gone_and_its_number_is_not_given_again(c: Connection) -> None:
    one, two, three = new(), new(), new()
    memories.add(c, [one, two])
    last = memories.rows(c, 0, 9)[-1][0]
    assert memories.delete(c, [two.memory_id, two.memory_id, str(UUID(int=9)), "none"]) == 1
    with pytest.raises(NotFound):
        memories.get(c, two.memory_id)
    assert [seq for seq, _ in memories.rows(c, 0, 9)] == [last - 1]
    memories.add(c, [three])
    assert memories.rows(c, last - 1, 9) == [(last + 1, three)]
    assert memories.delete(c, []) == 0


def test_what_is_forgotten_is_not_left_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "aiosd.db"
    short, long = new(content="the safe opens at 7-19-42"), new(content="the long story of the safe " * 1000)
    c = connect(path)
    memories.add(c, [short, long])
    c.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    assert b"7-19-42" in path.read_bytes() and b"the long story" in path.read_bytes()
    memories.delete(c, [short.memory_id, long.memory_id])
    c.close()
    assert b"7-19-42" not in path.read_bytes() and b"the long story" not in path.read_bytes()


def test_without_a_scope_they_are_anybodys(c: Connection) -> None:
    one, two = new(), new(user_id="bob", source="tool:clock")
    memories.add(c, [one, two])
    assert memories.select(c, None) == (one.memory_id, two.memory_id)
    assert memories.select(c, None, source="tool:clock") == (two.memory_id,)


def test_many_ids_are_one_question(c: Connection) -> None:
    many = [new() for _ in range(40_000)]
    memories.add(c, many)
    ids = [memory.memory_id for memory in many]
    assert len(memories.fetch(c, ids, Scope("ada", None))) == len(many)
    assert memories.fetch(c, ids, Scope("bob", None)) == {}
    assert memories.delete(c, ids) == len(many)


def test_a_time_without_a_zone_is_refused(c: Connection) -> None:
    with pytest.raises(InvalidParams, match="has no zone"):
        memories.add(c, [new(created_at=datetime(2026, 1, 1))])


def test_every_query_is_answered_by_an_index(c: Connection) -> None:
    """Each is asked all day in a ledger that grows: none may read a whole table or another user's rows."""
    asked: list[str] = []
    c.set_trace_callback(asked.append)
    user, one = Scope("ada", None), Scope("ada", SESSIONS[0])
    for scope in (user, one):
        memories.page(c, scope, limit=1, cursor=None)
        memories.page(c, scope, limit=1, cursor="WzEsMV0=")
        memories.notes(c, scope, 1)
        memories.summaries(c, one, T0, 1)
        memories.fetch(c, SESSIONS, scope)
        memories.select(c, scope, ids=SESSIONS)
        memories.select(c, scope, memory_id=SESSIONS[0])
    memories.rows(c, 1, 1)
    memories.select(c, None, source="user")
    memories.delete(c, SESSIONS)
    c.set_trace_callback(None)
    plans = {sql: [step[3] for step in c.execute(f"EXPLAIN QUERY PLAN {sql}")] for sql in asked}
    assert len(plans) >= 12
    for sql, plan in plans.items():
        assert not [step for step in plan if step.startswith("SCAN memories")], sql
        if "memory_id =" in sql or "json_each" in sql:
            assert [step for step in plan if "(memory_id=?)" in step], sql
        if "kind <> 'task'" in sql and "session_id =" in sql:
            assert [step for step in plan if "memories_notes" in step], sql
        if "kind = 'summary'" in sql:
            assert [step for step in plan if "memories_summaries" in step], sql


@given(kept=some, scope=scopes, kind=st.none() | st.just("note"), data=st.data())
def test_what_is_near_lies_in_the_scope_and_in_the_session_beside_what_was_found(
    ledger: Connection, kept: list[Memory], scope: Scope, kind: str | None, data: st.DataObject
) -> None:
    c = ledger
    c.execute("BEGIN")
    try:
        c.execute("DELETE FROM memories")
        memories.add(c, kept)
        seqs = {memory.memory_id: seq for seq, memory in memories.rows(c, 0, 100)}
        by_time = sorted(kept, key=lambda memory: (memory.created_at, seqs[memory.memory_id]))

        def beside(memory: Memory, step: int) -> Memory | None:
            same = [m for m in by_time if (m.user_id, m.session_id) == (memory.user_id, memory.session_id)]
            place = same.index(memory) + step
            return same[place] if 0 <= place < len(same) else None

        def steps(hit: Memory) -> tuple[int, ...]:
            """Notes that nobody spoke are not found by what stands beside them."""
            same = [m for m in kept if (m.user_id, m.session_id) == (hit.user_id, hit.session_id)]
            return (-1, 0, 1, 2) if any(m.speaker is not None for m in same) else (0,)

        hits = data.draw(st.lists(st.sampled_from(kept), unique_by=id)) if kept else []
        near = {
            one.memory_id: before
            for hit in hits
            if sees(scope, hit)
            for one in (beside(hit, step) for step in steps(hit))
            if one is not None and kind in (None, one.kind)
            for before in [beside(one, -1)]
        }
        found = memories.around(c, scope, [m.memory_id for m in hits], kind=kind, source=None, as_of=None)
        assert {row[1]: row[2] for row in found} == {
            id: None if before is None else seqs[before.memory_id] for id, before in near.items()
        }
        assert len(found) == len(near)
        speakers = {memory.speaker for memory in kept if sees(scope, memory)} - {None}
        assert set(memories.speakers(c, scope)) == speakers
    finally:
        c.execute("ROLLBACK")
