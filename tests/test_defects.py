"""The fifteen defects measured in the article's kernel that this project grew from: each is a sentence that holds here."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from aiosd import framing
from aiosd import records as r
from aiosd.errors import (
    InvalidParams,
    NoModelFits,
    NotFound,
    PermissionDenied,
    RateLimited,
)
from aiosd.protocol.memory import MemoryContext, MemoryList, MemoryRecall, MemoryRemember
from aiosd.protocol.sessions import SessionDelete, SessionRun
from aiosd.protocol.tasks import TaskGet, TaskList, TaskWait
from aiosd.protocol.tools import ToolCall, ToolGet
from tests.daemon import Daemon, Refusing, Silent

USER_TOOLS = '''
from aiosd.tools import tool

@tool(permissions=["deploy"], rate_limit=1)
def deploy(service: str, replicas: int = 1) -> str:
    """Deploy a service.

    Args:
        service: Its name.
        replicas: How many.
    """
    return f"{service} x {replicas}"
'''


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One with a tool of its user's, for what asks nothing of its start."""
    home = tmp_path_factory.mktemp("defects") / "home"
    (home / "tools").mkdir(parents=True)
    (home / "tools" / "deploy.py").write_text(USER_TOOLS)
    with Daemon(home) as running:
        yield running


def test_1_a_decorated_tool_with_permissions_registers(shared: Daemon) -> None:
    assert shared.call(ToolGet(name="deploy")).permissions == ("deploy",)


def test_2_a_tools_schema_has_its_parameters(shared: Daemon) -> None:
    schema = shared.call(ToolGet(name="deploy")).input_schema
    assert schema["properties"]["service"] == {"type": "string", "description": "Its name."}
    assert schema["required"] == ["service"]


def test_3_a_rate_limit_of_one_lets_one_call_through(shared: Daemon) -> None:
    session = shared.session(permissions=("deploy",))
    call = ToolCall(session_id=session.session_id, name="deploy", arguments={"service": "a"})
    assert shared.call(call).content[0].text == "a x 1"
    for _ in range(49):
        with pytest.raises(RateLimited) as caught:
            shared.call(call)
    assert 0 < caught.value.data["retry_after_s"] <= 60


def test_4_capable_without_a_model_is_a_typed_error_that_names_the_ways_out(shared: Daemon) -> None:
    with pytest.raises(NoModelFits) as caught:
        shared.run(shared.session(), "Prove it", tier="capable")
    assert "capable" in str(caught.value)
    assert caught.value.hint


def test_5_a_backend_that_fails_in_the_call_is_followed_by_the_next(tmp_path: Path) -> None:
    with Refusing() as dead, Daemon(tmp_path / "home", dead.config("extractive")) as daemon:
        result = daemon.run(
            daemon.session(), "Which port?", inputs=(r.Input(name="n", text="The port is 8080."),)
        )
    assert result.backend == "extractive"
    assert result.decision is not None
    assert [c.backend for c in result.decision.candidates if c.rejected] == ["small"]


def test_6_a_latency_budget_steers_away_from_what_is_too_slow(tmp_path: Path) -> None:
    with Silent() as slow, Daemon(tmp_path / "home", slow.config("extractive")) as daemon:
        result = daemon.run(
            daemon.session(),
            "Which port?",
            inputs=(r.Input(name="n", text="The port is 8080."),),
            latency_budget_ms=100,
        )
    assert result.backend == "extractive"
    assert result.decision is not None
    (rejected,) = [c for c in result.decision.candidates if c.rejected]
    assert rejected.backend == "small" and "100 ms" in str(rejected.rejected)


def test_7_the_tools_a_session_may_use_reach_the_model(shared: Daemon) -> None:
    result = shared.run(shared.session(permissions=()), "What is 12 * (3 + 4)?")
    assert (result.result, result.sources[0].kind, result.sources[0].ref) == ("84", "tool", "calculator")


def test_8_a_caller_cannot_name_its_own_permissions(shared: Daemon) -> None:
    session = shared.session(permissions=("read",))
    with pytest.raises(PermissionDenied, match="deploy"):
        shared.call(ToolCall(session_id=session.session_id, name="deploy", arguments={"service": "a"}))
    wider = b'{"session_id": "%s", "task": "x", "permissions": ["*"]}' % session.session_id.encode()
    answer = shared.raw(framing.request(1, "session.run", msgspec.Raw(wider)))
    assert b'"code":-32602' in answer and b"permissions" in answer


