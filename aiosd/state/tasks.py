"""The rows of tasks and of their events, which are their journal: what `append` has kept is all that a daemon
knows of a task after it was killed. Functions of a Connection, for Database.read and Database.write."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from aiosd.errors import InvalidState, NotFound
from aiosd.protocol.sessions import SessionRun
from aiosd.records import (
    ENDED,
    Kept,
    MessageEvent,
    Priority,
    StateEvent,
    Task,
    TaskResult,
    TaskState,
    Tokens,
    Tool,
    UsageEvent,
)
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
    "task_id, number, session_id, parent_id, task, state, priority, created_at, started_at, ended_at, steps,"
    " cost_usd, result, error"
)
_UNENDED = "'queued', 'working', 'input_required'"
_result = msgspec.json.Decoder(TaskResult)
_error = msgspec.json.Decoder(dict[str, Any])
_params = msgspec.json.Decoder(SessionRun)
_event: msgspec.json.Decoder[Kept] = msgspec.json.Decoder(Kept)


def insert(
    c: Connection,
    task_id: str,
    session_id: str,
    *,
    params: SessionRun,
    parent_id: str | None = None,
    priority: Priority,
    created_at: datetime,
    idempotency_key: str | None = None,
) -> Task:
    """A queued task with the next number. Where the session has a task with this key, that one comes back and
    nothing is added: its `task_id` tells. Raises NotFound for the session."""
    known("session", session_id)
    if idempotency_key is not None:
        row = c.execute(
            f"SELECT {_COLUMNS} FROM tasks WHERE session_id = ? AND idempotency_key = ?",
            (session_id, idempotency_key),
        ).fetchone()
        if row is not None:
            return _task(row)
    added = c.execute(
        "INSERT INTO tasks (task_id, session_id, parent_id, task, state, priority, created_at, params,"
        " idempotency_key) SELECT ?, session_id, ?, ?, 'queued', ?, ?, ?, ? FROM sessions WHERE session_id = ?",
        (
            task_id,
            parent_id,
            params.task,
            priority,
            micros(created_at),
            msgspec.json.encode(params).decode(),
            idempotency_key,
            session_id,
        ),
    )
    if not added.rowcount:
        raise NotFound(f"no session {session_id}")
    if parent_id is not None:
        c.execute(
            "INSERT INTO descent (ancestor_id, ancestor_session_id, task_id, session_id)"
            " SELECT ancestor_id, ancestor_session_id, ?, ? FROM descent WHERE task_id = ?"
            " UNION ALL SELECT task_id, session_id, ?, ? FROM tasks WHERE task_id = ?",
            (task_id, session_id, parent_id, task_id, session_id, parent_id),
        )
    return get(c, task_id)


def get(c: Connection, task_id: str) -> Task:
    """Raises NotFound."""
    row = c.execute(f"SELECT {_COLUMNS} FROM tasks WHERE task_id = ?", (known("task", task_id),)).fetchone()
    if row is None:
        raise NotFound(f"no task {task_id}")
    return _task(row)


def params(c: Connection, task_id: str) -> SessionRun:
    """What the task was started with. Raises NotFound."""
    row = c.execute("SELECT params FROM tasks WHERE task_id = ?", (known("task", task_id),)).fetchone()
    if row is None:
        raise NotFound(f"no task {task_id}")
    return _params.decode(row[0])


def page(
    c: Connection, *, session_id: str | None, state: TaskState | None, limit: int, cursor: str | None
) -> tuple[tuple[Task, ...], str | None]:
    """The newest first. Raises NotFound for a session that is none."""
    where, values = ["1"], list[Any]()
    if session_id is not None:
        where.append("session_id = ?")
        values.append(known("session", session_id))
    if state is not None:
        # The plus keeps a session's rows on the session's own index.
        where.append("state = ?" if session_id is None else "+state = ?")
        values.append(state)
    if cursor is not None:
        where.append("number < ?")
        values += place(cursor, tuple[Integer])
    limit = within(limit)
    rows, following = cut(
        c.execute(
            f"SELECT {_COLUMNS} FROM tasks WHERE {' AND '.join(where)} ORDER BY number DESC LIMIT ?",
            (*values, limit + 1),
        ).fetchall(),
        limit,
        lambda row: (row[1],),
    )
    return tuple(map(_task, rows)), following


def unended(c: Connection) -> tuple[Task, ...]:
    """What a daemon that starts finds unfinished, the oldest first."""
    rows = c.execute(f"SELECT {_COLUMNS} FROM tasks WHERE state IN ({_UNENDED}) ORDER BY number").fetchall()
    return tuple(map(_task, rows))


def found(c: Connection, task_id: str) -> Task | None:
    row = c.execute(f"SELECT {_COLUMNS} FROM tasks WHERE task_id = ?", (task_id,)).fetchone()
    return None if row is None else _task(row)


def children(c: Connection, task_id: str) -> tuple[Task, ...]:
    """What the task itself has started, in that order."""
    rows = c.execute(
        f"SELECT {_COLUMNS} FROM tasks WHERE parent_id = ? ORDER BY number", (task_id,)
    ).fetchall()
    return tuple(map(_task, rows))


def descendants(c: Connection, task_id: str) -> tuple[Task, ...]:
    """All that is below the task."""
    rows = c.execute(
        f"SELECT {_COLUMNS} FROM tasks WHERE task_id IN (SELECT task_id FROM descent WHERE ancestor_id = ?)"
        " ORDER BY number",
        (task_id,),
    ).fetchall()
    return tuple(map(_task, rows))


def kin(c: Connection, task_id: str) -> tuple[int, int, int]:
    """Generations above a child of this task; its children; all that is below its first ancestor."""
    above: int = c.execute("SELECT count(*) FROM descent WHERE task_id = ?", (task_id,)).fetchone()[0]
    started: int = c.execute("SELECT count(*) FROM tasks WHERE parent_id = ?", (task_id,)).fetchone()[0]
    in_tree: int = c.execute(
        "SELECT max(n) FROM (SELECT count(*) AS n FROM descent WHERE ancestor_id = ? OR ancestor_id IN"
        " (SELECT ancestor_id FROM descent WHERE task_id = ?) GROUP BY ancestor_id)",
        (task_id, task_id),
    ).fetchone()[0]
    return above + 1, started, in_tree or 0


class Ancestor(msgspec.Struct, frozen=True):
    """A task above another one, and its caps in dollars."""

    task_id: str
    session_id: str
    task_usd: float | None
    session_usd: float | None


def ancestors(c: Connection, task_id: str) -> tuple[Ancestor, ...]:
    rows = c.execute(
        "SELECT t.task_id, t.session_id, t.params, s.max_usd FROM descent d"
        " JOIN tasks t ON t.task_id = d.ancestor_id JOIN sessions s ON s.session_id = t.session_id"
        " WHERE d.task_id = ?",
        (task_id,),
    ).fetchall()
    return tuple(Ancestor(row[0], row[1], _params.decode(row[2]).max_usd, row[3]) for row in rows)


def sessions_below(c: Connection, session_id: str) -> tuple[str, ...]:
    """The sessions of all tasks that descend from the session's."""
    rows = c.execute(
        "SELECT DISTINCT session_id FROM descent WHERE ancestor_session_id = ?", (session_id,)
    ).fetchall()
    return tuple(row[0] for row in rows)


