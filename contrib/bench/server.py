"""What the socket costs: a ping against a bare echo, many clients, many streams, a reader that stalls, a cold start.

Run as `python contrib/bench/server.py [WHAT ...]`, in an environment with the extra `test`; WHAT is any of `ping`,
`clients`, `relay`, `stalled`, `cold`, `metrics`, by default all. The echo is the shortest server in Python on the same
kind of socket, in a process of its own, asked by the same client in the same rounds. CPU is the server's own.

ping     median time of system.ping and of an echo, one client, on the client's core both: across cores the waking of
         an idle core is what is measured, and the kernel chooses which server pays it
clients  CPU a request, 50 clients at once
relay    100 sessions with 50 tokens/s each, in per cent of a core; what the model's client library takes, taken off
stalled  growth of the daemon while one reader of a long answer does not read, and pings of another meanwhile
cold     from no daemon to the first output of `aiosctl run`
metrics  CPU of a run with and without what counts it
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from load import client, cpu_s, daemon_with, say

from aiosd import config as configs
from aiosd import tally
from aiosd.models.backend import Message, ModelRequest
from aiosd.models.ollama import Ollama, server
from tests.daemon import Daemon

PING = b'{"jsonrpc":"2.0","id":1,"method":"system.ping"}\n'


def _echo(path: str) -> None:
    """Every line comes back. One loop over ready sockets, as the daemon's."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(128)
    ready = select.epoll()
    ready.register(listener, select.EPOLLIN)
    peers: dict[int, socket.socket] = {}
    while True:
        for fd, _ in ready.poll():
            if fd == listener.fileno():
                peer, _ = listener.accept()
                peers[peer.fileno()] = peer
                ready.register(peer, select.EPOLLIN)
            elif data := peers[fd].recv(65536):
                peers[fd].send(data)
            else:
                ready.unregister(fd)
                peers.pop(fd).close()


def connected(path: str) -> socket.socket:
    found = socket.socket(socket.AF_UNIX)
    for _ in range(500):
        try:
            found.connect(path)
            return found
        except OSError:
            time.sleep(0.01)
    raise RuntimeError(path)


def ran_s(pid: int) -> float:
    """CPU of a process by its scheduler's clock (ns)."""
    return (
        sum(int((t / "schedstat").read_text().split()[0]) for t in Path(f"/proc/{pid}/task").iterdir()) / 1e9
    )


def one_client(path: str, times: int) -> list[float]:
    stream = connected(path)
    took = []
    for _ in range(times):
        began = time.perf_counter()
        stream.send(PING)
        stream.recv(65536)
        took.append(time.perf_counter() - began)
    stream.close()
    return took


def many_clients(path: str, clients: int, each: int) -> None:
    streams = {s.fileno(): s for s in (connected(path) for _ in range(clients))}
    left = dict.fromkeys(streams, each)
    ready = select.epoll()
    for fd, stream in streams.items():
        ready.register(fd, select.EPOLLIN)
        stream.send(PING)
    while left:
        for fd, _ in ready.poll():
            streams[fd].recv(65536)
            left[fd] -= 1
            if left[fd]:
                streams[fd].send(PING)
            else:
                del left[fd]
                ready.unregister(fd)
    for stream in streams.values():
        stream.close()


def beside_echo(measure: Callable[[str, int], float], rounds: int = 7) -> tuple[float, float, float]:
    """Medians of both and of their ratio, one round after the other."""
    with tempfile.TemporaryDirectory() as home:
        path = str(Path(home) / "echo")
        echo = multiprocessing.Process(target=_echo, args=(path,), daemon=True)
        echo.start()
        try:
            with Daemon(Path(home) / "d") as daemon:
                assert daemon.process is not None and echo.pid is not None
                pids = echo.pid, daemon.process.pid
                pairs = [
                    (measure(path, pids[0]), measure(str(daemon.socket), pids[1])) for _ in range(rounds)
                ]
        finally:
            echo.kill()
            echo.join()
    bare, ours = (statistics.median(each) for each in zip(*pairs, strict=True))
    return bare, ours, statistics.median(b / a for a, b in pairs)


async def ping() -> None:
    cores = os.sched_getaffinity(0)
    core = {min(cores)}

    def measure(path: str, pid: int) -> float:
        os.sched_setaffinity(0, core)
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), core)
        return statistics.median(one_client(path, 3000))

    bare, ours, ratio = beside_echo(measure)
    os.sched_setaffinity(0, cores)
    say("ping", f"p50 {ours * 1e6:.0f} us, a bare echo {bare * 1e6:.0f} us: {ratio:.1f} times")


async def clients() -> None:
    def measure(path: str, pid: int) -> float:
        before = ran_s(pid)
        many_clients(path, 50, 400)
        return (ran_s(pid) - before) / 20_000

    bare, ours, ratio = beside_echo(measure)
    say(
        "clients",
        f"50: {ours * 1e6:.1f} us CPU a request, a bare echo {bare * 1e6:.1f} us: {ratio:.1f} times",
    )


