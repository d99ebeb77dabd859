"""Tools that are functions of the daemon itself, such as `recall`: listed, permitted, limited and checked like any
other, but run in the daemon and told for which session."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from aiosd.records import Session, Tool, ToolResult
from aiosd.tools.results import of_value
from aiosd.tools.schema import signature, tool_of


class Caller(msgspec.Struct, frozen=True):
    """Who calls a tool: a session, and of its tasks the one whose model asks for it."""

    session: Session
    task_id: str | None = None
    call: str | None = None
    """Which of the task's calls, by a name that is the same when it is made again after a restart."""


class KernelTool(msgspec.Struct, frozen=True):
    tool: Tool
    handler: Callable[[Caller, dict[str, Any]], Awaitable[ToolResult]]
    """Raises InvalidParams for arguments that do not fit the schema, and any AiosError."""
    patient: bool = False
    """It waits for what has limits of its own, and no call of it is overdue."""


def kernel_tool(
    function: Callable[..., Awaitable[object]],
    *,
    permissions: Sequence[str] = (),
    rate_limit: int | None = None,
    read_only: bool = False,
) -> KernelTool:
    """Makes `async def name(session: Session, ...)` a tool: the parameters after the first become its schema, the
    docstring describes it, and what it returns becomes the result as with any tool. Raises NotATool."""
    return _made(function, lambda caller: caller.session, permissions, rate_limit, read_only)


def task_tool(
    function: Callable[..., Awaitable[object]], *, permissions: Sequence[str], read_only: bool = False
) -> KernelTool:
    """Makes `async def name(caller: Caller, ...)` a tool that waits for tasks. Made again, a call does no harm."""
    made = _made(function, lambda caller: caller, permissions, None, read_only)
    hints = made.tool.annotations | {"idempotentHint": True}
    return KernelTool(msgspec.structs.replace(made.tool, annotations=hints), made.handler, patient=True)


def _made(
    function: Callable[..., Awaitable[object]],
    first: Callable[[Caller], object],
    permissions: Sequence[str],
    rate_limit: int | None,
    read_only: bool,
) -> KernelTool:
    found = signature(function, skip=1)

    async def handler(caller: Caller, arguments: dict[str, Any]) -> ToolResult:
        given = found.decode(msgspec.json.encode(arguments))
        return of_value(found.name, await function(first(caller), **given))

    return KernelTool(tool_of(found, tuple(permissions), rate_limit, read_only), handler)
