"""The daemon as a process: its start, its end, and that there is one."""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from aiosd import framing
from aiosd import records as r
from aiosd.errors import InvalidState
from aiosd.protocol.memory import MemoryList, MemoryRemember
from aiosd.protocol.sessions import SessionClose
from aiosd.protocol.system import SystemPing, SystemShutdown
from aiosd.protocol.tasks import TaskCancel, TaskGet, TaskList, TaskWait
from aiosd.protocol.tools import ToolCall
from tests.daemon import PATIENCE_S, Daemon, Silent


def second(daemon: Daemon, **environ: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "aiosd"],
        env=daemon.environ | environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=PATIENCE_S,
    )


def test_a_second_daemon_says_who_has_the_data_and_exits_1(daemon: Daemon) -> None:
    assert daemon.process is not None
    done = second(daemon)
    assert (done.returncode, done.stdout) == (1, b"")
    assert f"process {daemon.process.pid}" in json.loads(done.stderr)["message"]
    assert daemon.call(SystemPing()).pid == daemon.process.pid


def test_a_second_daemon_with_other_data_does_not_take_the_socket(daemon: Daemon, tmp_path: Path) -> None:
    assert daemon.process is not None
    other = {"AIOSD_HOME": str(tmp_path / "other"), "AIOSD_SOCKET": str(daemon.socket)}
    done = second(daemon, **other)
    assert done.returncode == 1
    assert "answers on" in json.loads(done.stderr.splitlines()[-1])["message"]
    assert daemon.call(SystemPing()).pid == daemon.process.pid


def test_a_stale_socket_is_replaced(daemon: Daemon) -> None:
    daemon.kill()
    assert daemon.socket.exists()
    daemon.start()
    assert daemon.call(SystemPing()).pong


def test_a_lock_left_by_a_kill_stops_nobody(daemon: Daemon) -> None:
    for _ in range(3):
        daemon.kill()
        daemon.start()
    assert daemon.call(SystemPing()).pong


def test_sigterm_ends_it_with_0_and_takes_the_socket_away(daemon: Daemon) -> None:
    assert daemon.stop() == 0
    assert not daemon.socket.exists()


def test_shutdown_answers_and_then_ends(daemon: Daemon) -> None:
    daemon.call(SystemShutdown())
    assert daemon.ended() == 0


def test_a_task_that_runs_at_sigterm_is_taken_up_by_the_next_daemon(tmp_path: Path) -> None:
    with Silent() as slow, Daemon(tmp_path / "home", slow.config()) as daemon:
        task = daemon.start_task(daemon.session(), "Think")
        assert slow.asked.wait(PATIENCE_S)
        assert daemon.stop() == 0
        (tmp_path / "home" / "config.toml").unlink()
        daemon.start()
        assert daemon.call(TaskWait(task_id=task.task_id)).state == "completed"


def test_an_idle_connection_does_not_hold_up_the_end(daemon: Daemon) -> None:
    with socket.socket(socket.AF_UNIX) as idle:
        idle.settimeout(PATIENCE_S)
        idle.connect(str(daemon.socket))
        idle.sendall(framing.request(1, "system.ping", {}))
        assert idle.recv(1000)
        assert daemon.stop() == 0
        assert idle.recv(1000) == b""


def test_logs_are_json_lines_where_stderr_is_no_terminal(daemon: Daemon) -> None:
    daemon.stop()
    lines = [json.loads(line) for line in daemon.log.read_text().splitlines()]
    assert {"ready", "stopped"} <= {line["message"] for line in lines}
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)


def test_logs_are_text_on_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("nonsense = 1")
    ours, theirs = os.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "aiosd"],
            env={**os.environ, "AIOSD_HOME": str(tmp_path)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=theirs,
            check=False,
            timeout=PATIENCE_S,
        )
        said = os.read(ours, 10_000).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert (done.returncode, done.stdout) == (78, b"")
    assert f"{tmp_path}/config.toml: " in said and "nonsense" in said
    assert "Traceback" not in said and not said.startswith("{")


def test_a_database_that_is_none_is_refused_and_left_alone(tmp_path: Path) -> None:
    data = tmp_path / "home" / "data"
    data.mkdir(parents=True)
    (data / "aiosd.db").write_bytes(b"precious text, not SQLite" * 100)
    done = second(Daemon(tmp_path / "home"))
    assert done.returncode != 0
    assert "aiosd.db" in done.stderr.decode() and "Traceback" not in done.stderr.decode()
    assert (data / "aiosd.db").read_bytes() == b"precious text, not SQLite" * 100


def test_nc_can_talk_to_it(daemon: Daemon) -> None:
    answer = json.loads(daemon.raw(b'{"jsonrpc":"2.0","id":1,"method":"system.ping"}\n'))
    assert answer["result"]["pong"] is True


def test_cancel_ends_a_task_and_its_waiters_with_what_there_was(tmp_path: Path) -> None:
    with Silent() as slow, Daemon(tmp_path / "home", slow.config()) as daemon:
        task = daemon.start_task(daemon.session(), "Think")
        assert slow.asked.wait(PATIENCE_S)
        assert daemon.call(TaskCancel(task_id=task.task_id)).state == "cancelled"
        waited = daemon.raw(framing.request(1, "task.wait", {"task_id": task.task_id}))
        error = json.loads(waited)["error"]
        assert error["code"] == -32800
        assert error["data"]["result"]["state"] == "cancelled"
        with pytest.raises(InvalidState, match="cancelled already"):
            daemon.call(TaskCancel(task_id=task.task_id))


