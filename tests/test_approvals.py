"""Calls that ask their user first: over the socket, on a terminal, and over the daemon's end."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import anyio.to_thread
import msgspec
import pytest

from aiosctl.client import Client
from aiosd import records as r
from aiosd.audit import Audit
from aiosd.config import Config
from aiosd.errors import InvalidState, NotFound
from aiosd.protocol.approvals import ApprovalList, ApprovalRevoke, TaskApprove
from aiosd.protocol.audit import AuditTail
from aiosd.protocol.sessions import SessionRun
from aiosd.protocol.tasks import TaskAttach, TaskGet, TaskList, TaskWait
from aiosd.protocol.tools import ToolCall, ToolExplain
from aiosd.secrets import Secrets
from aiosd.state.database import open_database
from aiosd.tasks.approval import Approvals
from tests.aiosctl_double import AIOSCTL, Ctl
from tests.daemon import PATIENCE_S, Daemon
from tests.doubles.http_double import Script
from tests.doubles.ollama_double import OllamaDouble
from tests.terminals import OnTerminal

pytestmark = pytest.mark.anyio

T = TypeVar("T")

TOOLS = """
from aiosd.tools import tool

@tool(permissions=["notes"])
def note(path: str, line: str) -> str:
    "Append a line to a file."
    with open(path, "a") as file:
        file.write(line + "\\n")
    return "noted " + line
