"""The daemon's side of the wire, as far as aiosctl can tell: a real socket, real framing, answers from a table.

A thread a connection. Faults are made by answering with them: an AiosError, a Hangup, bytes.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from aiosd import framing
from aiosd.errors import AiosError, MethodNotFound
from aiosd.paths import socket_path

WAIT_S = 30

T0 = "2026-11-22T18:00:00Z"


AIOSCTL = [sys.executable, "-m", "aiosctl"]


class Hangup(Exception):
    """As an answer: the connection is closed."""


class Connection:
    def __init__(self, sock: socket.socket, number: int) -> None:
        self.number = number
        self._socket = sock

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def event(self, kind: str, *, task_id: str = "", seq: int = 1, **more: Any) -> None:
        event = {"kind": kind, "task_id": task_id or task()["task_id"], "seq": seq, "at": T0, **more}
        self.send(framing.notification("task.event", event))

    def wait_closed(self) -> None:
        """Until aiosctl has gone."""
        self._socket.settimeout(WAIT_S)
        while self._socket.recv(4096):
            pass


Answer = Callable[[dict[str, Any], Connection], object]


class Double:
    """`answers[method](params, connection)` gives a result; bytes are sent as they are."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.calls: list[tuple[str, dict[str, Any], int]] = []
        """Method, params, and the number of the connection."""
        self.answers: dict[str, Answer] = {
            "system.ping": lambda p, c: {"pong": True, "version": "0.1.0", "pid": os.getpid()},
            "session.create": lambda p, c: session(**p),
            "session.close": lambda p, c: session(**p, state="closed"),
            "session.run": lambda p, c: result(),
        }
        self._called = threading.Condition()
        self._listener = socket.socket(socket.AF_UNIX)
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._listener.bind(str(self.path))
        self._listener.listen(64)
        self._start(self._accept)
        return self

    def __exit__(self, *exc: object) -> None:
        for sock in (self._listener, *self._open):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # closed by the other side already
        for thread in self._threads:
            thread.join(WAIT_S)
        self._listener.close()

    def params(self, method: str) -> list[dict[str, Any]]:
        """Of every call of the method so far."""
        return [params for name, params, _ in self.calls if name == method]

    def wait_for(self, method: str) -> tuple[dict[str, Any], int]:
        """The first call of this method, which may be still to come, and its connection."""

        def first() -> tuple[dict[str, Any], int] | None:
            return next(((params, number) for name, params, number in self.calls if name == method), None)

        with self._called:
            found = self._called.wait_for(first, WAIT_S)
        assert found, f"no {method}; there were {[name for name, *_ in self.calls]}"
        return found

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        number = 0
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return  # closed
            number += 1
            self._open.add(sock)
            self._start(self._serve, sock, number)

    def _serve(self, sock: socket.socket, number: int) -> None:
        decoder = framing.Decoder()
        connection = Connection(sock, number)
        with sock:
            try:
                while data := sock.recv(1 << 16):
                    for message in decoder.feed(data):
                        assert isinstance(message, framing.Request)
                        self._answer(message, connection)
            except (Hangup, ConnectionError):
                pass
            self._open.discard(sock)

    def _answer(self, request: framing.Request, connection: Connection) -> None:
        params = json.loads(bytes(request.params))
        with self._called:
            self.calls.append((request.method, params, connection.number))
            self._called.notify_all()
        id = request.id
        assert isinstance(id, int)
        try:
            if request.method not in self.answers:
                raise MethodNotFound(request.method)
            answer = self.answers[request.method](params, connection)
        except AiosError as exc:
            connection.send(framing.error(id, exc) + b"\n")
        else:
            connection.send(answer if isinstance(answer, bytes) else framing.result(id, answer) + b"\n")


def raising(exc: Exception) -> Any:
    def answer(params: dict[str, Any], connection: Connection) -> object:
        raise exc

    return answer


def giving(value: object) -> Any:
    return lambda params, connection: value


