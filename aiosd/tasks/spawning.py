"""The tools by which an agent starts agents: they act for the task that calls, and wait for what it started."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec

from aiosd.errors import AiosError, ToolFailed, from_wire
from aiosd.records import Task
from aiosd.tasks.descent import SPAWN, Wish
from aiosd.tasks.runner import Runner
from aiosd.tools.kernel import Caller, KernelTool, task_tool


def spawn_tools(runner: Runner) -> Mapping[str, KernelTool]:
    async def spawn(
        caller: Caller,
        task: Annotated[str, msgspec.Meta(min_length=1)],
        agent: str | None = None,
        tools: list[str] | None = None,
        max_usd: float | None = None,
        wait: bool = True,
    ) -> str:
        """Give a part of the work to another agent, and get its answer. Several in one reply work side by side.

        Args:
            task: What to do, with all that has to be known for it: the agent sees nothing of this conversation.
            agent: The name of a configured agent; without it, a general one.
            tools: The tools that it may use, of those that you have; without it, all of them.
            max_usd: The most that it may cost, in dollars.
            wait: False to go on at once; `collect` then gives the answer.
        """
        wish = Wish(task=task, agent=agent, tools=None if tools is None else tuple(tools), max_usd=max_usd)
        child = await runner.spawn(caller, wish)
        if not wait:
            return f"Task {child.number} has been started. For its answer, collect it."
        return _answer(await runner.ended(child.task_id))

    async def collect(caller: Caller, number: int) -> str:
        """Wait for a task that was started with `wait` false, and get its answer.

        Args:
            number: The task's, as spawn gave it.
        """
        return _answer(await runner.ended(await runner.child(caller, number)))

    return {
        SPAWN: task_tool(spawn, permissions=[SPAWN]),
        "collect": task_tool(collect, permissions=[SPAWN], read_only=True),
    }


def _answer(task: Task) -> str:
    """Raises ToolFailed for a task that has none."""
    if task.result is not None:
        found = task.result.result
        text = found if isinstance(found, str) else msgspec.json.encode(found).decode()
        return text or f"[task {task.number} has found no answer]"
    failure: AiosError = from_wire(task.error or {})
    raise ToolFailed(f"task {task.number} {task.state}: {failure}")
