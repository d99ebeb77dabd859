"""Gives memories their vectors, the newest first, and queries theirs: by MiniLM in the worker, or by a model that a
local server runs. Nothing of it is written down: the worker says which points lack a vector of today's model."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import anyio
import msgspec

from aiosd.child import Call, ChildDied, backoff_s
from aiosd.errors import AiosError, DeadlineExceeded
from aiosd.memory.points import Position, Text
from aiosd.records import Embedded, Memory, Privacy
from aiosd.state import memories
from aiosd.state.database import Database

TEXTS = 64
"""Memories that are embedded before it is looked what has become new."""

PORTION = 16 * 1024
"""Characters of text embedded in one call."""

NEW = 1_000
"""Memories that callers wait for to be embedded: 20 s. More of them are embedded behind their backs, the last first."""

EMBED_S = 300.0
"""Deadline of one portion: the longest memory has a thousand parts."""

QUERY_EMBED_S = 5.0
"""What a server may take for a query before words alone must find: it may be loading its model."""

LACKING_S = 60.0
"""Deadline of what the worker answers at once."""

PART = 700
"""Bytes of a text that a server embeds at once: under the 256 tokens of the smallest models in most languages."""

SHARED = 100
"""Characters that two parts of a long text share, so that most sentences are whole in one of them."""

logger = logging.getLogger(__name__)


class Engine(Protocol):
    """Who has the index: the worker, or a server."""

    @property
    def is_ready(self) -> bool: ...

    async def call(self, method: str, params: object = None, *, timeout_s: float) -> Any: ...

    def kill(self) -> None:
        """It hangs, and is to be made ready again."""


class LocalModel(msgspec.Struct, frozen=True):
    """A model that a server on this machine runs."""

    name: str
    """Of the backend and of its model: with another of either the vectors are made anew."""
    embed: Callable[[Sequence[str]], Awaitable[Embedded]]
    """Raises AiosError. Its vectors may be of any length."""

    @property
    def vector_name(self) -> str:
        """The index makes a file of it."""
        return re.sub(r"[^\w.-]", "_", self.name)

    async def space(self) -> tuple[str, int]:
        """The name of its vectors, and how many numbers each of them has. Raises AiosError."""
        return self.vector_name, (await self.embed(["a"])).dim


class Embedding:
    """What is still to be embedded. `model` is None where the worker embeds by itself, or nobody does."""

    def __init__(
        self,
        database: Database,
        child: Engine,
        embedder: str,
        model: LocalModel | None,
        privacy: Privacy | None = None,
    ) -> None:
        self._database = database
        self._child = child
        self._privacy = privacy
        self._model = model
        self._vector_name = model.vector_name if model else ""
        self._dim = 0
        self.embedder = embedder
        """The model that finds by meaning; after `none`, why there is none where there should be."""
        self._embeds = False
        self._is_late = False
        """It failed, and is tried again later: nobody should wait for that."""
        self._new: list[str] = []
        """What was put and is to be embedded, before what is lacking from earlier."""
        self._in_hand: list[str] = []
        """What was new and is being embedded."""
        self._is_lacking = False
        """There is more to embed, which the worker can name."""
        self._wake = anyio.Event()
        self._waiting: list[anyio.Event] = []

    async def opened(self, call: Call) -> Position:
        """Where a new worker's index stands, once it knows which model is used."""
        if self._model is not None:
            await call("use", {"model": self._vector_name, "dim": self._dim}, timeout_s=LACKING_S)
        position = msgspec.convert(await call("position", timeout_s=LACKING_S), Position)
        self._new, self._in_hand = [], []
        self._embeds = self._model is not None or (
            bool(position.embedder) and not self.embedder.startswith("none:")
        )
        self._is_lacking = self._embeds and (
            position.lacking > 0 if position.embedder else position.count > 0
        )
        return position

    def add(self, ids: Sequence[str]) -> None:
        """These were put."""
        if self._embeds:
            self._new += ids

    def lacks(self) -> None:
        """Some have lost their vectors."""
        self._is_lacking = self._embeds
        self.go_on()

    def go_on(self) -> None:
        if len(self._new) > NEW:
            self._new, self._is_lacking = [], True
        if self._new or self._is_lacking:
            self._wake.set()

    async def caught_up(self) -> None:
        """Returns once what was put has its vectors; at once where that must be waited for."""
        if (self._new or self._in_hand) and not self._is_late:
            done = anyio.Event()
            self._waiting.append(done)
            await done.wait()

    async def vector(self, text: str) -> list[float] | None:
        """Of a query; None where the worker makes it by itself, or nobody can."""
        if self._model is None:
            return None
        with anyio.move_on_after(QUERY_EMBED_S):
            try:
                got = await self._model.embed([_parts(text)[0]])
                return _unit(got.vectors[0])
            except AiosError as exc:
                logger.warning("a query is searched by its words alone", extra={"why": str(exc)})
        return None

    async def run(self) -> None:
        """Embeds what lacks a vector until cancelled, whatever becomes of the worker and of the server."""
        failures = 0
        while True:
            await self._wake.wait()
            self._wake = anyio.Event()
            try:
                await self._embed()
            except AiosError as exc:
                if self._model is None and not isinstance(exc, ChildDied | DeadlineExceeded):
                    self._give_up(exc)
                    continue
                # A new worker says what is lacking, whatever of this reached the old one.
                self._new, self._in_hand, self._is_lacking = [], [], True
                failures += 1
                logger.warning("embedding was interrupted", extra={"why": str(exc)})
                if isinstance(exc, DeadlineExceeded) and self._model is None:
                    self._child.kill()
                self._is_late = True
                self._release()
                await anyio.sleep(
                    max(backoff_s(failures), exc.retry_after_s if isinstance(exc, ChildDied) else 0)
                )
                self._is_late = False
                self._wake.set()
            else:
                failures = 0

    def _give_up(self, exc: AiosError) -> None:
        self.embedder = f"none: {exc}"
        self._new, self._in_hand, self._is_lacking = [], [], False
        self._embeds = False
        logger.warning("nothing is embedded", extra={"why": str(exc)})
        self._release()

    async def lacking(self) -> Sequence[Memory]:
        """Memories that are in the index without a vector, the last first; some of them."""
        if not self._embeds:
            return ()
        ids = await self._child.call("lacking", {"n": TEXTS}, timeout_s=LACKING_S)
        return await self._texts(msgspec.convert(ids, list[str]))

    async def _texts(self, ids: Sequence[str]) -> Sequence[Memory]:
        return await self._database.read(partial(memories.texts, ids=ids, privacy=self._privacy))

    async def _embed(self) -> None:
        while self._new or self._is_lacking:
            if self._new:
                ids = self._in_hand = self._new[-TEXTS:]
                del self._new[-TEXTS:]
                known = await self._texts(ids)
            else:
                known = await self.lacking()
            await self.embed(known)
            if self._in_hand:
                self._in_hand = []
            elif not known:
                self._is_lacking = False
                logger.info("memories are embedded", extra={"embedder": self.embedder})
            if not self._new:
                self._release()

    async def embed(self, known: Sequence[Memory]) -> None:
        """Puts the vectors of these, where there is an embedder. Raises AiosError."""
        if not self._embeds:
            return
        for texts in _portions(known):
            if self._model is None:
                await self._child.call("embed", {"texts": texts}, timeout_s=EMBED_S)
            else:
                await self._put(texts, self._model)

    async def _put(self, texts: Sequence[Text], model: LocalModel) -> None:
        parts = [(text.memory_id, part) for text in texts for part in _parts(text.text)]
        with anyio.move_on_after(EMBED_S) as patience:
            got = await model.embed([part for _, part in parts])
        if patience.cancelled_caught:
            raise DeadlineExceeded(f"{model.name} did not embed {len(parts)} texts within {EMBED_S:g} s")
        vectors: dict[str, list[list[float]]] = {}
        for (memory_id, _), vector in zip(parts, got.vectors, strict=True):
            vectors.setdefault(memory_id, []).append(_unit(vector))
        if got.dim != self._dim:
            self._dim = got.dim
            await self._child.call("use", {"model": self._vector_name, "dim": got.dim}, timeout_s=LACKING_S)
        await self._child.call("put_vectors", {"vectors": vectors}, timeout_s=LACKING_S)

    def _release(self) -> None:
        for done in self._waiting:
            done.set()
        self._waiting = []


