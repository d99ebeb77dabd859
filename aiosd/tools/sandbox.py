"""The walls around a tool host and each of its calls. Which ones a machine has is found by building them.

A host builds its walls before it loads a user's file, and they hold for all that it starts. Each call then enters a
Landlock domain of its own, out of which it reaches neither its host nor other calls. There is no way to run without.
"""

from __future__ import annotations

import os
import resource
import site
import socket
import sys
from enum import StrEnum
from pathlib import Path

import msgspec

from aiosd.records import Command
from aiosd.tools import landlock, seccomp
from aiosd.tools import syscalls as sc
from aiosd.tools.namespaces import DEVICES, ETC, MERGED, Impossible, Room, enter, listen_within
from aiosd.tools.quota import MAX_WRITTEN

MAX_MEMORY = 4 * 1024**3
"""Bytes of address space of one process; some runtimes reserve a few GB without using them."""

MAX_FILE = 256 * 1024**2
"""Bytes of one file that a tool writes."""

MAX_OPEN = 1024

MAX_PROCESSES = 128
"""Processes and threads of one host's calls, together. The kernel does not hold root to it."""

PORT = 3128
"""Of the proxy, in a network where there is nothing else."""

PROXY = dict.fromkeys(
    ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"),
    f"http://127.0.0.1:{PORT}",
) | {"NODE_USE_ENV_PROXY": "1"}
"""How programs find it."""

RESERVE = 32
"""Those that the host itself may still start when its calls have used up theirs and are on their way out."""

DRIFT = 8 * MAX_PROCESSES
"""By how many the processes of a whole machine may grow while a host runs, where its limit has to count them."""


class Tier(StrEnum):
    """How well a tool is walled in, best first."""

    NAMESPACES = "namespaces+landlock+seccomp"
    WITHOUT_LANDLOCK = "namespaces+seccomp"
    """Calls of one session are not walled off from each other."""
    LANDLOCK = "landlock+seccomp"
    """No files of its own in /tmp, no /proc; it sees that other files exist, and how large they are."""
    NONE = "none"
    """No tool runs."""


ADVICE = (
    "allow user namespaces (on Ubuntu 24.04 and later by an AppArmor profile with `userns,`; "
    "else `sysctl user.max_user_namespaces=10000`) or boot a kernel from 6.2 on with `lsm=landlock,...`"
)


class Walls:
    """Around the process that has them, from here on."""

    def __init__(
        self,
        tier: Tier,
        why: str = "",
        *,
        ruleset: int | None = None,
        held: int | None = None,
        signals: bytes = b"",
        control: socket.socket | None = None,
    ) -> None:
        self.tier = tier
        self.why = why
        """What better walls failed at, if any did."""
        self._ruleset = ruleset
        self._held = held
        self._signals = signals
        self._control = control

    @property
    def has_way_out(self) -> bool:
        """The hosts that the plan's key stands for can be reached, through the proxy on PROXY."""
        return self._control is not None

    @property
    def hold(self) -> bool:
        return self.tier is not Tier.NONE

    def enter(self) -> None:
        """Once in each call's own process, before any of the tool's code. Raises OSError: then it must not run."""
        if not self.hold:
            raise OSError("there are no walls to enter")
        others = sc.threads_of_the_machine() if self.tier is Tier.LANDLOCK else 0
        _limit(resource.RLIMIT_NPROC, others + MAX_PROCESSES)
        sc.prctl(sc.PR_SET_DUMPABLE, 1)  # its host is not; its own /proc/self would not be its own
        if self._ruleset is not None:
            landlock.restrict(self._ruleset)
        for descriptor in (self._ruleset, self._held):
            if descriptor is not None:
                os.close(descriptor)
        if self._control is not None:
            self._control.close()
        if self._signals:
            seccomp.install(self._signals)


class Out(msgspec.Struct, frozen=True):
    """The way to the hosts that a tool lists (aiosd.tools.egress)."""

    socket: str
    """The daemon's, which is told of the listening socket in here."""
    key: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a host's tools may reach."""

    workspace: str | None = None
    write: bool = False
    """Into the workspace."""
    outputs: str | None = None
    """The folder with the session's long outputs."""
    folders: tuple[str, ...] = ()
    """With the user's tools."""
    hidden: tuple[str, ...] = ()
    """The daemon's own files."""
    only: tuple[str, ...] | None = None
    """The files that are loaded of these folders; None for all."""
    without: tuple[str, ...] = ()
    """Files that are not, whatever else holds."""
    instead: dict[str, str] = msgspec.field(default_factory=dict)
    """Copies that are loaded for files of these folders."""
    packages: tuple[str, ...] = ()
    """Folders with what these files need, which Python looks into last."""
    commands: dict[str, Command] = msgspec.field(default_factory=dict)
    """Tools of the config."""
    searxng_url: str | None = None
    memory: int = MAX_MEMORY
    """Bytes of address space of one process, and of what all calls have in memory together."""
    written: int = MAX_WRITTEN
    """Bytes that a call may leave in the workspace."""
    out: Out | None = None
    """Without one there is no network."""
    group: str | None = None
    """The folder of the control group that it joins first (aiosd.tools.cgroup)."""
    tiers: tuple[Tier, ...] = tuple(Tier)
    """Those that are tried; tests leave some out. NONE runs nothing."""

    def room(self) -> Room:
        read = [*_python(), *map(Path, self.folders), *map(Path, self.instead.values())]
        read += map(Path, self.packages)
        if self.outputs is not None:
            read.append(Path(self.outputs))
        write: list[Path] = []
        if self.workspace is not None:
            (write if self.write else read).append(Path(self.workspace))
        return Room(tuple(read), tuple(write), tuple(map(Path, self.hidden)))


