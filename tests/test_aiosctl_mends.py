"""What is broken is told with a line that mends it: each state is met, its line pasted into a shell, and the command made again."""

from __future__ import annotations

import os
import re
import select
import shlex
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aiosctl import doctor
from aiosctl.config import without
from tests.daemon import PATIENCE_S, Daemon
from tests.ordinary import UID

SMALL = '[models.backends.small]\nkind = "ollama"\nmodel = "m"\n'

Break = Callable[[Path], object]


def config(text: str) -> Break:
    return lambda home: (home / "config.toml").write_text(text)


def raw_config(data: bytes) -> Break:
    return lambda home: (home / "config.toml").write_bytes(data)


def folder_at(name: str) -> Break:
    return lambda home: (home / name).mkdir(parents=True)


def file_at(name: str, text: str = "not ours\n") -> Break:
    def put(home: Path) -> None:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)

    return put


def nowhere_at(name: str) -> Break:
    def put(home: Path) -> None:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).symlink_to(home / "gone" / "away")

    return put


def another_programs_database(home: Path) -> None:
    (home / "data").mkdir()
    with sqlite3.connect(home / "data" / "aiosd.db") as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()


def damaged_database(home: Path) -> None:
    (home / "data").mkdir()
    (home / "data" / "aiosd.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 8000)


STATES: dict[str, Break] = {
    "config: not TOML": config("day = \n"),
    "config: a string that does not end": config('default_permissions = ["read\n'),
    "config: a key twice": config("[budget]\nday_usd = 1.0\nday_usd = 2.0\n"),
    "config: a section twice": config(SMALL + SMALL),
    "config: not UTF-8": raw_config(b"# caf\xe9\n[budget]\nday_usd = 1.0\n"),
    "config: a folder": folder_at("config.toml"),
    "config: a key nobody knows": config("colour = true\n"),
    "config: a section nobody knows": config("[colours]\nred = 1\n"),
    "config: a backend's key nobody knows": config(SMALL + "slotz = 2\n"),
    "config: a number that is a text": config('[budget]\nday_usd = "two"\n'),
    "config: less than no money": config("[budget]\nday_usd = -1.0\n"),
    "config: permissions that are no list": config('default_permissions = "read"\n'),
    "config: a kind nobody knows": config('[models.backends.a]\nkind = "magic"\nmodel = "m"\n'),
    "config: no model": config('[models.backends.a]\nkind = "ollama"\n'),
    "config: no slots": config(SMALL + "slots = 0\n"),
    "config: a window of nothing": config(SMALL + "context = 0\n"),
    "config: prices below nothing": config(SMALL + "price_in = -1.0\n"),
    "config: two keys": config(SMALL + 'key_env = "A"\nkey_file = "/b"\n'),
    "config: no address": config('[models.backends.a]\nkind = "openai"\nmodel = "m"\n'),
    "config: an address that is none": config(SMALL + 'url = "ftp://x"\n'),
    "config: a gguf without its file": config('[models.backends.a]\nkind = "gguf"\n'),
    "config: a tier of nobody": config('[models.tiers]\nfast = ["gone"]\n'),
    "config: a tier nobody knows": config('[models.tiers]\nhuge = ["small"]\n' + SMALL),
    "config: backends that are no table": config("[models]\nbackends = 3\n"),
    "config: an embedder nobody knows": config("[memory]\nembedder = 3\n"),
    "config: an agent of a tier nobody knows": config('[agents.a]\ntier = "huge"\n'),
    "config: an MCP server with two ways": config('[mcp.servers.a]\ncommand = "x"\nurl = "http://h"\n'),
    "config: wrong in four places": config(
        "colour = 1\n[budget]\nday_usd = -1.0\n" + SMALL + "slotz = 2\nslots = 0\n"
    ),
    "folder: data is a file": file_at("data"),
    "folder: state is a file": file_at("state"),
    "folder: run is a file": file_at("run"),
    "folder: data leads nowhere": nowhere_at("data"),
    "folder: run leads nowhere": nowhere_at("run"),
    "log: a folder": folder_at("state/aiosd.log"),
    "log: leads elsewhere": nowhere_at("state/aiosd.log"),
    "lock: a folder": folder_at("data/lock"),
    "socket: a folder": folder_at("run/aiosd.sock"),
    "database: not one": file_at("data/aiosd.db", "x" * 5000),
    "database: damaged": damaged_database,
    "database: another program's": another_programs_database,
    "database: a folder": folder_at("data/aiosd.db"),
}
QUICK = ("config: wrong in four places", "folder: data is a file", "socket: a folder", "database: not one")
"""One of a kind for every run; all of them with the slow ones."""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Daemon]:
    """Nothing runs there yet; what the pasted lines start ends with the test."""
    home = Daemon(tmp_path / "home", environ={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    for name in ("aiosctl", "aiosd"):
        (tmp_path / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m {name} "$@"\n')
        (tmp_path / name).chmod(0o755)
    yield home
    found = re.search(r"pid (\d+)", home.ctl("ping", "--no-start").stdout)
    if found:
        ended = os.pidfd_open(int(found[1]))
        signal.pidfd_send_signal(ended, signal.SIGKILL)
        os.close(ended)


def pasted(home: Daemon, stderr: str) -> None:
    """The line under the error, run by a shell."""
    lines = re.findall(r"^  try: (.*)$", stderr, re.MULTILINE)
    assert len(lines) == 1, stderr
    subprocess.run(
        ["sh", "-c", lines[0]],
        env=home.environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.mark.parametrize(
    "state", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in STATES]
)
def test_the_line_under_the_error_mends_it(home: Daemon, state: str) -> None:
    STATES[state](home.home)
    broken = home.ctl("status")
    assert broken.returncode != 0, broken.stdout
    assert broken.stderr.startswith("aiosctl: ") and "Traceback" not in broken.stderr, broken.stderr
    pasted(home, broken.stderr)
    mended = home.ctl("status")
    assert mended.returncode == 0, (broken.stderr, mended.stderr)


CLOSED = {
    "config: not to be read": ("config.toml", 0),
    "folder: data not to be read": ("data", 0),
    "folder: data not to be written": ("data", 0o500),
    "folder: state not to be read": ("state", 0),
    "folder: run not to be read": ("run", 0),
    "lock: not to be read": ("data/lock", 0),
    "lock: not to be written": ("data/lock", 0o400),
    "log: not to be written": ("state/aiosd.log", 0o400),
    "database: not to be read": ("data/aiosd.db", 0),
    "database: not to be written": ("data/aiosd.db", 0o400),
}
"""Modes, which hold anybody but root: what there is of a daemon that has run, and how it is closed."""
SOME = ("folder: data not to be written", "folder: run not to be read")


@pytest.mark.parametrize(
    "state", [pytest.param(name, marks=() if name in SOME else pytest.mark.slow) for name in CLOSED]
)
def test_what_is_closed_to_its_owner_is_opened_again_and_kept(state: str) -> None:
    with tempfile.TemporaryDirectory(
        prefix="aiosd-", dir="/tmp"
    ) as folder:  # pytest's own is closed to others
        base = Path(folder)
        base.chmod(0o755)
        for name in ("aiosctl", "aiosd"):
            (base / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m {name} "$@"\n')
            (base / name).chmod(0o755)
        environ = {"PATH": f"{base}:{os.environ['PATH']}", "HOME": folder}
        home = Daemon(base / "home", "# mine\n", environ)
        if os.geteuid() == 0:
            os.chown(base, UID, UID)
            os.chown(home.home, UID, UID)
            os.chown(home.home / "config.toml", UID, UID)

        def shell(line: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-m", "tests.ordinary", str(UID), "", "/bin/sh", "-c", line],
                env=home.environ,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
                check=False,
            )

        def end() -> None:
            if found := re.search(r"pid (\d+)", shell("aiosctl ping --no-start").stdout):
                with open(os.pidfd_open(int(found[1]))) as ended:
                    signal.pidfd_send_signal(ended.fileno(), signal.SIGTERM)
                    assert select.select([ended], [], [], PATIENCE_S)[0]

        try:
            assert shell("aiosctl session create kept").returncode == 0
            end()
            name, mode = CLOSED[state]
            (home.home / name).chmod(mode)
            broken = shell("aiosctl session list")
            assert broken.returncode != 0, broken.stdout
            found = re.findall(r"^  try: (.*)$", broken.stderr, re.MULTILINE)
            assert len(found) == 1 and "Traceback" not in broken.stderr, broken.stderr
            shell(found[0])
            mended = shell("aiosctl session list")
            assert mended.returncode == 0 and "kept" in mended.stdout, (broken.stderr, mended)
        finally:
            end()


def test_a_socket_that_was_removed_under_its_daemon_is_mended_too(home: Daemon) -> None:
    with home:
        home.socket.unlink()
        broken = home.ctl("status")
        assert broken.returncode == 69
        pasted(home, broken.stderr)
        home.ended()
        assert home.ctl("status").returncode == 0


def test_where_none_may_be_started_the_line_starts_one(home: Daemon) -> None:
    broken = home.ctl("status", "--no-start")
    assert broken.returncode == 69
    pasted(home, broken.stderr)
    assert home.ctl("status", "--no-start").returncode == 0


CONFIG = 'a = 1\n\n[models.tiers]\nfast = ["x"]\n\n[models.backends.small]\nkind = "ollama"\nslots = 0\n\n[budget]\nday_usd = 1\n'


@pytest.mark.parametrize(
    ("complaint", "gone"),
    [
        ("c.toml: not TOML: Invalid value (at line 4, column 9)", ["fast"]),
        ("c.toml: models.backends.small.slots: expected a number >= 1, got 0", ["slots"]),
        ("c.toml: models.tiers.fast[0]: no backend `x`; there are: small", ["fast"]),
        ("c.toml: Object contains unknown field `a`", ["a"]),
        ("c.toml: models.backends.small: Object contains unknown field `kind`", ["kind"]),
        ("c.toml: models.backends.small: expected prices >= 0", ["[models.backends.small]", "kind", "slots"]),
        ("c.toml: Is a directory", None),
        ("c.toml: models.backends.big.slots: expected a number", None),
    ],
)
def test_only_what_a_complaint_names_is_commented_out(complaint: str, gone: list[str] | None) -> None:
    less = without(CONFIG, complaint)
    if gone is None:
        assert less is None
        return
    assert less is not None
    assert [
        line.removeprefix("# ").split(" = ")[0] for line in less.split("\n") if line.startswith("# ")
    ] == gone
    assert less.replace("# ", "") == CONFIG


@pytest.mark.parametrize(
    ("tier", "by_apparmor", "state", "fix"),
    [
        ("namespaces+landlock+seccomp", True, "ok", None),
        ("namespaces+seccomp", False, "ok", None),
        ("landlock+seccomp", False, "ok", None),
        ("landlock+seccomp", True, "note", "sudo cp contrib/aiosd.apparmor "),
        ("none", True, "bad", "sudo cp contrib/aiosd.apparmor "),
        ("none", False, "bad", "sudo sysctl -w user.max_user_namespaces="),
    ],
)
def test_doctor_names_the_profile_where_apparmor_is_what_keeps_namespaces_away(
    tier: str, by_apparmor: bool, state: str, fix: str | None
) -> None:
    found = doctor._walls(tier, by_apparmor=by_apparmor)
    assert found.state == state and tier.removeprefix("none") in found.what
    assert (found.fix or "").startswith(fix or "") and (found.fix is None) == (fix is None)
    if fix is not None and "contrib/" in fix:
        assert (Path(__file__).parents[1] / fix.split()[2]).is_file()


def test_doctor_says_which_walls_this_daemon_has(tmp_path: Path) -> None:
    with Daemon(tmp_path / "home", environ={"AIOSD_TIERS": "none"}) as daemon:
        done = daemon.ctl("doctor")
        assert done.returncode == 1 and "nothing walls off tools here" in done.stdout
