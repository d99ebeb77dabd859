"""A process with a file system, processes and a network of its own: the first wall, where the kernel lets an ordinary
user have one. namespaces(7), user_namespaces(7), pivot_root(2).

The new root has what programs need (/usr, a little of /etc and /dev), what the room names, and a private /tmp.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn

from aiosd.tools import syscalls as sc

TMP_MB = 64
"""Of the private /tmp; it is memory."""

TMP_FILES = 20_000

MERGED = ("/bin", "/sbin", "/lib", "/lib32", "/lib64")
"""Links into /usr on most systems, folders of their own on others."""

ETC = (
    *(
        "/etc/ld.so.cache",
        "/etc/passwd",
        "/etc/group",
        "/etc/nsswitch.conf",
        "/etc/localtime",
        "/etc/mime.types",
    ),
    *("/etc/ssl", "/etc/pki", "/etc/ca-certificates", "/etc/alternatives"),
)

DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")

LINKS = {Path("/dev/fd"): Path("/proc/self/fd"), Path("/dev/shm"): Path("/tmp")}

RUN_LATER = (".git/hooks", ".git/config")
"""Files of a workspace that others run: a tool that may write there could leave the sandbox through them. Their folder
is mounted on itself too, since otherwise it could be moved away."""

APART = (
    sc.CLONE_NEWUSER | sc.CLONE_NEWNS | sc.CLONE_NEWPID | sc.CLONE_NEWNET | sc.CLONE_NEWIPC | sc.CLONE_NEWUTS
)

SIOCSIFFLAGS, IFF_UP = 0x8914, 1
"""netdevice(7)."""

STARTED, READY, FAILED = b"started", b"ready", b"failed"
"""What the new processes tell the old one, a line each: a process's number, that it is walled in, or why not."""


class Room(NamedTuple):
    """What there is for a tool to see. Absolute paths; those that are not there are passed over."""

    read: tuple[Path, ...]
    write: tuple[Path, ...]
    hidden: tuple[Path, ...]
    """Not even where they lie below one of the others."""


class Impossible(Exception):
    """This machine does not have that wall; the text says what failed."""


class _Mount(NamedTuple):
    path: Path
    how: Literal["read", "write", "hide"]


def enter(room: Room, finish: Callable[[], None]) -> None:
    """Goes on in a new process, which is process 1 of its own; the old one waits for it and ends as it does.

    `finish` is the rest of what must work there. Raises Impossible, in the old process and unchanged, where
    anything does not. Call it while there is one thread only.
    """
    heard, telling = os.pipe()
    going, go = os.pipe()
    sc.prctl(sc.PR_SET_CHILD_SUBREAPER, 1)  # the new process comes to us when the one between ends
    between = os.fork()
    if between == 0:
        os.close(heard)
        os.close(go)
        _become(room, finish, telling, going)
        return
    os.close(telling)
    os.close(going)
    os.waitpid(between, 0)
    said = b""
    while piece := os.read(heard, 4096):
        said += piece
    os.close(heard)
    words = dict(line.split(b" ", 1) for line in said.splitlines())
    if READY in words:
        _stand_by(int(words[STARTED]), go)
    os.close(go)
    sc.prctl(sc.PR_SET_CHILD_SUBREAPER, 0)
    if STARTED in words:
        os.waitpid(int(words[STARTED]), 0)
    raise Impossible(words.get(FAILED, b"the new process ended").decode(errors="replace"))


def _become(room: Room, finish: Callable[[], None], telling: int, going: int) -> None:
    """The process between, which ends here, and its child, which returns once the old one has said so."""
    try:
        uid, gid = os.geteuid(), os.getegid()
        sc.unshare(APART)
        for name, content in (
            ("setgroups", "deny"),
            ("uid_map", f"{uid} {uid} 1"),
            ("gid_map", f"{gid} {gid} 1"),
        ):
            Path("/proc/self", name).write_text(content)
        inner = os.fork()
        if inner:
            os.write(telling, b"%s %d\n" % (STARTED, inner))
            os._exit(0)
        _build(room)
        finish()
    except (OSError, ValueError) as exc:
        os.write(telling, b"%s %s\n" % (FAILED, str(exc).encode(errors="replace")))
        os._exit(1)
    os.write(telling, b"%s \n" % READY)
    os.close(telling)
    # The process between has ended by now, so this is tied to the old one; which may have ended too.
    if not os.read(going, 1):
        os._exit(1)
    sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)
    poll = select.poll()
    poll.register(going, select.POLLIN)
    if poll.poll(0):
        os._exit(1)
    os.close(going)