"""


async def aside(work: Callable[[], T]) -> T:
    return await anyio.to_thread.run_sync(work)


def calling(*lines: str, path: str = "notes.txt") -> Script:
    return Script(text=(), calls=tuple(("note", json.dumps({"path": path, "line": line})) for line in lines))


class AskedAgain(Exception):
    """The second request for one call has come."""


class Setting:
    """A daemon with the tool `note`, a model that calls it, and a session that has to ask before it does."""

    def __init__(self, tmp_path: Path, model: OllamaDouble) -> None:
        home = tmp_path / "home"
        (home / "tools").mkdir(parents=True)
        (home / "tools" / "notes.py").write_text(TOOLS)
        self.folder = tmp_path / "work"
        self.folder.mkdir()
        config = f'[models.backends.small]\nkind = "ollama"\nmodel = "small"\nurl = "{model.url}"\n'
        self.daemon = Daemon(home, f'default_permissions = ["?notes"]\n{config}')

    def session(self, *permissions: str) -> r.Session:
        return self.daemon.session(
            permissions=permissions or ("?notes",), workspace=str(self.folder), write=True
        )

    @property
    def effects(self) -> list[str]:
        path = self.folder / "notes.txt"
        return path.read_text().split() if path.exists() else []

    def answering(
        self, session: r.Session, *decisions: r.ApprovalDecision, **fields: Any
    ) -> list[r.AnyEvent]:
        """Runs a task, answers what it asks in this order, and gives all its events."""
        events: list[r.AnyEvent] = []
        left = list(decisions)

        def hear(method: str, params: msgspec.Raw) -> None:
            event = msgspec.json.decode(params, type=r.AnyEvent)
            events.append(event)
            if isinstance(event, r.ApprovalEvent) and event.decision is None:
                assert self.daemon.call(TaskGet(task_id=event.task_id)).state == "input_required"
                word = TaskApprove(task_id=event.task_id, call_id=event.call_id, decision=left.pop(0))
                self.daemon.call(word)

        with Client(self.daemon.socket) as client:
            params = SessionRun(session_id=session.session_id, task="Note it", stream=True, **fields)
            result = client.call(params, timeout_s=PATIENCE_S, on_notification=hear)
        assert (result.state, left) == ("completed", [])
        return events


def words(events: list[r.AnyEvent]) -> list[tuple[str | None, str | None]]:
    return [(e.decision, e.by) for e in events if isinstance(e, r.ApprovalEvent)]


async def test_a_call_waits_for_its_users_word_and_always_and_never_are_kept(tmp_path: Path) -> None:
    async with OllamaDouble(Script(text=("Done.",))) as model:
        setting = Setting(tmp_path, model)

        def run(*decisions: r.ApprovalDecision, session: r.Session | None = None) -> list[r.AnyEvent]:
            model.scripts = [calling("x")]
            return setting.answering(session or setting.session(), *decisions)

        def told() -> str:
            content: str = model.chats()[-1]["messages"][-1]["content"]
            return content

        def work() -> None:
            with setting.daemon as daemon:
                events = run("allow_once")
                assert words(events) == [(None, None), ("allow_once", "user")]
                states = [e.state for e in events if isinstance(e, r.StateEvent)]
                assert states == ["queued", "working", "input_required", "working", "completed"]
                assert setting.effects == ["x"]

                run("reject_once")
                assert setting.effects == ["x"] and "its user said no" in told()

                run("allow_always")
                assert setting.effects == ["x", "x"]
                assert words(run()) == [] and len(setting.effects) == 3  # another session of the user's
                (rule,) = daemon.call(ApprovalList()).rules
                assert rule.rule == f"note({setting.folder}/notes.txt)"
                model.scripts = [calling("y", path="other.txt")]
                assert (
                    len(words(setting.answering(setting.session(), "reject_once"))) == 2
                )  # another path asks

                daemon.call(ApprovalRevoke(rule_id=rule.rule_id))
                with pytest.raises(NotFound):
                    daemon.call(ApprovalRevoke(rule_id=rule.rule_id))
                run("reject_always")
                assert words(run()) == [] and "never" in told() and len(setting.effects) == 3
                with pytest.raises(InvalidState, match="no such call waits"):
                    task_id = events[0].task_id
                    daemon.call(TaskApprove(task_id=task_id, call_id="call_0", decision="allow_once"))

                assert words(run(session=setting.session("notes"))) == []  # allowed without asking
                assert len(setting.effects) == 4
                model.scripts = [calling("x")]
                setting.answering(setting.session("!notes"))  # no `always` could help it
                assert len(setting.effects) == 4 and "may not use `note`" in told()
                kinds = [
                    (e.kind, e.detail["decision"])
                    for e in daemon.call(AuditTail(n=100)).entries
                    if e.kind != "result"
                ]
                assert kinds[:4] == [
                    ("approval", "allow_once"),
                    ("call", "allow"),
                    ("approval", "reject_once"),
                    ("approval", "allow_always"),
                ]

        await aside(work)


async def test_calls_of_one_reply_are_asked_about_each(tmp_path: Path) -> None:
    async with OllamaDouble(Script(text=("Done.",))) as model:
        setting = Setting(tmp_path, model)
        model.scripts = [calling("a", "b", "c")]

        def work() -> None:
            with setting.daemon:
                events = setting.answering(setting.session(), "allow_once", "reject_once", "allow_once")
                assert len(words(events)) == 6

        await aside(work)
        assert len(setting.effects) == 2


@pytest.mark.parametrize("fields", [{"stream": False}, {"stream": True, "approve": "never"}])
async def test_where_nobody_can_answer_the_answer_is_no_at_once(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    async with OllamaDouble(Script(text=("Done.",))) as model:
        setting = Setting(tmp_path, model)
        model.scripts = [calling("x")]

        def work() -> None:
            with setting.daemon as daemon:
                assert daemon.run(setting.session(), "Note it", **fields).result == "Done."

        await aside(work)
        assert setting.effects == []
        assert "nobody was there" in model.chats()[-1]["messages"][-1]["content"]


async def test_a_request_is_asked_again_after_kill_9_and_answered_from_a_shell(tmp_path: Path) -> None:
    async with OllamaDouble(Script(text=("Done.",))) as model:
        setting = Setting(tmp_path, model)
        model.scripts = [calling("x")]

        def work() -> None:
            with setting.daemon as daemon:
                session = setting.session()
                asked: SimpleQueue[str] = SimpleQueue()

                def watch() -> None:
                    def hear(method: str, params: msgspec.Raw) -> None:
                        event = msgspec.json.decode(params, type=r.AnyEvent)
                        if isinstance(event, r.ApprovalEvent):
                            asked.put(event.task_id)

                    with Client(daemon.socket) as client, pytest.raises(Exception, match="closed"):
                        params = SessionRun(session_id=session.session_id, task="Note it", stream=True)
                        client.call(params, timeout_s=PATIENCE_S, on_notification=hear)

                watcher = threading.Thread(target=watch)
                watcher.start()
                task_id = asked.get(timeout=PATIENCE_S)
                daemon.kill()
                watcher.join(PATIENCE_S)
                daemon.start()
                assert setting.effects == []
                requests: list[r.ApprovalEvent] = []

                def hear_again(method: str, params: msgspec.Raw) -> None:
                    event = msgspec.json.decode(params, type=r.AnyEvent)
                    if isinstance(event, r.ApprovalEvent):
                        requests.append(event)
                        if len(requests) == 2:
                            raise AskedAgain

                with Client(daemon.socket) as client, pytest.raises(AskedAgain):
                    attach = TaskAttach(task_id=task_id)
                    client.call(attach, timeout_s=PATIENCE_S, on_notification=hear_again)
                assert [each.task_id for each in daemon.call(ApprovalList()).waiting] == [task_id]
                assert daemon.call(TaskGet(task_id=task_id)).state == "input_required"
                listed = daemon.ctl("approvals", "list").stdout
                assert "waits" in listed and "notes.txt" in listed
                done = daemon.ctl("approvals", "answer", "@last", "yes")
                assert done.returncode == 0, done.stderr
                assert daemon.call(TaskWait(task_id=task_id)).result == "Done."
                again = daemon.ctl("approvals", "answer", "@last", "y")
                assert (again.returncode, again.stdout) == (1, "")
                assert daemon.ctl("approvals", "answer", "@last", "perhaps").returncode == 2

        await aside(work)
        assert setting.effects == ["x"]


def ctl_of(setting: Setting) -> Ctl:
    ctl = Ctl.__new__(Ctl)
    ctl.folder = setting.folder
    ctl.env = setting.daemon.environ | {"AIOSCTL": " ".join(AIOSCTL)}
    return ctl


async def test_a_run_inside_a_pipeline_asks_on_the_terminal(tmp_path: Path, on_terminal: OnTerminal) -> None:
    async with OllamaDouble(Script(text=("Done.",))) as model:
        setting = Setting(tmp_path, model)
        model.scripts = [calling("x\x1b[2J")]

        def work() -> str:
            with setting.daemon:
                line = 'echo text | $AIOSCTL run --write "Note it" 2>/dev/null | tr a-z A-Z'
                terminal = on_terminal(ctl_of(setting), "-c", line, command=["/bin/sh"])
                terminal.until("allow it? [y/n/always/never]")
                terminal.type(b"what?\n")
                terminal.until("what?\r\n  allow it?")
                terminal.type(b"y\n")
                status, seen = terminal.end()
                assert status == 0
                return seen

        seen = await aside(work)
        assert "its permissions ask with `?notes`" in seen and "always keeps the rule note(" in seen
        assert "DONE." in seen
        assert "\x1b[2J" not in seen  # what a model says commands no terminal
        assert setting.effects == ["x\x1b[2J"]


async def test_an_answer_from_another_terminal_withdraws_the_question(
    tmp_path: Path, on_terminal: OnTerminal
) -> None:
    async with OllamaDouble(Script(text=("Done.",))) as model:
        setting = Setting(tmp_path, model)
        model.scripts = [calling("x")]

        def work() -> None:
            with setting.daemon as daemon:
                terminal = on_terminal(ctl_of(setting), "run", "--write", "Note it")
                terminal.until("allow it?")
                assert daemon.ctl("approvals", "answer", "@last", "always").returncode == 0
                terminal.until("(answered elsewhere)")
                status, seen = terminal.end()
                assert status == 0 and "Done." in seen
                (rule,) = daemon.call(ApprovalList()).rules
                assert daemon.ctl("approvals", "list", "-q").stdout == f"{rule.rule_id}\n"
                assert daemon.ctl("approvals", "revoke", rule.rule_id[:6]).stdout == f"revoked {rule.rule}\n"
                assert daemon.call(ApprovalList()).rules == ()
                assert daemon.ctl("approvals", "revoke", "zzz").returncode == 66
                attached = on_terminal(ctl_of(setting), "attach", "@last")  # a replay asks nothing again
                status, seen = attached.end()
                assert status == 0 and "allow it?" not in seen

        await aside(work)
        assert setting.effects == ["x"]


def delegating(body: dict[str, Any]) -> Script:
    """Of the task `Delegate` two children, each of which notes something; their calls have the same ids."""
    messages = body["messages"]
    given = [m["content"] for m in messages if m["role"] == "tool"]
    if given:
        return Script(text=(" + ".join(given),))
    if messages[-1]["content"].startswith("Note"):
        return calling("x")
    return Script(text=(), calls=tuple(("spawn", json.dumps({"task": f"Note {n}"})) for n in (1, 2)))


async def test_what_a_child_asks_is_asked_where_its_parent_is_watched(
    tmp_path: Path, on_terminal: OnTerminal
) -> None:
    async with OllamaDouble(Script(text=("Done.",))) as model:
        setting = Setting(tmp_path, model)
        model.choose = delegating

        def work() -> str:
            with setting.daemon as daemon:
                session = setting.session("?notes", "spawn")
                terminal = on_terminal(ctl_of(setting), "run", "-s", session.session_id, "Delegate")
                terminal.until("allow it?")
                terminal.type(b"y\n")
                terminal.until("allow it?")
                asked: list[r.ApprovalEvent] = []

                def hear(method: str, params: msgspec.Raw) -> None:
                    event = msgspec.json.decode(params, type=r.AnyEvent)
                    if isinstance(event, r.ApprovalEvent) and event.decision is None:
                        asked.append(event)
                        word = TaskApprove(
                            task_id=event.task_id, call_id=event.call_id, decision="reject_once"
                        )
                        daemon.call(word)

                parent = next(t for t in daemon.call(TaskList()).tasks if t.parent_id is None)
                with Client(daemon.socket) as client:  # who comes later is told what waits
                    client.call(TaskAttach(task_id=parent.task_id), on_notification=hear)
                assert len(asked) == 1 and asked[0].task_id != parent.task_id
                terminal.until("(answered elsewhere)")
                status, seen = terminal.end()
                assert status == 0
                return seen

        seen = await aside(work)
        assert "for task 2: Note " in seen and "for task 3: Note " in seen
        assert "noted x" in seen and "its user said no" in seen
        assert setting.effects == ["x"]


async def test_a_parent_that_waits_for_its_child_is_nobody_who_could_say_yes(tmp_path: Path) -> None:
    async with OllamaDouble(Script(text=("Done.",))) as model:
        setting = Setting(tmp_path, model)
        model.choose = delegating

        def work() -> None:
            with setting.daemon as daemon:
                result = daemon.run(setting.session("?notes", "spawn"), "Delegate")
                assert str(result.result).count("nobody was there who could say yes") == 2

        await aside(work)
        assert setting.effects == []


async def test_without_a_terminal_a_run_says_no_and_why(tmp_path: Path) -> None:
    async with OllamaDouble(Script(text=("Done.",))) as model:
        setting = Setting(tmp_path, model)
        model.scripts = [calling("x")]

        def work() -> subprocess.CompletedProcess[str]:
            with setting.daemon as daemon:
                return subprocess.run(
                    [sys.executable, "-m", "aiosctl", "run", "--write", "Note it"],
                    env=daemon.environ,
                    cwd=setting.folder,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    timeout=PATIENCE_S,
                    start_new_session=True,
                    check=False,
                )

        done = await aside(work)
        assert (done.returncode, done.stdout) == (0, "Done.\n")
        assert "no terminal to ask on" in done.stderr
        assert setting.effects == []


async def test_a_word_that_does_not_come_in_time_is_none(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    request = r.ApprovalEvent(
        task_id="t", seq=1, at=now, call_id="c", name="note", arguments={}, why="it asks", rule=None
    )
    async with open_database(tmp_path / "db") as database:
        approvals = Approvals(database, Audit(database, Secrets(Config(), {})))
        session: Any = None  # nothing is kept for it
        assert await approvals.word(request, session, timeout_s=0.01) is None
        assert approvals.waiting == ()


async def test_twenty_steps_in_ones_own_workspace_ask_nothing(tmp_path: Path) -> None:
    steps: list[tuple[str, dict[str, Any]]] = [
        ("write_file", {"path": "src/a.py", "content": "print(1)\n"}),
        ("read_file", {"path": "src/a.py"}),
        ("edit_file", {"path": "src/a.py", "old": "1", "new": "42"}),
        ("run_command", {"argv": ["python3", "src/a.py"]}),
        ("list_files", {}),
        ("search_files", {"text": "42"}),
        ("count", {"path": "src/a.py"}),
    ]
    async with OllamaDouble(Script(text=("Done.",))) as model:
        model.scripts = [
            Script(text=(), calls=((name, json.dumps(arguments)),)) for name, arguments in (steps * 3)[:20]
        ]
        config = f"""
            [models.backends.small]
            kind = "ollama"
            model = "small"
            url = "{model.url}"
            [tools.commands.count]
            argv = ["wc", "-w", "{{path}}"]
            permissions = ["read"]
        """

        def work() -> list[r.AnyEvent]:
            with Daemon(tmp_path / "home", config) as daemon, Client(daemon.socket) as client:
                events: list[r.AnyEvent] = []
                session = daemon.session(permissions=("read", "write", "run"))
                client.call(
                    SessionRun(session_id=session.session_id, task="Work", stream=True, max_steps=30),
                    timeout_s=PATIENCE_S,
                    on_notification=lambda method, params: events.append(
                        msgspec.json.decode(params, type=r.AnyEvent)
                    ),
                )
                return events

        events = await aside(work)
    results = [e for e in events if isinstance(e, r.ToolResultEvent)]
    assert len(results) == 20 and not words(events)
    assert {e.status for e in results} == {"completed"}, [e.text for e in results if e.status != "completed"]
    assert results[3].text == "42\n" and results[6].text.split() == ["1", "src/a.py"]


def test_explain_says_which_rule_decides_and_calls_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "tools").mkdir(parents=True)
    (home / "tools" / "notes.py").write_text(TOOLS)
    with Daemon(home) as daemon:
        session = daemon.session(permissions=("?notes", "!note(secret/**)"), workspace=str(home.parent))
        sid = session.session_id
        asked = daemon.call(ToolExplain(session_id=sid, name="note", arguments={"path": "./a", "line": ""}))
        assert (asked.decision, asked.rule, asked.about) == ("ask", "?notes", (f"{tmp_path}/a",))
        assert asked.always == f"note({tmp_path}/a)"
        done = daemon.ctl("tool", "explain", sid, "note", "path=secret/../secret/k", "line=x")
        assert done.returncode == 0 and "!note(secret/**)" in done.stdout and "deny" in done.stdout
        assert not daemon.call(AuditTail()).entries
        (home.parent / "a").touch()
        with pytest.raises(NotFound):
            daemon.call(ToolExplain(session_id=sid, name="nothing"))
        # The owner's own call is not asked about; what is denied stays denied.
        owner = ToolCall(session_id=sid, name="note", arguments={"path": "a", "line": "x"})
        assert daemon.call(owner).is_error  # the workspace is read-only, but it was called
