"""Tasks over the daemon's end: what had begun is gone on with, and nothing takes effect twice."""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import anyio.to_thread
import msgspec
import pytest

from aiosctl.client import Client
from aiosd import records as r
from aiosd.errors import InvalidState, NotFound
from aiosd.models.backend import ModelRequest
from aiosd.protocol.memory import MemoryRemember
from aiosd.protocol.tasks import TaskAttach, TaskCancel, TaskGet, TaskResolve, TaskWait
from aiosd.state import sessions, tasks
from aiosd.state.database import Connection, open_database
from aiosd.tasks import context, steps
from tests.daemon import Daemon
from tests.doubles.http_double import Script
from tests.doubles.ollama_double import OllamaDouble
from tests.test_models_window import backend, done

pytestmark = pytest.mark.anyio

T = TypeVar("T")

TOOLS = """
from pathlib import Path
from aiosd.tools import tool

def note(path: str, line: str, gate: str) -> str:
    with open(path, "a") as file:
        file.write(line + "\\n")
    if gate:
        open(gate).read()  # a FIFO: until somebody has written to it
    return "noted " + line

@tool(permissions=["*"])
def append(path: str, line: str, gate: str = "") -> str:
    "Append a line."
    return note(path, line, gate)

@tool(permissions=["*"], read_only=True)
def look(path: str, line: str, gate: str = "") -> str:
    "Says that it changes nothing."
    return note(path, line, gate)
"""


async def aside(work: Callable[[], T]) -> T:
    return await anyio.to_thread.run_sync(work)


