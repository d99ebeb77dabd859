"""A small HTTP/1.1 server for doubles of model servers: it records requests, and breaks replies as told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import msgspec

Fault = Literal["hang", "hang_after", "cut", "error_line", "unfinished", "garbage", "not_an_object"]
"""Of a reply under status 200: hang before the first byte; or, after the first piece of text: hang, cut the
connection, send the wire's error line, end without the wire's last word, send what is no JSON or no object."""


class Script(msgspec.Struct, frozen=True, kw_only=True):
    """What one chat request gets."""

    text: tuple[str, ...] = ("Hello", " there", ".")
    thinking: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    """Name and arguments, as the JSON text on the wire."""
    length: bool = False
    """It stopped at the most tokens it may make."""
    fault: Fault | None = None
    status: int = 200
    error: str = "no"
    read: int = 11
    """Tokens of the prompt, as it reports them."""
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    location: str | None = None


class Seen(msgspec.Struct, frozen=True):
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


STREAMED = ("/chat", "/chat/completions", "/pull")
"""The ends of the paths that a script answers."""


class Cut(Exception):
    """Close the connection now."""


class HttpDouble(ABC):
    """Answers chat requests by the scripts in `scripts`, one each, then by `script`."""

    def __init__(self, script: Script | None = None) -> None:
        self.script = script or Script()
        self.scripts: list[Script] = []
        self.choose: Callable[[dict[str, Any]], Script] | None = None
        """By the request's body, instead."""
        self.seen: list[Seen] = []
        self.arrived = asyncio.Event()
        """A chat request came in."""
        self.dropped = asyncio.Event()
        """A client closed its connection while a reply hung."""
        self.tls: ssl.SSLContext | None = None
        self._server: asyncio.Server | None = None
        self._handlers: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def chats(self) -> list[dict[str, Any]]:
        """The bodies of the chat requests."""
        return [s.body for s in self.seen if s.path.endswith(("/chat", "/chat/completions"))]

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(
            self._connected, "127.0.0.1", 0, limit=1 << 24, ssl=self.tls
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """From now on connections are refused."""
        if self._server is None:
            return
        self._server.close()
        for handler in self._handlers:
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        try:
            while True:
                await self._answer(await _request(reader), reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client is done with this connection
        except Cut:
            writer.transport.abort()
        except asyncio.CancelledError:
            pass  # stop(): asyncio.start_server would log it as a failure
        finally:
            self._handlers.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _answer(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.seen.append(seen)
        if not seen.path.endswith(STREAMED):
            status, value = self.other(seen)
            return await send(writer, status, value, {})
        if self.choose is not None:
            script = self.choose(seen.body)
        else:
            script = self.scripts.pop(0) if self.scripts else self.script
        self.arrived.set()
        if script.location is not None:
            return await send(writer, 307, {}, {"Location": script.location})
        status, error = self.refuses(seen, script)
        if status != 200:
            return await send(writer, status, error, script.headers)
        if script.fault == "hang":
            await self._hang(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/plain\r\n\r\n")
        for piece in self.pieces(seen, script):
            writer.write(b"%x\r\n" % len(piece) + piece + b"\r\n")
            await writer.drain()
        if script.fault == "hang_after":
            await self._hang(reader)
        if script.fault == "cut":
            raise Cut
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def _hang(self, reader: asyncio.StreamReader) -> None:
        await reader.read(1)
        self.dropped.set()
        raise Cut

    @abstractmethod
    def other(self, seen: Seen) -> tuple[int, Any]:
        """Status and body for what is not a chat."""

    @abstractmethod
    def refuses(self, seen: Seen, script: Script) -> tuple[int, Any]:
        """Status and error body of a chat; 200 for one that is answered."""

    @abstractmethod
    def pieces(self, seen: Seen, script: Script) -> list[bytes]:
        """The chunks of a chat's body, up to the fault."""


async def _request(reader: asyncio.StreamReader) -> Seen:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    method, path, _ = head[0].split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    path = urlsplit(path).path  # a proxy gets the whole address
    return Seen(method, path, headers, json.loads(body) if body else None)


async def send(writer: asyncio.StreamWriter, status: int, value: Any, headers: Mapping[str, str]) -> None:
    body = json.dumps(value).encode()
    lines = [f"HTTP/1.1 {status} X", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
    await writer.drain()
