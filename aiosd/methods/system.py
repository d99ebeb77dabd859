"""system.*, rpc.discover"""

from __future__ import annotations

import os
import time
from typing import Any

import anyio.to_thread

from aiosd import metrics, server
from aiosd.discover import VERSION, openrpc
from aiosd.errors import ConfigError, InvalidState
from aiosd.methods.services import HANDLERS, Services, handles
from aiosd.metrics import Gauge
from aiosd.protocol.base import PROTOCOL
from aiosd.protocol.system import (
    Info,
    Metrics,
    Pong,
    Reloaded,
    RpcDiscover,
    SystemInfo,
    SystemMetrics,
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
        no_cgroup=services.registry.no_cgroup,
        embedder=services.memory.embedder,
        counts=rows | {"open_tasks": services.runner.open},
        backends=await services.pool.names(),
        problems=tuple(str(problem) for problem in await services.registry.problems()),
    )


@handles(SystemMetrics)
async def system_metrics(services: Services, peer: server.Peer, params: SystemMetrics) -> Metrics:
    rows = await services.database.read(counts)
    queues = services.pool.queues()
    gauges = [
        Gauge("aiosd_info", "The daemon's version.", ("version",), [((VERSION,), 1.0)]),
        Gauge("aiosd_uptime_seconds", "Since it began.", (), [((), time.monotonic() - services.started)]),
        Gauge("aiosd_open_tasks", "Tasks that are at work.", (), [((), float(services.runner.open))]),
        Gauge("aiosd_rows", "What the ledger holds.", ("noun",), [((n,), float(c)) for n, c in rows.items()]),
        Gauge(
            "aiosd_slots_used", "Requests at work.", ("backend",), [((n,), q[0]) for n, q in queues.items()]
        ),
        Gauge(
            "aiosd_queue_length", "Requests waiting.", ("backend",), [((n,), q[1]) for n, q in queues.items()]
        ),
    ]
    return Metrics(text=await anyio.to_thread.run_sync(metrics.text, gauges))


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
