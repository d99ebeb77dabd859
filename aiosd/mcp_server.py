"""The MCP door: a session's tools and memory for any MCP client, over stdio.

    python -P -m aiosd.mcp_server SOCKET SESSION_ID

A client of the daemon's socket in a process of its own, so the daemon knows nothing of it. Who is behind it is taken for
a model: what would ask the user is refused here, unless he has said `always`, and private memories stay private.
"""

from __future__ import annotations

import sys
from pathlib import Path
from socket import AF_UNIX, socket
from typing import Any, Protocol, TypeVar

import anyio
import anyio.to_thread
import mcp_types as types
import msgspec

# The SDK takes a second to import; only this process pays for it.
from mcp import MCPError
from mcp.server import Server
from mcp.server.stdio import stdio_server

from aiosd import framing
from aiosd.discover import VERSION
from aiosd.errors import AiosError, NoDaemon, NotFound, from_wire
from aiosd.protocol.base import Params
from aiosd.protocol.memory import MemoryGet, MemoryList
from aiosd.protocol.sessions import SessionGet
from aiosd.protocol.tools import ToolCall, ToolList
from aiosd.records import Memory, Session, Tool, ToolResult

CALL_S = 600.0
"""A tool has its own deadline, which the daemon keeps; this is for a daemon that hangs."""

MEMORY = "memory:///"
"""Before a memory's id, the address of a resource."""

NAME = 60
"""Characters of a memory that name it in a list."""

R = TypeVar("R")


class Offer(Protocol):
    """What is offered through the door."""

    def handlers(self) -> dict[str, Any]:
        """Of mcp.server.Server, by their names there (`on_list_tools`, ...)."""


def door(offer: Offer) -> Server[Any]:
    return Server("aiosd", version=VERSION, **offer.handlers())


class SessionOffer:
    """The tools that a session may use, and the memories that it sees."""

    def __init__(self, path: Path, session_id: str) -> None:
        self._path = path
        self._session_id = session_id

    def handlers(self) -> dict[str, Any]:
        return {
            "on_list_tools": self.list_tools,
            "on_call_tool": self.call_tool,
            "on_list_resources": self.list_resources,
            "on_list_resource_templates": self.list_resource_templates,
            "on_read_resource": self.read_resource,
        }

    async def list_tools(self, ctx: object, params: object) -> types.ListToolsResult:
        found = await self._ask(ToolList(session_id=self._session_id))
        return types.ListToolsResult(tools=[_tool(tool) for tool in found.tools])

    async def call_tool(self, ctx: object, params: types.CallToolRequestParams) -> types.CallToolResult:
        """What keeps a call from being made is told to the model, as what a tool raises is; but there must be such a tool."""
        arguments = params.arguments or {}
        call = ToolCall(session_id=self._session_id, name=params.name, arguments=arguments, by="model")
        try:
            return _result(await self._call(call))
        except NotFound as exc:
            raise MCPError(types.INVALID_PARAMS, str(exc)) from None
        except AiosError as exc:
            return types.CallToolResult(content=[types.TextContent(text=str(exc))], is_error=True)

    async def list_resources(
        self, ctx: object, params: types.PaginatedRequestParams | None
    ) -> types.ListResourcesResult:
        session = await self._ask(SessionGet(session_id=self._session_id))
        cursor = params.cursor if params else None
        page = await self._ask(MemoryList(session_id=self._session_id, cursor=cursor))
        shown = [_resource(memory) for memory in page.memories if _is_open(session, memory)]
        return types.ListResourcesResult(resources=shown, next_cursor=page.next_cursor)

    async def list_resource_templates(self, ctx: object, params: object) -> types.ListResourceTemplatesResult:
        template = types.ResourceTemplate(
            uri_template=f"{MEMORY}{{memory_id}}", name="memory", description="A memory, by its id."
        )
        return types.ListResourceTemplatesResult(resource_templates=[template])

    async def read_resource(
        self, ctx: object, params: types.ReadResourceRequestParams
    ) -> types.ReadResourceResult:
        uri = str(params.uri)
        session = await self._ask(SessionGet(session_id=self._session_id))
        memory: Memory | None = None
        if uri.startswith(MEMORY):
            try:
                memory = await self._call(MemoryGet(memory_id=uri.removeprefix(MEMORY)))
            except NotFound:
                memory = None
            except AiosError as exc:
                raise MCPError(types.INTERNAL_ERROR, str(exc)) from None
        if memory is None or not _sees(session, memory) or not _is_open(session, memory):
            raise MCPError(types.INVALID_PARAMS, f"there is no resource {uri}", {"uri": uri})
        text = f"[{memory.created_at.isoformat()}] {memory.content}"
        return types.ReadResourceResult(
            contents=[types.TextResourceContents(uri=uri, mime_type="text/plain", text=text)]
        )

    async def _ask(self, params: Params[R]) -> R:
        """Raises MCPError."""
        try:
            return await self._call(params)
        except AiosError as exc:
            raise MCPError(types.INTERNAL_ERROR, str(exc)) from None

    async def _call(self, params: Params[R]) -> R:
        """On a connection of its own, in a thread: calls run side by side, and one that is given up costs nothing."""
        return await anyio.to_thread.run_sync(_call, self._path, params, abandon_on_cancel=True)


def _call(path: Path, params: Params[R]) -> R:
    """Raises the AiosError that the daemon answered, or NoDaemon."""
    with socket(AF_UNIX) as stream:
        stream.settimeout(CALL_S)
        try:
            stream.connect(str(path))
            stream.sendall(framing.request(1, params.method, params))
            decoder = framing.Decoder()
            while data := stream.recv(1 << 16):
                for message in decoder.feed(data):
                    if isinstance(message, framing.Response):
                        if message.error is not None:
                            raise from_wire(message.error)
                        answered: R = msgspec.json.decode(message.result, type=params.returns)
                        return answered
        except OSError as exc:
            raise NoDaemon(f"the daemon on {path} cannot be spoken to: {exc}") from None
    raise NoDaemon(f"the daemon on {path} closed the connection")


def _sees(session: Session, memory: Memory) -> bool:
    """As recall does: its own, and those of its user's other sessions where it may use `memory`."""
    if memory.session_id == session.session_id:
        return True
    return memory.user_id == session.user_id and not {"memory", "*"}.isdisjoint(session.permissions)


def _is_open(session: Session, memory: Memory) -> bool:
    """Nobody knows where the client sends what it reads."""
    return session.privacy == "local" or memory.privacy == "any"


def _tool(tool: Tool) -> types.Tool:
    return types.Tool(
        name=tool.name,
        description=tool.description,
        input_schema=tool.input_schema,
        annotations=types.ToolAnnotations.model_validate(tool.annotations),
    )


def _result(result: ToolResult) -> types.CallToolResult:
    return types.CallToolResult(
        content=[types.TextContent(text=block.text) for block in result.content],
        structured_content=result.structured_content,
        is_error=result.is_error,
    )


def _resource(memory: Memory) -> types.Resource:
    words = " ".join(memory.content.split())
    name = words if len(words) <= NAME else f"{words[: NAME - 1]}…"
    return types.Resource(uri=f"{MEMORY}{memory.memory_id}", name=name, mime_type="text/plain")


async def serve(path: Path, session_id: str) -> None:
    """Until the client closes stdin."""
    server = door(SessionOffer(path, session_id))
    async with stdio_server() as (receiving, sending):
        await server.run(receiving, sending, server.create_initialization_options())


if __name__ == "__main__":
    anyio.run(serve, Path(sys.argv[1]), sys.argv[2])
