"""aiosctl as its users meet it, against a double of the daemon: verbs, ids, errors."""

from __future__ import annotations

import getpass
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
import typer

from aiosctl import main, tool
from aiosctl.client import Client
from aiosctl.options import seconds
from aiosctl.quick import title
from aiosd import errors
from aiosd.protocol.system import SystemPing
from tests.aiosctl_double import (
    AIOSCTL,
    WAIT_S,
    Connection,
    Ctl,
    Double,
    Hangup,
    giving,
    memory,
    raising,
    result,
    session,
    task,
)

# --- errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", sorted(errors.BY_CODE))
def test_every_error_of_the_daemon_has_its_exit_status(double: Double, ctl: Ctl, code: int) -> None:
    error = {"code": code, "message": "it broke", "data": {"hint": "mend it"}}
    line = {"jsonrpc": "2.0", "id": 1, "error": error}
    double.answers["system.ping"] = giving(json.dumps(line).encode() + b"\n")
    done = ctl("ping")
    assert (done.returncode, done.stdout) == (errors.BY_CODE[code].exit_status, "")
    assert done.stderr == "aiosctl: it broke\n  try: mend it\n"


def test_with_json_an_error_is_the_object_of_the_wire(double: Double, ctl: Ctl) -> None:
    error = {"code": -32123, "message": "from the future", "data": {"place": 3, "result": {"text": "half"}}}
    line = {"jsonrpc": "2.0", "id": 1, "error": error}
    double.answers["system.ping"] = giving(json.dumps(line).encode() + b"\n")
    done = ctl("ping", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert json.loads(done.stderr) == error


@pytest.mark.parametrize("args", [("--json", "ping"), ("ping", "--json")])
def test_json_prints_the_bytes_of_the_wire(double: Double, ctl: Ctl, args: tuple[str, ...]) -> None:
    raw = '{ "pid": 1.50e1, "pong":true,"version":"ü", "new": [ ] }'
    double.answers["system.ping"] = giving(f'{{"jsonrpc":"2.0","result":{raw},"id":1}}\n'.encode())
    done = ctl(*args)
    assert (done.returncode, done.stdout, done.stderr) == (0, raw + "\n", "")


@pytest.mark.parametrize(
    ("args", "sentence", "hint"),
    [
        (["nonsense"], "No such command 'nonsense'.", "aiosctl --help"),
        (["doktor"], "No such command 'doktor'. Did you mean 'doctor'?", "aiosctl --help"),
        (
            ["stats", "--since", "7x"],
            "Invalid value for '--since': '7x' is no time: seconds, or 500ms, 5s, 2m, 1h, 7d",
            "aiosctl stats --help",
        ),
        (["run", "--nonsense"], "No such option: --nonsense", "aiosctl run --help"),
        (["session"], "Missing command.", "aiosctl session --help"),
        (["task", "show"], "Missing argument 'ID'.", "aiosctl task show --help"),
        (["run", "x", "--deadline", "soon"], "Invalid value for '--deadline'", "aiosctl run --help"),
        (["run", "x", "-s", "y", "--write", "--agent", "z"], "--agent, --write is for a new session", None),
        (["run", "x", "--schema", "no.json"], "no.json: No such file or directory", None),
        (["run"], "the task is missing", ""),
        (["run", " "], "the task is empty", ""),
        (["run", "-f", "-"], "standard input cannot be both the task and a file", ""),
        (["memory", "forget"], "say what to forget", "aiosctl memory forget --help"),
        (["memory", "remember"], "the text is missing", ""),
    ],
)
def test_a_wrong_command_line_says_so_in_one_form(
    ctl: Ctl, args: list[str], sentence: str, hint: str | None
) -> None:
    done = ctl(*args)
    assert done.returncode == (66 if "no.json" in args else 2)
    assert done.stdout == ""
    assert done.stderr.startswith(f"aiosctl: {sentence}")
    assert ("  try: " in done.stderr) is (hint is not None)
    assert f"  try: {hint or ''}" in done.stderr or hint is None


def test_a_wrong_command_line_with_json_is_an_error_object_too(ctl: Ctl) -> None:
    done = ctl("task", "show", "--json")
    assert done.returncode == 2
    assert json.loads(done.stderr)["code"] == -32602


# --- what can be wrong with the daemon -------------------------------------------------------------------


@pytest.mark.parametrize("args", [["--no-start"], ["--socket", "/nowhere/at all"]])
def test_without_a_daemon_and_without_leave_to_start_one_it_is_69(ctl: Ctl, args: list[str]) -> None:
    done = ctl("ping", *args)
    assert (done.returncode, done.stdout) == (69, "")
    assert done.stderr.startswith("aiosctl: no daemon answers on /")
    assert "\n  try: " in done.stderr


def test_a_connection_dropped_in_a_run_is_a_sentence_that_names_the_task(double: Double, ctl: Ctl) -> None:
    def drop(params: dict[str, Any], connection: Connection) -> object:
        connection.event("state", state="queued")
        raise Hangup

    double.answers["session.run"] = drop
    done = ctl("run", "x")
    assert (done.returncode, done.stdout) == (69, "")
    assert "closed the connection" in done.stderr
    assert f"try: aiosctl task show {task()['task_id']}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("sent", "sentence"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak aiosd's protocol"),
        (b'{"jsonrpc":"2.0","result":1}\n', "does not speak aiosd's protocol"),
        (b'{"jsonrpc":"2.0","id":99,"result":1}\n', "does not speak aiosd's protocol"),
        (b"x" * (9 << 20), "does not speak aiosd's protocol: a line passed"),
        (b'{"jsonrpc":"2.0","id":1,"result":{"pong":true}}\n', "something this aiosctl does not know"),
        (b"\xff\xfe\n", "does not speak aiosd's protocol"),
    ],
)
def test_garbage_from_the_socket_is_a_sentence(double: Double, ctl: Ctl, sent: bytes, sentence: str) -> None:
    double.answers["system.ping"] = giving(sent)
    done = ctl("ping")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("aiosctl: ")
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_a_daemon_that_never_answers_is_left_at_the_deadline(double: Double) -> None:
    double.answers["system.ping"] = lambda params, connection: connection.wait_closed()
    with Client(double.path) as client, pytest.raises(errors.DeadlineExceeded, match="within 0.05 s"):
        client.call(SystemPing(), timeout_s=0.05)


