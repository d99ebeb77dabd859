"""Agents that start agents: what a child is given of its parent's rights, and how many there may be. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID, uuid5

import msgspec

from aiosd.config import Agent
from aiosd.errors import InvalidParams, InvalidState, PermissionDenied
from aiosd.protocol.sessions import SessionRun
from aiosd.records import Privacy, Session, Task, Tool
from aiosd.tools import policy

MAX_DEPTH = 3
"""Generations below a task that a user started. Deeper trees spend more on telling than on doing."""

MAX_CHILDREN = 16
"""Tasks that one task may start."""

MAX_TREE = 64
"""Tasks below one that a user started."""

SPAWN = "spawn"


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What the parent's model asks for."""

    task: str
    agent: str | None = None
    tools: tuple[str, ...] | None = None
    max_usd: float | None = None


class Kin(msgspec.Struct, frozen=True, kw_only=True):
    """How many there are already: generations above a child of this task, its children, all below its first ancestor."""

    depth: int
    children: int
    tree: int


def child_ids(parent_id: str, call: str) -> tuple[str, str]:
    """The child's task and session. The same call of the same task gives the same ids: made again after a kill, it
    finds its child instead of starting another."""
    return str(uuid5(UUID(parent_id), f"task {call}")), str(uuid5(UUID(parent_id), f"session {call}"))


def check_room(kin: Kin) -> None:
    """Raises InvalidState where one more is one too many."""
    if kin.depth > MAX_DEPTH:
        raise InvalidState(f"a task {MAX_DEPTH} generations below a user's may start no other")
    if kin.children >= MAX_CHILDREN:
        raise InvalidState(f"this task has started {MAX_CHILDREN} others; do the rest in it")
    if kin.tree >= MAX_TREE:
        raise InvalidState(f"{MAX_TREE} tasks have been started below one task; do the rest in this one")


def narrowed(parent: Sequence[str], agent: Sequence[str] | None, tools: Sequence[Tool]) -> tuple[str, ...]:
    """The permissions of a child: its parent's, and denials of all that the agent's own would not allow it.

    Nothing is granted that the parent's list does not: `*` stays `*` instead of becoming names, since a name would
    allow without asking what `*` asks for. An agent's pattern cannot be met by denials, so what it would allow by a
    pattern alone is denied.
    """
    child = [*parent]
    if agent is not None:
        child += [
            entry
            for entry in agent
            if entry.startswith("!")
            or (entry.startswith("?") and {entry, entry[1:], "*", "?*"} & set(parent))
        ]
        if not {"memory", "*"} & set(agent):
            child.append("!memory")  # also what is recalled for it is its own session's alone
        whole = [entry for entry in agent if "(" not in entry or entry.startswith("!")]
        child += [f"!{tool.name}" for tool in tools if policy.denial(tool, whole) is not None]
    return tuple(dict.fromkeys(child))


def child_of(
    parent: Session,
    task: Task,
    run: SessionRun,
    wish: Wish,
    *,
    call: str,
    agent: Agent | None,
    tools: Sequence[Tool],
    privacy: Privacy,
    last: bool,
    now: datetime,
) -> tuple[Session, SessionRun]:
    """The session and the run of a child of `task`. `privacy` is that of what the parent has read; `last` forbids it
    children of its own. Raises InvalidParams, and PermissionDenied for tools that the parent may not use."""
    if not wish.task.strip():
        raise InvalidParams("task: expected some text")
    if wish.max_usd is not None and not wish.max_usd >= 0:
        raise InvalidParams(f"max_usd: expected dollars, 0 or more, got {wish.max_usd}")
    permissions = narrowed(parent.permissions, agent.permissions if agent else None, tools)
    given = {tool.name for tool in policy.offered(tools, parent.permissions, run.tools)}
    if missing := [name for name in wish.tools or () if name not in given]:
        raise PermissionDenied(f"tools: this task may not use {', '.join(missing)}, so it cannot pass it on")
    chosen = run.tools if wish.tools is None else wish.tools
    _, session_id = child_ids(task.task_id, call)
    session = msgspec.structs.replace(
        parent,
        session_id=session_id,
        title=f"task {task.number}: {' '.join(wish.task.split())[:60]}",
        agent=wish.agent,
        permissions=(*permissions, f"!{SPAWN}") if last else permissions,
        privacy=privacy,
        priority=task.priority,
        max_usd=None,  # its parent's caps hold for the whole tree
        state="open",
        created_at=now,
        used_at=parent.created_at,  # the session that its user used last is never this one
    )
    return session, SessionRun(
        session_id=session_id,
        task=wish.task,
        tier=None if agent else run.tier,
        task_type=run.task_type,
        max_tokens=run.max_tokens,
        max_steps=run.max_steps,
        max_total_tokens=run.max_total_tokens,
        max_usd=least(wish.max_usd, run.max_usd),
        tools=chosen,
        approve=run.approve,
    )


def least(*caps: float | None) -> float | None:
    """The tightest of the caps there are."""
    return min((cap for cap in caps if cap is not None), default=None)
