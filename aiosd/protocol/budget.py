"""What may be spent, and what was."""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, UnsetType

from aiosd.protocol.base import Params
from aiosd.records import Record


class Limit(Record, frozen=True, kw_only=True):
    """One cap and how it stands, in dollars."""

    scope: Literal["day", "session"]
    """A day is one of UTC."""
    cap_usd: float | None
    """None is no cap."""
    spent_usd: float
    held_usd: float
    """The most that what is under way now can still cost."""
    left_usd: float | None
    """None without a cap."""


class Limits(Record, frozen=True, kw_only=True):
    limits: tuple[Limit, ...]
    """The day's, and the session's where one was named."""


class BudgetGet(Params[Limits], frozen=True, kw_only=True):
    """The day's cap and what is left of it; with `session_id` the session's too."""

    session_id: str | None = None

    method = "budget.get"
    returns = Limits


class BudgetSet(Params[Limits], frozen=True, kw_only=True):
    """Changes the day's cap (`day_usd`), or that of a session (`session_id` and `max_usd`); null is no cap. It holds
    from the next dispatch on, over restarts too; for the day, `config` goes back to what config.toml says."""

    day_usd: float | None | Literal["config"] | UnsetType = UNSET
    session_id: str | None = None
    max_usd: float | None | UnsetType = UNSET

    method = "budget.set"
    returns = Limits
