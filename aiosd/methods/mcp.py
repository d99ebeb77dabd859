"""mcp.*"""

from __future__ import annotations

from aiosd import server
from aiosd.methods.services import Services, handles
from aiosd.protocol.mcp import McpApprove, McpList, McpServer, McpServers


@handles(McpList)
async def mcp_list(services: Services, peer: server.Peer, params: McpList) -> McpServers:
    return McpServers(servers=services.mcp.servers())


@handles(McpApprove)
async def mcp_approve(services: Services, peer: server.Peer, params: McpApprove) -> McpServer:
    return await services.mcp.approve(params.name)
