"""What the pool has learnt of its backends: a JSON text for each, whose form is the pool's own."""

from __future__ import annotations

from collections.abc import Sequence

from aiosd.state.database import Connection


def every(c: Connection) -> list[tuple[str, str, str]]:
    """Backend, model and what was learnt."""
    return c.execute("SELECT backend, model, learnt FROM learnt ORDER BY backend, model").fetchall()


def put(c: Connection, rows: Sequence[tuple[str, str, str]]) -> None:
    c.executemany("INSERT OR REPLACE INTO learnt (backend, model, learnt) VALUES (?, ?, ?)", rows)
