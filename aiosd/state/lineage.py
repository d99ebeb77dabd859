"""Where memories came from, and how what was made of one goes with it. Functions of a Connection, for Database.read
and Database.write.

An origin is `memory:ID` or `task:ID`: the first names a memory that this one says again, the second the run that it was
made in, whose turns hold the words.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from aiosd.records import (
    Kept,
    Memory,
    MessageEvent,
    ProgressEvent,
    Task,
    TaskResult,
    ToolCallEvent,
    ToolResultEvent,
    Turn,
)
from aiosd.state import memories, tasks
from aiosd.state.columns import moment
from aiosd.state.database import Connection

FORGOTTEN = "(forgotten)"
"""What stands where a forgotten text stood in the record of a run."""

TITLE_CHARS = 20
"""A session's title this long that begins as a task does was made from it; a shorter one may be its user's own word."""


def of_memory(memory_id: str) -> str:
    return f"memory:{memory_id}"


def of_task(task_id: str) -> str:
    return f"task:{task_id}"


def record(c: Connection, origins: Mapping[str, Sequence[str]]) -> None:
    """Keeps, by memory_id, what each of these memories was made from; they have been added before."""
    c.executemany(
        "INSERT OR IGNORE INTO lineage (memory_id, origin) VALUES (?, ?)",
        [(memory_id, origin) for memory_id, given in origins.items() for origin in given],
    )


def origins(c: Connection, ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """What each of these was made from, in order of their names; a memory that was made from nothing is not here."""
    found: dict[str, tuple[str, ...]] = {}
    for memory_id, origin in c.execute(
        "SELECT memory_id, origin FROM lineage WHERE memory_id IN (SELECT value FROM json_each(?))"
        " ORDER BY memory_id, origin",
        (_json(ids),),
    ):
        found[memory_id] = (*found.get(memory_id, ()), origin)
    return found


def add_run(c: Connection, task_id: str, memory: Memory, rests_on: Collection[str]) -> None:
    """Keeps what a run leaves as a memory of itself, made from these and from the memories that were made in it."""
    made = c.execute("SELECT memory_id FROM lineage WHERE origin = ?", (of_task(task_id),)).fetchall()
    made_from = {*rests_on, *(memory_id for (memory_id,) in made)}
    memories.add(c, [memory])
    record(c, {memory.memory_id: [of_task(task_id), *map(of_memory, made_from)]})


def memories_of_runs(c: Connection, task_ids: Sequence[str]) -> list[Memory]:
    """What each of these runs left as a memory of itself; of one that was forgotten, nothing."""
    rows = c.execute(
        "SELECT memory_id FROM lineage JOIN memories USING (memory_id) WHERE kind = 'task' AND source = origin"
        " AND origin IN (SELECT value FROM json_each(?)) ORDER BY seq",
        (_json([of_task(task_id) for task_id in task_ids]),),
    ).fetchall()
    return memories.texts(c, [row[0] for row in rows])


def least_trust(c: Connection, ids: Collection[str]) -> float:
    """Of these that are there; 1.0 without any."""
    return min((memory.trust for memory in memories.texts(c, list(ids))), default=1.0)


def ancestors(c: Connection, memory: Memory) -> tuple[tuple[Memory, ...], tuple[Task, ...], tuple[Turn, ...]]:
    """The memories it was made from, the runs it was made in, and what was said in those; of what has been deleted
    since, nothing."""
    given = [origin.split(":", 1) for origin in origins(c, [memory.memory_id]).get(memory.memory_id, ())]
    from_memories = memories.texts(c, [id for noun, id in given if noun == "memory"])
    rows = c.execute(
        "SELECT task_id FROM tasks JOIN sessions USING (session_id) WHERE user_id = ?"
        " AND task_id IN (SELECT value FROM json_each(?)) ORDER BY number",
        (memory.user_id, _json([id for noun, id in given if noun == "task"])),
    ).fetchall()
    runs = tuple(tasks.get(c, task_id) for (task_id,) in rows)
    return tuple(_of(memory.user_id, from_memories)), runs, turns(c, [run.task_id for run in runs])


def descendants(c: Connection, memory: Memory) -> tuple[Memory, ...]:
    """The memories that were made from it, directly."""
    rows = c.execute("SELECT memory_id FROM lineage WHERE origin = ?", (of_memory(memory.memory_id),))
    return tuple(_of(memory.user_id, memories.texts(c, [row[0] for row in rows])))


def turns(c: Connection, task_ids: Sequence[str]) -> tuple[Turn, ...]:
    """What was said in these runs, in order."""
    rows = c.execute(
        "SELECT role, content, created_at, task_id, privacy FROM turns"
        " WHERE session_id IN (SELECT session_id FROM tasks WHERE task_id IN (SELECT value FROM json_each(?1)))"
        " AND task_id IN (SELECT value FROM json_each(?1)) ORDER BY turn_id",
        (_json(task_ids),),
    )
    return tuple(
        Turn(role=role, content=content, created_at=moment(created_at), task_id=task_id, privacy=privacy)
        for role, content, created_at, task_id, privacy in rows
    )


def with_descendants(c: Connection, ids: Sequence[str]) -> tuple[str, ...]:
    """These memories and all that was made from them, from what was made from them, and so on; of the same user."""
    rows = c.execute(
        "WITH RECURSIVE gone(memory_id, user_id) AS ("
        " SELECT memory_id, user_id FROM memories WHERE memory_id IN (SELECT value FROM json_each(?))"
        " UNION SELECT m.memory_id, m.user_id FROM gone"
        " CROSS JOIN lineage AS l ON l.origin = 'memory:' || gone.memory_id"
        " CROSS JOIN memories AS m ON m.memory_id = l.memory_id AND m.user_id = gone.user_id)"
        " SELECT memory_id FROM gone",
        (_json(ids),),
    )
    return tuple(row[0] for row in rows)


class Untold(msgspec.Struct, frozen=True):
    """What is left of a summary that was forgotten for a part of it."""

    untold_id: int
    session_id: str
    turns: tuple[Turn, ...]


def untold(c: Connection) -> Untold | None:
    """The first of them."""
    row = c.execute("SELECT untold_id, session_id, runs FROM untold ORDER BY untold_id LIMIT 1").fetchone()
    if row is None:
        return None
    untold_id, session_id, runs = row
    found = turns(c, msgspec.json.decode(runs, type=list[str]))
    return Untold(untold_id, session_id, found)


def told_again(c: Connection, untold: Untold) -> None:
    c.execute("DELETE FROM untold WHERE untold_id = ?", (untold.untold_id,))


# --- erasing -------------------------------------------------------------------------------------------


def erase(c: Connection, ids: Sequence[str], chosen: Collection[str]) -> tuple[str, ...]:
    """Deletes these memories, and their text from the records of the runs that have ended: one whose memory is among
    them loses all that was said in it, one that was given such a memory loses that. Their sessions. Those that were `chosen` are not to be made again."""
    runs = c.execute(
        "SELECT t.task_id FROM memories AS m JOIN tasks AS t ON t.task_id = substr(m.source, 6)"
        " AND m.session_id = t.session_id JOIN sessions AS s ON s.session_id = t.session_id AND s.user_id = m.user_id"
        " WHERE m.kind = 'task' AND m.source LIKE 'task:%' AND t.ended_at IS NOT NULL"
        " AND m.memory_id IN (SELECT value FROM json_each(?))",
        (_json(ids),),
    ).fetchall()
    for (task_id,) in runs:
        _blank(c, task_id)
    given = c.execute(
        "SELECT DISTINCT task_id FROM events JOIN tasks USING (task_id), json_each(body, '$.memories') AS given"
        " WHERE kind = 'progress' AND ended_at IS NOT NULL AND body LIKE '%\"memories\":%'"
        " AND json_extract(given.value, '$.memory_id') IN (SELECT value FROM json_each(?))",
        (_json(ids),),
    ).fetchall()
    # A run that failed or was cancelled has no memory of its own that would name what its tools gave it.
    given += c.execute(
        "SELECT DISTINCT task_id FROM tasks JOIN events USING (task_id), json_each(body, '$.sources') AS given"
        " WHERE tasks.state IN ('failed', 'cancelled') AND kind = 'tool_result' AND body LIKE '%\"sources\":[{%'"
        " AND json_extract(given.value, '$.ref') IN (SELECT value FROM json_each(?))",
        (_json(ids),),
    ).fetchall()
    for (task_id,) in set(given):
        _take_away(c, task_id, set(ids))
    # A summary goes with the least of what it says; the rest of that was not asked to go.
    c.execute(
        "INSERT INTO untold (session_id, runs) SELECT substr(m.source, 9), json_group_array(substr(l.origin, 6))"
        " FROM memories AS m JOIN lineage AS l USING (memory_id) JOIN sessions AS s"
        " ON s.session_id = substr(m.source, 9) AND s.user_id = m.user_id"
        " WHERE m.kind = 'summary' AND m.source LIKE 'session:%' AND l.origin LIKE 'task:%'"
        " AND m.memory_id IN (SELECT value FROM json_each(?)) GROUP BY m.memory_id",
        (_json(set(ids) - set(chosen)),),
    )
    memories.delete(c, ids)
    among = _json([task_id for (task_id,) in (*runs, *given)])
    rows = c.execute(
        "SELECT DISTINCT session_id FROM tasks WHERE task_id IN (SELECT value FROM json_each(?))", (among,)
    )
    return tuple(session_id for (session_id,) in rows)


def catch_up(c: Connection, task_id: str, given: Collection[str], rests_on: Collection[str]) -> bool:
    """Does for a run that has just ended what `erase` would have done, had it ended before: some of the memories that
    it was `given` may have been forgotten. True where its answer rests on one of those, and is blanked with it."""
    gone = set(given) - memories.there(c, list(given))
    if not gone.isdisjoint(rests_on):
        _blank(c, task_id)
        return True
    if gone:
        _take_away(c, task_id, gone)
    return False


def _blank(c: Connection, task_id: str) -> None:
    """Leaves of a run that it was, what it took and what it cost."""
    task = tasks.get(c, task_id)
    title = c.execute("SELECT title FROM sessions WHERE session_id = ?", (task.session_id,)).fetchone()[0]
    line = " ".join(task.task.split())
    if title == line or (len(title) >= TITLE_CHARS and line.startswith(title)):
        c.execute("UPDATE sessions SET title = ? WHERE session_id = ?", (FORGOTTEN, task.session_id))
    c.execute(
        "DELETE FROM turns WHERE session_id = ? AND task_id = ?",
        (task.session_id, task_id),
    )
    params = msgspec.structs.replace(
        tasks.params(c, task_id), task=FORGOTTEN, inputs=(), idempotency_key=None, schema=None
    )
    c.execute(
        "UPDATE tasks SET task = ?, params = ?, result = ?, error = ? WHERE task_id = ?",
        (FORGOTTEN, _text(params), _outcome(task.result), _failure(task.error), task_id),
    )
    for event in tasks.events(c, task_id):
        _keep(c, _blanked(event))


def _take_away(c: Connection, task_id: str, ids: set[str]) -> None:
    """A run that ended without a memory of its own, or whose answer does not rest on these, was given them still."""
    ended_well = c.execute("SELECT state = 'completed' FROM tasks WHERE task_id = ?", (task_id,)).fetchone()[
        0
    ]
    if not ended_well:
        _blank(c, task_id)
        return
    for event in tasks.events(c, task_id):
        if isinstance(event, ProgressEvent) and event.memories:
            left = tuple(memory for memory in event.memories if memory.memory_id not in ids)
            _keep(c, msgspec.structs.replace(event, memories=left))


def _blanked(event: Kept) -> Kept:
    match event:
        case ProgressEvent():
            return msgspec.structs.replace(event, memories=(), detail="")
        case MessageEvent():
            calls = tuple(msgspec.structs.replace(call, arguments={}) for call in event.tool_calls)
            return msgspec.structs.replace(event, text=FORGOTTEN, thinking="", tool_calls=calls, sources=())
        case ToolCallEvent():
            return msgspec.structs.replace(event, arguments={})
        case ToolResultEvent():
            return msgspec.structs.replace(event, text=FORGOTTEN, sources=())
        case _:
            return event


def _keep(c: Connection, event: Kept) -> None:
    c.execute(
        "UPDATE events SET body = ? WHERE task_id = ? AND seq = ?", (_text(event), event.task_id, event.seq)
    )


def _outcome(result: TaskResult | None) -> str | None:
    if result is None:
        return None
    return _text(msgspec.structs.replace(result, result=FORGOTTEN, sources=()))


def _failure(error: dict[str, Any] | None) -> str | None:
    return None if error is None else _text({"code": error["code"], "message": error["message"]})


def _of(user_id: str, found: Sequence[Memory]) -> Iterator[Memory]:
    """An imported lineage can name anything; it shows nobody another's memories."""
    return (memory for memory in sorted(found, key=lambda m: m.created_at) if memory.user_id == user_id)


def _json(ids: Collection[str]) -> str:
    return _text(list(ids))


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()
