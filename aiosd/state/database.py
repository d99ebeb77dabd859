"""The ledger's file: one SQLite database in WAL mode, one thread that writes it and one that reads it.

Writing is group commit: what arrives while a commit is on its way to the disk becomes the next one, whole, so
that a hundred callers wait for two flushes and not for a hundred. Each change stands in a savepoint of its own,
so that one that fails takes nothing along. No caller is answered before its COMMIT is on the disk.

The threads are ours, not a pool's: a hand-over costs a queue and one wake-up of the loop for a whole batch.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeAlias, TypeVar

import anyio

from aiosd.errors import InvalidState
from aiosd.state.upgrade import LedgerFailed, bring, forget_copies

Connection: TypeAlias = sqlite3.Connection
"""What a change or a query is given. It belongs to its thread: nothing lazy may leave the function."""

T = TypeVar("T")

BUSY_S = 10.0
"""How long a commit waits for another program that holds the file, as a backup or the sqlite3 shell may."""

CLOSE_S = 10.0
"""How long closing waits for what was accepted. A commit takes milliseconds: a disk that needs more is broken."""

GROUP = 1000
"""Changes in one commit at most, so that the first of them does not wait for ever."""

logger = logging.getLogger(__name__)


class Database:
    """The open ledger. Both methods may be called many at once; changes happen in the order of the calls."""

    def __init__(self, path: Path, writer: _Lane, reader: _Lane) -> None:
        self._path = path
        self._writer = writer
        self._reader = reader

    async def write(self, change: Callable[[Connection], T]) -> T:
        """Makes the change in a transaction and returns once it is on the disk.

        A change that raises is rolled back alone, and its exception rises here. A caller cancelled meanwhile
        leaves its change behind whole. Raises LedgerFailed, then nothing of the change is kept.
        """
        return await self._writer.do(change)

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Asks one snapshot, which holds every write that has returned."""
        return await self._reader.do(query)

    async def scrub(self) -> None:
        """Returns once what was deleted before is in none of the ledger's files; or, with a warning, after BUSY_S.

        Freed pages are overwritten when they are freed, but the write-ahead log has them until it is emptied.
        """
        await anyio.to_thread.run_sync(_scrub, self._path)


@asynccontextmanager
async def open_database(path: Path) -> AsyncIterator[Database]:
    """The ledger in this file, made where there is none, brought to today's schema where it is older.

    Leaving does what was accepted before it closes. Raises LedgerFailed for a file that is not ours to use.
    """
    async with (
        # The writer closes last: the last one to leave folds the write-ahead log into the file.
        _lane("ledger-writer", lambda: connect(path), _commit, GROUP) as writer,
        _lane("ledger-reader", lambda: _connect_reader(path), _query, 1) as reader,
    ):
        yield Database(path, writer, reader)


# --- threads -------------------------------------------------------------------------------------------


class _Job:
    """A call on its way through a thread. It is made even if nobody waits for it any more."""

    __slots__ = ("call", "error", "future", "value")

    def __init__(self, call: Callable[[Connection], Any], future: asyncio.Future[None]) -> None:
        self.call = call
        self.future = future
        self.value: Any = None
        self.error: BaseException | None = None


