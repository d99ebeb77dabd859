"""How the fields of records lie in columns: times as microseconds, so that they sort and come back exactly;
ids as text; the places of pages as cursors."""

from __future__ import annotations

import binascii
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, TypeVar

import msgspec

from aiosd.errors import InvalidParams, NotFound

MAX_PAGE = 1000
"""Rows of one page. More is asked for page by page, so that one caller cannot fill the memory."""

MAX_INTEGER = 2**63 - 1
"""The largest number a column holds; a larger one in a query would be an error of SQLite's."""

Integer = Annotated[int, msgspec.Meta(ge=-MAX_INTEGER, le=MAX_INTEGER)]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)

K = TypeVar("K", bound=tuple[Any, ...])


def micros(moment: datetime) -> int:
    """Microseconds since 1970. Raises InvalidParams for a time that names no zone: it is no moment."""
    if moment.tzinfo is None:
        raise InvalidParams(f"the time {moment.isoformat()} has no zone; in UTC it ends in Z")
    try:
        return (moment.astimezone(UTC) - _EPOCH) // _MICROSECOND
    except OverflowError:
        raise InvalidParams(
            f"the time {moment.isoformat()} lies outside the years 1 to 9999 in UTC"
        ) from None


def moment(micros: int) -> datetime:
    """The time in UTC, the very one that was stored."""
    return _EPOCH + timedelta(microseconds=micros)


def moment_or_none(micros: int | None) -> datetime | None:
    return None if micros is None else moment(micros)


def known(noun: str, id: str) -> str:
    """The id as a key to look for. Raises NotFound where it is none: nothing can have it."""
    if _UUID.fullmatch(id) is None:
        raise NotFound(f"no {noun} {id!a:.80}: not an id")
    return id


def within(limit: int) -> int:
    """The rows of a page that was asked for with this limit."""
    return min(max(limit, 1), MAX_PAGE)


def cut(
    rows: list[tuple[Any, ...]], limit: int, key: Callable[[tuple[Any, ...]], tuple[Any, ...]]
) -> tuple[list[tuple[Any, ...]], str | None]:
    """A page out of `limit + 1` rows, and the cursor of the next one if the last row shows that there is one.

    A cursor is the key of the page's last row: what is added meanwhile cannot move it, as it would an offset.
    """
    if len(rows) <= limit:
        return rows, None
    return rows[:limit], _encode(key(rows[limit - 1]))


def place(cursor: str, key: type[K]) -> K:
    """The key in a cursor. Raises InvalidParams unless `cut` made it, from a key of this type."""
    try:
        decoded: K = msgspec.json.decode(urlsafe_b64decode(cursor), type=key)
    except (binascii.Error, ValueError, msgspec.DecodeError):
        raise InvalidParams("`cursor` is none that a page gave") from None
    if _encode(decoded) != cursor:
        raise InvalidParams("`cursor` is none that a page gave")
    return decoded


def _encode(key: tuple[Any, ...]) -> str:
    return urlsafe_b64encode(msgspec.json.encode(key)).decode()
