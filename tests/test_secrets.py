"""Keys stay home: their values reach no log, journal, memory, audit row or remote model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import anyio.to_thread
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosctl.client import Client
from aiosd.config import Backend, Config, Mcp, McpServer, Models
from aiosd.models.backend import ModelRequest
from aiosd.models.router import outgoing
from aiosd.protocol.memory import MemoryList
from aiosd.protocol.models import ModelInfer
from aiosd.protocol.sessions import SessionRun
from aiosd.protocol.tools import ToolCall
from aiosd.records import AnyEvent, Input, Message, TaskResult, Text, TextEvent, ToolResult, ToolUse
from aiosd.secrets import Secrets
from aiosd.tasks.inference import public
from tests.daemon import Daemon
from tests.doubles.http_double import Script
from tests.doubles.openai_double import OpenAIDouble

T = TypeVar("T")

KEY = 'sk-env-"quoted\\slash-4711'
FILE_KEY = "sk-file-0815-abcdefgh"
LATER = "sk-file-changed-since"

TOOLS = """
import os
from aiosd.tools import tool

@tool(permissions=["*"], read_only=True)
def leak(text: str) -> dict[str, str]:
    "Gives what it is given, and all of its environment."
    return {"text": text, "environment": repr(dict(os.environ))}

@tool(permissions=["*"])
def fail(text: str) -> str:
    "Fails with what it is given, and says it on stderr."
    raise ValueError(text)
