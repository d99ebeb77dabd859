"""What a model gives through the pool: tool calls, and JSON that fits a schema."""

from __future__ import annotations

from typing import Any

import pytest

from aiosd.errors import InvalidParams, NoModelFits
from aiosd.models.backend import TextDelta
from aiosd.records import Tokens
from tests.doubles.http_double import Script
from tests.doubles.openai_double import OpenAIDouble
from tests.doubles.pools import (
    SCHEMA,
    TOOL,
    Ears,
    far,
    near_and_far,
    pool_of,
    user,
    why,
)

pytestmark = pytest.mark.anyio


async def test_tool_calls_come_back_also_of_tools_that_were_not_offered() -> None:
    script = Script(text=(), calls=(("search", '{"q": 1}'), ("invented", "{}")))
    async with near_and_far(script) as (pool, _, _):
        reply = await pool.reply(user(tools=(TOOL,)))
    assert [(c.name, c.arguments) for c in reply.tool_calls] == [("search", {"q": 1}), ("invented", {})]


async def test_arguments_that_are_no_json_fail_the_backend_and_the_next_one_is_asked() -> None:
    broken = Script(text=(), calls=(("search", "{q: 1}"),))
    async with (
        OpenAIDouble(broken) as first,
        OpenAIDouble() as second,
        pool_of({"a": far(first), "b": far(second)}) as pool,
    ):
        reply = await pool.reply(user(tools=(TOOL,)))
    assert reply.backend == "b"
    assert "no JSON object" in (why(reply)["a"] or "")


@pytest.mark.parametrize("text", ['{"n": 1}', ' {"n": 1}\n', '```json\n{"n": 1}\n```'])
async def test_with_a_schema_the_text_is_json_that_fits(text: str) -> None:
    ears = Ears()
    async with near_and_far(Script(text=(text[:3], text[3:]))) as (pool, local, _):
        reply = await pool.reply(user(schema=SCHEMA), on_delta=ears.on_delta)
    assert reply.text == '{"n": 1}'
    assert ears.heard == [TextDelta('{"n": 1}')]
    assert len(local.chats()) == 1


@pytest.mark.parametrize(("wrong", "says"), [("sure!", "it is not JSON"), ('{"n": "x"}', "$.n: 'x' is not")])
async def test_what_does_not_fit_is_asked_for_once_more(wrong: str, says: str) -> None:
    async with near_and_far() as (pool, local, _):
        local.scripts = [Script(text=(wrong,)), Script(text=('{"n": 2}',))]
        reply = await pool.reply(user(schema=SCHEMA))
    assert reply.text == '{"n": 2}'
    assert reply.usage == Tokens(input_tokens=22, output_tokens=14)
    first, second = local.chats()
    assert second["messages"][:-2] == first["messages"]
    assert second["messages"][-2]["content"] == wrong
    assert says in second["messages"][-1]["content"]


async def test_what_does_not_fit_twice_is_an_error_with_the_text() -> None:
    ears = Ears()
    async with near_and_far(Script(text=("no",))) as (pool, local, _):
        with pytest.raises(
            NoModelFits, match="did not answer in the schema, asked twice: it is not JSON"
        ) as caught:
            await pool.reply(user(schema=SCHEMA), on_delta=ears.on_delta)
    assert caught.value.data["text"] == "no"
    assert ears.heard == []
    assert len(local.chats()) == 2


async def test_json_cut_off_by_max_tokens_is_not_asked_for_again() -> None:
    async with near_and_far(Script(text=('{"n":',), length=True)) as (pool, local, _):
        with pytest.raises(NoModelFits, match="cut off by max_tokens = 3 before its JSON was whole"):
            await pool.reply(user(schema=SCHEMA, max_tokens=3))
    assert len(local.chats()) == 1


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "nonsense"}, "schema: 'nonsense' is not valid"),
        ({"$ref": "http://127.0.0.1:1/x"}, "it must hold all its parts itself"),
    ],
)
async def test_a_schema_that_is_none_is_refused_before_anyone_is_asked(
    schema: dict[str, Any], says: str
) -> None:
    async with near_and_far() as (pool, local, remote):
        with pytest.raises(InvalidParams, match=says):
            await pool.reply(user(schema=schema))
        assert local.seen == remote.seen == []


async def test_a_reply_with_tool_calls_need_not_fit_the_schema_yet() -> None:
    script = Script(text=(), calls=(("search", "{}"),))
    async with near_and_far(script) as (pool, _, _):
        assert len((await pool.reply(user(schema=SCHEMA, tools=(TOOL,)))).tool_calls) == 1
