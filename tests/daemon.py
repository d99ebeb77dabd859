"""A real daemon in a folder of its own, and the ways in: the client, aiosctl, and raw bytes."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec

from aiosctl.client import Client
from aiosd import records as r
from aiosd.protocol.base import Params
from aiosd.protocol.sessions import SessionCreate, SessionRun

R = TypeVar("R")

PATIENCE_S = 60.0
"""For a daemon to start or stop on a machine that is busy with other things."""

NOBODY = "127.0.0.1:9"
"""Where no Ollama listens, so that one on this machine does not take part in a test."""


class Daemon:
    """`python -m aiosd` with AIOSD_HOME in `home`. Killed when its block ends, if the test has not ended it."""

    def __init__(self, home: Path, config: str = "", environ: Mapping[str, str] | None = None) -> None:
        self.home = home
        self.socket = home / "run" / "aiosd.sock"
        self.log = home / "log"
        home.mkdir(parents=True, exist_ok=True)
        if config:
            (home / "config.toml").write_text(config)
        keep = {
            k: os.environ[k] for k in ("PATH", "LANG", "HOME", "COVERAGE_PROCESS_START") if k in os.environ
        }
        self.environ = keep | {
            "AIOSD_HOME": str(home),
            "OLLAMA_HOST": NOBODY,
            "LLAMA_ARG_PORT": "9",
            "TZ": "UTC",
            **(environ or {}),
        }
        self.through: tuple[str, ...] = ()
        """A command that execs the daemon, as another user for instance."""
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:  # no block begins that would end it
            self.kill()
            raise

    def __exit__(self, *exc: object) -> None:
        self.kill()

    def start(self) -> Self:
        """Returns once the daemon says READY=1; fails with its log if it ends before."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            ready.bind("")  # the kernel chooses an abstract name
            ready.settimeout(PATIENCE_S)
            address = "@" + ready.getsockname()[1:].decode()
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    [*self.through, sys.executable, "-m", "aiosd"],
                    env=self.environ | {"NOTIFY_SOCKET": address},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                )
            pidfd = os.pidfd_open(self.process.pid)
            try:
                found, _, _ = select.select([ready.fileno(), pidfd], [], [], PATIENCE_S)
                assert ready.fileno() in found, self.log.read_text()
                assert b"READY=1" in ready.recv(100).split(b"\n")
            finally:
                os.close(pidfd)
        return self

    def kill(self) -> None:
        """kill -9, as a power cut would."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        return self._end(signal.SIGTERM)

    def ended(self) -> int:
        """Waits until it has ended by itself; the exit status."""
        return self._end(None)

    def _end(self, how: signal.Signals | None) -> int:
        if self.process is None:
            return 0
        if how is not None:
            self.process.send_signal(how)
        out, _ = self.process.communicate(timeout=PATIENCE_S)
        assert out == b"", "the daemon wrote on stdout"
        status = self.process.returncode
        self.process = None
        return status

    def call(self, params: Params[R]) -> R:
        with Client(self.socket) as client:
            return client.call(params)

    def session(self, **fields: Any) -> r.Session:
        return self.call(SessionCreate(**fields))

    def run(self, session: r.Session, task: str, **fields: Any) -> r.TaskResult:
        return self.call(SessionRun(session_id=session.session_id, task=task, **fields))

    def start_task(self, session: r.Session, task: str, **fields: Any) -> r.Task:
        """Runs it detached: the row is on the disk, nothing more is known."""
        with Client(self.socket) as client:
            params = SessionRun(session_id=session.session_id, task=task, detach=True, **fields)
            return msgspec.json.decode(client.ask(params), type=r.Task)

    def ctl(
        self,
        *args: str,
        stdin: bytes | None = None,
        cwd: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """aiosctl with these arguments, as a shell runs it; without stdin, /dev/null."""
        done = subprocess.run(
            [sys.executable, "-m", "aiosctl", *args],
            env={**self.environ, **(environ or {})},
            check=False,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            timeout=PATIENCE_S,
            cwd=cwd,
        )
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
        )

    def raw(self, data: bytes) -> bytes:
        """All that comes back for these bytes once no more are sent."""
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(PATIENCE_S)
            stream.connect(str(self.socket))
            stream.sendall(data)
            stream.shutdown(socket.SHUT_WR)
            got = bytearray()
            while piece := stream.recv(65536):
                got += piece
            return bytes(got)


class Listening(ABC):
    """A model's server on loopback that does not do what it should."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.asked = threading.Event()
        self._held: list[socket.socket] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for connection in self._held:
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.answer(connection)

    def config(self, *after: str) -> str:
        """Of a daemon whose one model, `small`, is here; in its tiers the backends `after` follow."""
        tiers = f"[models.tiers]\nbalanced = {['small', *after]}\n" if after else ""
        return f'{tiers}[models.backends.small]\nkind = "ollama"\nmodel = "m"\nurl = "{self.url}"\n'

    @abstractmethod
    def answer(self, connection: socket.socket) -> None: ...


class Refusing(Listening):
    """Takes a request and hangs up."""

    def answer(self, connection: socket.socket) -> None:
        connection.recv(65536)
        connection.close()


class Silent(Listening):
    """Takes a request and never answers it."""

    def answer(self, connection: socket.socket) -> None:
        connection.recv(65536)
        self.asked.set()
        self._held.append(connection)