def test_a_connection_reset_is_a_sentence(ctl: Ctl, tmp_path: Path) -> None:
    """A daemon that is killed with our request unread: the kernel resets the connection."""
    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor(1) as beside:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        pinging = beside.submit(ctl, "ping", "--no-start")
        connection, _ = listener.accept()
        connection.recv(1)
        connection.close()
        done = pinging.result()
    assert (done.returncode, done.stdout) == (69, "")
    assert "closed the connection" in done.stderr


def test_what_the_daemon_says_before_it_closes_is_heard(double: Double, ctl: Ctl) -> None:
    def refuse(params: dict[str, Any], connection: Connection) -> object:
        line = {"jsonrpc": "2.0", "id": None, "error": {"code": -32003, "message": "not your daemon"}}
        connection.send(json.dumps(line).encode() + b"\n")
        raise Hangup

    double.answers["system.ping"] = refuse
    done = ctl("ping")
    assert (done.returncode, done.stderr) == (77, "aiosctl: not your daemon\n")


def test_a_bug_in_the_daemon_points_to_its_log(double: Double, ctl: Ctl) -> None:
    double.answers["system.ping"] = raising(errors.InternalError(""))
    ctl.env["AIOSD_HOME"] = "/home/of/it"
    done = ctl("ping")
    assert done.stderr == "aiosctl: Internal error\n  try: tail /home/of/it/state/aiosd.log\n"


def test_debug_shows_the_wire(double: Double, ctl: Ctl) -> None:
    done = ctl("ping", "--debug")
    assert '> {"jsonrpc":"2.0","id":1,"method":"system.ping"' in done.stderr
    assert '< {"jsonrpc":"2.0","result":{"pong":true' in done.stderr


# --- the other verbs -------------------------------------------------------------------------------------


def test_create_prints_the_id_alone_and_lists_have_no_headings(double: Double, ctl: Ctl) -> None:
    double.answers["session.list"] = giving({"sessions": [session(title="a\tb\nc")], "next_cursor": "more"})
    created = ctl("session", "create", "notes", "--permissions", "read", "--workspace", "")
    assert created.stdout == session()["session_id"] + "\n"
    assert double.params("session.create")[0] == {"title": "notes", "permissions": ["read"]}
    listed = ctl("session", "list", "--limit", "1")
    id = session()["session_id"]
    assert listed.stdout == f"{id}\topen\t2026-11-22T18:00:00Z\tada\t-\ta b c\n"
    assert listed.stderr == "aiosctl: there are more; go on with: aiosctl session list --cursor more\n"
    assert ctl("session", "list", "-q").stdout == id + "\n"


