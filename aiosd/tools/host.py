"""The tool host: the process of one session in which the user's tools are loaded, and which forks for each call.

    python -P -m aiosd.tools.host [--careful] PLAN

Started clean by the registry: an empty environment, the session's workspace as current folder. It walls itself in as
the plan (a sandbox.Plan as JSON) says, before it loads what others wrote. One thread waits for requests, answers and ends of calls and the next deadline, all at once. A call's process leads a session of
its own, so that it can be killed with all that it started; the little that gets away from there is adopted
(PR_SET_CHILD_SUBREAPER) and killed when the call ends.
"""

from __future__ import annotations

import ctypes
import gc
import inspect
import os
import select
import selectors
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import msgspec

from aiosd import framing, stdio
from aiosd.errors import AiosError, DeadlineExceeded, InvalidParams, MethodNotFound, NotFound, ToolFailed
from aiosd.records import ToolResult
from aiosd.tools import quota, workspace
from aiosd.tools.loading import Loaded, ending, load
from aiosd.tools.running import Answer, run
from aiosd.tools.sandbox import ADVICE, Plan, Walls, build
from aiosd.tools.wire import CAREFUL, Call, Description, Problem

PR_SET_CHILD_SUBREAPER = 36
"""prctl(2)."""

MAX_ANSWER = 7 * 1024 * 1024
"""Bytes from a call's process. Its text is capped below (results.MAX_ENCODED); more is not our own code writing."""

HEADER = 8
"""Bytes of an answer's length, before it."""

CANCEL = "$/cancelRequest"
"""As in aiosd.child, whose imports would cost every host 40 ms."""


class Running:
    """A call and its process. `over` once it is answered; the process is then killed, and reaped when it ends."""

    def __init__(self, id: framing.Id, name: str, timeout_s: float, pid: int, receiving: int) -> None:
        self.id = id
        self.name = name
        self.timeout_s = timeout_s
        self.deadline = time.monotonic() + timeout_s
        self.pid = pid
        self.exit = os.pidfd_open(pid)
        self.receiving = receiving
        self.received = bytearray()
        self.over = False
        self.since = time.time()
        self.free = 0
        """Bytes of the workspace's disk when it was last looked at closely."""

    @property
    def is_whole(self) -> bool:
        return len(self.received) >= HEADER and len(self.received) >= HEADER + int.from_bytes(
            self.received[:HEADER]
        )

    def receive(self) -> bool:
        """False when nothing more will come."""
        try:
            data = os.read(self.receiving, 64 * 1024)
        except BlockingIOError:
            return True
        self.received += data
        return bool(data)


