"""Keeps the index after the table of memories: the one hand that changes the index.

Whatever adds memories adds rows; the index is brought to the last row here, in order of `seq`, whether the rows
came a moment ago or the index was lost. So remembering, replaying and rebuilding are one thing.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import anyio
import msgspec

from aiosd.child import Call, ChildDied, Started, backoff_s, open_child
from aiosd.errors import AiosError, DeadlineExceeded, InvalidState
from aiosd.memory.embedding import TEXTS, Embedding, Engine, LocalModel, said
from aiosd.memory.graph import DIM
from aiosd.memory.parted import Index, Parted, Progress
from aiosd.memory.points import Point, Position, Where
from aiosd.memory.ranking import Found
from aiosd.memory.remote import Server, open_remote
from aiosd.memory.weights import MODEL
from aiosd.records import Memory, Privacy
from aiosd.state import memories
from aiosd.state.columns import micros
from aiosd.state.database import Connection, Database

ROWS = 128
"""Memories read at once, and put at once where they are short."""

BATCH_BYTES = 512 * 1024
"""Text put at once; JSON may make six times as many bytes of it, of which a message may have 8 MiB."""

DELETES = 1_000
"""Ids in one call."""

SHORT = 2_000
"""Rows that the index may be behind for callers to wait until it is not: a second or less."""

CHANGE_S = 60.0
"""Deadline of one change of the index, after which the worker is held to hang."""

QUERY_S = 20.0
"""Deadline of one query, with the start of a worker before it."""

ROUNDS = 5
"""Times that an index is filled which nobody runs: what is remembered meanwhile comes with the next."""

QUERY_TRIES = 3
"""Workers that may die under a query: by chance, or on damaged files, which the next one makes again."""

WAIT_S = 30.0
"""How long `caught_up` waits for the index at most. What is in SQLite is safe without it."""

IDLE_S = 300.0
"""Unasked for this long the worker ends; the next to ask waits 0.3 s for another, and a second for its model."""

CHECK_SHARE = 0.2
"""Of the worker's time, while it compares the index with the table: 100,000 memories take a minute."""


logger = logging.getLogger(__name__)


@asynccontextmanager
async def open_follower(
    database: Database,
    folder: Path,
    weights: Path | None,
    model: LocalModel | None = None,
    server: Server | None = None,
    *,
    idle_s: float = IDLE_S,
) -> AsyncIterator[tuple[Index, Beside]]:
    """The index in this folder, in its worker, which is started at once; by words alone without `weights` of the
    worker's embedder and without a `model` instead of it. With a server only private memories are in the folder. Beside
    it another can be filled."""
    argv = [sys.executable, "-P", "-m", "aiosd.memory.worker", str(folder)]
    if weights is not None:
        argv.append(str(weights))
    embedder = MODEL if weights is not None else model.name if model is not None else "none"
    followers: list[Follower] = []

    def starting(number: int) -> Started:
        async def started(call: Call) -> None:
            await followers[number].synchronize(call)

        return started

    def follow(engine: Engine, privacy: Privacy | None) -> Follower:
        embedding = Embedding(database, engine, embedder, model, privacy)
        followers.append(Follower(database, engine, embedding, privacy))
        return followers[-1]

    @asynccontextmanager
    async def beside(there: Server) -> AsyncIterator[Follower]:
        vectors = await model.space() if model is not None else own
        async with open_remote(there, child, vectors, lambda call: filled.synchronize(call)) as engine:
            filled = Follower(database, engine, Embedding(database, engine, embedder, model, "any"), "any")
            yield filled

    own = (MODEL, DIM) if weights is not None else None

    async with (
        open_child(argv, name="memory worker", env={}, idle_s=idle_s, started=starting(0)) as child,
        AsyncExitStack() as stack,
    ):
        index: Index = follow(child, "local" if server else None)
        if server is not None:
            remote = await stack.enter_async_context(open_remote(server, child, own, starting(1)))
            index = Parted(followers[0], follow(remote, "any"))
        async with anyio.create_task_group() as tasks:
            for follower in followers:
                tasks.start_soon(follower.run)
                tasks.start_soon(follower.embedding.run)
                tasks.start_soon(follower.run_checking)
            try:
                yield index, beside
            finally:
                tasks.cancel_scope.cancel()