def test_closing_and_deleting_name_the_session(double: Double, ctl: Ctl) -> None:
    double.answers["session.delete"] = giving(None)
    id = session()["session_id"]
    assert ctl("session", "close", id).stdout == f"closed {id}\n"
    assert ctl("session", "delete", id, "--forget").stdout == f"deleted {id}\n"
    assert double.params("session.delete")[0] == {"session_id": id, "forget": True}
    assert ctl("session", "delete", id, "--json").stdout == "null\n"


def test_waiting_for_a_task_gives_its_answer_as_run_does(double: Double, ctl: Ctl) -> None:
    double.answers["task.wait"] = giving(result())
    assert ctl("task", "wait", task()["task_id"], "--deadline", "2m").stdout == "hello\n"
    assert double.params("task.wait")[0] == {"task_id": task()["task_id"], "timeout_s": 120.0}


def test_tasks_are_listed_shown_and_cancelled(double: Double, ctl: Ctl) -> None:
    double.answers["task.list"] = giving({"tasks": [task()]})
    double.answers["task.get"] = giving(task(result=result()))
    double.answers["task.cancel"] = giving(task(state="cancelled"))
    line = f"7\t{task()['task_id']}\tqueued\t2026-11-22T18:00:00Z\t0\t0\tsay hello\n"
    assert ctl("task", "list").stdout == line
    shown = ctl("task", "show", "7").stdout.splitlines()
    assert "number\t7" in shown and "result\thello" in shown and "backend\tsmall" in shown
    double.answers["task.get"] = giving(task(state="failed", error={"code": -32007, "message": "time is up"}))
    assert "error\ttime is up\n" in ctl("task", "show", "7").stdout
    assert ctl("task", "cancel", "@last").stdout == "task 7 cancelled\n"


def test_a_tree_shows_each_task_under_the_one_that_started_it(double: Double, ctl: Ctl) -> None:
    def of(number: int, parent: int | None) -> dict[str, Any]:
        parent_id = None if parent is None else f"t{parent}"
        return task(task_id=f"t{number}", number=number, parent_id=parent_id, task=f"n{number}")

    listed = [of(n, parent) for n, parent in ((6, 99), (5, None), (4, 2), (3, 1), (2, 1), (1, None))]
    double.answers["task.list"] = giving({"tasks": listed})
    shown = [line.split("\t")[-1] for line in ctl("task", "list", "--tree").stdout.splitlines()]
    assert shown == ["n6", "n5", "n1", "↳ n2", "↳ ↳ n4", "↳ n3"]


def test_memory_is_the_login_users_unless_a_session_is_named(double: Double, ctl: Ctl) -> None:
    me = getpass.getuser()
    double.answers["memory.recall"] = giving({"memories": [memory(score=0.5)]})
    double.answers["memory.list"] = giving({"memories": [memory()]})
    double.answers["memory.get"] = giving(memory())
    double.answers["memory.forget"] = giving({"forgotten": 2})
    id = memory()["memory_id"]
    line = f"0.50\t{id}\t2026-11-22T18:00:00Z\tnote\t{memory()['content']}\n"
    assert ctl("memory", "recall", "port", "-n", "3", "--as-of", "2026-05-01T00:00Z").stdout == line
    recalled = double.params("memory.recall")[0]
    assert recalled == {"query": "port", "user_id": me, "n": 3, "as_of": recalled["as_of"]}
    assert ctl("memory", "list", "-q", "-s", session()["session_id"]).stdout == id + "\n"
    assert double.params("memory.list")[0] == {"session_id": session()["session_id"]}
    assert f"memory_id\t{id}\n" in ctl("memory", "show", "333").stdout
    assert ctl("memory", "forget", "--source", "tool:x", "--dry-run").stdout == "would forget 2 memories\n"
    assert double.params("memory.forget")[0] == {"source": "tool:x", "user_id": me, "dry_run": True}
    assert ctl("memory", "forget", id).stdout == "forgot 2 memories\n"
    assert double.params("memory.forget")[1] == {"memory_id": id}


