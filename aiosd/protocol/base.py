"""What every method's params have in common."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Generic, TypeVar

import msgspec

PROTOCOL = 1
"""Raised when an old client could misread a new daemon."""

R = TypeVar("R")

Positive = Annotated[int, msgspec.Meta(ge=1)]


class Params(
    msgspec.Struct, Generic[R], frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Params of one method, by name; `R` is its result."""

    method: ClassVar[str]
    returns: ClassVar[Any]
