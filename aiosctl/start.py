"""The way to the daemon: connects to its socket, and starts one where none answers.

Readiness is sd_notify(3): the daemon sends READY=1 to the datagram socket that NOTIFY_SOCKET names.
"""

from __future__ import annotations

import fcntl
import os
import select
import shlex
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from aiosctl import render
from aiosctl.client import Client
from aiosd.errors import NoDaemon, PermissionDenied
from aiosd.paths import Paths, paths, socket_path

if TYPE_CHECKING:
    import subprocess

START_S = 15.0
"""Seconds a daemon has to say that it is ready."""

UNIT = "aiosd.socket"
LOG_LINES = 10
"""Last lines of the log shown when a daemon ends while starting."""

KEPT = frozenset({"PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "OLLAMA_HOST"})
KEPT_BEGINNINGS = ("LC_", "XDG_", "AIOSD_", "OTEL_")


def connect(*, option: str | None, may_start: bool, quiet: bool, trace: bool) -> Client:
    """A connection to the daemon on the socket that `--socket` or the environment names.

    Raises NoDaemon where none answers and none may be or could be started, PermissionDenied.
    """
    path = socket_path(option)
    if client := _answering(path, trace):
        return client
    if not option and (elsewhere := _socket_of_data()) and (client := _answering(elsewhere, trace)):
        return client
    if option:
        raise NoDaemon(f"no daemon answers on {path}", hint=f"aiosd --socket {shlex.quote(str(path))} &")
    if not may_start:
        hint = f"systemctl --user start {UNIT}" if has_unit(path, os.environ) else "aiosctl ping"
        raise NoDaemon(f"no daemon answers on {path}", hint=hint)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _start_lock(path):
            # Whoever had the lock before us may have started one.
            if client := _answering(path, trace):
                return client
            started = _start_unit() if has_unit(path, os.environ) else _spawn(path, paths(), os.environ)
    except OSError as exc:
        where_it_failed = exc.filename or path
        raise NoDaemon(
            f"could not start aiosd: {exc.strerror}: {where_it_failed}", hint="aiosctl doctor --fix"
        ) from exc
    if started and not quiet:
        render.notice(f"started {started}")
    if client := _answering(path, trace):
        return client
    raise NoDaemon(f"aiosd was started but does not answer on {path}", hint=f"tail {paths().log}")


def _socket_of_data() -> Path | None:
    """Where the daemon that has our data listens: in cron and under sudo not where this environment says."""
    if "AIOSD_SOCKET" in os.environ:
        return None
    try:
        _, socket = paths().lock.read_text().splitlines()
    except (OSError, ValueError):
        return None
    return Path(socket)


def _is_ours(path: Path) -> bool:
    """The first folder on the way that does not let us through, or the socket itself where all do."""
    closed = (each for each in reversed(path.parents) if each.exists() and not os.access(each, os.X_OK))
    return next(closed, path).stat().st_uid == os.getuid()


def _answering(path: Path, trace: bool) -> Client | None:
    try:
        return Client(path, trace=trace)
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        return None  # nothing, or what a dead daemon left
    except PermissionError as exc:
        if _is_ours(path):
            raise NoDaemon(f"{path}: {exc.strerror}", hint="aiosctl doctor --fix") from None
        raise PermissionDenied(f"{path}: {exc.strerror}; the daemon is another user's") from None
    except TimeoutError:
        raise NoDaemon(f"the daemon on {path} takes no connections") from None
    except OSError as exc:
        raise NoDaemon(
            f"{path} cannot be a socket: {exc.strerror or exc}", hint="aiosctl doctor --fix"
        ) from None


@contextmanager
def _start_lock(path: Path) -> Iterator[None]:
    """Held by the one that starts a daemon for this socket. Raises NoDaemon when it is not free in time."""

    def late(signum: int, frame: object) -> None:
        raise NoDaemon(f"another aiosctl has been starting aiosd for {2 * START_S:g} s", hint="aiosctl ping")

    fd = os.open(path.with_name(f"{path.name}.start"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        # flock(2) has no deadline of its own. Twice ours: the holder may have begun just before.
        before = signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, 2 * START_S)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        yield
    finally:
        os.close(fd)


def has_unit(path: Path, environ: Mapping[str, str]) -> bool:
    """Whether systemd keeps this very socket: its unit is installed, and nothing points us elsewhere."""
    runtime = environ.get("XDG_RUNTIME_DIR")
    if not runtime or path != Path(runtime) / "aiosd" / "aiosd.sock" or not shutil.which("systemctl"):
        return False
    config = Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    folders = (config / "systemd/user", Path("/etc/systemd/user"), Path("/usr/lib/systemd/user"))
    return any((folder / UNIT).exists() for folder in folders)


def _start_unit() -> str:
    """What was started. Raises NoDaemon also for a unit that somebody stopped: it stays stopped."""
    state = systemctl("show", "--property=InactiveEnterTimestampMonotonic", "--value", UNIT)
    if state.stdout.strip() not in ("", "0"):
        raise NoDaemon(f"{UNIT} was stopped", hint=f"systemctl --user start {UNIT}")
    done = systemctl("start", UNIT)
    if done.returncode != 0:
        why = done.stderr.strip() or f"systemctl ended with {done.returncode}"
        raise NoDaemon(f"{UNIT} did not start: {why}", hint=f"systemctl --user status {UNIT}")
    return UNIT


def systemctl(*args: str) -> subprocess.CompletedProcess[str]:
    import subprocess  # late: only for starting, and 2 ms

    argv = ["systemctl", "--user", *args]
    try:
        return subprocess.run(argv, check=False, capture_output=True, text=True, timeout=START_S)
    except subprocess.TimeoutExpired:
        raise NoDaemon(f"{' '.join(argv)} took more than {START_S:g} s") from None


def _spawn(path: Path, where: Paths, environ: Mapping[str, str]) -> str | None:
    """A daemon of our own, ready and detached from this terminal: its description.

    None when it ended because another one answers by now. Raises NoDaemon, OSError.
    """
    where.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    import subprocess  # late: only for starting

    from aiosctl.config import last_error

    log = os.open(where.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        os.fchmod(log, 0o600)  # an older one may have been made by `aiosd 2> log`
        log_start = os.fstat(log).st_size
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind("")  # the kernel gives a free abstract name
            env = reduced(environ, _key_names(where.config), path)
            child = subprocess.Popen(
                [sys.executable, "-m", "aiosd"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd="/",
                env=env | {"NOTIFY_SOCKET": "@" + notify.getsockname()[1:].decode()},
                start_new_session=True,
            )
            status = _until_ready(child, notify)
    finally:
        os.close(log)
    if status is None:
        return f"aiosd (pid {child.pid}, log {where.log})"
    if _exists(path):
        return None
    said = _since(where.log, log_start)
    if told := last_error(said):
        raise NoDaemon(f"aiosd did not start: {told}", hint=told.hint or "aiosctl doctor --fix")
    lines = "".join(f"\n  {line}" for line in said.splitlines()[-LOG_LINES:])
    raise NoDaemon(
        f"aiosd ended with {status} while it started; log {where.log}:{lines}", hint="aiosctl doctor --fix"
    )


def _until_ready(child: subprocess.Popen[bytes], notify: socket.socket) -> int | None:
    """None once it is ready, or its exit status. Raises NoDaemon after START_S; it may still come up."""
    deadline = time.monotonic() + START_S
    exited = os.pidfd_open(child.pid)
    try:
        poll = select.poll()
        poll.register(notify, select.POLLIN)
        poll.register(exited, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            for fd, _ in poll.poll(left * 1000):
                if fd == exited:
                    return child.wait()
                if b"READY=1" in notify.recv(4096).split(b"\n"):
                    return None
    finally:
        os.close(exited)
    raise NoDaemon(f"aiosd (pid {child.pid}) was not ready after {START_S:g} s", hint="aiosctl ping")


def reduced(environ: Mapping[str, str], keys: frozenset[str], path: Path) -> dict[str, str]:
    """What a daemon gets of this environment: not what this one terminal happens to have set.

    It does not start in our folder, so the places that may be relative are made absolute.
    """
    kept = {
        name: text
        for name, text in environ.items()
        if name in KEPT or name in keys or name.startswith(KEPT_BEGINNINGS)
    }
    if "AIOSD_SOCKET" in kept:
        kept["AIOSD_SOCKET"] = str(path)
    if home := kept.get("AIOSD_HOME"):
        kept["AIOSD_HOME"] = os.path.abspath(home)
    return kept


def _key_names(config: Path) -> frozenset[str]:
    """The variables that hold the keys of the configured backends.

    None of a config that cannot be read: the daemon will say what is wrong with it.
    """
    import tomllib  # late: only for starting

    try:
        table = tomllib.loads(config.read_text())
        backends = table["models"]["backends"].values()
        return frozenset(each["key_env"] for each in backends if "key_env" in each)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return frozenset()


def _exists(path: Path) -> bool:
    if client := _answering(path, trace=False):
        client.__exit__()
        return True
    return False


def _since(log: Path, start: int) -> str:
    with log.open("rb") as file:
        file.seek(start)
        return file.read().decode(errors="replace")
