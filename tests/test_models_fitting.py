"""What a task is sent, fitted into the window of llama.cpp by its own tokenizer, with a model that is made here."""

from __future__ import annotations

import random
import shutil
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest

from aiosd import records as r
from aiosd.models.backend import BackendFailed, ModelRequest
from aiosd.models.gguf import Gguf
from aiosd.models.window import size_bytes
from aiosd.protocol.sessions import SessionRun
from aiosd.tasks import context
from tests.daemon import Daemon
from tests.llama import serving
from tests.test_tasks import event, route, session

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WINDOW = 4096
ALPHABETS = (
    "abcdefgh ",
    "the server is down\n",
    '0123456789-:{}[]",',
    "äöüß€ ",
    "漢字かな",
    "😀🎉 ",
    "<tools></s>",
)


def text(rng: random.Random, most: int) -> str:
    letters = rng.choice(ALPHABETS)
    return "".join(rng.choices(letters, k=int(most ** rng.random())))


def made(rng: random.Random) -> tuple[str, ModelRequest]:
    """A task and its next request, of any size up to many windows."""
    task = f"task {rng.random()} {text(rng, 1500)}"
    turns = [
        r.Turn(
            role=rng.choice(("user", "assistant", "note")),
            content=text(rng, 3000),
            created_at=NOW,
            task_id=None,
            privacy="any",
        )
        for _ in range(rng.randrange(20))
    ]
    memories = tuple(
        r.ScoredMemory(
            memory_id=str(i),
            user_id="ann",
            session_id="s",
            content=text(rng, 2000),
            speaker=None,
            kind="note",
            source="user",
            trust=1.0,
            privacy="any",
            created_at=NOW,
            metadata={},
            score=0.5,
        )
        for i in range(rng.randrange(6))
    )
    journal: list[r.Kept] = [event(r.ProgressEvent, stage="recalled", memories=memories)]
    for i in range(rng.randrange(3)):
        call = r.ToolUse(call_id=f"c{i}", name=f"tool_{i}", arguments={"a": text(rng, 50)})
        journal += [
            route("here", local=True),
            event(
                r.MessageEvent,
                text="",
                thinking="",
                tool_calls=(call,),
                stop_reason="end_turn",
                generated=True,
                abstained=False,
                backend="here",
                model="m",
                sources=(),
            ),
            event(
                r.ToolResultEvent,
                call_id=call.call_id,
                name=call.name,
                status="completed",
                text=text(rng, 9000),
            ),
        ]
    tools = [
        r.Tool(
            name=f"tool_{i}",
            description=text(rng, 600),
            input_schema={"type": "object", "properties": {"a": {"type": "string"}}},
            annotations={},
            permissions=(),
            rate_limit=None,
        )
        for i in range(rng.randrange(9))
    ]
    params = SessionRun(
        session_id="s",
        task=task,
        inputs=tuple(r.Input(name=f"{i}.txt", text=text(rng, 30_000)) for i in range(rng.randrange(3))),
        max_tokens=rng.choice((10, 500, 2000)),
    )
    return task, context.request(
        session("any"), text(rng, 300) or None, params, turns, journal, tools, "balanced"
    )


async def all_fit(backend: Gguf, n: int, seed: int) -> tuple[int, int]:
    """Each request as it would be sent, counted by llama.cpp; how many had to leave something out, and how many were
    refused because the task and its instructions alone are too long."""
    rng = random.Random(seed)
    cut = refused = 0
    async with backend._serving() as server:
        for i in range(n):
            task, request = made(rng)
            try:
                fitted = await server._fitted(request)
            except BackendFailed as exc:
                assert "give less" in str(exc), exc
                refused += 1
                continue
            counted = await server.input_tokens(fitted.request)
            assert counted < WINDOW, (seed, i)
            assert any(m.role == "user" and m.content == task for m in fitted.request.messages), (seed, i)
            assert bool(fitted.dropped) == (size_bytes(fitted.request) < size_bytes(request))
            cut += bool(fitted.dropped)
    return cut, refused


async def test_contexts_fit_the_window_of_the_models_own_tokenizer(tiny: Path) -> None:
    async with serving(tiny, context=WINDOW) as backend:
        cut, refused = await all_fit(backend, 100, seed=1)
    assert cut > 25
    assert refused < 10


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_ten_thousand_contexts_fit_the_window(tiny: Path) -> None:
    async with serving(tiny, context=WINDOW, within_s=1200) as backend:
        cut, refused = await all_fit(backend, 10_000, seed=2)
    assert cut > 2500 and refused < 500


async def test_a_file_over_the_window_is_shortened_and_the_answer_says_so(tiny: Path, tmp_path: Path) -> None:
    config = '[models.backends.small]\nkind = "gguf"\npath = "tiny.gguf"\ncontext = 4096\n'
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(tiny, home / "tiny.gguf")
    log = b"".join(b"line %d of the log\n" % i for i in range(2000))

    def work() -> None:
        with Daemon(home, config) as daemon:
            done = daemon.ctl("run", "--tools", "", "What is wrong?", stdin=log)
            assert done.returncode == 0, done.stderr
            assert "aiosctl: left out, to fit the window of 4,096 tokens: " in done.stderr
            assert "bytes of the input" in done.stderr
            few = daemon.ctl("run", "--tools", "", "What is wrong?", stdin=log[:500])
            assert few.returncode == 0 and "left out" not in few.stderr

    await anyio.to_thread.run_sync(work)
