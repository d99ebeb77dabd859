"""A real `systemd --user` beside the tests, in its own process tree, mounts and cgroup: neither systemd as process 1
nor a virtual machine is needed, only root. Run as a program, it is process 1 of that tree:

    unshare --pid --mount --fork --kill-child --mount-proc --propagation private python -m tests.user_manager UID
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from aiosctl.client import Client
from tests.daemon import NOBODY, PATIENCE_S

UID = 41_234
"""Nobody's, most likely, and not of the range that journald takes for services': 61184 to 65519."""
SYSTEMD = Path("/lib/systemd/systemd")
JOURNALD = Path("/lib/systemd/systemd-journald")
CGROUPS = Path("/sys/fs/cgroup")
HOME = Path("/run/home")
RUNTIME = Path(f"/run/user/{UID}")
ISOLATE = [
    "unshare",
    "--pid",
    "--mount",
    "--fork",
    "--kill-child",
    "--mount-proc",
    "--propagation",
    "private",
]


def missing() -> str | None:
    """Why there can be no manager here."""
    if os.geteuid() != 0:
        return "root makes the mounts that a user manager needs"
    if not SYSTEMD.exists() or not shutil.which("nsenter"):
        return "systemd or nsenter is not installed"
    probe = subprocess.run(
        [*ISOLATE, "mount", "-t", "cgroup2", "cgroup2", "/mnt"], capture_output=True, check=False, text=True
    )
    return f"cgroup2 cannot be mounted: {probe.stderr.strip()}" if probe.returncode else None


class UserManager:
    """The manager of an ordinary user, whose home is new and empty. Ended when its block ends."""

    def __enter__(self) -> Self:
        self._first = subprocess.Popen(
            [*ISOLATE, sys.executable, "-m", "tests.user_manager"],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._first.stdout is not None
        readable, _, _ = select.select([self._first.stdout], [], [], PATIENCE_S)
        assert readable and self._first.stdout.readline() == "up\n", "the user manager did not come up"
        inner = _children(self._first.pid)[0]
        self.pid = next(p for p in _children(inner) if Path(f"/proc/{p}/comm").read_text() == "systemd\n")
        self.root = Path(f"/proc/{self.pid}/root")
        self.home = self.root / HOME.relative_to("/")
        self.socket = self.root / RUNTIME.relative_to("/") / "aiosd" / "aiosd.sock"
        return self

    def __exit__(self, *exc: object) -> None:
        self._first.communicate(timeout=PATIENCE_S)

    def run(
        self, *argv: str, environ: Mapping[str, str] | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """A command as this user, as in a terminal of the login session."""
        enter = ["nsenter", "-t", str(self.pid), "-m", "-p", "-S", str(UID), "-G", str(UID)]
        done = subprocess.run(
            [*enter, *argv],
            env={
                "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
                "HOME": str(HOME),
                "XDG_RUNTIME_DIR": str(RUNTIME),
                "OLLAMA_HOST": NOBODY,
                **(environ or {}),
            },
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert not check or done.returncode == 0, (argv, done.stdout, done.stderr)
        return done

    def ctl(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "aiosctl", *args, check=check)

    def systemctl(self, *args: str, check: bool = True) -> str:
        return self.run("systemctl", "--user", *args, check=check).stdout.strip()

    def show(self, name: str, unit: str = "aiosd.service") -> str:
        """One property of a unit."""
        return self.systemctl("show", "--value", f"--property={name}", unit)

    def client(self) -> Client:
        """The socket as seen from outside; systemd starts the daemon for it."""
        return Client(self.socket)

    def journal(self, *args: str) -> str:
        """What the service has said."""
        self.run_as_root("journalctl", "--sync")
        return self.run_as_root("journalctl", "--no-pager", "_SYSTEMD_USER_UNIT=aiosd.service", *args)

    def run_as_root(self, *argv: str) -> str:
        enter = ["nsenter", "-t", str(self.pid), "-m", "-p"]
        return subprocess.run([*enter, *argv], capture_output=True, text=True, check=True).stdout


def _children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


# --- process 1 of the tree -------------------------------------------------------------------------------


def main() -> None:
    _mount()
    group = CGROUPS / f"aiosd-test-{time.monotonic_ns()}"
    (group / "init.scope").mkdir(parents=True)  # a group that hands controllers on has no process of its own
    (group / "init.scope" / "cgroup.procs").write_text("0")
    # By such a path, below the group of process 1, journald tells whose unit a line is of.
    own = group / "user.slice" / f"user-{UID}.slice" / f"user@{UID}.service"
    own.mkdir(parents=True)
    for folder in (group, own.parents[1], own.parent):
        for name in {"memory", "pids"}.intersection((folder / "cgroup.controllers").read_text().split()):
            (folder / "cgroup.subtree_control").write_text(f"+{name}")
    for path in (own, *own.iterdir()):
        os.chown(path, UID, UID)
    journald = None
    if JOURNALD.exists():
        journald = subprocess.Popen([JOURNALD], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _until(Path("/run/systemd/journal/stdout").exists)
    environ = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(HOME),
        "XDG_RUNTIME_DIR": str(RUNTIME),
        "OLLAMA_HOST": NOBODY,
        "LLAMA_ARG_PORT": "9",
    }
    as_user = [sys.executable, "-m", "tests.ordinary", str(UID), ""]
    manager = subprocess.Popen(
        ["sh", "-c", f'echo 0 > {own}/cgroup.procs; exec "$@"', "sh", *as_user, str(SYSTEMD), "--user"],
        env=environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    asked = [*as_user, "/usr/bin/systemctl", "--user", "is-system-running", "--wait"]
    _until((RUNTIME / "systemd" / "private").exists)
    state = subprocess.run(asked, env=environ, capture_output=True, text=True, check=False).stdout.strip()
    up = state in ("running", "degraded")
    sys.stdout.write("up\n" if up else f"the manager is {state}\n")
    sys.stdout.flush()
    sys.stdin.read()  # until the test has ended, however it did
    (CGROUPS / "cgroup.procs").write_text("0")
    (group / "cgroup.kill").write_text("1")
    manager.wait(PATIENCE_S)
    if journald is not None:
        journald.wait(PATIENCE_S)
    _until(lambda: "populated 0" in (group / "cgroup.events").read_text())
    for folder in sorted((p for p in group.rglob("*") if p.is_dir()), reverse=True):
        folder.rmdir()
    group.rmdir()


def _mount() -> None:
    def mount(*args: str) -> None:
        subprocess.run(["mount", *args], check=True)

    subprocess.run(["umount", "-l", str(CGROUPS)], check=True)
    mount("-t", "cgroup2", "cgroup2", str(CGROUPS))
    mount("-t", "tmpfs", "tmpfs", "/run")
    mount("-t", "tmpfs", "tmpfs", "/var/log")
    for name in ("/run/systemd/unit-root", "/run/systemd/system", "/run/systemd/journal", "/var/log/journal"):
        Path(name).mkdir(parents=True)
    Path("/run/systemd/journal/flushed").touch()  # journals on disk, of which each user can read the own
    for folder in (HOME, RUNTIME):
        folder.mkdir(parents=True, mode=0o700)
        os.chown(folder, UID, UID)
    names = Path("/etc/passwd").read_text()
    Path("/run/passwd").write_text(f"{names}tester:x:{UID}:{UID}::{HOME}:/bin/sh\n")
    mount("--bind", "/run/passwd", "/etc/passwd")
    Path("/run/console").touch()
    mount("--bind", "/run/console", "/dev/console")


def _until(true: Callable[[], bool]) -> None:
    """Of things outside that cannot be waited for."""
    deadline = time.monotonic() + PATIENCE_S
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)


if __name__ == "__main__":
    main()
