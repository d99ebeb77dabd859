"""The way out for tools that list hosts: an HTTP proxy in the daemon, whose listening socket stands in the tool's own,
otherwise empty network.

A tool host connects to the daemon's Unix socket before its walls are up, and once inside them sends over it the
listening socket that it has made there (SCM_RIGHTS). A socket stays in the network it was made in, so the daemon accepts
what connects in there. Which hosts are listed follows from the key that came with it, never from a request.
The way is open for as long as the tool host keeps that connection.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from ipaddress import ip_address
from pathlib import Path

import anyio
import msgspec
from anyio.abc import SocketListener, SocketStream

from aiosd.tools import reach

KEY_BYTES = 32
HELLO_S = 10.0
"""For a host that has connected to send its socket."""
HEAD_S = 30.0
LOOKUP_S = 10.0
CONNECT_S = 10.0
"""For each address of a host."""
QUIET_S = 300.0
"""A connection on which nothing moves is closed; a stream of events may be silent for a while."""
MAX_CONNECTIONS = 64
"""Of one tool host at once; more wait to be accepted."""
PIECE = 64 * 1024

logger = logging.getLogger(__name__)


Who = tuple[str | None, str | None]
"""A session's id, or the name of an MCP server."""


class Passage(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt to reach a host."""

    session_id: str | None
    server: str | None
    """The MCP server that it is of, if it is no session's."""
    host: str
    port: int
    address: str | None
    """What was connected to."""
    refused: str | None


Record = Callable[[Passage], Awaitable[None]]
"""Told of each attempt before anything is connected to, and of a failure after it."""


@asynccontextmanager
async def open_egress(path: Path, record: Record) -> AsyncIterator[Egress]:
    """Listens on `path`; who has connected with a key that is expected gets his way out."""
    with _bound(path) as listening:
        async with anyio.create_task_group() as tasks:
            egress = Egress(path, record)
            tasks.start_soon(egress.serve, listening)
            yield egress
            tasks.cancel_scope.cancel()


@contextmanager
def _bound(path: Path) -> Iterator[socket.socket]:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    with socket.socket(socket.AF_UNIX) as listening:
        try:
            listening.bind(f"/proc/self/fd/{folder}/{path.name}")  # a socket's address has 107 bytes
        finally:
            os.close(folder)
        listening.setblocking(False)
        path.chmod(0o600)
        listening.listen(64)
        try:
            yield listening
        finally:
            path.unlink(missing_ok=True)


class Egress:
    def __init__(self, path: Path, record: Record) -> None:
        self.path = path
        self._record = record
        self._expected: dict[str, tuple[Who, tuple[reach.Entry, ...]]] = {}
        """By key."""

    @contextmanager
    def expect(
        self, hosts: Sequence[str], *, session_id: str | None = None, server: str | None = None
    ) -> Iterator[str]:
        """A key for what is started to act for a session or an MCP server; good for as long as the block lasts. Raises ValueError."""
        key = secrets.token_hex(KEY_BYTES)
        self._expected[key] = (session_id, server), reach.entries(hosts)
        try:
            yield key
        finally:
            del self._expected[key]

    async def serve(self, listening: socket.socket) -> None:
        async with anyio.create_task_group() as tasks:
            while True:
                await anyio.wait_readable(listening)
                try:
                    control, _ = listening.accept()
                except OSError:  # it has gone again
                    continue
                tasks.start_soon(self._attend, control)

    async def _attend(self, control: socket.socket) -> None:
        """Whoever it is: any process of this user may connect, and say what it likes."""
        with control:
            try:
                control.setblocking(False)
                said, descriptor = await _hello(control)
                if descriptor is None:
                    return
                with socket.socket(fileno=descriptor) as made:
                    if said not in self._expected:
                        logger.warning("a way out was asked for with an unknown key")
                        return
                    made.setblocking(False)
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(_Way(*self._expected[said], self._record).serve, made)
                        await anyio.wait_readable(control)  # it says nothing more, so this is its end
                        tasks.cancel_scope.cancel()
            except* (OSError, ValueError) as exc:  # no socket, or none that listens
                logger.warning("a way out cannot be kept open", extra={"why": str(exc.exceptions[0])})


async def _hello(control: socket.socket) -> tuple[str, int | None]:
    """What is said first, and the socket that came with it, if any did in time."""
    with anyio.move_on_after(HELLO_S):
        await anyio.wait_readable(control)
        said, descriptors, _, _ = socket.recv_fds(control, 2 * KEY_BYTES, 1)
        return said.decode(errors="replace"), descriptors[0] if descriptors else None
    return "", None


class _Way:
    """Out of one network."""

    def __init__(self, who: Who, listed: tuple[reach.Entry, ...], record: Record) -> None:
        self._who = who
        self._listed = listed
        self._record = record

    async def serve(self, made: socket.socket) -> None:
        room = anyio.Semaphore(MAX_CONNECTIONS)
        async with await SocketListener.from_socket(made) as listener, anyio.create_task_group() as tasks:
            while True:
                await room.acquire()
                tasks.start_soon(self._connection, await listener.accept(), room)

    async def _connection(self, client: SocketStream, room: anyio.Semaphore) -> None:
        try:
            async with client:
                await self._answer(client)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream):
            pass  # it has gone; there is nobody to tell
        except Exception:
            logger.exception("a connection of a tool failed")  # one of them: the others go on
        finally:
            room.release()

    async def _answer(self, client: SocketStream) -> None:
        try:
            head, rest = await _head(client)
            asked = reach.request(head)
            upstream = await self._connect(asked)
        except reach.Refused as exc:
            await client.send(reach.refusal(exc))
            return
        async with upstream:
            if asked.head:
                await upstream.send(asked.head)
                await _exchange(client, upstream, rest, asked.body)
            else:
                await client.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await _exchange(client, upstream, rest, None)

    async def _connect(self, asked: reach.Asked) -> SocketStream:
        """To an address that was checked, and to no other. Raises reach.Refused."""
        host, port = asked.host, asked.port

        async def keep(address: str | None = None, refused: str | None = None) -> None:
            session_id, server = self._who
            await self._record(
                Passage(
                    session_id=session_id,
                    server=server,
                    host=host,
                    port=port,
                    address=address,
                    refused=refused,
                )
            )

        try:
            reach.check_host(self._listed, host, port)
            addresses = reach.reachable(self._listed, host, port, await _addresses(host, port))
        except reach.Refused as exc:
            await keep(refused=str(exc))
            raise
        why = "it does not answer"
        for address in addresses:
            await keep(str(address))
            try:
                with anyio.fail_after(CONNECT_S):
                    upstream = await anyio.connect_tcp(str(address), port)
            except (OSError, TimeoutError) as exc:
                why = str(exc.__cause__ or exc) or why
            else:
                return upstream
        refused = reach.Refused(502, f"{host} cannot be reached: {why}")
        await keep(refused=str(refused))
        raise refused