class Host:
    def __init__(
        self,
        line: stdio.Line,
        tools: Mapping[str, Loaded],
        problems: Sequence[Problem],
        walls: Walls,
        plan: Plan,
    ) -> None:
        self._plan = plan
        self._workspace = Path(plan.workspace) if plan.workspace is not None and plan.write else None
        self._look_at = 0.0
        self._line = line
        self._walls = walls
        self._tools = tools
        self._problems = tuple(problems)
        self._selector = selectors.DefaultSelector()
        self._calls: dict[int, Running] = {}
        """By the process's number, until it is reaped."""
        self._pid = os.getpid()
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._companions = frozenset(_children())
        """Processes that the user's files started when they were imported."""

    def serve(self) -> None:
        """Until the daemon closes the line; what runs then is killed."""
        self._selector.register(self._line, selectors.EVENT_READ)
        try:
            while True:
                for key, _ in self._selector.select(self._patience_s()):
                    if key.data is None:
                        requests = self._line.receive()
                        if requests is None:
                            return
                        for request in requests:
                            self._take(request)
                    else:
                        self._hear(key.data, ended=key.fd == key.data.exit)
                self._expire()
        except BrokenPipeError:
            return  # the daemon ended before an answer
        finally:
            for call in self._calls.values():
                self._kill(call)
            for call in list(self._calls.values()):
                self._reap(call)
            self._companions = frozenset()
            self._end_strays()

    # --- requests --------------------------------------------------------------------------------------

    def _take(self, request: framing.Request) -> None:
        if isinstance(request.id, msgspec.UnsetType):
            if request.method == CANCEL:
                self._cancel(msgspec.json.decode(request.params)["id"])
            return
        try:
            match request.method:
                case "describe":
                    tools = tuple(loaded.tool for loaded in self._tools.values())
                    tier = self._walls.tier.value
                    files = {name: loaded.file for name, loaded in self._tools.items() if loaded.file}
                    described = Description(tools=tools, problems=self._problems, files=files, sandbox=tier)
                    self._line.answer(request.id, described)
                case "call":
                    self._start(request.id, _call(request.params))
                case _:
                    raise MethodNotFound(f"no method `{request.method}` here")
        except AiosError as exc:
            self._line.refuse(request.id, exc)

    def _start(self, id: framing.Id, call: Call) -> None:
        if not self._walls.hold:
            raise ToolFailed(f"`{call.name}` was not run: {_unwalled(self._walls)}", hint=ADVICE)
        loaded = self._tools.get(call.name)
        if loaded is None:
            raise NotFound(f"the tool host has no tool `{call.name}`")
        if loaded.tool.hosts and not self._walls.has_way_out:
            why = f"`{self._walls.tier}` has no way to let single hosts through ({self._walls.why})"
            raise ToolFailed(f"`{call.name}` was not run: it needs the network, and {why}", hint=ADVICE)
        receiving, sending = os.pipe2(os.O_CLOEXEC)
        try:
            pid = os.fork()
        except OSError as exc:
            os.close(receiving)
            os.close(sending)
            raise ToolFailed(f"no process for tool `{call.name}`: {exc.strerror}") from None
        if pid == 0:
            self._become_call(loaded, bytes(call.arguments), receiving, sending)
        os.close(sending)
        os.set_blocking(receiving, False)
        running = Running(id, call.name, call.timeout_s, pid, receiving)
        if self._workspace is not None:
            running.free = quota.free(self._workspace)
        if all(call.over for call in self._calls.values()):
            self._look_at = time.monotonic() + quota.LOOK_S  # a short call costs no look
        self._calls[pid] = running
        self._selector.register(receiving, selectors.EVENT_READ, running)
        self._selector.register(running.exit, selectors.EVENT_READ, running)

    def _become_call(self, loaded: Loaded, arguments: bytes, receiving: int, sending: int) -> NoReturn:
        """The forked child from its first line to its last. Never returns into the host's loop."""
        status = 70  # EX_SOFTWARE: it could not even be made ready
        try:
            os.setsid()
            self._libc.prctl(stdio.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != self._pid:
                os._exit(status)  # the host ended before it could take us along
            # A call must neither read another's answer nor speak to the daemon.
            for call in self._calls.values():
                os.close(call.exit)
                if not call.over:
                    os.close(call.receiving)
            self._selector.close()
            self._line.close()
            os.close(receiving)
            self._walls.enter()
            me = os.getpid()
            answer = msgspec.json.encode(run(loaded, arguments))
            if os.getpid() == me:  # a tool may fork and return twice
                _write(sending, len(answer).to_bytes(HEADER) + answer)
            status = 0
        except BaseException:  # noqa: BLE001 - whatever it was, this process ends here
            sys.excepthook(*sys.exc_info())
        finally:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):  # a tool may have closed it
                    stream.flush()
            os._exit(status)

    # --- answers ---------------------------------------------------------------------------------------

    def _hear(self, call: Running, *, ended: bool) -> None:
        if self._calls.get(call.pid) is not call:
            return  # reaped earlier in this round
        more = True
        if not call.over:
            more = call.receive()
            while ended and more and not call.is_whole and _is_readable(call.receiving):
                more = call.receive()
            if call.is_whole:
                self._finish(call, _decoded(call))
            elif len(call.received) > MAX_ANSWER:
                self._finish(call, ToolFailed(f"tool `{call.name}` gave more than {MAX_ANSWER} bytes"))
        if ended:
            self._reap(call)
        elif not more and not call.over:
            self._selector.unregister(call.receiving)  # at its end, it would be readable for ever

    def _finish(self, call: Running, answer: ToolResult | AiosError | None) -> None:
        """Answers, unless with None, and kills what is left of the call."""
        call.over = True
        if call.receiving in self._selector.get_map():
            self._selector.unregister(call.receiving)
        os.close(call.receiving)
        self._kill(call)
        if isinstance(answer, AiosError):
            self._line.refuse(call.id, answer)
        elif answer is not None:
            self._line.answer(call.id, answer)

    def _cancel(self, id: object) -> None:
        for call in list(self._calls.values()):
            if call.id == id and not call.over:
                self._finish(call, None)

    def _patience_s(self) -> float | None:
        deadlines = [call.deadline for call in self._calls.values() if not call.over]
        return max(0.0, min(*deadlines, self._look_at) - time.monotonic()) if deadlines else None

    def _expire(self) -> None:
        now = time.monotonic()
        for call in list(self._calls.values()):
            if not call.over and call.deadline <= now:
                late = f"tool `{call.name}` did not answer within {call.timeout_s:g} s and was killed"
                self._finish(call, DeadlineExceeded(late))
        if now >= self._look_at:
            self._look_at = now + quota.LOOK_S
            running = [call for call in self._calls.values() if not call.over]
            self._bound_space(running)
            self._bound_memory(running)

    def _bound_space(self, running: Sequence[Running]) -> None:
        if self._workspace is None:
            return
        left = quota.free(self._workspace)
        for call in running:
            call.free = max(call.free, left)
            if call.free - left <= self._plan.written:
                continue
            wrote = quota.written(self._workspace, call.since)
            if wrote > self._plan.written:
                room = self._plan.written >> 20
                why = f"tool `{call.name}` wrote {wrote >> 20} MiB into the workspace and was killed; it may have {room}"
                self._finish(call, ToolFailed(why))
            call.free = left  # others may fill the disk too: not looked at again before it is as much again

    def _bound_memory(self, running: Sequence[Running]) -> None:
        taken = quota.resident() if running else {}
        own = {call.pid: taken.get(call.pid, 0) for call in running}
        if sum(own.values()) > self._plan.memory:
            worst = max(running, key=lambda call: own[call.pid])
            why = f"`{worst.name}` and what it started took {own[worst.pid] >> 20} MiB of memory and were killed"
            self._finish(worst, ToolFailed(why))

    # --- ends ------------------------------------------------------------------------------------------

    def _kill(self, call: Running) -> None:
        # Not reaped yet, so the number is still this call's. Before its setsid() there is no such group.
        for kill in (os.kill, os.killpg):
            with suppress(ProcessLookupError):
                kill(call.pid, signal.SIGKILL)

    def _reap(self, call: Running) -> None:
        self._kill(call)  # the process has ended, but what it left behind may not have
        _, status = os.waitpid(call.pid, 0)
        self._selector.unregister(call.exit)
        os.close(call.exit)
        if not call.over:
            self._finish(call, ToolFailed(f"tool `{call.name}` {ending(status)} and gave no answer"))
        del self._calls[call.pid]
        self._end_strays()

    def _end_strays(self) -> None:
        """Kills what left its call's group and lost its parent, which made it ours. Not what the host itself
        started, nor what belongs to a call that still runs. A stray's own children come to us when it ends."""
        groups = {os.getpgrp(), *self._calls}
        kept = self._companions.union(self._calls)
        while strays := [pid for pid in _children() if pid not in kept and _group(pid) not in groups]:
            for pid in strays:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _call(params: msgspec.Raw) -> Call:
    try:
        return msgspec.json.decode(params, type=Call)
    except msgspec.DecodeError as exc:
        raise InvalidParams(str(exc)) from None


