"""The rows of memories: the truth that the index is made from, and can be made from again. Functions of a
Connection, for Database.read and Database.write."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from aiosd.errors import NotFound
from aiosd.records import Memory, Privacy
from aiosd.state.columns import (
    MAX_INTEGER,
    Integer,
    cut,
    known,
    micros,
    moment,
    moment_or_none,
    place,
    within,
)
from aiosd.state.database import Connection

_COLUMNS = (
    "memory_id, user_id, session_id, speaker, kind, content, source, trust, privacy, created_at, metadata"
)
_AMONG = "(SELECT DISTINCT value FROM json_each(?)) CROSS JOIN memories ON memory_id = value"
"""The memories that a list names: a CROSS JOIN is made from left to right, so the list is what is searched with."""
MOST_SPEAKERS = 500
"""Names that a query is searched for."""

_metadata = msgspec.json.Decoder(dict[str, Any])


class Scope(msgspec.Struct, frozen=True):
    """Whose memories may be seen: one user's, all of them or those of one session."""

    user_id: str
    session_id: str | None
    is_private: bool = False
    """What is asked here stays on this machine."""


def _inside(scope: Scope) -> tuple[str, tuple[str, ...]]:
    """The condition that keeps users apart, and its values. Every query that takes a Scope has it from here."""
    if scope.session_id is None:
        return "user_id = ?", (scope.user_id,)
    return "user_id = ? AND session_id = ?", (scope.user_id, scope.session_id)


def add(c: Connection, memories: Sequence[Memory]) -> None:
    """In this order, each with the next `seq`."""
    c.executemany(
        f"INSERT INTO memories ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (
                memory.memory_id,
                memory.user_id,
                memory.session_id,
                memory.speaker,
                memory.kind,
                memory.content,
                memory.source,
                memory.trust,
                memory.privacy,
                micros(memory.created_at),
                msgspec.json.encode(memory.metadata).decode(),
            )
            for memory in memories
        ],
    )


def get(c: Connection, memory_id: str) -> Memory:
    """Whoever's it is. Raises NotFound."""
    row = c.execute(
        f"SELECT {_COLUMNS} FROM memories WHERE memory_id = ?", (known("memory", memory_id),)
    ).fetchone()
    if row is None:
        raise NotFound(f"no memory {memory_id}")
    return _memory(row)


def fetch(c: Connection, ids: Sequence[str], scope: Scope) -> dict[str, Memory]:
    """Those of the ids that the scope may see, by id: an index may be behind, or wrong."""
    inside, values = _inside(scope)
    rows = c.execute(
        f"SELECT {_COLUMNS} FROM {_AMONG} WHERE {inside}",
        (_json(ids), *values),
    ).fetchall()
    return {row[0]: _memory(row) for row in rows}


def page(
    c: Connection, scope: Scope, *, limit: int, cursor: str | None
) -> tuple[tuple[Memory, ...], str | None]:
    """The newest first, by `created_at`; of one time, the last added first."""
    where, inside = _inside(scope)
    values: tuple[object, ...] = inside
    if cursor is not None:
        where += " AND (created_at, seq) < (?, ?)"
        values += place(cursor, tuple[Integer, Integer])
    limit = within(limit)
    rows, following = cut(
        c.execute(
            f"SELECT {_COLUMNS}, seq FROM memories WHERE {where} ORDER BY created_at DESC, seq DESC LIMIT ?",
            (*values, limit + 1),
        ).fetchall(),
        limit,
        lambda row: (row[9], row[11]),
    )
    return tuple(map(_memory, rows)), following


