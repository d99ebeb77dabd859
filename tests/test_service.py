"""The daemon as a systemd user service, under a real user manager, as an ordinary user."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread
import msgspec
import pytest

from aiosctl.service import rendered
from aiosd import records as r
from aiosd.errors import InvalidState, ToolFailed
from aiosd.protocol.sessions import SessionClose, SessionCreate, SessionRun
from aiosd.protocol.system import SystemInfo, SystemPing, SystemReload
from aiosd.protocol.tasks import TaskGet, TaskWait
from aiosd.protocol.tools import ToolCall
from tests import user_manager
from tests.daemon import PATIENCE_S, Daemon
from tests.doubles.http_double import Script
from tests.doubles.openai_double import OpenAIDouble
from tests.user_manager import UserManager

pytestmark = pytest.mark.anyio

T = TypeVar("T")

ROOT = Path(__file__).parents[1]
UNITS = ("aiosd.service", "aiosd.socket")
CONFIG = ".config/aiosd/config.toml"
DROPIN = ".config/systemd/user/aiosd.service.d/test.conf"

WAITING = """
from aiosd.tools import tool

@tool(permissions=["*"], read_only=True)
def wait_at(path: str) -> str:
    "Waits at a FIFO."
    return open(path).read() or "passed"
"""


@pytest.fixture(scope="module")
def manager() -> Iterator[UserManager]:
    if why := user_manager.missing():
        pytest.skip(why)
    with UserManager() as manager:
        manager.ctl("service", "install")
        yield manager


@pytest.fixture
def running(manager: UserManager) -> UserManager:
    """The service as installed, up and well."""
    manager.systemctl("reset-failed", *UNITS, check=False)
    manager.systemctl("start", *UNITS)
    return manager


def test_the_shipped_units_are_what_systemd_expects(tmp_path: Path) -> None:
    for unit in UNITS:
        text = (ROOT / "systemd" / unit).read_text().replace("%h/.local/bin/aiosd", "/bin/true")
        (tmp_path / unit).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "--user", "verify", *(str(tmp_path / unit) for unit in UNITS)],
        env={"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_installed_units_name_this_program_and_these_folders() -> None:
    unit = (ROOT / "systemd" / "aiosd.service").read_text()
    old = rendered(unit, '"/opt/a b/aiosd"', 252, {"XDG_DATA_HOME": "/da ta/100%"})
    assert 'ExecStart="/opt/a b/aiosd"\nEnvironment="XDG_DATA_HOME=/da ta/100%%"\n' in old
    assert "RestartSteps" not in old  # 252 would warn of it
    assert "RestartSteps=6\nRestartMaxDelaySec=60\n" in rendered(unit, "aiosd", 254, {})


def test_who_connects_starts_the_daemon_and_stopping_leaves_the_socket(running: UserManager) -> None:
    running.systemctl("stop", "aiosd.service")
    assert running.show("ActiveState") == "inactive"
    first = pid(running)
    assert running.show("MainPID") == str(first)
    until(lambda: running.show("StatusText") == "ready")
    assert running.socket.parent.stat().st_mode & 0o777 == 0o700
    assert running.socket.stat().st_mode & 0o777 == 0o600
    running.systemctl("stop", "aiosd.service")
    assert running.show("Result") == "success"
    assert pid(running) != first


async def test_a_killed_daemon_comes_back_and_goes_on_with_its_task(running: UserManager) -> None:
    put(running, ".config/aiosd/tools/waiting.py", WAITING)
    put(running, "work/.keep", "")
    gate = running.home / "work" / "gate"
    os.mkfifo(gate)
    inside = user_manager.HOME / "work"
    wait = ("wait_at", f'{{"path": "{inside / "gate"}"}}')

    over = threading.Event()

    def let_through() -> None:
        while (
            not over.is_set()
        ):  # the tool of the daemon after that one; it may be a while until the first has ended
            os.close(os.open(gate, os.O_WRONLY))

    def work() -> r.TaskResult:
        running.systemctl("restart", "aiosd.service")
        with running.client() as client:
            session = client.call(SessionCreate(permissions=("*",), workspace=str(inside)))
            params = SessionRun(session_id=session.session_id, task="Wait", detach=True)
            task = msgspec.json.decode(client.ask(params), type=r.Task)
        held = os.open(gate, os.O_WRONLY)  # returns once the tool waits there
        running.run("kill", "-9", running.show("MainPID"))
        os.close(held)
        opening = threading.Thread(target=let_through, daemon=True)
        opening.start()
        try:
            with running.client() as client:
                return client.call(TaskWait(task_id=task.task_id), timeout_s=PATIENCE_S)
        finally:
            over.set()
            reader = os.open(gate, os.O_RDONLY | os.O_NONBLOCK)  # lets the thread through, if it waits there
            opening.join(PATIENCE_S)
            os.close(reader)

    async with OpenAIDouble(Script(text=("Passed.",))) as model:
        model.scripts = [Script(text=(), calls=(wait,))]
        put(running, CONFIG, backend(model.base))
        try:
            result = await aside(work)
        finally:
            put(running, CONFIG, "")
    assert (result.state, result.result) == ("completed", "Passed.")
    assert int(running.show("NRestarts")) >= 1


def test_a_loop_that_stands_still_is_ended_and_the_next_daemon_answers(running: UserManager) -> None:
    stalling = f'"{sys.executable}" "{ROOT}/tests/stalling_daemon.py"'
    put(running, DROPIN, f"[Service]\nExecStart=\nExecStart={stalling}\nWatchdogSec=4\n")
    try:
        restart(running)
        first, alive = running.show("MainPID"), running.show("WatchdogTimestampMonotonic")
        until(lambda: running.show("WatchdogTimestampMonotonic") != alive)  # it tells that it turns
        assert running.show("MainPID") == first
        running.run("kill", "-USR1", first)
        with running.client() as client:  # waits in the backlog for the next one
            assert str(client.call(SystemPing(), timeout_s=PATIENCE_S).pid) != first
        assert "stalling_daemon.py" in running.journal()  # where the loop stood, by faulthandler
    finally:
        (running.home / DROPIN).unlink()
        restart(running)


def test_a_reload_takes_a_good_config_and_refuses_a_bad_one(running: UserManager) -> None:
    first = pid(running)
    put(running, CONFIG, "[budget]\nday_usd = 'much'\n")
    running.systemctl("reload", "aiosd.service")
    until(lambda: "refused" in running.show("StatusText"))
    assert "budget.day_usd" in running.show("StatusText")
    put(running, CONFIG, "[budget]\nday_usd = 2.0\n")
    running.systemctl("reload", "aiosd.service")
    until(lambda: running.show("StatusText") == "ready")
    assert pid(running) == first
    errors = running.journal("-p", "err", "-o", "cat", f"_PID={first}").splitlines()
    assert {json.loads(line)["level"] for line in errors} == {"error"}
    assert "budget.day_usd" in errors[-1]
    put(running, CONFIG, "")


def test_the_walls_around_tools_are_the_same_inside_the_unit(running: UserManager) -> None:
    with running.client() as client:
        inside = client.call(SystemInfo()).sandbox
    by_hand = running.run(
        sys.executable, "-m", "aiosctl", "status", "--json", environ={"AIOSD_HOME": "/run/home/by-hand"}
    )
    outside = json.loads(by_hand.stdout)
    assert outside["paths"]["socket"] == "/run/home/by-hand/run/aiosd.sock"
    assert inside == outside["sandbox"] != "none"


HUNGRY = """
import os, signal
from aiosd.tools import tool

