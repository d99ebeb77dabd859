"""MCP servers: what the config names, and what its user approved of each."""

from __future__ import annotations

from typing import Literal

from aiosd.protocol.base import Params
from aiosd.records import Record


class McpTool(Record, frozen=True, kw_only=True):
    name: str
    """The server's own; the tool is called SERVER__NAME."""
    state: Literal["approved", "changed", "new", "gone"]
    """Against what was approved, as the running server has it; only an approved one can be called."""


class McpServer(Record, frozen=True, kw_only=True):
    name: str
    runs: str
    """The program with its arguments, or the address."""
    hosts: tuple[str, ...]
    running: bool
    tools: tuple[McpTool, ...]
    problem: str | None
    """Why it did not start, the last time that it was to."""


class McpServers(Record, frozen=True, kw_only=True):
    servers: tuple[McpServer, ...]


class McpList(Params[McpServers], frozen=True, kw_only=True):
    """The MCP servers of the config, and what is known of their tools."""

    method = "mcp.list"
    returns = McpServers


class McpApprove(Params[McpServer], frozen=True, kw_only=True):
    """Starts a server and approves its tools as they are now described."""

    name: str

    method = "mcp.approve"
    returns = McpServer
