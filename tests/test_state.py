"""The ledger's file: what an acknowledged write is worth, and what one file may do to another."""

from __future__ import annotations

import logging
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from aiosd.errors import AiosError, InvalidState
from aiosd.state import memories
from aiosd.state.database import Connection, connect, open_database
from aiosd.state.migrations import SCRIPTS
from aiosd.state.upgrade import LedgerFailed, copy_of
from tests.state_writer import numbered

pytestmark = pytest.mark.anyio

PATIENCE_S = 30


def add(*numbers: int) -> Callable[[Connection], None]:
    return lambda c: memories.add(c, [numbered(number) for number in numbers])


def numbers(c: Connection) -> list[int]:
    return [memory.metadata["number"] for _, memory in memories.rows(c, 0, 1_000_000)]


class Gate:
    """A change that holds the writer until it is let go, so that a test decides what queues up behind it."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self._go = threading.Event()

    def __call__(self, c: Connection) -> None:
        self.entered.set()
        assert self._go.wait(PATIENCE_S)

    def open(self) -> None:
        self._go.set()


async def settled() -> None:
    """Every task that could start has started, and waits."""
    for _ in range(5):
        await anyio.lowlevel.checkpoint()


# --- durability ----------------------------------------------------------------------------------------


def test_an_acknowledged_write_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "aiosd.db"
    dice = random.Random(9)
    acknowledged: list[int] = []
    for life in range(5):
        first = life * 1_000_000
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.state_writer", str(path), str(first)],
            cwd=Path(__file__).parent.parent,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        with child, child.stdout:
            acknowledged += [int(child.stdout.readline()) for _ in range(dice.randrange(1, 300))]
            child.send_signal(signal.SIGKILL)
            acknowledged += [int(line) for line in child.stdout if line.endswith("\n")]
        assert child.returncode == -signal.SIGKILL

    c = connect(path)
    try:
        assert c.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        kept = {memory.metadata["number"]: memory for _, memory in memories.rows(c, 0, 1_000_000)}
    finally:
        c.close()
    assert len(acknowledged) >= 5
    assert set(acknowledged) <= set(kept)
    assert all(kept[number] == numbered(number) for number in kept)


async def test_the_file_is_written_through_a_log_and_flushed_at_every_commit(tmp_path: Path) -> None:
    def pragmas(c: Connection) -> list[object]:
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout", "secure_delete")
        return [c.execute(f"PRAGMA {name}").fetchone()[0] for name in names]

    async with open_database(tmp_path / "aiosd.db") as database:
        writer, reader = await database.write(pragmas), await database.read(pragmas)
    assert writer == ["wal", 2, 1, 10_000, 1]
    assert reader[0] == "wal"
    assert not (tmp_path / "aiosd.db-wal").exists()


async def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "aiosd.db"
    async with open_database(path) as database:
        await database.write(add(1))
        modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert modes == dict.fromkeys(("aiosd.db", "aiosd.db-wal", "aiosd.db-shm"), 0o600)


# --- group commit --------------------------------------------------------------------------------------


async def test_what_arrives_together_is_one_commit(tmp_path: Path) -> None:
    statements: list[str] = []
    gate = Gate()
    async with open_database(tmp_path / "aiosd.db") as database:
        await database.write(lambda c: c.set_trace_callback(statements.append))
        statements.clear()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(database.write, gate)
            await anyio.to_thread.run_sync(gate.entered.wait)
            for number in range(100):
                tasks.start_soon(database.write, add(number))
            await settled()
            gate.open()
        assert await database.read(numbers) == list(range(100))
    assert statements.count("COMMIT") == 2


async def test_changes_happen_in_the_order_of_the_calls(tmp_path: Path) -> None:
    async with open_database(tmp_path / "aiosd.db") as database:
        async with anyio.create_task_group() as tasks:
            for number in range(500):
                tasks.start_soon(database.write, add(number))
        assert await database.read(numbers) == list(range(500))


async def test_a_failing_change_leaves_its_neighbours_alone(tmp_path: Path) -> None:
    gate = Gate()
    failed: list[int] = []

    def half(number: int) -> Callable[[Connection], None]:
        def change(c: Connection) -> None:
            add(number)(c)
            raise ZeroDivisionError(number)

        return change

    async with open_database(tmp_path / "aiosd.db") as database:

        async def fail(number: int) -> None:
            with pytest.raises(ZeroDivisionError) as caught:
                await database.write(half(number))
            failed.append(caught.value.args[0])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(database.write, gate)
            await anyio.to_thread.run_sync(gate.entered.wait)
            for number in range(20):
                if number % 3 == 0:
                    tasks.start_soon(fail, number)
                else:
                    tasks.start_soon(database.write, add(number))
            await settled()
            gate.open()
        await fail(20)  # alone, too
        assert failed == [*range(0, 20, 3), 20]
        assert await database.read(numbers) == [number for number in range(20) if number % 3]


async def test_a_failing_commit_fails_all_that_were_in_it_and_none_after(tmp_path: Path) -> None:
    gate = Gate()
    outcomes: list[type[Exception] | None] = []

    def orphan(c: Connection) -> None:
        c.execute("PRAGMA defer_foreign_keys = ON")  # noticed at the COMMIT only
        c.execute("INSERT INTO events VALUES ('nobody', 1, 'state', '{}')")

    async with open_database(tmp_path / "aiosd.db") as database:

        async def write(change: Callable[[Connection], None]) -> None:
            try:
                await database.write(change)
            except AiosError as exc:
                assert "FOREIGN KEY constraint failed" in str(exc)
                outcomes.append(type(exc))
            else:
                outcomes.append(None)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(database.write, gate)
            await anyio.to_thread.run_sync(gate.entered.wait)
            for change in (add(1), orphan, add(2)):
                tasks.start_soon(write, change)
            await settled()
            gate.open()
        assert outcomes == [LedgerFailed] * 3
        await write(add(3))
        assert outcomes[3:] == [None]
        assert await database.read(numbers) == [3]


async def test_a_full_disk_is_told_and_survived(tmp_path: Path) -> None:
    async with open_database(tmp_path / "aiosd.db") as database:
        await database.write(add(1))
        await database.write(
            lambda c: c.execute(
                f"PRAGMA max_page_count = {c.execute('PRAGMA page_count').fetchone()[0] + 2}"
            ).fetchone()
        )
        with pytest.raises(LedgerFailed, match="full"):
            await database.write(add(*range(4000, 4100)))
        await database.write(lambda c: c.execute("PRAGMA max_page_count = 100000").fetchone())
        await database.write(add(2))
        assert await database.read(numbers) == [1, 2]


async def test_a_disk_that_fills_up_in_a_group_is_told_to_all_of_it(tmp_path: Path) -> None:
    gate = Gate()
    told: list[str] = []
    async with open_database(tmp_path / "aiosd.db") as database:

        async def write(change: Callable[[Connection], None]) -> None:
            with pytest.raises(LedgerFailed) as caught:
                await database.write(change)
            told.append(str(caught.value))

        def shrink(c: Connection) -> None:
            c.execute(
                f"PRAGMA max_page_count = {c.execute('PRAGMA page_count').fetchone()[0] + 2}"
            ).fetchone()

        await database.write(shrink)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(database.write, gate)
            await anyio.to_thread.run_sync(gate.entered.wait)
            for change in (add(1), add(*range(4000, 4100)), add(2)):
                tasks.start_soon(write, change)
            await settled()
            gate.open()
        assert told == ["the ledger failed: database or disk is full"] * 3
        assert await database.read(numbers) == []
        await database.write(add(3))
        assert await database.read(numbers) == [3]


# --- waiting, cancelling, closing ----------------------------------------------------------------------


async def test_a_cancelled_write_is_whole(tmp_path: Path) -> None:
    gate = Gate()
    async with open_database(tmp_path / "aiosd.db") as database:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(database.write, gate)
            await anyio.to_thread.run_sync(gate.entered.wait)
            with anyio.CancelScope() as waiting:
                tasks.start_soon(database.write, add(3))
                waiting.cancel()
                await database.write(add(1, 2))
            assert waiting.cancelled_caught
            gate.open()
        await database.write(add(4))
        assert sorted(await database.read(numbers)) == [1, 2, 3, 4]


async def test_an_error_nobody_waits_for_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()

    def fail(c: Connection) -> None:
        raise ZeroDivisionError("nobody is there")

    async with open_database(tmp_path / "aiosd.db") as database, anyio.create_task_group() as tasks:
        tasks.start_soon(database.write, gate)
        await anyio.to_thread.run_sync(gate.entered.wait)
        with anyio.CancelScope() as waiting:
            waiting.cancel()
            await database.write(fail)
        gate.open()
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.exc_info is not None and "nobody is there" in str(record.exc_info[1])


async def test_the_loop_and_the_reader_go_on_while_a_change_takes_long(tmp_path: Path) -> None:
    gate = Gate()
    async with open_database(tmp_path / "aiosd.db") as database, anyio.create_task_group() as tasks:
        await database.write(add(1))
        tasks.start_soon(database.write, gate)
        await anyio.to_thread.run_sync(gate.entered.wait)
        with anyio.fail_after(PATIENCE_S):
            assert await database.read(numbers) == [1]
        gate.open()


async def test_a_read_sees_every_write_that_returned_and_one_snapshot(tmp_path: Path) -> None:
    entered, go = threading.Event(), threading.Event()

    def twice(c: Connection) -> tuple[list[int], list[int]]:
        before = numbers(c)
        entered.set()
        assert go.wait(PATIENCE_S)
        return before, numbers(c)

    async with open_database(tmp_path / "aiosd.db") as database, anyio.create_task_group() as tasks:
        await database.write(add(1))
        seen: list[tuple[list[int], list[int]]] = []

        async def read() -> None:
            seen.append(await database.read(twice))

        tasks.start_soon(read)
        await anyio.to_thread.run_sync(entered.wait)
        await database.write(add(2))
        go.set()
        assert await database.read(numbers) == [1, 2]
        assert seen == [([1], [1])]


async def test_a_read_cannot_write(tmp_path: Path) -> None:
    async with open_database(tmp_path / "aiosd.db") as database:
        with pytest.raises(LedgerFailed, match="readonly"):
            await database.read(add(1))
        assert await database.read(numbers) == []


async def test_what_stop_iteration_means_is_nobodys_end(tmp_path: Path) -> None:
    async with open_database(tmp_path / "aiosd.db") as database:
        with anyio.fail_after(PATIENCE_S):
            with pytest.raises(RuntimeError):
                await database.write(lambda c: next(iter(())))
            with pytest.raises(SystemExit):
                await database.write(lambda c: sys.exit(3))
            await database.write(add(1))


async def test_a_cursor_cannot_leave_its_thread(tmp_path: Path) -> None:
    async with open_database(tmp_path / "aiosd.db") as database:
        cursor = await database.read(lambda c: c.execute("SELECT 1"))
        with pytest.raises(sqlite3.ProgrammingError, match="thread"):
            cursor.fetchone()
        del cursor


async def test_closing_does_what_was_accepted(tmp_path: Path) -> None:
    path = tmp_path / "aiosd.db"
    gate = Gate()
    async with anyio.create_task_group() as tasks:

        async def open_gate_once_the_writer_is_closing(reader: threading.Thread) -> None:
            await anyio.to_thread.run_sync(reader.join)  # the reader closes first
            await settled()
            gate.open()

        async with open_database(path) as database:
            (reader,) = [thread for thread in threading.enumerate() if thread.name == "ledger-reader"]
            tasks.start_soon(database.write, gate)
            await anyio.to_thread.run_sync(gate.entered.wait)
            for number in range(50):
                tasks.start_soon(database.write, add(number))
            await settled()
            tasks.start_soon(open_gate_once_the_writer_is_closing, reader)
        with pytest.raises(InvalidState, match="closed"):
            await database.write(add(99))
    async with open_database(path) as database:
        assert await database.read(numbers) == list(range(50))


async def test_a_cancelled_daemon_closes_its_ledger(tmp_path: Path) -> None:
    with anyio.CancelScope() as scope:
        async with open_database(tmp_path / "aiosd.db") as database:
            await database.write(add(1))
            threads = [thread for thread in threading.enumerate() if thread.name.startswith("ledger-")]
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert not (tmp_path / "aiosd.db-wal").exists()
    assert len(threads) == 2
    for thread in threads:  # told that it has closed its file, we may still see it on its way out
        await anyio.to_thread.run_sync(thread.join, PATIENCE_S)
        assert not thread.is_alive()


# --- whose file it is ----------------------------------------------------------------------------------


async def refused(path: Path) -> LedgerFailed:
    with pytest.raises(LedgerFailed) as caught:
        async with open_database(path):
            pass
    assert str(path) in str(caught.value)
    return caught.value


async def test_a_newer_schema_is_refused_by_both_numbers(tmp_path: Path) -> None:
    path = tmp_path / "aiosd.db"
    c = connect(path)
    c.execute("PRAGMA user_version = 7001")
    c.close()
    before = path.read_bytes()
    exc = await refused(path)
    assert "schema 7001" in str(exc) and f"knows {len(SCRIPTS)}" in str(exc) and exc.hint
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content", [b"a letter, not a database\n" * 100, b"SQLite format 3\0" + b"\xff" * 4096]
)
async def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "letter to ada"
    path.write_bytes(content)
    exc = await refused(path)
    assert exc.hint == f"mv '{path}' '{path}.away'"
    assert path.read_bytes() == content


async def test_another_programs_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "browser.db"
    c = sqlite3.connect(path)
    c.execute("CREATE TABLE bookmarks (url TEXT)")
    c.close()
    before = path.read_bytes()
    assert "another program's" in str(await refused(path))
    assert path.read_bytes() == before


async def test_a_folder_that_cannot_be_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    await refused(tmp_path / "file" / "aiosd.db")
    await refused(tmp_path)


async def test_a_name_with_signs_of_an_address_is_a_name(tmp_path: Path) -> None:
    path = tmp_path / "a?mode=memory#b%20c" / "aiosd.db"
    async with open_database(path) as database:
        await database.write(add(1))
        assert await database.read(numbers) == [1]
    assert path.exists()


OLD = Path(__file__).parent / "data" / "ledger-1.sql"


def old_ledger(path: Path) -> None:
    """As an aiosd of the first schema left it."""
    c = sqlite3.connect(path)
    c.executescript(OLD.read_text())
    c.close()


def contents(path: Path) -> list[str]:
    c = sqlite3.connect(path)
    try:
        return list(c.iterdump())
    finally:
        c.close()


def test_an_older_ledger_is_copied_before_it_is_upgraded(tmp_path: Path) -> None:
    path = tmp_path / "aiosd.db"
    old_ledger(path)
    before = contents(path)
    connect(path).close()
    copy = copy_of(path, 1)
    assert contents(copy) == before
    assert copy.stat().st_mode & 0o777 == 0o600
    assert contents(path) != before
    connect(path).close()  # nothing is left to do, and nothing is copied
    assert sorted(p.name for p in tmp_path.iterdir()) == ["aiosd.db", "aiosd.db.schema-1"]


@pytest.mark.parametrize(
    "script",
    ["CREATE TABLE fine (x); CREATE TABLE sessions (y)", "DROP TABLE tasks; SELECT no_such_function()"],
)
def test_a_migration_that_fails_leaves_the_ledger_as_it_was_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    path = tmp_path / "aiosd.db"
    old_ledger(path)
    before = contents(path)
    monkeypatch.setattr("aiosd.state.upgrade.SCRIPTS", (*SCRIPTS, script))
    with pytest.raises(LedgerFailed, match=f"from schema 1 to {len(SCRIPTS) + 1}: .*; it is as it was"):
        connect(path)
    assert contents(path) == before  # not half of the way, either
    monkeypatch.undo()
    connect(path).close()


def test_a_migration_that_ruins_the_file_is_undone_by_the_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "aiosd.db"
    old_ledger(path)
    before = contents(path)
    ruin = "COMMIT; DROP TABLE events; PRAGMA user_version = 99; BEGIN; SELECT no_such_function()"
    monkeypatch.setattr("aiosd.state.upgrade.SCRIPTS", (*SCRIPTS, ruin))
    with pytest.raises(LedgerFailed, match="it was restored from .*schema-1"):
        connect(path)
    assert contents(path) == before


def test_a_ledger_that_cannot_be_copied_is_not_upgraded(tmp_path: Path) -> None:
    path = tmp_path / "aiosd.db"
    old_ledger(path)
    before = contents(path)
    (tmp_path / "aiosd.db.part").mkdir()  # in the copy's way, as a full disk would be
    with pytest.raises(LedgerFailed, match="could not be copied before its upgrade"):
        connect(path)
    assert contents(path) == before


def test_a_newer_ledger_names_who_made_it_and_where_the_older_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "aiosd.db"
    connect(path).close()
    with monkeypatch.context() as newer:
        newer.setattr("aiosd.state.upgrade.SCRIPTS", (*SCRIPTS, "CREATE TABLE more (x)"))
        newer.setattr("aiosd.state.upgrade.version", lambda name: "9.1.0")
        connect(path).close()
    with pytest.raises(LedgerFailed, match="made by aiosd 9.1.0; this is aiosd 0") as caught:
        connect(path)
    assert str(copy_of(path, len(SCRIPTS))) in str(caught.value)
    assert caught.value.hint == "pip install --upgrade 'aiosd>=9.1.0'"


async def test_what_is_forgotten_is_in_no_copy_either(tmp_path: Path) -> None:
    path = tmp_path / "aiosd.db"
    old_ledger(path)
    async with open_database(path) as database:
        assert copy_of(path, 1).exists()
        await database.scrub()
    assert not copy_of(path, 1).exists()
