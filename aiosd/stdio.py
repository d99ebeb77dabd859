"""The child's end of its line to the daemon: requests in on stdin, answers out on stdout, one JSON-RPC message a line.

Blocking, and without an event loop: a child that does one thing at a time calls `serve`; one that does several
(the tool host) waits on `Line.fileno()` itself.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from queue import SimpleQueue

import msgspec

from aiosd import framing
from aiosd.errors import AiosError, InternalError, MethodNotFound, ToolFailed

PR_SET_PDEATHSIG = 1
"""prctl(2)."""


class Line:
    """The two pipes of the daemon, on descriptors of their own. Answers may come from any thread."""

    def __init__(self, receiving: int, sending: int) -> None:
        self._receiving = receiving
        self._sending = sending
        self._decoder = framing.Decoder()
        self._whole_answer = threading.Lock()

    def fileno(self) -> int:
        """Readable when `receive` would not block."""
        return self._receiving

    def close(self) -> None:
        """For a forked child, which must neither read nor answer in its parent's place."""
        os.close(self._receiving)
        os.close(self._sending)

    def receive(self) -> tuple[framing.Request, ...] | None:
        """What one read completes, which may be nothing; None when the daemon has ended or closed the line.

        A line that is no request is answered here. Raises framing.LineTooLong, which the daemon never sends.
        """
        data = os.read(self._receiving, 256 * 1024)
        if not data:
            return None
        requests = []
        for message in self._decoder.feed(data):
            match message:
                case framing.Request():
                    requests.append(message)
                case AiosError():
                    self.refuse(None, message)
                case framing.Response() | framing.Batch():
                    self.refuse(None, AiosError("only single requests come this way"))
        return tuple(requests)

    def __iter__(self) -> Iterator[framing.Request]:
        """Every request until the daemon ends or closes the line."""
        while (requests := self.receive()) is not None:
            yield from requests

    def answer(self, id: framing.Id, value: object) -> None:
        """Raises TypeError where `value` has no JSON form, BrokenPipeError when the daemon is gone."""
        line = framing.result(id, value)
        if len(line) >= framing.MAX_LINE:
            self.refuse(id, ToolFailed(f"its answer has {len(line)} bytes; a message may have 8 MiB"))
        else:
            self._send(line)

    def refuse(self, id: framing.Id, exc: AiosError) -> None:
        self._send(framing.error(id, exc))

    def notify(self, method: str, params: object) -> None:
        self._send(framing.notification(method, params).rstrip(b"\n"))

    def _send(self, line: bytes) -> None:
        rest = memoryview(line + b"\n")
        with self._whole_answer:
            while rest:
                rest = rest[os.write(self._sending, rest) :]


def open_line() -> Line:
    """Takes stdin and stdout for the daemon alone, and ties this process's life to the daemon's. Call it first.

    From here on what is printed goes to stderr, which is the daemon's log, and `input()` finds the end of file:
    code that we did not write can neither break the protocol nor eat a request.
    """
    # Kill us when the thread that started us ends. It may have ended before this line, hence the look at stdin.
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if _abandoned(0):
        raise SystemExit(0)
    line = Line(os.dup(0), os.dup(1))  # not inherited by what this process execs
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    if sys.stdout is not None:
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a log wants whole lines, now
    return line


def _abandoned(fd: int) -> bool:
    """Nobody can write to this pipe any more, and nothing is left in it."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    events = poll.poll(0)
    return bool(events) and bool(events[0][1] & select.POLLHUP) and not events[0][1] & select.POLLIN


def serve(
    methods: Mapping[str, Callable[..., object]],
    line: Line | None = None,
    *,
    beside: Mapping[str, Callable[..., object]] | None = None,
) -> None:
    """Answers requests one after the other until the daemon ends or closes the line.

    Those of `beside` are answered in a thread of their own, one after the other too, so that long work does not keep
    the others waiting; what is not done when the line is closed stays undone.

    Params become arguments, by name or by place. An AiosError is answered as it is; any other Exception is a bug:
    its traceback goes to stderr and the answer says no more than that. What is no Exception ends the process.
    """
    line = line or open_line()
    beside = beside or {}
    queue: SimpleQueue[framing.Request] = SimpleQueue()
    if beside:
        threading.Thread(target=_answer_queue, args=(line, queue, beside), daemon=True).start()
    try:
        for request in line:
            if request.is_notification:  # of a call that was given up: too late, it is done or comes next
                continue
            if request.method in beside:
                queue.put(request)
            else:
                _answer(line, request, methods)
    except BrokenPipeError:
        return  # the daemon ended between a question and its answer


def _answer_queue(
    line: Line, queue: SimpleQueue[framing.Request], methods: Mapping[str, Callable[..., object]]
) -> None:
    with suppress(BrokenPipeError):  # the daemon ended; so do we
        while True:
            _answer(line, queue.get(), methods)


def _answer(line: Line, request: framing.Request, methods: Mapping[str, Callable[..., object]]) -> None:
    assert not isinstance(request.id, msgspec.UnsetType)
    try:
        method = methods.get(request.method)
        if method is None:
            raise MethodNotFound(f"no method `{request.method}` here")
        line.answer(request.id, _call(method, request.params))
    except AiosError as exc:
        line.refuse(request.id, exc)
    except BrokenPipeError:
        raise
    except Exception:  # noqa: BLE001 - a bug of one method costs one answer, not the child
        traceback.print_exc()
        line.refuse(request.id, InternalError(f"`{request.method}` failed; the log has the traceback"))


def _call(method: Callable[..., object], params: msgspec.Raw) -> object:
    match msgspec.json.decode(params) if bytes(params) else None:
        case dict() as named:
            return method(**named)
        case list() as placed:
            return method(*placed)
        case _:
            return method()
