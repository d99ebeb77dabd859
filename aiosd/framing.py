"""JSON-RPC 2.0 between bytes and messages, without any I/O: one JSON object (or batch array) a line.

The daemon, aiosctl and the child processes feed bytes in and take messages out, so all share this file
though one is async and the others are not. Source: https://www.jsonrpc.org/specification, sections 4 to 6.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from aiosd.errors import AiosError, InvalidRequest, ParseError

MAX_LINE = 8 * 1024 * 1024
"""Bytes in one message. A peer that sends more is not speaking our protocol."""

MAX_BATCH = 1024
"""Requests in one batch. A batch is answered whole, so its answers wait in memory."""

Id = int | float | str | None


class Request(msgspec.Struct, frozen=True):
    """A call; without an id, a notification. `params` are kept undecoded until the method's type is known."""

    method: str
    params: msgspec.Raw = msgspec.Raw()
    id: Id | msgspec.UnsetType = msgspec.UNSET

    @property
    def is_notification(self) -> bool:
        return self.id is msgspec.UNSET


class Response(msgspec.Struct, frozen=True):
    """An answer: `error` is an error object (section 5.1), or None and `result` holds."""

    id: Id
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: dict[str, Any] | None = None


class Batch(msgspec.Struct, frozen=True):
    """Several requests in one array; what is not a request stands as its error, in its place."""

    items: tuple[Request | AiosError, ...]


Message = Request | Response | Batch | AiosError

_encoder = msgspec.json.Encoder()
encode = _encoder.encode
"""Any of our values as JSON bytes."""


def request(id: Id, method: str, params: object) -> bytes:
    return encode({"jsonrpc": "2.0", "id": id, "method": method, "params": params}) + b"\n"


def notification(method: str, params: object) -> bytes:
    return encode({"jsonrpc": "2.0", "method": method, "params": params}) + b"\n"


def result(id: Id, value: object) -> bytes:
    """An answer, without its line end: an answer may stand in a batch."""
    return encode({"jsonrpc": "2.0", "result": value, "id": id})


def error(id: Id, exc: AiosError) -> bytes:
    """An answer, without its line end."""
    return encode({"jsonrpc": "2.0", "error": exc.to_wire(), "id": id})


class LineTooLong(InvalidRequest):
    """The rest of the stream cannot be trusted to start at a message: answer and close."""


class Decoder:
    """Bytes in, messages out. A line that is no message yields its error in its place, so that one bad
    line costs one answer, not the connection."""

    def __init__(self, max_line: int = MAX_LINE) -> None:
        self._max_line = max_line
        self._buffer = bytearray()
        self._searched = 0

    def feed(self, data: bytes) -> Iterator[Message]:
        """What is complete; the rest is kept for the next call. Raises LineTooLong."""
        if not self._buffer and 0 <= data.find(b"\n") == len(data) - 1 <= self._max_line:
            if not data.isspace():
                yield parse(data)  # most come alone and whole
            return
        self._buffer += data
        while (end := self._buffer.find(b"\n", self._searched)) >= 0:
            if end > self._max_line:
                break
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            self._searched = 0
            if line.strip():
                yield parse(line)
        self._searched = len(self._buffer)
        if self._searched > self._max_line:
            raise LineTooLong(f"a line passed {self._max_line} bytes")

    def end(self) -> Iterator[Message]:
        """The stream has ended: a last line without its newline still counts."""
        if self._buffer.strip():
            yield parse(bytes(self._buffer))
        self._buffer.clear()
        self._searched = 0


class _Member(msgspec.Struct, frozen=True):
    """Any message; which one it is depends on the members present, never on a search in the line."""

    jsonrpc: Literal["2.0"]
    id: Id | msgspec.UnsetType = msgspec.UNSET
    method: str | msgspec.UnsetType = msgspec.UNSET
    params: msgspec.Raw = msgspec.Raw()
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


_member = msgspec.json.Decoder(_Member)
_array = msgspec.json.Decoder(list[msgspec.Raw])


def parse(line: bytes) -> Message:
    """One line as its message, or as the error that answers it."""
    if line.lstrip()[:1] == b"[":
        try:
            items = _array.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            return ParseError(str(exc))
        if not items:
            return InvalidRequest("an empty batch")
        if len(items) > MAX_BATCH:
            return InvalidRequest(f"a batch of {len(items)} requests; at most {MAX_BATCH}")
        messages = (_one(bytes(item)) for item in items)
        return Batch(
            tuple(
                m if isinstance(m, Request | AiosError) else InvalidRequest("not a request") for m in messages
            )
        )
    return _one(line)


def _one(line: bytes) -> Request | Response | AiosError:
    try:
        member = _member.decode(line)
    except msgspec.ValidationError as exc:
        return InvalidRequest(str(exc))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        return ParseError(str(exc))
    if member.method is not msgspec.UNSET:
        if bytes(memoryview(member.params)[:1]) not in (b"", b"{", b"["):
            return InvalidRequest("params must be an object or an array")
        return Request(member.method, member.params, member.id)
    if member.id is not msgspec.UNSET:
        if member.error is not msgspec.UNSET and member.result is msgspec.UNSET:
            return Response(member.id, error=member.error)
        if member.error is msgspec.UNSET and member.result is not msgspec.UNSET:
            return Response(member.id, member.result)
    return InvalidRequest("neither a request nor a response")
