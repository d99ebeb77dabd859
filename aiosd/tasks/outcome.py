"""What came of a task, put together from its journal, and what of it stays."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from aiosd.protocol.sessions import SessionRun
from aiosd.records import (
    Kept,
    Memory,
    MessageEvent,
    RouteEvent,
    StopReason,
    Task,
    TaskResult,
    TaskState,
    Tokens,
    Turn,
    UsageEvent,
)
from aiosd.state import lineage, sessions, tasks
from aiosd.state.database import Connection
from aiosd.tasks import context


def outcome(
    task: Task,
    params: SessionRun,
    journal: Sequence[Kept],
    state: TaskState,
    *,
    text: str,
    stop_reason: StopReason,
    message: MessageEvent | None,
) -> TaskResult:
    """`message` is the last whole one, if there is one; `text` may be of one that broke off."""
    used = [e for e in journal if isinstance(e, UsageEvent)]
    routes = [e for e in journal if isinstance(e, RouteEvent)]
    generated = message.generated if message else False
    quoted = message.sources if message else ()
    return TaskResult(
        task_id=task.task_id,
        session_id=task.session_id,
        state=state,
        result=text,
        stop_reason=stop_reason,
        generated=generated,
        abstained=message.abstained if message else False,
        backend=message.backend if message else None,
        model=message.model if message else None,
        sources=context.sources(params, journal) if generated else quoted,
        usage=Tokens(
            input_tokens=sum(e.usage.input_tokens for e in used),
            output_tokens=sum(e.usage.output_tokens for e in used),
        ),
        cost_usd=sum(e.cost_usd for e in used),
        decision=routes[-1].decision if routes else None,
    )


def keep(
    c: Connection,
    result: TaskResult,
    memory: Memory,
    rests_on: Collection[str],
    said: tuple[str, str],
    journal: Sequence[Kept],
) -> bool:
    """The result of a completed task, with the turns that its user and its model have `said`, and its `memory`, which
    was made from the memories that it `rests_on`; True where one of those was forgotten meanwhile, and all this with
    it. Raises NotFound for the task or its session."""
    sessions.touch(c, result.session_id, memory.created_at)
    tasks.finish(c, result.task_id, result=result, error=None)
    if lineage.catch_up(c, result.task_id, context.given(journal), rests_on):
        return True
    turn = Turn(
        role="user",
        content=said[0],
        created_at=memory.created_at,
        task_id=result.task_id,
        privacy=memory.privacy,
    )
    for each in (turn, msgspec.structs.replace(turn, role="assistant", content=said[1])):
        if each.content:
            sessions.add_turn(c, result.session_id, each)
    trust = min(memory.trust, lineage.least_trust(c, context.by_tools(journal, "recall")))
    lineage.add_run(c, result.task_id, msgspec.structs.replace(memory, trust=trust), rests_on)
    return False