def append(c: Connection, *events: Kept) -> None:
    """Keeps events under the numbers they carry, and what they say of the task in its row.

    Raises NotFound for the task, and InvalidState for a state after the last one: whatever races to end a task,
    one wins.
    """
    for event in events:
        known("task", event.task_id)
        match event:
            case StateEvent():
                _change_state(c, event)
            case MessageEvent():
                c.execute("UPDATE tasks SET steps = steps + 1 WHERE task_id = ?", (event.task_id,))
            case UsageEvent():
                _spend(c, event)
        try:
            c.execute(
                "INSERT INTO events (task_id, seq, kind, body) VALUES (?, ?, ?, ?)",
                (
                    event.task_id,
                    event.seq,
                    event.__struct_config__.tag,
                    msgspec.json.encode(event).decode(),
                ),
            )
        except c.IntegrityError:
            get(c, event.task_id)  # raises if it is the task that is missing; else the number was used before
            raise


def _change_state(c: Connection, event: StateEvent) -> None:
    at = micros(event.at)
    changed = c.execute(
        "UPDATE tasks SET state = ?, started_at = coalesce(started_at, ?), ended_at = ?"
        f" WHERE task_id = ? AND state IN ({_UNENDED})",
        (
            event.state,
            at if event.state == "working" else None,
            at if event.state in ENDED else None,
            event.task_id,
        ),
    )
    if not changed.rowcount:
        task = get(c, event.task_id)
        raise InvalidState(f"task {task.number} is {task.state}: it cannot become {event.state}")


def _spend(c: Connection, event: UsageEvent) -> None:
    if not event.cost_usd:
        return
    c.execute(
        "UPDATE tasks SET cost_usd = cost_usd + ?, held_usd = 0 WHERE task_id = ?",
        (event.cost_usd, event.task_id),
    )
    c.execute(
        "INSERT INTO spending (at, cost_usd, session_id, task_id)"
        " SELECT ?, ?, session_id, task_id FROM tasks WHERE task_id = ?",
        (micros(event.at), event.cost_usd, event.task_id),
    )


def hold(c: Connection, task_id: str, usd: float) -> None:
    """Notes what the task's next dispatch may cost at most, until it is known what it did."""
    c.execute("UPDATE tasks SET held_usd = ? WHERE task_id = ?", (usd, task_id))


