"""One supervisor for every child process: started when it is asked something, restarted when it has died, ended
when it is idle, and gone when the daemon is.

The line is JSON-RPC over the child's stdin and stdout (aiosd.framing); its stderr goes to the log line by line.
Our own children speak through aiosd.stdio, which keeps their prints off the line and ties their lives to ours.
"""

from __future__ import annotations

import logging
import os
import re
import select
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import anyio
import msgspec
from anyio.abc import TaskGroup

from aiosd import framing, tally
from aiosd.errors import AiosError, DeadlineExceeded, InvalidParams, from_wire

GRACE_S = 2.0
"""How long a child may take to end by itself once its stdin is closed; then its process group is killed."""

CANCEL = "$/cancelRequest"
"""The notification that nobody waits any more for the answer to the request `id`. LSP 3.17, Cancellation Support."""

MAX_LOG_LINE = 16 * 1024
"""Bytes of stderr without a line end after which the log gets what there is."""

logger = logging.getLogger(__name__)


class ChildDied(AiosError):
    """The process ended under the call, or does not start. The next call finds a new one, `retry_after_s` from now."""

    def __init__(self, message: str, *, retry_after_s: float = 0.0, hint: str | None = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s, hint=hint)
        self.retry_after_s = retry_after_s


class Call(Protocol):
    async def __call__(self, method: str, params: object = None, *, timeout_s: float) -> Any: ...


Started = Callable[[Call], Awaitable[None]]
"""Makes a new process ready, through the call it is given; everyone else's calls wait for that."""


class Group(Protocol):
    """What a child joins, with all that it starts (tools.cgroup)."""

    def kill(self) -> None: ...
    def exceeded(self) -> str: ...


class Held(Protocol):
    """A process in use, as who holds it sees it."""

    ended: anyio.Event
    failure: str
    """Why it ended, once it has."""


def backoff_s(failures: int) -> float:
    """Seconds to leave a child alone that died `failures` times in a row before it was of any use.

    The first time may be chance, a kill for instance, and costs nothing.
    """
    return min(30.0, 0.25 * 2.0 ** min(failures - 2, 10)) if failures > 1 else 0.0


@asynccontextmanager
async def open_child(
    argv: Sequence[str],
    *,
    name: str,
    env: Mapping[str, str],
    cwd: Path | None = None,
    idle_s: float | None = None,
    started: Started | None = None,
    cause: re.Pattern[str] | None = None,
    group: Group | None = None,
) -> AsyncIterator[Child]:
    """A child that the first call starts; `env` is its whole environment, `name` what errors and the log call it.

    Why it ended is told by the first line of its stderr that `cause` finds, if it is given and finds one, by group 1;
    by the last line otherwise. Unasked for `idle_s` it is ended, until the next call. On the way out it gets GRACE_S, whoever cancels.
    """
    async with anyio.create_task_group() as tasks:
        child = Child(_Program(name, argv, env, cwd, idle_s, started, cause, group), tasks)
        try:
            yield child
        finally:
            child.close()


class _Program(NamedTuple):
    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path | None
    idle_s: float | None
    started: Started | None
    cause: re.Pattern[str] | None
    group: Group | None


