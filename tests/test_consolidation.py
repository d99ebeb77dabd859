"""What sessions leave behind: once, with their sources, no more open than these were."""

from __future__ import annotations

import random
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast
from uuid import uuid4

import anyio
import pytest

from aiosd.errors import AiosError, NoModelFits
from aiosd.memory.memory import Memories, open_memory
from aiosd.models.backend import Reply
from aiosd.models.pool import Pool
from aiosd.protocol.memory import (
    MemoryContext,
    MemoryExport,
    MemoryForget,
    MemoryRecall,
    MemoryRemember,
    MemoryWhy,
)
from aiosd.protocol.sessions import SessionClose, SessionDelete
from aiosd.records import Memory, Privacy, Session, Turn
from aiosd.state import lineage, sessions
from aiosd.state import memories as table
from aiosd.state.database import Connection, Database, open_database
from aiosd.state.sessions import SUMMARIES
from aiosd.tasks import consolidation
from aiosd.tasks.consolidation import BATCH, IDLE, KEPT, LONG, SHORT_CHARS, Consolidation, due
from aiosd.tasks.context import TURNS
from tests.daemon import Daemon, Silent
from tests.doubles.http_double import Script
from tests.doubles.pools import near_and_far, pool_of
from tests.test_memory import NOW, session

