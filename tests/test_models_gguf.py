"""The gguf backend on llama.cpp itself, with models that are made here."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import gguf
import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiosd.models import gguf_file
from aiosd.models.answer import Form
from aiosd.models.backend import (
    BackendFailed,
    Delta,
    Done,
    Message,
    ModelRequest,
    TextDelta,
    ToolCallDelta,
    ToolSpec,
)
from aiosd.models.gguf import Gguf
from tests import make_gguf
from tests.doubles.openai_double import OpenAIDouble
from tests.doubles.pools import user
from tests.llama import broken_off, busy, serving
from tests.test_models_wire import SEARCH, connect, deltas, failure

pytestmark = pytest.mark.anyio

ENDLESS = user("hi", max_tokens=100_000)
FORECAST = ToolSpec(
    name="forecast",
    description="The weather to come.",
    input_schema={
        "type": "object",
        "properties": {
            "city": {"type": "string", "enum": ["Paris", "London"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 9},
        },
        "required": ["city", "days"],
        "additionalProperties": False,
    },
)
REPORT = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "score": {"type": "integer", "minimum": -5, "maximum": 100},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["title", "score", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="session")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that writes on until its window is full, which takes it seconds."""
    return make_gguf.write(tmp_path_factory.mktemp("gguf") / "endless.gguf", dim=256, layers=4, endless=True)


def text_of(got: list[Delta]) -> str:
    return "".join(delta.text for delta in got if isinstance(delta, TextDelta))


def done_of(got: list[Delta]) -> Done:
    assert isinstance(got[-1], Done)
    return got[-1]


async def test_a_reply_comes_in_pieces_and_says_what_the_load_took(tiny: Path) -> None:
    async with serving(tiny) as backend:
        assert (backend.model, backend.local, await backend.resident()) == ("tiny", True, False)
        first = await deltas(backend, user("hi", schema=REPORT))  # else it could end before its first word
        assert await backend.resident()
        second = await deltas(backend, user("hi"))
    done = done_of(first)
    assert done.stop_reason in ("end_turn", "max_tokens")  # it writes noise, and ends by chance
    assert done.usage.output_tokens >= len(first) - 1 > 0
    assert done.load_s is not None
    assert done.load_s > 0.0
    assert done_of(second).load_s == 0.0


async def test_a_reply_ends_where_it_may_not_go_on(tiny: Path) -> None:
    async with serving(tiny) as backend:
        done = done_of(await deltas(backend, user("hi", schema=REPORT, max_tokens=3)))
    assert (done.stop_reason, done.usage.output_tokens) == ("max_tokens", 3)


async def test_closing_a_stream_frees_its_slot(endless: Path) -> None:
    async with serving(endless) as backend:
        async with aclosing(backend.stream(ENDLESS)) as stream:
            await anext(stream)
            assert await busy(backend) == 1
        while await busy(backend):
            pass
        assert await broken_off(backend) == 1


async def test_a_cancelled_request_frees_its_slot(endless: Path) -> None:
    async with serving(endless) as backend:
        async with anyio.create_task_group() as tasks:
            began = anyio.Event()

            async def ask() -> None:
                async with aclosing(backend.stream(ENDLESS)) as stream:
                    async for _ in stream:
                        began.set()

            tasks.start_soon(ask)
            await began.wait()
            tasks.cancel_scope.cancel()
        while await busy(backend):
            pass
        assert await broken_off(backend) == 1


async def test_slots_work_side_by_side_each_with_the_whole_context(endless: Path) -> None:
    async with (
        serving(endless, slots=2, context=512) as backend,
        aclosing(backend.stream(ENDLESS)) as one,
        aclosing(backend.stream(ENDLESS)) as other,
    ):
        await anext(one)
        await anext(other)
        assert await busy(backend) == 2
        for stream in (one, other):
            done = done_of([delta async for delta in stream])
            assert done.usage.input_tokens + done.usage.output_tokens == 512


async def test_a_cold_load_outlives_the_request_that_began_it(tiny: Path) -> None:
    async with serving(tiny) as backend:
        with anyio.move_on_after(0) as scope:
            await deltas(backend, user("hi"))
        assert scope.cancelled_caught
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(deltas, backend, user("hi"))
            await anyio.wait_all_tasks_blocked()
            pid = backend._child.pid
            tasks.cancel_scope.cancel()
        await deltas(backend, user("hi"))
        assert pid is not None
        assert backend._child.pid == pid


