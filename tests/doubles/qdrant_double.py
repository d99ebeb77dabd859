"""A double of a Qdrant server: its HTTP interface, as far as aiosd uses it, over qdrant-client's mode in memory.

It keeps every request, may ask for a key, and refuses, cuts or holds what a test tells it to.
"""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from qdrant_client import QdrantClient, models

from tests.doubles.http_double import Cut, HttpDouble, Script, Seen

Fault = Callable[[Seen], bool]


def never(seen: Seen) -> bool:
    return False


def puts(seen: Seen) -> bool:
    """Whether it brings points."""
    return seen.method == "PUT" and seen.path.endswith("/points")


class QdrantDouble(HttpDouble):
    """`key` is the one it lets in; None lets in everyone."""

    def __init__(self, *, key: str | None = None) -> None:
        super().__init__()
        self.key = key
        self.cuts: Fault = never
        """Requests whose connection it closes."""
        self.holds: Fault = never
        """Requests that it does not answer before `go`."""
        self.held = threading.Event()
        self.go = asyncio.Event()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that it is no server
            self.kept = QdrantClient(":memory:")

    async def stop(self) -> None:
        await super().stop()
        self.kept.close()

    def ids(self) -> set[str]:
        """Of all points, in whatever collection."""
        return {str(point.id) for point in self._points()}

    def words(self) -> set[int]:
        """The numbers of all words, in points and in queries."""
        in_points = {n for point in self._points() for n in point.vector["bm25"].indices}  # type: ignore[index, union-attr, call-overload]
        asked = [q["query"] for s in self.seen if s.path.endswith("/query/batch") for q in s.body["searches"]]
        return in_points | {n for query in asked if "indices" in query for n in query["indices"]}

    def _points(self) -> Iterator[models.Record]:
        for collection in self.kept.get_collections().collections:
            yield from self.kept.scroll(collection.name, limit=100_000, with_vectors=True)[0]

    async def _answer(self, seen: Seen, reader: Any, writer: Any) -> None:
        if self.holds(seen):
            self.held.set()
            await self.go.wait()
        await super()._answer(seen, reader, writer)

    def other(self, seen: Seen) -> tuple[int, Any]:
        if self.cuts(seen):
            raise Cut
        if self.key is not None and seen.headers.get("api-key") != self.key:
            return 401, "Must provide an API key or an Authorization bearer token"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it makes no payload indexes
            try:
                return 200, {"result": self._result(seen), "status": "ok", "time": 0.001}
            except ValueError as exc:  # as it says that there is no such collection
                return 404, {"status": {"error": str(exc)}, "time": 0.001}

    def _result(self, seen: Seen) -> Any:
        kept, body = self.kept, seen.body
        _, _, name, *rest = seen.path.split("/")
        match seen.method, rest:
            case "GET", ["exists"]:
                return {"exists": kept.collection_exists(name)}
            case "GET", []:
                return kept.get_collection(name).model_dump(mode="json")
            case "DELETE", []:
                return kept.delete_collection(name)
            case "PUT", []:
                asked = models.CreateCollection.model_validate(body)
                return kept.create_collection(
                    name, vectors_config=asked.vectors or {}, sparse_vectors_config=asked.sparse_vectors
                )
            case "PUT", ["index"]:
                return {"operation_id": 1, "status": "completed"}
            case "POST", ["points", "count"]:
                count = models.CountRequest.model_validate(body)
                return kept.count(name, count.filter, exact=True).model_dump(mode="json")
            case "POST", ["points", "scroll"]:
                page = models.ScrollRequest.model_validate(body)
                found, _ = kept.scroll(
                    name,
                    page.filter,
                    limit=page.limit or 10,
                    order_by=page.order_by,
                    with_payload=page.with_payload or False,
                )
                return {"points": [each.model_dump(mode="json") for each in found]}
            case "POST", ["points"]:
                named = models.PointRequest.model_validate(body)
                records = kept.retrieve(name, named.ids, with_payload=named.with_payload or False)
                return [each.model_dump(mode="json") for each in records]
            case "PUT", ["points"]:
                given = models.PointsList.model_validate(body)
                return kept.upsert(name, given.points).model_dump(mode="json")
            case "PUT", ["points", "vectors"]:
                change = models.UpdateVectors.model_validate(body)
                return kept.update_vectors(name, change.points).model_dump(mode="json")
            case "POST", ["points", "delete"]:
                gone = models.PointIdsList.model_validate(body)
                return kept.delete(name, gone.points).model_dump(mode="json")
            case "POST", ["points", "query", "batch"]:
                batch = models.QueryRequestBatch.model_validate(body)
                answers = kept.query_batch_points(name, batch.searches)
                return [each.model_dump(mode="json") for each in answers]
        raise ValueError(f"{seen.method} {seen.path} is not what a double answers")

    def refuses(self, seen: Seen, script: Script) -> tuple[int, Any]:
        raise AssertionError("a Qdrant server is not chatted with")

    def pieces(self, seen: Seen, script: Script) -> list[bytes]:
        raise AssertionError("a Qdrant server is not chatted with")
