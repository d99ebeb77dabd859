"""Which tools a session may use. Permissions are fixed when a session is created.

A tool with `*` is open to every session, and a session with `*` may use every tool; otherwise they must share a
name, the tool's own counting as one of its permissions. `!name` denies what shares that name, and deny wins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TypeVar

from aiosd.errors import InvalidParams
from aiosd.records import Tool

ALL = "*"
_NAME = r"(\*|[A-Za-z0-9_][A-Za-z0-9_.-]*)"
_ENTRY = re.compile(rf"!?{_NAME}")
_LATER = re.compile(rf"[!?]?{_NAME}\(.*\)|\?{_NAME}", re.DOTALL)

T = TypeVar("T", bound=Tool)


def check_permissions(entries: Iterable[str]) -> None:
    """Raises InvalidParams for an entry that is not `name`, `!name`, `*` or `!*`."""
    for entry in entries:
        if _ENTRY.fullmatch(entry):
            continue
        if _LATER.fullmatch(entry):
            raise InvalidParams(
                f"permission `{entry}`: patterns, as in `name(pattern)`, and asking, as in `?name`, are not "
                "there yet; an entry is `name`, `!name` or `*`"
            )
        raise InvalidParams(f"permission `{entry}`: expected `name`, `!name` or `*`")


def check_names(permissions: Iterable[str]) -> None:
    """The permissions that a tool asks for. Raises InvalidParams for what is not `name` or `*`."""
    for name in permissions:
        if not isinstance(name, str) or not re.fullmatch(_NAME, name):
            raise InvalidParams(f"permission `{name}`: expected `name` or `*`")


def denial(tool: Tool, permissions: Sequence[str]) -> str | None:
    """Why a session with these permissions may not use the tool: a clause; None if it may."""
    names = (tool.name, *(name for name in tool.permissions if name != ALL))
    for entry in permissions:
        if entry[:1] == "!" and entry[1:] in (ALL, *names):
            return f"its permissions deny it with `{entry}`"
    if ALL in tool.permissions or ALL in permissions or not set(names).isdisjoint(permissions):
        return None
    wanted = " or ".join(f"`{name}`" for name in dict.fromkeys((*names[1:], names[0])))
    given = ", ".join(f"`{entry}`" for entry in permissions) or "none"
    return f"it needs the permission {wanted}, and has {given}"


def offered(
    tools: Iterable[T], permissions: Sequence[str], narrowed: Sequence[str] | None = None
) -> tuple[T, ...]:
    """The tools a run is given: those the session may use, and of these, where `narrowed` is not None, those
    it names."""
    return tuple(
        tool
        for tool in tools
        if denial(tool, permissions) is None and (narrowed is None or tool.name in narrowed)
    )
