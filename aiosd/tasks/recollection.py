"""The memory tools a model may call: they act for the session that calls, and see what it may see."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Annotated

import msgspec

from aiosd.memory.memory import Memories, scope_of
from aiosd.protocol.memory import NewMemory
from aiosd.records import Session
from aiosd.tasks import context
from aiosd.tools.kernel import KernelTool, kernel_tool


class Acting(msgspec.Struct):
    """The run that calls these tools."""

    task_id: str
    recalled: dict[str, float] = msgspec.field(default_factory=dict)
    """Ids of the memories that they gave it, with the trust in each: what it says may rest on them."""


ACTING: ContextVar[Acting | None] = ContextVar("acting", default=None)
"""None where the user calls a tool themselves."""


def memory_tools(memories: Memories) -> Mapping[str, KernelTool]:
    async def remember(
        session: Session, content: Annotated[str, msgspec.Meta(min_length=1, max_length=10_000)]
    ) -> str:
        """Remember a fact for later runs.

        Args:
            content: The fact, in a sentence that can be understood alone.
        """
        acting = ACTING.get()
        await memories.remember(
            session,
            [NewMemory(content=content, source="tool:remember")],
            task_id=acting.task_id if acting else None,
        )
        return f"Remembered: {content}"

    async def recall(
        session: Session,
        query: Annotated[str, msgspec.Meta(min_length=1)],
        n: Annotated[int, msgspec.Meta(ge=1, le=20)] = 5,
    ) -> str:
        """Recall what was remembered earlier that fits a query.

        Args:
            query: What to look for.
            n: How many at most.
        """
        found = await memories.recall(scope_of(session), query, n=n)
        # Private memories stay out of a session whose text may leave: a tool's result is part of the next prompt.
        open_to = [m for m in found if session.privacy == "local" or m.privacy == "any"]
        if (acting := ACTING.get()) is not None:
            acting.recalled.update((m.memory_id, m.trust) for m in open_to)
        lines = [f"[{m.created_at.isoformat()}] {context.as_data(m.content, m.trust)}" for m in open_to]
        return "\n".join(lines) or "Nothing found."

    return {
        "remember": kernel_tool(remember, permissions=["memory"]),
        "recall": kernel_tool(recall, permissions=["memory"], read_only=True),
    }