def build(plan: Plan) -> Walls:
    """The best walls that this machine has, of those the plan tries. With namespaces it returns in a new process
    (see namespaces.enter). Where nothing works the tier is NONE, and `why` says what failed. Raises OSError where it
    cannot join the plan's group."""
    if plan.group is not None:
        Path(plan.group, "cgroup.procs").write_text("0")
    room = plan.room()
    why = []
    if {Tier.NAMESPACES, Tier.WITHOUT_LANDLOCK} & set(plan.tiers):
        try:
            return _with_namespaces(room, plan)
        except (Impossible, OSError) as exc:
            why.append(f"namespaces: {exc}")
    if Tier.LANDLOCK in plan.tiers:
        try:
            return _with_landlock(room, plan.memory, "; ".join(why))
        except (Impossible, OSError) as exc:
            why.append(f"Landlock: {exc}")
    return Walls(Tier.NONE, "; ".join(why) or "not tried")


def _with_namespaces(room: Room, plan: Plan) -> Walls:
    tiers, out = plan.tiers, plan.out
    abi = landlock.abi() if Tier.NAMESPACES in tiers else 0
    if not abi and Tier.WITHOUT_LANDLOCK not in tiers:
        raise Impossible("the kernel has no Landlock")
    tier = Tier.NAMESPACES if abi else Tier.WITHOUT_LANDLOCK
    ruleset: int | None = None
    control = _connected(out) if out else None  # out here: in there, the socket has no name

    def finish() -> None:
        nonlocal ruleset
        if out and control:
            with listen_within(PORT) as made:
                socket.send_fds(control, [out.key.encode()], [made.fileno()])
        if abi:
            write = [*room.write, Path("/tmp"), *map(Path, DEVICES)]
            ruleset = landlock.ruleset(abi, read=[Path("/")], write=write, ports=[PORT] if out else [])
        program = seccomp.tools_filter(namespaces=True, network=out is not None)
        _close(ruleset, plan.memory, MAX_PROCESSES + RESERVE, program)

    try:
        enter(room, finish)
    except (Impossible, OSError):
        if control is not None:
            control.close()
        raise
    return Walls(tier, "" if abi else "the kernel has no Landlock", ruleset=ruleset, control=control)


def _connected(out: Out) -> socket.socket:
    path = Path(out.socket)
    made = socket.socket(socket.AF_UNIX)
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        made.connect(f"/proc/self/fd/{folder}/{path.name}")  # a socket's address has 107 bytes
    finally:
        os.close(folder)
    return made


def _with_landlock(room: Room, memory: int, why: str) -> Walls:
    abi = landlock.abi()
    if abi < landlock.ALONE:
        raise Impossible(
            f"the kernel has its ABI {abi}, and {landlock.ALONE} is needed" if abi else "not in this kernel"
        )
    for hidden in room.hidden:
        for shown in (*room.read, *room.write):
            if hidden.resolve().is_relative_to(shown.resolve()):
                raise Impossible(f"it cannot hide `{hidden}` in `{shown}`")
    read = [Path(name) for name in ("/usr", *MERGED, *ETC, *DEVICES)] + list(room.read)
    write = [*room.write, *map(Path, DEVICES)]
    # The host looks for its calls' strays there. Open for as long as it lives, or the kernel might forget the rule.
    own = os.open("/proc/self/task", os.O_RDONLY | os.O_DIRECTORY)
    its = landlock.ruleset(abi, read=read, write=write, folders=[own])
    calls = landlock.ruleset(abi, read=read, write=write)
    # The limit counts all of the user's processes, which we may not see; all users' are at least as many.
    most = sc.threads_of_the_machine() + DRIFT
    _close(its, memory, most, seccomp.tools_filter(namespaces=False))
    os.close(its)
    signals = b"" if abi >= landlock.SIGNALS else seccomp.signals_filter()
    return Walls(Tier.LANDLOCK, why, ruleset=calls, held=own, signals=signals)


def _close(ruleset: int | None, memory: int, processes: int, program: bytes) -> None:
    """The walls that need no namespace, for this process and all that it starts."""
    for what, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, MAX_FILE),
        (resource.RLIMIT_NOFILE, MAX_OPEN),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        _limit(what, most)
    sc.drop_capabilities()
    sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
    if ruleset is not None:
        landlock.restrict(ruleset)
    seccomp.install(program)
    sc.prctl(sc.PR_SET_DUMPABLE, 0)


def _limit(what: int, most: int) -> None:
    _, allowed = resource.getrlimit(what)
    most = most if allowed == resource.RLIM_INFINITY else min(most, allowed)
    resource.setrlimit(what, (most, most))


def _python() -> list[Path]:
    """What this Python and aiosd are loaded from."""
    packages = [*site.getsitepackages(), site.getusersitepackages()]
    places = [sys.base_prefix, sys.base_exec_prefix, sys.prefix, *(p for p in packages if p in sys.path)]
    here = Path(__file__).parents[1]
    found = [Path(place) for place in dict.fromkeys(places) if place not in ("/", "/usr")]
    return found if any(here.is_relative_to(place) for place in found) else [*found, here]