async def test_a_prompt_over_the_window_is_the_requests_fault_with_both_counts(tiny: Path) -> None:
    async with serving(tiny, context=512) as backend:
        request = user("pump " * 300)
        counted = await backend.count(request.messages)
        exc = await failure(backend, request)
        await deltas(backend, user("hi"))
    assert exc.fault == "request"
    assert f"holds 512 tokens, and this is {counted:,}: give less" in str(exc)


async def test_the_count_is_what_the_model_reads(tiny: Path) -> None:
    async with serving(tiny) as backend:
        (call,) = [
            d.call for d in await deltas(backend, user("hi", tools=(SEARCH,))) if isinstance(d, ToolCallDelta)
        ]
        messages = (
            Message(role="system", content="Be short. \u00fcber \U0001f600"),
            Message(role="user", content="the thing <tools>"),
            Message(role="assistant", content="", tool_calls=(call,)),
            Message(role="tool", content="found", call_id=call.call_id, name=call.name),
        )
        for length in (1, 2, 4):
            for tools in ((), (SEARCH, FORECAST)):
                request = ModelRequest(messages=messages[:length], tools=tools)
                if length == 1:
                    request = msgspec.structs.replace(request, messages=messages[1:2])
                read = done_of(await deltas(backend, request)).usage.input_tokens
                assert await backend.count(request.messages, tools) == read


async def all_valid(backend: Gguf, times: int) -> None:
    """So many calls of tools, and so many answers in a schema, each checked."""
    forms = {tool.name: Form(tool.input_schema) for tool in (SEARCH, FORECAST)}
    report = Form(REPORT)

    async def call() -> None:
        got = await deltas(backend, user("hi", tools=(SEARCH, FORECAST)))
        (call,) = [delta.call for delta in got if isinstance(delta, ToolCallDelta)]
        forms[call.name].read(msgspec.json.encode(call.arguments).decode())

    async def answer() -> None:
        text = text_of(await deltas(backend, user("hi", schema=REPORT)))
        assert report.read(text) == text.strip()

    asks: tuple[Callable[[], Awaitable[None]], ...] = (call, answer)
    places = anyio.Semaphore(backend.slots)

    async def place(ask: Callable[[], Awaitable[None]]) -> None:
        async with places:
            await ask()

    async with anyio.create_task_group() as tasks:
        for ask in asks * times:
            tasks.start_soon(place, ask)


async def test_arguments_of_tools_and_answers_fit_their_schemas(tiny: Path) -> None:
    async with serving(tiny, slots=4) as backend:
        await all_valid(backend, 50)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_thousand_arguments_and_a_thousand_answers_fit_their_schemas(tiny: Path) -> None:
    async with serving(tiny, within_s=900, slots=4) as backend:
        await all_valid(backend, 1000)


async def test_a_call_cut_off_by_the_limit_is_none(tiny: Path) -> None:
    cut = 0
    async with serving(tiny) as backend:
        for max_tokens in range(1, 40):  # the shortest call has more
            try:
                got = await deltas(backend, user("hi", tools=(SEARCH,), max_tokens=max_tokens))
            except BackendFailed as exc:
                assert exc.fault == "request"
                assert f"was cut off in its call of `search` by max_tokens = {max_tokens}" in str(exc)
                cut += 1
            else:
                assert done_of(got).stop_reason == "max_tokens"
                assert not [delta for delta in got if isinstance(delta, ToolCallDelta)]
    assert cut


async def test_a_schema_that_is_none_is_the_requests_fault(tiny: Path) -> None:
    async with serving(tiny) as backend:
        exc = await failure(backend, user("hi", schema={"type": "nonsense"}))
        await deltas(backend, user("hi"))
    assert exc.fault == "request"


async def test_a_process_that_dies_fails_its_requests_and_the_next_one_gets_another(endless: Path) -> None:
    async with serving(endless, slots=2) as backend:
        for _ in range(2):
            async with aclosing(backend.stream(ENDLESS)) as stream:
                await anext(stream)
                pid = backend._child.pid
                assert pid is not None
                os.kill(pid, signal.SIGABRT)  # as a failed assertion does
                with pytest.raises(BackendFailed, match=r"ended during the request: killed by signal 6"):
                    async for _ in stream:
                        pass
        assert done_of(await deltas(backend, user("hi", max_tokens=2))).load_s != 0.0
        assert backend._child.pid != pid


async def test_a_model_that_nobody_uses_gives_its_memory_back(tiny: Path) -> None:
    async with serving(tiny, idle_s=0.05) as backend:
        await deltas(backend, user("hi"))
        async with backend._child.hold(timeout_s=30) as process:
            pass
        with anyio.fail_after(30):
            await process.ended.wait()
        assert not await backend.resident()
        assert done_of(await deltas(backend, user("hi"))).load_s != 0.0