class Gate:
    """A FIFO that a tool waits at. `reached()` returns once it does, and leaves it waiting."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self._held: list[int] = []

    def reached(self) -> None:
        self._held.append(os.open(self.path, os.O_WRONLY))  # blocks until there is a reader

    def let_one_through(self) -> None:
        self.reached()
        self.open()

    def open(self) -> None:
        for fd in self._held:
            os.close(fd)
        self._held.clear()


def setting(tmp_path: Path, model: OllamaDouble) -> tuple[Daemon, Path, Gate]:
    home = tmp_path / "home"
    (home / "tools").mkdir(parents=True)
    (home / "tools" / "notes.py").write_text(TOOLS)
    config = f'[models.backends.small]\nkind = "ollama"\nmodel = "small"\nurl = "{model.url}"\n'
    work = workspace(tmp_path)  # all of it where the tools may write
    work.mkdir()
    return Daemon(home, config), work / "effects", Gate(work / "gate")


def workspace(tmp_path: Path) -> Path:
    return tmp_path / "work"


def cut_short(daemon: Daemon, gate: Gate) -> r.Task:
    """A task whose daemon was killed in the middle of a call; the next daemon has it."""
    session = daemon.session(workspace=str(gate.path.parent), write=True)
    task = daemon.start_task(session, "Note x")
    gate.reached()
    daemon.kill()
    gate.open()
    daemon.start()
    return task


def calling(name: str, path: Path, gate: Gate) -> Script:
    return Script(text=(), calls=((name, f'{{"path": "{path}", "line": "x", "gate": "{gate.path}"}}'),))


async def test_a_call_that_was_cut_short_waits_for_its_user_and_is_never_repeated_silently(
    tmp_path: Path,
) -> None:
    async with OllamaDouble(Script(text=("All done.",))) as model:
        daemon, effects, gate = setting(tmp_path, model)
        model.scripts = [calling("append", effects, gate)]

        def work() -> r.TaskResult:
            with daemon:
                task = cut_short(daemon, gate)
                with pytest.raises(InvalidState, match="needs you") as caught:
                    daemon.call(TaskWait(task_id=task.task_id))
                assert daemon.call(TaskGet(task_id=task.task_id)).state == "input_required"
                assert "task resolve" in str(caught.value.hint)
                with pytest.raises(NotFound):
                    daemon.call(TaskResolve(task_id=task.task_id, call_id="no", action="done"))
                daemon.kill()  # it goes on waiting, over any number of ends
                daemon.start()
                done = daemon.ctl("task", "resolve", str(task.number), "done")
                assert (done.returncode, done.stdout) == (0, f"task {task.number} working\n"), done.stderr
                return daemon.call(TaskWait(task_id=task.task_id))

        result = await aside(work)
        told = model.chats()[-1]["messages"][-1]
    assert effects.read_text() == "x\n"
    assert (result.state, result.result) == ("completed", "All done.")
    assert told["role"] == "tool" and "user says that it was done" in told["content"]


@pytest.mark.parametrize(("action", "effect"), [("retry", "x\nx\n"), ("skip", "x\n")])
async def test_the_user_may_have_it_run_again_or_left(tmp_path: Path, action: str, effect: str) -> None:
    async with OllamaDouble(Script(text=("Well.",))) as model:
        daemon, effects, gate = setting(tmp_path, model)
        model.scripts = [calling("append", effects, gate)]

        def work() -> None:
            with daemon:
                task = cut_short(daemon, gate)
                if action == "retry":
                    threading.Thread(target=gate.let_one_through, daemon=True).start()
                assert daemon.ctl("task", "resolve", "@last", action).returncode == 0
                assert daemon.call(TaskWait(task_id=task.task_id)).result == "Well."
                again = daemon.ctl("task", "resolve", "@last", action)
                assert again.returncode == 1 and "asks nothing" in again.stderr

        await aside(work)
    assert effects.read_text() == effect


async def test_a_call_that_changes_nothing_is_made_again_by_itself(tmp_path: Path) -> None:
    async with OllamaDouble(Script(text=("Seen.",))) as model:
        daemon, effects, gate = setting(tmp_path, model)
        model.scripts = [calling("look", effects, gate)]

        def work() -> r.TaskResult:
            with daemon:
                task = cut_short(daemon, gate)
                gate.reached()
                gate.open()
                return daemon.call(TaskWait(task_id=task.task_id))

        assert (await aside(work)).result == "Seen."
    assert effects.read_text() == "x\nx\n"


async def test_a_task_that_waits_for_its_user_can_be_cancelled(tmp_path: Path) -> None:
    async with OllamaDouble() as model:
        daemon, effects, gate = setting(tmp_path, model)
        model.scripts = [calling("append", effects, gate)]

        def work() -> r.Task:
            with daemon:
                task = cut_short(daemon, gate)
                return daemon.call(TaskCancel(task_id=task.task_id))

        assert (await aside(work)).state == "cancelled"


async def kills(tmp_path: Path, times: int) -> None:
    """Tasks with effects, and kill -9 at random moments: none is lost, no effect comes twice, no event is missing."""
    chance = random.Random(7)
    async with OllamaDouble(Script(text=("Done.",))) as model:
        daemon, effects, _ = setting(tmp_path, model)
        effects.mkdir()

        def script(body: dict[str, Any]) -> Script:
            messages = body["messages"]
            if messages[-1]["role"] == "tool":
                return Script(text=("Done.",))
            name = messages[-1]["content"]
            if not name[1:].isdigit():
                return Script(text=("A summary.",))  # the session has grown long
            return Script(text=(), calls=(("append", f'{{"path": "{effects}/{name}", "line": "x"}}'),))

        model.choose = script

        def work() -> tuple[list[r.Task], list[list[int]]]:
            with daemon:
                session = daemon.session(workspace=str(workspace(tmp_path)), write=True)
                started: list[r.Task] = []
                for n in range(times):
                    started.append(daemon.start_task(session, f"n{n}"))
                    threading.Event().wait(
                        chance.random() * 0.06
                    )  # the moment of the kill, not a wait for anything
                    daemon.kill()
                    daemon.start()
                for task in started:
                    if daemon.call(TaskGet(task_id=task.task_id)).state == "input_required":
                        daemon.ctl("task", "resolve", str(task.number), "skip")
                    daemon.call(TaskWait(task_id=task.task_id))
                numbers = [[e.seq for e in events(daemon, task.task_id)] for task in started]
                return [daemon.call(TaskGet(task_id=t.task_id)) for t in started], numbers

        ended, numbers = await aside(work)
    assert [task.state for task in ended] == ["completed"] * times
    assert all(seqs == list(range(1, len(seqs) + 1)) for seqs in numbers)
    assert all(path.read_text() == "x\n" for path in effects.iterdir())


def events(daemon: Daemon, task_id: str) -> list[r.Event]:
    heard: list[r.Event] = []
    with Client(daemon.socket) as client:
        client.call(
            TaskAttach(task_id=task_id),
            on_notification=lambda _, params: heard.append(msgspec.json.decode(params, type=r.AnyEvent)),
        )
    return heard


async def test_ten_kills_at_random_lose_no_task_and_repeat_no_effect(tmp_path: Path) -> None:
    await kills(tmp_path, 10)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_two_hundred_kills_at_random_lose_no_task_and_repeat_no_effect(tmp_path: Path) -> None:
    await kills(tmp_path, 200)


async def test_what_a_model_was_sent_follows_from_the_journal_alone(tmp_path: Path) -> None:
    """So that a task can be replayed, whatever has come since: the same action at each step, and the same request."""
    async with OllamaDouble(Script(text=("Done.",))) as model:
        daemon, effects, gate = setting(tmp_path, model)
        call = f'{{"path": "{effects}", "line": "x"}}'
        waits = f'{{"path": "{effects}", "line": "x", "gate": "{gate.path}"}}'
        question = "Which colour is the pump?"

        def work() -> r.Task:
            with daemon:
                session = daemon.session(workspace=str(workspace(tmp_path)), write=True, system="Be brief.")
                daemon.call(MemoryRemember(session_id=session.session_id, content="The pump is blue."))
                daemon.run(session, "Good morning")
                model.seen.clear()
                model.scripts = [
                    Script(text=("So.",), calls=(("append", call),)),
                    Script(text=(), calls=(("look", waits),)),
                ]
                task = daemon.start_task(session, question)
                gate.reached()
                daemon.call(MemoryRemember(session_id=session.session_id, content="The pump is red by now."))
                daemon.run(session, "Good evening", tools=())
                daemon.kill()
                gate.open()
                (tmp_path / "home" / "tools" / "notes.py").write_text(TOOLS.replace("a line", "any line"))
                daemon.start()
                gate.reached()
                gate.open()
                daemon.call(TaskWait(task_id=task.task_id))
                daemon.stop()
                return task

        task = await aside(work)
        bodies = [
            {"messages": chat["messages"], "tools": chat.get("tools")}
            for chat in model.chats()
            if [m["content"] for m in chat["messages"] if m["role"] == "user"][-1] == question
        ]
    replay = OllamaDouble(Script(text=("Done.",)))
    async with open_database(tmp_path / "home" / "data" / "aiosd.db") as database, replay:
        requests = await database.read(lambda c: replayed(c, task.task_id))
        async with contextlib.aclosing(backend(replay)) as small:
            for request in requests:
                await done(small, request)
    assert bodies == [{"messages": c["messages"], "tools": c.get("tools")} for c in replay.chats()]
    assert len(bodies) == 3 and "Good morning" in str(bodies[0]) and "Be brief." in str(bodies[0])


def replayed(c: Connection, task_id: str) -> list[ModelRequest]:
    """Each request of the task, from the ledger."""
    session_id = tasks.get(c, task_id).session_id
    session, system = sessions.get(c, session_id), sessions.system(c, session_id)
    params, journal = tasks.params(c, task_id), tasks.events(c, task_id)
    requests = []
    for place, event in enumerate(journal):
        if isinstance(event, r.RouteEvent):
            assert isinstance(steps.next(journal[:place]), steps.Infer)
            upto, digest, tier = context.upto(journal), event.tools, event.decision.tier
            assert upto is not None and digest is not None
            turns = sessions.turns(c, session_id, context.TURNS, upto)
            told = tasks.toolset(c, digest)
            requests.append(context.request(session, system, params, turns, journal[:place], told, tier))
    return requests
