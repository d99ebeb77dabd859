"""The tools there are, and calls of them: the one way to a tool, for models and for the owner alike.

Every call is checked in the same order: is there such a tool, may the session use it, is its rate left, do the
arguments fit. Users' code is known here by its description only, and runs in a tool host.
"""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import TaskGroup

from aiosd import tally
from aiosd.audit import Audit
from aiosd.child import ChildDied, open_child
from aiosd.errors import (
    AiosError,
    DeadlineExceeded,
    InvalidParams,
    NotFound,
    PermissionDenied,
    RateLimited,
    ToolFailed,
)
from aiosd.records import AuditEntry, Session, Tool, ToolResult
from aiosd.tools import limits, policy
from aiosd.tools.cgroup import open_group
from aiosd.tools.egress import Egress
from aiosd.tools.files import Versions, explained, stamp_of, told
from aiosd.tools.hosts import ENVIRONMENT, MAX_HOSTS, Hosts, Network, UserFiles, Walls
from aiosd.tools.kernel import Caller, KernelTool
from aiosd.tools.mcp import McpServers
from aiosd.tools.packages import Packages, declared
from aiosd.tools.policy import Verdict
from aiosd.tools.results import Outputs
from aiosd.tools.sandbox import MAX_MEMORY
from aiosd.tools.subjects import PATHS, Place, Subject, Unclear, subjects
from aiosd.tools.wire import Call, Description, Problem

START_S = 30.0
"""Seconds for a host to start and import the user's files; a call's own time begins after that."""

MAX_BUCKETS = 10_000
"""Rate limits kept before those that are full again are dropped."""

KEEP_S = 2.0
"""For writing down the end of a call that was cancelled."""

MAX_OFFERS = 1000
"""Ways of being offered tools that are kept at hand."""

SHOWN = 500
"""Characters of what a call was about that the audit log keeps."""

logger = logging.getLogger(__name__)


class Ruling(msgspec.Struct, frozen=True):
    """The verdict on one call, and on what it was given."""

    tool: Tool
    about: tuple[Subject, ...] | None
    """None where an argument is unclear."""
    place: Place
    verdict: Verdict


@asynccontextmanager
async def open_registry(
    folders: Sequence[Path],
    workspaces: Callable[[Session], Path],
    kernel: Mapping[str, KernelTool],
    audit: Audit,
    *,
    outputs: Path,
    versions: Path,
    packages: Packages,
    walls: Walls = Walls(),  # noqa: B008 - it is frozen
    max_hosts: int = MAX_HOSTS,
    egress: Egress | None = None,
    mcp: McpServers | None = None,
) -> AsyncIterator[Registry]:
    """`folders` hold the user's files, and need not exist; `workspaces` gives a session's folder; in `outputs` long ones are
    kept, in `versions` the files that have loaded. Without `egress` there is no network for any tool."""
    kept = Outputs(outputs)
    async with anyio.create_task_group() as tasks:
        hosts = Hosts(tasks, workspaces, kept, max_hosts, egress)
        registry = Registry(
            tasks, folders, workspaces, hosts, kept, Versions(versions), packages, kernel, audit, walls, mcp
        )
        try:
            yield registry
        finally:
            registry.close()