def notes(c: Connection, scope: Scope, limit: int, upto: int = MAX_INTEGER) -> tuple[Memory, ...]:
    """The last by `created_at`, the newest first, of what was given to remember: no completed runs, no summaries, and
    none kept after number `upto`."""
    inside, values = _inside(scope)
    rows = c.execute(
        f"SELECT {_COLUMNS} FROM memories WHERE {inside} AND kind <> 'task' AND kind <> 'summary'"
        " AND +seq <= ? ORDER BY created_at DESC, seq DESC LIMIT ?",
        (*values, upto, limit),
    )
    return tuple(map(_memory, rows))


def summaries(
    c: Connection, scope: Scope, before: datetime, limit: int, upto: int = MAX_INTEGER
) -> tuple[Memory, ...]:
    """The last by `created_at`, the newest first, of what was told before this time; none kept after number `upto`."""
    inside, values = _inside(scope)
    rows = c.execute(
        f"SELECT {_COLUMNS} FROM memories WHERE {inside} AND kind = 'summary' AND created_at < ?"
        " AND +seq <= ? ORDER BY created_at DESC, seq DESC LIMIT ?",
        (*values, micros(before), upto, limit),
    )
    return tuple(map(_memory, rows))


def rows(c: Connection, after: int, limit: int, privacy: Privacy | None = None) -> list[tuple[int, Memory]]:
    """Everybody's, in order of `seq`, which only grows: what an index has not seen yet. Of one privacy or of all."""
    return [
        (row[11], _memory(row))
        for row in c.execute(
            f"SELECT {_COLUMNS}, seq FROM memories WHERE seq > ?1 AND (?2 IS NULL OR privacy = ?2)"
            " ORDER BY seq LIMIT ?3",
            (after, privacy, limit),
        )
    ]


def exported(
    c: Connection, user_id: str | None, *, limit: int, cursor: str | None, size_bytes: int
) -> tuple[tuple[Memory, ...], str | None]:
    """A user's, or everybody's, in the order they were added; as many as `size_bytes` of JSON hold, one at least."""
    where, values = ["1"], list[Any]()
    if user_id is not None:
        where.append("user_id = ?")
        values.append(user_id)
    if cursor is not None:
        where.append("seq > ?")
        values += place(cursor, tuple[Integer])
    limit = within(limit)
    rows = c.execute(
        f"SELECT {_COLUMNS}, seq FROM memories WHERE {' AND '.join(where)} ORDER BY seq LIMIT ?",
        (*values, limit + 1),
    )
    taken: list[tuple[Any, ...]] = []
    for row in rows:
        size_bytes -= len(msgspec.json.encode(row[5])) + len(row[10])
        taken.append(row)
        if size_bytes < 0 and len(taken) > 1:
            limit = min(limit, len(taken) - 1)
            break
    page, following = cut(taken, limit, lambda row: (row[11],))
    return tuple(map(_memory, page)), following


def counts(c: Connection, user_id: str | None) -> dict[str, Any]:
    """Of a user's memories, or of everybody's; fields as in aiosd.protocol.memory.Stats."""
    where, values = ("user_id = ?", (user_id,)) if user_id is not None else ("1", ())
    total, users, in_sessions, private, untrusted, derived, size, first, last = c.execute(
        "SELECT count(*), count(DISTINCT user_id), count(DISTINCT session_id), total(privacy = 'local'),"
        " total(trust < 1), total(EXISTS (SELECT 1 FROM lineage AS l WHERE l.memory_id = m.memory_id"
        " AND l.origin LIKE 'memory:%')), total(length(CAST(content AS BLOB))), min(created_at), max(created_at)"
        f" FROM memories AS m WHERE {where}",
        values,
    ).fetchone()

    def by(what: str) -> dict[str, int]:
        return dict(
            c.execute(f"SELECT {what}, count(*) FROM memories WHERE {where} GROUP BY 1 ORDER BY 1", values)
        )

    return {
        "memories": total,
        "users": users,
        "sessions": in_sessions,
        "by_kind": by("kind"),
        "by_source": by("substr(source, 1, coalesce(nullif(instr(source, ':'), 0) - 1, length(source)))"),
        "private": int(private),
        "untrusted": int(untrusted),
        "derived": int(derived),
        "content_bytes": int(size),
        "first_at": moment_or_none(first),
        "last_at": moment_or_none(last),
    }


