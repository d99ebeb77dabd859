"""The RPC surface against its own description, and the contract's corners, through the real socket."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from aiosd import framing, protocol
from aiosd import records as r
from aiosd.errors import InvalidParams, InvalidState, NotFound
from aiosd.protocol.base import Params
from aiosd.protocol.memory import MemoryContext, MemoryForget, MemoryList, MemoryRecall, MemoryRemember
from aiosd.protocol.sessions import SessionClose
from aiosd.protocol.system import RpcDiscover
from aiosd.protocol.tasks import TaskAttach, TaskCancel, TaskGet, TaskList, TaskPrioritize, TaskResolve
from aiosd.protocol.tools import AgentList
from tests.daemon import Daemon


def answer(daemon: Daemon, method: str, params: object) -> Any:
    return json.loads(daemon.raw(framing.request(1, method, params)).splitlines()[-1])


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One for all that is refused before anything is changed."""
    with Daemon(tmp_path_factory.mktemp("asked") / "home") as running:
        yield running


@pytest.fixture
def document(daemon: Daemon) -> dict[str, Any]:
    found: dict[str, Any] = daemon.call(RpcDiscover())
    return found


def test_discover_describes_every_method_and_its_params(daemon: Daemon, document: dict[str, Any]) -> None:
    described = {m["name"]: m for m in document["methods"]}
    for noun in pkgutil.iter_modules(protocol.__path__):
        importlib.import_module(f"aiosd.protocol.{noun.name}")
    assert set(described) == {m.method for m in Params.__subclasses__()}
    assert all(m["summary"] for m in described.values())
    run = {param["name"]: param for param in described["session.run"]["params"]}
    assert run["session_id"]["required"] and not run["schema"]["required"]


def test_what_methods_answer_fits_what_discover_says(daemon: Daemon, document: dict[str, Any]) -> None:
    session = daemon.session(title="work", workspace=str(Path(__file__).parent))
    sid = session.session_id
    task = daemon.run(session, "What is 1 + 1?").task_id
    memory = daemon.call(MemoryRemember(session_id=sid, content="The pump is blue")).memory_id
    calls: list[tuple[str, dict[str, Any]]] = [
        ("system.ping", {}),
        ("system.info", {}),
        ("session.get", {"session_id": sid}),
        ("session.list", {}),
        ("session.run", {"session_id": sid, "task": "What is 2 + 2?"}),
        ("session.run", {"session_id": sid, "task": "What is 2 + 2?", "detach": True}),
        ("task.get", {"task_id": task}),
        ("task.list", {}),
        ("task.wait", {"task_id": task}),
        ("task.attach", {"task_id": task}),
        ("task.attach", {"task_id": task, "after_seq": 2}),
        ("memory.remember", {"session_id": sid, "memories": [{"content": "a"}, {"content": "b"}]}),
        ("memory.recall", {"session_id": sid, "query": "pump"}),
        ("memory.context", {"session_id": sid}),
        ("memory.list", {"session_id": sid}),
        ("memory.get", {"memory_id": memory}),
        ("memory.why", {"memory_id": memory}),
        ("memory.export", {}),
        ("memory.import", {"memories": []}),
        ("memory.stats", {}),
        ("memory.reindex", {}),
        ("memory.forget", {"memory_id": memory, "dry_run": True}),
        ("tool.list", {}),
        ("tool.get", {"name": "clock"}),
        ("tool.call", {"session_id": sid, "name": "clock", "arguments": {}}),
        ("agent.list", {}),
        ("model.list", {}),
        ("model.route", {"messages": [{"role": "user", "content": "hi"}]}),
        ("model.infer", {"messages": [{"role": "user", "content": "hi"}]}),
        ("session.close", {"session_id": sid}),
        ("session.delete", {"session_id": sid}),
    ]
    results = {m["name"]: m["result"]["schema"] for m in document["methods"]}
    for method, params in calls:
        got = answer(daemon, method, params)
        assert "result" in got, (method, got)
        jsonschema.validate(got["result"], {**results[method], "components": document["components"]})