def test_8_the_socket_is_its_owners_alone(shared: Daemon) -> None:
    assert stat.S_IMODE(shared.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(shared.socket.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE((shared.home / "data").stat().st_mode) == 0o700


def test_9_a_session_that_never_was_is_not_found(shared: Daemon) -> None:
    for made_up in ("00000000-0000-4000-8000-000000000000", "never-created", ""):
        with pytest.raises(NotFound):
            shared.call(SessionRun(session_id=made_up, task="hello"))


def test_10_a_task_of_70_kb_runs(shared: Daemon) -> None:
    text = "The pump runs at 1500 rpm. " + "Nothing of note happened. " * 2700
    assert len(text) > 70_000
    result = shared.run(shared.session(), text)
    assert result.state == "completed"


def test_11_a_sessions_working_memory_is_bounded_and_can_be_deleted(daemon: Daemon) -> None:
    session = daemon.session()
    for i in range(30):
        daemon.call(MemoryRemember(session_id=session.session_id, content=f"note {i} " + "x" * 10_000))
    context = daemon.call(MemoryContext(session_id=session.session_id, last_n=5))
    assert [entry.content[:8].strip() for entry in context.entries] == [f"note {i}" for i in range(25, 30)]
    daemon.call(SessionDelete(session_id=session.session_id, forget=True))
    with pytest.raises(NotFound):
        daemon.call(MemoryContext(session_id=session.session_id))
    assert daemon.call(MemoryList(user_id=session.user_id)).memories == ()


def test_12_five_runs_a_kill_and_five_more_are_all_remembered(daemon: Daemon) -> None:
    session = daemon.session()
    first = [daemon.run(session, f"Note number {i}: the code is {i * 111}") for i in range(5)]
    daemon.kill()
    daemon.start()
    second = [daemon.run(session, f"Note number {i}: the code is {i * 111}") for i in range(5, 10)]
    assert len({result.task_id for result in first + second}) == 10
    numbers = [task.number for task in daemon.call(TaskList(session_id=session.session_id)).tasks]
    assert numbers == sorted(set(numbers), reverse=True) and len(numbers) == 10
    remembered = daemon.call(MemoryList(session_id=session.session_id)).memories
    assert [m.content.splitlines()[0] for m in remembered] == [
        f"Task: Note number {i}: the code is {i * 111}" for i in reversed(range(10))
    ]
    context = daemon.call(MemoryContext(session_id=session.session_id, last_n=100))
    assert [e.content for e in context.entries if e.role == "user"] == [
        f"Note number {i}: the code is {i * 111}" for i in range(10)
    ]


def test_12_what_was_acknowledged_before_a_kill_is_recalled_after_it(daemon: Daemon) -> None:
    session = daemon.session()
    daemon.call(MemoryRemember(session_id=session.session_id, content="The gate code is 4711"))
    daemon.kill()
    daemon.start()
    found = daemon.call(MemoryRecall(session_id=session.session_id, query="gate code")).memories
    assert [m.content for m in found] == ["The gate code is 4711"]


def test_13_forty_parallel_runs_all_complete_and_are_all_kept(daemon: Daemon) -> None:
    session = daemon.session()
    with ThreadPoolExecutor(40) as pool:
        results = list(pool.map(lambda i: daemon.run(session, f"Run number {i}"), range(40)))
    assert [result.state for result in results] == ["completed"] * 40
    kept = daemon.call(MemoryList(session_id=session.session_id)).memories
    assert len({m.memory_id for m in kept}) == 40


def test_14_recall_is_always_somebodys(shared: Daemon) -> None:
    mine, theirs = shared.session(user_id="ann"), shared.session(user_id="bob")
    shared.call(MemoryRemember(session_id=mine.session_id, content="Ann's badge number is 17"))
    shared.call(MemoryRemember(session_id=theirs.session_id, content="Bob's badge number is 18"))
    with pytest.raises(InvalidParams, match="exactly one"):
        shared.call(MemoryRecall(query="badge number"))
    found = shared.call(MemoryRecall(session_id=theirs.session_id, query="badge number")).memories
    assert [m.content for m in found] == ["Bob's badge number is 18"]


def test_15_a_task_is_on_the_disk_before_any_model_answers(tmp_path: Path) -> None:
    with Silent() as slow, Daemon(tmp_path / "home", slow.config()) as daemon:
        session = daemon.session()
        task = daemon.start_task(session, "Think")
        assert slow.asked.wait(30)
        daemon.kill()
        (tmp_path / "home" / "config.toml").unlink()
        daemon.start()
        after = daemon.call(TaskGet(task_id=task.task_id))
        assert (after.task, after.number) == ("Think", task.number)
        assert daemon.call(TaskWait(task_id=task.task_id)).state == "completed"