def speakers(c: Connection, scope: Scope) -> tuple[str, ...]:
    """Everybody who spoke one of these, at most MOST_SPEAKERS; found by leaps through an index, not in every row."""
    inside, values = _inside(scope)
    following = f"SELECT min(speaker) FROM memories WHERE {inside} AND speaker"
    names = c.execute(
        f"WITH RECURSIVE s(name) AS ({following} IS NOT NULL UNION ALL"
        f" SELECT ({following} > name) FROM s WHERE name IS NOT NULL LIMIT {MOST_SPEAKERS})"
        " SELECT name FROM s WHERE name IS NOT NULL",
        values * 2,
    )
    return tuple(row[0] for row in names)


def around(
    c: Connection,
    scope: Scope,
    ids: Sequence[str],
    *,
    kind: str | None,
    source: str | None,
    as_of: int | None,
) -> list[tuple[Any, ...]]:
    """Those of the ids that the scope may see, and where somebody spoke in their session of each the one before it and
    the two after it there, by time; without those that do not fit `kind`, `source` and `as_of` (not created after, in
    microseconds). Most rows are notes, which are not found by what stands beside them: these are read once.

    Columns as in aiosd.memory.ranking.Turn. A row that came only as the one before has no `before` of its own.
    """
    inside, values = _inside(scope)
    # Two searches instead of one by (created_at, seq): SQLite would use the first of the pair alone, and go through
    # all that was remembered at one time.
    beside = "SELECT seq FROM memories WHERE user_id = m.user_id AND session_id = m.session_id AND created_at"
    before = (
        f"coalesce(({beside} = m.created_at AND seq < m.seq ORDER BY seq DESC LIMIT 1),"
        f" ({beside} < m.created_at ORDER BY created_at DESC, seq DESC LIMIT 1))"
    )
    after = (
        f"coalesce(({beside} = m.created_at AND seq > m.seq ORDER BY seq LIMIT 1),"
        f" ({beside} > m.created_at ORDER BY created_at, seq LIMIT 1))"
    )
    turn = (
        "session_id, created_at, speaker, instr(content, '?') > 0, rtrim(content) LIKE '%?', length(content)"
    )
    fits = "(? IS NULL OR kind = ?) AND (? IS NULL OR source = ?) AND (? IS NULL OR created_at <= ?)"
    fitting = (kind, kind, source, source, as_of, as_of)
    hits = c.execute(
        f"SELECT seq, memory_id, {before}, {turn} FROM (SELECT DISTINCT value FROM json_each(?))"
        f" CROSS JOIN memories AS m ON memory_id = value WHERE {inside} AND {fits}",
        (_json(ids), *values, *fitting),
    ).fetchall()
    found = c.execute(
        "SELECT value FROM json_each(?) WHERE EXISTS"
        " (SELECT 1 FROM memories WHERE user_id = ? AND session_id = value AND speaker IS NOT NULL)",
        (_json(list({row[3] for row in hits})), scope.user_id),
    )
    spoken = {session_id for (session_id,) in found}
    if not spoken:
        return hits
    beside_them = c.execute(
        "WITH told(seq, before) AS MATERIALIZED"
        " (SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?)),"
        f" next(seq, before) AS MATERIALIZED (SELECT {after}, m.seq FROM told CROSS JOIN memories AS m USING (seq)),"
        " near(seq, before) AS (SELECT before, NULL FROM told UNION ALL SELECT seq, before FROM next"
        f" UNION ALL SELECT {after}, m.seq FROM next CROSS JOIN memories AS m USING (seq))"
        f" SELECT m.seq, memory_id, before, {turn} FROM (SELECT seq, max(before) AS before FROM near"
        f" WHERE seq NOT IN (SELECT seq FROM told) GROUP BY seq) CROSS JOIN memories AS m USING (seq) WHERE {fits}",
        (_json([(row[0], row[2]) for row in hits if row[3] in spoken]), *fitting),
    )
    return hits + beside_them.fetchall()