@tool(permissions=["*"], read_only=True)
def group() -> str:
    "Its control group."
    return open("/proc/self/cgroup").read().strip().partition("::")[2]

@tool(permissions=["*"], read_only=True)
def hungry(mebibytes: int) -> str:
    "Takes memory in eight processes; none of them has much."
    for _ in range(8):
        if os.fork() == 0:
            held = bytearray(mebibytes << 20)
            held[::4096] = b"x" * len(held[::4096])
            signal.pause()
    signal.pause()
    return ""
"""


def test_tools_that_take_too_much_memory_end_alone_and_leave_no_group(running: UserManager) -> None:
    put(running, ".config/aiosd/tools/hungry.py", HUNGRY)
    with running.client() as client:
        info = client.call(SystemInfo())
        if info.no_cgroup:
            assert info.no_cgroup in running.ctl("doctor", check=False).stdout
            pytest.skip(info.no_cgroup)
        session = client.call(SessionCreate(permissions=("*",)))
        group = ToolCall(session_id=session.session_id, name="group", arguments={})
        (said,) = client.call(group, timeout_s=PATIENCE_S).content
        folder = running.root / "sys/fs/cgroup" / said.text.lstrip("/")
        assert folder.parent.name == "aiosd.service" and (folder / "memory.oom.group").read_text() == "1\n"
        (folder / "memory.max").write_text(str(256 << 20))  # by root: the test need not take gigabytes
        hungry = ToolCall(session_id=session.session_id, name="hungry", arguments={"mebibytes": 64})
        with pytest.raises(ToolFailed, match="took all of the .* MiB of memory that they may have together"):
            client.call(hungry, timeout_s=PATIENCE_S)
        assert client.call(group, timeout_s=PATIENCE_S).content == (said,)  # its next host
        assert client.call(SystemPing()).pid == int(running.show("MainPID"))
        client.call(SessionClose(session_id=session.session_id))
    assert not folder.exists()
    assert [f.name for f in folder.parent.iterdir() if f.is_dir()] == ["daemon"]


async def test_a_key_may_be_a_credential_of_the_service(running: UserManager) -> None:
    put(running, "key", "sk-from-systemd\n")
    put(running, DROPIN, "[Service]\nLoadCredential=CLOUD_KEY:%h/key\n")
    async with OpenAIDouble() as model:
        put(running, CONFIG, backend(model.base) + 'key_env = "CLOUD_KEY"\n')
        try:
            await aside(lambda: restart(running))
            await aside(lambda: running.ctl("run", "-q", "hello"))
        finally:
            (running.home / DROPIN).unlink()
            put(running, CONFIG, "")
            await aside(lambda: restart(running))
        asked = {seen.headers["authorization"] for seen in model.seen if seen.path.endswith("completions")}
    assert asked == {"Bearer sk-from-systemd"}


def test_a_stopped_service_stays_stopped_and_starts_again(running: UserManager) -> None:
    running.ctl("service", "stop")
    refused = running.ctl("ping", check=False)
    assert refused.returncode == 69 and "was stopped" in refused.stderr
    assert running.ctl("service", "status", check=False).returncode == 3
    running.ctl("service", "start")
    assert running.ctl("ping", "--no-start").returncode == 0
    assert json.loads(running.ctl("service", "status", "--json").stdout)["StatusText"] == "ready"
    running.journal()  # waits until all of it is written
    assert '"message": "ready"' in running.ctl("service", "logs", "-n", "50").stdout


def test_installing_takes_over_from_a_daemon_that_was_started_by_hand(running: UserManager) -> None:
    running.ctl("service", "uninstall")
    assert not list((running.home / ".config/systemd/user").glob("aiosd.*[a-z]e*t"))
    running.ctl("ping")  # starts one by itself
    by_hand = pid(running)
    done = running.ctl("service", "install")
    assert f"(pid {by_hand})" in done.stderr
    assert running.show("MainPID") == str(pid(running)) != str(by_hand)


def test_it_stays_after_the_last_login_only_where_that_is_asked_for(running: UserManager) -> None:
    put(running, "bin/loginctl", '#!/bin/sh\necho "$@" >> ~/asked\n')
    (running.home / "bin" / "loginctl").chmod(0o755)
    install = (sys.executable, "-m", "aiosctl", "service", "install")
    environ = {"PATH": f"{user_manager.HOME}/bin:/usr/bin:/bin"}
    assert "--linger" in running.run(*install, environ=environ).stderr
    assert not (running.home / "asked").exists()
    assert "--linger" not in running.run(*install, "--linger", environ=environ).stderr
    assert (running.home / "asked").read_text() == "enable-linger\n"


def test_without_systemd_it_says_what_to_use_instead(tmp_path: Path) -> None:
    done = Daemon(tmp_path).ctl("service", "install", environ={"PATH": str(tmp_path)})
    assert done.returncode == 69
    assert "no systemd user manager" in done.stderr and "@reboot" in done.stderr


async def test_a_reload_changes_backends_while_tasks_run(tmp_path: Path) -> None:
    asked = threading.Event()

    def work(daemon: Daemon) -> None:
        with daemon:
            session = daemon.session()
            begun = daemon.start_task(session, "hello")
            assert asked.wait(PATIENCE_S)
            (tmp_path / "config.toml").write_text(backend(two.base) + "[memory]\nembedder = 'none'\n")
            answer = daemon.call(SystemReload())
            assert (answer.changed, answer.restart) == (("models.backends.m.url",), ("memory.embedder",))
            assert daemon.run(session, "hello").result == "Two"  # beside the one that still waits
            assert daemon.call(TaskGet(task_id=begun.task_id)).state == "working"
            (tmp_path / "config.toml").write_text("[models]\nbackends = 3\n")
            with pytest.raises(InvalidState, match="the old one stays"):
                daemon.call(SystemReload())
            assert daemon.run(session, "hello").result == "Two"

    async with OpenAIDouble() as one, OpenAIDouble(Script(text=("Two",))) as two:
        one.scripts = [Script(text=("One",), fault="hang_after")]

        async def tell() -> None:
            await one.arrived.wait()
            asked.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tell)
            await aside(lambda: work(Daemon(tmp_path, backend(one.base))))
        assert len(one.chats()) == 1


def backend(url: str) -> str:
    return f'[models.backends.m]\nkind = "openai"\nmodel = "m"\nurl = "{url}"\n'


def put(manager: UserManager, path: str, text: str) -> None:
    """A file in the user's home, the user's own."""
    file = manager.home / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    manager.run_as_root("chown", "-R", str(user_manager.UID), str(user_manager.HOME))


def restart(manager: UserManager) -> None:
    manager.systemctl("daemon-reload")
    manager.systemctl("restart", "aiosd.service")


def pid(manager: UserManager) -> int:
    """Of the daemon in its own tree; starts it if need be."""
    with manager.client() as client:
        return client.call(SystemPing()).pid


def until(true: Callable[[], bool]) -> None:
    """Of what systemd does by itself, which nothing tells us."""
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


async def aside(work: Callable[[], T]) -> T:
    return await anyio.to_thread.run_sync(work)
