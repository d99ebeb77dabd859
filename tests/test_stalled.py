"""A watcher of a long answer that does not read it: what that costs the daemon, and everybody else."""

from __future__ import annotations

import json
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketStream

from aiosd import framing
from tests.daemon import Daemon
from tests.doubles.http_double import Seen
from tests.doubles.ollama_double import OllamaDouble

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(600)]

TOKENS = 2_000_000

AT_ONCE = 20
"""Tokens in one line of the model's, as of a server that writes faster than it flushes."""

MOST_KB = 4096
"""Of memory that differs by a megabyte or two from one daemon to the next. With an outbox that has no bound it is 9 MB
more; the outbox alone is proven to the byte in test_server.py."""


class Endless(OllamaDouble):
    """Writes TOKENS as fast as they are read, then one now and again, so that whoever fell behind sees how far it is."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.go = anyio.Event(), anyio.Event()
        self.characters = 0
        self.written = False

    async def _answer(self, seen: Seen, reader: StreamReader, writer: StreamWriter) -> None:
        if not seen.path.endswith("/chat"):
            return await super()._answer(seen, reader, writer)
        self.asked.set()
        await self.go.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/plain\r\n\r\n")
        for first in range(0, TOKENS, AT_ONCE):
            text = "".join(f"{i:x} " for i in range(first, first + AT_ONCE))
            if first // AT_ONCE % 2:
                await self._say(writer, thinking=text)  # between two texts, so that they cannot be merged
            else:
                self.characters += len(text)
                await self._say(writer, content=text)
        self.written = True
        while True:
            await self._say(writer, content="more ")
            await anyio.sleep(0.05)

    async def _say(self, writer: StreamWriter, **said: str) -> None:
        line = json.dumps({"message": {"role": "assistant"} | said, "done": False}).encode() + b"\n"
        writer.write(b"%x\r\n" % len(line) + line + b"\r\n")
        await writer.drain()


async def lines(stream: SocketStream) -> AsyncIterator[Any]:
    rest = bytearray()
    async for data in stream:
        rest += data
        while (end := rest.find(b"\n")) >= 0:
            yield json.loads(rest[:end])
            del rest[: end + 1]


def private_kb(daemon: Daemon) -> int:
    assert daemon.process is not None
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0])


async def growth_kb(home: Path, *, stalled: bool) -> int:
    """What the daemon has taken when all of the answer has come, with a watcher that reads and maybe one that does
    not. Meanwhile pings are answered."""
    async with Endless() as model, AsyncExitStack() as opened:
        config = f'[memory]\nembedder = "none"\n[models.backends.small]\nkind = "ollama"\nmodel = "small"\nurl = "{model.url}"\n'
        daemon = opened.enter_context(Daemon(home, config))
        session = await anyio.to_thread.run_sync(daemon.session)
        task = await anyio.to_thread.run_sync(daemon.start_task, session, "Count")

        async def connected() -> SocketStream:
            return await opened.enter_async_context(await anyio.connect_unix(daemon.socket))

        watch = framing.request(1, "task.attach", {"task_id": task.task_id})
        deaf, reader, other = await connected(), await connected(), await connected()
        if stalled:
            await deaf.send(watch)
        await reader.send(watch)
        with anyio.fail_after(30):
            await model.asked.wait()
        before = private_kb(daemon)
        model.go.set()

        async def ping() -> None:
            pong = lines(other)
            while True:
                await other.send(framing.request(1, "system.ping", {}))
                with anyio.fail_after(30):
                    assert (await anext(pong))["result"]["pong"]

        async with anyio.create_task_group() as pinging:
            pinging.start_soon(ping)
            async for each in lines(reader):
                event = each["params"]
                if event["kind"] == "text" and model.written and event["offset"] >= model.characters:
                    break
            pinging.cancel_scope.cancel()
        return private_kb(daemon) - before


async def test_a_watcher_that_reads_nothing_of_two_million_tokens_costs_next_to_nothing(
    tmp_path: Path,
) -> None:
    alone = await growth_kb(tmp_path / "alone", stalled=False)
    beside = await growth_kb(tmp_path / "beside", stalled=True)
    assert beside - alone <= MOST_KB