def listen_within(port: int) -> socket.socket:
    """On loopback, which is brought up for it: all the network there is in here. Call it while capabilities are held."""
    made = socket.socket()
    fcntl.ioctl(made, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", IFF_UP))
    made.bind(("127.0.0.1", port))
    made.listen(64)
    return made


def _stand_by(pid: int, go: int) -> NoReturn:
    """All that is left of the old process: a parent for the new one, whose end it passes on."""
    os.write(go, b"!")
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in {int(name) for name in os.listdir("/proc/self/fd")} - {2, go, nothing}:
        try:
            os.close(descriptor)
        except OSError:  # the one that the list was read from
            continue
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status))


# --- the file system ---------------------------------------------------------------------------------------


def _build(room: Room) -> None:
    sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
    mounts, links = _layout(room)
    # Copies, from before /tmp is covered: it may be in the room itself.
    sources = {m.path: sc.open_tree(str(m.path)) for m in mounts if m.how != "hide"}
    devices = {name: sc.open_tree(name) for name in DEVICES}
    folders = {m.path for m in mounts if m.path.is_dir()}
    root = "/tmp"
    sc.mount("tmpfs", root, "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, "mode=755,size=1m")
    for name in ("dev", "proc", "tmp"):
        os.mkdir(f"{root}/{name}", 0o755)
    size = f"mode=1777,size={TMP_MB}m,nr_inodes={TMP_FILES}"
    sc.mount("tmpfs", f"{root}/tmp", "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, size)
    for name, source in devices.items():
        _place(root + name, folder=False)
        sc.move_mount(source, root + name)
    for link, real in links.items():
        os.makedirs(f"{root}{link.parent}", 0o755, exist_ok=True)
        os.symlink(real, f"{root}{link}")
    for mounted in mounts:
        target = f"{root}{mounted.path}"
        _place(target, folder=mounted.path in folders)
        if mounted.how != "hide":
            sc.move_mount(sources[mounted.path], target)
            read_only = sc.MOUNT_ATTR_RDONLY if mounted.how == "read" else 0
            sc.mount_setattr(target, read_only | sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NODEV, recursive=True)
        elif mounted.path in folders:
            sc.mount("tmpfs", target, "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, "mode=755,size=64k")
        else:
            sc.mount(f"{root}/dev/null", target, None, sc.MS_BIND)
    for mounted in mounts:
        if mounted.how == "hide":
            sc.mount_setattr(f"{root}{mounted.path}", sc.MOUNT_ATTR_RDONLY, recursive=False)
    kept = sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC
    sc.mount(
        "proc", f"{root}/proc", "proc", kept | sc.MS_RDONLY
    )  # root may write sysctls there, even from in here
    for source in (*sources.values(), *devices.values()):
        os.close(source)
    here = os.getcwd()
    os.chdir(root)
    sc.pivot_root_here()
    sc.mount_setattr("/", sc.MOUNT_ATTR_RDONLY | sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NODEV, recursive=False)
    os.chdir(here if os.path.isdir(here) else "/")


def _layout(room: Room) -> tuple[list[_Mount], dict[Path, Path]]:
    """What is mounted, each at its real place and what lies below another after it, and the links by which it was
    named. One place each: a second would show what is covered at the first."""
    wanted: dict[Path, Literal["read", "write", "hide"]] = {Path("/usr"): "read"}
    wanted |= {Path(name): "read" for name in MERGED if os.path.isdir(name) and not os.path.islink(name)}
    wanted |= {Path(name): "read" for name in ETC if os.path.exists(name)}
    wanted |= {path.resolve(): "write" for path in room.write if path.exists()}
    wanted |= {path.resolve(): "read" for path in room.read if path.exists()}
    for folder in map(Path.resolve, room.write):
        for name in RUN_LATER:
            if (path := folder / name).exists() and not path.parent.is_symlink():
                wanted |= {path.parent: "write", path: "read"}
        if (path := folder / ".git").is_file() and not path.is_symlink():
            wanted[path] = "read"
    shown = frozenset(wanted)
    for path in map(Path.resolve, room.hidden):
        if path.exists() and path not in shown and not shown.isdisjoint(path.parents):
            wanted[path] = "hide"
    links = {Path(name): Path(os.readlink(name)) for name in MERGED if os.path.islink(name)} | LINKS
    for path in sorted({*room.write, *room.read}, key=_depth):
        # Below what is shown, the link that leads there is shown too.
        if path.exists() and path != path.resolve() and shown.union(links).isdisjoint([path, *path.parents]):
            links[path] = path.resolve()
    return [_Mount(path, wanted[path]) for path in sorted(wanted, key=_depth)], links


def _depth(path: Path) -> int:
    return len(path.parts)


def _place(target: str, *, folder: bool) -> None:
    """Something of the same kind to mount on, unless it is there."""
    if os.path.lexists(target):
        return
    if folder:
        os.makedirs(target, 0o755)
    else:
        os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