async def test_a_file_that_does_not_load_is_told_and_may_be_mended(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    path.write_bytes(tiny.read_bytes().replace(b"block_count", b"block_kount"))  # noqa: ASYNC240
    async with serving(path) as backend:
        assert await backend.probe() is None  # its header is one, and nobody has loaded it yet
        why = str(await failure(backend))
        assert "error loading model" in why
        assert await backend.probe() == why
        shutil.copy(tiny, path)
        assert await backend.probe() is None
        await deltas(backend, user("hi"))


async def test_a_file_that_is_cut_off_is_told_before_anybody_loads_it(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    shutil.copy(tiny, path)
    size = path.stat().st_size
    async with serving(path) as backend:
        for left, why in (
            (size - 1, f"{path} is cut off: it has {size - 1:,} bytes of {size:,}"),
            (3_000, f"{path} is cut off: it ends within its header"),
        ):
            os.truncate(path, left)
            assert await backend.probe() == why
            assert str(await failure(backend)) == why
        assert backend._child.pid is None
        shutil.copy(tiny, path)
        assert await backend.probe() is None


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_header_however_damaged_is_more_than_a_sentence(
    tiny: Path, tmp_path: Path, data: st.DataObject
) -> None:
    header = bytearray(tiny.read_bytes()[:8_000])
    for at in data.draw(st.lists(st.integers(0, len(header) - 1), max_size=8)):
        header[at] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.gguf"
    path.write_bytes(header[: data.draw(st.integers(0, len(header)))])
    why = gguf_file.damage(path)
    assert why is None or why.startswith(f"{path} is ")


def test_tensors_are_as_large_as_ggml_says() -> None:
    known = {int(type): size for type, size in gguf.GGML_QUANT_SIZES.items()}
    assert {type: known[type] for type in gguf_file.BLOCKS} == gguf_file.BLOCKS


async def test_a_file_that_makes_llama_abort_ends_its_own_process_alone(tmp_path: Path) -> None:
    path = make_gguf.write(tmp_path / "twice.gguf", aborts=True)
    async with serving(path) as backend:
        exc = await failure(backend)
        assert (exc.fault, exc.retry_after_s) == ("backend", None)
        await failure(backend)
        again = await failure(backend)  # it is not started over and over
    assert "killed by signal 6" in str(exc)
    assert "GGML_ASSERT" in str(exc)
    assert again.retry_after_s is not None
    assert again.retry_after_s > 0.0


async def test_a_file_that_is_not_there_or_no_model_is_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    async with serving(path) as backend:
        for write, why in (
            (None, f"{path}: No such file or directory"),
            (b"GG", f"{path} is no GGUF file"),
            (b"<html>", f"{path} is no GGUF file"),
        ):
            if write is not None:
                path.write_bytes(write)
            assert await backend.probe() == why
            assert str(await failure(backend)) == why
        assert backend._child.pid is None


async def test_without_llama_it_says_how_to_get_it(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    async with serving(tiny) as backend:
        assert "pip install 'aiosd[gguf]'" in (await backend.probe() or "")
        assert "pip install 'aiosd[gguf]'" in str(await failure(backend))


async def test_it_listens_on_loopback_and_lets_nobody_in_without_its_key(tiny: Path) -> None:
    async with serving(tiny) as backend:
        await deltas(backend, user("hi"))
        assert backend._server is not None
        url = str(backend._server.url)
        assert url.startswith("http://127.0.0.1:")
        async with httpx.AsyncClient(trust_env=False) as stranger:
            for key in ("unused", "KEY"):
                headers = {"Authorization": f"Bearer {key}", "Origin": "http://elsewhere.example"}
                answer = await stranger.post(
                    f"{url}/chat/completions", headers=headers, json={"messages": []}
                )
                assert answer.status_code == 401
        secret = str(backend._server._key).encode()
        for name in ("cmdline", "environ"):
            assert secret not in await anyio.Path(f"/proc/{backend._child.pid}/{name}").read_bytes()


class OnePerConnection(OpenAIDouble):
    """Closes a connection at its second request, as llama.cpp does when the two cross."""

    async def _answer(self, seen: Any, reader: Any, writer: Any) -> None:
        await super()._answer(seen, reader, writer)
        await self._hang(reader)


async def test_a_connection_without_tls_is_not_used_twice() -> None:
    async with OnePerConnection() as double:
        backend = connect("openai", double)
        for _ in range(3):
            await deltas(backend, user("hi"))
        await backend.aclose()
