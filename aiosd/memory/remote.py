"""The index on a Qdrant server or cluster. The only home of qdrant_client.

A server is asked what the worker is asked (aiosd.memory.worker), so the same hand follows the table for both. The
worker still makes the vectors, of words and of meaning; no text goes out, and nothing of a private memory at all:
which rows there are to follow is decided where they are read. A damaged or emptied collection is filled again.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
from anyio import to_thread

from aiosd.child import Child, ChildDied, Started
from aiosd.errors import DeadlineExceeded, InvalidState, Overloaded, PermissionDenied
from aiosd.memory.points import Point, Position, Text, Where
from aiosd.memory.ranking import CANDIDATES, Found

if TYPE_CHECKING:
    from qdrant_client import AsyncQdrantClient

TIMEOUT_S = 30
"""Of one request to the server; whoever asks may have less patience."""

RETRY_S = 5.0
"""Between two looks for a server that did not answer."""

REFUSED_S = 60.0
"""Between two tries with a server that refused."""

MOST_SAID = 300
"""Characters of an error that are passed on."""

VECTORS_S = 300.0
"""Deadline of the vectors of one portion of texts, which the worker makes."""


class ServerFailed(ChildDied):
    """The server does not answer, or fails. What is remembered meanwhile reaches it later."""

    code = Overloaded.code
    exit_status = Overloaded.exit_status


class ServerRefused(ServerFailed):
    """It does not let us in, or is not who it should be: it, or the config, is to be changed."""

    code = PermissionDenied.code
    exit_status = PermissionDenied.exit_status


Connect = Callable[[], "AsyncQdrantClient"]
"""Makes a client, without a request; called in a thread, since its import takes a second."""


class Server(msgspec.Struct, frozen=True):
    """Where memories that may leave are indexed."""

    url: str
    collection: str
    """One for each database: what is not in its table is taken out of it."""
    connect: Connect
    key_name: str | None = None
    """Where its key stands: `$NAME`, or a file."""

    def failure(self, exc: Exception) -> ServerFailed:
        """What went wrong at a request, as who can mend it needs it."""
        said = " ".join(str(exc).split())[:MOST_SAID] or type(exc).__name__
        status = getattr(exc, "status_code", None)
        if status in (401, 403):
            key = f"the key in {self.key_name}" if self.key_name else "to answer without a key"
            change = "another" if self.key_name else "one, by memory.key_env or memory.key_file"
            return ServerRefused(
                f"the memory server {self.url} refused {key}: the config must name {change}",
                retry_after_s=REFUSED_S,
                hint="aiosctl config edit",
            )
        if "CERTIFICATE_VERIFY_FAILED" in said:
            return ServerRefused(
                f"nobody known vouches for the memory server {self.url}, or not under this name: {said};"
                " memory.ca_file can name the authority that does",
                retry_after_s=REFUSED_S,
                hint="aiosctl config edit",
            )
        return ServerFailed(
            f"the memory server {self.url} does not answer: {said}",
            retry_after_s=RETRY_S,
            hint=f"curl -i {self.url}",
        )


def connect(url: str, key: str | None, trusted: ssl.SSLContext | None = None) -> Connect:
    """With `trusted`, only whom it knows may be the server."""

    def made() -> AsyncQdrantClient:
        from qdrant_client import AsyncQdrantClient  # a second of CPU, for those who have a server

        verify: dict[str, Any] = {} if trusted is None else {"verify": trusted}
        return AsyncQdrantClient(url=url, api_key=key, timeout=TIMEOUT_S, check_compatibility=False, **verify)

    return made


@asynccontextmanager
async def open_remote(
    server: Server, worker: Child, vectors: tuple[str, int] | None, started: Started
) -> AsyncIterator[Remote]:
    """The server's index; `vectors` is the model of the worker's own embedder, with its dimension."""
    client = await to_thread.run_sync(server.connect)
    try:
        yield Remote(server, client, worker, vectors, started)
    finally:
        with anyio.move_on_after(2, shield=True):
            await client.close()


class Remote:
    """What a Child is to who follows the table: asked by name, and made ready again after it has failed."""

    def __init__(
        self,
        server: Server,
        client: AsyncQdrantClient,
        worker: Child,
        vectors: tuple[str, int] | None,
        started: Started,
    ) -> None:
        from qdrant_client import models
        from qdrant_client.http.exceptions import ApiException

        self._server = server
        self._client = client
        self._worker = worker
        self._started = started
        self._models = models
        self._failures: tuple[type[Exception], ...] = (ApiException, OSError)
        self._vectors, self._dim = vectors or ("", 0)
        self._last_seq = 0
        self._has_collection = False
        self._starting = anyio.Lock()
        self.is_ready = False

    async def call(self, method: str, params: object = None, *, timeout_s: float) -> Any:
        """As of a Child. Raises ServerFailed, DeadlineExceeded, and what the worker answers."""
        with anyio.move_on_after(timeout_s):
            async with self._starting:
                if not self.is_ready:
                    await self._started(self._ask)
                    self.is_ready = True
            return await self._ask(method, params, timeout_s=timeout_s)
        self.is_ready = False
        raise DeadlineExceeded(f"{self._server.url} did not answer `{method}` within {timeout_s:g} s")

    def kill(self) -> None:
        """It is made ready again before it is asked anything else."""
        self.is_ready = False

    async def _ask(self, method: str, params: object = None, *, timeout_s: float) -> Any:
        methods: dict[str, Callable[..., Awaitable[Any]]] = {
            "use": self.use,
            "position": self.position,
            "put": self.put,
            "mend": self.mend,
            "ids": self.ids,
            "query": self.query,
            "delete": self.delete,
            "clear": self.clear,
            "lacking": self.lacking,
            "embed": self.embed,
            "put_vectors": self.put_vectors,
        }
        with anyio.move_on_after(timeout_s):
            try:
                return await methods[method](**(params if isinstance(params, dict) else {}))
            except self._failures as exc:
                self.is_ready = self._has_collection = False
                raise self._server.failure(exc) from None
        raise DeadlineExceeded(f"{self._server.url} did not answer `{method}` within {timeout_s:g} s")

    # --- as the worker's methods ---------------------------------------------------------------------------

    async def use(self, *, model: str, dim: int) -> None:
        if (model, dim or self._dim) != (self._vectors, self._dim):
            self._vectors, self._dim, self._has_collection = model, dim, False
            self.is_ready = False  # the collection is made anew, and filled again
            if dim:
                raise ServerFailed(f"its collection is made anew for the vectors of {model}")

    async def position(self) -> Position:
        m = self._models
        await self._ensure()
        name = self._server.collection
        count = (await self._client.count(name, exact=True)).count
        order = m.OrderBy(key="seq", direction=m.Direction.DESC)
        last, _ = await self._client.scroll(name, limit=1, order_by=order, with_payload=["seq"])
        lacking = (
            (await self._client.count(name, count_filter=self._lacking(), exact=True)).count
            if self._dim
            else 0
        )
        self._last_seq = (last[0].payload or {})["seq"] if last else 0
        return Position(
            count,
            self._last_seq,
            str(last[0].id) if last else None,
            self._vectors if self._dim else "",
            lacking,
        )

    async def put(self, *, after: int, points: Sequence[Point]) -> None:
        if after != self._last_seq:
            raise InvalidState(f"the index stands at {self._last_seq}, not at {after}")
        await self._upsert(points)
        self._last_seq = points[-1].seq

    async def mend(self, *, points: Sequence[Point], all: bool = False) -> list[str]:
        """Puts those that are not there: the server checks its own files. Or all."""
        ids: list[int | str] = [point.memory_id for point in points]
        here = await self._client.retrieve(self._server.collection, ids, with_payload=False)
        there = {str(record.id) for record in here}
        wrong = [point for point in points if all or point.memory_id not in there]
        if wrong:
            await self._upsert(wrong)
        return [point.memory_id for point in wrong]

    async def ids(self, *, after: int, n: int) -> list[tuple[int, str]]:
        m = self._models
        behind = m.Filter(must=[m.FieldCondition(key="seq", range=m.Range(gt=after))])
        order = m.OrderBy(key="seq", direction=m.Direction.ASC)
        found, _ = await self._client.scroll(
            self._server.collection, scroll_filter=behind, limit=n, order_by=order, with_payload=["seq"]
        )
        return [(record.payload["seq"], str(record.id)) for record in found if record.payload]

    async def query(
        self, *, text: str, meaning: str, where: Where, vector: list[float] | None = None
    ) -> Found:
        m = self._models
        indices, values, own = await self._worker.call(
            "asked", {"text": text, "meaning": meaning}, timeout_s=TIMEOUT_S
        )
        vector = vector or own
        words = m.SparseVector(indices=indices, values=values)
        whole_user = m.IdfCorpusParams(corpus=self._filter(Where(user_id=where.user_id, session_id=None)))
        requests = []
        if indices:
            requests.append(
                m.QueryRequest(
                    query=words,
                    using="bm25",
                    filter=self._filter(where),
                    params=m.SearchParams(idf=whole_user),
                    limit=CANDIDATES,
                )
            )
        if vector is not None and len(vector) == self._dim:
            requests.append(
                m.QueryRequest(
                    query=[vector], using=self._vectors, filter=self._filter(where), limit=CANDIDATES
                )
            )
        answers = await self._client.query_batch_points(self._server.collection, requests) if requests else []
        found = [{str(hit.id): hit.score for hit in answer.points} for answer in answers]
        by_words = found.pop(0) if indices else {}
        return Found(
            {id: score for id, score in by_words.items() if score > 0}, found.pop(0) if found else {}
        )

    async def delete(self, *, ids: Sequence[str]) -> None:
        await self._client.delete(self._server.collection, list(ids), wait=True)

    async def clear(self) -> None:
        await self._client.delete_collection(self._server.collection)
        self._has_collection, self._last_seq = False, 0
        await self._ensure()

    async def lacking(self, *, n: int) -> list[str]:
        m = self._models
        order = m.OrderBy(key="seq", direction=m.Direction.DESC)
        found, _ = await self._client.scroll(
            self._server.collection,
            scroll_filter=self._lacking(),
            limit=n,
            order_by=order,
            with_payload=False,
        )
        return [str(record.id) for record in found]

    async def embed(self, *, texts: Sequence[Text]) -> None:
        vectors = await self._worker.call("vectors", {"texts": texts}, timeout_s=VECTORS_S)
        await self.put_vectors(vectors=vectors)

    async def put_vectors(self, *, vectors: Mapping[str, list[list[float]]]) -> None:
        m = self._models
        here = await self._client.retrieve(self._server.collection, list(vectors), with_payload=False)
        changes = [
            m.PointVectors(id=record.id, vector={self._vectors: vectors[str(record.id)]}) for record in here
        ]
        if changes:
            await self._client.update_vectors(self._server.collection, changes, wait=True)

    # --- the collection ------------------------------------------------------------------------------------

    async def _ensure(self) -> None:
        """Makes the collection where there is none with these vectors."""
        m, name = self._models, self._server.collection
        if self._has_collection:
            return
        parts = m.MultiVectorConfig(comparator=m.MultiVectorComparator.MAX_SIM)
        if await self._client.collection_exists(name):
            kept = (await self._client.get_collection(name)).config.params.vectors
            sizes = {key: kind.size for key, kind in kept.items()} if isinstance(kept, dict) else {}
            if self._vectors and not self._dim:
                self._dim = sizes.get(self._vectors, 0)
            self._has_collection = sizes == ({self._vectors: self._dim} if self._dim else {})
            if not self._has_collection:
                await self._client.delete_collection(name)
        if not self._has_collection:
            dense = m.VectorParams(size=self._dim, distance=m.Distance.DOT, multivector_config=parts)
            await self._client.create_collection(
                name,
                vectors_config={self._vectors: dense} if self._dim else {},
                sparse_vectors_config={"bm25": m.SparseVectorParams(modifier=m.Modifier.IDF)},
            )
            for field, kind in self._fields().items():
                await self._client.create_payload_index(name, field, kind, wait=True)
            self._has_collection = True

    def _fields(self) -> dict[str, Any]:
        m = self._models
        keyword, integer = m.PayloadSchemaType.KEYWORD, m.PayloadSchemaType.INTEGER
        return {
            "user_id": m.KeywordIndexParams(type=m.KeywordIndexType.KEYWORD, is_tenant=True),
            **dict.fromkeys(("session_id", "kind", "source"), keyword),
            **dict.fromkeys(("created_at", "seq"), integer),
        }

    async def _upsert(self, points: Sequence[Point]) -> None:
        m = self._models
        texts = [point.text for point in points]
        words = await self._worker.call("words", {"texts": texts}, timeout_s=TIMEOUT_S)
        await self._client.upsert(
            self._server.collection,
            [
                m.PointStruct(
                    id=point.memory_id,
                    vector={"bm25": m.SparseVector(indices=indices, values=values)},
                    payload={field: getattr(point, field) for field in self._fields()},
                )
                for point, (indices, values) in zip(points, words, strict=True)
            ],
            wait=True,
        )

    def _lacking(self) -> Any:
        m = self._models
        return m.Filter(must_not=[m.HasVectorCondition(has_vector=self._vectors)])

    def _filter(self, where: Where) -> Any:
        m = self._models
        must: list[Any] = [
            m.FieldCondition(key=field, match=m.MatchValue(value=value))
            for field in ("user_id", "session_id", "kind", "source")
            if (value := getattr(where, field)) is not None
        ]
        if where.as_of is not None:
            must.append(m.FieldCondition(key="created_at", range=m.Range(lte=where.as_of)))
        return m.Filter(must=must)
