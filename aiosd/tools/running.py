"""One call inside its own process: arguments checked, the function run, what came of it put into words."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Awaitable
from typing import Any

import msgspec

from aiosd.errors import InvalidParams
from aiosd.records import ToolResult
from aiosd.tools.loading import Loaded
from aiosd.tools.results import of_exception, of_value


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a call's process tells its host: a result, or why the arguments were refused."""

    result: ToolResult | None = None
    refused: str | None = None


def run(loaded: Loaded, arguments: bytes) -> Answer:
    """Never raises: whatever the function does to its process short of ending it becomes a result."""
    try:
        try:
            given = loaded.signature.decode(arguments)
        except InvalidParams as exc:
            return Answer(refused=str(exc))
        value = loaded.function(**given)
        if inspect.isawaitable(value):
            import asyncio  # late: a host without async tools never loads it

            value = asyncio.run(_awaited(value))
        return Answer(result=of_value(loaded.tool.name, value))
    except BaseException as exc:  # noqa: BLE001 - also sys.exit(): the function's own end, not its caller's
        traceback.print_exc()
        return Answer(result=of_exception(exc))


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value
