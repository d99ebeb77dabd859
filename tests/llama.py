"""Real llama.cpp servers, as the gguf backend starts them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec

from aiosd import config
from aiosd.models.gguf import Gguf, open_gguf


class _Token(msgspec.Struct):
    has_next_token: bool


class _Slot(msgspec.Struct):
    is_processing: bool
    next_token: tuple[_Token, ...] = ()


@asynccontextmanager
async def serving(path: Path, *, within_s: float = 60, **rest: Any) -> AsyncIterator[Gguf]:
    """A backend of this file; its process starts with the first request."""
    section = {"context": 4096} | {k: rest.pop(k) for k in ("context", "slots") if k in rest}
    with anyio.fail_after(within_s):
        async with open_gguf(
            "small", config.Backend(kind="gguf", path=str(path), **section), **rest
        ) as backend:
            try:
                yield backend
            finally:
                await backend.aclose()


async def busy(backend: Gguf) -> int:
    """The slots that llama.cpp itself says are at work."""
    return sum(slot.is_processing for slot in await _slots(backend))


async def broken_off(backend: Gguf) -> int:
    """The slots at rest whose last reply was to go on."""
    at_rest = (slot for slot in await _slots(backend) if not slot.is_processing)
    return sum(any(token.has_next_token for token in slot.next_token) for slot in at_rest)


async def _slots(backend: Gguf) -> list[_Slot]:
    server = backend._server
    assert server is not None and server.url is not None
    client = await server._client()
    slots = await client.get(server.url.removesuffix("/v1") + "/slots", cast_to=object)
    return msgspec.convert(slots, list[_Slot])
