"""The tools of MCP servers. A server runs behind walls like a tool host (aiosd.tools.mcp_bridge), in a process that is started
when it is asked something and ended when it is idle.

A server remembers what it likes of whom it serves, so sessions share a process, and the folder that it writes to, only
where they share all that they know: a circle.

What models are shown of a server is what its user approved: adding it to the config approves the tools it has then. One
that is described otherwise since, or is new, is not called until it has been approved again.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shlex
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import TaskGroup

from aiosd import config
from aiosd.addresses import is_loopback
from aiosd.child import Call, Child, ChildDied, open_child
from aiosd.errors import AiosError, DeadlineExceeded, NotFound, Overloaded, PermissionDenied, ToolFailed
from aiosd.protocol import mcp as shown
from aiosd.records import Session, Tool, ToolResult
from aiosd.state import mcp as rows
from aiosd.state.database import Database
from aiosd.state.memories import Scope
from aiosd.tools.cgroup import Group, open_group
from aiosd.tools.egress import Egress
from aiosd.tools.hosts import ENVIRONMENT, Walls
from aiosd.tools.kernel import Caller, KernelTool
from aiosd.tools.sandbox import PROXY, Out, Plan
from aiosd.tools.wire import McpCall, McpStart, McpTool, Problem

START_S = 60.0
"""For a server to be ready and to list its tools; some load a model first."""

CALL_S = 3600.0
"""A call has the deadline of who makes it; this is for one without."""

IDLE_S = 300.0

CATALOG = "catalog"
"""The folder of a process that is started to list its tools alone."""

MAX_PROCESSES = 16
"""Of all servers and circles together; each costs some 60 MB and what the server itself takes."""

MEMORY = 64 * 1024**3
"""Bytes of address space: what runs JavaScript or WebAssembly reserves far more than it uses."""

MAX_NAME = 64
"""Characters of a tool's name that models take."""

States = Mapping[str, Literal["approved", "changed", "new", "gone"]]

logger = logging.getLogger(__name__)


def compare(approved: Mapping[str, McpTool], running: Mapping[str, McpTool] | None) -> States:
    """The state of each tool; all are as approved where no server runs that could tell otherwise."""
    if running is None:
        return dict.fromkeys(approved, "approved")
    states: dict[str, Literal["approved", "changed", "new", "gone"]] = {}
    for name in {**approved, **running}:
        if name not in running:
            states[name] = "gone"
        elif name not in approved:
            states[name] = "new"
        else:
            states[name] = "approved" if approved[name] == running[name] else "changed"
    return states


def called(server: str, tool: str) -> str:
    """What models call it: dots and slashes fail the pattern of some, and so does a long name, which ends in a hash."""
    name = re.sub(r"[^A-Za-z0-9_-]", "_", f"{server}__{tool}")
    if len(name) <= MAX_NAME:
        return name
    return f"{name[: MAX_NAME - 9]}_{hashlib.sha256(tool.encode()).hexdigest()[:8]}"


@asynccontextmanager
async def open_mcp(
    servers: Mapping[str, config.McpServer],
    database: Database,
    egress: Egress,
    walls: Walls,
    folder: Path,
    scope_of: Callable[[Session], Scope],
) -> AsyncIterator[McpServers]:
    """`folder` has the private folders of servers that were given none, `scope_of` what a session may see of others'
    memories. Nothing is started."""
    known = await database.read(rows.approved)
    async with anyio.create_task_group() as tasks:
        opened = McpServers(tasks, database, egress, walls, folder, known, scope_of)
        opened.configure(servers)
        try:
            yield opened
        finally:
            opened.configure({})


class Circle(msgspec.Struct, frozen=True):
    """Sessions that know of each other all that a server could tell: what they may see, and with which rights."""

    scope: Scope
    permissions: tuple[str, ...]

    @property
    def folder(self) -> str:
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:16]


