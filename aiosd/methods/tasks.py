"""task.*"""

from __future__ import annotations

from aiosd import server
from aiosd.methods.services import Services, handles, show
from aiosd.protocol.sessions import SessionRun
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
from aiosd.records import Kept, Task, TaskResult
from aiosd.state import tasks
from aiosd.state.database import Connection
from aiosd.tasks import steps
from aiosd.tasks.trace import spans


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
    def read(c: Connection) -> tuple[Task, SessionRun, tuple[Kept, ...]]:
        return tasks.get(c, params.task_id), tasks.params(c, params.task_id), tasks.events(c, params.task_id)

    task, run, journal = await services.database.read(read)
    return Trace(spans=spans(task, journal, run.max_steps or steps.MAX_STEPS))


@handles(TaskAttach)
async def task_attach(services: Services, peer: server.Peer, params: TaskAttach) -> TaskResult:
    await show(peer, services.runner.watch(params.task_id, params.after_seq))
    return await services.runner.wait(params.task_id)