def test_remember_uses_your_last_open_session_or_makes_one(double: Double, ctl: Ctl) -> None:
    me = getpass.getuser()
    mine = session(session_id="44444444-0000-4000-8000-000000000004", user_id=me)
    double.answers["session.list"] = giving({"sessions": [session(user_id="somebody else"), mine]})
    double.answers["memory.remember"] = giving({"memory_id": "m"})
    assert ctl("memory", "remember", "a fact").stdout == "m\n"
    double.answers["session.list"] = giving({"sessions": []})
    assert ctl("memory", "remember", given="piped\n").stdout == "m\n"
    assert double.params("session.create") == [{"title": "aiosctl"}]
    assert double.params("memory.remember") == [
        {"session_id": mine["session_id"], "content": "a fact"},
        {"session_id": session()["session_id"], "content": "piped"},
    ]


def test_a_tool_is_called_with_arguments_of_its_types_in_a_session_of_its_own(
    double: Double, ctl: Ctl
) -> None:
    properties = {"text": {"type": "string"}, "n": {"type": "integer"}, "deep": {"type": "boolean"}}
    shown = {
        "name": "search",
        "description": "",
        "inputSchema": {"type": "object", "properties": properties},
        "annotations": {},
        "permissions": ["read"],
        "rate_limit": None,
    }
    double.answers["tool.get"] = giving(shown)
    double.answers["tool.call"] = giving({"content": [{"type": "text", "text": "found"}], "isError": False})
    assert ctl("tool", "call", "search", "text=5=5", "n=5", "deep=true").stdout == "found\n"
    called = double.params("tool.call")[0]
    assert called["arguments"] == {"text": "5=5", "n": 5, "deep": True}
    assert double.params("session.create")[0] == {"title": "tool call search", "workspace": str(ctl.folder)}
    assert double.params("session.close")[0] == {"session_id": called["session_id"]}
    assert "name\tsearch\n" in ctl("tool", "show", "search").stdout


def test_a_tool_that_fails_is_an_error_here_too(double: Double, ctl: Ctl) -> None:
    failed = {"content": [{"type": "text", "text": "no such file"}], "isError": True}
    double.answers["tool.call"] = giving(failed)
    done = ctl("tool", "call", "read_file", "--args", '{"path": "x"}', "-s", session()["session_id"])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("aiosctl: read_file: no such file\n")
    assert double.params("session.create") == double.params("session.close") == []
    documented = ctl("tool", "call", "read_file", "--args", "{}", "-s", session()["session_id"], "--json")
    assert (documented.returncode, json.loads(documented.stdout)) == (1, failed)


def test_ctrl_c_in_a_tool_call_ends_its_session(double: Double, ctl: Ctl) -> None:
    double.answers["tool.call"] = lambda params, connection: connection.wait_closed()
    with subprocess.Popen(
        [*AIOSCTL, "tool", "call", "slow", "--args", "{}"],
        env=ctl.env,
        cwd=ctl.folder,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        double.wait_for("tool.call")
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == 130
        assert process.stderr and process.stderr.read() == b""
    assert double.wait_for("session.close")[1] != double.wait_for("tool.call")[1]


def test_the_daemon_tools_models_and_agents_are_listed(double: Double, ctl: Ctl) -> None:
    backend = {
        "name": "small",
        "kind": "ollama",
        "model": "llama3.2",
        "url": None,
        "local": True,
        "tiers": ["fast", "balanced"],
        "state": "down",
        "reason": "connection refused",
        "slots": 1,
        "in_flight": 0,
        "price_in": 0.0,
        "price_out": 0.0,
    }
    info = {
        "version": "0.1.0",
        "protocol": 1,
        "uptime_s": 3.2,
        "paths": {"config": "/c.toml"},
        "sandbox": "none",
        "embedder": "none",
        "counts": {"sessions": 2},
        "backends": ["small"],
    }
    double.answers["model.list"] = giving({"backends": [backend]})
    double.answers["agent.list"] = giving(
        {"agents": [{"name": "a", "tier": "fast", "permissions": ["read"], "system": "Be brief."}]}
    )
    double.answers["system.info"] = giving(info)
    row = "small\tdown\tfast balanced\tllama3.2\t-\t0\t0/1\t-\t-\t-\t-\tconnection refused\n"
    assert ctl("model", "list").stdout == row
    assert ctl("agent", "list").stdout == "a\tfast\tread\tBe brief.\n"
    assert "paths" not in (status := ctl("status").stdout)
    assert "uptime\t3 s\n" in status and "config\t/c.toml\n" in status
    assert ctl("ping").stdout == f"aiosd 0.1.0 (pid {os.getpid()})\n"


# --- pure parts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"), [("5", 5), ("5s", 5), ("500ms", 0.5), ("1.5m", 90), ("2h", 7200), ("0.1", 0.1)]
)
def test_times_are_seconds_unless_they_say_otherwise(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "0", "-1", "5 s", "1e3", "nan", "five", "5w"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is no time"):
        seconds(text)


def test_a_title_is_the_first_words() -> None:
    assert title("  sum\nit up ") == "sum it up"
    assert len(title("word " * 1000)) <= 48
    assert title("x" * 100) == "x" * 48


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "string"}, "5"),
        ({"type": ["string", "null"]}, "5"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "5"),
        ({"enum": ["5", "6"]}, "5"),
        ({"const": "5"}, "5"),
        ({"type": "integer"}, 5),
        ({"anyOf": [{"type": "number"}, {"type": "null"}]}, 5),
        ({}, 5),
    ],
)
def test_a_value_is_text_where_the_tool_takes_text(schema: dict[str, Any], value: object) -> None:
    assert tool.by_name(["x=5"], {"properties": {"x": schema}}) == {"x": value}
    assert tool.by_name(["x=a b"], {"properties": {"x": schema}}) == {"x": "a b"}


