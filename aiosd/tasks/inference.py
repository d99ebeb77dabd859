"""One reply for a caller without a session or an agent: nothing is remembered, but its price is kept."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from uuid import uuid4

import anyio
import msgspec

from aiosd.errors import NoModelFits
from aiosd.models.backend import ModelRequest, Reply, TextDelta, ThinkingDelta
from aiosd.models.exchange import OnWait
from aiosd.models.pool import Pool
from aiosd.protocol.models import ModelAsked
from aiosd.secrets import Secrets
from aiosd.state import tasks
from aiosd.state.database import Database
from aiosd.tasks.budget import Budget

KEEP_S = 5.0
"""For writing down what a caller that went away has cost."""


def model_request(asked: ModelAsked) -> ModelRequest:
    return ModelRequest(
        messages=asked.messages,
        tier=asked.tier,
        task_type=asked.task_type,
        max_tokens=asked.max_tokens,
        latency_budget_ms=asked.latency_budget_ms,
        tools=asked.tools,
        schema=asked.schema,
        privacy=asked.privacy,
        priority=asked.priority,
        backend=asked.backend,
    )


def public(request: ModelRequest, secrets: Secrets) -> ModelRequest:
    """The request with other messages for a remote model where its own hold a key of the config."""
    masked = secrets.masked(request)
    if masked is request:
        return request
    return msgspec.structs.replace(masked, messages=request.messages, public=masked.messages)


async def infer(
    pool: Pool,
    budget: Budget,
    database: Database,
    secrets: Secrets,
    asked: ModelAsked,
    on_text: Callable[[str], Awaitable[None]] | None,
    on_wait: OnWait | None,
) -> Reply:
    """The reply. What it costs counts against the day's cap, also where it fails; where the caller goes away in
    the middle, the most that it can have cost does. Raises what Pool.reply raises."""
    holder = str(uuid4())
    request = public(model_request(asked), secrets)
    if on_text is not None and request.priority == "background":
        # A background reply may give its slot away and begin anew, which who reads it could not tell.
        request = msgspec.structs.replace(request, priority="normal")
    owed = 0.0

    async def on_delta(delta: TextDelta | ThinkingDelta) -> None:
        if on_text is not None and isinstance(delta, TextDelta):
            await on_text(delta.text)

    async def reserve(usd: float) -> None:
        nonlocal owed
        await budget.hold_apart(holder, usd)
        owed = usd

    try:
        # Unwatched, a reply that breaks off may be followed by another backend's.
        shown = None if on_text is None else on_delta
        reply = await pool.reply(request, on_delta=shown, on_wait=on_wait, reserve=reserve)
        owed = reply.cost_usd
    except NoModelFits as exc:
        owed = exc.data.get("cost_usd", 0.0)
        raise
    finally:
        with anyio.move_on_after(KEEP_S, shield=True):  # what could not be written down stays held
            if owed:
                now = datetime.now(UTC)
                await database.write(lambda c: tasks.spend_apart(c, at=now, cost_usd=owed))
            await budget.release(holder)
    return reply