def said(memory: Memory) -> str:
    """Who said it is asked for as often as what was said: "What did Ann say about Rome?" """
    return f"{memory.speaker}: {memory.content}" if memory.speaker else memory.content


def _portions(memories: Sequence[Memory]) -> Iterator[list[Text]]:
    """By as much text as is embedded in about a second; a longer one by itself."""
    portion: list[Text] = []
    size = 0
    for memory in memories:
        text = said(memory)
        size += len(text)
        if portion and size > PORTION:
            yield portion
            portion, size = [], len(text)
        portion.append(Text(memory.memory_id, text))
    if portion:
        yield portion


def _parts(text: str) -> list[str]:
    """The text in pieces of at most PART bytes, each with the last SHARED characters of the one before."""
    parts, start = [], 0
    while True:
        part = text[start : start + PART].encode()[:PART].decode(errors="ignore")
        parts.append(part)
        if start + len(part) >= len(text):
            return parts
        start += max(len(part) - SHARED, 1)


def _unit(vector: Sequence[float]) -> list[float]:
    """The vector made one long. Raises AiosError where it has no direction."""
    length = math.sqrt(sum(x * x for x in vector))
    if not length or not math.isfinite(length):
        raise AiosError("the model made a vector without a direction")
    return [x / length for x in vector]
