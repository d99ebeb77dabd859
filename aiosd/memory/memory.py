"""Long-term memory: remember, recall, forget. SQLite has the memories and is the truth; the index finds them.

Nothing is answered that SQLite does not give to the Scope that asks: an index that is behind, damaged or mistaken
may miss a memory, but shows nobody another's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import anyio
import msgspec

from aiosd.errors import ConfigError, InvalidParams, InvalidState
from aiosd.memory import checks, ranking
from aiosd.memory.embedding import LocalModel
from aiosd.memory.follower import IDLE_S, Beside, open_follower
from aiosd.memory.migration import migrate
from aiosd.memory.parted import Index, Progress
from aiosd.memory.points import Where
from aiosd.memory.remote import Server
from aiosd.protocol.memory import Export, Exported, Lineage, NewMemory, Origin, Stats
from aiosd.records import Memory, Privacy, ScoredMemory, Session
from aiosd.state import lineage, sessions
from aiosd.state import memories as table
from aiosd.state.columns import micros
from aiosd.state.database import Connection, Database
from aiosd.state.memories import Scope

T = TypeVar("T")

MAX_QUERY = 8_000
"""Characters of a query that are looked at. What matters in a longer one has been said by then."""

MAX_RECALLED = 100
"""Memories that one recall may ask for."""

EXPORTED = 2 * 1024 * 1024
"""Bytes of JSON in a page of an export, which is one line of the protocol."""

MAX_SCOPES = 1000
"""Whose speakers are kept at hand."""

SPARE = 6
"""Memories of a ranking that are read at once beyond those asked for, in place of such as say the same as another."""

PAGE = 128
"""Memories read at once where many are looked through."""


def scope_of(session: Session) -> Scope:
    """What a session may see: with `memory` or `*` all of its user's memories, otherwise its own."""
    given = set(session.permissions)
    whole_user = bool(given & {"memory", "*"}) and not given & {"!memory", "!*"}
    return Scope(
        session.user_id, None if whole_user else session.session_id, is_private=session.privacy == "local"
    )


@asynccontextmanager
async def open_memory(
    database: Database,
    index_dir: Path,
    weights: Path | None = None,
    model: LocalModel | None = None,
    server: Server | None = None,
    reach: Callable[[str], Server] | None = None,
    *,
    idle_s: float = IDLE_S,
) -> AsyncIterator[Memories]:
    """The memories in this database, with their index in this folder, which is made where there is none.

    They are found by their words, and by their meaning with the embedder's `weights` or a `model` instead of it. The
    worker that finds them ends after `idle_s` unasked, until it is asked again. On a `server` are all but the private.
    `reach` makes another of an address, and may raise ConfigError.
    """
    async with open_follower(database, index_dir, weights, model, server, idle_s=idle_s) as (index, beside):
        yield Memories(database, index, beside, reach, server)


