"""The daemon as a function: opens everything in order, serves, drains, closes in reverse."""

from __future__ import annotations

import fcntl
import gc
import hashlib
import logging
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path

import anyio
from anyio.abc import SocketListener

from aiosd import telemetry
from aiosd.audit import Audit
from aiosd.config import EMBEDDERS, MEND, Config, Memory
from aiosd.errors import AiosError, ConfigError, InvalidState
from aiosd.events import Broker
from aiosd.memory import remote, weights
from aiosd.memory.embedding import LocalModel
from aiosd.memory.memory import open_memory, scope_of
from aiosd.methods.services import Services
from aiosd.methods.table import table
from aiosd.models.pool import Pool, open_pool
from aiosd.otel import open_export
from aiosd.paths import Paths
from aiosd.records import Embedded, Session
from aiosd.reload import Reload, open_reload
from aiosd.secrets import Secrets
from aiosd.server import Server
from aiosd.state.database import open_database
from aiosd.systemd import credential, notify, passed_socket, watchdog_s
from aiosd.tasks.approval import Approvals
from aiosd.tasks.budget import open_budget
from aiosd.tasks.consolidation import open_consolidation
from aiosd.tasks.hands import Hands
from aiosd.tasks.recollection import memory_tools
from aiosd.tasks.runner import open_runner
from aiosd.tasks.spawning import spawn_tools
from aiosd.tools.cgroup import Delegation, delegation
from aiosd.tools.egress import Passage, open_egress
from aiosd.tools.hosts import Walls
from aiosd.tools.mcp import open_mcp
from aiosd.tools.packages import Packages
from aiosd.tools.registry import open_registry
from aiosd.tools.sandbox import Tier
from aiosd.tools.syscalls import PR_SET_DUMPABLE, prctl

logger = logging.getLogger(__name__)

GRACE_S = 5.0
"""Seconds that running tasks have to end by themselves when the daemon is told to stop; then they are left to the
next one."""


BACKLOG = 512
"""Connections that may wait to be accepted."""


class AlreadyRunning(AiosError):
    """Another daemon has these data."""


