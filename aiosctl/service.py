"""aiosctl service: the daemon as a systemd user service."""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from aiosctl import render
from aiosctl.client import Client
from aiosctl.start import has_unit, systemctl
from aiosctl.verb import Verb, connect, globals_of, noun
from aiosd.errors import AiosError, InvalidState
from aiosd.paths import paths, socket_path
from aiosd.protocol.system import SystemPing, SystemShutdown

app = noun("The daemon as a systemd user service.")

SOCKET, SERVICE = "aiosd.socket", "aiosd.service"
UNITS = (SOCKET, SERVICE)
STOP_S = 30.0
"""Seconds that a daemon started by hand has to end. TimeoutStopSec of the unit is the same."""

WITH_STEPS = 254
"""The systemd that knows RestartSteps and RestartMaxDelaySec."""

FOLDERS = ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "OLLAMA_HOST")
"""What of this environment the service needs to find the same files and models."""


class NoSystemd(AiosError):
    """There is no user manager to ask."""

    exit_status = 69


@app.command("install", cls=Verb)
def install(
    ctx: typer.Context,
    linger: Annotated[
        bool, typer.Option("--linger", help="Keep it running while you are logged out, and from boot on.")
    ] = False,
) -> None:
    """Install the units, stop a daemon that was started by hand, and start the service.

    \b
    aiosctl service install
    aiosctl service install --linger
    """
    version = _systemd()
    if named := [name for name in ("AIOSD_HOME", "AIOSD_SOCKET") if name in os.environ]:
        raise InvalidState(
            f"{' and '.join(named)} set: the service keeps to the usual folders",
            hint=f"env {' '.join(f'-u {name}' for name in named)} aiosctl service install",
        )
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    for unit in UNITS:
        text = rendered((_shipped() / unit).read_text(), command(), version, os.environ)
        (folder / unit).write_text(text)
    _checked("daemon-reload")
    if systemctl("is-active", SOCKET).stdout.strip() != "active":
        _stop_by_hand()
    _checked("enable", *UNITS)
    _checked("start", *UNITS)
    if linger:
        _run(["loginctl", "enable-linger"])
    render.notice(f"installed {folder / SERVICE} and {SOCKET}; aiosd runs")
    if not linger:
        render.notice("it ends with your last login; to keep it: aiosctl service install --linger")


@app.command("uninstall", cls=Verb)
def uninstall(ctx: typer.Context) -> None:
    """Stop the service and remove its units. Data, config and lingering stay as they are.

    \b
    aiosctl service uninstall
    """
    _systemd()
    found = [_folder() / unit for unit in UNITS if (_folder() / unit).exists()]
    if not found:
        raise InvalidState("the service is not installed", hint="aiosctl service install")
    _checked("disable", "--now", *UNITS)
    for path in found:
        path.unlink()
    _checked("daemon-reload")
    render.notice(f"removed {' and '.join(map(str, found))}")


@app.command("start", cls=Verb)
def start(ctx: typer.Context) -> None:
    """Start the service and its socket; without one, the daemon itself.

    \b
    aiosctl service start
    """
    if not _is_managed():
        with connect(ctx):
            return
    systemctl("reset-failed", *UNITS)  # its starts count anew
    _checked("start", *UNITS)


@app.command("stop", cls=Verb)
def stop(ctx: typer.Context) -> None:
    """Stop the service and its socket, or the daemon that was started by hand. Open tasks go on with the next start.

    \b
    aiosctl service stop
    """
    if not _is_managed():
        _stop_by_hand()
        return
    _checked("stop", *UNITS)


@app.command("restart", cls=Verb)
def restart(ctx: typer.Context) -> None:
    """Restart the service, as after an upgrade. Open tasks go on; who connects meanwhile waits.

    \b
    aiosctl service restart
    """
    if not _is_managed():
        _stop_by_hand()
        with connect(ctx):
            return
    systemctl("reset-failed", *UNITS)
    _checked("restart", SERVICE)


@app.command("status", cls=Verb)
def status(ctx: typer.Context) -> None:
    """Show the service as systemd sees it. Exit status as systemctl: 3 where it does not run.

    \b
    aiosctl service status
    aiosctl service status --json | jq -r .ActiveState
    """
    _installed()
    if globals_of(ctx).json:
        names = "ActiveState,SubState,Result,NRestarts,MainPID,StatusText,MemoryCurrent,TasksCurrent"
        shown = _checked("show", f"--property={names}", SERVICE)
        pairs = dict(line.split("=", 1) for line in shown.splitlines())
        render.out(render.value(pairs))
        return
    _become(["systemctl", "--user", "--no-pager", "status", *UNITS])