async def _head(client: SocketStream) -> tuple[bytes, bytes]:
    """A request up to its body, and what came of that already. Raises reach.Refused."""
    got = b""
    with anyio.move_on_after(HEAD_S):
        while (end := got.find(b"\r\n\r\n")) < 0:
            if len(got) > reach.MAX_HEAD:
                raise reach.Refused(431, f"a request's head may have {reach.MAX_HEAD} bytes")
            got += await client.receive(PIECE)
        return got[: end + 4], got[end + 4 :]
    raise reach.Refused(408, f"no request came within {HEAD_S:g} s")


async def _addresses(host: str, port: int) -> list[reach.Address]:
    """Looked up once: what was checked is what is connected to. Raises reach.Refused."""
    try:
        with anyio.fail_after(LOOKUP_S):
            found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, TimeoutError) as exc:
        raise reach.Refused(502, f"{host} has no address: {exc}") from None
    return [ip_address(str(address[0]).partition("%")[0]) for *_, address in found]


async def _exchange(client: SocketStream, upstream: SocketStream, rest: bytes, body: int | None) -> None:
    """Both ways until the host has said all, or nothing moves; `body` is how much may go there, None for any amount."""
    async with anyio.create_task_group() as tasks:
        scope = tasks.cancel_scope
        scope.deadline = anyio.current_time() + QUIET_S

        async def there() -> None:
            left = body
            piece = rest
            try:
                while left is None or left > 0:
                    piece = piece[:left]
                    if piece:
                        await upstream.send(piece)
                        scope.deadline = anyio.current_time() + QUIET_S
                        left = None if left is None else left - len(piece)
                    if left != 0:
                        piece = await client.receive(PIECE)
            except anyio.EndOfStream:
                await upstream.send_eof()
            except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
                scope.cancel()

        tasks.start_soon(there)
        try:
            while True:
                await client.send(await upstream.receive(PIECE))
                scope.deadline = anyio.current_time() + QUIET_S
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            scope.cancel()