@pytest.mark.parametrize("pairs", [["x"], ["x=1", "x=2"]])
def test_arguments_that_are_no_pairs_or_come_twice_are_refused(pairs: list[str]) -> None:
    with pytest.raises(errors.InvalidParams):
        tool.by_name(pairs, {})


def _verbs(command: Any, path: str) -> Iterator[tuple[str, str]]:
    context = command.make_context(path, [], resilient_parsing=True)
    for name in command.list_commands(context) if hasattr(command, "list_commands") else ():
        yield from _verbs(command.get_command(context, name), f"{path} {name}")
    if not hasattr(command, "list_commands"):
        yield path, command.help


VERBS = dict(_verbs(typer.main.get_command(main.app), "aiosctl"))


@pytest.mark.parametrize("path", VERBS)
def test_the_help_of_every_verb_shows_an_example(path: str) -> None:
    _, marked, example = VERBS[path].partition("\b\n")
    assert marked and path in example


def test_all_verbs_are_there() -> None:
    nouns = {
        "session": ("create", "list", "show", "close", "delete"),
        "task": ("list", "show", "wait", "cancel", "priority", "resolve"),
        "tool": ("list", "show", "call"),
        "memory": ("recall", "remember", "list", "show", "forget"),
        "model": ("list", "route", "infer", "setup", "pull", "key"),
        "budget": ("show", "set"),
        "agent": ("list",),
        "config": ("path", "show", "check", "edit"),
    }
    verbs = {f"aiosctl {noun} {verb}" for noun, verbs in nouns.items() for verb in verbs}
    alone = (
        "run",
        "ps",
        "attach",
        "wait",
        "kill",
        "why",
        "stats",
        "ping",
        "status",
        "logs",
        "completion",
        "doctor",
    )
    assert verbs | {f"aiosctl {verb}" for verb in alone} <= set(VERBS)


BANNED = {
    *("asyncio", "anyio", "pydantic", "openai", "ollama", "qdrant_client", "qdrant_edge"),
    *("onnxruntime", "sqlite3", "rich", "httpx"),
}


def test_importing_it_loads_nothing_slow() -> None:
    code = "import sys, aiosctl.main; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=WAIT_S
    )
    assert not set(done.stdout.split()) & BANNED


def test_the_installed_script_is_the_same_command(double: Double, ctl: Ctl) -> None:
    script = Path(main.__file__).with_name("aiosctl")
    assert script.read_text().startswith("#!python\n")
    done = subprocess.run(
        [sys.executable, "-P", str(script), "ping"],
        check=False,
        env=ctl.env,
        capture_output=True,
        timeout=WAIT_S,
    )
    assert (done.returncode, done.stderr) == (0, b"")