def test_closing_a_session_ends_its_tasks_and_refuses_more(tmp_path: Path) -> None:
    with Silent() as slow, Daemon(tmp_path / "home", slow.config()) as daemon:
        session = daemon.session()
        task = daemon.start_task(session, "Think")
        assert slow.asked.wait(PATIENCE_S)
        assert daemon.call(SessionClose(session_id=session.session_id)).state == "closed"
        assert daemon.call(TaskGet(task_id=task.task_id)).state == "cancelled"
        with pytest.raises(InvalidState, match="closed"):
            daemon.run(session, "more")


def test_a_deadline_fails_the_task_with_124s_code(tmp_path: Path) -> None:
    with Silent() as slow, Daemon(tmp_path / "home", slow.config()) as daemon:
        session = daemon.session()
        done = daemon.ctl("run", "-q", "-s", session.session_id, "--deadline", "1s", "Think")
        assert (done.returncode, done.stdout) == (124, "")
        (task,) = daemon.call(TaskList()).tasks
        assert task.state == "failed"


def test_a_socket_that_is_handed_over_is_served_and_left_in_place(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "home")
    daemon.socket.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as activated:
        activated.bind(str(daemon.socket))
        activated.listen()
        fd = activated.fileno()
        # As systemd does it: descriptor 3, and LISTEN_PID naming the very process.
        hand_over = (
            f"import os, sys; os.dup2({fd}, 3); os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()));"
            " os.execv(sys.executable, [sys.executable, '-m', 'aiosd'])"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", hand_over],
            env=daemon.environ,
            pass_fds=[fd],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            assert daemon.call(SystemPing()).pid == process.pid
            daemon.call(SystemShutdown())
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()
            process.wait()
    assert daemon.socket.exists()


def test_the_daemons_children_end_with_it(daemon: Daemon) -> None:
    session = daemon.session()
    daemon.call(ToolCall(session_id=session.session_id, name="calculator", arguments={"expression": "1+1"}))
    assert daemon.process is not None
    children = [os.pidfd_open(pid) for pid in _descendants(daemon.process.pid)]
    assert children
    daemon.kill()
    for child in children:
        assert select.select([child], [], [], PATIENCE_S)[0], "a child outlived the daemon"
        os.close(child)


def _descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(c) for c in children] + [d for c in children for d in _descendants(int(c))]


def test_an_idempotency_key_gives_the_same_task_twice(daemon: Daemon) -> None:
    session = daemon.session()
    one = daemon.start_task(session, "What is 1 + 1?", idempotency_key="k")
    two = daemon.start_task(session, "What is 1 + 1?", idempotency_key="k")
    assert one.task_id == two.task_id
    assert len(daemon.call(TaskList()).tasks) == 1


def test_a_signal_while_tasks_run_leaves_no_task_without_a_state(daemon: Daemon) -> None:
    session = daemon.session()
    tasks = [daemon.start_task(session, f"What is {i} + 1?") for i in range(20)]
    assert daemon.stop() == 0
    daemon.start()
    results = [daemon.call(TaskWait(task_id=t.task_id)) for t in tasks]
    assert [result.result for result in results] == [str(i + 1) for i in range(20)]
    assert isinstance(results[0], r.TaskResult)


def test_cron_finds_the_daemon_of_the_login_by_its_data(tmp_path: Path) -> None:
    xdg = {f"XDG_{n}_HOME": str(tmp_path / n.lower()) for n in ("CONFIG", "DATA", "STATE", "CACHE")}
    login = Daemon(tmp_path / "home", environ={**xdg, "XDG_RUNTIME_DIR": str(tmp_path / "run")})
    del login.environ["AIOSD_HOME"]
    login.socket = tmp_path / "run" / "aiosd" / "aiosd.sock"
    with login:
        cron = Daemon(tmp_path / "home", environ=xdg)
        del cron.environ["AIOSD_HOME"]
        assert login.process is not None
        assert json.loads(cron.ctl("ping", "--json").stdout)["pid"] == login.process.pid


def test_a_task_goes_on_without_memories_when_their_worker_cannot_run(daemon: Daemon) -> None:
    session = daemon.session()
    daemon.call(MemoryRemember(session_id=session.session_id, content="The gate code is 4711"))
    # What the worker needs to start is gone: its index's folder is a file.
    daemon.kill()
    shutil.rmtree(daemon.home / "data" / "index")
    (daemon.home / "data" / "index").write_text("in the way")
    daemon.start()
    assert daemon.run(session, "What is 1 + 1?").result == "2"
    assert [m.content for m in daemon.call(MemoryList(session_id=session.session_id)).memories][-1] == (
        "The gate code is 4711"
    )


def test_a_tool_that_fails_is_no_answer_but_the_reason_for_none(daemon: Daemon, tmp_path: Path) -> None:
    done = daemon.ctl("run", "-q", "Read the file missing.txt", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (78, "")
    assert "no answer: read_file failed" in done.stderr and "missing.txt" in done.stderr


def test_a_tool_file_that_does_not_load_is_reported_and_keeps_no_other_away(tmp_path: Path) -> None:
    folder = tmp_path / "home" / "tools"
    folder.mkdir(parents=True)
    (folder / "broken.py").write_text("import no_such_module\n")
    (folder / "good.py").write_text(
        "from aiosd.tools import tool\n\n@tool\ndef hello() -> str:\n    return 'hi'\n"
    )
    with Daemon(tmp_path / "home") as daemon:
        listed = daemon.ctl("tool", "list")
        assert "\nhello\t" in listed.stdout
        assert "broken.py:1: " in listed.stderr and "no_such_module" in listed.stderr
        assert "broken.py" in daemon.ctl("status").stderr
        assert daemon.ctl("tool", "list", "--json").stderr == ""
