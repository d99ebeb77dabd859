"""aiosctl ps, attach, why, stats, logs and completion: what goes on, and what came about how."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aiosctl.jobs import span
from aiosctl.stats import added
from aiosctl.top import View, picture
from aiosd.protocol.tasks import TaskList
from aiosd.records import Task, TaskResult
from tests.aiosctl_double import AIOSCTL, T0, WAIT_S, Connection, Ctl, Double, giving, message, result, task
from tests.daemon import Daemon
from tests.terminals import OnTerminal


def by_state(*tasks: dict[str, Any]) -> Any:
    return lambda params, connection: {"tasks": [t for t in tasks if t["state"] == params.get("state")]}


def test_ps_lists_what_has_not_ended_and_what_works_first(double: Double, ctl: Ctl) -> None:
    double.answers["task.list"] = by_state(
        task(number=1, state="completed"),
        task(number=2, state="queued", task="wait"),
        task(number=3, state="working", task="work", started_at=T0),
        task(number=4, state="input_required", task="ask"),
    )
    rows = [line.split("\t") for line in ctl("ps").stdout.splitlines()]
    assert [(row[0], row[1], row[-1]) for row in rows] == [
        ("3", "working", "work"),
        ("4", "input_required", "ask"),
        ("2", "queued", "wait"),
    ]
    assert [each["number"] for each in json.loads(ctl("ps", "--json").stdout)["tasks"]] == [3, 4, 2]
    assert ctl("ps", "-q").stdout == (task()["task_id"] + "\n") * 3


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-1, "0s"), (0.9, "0s"), (59.9, "59s"), (60, "1m00s"), (3599, "59m59s"), (7500, "2h05m")],
)
def test_a_span_is_short(seconds: float, said: str) -> None:
    assert span(seconds) == said


def test_attach_shows_what_was_and_ends_with_the_answer(double: Double, ctl: Ctl) -> None:
    def attach(params: dict[str, Any], connection: Connection) -> object:
        connection.event("tool_call", call_id="c", name="clock", arguments={}, status="pending")
        connection.event("message", seq=2, **message("hello"))
        return result()

    double.answers["task.attach"] = attach
    done = ctl("attach", task()["task_id"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n", "clock {}\n")
    assert double.params("task.attach") == [{"task_id": task()["task_id"]}]


def test_why_tells_who_answered_from_what_and_who_did_not(double: Double, ctl: Ctl) -> None:
    decision = {
        "tier": "balanced",
        "chosen": "small",
        "reason": "local and fast enough",
        "candidates": [
            {"backend": "small", "model": "m", "local": True},
            {"backend": "big", "model": "b", "local": True, "rejected": "too slow", "predicted_s": 9.0},
        ],
    }
    sources = [{"kind": "memory", "ref": "m1", "text": "the host is falcon-7"}]
    double.answers["task.get"] = giving(
        task(state="completed", steps=2, result=result(decision=decision, sources=sources))
    )
    told = dict(line.split("\t") for line in ctl("why", task()["task_id"]).stdout.splitlines())
    assert told["because"] == "local and fast enough"
    assert told["not big"] == "too slow (about 9.0 s)"
    assert told["from memory"] == "m1: the host is falcon-7"
    assert told["backend"] == "small (m)"


def test_why_of_a_failed_task_is_its_error_with_the_line_that_mends_it(double: Double, ctl: Ctl) -> None:
    error = {"code": -32005, "message": "no model fits", "data": {"hint": "aiosctl model list"}}
    double.answers["task.get"] = giving(task(state="failed", error=error))
    told = dict(line.split("\t") for line in ctl("why", task()["task_id"]).stdout.splitlines())
    assert (told["error"], told["try"]) == ("no model fits", "aiosctl model list")


NOW = datetime(2026, 11, 22, 18, tzinfo=UTC)


def ran(hours_ago: float, **more: Any) -> Task:
    begun = NOW - timedelta(hours=hours_ago)
    given = {"created_at": begun, "started_at": begun, "ended_at": begun + timedelta(seconds=2)}
    return msgspec.convert(task(**(given | more)), Task)


def test_stats_add_up_by_model_and_agent_what_is_young_enough() -> None:
    found = added(
        [
            ran(1, state="completed", session_id="s1", cost_usd=0.25, result=result(model="a")),
            ran(2, state="completed", session_id="s2", cost_usd=0.5, result=result(model="a")),
            ran(3, state="completed", session_id="s2", result=result(model="a", abstained=True)),
            ran(4, state="failed", error={"code": -32007, "message": "late"}),
            ran(5, state="failed", error={"code": -32005, "message": "no model fits"}),
            ran(6, state="queued", ended_at=None),
            ran(30, state="completed", result=result(model="a")),
        ],
        {"s1": "reviewer"},
        NOW - timedelta(days=1),
    )
    rows = [
        (g.model, g.agent, g.runs, g.failed, g.missed, g.abstained, g.output_tokens, g.cost_usd)
        for g in found.groups
    ]
    assert rows == [
        ("-", "-", 3, 2, 1, 0, 0, 0.0),
        ("a", "-", 2, 0, 0, 1, 2, 0.5),
        ("a", "reviewer", 1, 0, 0, 0, 1, 0.25),
    ]
    assert (found.total.runs, found.total.cost_usd, found.total.took_s) == (6, 0.75, 10.0)


def test_what_was_run_is_counted_listed_explained_and_completed(daemon: Daemon, tmp_path: Path) -> None:
    assert daemon.ctl("run", "-q", "What is 6 * 7?", cwd=tmp_path).stdout == "42\n"
    total = json.loads(daemon.ctl("stats", "--json").stdout)["total"]
    assert (total["runs"], total["failed"]) == (1, 0)
    assert "from tool\tcalculator: 42" in daemon.ctl("why", "@last").stdout
    memory = daemon.ctl("memory", "list", "-q").stdout.splitlines()[0]
    assert "task\t1\t-\tcompleted\tWhat is 6 * 7?" in daemon.ctl("why", memory).stdout
    assert daemon.ctl("why", "gone").returncode == 66
    assert "extractive" in daemon.ctl("top").stdout
    assert daemon.ctl("attach", "@last", "-q").stdout == "42\n"
    assert daemon.ctl("ps").stdout == ""
    for words, name in [
        ("aiosctl st", "stats"),
        ("aiosctl wait ", "1"),
        ("aiosctl run -s What", "What is 6 * 7?"),
        ("aiosctl run -m ext", "extractive"),
        ("aiosctl task s", "show"),
    ]:
        assert name in completed(daemon, words)


def completed(daemon: Daemon, words: str) -> list[str]:
    """What bash is offered; asked for again where the daemon was too busy to say it in time."""
    asked = {
        "_AIOSCTL_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    for _ in range(20):
        done = daemon.ctl(environ=asked)
        assert (done.returncode, done.stderr) == (0, "")
        if offered := done.stdout.strip().splitlines():
            return offered
    return []


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (20, 5), (200, 40)])
def test_a_picture_fits_the_terminal_and_says_what_it_leaves_out(columns: int, lines: int) -> None:
    backend = {
        "name": "small",
        "kind": "ollama",
        "model": "llama3.2",
        "url": None,
        "local": True,
        "tiers": ["fast"],
        "state": "up",
        "reason": None,
        "slots": 2,
        "in_flight": 1,
        "price_in": 0.0,
        "price_out": 0.0,
        "queued": 3,
        "tokens_per_s": 41.25,
    }
    info = {
        "version": "1",
        "protocol": 1,
        "uptime_s": 3700.0,
        "paths": {},
        "sandbox": "none",
        "embedder": "none",
        "counts": {"memories": 12},
        "backends": ["small"],
    }
    day = {"scope": "day", "cap_usd": 2.0, "spent_usd": 0.5, "held_usd": 0.0, "left_usd": 1.5}
    tasks = [task(number=n, state="working", task="work " * 50, started_at=T0) for n in range(50)]
    view = msgspec.convert(
        {"info": info, "backends": [backend], "tasks": tasks, "limits": {"limits": [day]}}, View
    )
    shown = picture(view, NOW + timedelta(seconds=90), columns=columns, lines=lines)
    assert len(shown) == lines and all(len(line) <= columns for line in shown)
    assert re.fullmatch(r"and \d+ more", shown[-1])
    if columns >= 80:
        assert shown[0] == "aiosd 1  up 1h01m  spent today $0.5000 of $2.00"
        assert shown[5].split() == ["small", "up", "1/2", "3", "41.2", "llama3.2"]
        assert shown[8].startswith("0        working         1m30s ")


def test_chat_and_top_give_documents(daemon: Daemon) -> None:
    done = daemon.ctl("chat", "--json", stdin=b"What is 6 * 7?\n\nWho won?\n")
    answer, abstained = (msgspec.json.decode(line, type=TaskResult) for line in done.stdout.splitlines())
    assert (answer.result, answer.backend, abstained.abstained) == ("42", "extractive", True)
    assert answer.session_id == abstained.session_id
    wrong = daemon.ctl("chat", "--json", "-m", "nobody", stdin=b"hello\n")
    assert json.loads(wrong.stderr.splitlines()[-1])["code"] == -32002
    seen = json.loads(daemon.ctl("top", "--json").stdout)
    assert sorted(seen) == ["backends", "info", "limits", "tasks"]
    assert json.loads(daemon.ctl("ps", "--json").stdout) == {"tasks": []}


def test_top_is_live_until_q(daemon: Daemon, tmp_path: Path, on_terminal: OnTerminal) -> None:
    terminal = on_terminal(at(daemon, tmp_path), "top")
    terminal.until("extractive")
    terminal.type(b"q")
    status, seen = terminal.end()
    assert status == 0
    assert seen.endswith("\x1b[?25h\x1b[?1049l")


def test_a_line_of_chat_can_be_edited_and_is_found_again_in_the_next(
    daemon: Daemon, tmp_path: Path, on_terminal: OnTerminal
) -> None:
    terminal = on_terminal(at(daemon, tmp_path), "chat")
    terminal.until("> ")
    terminal.type(b"never asked\x03")  # at once, before it waits for a key
    terminal.until("\r\n> ")
    terminal.type(b"What is 6 * 8?\x02\x02\x047\r")  # two back, one deleted
    terminal.until("42\r\n")
    terminal.type(b"\x04")  # while the answer is not over yet
    assert terminal.end()[0] == 0
    again = on_terminal(at(daemon, tmp_path), "chat", "-c")
    again.until("> ")
    again.type(b"\x1b[A\r")
    again.until("42\r\n")
    again.type(b"\x04")
    assert again.end()[0] == 0
    tasks = daemon.call(TaskList()).tasks
    assert [task.task for task in tasks] == ["What is 6 * 7?"] * 2
    assert len({task.session_id for task in tasks}) == 1
    assert stat.S_IMODE((daemon.home / "state" / "chat_history").stat().st_mode) == 0o600


def at(daemon: Daemon, folder: Path) -> Ctl:
    ctl = Ctl.__new__(Ctl)
    ctl.folder, ctl.env = folder, dict(daemon.environ)
    return ctl


def test_completion_without_a_daemon_gives_nothing_and_starts_none(ctl: Ctl) -> None:
    done = ctl(_AIOSCTL_COMPLETE="complete_bash", COMP_WORDS="aiosctl wait ", COMP_CWORD="2")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")
    assert not Path(ctl.env["AIOSD_SOCKET"]).exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_takes_its_completion(ctl: Ctl, shell: str) -> None:
    script = ctl("completion", shell).stdout
    assert "_AIOSCTL_COMPLETE" in script
    if shutil.which(shell):
        checked = subprocess.run(
            [shell, "-n"], input=script, text=True, capture_output=True, timeout=WAIT_S, check=False
        )
        assert (checked.returncode, checked.stderr) == (0, "")


def test_bash_completes_a_verb(double: Double, ctl: Ctl, tmp_path: Path) -> None:
    (tmp_path / "aiosctl").write_text(f'#!/bin/sh\nexec {" ".join(AIOSCTL)} "$@"\n')
    (tmp_path / "aiosctl").chmod(0o755)
    done = ctl.shell(
        'eval "$(aiosctl completion bash)"; COMP_WORDS=(aiosctl att); COMP_CWORD=1; _aiosctl_completion aiosctl; echo "${COMPREPLY[@]}"',
        PATH=f"{tmp_path}:{os.environ['PATH']}",
    )
    assert done.stdout == "attach\n"


def test_logs_are_the_last_lines_of_the_file(ctl: Ctl) -> None:
    log = Path(ctl.env["HOME"]) / ".local/state/aiosd/aiosd.log"
    log.parent.mkdir(parents=True)
    log.write_text("one\ntwo\nthree\n")
    assert ctl("logs", "-n", "2").stdout == "two\nthree\n"


def test_logs_follow_what_is_written(ctl: Ctl) -> None:
    log = Path(ctl.env["HOME"]) / ".local/state/aiosd/aiosd.log"
    log.parent.mkdir(parents=True)
    log.write_text("one\n")
    with subprocess.Popen(
        [*AIOSCTL, "logs", "-f"],
        env=ctl.env,
        cwd=ctl.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"one\n"
        with log.open("a") as more:
            more.write("two\n")
        assert process.stdout.readline() == b"two\n"
        process.kill()
