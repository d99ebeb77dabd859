"""The tool hosts that run: one a session, started at its first call, ended when idle, when its session is closed,
or to make room for another's."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import msgspec
from anyio.abc import TaskGroup

from aiosd.child import Child, open_child
from aiosd.errors import InvalidState, Overloaded
from aiosd.records import Session
from aiosd.tools.sandbox import Plan, Tier
from aiosd.tools.wire import CAREFUL

MAX_HOSTS = 8
"""Sessions whose hosts are kept at once: each costs some 10 MB."""

IDLE_S = 300.0
"""Starting a host again costs less than keeping one that nobody uses."""

ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
"""All that a tool finds in its environment: the daemon's may hold keys."""


class Walls(msgspec.Struct, frozen=True):
    """What all hosts have in common."""

    hidden: tuple[Path, ...] = ()
    """The daemon's own files and folders, which no tool may reach wherever its workspace lies."""
    tiers: tuple[Tier, ...] = tuple(Tier)
    """The walls that are tried."""


class UserFiles(msgspec.Struct, frozen=True):
    """What a host loads. One that was started for others is out of date."""

    folders: tuple[Path, ...]
    stamp: tuple[tuple[str, int, int], ...]
    """Path, time of change and size of each file."""
    careful: bool

    walls: Walls

    def argv(self, workspace: Path | None, *, write: bool) -> list[str]:
        """-P: what lies in the workspace is never imported."""
        plan = Plan(
            workspace=None if workspace is None else str(workspace),
            write=write,
            folders=tuple(map(str, self.folders)),
            hidden=tuple(map(str, self.walls.hidden)),
            tiers=self.walls.tiers,
        )
        careful = [CAREFUL] if self.careful else []
        return [sys.executable, "-P", "-m", "aiosd.tools.host", *careful, msgspec.json.encode(plan).decode()]


class _Host:
    """A session's host from the day it is wanted: its child is there once `ready`."""

    def __init__(self, files: UserFiles) -> None:
        self.files = files
        self.calls = 0
        self.child: Child | None = None
        self.ready = anyio.Event()
        self.unwanted = anyio.Event()
        self.closed = anyio.Event()


class Hosts:
    def __init__(
        self,
        tasks: TaskGroup,
        workspaces: Callable[[Session], Path],
        max_hosts: int,
    ) -> None:
        self._tasks = tasks
        self._workspaces = workspaces
        self._max_hosts = max_hosts
        self._hosts: dict[str, _Host] = {}
        """By session, the least recently used first."""
        self._room = anyio.Event()

    @asynccontextmanager
    async def use(self, session: Session, files: UserFiles, *, timeout_s: float) -> AsyncIterator[Child]:
        """The session's host; a new one if it was started for other files and nobody uses it.

        Raises InvalidState without a workspace, Overloaded when all hosts are busy for `timeout_s`.
        """
        host = await self._host(session, files, timeout_s)
        host.calls += 1
        try:
            await host.ready.wait()
            if host.child is None:
                raise InvalidState("the session's tools were ended before they had started")
            yield host.child
        finally:
            host.calls -= 1
            if not host.calls:
                self._room.set()

    async def end(self, session_id: str) -> None:
        """Ends a session's host, with the calls that run in it; returns when it is gone."""
        host = self._hosts.pop(session_id, None)
        if host is not None:
            host.unwanted.set()
            self._room.set()
            await host.closed.wait()

    def close(self) -> None:
        """Ends all; the task group waits for them."""
        for host in self._hosts.values():
            host.unwanted.set()
        self._hosts.clear()

    async def _host(self, session: Session, files: UserFiles, timeout_s: float) -> _Host:
        with anyio.move_on_after(timeout_s):
            while True:
                host = self._hosts.pop(session.session_id, None)
                if host is not None and (host.calls or host.files == files):
                    self._hosts[session.session_id] = host  # now the most recently used
                    return host
                if host is not None:
                    host.unwanted.set()
                if self._make_room():
                    break
                self._room = anyio.Event()
                await self._room.wait()
            folder = _workspace(session, self._workspaces(session), files.walls.hidden)
            host = self._hosts[session.session_id] = _Host(files)
            self._tasks.start_soon(self._keep, host, session, folder)
            return host
        raise Overloaded(f"{self._max_hosts} sessions are calling tools, and none came to an end; try again")

    def _make_room(self) -> bool:
        if len(self._hosts) < self._max_hosts:
            return True
        idle = next((session_id for session_id, host in self._hosts.items() if not host.calls), None)
        if idle is None:
            return False
        self._hosts.pop(idle).unwanted.set()
        return True

    async def _keep(self, host: _Host, session: Session, folder: Path) -> None:
        """Its own task, since what is opened in a task is closed in it, and a host outlives the call that needed it."""
        try:
            name = f"tool host {session.session_id[:8]}"
            # Its own private folder a session may always write to: that is what it is for.
            argv = host.files.argv(folder, write=session.write or session.workspace is None)
            async with open_child(argv, name=name, env=ENVIRONMENT, cwd=folder, idle_s=IDLE_S) as child:
                host.child = child
                host.ready.set()
                await host.unwanted.wait()
        finally:
            host.ready.set()
            host.closed.set()


def _workspace(session: Session, folder: Path, hidden: Sequence[Path]) -> Path:
    """A session's own folder is made when it is first needed; one that the user named is there or is not."""
    if session.workspace is None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    elif not folder.is_dir():
        raise InvalidState(f"the session's workspace `{folder}` is not there any more")
    elif own := [path for path in hidden if folder.resolve().is_relative_to(path.resolve())]:
        raise InvalidState(f"the session's workspace `{folder}` lies in the daemon's own `{own[0]}`")
    return folder
