"""The index of memories: one Qdrant Edge shard in a folder. The only home of qdrant_edge.

It runs in the worker process: its calls hold the GIL, and damaged files can abort the process. It holds no text,
only what finds a memory and says whose it is; SQLite has the memories, and this folder can always be made again.
`optimize()` is never called: at 100,000 points it froze its caller for 21 s, and without it they answer in a millisecond.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import zlib
from array import array
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import qdrant_edge as qe

from aiosd.errors import InvalidParams
from aiosd.memory.points import Point, Position, Where
from aiosd.memory.ranking import Found

FORMAT = 2
"""Raised when points are made differently: a shard of another format is removed, and so made again."""

FLUSH_EVERY = 1_000
"""Points after which the shard is brought to the disk. What a power cut takes is put again from SQLite."""

OPENINGS = 2
"""Processes that may be killed, one after the other, while they open the shard; then it is suspect."""

logger = logging.getLogger(__name__)


class Index:
    """One shard. Points are put in order of `seq`, so that a lost tail shows in its position."""

    def __init__(self, folder: Path, *, is_damaged: bool = False) -> None:
        """Opens what is in the folder, or starts again where that is damaged. The caller holds the folder's lock."""
        self._path = folder / f"shard-{FORMAT}"
        self._opening = folder / "opening"
        self.is_new = False
        """It was made by this process: what is wrong with it is no damage."""
        self._shard: qe.EdgeShard
        self.last_seq = 0
        """Of the last point that was put; where it has been deleted since, still that."""
        self._unflushed = 0
        self._bm25 = _bm25()
        self._vectors = ""
        """The named vector, which bears the name of its model; "" for none."""
        self._dim = 0
        self.has_vectors = False
        """There is something to be found by its meaning."""
        for old in folder.glob("shard-*"):
            if old != self._path:
                shutil.rmtree(old)
        if is_damaged:
            self._create()
        else:
            self._open()

    def position(self) -> Position:
        count = self._shard.count(qe.CountRequest(exact=True))
        last = self._shard.query(
            qe.QueryRequest(limit=1, query=qe.OrderBy("seq", qe.Direction.Desc), with_payload=["seq"])
        )
        lacking = (
            self._shard.count(qe.CountRequest(exact=True, filter=self._lacking())) if self._vectors else 0
        )
        if not last:
            return Position(count, 0, None, self._vectors, lacking)
        payload = last[0].payload
        assert payload is not None
        return Position(count, payload["seq"], str(last[0].id), self._vectors, lacking)

    def put(self, points: Sequence[Point]) -> None:
        """Adds points, or replaces those of the same id."""
        if not points:
            return
        self._shard.update(qe.UpdateOperation.upsert_points([self._point(point) for point in points]))
        self.last_seq = points[-1].seq
        self._changed(len(points))

    def mend(self, points: Sequence[Point], *, all: bool = False) -> list[str]:
        """Puts again those of the points that are not here as they would be put, or not at all; their ids. Or all.

        Their vectors of meaning are then lacking.
        """
        here = self._shard.retrieve(
            [point.memory_id for point in points], with_payload=True, with_vector=True
        )
        found = {str(record.id): record for record in here}
        made = [self._point(point) for point in points]
        wrong = [point for point in made if all or not _is_as_put(found.get(str(point.id)), point)]
        if wrong:
            self._shard.update(qe.UpdateOperation.upsert_points(wrong))
            self._changed(len(wrong))
        return [str(point.id) for point in wrong]

    def ids(self, after: int, n: int) -> list[tuple[int, str]]:
        """At most `n`, each with its `seq`, in the order of these, behind `after`."""
        behind = qe.Filter(must=[qe.FieldCondition(key="seq", range=qe.RangeFloat(gt=after))])
        records, _ = self._shard.scroll(
            qe.ScrollRequest(
                limit=n,
                order_by=qe.OrderBy("seq", qe.Direction.Asc),
                filter=behind,
                with_payload=["seq"],
                with_vector=False,
            )
        )
        return [(record.payload["seq"], str(record.id)) for record in records if record.payload]

    def query(self, text: str, vector: Sequence[float] | None, where: Where, n: int) -> Found:
        """The `n` best by words, and the `n` nearest to the vector.

        A score by words grows with the words that match and their rarity among the user's own memories.
        """
        words = self._bm25.embed_query(_spaced(text))
        by_words = self._nearest(words, "bm25", where, n) if words.indices else {}
        fits = vector is not None and len(vector) == self._dim > 0
        by_meaning = self._nearest(vector, self._vectors, where, n) if fits else {}
        return Found({id: score for id, score in by_words.items() if score > 0}, by_meaning)

    def _nearest(self, vector: Any, name: str, where: Where, n: int) -> dict[str, float]:
        idf = None
        if name == "bm25":
            # How rare a word is must not depend on what other users have said.
            idf = qe.IdfParams(corpus=_filter(Where(user_id=where.user_id, session_id=None)))
        hits = self._shard.query(
            qe.QueryRequest(
                limit=n,
                query=qe.Query.Nearest(vector, using=name),
                filter=_filter(where),
                params=qe.SearchParams(idf=idf),
            )
        )
        return {str(hit.id): hit.score for hit in hits}

    def words(self, text: str) -> tuple[list[int], list[float]]:
        """What `put` would make of a text."""
        words = self._bm25.embed_document(_spaced(text))
        return list(words.indices), list(words.values)

    def asked_words(self, text: str) -> tuple[list[int], list[float]]:
        """What `query` would make of a text."""
        words = self._bm25.embed_query(_spaced(text))
        return list(words.indices), list(words.values)

    # --- vectors ---------------------------------------------------------------------------------------

    def use_vectors(self, model: str, dim: int) -> None:
        """Makes room for those of this model, and removes those of any other. A `dim` of 0 is the one it had; where it
        had none there is no room yet."""
        kept = json.loads((self._path / "edge_config.json").read_bytes()).get("vectors") or {}
        dim = dim or kept.get(model, {}).get("size", 0)
        for name, kind in kept.items():
            if name != model or kind["size"] != dim:
                self._shard.update(qe.UpdateOperation.delete_vector_name(name))
        if not dim:
            self._vectors, self._dim, self.has_vectors = "", 0, False
            return
        if kept.get(model, {}).get("size") != dim:
            # Many to a point: one for each part of a long text, of which the nearest counts.
            parts = qe.MultiVectorConfig(qe.MultiVectorComparator.MaxSim)
            self._shard.update(qe.UpdateOperation.create_dense_vector(model, dim, qe.Distance.Dot, parts))
        self._vectors, self._dim = model, dim
        there = qe.Filter(must=[qe.HasVectorCondition(model)])
        self.has_vectors = self._shard.count(qe.CountRequest(exact=True, filter=there)) > 0

    def lacking(self, n: int) -> list[str]:
        """Ids of at most `n` points without a vector, the last put first."""
        newest = qe.OrderBy("seq", qe.Direction.Desc)
        found = self._shard.query(qe.QueryRequest(limit=n, query=newest, filter=self._lacking()))
        return [str(point.id) for point in found]

    def put_vectors(self, vectors: Mapping[str, list[list[float]]]) -> None:
        """Those of the parts of each memory; of a memory that is not here, nothing. Raises InvalidParams."""
        for parts in vectors.values():
            if not parts or not all(_is_unit(part, self._dim) for part in parts):
                # The engine would keep it: it refuses no NaN, and a wrong dimension only after the points before it.
                raise InvalidParams(f"expected vectors of {self._dim} numbers, of unit length")
        here = self._shard.retrieve(list(vectors), with_payload=False, with_vector=False)
        known = [str(record.id) for record in here]
        if known:
            for id in known:  # before the vector, so that none is without
                self._shard.update(
                    qe.UpdateOperation.set_payload([id], {"vector_checksum": _checksum_of_parts(vectors[id])})
                )
            changes = [qe.PointVectors(id, {self._vectors: vectors[id]}) for id in known]
            self._shard.update(qe.UpdateOperation.update_vectors(changes))
            self.has_vectors = True
            self._changed(len(known))

    def _lacking(self) -> qe.Filter:
        return qe.Filter(must_not=[qe.HasVectorCondition(self._vectors)] if self._vectors else [])

    def delete(self, ids: Sequence[str]) -> None:
        self._shard.update(qe.UpdateOperation.delete_points(list(ids)))
        self._changed(len(ids))

    def clear(self) -> None:
        """Starts again, with nothing."""
        self._shard.close()
        self._create()
        if self._vectors:
            self.use_vectors(self._vectors, self._dim)

    def flush(self) -> None:
        self._shard.flush()
        self._unflushed = 0

    def close(self) -> None:
        """Brought to the disk, nothing may be asked any more."""
        self.flush()
        self._shard.close()

    def _point(self, point: Point) -> qe.Point:
        words = self._bm25.embed_document(
            _spaced(point.text)
        )  # of a text without words: empty, and never found
        payload = {field: getattr(point, field) for field in _field_indexes()}
        # The vector of its meaning follows when it is embedded.
        return qe.Point(point.memory_id, {"bm25": words}, payload | {"checksum": _checksum(words)})

    def _changed(self, points: int) -> None:
        self._unflushed += points
        if self._unflushed >= FLUSH_EVERY:
            self.flush()

    # --- opening ---------------------------------------------------------------------------------------

    def _open(self) -> None:
        kills = len(self._opening.read_bytes()) if self._opening.exists() else 0
        with self._opening.open("ab") as file:
            file.write(b".")
        if not self._path.exists():
            self._create()
        elif kills >= OPENINGS:
            logger.warning("the index killed its process %d times: it is made again", kills)
            self._create()
        else:
            try:
                self._load()
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as exc:  # noqa: BLE001 - a Rust panic is no Exception; and the shard is made again
                logger.warning("the index is damaged and is made again: %s", exc)
                self._create()
        self._opening.unlink()

    def _load(self) -> None:
        self._shard = qe.EdgeShard.load(str(self._path))
        if set(self._shard.info().payload_schema) != set(_field_indexes()):
            raise ValueError("it was not finished")
        self._check_last()
        self.last_seq = self.position().last_seq

    def _check_last(self) -> None:
        """Raises for a wrong vector among the last points, whose pages a power cut may have left half written.

        The others are compared with the table of memories behind the first answers: `mend`.
        """
        records, _ = self._shard.scroll(
            qe.ScrollRequest(
                limit=FLUSH_EVERY,
                order_by=qe.OrderBy("seq", qe.Direction.Desc),
                with_payload=["checksum", "vector_checksum"],
                with_vector=True,
            )
        )
        if not all(map(_is_whole, records)):
            raise ValueError("a vector is not what was put")

    def _create(self) -> None:
        shutil.rmtree(self._path, ignore_errors=True)
        self._path.mkdir(mode=0o700)
        self._shard = qe.EdgeShard.create(
            str(self._path),
            qe.EdgeConfig(sparse_vectors={"bm25": qe.EdgeSparseVectorParams(modifier=qe.Modifier.Idf)}),
        )
        for field, index in _field_indexes().items():
            self._shard.update(qe.UpdateOperation.create_field_index(field, index))
        self.flush()
        self.last_seq = 0
        self.is_new = True


