"""What the registry and a tool host say to each other. `describe` takes nothing and gives a Description; `call`
takes a Call and gives a ToolResult."""

from __future__ import annotations

from typing import Any

import msgspec

from aiosd.records import Tool

CAREFUL = "--careful"
"""The argument that makes a host try each of the user's files in a process of its own first."""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    arguments: msgspec.Raw
    """An object, not yet checked: only the host has the types."""
    timeout_s: float


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """A file of the user's, or one tool in it, that was passed over."""

    file: str
    line: int | None
    error: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.error}" if self.line else f"{self.file}: {self.error}"


class Description(msgspec.Struct, frozen=True, kw_only=True):
    tools: tuple[Tool, ...]
    problems: tuple[Problem, ...]
    files: dict[str, str]
    """The user's file that each of the tools stands in; a builtin one is in none."""
    sandbox: str
    """The tier of its walls, a sandbox.Tier."""


class McpTool(msgspec.Struct, frozen=True, kw_only=True):
    """A tool as its MCP server describes it."""

    name: str
    description: str
    input_schema: dict[str, Any]
    annotations: dict[str, Any]


class McpStart(msgspec.Struct, frozen=True, kw_only=True):
    """To aiosd.tools.mcp_bridge, which answers with the server's tools, McpTools."""

    command: str
    args: tuple[str, ...]
    env: dict[str, str]
    url: str | None
    advice: str
    """What to do where the program is not found."""


class McpCall(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    arguments: dict[str, Any]