class Child:
    """A program that answers calls, whichever process happens to run it."""

    def __init__(self, program: _Program, tasks: TaskGroup) -> None:
        self.name = program.name
        self._program = program
        self._tasks = tasks
        self._life: _Life | None = None
        self._failures = 0
        self._last_failure = ""
        self._not_before = 0.0
        self._is_closed = False

    @property
    def pid(self) -> int | None:
        """Of the process there is; None where the next call starts one."""
        return self._life.process.pid if self._life else None

    @property
    def is_ready(self) -> bool:
        """There is a process, and `started` is done with it."""
        return self._life is not None and self._life.is_ready and not self._life.is_over

    async def call(self, method: str, params: object = None, *, timeout_s: float) -> Any:
        """The answer, decoded from JSON. Many calls may be in flight.

        One that is cancelled or late is announced to the child with CANCEL. Raises ChildDied, DeadlineExceeded,
        InvalidParams (over 8 MiB), or the AiosError that the child answered.
        """
        with anyio.move_on_after(timeout_s):
            life = await self._ready()
            return await life.ask(method, params)
        raise DeadlineExceeded(f"{self.name} did not answer `{method}` within {timeout_s:g} s")

    @asynccontextmanager
    async def hold(self, *, timeout_s: float) -> AsyncIterator[Held]:
        """A process that is ready, and not idle meanwhile: for a child that is spoken to by more than its line.

        timeout_s is for its start. Raises ChildDied, DeadlineExceeded.
        """
        life = None
        with anyio.move_on_after(timeout_s):
            life = await self._ready()
        if life is None:
            raise DeadlineExceeded(f"{self.name} was not ready within {timeout_s:g} s")
        with life.held():
            yield life

    def kill(self) -> None:
        """Ends a process that hangs, with its group; calls in flight get ChildDied."""
        if self._life is not None:
            self._life.kill("it hung and was killed")

    def close(self) -> None:
        """No more calls; the process is told to end. open_child waits until it has."""
        self._is_closed = True
        if self._life is not None:
            self._life.end()

    async def _ready(self) -> _Life:
        while not self._is_closed:
            life = self._life or self._start()
            if life.is_over:
                await life.ended.wait()
            elif life.is_ready:
                return life
            else:
                await life.settled.wait()
                if not life.is_ready:
                    raise ChildDied(f"{self.name} does not start: {life.failure}")
        raise ChildDied(f"{self.name} is closed")

    def _start(self) -> _Life:
        wait_s = self._not_before - anyio.current_time()
        if wait_s > 0:
            raise ChildDied(f"{self.name} does not start: {self._last_failure}", retry_after_s=wait_s)
        try:
            # Not in a worker thread: PR_SET_PDEATHSIG fires when the *thread* that started the child ends.
            process = subprocess.Popen(
                self._program.argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=dict(self._program.env),
                cwd=self._program.cwd,
                start_new_session=True,  # a process group to kill whole, and no Ctrl-C from our terminal
            )
        except OSError as exc:
            self._count_failure(str(exc))
            raise ChildDied(f"{self.name} does not start: {exc}") from exc
        tally.CHILD_STARTS.add(tally.kind(self.name))
        logger.info("child started", extra={"child": self.name, "pid": process.pid})
        self._life = life = _Life(self._program, process)
        self._tasks.start_soon(self._live, life, name=f"{self.name} {process.pid}")
        return life

    async def _live(self, life: _Life) -> None:
        try:
            await life.run(self._program.started, self._program.idle_s)
        finally:
            self._life = None
            if life.is_ready and life.has_answered:
                self._failures, self._not_before = 0, 0.0
            elif not life.is_unwanted:
                self._count_failure(life.failure)
            told = {"child": self.name, "pid": life.process.pid, "why": life.failure}
            logger.info("child ended", extra=told)
            life.ended.set()

    def _count_failure(self, why: str) -> None:
        tally.CHILD_FAILURES.add(tally.kind(self.name))
        self._failures += 1
        self._last_failure = why
        self._not_before = anyio.current_time() + backoff_s(self._failures)


class _Answer:
    def __init__(self) -> None:
        self.response: framing.Response | None = None
        self.there = anyio.Event()
        """The response has come, or the process has ended without one."""


