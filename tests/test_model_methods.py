"""model.route, model.infer and model.embed: the daemon as a process, model servers as doubles over real sockets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aiosctl.client import Client
from aiosd import records as r
from aiosd.errors import AiosError, BudgetExhausted, InvalidParams, NoModelFits, NotFound
from aiosd.protocol.base import Params
from aiosd.protocol.models import ModelEmbed, ModelInfer, ModelRoute
from aiosd.protocol.sessions import SessionRun
from aiosd.protocol.system import SystemInfo
from tests.daemon import Daemon
from tests.doubles.http_double import Script
from tests.doubles.ollama_double import Held, OllamaDouble
from tests.doubles.openai_double import OpenAIDouble
from tests.test_runs import aside, config

pytestmark = pytest.mark.anyio


def asking(text: str = "hi", **rest: Any) -> ModelInfer:
    return ModelInfer(messages=(r.Message(role="user", content=text),), **rest)


def routing(text: str = "hi", **rest: Any) -> ModelRoute:
    return ModelRoute(messages=(r.Message(role="user", content=text),), **rest)


def failing(daemon: Daemon, params: Params[Any]) -> AiosError:
    with pytest.raises(AiosError) as caught:
        daemon.call(params)
    return caught.value


async def test_a_reply_without_a_session_leaves_nothing_behind(tmp_path: Path) -> None:
    async with OllamaDouble() as model:

        def work() -> tuple[r.Reply, dict[str, int]]:
            with Daemon(tmp_path / "home", config(model)) as daemon:
                return daemon.call(asking()), daemon.call(SystemInfo()).counts

        reply, counts = await aside(work)
    assert (reply.text, reply.backend, reply.model, reply.generated) == (
        "Hello there.",
        "here",
        "small",
        True,
    )
    assert reply.decision.chosen == "here"
    assert not any(counts.values())


async def test_a_streamed_reply_comes_in_pieces_before_it_comes_whole(tmp_path: Path) -> None:
    async with OllamaDouble() as model:

        def work() -> list[Any]:
            seen: list[Any] = []
            with Daemon(tmp_path / "home", config(model)) as daemon, Client(daemon.socket) as client:
                reply = client.call(
                    asking(stream=True),
                    on_notification=lambda name, raw: seen.append((name, json.loads(bytes(raw)))),
                )
                return [*seen, reply.text]

        *pieces, whole = await aside(work)
    assert pieces == [("model.text", {"text": text}) for text in ("Hello", " there", ".")]
    assert whole == "Hello there."


async def test_what_a_request_waits_for_is_told_to_who_asks_and_to_nobody_else(tmp_path: Path) -> None:
    async with OllamaDouble() as model:
        model.loaded = set()

        def work() -> tuple[list[Any], list[Any], str]:
            heard: list[list[Any]] = [[], []]
            with Daemon(tmp_path / "home", config(model)) as daemon:
                for told in (True, False):
                    with Client(daemon.socket) as client:
                        client.call(
                            asking(progress=told),
                            on_notification=lambda name, raw, to=heard[not told]: to.append(  # type: ignore[misc]
                                (name, json.loads(bytes(raw)))
                            ),
                        )
                    daemon.stop()
                    daemon.start()  # it asks again whether the model is there
                done = daemon.ctl("model", "infer", "hi")
                assert (done.returncode, done.stdout) == (0, "Hello there.\n")
                return heard[0], heard[1], done.stderr

        told, untold, stderr = await aside(work)
    ((name, progress),) = told
    assert (name, progress["stage"]) == ("model.progress", "loading")
    assert progress["detail"].startswith("loading small, about ")
    assert progress["eta_s"] > 0
    assert untold == []
    assert "loading small, about " in stderr


async def test_what_a_model_is_sent_is_what_was_given(tmp_path: Path) -> None:
    call = r.ToolUse(call_id="abc", name="search", arguments={"for": "x"})
    said = (
        r.Message(role="system", content="Be short."),
        r.Message(role="user", content="look"),
        r.Message(role="assistant", content="", tool_calls=(call,)),
        r.Message(role="tool", content="found", call_id="abc", name="search"),
    )
    tool = r.ToolSpec(name="search", description="Looks.", input_schema={"type": "object"})
    async with OllamaDouble(Script(text=(), calls=(("search", '{"for": "y"}'),))) as model:

        def work() -> r.Reply:
            with Daemon(tmp_path / "home", config(model)) as daemon:
                return daemon.call(ModelInfer(messages=said, tools=(tool,), max_tokens=9))

        reply = await aside(work)
        (body,) = model.chats()
    assert [m["role"] for m in body["messages"]] == ["system", "user", "assistant", "tool"]
    assert body["tools"][0]["function"]["name"] == "search"
    assert body["options"]["num_predict"] == 9
    assert [(c.name, c.arguments) for c in reply.tool_calls] == [("search", {"for": "y"})]


async def test_route_asks_no_model(tmp_path: Path) -> None:
    async with OllamaDouble() as here, OpenAIDouble() as there:

        def work() -> r.Decision:
            with Daemon(tmp_path / "home", config(here, there)) as daemon:
                return daemon.call(routing())

        decision = await aside(work)
        assert (here.chats(), there.chats()) == ([], [])
    assert decision.chosen == "here"
    assert {c.backend for c in decision.candidates} >= {"here", "there"}


async def test_private_text_is_routed_to_this_machine_or_refused(tmp_path: Path) -> None:
    async with OpenAIDouble() as there:

        def work() -> AiosError:
            with Daemon(tmp_path / "home", config(None, there)) as daemon:
                return failing(daemon, asking("secret", privacy="local"))

        exc = await aside(work)
        assert there.seen == []
    assert isinstance(exc, NoModelFits) and "stays on the machine" in str(exc)


async def test_what_infer_costs_counts_against_the_day(tmp_path: Path) -> None:
    """Each costs $0.0018, and $0.013 are held for it before it is known: the fourth could pass $0.018."""
    async with OpenAIDouble() as there:

        def work() -> tuple[list[float], AiosError, AiosError]:
            with Daemon(tmp_path / "home", config(None, there, "[budget]\nday_usd = 0.018\n")) as daemon:
                costs = [daemon.call(asking(max_tokens=100)).cost_usd for _ in range(3)]
                infer = failing(daemon, asking(max_tokens=100))
                run = failing(
                    daemon,
                    SessionRun(session_id=daemon.session().session_id, task="hi", max_tokens=100, tools=()),
                )
            return costs, infer, run

        costs, infer, run = await aside(work)
        sent = len(there.chats())
    assert costs == [pytest.approx(0.0018)] * 3
    for exc in (infer, run):
        assert isinstance(exc, BudgetExhausted) and "the day's cap of $0.02" in str(exc)
    assert sent == 3


async def test_a_caller_that_leaves_owes_the_most_it_can_have_cost(tmp_path: Path) -> None:
    async with OpenAIDouble(Script(fault="hang_after")) as there:

        def work() -> AiosError:
            with Daemon(tmp_path / "home", config(None, there, "[budget]\nday_usd = 0.018\n")) as daemon:
                with Client(daemon.socket) as client, pytest.raises(InterruptedError):
                    client.call(asking(max_tokens=100, stream=True), on_notification=leave)
                daemon.stop()
                daemon.start()  # what was only held is forgotten by now
                return failing(daemon, asking(max_tokens=100))

        def leave(name: str, raw: object) -> None:
            raise InterruptedError

        exc = await aside(work)
        await there.dropped.wait()
    assert isinstance(exc, BudgetExhausted)
    assert len(there.chats()) == 1


async def test_vectors_come_from_the_first_local_backend_that_makes_them(tmp_path: Path) -> None:
    held = {"small": Held(), "e": Held(capabilities=("embedding",))}
    async with OllamaDouble(models=held) as model, OpenAIDouble() as there:
        more = f'[models.backends.e]\nkind = "ollama"\nmodel = "e"\nurl = "{model.url}"\n'

        def work() -> tuple[r.Embedded, AiosError]:
            with Daemon(tmp_path / "home", config(model, there, more)) as daemon:
                found = daemon.call(ModelEmbed(texts=("a", "bcd")))
                del held["e"]
                return found, failing(daemon, ModelEmbed(texts=("a",)))

        found, exc = await aside(work)
        assert there.seen == []
    assert (found.model, found.dim, found.vectors) == ("e", 2, ((1.0, 1.0), (3.0, 1.0)))
    assert isinstance(exc, NoModelFits)
    assert "does not support embeddings" in str(exc) and "no model `e`" in str(exc)


async def test_bad_input_names_the_field_and_nothing_is_sent(tmp_path: Path) -> None:
    bad: list[tuple[Params[Any], type[AiosError], str]] = [
        (asking(schema={"type": "nonsense"}), InvalidParams, "schema: "),
        (routing(schema={"type": "nonsense"}), InvalidParams, "schema: "),
        (asking(backend="nobody"), NotFound, "no backend `nobody`; there are: `keyless`, `gone`, `here`"),
        (asking(backend="keyless"), NoModelFits, "its key $NO_SUCH_KEY (key_env) is not set"),
        (asking(backend="gone"), NoModelFits, "get it with: aiosctl model pull gone"),
    ]
    async with OllamaDouble() as model, OpenAIDouble() as there:
        more = (
            f'[models.backends.keyless]\nkind = "openai"\nmodel = "m"\nurl = "{there.base}"\n'
            f'key_env = "NO_SUCH_KEY"\n[models.backends.gone]\nkind = "ollama"\nmodel = "gone"\n'
            f'url = "{model.url}"\n'
        )

        def work() -> list[AiosError]:
            with Daemon(tmp_path / "home", config(model, None, more)) as daemon:
                return [failing(daemon, params) for params, _, _ in bad]

        raised = await aside(work)
        assert model.chats() == []
        assert there.seen == []
    for exc, (_, kind, text) in zip(raised, bad, strict=True):
        assert type(exc) is kind and text in str(exc), exc
