"""Hostile tools against real walls: a daemon of an ordinary user, one for each tier, and what a tool gets out of it.

As root these tests drop to an ordinary uid first (tests/ordinary.py): the kernel does not hold root to RLIMIT_NPROC,
and files of root's are everywhere, so that a wall that holds a user may have a hole for root.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aiosd import framing
from aiosd import records as r
from aiosd.errors import AiosError, DeadlineExceeded, InvalidState, ToolFailed
from aiosd.protocol.sessions import SessionClose
from aiosd.protocol.system import SystemInfo, SystemPing
from aiosd.protocol.tools import ToolCall, ToolList
from aiosd.tools.sandbox import Plan, Tier
from tests import attacks
from tests.daemon import Daemon
from tests.ordinary import UID
from tests.processes import Host

OPEN: dict[Tier, set[str]] = {
    Tier.NAMESPACES: set(),
    Tier.WITHOUT_LANDLOCK: set(),
    Tier.LANDLOCK: {"stat_ssh_key", "plant_git_hook", "swap_git_folder"},
}
"""What is not stopped, by tier. README.md tells the user. Beside these, Landlock alone bounds memory by process and not in
all. What calls take together, of the disk too, is tried in test_tools_quota.py, with low bounds."""


class Place:
    """A user's home with secrets in it, his daemon, and a session whose tools are hostile."""

    def __init__(self, base: Path, tiers: str | None, without: str = "") -> None:
        self.base = base
        self.uid = UID if os.geteuid() == 0 else os.geteuid()
        self.workspace = base / "project"
        self.key = base / "me" / ".ssh" / "id_rsa"
        environ = {"HOME": str(base / "me"), "OPENAI_API_KEY": "sk-seeded"}
        if tiers is not None:
            environ["AIOSD_TIERS"] = tiers
        self.daemon = Daemon(base / "me" / "aiosd", "# secret\n", environ)
        self.daemon.through = (sys.executable, "-m", "tests.ordinary", str(self.uid), without)
        (base / "me" / "aiosd" / "tools").mkdir()
        shutil.copy(attacks.__file__, base / "me" / "aiosd" / "tools" / "attacks.py")
        self.key.parent.mkdir()
        self.key.write_text("PRIVATE KEY")
        (self.workspace / ".git" / "hooks").mkdir(parents=True)
        base.chmod(0o755)
        for path in (base, *base.rglob("*")):
            os.chown(path, self.uid, -1)
        self.setuid = base / "me" / "aiosd" / "tools" / "id"
        shutil.copy("/usr/bin/id", self.setuid)
        self.setuid.chmod(0o4755)

    @contextmanager
    def running(self) -> Iterator[None]:
        with (
            self.daemon,
            socket.create_server(("127.0.0.1", 0)) as tcp,
            socket.socket(socket.AF_UNIX) as unix,
        ):
            unix.bind("")
            unix.listen()
            self.session = self.daemon.session(
                permissions=["*"], workspace=str(self.workspace), write=True, title="hostile"
            )
            other = self.daemon.session(permissions=["*"], title="other")
            self.call(other, "write_note", text="another session's")
            self.other = self.daemon.home / "state" / "workspaces" / other.session_id / "note"
            assert self.other.read_text() == "another session's"
            assert self.daemon.process is not None
            self.facts = {
                "pid": self.daemon.process.pid,
                "home": str(self.base / "me"),
                "tools": str(self.daemon.home / "tools"),
                "key": str(self.key),
                "database": str(self.daemon.home / "data" / "aiosd.db"),
                "config": str(self.daemon.home / "config.toml"),
                "log": str(self.daemon.log),
                "socket": str(self.daemon.socket),
                "other": str(self.other),
                "tcp": tcp.getsockname()[1],
                "abstract": unix.getsockname()[1:].decode(),
                "setuid": str(self.setuid),
                "tmp_name": f"aiosd-test-{os.getpid()}",
                "shm": 0,
                "forks": 3000,
                "outrun": False,
            }
            yield

    def call(self, session: r.Session, name: str, /, **arguments: Any) -> r.ToolResult:
        return self.daemon.call(ToolCall(session_id=session.session_id, name=name, arguments=arguments))

    def attack(self, name: str) -> str:
        """What it got; "" where it was stopped."""
        try:
            result = self.call(self.session, "try_it", name=name, facts=self.facts)
        except (ToolFailed, DeadlineExceeded):
            return ""
        (block,) = result.content
        return block.text if block.text.startswith("GOT ") and not result.is_error else ""


