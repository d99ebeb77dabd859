"""The process of one MCP server's client, inside the same walls as the server: what a server sends is read in here, and
the daemon gets plain records.

    python -P -m aiosd.tools.mcp_bridge PLAN

Walls itself in as the plan says. The first request, `start`, names the server (a program that is started in here, or an
address) and is answered with its tools; `call` calls one of them. Ends when the daemon closes the line.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from typing import Any

import anyio
import msgspec
from anyio.abc import TaskGroup

# The SDK takes a second to import, and has one home; only this process pays for it.
from mcp import Client, MCPError, StdioServerParameters
from mcp_types import CONNECTION_CLOSED, CallToolResult, EmbeddedResource, TextContent, TextResourceContents
from mcp_types import Tool as Described

from aiosd import framing, stdio
from aiosd.errors import AiosError, InvalidParams, MethodNotFound, ToolFailed
from aiosd.records import Text, ToolResult
from aiosd.tools.results import MAX_TEXT, capped
from aiosd.tools.sandbox import Plan, build
from aiosd.tools.wire import McpCall, McpStart, McpTool

CANCEL = "$/cancelRequest"
"""As in aiosd.child, whose imports this process has no use for."""

MAX_PAGES = 100
"""Of a list of tools; a server that has more never ends."""


class Bridge:
    def __init__(self, line: stdio.Line, tasks: TaskGroup) -> None:
        self._line = line
        self._tasks = tasks
        self._client: Client | None = None
        self._schemas: dict[str, dict[str, Any]] = {}
        self._calls: dict[framing.Id, anyio.CancelScope] = {}

    async def serve(self) -> None:
        """Until the daemon closes the line."""
        while True:
            await anyio.wait_readable(self._line)
            requests = self._line.receive()
            if requests is None:
                self._tasks.cancel_scope.cancel()
                return
            for request in requests:
                if request.method == CANCEL:
                    if scope := self._calls.get(msgspec.json.decode(request.params)["id"]):
                        scope.cancel()
                elif not isinstance(request.id, msgspec.UnsetType):
                    self._tasks.start_soon(self._answer, request.id, request)

    async def _answer(self, id: framing.Id, request: framing.Request) -> None:
        with anyio.CancelScope() as self._calls[id]:
            try:
                match request.method:
                    case "start":
                        start = msgspec.json.decode(request.params, type=McpStart)
                        self._line.answer(id, await self._start(start))
                    case "call":
                        call = msgspec.json.decode(request.params, type=McpCall)
                        self._line.answer(id, await self._call(call))
                    case _:
                        raise MethodNotFound(f"no method `{request.method}` here")
            except AiosError as exc:
                self._line.refuse(id, exc)
            except BrokenPipeError:
                self._tasks.cancel_scope.cancel()
            except Exception as exc:  # noqa: BLE001 - what the SDK raises for what a server does has no common class
                self._line.refuse(id, ToolFailed(_said(exc)))
        del self._calls[id]

    async def _start(self, start: McpStart) -> list[McpTool]:
        opened = anyio.Event()
        failed: list[Exception] = []

        async def keep() -> None:
            """Its own task, since what is opened in a task is closed in it."""
            try:
                async with Client(_transport(start)) as client:
                    self._client = client
                    opened.set()
                    await anyio.sleep_forever()
            except Exception as exc:  # noqa: BLE001 - as above
                if opened.is_set():
                    print(f"the server has gone: {_said(exc)}", file=sys.stderr)  # noqa: T201 - the daemon's log
                    self._tasks.cancel_scope.cancel()
                failed.append(exc)
                opened.set()

        self._tasks.start_soon(keep)
        await opened.wait()
        if self._client is None:
            raise ToolFailed(_said(failed[0]))
        return await self._list(self._client)

    async def _list(self, client: Client) -> list[McpTool]:
        found: list[McpTool] = []
        cursor: str | None = None
        for _ in range(MAX_PAGES):
            page = await client.list_tools(cursor=cursor)
            found += map(_described, page.tools)
            cursor = page.next_cursor
            if not cursor:
                break
        self._schemas = {tool.name: tool.input_schema for tool in found}
        return found

    async def _call(self, call: McpCall) -> ToolResult:
        if self._client is None or call.name not in self._schemas:
            raise ToolFailed(f"the server has no tool `{call.name}`")
        _check(call.arguments, self._schemas[call.name])
        try:
            return _result(await self._client.call_tool(call.name, call.arguments))
        except MCPError as exc:
            if (
                exc.code == CONNECTION_CLOSED
            ):  # the server has ended, and so does this: its call is told so by that
                print(f"the server ended during `{call.name}`", file=sys.stderr)  # noqa: T201 - the daemon's log
                os._exit(1)
            raise ToolFailed(f"`{call.name}`: {exc}") from None


def _transport(start: McpStart) -> StdioServerParameters | str:
    if start.url is not None:
        return start.url
    found = shutil.which(start.command, path=f"{os.environ['PATH']}:{sys.prefix}/bin")
    if found is None:
        raise ToolFailed(f"there is no program `{start.command}` inside the walls", hint=start.advice)
    env = {**os.environ, "HOME": os.getcwd(), **start.env}
    return StdioServerParameters(command=found, args=list(start.args), env=env, cwd=os.getcwd())


def _described(tool: Described) -> McpTool:
    hints = tool.annotations.model_dump(by_alias=True, exclude_none=True) if tool.annotations else {}
    return McpTool(
        name=tool.name, description=tool.description or "", input_schema=tool.input_schema, annotations=hints
    )


def _check(arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
    """Raises InvalidParams. In here, since a schema of others may be slow or worse; nothing is fetched for it."""
    import jsonschema.exceptions  # type: ignore[import-untyped]  # late: 0.2 s, and only where something is called
    import jsonschema.validators  # type: ignore[import-untyped]
    import referencing

    try:
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.validators.Draft202012Validator)
        wrong = jsonschema.exceptions.best_match(
            kind(schema, registry=referencing.Registry()).iter_errors(dict(arguments))
        )
    except (jsonschema.exceptions.SchemaError, referencing.exceptions.Unresolvable) as exc:
        raise ToolFailed(f"the tool's schema cannot be used: {exc}") from None
    if wrong is not None:
        raise InvalidParams(f"{wrong.json_path.replace('$', 'arguments', 1)}: {wrong.message[:500]}")


def _result(given: CallToolResult) -> ToolResult:
    text = capped("\n".join(map(_text, given.content)))
    structured = given.structured_content
    if structured is not None and len(msgspec.json.encode(structured)) > MAX_TEXT:
        structured = None
    return ToolResult(content=(Text(text=text),), is_error=given.is_error, structured_content=structured)


def _text(block: object) -> str:
    match block:
        case TextContent(text=text):
            return text
        case EmbeddedResource(resource=TextResourceContents(text=text)):
            return text
        case _:
            kind = getattr(block, "mime_type", None) or getattr(block, "uri", "")
            return f"[{getattr(block, 'type', 'content')} {kind}]".replace(" ]", "]")


def _said(exc: BaseException) -> str:
    """The first cause in a group of groups."""
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return str(exc) or type(exc).__name__


async def bridge(line: stdio.Line) -> None:
    async with anyio.create_task_group() as tasks:
        await Bridge(line, tasks).serve()


def main() -> None:
    line = stdio.open_line()
    plan = msgspec.json.decode(sys.argv[-1], type=Plan)
    walls = build(plan)
    if walls.why:
        print(f"walls: {walls.tier} ({walls.why})", file=sys.stderr)  # noqa: T201 - the daemon's log
    if not walls.hold:
        raise SystemExit("no walls can be built around it on this machine")
    if plan.out is not None and not walls.has_way_out:
        raise SystemExit(f"it needs the network, and `{walls.tier}` has no way to let single hosts through")
    anyio.run(bridge, line)


if __name__ == "__main__":
    main()
