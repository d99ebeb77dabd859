"""Where memories came from, and that forgetting one leaves neither what was made of it nor its text."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio.to_thread
import msgspec
import pytest

from aiosd.errors import AiosError, NotFound
from aiosd.protocol.memory import (
    Lineage,
    MemoryContext,
    MemoryForget,
    MemoryList,
    MemoryRecall,
    MemoryRemember,
    MemoryWhy,
)
from aiosd.protocol.sessions import SessionDelete, SessionGet
from aiosd.protocol.tasks import TaskGet, TaskList
from aiosd.records import Memory, Session
from aiosd.state import lineage
from tests.daemon import Daemon
from tests.doubles.http_double import Script
from tests.doubles.ollama_double import OllamaDouble

SECRET = "the deploy host is falcon-7"


def memories(daemon: Daemon, user_id: str) -> list[Memory]:
    return list(daemon.call(MemoryList(user_id=user_id)).memories)


def why(daemon: Daemon, memory_id: str) -> Lineage:
    return daemon.call(MemoryWhy(memory_id=memory_id))


def forgotten(daemon: Daemon, **conditions: object) -> int:
    return daemon.call(MemoryForget(**conditions)).forgotten  # type: ignore[arg-type]


def remembered(daemon: Daemon, session: Session, content: str) -> str:
    memory_id = daemon.call(MemoryRemember(session_id=session.session_id, content=content)).memory_id
    assert memory_id is not None
    return memory_id


def files_with(daemon: Daemon, text: str) -> list[str]:
    """Files of the daemon that hold the text, in whatever letters."""
    return sorted(
        str(path.relative_to(daemon.home))
        for path in daemon.home.rglob("*")
        if path.is_file() and text.casefold().encode() in path.read_bytes().lower()
    )


def told_and_asked(daemon: Daemon) -> tuple[Session, Memory]:
    """One run remembers the secret, one quotes it; the session, and the memory that the first run's tool made."""
    session = daemon.session(user_id="ann", title=f"Remember that {SECRET}"[:30])
    daemon.run(session, f"Remember that {SECRET}")
    asked = daemon.run(session, "What is the deploy host?")
    assert "falcon-7" in asked.result
    (made,) = [memory for memory in memories(daemon, "ann") if memory.source == "tool:remember"]
    return session, made


def test_a_memory_knows_its_run_its_turns_and_what_was_made_of_it(daemon: Daemon) -> None:
    session, made = told_and_asked(daemon)
    traced = why(daemon, made.memory_id)
    assert traced.memory == made and traced.session is not None
    assert traced.session.session_id == session.session_id
    assert [run.task for run in traced.tasks] == [f"Remember that {SECRET}"]
    assert [turn.role for turn in traced.turns] == ["user", "assistant"]
    assert traced.derived_from == ()
    # The run that stored it and the run that quoted it.
    runs = [memory for memory in memories(daemon, "ann") if memory.kind == "task"]
    assert {memory.memory_id for memory in traced.derived} == {memory.memory_id for memory in runs}
    for run in runs:
        assert [memory.memory_id for memory in why(daemon, run.memory_id).derived_from] == [made.memory_id]


def test_forgetting_takes_what_was_made_of_it_and_leaves_its_text_in_no_file(daemon: Daemon) -> None:
    session, made = told_and_asked(daemon)
    kept = remembered(daemon, session, "the night shift drinks tea")
    asked = daemon.run(session, "What does the night shift drink?")
    assert "tea" in asked.result
    assert "data/aiosd.db" in " ".join(files_with(daemon, "falcon-7"))
    counted = forgotten(daemon, memory_id=made.memory_id, dry_run=True)
    assert counted == 3 and len(memories(daemon, "ann")) == 5  # nothing is gone yet
    assert forgotten(daemon, memory_id=made.memory_id) == counted
    assert files_with(daemon, "falcon-7") == []
    left = memories(daemon, "ann")
    assert kept in [memory.memory_id for memory in left] and len(left) == 2
    context = daemon.call(MemoryContext(session_id=session.session_id)).text
    assert "falcon" not in context and "night shift" in context
    found = daemon.call(MemoryRecall(query="deploy host", user_id="ann")).memories
    assert not any("falcon" in memory.content for memory in found)
    daemon.stop()
    assert files_with(daemon, "falcon-7") == []


@pytest.mark.anyio
@pytest.mark.parametrize("by_tool", [True, False])
@pytest.mark.parametrize("last", [Script(text=("It is falcon-7.",)), Script(status=400)])
async def test_what_is_forgotten_while_a_run_is_open_is_in_no_file_once_it_ends(
    tmp_path: Path, last: Script, by_tool: bool
) -> None:
    """The model is given the secret by its memories or by a tool, which repeats it; then it is forgotten, then the
    model answers."""
    asked = 0

    def choose(body: dict[str, Any]) -> Script:
        nonlocal asked
        asked += 1
        if asked == 1:
            call = (
                ("recall", '{"query": "deploy host"}')
                if by_tool
                else ("remember", f'{{"content": "{SECRET}"}}')
            )
            return Script(text=("falcon-7?",), calls=(call,))
        assert SECRET in str(body["messages"])
        assert forgotten(daemon, query="falcon-7", user_id="ann") == (1 if by_tool else 2)
        return last

    async with OllamaDouble() as model:
        config = f'[models.backends.here]\nkind = "ollama"\nmodel = "small"\nurl = "{model.url}"\n'
        daemon = Daemon(tmp_path / "home", config=config)
        model.choose = choose

        def live() -> None:
            with daemon:
                session = daemon.session(user_id="ann")
                remembered(daemon, session, SECRET)
                task = "Say what I told you." if by_tool else "What is the deploy host, falcon-7 or not?"
                with suppress(AiosError):  # the model of one half of these fails
                    daemon.run(session, task)
                (run,) = daemon.call(TaskList(session_id=session.session_id)).tasks
                assert run.task == lineage.FORGOTTEN and asked == 2
                assert memories(daemon, "ann") == [] and files_with(daemon, "falcon-7") == []

        await anyio.to_thread.run_sync(live)


