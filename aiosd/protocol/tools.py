"""Tools and agents."""

from __future__ import annotations

from typing import Any

import msgspec

from aiosd.protocol.base import Params
from aiosd.records import Agent, Record, Tool, ToolResult


class Tools(Record, frozen=True, kw_only=True):
    tools: tuple[Tool, ...]


class ToolList(Params[Tools], frozen=True, kw_only=True):
    """Every tool, or those a session may use."""

    session_id: str | None = None

    method = "tool.list"
    returns = Tools


class ToolGet(Params[Tool], frozen=True, kw_only=True):
    """One tool."""

    name: str

    method = "tool.get"
    returns = Tool


class ToolCall(Params[ToolResult], frozen=True, kw_only=True):
    """Calls a tool with a session's rights; the owner's own act, so it needs no approval."""

    session_id: str
    name: str
    arguments: dict[str, Any] = msgspec.field(default_factory=dict)

    method = "tool.call"
    returns = ToolResult


class Agents(Record, frozen=True, kw_only=True):
    agents: tuple[Agent, ...]


class AgentList(Params[Agents], frozen=True, kw_only=True):
    """The agents of the config."""

    method = "agent.list"
    returns = Agents