@contextmanager
def place(tiers: str | None = None, without: str = "") -> Iterator[Place]:
    with tempfile.TemporaryDirectory(
        prefix="aiosd-", dir="/tmp"
    ) as folder:  # pytest's own is closed to others
        made = Place(Path(folder), tiers, without)
        with made.running():
            yield made


@pytest.fixture(scope="module", params=list(OPEN))
def hostile(request: pytest.FixtureRequest) -> Iterator[tuple[Tier, Place]]:
    tier: Tier = request.param
    with place(tier.value) as made:
        found = made.daemon.call(SystemInfo()).sandbox
        if found != tier:
            pytest.skip(f"this machine has `{found}`, not `{tier}`")
        yield tier, made


@pytest.mark.parametrize("name", sorted(attacks.ATTACKS))
def test_an_attack_gets_nothing_but_what_is_known_to_be_open(hostile: tuple[Tier, Place], name: str) -> None:
    tier, made = hostile
    if os.uname().machine != "x86_64" and "system_call" in attacks.ATTACKS[name].__code__.co_names:
        pytest.skip("its numbers are those of x86_64")
    if name == "setuid_program" and os.geteuid() != 0:
        pytest.skip("only root can make one")
    got = made.attack(name)
    assert bool(got) == (name in OPEN[tier]), got
    assert made.daemon.call(SystemPing()).pid == made.facts["pid"]
    assert made.call(made.session, "survives").content[0].text == "still here"


def wait_for_end(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ended, _, _ = select.select([descriptor], [], [], 30)
        assert ended, f"process {pid} lives on"
    finally:
        os.close(descriptor)


def test_nothing_of_a_call_outlives_it_and_no_file_arrives_in_the_shared_tmp(
    hostile: tuple[Tier, Place],
) -> None:
    _, made = hostile
    made.attack("write_shared_tmp")
    made.attack("write_outside")
    assert not Path("/tmp", made.facts["tmp_name"]).exists()
    assert not Path(made.facts["home"], "evil").exists()
    made.attack("orphan")
    for pid in Host(made.workspace, made.facts["pid"]).processes():
        wait_for_end(pid)
    made.facts["outrun"] = True
    made.attack("outrun_the_killer")
    for _ in range(100):  # each call has a process too, which may be there a little longer than its answer
        assert made.call(made.session, "survives").content[0].text == "still here"
        if not Host(made.workspace, made.facts["pid"]).processes():
            break
    else:
        pytest.fail("it lives on")
    assert made.key.read_text() == "PRIVATE KEY"


def test_ordinary_work_is_done_inside_the_walls(hostile: tuple[Tier, Place]) -> None:
    tier, made = hostile
    assert made.call(made.session, "write_note", text="hello").content[0].text == "hello"
    assert (made.workspace / "note").read_text() == "hello"
    if tier is not Tier.LANDLOCK:  # which has no /tmp
        assert made.call(made.session, "use_tmp").content[0].text.startswith("/tmp/")


# --- which walls there are ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("without", "tier"),
    [
        ("", Tier.NAMESPACES),
        ("landlock", Tier.WITHOUT_LANDLOCK),
        ("namespaces", Tier.LANDLOCK),
        ("namespaces,landlock", Tier.NONE),
    ],
)
def test_a_machine_that_lacks_a_wall_gets_the_next_best_and_never_none_silently(
    without: str, tier: Tier
) -> None:
    with tempfile.TemporaryDirectory(prefix="aiosd-", dir="/tmp") as folder:
        made = Place(Path(folder), None, without)
        with made.daemon:
            info = made.daemon.call(SystemInfo())
            assert info.sandbox == tier
            session = made.daemon.session(permissions=["*"])
            if tier is not Tier.NONE:
                assert made.call(session, "survives").content[0].text == "still here"
            else:
                assert "no walls can be built" in str(info.problems)
                assert "survives" not in {tool.name for tool in made.daemon.call(ToolList()).tools}
                with pytest.raises(ToolFailed, match="no walls can be built") as caught:
                    made.call(session, "clock")
                assert "user namespaces" in str(caught.value.hint)


