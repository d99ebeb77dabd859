"""Asking the user on the terminal itself, whatever standard input and output are connected to."""

from __future__ import annotations

import os
import select
import termios
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path

import msgspec

from aiosctl import render
from aiosctl.client import Client
from aiosd.errors import AiosError
from aiosd.protocol.approvals import ApprovalList, TaskApprove
from aiosd.protocol.tasks import TaskGet
from aiosd.records import ApprovalDecision, ApprovalEvent

WORDS: dict[str, ApprovalDecision] = {
    "y": "allow_once",
    "yes": "allow_once",
    "n": "reject_once",
    "no": "reject_once",
    "always": "allow_always",
    "never": "reject_always",
}

TTY = "/dev/tty"
ANSWER_S = 10.0
"""Seconds for the daemon to take the word."""
MAX_TASK = 200
"""Characters of a task that are shown."""
MAX_SHOWN = 1000
"""Characters of a call that are shown."""


class Asker:
    """Asks one thing after the other, in a thread, so that the run goes on being shown. A request that is answered
    elsewhere is withdrawn."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._requests: deque[ApprovalEvent] = deque()
        self._settled: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        self._asking: ApprovalEvent | None = None
        self._wake, self._waker = os.pipe()

    def hear(self, event: ApprovalEvent) -> None:
        with self._lock:
            if event.decision is None:
                self._settled.discard(key(event))
                self._requests.append(event)
                if self._asking is None:
                    self._asking = self._requests.popleft()
                    threading.Thread(target=self._ask_all, args=(self._asking,), daemon=True).start()
            else:
                self._settled.add(key(event))
                if self._asking is not None and key(self._asking) == key(event):
                    os.write(self._waker, b"!")

    def _ask_all(self, request: ApprovalEvent | None) -> None:
        while request is not None:
            with suppress(AiosError, OSError):  # no daemon: then no task either
                if self._waits(request):
                    self._ask(request)
            with self._lock:
                request = self._asking = self._requests.popleft() if self._requests else None
                while select.select([self._wake], [], [], 0)[0]:
                    os.read(self._wake, 1)

    def _waits(self, request: ApprovalEvent) -> bool:
        """Not so where it was answered long ago, and a replay tells of both."""
        if key(request) in self._settled:
            return False
        with Client(self._path) as client:
            waiting = client.call(ApprovalList(), timeout_s=ANSWER_S).waiting
        return key(request) in map(key, waiting)

    def _asks(self, request: ApprovalEvent) -> str:
        """The call, and for whom where another task has started that task."""
        with Client(self._path) as client:
            task = client.call(TaskGet(task_id=request.task_id), timeout_s=ANSWER_S)
        what = " ".join(task.task.split())[:MAX_TASK]
        return f"{shown(request)}\n  for task {task.number}: {what}" if task.parent_id else shown(request)

    def _ask(self, request: ApprovalEvent) -> None:
        try:
            tty = os.open(TTY, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            render.notice(f"{shown(request)}: there is no terminal to ask on, so the answer is no")
            self._say(request, "reject_once")
            return
        try:
            if os.tcgetpgrp(tty) != os.getpgrp():  # reading would stop a job of the background
                render.notice(f"{shown(request)} waits: aiosctl approvals answer {request.task_id[:8]} y")
                return
            if word := self._read(tty, request):
                self._say(request, word)
        finally:
            os.close(tty)

    def _read(self, tty: int, request: ApprovalEvent) -> ApprovalDecision | None:
        """None once it is answered elsewhere."""
        kept = f"; always keeps the rule {request.rule}" if request.rule else ""
        _write(tty, f"\n{self._asks(request)}\n  it asks because {request.why}{kept}\n")
        termios.tcflush(tty, termios.TCIFLUSH)  # what was typed before it was asked is no answer
        while True:
            _write(tty, "  allow it? [y/n/always/never] ")
            ready, _, _ = select.select([tty, self._wake], [], [])
            if self._wake in ready:
                _write(tty, "(answered elsewhere)\n")
                return None
            line = os.read(tty, 1024)
            if not line:  # Ctrl-D
                _write(tty, "no\n")
                return "reject_once"
            if word := WORDS.get(line.decode(errors="replace").strip().lower()):
                return word

    def _say(self, request: ApprovalEvent, decision: ApprovalDecision) -> None:
        params = TaskApprove(task_id=request.task_id, call_id=request.call_id, decision=decision)
        try:
            # Another connection: the first one waits for the task.
            with Client(self._path) as client:
                client.call(params, timeout_s=ANSWER_S)
        except (AiosError, OSError) as exc:
            render.notice(f"the answer was not taken: {exc}")


def key(request: ApprovalEvent) -> tuple[str, str]:
    """Models number their calls anew in each task."""
    return request.task_id, request.call_id


def shown(request: ApprovalEvent) -> str:
    """The call in one line."""
    arguments = msgspec.json.encode(request.arguments).decode()
    text = f"{request.name} {arguments}"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}… ({len(text)} characters)"


def _write(tty: int, text: str) -> None:
    with suppress(OSError):  # the terminal is gone: so will be the answer
        os.write(tty, render.printable(text).encode(errors="replace"))