@pytest.mark.parametrize(
    ("method", "params", "said"),
    [
        ("session.run", {"session_id": "x"}, "`task`"),
        ("session.run", {"session_id": "x", "task": 7}, "`task`"),
        ("session.run", {"session_id": "x", "task": "t", "tier": "huge"}, "`tier`"),
        ("session.run", {"session_id": "x", "task": "t", "nonsense": 1}, "`nonsense`"),
        ("model.infer", {}, "`messages`"),
        ("model.infer", {"messages": []}, "`messages`"),
        ("model.infer", {"messages": [{"role": "user", "content": "t"}], "tier": "huge"}, "`tier`"),
        ("model.infer", {"messages": [{"role": "sage", "content": "t"}]}, "`messages[0].role`"),
        ("model.infer", {"messages": [{"role": "user", "content": "t", "mood": 1}]}, "`mood`"),
        (
            "model.route",
            {"messages": [{"role": "user", "content": "t"}], "latency_budget_ms": -1},
            "`latency_budget_ms`",
        ),
        ("model.infer", {"messages": [{"role": "user", "content": "t"}], "max_tokens": 0}, "`max_tokens`"),
        ("model.infer", {"messages": [{"role": "user", "content": "t"}], "schema": "x"}, "`schema`"),
        ("model.embed", {"texts": []}, "`texts`"),
        ("model.embed", {"texts": [1]}, "`texts[0]`"),
        ("session.run", {"session_id": "x", "task": "t", "max_tokens": -1}, "max_tokens"),
        ("session.run", {"session_id": "x", "task": "t", "timeout_s": 0}, "timeout_s"),
        ("session.run", {"session_id": "x", "task": "t", "max_usd": -1}, "max_usd"),
        ("session.run", {"session_id": "x", "task": "  "}, "task"),
        ("session.run", {"session_id": "x", "task": "t", "inputs": [{"name": "a"}]}, "`inputs[0]`"),
        ("session.create", {"agent": "nobody"}, "nobody"),
        ("session.create", {"workspace": "relative"}, "absolute"),
        ("session.create", {"workspace": "/"}, "/"),
        ("session.create", {"workspace": "/no/such/folder"}, "/no/such/folder"),
        ("session.create", {"write": True}, "workspace"),
        ("session.create", {"permissions": ["a b"]}, "a b"),
        ("session.list", {"cursor": "nonsense"}, "cursor"),
        ("memory.recall", {"query": "x"}, "exactly one"),
        ("memory.recall", {"query": "x", "session_id": "a", "user_id": "b"}, "exactly one"),
        ("memory.remember", {"session_id": "x"}, "content"),
        ("memory.forget", {}, "at least one"),
        ("memory.forget", {"dry_run": True}, "at least one"),
        ("task.get", [1], ""),
        ("task.prioritize", {"task_id": "x", "priority": "urgent"}, "`priority`"),
    ],
)
def test_params_that_do_not_fit_are_refused_and_named(
    asked: Daemon, method: str, params: object, said: str
) -> None:
    error = answer(asked, method, params)["error"]
    assert (error["code"], error["message"]) == (-32602, "Invalid params")
    assert said in error["data"]["detail"]


def test_an_id_that_is_none_is_not_found_everywhere(daemon: Daemon) -> None:
    for made_up in (
        "",
        "nonsense",
        "00000000-0000-4000-8000-000000000000",
        "1" * 10_000,
        "\0",
        "' OR 1=1 --",
    ):
        for method in ("session.get", "session.close", "session.delete", "memory.context"):
            assert answer(daemon, method, {"session_id": made_up})["error"]["code"] == NotFound.code
        for method in ("task.get", "task.wait", "task.cancel", "task.attach"):
            assert answer(daemon, method, {"task_id": made_up})["error"]["code"] == NotFound.code
        assert answer(daemon, "memory.get", {"memory_id": made_up})["error"]["code"] == NotFound.code
        run = {"session_id": made_up, "task": "t"}
        assert answer(daemon, "session.run", run)["error"]["code"] == NotFound.code


def test_home_is_no_workspace(daemon: Daemon) -> None:
    with pytest.raises(InvalidParams, match="too much"):
        daemon.session(workspace=str(Path.home()))


