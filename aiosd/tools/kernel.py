"""Tools that are functions of the daemon itself, such as `recall`: listed, permitted, limited and checked like any
other, but run in the daemon and told for which session."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from aiosd.records import Session, Tool, ToolResult
from aiosd.tools.results import of_value
from aiosd.tools.schema import signature, tool_of


class KernelTool(msgspec.Struct, frozen=True):
    tool: Tool
    handler: Callable[[Session, dict[str, Any]], Awaitable[ToolResult]]
    """Raises InvalidParams for arguments that do not fit the schema, and any AiosError."""


def kernel_tool(
    function: Callable[..., Awaitable[object]],
    *,
    permissions: Sequence[str] = (),
    rate_limit: int | None = None,
    read_only: bool = False,
) -> KernelTool:
    """Makes `async def name(session: Session, ...)` a tool: the parameters after the first become its schema, the
    docstring describes it, and what it returns becomes the result as with any tool. Raises NotATool."""
    found = signature(function, skip=1)

    async def handler(session: Session, arguments: dict[str, Any]) -> ToolResult:
        given = found.decode(msgspec.json.encode(arguments))
        return of_value(found.name, await function(session, **given))

    return KernelTool(tool_of(found, tuple(permissions), rate_limit, read_only), handler)