async def serve(config: Config, paths: Paths, socket_path: Path, environ: Mapping[str, str]) -> None:
    """Runs until SIGTERM, SIGINT or `system.shutdown`. Raises AlreadyRunning, and what the ledger raises."""
    prctl(PR_SET_DUMPABLE, 0)  # our memory, environment and descriptors are no other process's to read
    started = time.monotonic()
    stop = anyio.Event()
    secrets = Secrets(config, environ)

    def reach(url: str) -> remote.Server:
        return _memory_server(reload.config.memory, url, paths, environ)

    with (
        _lock(paths.lock, socket_path),
        passed_socket(environ) or _bound(socket_path) as listening,
        open_export(environ) as export,
        telemetry.masked(secrets.mask),
    ):
        walls = _walls(config, paths, socket_path, environ, await delegation())
        async with (
            open_database(paths.database) as database,
            nullcontext(Audit(database, secrets)) as audit,
            open_reload(
                paths.config,
                config,
                lambda new: open_pool(new, environ, database=database),
                lambda new, pool: apply(new, pool),
            ) as reload,
            open_memory(
                database,
                paths.index,
                weights_of(config, environ),
                _embedder(config, reload),
                reach(config.memory.qdrant_url) if config.memory.qdrant_url else None,
                reach,
            ) as memory,
            open_egress(paths.run / "egress.sock", lambda passage: _keep_passage(audit, passage)) as egress,
            open_mcp(
                config.mcp.servers,
                database,
                egress,
                walls,
                paths.state / "mcp",
                scope_of,
            ) as mcp,
            open_registry(
                [paths.config_dir / folder for folder in config.tools.paths],
                lambda session: _workspace(paths, session),
                memory_tools(memory),
                audit,
                outputs=paths.state / "outputs",
                versions=paths.state / "tools",
                packages=Packages(paths.cache / "packages", environ),
                walls=walls,
                egress=egress,
                mcp=mcp,
            ) as registry,
            open_consolidation(database, memory, reload.pool) as consolidation,
        ):

            async def blanked(session_ids: Collection[str]) -> None:
                await registry.clear_outputs(session_ids)
                await consolidation.lost(session_ids)

            memory.on_blanked = blanked
            broker = Broker()
            budget = await open_budget(database, config.budget.day_usd, lambda: datetime.now(UTC))
            hands = Hands(
                database=database,
                broker=broker,
                memory=memory,
                registry=registry,
                pool=reload.pool,
                budget=budget,
                agents=config.agents,
                consolidation=consolidation,
                approvals=Approvals(database, registry.audit),
            )
            async with open_runner(hands) as runner:
                runner.export = export
                registry.add(spawn_tools(runner))
                services = Services(
                    config=config,
                    paths=paths,
                    socket=str(socket_path),
                    database=database,
                    memory=memory,
                    registry=registry,
                    mcp=mcp,
                    pool=reload.pool,
                    budget=budget,
                    consolidation=consolidation,
                    approvals=hands.approvals,
                    runner=runner,
                    reload=reload,
                    stop=stop,
                    started=started,
                )

                def apply(new: Config, pool: Pool) -> None:
                    hands.agents = new.agents
                    hands.pool = services.pool = consolidation.pool = pool
                    secrets.configure(new)
                    budget.config_usd = new.budget.day_usd
                    services.config = new
                    mcp.configure(new.mcp.servers)

                recovered = await runner.recover()
                server = Server(table(services))
                listener = await SocketListener.from_socket(listening)
                async with anyio.create_task_group() as connections:
                    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
                        async with listener, anyio.create_task_group() as accepting:
                            accepting.start_soon(_heed, signals, stop, reload)
                            accepting.start_soon(_show_life, watchdog_s(environ))
                            accepting.start_soon(listener.serve, server.connection, connections)
                            logger.info(
                                "ready", extra={"socket": str(socket_path), "recovered_tasks": recovered}
                            )
                            gc.freeze()  # modules and all: nobody waits while the collector looks at them again
                            notify("READY=1\nSTATUS=ready")
                            await stop.wait()
                            notify("STOPPING=1")
                            accepting.cancel_scope.cancel()
                    server.close()
                    connections.start_soon(runner.idle)
                    connections.cancel_scope.deadline = anyio.current_time() + GRACE_S
                if runner.open:
                    logger.info("tasks are left to the next start", extra={"open_tasks": runner.open})
    logger.info("stopped")


async def _heed(signals: AsyncIterable[signal.Signals], stop: anyio.Event, reload: Reload) -> None:
    async for each in signals:
        if each != signal.SIGHUP or sys.stderr.isatty():  # started by hand, and its terminal is gone
            stop.set()
            continue
        try:
            await reload()
            notify("STATUS=ready")
        except ConfigError as exc:
            logger.error("the config was refused, the old one stays: %s", exc)
            notify(f"STATUS=ready; the new config was refused: {exc}")


async def _show_life(every_s: float | None) -> None:
    """Tells the service manager that the event loop turns, as often as it wants to know."""
    while every_s is not None:
        notify("WATCHDOG=1")
        await anyio.sleep(every_s)


async def _keep_passage(audit: Audit, passage: Passage) -> None:
    entry = audit.entry(
        "egress",
        f"{passage.host}:{passage.port}",
        session_id=passage.session_id,
        server=passage.server,
        address=passage.address,
        refused=passage.refused,
    )
    await audit.keep(entry)


def _walls(
    config: Config, paths: Paths, socket_path: Path, environ: Mapping[str, str], delegated: Delegation
) -> Walls:
    """AIOSD_TIERS is for tests: it names the walls that are tried, and can only take some away; without any, no tool
    runs."""
    hidden = (paths.config, paths.data, paths.state, paths.cache, paths.run, socket_path)
    named = environ.get("AIOSD_TIERS")
    tiers = tuple(Tier) if named is None else tuple(map(Tier, named.split(",")))
    return Walls(hidden, tiers, config.tools.commands, config.tools.searxng_url, delegated)