@app.command("logs", cls=Verb)
def logs(
    ctx: typer.Context,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, metavar="N", help="The last ones.")] = 100,
) -> None:
    """Show what the service has logged: one JSON object a line.

    \b
    aiosctl service logs -f
    aiosctl service logs -n 1000 | jq -r 'select(.level == "error") | .message'
    """
    _installed()
    more = ["--follow"] if follow else ["--no-pager"]
    _become(["journalctl", "--user", "--unit", SERVICE, "--output", "cat", "--lines", str(lines), *more])


def rendered(unit: str, argv: str, version: int, environ: Mapping[str, str]) -> str:
    """A shipped unit with the right paths: of the program, and of the folders that `environ` names."""
    lines = [f'Environment="{name}={_quoted(environ[name])}"' for name in FOLDERS if environ.get(name)]
    unit = re.sub(
        r"^ExecStart=.*$", lambda _: "\n".join([f"ExecStart={argv}", *lines]), unit, flags=re.MULTILINE
    )
    if version >= WITH_STEPS:
        unit = unit.replace("RestartSec=1\n", "RestartSec=1\nRestartSteps=6\nRestartMaxDelaySec=60\n")
    return unit


def command() -> str:
    """The daemon of this very environment, as ExecStart takes it."""
    program = Path(sys.executable).with_name("aiosd")
    argv = [str(program)] if program.exists() else [sys.executable, "-m", "aiosd"]
    return " ".join(f'"{_quoted(arg)}"' for arg in argv).replace("$", "$$")


def _quoted(text: str) -> str:
    """Inside double quotes of a unit: systemd.syntax(7), Quoting, and specifiers of systemd.unit(5)."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")


def _shipped() -> Path:
    """The units of the wheel, or of the sources."""
    inside = Path(__file__).with_name("units")
    return inside if inside.exists() else Path(__file__).parents[1] / "systemd"


def _folder() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user"


def _systemd() -> int:
    """The version of the user manager. Raises NoSystemd."""
    why = "systemctl is not installed"
    if shutil.which("systemctl"):
        shown = systemctl("show", "--property=Version", "--value")
        if shown.returncode == 0 and (found := re.match(r"\d+", shown.stdout)):
            return int(found[0])
        why = shown.stderr.strip() or "it does not answer"
    raise NoSystemd(
        f"no systemd user manager: {why}; without one aiosctl starts the daemon itself, and cron can at boot",
        hint=f'(crontab -l; echo "@reboot {shutil.which("aiosd") or f"{sys.executable} -m aiosd"}") | crontab -',
    )


def _is_managed() -> bool:
    """systemd has the socket that these commands are about."""
    return has_unit(socket_path(), os.environ)


def _installed() -> None:
    _systemd()
    if systemctl("cat", SERVICE).returncode != 0:
        raise InvalidState("the service is not installed", hint="aiosctl service install")


def _checked(*args: str) -> str:
    done = systemctl(*args)
    if done.returncode != 0:
        why = done.stderr.strip().splitlines()
        raise AiosError(
            f"systemctl --user {' '.join(args)}: {why[0] if why else f'exit status {done.returncode}'}",
            hint=f"aiosctl service logs -n 20; systemctl --user status {SERVICE}",
        )
    return done.stdout


def _run(argv: list[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=STOP_S)
    if done.returncode != 0:
        raise AiosError(f"{' '.join(argv)}: {done.stderr.strip()}", hint=f"sudo {' '.join(argv)} $USER")


def _become(argv: list[str]) -> NoReturn:
    sys.stdout.flush()
    os.execvp(argv[0], argv)


def _stop_by_hand() -> None:
    """Ends the daemon that answers on the socket which systemd is to have, and waits until it is gone."""
    try:
        client = Client(socket_path())
    except OSError:
        return
    with client:
        pid = client.call(SystemPing()).pid
        process = os.pidfd_open(pid)
        try:
            client.call(SystemShutdown())
            if not select.select([process], [], [], STOP_S)[0]:
                raise AiosError(
                    f"aiosd (pid {pid}) still runs after {STOP_S:g} s; its log: {paths().log}",
                    hint=f"kill -9 {pid}",
                )
        finally:
            os.close(process)
    render.notice(f"stopped the aiosd that was started by hand (pid {pid})")
