"""Every error that may cross the wire, with its JSON-RPC code and the exit status of aiosctl.

AiosError                 code     exit   raised when
  ParseError            -32700        1   not JSON
  InvalidRequest        -32600        1   JSON, but not JSON-RPC 2.0
  MethodNotFound        -32601        1   no such method
  InvalidParams         -32602        2   params do not fit the method's type
  InternalError         -32603        1   a bug; its traceback is in the daemon's log
  Overloaded            -32001       75   a queue is full; try again
  NotFound              -32002       66   nothing has that id, or it is none
  PermissionDenied      -32003       77   the session was not given this
  RateLimited           -32004       75   too often; `retry_after_s` says when
  NoModelFits           -32005       78   no model may or can answer
  BudgetExhausted       -32006       77   it would cost more than the cap
  DeadlineExceeded      -32007      124   the caller's time is up
  ToolFailed            -32008        1   a tool raised, died, or ran out of time
  InvalidState          -32009        1   not in this state of the session or task
  Cancelled             -32800      130   the task was cancelled
  NoDaemon                   -       69   nothing answers on the socket (aiosctl only)
  ConfigError                -       78   a config file that does not say what it may

The codes the specification reserves carry its message on the wire, and no internals; of these, invalid params
say which in `data.detail`. Exit statuses follow sysexits(3) where one fits.
"""

from __future__ import annotations

from typing import Any, ClassVar


class AiosError(Exception):
    """An error a caller can act on: str() says what happened and why, `hint` what to do, in a line to paste."""

    code: ClassVar[int] = -32603
    exit_status: ClassVar[int] = 1
    reserved: ClassVar[str | None] = None
    """The specification's message, where the specification has one for the code."""

    def __init__(self, message: str, *, hint: str | None = None, **data: Any) -> None:
        super().__init__(message)
        self.hint = hint
        self.data = data

    def to_wire(self) -> dict[str, Any]:
        """The error object of JSON-RPC 2.0 section 5.1."""
        data = dict(self.data)
        if self.hint is not None:
            data["hint"] = self.hint
        return {"code": self.code, "message": self.reserved or str(self)} | ({"data": data} if data else {})


class ParseError(AiosError):
    code = -32700
    reserved = "Parse error"


class InvalidRequest(AiosError):
    code = -32600
    reserved = "Invalid Request"


class MethodNotFound(AiosError):
    code = -32601
    reserved = "Method not found"


class InvalidParams(AiosError):
    code = -32602
    exit_status = 2
    reserved = "Invalid params"

    def to_wire(self) -> dict[str, Any]:
        wire = super().to_wire()
        return wire | {"data": {"detail": str(self)} | wire.get("data", {})}


class InternalError(AiosError):
    code = -32603
    reserved = "Internal error"


class Overloaded(AiosError):
    code = -32001
    exit_status = 75


class NotFound(AiosError):
    code = -32002
    exit_status = 66


class PermissionDenied(AiosError):
    code = -32003
    exit_status = 77


class RateLimited(AiosError):
    code = -32004
    exit_status = 75

    def __init__(self, message: str, *, retry_after_s: float, **data: Any) -> None:
        super().__init__(message, retry_after_s=retry_after_s, **data)


class NoModelFits(AiosError):
    code = -32005
    exit_status = 78


class BudgetExhausted(AiosError):
    code = -32006
    exit_status = 77


class DeadlineExceeded(AiosError):
    code = -32007
    exit_status = 124


class ToolFailed(AiosError):
    code = -32008


class InvalidState(AiosError):
    code = -32009


class Cancelled(AiosError):
    code = -32800
    exit_status = 130


class NoDaemon(AiosError):
    exit_status = 69


class ConfigError(AiosError):
    exit_status = 78


BY_CODE: dict[int, type[AiosError]] = {
    cls.code: cls for cls in AiosError.__subclasses__() if "code" in vars(cls)
}


def from_wire(error: dict[str, Any]) -> AiosError:
    """The exception a peer meant by an error object; a code we do not know becomes AiosError."""
    cls = BY_CODE.get(error.get("code", 0), AiosError)
    data = error.get("data")
    data = dict(data) if isinstance(data, dict) else {}
    message = str(data.pop("detail", error.get("message", "")))
    exc = cls.__new__(cls)
    AiosError.__init__(exc, message, hint=data.pop("hint", None), **data)
    return exc
