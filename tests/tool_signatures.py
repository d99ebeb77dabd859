"""Twenty functions as users write them; tests/data/schemas has what models are told of each."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, NotRequired, Optional, TypedDict
from uuid import UUID

import msgspec


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2


@dataclass
class Point:
    """A place on the map."""

    x: int
    y: int = 0


@dataclass
class Route:
    points: list[Point]
    name: str | None = None


class Address(TypedDict):
    street: str
    number: NotRequired[int]


class Item(msgspec.Struct):
    name: str
    size: Annotated[int, msgspec.Meta(ge=1, description="Centimetres.")]


class Tree(msgspec.Struct):
    value: str
    children: list[Tree] = []


def nothing() -> None:
    """Takes nothing."""


def scalars(text: str, count: int, ratio: float, exact: bool) -> None:
    """One of each."""


def defaults(text: str = "x", count: int = 3, ratio: float = 0.5, exact: bool = False) -> None:
    """All may be left out."""


def google_style(query: str, limit: int = 10) -> str:
    """Searches
    the archive.

    It takes a while.

    Args:
        query: What to look for,
            in any language.
        limit (int, optional): How many to give.

    Returns:
        limit: this is no parameter's line, but one could think so.
    """
    return query


def sphinx_style(query: str, limit: int = 10) -> str:
    """Searches the archive.

    :param query: What to look for.
    :param int limit: How many to give,
        at most.
    :returns: the hits
    """
    return query


def plain_style(query: str, limit: int = 10) -> str:
    """Searches the archive.
    query: What to look for.
    limit: How many to give.
    """
    return query


def optional_new(name: str | None) -> None:
    """Must be given, and may be null."""


def optional_old(name: Optional[str] = None, size: int = None) -> None:  # type: ignore[assignment]  # noqa: UP045, RUF013
    """`size` says int and means int or null, as much code does."""


def union(value: int | str | list[int]) -> None:
    """One of several."""


def literals(mode: Literal["fast", "slow"] = "fast", level: Literal[1, 2, 3] = 1) -> None:
    """Chosen from a list."""


def enums(color: Color, size: Size = Size.SMALL) -> None:
    """Chosen from an enum."""


def containers(
    names: list[str], pair: tuple[int, str], many: tuple[int, ...], unique: set[str], table: dict[str, float]
) -> None:
    """Lists, tuples, sets and objects."""


def bare_containers(names: list, table: dict, anything: Any) -> None:  # type: ignore[type-arg]
    """What they hold is open."""


def dataclasses(start: Point, route: Route | None = None, goal: Point = Point(1, 2)) -> None:  # noqa: B008
    """Nested dataclasses.

    Args:
        start: Where to begin.
    """


def typed_dicts(address: Address, others: dict[str, Address]) -> None:
    """TypedDicts."""


def structs(items: list[Item]) -> None:
    """msgspec Structs."""


def recursive(tree: Tree) -> None:
    """A type that holds itself."""


def constrained(
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)],
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=8, pattern="^[a-z]+$")],
    tags: Annotated[list[str], msgspec.Meta(max_length=3, description="Labels.")] = [],  # noqa: B006
) -> None:
    """Limits are told and kept.

    name: Lower case.
    """


def annotated(
    city: Annotated[str, "A city, in English."], zone: Annotated[str | None, "A time zone."] = None
) -> None:
    """A plain string describes.

    city: The docstring is farther away than the annotation.
    """


async def other_types(at: datetime, id: UUID, raw: bytes = b"") -> None:
    """Async, with types that travel as text."""


SIGNATURES: tuple[Callable[..., Any], ...] = (
    nothing,
    scalars,
    defaults,
    google_style,
    sphinx_style,
    plain_style,
    optional_new,
    optional_old,
    union,
    literals,
    enums,
    containers,
    bare_containers,
    dataclasses,
    typed_dicts,
    structs,
    recursive,
    constrained,
    annotated,
    other_types,
)