Beside = Callable[[Server], AbstractAsyncContextManager["Follower"]]
"""Another index of what may leave, on a server, which nobody runs."""


class Follower:
    """The index, as far as it has come."""

    def __init__(
        self, database: Database, child: Engine, embedding: Embedding, privacy: Privacy | None = None
    ) -> None:
        self._database = database
        self._privacy = privacy
        """Of the rows that it follows; None is all."""
        self._child = child
        self._after = 0
        """The last row that the index has seen."""
        self._forgotten: set[str] = set()
        """What SQLite has no longer, and the index may."""
        self._is_behind = False
        """For longer than a caller should wait: it is rebuilt, or its worker does not live."""
        self._wake = anyio.Event()
        self._wake.set()
        self._waiting: list[anyio.Event] = []
        self.embedding = embedding
        self._is_doubtful = True
        """Nobody has compared what is in the index with the table since a process or a machine may have broken off."""
        self._wake_checking = anyio.Event()

    async def caught_up(self, forgotten: Collection[str] = ()) -> None:
        """Returns once the index has every row that is committed now, and none of these; or when that takes long.

        It has the vectors too, unless these are more than NEW.
        """
        done = anyio.Event()
        self._forgotten.update(forgotten)
        self._waiting.append(done)
        self._wake.set()
        if not self._is_behind:
            with anyio.move_on_after(WAIT_S):
                await done.wait()
                if not forgotten:
                    await self.embedding.caught_up()

    @property
    def embedder(self) -> str:
        return self.embedding.embedder

    async def query(self, text: str, meaning: str, where: Where, *, is_private: bool = False) -> Found:
        """What fits the words of `text`, and what `meaning`. Raises ChildDied, DeadlineExceeded."""
        tries = 0
        params = {"text": text, "meaning": meaning, "where": where}
        params["vector"] = await self.embedding.vector(meaning)
        while True:
            try:
                found = await self._ask("query", params)
            except ChildDied as exc:
                self._is_doubtful = True
                tries += 1
                if tries == QUERY_TRIES or exc.retry_after_s > 1:
                    raise
                await anyio.sleep(exc.retry_after_s)
            else:
                return msgspec.convert(found, Found)

    async def _ask(self, method: str, params: object) -> Any:
        try:
            return await self._child.call(method, params, timeout_s=QUERY_S)
        except DeadlineExceeded:
            if self._child.is_ready:  # otherwise it is starting, for which it has longer
                self._child.kill()
            raise

    async def run(self) -> None:
        """Follows the table until cancelled, whatever becomes of the worker."""
        failures = 0
        while True:
            await self._wake.wait()
            self._wake = anyio.Event()
            waiting, self._waiting = self._waiting, []
            try:
                await self._follow()
            except AiosError as exc:
                failures += 1
                delay_s = max(backoff_s(failures), exc.retry_after_s if isinstance(exc, ChildDied) else 0.0)
                logger.warning("memory index fell behind", extra={"why": str(exc), "retry_s": delay_s})
                self._is_doubtful = True
                if isinstance(exc, DeadlineExceeded):
                    self._child.kill()
                self._wake.set()
                if not delay_s:
                    self._waiting += waiting
                    continue
                self._is_behind = True
                self._release(waiting + self._waiting)
                self._waiting = []
                await anyio.sleep(delay_s)
            else:
                if self._is_behind:
                    logger.info("memory index caught up", extra={"seq": self._after})
                failures = 0
                self._is_behind = False
                self._release(waiting)

    async def run_checking(self) -> None:
        """Compares every memory with its point after each start that gives a reason to, until cancelled."""
        while True:
            await self._wake_checking.wait()
            self._wake_checking = anyio.Event()
            try:
                await self._check()
            except AiosError as exc:  # whoever asks next starts a worker, whose start wakes this again
                logger.warning("checking the index was interrupted", extra={"why": str(exc)})

    async def _check(self) -> None:
        self._is_doubtful = False
        seq, mended = 0, 0
        while rows := [
            row
            for row in await self._database.read(lambda c: memories.rows(c, seq, ROWS, self._privacy))  # noqa: B023
            if row[0] <= self._after
        ]:
            began = anyio.current_time()
            for points in _batches(rows):
                wrong = await self._child.call("mend", {"points": points}, timeout_s=CHANGE_S)
                mended += len(wrong)
                if wrong:
                    await self._mended(msgspec.convert(wrong, list[str]))
            seq = rows[-1][0]
            await anyio.sleep((anyio.current_time() - began) * (1 / CHECK_SHARE - 1))
        logger.info("memory index checked", extra={"seq": seq, "mended": mended})

    async def reindex(self) -> AsyncIterator[Progress]:
        """Puts every memory and its vector again, in place: what is not there yet is found as before. Raises AiosError.

        Left in the middle, what was put again and has no vector yet is embedded as what is new is.
        """
        await self._whole()
        total = await self._database.read(lambda c: memories.count(c, self._privacy))
        seq = done = 0
        try:
            while rows := [
                row
                for row in await self._database.read(lambda c: memories.rows(c, seq, TEXTS, self._privacy))  # noqa: B023
                if row[0] <= self._after
            ]:
                for points in _batches(rows):
                    await self._child.call("mend", {"points": points, "all": True}, timeout_s=CHANGE_S)
                    await self._take_back([point.memory_id for point in points])
                await self.embedding.embed([memory for _, memory in rows])
                seq = rows[-1][0]
                done += len(rows)
                yield Progress(min(done, total), total)
        finally:
            self.embedding.lacks()

    async def fill(self) -> AsyncIterator[Progress]:
        """Brings an index that nobody runs to the last row, with every vector, and without what was forgotten meanwhile.
        What is there already stays, so it can be broken off and gone on with. Raises AiosError."""
        call = self._child.call
        total, left = await self._left(call)
        done = total - left
        yield Progress(done, total)
        for _ in range(ROUNDS):
            while rows := await self._database.read(
                lambda c: memories.rows(c, self._after, TEXTS, self._privacy)
            ):
                for points in _batches(rows):
                    await call("put", {"after": self._after, "points": points}, timeout_s=CHANGE_S)
                    self._after = points[-1].seq
                await self.embedding.embed([memory for _, memory in rows])
                done += len(rows)
                yield Progress(min(done, total), total)
            while known := await self.embedding.lacking():
                await self.embedding.embed(known)
                done += len(known)
                yield Progress(min(done, total), total)
            self._child.kill()  # made ready again it is compared with the table, and what was forgotten taken out
            total, left = await self._left(call)
            if not left:
                yield Progress(total, total)
                return
        raise InvalidState(f"the index lacks {left} of {total} memories, however often they are put there")

    async def _left(self, call: Call) -> tuple[int, int]:
        """How many rows there are, and how many of them are not in the index with all that belongs to them."""
        position = msgspec.convert(await call("position", timeout_s=CHANGE_S), Position)
        total = await self._database.read(lambda c: memories.count(c, self._privacy))
        return total, max(total - position.count, 0) + position.lacking

    async def _whole(self) -> None:
        """Returns once the index has every row, however long that takes."""
        while True:
            done = anyio.Event()
            self._waiting.append(done)
            self._wake.set()
            await done.wait()
            if not self._is_behind:
                return

    async def _mended(self, ids: list[str]) -> None:
        """These were put again, and have no vectors yet."""
        await self._take_back(ids)
        self.embedding.lacks()

    async def _take_back(self, ids: Sequence[str]) -> None:
        """Of these, which were put again, those that had just been forgotten."""
        kept = await self._database.read(lambda c: memories.there(c, ids, self._privacy))
        self._forgotten.update(set(ids) - kept)
        self._wake.set()

    def _release(self, waiting: list[anyio.Event]) -> None:
        for done in waiting:
            done.set()

    async def synchronize(self, call: Call) -> None:
        """Finds out how far a new worker's index has come; goes on from there, or from the start if it cannot.

        A short way is gone here, before anybody asks the new worker; a long one is left to `run`.
        """
        await self._delete(call)
        position = await self.embedding.opened(call)
        is_part, behind = await self._database.read(lambda c: _compare(c, position, self._privacy))
        if not is_part and await self._delete_strays(call):
            position = msgspec.convert(await call("position", timeout_s=CHANGE_S), Position)
            is_part, behind = await self._database.read(lambda c: _compare(c, position, self._privacy))
        if is_part:
            self._after = position.last_seq
        else:
            await call("clear", timeout_s=CHANGE_S)
            self._after = 0
        logger.info(
            "memory index opened", extra={"points": position.count, "kept": is_part, "behind": behind}
        )
        self._wake.set()
        if self._is_doubtful and is_part:
            self._wake_checking.set()
        if behind > SHORT:
            self._is_behind = True
        else:
            await self._put(call)

    async def _delete_strays(self, call: Call) -> int:
        """Takes out what was forgotten while no worker heard of it, as when the daemon is killed right after a commit:
        how many those were. Where there would be little left, none."""
        strays: list[str] = []
        after = kept = 0
        while page := msgspec.convert(
            await call("ids", {"after": after, "n": DELETES}, timeout_s=CHANGE_S), list[tuple[int, str]]
        ):
            if page[-1][0] <= after:  # its order is damaged, and would lead in a circle
                return 0
            after = page[-1][0]
            there = await self._database.read(
                lambda c: memories.there(c, [id for _, id in page], self._privacy)
            )
            kept += len(there)
            strays += [id for _, id in page if id not in there]
        if len(strays) > kept:
            return 0
        self._forgotten.update(strays)
        await self._delete(call)
        return len(strays)

    async def _follow(self) -> None:
        call = self._child.call
        if not self._child.is_ready:  # or rows would be read that are put before this call is through
            await call("position", timeout_s=CHANGE_S)
        # In this order: a row that was read before it was forgotten is put first, and then deleted.
        await self._put(call)
        await self._delete(call)

    async def _put(self, call: Call) -> None:
        while rows := await self._database.read(lambda c: memories.rows(c, self._after, ROWS, self._privacy)):
            for points in _batches(rows):
                # The worker refuses what does not join on: it was restarted meanwhile, and `_after` is another.
                await call("put", {"after": self._after, "points": points}, timeout_s=CHANGE_S)
                self._after = points[-1].seq
                self.embedding.add([point.memory_id for point in points])
            if len(rows) < ROWS:
                break  # what came meanwhile has woken `run` again
        self.embedding.go_on()

    async def _delete(self, call: Call) -> None:
        while ids := list(islice(self._forgotten, DELETES)):
            await call("delete", {"ids": ids}, timeout_s=CHANGE_S)
            self._forgotten.difference_update(ids)


