"""task.*"""

from __future__ import annotations

from aiosd import server
from aiosd.methods.services import Services, handles, show
from aiosd.protocol.tasks import (
    TaskAttach,
    TaskCancel,
    TaskGet,
    TaskList,
    TaskPrioritize,
    TaskResolve,
    Tasks,
    TaskTrace,
    TaskWait,
    Trace,
)
from aiosd.records import Task, TaskResult
from aiosd.state import tasks


@handles(TaskGet)
async def task_get(services: Services, peer: server.Peer, params: TaskGet) -> Task:
    return await services.database.read(lambda c: tasks.get(c, params.task_id))


@handles(TaskList)
async def task_list(services: Services, peer: server.Peer, params: TaskList) -> Tasks:
    found, cursor = await services.database.read(
        lambda c: tasks.page(
            c, session_id=params.session_id, state=params.state, limit=params.limit, cursor=params.cursor
        )
    )
    return Tasks(tasks=found, next_cursor=cursor)


@handles(TaskWait)
async def task_wait(services: Services, peer: server.Peer, params: TaskWait) -> TaskResult:
    return await services.runner.wait(params.task_id, params.timeout_s)


@handles(TaskCancel)
async def task_cancel(services: Services, peer: server.Peer, params: TaskCancel) -> Task:
    return await services.runner.cancel(params.task_id)


@handles(TaskPrioritize)
async def task_prioritize(services: Services, peer: server.Peer, params: TaskPrioritize) -> Task:
    return await services.runner.prioritize(params.task_id, params.priority)


@handles(TaskResolve)
async def task_resolve(services: Services, peer: server.Peer, params: TaskResolve) -> Task:
    return await services.runner.resolve(params)


@handles(TaskTrace)
async def task_trace(services: Services, peer: server.Peer, params: TaskTrace) -> Trace:
    _, spans = await services.runner.trace(params.task_id)
    return Trace(spans=spans)


@handles(TaskAttach)
async def task_attach(services: Services, peer: server.Peer, params: TaskAttach) -> TaskResult:
    await show(peer, services.runner.watch(params.task_id, params.after_seq))
    return await services.runner.wait(params.task_id)