MUCH = "and so on " * (SHORT_CHARS // 10)
"""With anything more than this, turns are no longer kept as they are."""


@pytest.mark.parametrize(
    ("closed", "idle", "turns", "expected"),
    [
        (False, timedelta(0), 2, 0),
        (False, IDLE - timedelta(seconds=1), LONG - 1, 0),
        (False, IDLE, 2, 2),
        (False, timedelta(0), LONG, LONG - KEPT),
        (True, timedelta(0), 3, 3),
    ],
)
def test_a_session_is_due_once_it_is_closed_idle_or_long(
    closed: bool, idle: timedelta, turns: int, expected: int
) -> None:
    unsettled = sessions.Unsettled(str(uuid4()), closed, NOW - idle, turns)
    assert due(unsettled, NOW) == expected


def summaries(daemon: Daemon) -> list[Memory]:
    return [memory for memory in daemon.call(MemoryExport()).memories if memory.kind == "summary"]


def talk(daemon: Daemon, **fields: object) -> Session:
    """A session of runs and of a note, by what quotes."""
    ours = daemon.session(user_id="ann", title="garden plans", **fields)
    daemon.call(MemoryRemember(session_id=ours.session_id, content="The oak was planted in 1987"))
    daemon.run(ours, "When was the oak planted?", backend="extractive")
    daemon.run(ours, "What is 12 * 7?", backend="extractive")
    return ours


def test_a_closed_session_is_found_by_the_next_one_with_its_sources(daemon: Daemon) -> None:
    old = talk(daemon)
    assert summaries(daemon) == []
    daemon.call(SessionClose(session_id=old.session_id))
    (made,) = summaries(daemon)
    assert "“garden plans”" in made.content and "1987" in made.content and "84" in made.content
    new = daemon.session(user_id="ann")
    found = daemon.call(MemoryRecall(query="our garden plans", session_id=new.session_id)).memories
    assert made.memory_id in [memory.memory_id for memory in found]
    traced = daemon.call(MemoryWhy(memory_id=made.memory_id))
    assert [run.task for run in traced.tasks] == ["When was the oak planted?", "What is 12 * 7?"]
    assert [turn.role for turn in traced.turns] == ["user", "assistant"] * 2
    assert {memory.kind for memory in traced.derived_from} == {"task"}
    assert daemon.call(MemoryRecall(query="garden plans", user_id="ben")).memories == ()


def test_a_session_is_consolidated_once_however_often_the_daemon_starts(daemon: Daemon) -> None:
    old = talk(daemon)
    for _ in range(2):
        daemon.call(SessionClose(session_id=old.session_id))
        daemon.kill()
        daemon.start()
    daemon.call(SessionClose(session_id=old.session_id))
    assert len(summaries(daemon)) == 1


def test_a_daemon_killed_in_the_middle_finishes_without_duplicates(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with Silent() as model, Daemon(home, config=model.config("extractive")) as daemon:
        old = talk(daemon)
        daemon.run(old, f"What is 12 * 8? {MUCH}", backend="extractive")

        def close() -> None:
            with suppress(OSError, AiosError):
                daemon.call(SessionClose(session_id=old.session_id))

        closing = threading.Thread(target=close)
        closing.start()
        assert model.asked.wait(30)  # the model works on the summary
        daemon.kill()
        closing.join(30)
    (home / "config.toml").unlink()
    with Daemon(home) as daemon:
        daemon.call(SessionClose(session_id=old.session_id))
        (made,) = summaries(daemon)
        assert "1987" in made.content


def test_forgetting_a_run_forgets_what_summarizes_it(daemon: Daemon) -> None:
    old = talk(daemon)
    daemon.call(SessionClose(session_id=old.session_id))
    (made,) = summaries(daemon)
    assert daemon.call(MemoryForget(query="planted in 1987", user_id="ann", dry_run=True)).forgotten >= 3
    daemon.call(MemoryForget(query="planted in 1987", user_id="ann"))
    left = daemon.call(MemoryExport()).memories
    assert made.memory_id not in [memory.memory_id for memory in left]
    assert not any("1987" in memory.content for memory in left)


def test_what_is_left_of_a_summary_is_told_again_without_what_was_forgotten(daemon: Daemon) -> None:
    old = talk(daemon)
    daemon.call(SessionClose(session_id=old.session_id))
    (made,) = summaries(daemon)
    (sum_,) = [
        memory
        for memory in daemon.call(MemoryExport()).memories
        if memory.kind == "task" and "12 * 7" in memory.content
    ]
    daemon.call(MemoryForget(memory_id=sum_.memory_id))
    other = daemon.session(user_id="ben")
    for _ in range(20):
        daemon.call(SessionClose(session_id=other.session_id))  # waits until nothing is due, or three seconds
        if told := summaries(daemon):
            break
    (again,) = told
    assert again.memory_id != made.memory_id
    assert "1987" in again.content and "84" not in again.content and "12 * 7" not in again.content
    assert [run.task for run in daemon.call(MemoryWhy(memory_id=again.memory_id)).tasks] == [
        "When was the oak planted?"
    ]
    daemon.call(MemoryForget(memory_id=again.memory_id))
    daemon.call(SessionClose(session_id=other.session_id))
    assert summaries(daemon) == [], "what was forgotten itself does not come back"


def test_what_a_session_deleted_with_its_memories_said_is_not_summed_up(daemon: Daemon) -> None:
    old = talk(daemon)
    daemon.call(SessionDelete(session_id=old.session_id, forget=True))
    other = daemon.session(user_id="ann")
    daemon.call(SessionClose(session_id=other.session_id))  # waits until nothing is due
    assert daemon.call(MemoryExport()).memories == ()


# --- in this process, with a clock of our own ------------------------------------------------------------


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Room:
    """Sessions of turns that nobody had to run, and the consolidation of them."""

    def __init__(self, database: Database, memory: Memories, pool: Pool) -> None:
        self.database = database
        self.now = NOW
        self.work = Consolidation(database, memory, pool, lambda: self.now)

    async def session(self, privacy: Privacy = "any") -> Session:
        made = session(privacy=privacy)
        await self.database.write(lambda c: sessions.insert(c, made, system=None))
        return made

    async def say(self, ours: Session, content: str, privacy: Privacy = "any") -> str:
        """One turn of a run of its own; the run's id."""
        task_id = str(uuid4())
        self.now += timedelta(seconds=1)
        turn = Turn(role="user", content=content, created_at=self.now, task_id=task_id, privacy=privacy)

        def keep(c: Connection) -> None:
            sessions.add_turn(c, ours.session_id, turn)
            sessions.touch(c, ours.session_id, turn.created_at)

        await self.database.write(keep)
        return task_id

    async def settle(self) -> None:
        async with anyio.create_task_group() as working:
            working.start_soon(self.work.run)
            await self.work.settled()
            working.cancel_scope.cancel()

    async def made(self) -> list[Memory]:
        rows = await self.database.read(lambda c: table.rows(c, 0, 10_000))
        return [memory for _, memory in rows]

    async def close(self, ours: Session) -> None:
        await self.database.write(lambda c: sessions.close(c, ours.session_id))


@asynccontextmanager
async def room(folder: Path, pool: Pool | None = None) -> AsyncIterator[Room]:
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(folder / "aiosd.db"))
        memory = await stack.enter_async_context(open_memory(database, folder / "index"))
        if pool is None:
            pool = await stack.enter_async_context(pool_of({}))
        yield Room(database, memory, pool)


@pytest.mark.anyio
async def test_a_session_that_goes_idle_is_consolidated_and_later_turns_later(tmp_path: Path) -> None:
    async with room(tmp_path) as here:
        ours = await here.session()
        await here.say(ours, "the first thing")
        await here.settle()
        assert await here.made() == []
        here.now += IDLE
        await here.settle()
        await here.say(ours, "the second thing")
        await here.settle()
        assert len(await here.made()) == 1
        here.now += IDLE
        await here.settle()
        first, second = await here.made()
        assert "first" in first.content and "second" not in first.content
        assert "second" in second.content and "first" not in second.content


@pytest.mark.anyio
async def test_a_long_session_keeps_its_last_turns_and_a_summary_of_those_before(tmp_path: Path) -> None:
    async with room(tmp_path) as here:
        ours = await here.session()
        for i in range(LONG):
            await here.say(ours, f"turn {i}")
        await here.settle()
        made = await here.made()
        assert [memory.kind for memory in made] == ["summary"] * 2  # of 12 turns and of 8
        seen = await here.database.read(lambda c: sessions.turns(c, ours.session_id, KEPT))
        assert [turn.role for turn in seen] == ["note"] * 2 + ["user"] * (KEPT - 2)
        assert "turn 0" in seen[0].content and seen[-1].content == f"turn {LONG - 1}"
        runs = [o for m in made for o in await origins(here, m)]
        assert len(runs) == LONG - KEPT


@pytest.mark.anyio
async def test_of_an_endless_session_the_last_turns_are_held_and_journals_find_all_they_name(
    tmp_path: Path,
) -> None:
    async with room(tmp_path) as here:
        ours = await here.session()
        for i in range(LONG):
            await here.say(ours, f"turn {i}")
        then = await here.database.read(sessions.moment_now)
        for i in range(LONG, LONG + sessions.HELD):
            await here.say(ours, f"turn {i}")
        before = await here.database.read(lambda c: sessions.turns(c, ours.session_id, TURNS, then))
        await here.settle()
        after = await here.database.read(lambda c: sessions.turns(c, ours.session_id, TURNS, then))
        assert before == after and after[-1].content == f"turn {LONG - 1}"
        seen = await here.database.read(lambda c: sessions.turns(c, ours.session_id, 1000))
        assert [turn.role for turn in seen] == ["note"] * SUMMARIES + ["user"] * sessions.HELD
        assert f"turn {LONG - LONG % BATCH - 1}" in seen[SUMMARIES - 1].content
        told = [origin for memory in await here.made() for origin in await origins(here, memory)]
        assert len(told) == sessions.HELD + LONG - KEPT


async def origins(here: Room, memory: Memory) -> tuple[str, ...]:
    found = await here.database.read(lambda c: lineage.origins(c, [memory.memory_id]))
    return found.get(memory.memory_id, ())


@pytest.mark.anyio
async def test_private_turns_are_summed_up_apart_and_nothing_is_sent_elsewhere(tmp_path: Path) -> None:
    async with near_and_far(Script(text=("They spoke of trees.",))) as (pool, near, far):
        async with room(tmp_path, pool) as here:
            ours, private = await here.session(), await here.session("local")
            await here.say(ours, f"an open word {MUCH}")
            await here.say(ours, f"a canary {MUCH}", privacy="local")
            await here.say(private, f"another canary {MUCH}")
            await here.close(ours)
            await here.close(private)
            await here.settle()
            made = {(m.session_id, m.privacy): m for m in await here.made()}
        assert set(made) == {
            (ours.session_id, "any"),
            (ours.session_id, "local"),
            (private.session_id, "local"),
        }
        assert all("They spoke of trees." in memory.content for memory in made.values())
        assert len(near.chats()) == 3 and far.seen == []
        prompts = [str(body["messages"]) for body in near.chats()]
        assert not any("open word" in prompt and "canary" in prompt for prompt in prompts)


@pytest.mark.anyio
async def test_a_model_that_fails_leaves_quotes(tmp_path: Path) -> None:
    async with near_and_far(Script(status=500)) as (pool, near, far), room(tmp_path, pool) as here:
        ours = await here.session()
        await here.say(ours, f"the pump is blue {MUCH}")
        await here.close(ours)
        await here.settle()
        (made,) = await here.made()
        assert "the pump is blue" in made.content and near.chats() and far.seen == []


@pytest.mark.anyio
async def test_work_cut_off_anywhere_and_done_again_says_nothing_twice(tmp_path: Path) -> None:
    chance = random.Random(4)
    async with room(tmp_path) as here:
        said: set[str] = set()
        for _ in range(6):
            ours = await here.session()
            for _ in range(chance.randrange(1, 3 * BATCH)):
                said.add(await here.say(ours, "some words"))
            await here.close(ours)
        for _ in range(30):
            with anyio.move_on_after(chance.random() * 0.02):
                await here.work.run()
        await here.settle()
        told = [origin for memory in await here.made() for origin in await origins(here, memory)]
        assert sorted(told) == sorted(map(lineage.of_task, said))


@pytest.mark.anyio
async def test_what_is_forgotten_while_a_model_reads_it_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with room(tmp_path) as here:
        ours = await here.session()
        await here.say(ours, "the secret")
        kept = await here.say(ours, f"the rest {MUCH}")
        await here.close(ours)

        def forget(c: Connection) -> None:
            c.execute("DELETE FROM turns WHERE content = 'the secret'")

        async def generated(self: Consolidation, *given: object) -> None:
            await here.database.write(forget)

        monkeypatch.setattr(Consolidation, "_generated", generated)
        async with anyio.create_task_group() as working:
            working.start_soon(here.work.run)
            await here.work.settled()
            await here.work.settled()
            working.cancel_scope.cancel()
        (made,) = await here.made()
        assert "secret" not in made.content
        assert await origins(here, made) == (lineage.of_task(kept),)


def test_the_working_memory_of_a_session_survives_and_has_a_line_an_entry(daemon: Daemon) -> None:
    ours = daemon.session()
    for i in range(12):
        daemon.call(
            MemoryRemember(
                session_id=ours.session_id,
                content=f"note\n{i}",
                created_at=datetime(2026, 1, 1, 0, i, tzinfo=UTC),
            )
        )
    before = daemon.call(MemoryContext(session_id=ours.session_id))
    assert before.text.splitlines() == [f"[2026-01-01T00:{i:02}:00+00:00] note {i}" for i in range(2, 12)]
    daemon.kill()
    daemon.start()
    assert daemon.call(MemoryContext(session_id=ours.session_id)) == before


class Asked:
    """A pool without a model, and when it is first asked for one."""

    def __init__(self) -> None:
        self.asked = anyio.Event()

    async def reply(self, request: object) -> Reply:
        self.asked.set()
        raise NoModelFits("there is none")


@pytest.mark.anyio
async def test_what_nobody_waits_for_is_not_done_beside_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consolidation, "QUIET_S", 0.0)
    pool = Asked()
    async with room(tmp_path, cast(Pool, pool)) as here, anyio.create_task_group() as working:
        ours = await here.session()
        working.start_soon(here.work.run)
        await here.work.settled()
        with here.work.beside():
            for i in range(LONG):
                with here.work.beside():
                    await here.say(ours, f"thing {i} {MUCH}")
            await anyio.wait_all_tasks_blocked()
            assert not pool.asked.is_set()
        with anyio.fail_after(30):
            await pool.asked.wait()
        working.cancel_scope.cancel()


@pytest.mark.anyio
async def test_what_is_quoted_whole_is_given_to_no_model(tmp_path: Path) -> None:
    pool = Asked()
    async with room(tmp_path, cast(Pool, pool)) as here:
        ours = await here.session()
        said = "the pump is blue, " * 60 + "and was bought in 1987"
        await here.say(ours, said)
        await here.close(ours)
        await here.settle()
        (made,) = await here.made()
        assert said in made.content and not pool.asked.is_set()
