"""With nothing configured: the Ollama of this machine if one answers, else what only quotes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aiosd.errors import NoModelFits
from aiosd.models.backend import ModelRequest
from aiosd.models.extractive.backend import Extractive
from aiosd.records import Source
from tests.doubles.http_double import Script, Seen
from tests.doubles.ollama_double import Held, OllamaDouble
from tests.doubles.pools import (
    NOWHERE,
    SCHEMA,
    Clock,
    near,
    pool_of,
    user,
    why,
)

pytestmark = pytest.mark.anyio


def quoting(text: str = "Which port does the server use?", **rest: Any) -> ModelRequest:
    passage = Source(kind="input", ref="notes.txt", text="The server listens on port 4711.")
    return user(text, passages=(passage,), **rest)


async def test_without_a_model_what_only_quotes_answers() -> None:
    async with pool_of({}, environ={"OLLAMA_HOST": NOWHERE}) as pool:
        reply = await pool.reply(quoting("Which port does the server listen on?"))
    assert (reply.backend, reply.generated) == ("extractive", False)
    assert reply.decision.reason == "no model is there, so it quotes"
    assert (
        why(reply)["ollama"] == f"no Ollama answers at {NOWHERE}; install it from https://ollama.com/download"
    )


async def test_an_ollama_that_is_installed_is_to_be_started(tmp_path: Path) -> None:
    (tmp_path / "ollama").touch(0o700)
    async with pool_of({}, environ={"OLLAMA_HOST": NOWHERE, "PATH": str(tmp_path)}) as pool:
        reply = await pool.reply(quoting())
    assert why(reply)["ollama"] == f"no Ollama answers at {NOWHERE}; start it with: ollama serve"


@pytest.mark.parametrize("needs", [{"tier": "capable"}, {"task_type": "coding"}, {"schema": SCHEMA}])
async def test_without_a_model_what_needs_one_is_told_the_ways_out(needs: dict[str, Any]) -> None:
    async with pool_of({}, environ={"OLLAMA_HOST": NOWHERE}) as pool:
        with pytest.raises(NoModelFits) as caught:
            await pool.reply(quoting(**needs))
    assert "no Ollama answers" in str(caught.value)
    assert "install Ollama" in str(caught.value)
    assert caught.value.hint == "aiosctl model setup"


def test_without_an_ollama_its_package_is_never_imported() -> None:
    program = f"""
import anyio, sys
from aiosd.config import Config
from aiosd.models.backend import Message, ModelRequest
from aiosd.models.pool import open_pool
async def main():
    async with open_pool(Config(), {{"OLLAMA_HOST": "{NOWHERE}"}}) as pool:
        await pool.reply(ModelRequest(messages=(Message(role="user", content="hi"),)))
        await pool.backends()
anyio.run(main)
print([name for name in ("ollama", "openai", "httpx", "httpx2", "jsonschema", "pydantic") if name in sys.modules])
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (run.stdout, run.stderr) == ("[]\n", "")


@pytest.mark.parametrize("says", [True, False])
@pytest.mark.parametrize(
    ("sizes", "fast", "balanced", "capable"),
    [
        (["8.0B"], "a", "a", "a"),
        (["8.0B", "494.03M"], "b", "a", "a"),
        (["70B", "494.03M", "8.0B"], "b", "c", "a"),
    ],
)
async def test_the_models_of_an_ollama_fill_the_tiers_by_size(
    sizes: list[str], fast: str, balanced: str, capable: str, says: bool
) -> None:
    models = {name: Held(size=size) for name, size in zip("abc", sizes, strict=False)}
    models["embedder"] = Held(capabilities=("embedding",), size="0.1B")
    models["huge:cloud"] = Held(size="900B")
    models["moved"] = Held(remote_host="https://ollama.com", size="0.2B")
    async with OllamaDouble(models=models) as double:
        double.tags_say_capabilities = says
        async with pool_of({}, environ={"OLLAMA_HOST": double.url}) as pool:
            for tier, model in (("fast", fast), ("balanced", balanced), ("capable", capable)):
                reply = await pool.reply(user(tier=tier, privacy="local"))
                assert (reply.backend, reply.model) == (model, model)
            names = [info.name for info in await pool.backends()]
    assert sorted(names) == sorted([*"abc"[: len(sizes)], "embedder", "extractive"])