class _Server:
    """One server of the config."""

    def __init__(self, name: str, spec: config.McpServer, approved: dict[str, McpTool] | None) -> None:
        self.name = name
        self.spec = spec
        self.approved = approved
        """None until it has been seen for the first time."""
        self.described: dict[str, McpTool] | None = None
        """As the process that was started last describes them."""
        self.problem: str | None = None
        self.was_met = approved is not None
        self.describing = anyio.Lock()
        self.processes: dict[Circle, _Process] = {}
        """The least recently used first."""

    @property
    def hosts(self) -> tuple[str, ...]:
        """What it may reach."""
        return (*([_entry(self.spec.url)] if self.spec.url else []), *self.spec.hosts)

    @property
    def is_local(self) -> bool:
        """What it is told stays on this machine."""
        return not self.spec.hosts and (not self.spec.url or is_loopback(self.spec.url))


class _Process:
    """A server's process for a circle: its child is there once `ready`."""

    def __init__(self) -> None:
        self.calls = 0
        self.child: Child | None = None
        self.described: dict[str, McpTool] = {}
        self.ready = anyio.Event()
        self.unwanted = anyio.Event()
        self.closed = anyio.Event()


class McpServers:
    def __init__(
        self,
        tasks: TaskGroup,
        database: Database,
        egress: Egress,
        walls: Walls,
        folder: Path,
        known: Mapping[str, tuple[bytes, ...]],
        scope_of: Callable[[Session], Scope],
    ) -> None:
        self._scope_of = scope_of
        self._tasks = tasks
        self._database = database
        self._egress = egress
        self._walls = walls
        self._folder = folder
        self._approved = {
            server: {tool.name: tool for tool in (msgspec.json.decode(t, type=McpTool) for t in tools)}
            for server, tools in known.items()
        }
        self._servers: dict[str, _Server] = {}
        self._meeting = anyio.Lock()

    def configure(self, servers: Mapping[str, config.McpServer]) -> None:
        """Ends those that are not in the config any more, or are in it otherwise."""
        for name, server in list(self._servers.items()):
            if servers.get(name) != server.spec:
                _end(self._servers.pop(name))
        for name, spec in servers.items():
            if name not in self._servers:
                self._servers[name] = _Server(name, spec, self._approved.get(name))

    async def end(self, session: str) -> None:
        """Ends what runs for this session alone, with what it has written; returns when it is gone."""
        ended = [
            (server.processes.pop(circle), self._folder / server.name / circle.folder)
            for server in self._servers.values()
            for circle in list(server.processes)
            if circle.scope.session_id == session
        ]
        for process, _ in ended:
            process.unwanted.set()
        for process, folder in ended:
            await process.closed.wait()
            await anyio.to_thread.run_sync(shutil.rmtree, folder, True)

    async def meet(self) -> None:
        """Starts the servers that were never seen before, once each, so that their tools are known."""
        if all(server.was_met for server in self._servers.values()):
            return
        async with self._meeting, anyio.create_task_group() as together:
            for server in self._servers.values():
                if not server.was_met:
                    together.start_soon(self._try, server)

    def tools(self) -> dict[str, KernelTool]:
        """By the names that models use."""
        found: dict[str, KernelTool] = {}
        for server in self._servers.values():
            for tool in (server.approved or {}).values():
                name = called(server.name, tool.name)
                found.setdefault(name, self._tool(server, tool, name))
        return found

    def problems(self) -> tuple[Problem, ...]:
        """Servers that do not start, and tools that wait for approval."""
        found = []
        for server in self._servers.values():
            if server.problem is not None:
                found.append(
                    Problem(file="", line=None, error=f"MCP server `{server.name}`: {server.problem}")
                )
            if waiting := [name for name, state in _states(server).items() if state in ("changed", "new")]:
                names = ", ".join(f"`{name[:60]}`" for name in waiting)
                error = f"MCP server `{server.name}`: {names} changed; `aiosctl mcp approve {server.name}` approves"
                found.append(Problem(file="", line=None, error=error))
        return tuple(found)

    def servers(self) -> tuple[shown.McpServer, ...]:
        return tuple(map(_shown, self._servers.values()))

    async def approve(self, name: str) -> shown.McpServer:
        """The server with its tools, approved as they are now. Raises NotFound, ToolFailed, DeadlineExceeded."""
        if name not in self._servers:
            known = ", ".join(self._servers) or "none"
            raise NotFound(f"the config has no MCP server `{name[:40]}`; it has {known}")
        server = self._servers[name]
        await self._approve(server, await self._describe(server))
        for circle in [c for c, process in server.processes.items() if process.described != server.approved]:
            server.processes.pop(circle).unwanted.set()  # it is from before the server changed
        return _shown(server)

    # --- a server --------------------------------------------------------------------------------------

    def _tool(self, server: _Server, tool: McpTool, name: str) -> KernelTool:
        async def handler(caller: Caller, arguments: dict[str, Any]) -> ToolResult:
            session = caller.session
            if session.privacy == "local" and not server.is_local:
                raise PermissionDenied(
                    f"`{name}` leaves this machine, and what session `{session.title}` says does not"
                )
            async with self._use(server, session) as (child, described):
                if (state := compare({tool.name: tool}, described)[tool.name]) != "approved":
                    raise PermissionDenied(
                        f"`{name}` is {state} since it was approved",
                        hint=f"aiosctl mcp approve {server.name}",
                    )
                call = McpCall(name=tool.name, arguments=arguments)
                try:
                    return msgspec.convert(await child.call("call", call, timeout_s=CALL_S), ToolResult)
                except ChildDied as exc:
                    raise ToolFailed(f"`{name}`: {exc}") from exc

        return KernelTool(
            Tool(
                name=name,
                description=tool.description,
                input_schema=tool.input_schema,
                # Whether it leaves the sandbox is ours to know, not its own to say.
                annotations=tool.annotations | {"openWorldHint": bool(server.hosts)},
                permissions=(server.name,),
                rate_limit=None,
                hosts=server.hosts,
            ),
            handler,
        )

    async def _try(self, server: _Server) -> None:
        try:
            await self._approve(server, await self._describe(server))
        except AiosError as exc:
            logger.warning("MCP server does not start", extra={"server": server.name, "why": str(exc)})
        server.was_met = True  # not where who asked has gone meanwhile: the next one tries again

    async def _describe(self, server: _Server) -> dict[str, McpTool]:
        """Its tools, from a process for this alone. Raises ToolFailed."""
        process = _Process()
        failure: ToolFailed | None = None
        async with server.describing:
            try:
                async with self._opened(server, process, CATALOG) as child:
                    try:
                        async with _started(server, child):
                            pass
                    except ToolFailed as exc:  # a task group would wrap it
                        failure = exc
            finally:
                shutil.rmtree(self._folder / server.name / CATALOG, ignore_errors=True)
        if failure is not None:
            raise failure
        return process.described

    @asynccontextmanager
    async def _use(
        self, server: _Server, session: Session
    ) -> AsyncIterator[tuple[Child, dict[str, McpTool]]]:
        """The circle's process, running, and how it describes the tools. Raises ToolFailed, Overloaded."""
        circle = Circle(self._scope_of(session), tuple(sorted(set(session.permissions))))
        process = server.processes.pop(circle, None)
        if process is None:
            self._make_room()
            process = _Process()
            self._tasks.start_soon(self._keep, server, process, circle)
        server.processes[circle] = process
        process.calls += 1
        try:
            await process.ready.wait()
            if process.child is None:
                raise ToolFailed(server.problem or f"MCP server `{server.name}` was ended")
            async with _started(server, process.child):
                yield process.child, process.described
        finally:
            process.calls -= 1

    def _make_room(self) -> None:
        used = [(s, c, p) for s in self._servers.values() for c, p in s.processes.items()]
        if len(used) < MAX_PROCESSES:
            return
        for server, circle, process in used:
            if not process.calls:
                server.processes.pop(circle).unwanted.set()
                return
        raise Overloaded(
            f"{MAX_PROCESSES} processes of MCP servers are at work, and none came to an end; try again"
        )

    async def _keep(self, server: _Server, process: _Process, circle: Circle) -> None:
        """Its own task, since what is opened in a task is closed in it."""
        try:
            async with self._opened(server, process, circle.folder) as process.child:
                process.ready.set()
                await process.unwanted.wait()
        except ToolFailed:
            if server.processes.get(circle) is process:
                del server.processes[circle]  # the next call tries again
        finally:
            process.child = None
            process.ready.set()
            process.closed.set()

    @asynccontextmanager
    async def _opened(self, server: _Server, process: _Process, folder: str) -> AsyncIterator[Child]:
        """A child that the first call starts. Raises ToolFailed."""

        async def started(call: Call) -> None:
            spec = server.spec
            advice = (
                f"aiosctl mcp add {server.name} -- COMMAND, or paths = [...] in its section of the config"
            )
            start = McpStart(
                command=spec.command or "", args=spec.args, env=spec.env, url=spec.url, advice=advice
            )
            tools = msgspec.convert(await call("start", start, timeout_s=START_S), list[McpTool])
            process.described = server.described = {tool.name: tool for tool in tools}

        async with AsyncExitStack() as opened:
            try:
                home = self._home(server, folder)
                out = opened.enter_context(self._way_out(server))
            except (OSError, ValueError) as exc:
                server.problem = str(exc)
                raise ToolFailed(f"MCP server `{server.name}` cannot be started: {exc}") from exc
            group = await opened.enter_async_context(open_group(self._walls.delegated, MEMORY))
            plan = self._plan(server, home, out, group)
            argv = [sys.executable, "-P", "-m", "aiosd.tools.mcp_bridge", plan]
            env = ENVIRONMENT | (PROXY if out else {})
            name = f"MCP server {server.name}"
            async with open_child(
                argv, name=name, env=env, cwd=home, idle_s=IDLE_S, started=started, group=group
            ) as child:
                yield child

    async def _approve(self, server: _Server, tools: dict[str, McpTool]) -> None:
        encoded = [msgspec.json.encode(tool) for tool in tools.values()]
        await self._database.write(lambda c: rows.approve(c, server.name, encoded))
        server.approved = self._approved[server.name] = dict(tools)
        server.was_met = True

    @contextmanager
    def _way_out(self, server: _Server) -> Iterator[Out | None]:
        if not server.hosts:
            yield None
            return
        with self._egress.expect(server.hosts, server=server.name) as key:
            yield Out(str(self._egress.path), key)

    def _home(self, server: _Server, name: str) -> Path:
        if server.spec.cwd is not None:
            return Path(server.spec.cwd)
        folder = self._folder / server.name / name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    def _plan(self, server: _Server, home: Path, out: Out | None, group: Group | None) -> str:
        command = server.spec.command or ""
        plan = Plan(
            workspace=str(home),
            write=True,
            folders=(*server.spec.paths, *([command] if command.startswith("/") else [])),
            hidden=tuple(map(str, self._walls.hidden)),
            tiers=self._walls.tiers,
            out=out,
            memory=MEMORY,
            group=None if group is None else str(group.folder),
        )
        return msgspec.json.encode(plan).decode()


@asynccontextmanager
async def _started(server: _Server, child: Child) -> AsyncIterator[None]:
    """While this lasts, it runs and is not idle. Raises ToolFailed."""
    async with AsyncExitStack() as held:
        try:
            await held.enter_async_context(child.hold(timeout_s=START_S))
        except (ChildDied, DeadlineExceeded) as exc:
            server.problem = str(exc)
            raise ToolFailed(f"MCP server `{server.name}` does not start: {exc}") from exc
        server.problem = None
        yield


def _end(server: _Server) -> None:
    for process in server.processes.values():
        process.unwanted.set()


def _states(server: _Server) -> States:
    return compare(server.approved or {}, server.described)


def _entry(url: str) -> str:
    """Of the hosts that are listed, the one of an address."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{host}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


def _shown(server: _Server) -> shown.McpServer:
    spec = server.spec
    return shown.McpServer(
        name=server.name,
        runs=spec.url or shlex.join([spec.command or "", *spec.args]),
        hosts=server.hosts,
        running=any(each.child is not None and each.child.is_ready for each in server.processes.values()),
        tools=tuple(shown.McpTool(name=name, state=state) for name, state in _states(server).items()),
        problem=server.problem,
    )
