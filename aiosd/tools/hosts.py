"""The tool hosts that run: one a session, started at its first call, ended when idle, when its session is closed,
or to make room for another's."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import msgspec
from anyio.abc import TaskGroup

from aiosd.child import Child, open_child
from aiosd.errors import DeadlineExceeded, InvalidState, Overloaded
from aiosd.records import Command, Session
from aiosd.tools.cgroup import Delegation, Group, open_group
from aiosd.tools.egress import Egress
from aiosd.tools.results import Outputs
from aiosd.tools.sandbox import MAX_MEMORY, PROXY, Out, Plan, Tier
from aiosd.tools.wire import CAREFUL

MAX_HOSTS = 8
"""Sessions whose hosts are kept at once: each costs some 10 MB."""

MAX_CALLS = 16
"""Calls of one host that are at work at once; the others wait for their turn. Each is a process, of 128 in all."""

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
    commands: dict[str, Command] = msgspec.field(default_factory=dict)
    """Tools of the config."""
    searxng_url: str | None = None
    """Where web_search looks; without one it is no tool."""
    delegated: Delegation = Delegation()
    """Where each host gets a control group of its own."""


class UserFiles(msgspec.Struct, frozen=True):
    """What a host loads. One that was started for others is out of date."""

    folders: tuple[Path, ...]
    stamp: tuple[tuple[str, int, int], ...]
    """Path, time of change and size of each file."""
    careful: bool

    walls: Walls
    without: tuple[str, ...] = ()
    """Files that are passed over."""
    instead: dict[str, str] = msgspec.field(default_factory=dict)
    """Copies of good versions, by the file that is broken."""
    packages: tuple[str, ...] = ()
    """Folders with what the files need."""

    def argv(
        self,
        workspace: Path | None,
        *,
        write: bool,
        outputs: Path | None = None,
        only: tuple[str, ...] | None = None,
        out: Out | None = None,
        group: Group | None = None,
    ) -> list[str]:
        """-P: what lies in the workspace is never imported."""
        plan = Plan(
            workspace=None if workspace is None else str(workspace),
            write=write,
            outputs=None if outputs is None else str(outputs),
            folders=tuple(map(str, self.folders)),
            hidden=tuple(map(str, self.walls.hidden)),
            only=only,
            without=self.without,
            instead=self.instead,
            packages=self.packages,
            commands=self.walls.commands,
            searxng_url=self.walls.searxng_url,
            out=out,
            group=None if group is None else str(group.folder),
            tiers=self.walls.tiers,
        )
        careful = [CAREFUL] if self.careful else []
        return [sys.executable, "-P", "-m", "aiosd.tools.host", *careful, msgspec.json.encode(plan).decode()]


class Network(msgspec.Struct, frozen=True):
    """What the tools of a host may reach. Tools that list other hosts have a host of their own, so that what stands in
    its network is theirs alone."""

    hosts: tuple[str, ...] = ()
    only: tuple[str, ...] | None = None
    """The user's files with such tools, which alone are loaded; None for all."""


class _Host:
    """A session's host from the day it is wanted: its child is there once `ready`."""

    def __init__(self, files: UserFiles, network: Network) -> None:
        self.files = files
        self.network = network
        self.calls = 0
        """At work or waiting for their turn."""
        self.turns = anyio.Semaphore(MAX_CALLS)
        self.child: Child | None = None
        self.ready = anyio.Event()
        self.unwanted = anyio.Event()
        self.closed = anyio.Event()


