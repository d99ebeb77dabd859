"""Tools: what a session's models may do. `from aiosd.tools import tool` is all that a user's file needs.

This module is imported by every tool host, so it stays free of imports that cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, overload

MARK = "__aiosd_tool__"
"""The attribute of a function that makes it a tool; its value is a `Marked`."""


class Marked(NamedTuple):
    """What the decorator was told. Checked when the host collects the tools, so that one bad tool is reported
    and the others load."""

    permissions: tuple[str, ...]
    rate_limit: int | None
    """Calls a minute, per user."""
    read_only: bool
    hosts: tuple[str, ...]


F = TypeVar("F", bound=Callable[..., Any])


@overload
def tool(function: F, /) -> F: ...


@overload
def tool(
    *,
    permissions: Sequence[str] = ...,
    rate_limit: int | None = ...,
    read_only: bool = ...,
    hosts: Sequence[str] = ...,
) -> Callable[[F], F]: ...


def tool(
    function: F | None = None,
    /,
    *,
    permissions: Sequence[str] = (),
    rate_limit: int | None = None,
    read_only: bool = False,
    hosts: Sequence[str] = (),
) -> F | Callable[[F], F]:
    """Makes a function, sync or async, a tool with the function's name; the function itself stays as it was.

    Its parameters must be annotated: they become the schema that models see, and arguments are checked against
    them before a call. The docstring's first paragraph describes the tool, its `name: ...` lines the parameters.

    `permissions`: a session needs one of these, or the tool's own name; `["*"]` opens it to every session.
    `rate_limit`: calls a minute, per user. `read_only`: it changes nothing, so calling it twice does no harm.
    `hosts`: what it may reach, such as `api.example.com`, `*.example.com` or `192.168.1.20:8080`; there is no network
    but these, by HTTP and HTTPS through the proxy that the environment names.
    """

    def mark(function: F) -> F:
        setattr(function, MARK, Marked(tuple(permissions), rate_limit, read_only, tuple(hosts)))
        return function

    return mark if function is None else mark(function)
