"""Connections: bytes in, dispatch, bytes out. The one place where an exception becomes an error object.

jsonrpcserver looks the method up, binds the arguments and calls it. Framing and validation are ours
(`framing.py`): its own refuse a whole batch for one bad item and let exception texts out.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeVar

import anyio
import msgspec
from anyio.abc import SocketAttribute, SocketListener, SocketStream, TaskGroup
from jsonrpcserver import Error, Result, Success
from jsonrpcserver.async_dispatcher import dispatch_request
from jsonrpcserver.request import Request as Call
from jsonrpcserver.sentinels import NOID
from oslash.either import Left  # type: ignore[import-untyped]  # jsonrpcserver's result type

from aiosd import framing
from aiosd.errors import (
    BY_CODE,
    AiosError,
    InternalError,
    InvalidParams,
    InvalidRequest,
    MethodNotFound,
    Overloaded,
)

logger = logging.getLogger(__name__)

OUTBOX = 256 * 1024
"""Bytes that may wait for a slow reader before whoever writes to it waits too."""

STALL_S = 60.0
"""Seconds a reader may take for the next byte before its connection is closed."""

READ = 64 * 1024
"""Bytes read at a time."""

MAX_OPEN = 1024
"""Requests one connection may have open; more are answered `overloaded` at once."""

NOTHING = memoryview(b"")


class Peer(Protocol):
    """Whoever asked: what a method may do with the connection beside answering."""

    uid: int

    async def notify(self, method: str, params: object) -> None:
        """Send a notification; waits while the peer reads too slowly."""
        ...


Method = Callable[..., Awaitable[object]]
"""Takes the Peer, then the params by position or by name as JSON-RPC has them."""

Methods = Mapping[str, Method]


M = TypeVar("M", bound=Method)


def inline(method: M) -> M:
    """Marks a method that never suspends: it runs where its request is read, without a task of its own."""
    method.inline = True  # type: ignore[attr-defined]
    return method


class Server:
    """Serves a method table on Unix sockets until its scope is cancelled."""

    def __init__(self, methods: Methods, *, outbox: int = OUTBOX, stall_s: float = STALL_S) -> None:
        self._methods = {name: _guarded(name, method) for name, method in methods.items()}
        self._inline = {name: m for name, m in methods.items() if getattr(m, "inline", False)}
        self._by_name = {name for name, method in methods.items() if _checks_names(method)}
        self._outbox = outbox
        self._stall_s = stall_s
        self._connections: set[_Connection] = set()
        self._closing = False

    def close(self) -> None:
        """No more is read from anybody; what was asked is still answered, and then each connection ends."""
        self._closing = True
        for connection in self._connections:
            connection.stop_reading()

    async def serve(self, listener: SocketListener) -> None:
        """Accepts until cancelled. Each connection has its own task group; none can end another."""
        await listener.serve(self.connection)

    async def connection(self, stream: SocketStream) -> None:
        """One client, from hello to goodbye. Its tasks belong to the daemon and outlive it."""
        raw: socket.socket = stream.extra(SocketAttribute.raw_socket)
        _, uid, _ = struct.unpack("3i", raw.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        async with stream:
            if uid not in (os.getuid(), 0):
                logger.warning("refused a connection", extra={"uid": uid})
                return
            try:
                async with anyio.create_task_group() as requests:
                    connection = _Connection(raw, uid, requests, self._take, self._outbox, self._stall_s)
                    self._connections.add(connection)
                    try:
                        if self._closing:
                            connection.stop_reading()
                        await connection.ended.wait()
                    finally:
                        self._connections.discard(connection)
                        connection.let_go()
                    requests.cancel_scope.cancel()
            except* Exception:
                logger.exception("a bug closed a connection")

    def _take(self, connection: _Connection, message: framing.Message) -> None:
        match message:
            case framing.Request() if message.method in self._inline:
                answer = _step(self._answer_inline(connection, message))
                if answer is not None:
                    connection.put(answer + b"\n")
            case framing.Request() | framing.Batch():
                size = len(message.items) if isinstance(message, framing.Batch) else 1
                if connection.open + size > MAX_OPEN:
                    self._refuse(connection, message)
                else:
                    connection.open += size
                    connection.requests.start_soon(self._respond, connection, message, size)
            case AiosError():
                connection.put(framing.error(None, message) + b"\n")
            case framing.Response():
                connection.put(framing.error(None, InvalidRequest("the daemon asks nothing")) + b"\n")

    def _refuse(self, connection: _Connection, message: framing.Request | framing.Batch) -> None:
        exc = Overloaded(f"{MAX_OPEN} requests are open on this connection; read their answers first")
        if isinstance(message, framing.Batch):
            connection.put(framing.error(None, exc) + b"\n")
        elif not message.is_notification:
            connection.put(framing.error(_id(message), exc) + b"\n")

    async def _respond(
        self, connection: _Connection, message: framing.Request | framing.Batch, size: int
    ) -> None:
        try:
            if isinstance(message, framing.Batch):
                answer = await self._answer_batch(connection, message)
            else:
                answer = await self._answer(connection, message)
            if answer is not None:
                connection.put(answer + b"\n")
        finally:
            connection.closed(size)

    async def _answer_batch(self, peer: Peer, batch: framing.Batch) -> bytes | None:
        """Section 6: the answers in one array; nothing at all where only notifications came."""
        answers: list[bytes | None] = [None] * len(batch.items)

        async def one(i: int, item: framing.Request | AiosError) -> None:
            if isinstance(item, AiosError):
                answers[i] = framing.error(None, item)
            else:
                answers[i] = await self._answer(peer, item)

        async with anyio.create_task_group() as tasks:
            for i, item in enumerate(batch.items):
                tasks.start_soon(one, i, item)
        given = [a for a in answers if a is not None]
        return b"[" + b",".join(given) + b"]" if given else None

    async def _answer_inline(self, peer: Peer, request: framing.Request) -> bytes | None:
        """As `_answer`, for a method that never suspends: by-name params need no signature bound, which is half of
        what such a request costs."""
        method = self._inline[request.method]
        try:
            given = _decoded(request.params) if request.params else {}
        except (msgspec.DecodeError, UnicodeDecodeError):
            given = None
        if type(given) is not dict or request.is_notification or request.method not in self._by_name:
            return await self._answer(peer, request)
        try:
            return framing.result(_id(request), await method(peer, **given))
        except AiosError as exc:
            return framing.error(_id(request), exc)
        except Exception:
            logger.exception("a bug", extra={"method": request.method})
            return framing.error(_id(request), InternalError(""))

    async def _answer(self, peer: Peer, request: framing.Request) -> bytes | None:
        """The response line without its end; None for a notification."""
        id = _id(request)
        try:
            params = _decoded(request.params) if request.params else []
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            return None if request.is_notification else framing.error(id, InvalidParams(str(exc)))
        _, result = await dispatch_request(
            self._methods, peer, Call(request.method, params, NOID if request.is_notification else id)
        )
        if request.is_notification:
            return None
        if isinstance(result, Left):
            return framing.error(id, _raised(request.method, result._error))
        try:
            return framing.result(id, result._value.result)
        except (TypeError, ValueError, RecursionError):
            logger.exception("a result is no JSON", extra={"method": request.method})
            return framing.error(id, InternalError(""))


def _decoded(params: msgspec.Raw) -> Any:
    """Everybody waits meanwhile, and what is decoded holds no cycles: the collector, which would look through all of it
    again and again, takes six times as long as the decoding of 8 MiB of small values."""
    collects = gc.isenabled()
    gc.disable()
    try:
        return msgspec.json.decode(params)
    finally:
        if collects:
            gc.enable()


def _checks_names(method: Method) -> bool:
    """It takes any name, and says itself which it does not know."""
    kinds = {parameter.kind for parameter in inspect.signature(method).parameters.values()}
    return inspect.Parameter.VAR_KEYWORD in kinds


def _guarded(name: str, method: Method) -> Callable[..., Awaitable[Result]]:
    """The method as jsonrpcserver calls it. It binds the arguments to the signature, which is half of what a call costs
    where it has to be made each time."""

    async def call(*args: Any, **kwargs: Any) -> Result:
        try:
            return Success(await method(*args, **kwargs))
        except AiosError as exc:
            return Error(exc.code, str(exc), exc)
        except Exception:
            logger.exception("a bug", extra={"method": name})
            return Error(InternalError.code, "", InternalError(""))

    call.__signature__ = inspect.signature(method)  # type: ignore[attr-defined]
    return call


def _raised(method: str, error: Any) -> AiosError:
    """What a method raised, or what jsonrpcserver found wrong before it called one."""
    if isinstance(error.data, AiosError):
        return error.data
    if error.code == MethodNotFound.code:
        return MethodNotFound("")
    return BY_CODE.get(error.code, InternalError)(str(error.data))


def _id(request: framing.Request) -> framing.Id:
    return None if isinstance(request.id, msgspec.UnsetType) else request.id


def _step(coroutine: Awaitable[bytes | None]) -> bytes | None:
    """Runs a coroutine that never suspends."""
    running = coroutine.__await__()
    try:
        next(running)
    except StopIteration as stop:
        answer: bytes | None = stop.value
        return answer
    running.throw(RuntimeError("a method marked inline suspended"))
    return None


class _Connection:
    """One client's socket, and what waits to be written to it, which is bounded.

    The loop calls back where there is something to read or room to write, so that what needs no task gets none, and what
    is written in one turn of the loop leaves in one send."""

    def __init__(
        self,
        raw: socket.socket,
        uid: int,
        requests: TaskGroup,
        take: Callable[[_Connection, framing.Message], None],
        outbox: int,
        stall_s: float,
    ) -> None:
        self.uid = uid
        self.requests = requests
        self.open = 0
        self.ended = anyio.Event()
        """Nothing more will be written: all that was asked is answered, or nobody is there to read it."""
        self._raw = raw
        self._take = take
        self._outbox = outbox
        self._stall_s = stall_s
        self._loop = asyncio.get_running_loop()
        self._decoder = framing.Decoder()
        self._begun = NOTHING
        """What the peer took a part of."""
        self._waiting: list[bytes] = []
        self._size = 0
        """Bytes of both."""
        self._due = False
        """They will be sent without anybody's asking."""
        self._patience: asyncio.TimerHandle | None = None
        """While the peer's buffer is full."""
        self._roomy: anyio.Event | None = None
        """Made by who waits for room."""
        self._reads = self._listens = True
        self._loop.add_reader(raw, self._read)

    # --- in

    def stop_reading(self) -> None:
        """What was asked is still answered, and then the connection ends."""
        self._reads = False
        self._listen(False)
        self._settle()

    def closed(self, requests: int) -> None:
        """So many requests are open no more."""
        self.open -= requests
        self._settle()

    def _listen(self, wanted: bool) -> None:
        if wanted and self._reads and not self._listens:
            self._loop.add_reader(self._raw, self._read)
            self._listens = True
        elif not wanted and self._listens:
            self._loop.remove_reader(self._raw)
            self._listens = False

    def _read(self) -> None:
        """Answers what the peer has sent. The end of it (`nc -N`) ends reading only."""
        try:
            data = self._raw.recv(READ)
        except BlockingIOError:
            return
        except OSError:
            return self._gone()
        waits, self._due = self._due, True  # for the end of this
        try:
            for message in self._decoder.feed(data) if data else self._decoder.end():
                self._take(self, message)
        except framing.LineTooLong as exc:
            self.put(framing.error(None, exc) + b"\n")
            data = b""
        except Exception:
            logger.exception("a bug closed a connection")
            return self.let_go()
        if not waits:
            self._flush()
        if not data:
            self.stop_reading()
        elif self._size > self._outbox:  # who does not read its answers is asked for no more requests
            self._listen(False)

    # --- out

    def put(self, line: bytes) -> None:
        """Sends a line at the end of this turn of the loop, or once the peer has room for it. Never waits."""
        if self.ended.is_set():
            return
        self._waiting.append(line)
        self._size += len(line)
        if not self._due:
            self._due = True
            self._loop.call_soon(self._flush)

    async def notify(self, method: str, params: object) -> None:
        while self._size > self._outbox or self.ended.is_set():  # after the end until it is cancelled
            if self._roomy is None:
                self._roomy = anyio.Event()
            await self._roomy.wait()
        self.put(framing.notification(method, params))

    def _flush(self) -> None:
        """Sends what waits, as much as the peer takes now; the rest once it takes more."""
        if self.ended.is_set():
            return
        if not self._begun:
            self._begun = memoryview(b"".join(self._waiting))
            self._waiting.clear()
        try:
            sent = self._raw.send(self._begun) if self._begun else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            return self._gone()
        self._size -= sent
        self._begun = self._begun[sent:] if sent < len(self._begun) else NOTHING
        self._due = self._size > 0
        stuck = self._patience is not None
        if (stuck and sent) or (self._due and not stuck):
            self._wait()
        if self._roomy is not None and self._size <= self._outbox // 2:
            self._roomy.set()
            self._roomy = None
        if self._size <= self._outbox // 2:
            self._listen(True)
        self._settle()

    def _wait(self) -> None:
        """For the peer to read, anew with each byte that it does, while there is something for it."""
        if self._patience is None:
            self._loop.add_writer(self._raw, self._flush)
        else:
            self._patience.cancel()
        if self._size:
            self._patience = self._loop.call_later(self._stall_s, self._give_up)
        else:
            self._loop.remove_writer(self._raw)
            self._patience = None

    def _give_up(self) -> None:
        logger.warning("closed a connection that does not read", extra={"waiting": self._size})
        self.let_go()

    def _gone(self) -> None:
        logger.debug("a client went away")
        self.let_go()

    def _settle(self) -> None:
        if not (self._reads or self.open or self._size):
            self.let_go()

    def let_go(self) -> None:
        """Ends it, whatever still waits."""
        if not self.ended.is_set():
            self.ended.set()
            self._loop.remove_reader(self._raw)
            self._loop.remove_writer(self._raw)
            if self._patience is not None:
                self._patience.cancel()
