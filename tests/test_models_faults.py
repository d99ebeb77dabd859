"""Many requests at once while servers fail at random: nothing is lost, doubled, mixed up, or sent where it may not go."""

from __future__ import annotations

import random
import time
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest

from aiosd import config
from aiosd.errors import NoModelFits
from aiosd.models import breaker, member
from aiosd.models.backend import TextDelta, ThinkingDelta, Wait
from aiosd.models.pool import open_pool
from tests.doubles.http_double import HttpDouble, Script, Seen
from tests.doubles.ollama_double import OllamaDouble
from tests.doubles.openai_double import OpenAIDouble
from tests.doubles.pools import Clock, configured, near, paid, user

pytestmark = pytest.mark.anyio

TOKENS = 5
AT_ONCE = 12
"""More than there are slots at home, and few enough that a busy machine serves each well within its deadline."""
DEADLINE_S = 10.0
"""Of a caller: it may be the only one left to ask that hangs."""

FAULTS: list[dict[str, Any]] = [
    *[{"status": status} for status in (400, 404, 429, 500, 503)],
    *[{"fault": fault} for fault in ("cut", "error_line", "unfinished", "garbage", "hang", "hang_after")],
]


def words(name: str) -> tuple[str, ...]:
    return tuple(f"{name}:{k} " for k in range(TOKENS))


class Echo:
    """A double that answers with the words of the request's own name, and counts whom it answered whole."""

    def __init__(self, *args: Any, **rest: Any) -> None:
        super().__init__(*args, **rest)
        self.whole: Counter[str] = Counter()

    def pieces(self, seen: Seen, script: Script) -> list[bytes]:
        name = seen.body["messages"][0]["content"]
        if script.fault is None:
            self.whole[name] += 1
        script = Script(text=words(name), fault=script.fault)
        return super().pieces(seen, script)  # type: ignore[misc,no-any-return]  # of the double beside it


class OllamaEcho(Echo, OllamaDouble):
    pass


class OpenAIEcho(Echo, OpenAIDouble):
    pass


class Fast(Clock):
    """A thousand times as fast as the world: who is left alone for seconds is back in milliseconds."""

    def __call__(self) -> float:
        return time.monotonic() * 1000


@pytest.mark.parametrize(
    "n", [400, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])]
)
async def test_under_random_faults_nothing_is_lost_doubled_or_leaked(
    n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("UNLEARNT_S", 0.0), ("LEAST_PATIENCE_S", 1.0), ("PATIENCE", 0.0)):
        monkeypatch.setattr(breaker, name, value)
    monkeypatch.setattr(member, "LOAD_S", 1.0)
    rng = random.Random(n)
    ended: Counter[str] = Counter()
    asked: dict[str, bool] = {
        f"{i}-{'private' if rng.random() < 0.3 else 'open'}": rng.random() < 0.5 for i in range(n)
    }
    left = list(asked)
    given_up: Counter[str] = Counter()

    async def one(name: str) -> None:
        heard: list[str] = []

        async def on_delta(delta: TextDelta | ThinkingDelta) -> None:
            heard.append(delta.text)

        async def on_wait(wait: Wait) -> None:
            given_up[name] += "no word from it" in wait.detail
            if "interactive request first" in wait.detail:  # its reply begins anew
                given_up[name] += 1
                heard.clear()

        request = user(
            name,
            privacy="local" if name.endswith("private") else "any",
            latency_budget_ms=rng.choice([None, 1000, 10_000_000]),
            session_id=rng.choice("abc"),
            priority=rng.choice(["interactive", "normal", "background"]),
        )
        try:
            with anyio.fail_after(DEADLINE_S):
                reply = await pool.reply(request, on_delta=on_delta if asked[name] else None, on_wait=on_wait)
        except NoModelFits as exc:
            ended["failed"] += 1
            assert "".join(heard) == exc.data.get("text", "")
        except TimeoutError:
            ended["out of time"] += 1
        else:
            ended["answered"] += 1
            assert reply.text == "".join(words(name))
            assert tuple(heard) == (words(name) if asked[name] else ())
        assert tuple(heard) == words(name)[: len(heard)]

    async def work() -> None:
        while left:
            await one(left.pop())

    async with AsyncExitStack() as stack:
        ollama = await stack.enter_async_context(OllamaEcho())
        beside, remote = [await stack.enter_async_context(OpenAIEcho()) for _ in range(2)]
        doubles: list[HttpDouble] = [ollama, beside, remote]
        for double in doubles:
            double.scripts = [
                Script(**rng.choice(FAULTS)) if rng.random() < 0.1 else Script() for _ in range(n)
            ]
        backends = {
            "here": near(ollama.url, slots=4),
            "beside": config.Backend(kind="openai", url=beside.base, model="m", slots=4),
            "there": paid(remote),
        }
        async with open_pool(configured(backends), {}, clock=Fast()) as pool:
            async with anyio.create_task_group() as tasks:
                for _ in range(AT_ONCE):
                    tasks.start_soon(work)
            infos = await pool.backends()

    assert sum(ended.values()) == n
    assert ended["answered"] > 0.7 * n
    assert ended["out of time"] <= n * 0.05  # what hung after its first token, or had nobody beside it
    whole: Counter[str] = ollama.whole + beside.whole + remote.whole
    # No second server answers one that was answered, unless the first was given up before its first token came.
    assert all(times <= 1 + given_up[name] for name, times in whole.items())
    assert not [body for body in remote.chats() if "private" in str(body)]
    assert [(info.in_flight, info.queued) for info in infos] == [(0, 0)] * len(infos)
