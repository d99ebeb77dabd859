"""aiosctl run: what it is given, what it prints, how it ends."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from aiosctl import inputs
from aiosd import framing
from tests.aiosctl_double import (
    AIOSCTL,
    WAIT_S,
    Connection,
    Ctl,
    Double,
    Hangup,
    giving,
    result,
    session,
    task,
)

# --- run -------------------------------------------------------------------------------------------------


def test_run_opens_a_session_in_this_folder_and_prints_the_bare_answer(double: Double, ctl: Ctl) -> None:
    done = ctl("run", "say hello to   everybody who is in the house today, will you")
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n", "")
    (created,) = double.params("session.create")
    assert created == {"title": "say hello to everybody who is in the house", "workspace": str(ctl.folder)}
    (run,) = double.params("session.run")
    assert run["session_id"] == session()["session_id"]
    assert run["stream"] is True
    assert "inputs" not in run


@pytest.mark.parametrize("folder", ["home", "/"])
def test_no_session_is_given_the_home_folder_or_the_root(double: Double, ctl: Ctl, folder: str) -> None:
    ctl.folder = Path(ctl.env["HOME"] if folder == "home" else folder)
    assert ctl("run", "x").returncode == 0
    assert "workspace" not in double.params("session.create")[0]
    done = ctl("run", "--write", "x")
    assert (done.returncode, done.stdout) == (2, "")


def test_every_option_of_run_reaches_the_daemon(double: Double, ctl: Ctl) -> None:
    (ctl.folder / "schema.json").write_text('{"type": "object"}')
    options = "--tier capable -m small --deadline 500ms --max-usd 0.5 --max-steps 3 --schema schema.json"
    new = "--system Brief. --agent reviewer --write --private"
    assert ctl("run", *options.split(), *new.split(), "--tools", "a, b", "x").returncode == 0
    assert double.params("session.create")[0] == {
        "title": "x",
        "system": "Brief.",
        "agent": "reviewer",
        "write": True,
        "privacy": "local",
        "workspace": str(ctl.folder),
    }
    assert double.params("session.run")[0] == {
        "session_id": session()["session_id"],
        "task": "x",
        "tier": "capable",
        "backend": "small",
        "timeout_s": 0.5,
        "max_usd": 0.5,
        "max_steps": 3,
        "schema": {"type": "object"},
        "tools": ["a", "b"],
        "stream": True,
    }


def test_continue_is_the_last_open_session_of_this_folder(double: Double, ctl: Ctl) -> None:
    sessions = [
        session(session_id="aaaaaaaa-0000-4000-8000-000000000000", workspace="/elsewhere"),
        session(session_id="bbbbbbbb-0000-4000-8000-000000000000", workspace=str(ctl.folder)),
        session(session_id="cccccccc-0000-4000-8000-000000000000", workspace=str(ctl.folder)),
    ]
    double.answers["session.list"] = giving({"sessions": sessions})
    assert ctl("run", "-c", "and the tests?").returncode == 0
    assert double.params("session.list") == [{"state": "open"}]
    assert double.params("session.run")[0]["session_id"] == sessions[1]["session_id"]
    assert double.params("session.create") == []
    double.answers["session.list"] = giving({"sessions": sessions[:1]})
    assert ctl("run", "--continue", "hello").returncode == 0
    assert double.params("session.create")[0]["workspace"] == str(ctl.folder)
    assert ctl("run", "-c", "-s", "@last", "x").returncode == 2


def test_stream_json_is_an_event_a_line_and_then_the_result(double: Double, ctl: Ctl) -> None:
    def run(params: dict[str, Any], connection: Connection) -> object:
        connection.event("state", state="queued")
        connection.event("text", offset=0, text="hel\nlo")
        return result()

    double.answers["session.run"] = run
    done = ctl("run", "--output-format", "stream-json", "x")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["kind"] for line in lines] == ["state", "text", "result"]
    assert lines[1]["text"] == "hel\nlo"
    assert lines[2] == result() | {"kind": "result"}
    assert done.stderr == ""
    assert json.loads(ctl("run", "--output-format", "json", "x").stdout) == result()


def test_nobody_is_asked_where_that_is_said(double: Double, ctl: Ctl) -> None:
    assert ctl("run", "--approve", "never", "x").returncode == 0
    assert double.params("session.run")[0]["approve"] == "never"


def test_no_tools_is_not_all_tools(double: Double, ctl: Ctl) -> None:
    ctl("run", "--tools", "", "x")
    assert double.params("session.run")[0]["tools"] == []


def test_an_abstention_prints_nothing_and_says_why(double: Double, ctl: Ctl) -> None:
    rejected = {"backend": "small", "model": "m", "local": True, "rejected": "connection refused"}
    decision = {"tier": "balanced", "chosen": "extractive", "reason": "alone", "candidates": [rejected]}
    abstained = result(abstained=True, generated=False, result="", decision=decision)
    double.answers["session.run"] = giving(abstained)
    done = ctl("run", "x")
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith("aiosctl: no answer: ")
    assert "(small: connection refused)\n  try: " in done.stderr
    documented = ctl("run", "x", "--json")
    assert documented.returncode == 78
    assert json.loads(documented.stdout) == abstained


def test_a_quoted_answer_says_so_once_and_what_to_do(double: Double, ctl: Ctl) -> None:
    double.answers["session.run"] = giving(result(generated=False, result="README.md:1: # aiosd"))
    done = ctl("run", "x")
    assert (done.returncode, done.stdout) == (0, "README.md:1: # aiosd\n")
    assert done.stderr.count("\n") == 1
    assert done.stderr == "aiosctl: quoted, not generated; for a model: aiosctl model setup\n"
    assert ctl("run", "-q", "x").stderr == ""
    assert ctl("run", "--json", "x").stderr == ""


def test_tool_calls_and_sources_of_a_generated_answer_stand_on_stderr(double: Double, ctl: Ctl) -> None:
    def run(params: dict[str, Any], connection: Connection) -> object:
        call: dict[str, Any] = {"call_id": "c", "name": "clock", "arguments": {"zone": "UTC"}}
        connection.event("tool_call", status="pending", **call)
        connection.event("tool_call", seq=2, status="in_progress", **call)
        connection.event("hologram", seq=3)
        connection.event("tool_result", seq=4, call_id="c", name="clock", status="failed", text="no\nclock")
        source = {"kind": "input", "ref": "a.txt:3", "text": "it is six"}
        return result(sources=[source], stop_reason="max_tokens")

    double.answers["session.run"] = run
    done = ctl("run", "x")
    assert done.stdout == "hello\n"
    assert done.stderr.splitlines() == [
        'clock {"zone":"UTC"}',
        "clock failed: no clock",
        "aiosctl: the answer stops early: max_tokens",
        "input a.txt:3: it is six",
    ]
    assert ctl("run", "-q", "x").stderr == ""


def test_an_object_is_one_line_of_json_where_a_program_reads(double: Double, ctl: Ctl) -> None:
    double.answers["session.run"] = giving(result(result={"a": [1, 2]}))
    assert ctl("run", "x").stdout == '{"a":[1,2]}\n'


def test_detach_prints_the_id_alone(double: Double, ctl: Ctl) -> None:
    double.answers["session.run"] = giving(task())
    assert ctl("run", "--detach", "x").stdout == task()["task_id"] + "\n"
    assert double.params("session.run")[0]["detach"] is True


def test_a_daemon_that_goes_while_it_is_written_to_is_a_sentence(double: Double, ctl: Ctl) -> None:
    def create_and_go(params: dict[str, Any], connection: Connection) -> object:
        connection.send(framing.result(1, session()) + b"\n")
        raise Hangup

    double.answers["session.create"] = create_and_go
    (ctl.folder / "a.txt").write_text("a" * (5 << 20))  # more than a socket takes before it is read
    done = ctl("run", "x", "-f", "a.txt")
    assert done.returncode == 69
    assert "closed the connection" in done.stderr


def test_ctrl_c_cancels_the_task_over_another_connection(double: Double, ctl: Ctl) -> None:
    def run(params: dict[str, Any], connection: Connection) -> object:
        connection.event("state", state="queued")
        connection.event("tool_call", seq=2, call_id="c", name="slow", arguments={}, status="in_progress")
        connection.wait_closed()
        raise Hangup

    double.answers["session.run"] = run
    double.answers["task.cancel"] = lambda params, connection: task(state="cancelled")
    with subprocess.Popen(
        [*AIOSCTL, "run", "x"], env=ctl.env, cwd=ctl.folder, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr
        assert process.stderr.readline() == b"slow {}\n"  # it has seen the events by now
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == 130
        assert process.stderr.read() == b"aiosctl: the task was cancelled\n"
    params, number = double.wait_for("task.cancel")
    assert params == {"task_id": task()["task_id"]}
    assert number != double.wait_for("session.run")[1]


def test_a_second_ctrl_c_leaves_at_once_and_says_how_to_come_back(double: Double, ctl: Ctl) -> None:
    def run(params: dict[str, Any], connection: Connection) -> object:
        connection.event("tool_call", call_id="c", name="slow", arguments={}, status="in_progress")
        connection.wait_closed()
        raise Hangup

    def cancel(params: dict[str, Any], connection: Connection) -> object:
        process.send_signal(signal.SIGINT)
        connection.wait_closed()
        raise Hangup

    double.answers |= {"session.run": run, "task.cancel": cancel}
    with subprocess.Popen(
        [*AIOSCTL, "run", "x"], env=ctl.env, cwd=ctl.folder, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr
        assert process.stderr.readline() == b"slow {}\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == 130
        said = process.stderr.read().decode()
    hint = f"  try: aiosctl attach {task()['task_id']}\n"
    assert said == "aiosctl: left at once: the task may go on\n" + hint


def test_ctrl_c_before_the_task_has_a_name_cancels_it_as_soon_as_it_has(double: Double, ctl: Ctl) -> None:
    def run(params: dict[str, Any], connection: Connection) -> object:
        process.send_signal(signal.SIGINT)
        assert process.stderr
        assert b"cancelling" in process.stderr.readline()
        connection.event("state", state="queued")
        connection.wait_closed()
        raise Hangup

    double.answers["session.run"] = run
    double.answers["task.cancel"] = lambda params, connection: task(state="cancelled")
    with subprocess.Popen(
        [*AIOSCTL, "run", "x"], env=ctl.env, cwd=ctl.folder, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        assert process.wait(WAIT_S) == 130
    assert double.wait_for("task.cancel")[0] == {"task_id": task()["task_id"]}


# --- standard input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "at_start", "parents", "expected"),
    [
        (0o100644, True, False, True),
        (0o100644, True, True, True),
        (0o100644, False, False, False),
        (0o010600, False, False, True),
        (0o010600, False, True, False),
        (0o140600, False, False, False),
        (0o020600, False, False, False),
        (0o060600, False, False, False),
    ],
)
def test_files_at_their_start_and_pipes_of_our_own_are_input(
    mode: int, at_start: bool, parents: bool, expected: bool
) -> None:
    assert inputs.is_input(mode, at_start=at_start, parents=parents) is expected


def test_without_a_task_standard_input_is_the_task(double: Double, ctl: Ctl) -> None:
    ctl("run", given="say\nhello\n")
    assert double.params("session.run")[0]["task"] == "say\nhello"


def test_with_a_task_what_is_piped_in_is_input(double: Double, ctl: Ctl) -> None:
    ctl("run", "x", given="grüße\n")
    assert double.params("session.run")[0]["inputs"] == [{"name": "stdin", "text": "grüße\n"}]


def test_an_empty_pipe_is_no_input(double: Double, ctl: Ctl) -> None:
    ctl("run", "x", given="")
    assert "inputs" not in double.params("session.run")[0]


def test_a_redirected_file_is_input_under_its_name_until_somebody_has_read_from_it(
    double: Double, ctl: Ctl, tmp_path: Path
) -> None:
    (ctl.folder / "below").mkdir()
    (ctl.folder / "below" / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "above.txt").write_text("up\n")
    done = ctl.shell(
        """set -e
        $AIOSCTL run x < below/a.txt
        $AIOSCTL run x < ../above.txt
        { read line; $AIOSCTL run x; } < below/a.txt
        { read line; $AIOSCTL run x -f -; } < below/a.txt
        $AIOSCTL run x <<< here
        """
    )
    assert done.returncode == 0, done.stderr
    assert [each.get("inputs") for each in double.params("session.run")] == [
        [{"name": "below/a.txt", "text": "one\ntwo\n"}],
        [{"name": str(tmp_path / "above.txt"), "text": "up\n"}],
        None,
        [{"name": "below/a.txt", "text": "two\n"}],
        [{"name": "stdin", "text": "here\n"}],
    ]


def test_a_loop_that_reads_lines_keeps_them(double: Double, ctl: Ctl) -> None:
    done = ctl.shell(
        """printf 'one\ntwo\nthree\n' | while read f; do $AIOSCTL run -- "$f"; done
        printf 'one\ntwo\n' > list; while read f; do $AIOSCTL run -- "$f"; done < list
        """
    )
    assert done.returncode == 0, done.stderr
    runs = double.params("session.run")
    assert [each["task"] for each in runs] == ["one", "two", "three", "one", "two"]
    assert not any("inputs" in each for each in runs)


def test_f_dash_reads_even_the_parents_pipe(double: Double, ctl: Ctl) -> None:
    ctl.shell("printf 'a\nb\n' | { $AIOSCTL run x -f -; true; }")
    assert double.params("session.run")[0]["inputs"] == [{"name": "stdin", "text": "a\nb\n"}]


def test_a_socket_a_device_and_nothing_at_all_are_no_input(double: Double, ctl: Ctl) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert ctl("run", "x", stdin=theirs).returncode == 0
    assert ctl.shell("$AIOSCTL run x < /dev/zero; $AIOSCTL run x <&-").stderr == ""
    assert [each.get("inputs") for each in double.params("session.run")] == [None, None, None]


def test_files_are_given_as_they_were_named_and_before_the_daemon_is_asked(double: Double, ctl: Ctl) -> None:
    (ctl.folder / "a.txt").write_text("A")
    (ctl.folder / "ü.txt").write_text("Ü")
    ctl("run", "x", "-f", "a.txt", "-f", "./ü.txt")
    assert double.params("session.run")[0]["inputs"] == [
        {"name": "a.txt", "text": "A"},
        {"name": "./ü.txt", "text": "Ü"},
    ]
    (ctl.folder / "binary").write_bytes(b"ab\xff")
    runs = len(double.params("session.create"))
    for name, status, sentence in [
        ("none.txt", 66, "none.txt: No such file or directory"),
        (".", 66, ".: Is a directory"),
        ("binary", 2, "binary is not UTF-8 text (byte 2)"),
        ("/dev/zero", 2, "/dev/zero has more than 8,388,608 bytes"),
    ]:
        done = ctl("run", "x", "-f", name)
        assert (done.returncode, done.stdout) == (status, "")
        assert done.stderr.startswith(f"aiosctl: {sentence}")
    assert len(double.params("session.create")) == runs


def test_a_request_that_no_line_can_hold_is_refused_here(double: Double, ctl: Ctl) -> None:
    (ctl.folder / "a.txt").write_text("a" * (5 << 20))
    done = ctl("run", "x", "-f", "a.txt", "-f", "a.txt")
    assert done.returncode == 2
    assert "a message may have 8,388,608" in done.stderr
