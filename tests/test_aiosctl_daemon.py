"""aiosctl with the daemon that is really there."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aiosctl.client import Client
from aiosd.protocol.system import SystemPing, SystemShutdown
from tests.daemon import PATIENCE_S, Daemon


def test_sixteen_at_once_start_one_daemon(tmp_path: Path) -> None:
    home = Daemon(tmp_path / "home")  # for its environment: aiosctl is to start it
    with ThreadPoolExecutor(16) as together:
        done = list(together.map(lambda _: home.ctl("ping", "--json"), range(16)))
    assert [each.returncode for each in done] == [0] * 16, done
    assert len({json.loads(each.stdout)["pid"] for each in done}) == 1
    assert (home.home / "state" / "aiosd.log").read_text().count('"ready"') == 1
    with Client(home.socket) as client:
        exited = os.pidfd_open(client.call(SystemPing()).pid)
        client.call(SystemShutdown())
    assert select.select([exited], [], [], PATIENCE_S)[0]
    os.close(exited)


def test_sixteen_runs_by_xargs_give_sixteen_answers(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()  # a workspace with the daemon's own folder in it is no workspace
    done = subprocess.run(
        [
            "sh",
            "-c",
            f"seq 24 | xargs -P16 -I{{}} {sys.executable} -m aiosctl run 'What is {{}} * 3?' 2> errors",
        ],
        env=daemon.environ,
        cwd=tmp_path / "work",
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, (tmp_path / "work" / "errors").read_text()
    assert sorted(map(int, done.stdout.split())) == [3 * n for n in range(1, 25)]


def test_cron_finds_the_daemon_of_the_login_and_starts_one_where_none_is(tmp_path: Path) -> None:
    home = Daemon(tmp_path / "home")
    cron = {name: home.environ[name] for name in ("PATH", "OLLAMA_HOST", "LLAMA_ARG_PORT")}
    cron |= {"HOME": str(tmp_path), "SHELL": "/bin/sh", "LOGNAME": "ada"}
    login = cron | {"XDG_RUNTIME_DIR": str(tmp_path / "run")}
    (tmp_path / "run").mkdir()

    def ctl(environ: dict[str, str], *args: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "aiosctl", *args],
            env=environ,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def stop() -> None:
        ended = os.pidfd_open(json.loads(ctl(cron, "ping", "--json"))["pid"])
        with Client(Path(json.loads(ctl(cron, "status", "--json"))["paths"]["socket"])) as client:
            client.call(SystemShutdown())
        assert select.select([ended], [], [], PATIENCE_S)[0]
        os.close(ended)

    began = json.loads(ctl(login, "ping", "--json"))
    assert ctl(cron, "run", "What is 6 * 7?") == "42\n"
    assert json.loads(ctl(cron, "ping", "--json")) == began
    stop()
    assert ctl(cron, "run", "What is 6 * 8?") == "48\n"
    assert ctl(login, "ping") == ctl(cron, "ping")
    assert (tmp_path / ".local" / "state" / "aiosd" / "aiosd.sock").exists()
    stop()


def test_what_one_verb_makes_the_next_one_finds(daemon: Daemon, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "ports.txt").write_text("The staging server listens on port 8081.\n")

    def ctl(*args: str, stdin: bytes | None = None) -> str:
        done = daemon.ctl(*args, stdin=stdin, cwd=folder)
        assert done.returncode == 0, done
        return done.stdout.rstrip("\n")

    session = ctl("session", "create", "notes")
    assert ctl("session", "list", "-q") == session
    assert json.loads(ctl("session", "show", "notes", "--json"))["workspace"] == str(folder)
    assert ctl("run", "-s", "notes", "calculate 17 * 23") == "391"
    task = ctl("run", "-s", session[:8], "--detach", "calculate 2 + 2")
    assert ctl("task", "wait", task[:12]) == "4"
    assert ctl("task", "list", "-q", "-s", "@last").splitlines()[0] == task
    assert json.loads(ctl("task", "show", "2", "--json"))["task_id"] == task
    memory = ctl("memory", "remember", "-s", "notes", "the printer is called Ada")
    assert memory in ctl("memory", "recall", "-q", "printer").splitlines()
    assert "content\tthe printer is called Ada" in ctl("memory", "show", memory[:13])
    assert ctl("memory", "forget", memory) == "forgot 1 memory"
    assert ctl("tool", "call", "read_file", "path=ports.txt").startswith("The staging server")
    assert ctl("tool", "call", "calculator", "expression=6*7", "-s", "notes") == "42"
    assert "extractive" in ctl("model", "list", "-q").splitlines()
    assert ctl("session", "delete", "notes", "--forget") == f"deleted {session}"
    assert daemon.ctl("session", "show", session).returncode == 66


def test_a_file_that_is_piped_in_is_quoted_by_its_name(daemon: Daemon, tmp_path: Path) -> None:
    text = "# Servers\n\nThe staging server listens on port 8081.\nThe printer is called Ada.\n"
    (tmp_path / "ports.txt").write_text(text)
    done = daemon.ctl("run", "-f", "ports.txt", "On which port does the staging server listen?", cwd=tmp_path)
    assert (done.returncode, "ports.txt:3: " in done.stdout) == (0, True), done
    assert "quoted" in done.stderr


def test_without_a_model_what_nothing_answers_is_78(daemon: Daemon, tmp_path: Path) -> None:
    done = daemon.ctl("run", "Who won the cup in 1974?", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith("aiosctl: no answer: ")
    capable = daemon.ctl("run", "--tier", "capable", "write a poem", cwd=tmp_path)
    assert (capable.returncode, capable.stdout) == (78, "")