CLOSED_S = 2.0
"""Within which a closed session's processes are gone."""
BUSY_S = 6.0
"""More, for a machine that is busy with other things."""


def test_a_closed_session_leaves_no_process(hostile: tuple[Tier, Place]) -> None:
    """Not its host's, nor a call's that runs then, nor what that has started and let go of."""
    _, made = hostile
    session = made.daemon.session(permissions=["*"])
    made.call(session, "survives")
    workspace = made.daemon.home / "state" / "workspaces" / session.session_id
    os.mkfifo(workspace / "ready", 0o666)
    (workspace / "ready").chmod(0o666)
    script = "trap '' TERM HUP; setsid sleep 1000 & sleep 1000 & echo > ready; sleep 1000"

    def hang() -> None:
        with suppress(AiosError):
            made.call(session, "run_command", argv=["sh", "-c", script])

    calling = threading.Thread(target=hang)
    calling.start()
    reading = os.open(workspace / "ready", os.O_RDONLY | os.O_NONBLOCK)
    assert select.select([reading], [], [], 30)[0]
    os.close(reading)
    host = Host(workspace, made.facts["pid"])
    left = [os.pidfd_open(pid) for pid in (host.pid, *host.processes())]
    assert len(left) >= 5  # the host, the call, the shell and its two at least
    until = time.monotonic() + CLOSED_S + BUSY_S
    made.daemon.call(SessionClose(session_id=session.session_id))
    for process in left:
        assert select.select([process], [], [], max(0.0, until - time.monotonic()))[0]
        os.close(process)
    calling.join(30)


def test_a_machine_without_a_quota_for_user_namespaces_gets_landlock() -> None:
    """The host alone: out of the namespace in which the quota is taken away, nobody could talk to a daemon."""
    plan = msgspec.json.encode(Plan()).decode()
    command = [sys.executable, "-P", "-m", "aiosd.tools.host", plan]
    done = subprocess.run(
        [sys.executable, "-m", "tests.ordinary", str(UID), "userns-quota", *command],
        input=framing.request(1, "describe", {}) + b"\n",
        capture_output=True,
        timeout=60,
        check=True,
    )
    answer = msgspec.json.decode(done.stdout)
    assert answer["result"]["sandbox"] == Tier.LANDLOCK, done.stderr
    assert b"No space left on device" in done.stderr


