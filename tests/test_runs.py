"""Whole runs: aiosctl, the daemon as a process, and a model's server that is a double over a real socket."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import anyio.to_thread
import pytest

from aiosd import framing
from aiosd import records as r
from aiosd.errors import BudgetExhausted, NoModelFits
from aiosd.protocol.memory import MemoryContext, MemoryRemember
from aiosd.protocol.tasks import TaskCancel, TaskGet
from aiosd.state import tasks
from aiosd.state.database import open_database
from aiosd.state.learnt import every
from tests.daemon import Daemon
from tests.doubles.http_double import Script
from tests.doubles.ollama_double import OllamaDouble
from tests.doubles.openai_double import OpenAIDouble

pytestmark = pytest.mark.anyio

T = TypeVar("T")


async def aside(work: Callable[[], T]) -> T:
    """What blocks, off the loop that the doubles run on."""
    return await anyio.to_thread.run_sync(work)


def config(local: OllamaDouble | None = None, remote: OpenAIDouble | None = None, more: str = "") -> str:
    """`here` on this machine, and `there`, which only its own word makes remote."""
    text = more
    if local is not None:
        text += f'[models.backends.here]\nkind = "ollama"\nmodel = "small"\nurl = "{local.url}"\n'
    if remote is not None:
        text += (
            f'[models.backends.there]\nkind = "openai"\nmodel = "big"\nurl = "{remote.base}"\nlocal = false\n'
            "price_in = 100\nprice_out = 100\n"
        )
    return text


async def test_a_model_is_given_the_sessions_tools_and_what_they_gave(tmp_path: Path) -> None:
    async with OllamaDouble(Script(text=("It is ", "84."))) as model:
        model.scripts = [Script(text=(), calls=(("calculator", '{"expression": "12 * 7"}'),))]

        def work() -> r.TaskResult:
            with Daemon(tmp_path / "home", config(model)) as daemon:
                return daemon.run(daemon.session(permissions=("read",)), "Twelve sevens?")

        result = await aside(work)
        first, second = model.chats()
    assert {t["function"]["name"] for t in first["tools"]} == {
        "calculator",
        "clock",
        "list_files",
        "read_file",
        "search_files",
    }
    schema = next(t for t in first["tools"] if t["function"]["name"] == "calculator")["function"][
        "parameters"
    ]
    assert schema["properties"]["expression"]["type"] == "string"
    call, given = second["messages"][-2:]
    assert call["tool_calls"][0]["function"] == {"name": "calculator", "arguments": {"expression": "12 * 7"}}
    assert (given["role"], given["content"]) == ("tool", "84")
    assert (result.result, result.generated, result.backend) == ("It is 84.", True, "here")
    assert [(s.kind, s.ref, s.text) for s in result.sources] == [("tool", "calculator", "84")]
    assert result.usage == r.Tokens(input_tokens=22, output_tokens=14)


async def test_a_tool_that_is_denied_unknown_or_misused_is_told_to_the_model(tmp_path: Path) -> None:
    calls = (("remember", '{"content": "x"}'), ("no_such_tool", "{}"), ("calculator", '{"sum": 1}'))
    async with OllamaDouble(Script(text=("I give up.",))) as model:
        model.scripts = [Script(text=(), calls=calls)]

        def work() -> r.TaskResult:
            with Daemon(tmp_path / "home", config(model)) as daemon:
                return daemon.run(daemon.session(permissions=()), "Do it")

        result = await aside(work)
        told = sorted(m["content"] for m in model.chats()[1]["messages"] if m["role"] == "tool")
    assert result.result == "I give up."
    assert "arguments.sum" in told[0] and "expression" in told[0]
    assert "may not use `remember`" in told[1]
    assert "no_such_tool" in told[2]


async def test_the_next_run_knows_the_session_and_other_sessions_memories(tmp_path: Path) -> None:
    async with OllamaDouble() as model:

        def work() -> None:
            with Daemon(tmp_path / "home", config(model)) as daemon:
                session, other = daemon.session(), daemon.session()
                daemon.call(MemoryRemember(session_id=other.session_id, content="The pump's code is K77"))
                daemon.run(session, "Good morning")
                daemon.kill()
                daemon.start()
                daemon.run(session, "What is the pump's code?")

        await aside(work)
        messages = model.chats()[1]["messages"]
    assert "The pump's code is K77" in messages[0]["content"]
    assert [(m["role"], m["content"]) for m in messages[1:]] == [
        ("user", "Good morning"),
        ("assistant", "Hello there."),
        ("user", "What is the pump's code?"),
    ]


async def test_a_private_session_and_its_memories_never_reach_a_remote_model(tmp_path: Path) -> None:
    async with OllamaDouble() as local, OpenAIDouble() as remote:
        tiers = '[models.tiers]\nbalanced = ["there"]\nfast = ["here"]\n'

        def work() -> tuple[r.TaskResult, str]:
            with Daemon(tmp_path / "home", config(local, remote, tiers)) as daemon:
                private, open_one = daemon.session(privacy="local"), daemon.session()
                sid = private.session_id
                daemon.call(MemoryRemember(session_id=sid, content="The SECRET code of the pump is K77"))
                with pytest.raises(NoModelFits):
                    daemon.run(private, "What is the SECRET code of the pump?")
                daemon.run(private, "What is the code of the pump?", tier="fast")
                result = daemon.run(open_one, "What is the code of the pump?")
                context = daemon.call(MemoryContext(session_id=open_one.session_id)).entries
                return result, context[-1].privacy

        result, kept = await aside(work)
        sent = json.dumps([s.body for s in remote.seen if s.body])
        assert "SECRET" in json.dumps(local.chats())
    assert (result.backend, kept) == ("there", "any")
    assert "What is the code of the pump?" in sent and "SECRET" not in sent and "K77" not in sent
    assert result.decision is not None and "withheld" in result.decision.reason


async def test_a_paid_answer_says_why_and_for_how_much_and_no_cap_is_passed(tmp_path: Path) -> None:
    async with OpenAIDouble() as remote:
        caps = "[budget]\nday_usd = 1.0\n"

        def work() -> tuple[r.TaskResult, r.Task]:
            with Daemon(tmp_path / "home", config(None, remote, caps)) as daemon:
                session = daemon.session(max_usd=0.9)
                paid = daemon.run(session, "Hello", max_tokens=100)
                with pytest.raises(BudgetExhausted, match="session's cap") as caught:
                    daemon.run(session, "Write a book", max_tokens=9000)
                assert "nothing was sent" in str(caught.value)
                with pytest.raises(BudgetExhausted, match="task's cap"):
                    daemon.run(session, "Hello", max_usd=0.0)
                with pytest.raises(BudgetExhausted, match="day's cap"):
                    daemon.run(daemon.session(), "Write a book", max_tokens=20_000)
                return paid, daemon.call(TaskGet(task_id=paid.task_id))

        paid, task = await aside(work)
        assert len(remote.chats()) == 1
    # 11 tokens in and 7 out, at 100 dollars a million.
    assert paid.cost_usd == task.cost_usd == pytest.approx(0.0018)
    assert paid.decision is not None and "paid" in paid.decision.reason and "$100" in paid.decision.reason


async def test_a_model_that_always_calls_a_tool_is_stopped_at_its_step_limit(tmp_path: Path) -> None:
    again = Script(text=("once more",), calls=(("clock", "{}"),))
    async with OllamaDouble(again) as model:

        def work() -> r.TaskResult:
            with Daemon(tmp_path / "home", config(model)) as daemon:
                return daemon.run(daemon.session(), "What time is it?", max_steps=3)

        result = await aside(work)
        assert len(model.chats()) == 3
    assert (result.state, result.stop_reason, result.result) == ("completed", "max_steps", "once more")


async def test_a_schema_gives_an_object_and_an_agent_its_system_text(tmp_path: Path) -> None:
    agents = '[agents.clerk]\nsystem = "You answer in JSON."\n'
    async with OllamaDouble(Script(text=('{"port": ', "8080}"))) as model:

        def work() -> Any:
            schema = {"type": "object", "properties": {"port": {"type": "integer"}}, "required": ["port"]}
            with Daemon(tmp_path / "home", config(model, more=agents)) as daemon:
                return daemon.run(daemon.session(agent="clerk"), "Which port?", schema=schema).result

        assert await aside(work) == {"port": 8080}
        (chat,) = model.chats()
    assert chat["format"]["required"] == ["port"]
    assert "You answer in JSON." in chat["messages"][0]["content"]


async def test_text_is_streamed_before_the_answer_and_whole_in_the_message(tmp_path: Path) -> None:
    async with OllamaDouble(Script(thinking="hm", text=("one ", "two ", "three"))) as model:

        def work() -> list[dict[str, Any]]:
            with Daemon(tmp_path / "home", config(model)) as daemon:
                session = daemon.session()
                params = {"session_id": session.session_id, "task": "Count", "stream": True}
                lines = daemon.raw(framing.request(1, "session.run", params)).splitlines()
                assert json.loads(lines[-1])["result"]["result"] == "one two three"
                return [json.loads(line)["params"] for line in lines[:-1]]

        events = await aside(work)
    text = ""
    for event in events:
        if event["kind"] == "text":
            assert event["offset"] == len(text)
            text += event["text"]
    assert text == "one two three"
    kept = [e for e in events if e["kind"] not in ("text", "thinking")]
    assert [e["seq"] for e in kept] == list(range(1, len(kept) + 1))
    message = next(e for e in kept if e["kind"] == "message")
    assert (message["text"], message["thinking"]) == ("one two three", "hm")


async def test_cancel_closes_the_models_stream_and_keeps_what_there_was(tmp_path: Path) -> None:
    async with OllamaDouble(Script(text=("half",), fault="hang_after")) as model:
        with anyio.fail_after(60):
            with Daemon(tmp_path / "home", config(model)) as daemon:
                session = await aside(daemon.session)
                async with await anyio.connect_unix(daemon.socket) as stream:
                    params = {"session_id": session.session_id, "task": "Count", "stream": True}
                    await stream.send(framing.request(1, "session.run", params))
                    heard = b""
                    while b"half" not in heard:
                        heard += await stream.receive()
                    task_id = json.loads(heard.splitlines()[0])["params"]["task_id"]
                    cancelled = await aside(lambda: daemon.call(TaskCancel(task_id=task_id)))
                    await model.dropped.wait()
    assert cancelled.state == "cancelled"
    assert cancelled.error is not None
    assert cancelled.error["data"]["result"]["result"] == "half"


async def test_a_backend_that_failed_is_told_of_while_the_next_one_is_asked(tmp_path: Path) -> None:
    async with OllamaDouble(Script(status=500, error="out of memory")) as here, OpenAIDouble() as there:

        def work() -> r.TaskResult:
            with Daemon(tmp_path / "home", config(here, there)) as daemon:
                result = daemon.run(daemon.session(permissions=()), "Hello", max_tokens=10)
                assert daemon.stop() == 0
                return result

        result = await aside(work)
    assert result.decision is not None and result.backend == "there"
    assert {
        c.backend: c.predicted_s is not None for c in result.decision.candidates if c.backend != "extractive"
    } == {
        "here": True,
        "there": True,
    }
    (file,) = (tmp_path / "home" / "data").glob("*.db")
    async with open_database(file) as database:
        events = await database.read(lambda c: tasks.events(c, result.task_id))
        learnt = await database.read(every)
    told = [e.detail for e in events if isinstance(e, r.ProgressEvent) and e.stage == "retrying"]
    assert len(told) == 1 and told[0].startswith("`here` failed: ") and "out of memory" in told[0]
    assert [(backend, model) for backend, model, _ in learnt] == [("there", "big")]
