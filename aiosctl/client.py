"""A blocking JSON-RPC client over the daemon's socket: one call at a time, no event loop."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec

from aiosd import errors, framing
from aiosd.protocol.base import Params

CALL_S = 60.0
"""Seconds for a call that works on nothing but the daemon's own state. Runs and tools are given none: they
end by their own deadlines, or by Ctrl-C."""

R = TypeVar("R")
OnNotification = Callable[[str, msgspec.Raw], None]


class ErrorObject(Exception):
    """The error object as it came: the cause of the exception made from it, so that --json can print it."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error)
        self.error = error


class NotOurProtocol(errors.AiosError):
    """Something answers, but it is not aiosd, or one of another time."""


def ignore(method: str, params: msgspec.Raw) -> None:
    """For calls whose notifications nobody watches."""


def decode(params: Params[R], raw: bytes) -> R:
    """A result as the type that its method declares. Raises NotOurProtocol."""
    result: R = typed(raw, params.returns, params.method)
    return result


def typed(raw: bytes, returns: Any, method: str) -> Any:
    try:
        return msgspec.json.decode(raw, type=returns)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise NotOurProtocol(
            f"aiosd answered {method} with something this aiosctl does not know: {exc}",
            hint="aiosctl ping",
        ) from exc


class Client:
    """A connection. Opening it raises OSError as connect(2) does."""

    def __init__(self, path: Path, *, trace: bool = False) -> None:
        self.path = path
        self.trace = trace
        self._socket = socket.socket(socket.AF_UNIX)
        self._decoder = framing.Decoder()
        self._last_id = 0
        self._received = b""
        try:
            self._socket.settimeout(CALL_S)
            self._socket.connect(str(path))
        except BaseException:
            self._socket.close()
            raise

    @classmethod
    def adopted(cls, fd: int, path: Path, *, last_id: int, received: bytes) -> Self:
        """A connection that somebody else opened, after its request `last_id`; `received` came in answer to that."""
        made = cls.__new__(cls)
        made.path, made.trace = path, False
        made._socket = socket.socket(fileno=fd)
        made._decoder = framing.Decoder()
        made._last_id = last_id
        made._received = received
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    def call(
        self,
        params: Params[R],
        *,
        timeout_s: float | None = CALL_S,
        on_notification: OnNotification = ignore,
    ) -> R:
        return decode(params, self.ask(params, timeout_s=timeout_s, on_notification=on_notification))

    def ask(
        self,
        params: Params[Any],
        *,
        timeout_s: float | None = CALL_S,
        on_notification: OnNotification = ignore,
    ) -> bytes:
        """The result as it stood on the wire; notifications before it go to the callback.

        Raises the AiosError the daemon answered; NoDaemon when it went away, DeadlineExceeded when it did not
        answer within `timeout_s`, InvalidParams for what cannot be sent, NotOurProtocol.
        """
        self._last_id += 1
        try:
            line = framing.request(self._last_id, params.method, params)
        except UnicodeEncodeError:
            raise errors.InvalidParams("an argument is not UTF-8 text") from None
        if len(line) > framing.MAX_LINE:
            raise errors.InvalidParams(
                f"the request takes {len(line):,} bytes; a message may have {framing.MAX_LINE:,}: give less"
            )
        try:
            return self._ask(params.method, line, timeout_s, on_notification)
        except TimeoutError:
            raise errors.DeadlineExceeded(
                f"aiosd did not answer {params.method} within {timeout_s:g} s", hint="aiosctl ping"
            ) from None
        except ConnectionError:
            raise self._dropped(params.method) from None

    def awaited(self, method: str, *, on_notification: OnNotification) -> bytes:
        """The result of the request that is open already, as `ask` gives it."""
        try:
            return self._heard(method, None, on_notification)
        except ConnectionError:
            raise self._dropped(method) from None

    def _ask(self, method: str, line: bytes, timeout_s: float | None, notify: OnNotification) -> bytes:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._show(">", line)
        self._socket.settimeout(timeout_s)
        try:
            # The flag: SIGPIPE, which ends us when standard output is gone, is not for a daemon that is.
            self._socket.sendall(line, socket.MSG_NOSIGNAL)
        except ConnectionError:
            pass  # why it closed may stand in what it sent before: that is read next
        return self._heard(method, deadline, notify)

    def _heard(self, method: str, deadline: float | None, notify: OnNotification) -> bytes:
        for message in self._messages(method, deadline):
            match message:
                case framing.Request() if message.is_notification:
                    notify(message.method, message.params)
                case framing.Response(id=self._last_id, error=None):
                    return bytes(message.result)
                # An id of null: it could not even read our request.
                case framing.Response(id=self._last_id | None, error=dict() as error):
                    raise errors.from_wire(error) from ErrorObject(error)
                case _:
                    raise self._garbage(str(message))
        raise self._dropped(method)

    def _messages(self, method: str, deadline: float | None) -> Iterator[framing.Message]:
        """What comes, until the daemon closes."""
        while data := self._receive(deadline):
            self._show("<", data)
            try:
                yield from self._decoder.feed(data)
            except framing.LineTooLong as exc:
                raise self._garbage(str(exc)) from None

    def _receive(self, deadline: float | None) -> bytes:
        if self._received:
            received, self._received = self._received, b""
            return received
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
        return self._socket.recv(1 << 16)

    def _dropped(self, method: str) -> errors.NoDaemon:
        return errors.NoDaemon(
            f"aiosd closed the connection on {self.path} before it answered {method}", hint="aiosctl status"
        )

    def _garbage(self, what: str) -> NotOurProtocol:
        return NotOurProtocol(f"what answers on {self.path} does not speak aiosd's protocol: {what:.200}")

    def _show(self, direction: str, data: bytes) -> None:
        if self.trace:
            sys.stderr.write(f"{direction} {data.decode(errors='replace').rstrip()}\n")
