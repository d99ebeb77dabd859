"""A model in a .gguf file of this machine: llama.cpp in a child process, spoken to as any OpenAI server is.

The child (models/gguf_server.py) is started by the first request and ended after IDLE_S without one. It listens on
loopback, with a key made for each start that only travels over the child's pipe.
"""

from __future__ import annotations

import importlib.util
import re
import secrets
import shlex
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from aiosd import config
from aiosd.child import Call, Child, ChildDied, Held, open_child
from aiosd.errors import DeadlineExceeded
from aiosd.models import gguf_file
from aiosd.models.backend import BackendFailed, Delta, Done, Message, ModelRequest, ToolSpec
from aiosd.models.openai import OpenAI
from aiosd.models.window import Window

INSTALL = f"{shlex.quote(sys.executable)} -m pip install 'aiosd[gguf]'"
CONTEXT = 8192
"""Tokens of one request where the config does not say: what models are trained for may need more memory than there
is. llama.cpp takes no more than the model was trained for."""
LOAD_S = 300.0
"""For the child to load the model."""
IDLE_S = 300.0
"""Unused for as long, a model's memory is given back. Ollama's keep_alive has the same."""
DYING_S = 1.0
"""For a process whose connection broke to be known as dead."""

_KEY = "KEY"
_CAUSE = re.compile(r" E .*?((?:error loading model|failed to initialize the context): .+)")
"""Where llama.cpp says why it does not load a model; what follows only says that it does not."""
_ENVIRONMENT = {"GGML_NO_BACKTRACE": "1"}
"""A failed assertion would start a debugger, and its message would not be the last line."""


@asynccontextmanager
async def open_gguf(name: str, section: config.Backend, *, idle_s: float = IDLE_S) -> AsyncIterator[Gguf]:
    """Starts nothing yet. The process ends with this block."""

    async def started(call: Call) -> None:
        await backend.load(call)

    argv = [sys.executable, "-P", "-m", "aiosd.models.gguf_server"]
    async with open_child(
        argv, name=f"model {name}", env=_ENVIRONMENT, idle_s=idle_s, started=started, cause=_CAUSE
    ) as child:
        backend = Gguf(name, section, child)
        yield backend


class Gguf:
    """Made by open_gguf."""

    kind = "gguf"
    url: str | None = None
    price_in = 0.0
    price_out = 0.0

    def __init__(self, name: str, section: config.Backend, child: Child) -> None:
        self.name = name
        self.path = Path(section.path or "")
        self.model = self.path.stem
        self.local = section.is_local
        self.slots = section.slots
        self._context = section.context or CONTEXT
        self._child = child
        self._server: OpenAI | None = None
        self._unfit: tuple[tuple[int, int], str] | None = None
        """The file that did not load the last time, and why."""
        self._read: tuple[tuple[int, int], str | None] | None = None
        """The file whose header was read, and what is wrong with it."""

    async def stream(self, request: ModelRequest) -> AsyncGenerator[Delta, None]:
        began = anyio.current_time()
        was_resident = self._child.is_ready
        async with self._serving() as server:
            load_s = 0.0 if was_resident else anyio.current_time() - began
            async with aclosing(server.stream(request)) as deltas:
                async for delta in deltas:
                    yield msgspec.structs.replace(delta, load_s=load_s) if isinstance(delta, Done) else delta

    async def count(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = ()) -> int:
        """Tokens of a prompt of these by the model's own tokenizer, its template included. Loads the model.

        Raises BackendFailed.
        """
        async with self._serving() as server:
            return await server.input_tokens(ModelRequest(messages=tuple(messages), tools=tuple(tools)))

    @property
    def window(self) -> Window:
        return self._server.window if self._server is not None else Window(self._context)

    async def resident(self) -> bool:
        """The model is in memory: a request does not wait for it."""
        return self._child.is_ready

    async def probe(self) -> str | None:
        """A file that did not load is told with its reason until it changes: reading all of it takes as long as loading it."""
        missing = await anyio.to_thread.run_sync(self._missing)
        if missing is None and self._unfit is not None and self._unfit[0] == await self._stamp():
            return self._unfit[1]
        return missing

    async def _stamp(self) -> tuple[int, int]:
        """Of the file: another one is another chance."""
        found = await anyio.Path(self.path).stat()
        return found.st_mtime_ns, found.st_size

    async def aclose(self) -> None:
        if self._server is not None:
            await self._server.aclose()

    async def load(self, call: Call) -> None:
        """Makes a new process ready."""
        await self.aclose()
        key = secrets.token_urlsafe(32)
        params = {"path": str(self.path), "context": self._context, "slots": self.slots, "key": key}
        self._unfit = None
        url = await call("load", params, timeout_s=LOAD_S)
        there = config.Backend(
            kind="openai",
            url=f"{url}/v1",
            model=self.model,
            slots=self.slots,
            context=self._context,
            key_env=_KEY,
            local=self.local,
        )
        self._server = OpenAI(self.name, there, {_KEY: key}, counts=True)

    @asynccontextmanager
    async def _serving(self) -> AsyncIterator[OpenAI]:
        """The server of the process that there is, or of a new one. Raises BackendFailed, in words of ours where
        the process ends meanwhile."""
        if not self._child.is_ready and (why := await anyio.to_thread.run_sync(self._missing)) is not None:
            raise BackendFailed(why)
        served = False
        try:
            async with self._child.hold(timeout_s=LOAD_S) as process:
                served = True
                assert self._server is not None
                try:
                    yield self._server
                except BackendFailed as exc:
                    raise await _put_down(exc, process) from None
        except ChildDied as exc:
            if self._unfit is None and not served:
                self._unfit = (await self._stamp(), str(exc))
            raise BackendFailed(str(exc), retry_after_s=exc.retry_after_s or None) from None
        except DeadlineExceeded as exc:
            raise BackendFailed(str(exc)) from None

    def _missing(self) -> str | None:
        """What there must be before a process can be of any use, and is not. Blocks."""
        if importlib.util.find_spec("xllamacpp") is None:
            return f"a gguf needs llama.cpp; get it with: {INSTALL}"
        try:
            found = self.path.stat()
            stamp = found.st_mtime_ns, found.st_size
            if self._read is None or self._read[0] != stamp:
                self._read = stamp, gguf_file.damage(self.path)
        except OSError as exc:
            return f"{self.path}: {exc.strerror}"
        return self._read[1]


async def _put_down(exc: BackendFailed, process: Held) -> BackendFailed:
    """A failure of a request by its cause: where the process has ended, that."""
    if exc.fault == "backend":
        with anyio.move_on_after(DYING_S):
            await process.ended.wait()
    if not process.ended.is_set():
        return exc
    return BackendFailed(f"its process ended during the request: {process.failure}")