def test_a_sessions_permissions_are_its_agents_or_the_configs(tmp_path: Path) -> None:
    config = """
        default_permissions = ["read"]
        [agents.keeper]
        permissions = ["memory"]
        tier = "fast"
    """
    with Daemon(tmp_path / "home", config) as daemon:
        assert daemon.session().permissions == ("read",)
        assert daemon.session(agent="keeper").permissions == ("memory",)
        assert daemon.session(agent="keeper", permissions=("a",)).permissions == ("a",)
        assert daemon.run(daemon.session(agent="keeper"), "What is 1 + 1?").decision.tier == "fast"  # type: ignore[union-attr]
        assert [a.name for a in daemon.call(AgentList()).agents] == ["keeper"]


def test_two_agents_of_one_user_are_kept_apart_where_memory_is_not_granted(daemon: Daemon) -> None:
    one, other, open_one = (
        daemon.session(permissions=()),
        daemon.session(permissions=()),
        daemon.session(permissions=("memory",)),
    )
    daemon.call(MemoryRemember(session_id=one.session_id, content="The vault opens at dawn"))

    def recalled(session: r.Session) -> list[str]:
        found = daemon.call(MemoryRecall(session_id=session.session_id, query="when does the vault open"))
        return [m.content for m in found.memories]

    assert recalled(one) == ["The vault opens at dawn"]
    assert recalled(other) == []
    assert recalled(open_one) == ["The vault opens at dawn"]


def test_context_is_one_line_an_entry(daemon: Daemon) -> None:
    session = daemon.session()
    daemon.call(MemoryRemember(session_id=session.session_id, content="two\nlines"))
    daemon.run(session, "What is 1 + 1?")
    context = daemon.call(MemoryContext(session_id=session.session_id))
    lines = context.text.splitlines()
    assert [line.split("] ", 1)[1] for line in lines] == ["two lines", "What is 1 + 1?", "2"]
    assert all(
        line.startswith(f"[{e.created_at.isoformat()}] ")
        for line, e in zip(lines, context.entries, strict=True)
    )


def test_a_forgotten_memory_is_gone_from_recall_list_and_context(daemon: Daemon) -> None:
    session = daemon.session()
    daemon.call(MemoryRemember(session_id=session.session_id, content="The code is 4711"))
    assert daemon.call(MemoryForget(query="4711", session_id=session.session_id)).forgotten == 1
    sid = session.session_id
    assert daemon.call(MemoryRecall(session_id=sid, query="code")).memories == ()
    assert daemon.call(MemoryList(session_id=sid)).memories == ()
    assert daemon.call(MemoryContext(session_id=sid)).text == ""


def test_a_batch_runs_over_the_real_methods(daemon: Daemon) -> None:
    session = daemon.session()
    batch = [
        {
            "jsonrpc": "2.0",
            "id": i,
            "method": "session.run",
            "params": {"session_id": session.session_id, "task": t},
        }
        for i, t in enumerate(["What is 1 + 1?", "What is 2 + 2?"])
    ]
    answers = json.loads(daemon.raw(framing.encode([*batch, 7]) + b"\n"))
    assert [a.get("result", {}).get("result") for a in answers] == ["2", "4", None]


def test_what_a_task_that_has_ended_cannot_be_asked_is_refused_and_changes_nothing(daemon: Daemon) -> None:
    before = daemon.call(TaskGet(task_id=daemon.run(daemon.session(), "What is 1 + 1?").task_id))
    for params in (
        TaskCancel(task_id=before.task_id),
        TaskPrioritize(task_id=before.task_id, priority="background"),
        TaskResolve(task_id=before.task_id, call_id="1", action="done"),
    ):
        with pytest.raises(InvalidState, match=f"task {before.number} is completed"):
            daemon.call(params)
    for number in (1000, -1):
        with pytest.raises(InvalidParams, match="after_seq: expected 0 to"):
            daemon.call(TaskAttach(task_id=before.task_id, after_seq=number))
    assert daemon.call(TaskGet(task_id=before.task_id)) == before


def test_a_closed_session_runs_nothing(daemon: Daemon) -> None:
    session = daemon.session()
    daemon.call(SessionClose(session_id=session.session_id))
    with pytest.raises(InvalidState, match="is closed"):
        daemon.run(session, "What is 1 + 1?")
    assert daemon.call(TaskList()).tasks == ()