LONG = """
from aiosd.tools import tool

@tool(permissions=["*"])
def listing() -> str:
    return f"the deploy host is falcon-{6 + 1}\\n" * 10_000
"""


@pytest.mark.anyio
@pytest.mark.parametrize("while_open", [False, True])
async def test_a_long_output_goes_with_the_run_that_is_forgotten(tmp_path: Path, while_open: bool) -> None:
    kept: list[list[str]] = []

    def choose(body: dict[str, Any]) -> Script:
        if body["messages"][-1]["role"] != "tool":
            return Script(text=("",), calls=(("listing", "{}"),))
        kept.append(files_with(daemon, "falcon-7"))
        if while_open:
            assert forgotten(daemon, query="morning list", user_id="ann") == 1
        return Script(text=("Done.",))

    async with OllamaDouble() as model:
        config = f'[models.backends.here]\nkind = "ollama"\nmodel = "small"\nurl = "{model.url}"\n'
        (tmp_path / "home" / "tools").mkdir(parents=True)
        (tmp_path / "home" / "tools" / "deploy.py").write_text(LONG)
        daemon = Daemon(tmp_path / "home", config=config)
        model.choose = choose

        def live() -> None:
            with daemon:
                session = daemon.session(user_id="ann")
                remembered(daemon, session, "the morning list begins with the deploy host")
                daemon.run(session, "Make the morning list.")
                assert any("outputs" in file for file in kept[0])
                if not while_open:
                    assert forgotten(daemon, query="morning list", user_id="ann") == 2
                assert files_with(daemon, "falcon-7") == []

        await anyio.to_thread.run_sync(live)


def test_the_record_of_a_run_stays_without_what_was_forgotten(daemon: Daemon) -> None:
    session, made = told_and_asked(daemon)
    other = daemon.run(session, "What is 6 * 7?")  # it was given the memory, and did not use it
    assert forgotten(daemon, memory_id=made.memory_id) == 3
    task = daemon.call(TaskGet(task_id=other.task_id))
    assert (task.state, task.result and task.result.result) == ("completed", "42")
    assert daemon.call(SessionGet(session_id=session.session_id)).title == lineage.FORGOTTEN
    blank = [
        task
        for task in daemon.call(TaskList(session_id=session.session_id)).tasks
        if task.task_id != other.task_id
    ]
    assert [(task.task, task.state, task.result and task.result.result) for task in blank] == [
        (lineage.FORGOTTEN, "completed", lineage.FORGOTTEN)
    ] * 2


def test_a_title_that_its_user_gave_is_not_taken_for_a_tasks(daemon: Daemon) -> None:
    session = daemon.session(user_id="ann", title="Remember")
    daemon.run(session, f"Remember that {SECRET}")
    assert forgotten(daemon, user_id="ann") == 2
    assert daemon.call(SessionGet(session_id=session.session_id)).title == "Remember"


def test_a_source_takes_all_that_it_made(daemon: Daemon) -> None:
    session, made = told_and_asked(daemon)
    task_id = why(daemon, made.memory_id).tasks[0].task_id
    assert forgotten(daemon, source=f"task:{task_id}", dry_run=True) == 3
    assert forgotten(daemon, source="tool:remember", session_id=session.session_id) == 3
    assert memories(daemon, "ann") == []


def test_what_a_deleted_session_remembered_still_says_what_it_can(daemon: Daemon) -> None:
    session, made = told_and_asked(daemon)
    daemon.call(SessionDelete(session_id=session.session_id))
    traced = why(daemon, made.memory_id)
    assert (traced.session, traced.tasks, traced.turns) == (None, (), ())
    assert len(traced.derived) == 2


def test_there_is_no_why_of_what_is_not_there(daemon: Daemon) -> None:
    with pytest.raises(NotFound):
        why(daemon, "6a1a6c0e-0000-4000-8000-000000000000")


def test_the_command_line_shows_the_way_of_a_memory(daemon: Daemon) -> None:
    me = daemon.ctl("run", "-q", f"Remember that {SECRET}")
    assert me.returncode == 0, me.stderr
    listed = daemon.ctl("memory", "list", "-q").stdout.split()
    ways = [daemon.ctl("memory", "why", id).stdout for id in listed]
    of_made = next(way for way in ways if "tool:remember" in way.splitlines()[0])
    rows = [line.split("\t") for line in of_made.splitlines()]
    assert [row[0] for row in rows] == ["memory", "session", "task", "turn", "turn", "became"]
    assert rows[0][4] == SECRET
    document = daemon.ctl("memory", "why", rows[0][1], "--json").stdout
    assert msgspec.json.decode(document, type=Lineage).memory.content == SECRET
