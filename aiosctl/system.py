"""aiosctl ping and status: the daemon itself."""

from __future__ import annotations

import typer

from aiosctl import render
from aiosctl.verb import answer, connect
from aiosd.protocol.system import (
    Info,
    Metrics,
    Pong,
    Reloaded,
    SystemInfo,
    SystemMetrics,
    SystemPing,
    SystemReload,
)

PING_S = 5.0


def ping(ctx: typer.Context) -> None:
    """Ask the daemon whether it is there.

    \b
    aiosctl ping --no-start || echo "no daemon"
    """

    def text(pong: Pong) -> None:
        render.out(f"aiosd {pong.version} (pid {pong.pid})")

    with connect(ctx) as client:
        answer(ctx, client, SystemPing(), text, timeout_s=PING_S)


def status(ctx: typer.Context) -> None:
    """Show what runs, where it keeps things, and how much there is.

    \b
    aiosctl status
    aiosctl status --json | jq .paths.config
    """

    def text(info: Info) -> None:
        render.fields(
            [
                ("version", info.version),
                ("uptime", f"{info.uptime_s:.0f} s"),
                ("backends", " ".join(info.backends)),
                ("embedder", info.embedder),
                ("sandbox", info.sandbox),
                *((name, count) for name, count in info.counts.items()),
                *((name, path) for name, path in info.paths.items()),
            ]
        )
        for problem in info.problems:
            render.notice(f"not loaded: {problem}")

    with connect(ctx) as client:
        answer(ctx, client, SystemInfo(), text)


def reload(ctx: typer.Context) -> None:
    """Read the config again. One that does not load is refused, and the old stays in force.

    \b
    aiosctl reload
    """

    def text(reloaded: Reloaded) -> None:
        for key in reloaded.changed:
            render.out(key)
        if reloaded.restart:
            render.notice(f"the next start will read: {', '.join(reloaded.restart)}")

    with connect(ctx) as client:
        answer(ctx, client, SystemReload(), text)


def metrics(ctx: typer.Context) -> None:
    """Print what the daemon has counted, as Prometheus reads it.

    \b
    aiosctl metrics | grep aiosd_queue
    aiosctl metrics > /var/lib/node_exporter/aiosd.prom
    """

    def text(found: Metrics) -> None:
        render.out(found.text, end="")

    with connect(ctx) as client:
        answer(ctx, client, SystemMetrics(), text)