def _decoded(call: Running) -> ToolResult | AiosError:
    """A tool can write to that pipe what it likes, so it is read like any stranger's message."""
    try:
        answer = msgspec.json.decode(bytes(call.received[HEADER:]), type=Answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        return ToolFailed(f"tool `{call.name}` gave an answer that is none: {exc}")
    if answer.refused is not None:
        return InvalidParams(answer.refused)
    return answer.result or ToolFailed(f"tool `{call.name}` gave an empty answer")


def _children() -> list[int]:
    """Of this process, those it adopted included; none where the kernel does not tell (CONFIG_PROC_CHILDREN)."""
    found: list[int] = []
    for task in os.listdir("/proc/self/task"):
        with suppress(FileNotFoundError, ProcessLookupError):  # also a thread that has just ended
            found += map(int, Path(f"/proc/self/task/{task}/children").read_text().split())
    return found


def _group(pid: int) -> int:
    """Of a child of ours, so it is there until we reap it."""
    return os.getpgid(pid)


def _is_readable(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def _unwalled(walls: Walls) -> str:
    return f"no walls can be built around tools on this machine ({walls.why})"


def _write(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def main() -> None:
    line = stdio.open_line()
    sys.dont_write_bytecode = True  # nothing of ours in the user's folders
    plan = msgspec.json.decode(sys.argv[-1], type=Plan)
    walls = build(plan)
    workspace.outputs = plan.outputs
    if walls.why:
        print(f"walls: {walls.tier} ({walls.why})", file=sys.stderr)  # noqa: T201 - the daemon's log
    # Importing a user's file runs it, and that is not done without walls either.
    sys.path += plan.packages
    folders = [Path(folder) for folder in plan.folders] if walls.hold else []
    tools, problems = load(
        folders,
        careful=CAREFUL in sys.argv,
        only=plan.only,
        without=plan.without,
        instead=plan.instead,
        commands=plan.commands,
        searxng_url=plan.searxng_url,
    )
    if not walls.hold:
        problems = tuple(Problem(file=f, line=None, error=_unwalled(walls)) for f in plan.folders)
    if any(inspect.iscoroutinefunction(loaded.function) for loaded in tools.values()):
        import asyncio  # noqa: F401 - once here, or in every call of an async tool; and never where there is none
    if plan.out is not None:
        from aiosd.tools import browsing  # noqa: F401 - likewise
    gc.collect()
    gc.freeze()  # a fork that leaves these objects alone shares their memory
    Host(line, tools, problems, walls, plan).serve()


if __name__ == "__main__":
    main()