def spend_held(c: Connection, at: datetime) -> None:
    """What was under way when the daemon was killed counts at the most that it can have cost."""
    rows = c.execute(f"SELECT task_id, held_usd FROM tasks WHERE state IN ({_UNENDED}) AND held_usd > 0")
    for task_id, usd in rows.fetchall():
        seq = last_seq(c, task_id) + 1
        append(c, UsageEvent(task_id=task_id, seq=seq, at=at, usage=Tokens(), cost_usd=usd))


def keep_toolset(c: Connection, digest: str, tools: bytes) -> None:
    """`tools` as a model is told of them, in JSON; the same again changes nothing."""
    c.execute("INSERT OR IGNORE INTO toolsets (digest, tools) VALUES (?, ?)", (digest, tools.decode()))


def toolset(c: Connection, digest: str) -> tuple[Tool, ...]:
    """What a `route` event names. Raises NotFound."""
    row = c.execute("SELECT tools FROM toolsets WHERE digest = ?", (digest,)).fetchone()
    if row is None:
        raise NotFound(f"no set of tools {digest}")
    return msgspec.json.decode(row[0], type=tuple[Tool, ...])


def spend_apart(c: Connection, *, at: datetime, cost_usd: float) -> None:
    """Keeps what was spent outside of any session: it counts for the day alone."""
    c.execute(
        "INSERT INTO spending (at, cost_usd, session_id, task_id) VALUES (?, ?, '', '')",
        (micros(at), cost_usd),
    )


def finish(c: Connection, task_id: str, *, result: TaskResult | None, error: dict[str, Any] | None) -> None:
    """Keeps the outcome; the state is an event's to change. Raises NotFound."""
    changed = c.execute(
        "UPDATE tasks SET result = ?, error = ? WHERE task_id = ?",
        (
            None if result is None else msgspec.json.encode(result).decode(),
            None if error is None else msgspec.json.encode(error).decode(),
            known("task", task_id),
        ),
    )
    if not changed.rowcount:
        raise NotFound(f"no task {task_id}")


def prioritize(c: Connection, task_id: str, priority: Priority) -> Task:
    """Raises NotFound, and InvalidState for a task that has ended."""
    changed = c.execute(
        f"UPDATE tasks SET priority = ? WHERE task_id = ? AND state IN ({_UNENDED})",
        (priority, known("task", task_id)),
    )
    task = get(c, task_id)
    if not changed.rowcount:
        raise InvalidState(f"task {task.number} is {task.state} already")
    return task


def touch(c: Connection, task_id: str) -> Task:
    """Written as it is: whether it can be. Raises NotFound, and InvalidState for a task that has ended."""
    return prioritize(c, task_id, get(c, task_id).priority)


def events(c: Connection, task_id: str, after_seq: int = 0) -> tuple[Kept, ...]:
    """What was kept after this number, in order. Raises NotFound."""
    rows = c.execute(
        "SELECT body FROM events WHERE task_id = ? AND seq > ? ORDER BY seq",
        (known("task", task_id), min(max(after_seq, 0), MAX_INTEGER)),
    ).fetchall()
    if not rows:
        get(c, task_id)
    return tuple(_event.decode(row[0]) for row in rows)


def last_seq(c: Connection, task_id: str) -> int:
    """The number of the task's last event. Raises NotFound."""
    last: int | None = c.execute(
        "SELECT max(seq) FROM events WHERE task_id = ?", (known("task", task_id),)
    ).fetchone()[0]
    if last is None:
        get(c, task_id)
    return last or 0


def spent(
    c: Connection,
    *,
    session_id: str | None = None,
    task_id: str | None = None,
    since: datetime | None = None,
) -> float:
    """Dollars, of all or of these alone with what descends from them, deleted ones too; to a billionth, so that the sum
    of many is exact."""
    where, values = ["1"], list[Any]()
    if session_id is not None:
        where.append(
            "(session_id = ? OR task_id IN (SELECT task_id FROM descent WHERE ancestor_session_id = ?))"
        )
        values += [session_id, session_id]
    if task_id is not None:
        where.append("(task_id = ? OR task_id IN (SELECT task_id FROM descent WHERE ancestor_id = ?))")
        values += [task_id, task_id]
    if since is not None:
        where.append("at >= ?")
        values.append(micros(since))
    billionths: int = c.execute(
        "SELECT coalesce(sum(CAST(round(cost_usd * 1e9) AS INTEGER)), 0) FROM spending"
        f" WHERE {' AND '.join(where)}",
        values,
    ).fetchone()[0]
    return billionths / 1e9


def _task(row: tuple[Any, ...]) -> Task:
    return Task(
        task_id=row[0],
        number=row[1],
        session_id=row[2],
        parent_id=row[3],
        task=row[4],
        state=row[5],
        priority=row[6],
        created_at=moment(row[7]),
        started_at=moment_or_none(row[8]),
        ended_at=moment_or_none(row[9]),
        steps=row[10],
        cost_usd=row[11],
        result=None if row[12] is None else _result.decode(row[12]),
        error=None if row[13] is None else _error.decode(row[13]),
    )
