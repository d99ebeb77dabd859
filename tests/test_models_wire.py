"""Ollama and OpenAI servers, through the backends that speak to them, over real sockets."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosd import addresses, config
from aiosd.models import ollama, openai
from aiosd.models.backend import (
    Backend,
    BackendFailed,
    Delta,
    Done,
    Message,
    ModelRequest,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    ToolSpec,
)
from aiosd.models.openai import OpenAI
from aiosd.records import Tokens, ToolUse
from tests.doubles.http_double import Fault, HttpDouble, Script, Seen
from tests.doubles.ollama_double import Held, OllamaDouble
from tests.doubles.openai_double import OpenAIDouble

pytestmark = pytest.mark.anyio

Kind = Literal["ollama", "openai"]
both = pytest.mark.parametrize("kind", ["ollama", "openai"])

TOOK: dict[Kind, dict[str, Any]] = {
    "ollama": {"load_s": 0.25, "prompt_s": 0.5, "output_s": 1.0},
    "openai": {},
}
"""What the doubles report."""

SEARCH = ToolSpec(
    name="search",
    description="Looks for text.",
    input_schema={
        "type": "object",
        "properties": {
            "where": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
            "limit": {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}], "default": None},
        },
        "required": ["where"],
    },
)


def user(text: str, **rest: Any) -> ModelRequest:
    return ModelRequest(messages=(Message(role="user", content=text),), **rest)


@asynccontextmanager
async def serving(
    kind: Kind, script: Script | None = None, **section: Any
) -> AsyncIterator[tuple[Backend, HttpDouble]]:
    """A backend and the double it talks to."""
    async with AsyncExitStack() as stack:
        double: HttpDouble
        if kind == "ollama":
            double = await stack.enter_async_context(OllamaDouble(script))
        else:
            double = await stack.enter_async_context(OpenAIDouble(script))
        backend = connect(kind, double, **section)
        stack.push_async_callback(backend.aclose)
        yield backend, double


def connect(
    kind: Kind, double: HttpDouble, environ: dict[str, str] | None = None, **section: Any
) -> ollama.Ollama | OpenAI:
    url = double.url if kind == "ollama" else f"{double.url}/v1"
    backend = config.Backend(**{"kind": kind, "url": url, "model": "small"} | section)
    if kind == "ollama":
        return ollama.Ollama("near", backend, ollama.server("near", backend, environ or {}))
    return OpenAI("near", backend, environ or {})


async def deltas(backend: Backend, request: ModelRequest) -> list[Delta]:
    with anyio.fail_after(30):
        return [delta async for delta in backend.stream(request)]


async def failure(backend: Backend, request: ModelRequest | None = None) -> BackendFailed:
    with pytest.raises(BackendFailed) as caught:
        await deltas(backend, request or user("hi"))
    return caught.value


@both
async def test_text_and_thinking_come_as_they_are_made_and_end_in_done(kind: Kind) -> None:
    async with serving(kind, Script(thinking="Hm.")) as (backend, _):
        assert await deltas(backend, user("hi")) == [
            ThinkingDelta("Hm."),
            TextDelta("Hello"),
            TextDelta(" there"),
            TextDelta("."),
            Done(stop_reason="end_turn", usage=Tokens(input_tokens=11, output_tokens=7), **TOOK[kind]),
        ]


@both
async def test_the_whole_conversation_and_the_limit_reach_the_wire(kind: Kind) -> None:
    call = ToolUse(call_id="abc", name="search", arguments={"where": {"path": "."}})
    request = ModelRequest(
        messages=(
            Message(role="system", content="Be short."),
            Message(role="user", content="look"),
            Message(role="assistant", content="", tool_calls=(call,)),
            Message(role="tool", content="found", call_id="abc", name="search"),
        ),
        max_tokens=50,
    )
    async with serving(kind) as (backend, double):
        await deltas(backend, request)
    (body,) = double.chats()
    system, asked, assistant, result = body["messages"]
    assert (system["role"], system["content"]) == ("system", "Be short.")
    assert (asked["role"], asked["content"]) == ("user", "look")
    function = assistant["tool_calls"][0]["function"]
    assert function["name"] == "search"
    assert (result["role"], result["content"], result["tool_call_id"]) == ("tool", "found", "abc")
    assert body["model"] == "small"
    if kind == "ollama":
        assert function["arguments"] == {"where": {"path": "."}}
        assert result["tool_name"] == "search"
        assert body["options"]["num_predict"] == 50
    else:
        assert json.loads(function["arguments"]) == {"where": {"path": "."}}
        assert body["max_tokens"] == 50


@both
async def test_tools_reach_the_wire_whole_and_calls_come_back_with_ids_of_their_own(kind: Kind) -> None:
    arguments = '{"where": {"path": "src"}, "limit": 3}'
    script = Script(text=(), calls=(("search", arguments), ("search", '{"where": {"path": "."}}')))
    async with serving(kind, script) as (backend, double):
        first, second, done = await deltas(backend, user("look", tools=(SEARCH,)))
    (body,) = double.chats()
    function = body["tools"][0]["function"]
    assert (function["name"], function["description"]) == ("search", "Looks for text.")
    assert function["parameters"] == SEARCH.input_schema
    assert isinstance(first, ToolCallDelta)
    assert isinstance(second, ToolCallDelta)
    assert (first.call.name, first.call.arguments) == ("search", json.loads(arguments))
    assert second.call.arguments == {"where": {"path": "."}}
    assert first.call.call_id != second.call.call_id
    assert isinstance(done, Done)
    assert done.stop_reason == "end_turn"


@both
async def test_a_schema_reaches_the_wire(kind: Kind) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    async with serving(kind) as (backend, double):
        await deltas(backend, user("hi", schema=schema))
    (body,) = double.chats()
    if kind == "ollama":
        assert body["format"] == schema
    else:
        assert body["response_format"]["type"] == "json_schema"
        assert body["response_format"]["json_schema"]["schema"] == schema


@both
async def test_a_reply_cut_at_its_limit_says_so(kind: Kind) -> None:
    async with serving(kind, Script(length=True)) as (backend, _):
        done = (await deltas(backend, user("hi")))[-1]
    assert isinstance(done, Done)
    assert done.stop_reason == "max_tokens"


FAULTS: list[tuple[Fault, str]] = [
    ("cut", "cut the connection"),
    ("error_line", "broke off: "),
    ("unfinished", "before it was done"),
    ("garbage", "does not speak"),
]


@both
@pytest.mark.parametrize(("fault", "says"), FAULTS)
async def test_a_stream_that_breaks_is_a_failure_in_words(kind: Kind, fault: Fault, says: str) -> None:
    async with serving(kind, Script(fault=fault)) as (backend, _):
        exc = await failure(backend)
    assert says in str(exc)
    assert exc.fault == "backend"


@both
async def test_a_line_that_is_no_object_is_a_failure_in_words(kind: Kind) -> None:
    async with serving(kind, Script(fault="not_an_object")) as (backend, _):
        assert "does not speak O" in str(await failure(backend))


@both
@pytest.mark.parametrize(
    ("status", "headers", "says", "retry_after_s", "fault"),
    [
        (400, {}, "refused the request: no", None, "request"),
        (429, {"Retry-After": "7"}, "busy: no", 7.0, "backend"),
        (429, {}, "busy", 5.0, "backend"),
        (503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, "busy", 0.0, "backend"),
        (503, {"Retry-After": "soon"}, "busy", 5.0, "backend"),
        (500, {}, "failed with status 500: no", None, "backend"),
        (403, {}, "without a key", math.inf, "backend"),
    ],
)
async def test_each_refusal_says_what_it_means_and_when_to_come_back(
    kind: Kind, status: int, headers: dict[str, str], says: str, retry_after_s: float | None, fault: str
) -> None:
    async with serving(kind, Script(status=status, headers=headers)) as (backend, double):
        exc = await failure(backend)
    assert says in str(exc)
    assert (exc.retry_after_s, exc.fault) == (retry_after_s, fault)
    assert len(double.chats()) == 1  # retries are the pool's, with another backend


@both
async def test_where_nobody_listens_it_says_where_and_comes_back_soon(kind: Kind) -> None:
    async with serving(kind) as (backend, double):
        url = double.url
        await double.stop()
        exc = await failure(backend)
        assert await backend.probe() == str(exc)
    assert url in str(exc)
    assert exc.retry_after_s == 2.0
    assert ("ollama.com/download" in str(exc)) is (kind == "ollama")


async def test_a_model_that_ollama_does_not_have_can_be_pulled() -> None:
    async with serving("ollama", model="tiny:1b") as (backend, double):
        assert (
            str(await failure(backend))
            == "Ollama has no model `tiny:1b`; get it with: aiosctl model pull tiny:1b"
        )
        assert "aiosctl model pull tiny:1b" in (await backend.probe() or "")
        assert double.chats() == []


async def test_a_model_that_a_server_does_not_have_is_named() -> None:
    async with serving("openai", Script(status=404, error="unknown model")) as (backend, _):
        exc = await failure(backend)
    assert "has no model `small`: unknown model" in str(exc)
    assert exc.fault == "request"


@both
async def test_a_redirect_is_not_followed(kind: Kind) -> None:
    async with OllamaDouble() as elsewhere, serving(kind, Script(location=elsewhere.url)) as (backend, _):
        assert "307" in str(await failure(backend))
        assert elsewhere.seen == []


@both
async def test_a_proxy_of_the_environment_serves_remote_backends_only(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(kind) as (_, proxy):
        for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        async with serving(kind) as (near, _), serving(kind, local=False) as (also_near, _):
            await deltas(near, user("hi"))
            await deltas(also_near, user("hi"))
        assert proxy.seen == []
        far = connect(kind, proxy, url="http://models.invalid" + ("" if kind == "ollama" else "/v1"))
        await deltas(far, user("hi"))
        await far.aclose()
        assert len(proxy.chats()) == 1


class Counting(OllamaDouble):
    """Counts connections, and ends the one of a chat with `closes` in it after the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.connections = 0
        self.closed = asyncio.Event()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        await super()._connected(reader, writer)

    async def _answer(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await super()._answer(seen, reader, writer)
        if seen.path == "/api/chat" and "closes" in seen.body["messages"][-1]["content"]:
            writer.close()
            await writer.wait_closed()
            self.closed.set()
            raise ConnectionError


async def test_ollama_keeps_a_connection_until_the_server_closes_it() -> None:
    async with Counting() as double:
        backend = connect("ollama", double)
        await deltas(backend, user("one"))
        await deltas(backend, user("two"))
        assert double.connections == 1
        await deltas(backend, user("the server closes after this"))
        await double.closed.wait()
        await deltas(backend, user("four"))
        assert double.connections == 2
        await backend.aclose()


@both
async def test_closing_a_stream_closes_the_connection(kind: Kind) -> None:
    async with serving(kind, Script(fault="hang_after")) as (backend, double):
        with anyio.fail_after(30):
            stream = backend.stream(user("hi"))
            async with aclosing(stream):  # type: ignore[type-var]
                assert await anext(stream) == TextDelta("Hello")
            await double.dropped.wait()


@both
@pytest.mark.parametrize("fault", ["hang", "hang_after"])
async def test_a_cancelled_stream_closes_the_connection(kind: Kind, fault: Fault) -> None:
    async with serving(kind, Script(fault=fault)) as (backend, double):
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(deltas, backend, user("hi"))
                await double.arrived.wait()
                tasks.cancel_scope.cancel()
            await double.dropped.wait()


@both
async def test_the_key_the_config_names_is_the_one_sent(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "ambient")
    monkeypatch.setenv("OLLAMA_API_KEY", "ambient")
    monkeypatch.setenv("OPENAI_ORG_ID", "ambient")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Secret: ambient")
    file = tmp_path / "key"
    file.write_text("from-file\n")
    sections: list[tuple[dict[str, Any], str | None]] = [
        ({"key_env": "MY_KEY"}, "Bearer from-env"),
        ({"key_file": str(file)}, "Bearer from-file"),
        ({}, None if kind == "ollama" else "Bearer unused"),
    ]
    for section, expected in sections:
        async with serving(kind, environ={"MY_KEY": "from-env"}, **section) as (backend, double):
            await deltas(backend, user("hi"))
            assert await backend.probe() is None
        for seen in double.seen:
            assert seen.headers.get("authorization") == expected
            assert "ambient" not in str(seen.headers)


@both
async def test_a_key_that_is_named_in_vain_sends_nothing(kind: Kind, tmp_path: Path) -> None:
    async with serving(kind, key_env="MISSING") as (backend, double):
        exc = await failure(backend)
        assert "its key $MISSING (key_env) is not set" in str(exc)
        assert "aiosctl model key near" in str(exc)
        assert exc.retry_after_s == math.inf
        assert double.seen == []
    async with serving(kind, key_file=str(tmp_path / "none")) as (backend, double):
        assert "No such file" in str(await failure(backend))
        assert double.seen == []


async def test_a_refused_key_is_named_and_never_shown() -> None:
    async with OpenAIDouble(key="right") as double:
        backend = connect("openai", double, {"MY_KEY": "sk-secret"}, key_env="MY_KEY")
        exc = await failure(backend)
        reason = await backend.probe()
        await backend.aclose()
    for text in (str(exc), reason or ""):
        assert "refused the key in $MY_KEY" in text
        assert "sk-secret" not in text
    assert exc.retry_after_s == math.inf


@both
@pytest.mark.parametrize("status", [400, 429, 500])
async def test_a_key_that_a_server_echoes_is_not_passed_on(kind: Kind, status: int) -> None:
    script = Script(status=status, error="bad: sk-secret " + "x" * 1000)
    async with serving(kind, script, environ={"K": "sk-secret"}, key_env="K") as (backend, _):
        text = str(await failure(backend))
    assert "sk-secret" not in text
    assert len(text) < 500


@pytest.mark.parametrize("arguments", ["[1]", "{", "nonsense", '"text"', '{"a": 1} {"b": 2}'])
async def test_arguments_that_are_no_object_fail_the_reply(arguments: str) -> None:
    async with serving("openai", Script(text=(), calls=(("search", arguments),))) as (backend, _):
        exc = await failure(backend, user("look", tools=(SEARCH,)))
    assert "`small` called `search` with arguments that are no JSON object" in str(exc)
    assert exc.fault == "backend"


async def test_a_call_without_arguments_is_one_with_none() -> None:
    async with serving("openai", Script(text=(), calls=(("now", ""),))) as (backend, _):
        call = (await deltas(backend, user("when")))[0]
    assert isinstance(call, ToolCallDelta)
    assert call.call.arguments == {}


async def test_a_call_cut_off_by_max_tokens_says_so_and_is_the_requests_fault() -> None:
    script = Script(text=(), calls=(("search", '{"where": '),), length=True)
    async with serving("openai", script) as (backend, _):
        exc = await failure(backend, user("look", tools=(SEARCH,), max_tokens=9))
    assert "cut off in its call of `search` by max_tokens = 9" in str(exc)
    assert exc.fault == "request"


async def test_a_model_without_tools_is_not_sent_any() -> None:
    async with OllamaDouble(models={"small": Held(capabilities=("completion",))}) as double:
        backend = connect("ollama", double)
        exc = await failure(backend, user("look", tools=(SEARCH,)))
        await backend.aclose()
    assert (str(exc), exc.fault) == ("`small` takes no tools", "request")
    assert double.chats() == []


@pytest.mark.parametrize("name", ["gpt-oss:120b-cloud", "qwen3-coder:cloud"])
@both
async def test_a_cloud_model_is_remote_whatever_the_address(kind: Kind, name: str) -> None:
    async with serving(kind, model=name) as (backend, double):
        assert not backend.local
        await failure(backend, user("secret", privacy="local"))
        assert double.chats() == []


async def test_a_model_that_is_said_to_run_elsewhere_gets_no_private_text() -> None:
    async with OllamaDouble(models={"small": Held(remote_host="https://ollama.com:443")}) as double:
        backend = connect("ollama", double)
        assert backend.local
        exc = await failure(backend, user("secret", privacy="local"))
        assert "runs elsewhere" in str(exc)
        assert not backend.local
        assert double.chats() == []
        assert len(await deltas(backend, user("not secret"))) == 4
        await backend.aclose()


async def test_a_model_that_moves_elsewhere_later_gets_no_private_text() -> None:
    async with OllamaDouble() as double:
        backend = connect("ollama", double)
        await deltas(backend, user("secret", privacy="local"))
        double.models["small"] = Held(remote_host="https://ollama.com:443")
        await failure(backend, user("secret", privacy="local"))
        await backend.aclose()
    assert len(double.chats()) == 1


@both
async def test_a_probe_of_a_server_that_hangs_ends(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiosd.models.endpoint.PROBE_S", 0.05)
    async with serving(kind) as (backend, double):
        await deltas(backend, user("hi"))  # the package's import counts against nothing
        monkeypatch.setattr(double, "other", _never)
        monkeypatch.setattr("tests.doubles.http_double.send", _hang)
        with anyio.fail_after(30):
            assert "did not answer within" in (await backend.probe() or "")


def _never(seen: object) -> tuple[int, Any]:
    return 200, {}


async def _hang(*_: object) -> None:
    await anyio.sleep_forever()


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:8000", "http://127.0.0.1:8000"),
        (":8000", "http://127.0.0.1:8000"),
        ("box", "http://box:11434"),
        ("https://box", "https://box:443"),
        ("http://box/ollama/", "http://box:80/ollama"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("[::]", "http://[::1]:11434"),
    ],
)
def test_ollama_host_is_read_as_ollama_writes_it(host: str, url: str) -> None:
    assert addresses.ollama(host) == url


@given(st.lists(st.integers(1, 40), max_size=30))
async def test_an_event_is_the_same_however_its_bytes_arrive(sizes: list[int]) -> None:
    text = "a line\u2028that is none\u0085to JSON"
    stream = f': hello\ndata: {{"t": "{text}"}}\r\n\r\ndata:\ndata: [DONE]\n\n'.encode()

    async def pieces() -> AsyncIterator[bytes]:
        rest = stream
        for size in sizes:
            yield rest[:size]
            rest = rest[size:]
        yield rest

    found = [data async for data in openai._events(pieces())]
    assert found == [f'{{"t": "{text}"}}'.encode(), b"[DONE]"]
