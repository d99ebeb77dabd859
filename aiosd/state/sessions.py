"""The rows of sessions and of their turns. Functions of a Connection, for Database.read and Database.write."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from aiosd.errors import NotFound
from aiosd.records import Memory, Session, SessionState, Turn
from aiosd.state.columns import MAX_INTEGER, MAX_PAGE, Integer, cut, known, micros, moment, place, within
from aiosd.state.database import Connection
from aiosd.state.memories import Scope, notes, summaries

_COLUMNS = (
    "session_id, user_id, title, agent, permissions, privacy, priority, max_usd, workspace, write, state,"
    " created_at, used_at"
)
HELD = 200
"""Turns that a session's working memory holds as they were said; of those before, their summaries. The rows stay as
long as their session, since journals name them."""

SUMMARIES = 3
"""Of what was said before the turns that are shown."""

_permissions = msgspec.json.Decoder(tuple[str, ...])


def insert(c: Connection, session: Session, *, system: str | None) -> None:
    """`system` is what its models are told first; it is kept beside the record, which crosses the wire."""
    c.execute(
        f"INSERT INTO sessions ({_COLUMNS}, system) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            session.session_id,
            session.user_id,
            session.title,
            session.agent,
            msgspec.json.encode(session.permissions).decode(),
            session.privacy,
            session.priority,
            session.max_usd,
            session.workspace,
            session.write,
            session.state,
            micros(session.created_at),
            micros(session.used_at),
            system,
        ),
    )


def get(c: Connection, session_id: str) -> Session:
    """Raises NotFound."""
    session = find(c, known("session", session_id))
    if session is None:
        raise NotFound(f"no session {session_id}")
    return session


def find(c: Connection, session_id: str) -> Session | None:
    """None where it has been deleted."""
    row = c.execute(f"SELECT {_COLUMNS} FROM sessions WHERE session_id = ?", (session_id,)).fetchone()
    return None if row is None else _session(row)


def of_agent(c: Connection, agent: str) -> Session | None:
    """The open one that was used last."""
    row = c.execute(
        f"SELECT {_COLUMNS} FROM sessions WHERE state = 'open' AND agent = ? ORDER BY used_at DESC LIMIT 1",
        (agent,),
    ).fetchone()
    return None if row is None else _session(row)


def system(c: Connection, session_id: str) -> str | None:
    """What the session's models are told first. Raises NotFound."""
    row = c.execute(
        "SELECT system FROM sessions WHERE session_id = ?", (known("session", session_id),)
    ).fetchone()
    if row is None:
        raise NotFound(f"no session {session_id}")
    text: str | None = row[0]
    return text


def page(
    c: Connection, *, state: SessionState | None, limit: int, cursor: str | None
) -> tuple[tuple[Session, ...], str | None]:
    """The last used first. A session that is used between two pages moves ahead of both."""
    where, values = ["1"], list[Any]()
    if state is not None:
        where.append("state = ?")
        values.append(state)
    if cursor is not None:
        where.append("(used_at, session_id) < (?, ?)")
        values += place(cursor, tuple[Integer, str])
    limit = within(limit)
    rows, following = cut(
        c.execute(
            f"SELECT {_COLUMNS} FROM sessions WHERE {' AND '.join(where)}"
            " ORDER BY used_at DESC, session_id DESC LIMIT ?",
            (*values, limit + 1),
        ).fetchall(),
        limit,
        lambda row: (row[12], row[0]),
    )
    return tuple(map(_session, rows)), following


def close(c: Connection, session_id: str) -> None:
    """Raises NotFound; a closed one stays closed."""
    _changed(
        c.execute(
            "UPDATE sessions SET state = 'closed' WHERE session_id = ?", (known("session", session_id),)
        ).rowcount,
        session_id,
    )


def cap(c: Connection, session_id: str, max_usd: float | None) -> None:
    """Changes what the session may cost. Raises NotFound."""
    _changed(
        c.execute(
            "UPDATE sessions SET max_usd = ? WHERE session_id = ?", (max_usd, known("session", session_id))
        ).rowcount,
        session_id,
    )


def delete(c: Connection, session_id: str) -> None:
    """With its turns, tasks and events, and the sessions of all that its tasks have started; memories stay, and so does
    what was spent. Raises NotFound."""
    c.execute(
        "DELETE FROM sessions WHERE session_id IN (SELECT session_id FROM descent WHERE ancestor_session_id = ?)",
        (known("session", session_id),),
    )
    _changed(
        c.execute("DELETE FROM sessions WHERE session_id = ?", (known("session", session_id),)).rowcount,
        session_id,
    )


def touch(c: Connection, session_id: str, used_at: datetime) -> None:
    """Notes a use; an earlier one than the last changes nothing. Raises NotFound."""
    _changed(
        c.execute(
            "UPDATE sessions SET used_at = max(used_at, ?) WHERE session_id = ?",
            (micros(used_at), known("session", session_id)),
        ).rowcount,
        session_id,
    )