def _bm25() -> qe.Bm25:
    """On the LoCoMo questions (dev) it finds more than the engine's scored text index: recall@10 0.65 to 0.63, both
    with the speaker's name in the text. The Multilingual tokenizer finds as much, but drops numbers: "room 101"."""
    return qe.Bm25(
        qe.Bm25Config(
            language="english",  # stemming and stop words; words of other scripts stay as they are
            tokenizer=qe.TokenizerType.Word,
            ascii_folding=True,
            avg_len=40,
            k=0.9,
            b=0.4,  # memories differ in length by what they tell, less by how wordy they are
        )
    )


_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff]+")
"""Runs of kana, Han and Hangul."""


def _spaced(text: str) -> str:
    """Overlapping pairs of characters in place of runs that no space divides into words, as Lucene's CJKBigramFilter."""
    return _UNSPACED.sub(lambda run: f" {' '.join(map(''.join, pairwise(run[0]))) or run[0]} ", text)


def _field_indexes() -> dict[str, Any]:
    return {
        "user_id": qe.KeywordIndexParams(is_tenant=True),
        "session_id": qe.PayloadSchemaType.Keyword,
        "kind": qe.PayloadSchemaType.Keyword,
        "source": qe.PayloadSchemaType.Keyword,
        "created_at": qe.PayloadSchemaType.Integer,
        "seq": qe.PayloadSchemaType.Integer,
    }


