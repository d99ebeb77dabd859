"""The rows of the tools of MCP servers as their user approved them. Functions of a Connection, for Database.read and .write."""

from __future__ import annotations

from collections.abc import Sequence

from aiosd.state.database import Connection


def approved(c: Connection) -> dict[str, tuple[bytes, ...]]:
    """The descriptions (JSON) by server; one that was approved without tools has none of them."""
    found: dict[str, tuple[bytes, ...]] = {}
    for server, tool in c.execute("SELECT server, tool FROM mcp_tools ORDER BY server, place"):
        found[server] = (*found.get(server, ()), *([tool.encode()] if tool else []))
    return found


def approve(c: Connection, server: str, tools: Sequence[bytes]) -> None:
    """In place of all that was approved of the server before."""
    c.execute("DELETE FROM mcp_tools WHERE server = ?", (server,))
    rows = [(server, place, tool.decode()) for place, tool in enumerate(tools or [b""])]
    c.executemany("INSERT INTO mcp_tools (server, place, tool) VALUES (?, ?, ?)", rows)