"""


async def aside(work: Callable[[], T]) -> T:
    return await anyio.to_thread.run_sync(work)


def remains(home: Path) -> list[Path]:
    """The files below that have a key in them, plain or as it stands in JSON, or in JSON in JSON."""
    once = [json.dumps(key)[1:-1] for key in (KEY, FILE_KEY, LATER)]
    spellings = {KEY, FILE_KEY, LATER, *once, *(json.dumps(text)[1:-1] for text in once)}
    files = [path for path in home.rglob("*") if path.is_file() and path.name != "key.txt"]
    assert len(files) > 3
    return [path for path in files if any(text.encode() in path.read_bytes() for text in spellings)]


@pytest.mark.anyio
async def test_no_key_gets_into_what_is_kept_or_sent(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "tools").mkdir(parents=True)
    (home / "tools" / "leaks.py").write_text(TOOLS)
    (home / "key.txt").write_text(FILE_KEY + "\n")
    async with OpenAIDouble(Script(text=("All done.",))) as model:
        secret = json.dumps({"text": f"{KEY} and {FILE_KEY}"})
        model.scripts = [
            Script(text=(f"I will use {KEY}",), calls=(("leak", secret), ("fail", secret))),
            Script(text=(), calls=(("remember", json.dumps({"content": f"the key is {FILE_KEY}"})),)),
        ]
        config = f"""
            [models.tiers]
            balanced = ["cloud"]
            [models.backends.cloud]
            kind = "openai"
            url = "{model.base}"
            model = "m"
            local = false
            key_env = "SOME_KEY"
            [models.backends.other]
            kind = "openai"
            url = "{model.base}"
            model = "m"
            key_file = "{home}/key.txt"
        """

        def work() -> None:
            with Daemon(home, config, {"SOME_KEY": KEY}) as daemon:
                session = daemon.session()
                inputs = (Input(name="env", text=f"K={KEY}"),)
                assert daemon.run(session, f"Use {FILE_KEY}", inputs=inputs).result == "All done."

                def leak(text: str) -> str:
                    call = ToolCall(session_id=session.session_id, name="leak", arguments={"text": text})
                    return str(daemon.call(call))

                given = leak(f"x {KEY} x")
                assert KEY not in given and "x [$SOME_KEY] x" in given
                failed = ToolCall(session_id=session.session_id, name="fail", arguments={"text": KEY})
                assert "ValueError: [$SOME_KEY]" in str(daemon.call(failed))
                assert "ValueError: [$SOME_KEY]" in daemon.log.read_text()  # a host's stderr goes there
                (home / "key.txt").write_text(LATER)
                assert "x [key file key.txt] x" in leak(f"x {LATER} x")
                memories = daemon.call(MemoryList(session_id=session.session_id)).memories
                assert any("the key is [key file key.txt]" in memory.content for memory in memories)
                assert remains(home) == []

        await aside(work)
        sent = json.dumps(model.chats())
        assert len(model.chats()) == 3 and "[$SOME_KEY]" in sent and "[key file key.txt]" in sent
        assert KEY.split('"')[0] not in sent and FILE_KEY not in sent
        assert model.seen[-1].headers["authorization"] == f"Bearer {KEY}"  # that is what it is for


@pytest.mark.anyio
async def test_a_key_in_a_prompt_reaches_a_local_model_and_no_remote_one(tmp_path: Path) -> None:
    prompt = Message(role="user", content=f"What is {KEY} for? It is in {json.dumps({'env': KEY})}")
    async with OpenAIDouble(Script(text=("For you.",))) as far, OpenAIDouble(Script(text=(KEY,))) as near:
        config = f"""
            [models.backends.far]
            kind = "openai"
            url = "{far.base}"
            model = "m"
            local = false
            key_env = "SOME_KEY"
            [models.backends.near]
            kind = "openai"
            url = "{near.base}"
            model = "m"
        """

        def work() -> None:
            with Daemon(tmp_path / "home", config, {"SOME_KEY": KEY}) as daemon:
                asked = ModelInfer(messages=(prompt,), backend="far")
                assert daemon.call(asked).text == "For you."
                asked = ModelInfer(messages=(prompt,), backend="near")
                assert daemon.call(asked).text == KEY  # his own, by a model on his machine
                assert remains(daemon.home) == []

        await aside(work)
        (sent,) = far.chats()
        masked = prompt.content.replace(KEY, "[$SOME_KEY]").replace(json.dumps(KEY)[1:-1], "[$SOME_KEY]")
        assert [message["content"] for message in sent["messages"]] == [masked]
        assert [message["content"] for message in near.chats()[0]["messages"]] == [prompt.content]


VALUES = st.text(st.characters(exclude_categories=["Cs"]), min_size=8, max_size=40).filter(
    lambda text: len(text.strip()) >= 8
)


@given(value=VALUES, data=st.data())
def test_wherever_a_key_stands_in_a_request_what_goes_out_has_none(value: str, data: st.DataObject) -> None:
    config = Config(models=Models(backends={"a": Backend(kind="openai", url="http://x", key_env="A_KEY")}))
    secrets = Secrets(config, {"A_KEY": value})
    value = value.strip()
    around = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
    text = st.one_of(
        around,
        st.builds(lambda a, b: a + value + b, around, around),
        around.map(lambda text: json.dumps({text: value}, ensure_ascii=False)),
    )
    use = st.builds(ToolUse, call_id=around, name=around, arguments=st.dictionaries(text, text, max_size=2))
    message = st.builds(
        Message,
        role=st.sampled_from(["user", "assistant", "tool"]),
        content=text,
        tool_calls=st.lists(use, max_size=2).map(tuple),
    )
    request = ModelRequest(messages=data.draw(st.lists(message, min_size=1, max_size=3).map(tuple)))
    ready = public(request, secrets)
    assert outgoing(ready, local=True).messages == request.messages
    for sent in outgoing(ready, local=False).messages:
        used = [each for call in sent.tool_calls for pair in call.arguments.items() for each in pair]
        for each in (sent.content, *used):
            assert value not in each and json.dumps(value, ensure_ascii=False)[1:-1] not in each


def test_a_key_of_the_services_credentials_or_of_an_mcp_server_is_known(tmp_path: Path) -> None:
    (tmp_path / "CLOUD_KEY").write_text("sk-credential\n")
    env = {"GITHUB_TOKEN": "ghp-0123456789", "LOG_LEVEL": "debugging"}
    config = Config(
        models=Models(backends={"a": Backend(kind="openai", url="http://x", key_env="CLOUD_KEY")}),
        mcp=Mcp(servers={"github": McpServer(command="x", env=env)}),
    )
    secrets = Secrets(config, {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    said = secrets.mask("sk-credential ghp-0123456789 debugging")
    assert said == "[$CLOUD_KEY] [$GITHUB_TOKEN] debugging"


@given(st.text(min_size=8, max_size=40).filter(lambda text: len(text.strip()) >= 8), st.text(max_size=10))
def test_a_value_is_masked_wherever_it_stands_in_a_record(value: str, around: str) -> None:
    config = Config(models=Models(backends={"a": Backend(kind="openai", url="http://x", key_env="A_KEY")}))
    secrets = Secrets(config, {"A_KEY": value})
    value = value.strip()
    result = ToolResult(
        content=(Text(text=around + value + around),),
        is_error=False,
        structured_content={"deep": [{"it": value}]},
    )
    masked = secrets.masked(result)
    assert masked.structured_content == {"deep": [{"it": "[$A_KEY]"}]}
    assert "[$A_KEY]" in masked.content[0].text


@given(st.data())
def test_a_stream_is_masked_wherever_it_is_parted(data: st.DataObject) -> None:
    """Of a small alphabet, so that keys begin like each other and like what stands around them."""
    keys = data.draw(st.lists(st.text("ab", min_size=8, max_size=12), min_size=1, max_size=3, unique=True))
    piece = st.one_of(
        st.text("abc", max_size=6), st.sampled_from(keys), st.sampled_from([key[:7] for key in keys])
    )
    pieces = data.draw(st.lists(piece, max_size=8))
    config = Config(
        models=Models(
            backends={
                f"b{n}": Backend(kind="openai", url="http://x", key_env=f"K{n}") for n in range(len(keys))
            }
        )
    )
    secrets = Secrets(config, {f"K{n}": key for n, key in enumerate(keys)})
    whole = "".join(pieces)
    at_once = secrets.stream().feed(whole + "!")
    stream = secrets.stream()
    shown = [stream.feed(piece) for piece in pieces]
    assert "".join(shown) + stream.feed("!") == at_once  # the parting changes nothing
    assert not any(key in at_once for key in keys)
    if len(keys) == 1:
        assert at_once == secrets.mask(whole + "!")


@pytest.mark.anyio
async def test_no_watcher_sees_a_key_that_comes_in_pieces(tmp_path: Path) -> None:
    async with OpenAIDouble(
        Script(text=(f"it is {KEY[:9]}", KEY[9:15], f"{KEY[15:]}, and that", " is all."))
    ) as model:
        config = f"""
            [models.backends.cloud]
            kind = "openai"
            url = "{model.base}"
            model = "m"
            local = false
            key_env = "SOME_KEY"
        """
        texts: list[tuple[int, str]] = []
        seen: list[bytes] = []

        def hear(method: str, params: msgspec.Raw) -> None:
            seen.append(bytes(params))
            event = msgspec.json.decode(params, type=AnyEvent)
            if isinstance(event, TextEvent):
                texts.append((event.offset, event.text))

        def work() -> TaskResult:
            with (
                Daemon(tmp_path / "home", config, {"SOME_KEY": KEY}) as daemon,
                Client(daemon.socket) as client,
            ):
                run = SessionRun(session_id=daemon.session().session_id, task="Say it", stream=True)
                return client.call(run, on_notification=hear)

        result = await aside(work)
        assert result.result == "it is [$SOME_KEY], and that is all."
        streamed = ""
        for offset, text in texts:
            assert offset == len(streamed)
            streamed += text
        assert streamed == result.result
        assert not any(KEY[:9].encode() in each or KEY[15:].encode() in each for each in seen)


def test_a_text_that_is_a_key_only_with_half_of_an_escape_is_none() -> None:
    config = Config(models=Models(backends={"a": Backend(kind="openai", url="http://x", key_env="A_KEY")}))
    text = ToolResult(content=(Text(text="\npm_01234567"),), is_error=False)
    assert Secrets(config, {"A_KEY": "npm_01234567"}).masked(text) == text


def test_what_is_too_short_for_a_key_masks_no_words() -> None:
    config = Config(models=Models(backends={"a": Backend(kind="openai", url="http://x", key_env="A_KEY")}))
    text = ToolResult(content=(Text(text="a test"),), is_error=False)
    assert Secrets(config, {"A_KEY": "test"}).masked(text) is text
    assert Secrets(config, {}).masked(text) is text