@pytest.mark.parametrize("name", ["kill_daemon", "signal_by_descriptor"])
def test_where_landlock_keeps_no_signals_in_seccomp_does(tmp_path: Path, name: str) -> None:
    """As on a kernel between 6.2 and 6.12."""
    shutil.copy(attacks.__file__, tmp_path)
    plan = msgspec.json.encode(Plan(folders=(str(tmp_path),), tiers=(Tier.LANDLOCK,))).decode()
    old = "from aiosd.tools import host, landlock; landlock.abi = lambda: 3; host.main()"
    with subprocess.Popen(["sleep", "1000"]) as victim:
        arguments = {"name": name, "facts": {"pid": victim.pid}}
        call = {"name": "try_it", "arguments": arguments, "timeout_s": 30}
        host = subprocess.Popen(
            [sys.executable, "-P", "-c", old, plan], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        assert host.stdin is not None and host.stdout is not None
        host.stdin.write(framing.request(1, "call", call))
        answer = msgspec.json.decode(host.stdout.readline())
        host.communicate(timeout=60)
        assert victim.poll() is None
        victim.kill()
    if "error" in answer:
        assert "no walls" in answer["error"]["message"], answer
        pytest.skip("this machine has no Landlock")
    assert answer["result"]["content"][0]["text"].startswith("PermissionError: [Errno 1]")


@pytest.mark.parametrize("name", ["environ", "mem", "fd"])
def test_the_daemon_shows_its_memory_to_no_process_of_its_user_even_outside_the_walls(
    hostile: tuple[Tier, Place], name: str
) -> None:
    _, made = hostile
    look = "import os, sys; p = sys.argv[1]; os.listdir(p) if os.path.isdir(p) else open(p, 'rb').read(1)"
    for pid, stopped in ((made.facts["pid"], True), ("self", name == "mem")):  # nothing lies at address 0
        command = [sys.executable, "-c", look, f"/proc/{pid}/{name}"]
        done = subprocess.run(
            [sys.executable, "-m", "tests.ordinary", str(UID), "", *command],
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert (b"Permission" in done.stderr, bool(done.returncode)) == (pid != "self", stopped)


# --- the workspace -----------------------------------------------------------------------------------------


def test_a_workspace_is_written_to_only_where_the_session_may(hostile: tuple[Tier, Place]) -> None:
    _, made = hostile
    reader = made.daemon.session(permissions=["*"], workspace=str(made.workspace))
    result = made.call(reader, "write_note", text="no")
    assert result.is_error
    assert result.content[0].text.startswith(("OSError", "PermissionError"))
    assert "project" not in made.call(reader, "list_files").content[0].text


def test_what_is_the_daemons_own_is_no_workspace_and_not_to_be_seen_in_one(
    hostile: tuple[Tier, Place],
) -> None:
    tier, made = hostile
    inside = made.daemon.session(permissions=["*"], workspace=str(made.daemon.home / "data"))
    with pytest.raises(InvalidState, match="the daemon's own"):
        made.call(inside, "survives")
    around = made.daemon.session(permissions=["*"], workspace=str(made.base))
    if tier is Tier.LANDLOCK:
        with pytest.raises(ToolFailed, match="it cannot hide"):
            made.call(around, "survives")
        return
    for fact in ("database", "other", "config"):
        result = made.call(
            around, "try_it", name=f"read_{fact}".replace("other", "other_workspace"), facts=made.facts
        )
        assert result.is_error or "b''" in result.content[0].text
    assert "PRIVATE" in made.call(around, "try_it", name="read_ssh_key", facts=made.facts).content[0].text


@pytest.mark.parametrize("spelled", ["home", "link to a folder/home", "link"])
def test_a_workspace_around_the_daemon_shows_all_but_what_is_its_own(spelled: str) -> None:
    """Also where that workspace is /tmp itself, and where AIOSD_HOME was named by a link."""
    with tempfile.TemporaryDirectory(prefix="aiosd-", dir="/tmp") as folder:
        base = Path(folder)
        for name in ("home", "real/home"):
            (base / name).mkdir(parents=True)
        (base / "link").symlink_to(base / "home")
        (base / "link to a folder").symlink_to(base / "real")
        (base / "note").write_text("seen")
        with Daemon(base / spelled, "# secret\n") as daemon:
            (base / spelled / "tools").mkdir()
            shutil.copy(attacks.__file__, base / spelled / "tools" / "attacks.py")
            for workspace in (base, Path("/tmp")):
                session = daemon.session(permissions=["*"], workspace=str(workspace))

                def read(path: Path, session: r.Session = session) -> r.ToolResult:
                    params = ToolCall(
                        session_id=session.session_id, name="read_file", arguments={"path": str(path)}
                    )
                    return daemon.call(params)

                assert read(base / "note").content[0].text == "seen"
                for own in ("data/aiosd.db", "data/lock", "run/aiosd.sock", "config.toml"):
                    found = read((base / spelled / own).resolve())
                    assert found.is_error or found.content[0].text == "", own