async def relay(sessions: int = 100, window_s: float = 4.0, rounds: int = 5) -> None:
    """CPU in the midst of long answers, against that of the client library alone, in turn: a busy machine is busy for
    both. Less than 5,000 tokens/s come where the model's double gets too little of it."""
    async with daemon_with(0, sessions) as (daemon, url):
        assert daemon.process is not None
        everyone = [await client(daemon) for _ in range(sessions)]
        section = configs.Backend(kind="ollama", url=url, model="small")
        backend = Ollama("small", section, server("small", section, {}))
        heard = [0] * sessions
        all_began = asyncio.Event()

        def count(i: int, tokens: int) -> None:
            heard[i] += tokens
            if not all_began.is_set() and all(heard):
                all_began.set()

        async def run(i: int, task: str) -> None:
            def hear(event: dict[str, Any]) -> None:
                if event["kind"] == "text":
                    count(i, len(event["text"].split()))

            await everyone[i].run(task, hear, stream=True)

        async def alone(i: int, task: str) -> None:
            request = ModelRequest(messages=(Message(role="user", content=task),))
            async for _ in backend.stream(request):
                count(i, 1)

        async def us_a_token(pid: int, ask: Callable[[int, str], Coroutine[Any, Any, None]]) -> float:
            heard[:] = [0] * sessions
            all_began.clear()
            task = f"[0/20x{int(window_s * 50 * 2)}] relay"
            every = asyncio.gather(*(ask(i, task) for i in range(sessions)))
            await all_began.wait()
            before, tokens = ran_s(pid), sum(heard)
            await asyncio.sleep(window_s)
            spent, tokens = ran_s(pid) - before, sum(heard) - tokens
            await every
            return spent / tokens * 1e6

        pairs = [
            (await us_a_token(daemon.process.pid, run), await us_a_token(os.getpid(), alone))
            for _ in range(rounds)
        ]
        await backend.aclose()
    ours, theirs = (statistics.median(each) for each in zip(*pairs, strict=True))
    own = statistics.median(a - b for a, b in pairs)
    say(
        "relay",
        f"{sessions} sessions: {ours:.0f} us CPU a token, the model's client {theirs:.0f} us, the daemon's own"
        f" {own:.0f} us: {own / 1e6 * 5000:.1%} of a core at 5,000 tokens/s",
    )


def rss_kb(daemon: Daemon) -> int:
    assert daemon.process is not None
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


async def stalled(pieces: int = 20_000) -> None:
    """The answer's own text stays in the daemon's memory, whoever reads it: it is taken off."""
    async with daemon_with(0, 4) as (daemon, _):
        reader = await client(daemon)
        other = await client(daemon)
        await reader.run(f"[0/0x{pieces}] warm", stream=True)
        started = await reader.run(f"[0/0x{pieces}] stalled", detach=True)
        raw = connected(str(daemon.socket))
        before = rss_kb(daemon)
        attach = f'{{"jsonrpc":"2.0","id":1,"method":"task.attach","params":{{"task_id":"{started["task_id"]}"}}}}\n'
        raw.send(attach.encode())  # and nothing is read
        most, pings = before, []
        done = asyncio.create_task(other.call("task.wait", task_id=started["task_id"]))
        probe = await client(daemon)
        while not done.done():
            began = time.perf_counter()
            await probe.call("system.ping")
            pings.append(time.perf_counter() - began)
            most = max(most, rss_kb(daemon))
            await asyncio.sleep(0.01)
        raw.close()
    text_kb = pieces * len("word ") / 1024
    say(
        "stalled",
        f"{pieces} tokens unread: grew by {most - before} kB, {text_kb:.0f} kB of it the text at least once;"
        f" another's ping p50 {statistics.median(pings) * 1e3:.1f} ms",
    )


async def cold() -> None:
    took = await asyncio.to_thread(cold_starts)
    say(
        "cold",
        f"to the first output {statistics.median(took):.2f} s, at most {max(took):.2f} s, of {len(took)}",
    )


def cold_starts(rounds: int = 5) -> list[float]:
    took = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as home:
            daemon = Daemon(Path(home) / "d")
            began = time.perf_counter()
            process = subprocess.Popen(
                [Path(sys.executable).with_name("aiosctl"), "run", "-q", "What is 12 * (3 + 4)?"],
                env=daemon.environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            assert process.stdout is not None and process.stdout.read(1)
            took.append(time.perf_counter() - began)
            process.wait()
            pid = int((Path(home) / "d" / "data" / "lock").read_text().split()[0])
            pidfd = os.pidfd_open(pid)
            os.kill(pid, 15)
            select.select([pidfd], [], [], 30)
            os.close(pidfd)
    return took


async def metrics(times: int = 100_000) -> None:
    """A run counts a few dozen times; each count and each reading of the clock is timed alone."""
    began = time.process_time()
    for _ in range(times):
        tally.REQUESTS.add(time.monotonic() - began, "system.ping", "0")
    count_us = (time.process_time() - began) / times * 1e6
    async with daemon_with(0, 4) as (daemon, _):
        everyone = [await client(daemon) for _ in range(200)]
        before = cpu_s(daemon)
        for each in everyone:
            await each.run("[0] hello")
        run_us = (cpu_s(daemon) - before) / len(everyone) * 1e6
    counts = (
        12  # of a run with one reply and no tool: its request, task, reply, wait, two kinds of tokens, money
    )
    say(
        "metrics",
        f"{count_us:.2f} us a count, {counts} at most a run of {run_us / 1e3:.1f} ms CPU:"
        f" {counts * count_us / run_us:.2%}",
    )


async def main() -> None:
    table = {f.__name__: f for f in (ping, clients, relay, stalled, cold, metrics)}
    for name in sys.argv[1:] or table:
        await table[name]()


if __name__ == "__main__":
    asyncio.run(main())
