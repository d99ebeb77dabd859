"""What a run costs the daemon, and how it holds under load.

Run as `python contrib/bench/load.py [WHAT ...]`, in an environment with the extra `test`; WHAT is any of `load`, `cpu`,
`session`, `fast`, `fair`, `export`, by default all. The model is a double of an Ollama server in a process of its own, so
only the daemon's own work is measured. Every figure is printed with the machine's load: other work on it makes
wall times worse, and CPU times hardly.

load     64 clients, a model that takes 50 ms, 10,000 memories: runs a second, and system.ping meanwhile
cpu      the daemon's CPU a run with 50,000 memories, without and with a tool call, the client library's part taken off
session  run 500 of one session against run 10: CPU a run, and bytes of the ledger a run
fast     what a call gains in time by another that takes 5 s on another backend
fair     8 background agents on one slot, then interactive runs: first token against idle, Jain's index, steps kept
export   runs of 50 ms on a daemon that sends traces and metrics to a collector, against one beside it that sends none
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

sys.path.insert(0, str(Path(__file__).parents[2]))

from aiosd import config as configs
from aiosd.models.backend import Message, ModelRequest
from aiosd.models.ollama import Ollama, server
from tests.daemon import Daemon
from tests.doubles.http_double import Script
from tests.doubles.ollama_double import OllamaDouble

TICKS = os.sysconf("SC_CLK_TCK")
WORDS = [
    "river",
    "copper",
    "lantern",
    "meadow",
    "signal",
    "harbor",
    "winter",
    "engine",
    "marble",
    "violet",
    "thunder",
    "ribbon",
]


class Paced(OllamaDouble):
    """Waits before its first token and between the others, as long as the task's text says: `[50/10x20] ...` is 50 ms,
    then 20 pieces 10 ms apart. With `tool` in it, a call of the calculator comes first."""

    async def _answer(self, seen: Any, reader: Any, writer: Any) -> None:
        if not seen.path.endswith("/chat"):
            return await super()._answer(seen, reader, writer)
        messages = seen.body["messages"]
        task = next(m["content"] for m in reversed(messages) if m["role"] == "user")
        if not task.startswith("["):
            return await super()._answer(seen, reader, writer)  # the daemon's own question, as of a summary
        first_ms, _, rest = task[1 : task.index("]")].partition("/")
        each_ms, _, pieces = (rest or "0x1").partition("x")
        self.script = Script(
            text=tuple(f"word{i} " for i in range(int(pieces)))
        )  # a text that repeats itself is cut
        steps = sum(m["role"] == "tool" for m in messages)
        if steps < int(task.partition("tools=")[2] or 0):
            self.script = Script(text=(), calls=(("calculator", json.dumps({"expression": f"{steps}+1"})),))
        script, self.seen = self.script, []
        await asyncio.sleep(float(first_ms) / 1000)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/plain\r\n\r\n")
        for piece in self.pieces(seen, script):
            writer.write(b"%x\r\n" % len(piece) + piece + b"\r\n")
            await writer.drain()
            if float(each_ms):
                await asyncio.sleep(float(each_ms) / 1000)
        writer.write(b"0\r\n\r\n")
        await writer.drain()


def _double(ends: Connection) -> None:
    async def forever() -> None:
        async with Paced() as model:
            ends.send(model.url)
            await asyncio.Event().wait()

    asyncio.run(forever())


class _Taking(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


def _collector(ends: Connection) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Taking) as server:
        ends.send(f"http://127.0.0.1:{server.server_port}")
        server.serve_forever()


@contextmanager
def collector() -> Iterator[str]:
    """The address of one that takes everything, in a process of its own."""
    mine, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=_collector, args=(theirs,), daemon=True)
    process.start()
    try:
        yield mine.recv()
    finally:
        process.kill()
        process.join()


class Client:
    """One connection, one request at a time; notifications are handed on."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.session_id = ""

    async def call(
        self, method: str, heard: Callable[[dict[str, Any]], None] | None = None, **params: Any
    ) -> Any:
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        self._writer.write(json.dumps(request).encode() + b"\n")
        while True:
            line = json.loads(await self._reader.readline())
            if "id" in line:
                assert "result" in line, line
                return line["result"]
            if heard is not None:
                heard(line["params"])

    async def run(self, task: str, heard: Callable[[dict[str, Any]], None] | None = None, **rest: Any) -> Any:
        return await self.call("session.run", heard, session_id=self.session_id, task=task, **rest)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._writer.close()


async def client(daemon: Daemon, **session: Any) -> Client:
    found = Client(*await asyncio.open_unix_connection(str(daemon.socket), limit=1 << 24))
    found.session_id = (await found.call("session.create", **session))["session_id"]
    return found


