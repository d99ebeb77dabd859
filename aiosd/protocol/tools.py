"""Tools and agents."""

from __future__ import annotations

from typing import Any, Literal

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
    """Calls a tool with a session's rights. As the owner's own act it needs no approval; in the name of a model, what
    would ask is refused unless its user once said `always`."""

    session_id: str
    name: str
    arguments: dict[str, Any] = msgspec.field(default_factory=dict)
    by: Literal["owner", "model"] = "owner"

    method = "tool.call"
    returns = ToolResult


class Explained(Record, frozen=True, kw_only=True):
    """What would become of a call by a model. The owner's own `tool.call` is not asked about."""

    decision: Literal["allow", "ask", "deny"]
    rule: str | None
    """The entry that decides; None where it is a default."""
    why: str
    about: tuple[str, ...] | None
    """What rules are held against: its paths, addresses or command in their one spelling; None where one has none."""
    always: str | None
    """The rule that answering `always` would keep."""
    permissions: tuple[str, ...]
    tool_permissions: tuple[str, ...]
    sandbox: str


class ToolExplain(Params[Explained], frozen=True, kw_only=True):
    """Whether a session's models may make this call, by which rule, and why. Calls nothing."""

    session_id: str
    name: str
    arguments: dict[str, Any] = msgspec.field(default_factory=dict)

    method = "tool.explain"
    returns = Explained


class Agents(Record, frozen=True, kw_only=True):
    agents: tuple[Agent, ...]


class AgentList(Params[Agents], frozen=True, kw_only=True):
    """The agents of the config."""

    method = "agent.list"
    returns = Agents