def _compare(c: Connection, position: Position, privacy: Privacy | None) -> tuple[bool, int]:
    """Whether the index is the first part of the table, with nothing missing; and by how many rows it is shorter.

    The count shows what was lost or not deleted, the id a table that is not the one it was made from.
    """
    count = memories.count(c, privacy)
    rows = memories.rows(c, position.last_seq - 1, 1, privacy) if position.count else []
    last_id = rows[0][1].memory_id if rows else None
    if last_id == position.last_id and memories.count(c, privacy, upto=position.last_seq) == position.count:
        return True, count - position.count
    return False, count


def _batches(rows: Sequence[tuple[int, Memory]]) -> Iterator[list[Point]]:
    batch: list[Point] = []
    size_bytes = 0
    for seq, memory in rows:
        point = _point(seq, memory)
        size_bytes += len(point.text.encode())
        if batch and size_bytes > BATCH_BYTES:
            yield batch
            batch, size_bytes = [], len(point.text.encode())
        batch.append(point)
    yield batch


def _point(seq: int, memory: Memory) -> Point:
    return Point(
        memory_id=memory.memory_id,
        seq=seq,
        # When it was is asked for in words too: "What did Ann do in May 2023?"
        text=f"{said(memory)} ({memory.created_at.day} {memory.created_at:%B, %Y})",
        user_id=memory.user_id,
        session_id=memory.session_id,
        kind=memory.kind,
        source=memory.source,
        created_at=micros(memory.created_at),
    )
