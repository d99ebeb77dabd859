"""What came of a task, put together from its journal. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from aiosd.protocol.sessions import SessionRun
from aiosd.records import (
    Kept,
    MessageEvent,
    RouteEvent,
    StopReason,
    Task,
    TaskResult,
    TaskState,
    Tokens,
    UsageEvent,
)
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
