"""Connections: bytes in, dispatch, bytes out. The one place where an exception becomes an error object.

jsonrpcserver looks the method up, binds the arguments and calls it. Framing and validation are ours
(`framing.py`): its own refuse a whole batch for one bad item and let exception texts out.
"""

from __future__ import annotations

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
    """Marks a method that never suspends: it runs in the reading loop, without a task of its own."""
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
        self._closing = anyio.Event()

    def close(self) -> None:
        """No more is read from anybody; what was asked is still answered, and then each connection ends."""
        self._closing.set()

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
                async with anyio.create_task_group() as tasks:
                    connection = _Connection(raw, tasks, uid, self._outbox, self._stall_s)
                    tasks.start_soon(self._read, connection)
                    await connection.write()
                    tasks.cancel_scope.cancel()
            except* ConnectionError:
                logger.debug("a client went away")
            except* Exception:
                logger.exception("a bug closed a connection")

    async def _read(self, connection: _Connection) -> None:
        """Answers what comes. The end of what the peer sends (`nc -N`) ends reading only: open requests are
        still answered."""
        decoder = framing.Decoder()
        try:
            async with anyio.create_task_group() as requests:
                connection.requests = requests
                with anyio.CancelScope() as reading:
                    connection.tasks.start_soon(self._stop_at_close, reading)
                    while data := await connection.read():
                        for message in decoder.feed(data):
                            self._take(connection, message)
                        connection.flush()
                        await connection.room()
                    for message in decoder.end():
                        self._take(connection, message)
        except* framing.LineTooLong as group:
            connection.put(framing.error(None, _first(group)) + b"\n")
        connection.finish()

    async def _stop_at_close(self, reading: anyio.CancelScope) -> None:
        await self._closing.wait()
        reading.cancel()

    def _take(self, connection: _Connection, message: framing.Message) -> None:
        match message:
            case framing.Request() if message.method in self._inline:
                answer = _step(self._answer_inline(connection, message))
                if answer is not None:
                    connection.put(answer + b"\n", later=True)
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
        finally:
            connection.open -= size
        if answer is not None:
            connection.put(answer + b"\n")

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
            given = msgspec.json.decode(request.params) if request.params else {}
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
            params = msgspec.json.decode(request.params) if request.params else []
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


def _checks_names(method: Method) -> bool:
    """It takes any name, and says itself which it does not know."""
    kinds = {parameter.kind for parameter in inspect.signature(method).parameters.values()}
    return inspect.Parameter.VAR_KEYWORD in kinds


def _guarded(name: str, method: Method) -> Callable[..., Awaitable[Result]]:
    """The method as jsonrpcserver calls it. Its `__wrapped__` is the original, whose signature is bound."""

    async def call(*args: Any, **kwargs: Any) -> Result:
        try:
            return Success(await method(*args, **kwargs))
        except AiosError as exc:
            return Error(exc.code, str(exc), exc)
        except Exception:
            logger.exception("a bug", extra={"method": name})
            return Error(InternalError.code, "", InternalError(""))

    call.__wrapped__ = method  # type: ignore[attr-defined]
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


def _first(group: BaseExceptionGroup[framing.LineTooLong]) -> framing.LineTooLong:
    found = group.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found


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
    """The socket, and a bounded outbox that one writer empties in as few writes as it can.

    Reads and writes wait by anyio's `wait_readable` and `wait_writable`: its Unix streams raise
    InvalidStateError in the loop when a wait is cancelled as it ends (agronholm/anyio#1267)."""

    requests: TaskGroup

    def __init__(self, raw: socket.socket, tasks: TaskGroup, uid: int, outbox: int, stall_s: float) -> None:
        self._raw = raw
        self.uid = uid
        self.open = 0
        self.tasks = tasks
        self._outbox = outbox
        self._stall_s = stall_s
        self._waiting: list[bytes] = []
        self._size = 0
        self._wake = anyio.Event()
        self._roomy = anyio.Event()
        self._roomy.set()
        self._ending = False
        self._sending = False

    async def read(self) -> bytes:
        """What the peer sent since; empty once it will send no more. Raises ConnectionError."""
        while True:
            try:
                return self._raw.recv(READ)
            except BlockingIOError:
                await anyio.wait_readable(self._raw)

    def put(self, line: bytes, *, later: bool = False) -> None:
        """Queues an answer; with `later`, `flush` will send it. Never waits: what bounds answers is that no more
        requests are read (`room`)."""
        self._waiting.append(line)
        self._size += len(line)
        if self._size > self._outbox and self._roomy.is_set():
            self._roomy = anyio.Event()
        if not later:
            self._wake.set()

    def flush(self) -> None:
        """Sends what waits at once where nobody is sending and the peer's buffer has room; the rest is the writer's."""
        if not self._waiting:
            return
        if not self._sending:
            data = b"".join(self._waiting)
            try:
                sent = self._raw.send(data)
            except OSError:  # full, or gone: the writer finds out
                sent = 0
            self._size -= sent
            self._waiting[:] = [data[sent:]] if sent < len(data) else []
        if self._waiting:
            self._wake.set()
        elif self._size <= self._outbox // 2:
            self._roomy.set()

    async def room(self) -> None:
        """Returns once less than the outbox waits to be read by the peer."""
        await self._roomy.wait()

    async def notify(self, method: str, params: object) -> None:
        await self.room()
        self.put(framing.notification(method, params))

    def finish(self) -> None:
        """No more answers will come; the writer ends once it has written those that wait."""
        self._ending = True
        self._wake.set()

    async def write(self) -> None:
        """Until all is written that ever will be, or the peer takes no more."""
        while self._waiting or not self._ending:
            await self._wake.wait()
            self._wake = anyio.Event()
            while self._waiting:
                data = memoryview(b"".join(self._waiting))
                self._waiting.clear()
                self._sending = True
                while data:
                    with anyio.move_on_after(self._stall_s) as patience:
                        sent = await self._send(data)
                    if patience.cancelled_caught:
                        logger.warning(
                            "closed a connection that does not read", extra={"waiting": self._size}
                        )
                        self.tasks.cancel_scope.cancel()
                        return
                    data = data[sent:]
                    self._size -= sent
                    if self._size <= self._outbox // 2:
                        self._roomy.set()
                self._sending = False

    async def _send(self, data: memoryview) -> int:
        while True:
            try:
                return self._raw.send(data)
            except BlockingIOError:
                await anyio.wait_writable(self._raw)
