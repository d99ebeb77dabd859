"""Any order of sessions, tasks, approvals, cancels, children, resolves and kills keeps what tasks promise."""

from __future__ import annotations

import json
import threading
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Literal

import msgspec
import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from aiosctl.client import Client
from aiosd import records as r
from aiosd.errors import AiosError, InvalidState
from aiosd.protocol.approvals import ApprovalList, TaskApprove
from aiosd.protocol.sessions import SessionClose, SessionGet
from aiosd.protocol.tasks import (
    TaskAttach,
    TaskCancel,
    TaskGet,
    TaskList,
    TaskPrioritize,
    TaskResolve,
    TaskWait,
)
from tests.daemon import PATIENCE_S, Daemon
from tests.doubles.http_double import Script
from tests.doubles.ollama_double import OllamaDouble

TOKEN_USD = 0.01
REPLY_USD = 7 * TOKEN_USD
"""The double always says seven tokens."""
MOST_TOKENS = 10
"""So a reply may cost a little more than it does."""

TOOLS = """
from aiosd.tools import tool

@tool(permissions=["notes"])
def append(path: str) -> str:
    "Append a line."
    with open(path, "a") as file:
        file.write("x\\n")
    return "noted"
"""

Kind = Literal["plain", "effect", "family", "hang"]


class Model(OllamaDouble):
    """Does what the task's last line says, and keeps a meter and what tools each task was offered."""

    def __init__(self, effects: Path) -> None:
        super().__init__()
        self.choose = self._script
        self._effects = effects
        self.billed: Counter[str] = Counter()
        """Replies, by the first word of the task: whoever started it has that name."""
        self.offered: dict[str, set[str]] = {}

    def _script(self, body: dict[str, Any]) -> Script:
        messages = body["messages"]
        task = next(m["content"] for m in reversed(messages) if m["role"] == "user")
        name, _, kind = task.partition(" ")
        if not name.startswith("t"):
            return Script(text=("A summary.",))  # the session has grown long
        self.billed[name.partition(".")[0]] += 1
        self.offered.setdefault(name, set()).update(t["function"]["name"] for t in body.get("tools", ()))
        given = sum(m["role"] == "tool" for m in messages)
        if kind == "hang":
            return Script(text=("half",), fault="hang_after")
        if kind == "effect" and not given:
            return Script(text=(), calls=(("append", json.dumps({"path": f"{self._effects}/{name}"})),))
        if kind == "family" and not given:
            children = [{"task": f"{name}.{n} {what}"} for n, what in enumerate(("effect", "plain"))]
            return Script(text=(), calls=tuple(("spawn", json.dumps(child)) for child in children))
        return Script(text=(f"{name} is done.",))


class HeardAll(Exception):
    """As many events as the watcher before has heard."""


class Watch:
    """One watcher of one task, until the task or the daemon ends. It hears the task's own events: what its children ask is
    told live alone."""

    def __init__(self, daemon: Daemon, task_id: str) -> None:
        self.task_id = task_id
        self.heard: list[r.Event] = []
        self._client = Client(daemon.socket)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        def hear(_: str, params: msgspec.Raw) -> None:
            event = msgspec.json.decode(params, type=r.AnyEvent)
            if isinstance(event, r.Kept) and event.task_id == self.task_id:
                self.heard.append(event)

        with self._client:
            try:
                self._client.call(TaskAttach(task_id=self.task_id), timeout_s=None, on_notification=hear)
            except AiosError:
                pass  # how the task ended, or that the daemon did

    def end(self) -> list[r.Event]:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        return self.heard