class Memories:
    """All that is remembered."""

    def __init__(
        self,
        database: Database,
        index: Index,
        beside: Beside,
        reach: Callable[[str], Server] | None = None,
        server: Server | None = None,
    ) -> None:
        self._database = database
        self._index = index
        self._beside = beside
        self._reach = reach
        self._server = server
        self.on_blanked: Callable[[Collection[str]], Awaitable[None]] = _keeps_nothing
        """Told of sessions in whose runs something was forgotten: its text may be kept elsewhere, too."""
        self._speakers: dict[Scope, tuple[str, ...]] = {}
        """By scope, as they were last asked for; a new dict after each change."""

    def record(
        self,
        session: Session,
        content: str,
        *,
        kind: str,
        source: str,
        privacy: Privacy,
        created_at: datetime,
        trust: float = 1.0,
    ) -> Memory:
        """A memory to be added in a transaction of the caller's own, who then calls `index`.

        The daemon remembers by itself here, so a text that is too long is cut, not refused.
        """
        return Memory(
            memory_id=str(uuid4()),
            user_id=session.user_id,
            session_id=session.session_id,
            content=content.encode()[: checks.MAX_CONTENT].decode(errors="ignore"),
            speaker=None,
            kind=kind,
            source=source,
            trust=trust,
            privacy=checks.strictest(privacy, session.privacy),
            created_at=created_at,
            metadata={},
        )

    @property
    def embedder(self) -> str:
        """The model that finds by meaning; "none", and why where one was to be used."""
        return self._index.embedder

    async def index(self, added: Sequence[Memory]) -> None:
        """Returns once recall finds these, which are committed; or when that takes long, for they are safe."""
        if added:
            await self._index.caught_up()

    def reindex(self) -> AsyncIterator[Progress]:
        """Makes the index again, while recall goes on. Raises AiosError."""
        return self._index.reindex()

    async def migrate(self, url: str) -> AsyncIterator[Progress]:
        """Makes another index of what may leave, on the Qdrant server there, and compares it with the one in use, which
        stays that. Raises InvalidState, ServerFailed, DeadlineExceeded."""
        async with self._beside(self.target(url)) as target:
            async for progress in migrate(self._database, self._index, target, url):
                yield progress

    def target(self, url: str) -> Server:
        """Where an index can be made beside the one in use. Raises InvalidState: it is the one, or has no key."""
        assert self._reach is not None
        if self._server is not None and self._server.url.rstrip("/") == url.rstrip("/"):
            raise InvalidState(f"the index is on {url} already", hint="aiosctl memory reindex")
        try:
            return self._reach(url)
        except ConfigError as exc:
            raise InvalidState(str(exc), hint=exc.hint) from None

    async def remember(
        self,
        session: Session,
        memories: Sequence[NewMemory],
        *,
        trust: float = 1.0,
        task_id: str | None = None,
    ) -> tuple[str, ...]:
        """Keeps all of them or none; their ids in the same order, once they are on the disk and found by recall.

        Where the index cannot follow at once, what is on the disk is answered. `task_id` is the run they are made in.
        Raises InvalidParams.
        """
        now = datetime.now(UTC)
        added = [checks.given(session, memory, trust, now, place) for place, memory in enumerate(memories)]
        origins = () if task_id is None else (lineage.of_task(task_id),)

        def add(c: Connection) -> None:
            table.add(c, added)
            lineage.record(c, {memory.memory_id: origins for memory in added})

        await self._change(add)
        await self.index(added)
        return tuple(memory.memory_id for memory in added)

    async def recall(
        self,
        scope: Scope,
        query: str,
        *,
        n: int = 5,
        as_of: datetime | None = None,
        kind: str | None = None,
        source: str | None = None,
    ) -> tuple[ScoredMemory, ...]:
        """At most `n` (1 to 100) memories that share words or meaning with the query, or stand in a conversation
        beside one that does, the best first.

        `as_of` leaves out what was created after it. What is asked in a private scope stays on this machine: of what a server has
        indexed it finds nothing. Raises InvalidParams; ChildDied and DeadlineExceeded where the
        index does not work.
        """
        if not 1 <= n <= MAX_RECALLED:
            raise InvalidParams(f"n: expected 1 to {MAX_RECALLED}, got {n}")
        where = Where(
            user_id=scope.user_id,
            session_id=scope.session_id,
            kind=kind,
            source=source,
            as_of=None if as_of is None else micros(checks.in_utc(as_of)),
        )
        if not query.strip():
            return ()
        query = query[:MAX_QUERY]
        speaker = ranking.named(query, await self._speakers_in(scope))
        meaning = ranking.meaning(query, speaker)
        hits = await self._index.query(query, meaning, where, is_private=scope.is_private)

        def ranked(c: Connection) -> tuple[list[tuple[str, float]], dict[str, Memory]]:
            ids = list(hits.words.keys() | hits.meaning.keys())
            near = table.around(c, scope, ids, kind=kind, source=source, as_of=where.as_of)
            ranked = ranking.rank([ranking.Turn(*row) for row in near], hits, speaker, len(near))
            found: dict[str, Memory] = {}
            best: list[tuple[str, float]] = []
            for start in range(0, len(ranked), n + SPARE):
                some = ranked[start : start + n + SPARE]
                found |= table.fetch(c, [id for id, _ in some], scope)
                sums = [id for id, _ in some if id in found and found[id].kind == "summary"]
                best += ranking.distinct(some, found, lineage.origins(c, sums), best)
                if len(best) >= n:
                    break
            return best[:n], found

        best, found = await self._database.read(ranked)
        texts = [found[id].content for id, _ in best[: ranking.FIRST]]
        scores = ranking.likelihoods(meaning, best, texts, hits)
        return tuple(
            ScoredMemory(**msgspec.structs.asdict(found[id]), score=score)
            for (id, _), score in zip(best, scores, strict=True)
        )

    async def forget(
        self,
        *,
        memory_id: str | None = None,
        query: str | None = None,
        session_id: str | None = None,
        user_id: str | None = None,
        source: str | None = None,
        before: datetime | None = None,
        dry_run: bool = False,
    ) -> int:
        """Removes the memories that fit every condition given and all that was made from them, with their text in
        the records of runs, and counts them; with `dry_run` only counts.

        A query fits what contains each of its words as written, in either case: less than recall would find,
        since what is forgotten is gone. Raises InvalidParams without any condition, NotFound for no session.
        """
        if all(value is None for value in (memory_id, query, session_id, user_id, source, before)):
            raise InvalidParams("forget: expected a condition; without one it would be everything")
        scope = await self._scope(session_id, user_id)
        ids = None if query is None else await self._containing(query)
        before = None if before is None else checks.in_utc(before)

        def fitting(c: Connection) -> tuple[tuple[str, ...], tuple[str, ...]]:
            chosen = table.select(c, scope, memory_id=memory_id, ids=ids, source=source, before=before)
            return chosen, lineage.with_descendants(c, chosen)

        def remove(c: Connection) -> tuple[tuple[str, ...], tuple[str, ...]]:
            chosen, fitted = fitting(c)
            return fitted, lineage.erase(c, fitted, chosen)

        if dry_run:
            return len((await self._database.read(fitting))[1])
        gone, blanked = await self._change(remove)
        if gone:
            await self.on_blanked(blanked)
            await self._index.caught_up(forgotten=gone)
            await self._database.scrub()
        return len(gone)

    async def export(self, user_id: str | None, *, limit: int, cursor: str | None) -> Export:
        """A page of a user's memories, or of everybody's, in the order they were added. Raises InvalidParams."""

        def page(c: Connection) -> Export:
            found, following = table.exported(c, user_id, limit=limit, cursor=cursor, size_bytes=EXPORTED)
            origins = lineage.origins(c, [memory.memory_id for memory in found])
            return Export(
                memories=tuple(
                    Exported(**msgspec.structs.asdict(memory), derived_from=origins.get(memory.memory_id, ()))
                    for memory in found
                ),
                next_cursor=following,
            )

        return await self._database.read(page)

    async def take_in(self, memories: Sequence[Exported]) -> tuple[str, ...]:
        """Adds these as they are, all or none, once they are on the disk and found; ids of those that were not here.

        Raises InvalidParams, and InvalidState where one of the same id is here and is another.
        """
        given: dict[str, Exported] = {}
        for place, memory in enumerate(memories):
            checked = checks.imported(memory, place)
            if given.setdefault(checked.memory_id, checked) != checked:
                raise InvalidParams(f"memories[{place}]: {checked.memory_id} is given twice, and differs")

        def add(c: Connection) -> list[Memory]:
            here = {memory.memory_id: memory for memory in table.texts(c, list(given))}
            new = []
            for memory_id, exported in given.items():
                memory = checks.memory_of(exported)
                if memory_id not in here:
                    new.append(memory)
                elif here[memory_id] != memory:
                    raise InvalidState(
                        f"the memory {memory_id} is here already, and is another",
                        hint=f"aiosctl memory show {memory_id}",
                    )
            table.add(c, new)
            lineage.record(c, {memory.memory_id: given[memory.memory_id].derived_from for memory in new})
            return new

        added = await self._change(add)
        await self.index(added)
        return tuple(memory.memory_id for memory in added)

    async def stats(self, user_id: str | None) -> Stats:
        counted = await self._database.read(lambda c: table.counts(c, user_id))
        return Stats(**counted, embedder=self.embedder)

    async def why(self, memory_id: str) -> Lineage:
        """Where a memory came from, and what was made from it. Raises NotFound."""

        def traced(c: Connection) -> Lineage:
            memory = table.get(c, memory_id)
            derived_from, runs, said = lineage.ancestors(c, memory)
            return Lineage(
                memory=memory,
                session=sessions.find(c, memory.session_id),
                tasks=tuple(
                    Origin(task_id=t.task_id, number=t.number, task=t.task, state=t.state) for t in runs
                ),
                turns=said,
                derived_from=derived_from,
                derived=lineage.descendants(c, memory),
            )

        return await self._database.read(traced)

    async def _speakers_in(self, scope: Scope) -> tuple[str, ...]:
        """Only what is added or forgotten here changes them, so most recalls ask the ledger for nothing."""
        kept = self._speakers
        found = kept.get(scope)
        if found is None:
            found = await self._database.read(lambda c: table.speakers(c, scope))
            if len(kept) >= MAX_SCOPES:
                kept.clear()
            kept[scope] = found  # nobody looks into `kept` any more if it was replaced meanwhile
        return found

    async def _change(self, change: Callable[[Connection], T]) -> T:
        """A change of who has spoken, or so it may be."""
        with anyio.CancelScope(shield=True):  # it happens, whether or not its caller waits for it
            made = await self._database.write(change)
            self._speakers = {}
        return made

    async def _scope(self, session_id: str | None, user_id: str | None) -> Scope | None:
        """None is everybody."""
        if user_id is not None:
            return Scope(user_id, session_id)
        if session_id is None:
            return None
        session = await self._database.read(lambda c: sessions.get(c, session_id))
        return Scope(session.user_id, session_id)

    async def _containing(self, query: str) -> list[str]:
        """Ids of the memories, whoever's, that contain each word of the query."""
        words = query.casefold().split()
        if not words:
            raise InvalidParams("query: expected words")
        found: list[str] = []
        after: int | None = 0
        while after is not None:
            after, ids = await self._database.read(partial(_page_containing, words=words, after=after))
            found += ids
        return found


async def _keeps_nothing(session_ids: Collection[str]) -> None:
    pass


def _page_containing(c: Connection, *, words: Sequence[str], after: int) -> tuple[int | None, list[str]]:
    """Those among the next memories, and where to go on."""
    rows = table.rows(c, after, PAGE)
    contents = ((memory.memory_id, memory.content.casefold()) for _, memory in rows)
    ids = [id for id, content in contents if all(word in content for word in words)]
    return rows[-1][0] if rows else None, ids
