"""system.*, rpc.discover"""

from __future__ import annotations

import os
import time
from typing import Any

from aiosd import server
from aiosd.discover import VERSION, openrpc
from aiosd.errors import ConfigError, InvalidState
from aiosd.methods.services import HANDLERS, Services, handles
from aiosd.protocol.base import PROTOCOL
from aiosd.protocol.system import (
    Info,
    Pong,
    Reloaded,
    RpcDiscover,
    SystemInfo,
    SystemPing,
    SystemReload,
    SystemShutdown,
)
from aiosd.state.database import counts


@handles(SystemPing)
async def system_ping(services: Services, peer: server.Peer, params: SystemPing) -> Pong:
    return Pong(version=VERSION, pid=os.getpid())


@handles(SystemInfo)
async def system_info(services: Services, peer: server.Peer, params: SystemInfo) -> Info:
    rows = await services.database.read(counts)
    return Info(
        version=VERSION,
        protocol=PROTOCOL,
        uptime_s=round(time.monotonic() - services.started, 3),
        paths={
            "socket": services.socket,
            "config": str(services.paths.config),
            "data": str(services.paths.data),
            "state": str(services.paths.state),
        },
        sandbox=await services.registry.sandbox(),
        embedder=services.memory.embedder,
        counts=rows | {"open_tasks": services.runner.open},
        backends=await services.pool.names(),
        problems=tuple(str(problem) for problem in await services.registry.problems()),
    )


@handles(SystemReload)
async def system_reload(services: Services, peer: server.Peer, params: SystemReload) -> Reloaded:
    try:
        return await services.reload()
    except ConfigError as exc:
        raise InvalidState(f"the config was refused, the old one stays: {exc}", hint=exc.hint) from None


@handles(SystemShutdown)
async def system_shutdown(services: Services, peer: server.Peer, params: SystemShutdown) -> None:
    services.stop.set()


@handles(RpcDiscover)
async def rpc_discover(services: Services, peer: server.Peer, params: RpcDiscover) -> dict[str, Any]:
    return openrpc(HANDLERS)
