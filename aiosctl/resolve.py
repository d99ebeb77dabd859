"""What people type for an id: a task's number, a unique beginning of any id, a session's title, or @last."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator

from aiosctl.client import Client
from aiosd import errors
from aiosd.protocol.memory import MemoryList
from aiosd.protocol.sessions import SessionList
from aiosd.protocol.tasks import TaskList
from aiosd.records import Memory, Session, SessionState, Task

_WHOLE = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # `uuid` would cost 2 ms
LAST = "@last"
SHOWN = 10
"""Matches that an error lists."""


def session(client: Client, given: str, *, state: SessionState | None = None) -> str:
    """The session's id; @last is the one used last, of those in `state`. Raises NotFound, InvalidParams."""
    if given == LAST:
        found = client.call(SessionList(limit=1, state=state)).sessions
        if not found:
            raise errors.NotFound("there is no session yet", hint="aiosctl session create")
        return found[0].session_id
    if whole(given):
        return given
    candidates = ((each.session_id, each.title) for each in _sessions(client))
    return pick("session", given, candidates, by_label=True)


def session_here(client: Client, workspace: str | None) -> str | None:
    """The open session used last in this folder; without a folder, of those that have none."""
    folder = None if workspace is None else os.path.realpath(workspace)
    for each in _sessions(client, state="open"):
        if (None if each.workspace is None else os.path.realpath(each.workspace)) == folder:
            return each.session_id
    return None


def task(client: Client, given: str) -> str:
    """The task's id; @last is the newest. Raises NotFound, InvalidParams."""
    if given == LAST:
        found = client.call(TaskList(limit=1)).tasks
        if not found:
            raise errors.NotFound("there is no task yet", hint='aiosctl run "..."')
        return found[0].task_id
    if whole(given):
        return given
    candidates = []
    for each in _tasks(client):
        if given == str(each.number):
            return each.task_id
        candidates.append((each.task_id, f"{each.number} {each.task}"))
    return pick("task", given, candidates)


def memory(client: Client, given: str, user_id: str) -> str:
    """The memory's id; @last is the newest of this user. Raises NotFound, InvalidParams."""
    if given == LAST:
        found = client.call(MemoryList(user_id=user_id, limit=1)).memories
        if not found:
            raise errors.NotFound(f"{user_id} has no memories yet", hint='aiosctl memory remember "..."')
        return found[0].memory_id
    if whole(given):
        return given
    return pick("memory", given, ((each.memory_id, each.content) for each in _memories(client, user_id)))


def whole(given: str) -> bool:
    """An id in full, in the one spelling that the daemon uses."""
    return _WHOLE.fullmatch(given) is not None


def pick(noun: str, given: str, candidates: Iterable[tuple[str, str]], *, by_label: bool = False) -> str:
    """The only id among `(id, label)` that begins with what was given or, `by_label`, whose label it is.

    Raises NotFound when none does, and InvalidParams with the matches when several do.
    """
    found = [
        (id, label)
        for id, label in candidates
        if given and (id.startswith(given.lower()) or (by_label and label == given))
    ]
    if not found:
        raise errors.NotFound(f"no {noun} `{given}`", hint=_LISTED[noun])
    if len(found) > 1:
        lines = [f"  {id}  {' '.join(label.split()):.60}" for id, label in found[:SHOWN]]
        if len(found) > SHOWN:
            lines.append(f"  and {len(found) - SHOWN} more")
        raise errors.InvalidParams("\n".join([f"`{given}` is {len(found)} {_PLURAL[noun]}:", *lines]))
    return found[0][0]


_PLURAL = {"session": "sessions", "task": "tasks", "memory": "memories"}
_LISTED = {noun: f"aiosctl {noun} list" for noun in _PLURAL}


def _sessions(client: Client, state: SessionState | None = None) -> Iterator[Session]:
    cursor = None
    while True:
        page = client.call(SessionList(state=state, cursor=cursor))
        yield from page.sessions
        if (cursor := page.next_cursor) is None:
            return


def _tasks(client: Client) -> Iterator[Task]:
    cursor = None
    while True:
        page = client.call(TaskList(cursor=cursor))
        yield from page.tasks
        if (cursor := page.next_cursor) is None:
            return


def _memories(client: Client, user_id: str) -> Iterator[Memory]:
    cursor = None
    while True:
        page = client.call(MemoryList(user_id=user_id, cursor=cursor))
        yield from page.memories
        if (cursor := page.next_cursor) is None:
            return
