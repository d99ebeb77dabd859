"""tool.*, agent.*"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiosd import server
from aiosd.methods.services import Services, handles, session_of
from aiosd.protocol.tools import AgentList, Agents, Explained, ToolCall, ToolExplain, ToolGet, ToolList, Tools
from aiosd.records import Agent, Session, Tool, ToolResult
from aiosd.tasks.agent import TOOL_S
from aiosd.tools import policy
from aiosd.tools.policy import Verdict
from aiosd.tools.registry import Ruling


@handles(ToolList)
async def tool_list(services: Services, peer: server.Peer, params: ToolList) -> Tools:
    if params.session_id is None:
        return Tools(tools=await services.registry.list())
    session = await session_of(services, params.session_id)
    return Tools(tools=await services.registry.offered(session))


@handles(ToolGet)
async def tool_get(services: Services, peer: server.Peer, params: ToolGet) -> Tool:
    return await services.registry.get(params.name)


@handles(ToolCall)
async def tool_call(services: Services, peer: server.Peer, params: ToolCall) -> ToolResult:
    session = await session_of(services, params.session_id)
    approved = None
    if params.by == "model":
        ruling, verdict = await _settled(services, session, params.name, params.arguments)
        approved = ruling if verdict.decision == "allow" else None
    return await services.registry.call(
        session, params.name, params.arguments, timeout_s=TOOL_S, by=params.by, approved=approved
    )


@handles(ToolExplain)
async def tool_explain(services: Services, peer: server.Peer, params: ToolExplain) -> Explained:
    session = await session_of(services, params.session_id)
    ruling, verdict = await _settled(services, session, params.name, params.arguments)
    return Explained(
        decision=verdict.decision,
        rule=verdict.rule,
        why=verdict.why,
        about=None if ruling.about is None else tuple(subject.text for subject in ruling.about),
        always=policy.rule_for(ruling.tool, ruling.about) if verdict.decision == "ask" else None,
        permissions=session.permissions,
        tool_permissions=ruling.tool.permissions,
        sandbox=await services.registry.sandbox(),
    )


async def _settled(
    services: Services, session: Session, name: str, arguments: Mapping[str, Any]
) -> tuple[Ruling, Verdict]:
    """What the session's permissions say of a call by a model, and what is left of that once `always` and `never` are heard."""
    ruling = await services.registry.ruling(session, name, arguments)
    always = await services.approvals.always(session)
    return ruling, policy.settle(ruling.verdict, ruling.tool, ruling.about, always, ruling.place)


@handles(AgentList)
async def agent_list(services: Services, peer: server.Peer, params: AgentList) -> Agents:
    return Agents(
        agents=tuple(
            Agent(name=name, system=a.system, tier=a.tier, permissions=a.permissions)
            for name, a in services.config.agents.items()
        )
    )