def session(**given: Any) -> dict[str, Any]:
    return {
        "session_id": "11111111-0000-4000-8000-000000000001",
        "user_id": "ada",
        "title": "",
        "agent": None,
        "permissions": ["memory", "read"],
        "privacy": "any",
        "priority": "normal",
        "max_usd": None,
        "workspace": None,
        "write": False,
        "state": "open",
        "created_at": T0,
        "used_at": T0,
    } | given


def task(**given: Any) -> dict[str, Any]:
    return {
        "task_id": "22222222-0000-4000-8000-000000000002",
        "number": 7,
        "session_id": session()["session_id"],
        "parent_id": None,
        "task": "say hello",
        "state": "queued",
        "priority": "normal",
        "created_at": T0,
        "started_at": None,
        "ended_at": None,
        "steps": 0,
        "cost_usd": 0.0,
        "result": None,
        "error": None,
    } | given


def result(**given: Any) -> dict[str, Any]:
    return {
        "task_id": task()["task_id"],
        "session_id": session()["session_id"],
        "state": "completed",
        "result": "hello",
        "stop_reason": "end_turn",
        "generated": True,
        "abstained": False,
        "backend": "small",
        "model": "m",
        "sources": [],
        "usage": {"input_tokens": 1, "output_tokens": 1},
        "cost_usd": 0.0,
        "decision": None,
    } | given


def message(text: str) -> dict[str, Any]:
    """What an event of kind `message` has beside its number."""
    return {
        "text": text,
        "thinking": "",
        "tool_calls": [],
        "stop_reason": "end_turn",
        "generated": True,
        "abstained": False,
        "backend": "small",
        "model": "m",
        "sources": [],
    }


def memory(**given: Any) -> dict[str, Any]:
    return {
        "memory_id": "33333333-0000-4000-8000-000000000003",
        "user_id": "ada",
        "session_id": session()["session_id"],
        "content": "the staging server listens on 8081",
        "speaker": None,
        "kind": "note",
        "source": "user",
        "trust": 1.0,
        "privacy": "any",
        "created_at": T0,
        "metadata": {},
    } | given


class Ctl:
    """Runs aiosctl in an empty home, in a folder with nothing else."""

    def __init__(self, home: Path, socket_path: Path) -> None:
        self.folder = home / "work"
        self.folder.mkdir()
        self.env = {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "AIOSD_SOCKET": str(socket_path),
            "OLLAMA_HOST": "127.0.0.1:9",  # where none listens
            "LLAMA_ARG_PORT": "9",
        }

    def __call__(
        self, *args: str, stdin: Any = subprocess.DEVNULL, given: str | None = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*AIOSCTL, *args],
            check=False,
            stdin=None if given is not None else stdin,
            input=given,
            capture_output=True,
            encoding="utf-8",
            cwd=self.folder,
            env=self.env | env,
            timeout=WAIT_S,
        )

    def shell(self, script: str, **env: str) -> subprocess.CompletedProcess[str]:
        """In bash; `$AIOSCTL` is the command."""
        return subprocess.run(
            ["bash", "-c", script],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            cwd=self.folder,
            env=self.env | {"AIOSCTL": " ".join(AIOSCTL)} | env,
            timeout=WAIT_S,
        )


def serve() -> None:
    """As a program that aiosctl starts: notes who it is, tells that it is ready, and serves until it is killed."""
    signal.alarm(120)  # no test leaves it behind
    with (Path(os.environ["HOME"]) / "starts").open("a") as starts:
        starts.write(json.dumps({"pid": os.getpid(), "environ": dict(os.environ)}) + "\n")
    with Double(socket_path()):
        if name := os.environ.get("NOTIFY_SOCKET"):
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
                notify.sendto(b"STATUS=up\nREADY=1\n", name.replace("@", "\0", 1))
        print("listening", flush=True)  # noqa: T201 -- for a shell that waits for it
        signal.pause()
