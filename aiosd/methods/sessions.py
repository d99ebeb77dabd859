"""session.*"""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4

import anyio

from aiosd import server
from aiosd.methods.services import Services, handles, session_of, show
from aiosd.protocol.sessions import (
    SessionClose,
    SessionCreate,
    SessionDelete,
    SessionGet,
    SessionList,
    SessionRun,
    Sessions,
)
from aiosd.records import Session, Task, TaskResult
from aiosd.state import sessions, tasks
from aiosd.tasks.admission import admit


@handles(SessionCreate)
async def session_create(services: Services, peer: server.Peer, params: SessionCreate) -> Session:
    session, system = await anyio.to_thread.run_sync(
        lambda: admit(params, services.config, session_id=str(uuid4()), now=datetime.now(UTC))
    )
    await services.database.write(lambda c: sessions.insert(c, session, system=system))
    return session


@handles(SessionList)
async def session_list(services: Services, peer: server.Peer, params: SessionList) -> Sessions:
    found, cursor = await services.database.read(
        lambda c: sessions.page(c, state=params.state, limit=params.limit, cursor=params.cursor)
    )
    return Sessions(sessions=found, next_cursor=cursor)


@handles(SessionGet)
async def session_get(services: Services, peer: server.Peer, params: SessionGet) -> Session:
    return await session_of(services, params.session_id)


@handles(SessionClose)
async def session_close(services: Services, peer: server.Peer, params: SessionClose) -> Session:
    await services.database.write(lambda c: sessions.close(c, params.session_id))
    await services.runner.end_session(params.session_id)
    await services.consolidation.settled()
    return await session_of(services, params.session_id)


@handles(SessionDelete)
async def session_delete(services: Services, peer: server.Peer, params: SessionDelete) -> None:
    await services.database.write(lambda c: sessions.close(c, params.session_id))
    await services.runner.end_session(params.session_id)
    if params.forget:
        below = await services.database.read(lambda c: tasks.sessions_below(c, params.session_id))
        for session_id in (params.session_id, *below):
            await services.memory.forget(session_id=session_id)
    await services.database.write(lambda c: sessions.delete(c, params.session_id))


@handles(SessionRun)
async def session_run(services: Services, peer: server.Peer, params: SessionRun) -> TaskResult | Task:
    task = await services.runner.start(params)
    if params.detach:
        return task
    if params.stream:
        await show(peer, services.runner.watch(task.task_id))
    return await services.runner.wait(task.task_id)
