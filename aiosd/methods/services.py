"""What methods act on, and how one is told from another."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import anyio
import msgspec

from aiosd import server
from aiosd.config import Config
from aiosd.errors import InvalidParams
from aiosd.memory.memory import Memories, scope_of
from aiosd.models.pool import Pool
from aiosd.paths import Paths
from aiosd.protocol.base import Params
from aiosd.protocol.system import Reloaded
from aiosd.protocol.tasks import TASK_EVENT
from aiosd.records import AnyEvent, Session
from aiosd.state import sessions
from aiosd.state.database import Database
from aiosd.state.memories import Scope
from aiosd.tasks.approval import Approvals
from aiosd.tasks.budget import Budget
from aiosd.tasks.consolidation import Consolidation
from aiosd.tasks.runner import Runner
from aiosd.tools.mcp import McpServers
from aiosd.tools.registry import Registry


class Services(msgspec.Struct):
    """What methods act on; opened in daemon.py. A reload of the config replaces that and the pool."""

    config: Config
    paths: Paths
    socket: str
    database: Database
    memory: Memories
    registry: Registry
    mcp: McpServers
    pool: Pool
    budget: Budget
    consolidation: Consolidation
    approvals: Approvals
    runner: Runner
    reload: Callable[[], Awaitable[Reloaded]]
    stop: anyio.Event
    started: float
    """Of time.monotonic()."""


P = TypeVar("P", bound=Params[Any])
Handler = Callable[[Services, server.Peer, P], Awaitable[Any]]
HANDLERS: dict[type[Params[Any]], Handler[Any]] = {}


def handles(params: type[P]) -> Callable[[Handler[P]], Handler[P]]:
    def register(handler: Handler[P]) -> Handler[P]:
        HANDLERS[params] = handler
        return handler

    return register


async def show(peer: server.Peer, events: AsyncIterator[AnyEvent]) -> None:
    """Every event precedes the answer."""
    async with aclosing(events) as shown:  # type: ignore[type-var]  # an async generator, typed as what it yields
        async for event in shown:
            await peer.notify(TASK_EVENT, event)


async def session_of(services: Services, session_id: str) -> Session:
    return await services.database.read(lambda c: sessions.get(c, session_id))


async def scope_for(services: Services, session_id: str | None, user_id: str | None) -> Scope:
    """The socket's owner may name any user; what names a session is confined as that session is."""
    if (session_id is None) == (user_id is None):
        raise InvalidParams("expected exactly one of session_id, user_id")
    if session_id is not None:
        return scope_of(await session_of(services, session_id))
    return Scope(user_id or "", None)