@asynccontextmanager
async def daemon_with(
    memories: int, slots: int, environ: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[Daemon, str]]:
    mine, theirs = multiprocessing.Pipe()
    double = multiprocessing.Process(target=_double, args=(theirs,), daemon=True)
    double.start()
    url = mine.recv()
    backends = "".join(
        f'[models.backends.{name}]\nkind = "ollama"\nmodel = "small"\nurl = "{url}"\nslots = {n}\n'
        for name, n in (("small", slots), ("other", 1))
    )
    tiers = '[models.tiers]\nbalanced = ["small"]\nfast = ["other"]\n'
    try:
        with (
            tempfile.TemporaryDirectory() as home,
            Daemon(Path(home), f'[memory]\nembedder = "none"\n{tiers}{backends}', environ) as daemon,
        ):
            async with await client(daemon) as filling:
                for first in range(0, memories, 500):
                    texts = [_fact(i) for i in range(first, min(first + 500, memories))]
                    entries = [{"content": text} for text in texts]
                    await filling.call("memory.remember", session_id=filling.session_id, memories=entries)
            yield daemon, url
    finally:
        double.kill()
        double.join()


def _fact(i: int) -> str:
    a, b, c = (WORDS[(i // len(WORDS) ** k) % len(WORDS)] for k in range(3))
    return f"The {a} {b} number {i} lies behind the {c}."


def cpu_s(daemon: Daemon) -> float:
    """Of the daemon itself, its children left out."""
    assert daemon.process is not None
    fields = Path(f"/proc/{daemon.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


async def library_ms(url: str, times: int = 200) -> float:
    """CPU of one request by the client library alone, with what our backend adds to read it."""
    section = configs.Backend(kind="ollama", url=url, model="small")
    backend = Ollama("small", section, server("small", section, {}))
    request = ModelRequest(messages=(Message(role="user", content="[0] hello"),))

    async def once() -> None:
        async for _ in backend.stream(request):
            pass

    for _ in range(20):
        await once()
    began = time.process_time()
    for _ in range(times):
        await once()
    took = time.process_time() - began
    await backend.aclose()
    return took / times * 1000


def percentile(values: Sequence[float], p: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * p))]


def say(what: str, figures: str) -> None:
    print(f"{what:8} {figures}   (load {os.getloadavg()[0]:.1f})", flush=True)


async def load(clients: int = 64, runs: int = 3000) -> None:
    async with daemon_with(10_000, clients) as (daemon, _):
        everyone = [await client(daemon) for _ in range(clients)]
        probe = await client(daemon)
        pings: list[float] = []
        left = runs
        busy = True

        async def work(one: Client) -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await one.run(f"[50] Where is the {WORDS[left % len(WORDS)]}?")

        async def ping() -> None:
            while busy:
                began = time.perf_counter()
                await probe.call("system.ping")
                pings.append((time.perf_counter() - began) * 1000)
                await asyncio.sleep(0.02)

        pinging = asyncio.create_task(ping())
        cpu, own, began = cpu_s(daemon), time.process_time(), time.perf_counter()
        await asyncio.gather(*map(work, everyone))
        took = time.perf_counter() - began
        used = (cpu_s(daemon) - cpu) / runs * 1000
        clients_ms = (time.process_time() - own) / runs * 1000
        busy = False
        await pinging
        say(
            "load",
            f"{runs / took:.0f} runs/s (want 150), daemon {used:.1f} ms CPU a run beside {clients_ms:.1f} of the clients, ping p50"
            f" {statistics.median(pings):.1f} p99 {percentile(pings, 0.99):.1f} ms (want 20)",
        )


async def cpu(runs: int = 300) -> None:
    async with daemon_with(50_000, 1) as (daemon, url):
        library = await library_ms(url)
        for what, suffix, calls, want in (("plain", "", 1, 3.5), ("tool", " tools=1", 2, 8.0)):
            async with await client(daemon) as one:
                for i in range(20):
                    await one.run(f"[0] Where is the {WORDS[i % len(WORDS)]}?{suffix}")
                before = cpu_s(daemon)
                for i in range(runs):
                    await one.run(f"[0] Where is the {WORDS[i % len(WORDS)]}?{suffix}")
                whole = (cpu_s(daemon) - before) / runs * 1000
            say(
                "cpu",
                f"{what}: {whole - calls * library:.2f} ms a run (want {want}); {whole:.2f} with the client library's"
                f" {calls} x {library:.2f}",
            )


async def session() -> None:
    async with daemon_with(0, 1) as (daemon, _):
        ledger = next(daemon.home.rglob("*.db*"))
        async with await client(daemon) as one:
            spans: list[tuple[float, int]] = []
            for first in range(0, 550, 50):
                before, size = cpu_s(daemon), ledger.stat().st_size
                for i in range(first, first + 50):
                    await one.run(f"[0] Where is the {WORDS[i % len(WORDS)]} number {i}?")
                spans.append(((cpu_s(daemon) - before) / 50 * 1000, ledger.stat().st_size - size))
        early, late = spans[0][0], spans[-1][0]
        grown = [size // 50 for _, size in spans]
        say(
            "session",
            f"CPU a run {early:.2f} ms first 50, {late:.2f} ms around 500: {late / early:.2f} x (want 1.2)",
        )
        say("session", f"ledger bytes a run, by 50 runs: {grown}")


async def fast(times: int = 30) -> None:
    async with daemon_with(0, 1) as (daemon, _), await client(daemon) as slow, await client(daemon) as quick:

        async def once() -> float:
            began = time.perf_counter()
            await quick.run("[0] hello", tier="fast")
            return (time.perf_counter() - began) * 1000

        await once()
        alone = [await once() for _ in range(times)]
        waiting = asyncio.create_task(slow.run("[5000] hello"))
        await asyncio.sleep(0.2)
        beside = [await once() for _ in range(times)]
        assert not waiting.done()
        await waiting
        added = statistics.median(beside) - statistics.median(alone)
        say(
            "fast",
            f"alone {statistics.median(alone):.1f} ms, behind a call of 5 s: {added:+.1f} ms (want 10)",
        )


async def fair(agents: int = 8, times: int = 30) -> None:
    """A background step takes 100 ms to its first token and 300 ms to its end, as an interactive one does."""
    async with daemon_with(0, 1) as (daemon, _), await client(daemon, priority="interactive") as person:

        async def first_token_ms() -> float:
            began, first = time.perf_counter(), list[float]()

            def heard(event: dict[str, Any]) -> None:
                if event["kind"] == "text" and not first:
                    first.append(time.perf_counter() - began)

            await person.run("[100/10x20] hello", heard=heard, stream=True)
            return first[0] * 1000

        await first_token_ms()
        idle = [await first_token_ms() for _ in range(times)]
        workers = [await client(daemon, priority="background") for _ in range(agents)]
        tasks = [
            await one.run("[100/10x20] go on tools=1000", detach=True, max_steps=1000) for one in workers
        ]
        await asyncio.sleep(3)
        busy = []
        for _ in range(times):
            busy.append(await first_token_ms())
            await asyncio.sleep(0.3)
        steps = []
        for one, task in zip(workers, tasks, strict=True):
            now = await one.call("task.cancel", task_id=task["task_id"])
            steps.append(now["steps"])
        jain = sum(steps) ** 2 / (len(steps) * sum(n * n for n in steps))
        ratio = percentile(busy, 0.95) / percentile(idle, 0.95)
        say(
            "fair",
            f"first token p95 idle {percentile(idle, 0.95):.0f} ms, among {agents} agents {percentile(busy, 0.95):.0f}"
            f" ms: {ratio:.2f} x (want 1.5); Jain {jain:.3f} (want 0.9) over steps {steps}",
        )


async def export(runs: int = 300) -> None:
    """In turns, so that what else runs here meets both alike."""
    with collector() as url:
        sending = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_METRIC_EXPORT_INTERVAL": "1000"}
        async with (
            daemon_with(1000, 1) as (silent, _),
            daemon_with(1000, 1, sending) as (telling, _),
            await client(silent) as one,
            await client(telling) as other,
        ):
            took = dict[Client, list[float]]({one: [], other: []})
            before = list[float]()
            for i in range(-20, runs):
                if i == 0:
                    before = [cpu_s(silent), cpu_s(telling)]
                for each, times in took.items():
                    began = time.perf_counter()
                    await each.run(f"[50] Where is the {WORDS[i % len(WORDS)]}? tools=1")
                    if i >= 0:
                        times.append((time.perf_counter() - began) * 1000)
            used = [(cpu_s(d) - b) / runs * 1000 for d, b in zip((silent, telling), before, strict=True)]
        alone, sent = (statistics.median(times) for times in took.values())
        say(
            "export",
            f"a run {alone:.1f} ms, {sent:.1f} with traces and metrics sent: {(sent / alone - 1) * 100:+.1f} % (want"
            f" 3); the daemon's CPU {used[0]:.2f} and {used[1]:.2f} ms, {(used[1] - used[0]) / alone * 100:+.1f} % of"
            " the run's time",
        )


async def main() -> None:
    every = {"load": load, "cpu": cpu, "session": session, "fast": fast, "fair": fair, "export": export}
    for name in sys.argv[1:] or every:
        await every[name]()


if __name__ == "__main__":
    asyncio.run(main())