def add_turn(c: Connection, session_id: str, turn: Turn) -> None:
    """Raises NotFound."""
    _changed(
        c.execute(
            "INSERT INTO turns (session_id, role, content, created_at, task_id, privacy)"
            " SELECT session_id, ?, ?, ?, ?, ? FROM sessions WHERE session_id = ?",
            (
                turn.role,
                turn.content,
                micros(turn.created_at),
                turn.task_id,
                turn.privacy,
                known("session", session_id),
            ),
        ).rowcount,
        session_id,
    )


class Unsettled(msgspec.Struct, frozen=True):
    """A session with turns that are no part of long-term memory yet."""

    session_id: str
    closed: bool
    used_at: datetime
    turns: int


def unsettled(c: Connection) -> tuple[Unsettled, ...]:
    """The one used longest ago first."""
    rows = c.execute(
        "SELECT s.session_id, s.state = 'closed', s.used_at, count(*) FROM sessions AS s"
        " JOIN turns AS t ON t.session_id = s.session_id AND t.turn_id > s.consolidated"
        " GROUP BY s.session_id ORDER BY s.used_at"
    )
    return tuple(Unsettled(id, bool(closed), moment(used_at), n) for id, closed, used_at, n in rows)


def next_turns(c: Connection, session_id: str, n: int) -> list[tuple[int, Turn]]:
    """The oldest `n` of them, by their number."""
    rows = c.execute(
        "SELECT turn_id, role, content, t.created_at, task_id, t.privacy FROM turns AS t"
        " JOIN sessions AS s USING (session_id) WHERE session_id = ? AND turn_id > s.consolidated"
        " ORDER BY turn_id LIMIT ?",
        (session_id, n),
    )
    return [
        (
            id,
            Turn(role=role, content=content, created_at=moment(created_at), task_id=task_id, privacy=privacy),
        )
        for id, role, content, created_at, task_id, privacy in rows
    ]


def settle(c: Connection, session_id: str, turn_id: int) -> None:
    """Notes that the turns up to this one are a part of long-term memory."""
    c.execute("UPDATE sessions SET consolidated = ? WHERE session_id = ?", (turn_id, session_id))


def moment_now(c: Connection) -> tuple[int, int]:
    """The numbers of the last turn and the last memory there are: rows that only grow, so `turns` up to here give
    again what they give now, but for what is forgotten."""
    row: tuple[int, int] = c.execute(
        "SELECT (SELECT coalesce(max(turn_id), 0) FROM turns), (SELECT coalesce(max(seq), 0) FROM memories)"
    ).fetchone()
    return row


def turns(
    c: Connection,
    session_id: str,
    last_n: int,
    upto: tuple[int, int] = (MAX_INTEGER, MAX_INTEGER),
) -> tuple[Turn, ...]:
    """The session's working memory: what was said in it and what it was given to remember, the last ones by
    their time, the oldest first; at most 1000, and HELD of those that were said. Where there is more, what summarizes the turns before them takes the
    place of some. `upto` is a moment that `moment_now` gave.

    Notes are the session's memories themselves, so one that is forgotten is gone here too. Raises NotFound.
    """
    session = get(c, session_id)
    limit = min(max(last_n, 0), MAX_PAGE)
    said = [
        Turn(role=role, content=content, created_at=moment(created_at), task_id=task_id, privacy=privacy)
        for role, content, created_at, task_id, privacy in c.execute(
            "SELECT role, content, created_at, task_id, privacy FROM turns WHERE session_id = ?"
            " AND turn_id <= ? ORDER BY turn_id DESC LIMIT ?",
            (session_id, upto[0], min(limit, HELD)),
        )
    ]
    scope = Scope(session.user_id, session_id)
    noted = [_note(memory) for memory in notes(c, scope, limit, upto[1])]
    # Both are the newest first, and sorting is stable: turned round, turns of one time stay as they were added.
    latest = sorted([*noted, *said], key=lambda turn: turn.created_at, reverse=True)[:limit]
    # A summary is as old as the last turn in it: without older turns there is none before the oldest one here.
    if latest and (room := min(SUMMARIES, limit // 4)):
        told = [_note(memory) for memory in summaries(c, scope, latest[-1].created_at, room, upto[1])]
        latest = latest[: limit - len(told)] + told
    return tuple(reversed(latest))


def _note(memory: Memory) -> Turn:
    return Turn(
        role="note",
        content=memory.content,
        created_at=memory.created_at,
        task_id=None,
        privacy=memory.privacy,
        trust=memory.trust,
    )


def _changed(rowcount: int, session_id: str) -> None:
    if not rowcount:
        raise NotFound(f"no session {session_id}")


def _session(row: tuple[Any, ...]) -> Session:
    return Session(
        session_id=row[0],
        user_id=row[1],
        title=row[2],
        agent=row[3],
        permissions=_permissions.decode(row[4]),
        privacy=row[5],
        priority=row[6],
        max_usd=row[7],
        workspace=row[8],
        write=bool(row[9]),
        state=row[10],
        created_at=moment(row[11]),
        used_at=moment(row[12]),
    )