def _is_unit(vector: Sequence[float], dim: int) -> bool:
    """Whether it is what an embedder makes: of this dimension, finite, one long."""
    return len(vector) == dim and abs(sum(x * x for x in vector) - 1) < 1e-3


def _is_whole(record: Any) -> bool:
    """Whether its vectors are what its payload says they are."""
    vectors, payload = record.vector, record.payload
    words = vectors.pop("bm25")
    return payload["checksum"] == _checksum(words) and all(
        payload.get("vector_checksum") == _checksum_of_parts(parts) for parts in vectors.values()
    )


def _is_as_put(record: Any, point: Any) -> bool:
    if record is None or "bm25" not in record.vector or not point.payload.items() <= record.payload.items():
        return False
    return _is_whole(record)


def _checksum(vector: qe.SparseVector) -> int:
    return zlib.crc32(repr(sorted(zip(vector.indices, vector.values, strict=True))).encode())


def _checksum_of_parts(parts: Sequence[Sequence[float]]) -> int:
    return zlib.crc32(b"".join(array("f", part).tobytes() for part in parts))


def _filter(where: Where) -> qe.Filter:
    must: list[Any] = [
        qe.FieldCondition(key=field, match=qe.MatchValue(value))
        for field in ("user_id", "session_id", "kind", "source")
        if (value := getattr(where, field)) is not None
    ]
    if where.as_of is not None:
        must.append(qe.FieldCondition(key="created_at", range=qe.RangeFloat(lte=where.as_of)))
    return qe.Filter(must=must)
