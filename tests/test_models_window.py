"""Windows, vectors and what is in memory: Ollama and OpenAI servers through their backends, over real sockets."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

import anyio
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosd import config
from aiosd.models import ollama, window
from aiosd.models.backend import BackendFailed, Done, Message, ModelRequest, Spare, ToolSpec
from aiosd.models.openai import OpenAI
from aiosd.records import ToolUse
from tests.doubles.http_double import Script
from tests.doubles.ollama_double import Held, OllamaDouble
from tests.doubles.openai_double import OpenAIDouble
from tests.doubles.pools import near, pool_of, user, why

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
    small = window.Window(room)
    small.ratio = ratio
    if small.refusal(size) is not None:
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


# --- what is left out to fit --------------------------------------------------------------------------------------

LONG = "x" * 1000
SPEC = ToolSpec(name="search", description=LONG, input_schema={"type": "object"})
CALLED = ToolSpec(name="read", description=LONG, input_schema={"type": "object"})


def whole() -> ModelRequest:
    """Of everything that a task can be sent something, 1,000 bytes each."""
    call = ToolUse(call_id="c", name="read", arguments={})
    told = Spare(kind="memory", role="system", content="", head="the rules", title="\nNotes:\n")
    return ModelRequest(
        messages=(
            told.with_pieces([f"best {LONG}", f"worst {LONG}"]),
            Spare(kind="turn", role="user", content=f"first {LONG}"),
            Spare(kind="turn", role="assistant", content=f"second {LONG}"),
            Spare(kind="turn", role="user", content=f"third {LONG}"),
            Spare(kind="input", role="user", content="").with_pieces([f"short {LONG}", f"long {LONG * 3}"]),
            Message(role="user", content=f"the task {LONG}"),
            Message(role="assistant", content="", tool_calls=(call,)),
            Spare(kind="result", role="tool", content=f"gave {LONG}", call_id="c", name="read"),
        ),
        tools=(SPEC, CALLED),
    )


def texts(request: ModelRequest) -> str:
    return " ".join(m.content for m in request.messages) + " ".join(t.name for t in request.tools)


@pytest.mark.parametrize(
    ("less", "dropped"),
    [
        (0, ()),
        (1, ("2 turns",)),  # an answer goes with what it answered
        (2000, ("2 turns",)),
        (2100, ("3 turns",)),
        (3100, ("3 turns", "1 memory")),
        (5000, ("3 turns", "2 memories")),
        (5400, ("3 turns", "2 memories", "321 bytes of tool results")),
        (6000, ("3 turns", "2 memories", "605 bytes of tool results", "1 tool")),
        (7500, ("3 turns", "2 memories", "605 bytes of tool results", "1 tool", "749 bytes of the input")),
        (9**9, ("3 turns", "2 memories", "605 bytes of tool results", "1 tool", "3,211 bytes of the input")),
    ],
)
def test_what_is_left_out_follows_the_stated_order(less: int, dropped: tuple[str, ...]) -> None:
    request = whole()
    fitted = window.fit(request, window.size_bytes(request) - less)
    assert fitted.dropped == dropped
    assert fitted.size == window.size_bytes(fitted.request)
    if less < 8000:
        assert fitted.size <= window.size_bytes(request) - less
    left = texts(fitted.request)
    for stays in ("the rules", f"the task {LONG}", "gave", "read", "short", "long"):
        assert stays in left


def test_the_largest_tool_goes_first() -> None:
    tools = [ToolSpec(name=str(n), description="x" * n, input_schema={}) for n in (100, 1000, 500)]
    request = user("hi", tools=tuple(tools))
    fitted = window.fit(request, window.size_bytes(request) - 600)
    assert [tool.name for tool in fitted.request.tools] == ["100", "500"]


def test_the_middle_goes_and_the_longest_text_first() -> None:
    request = whole()
    fitted = window.fit(request, window.size_bytes(request) - 8000)
    (given,) = [m for m in fitted.request.messages if isinstance(m, Spare) and m.kind == "input"]
    short, long = given.pieces
    assert short == f"short {LONG}"
    assert long.startswith("long x") and long.endswith("xxx") and "bytes left out" in long


@given(st.data())
def test_the_task_is_never_left_out_and_nothing_is_for_nothing(data: st.DataObject) -> None:
    text = st.text(max_size=900)
    kinds = st.lists(st.tuples(st.sampled_from(["turn", "result", "input"]), text), max_size=12)
    told = Spare(kind="memory", role="system", content="", head=data.draw(text), title="Notes:\n")
    messages: list[Message] = [told.with_pieces(data.draw(st.lists(text, max_size=5)))]
    for kind, content in data.draw(kinds):
        spare = Spare(kind=kind, role="tool" if kind == "result" else "user", content=content)  # type: ignore[arg-type]
        messages.append(spare.with_pieces([content, content]) if kind == "input" else spare)
    task = Message(role="user", content=data.draw(text))
    request = ModelRequest(messages=(*messages, task))
    most = data.draw(st.integers(0, 20_000))
    fitted = window.fit(request, most)
    assert fitted.request.messages[-1] == task
    assert fitted.request.messages[0].content.startswith(told.head)
    assert fitted.size == window.size_bytes(fitted.request) <= window.size_bytes(request)
    assert bool(fitted.dropped) == (fitted.request != request) or fitted.size == window.size_bytes(request)
    if window.size_bytes(request) <= most:
        assert fitted.request is request
    "".join(m.content for m in fitted.request.messages).encode()


async def test_what_was_left_out_is_said_and_the_rest_is_sent() -> None:
    async with (
        OllamaDouble(models={"small": Held(context_length=1000)}) as double,
        pool_of({"small": near(double.url)}) as pool,
    ):
        turns = [Spare(kind="turn", role="user", content=f"{i} {LONG}") for i in range(9)]
        task = Message(role="user", content="the task")
        reply = await pool.reply(ModelRequest(messages=(*turns, task), max_tokens=9000))
        fits = await pool.reply(user("hi"))
    body, _ = double.chats()
    assert reply.decision.dropped == "left out, to fit the window of 1,000 tokens: 7 turns"
    assert fits.decision.dropped is None
    assert [m["content"][:8] for m in body["messages"]] == ["7 xxxxxx", "8 xxxxxx", "the task"]


async def test_a_larger_window_is_asked_before_an_input_is_cut() -> None:
    given = Spare(kind="input", role="user", content="").with_pieces([LONG * 9])
    request = ModelRequest(messages=(given, Message(role="user", content="the task")))
    async with (
        OllamaDouble(models={"small": Held(), "large": Held()}) as double,
        pool_of(
            {"a": near(double.url, "small", context=1000), "b": near(double.url, "large", context=9000)}
        ) as pool,
    ):
        reply = await pool.reply(request)
        named = await pool.reply(msgspec.structs.replace(request, backend="a"))
    assert reply.backend == "b" and reply.decision.dropped is None
    assert why(reply)["a"] == "its window is too small for all of this"
    assert (named.decision.dropped or "").endswith("bytes of the input")


async def test_a_server_that_says_its_window_is_believed() -> None:
    """vLLM's way; of others nothing is left out."""
    for card, sent in (({"max_model_len": 1000}, 3), ({}, 10)):
        async with OpenAIDouble() as double:
            double.card = card
            one = OpenAI("near", config.Backend(kind="openai", url=double.base, model="m"), {})
            turns = [Spare(kind="turn", role="user", content=f"{i} {LONG}") for i in range(9)]
            found = await done(one, ModelRequest(messages=(*turns, Message(role="user", content="task"))))
            await one.aclose()
        (body,) = double.chats()
        assert len(body["messages"]) == sent
        assert (found.dropped is None) == (sent == 10)
