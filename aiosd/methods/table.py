"""The methods by name."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from aiosd import server, tally
from aiosd.errors import AiosError, InternalError, InvalidParams
from aiosd.methods import approvals, audit, budget, mcp, memory, models, sessions, system, tasks, tools  # noqa: F401  # each registers its own
from aiosd.methods.services import HANDLERS, Handler, P, Services
from aiosd.protocol.base import Params
from aiosd.protocol.system import SystemPing


def table(services: Services) -> dict[str, server.Method]:
    """The methods by name, as the server takes them: params are checked into their type before the handler."""
    return {params.method: _bound(services, params, handler) for params, handler in HANDLERS.items()}


def _checked(params: type[P], given: dict[str, Any]) -> P:
    try:
        checked: P = msgspec.convert(given, params)
    except msgspec.ValidationError as exc:
        raise InvalidParams(str(exc).replace("`$.", "`")) from None
    return checked


def _bound(services: Services, params: type[Params[Any]], handler: Handler[Any]) -> server.Method:
    async def method(peer: server.Peer, **given: Any) -> object:
        began, code = time.monotonic(), "0"
        try:
            return await handler(services, peer, _checked(params, given))
        except AiosError as exc:
            code = str(exc.code)
            raise
        except Exception:
            code = str(InternalError.code)
            raise
        except BaseException:
            code = "gone"  # its caller did not wait
            raise
        finally:
            tally.REQUESTS.add(time.monotonic() - began, params.method, code)

    return server.inline(method) if params is SystemPing else method