class _Life:
    """One process, from its start to its end."""

    def __init__(self, program: _Program, process: subprocess.Popen[bytes]) -> None:
        self.name = program.name
        self.process = process
        self.is_ready = False
        self.settled = anyio.Event()
        """It is ready, or never will be."""
        self.ended = anyio.Event()
        """Nothing is left of it. Set by its owner, after what follows from that."""
        self.has_answered = False
        self.is_unwanted = False
        self.failure = ""
        """Why it ended, once it has."""
        self._killed_because = ""
        self._scope = anyio.CancelScope()
        self._ids = count(1)
        self._waiting: dict[int, _Answer] = {}
        self._holders = 0
        self._outbox: dict[int, bytes] = {}
        self._is_writing = False
        self._more = anyio.Event()
        self._free_since = 0.0
        self._decoder = framing.Decoder()
        self._half_line = b""
        self._program = program
        self._told = ""
        self._last_line = ""
        assert process.stdin and process.stdout and process.stderr
        self._stdin, self._stdout, self._stderr = process.stdin, process.stdout, process.stderr
        for pipe in (self._stdin, self._stdout, self._stderr):
            os.set_blocking(pipe.fileno(), False)
        self._exit = os.pidfd_open(
            process.pid
        )  # readable once it has ended; until we reap it the number is its own

    @property
    def is_over(self) -> bool:
        """Nothing may be asked of it any more, even if the event loop has not heard of its end yet."""
        return self.is_unwanted or bool(self._killed_because) or self._has_exited()

    def _has_exited(self) -> bool:
        if self._exit < 0:
            return True
        poll = select.poll()
        poll.register(self._exit, select.POLLIN)
        return bool(poll.poll(0))

    def end(self) -> None:
        """Its stdin is closed, and it has GRACE_S to end by itself."""
        self.is_unwanted = True
        self._scope.cancel()

    def kill(self, why: str) -> None:
        self._killed_because = self._killed_because or why
        self._kill_group()

    async def ask(self, method: str, params: object) -> Any:
        id = next(self._ids)
        line = framing.request(id, method, {} if params is None else params)
        if len(line) > framing.MAX_LINE:
            raise InvalidParams(f"`{method}` of {self.name}: {len(line)} bytes; a message may have 8 MiB")
        answer = self._waiting[id] = _Answer()
        self._post(id, line)
        try:
            await answer.there.wait()
        finally:
            del self._waiting[id]
            self._free_since = anyio.current_time()
            was_sent = self._outbox.pop(id, None) is None
            if was_sent and not answer.there.is_set():
                self._post(-id, framing.notification(CANCEL, {"id": id}))
        if answer.response is None:
            raise ChildDied(f"{self.name} ended during `{method}`: {self.failure}")
        if answer.response.error is not None:
            raise from_wire(answer.response.error)
        return msgspec.json.decode(answer.response.result)

    async def call(self, method: str, params: object = None, *, timeout_s: float) -> Any:
        """For `started`, while nobody else may ask."""
        with anyio.move_on_after(timeout_s):
            return await self.ask(method, params)
        raise DeadlineExceeded(f"it did not answer `{method}` within {timeout_s:g} s")

    @contextmanager
    def held(self) -> Iterator[None]:
        self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1
            self._free_since = anyio.current_time()

    def _post(self, key: int, line: bytes) -> None:
        """What is short goes at once where nothing is before it: a pipe takes it whole or not at all."""
        if not (len(line) > select.PIPE_BUF or self._outbox or self._is_writing or self._stdin.closed):
            with suppress(BlockingIOError, BrokenPipeError):  # the writer waits, or finds out
                os.write(self._stdin.fileno(), line)
                return
        self._outbox[key] = line
        self._more.set()

    # --- its tasks -------------------------------------------------------------------------------------

    async def run(self, started: Started | None, idle_s: float | None) -> None:
        """Returns when the process, and its group, are gone."""
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._write)
                    tasks.start_soon(self._read)
                    tasks.start_soon(self._log)
                    tasks.start_soon(self._make_ready, started)
                    if idle_s is not None:
                        tasks.start_soon(self._end_when_idle, idle_s)
                    await anyio.wait_readable(self._exit)
                    tasks.cancel_scope.cancel()
        finally:
            with anyio.move_on_after(GRACE_S + 1, shield=True):
                await self._bury()
            self._settle()

    async def _bury(self) -> None:
        if not self._has_exited():
            self._stdin.close()
            with anyio.move_on_after(GRACE_S):
                await anyio.wait_readable(self._exit)
        # Before it is reaped, and even if it ended by itself: it may have left children in its group.
        self._kill_group()
        await anyio.wait_readable(self._exit)
        self.process.wait()

    def _settle(self) -> None:
        """What it said before it ended still counts: its last answers, and its last words."""
        if data := _read_now(self._stdout):
            self._receive(data)
        if data := _read_now(self._stderr):
            self._hear(data)
        self._hear(b"\n")
        why = _why(self.process.returncode, self._told or self._last_line)
        passed = self._program.group and self._program.group.exceeded()
        self.failure = self._killed_because or passed or why
        for answer in self._waiting.values():
            answer.there.set()
        self.settled.set()
        for pipe in (self._stdin, self._stdout, self._stderr):
            pipe.close()
        os.close(self._exit)
        self._exit = -1

    def _kill_group(self) -> None:
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            if self._program.group is not None:
                self._program.group.kill()

    async def _make_ready(self, started: Started | None) -> None:
        if started is not None:
            try:
                await started(self.call)
            except AiosError as exc:
                return self.kill(str(exc))
            except Exception:
                logger.exception("child could not be made ready", extra={"child": self.name})
                return self.kill("it could not be made ready; the log has the traceback")
        self.is_ready = True
        self.settled.set()

    async def _end_when_idle(self, idle_s: float) -> None:
        await self.settled.wait()
        self._free_since = anyio.current_time()
        while True:
            is_busy = self._waiting or self._holders
            left_s = idle_s if is_busy else self._free_since + idle_s - anyio.current_time()
            if left_s <= 0:
                return self.end()
            await anyio.sleep(left_s)

    async def _write(self) -> None:
        fd = self._stdin.fileno()
        while True:
            while self._outbox:
                rest = memoryview(self._outbox.pop(next(iter(self._outbox))))
                self._is_writing = True
                while rest:
                    try:
                        rest = rest[os.write(fd, rest) :]
                    except BlockingIOError:
                        await anyio.wait_writable(fd)
                    except BrokenPipeError:
                        self._kill_group()  # it is ending, or will never hear us again
                        return
                self._is_writing = False
            self._more = anyio.Event()
            await self._more.wait()

    async def _read(self) -> None:
        while True:
            await anyio.wait_readable(self._stdout)
            data = _read_now(self._stdout)
            if data == b"":
                self._kill_group()  # it is ending, or will never answer again
                return
            self._receive(data or b"")

    def _receive(self, data: bytes) -> None:
        try:
            for message in self._decoder.feed(data):
                if isinstance(message, framing.Response):
                    self._take(message)
                else:
                    logger.warning("child sent what is no answer", extra={"child": self.name})
        except framing.LineTooLong as exc:
            self.kill(f"on its stdout {exc}")

    def _take(self, response: framing.Response) -> None:
        answer = self._waiting.get(response.id) if isinstance(response.id, int) else None
        if answer is None or answer.there.is_set():  # late, most likely: its caller has gone
            logger.debug("child answered what nobody waits for", extra={"child": self.name})
            return
        self.has_answered = True
        answer.response = response
        answer.there.set()

    async def _log(self) -> None:
        while True:
            await anyio.wait_readable(self._stderr)
            data = _read_now(self._stderr)
            if data == b"":
                return
            self._hear(data or b"")

    def _hear(self, data: bytes) -> None:
        *lines, self._half_line = (self._half_line + data).split(b"\n")
        if len(self._half_line) > MAX_LOG_LINE:
            lines, self._half_line = [*lines, self._half_line], b""
        for line in lines:
            if text := line[:MAX_LOG_LINE].decode(errors="replace").strip():
                self._last_line = text
                if self._program.cause and not self._told and (found := self._program.cause.search(text)):
                    self._told = found[1]
                logger.info("child says", extra={"child": self.name, "line": text})


def _read_now(pipe: IO[bytes]) -> bytes | None:
    """All that a pipe holds (pipe(7), Pipe capacity), which empties that of a dead child; None when that is nothing, empty
    at its end."""
    return pipe.read(64 * 1024)


def _why(status: int | None, last_line: str) -> str:
    match status:
        case None:
            how = "it could not be killed"
        case negative if negative < 0:
            how = f"killed by signal {-negative} ({signal.strsignal(-negative)})"
        case _:
            how = f"exit status {status}"
    return f"{how}: {last_line}" if last_line else how