class Life(RuleBasedStateMachine):
    """One daemon's home, over any number of ends of the daemon."""

    folders: ClassVar[pytest.TempPathFactory]

    sessions = Bundle("sessions")
    tasks = Bundle("tasks")

    @initialize()
    def begin(self) -> None:
        root = self.folders.mktemp("life")
        self.work = root / "work"
        self.effects = self.work / "effects"
        self.effects.mkdir(parents=True)
        self._portal = start_blocking_portal()
        portal = self._portal.__enter__()
        self.model = Model(self.effects)
        self._serving = portal.wrap_async_context_manager(self.model)
        self._serving.__enter__()
        home = root / "home"
        (home / "tools").mkdir(parents=True)
        (home / "tools" / "notes.py").write_text(TOOLS)
        backend = f'[models.backends.small]\nkind = "ollama"\nmodel = "small"\nurl = "{self.model.url}"\nslots = 4\n'
        self.daemon = Daemon(home, backend + f"price_out = {TOKEN_USD * 1e6}\n").start()
        self.acknowledged: dict[str, r.Task] = {}
        self.by_key: dict[tuple[str, str], str] = {}
        self.retried: Counter[str] = Counter()
        self.caps: dict[str, float | None] = {}
        """By the name of a task and by the id of a session, in dollars."""
        self.ended: dict[str, r.Task] = {}
        self.watches: list[Watch] = []
        self.closed: set[str] = set()
        self.begun = False
        """A task, since the daemon did."""

    # --- what users do

    @rule(target=sessions, ask=st.booleans(), cap=st.sampled_from([None, None, 0.3, 1.0]))
    def open_session(self, ask: bool, cap: float | None) -> str:
        permissions = ("spawn", "?notes" if ask else "notes")
        session = self.daemon.session(
            permissions=permissions, max_usd=cap, workspace=str(self.work), write=True
        )
        self.caps[session.session_id] = cap
        return session.session_id

    @rule(
        target=tasks,
        session_id=sessions,
        kind=st.sampled_from(["plain", "effect", "effect", "family", "family", "hang"]),
        cap=st.sampled_from([None, None, 0.2]),
        key=st.sampled_from([None, None, "a", "b"]),
        watched=st.booleans(),
    )
    def start(
        self, session_id: str, kind: Kind, cap: float | None, key: str | None, watched: bool
    ) -> str | None:
        name = f"t{len(self.acknowledged)}"
        session = self.daemon.call(SessionGet(session_id=session_id))
        try:
            task = self.daemon.start_task(
                session, f"{name} {kind}", max_usd=cap, idempotency_key=key, max_tokens=MOST_TOKENS
            )
        except InvalidState:
            assert session_id in self.closed
            return None
        assert session_id not in self.closed
        before = self.by_key.get((session_id, key)) if key else None
        assert before in (None, task.task_id)
        if before is None:
            assert task.task_id not in self.acknowledged
            self.acknowledged[task.task_id] = task
            self.caps[name] = cap
            if key:
                self.by_key[session_id, key] = task.task_id
        self.begun = True
        if watched:
            self.watches.append(Watch(self.daemon, task.task_id))
        return task.task_id

    @rule(task_id=tasks)
    def cancel(self, task_id: str | None) -> None:
        if task_id is None:
            return
        try:
            task = self.daemon.call(TaskCancel(task_id=task_id))
        except InvalidState:
            assert self.daemon.call(TaskGet(task_id=task_id)).state in r.ENDED
        else:
            assert task.state in r.ENDED
            below = [t for t in self._all() if t.parent_id == task_id]
            assert task.state == "completed" or all(child.state in r.ENDED for child in below)

    @rule(task_id=tasks, priority=st.sampled_from(["interactive", "normal", "background"]))
    def prioritize(self, task_id: str | None, priority: r.Priority) -> None:
        if task_id is not None and task_id not in self.ended:
            try:
                assert (
                    self.daemon.call(TaskPrioritize(task_id=task_id, priority=priority)).priority == priority
                )
            except InvalidState:
                assert self.daemon.call(TaskGet(task_id=task_id)).state in r.ENDED

    @rule(decision=st.sampled_from(["allow_once", "reject_once"]))
    def approve(self, decision: r.ApprovalDecision) -> None:
        for request in self.daemon.call(ApprovalList()).waiting:
            word = TaskApprove(task_id=request.task_id, call_id=request.call_id, decision=decision)
            self.daemon.call(word)

    @rule(action=st.sampled_from(["retry", "skip", "done"]))
    def resolve(self, action: Literal["retry", "skip", "done"]) -> None:
        for task in self._all():
            doubts = self._doubts(task) if task.state == "input_required" else []
            for call in doubts:
                self.daemon.call(TaskResolve(task_id=task.task_id, call_id=call.call_id, action=action))
                if action == "retry":
                    self.retried[task.task.partition(" ")[0]] += 1

    @rule(session_id=sessions)
    def close_session(self, session_id: str) -> None:
        self.daemon.call(SessionClose(session_id=session_id))
        self.closed.add(session_id)

    # --- what befalls the daemon

    @precondition(lambda self: self.begun)
    @rule(after_ms=st.integers(0, 60))
    def kill(self, after_ms: int) -> None:
        threading.Event().wait(after_ms / 1000)  # the moment of the kill, not a wait for anything
        self.daemon.kill()
        self.daemon.start()
        self.begun = False
        self._compare_what_was_heard()

    @precondition(lambda self: self.begun)
    @rule()
    def stop(self) -> None:
        assert self.daemon.stop() == 0
        self.daemon.start()
        self.begun = False
        self._compare_what_was_heard()

    # --- what always holds

    @invariant()
    def every_task_is_there_and_what_has_ended_stays_as_it_is(self) -> None:
        seen = self._all()
        by_id = {task.task_id: task for task in seen}
        assert len({task.number for task in seen}) == len(seen)
        for task_id, first in self.acknowledged.items():
            now = by_id[task_id]
            assert (now.number, now.task, now.session_id) == (first.number, first.task, first.session_id)
        for task_id, last in self.ended.items():
            assert by_id[task_id] == last
        self.ended |= {task.task_id: task for task in seen if task.state in r.ENDED}

    @invariant()
    def nothing_takes_effect_twice(self) -> None:
        for path in self.effects.iterdir():
            assert len(path.read_text().split()) <= 1 + self.retried[path.name]

    @invariant()
    def no_cap_is_passed(self) -> None:
        seen = self._all()
        names = {t.task_id: t.task.partition(" ")[0].partition(".")[0] for t in seen}
        spent: defaultdict[str, float] = defaultdict(float)
        for task in self.acknowledged.values():
            billed = self.model.billed[names[task.task_id]] * REPLY_USD
            spent[names[task.task_id]] += billed
            spent[task.session_id] += billed
        for what, usd in spent.items():
            cap = self.caps[what]
            assert cap is None or usd <= cap + TOKEN_USD / 2, f"{what} has cost {usd} of {cap}"

    @invariant()
    def no_child_is_offered_more_than_its_parent(self) -> None:
        for name, tools in list(self.model.offered.items()):
            parent, dot, _ = name.partition(".")
            assert not dot or tools <= self.model.offered[parent]

    def teardown(self) -> None:
        """Each task comes to its end, and has every event that anybody has heard of."""
        try:
            self.approve("reject_once")
            self.kill(0)
            while open_ := [t for t in self._all() if t.state not in r.ENDED]:
                self.approve("allow_once")
                self.resolve("skip")
                for task in open_:
                    if task.task.endswith("hang"):
                        self.cancel(task.task_id)
                    elif task.parent_id is None:
                        self._settle(task.task_id)
            self._compare_what_was_heard()
            for task in self._all():
                seqs = [event.seq for event in self._events(task.task_id)]
                assert seqs == list(range(1, len(seqs) + 1))
            self.every_task_is_there_and_what_has_ended_stays_as_it_is()
            self.nothing_takes_effect_twice()
            self.no_cap_is_passed()
        finally:
            self.daemon.kill()
            self._serving.__exit__(None, None, None)
            self._portal.__exit__(None, None, None)

    # --- looking

    def _all(self) -> tuple[r.Task, ...]:
        return self.daemon.call(TaskList(limit=1000)).tasks

    def _settle(self, task_id: str) -> None:
        try:
            self.daemon.call(TaskWait(task_id=task_id, timeout_s=0.2))
        except AiosError:
            pass  # its own end, or something below it asks

    def _events(self, task_id: str) -> list[r.Event]:
        return Watch(self.daemon, task_id).end()

    def _doubts(self, task: r.Task) -> list[r.ToolCallEvent]:
        last = {e.call_id: e for e in self._events(task.task_id) if isinstance(e, r.ToolCallEvent)}
        return [event for event in last.values() if event.status == "unknown"]

    def _compare_what_was_heard(self) -> None:
        """What a watcher was told is on the disk, under the same numbers."""
        for watch in self.watches:
            heard = watch.end()
            again: list[r.Event] = []

            def hear(
                _: str,
                params: msgspec.Raw,
                again: list[r.Event] = again,
                count: int = len(heard),
                task_id: str = watch.task_id,
            ) -> None:
                event = msgspec.json.decode(params, type=r.AnyEvent)
                if isinstance(event, r.Kept) and event.task_id == task_id:
                    again.append(event)
                    if len(again) == count:
                        raise HeardAll

            if heard:
                with Client(self.daemon.socket) as client, suppress(AiosError, HeardAll):
                    attach = TaskAttach(task_id=watch.task_id)
                    client.call(attach, timeout_s=PATIENCE_S, on_notification=hear)
            assert again == heard
        self.watches.clear()


def live(folders: pytest.TempPathFactory, examples: int, steps: int) -> None:
    Life.folders = folders
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            phases=[Phase.generate],  # what depends on the moment of a kill cannot be made smaller
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )


def test_a_few_lives_of_a_daemon_keep_every_promise(tmp_path_factory: pytest.TempPathFactory) -> None:
    live(tmp_path_factory, 4, 15)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_lives_of_a_daemon_keep_every_promise(tmp_path_factory: pytest.TempPathFactory) -> None:
    live(tmp_path_factory, 60, 40)
