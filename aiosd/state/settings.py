"""What was set over the config while the daemon runs: a JSON value by its name in the config."""

from __future__ import annotations

from typing import Any

import msgspec

from aiosd.state.database import Connection


def get(c: Connection, name: str) -> Any:
    """UNSET where the config's value holds."""
    row = c.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
    return msgspec.UNSET if row is None else msgspec.json.decode(row[0])


def put(c: Connection, name: str, value: Any) -> None:
    c.execute(
        "INSERT OR REPLACE INTO settings (name, value) VALUES (?, ?)",
        (name, msgspec.json.encode(value).decode()),
    )


def remove(c: Connection, name: str) -> None:
    """From now on the config's value holds."""
    c.execute("DELETE FROM settings WHERE name = ?", (name,))