class Registry:
    def __init__(
        self,
        tasks: TaskGroup,
        folders: Sequence[Path],
        workspaces: Callable[[Session], Path],
        hosts: Hosts,
        outputs: Outputs,
        versions: Versions,
        packages: Packages,
        kernel: Mapping[str, KernelTool],
        audit: Audit,
        walls: Walls,
        mcp: McpServers | None,
    ) -> None:
        self._tasks = tasks
        self._mcp = mcp
        self._folders = tuple(folders)
        self._workspaces = workspaces
        self.audit = audit
        self._hosts = hosts
        self._outputs = outputs
        self._versions = versions
        self._packages = packages
        self._kernel = {entry.tool.name: entry for entry in kernel.values()}
        self._tools: dict[str, Tool] = {}
        self._offers: dict[tuple[tuple[str, ...], tuple[str, ...] | None], tuple[Tool, ...]] = {}
        """By permissions and narrowing: each reply is offered tools, and they seldom change."""
        self._offers_of: Mapping[str, Tool] = {}
        self._problems: tuple[Problem, ...] = ()
        self._walls = walls
        self._sandbox = ""
        self._file_of: dict[str, str] = {}
        self._files: UserFiles | None = None
        self._describing = anyio.Lock()
        self._installs: dict[tuple[str, ...], anyio.CancelScope] = {}
        """What is being installed now."""
        self._ended = self._known = 0
        """Installs that have ended, and those of them from before the files were looked at."""
        self._buckets: dict[tuple[str, str], limits.Bucket] = {}

    def close(self) -> None:
        """Ends all that runs; the task group waits for it."""
        self._hosts.close()
        for scope in self._installs.values():
            scope.cancel()

    def add(self, kernel: Mapping[str, KernelTool]) -> None:
        """More tools of the daemon's own, before anybody has asked for one."""
        self._kernel |= {entry.tool.name: entry for entry in kernel.values()}

    async def list(self) -> tuple[Tool, ...]:
        """Every tool, by name. Asks a host whenever the user's files have changed; raises ToolFailed where none starts.
        Those whose packages are still being installed come later, and until then are among the problems."""
        tools = await self._all()
        return tuple(tools[name] for name in sorted(tools))

    async def get(self, name: str) -> Tool:
        tools = await self._all()
        if name in tools:
            return tools[name]
        near = difflib.get_close_matches(name, tools, n=3)
        meant = f"; did you mean {' or '.join(f'`{n}`' for n in near)}?" if near else ""
        if self._installs:
            meant += "; packages of a tool file are being installed, and what is in it comes then"
        raise NotFound(f"there is no tool `{name[:80]}`{meant}")

    async def offered(self, session: Session, narrowed: Sequence[str] | None = None) -> tuple[Tool, ...]:
        """The tools that a run of the session is given. Raises NotFound where `narrowed` names none."""
        for name in narrowed or ():
            await self.get(name)
        tools = await self._all()
        if tools is not self._offers_of or len(self._offers) >= MAX_OFFERS:
            self._offers_of, self._offers = tools, {}
        asked = (session.permissions, None if narrowed is None else tuple(narrowed))
        if asked not in self._offers:
            by_name = [tools[name] for name in sorted(tools)]
            self._offers[asked] = policy.offered(by_name, session.permissions, narrowed)
        return self._offers[asked]

    async def problems(self) -> tuple[Problem, ...]:
        """The user's files and tools that were passed over, and why."""
        await self._described()
        return (*self._problems, *(self._mcp.problems() if self._mcp else ()))

    async def sandbox(self) -> str:
        """The tier of the walls around tools, a sandbox.Tier. Raises ToolFailed where no host starts."""
        await self._described()
        return self._sandbox

    @property
    def no_cgroup(self) -> str:
        """Why its hosts have no control groups; "" where they have."""
        return self._walls.delegated.why

    async def end(self, session_id: str) -> None:
        """Ends the session's tool hosts and MCP servers, and the calls that run in them; its long outputs go too."""
        await self._hosts.end(session_id)
        if self._mcp is not None:
            await self._mcp.end(session_id)
        await anyio.to_thread.run_sync(self._outputs.end, session_id)

    async def clear_outputs(self, session_ids: Collection[str]) -> None:
        """Deletes the long outputs of these sessions: nobody knows in which of them stands what was forgotten."""
        await anyio.to_thread.run_sync(self._outputs.clear, session_ids)

    async def ruling(self, session: Session, name: str, arguments: Mapping[str, Any]) -> Ruling:
        """What the session's permissions say of this call. Raises NotFound."""
        tool = await self.get(name)
        folder = self._workspaces(session)

        def rule() -> Ruling:
            workspace = os.path.realpath(folder)
            place = Place(workspace, str(Path.home()), os.path.realpath)
            try:
                about = subjects(tool, arguments, place)
            except Unclear:
                about = None
            return Ruling(tool, about, place, policy.decide(tool, session.permissions, about, place))

        if PATHS.isdisjoint(tool.input_schema.get("properties", ())):
            return rule()
        return await anyio.to_thread.run_sync(rule)  # it looks where symlinks lead

    async def call(
        self,
        session: Session,
        name: str,
        arguments: Mapping[str, Any],
        *,
        timeout_s: float,
        by: Literal["owner", "model"] = "model",
        task_id: str | None = None,
        approved: Ruling | None = None,
        call: str | None = None,
        keep: Callable[[AuditEntry], Awaitable[None]] | None = None,
    ) -> ToolResult:
        """What the tool gave; where the tool itself raised, a result with `is_error`. Cancelling kills the call. `task_id`
        and `call` are those of a Caller. `keep` writes the audit log in commits of the caller's own: that of the call
        before it returns.

        What asks needs to be `approved`, unless it is the owner who calls. Raises NotFound, PermissionDenied,
        RateLimited, InvalidParams (which costs no rate), DeadlineExceeded, ToolFailed, Overloaded, InvalidState.
        """
        ruling = await self.ruling(session, name, arguments)
        refused = _refusal(session, ruling, by, approved)
        digest = hashlib.sha256(msgspec.json.encode(arguments, order="sorted")).hexdigest()
        ids = {"session_id": session.session_id, "task_id": task_id}
        keep = keep or self.audit.keep
        entry = self.audit.entry(
            "call",
            name,
            **ids,
            by=by,
            decision="deny" if refused else "allow",
            rule=ruling.verdict.rule,
            why=ruling.verdict.why,
            # What a kernel tool is about is the user's own words, which they may want forgotten.
            about=None
            if name in self._kernel
            else [subject.text[:SHOWN] for subject in ruling.about or ()] or None,
            arguments_sha256=digest,
        )
        await keep(entry)
        if refused:
            raise PermissionDenied(refused, hint=f"aiosctl tool explain {session.session_id[:8]} {name}")
        status, began = "cancelled", time.monotonic()
        try:
            result = await self._call(Caller(session, task_id, call), ruling.tool, arguments, timeout_s)
            status = "failed" if result.is_error else "completed"
            result = self.audit.secrets.masked(result)
            if not self._outputs.is_long(result):
                return result
            return await anyio.to_thread.run_sync(self._outputs.shortened, session.session_id, result)
        except AiosError as exc:
            status = f"refused: {type(exc).__name__}"
            raise
        finally:
            tally.TOOL_CALLS.add(time.monotonic() - began, name, status)
            entry = self.audit.entry("result", name, **ids, status=status, arguments_sha256=digest)
            with anyio.move_on_after(KEEP_S, shield=True):  # a cancelled caller may write nothing any more
                await (self.audit.keep if status == "cancelled" else keep)(entry)

    # --- calls -----------------------------------------------------------------------------------------

    async def _call(
        self, caller: Caller, tool: Tool, arguments: Mapping[str, Any], timeout_s: float
    ) -> ToolResult:
        files = await self._described()
        session = caller.session
        self._take(session.user_id, tool)
        try:
            entry = self._kernel.get(tool.name) or (self._mcp.tools().get(tool.name) if self._mcp else None)
            if entry is not None:
                return await self._call_kernel(entry, caller, arguments, timeout_s)
            return await self._call_host(session, files, tool, arguments, timeout_s)
        except InvalidParams:
            self._give_back(session.user_id, tool)
            raise

    async def _call_kernel(
        self, entry: KernelTool, caller: Caller, arguments: Mapping[str, Any], timeout_s: float
    ) -> ToolResult:
        with anyio.move_on_after(None if entry.patient else timeout_s):
            return await entry.handler(caller, dict(arguments))
        raise DeadlineExceeded(f"tool `{entry.tool.name}` did not answer within {timeout_s:g} s")

    async def _call_host(
        self, session: Session, files: UserFiles, tool: Tool, arguments: Mapping[str, Any], timeout_s: float
    ) -> ToolResult:
        name = tool.name
        given = msgspec.Raw(msgspec.json.encode(arguments))
        using = self._hosts.use(session, files, self._network(tool), timeout_s=timeout_s)
        async with using as (child, left_s):
            call = Call(name=name, arguments=given, timeout_s=left_s)
            # The host keeps the deadline and says so; this is for a host that does not start or hangs itself.
            with anyio.move_on_after(START_S + timeout_s):
                try:
                    answer = await child.call("call", call, timeout_s=2 * (START_S + timeout_s))
                except ChildDied as exc:
                    raise ToolFailed(f"tool `{name}`: {exc}") from exc
                return msgspec.convert(answer, ToolResult)
            child.kill()
        raise DeadlineExceeded(f"tool `{name}`: its host did not answer and was killed")

    def _network(self, tool: Tool) -> Network:
        if not tool.hosts:
            return Network()
        alike = (other.name for other in self._tools.values() if other.hosts == tool.hosts)
        return Network(
            tool.hosts, tuple(sorted({self._file_of[name] for name in alike if name in self._file_of}))
        )

    def _take(self, user_id: str, tool: Tool) -> None:
        if tool.rate_limit is None:
            return
        now = anyio.current_time()
        key = (user_id, tool.name)
        bucket = self._buckets.get(key) or limits.full(tool.rate_limit, now)
        self._buckets[key], wait_s = limits.take(bucket, tool.rate_limit, now)
        if wait_s:
            raise RateLimited(
                f"`{tool.name}` may be called {tool.rate_limit} times a minute; try again in {wait_s:.1f} s",
                retry_after_s=wait_s,
            )
        if len(self._buckets) > MAX_BUCKETS:
            self._buckets = {k: b for k, b in self._buckets.items() if now - b.at < limits.MINUTE_S}

    def _give_back(self, user_id: str, tool: Tool) -> None:
        key = (user_id, tool.name)
        if tool.rate_limit is not None and key in self._buckets:
            self._buckets[key] = limits.give_back(self._buckets[key], tool.rate_limit, anyio.current_time())

    # --- what there is ---------------------------------------------------------------------------------

    async def _all(self) -> dict[str, Tool]:
        """Tools by name."""
        await self._described()
        if self._mcp is None:
            return self._tools
        await self._mcp.meet()
        return {name: entry.tool for name, entry in self._mcp.tools().items()} | self._tools

    async def _described(self) -> UserFiles:
        """The user's files, once what is in them is known."""
        stamp = stamp_of(self._folders)
        if (files := self._current(stamp)) is not None:
            return files
        async with self._describing:  # the others wait for the one answer; it has a deadline
            if (files := self._current(stamp)) is None:
                ended = self._ended
                self._files, description = await self._describe(stamp)
                self._known = ended
                self._learn(description)
                files = self._files
        return files

    def _current(self, stamp: tuple[tuple[str, int, int], ...]) -> UserFiles | None:
        is_current = self._files is not None and self._files.stamp == stamp and self._known == self._ended
        return self._files if is_current else None

    async def _describe(self, stamp: tuple[tuple[str, int, int], ...]) -> tuple[UserFiles, Description]:
        """What there is in the files; where one is broken, in its last good version."""
        versions = self._versions
        sources = await anyio.to_thread.run_sync(versions.sources, self._folders)
        packages, missing, awaited = await anyio.to_thread.run_sync(self._packaged, sources)
        for wanted in awaited.values():
            self._install(wanted)
        files = UserFiles(
            self._folders, stamp, careful=False, walls=self._walls, without=tuple(awaited), packages=packages
        )
        try:
            first = await _ask(files)
        except ToolFailed:
            files = msgspec.structs.replace(files, careful=True)
            first = await _ask(files)
        broken = {problem.file for problem in first.problems} | set(awaited)
        first = explained(first, missing)
        await anyio.to_thread.run_sync(versions.keep, sources, broken)
        instead = await anyio.to_thread.run_sync(versions.instead, broken)
        if not instead:
            return files, first
        copies = await anyio.to_thread.run_sync(lambda: {f: Path(c).read_bytes() for f, c in instead.items()})
        theirs, _, _ = await anyio.to_thread.run_sync(self._packaged, copies)
        with_copies = msgspec.structs.replace(
            files,
            instead=instead,
            without=tuple(file for file in awaited if file not in instead),
            packages=tuple(dict.fromkeys((*packages, *theirs))),
        )
        try:
            second = await _ask(with_copies)
        except ToolFailed:  # they were good with what else there was then
            return files, first
        return with_copies, msgspec.structs.replace(second, problems=told(first, second, instead))

    def _packaged(
        self, sources: Mapping[str, bytes]
    ) -> tuple[tuple[str, ...], dict[str, str], dict[str, tuple[str, ...]]]:
        """Folders with what the files say they need; where there is none, why, by file; and what has to be installed
        first, by file. Blocking."""
        folders: list[str] = []
        missing: dict[str, str] = {}
        awaited: dict[str, tuple[str, ...]] = {}
        for file, source in sorted(sources.items()):
            try:
                if not (wanted := declared(source)):
                    continue
                if folder := self._packages.folder(wanted):
                    folders.append(str(folder))
                else:
                    awaited[file] = wanted
                    missing[file] = f"installing {', '.join(wanted)}; its tools come once that is done"
            except ToolFailed as exc:
                missing[file] = str(exc)
        return tuple(dict.fromkeys(folders)), missing, awaited

    def _install(self, wanted: tuple[str, ...]) -> None:
        """Beside all else: the next who asks after its end finds what came of it."""
        if wanted in self._installs:
            return
        scope = self._installs[wanted] = anyio.CancelScope()

        async def install() -> None:
            with scope:
                await self._packages.install(wanted)
            del self._installs[wanted]
            self._ended += 1

        self._tasks.start_soon(install)

    def _learn(self, description: Description) -> None:
        tools = {tool.name: tool for tool in description.tools}
        taken = [
            Problem(file="", line=None, error=f"`{name}`: there is a tool of that name already")
            for name in self._kernel
            if name in tools
        ]
        self._tools = tools | {name: entry.tool for name, entry in self._kernel.items()}
        self._problems = (*description.problems, *taken)
        self._file_of = description.files
        self._sandbox = description.sandbox
        logger.info("tools are described", extra={"sandbox": self._sandbox, "tools": len(self._tools)})
        for problem in self._problems:
            logger.warning("tool passed over", extra={"problem": str(problem)})