class Hosts:
    def __init__(
        self,
        tasks: TaskGroup,
        workspaces: Callable[[Session], Path],
        outputs: Outputs,
        max_hosts: int,
        egress: Egress | None,
    ) -> None:
        self._egress = egress
        self._tasks = tasks
        self._workspaces = workspaces
        self._outputs = outputs
        self._max_hosts = max_hosts
        self._hosts: dict[tuple[str, tuple[str, ...]], _Host] = {}
        """By session and what they may reach, the least recently used first."""
        self._room = anyio.Event()

    @asynccontextmanager
    async def use(
        self, session: Session, files: UserFiles, network: Network, *, timeout_s: float
    ) -> AsyncIterator[tuple[Child, float]]:
        """The session's host, and the seconds that are left of `timeout_s` after waiting for a turn in it; a new one if it
        was started for other files and nobody uses it.

        Raises InvalidState without a workspace, Overloaded when all hosts are busy for `timeout_s`, DeadlineExceeded when
        this one is.
        """
        host = await self._host(session, files, network, timeout_s)
        host.calls += 1
        try:
            await host.ready.wait()
            if host.child is None:
                raise InvalidState("the session's tools were ended before they had started")
            left_s = await _turn(host, timeout_s)
            try:
                yield host.child, left_s
            finally:
                host.turns.release()
        finally:
            host.calls -= 1
            if not host.calls:
                self._room.set()

    async def end(self, session_id: str) -> None:
        """Ends a session's hosts, with the calls that run in them; returns when they are gone."""
        ended = [self._hosts.pop(key) for key in list(self._hosts) if key[0] == session_id]
        for host in ended:
            host.unwanted.set()
            self._room.set()
        for host in ended:
            await host.closed.wait()

    def close(self) -> None:
        """Ends all; the task group waits for them."""
        for host in self._hosts.values():
            host.unwanted.set()
        self._hosts.clear()

    async def _host(self, session: Session, files: UserFiles, network: Network, timeout_s: float) -> _Host:
        key = session.session_id, network.hosts
        with anyio.move_on_after(timeout_s):
            while True:
                host = self._hosts.pop(key, None)
                if host is not None and (host.calls or (host.files, host.network) == (files, network)):
                    self._hosts[key] = host  # now the most recently used
                    return host
                if host is not None:
                    host.unwanted.set()
                if self._make_room():
                    break
                if self._room.is_set():  # else others wait for this very one
                    self._room = anyio.Event()
                await self._room.wait()
            folder = _workspace(session, self._workspaces(session), files.walls.hidden)
            host = self._hosts[key] = _Host(files, network)
            self._tasks.start_soon(self._keep, host, session, folder)
            return host
        raise Overloaded(f"{self._max_hosts} sessions are calling tools, and none came to an end; try again")

    def _make_room(self) -> bool:
        if len(self._hosts) < self._max_hosts:
            return True
        idle = next((key for key, host in self._hosts.items() if not host.calls), None)
        if idle is None:
            return False
        self._hosts.pop(idle).unwanted.set()
        return True

    async def _keep(self, host: _Host, session: Session, folder: Path) -> None:
        """Its own task, since what is opened in a task is closed in it, and a host outlives the call that needed it."""
        try:
            name = f"tool host {session.session_id[:8]}"
            # Its own private folder a session may always write to: that is what it is for.
            write = session.write or session.workspace is None
            async with open_group(host.files.walls.delegated, MAX_MEMORY) as group:
                with self._way_out(session, host.network.hosts) as out:
                    argv = host.files.argv(
                        folder,
                        write=write,
                        outputs=self._outputs.folder(session.session_id),
                        only=host.network.only,
                        out=out,
                        group=group,
                    )
                    env = ENVIRONMENT | (PROXY if out else {})
                    async with open_child(
                        argv, name=name, env=env, cwd=folder, idle_s=IDLE_S, group=group
                    ) as child:
                        host.child = child
                        host.ready.set()
                        await host.unwanted.wait()
        finally:
            host.ready.set()
            host.closed.set()

    @contextmanager
    def _way_out(self, session: Session, hosts: tuple[str, ...]) -> Iterator[Out | None]:
        if self._egress is None or not hosts:
            yield None
            return
        with self._egress.expect(hosts, session_id=session.session_id) as key:
            yield Out(str(self._egress.path), key)


async def _turn(host: _Host, timeout_s: float) -> float:
    """Takes one of the host's turns; the seconds that are left. Raises DeadlineExceeded."""
    try:
        host.turns.acquire_nowait()
    except anyio.WouldBlock:
        until = anyio.current_time() + timeout_s
        with anyio.move_on_after(timeout_s) as patience:
            await host.turns.acquire()
        if patience.cancelled_caught:
            why = f"{MAX_CALLS} other calls of the session were at work for all of {timeout_s:g} s"
            raise DeadlineExceeded(why) from None
        return max(0.0, until - anyio.current_time())
    return timeout_s


def _workspace(session: Session, folder: Path, hidden: Sequence[Path]) -> Path:
    """A session's own folder is made when it is first needed; one that the user named is there or is not."""
    if session.workspace is None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    elif not folder.is_dir():
        raise InvalidState(f"the session's workspace `{folder}` is not there any more")
    elif own := [path for path in hidden if folder.resolve().is_relative_to(path.resolve())]:
        raise InvalidState(f"the session's workspace `{folder}` lies in the daemon's own `{own[0]}`")
    return folder
