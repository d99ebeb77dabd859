"""The backends against real servers, where there are any: AIOSD_TEST_OLLAMA=URL and AIOSD_TEST_OPENAI=URL.

AIOSD_TEST_MODEL names the model; without it the first that the server lists is taken.
"""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, Literal

import anyio
import pytest

from aiosd import config
from aiosd.models import ollama
from aiosd.models.backend import BackendFailed, Done, TextDelta
from aiosd.models.openai import OpenAI
from tests.doubles.pools import SCHEMA, pool_of, user

Kind = Literal["ollama", "openai"]
pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]


def _where(kind: Kind) -> str:
    return os.environ.get(f"AIOSD_TEST_{kind.upper()}", "").rstrip("/")


KINDS: list[Kind] = [kind for kind in ("ollama", "openai") if _where(kind)]
if not KINDS:
    pytest.skip("AIOSD_TEST_OLLAMA and AIOSD_TEST_OPENAI name no server", allow_module_level=True)

each = pytest.mark.parametrize("kind", KINDS)


def section(kind: Kind) -> config.Backend:
    url = _where(kind)
    with urllib.request.urlopen(f"{url}/api/tags" if kind == "ollama" else f"{url}/models") as answer:
        listed = json.load(answer)
    names = [m["name"] for m in listed["models"]] if kind == "ollama" else [m["id"] for m in listed["data"]]
    model = os.environ.get("AIOSD_TEST_MODEL") or names[0]
    return config.Backend(kind=kind, url=url, model=model)


@asynccontextmanager
async def serving(kind: Kind) -> AsyncIterator[ollama.Ollama | OpenAI]:
    found = section(kind)
    one = (
        ollama.Ollama("real", found, ollama.server("real", found, {}))
        if kind == "ollama"
        else OpenAI("real", found, {})
    )
    try:
        yield one
    finally:
        await one.aclose()


@each
async def test_a_reply_streams_and_says_what_it_took(kind: Kind) -> None:
    async with serving(kind) as one:
        assert await one.probe() is None
        with anyio.fail_after(300):
            found = [delta async for delta in one.stream(user("Say hello.", max_tokens=20))]
    done = found[-1]
    assert isinstance(done, Done)
    assert done.usage.input_tokens > 0 and 0 < done.usage.output_tokens <= 20
    assert "".join(d.text for d in found if isinstance(d, TextDelta))
    if kind == "ollama":
        assert done.prompt_s is not None and done.output_s is not None


@each
async def test_a_schema_is_kept_to(kind: Kind) -> None:
    async with pool_of({"real": section(kind)}) as pool:
        reply = await pool.reply(user("A number between 1 and 9.", schema=SCHEMA, max_tokens=400))
    assert isinstance(json.loads(reply.text)["n"], int)


@each
async def test_a_prompt_over_the_window_is_refused_and_not_cut(kind: Kind) -> None:
    """By us where it is too much by any guess, else by the server, which can count."""
    async with serving(kind) as one:
        if kind == "ollama":
            one.window.tokens = 512  # small enough for any machine
        words = "one two three " * (200 if kind == "ollama" else 400_000)
        with pytest.raises(BackendFailed) as caught:
            [_ async for _ in one.stream(user(words, max_tokens=5))]
    assert caught.value.fault == "request"


@each
async def test_a_closed_stream_leaves_the_server_free(kind: Kind) -> None:
    async with serving(kind) as one:
        with anyio.fail_after(300):
            stream: Any = one.stream(user("Count to a thousand.", max_tokens=1000))
            async with aclosing(stream):
                await anext(stream)
            assert [d async for d in one.stream(user("Say hello.", max_tokens=5))]


@each
async def test_texts_become_vectors_or_the_server_says_why_not(kind: Kind) -> None:
    async with serving(kind) as one:
        with anyio.fail_after(300):
            try:
                found = await one.embed(["a pump", "a blue pump"])
            except BackendFailed as exc:
                assert exc.fault == "request"
                return
    assert len(found.vectors) == 2 and found.dim == len(found.vectors[0]) > 0
