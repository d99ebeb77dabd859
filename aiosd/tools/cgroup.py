"""A control group for each tool host: the memory and the processes that all of its calls may take together, kept by the
kernel. cgroups(7); https://docs.kernel.org/admin-guide/cgroup-v2.html; https://systemd.io/CGROUP_DELEGATION.

Only where systemd has handed the daemon's own group over (Delegate=): all others are somebody else's to divide. What
quota.py looks at holds everywhere, and names the call that took too much; this is for what is faster than a look.
"""

from __future__ import annotations

import logging
import os
import select
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import anyio

from aiosd.tools.namespaces import Impossible
from aiosd.tools.sandbox import MAX_PROCESSES, RESERVE

MOUNT = Path("/sys/fs/cgroup")

CONTROLLERS = frozenset({"memory", "pids"})

LEAF = "daemon"
"""The group that the daemon goes into: one that hands controllers on may have no processes of its own."""

OUTER = 2
"""Processes of a host outside of its namespaces: namespaces.enter."""

ASKING_S = 5.0
"""For systemd to say what it has handed over."""

END_S = 2.0
"""For what was killed to be gone."""

logger = logging.getLogger(__name__)


class Delegation(NamedTuple):
    folder: Path | None = None
    """Where groups may be made."""
    why: str = ""
    """There is none."""


def own(text: str) -> str | None:
    """A process's group in the hierarchy of version 2, by its /proc/PID/cgroup; None where there is none."""
    return next((line[3:] for line in text.splitlines() if line.startswith("0::/")), None)


def limits(memory: int, machine: int) -> dict[str, int]:
    """What is written into a group's files, by name. `memory` is what its calls may have in bytes, `machine` what there is.

    A quarter more than that, for the host and the pages of files; so a look sees it first, which ends but one call.
    And never more than half of the machine: the other half is for the daemon, its models, and the user.
    """
    return {
        "memory.max": min(memory * 5 // 4, machine // 2),
        "memory.swap.max": 0,  # or the rest of the machine would be slowed down instead
        "memory.oom.group": 1,  # one process less would leave a host with half of a call
        "pids.max": MAX_PROCESSES + RESERVE + OUTER,
    }


def oom_kills(events: str) -> int:
    """Processes that were killed for a group's memory, by its memory.events."""
    counts = dict(line.split() for line in events.splitlines())
    return int(counts.get("oom_kill", 0))


async def delegation() -> Delegation:
    """What systemd has handed over, taken: the daemon is in LEAF from here on. To be called before it has children."""
    try:
        folder = candidate(MOUNT, _mine(), os.getpid())
        await _ask_systemd(folder.name)
        divide(folder, os.getpid())
    except (Impossible, OSError) as exc:
        return Delegation(None, str(exc))
    return Delegation(folder)


def candidate(mount: Path, text: str, pid: int) -> Path:
    """The group of a process with this /proc/PID/cgroup, if it is alone there and may divide it. Raises Impossible,
    OSError."""
    group = own(text)
    if group is None or not (mount / "cgroup.controllers").exists():
        raise Impossible("this machine has no cgroup version 2, or only beside version 1")
    folder = mount / group.strip("/")
    if folder.suffix not in (".service", ".scope") or not os.access(folder / "cgroup.procs", os.W_OK):
        raise Impossible(f"the daemon's group `{group}` is not its own")
    if [pid] != [int(line) for line in (folder / "cgroup.procs").read_text().split()]:
        raise Impossible(f"the daemon is not alone in its group `{group}`")
    if missing := CONTROLLERS.difference((folder / "cgroup.controllers").read_text().split()):
        raise Impossible(f"the daemon's group has no {' and no '.join(sorted(missing))} controller")
    return folder


def _mine() -> str:
    return Path("/proc/self/cgroup").read_text()


async def _ask_systemd(unit: str) -> None:
    """The user's. Nothing in the file system tells: it marks the groups of the system's units alone. Raises Impossible,
    OSError."""
    with anyio.move_on_after(ASKING_S):
        asked = ["systemctl", "--user", "show", "--value", "--property=Delegate", "--", unit]
        said = await anyio.run_process(asked, check=False)
        if said.returncode != 0:
            raise Impossible(
                f"systemd does not know `{unit}`: {said.stderr.decode(errors='replace').strip()}"
            )
        if said.stdout.strip() != b"yes":
            raise Impossible(f"`{unit}` has no `Delegate=`")
        return
    raise Impossible(f"systemd did not say within {ASKING_S:g} s whether `{unit}` has `Delegate=`")


def divide(folder: Path, pid: int) -> None:
    leaf = folder / LEAF
    leaf.mkdir()
    try:
        (leaf / "cgroup.procs").write_text(str(pid))
        wanted = " ".join(f"+{name}" for name in sorted(CONTROLLERS))
        (folder / "cgroup.subtree_control").write_text(wanted)
    except OSError:
        with suppress(OSError):
            (folder / "cgroup.procs").write_text(str(pid))
            leaf.rmdir()
        raise


class Group:
    """Of one host, and all that it starts."""

    def __init__(self, parent: Path, bounds: Mapping[str, int]) -> None:
        """Raises OSError."""
        self.folder = Path(tempfile.mkdtemp(prefix="tools-", dir=parent))
        self._most = bounds["memory.max"]
        self._kills = 0
        for file, value in bounds.items():
            if (self.folder / file).exists():  # that of swap is not, on a kernel that does not count it
                (self.folder / file).write_text(str(value))

    def kill(self) -> None:
        """All that is in it, whatever it has become."""
        with suppress(FileNotFoundError):  # before Linux 5.14
            (self.folder / "cgroup.kill").write_text("1")

    def exceeded(self) -> str:
        """What was exceeded since this was last asked; "" where nothing was."""
        before, self._kills = self._kills, oom_kills((self.folder / "memory.events").read_text())
        if self._kills == before:
            return ""
        return f"its processes took all of the {self._most >> 20} MiB of memory that they may have together"

    async def close(self) -> None:
        """Kills what is left and waits until it is gone, for END_S. cgroup.events can always be read, and has POLLPRI
        once it has changed."""
        with anyio.move_on_after(END_S, shield=True):
            self.kill()
            with (self.folder / "cgroup.events").open("rb") as events, select.epoll() as changes:
                changes.register(events, select.EPOLLPRI)
                while b"populated 1" in os.pread(events.fileno(), 1024, 0):
                    await anyio.wait_readable(changes.fileno())
        try:
            self.folder.rmdir()
        except OSError as exc:
            logger.warning("group stays", extra={"group": self.folder.name, "why": str(exc)})


@asynccontextmanager
async def open_group(delegated: Delegation, memory: int) -> AsyncIterator[Group | None]:
    """A new group, for a process that joins it by itself (sandbox.Plan); None where nothing is delegated."""
    if delegated.folder is None:
        yield None
        return
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        group = Group(delegated.folder, limits(memory, machine))
    except OSError as exc:  # the looks of its host are left
        logger.warning("no group for a tool host", extra={"why": str(exc)})
        yield None
        return
    try:
        yield group
    finally:
        await group.close()