def _workspace(paths: Paths, session: Session) -> Path:
    """The folder the session's tools work in, made if it is the session's own."""
    if session.workspace is not None:
        return Path(session.workspace)
    folder = paths.workspace(session.session_id)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def weights_of(config: Config, environ: Mapping[str, str]) -> Path | None:
    """Those of the embedder. Where the config names it, raises ConfigError for none and WrongWeights for others."""
    found = weights.find(environ) if config.memory.embedder in ("auto", "minilm") else None
    if config.memory.embedder == "minilm" and found is None:
        raise ConfigError(
            f"memory.embedder is minilm, and the weights of {weights.MODEL} are not here",
            hint=weights.INSTALL,
        )
    if config.memory.embedder == "minilm" and found is not None:
        weights.check(found)
    return found


def _embedder(config: Config, reload: Reload) -> LocalModel | None:
    """The backend that embeds, where the config names one."""
    name = config.memory.embedder
    if name in EMBEDDERS:
        return None

    async def embed(texts: Sequence[str]) -> Embedded:
        return await reload.pool.embed(texts, by=name)

    return LocalModel(f"{name}:{config.models.backends[name].model}", embed)


def _memory_server(memory: Memory, url: str, paths: Paths, environ: Mapping[str, str]) -> remote.Server:
    """The Qdrant there, with the key that the config names. Raises ConfigError where that is not there."""
    key = named = None
    if memory.key_env:
        named = f"${memory.key_env}"
        key = environ.get(memory.key_env, "").strip() or credential(memory.key_env, environ)
        if key is None:
            raise ConfigError(
                f"the key of {url}, ${memory.key_env} (memory.key_env), is not set",
                hint=f"export {memory.key_env}=",
            )
    elif memory.key_file:
        file = Path(named := memory.key_file).expanduser()
        try:
            key = file.read_text().strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError(f"memory.key_file: {exc}", hint=f"chmod u+r {file}") from None
    try:
        trusted = (
            ssl.create_default_context(cafile=Path(memory.ca_file).expanduser()) if memory.ca_file else None
        )
    except OSError as exc:  # SSLError is one
        raise ConfigError(f"memory.ca_file: {memory.ca_file}: {exc.strerror or exc}", hint=MEND) from None
    return remote.Server(
        url=url,
        collection=_collection(paths),
        connect=remote.connect(url, key, trusted),
        key_name=named,
    )


def _collection(paths: Paths) -> str:
    """One for each database on each machine: several may share a server."""
    try:
        machine = Path("/etc/machine-id").read_text()
    except OSError:
        machine = socket.gethostname()
    return "aiosd-" + hashlib.sha256(f"{machine}{paths.database.absolute()}".encode()).hexdigest()[:16]


@contextmanager
def _lock(path: Path, socket_path: Path) -> Iterator[None]:
    """Beside the data, so that one database has one daemon. The kernel lets go of it however the daemon ends."""
    with ExitStack() as opened:
        with _ours(path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = opened.enter_context(open(path, "a+"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            pid, _, elsewhere = file.read().strip().partition("\n")
            raise AlreadyRunning(
                f"another aiosd has {path.parent}: process {pid or 'unknown'} on {elsewhere or 'no socket'}",
                hint=f"kill {pid}" if pid else "aiosctl ping",
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n{socket_path}\n")
        file.flush()
        yield


@contextmanager
def _ours(path: Path) -> Iterator[None]:
    """What stands in the way of a file or socket of ours is told with the line that clears it."""
    try:
        yield
    except OSError as exc:
        raise InvalidState(f"{exc.filename or path}: {exc.strerror}", hint="aiosctl doctor --fix") from exc


@contextmanager
def _bound(path: Path) -> Iterator[socket.socket]:
    """A listening socket that replaces a stale one, never a live one, and is gone afterwards. Who connects before
    the daemon is ready waits in the backlog."""
    with socket.socket(socket.AF_UNIX) as probe, _ours(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            probe.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError):
            path.unlink(missing_ok=True)
        else:
            raise AlreadyRunning(f"another aiosd answers on {path}", hint=f"aiosctl --socket {path} status")
    with socket.socket(socket.AF_UNIX) as listening:
        mask = os.umask(0o177)  # never, even for a moment, open to others
        try:
            with _ours(path):
                listening.bind(os.fspath(path))
        finally:
            os.umask(mask)
        listening.listen(BACKLOG)
        own = path.stat().st_ino
        try:
            yield listening
        finally:
            if path.exists() and path.stat().st_ino == own:
                path.unlink()
