"""Tools to copy into ~/.config/aiosd/tools: what a session may do with the files of its workspace."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from aiosd.tools import tool


@tool(permissions=["read"], read_only=True)
def most_common_words(path: str, n: int = 10) -> dict[str, int]:
    """Count the words of a text file and give the most common.

    Args:
        path: The file, from the workspace.
        n: How many to give.
    """
    return dict(Counter(Path(path).read_text().lower().split()).most_common(n))


@tool(permissions=["read"], read_only=True)
def json_value(path: str, pointer: str) -> Any:
    """Read one value of a JSON file.

    Args:
        path: The file, from the workspace.
        pointer: Where the value stands, by RFC 6901: /servers/0/port.
    """
    value = json.loads(Path(path).read_text())
    for token in pointer.split("/")[1:]:
        key = token.replace("~1", "/").replace("~0", "~")
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


@tool(permissions=["notes"], rate_limit=30)
def add_note(text: str, path: str = "NOTES.md") -> str:
    """Add a line to a file of notes. It needs a session made with --write.

    Args:
        text: The note, in one line.
        path: The file, from the workspace.
    """
    with open(path, "a") as file:
        file.write(f"- {' '.join(text.split())}\n")
    return f"noted in {path}"
