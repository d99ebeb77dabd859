"""tool.*, agent.*"""

from __future__ import annotations

from aiosd import server
from aiosd.methods.services import Services, handles, session_of
from aiosd.protocol.tools import AgentList, Agents, Explained, ToolCall, ToolExplain, ToolGet, ToolList, Tools
from aiosd.records import Agent, Tool, ToolResult
from aiosd.tasks.agent import TOOL_S
from aiosd.tools import policy


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
    return await services.registry.call(session, params.name, params.arguments, timeout_s=TOOL_S, by="owner")


@handles(ToolExplain)
async def tool_explain(services: Services, peer: server.Peer, params: ToolExplain) -> Explained:
    session = await session_of(services, params.session_id)
    ruling = await services.registry.ruling(session, params.name, params.arguments)
    always = await services.approvals.always(session)
    verdict = policy.settle(ruling.verdict, ruling.tool, ruling.about, always, ruling.place)
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


@handles(AgentList)
async def agent_list(services: Services, peer: server.Peer, params: AgentList) -> Agents:
    return Agents(
        agents=tuple(
            Agent(name=name, system=a.system, tier=a.tier, permissions=a.permissions)
            for name, a in services.config.agents.items()
        )
    )
