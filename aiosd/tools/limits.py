"""Rate limits as token buckets: `limit` calls at once, refilled evenly over a minute. Times are seconds of any
clock that only goes forward."""

from __future__ import annotations

import msgspec

MINUTE_S = 60.0
_NEARLY = 1 - 1e-9
"""A token: a caller that waits as long as it was told must find one, whatever the rounding."""


class Bucket(msgspec.Struct, frozen=True):
    """What one user has left of one tool. A bucket that nobody has seen is full."""

    tokens: float
    at: float
    """When it held that many."""


def full(limit: int, now: float) -> Bucket:
    return Bucket(float(limit), now)


def filled(bucket: Bucket, limit: int, now: float) -> Bucket:
    """The bucket as it is now. A clock that went back fills nothing."""
    gained = max(0.0, now - bucket.at) * limit / MINUTE_S
    return Bucket(min(float(limit), bucket.tokens + gained), max(now, bucket.at))


def take(bucket: Bucket, limit: int, now: float) -> tuple[Bucket, float]:
    """The bucket after a call, and 0; or unchanged, and the seconds until there is a token for one."""
    bucket = filled(bucket, limit, now)
    if bucket.tokens < _NEARLY:
        return bucket, (1 - bucket.tokens) * MINUTE_S / limit
    return Bucket(max(0.0, bucket.tokens - 1), bucket.at), 0.0


def give_back(bucket: Bucket, limit: int, now: float) -> Bucket:
    """The bucket after a call that was refused before it began, and so was none."""
    bucket = filled(bucket, limit, now)
    return Bucket(min(float(limit), bucket.tokens + 1), bucket.at)