def _refusal(session: Session, ruling: Ruling, by: str, approved: Ruling | None) -> str | None:
    """Why the call is not made: a sentence; None if it may be."""
    match ruling.verdict.decision:
        case "deny":
            return f"session `{session.title}` may not use `{ruling.tool.name}`: {ruling.verdict.why}"
        case "ask" if by == "model" and approved is None:
            return f"`{ruling.tool.name}` needs its user's approval: {ruling.verdict.why}"
        case _ if approved is not None and approved.about != ruling.about:
            return f"what `{ruling.tool.name}` was approved for has changed since: it is about something else now"
        case _:
            return None


async def _ask(files: UserFiles) -> Description:
    """From a host for this alone, in no workspace. Raises ToolFailed."""
    async with open_group(files.walls.delegated, MAX_MEMORY) as group:
        argv = files.argv(None, write=False, group=group)
        async with open_child(
            argv, name="tool catalog", env=ENVIRONMENT, cwd=Path("/"), group=group
        ) as child:
            try:
                answer = await child.call("describe", timeout_s=3 * START_S if files.careful else START_S)
                return msgspec.convert(answer, Description)
            except (ChildDied, DeadlineExceeded) as exc:
                failure = ToolFailed(f"the tools are not known: {exc}")
    raise failure  # out here: a task group would wrap it