async def test_an_ollama_that_was_started_is_found_at_the_next_request_that_is_due() -> None:
    clock = Clock()
    async with (
        OllamaDouble(models={}) as double,
        pool_of({}, environ={"OLLAMA_HOST": double.url}, clock=clock) as pool,
    ):
        first = await pool.reply(quoting())
        assert first.backend == "extractive"
        assert "has no chat model; get one with: aiosctl model pull llama3.2" in (why(first)["ollama"] or "")
        double.models["small"] = Held()
        assert (await pool.reply(quoting())).backend == "extractive"
        clock.now += 15
        assert (await pool.reply(quoting())).backend == "small"


class Willing(OllamaDouble):
    """It makes vectors with any model, as an older one does."""

    def other(self, seen: Seen) -> tuple[int, Any]:
        return (200, {"embeddings": [[1.0]]}) if seen.path == "/api/embed" else super().other(seen)


async def test_a_model_that_only_makes_vectors_is_found_and_answers_nothing_else() -> None:
    models = {"chat": Held(size="0.1B"), "minilm": Held(capabilities=("embedding",), size="1B")}
    async with Willing(models=models) as double:
        async with pool_of({}, environ={"OLLAMA_HOST": double.url}) as pool:
            assert (await pool.embed(["a"])).model == "minilm"
            assert (await pool.reply(quoting(tier="capable"))).backend == "chat"
        del models["chat"]
        async with pool_of({}, environ={"OLLAMA_HOST": double.url}) as pool:
            assert (await pool.embed(["a"])).model == "minilm"
            reply = await pool.reply(quoting())
    assert reply.backend == "extractive"
    assert "has no chat model" in (why(reply)["ollama"] or "")


async def test_what_only_quotes_does_not_step_in_after_a_failure() -> None:
    async with OllamaDouble() as double:
        async with pool_of({}, environ={"OLLAMA_HOST": double.url}) as pool:
            assert (await pool.reply(quoting())).backend == "small"
            double.script = Script(status=500)
            with pytest.raises(NoModelFits):
                await pool.reply(quoting())
            assert (await pool.reply(quoting(backend="extractive"))).backend == "extractive"
        async with pool_of({"here": near(double.url)}) as pool:
            with pytest.raises(NoModelFits):
                await pool.reply(quoting())


async def test_what_only_quotes_steps_in_after_a_failure_where_a_tier_lists_it() -> None:
    async with (
        OllamaDouble(Script(status=500)) as double,
        pool_of({"here": near(double.url)}, balanced=("extractive", "here")) as pool,
    ):
        reply = await pool.reply(quoting())
    assert reply.backend == "extractive"
    assert reply.decision.reason == "no model answered, so it quotes"


async def test_an_ollama_that_has_gone_is_looked_for_at_once() -> None:
    async with OllamaDouble() as double, pool_of({}, environ={"OLLAMA_HOST": double.url}) as pool:
        await pool.reply(quoting())
        await double.stop()
        with pytest.raises(NoModelFits, match="no Ollama answers"):
            await pool.reply(quoting())
        assert (await pool.reply(quoting())).backend == "extractive"


async def test_what_only_quotes_is_no_backend_that_somebody_added() -> None:
    async with (
        OllamaDouble() as double,
        pool_of({}, {"extractive": Extractive()}, environ={"OLLAMA_HOST": double.url}) as pool,
    ):
        assert (await pool.reply(quoting())).backend == "small"
        double.script = Script(status=500)
        with pytest.raises(NoModelFits):
            await pool.reply(quoting())
