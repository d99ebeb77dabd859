"""The process that holds the index and the embedder: `python -m aiosd.memory.worker FOLDER [WEIGHTS]`, a child of
the daemon. Without a folder of weights, memories are found by their words alone.

It owns the folder by a lock, and waits for the lock where an older worker has not ended yet: a new daemon never
fights the old one.
"""

from __future__ import annotations

import faulthandler
import fcntl
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import msgspec

from aiosd import stdio
from aiosd.errors import AiosError, InvalidState
from aiosd.memory.embedder import MiniLM
from aiosd.memory.graph import DIM
from aiosd.memory.index import Index
from aiosd.memory.points import Point, Position, Text, Where
from aiosd.memory.ranking import CANDIDATES, Found
from aiosd.memory.weights import MODEL, WrongWeights

QUERY_S = 5.0
"""That the engine may take for what it answers, which is 20 ms at 100,000 memories. Longer, and it hangs."""

CHANGE_S = 30.0
"""That it may take for a change: a slow disk brings a thousand points down in a second."""

OPEN_S = 10.0
"""That it may take to open 100,000 memories, which is 0.2 s."""

logger = logging.getLogger(__name__)


class Watch:
    """Ends the process where the engine fails, hangs or crashes, and leaves in the folder what it did: so the next
    one knows the index for damaged, and nobody takes a kill from outside for damage."""

    def __init__(self, folder: Path) -> None:
        path = folder / "crash"
        self.found = path.read_text(errors="replace").strip() if path.exists() else ""
        """What ended the process before this one; "" unless it was the engine."""
        self._file = path.open("ab", buffering=0)

    def close(self) -> None:
        self._file.close()

    def forget(self) -> None:
        """The index is whole again."""
        self._file.truncate(0)

    def crashes(self) -> None:
        """From here on a fatal signal leaves the stack of the thread that it met, if that was in the index; and the
        alarm that ends what takes too long, those of all."""
        faulthandler.enable(self._file, all_threads=False)
        faulthandler.register(signal.SIGALRM, self._file, all_threads=True, chain=True)

    @contextmanager
    def over(self, limit_s: float, *, is_blamed: Callable[[], bool]) -> Iterator[None]:
        """Over calls of the engine, which hold the GIL: the alarm is answered in C. The clock is the kernel's, since
        that of faulthandler would start and join a thread at each call. Of the process: one call at a time."""
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        try:
            yield
        except (AiosError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as exc:  # a Rust panic is no Exception
            if not is_blamed():
                raise
            logger.warning("the index is damaged, and will be made again: %s", exc)
            self._file.write(f"{exc}\n{traceback.format_exc()}".encode())
            os._exit(1)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


class EmbedderFailed(AiosError):
    """The model does not load, and will not in this process."""


class Worker:
    """The methods of the line. `embed` may run beside the others: it has the index only for the moment it puts."""

    def __init__(self, index: Index, weights: Path | None, watch: Watch) -> None:
        self._index = index
        self._watch = watch
        self._weights = weights
        self._model: MiniLM | EmbedderFailed | None = None
        self._loading = threading.Lock()
        self._indexing = threading.Lock()
        if weights is not None:
            index.use_vectors(MODEL, DIM)

    def position(self) -> Position:
        with self._asking():
            return self._index.position()

    def put(self, *, after: int, points: list[Any]) -> None:
        """Raises InvalidState unless the index stands at `after`: it is filled in order, or what it lacks could not
        be told from its position. That happens when this process is younger than its caller thinks."""
        with self._changing():
            if self._index.last_seq != after:
                raise InvalidState(f"the index stands at {self._index.last_seq}, not at {after}")
            self._index.put(msgspec.convert(points, list[Point]))

    def mend(self, *, points: list[Any], all: bool = False) -> list[str]:
        """Puts again those of these that the index has otherwise, or not at all, or all of them; their ids."""
        with self._changing():
            return self._index.mend(msgspec.convert(points, list[Point]), all=all)

    def ids(self, *, after: int, n: int) -> list[tuple[int, str]]:
        with self._asking():
            return self._index.ids(after, n)

    def query(
        self, *, text: str, meaning: str, where: dict[str, Any], vector: list[float] | None = None
    ) -> Found:
        """The CANDIDATES by the words of `text` and by `meaning`, or its `vector`; waits for the model where it is
        being loaded."""
        if self._index.has_vectors and self._weights is not None:
            with suppress(EmbedderFailed):  # which `embed` tells; words are found all the same
                vector = self._embedder().embed_query(meaning)
        with self._asking():
            return self._index.query(text, vector, msgspec.convert(where, Where), CANDIDATES)

    def delete(self, *, ids: list[str]) -> None:
        with self._changing():
            self._index.delete(ids)

    def clear(self) -> None:
        with self._changing():
            self._index.clear()

    def lacking(self, *, n: int) -> list[str]:
        with self._asking():
            return self._index.lacking(n)

    def embed(self, *, texts: list[Any]) -> None:
        """Puts the vectors of these. Raises EmbedderFailed."""
        given = msgspec.convert(texts, list[Text])
        vectors = self._embedder().embed([each.text for each in given])
        with self._changing():
            self._index.put_vectors(
                {each.memory_id: parts for each, parts in zip(given, vectors, strict=True)}
            )

    def words(self, *, texts: list[str]) -> list[tuple[list[int], list[float]]]:
        """What a server is given in place of texts: the words of each as numbers, and their weights."""
        return [self._index.words(text) for text in texts]

    def asked(self, *, text: str, meaning: str) -> tuple[list[int], list[float], list[float] | None]:
        """What a server is asked in place of a query: its words, and the vector of its `meaning`, without a model None."""
        vector = None
        if self._weights is not None:
            with suppress(EmbedderFailed):  # which `vectors` tells
                vector = self._embedder().embed_query(meaning)
        return *self._index.asked_words(text), vector

    def vectors(self, *, texts: list[Any]) -> dict[str, list[list[float]]]:
        """Those of each, for a server. Raises EmbedderFailed."""
        given = msgspec.convert(texts, list[Text])
        made = self._embedder().embed([each.text for each in given])
        return {each.memory_id: parts for each, parts in zip(given, made, strict=True)}

    def use(self, *, model: str, dim: int) -> None:
        """Vectors will come from elsewhere: of this model, with this many numbers; with 0 as many as it had before."""
        with self._changing():
            self._index.use_vectors(model, dim)

    def put_vectors(self, *, vectors: dict[str, list[list[float]]]) -> None:
        with self._changing():
            self._index.put_vectors(vectors)

    def close(self) -> None:
        with self._changing():
            self._index.close()

    @contextmanager
    def _asking(self, limit_s: float = QUERY_S) -> Iterator[None]:
        with self._indexing, self._watch.over(limit_s, is_blamed=lambda: not self._index.is_new):
            yield

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with self._asking(CHANGE_S):
            yield

    def _embedder(self) -> MiniLM:
        with self._loading:
            if isinstance(self._model, EmbedderFailed):
                raise self._model
            if self._model is None:
                assert self._weights is not None
                try:
                    self._model = MiniLM(self._weights)
                except Exception as exc:  # a library that is broken here costs the vectors, not the words
                    if not isinstance(exc, WrongWeights):
                        logger.exception("%s does not load", MODEL)
                    self._model = EmbedderFailed(str(exc))
                    raise self._model from exc
            return self._model


def main() -> None:
    line = stdio.open_line()
    logging.basicConfig(format="%(message)s")
    # systemd tells every process of the service at once. The daemon ends us, after what it still has to do.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    folder, *weights = map(Path, sys.argv[1:])
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        _take(lock)
        watch = Watch(folder)
        if is_damaged := "index.py" in watch.found:
            logger.warning("the index is made again after: %s", watch.found.splitlines()[0])
        watch.crashes()
        with watch.over(OPEN_S, is_blamed=lambda: False):
            index = Index(folder, is_damaged=is_damaged)
            worker = Worker(index, weights[0] if weights else None, watch)
        watch.forget()
        quick: list[Callable[..., object]] = [worker.position, worker.put, worker.mend, worker.ids]
        quick += [worker.query, worker.delete, worker.clear, worker.lacking]
        quick += [worker.use, worker.put_vectors, worker.words, worker.asked]
        stdio.serve(_by_name(*quick), line, beside=_by_name(worker.embed, worker.vectors))
        worker.close()
        os._exit(0)  # the thread beside may be in the middle of a text, which nobody waits for


def _by_name(*methods: Callable[..., object]) -> dict[str, Callable[..., object]]:
    return {method.__name__: method for method in methods}


def _take(lock: IO[str]) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logger.warning("waiting for an older worker to end")
        fcntl.flock(lock, fcntl.LOCK_EX)


if __name__ == "__main__":
    main()
