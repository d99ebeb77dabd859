"""The methods by name."""

from __future__ import annotations

from typing import Any

import msgspec

from aiosd import server
from aiosd.errors import InvalidParams
from aiosd.methods import audit, budget, memory, models, sessions, system, tasks, tools  # noqa: F401  # each registers its own
from aiosd.methods.services import HANDLERS, Handler, Services
from aiosd.protocol.base import Params
from aiosd.protocol.system import SystemPing


def table(services: Services) -> dict[str, server.Method]:
    """The methods by name, as the server takes them: params are checked into their type before the handler."""
    return {params.method: _bound(services, params, handler) for params, handler in HANDLERS.items()}


def _bound(services: Services, params: type[Params[Any]], handler: Handler[Any]) -> server.Method:
    async def method(peer: server.Peer, **given: Any) -> object:
        try:
            checked = msgspec.convert(given, params)
        except msgspec.ValidationError as exc:
            raise InvalidParams(str(exc).replace("`$.", "`")) from None
        return await handler(services, peer, checked)

    return server.inline(method) if params is SystemPing else method
