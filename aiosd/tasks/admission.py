"""Who is let in: what a new session is, settled once for its life, what a run may ask, and whether there is room for it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from aiosd.config import Config
from aiosd.errors import InvalidParams, Overloaded
from aiosd.paths import user_name
from aiosd.protocol.sessions import SessionCreate, SessionRun
from aiosd.records import Session
from aiosd.tools.policy import check_permissions

MAX_TITLE = 200
"""Characters."""

MAX_TASK = 100_000
"""Characters of a task. What is longer is an input."""

MAX_OPEN = 1000
"""Tasks that may be open at once."""

MAX_OPEN_OF_USER = 500
"""Tasks that one user may have open, so that there is room for another's."""


def check_room(open_of: Mapping[str, int], user_id: str) -> None:
    """For a task more of this user's, with the open tasks by user. Raises Overloaded."""
    if sum(open_of.values()) >= MAX_OPEN:
        raise Overloaded(f"{MAX_OPEN} tasks are open; wait until one ends", hint="aiosctl ps")
    if open_of.get(user_id, 0) >= MAX_OPEN_OF_USER:
        raise Overloaded(
            f"{user_id} has {MAX_OPEN_OF_USER} tasks open; wait until one ends", hint="aiosctl ps"
        )


def check(params: SessionRun) -> None:
    """What no type says of a run. Raises InvalidParams."""
    if not params.task.strip():
        raise InvalidParams("task: expected some text")
    if len(params.task) > MAX_TASK:
        raise InvalidParams(
            f"task: {len(params.task)} characters; at most {MAX_TASK}, give the rest as an input",
            hint="aiosctl run -f FILE ...",
        )
    for name in ("max_tokens", "max_total_tokens", "max_steps", "latency_budget_ms", "timeout_s"):
        value = getattr(params, name)
        if value is not None and not value > 0:
            raise InvalidParams(f"{name}: expected a number above 0, got {value}")
    if params.max_usd is not None and not params.max_usd >= 0:
        raise InvalidParams(f"max_usd: expected dollars, 0 or more, got {params.max_usd}")


def admit(
    params: SessionCreate, config: Config, *, session_id: str, now: datetime
) -> tuple[Session, str | None]:
    """The session and its system text. Looks at the file system; raises InvalidParams."""
    agent = None
    if params.agent is not None:
        agent = config.agents.get(params.agent)
        if agent is None:
            known = ", ".join(config.agents) or "none"
            raise InvalidParams(f"agent: no `{params.agent}` in the config; there are: {known}")
    permissions = params.permissions
    if permissions is None:
        permissions = (
            agent.permissions if agent and agent.permissions is not None else config.default_permissions
        )
        if params.write and "write" not in permissions:
            permissions = (*permissions, "write")
    check_permissions(permissions)
    if params.max_usd is not None and not params.max_usd >= 0:
        raise InvalidParams(f"max_usd: expected dollars, 0 or more, got {params.max_usd}")
    if params.user_id is not None and not 0 < len(params.user_id.strip()) <= MAX_TITLE:
        raise InvalidParams(f"user_id: expected a name of at most {MAX_TITLE} characters")
    workspace = None if params.workspace is None else _folder(params.workspace)
    if params.write and workspace is None:
        raise InvalidParams("write: needs a workspace")
    session = Session(
        session_id=session_id,
        user_id=params.user_id or user_name(),
        title=(params.title or "").strip()[:MAX_TITLE] or f"session {now:%Y-%m-%d %H:%M}",
        agent=params.agent,
        permissions=permissions,
        privacy=params.privacy,
        priority=params.priority,
        max_usd=params.max_usd,
        workspace=str(workspace) if workspace else None,
        write=params.write,
        state="open",
        created_at=now,
        used_at=now,
    )
    return session, params.system or (agent.system if agent else None)


def _folder(text: str) -> Path:
    """A folder that tools may see. The whole home or system is never one: keys and configs lie there."""
    path = Path(text)
    if not path.is_absolute():
        raise InvalidParams(f"workspace: expected an absolute path, got `{text}`")
    try:
        path = path.resolve(strict=True)
    except (OSError, RuntimeError) as exc:
        raise InvalidParams(f"workspace: {text}: {getattr(exc, 'strerror', None) or exc}") from None
    if not path.is_dir():
        raise InvalidParams(f"workspace: {path} is no folder")
    if path in (Path("/"), Path.home().resolve()):
        raise InvalidParams(f"workspace: {path} is too much to show to tools; choose a folder below it")
    return path
