"""Windows, vectors and what is in memory: Ollama and OpenAI servers through their backends, over real sockets."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosd import config
from aiosd.models import ollama, window
from aiosd.models.backend import BackendFailed, Done, Message, ModelRequest
from aiosd.models.openai import OpenAI
from tests.doubles.http_double import Script
from tests.doubles.ollama_double import Held, OllamaDouble
from tests.doubles.openai_double import OpenAIDouble
from tests.doubles.pools import near, pool_of, user

pytestmark = pytest.mark.anyio


def backend(double: OllamaDouble, model: str = "small", **section: Any) -> ollama.Ollama:
    section_ = near(double.url, model, **section)
    return ollama.Ollama("near", section_, ollama.server("near", section_, {}))


async def done(of: ollama.Ollama | OpenAI, request: ModelRequest) -> Done:
    with anyio.fail_after(30):
        async with aclosing(of.stream(request)) as stream:
            found = [delta async for delta in stream]
    assert isinstance(found[-1], Done)
    return found[-1]


@pytest.mark.parametrize(
    ("says", "configured", "num_ctx"),
    [(131072, None, 8192), (2048, None, 2048), (None, None, 4096), (131072, 32768, 32768)],
)
async def test_one_window_is_asked_for_in_every_request(
    says: int | None, configured: int | None, num_ctx: int
) -> None:
    async with OllamaDouble(models={"small": Held(context_length=says)}) as double:
        small = backend(double, context=configured)
        await done(small, user("hi"))
        double.models["small"] = Held(context_length=512)
        await done(small, user("hi", privacy="local", max_tokens=5))
        await small.aclose()
    assert [body["options"]["num_ctx"] for body in double.chats()] == [num_ctx, num_ctx]
    assert all(body["truncate"] is False and body["shift"] is False for body in double.chats())


@pytest.mark.parametrize("name", ["big:cloud", "moved"])
async def test_a_model_that_runs_elsewhere_keeps_its_own_window(name: str) -> None:
    held = Held(remote_host="https://ollama.com", context_length=512) if name == "moved" else Held()
    async with OllamaDouble(models={name: held}) as double:
        far = backend(double, name)
        await done(far, user("long " * 3000))
        await far.aclose()
    (body,) = double.chats()
    assert "num_ctx" not in body["options"]


async def test_a_prompt_that_cannot_fit_is_refused_with_the_counts_and_not_sent() -> None:
    async with OllamaDouble() as double:
        small = backend(double, context=1000)
        with pytest.raises(BackendFailed) as caught:
            await done(small, user("word " * 2000))
        await small.aclose()
    assert str(caught.value) == (
        "`small` holds 1,000 tokens, and this is about 2,504 (10,016 bytes): give less, or set a larger `context`"
        " for it in config.toml"
    )
    assert caught.value.fault == "request"
    assert double.chats() == []


async def test_the_next_backend_takes_what_does_not_fit_the_first() -> None:
    async with (
        OllamaDouble(models={"small": Held(), "large": Held()}) as double,
        pool_of(
            {"a": near(double.url, "small", context=1000), "b": near(double.url, "large", context=9000)}
        ) as pool,
    ):
        reply = await pool.reply(user("word " * 2000))
    assert reply.backend == "b"


@pytest.mark.parametrize(("words", "read"), [(900, 1000), (1100, 512)])
async def test_a_prompt_that_the_server_cut_is_said(words: int, read: int) -> None:
    """A server from before `truncate`: the window comes back full, or without whole messages."""
    async with (
        OllamaDouble(Script(read=read)) as double,
        pool_of({"small": near(double.url, context=1000)}) as pool,
    ):
        reply = await pool.reply(user("word " * words))
    assert (reply.decision.truncated or "").startswith("the prompt was cut: about 1,")
    assert f"{read:,} read, of a window of 1,000" in (reply.decision.truncated or "")


async def test_a_prompt_that_was_read_whole_is_not_said_to_be_cut() -> None:
    async with (
        OllamaDouble(Script(read=990)) as double,
        pool_of({"small": near(double.url, context=1000)}) as pool,
    ):
        assert (await pool.reply(user("word " * 900))).decision.truncated is None


async def test_reported_tokens_correct_the_estimate() -> None:
    """Six bytes a token: what was too much at first fits once that is known."""
    async with OllamaDouble(Script(read=900)) as double:
        small = backend(double, context=1000)
        for _ in range(8):
            await done(small, user("words " * 800))
        await done(small, user("words " * 1200))
        await small.aclose()
    assert len(double.chats()) == 9


@given(st.text(max_size=200), st.floats(1, 7), st.integers(1, 10**6))
def test_what_is_refused_is_over_the_window_by_any_guess(text: str, ratio: float, room: int) -> None:
    size = window.size_bytes(ModelRequest(messages=(Message(role="user", content=text),)))
    if window.refusal(size, ratio, room) is not None:
        assert window.tokens(size, ratio) > room
    assert size >= len(text.encode())


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6))))
def test_no_report_makes_the_ratio_absurd(reports: list[tuple[int, int]]) -> None:
    ratio = window.BYTES_PER_TOKEN
    for size, reported in reports:
        ratio = window.learnt(ratio, size, reported)
        assert window.LEAST <= ratio <= window.MOST


@pytest.mark.parametrize(("model", "tag"), [("small", "small:latest"), ("small:1b", "small:1b")])
async def test_a_model_in_memory_is_resident(model: str, tag: str) -> None:
    async with OllamaDouble() as double:
        small = backend(double, model)
        double.loaded = set()
        assert await small.resident() is False
        double.loaded = {tag}
        assert await small.resident() is True
        await small.aclose()
        assert await backend(double, "big:cloud").resident() is None


async def test_texts_become_vectors_in_their_order() -> None:
    async with (
        OllamaDouble(models={"e": Held(capabilities=("embedding",))}) as double,
        OpenAIDouble() as llama,
    ):
        for one in (
            backend(double, "e"),
            OpenAI("near", config.Backend(kind="openai", url=llama.base, model="e"), {}),
        ):
            with anyio.fail_after(30):
                found = await one.embed(["a", "bcd"])
            await one.aclose()
            assert (found.vectors, found.model, found.dim) == (((1.0, 1.0), (3.0, 1.0)), "e", 2)
    assert double.seen[-1].body["truncate"] is False


async def test_a_model_that_makes_no_vectors_says_so() -> None:
    async with OllamaDouble() as double, OpenAIDouble() as llama:
        llama.embeds = False
        for one in (
            backend(double),
            OpenAI("near", config.Backend(kind="openai", url=llama.base, model="small"), {}),
        ):
            with pytest.raises(BackendFailed, match="does not support embeddings") as caught:
                await one.embed(["a"])
            assert caught.value.fault == "request"
            await one.aclose()


async def test_no_text_leaves_the_machine_to_become_a_vector() -> None:
    held = Held(capabilities=("embedding",), remote_host="https://ollama.com")
    async with OllamaDouble(models={"e": held}) as double, OpenAIDouble() as there:
        far = config.Backend(kind="openai", url=there.base, model="e", local=False)
        for one in (backend(double, "e"), OpenAI("far", far, {})):
            with pytest.raises(BackendFailed, match="stay on the machine"):
                await one.embed(["secret"])
            await one.aclose()
    assert [seen.path for seen in double.seen] == ["/api/show"]
    assert there.seen == []


async def test_the_times_that_llama_cpp_reports_are_kept() -> None:
    async with OpenAIDouble() as llama:
        llama.timings = {"prompt_ms": 250.0, "predicted_ms": 1500.0, "predicted_n": 7}
        one = OpenAI("near", config.Backend(kind="openai", url=llama.base, model="m"), {})
        found = await done(one, user("hi"))
        await one.aclose()
    assert (found.load_s, found.prompt_s, found.output_s) == (None, 0.25, 1.5)