def texts(c: Connection, ids: Sequence[str], privacy: Privacy | None = None) -> list[Memory]:
    """Those of the ids that are there, whoever's, for the index; of one privacy or of all."""
    found = c.execute(
        f"SELECT {_COLUMNS} FROM {_AMONG} WHERE ? IS NULL OR privacy = ?", (_json(ids), privacy, privacy)
    )
    return [_memory(row) for row in found]


def sample(c: Connection, n: int, privacy: Privacy) -> list[Memory]:
    """At most `n` from all over the table, the same each time."""
    rows = c.execute(
        f"SELECT {_COLUMNS} FROM memories WHERE privacy = ? ORDER BY seq * 2654435761 % 4294967296 LIMIT ?",
        (privacy, n),
    )
    return [_memory(row) for row in rows]


def there(c: Connection, ids: Sequence[str], privacy: Privacy | None = None) -> set[str]:
    """Those of the ids that are there, whoever's; of one privacy or of all."""
    found = c.execute(
        f"SELECT memory_id FROM {_AMONG} WHERE ? IS NULL OR privacy = ?", (_json(ids), privacy, privacy)
    )
    return {row[0] for row in found}


def count(c: Connection, privacy: Privacy | None = None, *, upto: int | None = None) -> int:
    """How many there are: of one privacy or of all, up to a `seq` or to the last."""
    counted: int = c.execute(
        "SELECT count(*) FROM memories WHERE (?1 IS NULL OR privacy = ?1) AND (?2 IS NULL OR seq <= ?2)",
        (privacy, upto),
    ).fetchone()[0]
    return counted


def select(
    c: Connection,
    scope: Scope | None,
    *,
    memory_id: str | None = None,
    ids: Sequence[str] | None = None,
    source: str | None = None,
    before: datetime | None = None,
) -> tuple[str, ...]:
    """Ids that fit every condition given, in the order they were added; `before` is older than, not as old as.

    Without a scope they are anybody's, which is the owner's to ask.
    """
    table, where, values = "memories", ["1"], list[Any]()
    if ids is not None:
        table = _AMONG
        values.append(_json(ids))
    if scope is not None:
        inside, of = _inside(scope)
        where.append(inside)
        values += of
    if memory_id is not None:
        where.append("memory_id = ?")
        values.append(memory_id)
    if source is not None:
        # A run is the source of its own memory, and of those that its tools made.
        where.append("(source = ? OR memory_id IN (SELECT memory_id FROM lineage WHERE origin = ?))")
        values += [source, source]
    if before is not None:
        where.append("created_at < ?")
        values.append(micros(before))
    found = c.execute(f"SELECT memory_id FROM {table} WHERE {' AND '.join(where)} ORDER BY seq", values)
    return tuple(row[0] for row in found)


def delete(c: Connection, ids: Sequence[str]) -> int:
    """How many there were of these."""
    return c.execute(
        "DELETE FROM memories WHERE memory_id IN (SELECT value FROM json_each(?))", (_json(ids),)
    ).rowcount


def _json(ids: Sequence[object]) -> str:
    """Many values in one parameter, so that there is no number too many and the statement stays prepared."""
    return msgspec.json.encode(ids).decode()


def _memory(row: tuple[Any, ...]) -> Memory:
    return Memory(
        memory_id=row[0],
        user_id=row[1],
        session_id=row[2],
        speaker=row[3],
        kind=row[4],
        content=row[5],
        source=row[6],
        trust=row[7],
        privacy=row[8],
        created_at=moment(row[9]),
        metadata=_metadata.decode(row[10]),
    )
