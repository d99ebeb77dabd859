"""HTTP/1.1 without TLS, as a transport of httpx: how the servers of models on this machine are spoken to.

httpx's own transport costs half a millisecond of CPU a request, as much as all that the daemon does around a reply; it is
made for proxies, TLS, HTTP/2 and any event loop. RFC 9112 is h11's part here, as it is there.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import AsyncGenerator
from typing import Any

import anyio
import h11
import httpx

KEEP_S = 5.0
"""How long a connection is used again: httpx's own default."""

READ = 64 * 1024
"""Bytes of one read."""


class PlainHttp(httpx.AsyncBaseTransport):
    """To whatever server a request names. Its connections are used one after the other, each by one request at once."""

    def __init__(self) -> None:
        self._idle: list[_Connection] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Raises httpx.TransportError, as httpx's own transports do."""
        content = await request.aread()
        connection = self._kept(request.url) or await _connected(request)
        try:
            response = await connection.ask(request, content)
        except BaseException:
            connection.close()
            raise
        return httpx.Response(
            response.status_code,
            headers=response.headers.raw_items(),
            stream=_Body(connection, self._idle),
            request=request,
        )

    async def aclose(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _kept(self, url: httpx.URL) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.origin == (url.host, url.port) and connection.is_open:
                return connection
            connection.close()
        return None


class _Connection:
    def __init__(
        self, origin: tuple[str, int | None], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.origin = origin
        self._reader, self._writer = reader, writer
        self._wire = h11.Connection(h11.CLIENT)
        self._patience_s: float | None = None
        self._used_s = 0.0

    async def ask(self, request: httpx.Request, content: bytes) -> h11.Response:
        """The head of the answer."""
        limits = _limits(request)
        self._patience_s = limits.get("read")
        head = h11.Request(method=request.method, target=request.url.raw_path, headers=request.headers.raw)
        events = [head, h11.Data(data=content), h11.EndOfMessage()] if content else [head, h11.EndOfMessage()]
        try:
            with anyio.fail_after(limits.get("write")):
                self._writer.write(b"".join(self._wire.send(event) or b"" for event in events))
                await self._writer.drain()
        except TimeoutError:
            raise httpx.WriteTimeout("it did not take the request") from None
        except OSError as exc:
            raise httpx.WriteError(str(exc)) from exc
        while not isinstance(event := await self.next(), h11.Response):
            pass  # 1xx
        return event

    async def next(self) -> h11.Event:
        """What comes next of the answer."""
        try:
            while (event := self._wire.next_event()) is h11.NEED_DATA:
                with anyio.fail_after(self._patience_s):
                    self._wire.receive_data(await self._reader.read(READ))
        except TimeoutError:
            raise httpx.ReadTimeout("it said nothing") from None
        except OSError as exc:
            raise httpx.ReadError(str(exc)) from exc
        except h11.RemoteProtocolError as exc:
            raise httpx.RemoteProtocolError(str(exc)) from exc
        if isinstance(event, h11.ConnectionClosed):
            raise httpx.RemoteProtocolError("it closed the connection instead of answering")
        assert isinstance(event, h11.Event)
        return event

    def rests(self) -> bool:
        """The answer has come to its end; True if another request may follow."""
        self._used_s = anyio.current_time()
        if not self._wire.our_state is self._wire.their_state is h11.DONE:
            return False
        self._wire.start_next_cycle()
        return True

    @property
    def is_open(self) -> bool:
        """As far as is known: what comes unasked is an end, or no answer of ours."""
        if anyio.current_time() - self._used_s > KEEP_S or self._reader.at_eof():
            return False
        poll = select.poll()
        poll.register(self._writer.get_extra_info("socket"), select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        self._writer.transport.abort()


class _Body(httpx.AsyncByteStream):
    """Closed before its end it closes the connection, by which the server knows that nobody listens any more."""

    def __init__(self, connection: _Connection, idle: list[_Connection]) -> None:
        self._connection: _Connection | None = connection
        self._idle = idle

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        connection = self._connection
        assert connection is not None
        while isinstance(event := await connection.next(), h11.Data):
            yield bytes(event.data)
        if connection.rests():
            self._connection = None
            self._idle.append(connection)

    async def aclose(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


async def _connected(request: httpx.Request) -> _Connection:
    url = request.url
    try:
        with anyio.fail_after(_limits(request).get("connect")):
            reader, writer = await asyncio.open_connection(url.host, url.port or 80)
    except TimeoutError:
        raise httpx.ConnectTimeout(f"{url.host} did not answer") from None
    except OSError as exc:
        raise httpx.ConnectError(str(exc)) from exc
    return _Connection((url.host, url.port), reader, writer)


def _limits(request: httpx.Request) -> dict[str, Any]:
    """Seconds by `connect`, `read` and `write`; None is for ever."""
    limits: dict[str, Any] = request.extensions.get("timeout", {})
    return limits
