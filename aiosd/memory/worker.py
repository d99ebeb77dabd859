"""The process that holds the index: `python -m aiosd.memory.worker FOLDER`, a child of the daemon.

It owns the folder by a lock, and waits for the lock where an older worker has not ended yet: a new daemon never
fights the old one.
"""

from __future__ import annotations

import fcntl
import logging
import signal
import sys
from pathlib import Path
from typing import IO, Any

import msgspec

from aiosd import stdio
from aiosd.errors import InvalidState
from aiosd.memory.index import Index
from aiosd.memory.points import Point, Position, Where


class Worker:
    """The methods of the line."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def position(self) -> Position:
        return self._index.position()

    def put(self, *, after: int, points: list[Any]) -> None:
        """Raises InvalidState unless the index stands at `after`: it is filled in order, or what it lacks could not
        be told from its position. That happens when this process is younger than its caller thinks."""
        if self._index.last_seq != after:
            raise InvalidState(f"the index stands at {self._index.last_seq}, not at {after}")
        self._index.put(msgspec.convert(points, list[Point]))

    def query(self, *, text: str, where: dict[str, Any], n: int) -> list[tuple[str, float]]:
        return self._index.query(text, msgspec.convert(where, Where), n)

    def delete(self, *, ids: list[str]) -> None:
        self._index.delete(ids)

    def clear(self) -> None:
        self._index.clear()


def main() -> None:
    line = stdio.open_line()
    logging.basicConfig(format="%(message)s")
    # systemd tells every process of the service at once. The daemon ends us, after what it still has to do.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    folder = Path(sys.argv[1])
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        _take(lock)
        index = Index(folder)
        worker = Worker(index)
        stdio.serve(
            {
                method.__name__: method
                for method in (worker.position, worker.put, worker.query, worker.delete, worker.clear)
            },
            line,
        )
        index.close()


def _take(lock: IO[str]) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logging.getLogger(__name__).warning("waiting for an older worker to end")
        fcntl.flock(lock, fcntl.LOCK_EX)


if __name__ == "__main__":
    main()
