"""The RPC surface: one thin function a method, no logic of its own."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import uuid4

import anyio
import msgspec

from aiosd import protocol as p
from aiosd import records as r
from aiosd import server
from aiosd.config import Config
from aiosd.discover import VERSION, openrpc
from aiosd.errors import InvalidParams
from aiosd.memory.memory import Memories, scope_of
from aiosd.models.pool import Pool
from aiosd.paths import Paths
from aiosd.state import memories, sessions, tasks
from aiosd.state.database import Database, counts
from aiosd.state.memories import Scope
from aiosd.tasks.admission import admit
from aiosd.tasks.budget import Budget
from aiosd.tasks.inference import infer, model_request
from aiosd.tasks.runner import Runner
from aiosd.tools.registry import Registry


class Services(msgspec.Struct, frozen=True):
    """What methods act on; opened once, in daemon.py."""

    config: Config
    paths: Paths
    socket: str
    database: Database
    memory: Memories
    registry: Registry
    pool: Pool
    budget: Budget
    runner: Runner
    stop: anyio.Event
    started: float
    """Of time.monotonic()."""


P = TypeVar("P", bound=p.Params[Any])
Handler = Callable[[Services, server.Peer, P], Awaitable[Any]]
HANDLERS: dict[type[p.Params[Any]], Handler[Any]] = {}


def handles(params: type[P]) -> Callable[[Handler[P]], Handler[P]]:
    def register(handler: Handler[P]) -> Handler[P]:
        HANDLERS[params] = handler
        return handler

    return register


def table(services: Services) -> dict[str, server.Method]:
    """The methods by name, as the server takes them: params are checked into their type before the handler."""
    return {params.method: _bound(services, params, handler) for params, handler in HANDLERS.items()}


def _bound(services: Services, params: type[p.Params[Any]], handler: Handler[Any]) -> server.Method:
    async def method(peer: server.Peer, **given: Any) -> object:
        try:
            checked = msgspec.convert(given, params)
        except msgspec.ValidationError as exc:
            raise InvalidParams(str(exc).replace("`$.", "`")) from None
        return await handler(services, peer, checked)

    return server.inline(method) if params is p.SystemPing else method


# --- system -----------------------------------------------------------------------------------------------


@handles(p.SystemPing)
async def system_ping(services: Services, peer: server.Peer, params: p.SystemPing) -> p.Pong:
    return p.Pong(version=VERSION, pid=os.getpid())


@handles(p.SystemInfo)
async def system_info(services: Services, peer: server.Peer, params: p.SystemInfo) -> p.Info:
    rows = await services.database.read(counts)
    return p.Info(
        version=VERSION,
        protocol=p.PROTOCOL,
        uptime_s=round(time.monotonic() - services.started, 3),
        paths={
            "socket": services.socket,
            "config": str(services.paths.config),
            "data": str(services.paths.data),
            "state": str(services.paths.state),
        },
        sandbox=await services.registry.sandbox(),
        embedder=services.memory.embedder,
        counts=rows | {"open_tasks": services.runner.open},
        backends=await services.pool.names(),
        problems=tuple(str(problem) for problem in await services.registry.problems()),
    )


@handles(p.SystemShutdown)
async def system_shutdown(services: Services, peer: server.Peer, params: p.SystemShutdown) -> None:
    services.stop.set()


@handles(p.RpcDiscover)
async def rpc_discover(services: Services, peer: server.Peer, params: p.RpcDiscover) -> dict[str, Any]:
    return openrpc(HANDLERS)


# --- sessions ---------------------------------------------------------------------------------------------


@handles(p.SessionCreate)
async def session_create(services: Services, peer: server.Peer, params: p.SessionCreate) -> r.Session:
    session, system = await anyio.to_thread.run_sync(
        lambda: admit(params, services.config, session_id=str(uuid4()), now=datetime.now(UTC))
    )
    await services.database.write(lambda c: sessions.insert(c, session, system=system))
    return session


@handles(p.SessionList)
async def session_list(services: Services, peer: server.Peer, params: p.SessionList) -> p.Sessions:
    found, cursor = await services.database.read(
        lambda c: sessions.page(c, state=params.state, limit=params.limit, cursor=params.cursor)
    )
    return p.Sessions(sessions=found, next_cursor=cursor)


@handles(p.SessionGet)
async def session_get(services: Services, peer: server.Peer, params: p.SessionGet) -> r.Session:
    return await _session(services, params.session_id)


@handles(p.SessionClose)
async def session_close(services: Services, peer: server.Peer, params: p.SessionClose) -> r.Session:
    await services.database.write(lambda c: sessions.close(c, params.session_id))
    await services.runner.end_session(params.session_id)
    return await _session(services, params.session_id)


@handles(p.SessionDelete)
async def session_delete(services: Services, peer: server.Peer, params: p.SessionDelete) -> None:
    await services.database.write(lambda c: sessions.close(c, params.session_id))
    await services.runner.end_session(params.session_id)
    if params.forget:
        await services.memory.forget(session_id=params.session_id)
    await services.database.write(lambda c: sessions.delete(c, params.session_id))


@handles(p.SessionRun)
async def session_run(services: Services, peer: server.Peer, params: p.SessionRun) -> r.TaskResult | r.Task:
    task = await services.runner.start(params)
    if params.detach:
        return task
    if params.stream:
        await _show(peer, services.runner.watch(task.task_id))
    return await services.runner.wait(task.task_id)


# --- tasks ------------------------------------------------------------------------------------------------


@handles(p.TaskGet)
async def task_get(services: Services, peer: server.Peer, params: p.TaskGet) -> r.Task:
    return await services.database.read(lambda c: tasks.get(c, params.task_id))


@handles(p.TaskList)
async def task_list(services: Services, peer: server.Peer, params: p.TaskList) -> p.Tasks:
    found, cursor = await services.database.read(
        lambda c: tasks.page(
            c, session_id=params.session_id, state=params.state, limit=params.limit, cursor=params.cursor
        )
    )
    return p.Tasks(tasks=found, next_cursor=cursor)


@handles(p.TaskWait)
async def task_wait(services: Services, peer: server.Peer, params: p.TaskWait) -> r.TaskResult:
    return await services.runner.wait(params.task_id, params.timeout_s)


@handles(p.TaskCancel)
async def task_cancel(services: Services, peer: server.Peer, params: p.TaskCancel) -> r.Task:
    return await services.runner.cancel(params.task_id)


@handles(p.TaskResolve)
async def task_resolve(services: Services, peer: server.Peer, params: p.TaskResolve) -> r.Task:
    return await services.runner.resolve(params)


@handles(p.TaskAttach)
async def task_attach(services: Services, peer: server.Peer, params: p.TaskAttach) -> r.TaskResult:
    await _show(peer, services.runner.watch(params.task_id, params.after_seq))
    return await services.runner.wait(params.task_id)


async def _show(peer: server.Peer, events: AsyncIterator[r.AnyEvent]) -> None:
    """Every event precedes the answer."""
    async with aclosing(events) as shown:  # type: ignore[type-var]  # an async generator, typed as what it yields
        async for event in shown:
            await peer.notify(p.TASK_EVENT, event)


# --- memory -----------------------------------------------------------------------------------------------


@handles(p.MemoryRemember)
async def memory_remember(services: Services, peer: server.Peer, params: p.MemoryRemember) -> p.Remembered:
    if (params.content is None) == (params.memories is None):
        raise InvalidParams("expected either `content` or `memories`")
    session = await _session(services, params.session_id)
    if params.memories is not None:
        return p.Remembered(memory_ids=await services.memory.remember(session, params.memories))
    one = p.NewMemory(
        content=params.content or "",
        speaker=params.speaker,
        created_at=params.created_at,
        kind=params.kind,
        source=params.source,
        metadata=params.metadata,
    )
    (memory_id,) = await services.memory.remember(session, [one])
    return p.Remembered(memory_id=memory_id)


@handles(p.MemoryRecall)
async def memory_recall(services: Services, peer: server.Peer, params: p.MemoryRecall) -> p.Recalled:
    scope = await _scope(services, params.session_id, params.user_id)
    if params.scope == "session":
        if params.session_id is None:
            raise InvalidParams("scope: `session` needs a session_id")
        scope = Scope(scope.user_id, params.session_id)
    found = await services.memory.recall(
        scope, params.query, n=params.n, as_of=params.as_of, kind=params.kind, source=params.source
    )
    return p.Recalled(memories=found)


@handles(p.MemoryContext)
async def memory_context(services: Services, peer: server.Peer, params: p.MemoryContext) -> p.Context:
    if params.last_n < 1:
        raise InvalidParams(f"last_n: expected a number above 0, got {params.last_n}")
    turns = await services.database.read(lambda c: sessions.turns(c, params.session_id, params.last_n))
    lines = [f"[{t.created_at.isoformat()}] {' '.join(t.content.split())}" for t in turns]
    return p.Context(text="\n".join(lines), entries=turns)


@handles(p.MemoryList)
async def memory_list(services: Services, peer: server.Peer, params: p.MemoryList) -> p.Memories:
    scope = await _scope(services, params.session_id, params.user_id)
    if params.session_id is not None:
        scope = Scope(scope.user_id, params.session_id)
    found, cursor = await services.database.read(
        lambda c: memories.page(c, scope, limit=params.limit, cursor=params.cursor)
    )
    return p.Memories(memories=found, next_cursor=cursor)


@handles(p.MemoryGet)
async def memory_get(services: Services, peer: server.Peer, params: p.MemoryGet) -> r.Memory:
    return await services.database.read(lambda c: memories.get(c, params.memory_id))


@handles(p.MemoryForget)
async def memory_forget(services: Services, peer: server.Peer, params: p.MemoryForget) -> p.Forgotten:
    conditions = msgspec.structs.asdict(params)
    dry_run = conditions.pop("dry_run")
    if all(value is None for value in conditions.values()):
        raise InvalidParams("expected at least one of memory_id, query, session_id, user_id, source, before")
    return p.Forgotten(forgotten=await services.memory.forget(**conditions, dry_run=dry_run))


# --- tools, agents, models --------------------------------------------------------------------------------


@handles(p.ToolList)
async def tool_list(services: Services, peer: server.Peer, params: p.ToolList) -> p.Tools:
    if params.session_id is None:
        return p.Tools(tools=await services.registry.list())
    session = await _session(services, params.session_id)
    return p.Tools(tools=await services.registry.offered(session))


@handles(p.ToolGet)
async def tool_get(services: Services, peer: server.Peer, params: p.ToolGet) -> r.Tool:
    return await services.registry.get(params.name)


@handles(p.ToolCall)
async def tool_call(services: Services, peer: server.Peer, params: p.ToolCall) -> r.ToolResult:
    session = await _session(services, params.session_id)
    return await services.registry.call(session, params.name, params.arguments, timeout_s=120.0)


@handles(p.AgentList)
async def agent_list(services: Services, peer: server.Peer, params: p.AgentList) -> p.Agents:
    return p.Agents(
        agents=tuple(
            r.Agent(name=name, system=a.system, tier=a.tier, permissions=a.permissions)
            for name, a in services.config.agents.items()
        )
    )


@handles(p.ModelList)
async def model_list(services: Services, peer: server.Peer, params: p.ModelList) -> p.Backends:
    return p.Backends(backends=await services.pool.backends())


@handles(p.ModelRoute)
async def model_route(services: Services, peer: server.Peer, params: p.ModelRoute) -> r.Decision:
    return await services.pool.route(model_request(params))


@handles(p.ModelInfer)
async def model_infer(services: Services, peer: server.Peer, params: p.ModelInfer) -> r.Reply:
    async def on_text(text: str) -> None:
        await peer.notify(p.MODEL_TEXT, {"text": text})

    return await infer(
        services.pool, services.budget, services.database, params, on_text if params.stream else None
    )


@handles(p.ModelEmbed)
async def model_embed(services: Services, peer: server.Peer, params: p.ModelEmbed) -> r.Embedded:
    return await services.pool.embed(params.texts)


async def _session(services: Services, session_id: str) -> r.Session:
    return await services.database.read(lambda c: sessions.get(c, session_id))


async def _scope(services: Services, session_id: str | None, user_id: str | None) -> Scope:
    """The socket's owner may name any user; what names a session is confined as that session is."""
    if (session_id is None) == (user_id is None):
        raise InvalidParams("expected exactly one of session_id, user_id")
    if session_id is not None:
        return scope_of(await _session(services, session_id))
    return Scope(user_id or "", None)
