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
    """One call of these tools by a run."""

    task_id: str
    memories: list[str] = msgspec.field(default_factory=list)
    """Ids of those that it gave the run or made: what the run says may rest on them."""


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
        made = await memories.remember(
            session,
            [NewMemory(content=content, source="tool:remember")],
            task_id=acting.task_id if acting else None,
        )
        if acting is not None:
            acting.memories += made
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
            acting.memories += [m.memory_id for m in open_to]
        lines = [f"[{m.created_at.isoformat()}] {context.as_data(m.content, m.trust)}" for m in open_to]
        return "\n".join(lines) or "Nothing found."

    return {
        "remember": kernel_tool(remember, permissions=["memory"]),
        "recall": kernel_tool(recall, permissions=["memory"], read_only=True),
    }
