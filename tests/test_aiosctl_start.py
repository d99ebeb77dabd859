"""aiosctl where no daemon answers: it starts one, once, and says so."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from aiosctl import start
from aiosd.errors import NoDaemon
from tests.aiosctl_double import WAIT_S

ROOT = Path(__file__).parent.parent

WITH_DAEMON = "import sys; sys.executable = sys.argv.pop(1); from aiosctl.main import main; main()"
"""aiosctl, but what it starts is this program and not this Python with `-m aiosd`."""

DOUBLE = f"""#!{sys.executable}
import sys
sys.path.insert(0, {str(ROOT)!r})
from tests.aiosctl_double import serve
serve()
"""

GATED = DOUBLE.replace(
    "serve()\n",
    """import os
with open(os.environ["HOME"] + "/arrived", "rb") as arrived:
    arrived.read(8)
serve()
""",
)
"""Serves when eight aiosctl have come to the lock."""

ARRIVING = """
import fcntl, os
lock = fcntl.flock
def flock(fd, how):
    arrived = os.open(os.environ["HOME"] + "/arrived", os.O_WRONLY)
    os.write(arrived, b".")
    os.close(arrived)
    lock(fd, how)
fcntl.flock = flock
"""


def dying(lines: int) -> str:
    return f"#!/bin/sh\nfor n in $(seq {lines}); do echo line $n >&2; done\nexit 3\n"


class Home:
    """An AIOSD_HOME with no daemon, and a program to start as one."""

    def __init__(self, folder: Path, program: str) -> None:
        self.folder = folder
        self.log = folder / "state" / "aiosd.log"
        self.socket = folder / "run" / "aiosd.sock"
        self.program = folder / "program"
        self.program.write_text(program)
        self.program.chmod(0o755)
        self.before = ""
        """Python that aiosctl runs first."""
        self.env = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "AIOSD_HOME": str(folder),
        }

    def ctl(self, *args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", self.before + WITH_DAEMON, str(self.program), *args],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self.env,
            cwd=cwd,
            timeout=2 * WAIT_S,
        )

    def starts(self) -> list[dict[str, Any]]:
        """What each program that was started noted of itself."""
        return [json.loads(line) for line in (self.folder / "starts").read_text().splitlines()]

    def stop(self) -> None:
        if (self.folder / "starts").exists():
            for each in self.starts():
                os.kill(each["pid"], signal.SIGKILL)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    given = Home(tmp_path, DOUBLE)
    yield given
    given.stop()


def test_where_no_daemon_answers_one_is_started_apart_from_this_terminal(home: Home) -> None:
    home.env["EDITOR"] = "vi"
    first = home.ctl("ping")
    assert first.returncode == 0, first.stderr
    (started,) = home.starts()
    assert first.stderr == f"aiosctl: started aiosd (pid {started['pid']}, log {home.log})\n"
    assert os.getsid(started["pid"]) == started["pid"]
    assert os.readlink(f"/proc/{started['pid']}/cwd") == "/"
    assert "EDITOR" not in started["environ"]
    assert home.log.stat().st_mode & 0o777 == 0o600
    assert home.socket.parent.stat().st_mode & 0o777 == 0o700
    second = home.ctl("ping")
    assert (second.returncode, second.stderr, len(home.starts())) == (0, "", 1)


def test_eight_that_come_to_the_lock_together_start_one(home: Home) -> None:
    home.program.write_text(GATED)
    home.before = ARRIVING
    os.mkfifo(home.folder / "arrived")
    open_for_all = os.open(home.folder / "arrived", os.O_RDWR)
    with ThreadPoolExecutor(8) as together:
        done = list(together.map(lambda _: home.ctl("ping", "--json"), range(8)))
    os.close(open_for_all)
    assert [each.returncode for each in done] == [0] * 8, done
    assert len({json.loads(each.stdout)["pid"] for each in done}) == len(home.starts()) == 1
    assert {each.stderr for each in done} == {""}  # nothing but the error object stands there with --json


def test_a_socket_left_by_a_dead_daemon_is_no_daemon(home: Home) -> None:
    home.socket.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(home.socket))
    home.program.write_text(dying(1))
    assert home.ctl("ping").returncode == 69


@pytest.mark.parametrize(("lines", "first"), [(12, 3), (2, 1)])
def test_a_daemon_that_ends_while_it_starts_shows_its_last_words(
    tmp_path: Path, lines: int, first: int
) -> None:
    home = Home(tmp_path, dying(lines))
    home.log.parent.mkdir()
    home.log.write_text("of an earlier one\n")
    home.log.chmod(0o644)
    done = home.ctl("ping")
    assert (done.returncode, done.stdout) == (69, "")
    said = done.stderr.splitlines()
    assert said[0].startswith("aiosctl: aiosd ended with 3 while it started")
    assert [line.strip() for line in said[1:-1]] == [f"line {n}" for n in range(first, lines + 1)]
    assert said[-1] == "  try: aiosctl doctor --fix"
    assert home.log.stat().st_mode & 0o777 == 0o600


def test_a_place_that_cannot_be_made_is_a_sentence(home: Home) -> None:
    (home.folder / "run").write_text("a file")
    done = home.ctl("ping")
    assert done.returncode == 69
    assert done.stderr.startswith("aiosctl: could not start aiosd: ")


def test_a_socket_path_that_is_too_long_is_a_sentence(home: Home) -> None:
    home.env["AIOSD_SOCKET"] = "/tmp/" + "x" * 200
    done = home.ctl("ping")
    assert done.returncode == 69
    assert "cannot be a socket: AF_UNIX path too long" in done.stderr


def test_a_daemon_that_is_not_ready_in_time_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "START_S", 0.05)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify,
        subprocess.Popen(["sleep", "100"]) as child,
    ):
        notify.bind("")
        with pytest.raises(NoDaemon, match=f"pid {child.pid}.* was not ready"):
            start._until_ready(child, notify)
        child.kill()


def test_a_daemon_gets_little_of_this_environment_and_the_keys_its_config_names(home: Home) -> None:
    (home.folder / "config.toml").write_text("""
        [models.backends.cloud]
        kind = "openai"
        key_env = "CLOUD_KEY"
        [models.backends.small]
        kind = "ollama"
    """)
    given = {"CLOUD_KEY": "k", "OTHER_KEY": "o", "LC_TIME": "de", "OLLAMA_HOST": "h", "XDG_DATA_HOME": "/d"}
    home.env |= given | {"PYTHONPATH": "/p"}
    assert home.ctl("ping").returncode == 0
    environ = home.starts()[0]["environ"]
    assert environ.keys() == {*home.env, "NOTIFY_SOCKET"} - {"OTHER_KEY", "PYTHONPATH"}


def test_relative_places_are_made_absolute_for_a_daemon_that_starts_elsewhere(tmp_path: Path) -> None:
    environ = {"AIOSD_HOME": "here", "AIOSD_SOCKET": "sock"}
    assert start.reduced(environ, frozenset(), Path("/now/sock")) == {
        "AIOSD_HOME": os.path.abspath("here"),
        "AIOSD_SOCKET": "/now/sock",
    }


# --- systemd ---------------------------------------------------------------------------------------------

SYSTEMCTL = """#!/bin/sh
echo "$@" >> "$HOME/asked"
case "$2" in
show) cat "$HOME/stopped_at" ;;
start) {start} ;;
esac
"""

LISTENING = 'mkfifo "$HOME/fifo"; "$HOME/program" > "$HOME/fifo" 2> /dev/null & head -1 "$HOME/fifo"'
"""Returns when something listens, as `systemctl start` of a socket does."""


@pytest.fixture
def unit(home: Home) -> Home:
    """The socket is where systemd would keep it, and the unit is installed."""
    del home.env["AIOSD_HOME"]
    home.env |= {"XDG_RUNTIME_DIR": str(home.folder / "run"), "PATH": f"{home.folder}/bin:/usr/bin:/bin"}
    for folder in ("bin", "run", ".config/systemd/user"):
        (home.folder / folder).mkdir(parents=True)
    (home.folder / ".config/systemd/user/aiosd.socket").touch()
    (home.folder / "stopped_at").write_text("0\n")
    home.socket = home.folder / "run/aiosd/aiosd.sock"
    home.socket.parent.mkdir()
    return home


def systemctl(home: Home, start: str) -> None:
    program = home.folder / "bin/systemctl"
    program.write_text(SYSTEMCTL.format(start=start))
    program.chmod(0o755)


def test_an_installed_unit_is_started_by_systemd(unit: Home) -> None:
    systemctl(unit, LISTENING)
    done = unit.ctl("ping")
    assert (done.returncode, done.stderr) == (0, "aiosctl: started aiosd.socket\n")
    assert (unit.folder / "asked").read_text().splitlines()[1:] == ["--user start aiosd.socket"]


def test_a_unit_that_somebody_stopped_stays_stopped(unit: Home) -> None:
    systemctl(unit, "true")
    (unit.folder / "stopped_at").write_text("123456\n")
    done = unit.ctl("ping")
    assert (done.returncode, done.stderr) == (
        69,
        "aiosctl: aiosd.socket was stopped\n  try: systemctl --user start aiosd.socket\n",
    )


def test_a_unit_that_does_not_start_says_why(unit: Home) -> None:
    systemctl(unit, "echo no bus >&2; exit 1")
    done = unit.ctl("ping")
    assert done.returncode == 69
    assert done.stderr.startswith("aiosctl: aiosd.socket did not start: no bus\n  try: systemctl")


def test_a_unit_is_not_for_a_daemon_that_lives_elsewhere(unit: Home) -> None:
    systemctl(unit, "true")
    unit.env["AIOSD_HOME"] = str(unit.folder)
    assert "started aiosd (pid " in unit.ctl("ping").stderr
    assert not (unit.folder / "asked").exists()
