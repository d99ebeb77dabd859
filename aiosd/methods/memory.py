"""memory.*"""

from __future__ import annotations

import msgspec

from aiosd import server
from aiosd.config import is_url
from aiosd.errors import InvalidParams
from aiosd.methods.services import Services, handles, scope_for, session_of
from aiosd.protocol.memory import (
    Context,
    Export,
    Forgotten,
    Imported,
    Lineage,
    Memories,
    MemoryContext,
    MemoryExport,
    MemoryForget,
    MemoryGet,
    MemoryImport,
    MemoryList,
    MemoryMigrate,
    MemoryRecall,
    MemoryReindex,
    MemoryRemember,
    MemoryStats,
    MemoryWhy,
    NewMemory,
    Recalled,
    Remembered,
    Stats,
)
from aiosd.records import Memory, Task
from aiosd.state import memories, sessions
from aiosd.state.memories import Scope
from aiosd.tasks import upkeep


@handles(MemoryRemember)
async def memory_remember(services: Services, peer: server.Peer, params: MemoryRemember) -> Remembered:
    if (params.content is None) == (params.memories is None):
        raise InvalidParams("expected either `content` or `memories`")
    session = await session_of(services, params.session_id)
    if params.memories is not None:
        return Remembered(memory_ids=await services.memory.remember(session, params.memories))
    one = NewMemory(
        content=params.content or "",
        speaker=params.speaker,
        created_at=params.created_at,
        kind=params.kind,
        source=params.source,
        metadata=params.metadata,
    )
    (memory_id,) = await services.memory.remember(session, [one])
    return Remembered(memory_id=memory_id)


@handles(MemoryRecall)
async def memory_recall(services: Services, peer: server.Peer, params: MemoryRecall) -> Recalled:
    scope = await scope_for(services, params.session_id, params.user_id)
    if params.scope == "session":
        if params.session_id is None:
            raise InvalidParams("scope: `session` needs a session_id")
        scope = msgspec.structs.replace(scope, session_id=params.session_id)
    found = await services.memory.recall(
        scope, params.query, n=params.n, as_of=params.as_of, kind=params.kind, source=params.source
    )
    return Recalled(memories=found)


@handles(MemoryContext)
async def memory_context(services: Services, peer: server.Peer, params: MemoryContext) -> Context:
    if params.last_n < 1:
        raise InvalidParams(f"last_n: expected a number above 0, got {params.last_n}")
    turns = await services.database.read(lambda c: sessions.turns(c, params.session_id, params.last_n))
    lines = [f"[{t.created_at.isoformat()}] {' '.join(t.content.split())}" for t in turns]
    return Context(text="\n".join(lines), entries=turns)


@handles(MemoryList)
async def memory_list(services: Services, peer: server.Peer, params: MemoryList) -> Memories:
    scope = await scope_for(services, params.session_id, params.user_id)
    if params.session_id is not None:
        scope = Scope(scope.user_id, params.session_id)
    found, cursor = await services.database.read(
        lambda c: memories.page(c, scope, limit=params.limit, cursor=params.cursor)
    )
    return Memories(memories=found, next_cursor=cursor)


@handles(MemoryGet)
async def memory_get(services: Services, peer: server.Peer, params: MemoryGet) -> Memory:
    return await services.database.read(lambda c: memories.get(c, params.memory_id))


@handles(MemoryWhy)
async def memory_why(services: Services, peer: server.Peer, params: MemoryWhy) -> Lineage:
    return await services.memory.why(params.memory_id)


@handles(MemoryExport)
async def memory_export(services: Services, peer: server.Peer, params: MemoryExport) -> Export:
    return await services.memory.export(params.user_id, limit=params.limit, cursor=params.cursor)


@handles(MemoryImport)
async def memory_import(services: Services, peer: server.Peer, params: MemoryImport) -> Imported:
    ids = await services.memory.take_in(params.memories)
    return Imported(memory_ids=tuple(memory.memory_id for memory in params.memories), added=len(ids))


@handles(MemoryStats)
async def memory_stats(services: Services, peer: server.Peer, params: MemoryStats) -> Stats:
    return await services.memory.stats(params.user_id)


@handles(MemoryReindex)
async def memory_reindex(services: Services, peer: server.Peer, params: MemoryReindex) -> Task:
    return await services.runner.start_upkeep(upkeep.REINDEX)


@handles(MemoryMigrate)
async def memory_migrate(services: Services, peer: server.Peer, params: MemoryMigrate) -> Task:
    if not is_url(params.qdrant_url):
        raise InvalidParams(
            f"qdrant_url: expected http://HOST[:PORT] or https://..., got `{params.qdrant_url}`"
        )
    services.memory.target(params.qdrant_url)  # or it says why not, before there is a task
    return await services.runner.start_upkeep(f"{upkeep.MIGRATE} {params.qdrant_url}")


@handles(MemoryForget)
async def memory_forget(services: Services, peer: server.Peer, params: MemoryForget) -> Forgotten:
    conditions = msgspec.structs.asdict(params)
    dry_run = conditions.pop("dry_run")
    if all(value is None for value in conditions.values()):
        raise InvalidParams("expected at least one of memory_id, query, session_id, user_id, source, before")
    return Forgotten(forgotten=await services.memory.forget(**conditions, dry_run=dry_run))