class _Lane:
    """One thread with the connection that only it uses, and the queue in front of it."""

    def __init__(
        self,
        name: str,
        connect: Callable[[], Connection],
        work: Callable[[Connection, list[_Job]], None],
        at_once: int,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._connect = connect
        self._work = work
        self._at_once = at_once
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._accepting = True
        self._ended = asyncio.Event()
        self._opening = _Job(lambda connection: None, self._loop.create_future())
        # A daemon thread, since a process whose loop broke must still end: what was not answered was not promised.
        threading.Thread(target=self._run, name=name, daemon=True).start()

    async def opened(self) -> None:
        await self._opening.future
        if self._opening.error is not None:
            raise self._opening.error

    async def do(self, call: Callable[[Connection], T]) -> T:
        if not self._accepting:
            raise InvalidState("the ledger is closed: the daemon is stopping")
        job = _Job(call, self._loop.create_future())
        self._jobs.put(job)
        await job.future
        if job.error is not None:
            raise job.error
        value: T = job.value
        return value

    async def close(self) -> None:
        self._accepting = False
        self._jobs.put(None)
        with anyio.move_on_after(CLOSE_S, shield=True) as patience:
            await self._ended.wait()
        if patience.cancelled_caught:
            logger.error("the ledger is still busy: closing without it", extra={"waited_s": CLOSE_S})

    def _run(self) -> None:
        try:
            try:
                connection = self._connect()
            except BaseException as exc:  # noqa: BLE001  rises in opened()
                self._opening.error = exc
                return
            finally:
                self._loop.call_soon_threadsafe(_answer, [self._opening])
            with closing(connection):
                for first in iter(self._jobs.get, None):
                    batch = self._batch(first)
                    try:
                        self._work(connection, batch)
                    except BaseException as exc:  # noqa: BLE001  rises in do(): the thread must outlive it
                        for job in batch:
                            job.error = job.error or _failed(exc)
                    self._loop.call_soon_threadsafe(_answer, batch)
        finally:
            self._loop.call_soon_threadsafe(self._ended.set)

    def _batch(self, first: _Job) -> list[_Job]:
        batch = [first]
        while len(batch) < self._at_once and not self._jobs.empty():
            job = self._jobs.get()
            if job is None:
                self._jobs.put(None)  # the end, after this batch; nothing is accepted behind it
                break
            batch.append(job)
        return batch


@asynccontextmanager
async def _lane(
    name: str,
    connect: Callable[[], Connection],
    work: Callable[[Connection, list[_Job]], None],
    at_once: int,
) -> AsyncIterator[_Lane]:
    lane = _Lane(name, connect, work, at_once)
    try:
        await lane.opened()
        yield lane
    finally:
        await lane.close()


def _answer(batch: list[_Job]) -> None:
    for job in batch:
        if not job.future.done():
            job.future.set_result(None)
        elif job.error is not None:
            logger.error("a call of the ledger failed after its caller had gone", exc_info=job.error)


def _commit(connection: Connection, batch: list[_Job]) -> None:
    """All changes of the batch in one transaction. Raises if none of them is kept."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        if len(batch) == 1:
            _make(connection, batch[0])  # alone it needs no savepoint, which would be a third of its cost
        else:
            for job in batch:
                _make_apart(connection, job)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _query(connection: Connection, batch: list[_Job]) -> None:
    for job in batch:
        connection.execute("BEGIN")
        try:
            _make(connection, job)
        finally:
            connection.execute("ROLLBACK")


def _make_apart(connection: Connection, job: _Job) -> None:
    connection.execute("SAVEPOINT change")
    try:
        _make(connection, job)
    except BaseException:  # it is in the job, and rises in do()
        if not connection.in_transaction:
            raise  # SQLite itself has rolled back everything, as it does on a full disk
        connection.execute("ROLLBACK TO change")
    connection.execute("RELEASE change")


def _make(connection: Connection, job: _Job) -> None:
    try:
        job.value = job.call(connection)
    except sqlite3.OperationalError as exc:
        code: int = getattr(exc, "sqlite_errorcode", 0)  # the Python half of sqlite3 raises without one
        job.error = _failed(exc) if code & 0xFF in _OUTSIDE else exc
        raise
    except BaseException as exc:
        job.error = exc
        raise


_OUTSIDE = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_READONLY,
    }
)
"""Primary codes that tell of the machine, not of a mistake in our SQL."""


def _failed(exc: BaseException) -> LedgerFailed:
    failed = LedgerFailed(f"the ledger failed: {exc}", hint="aiosctl doctor --fix")
    failed.__cause__ = exc
    return failed


# --- the file ------------------------------------------------------------------------------------------


def connect(path: Path) -> Connection:
    """A connection of this thread that may write, to a ledger of today's schema. Raises LedgerFailed."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # What is in it is nobody else's; SQLite gives the log beside the file the file's mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
    except (OSError, sqlite3.Error) as exc:
        raise LedgerFailed(f"{path} cannot be opened: {exc}") from exc
    try:
        bring(connection, path)
        connection.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def _connect_reader(path: Path) -> Connection:
    """The file is there and ours by now: the writer was opened first."""
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_S, isolation_level=None
    )


def _scrub(path: Path) -> None:
    forget_copies(path)
    # A connection of its own, since the writer's is in a transaction whenever it is given something to do.
    with closing(sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)) as connection:
        (busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        logger.warning("the write-ahead log could not be emptied", extra={"waited_s": BUSY_S})


def counts(c: Connection) -> dict[str, int]:
    """Rows of each noun."""
    return {
        noun: c.execute(f"SELECT count(*) FROM {noun}").fetchone()[0]
        for noun in ("sessions", "tasks", "memories")
    }
