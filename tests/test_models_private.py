"""What must not leave the machine does not, under any fault."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiosd.errors import AiosError, NoModelFits
from aiosd.models.backend import Message, ModelRequest
from tests.doubles.http_double import Script
from tests.doubles.ollama_double import Held, OllamaDouble
from tests.doubles.openai_double import OpenAIDouble
from tests.doubles.pools import (
    SCHEMA,
    TOOL,
    Ears,
    Scripted,
    far,
    near,
    near_and_far,
    paid,
    pool_of,
    user,
    why,
)

pytestmark = pytest.mark.anyio

STATUSES = [400, 401, 403, 404, 429, 500, 503]


async def test_private_text_waits_for_nobody_elsewhere() -> None:
    async with near_and_far(Script(status=500)) as (pool, _, remote):
        with pytest.raises(NoModelFits, match="it is remote, and this text stays on the machine"):
            await pool.reply(user(privacy="local"))
        assert remote.seen == []


async def test_a_model_found_to_run_elsewhere_is_remote_from_then_on() -> None:
    models = {"small": Held(remote_host="https://ollama.com"), "own": Held()}
    async with OllamaDouble(models=models) as double:
        async with pool_of({"a": near(double.url), "b": near(double.url, "own")}) as pool:
            reply = await pool.reply(user(privacy="local"))
            assert reply.backend == "b"
            assert "runs elsewhere" in (why(reply)["a"] or "")
            assert {i.name: i.local for i in await pool.backends()} == {
                "a": False,
                "b": True,
                "extractive": True,
            }
            assert (await pool.reply(user())).backend == "b"
        assert [body["model"] for body in double.chats()] == ["own", "own"]


async def test_a_remote_backend_is_sent_what_may_leave_and_a_local_one_everything() -> None:
    open_ = (Message(role="user", content="what may leave"),)
    request = user("all of it", public=open_, withheld=2)
    async with near_and_far() as (pool, local, remote):
        assert (await pool.reply(request)).decision.reason == "the only local one of tier balanced"
        local.script = Script(status=500)
        reply = await pool.reply(request)
    assert reply.decision.reason == "no local backend answered; private texts withheld: 2"
    assert [body["messages"][0]["content"] for body in local.chats()] == ["all of it", "all of it"]
    assert [body["messages"][0]["content"] for body in remote.chats()] == ["what may leave"]


async def test_a_model_found_to_run_elsewhere_is_sent_what_may_leave() -> None:
    request = user("all of it", public=(Message(role="user", content="what may leave"),), withheld=1)
    async with OllamaDouble() as double, pool_of({"a": near(double.url)}) as pool:
        await pool.reply(request)
        double.models["small"] = Held(remote_host="https://ollama.com")
        reply = await pool.reply(request)
        assert "private texts withheld: 1" in reply.decision.reason
        double.scripts = [Script(text=("no JSON",)), Script(text=('{"n": 1}',))]
        await pool.reply(msgspec.structs.replace(request, schema=SCHEMA))
    sent = [body["messages"][0]["content"] for body in double.chats()]
    assert sent == ["all of it", *["what may leave"] * 3]


class Moving(Scripted):
    """It is found to be remote while it answers."""

    async def speak(self) -> AsyncIterator[str]:
        self.local = False
        yield "SECRET, and no JSON"


@pytest.mark.parametrize("public", [None, (Message(role="user", content="open"),)])
async def test_what_a_model_made_of_private_text_is_not_sent_back_to_one_that_moved(
    public: tuple[Message, ...] | None,
) -> None:
    moving = Moving()
    request = user(public=public, privacy="local" if public is None else "any", schema=SCHEMA)
    async with pool_of({}, {"moving": moving}) as pool:
        with pytest.raises(NoModelFits, match="it turned out to be remote"):
            await pool.reply(request)
    assert len(moving.asked) == 1


async def test_an_added_remote_backend_is_sent_what_may_leave() -> None:
    remote = Scripted("hello")
    remote.local = False
    open_ = (Message(role="user", content="open"),)
    async with pool_of({}, {"remote": remote}) as pool:
        await pool.reply(user("SECRET", public=open_))
    assert [request.messages for request in remote.asked] == [open_]
    assert remote.asked[0].public is None


scripts = st.builds(
    Script,
    status=st.sampled_from([200, 200, 200, *STATUSES]),
    fault=st.sampled_from([None, "cut", "error_line", "unfinished", "garbage"]),
)


@given(
    near_scripts=st.lists(scripts, min_size=1, max_size=3),
    moved=st.booleans(),
    listed=st.permutations(["cloud", "lan", "cloudy", "here"]),
    request_=st.builds(
        user,
        text=st.just("SECRET"),
        privacy=st.sampled_from(["any", "local"]),
        public=st.sampled_from([None, (Message(role="user", content="open"),)]),
        task_type=st.sampled_from(["reasoning", "summarization", "embedding"]),
        backend=st.sampled_from([None, None, None, "cloud", "cloudy", "here"]),
        latency_budget_ms=st.sampled_from([None, 1]),
        tools=st.sampled_from([(), (TOOL,)]),
        schema=st.sampled_from([None, SCHEMA]),
    ),
    listening=st.booleans(),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_no_fault_and_no_config_sends_private_text_elsewhere(
    near_scripts: list[Script], moved: bool, listed: list[str], request_: ModelRequest, listening: bool
) -> None:
    models = {"small": Held(remote_host="https://ollama.com" if moved else None), "big:cloud": Held()}
    ears = Ears()
    async with OllamaDouble(models=models) as ollama, OpenAIDouble() as cloud, OpenAIDouble() as lan:
        ollama.scripts = list(near_scripts)
        backends = {
            "cloud": paid(cloud),
            "lan": far(lan),
            "cloudy": near(ollama.url, "big:cloud"),
            "here": near(ollama.url),
        }
        async with pool_of({name: backends[name] for name in listed}) as pool:
            for _ in range(3):
                try:
                    await pool.reply(request_, on_delta=ears.on_delta if listening else None)
                except AiosError:
                    pass
    asked = [*cloud.chats(), *lan.chats()]
    asked += [body for body in ollama.chats() if moved or body["model"] == "big:cloud"]
    if request_.privacy == "local" or request_.task_type == "embedding":
        assert cloud.seen == lan.seen == []
        assert asked == []
    if request_.public is not None:
        assert "SECRET" not in str(asked)
