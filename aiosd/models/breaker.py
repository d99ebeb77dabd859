"""When a backend is given up, and for how long it is left alone. Pure: the clock is an argument."""

from __future__ import annotations

import math

from aiosd.models.estimator import TRUSTED_CALLS, Prediction

MOST_OFF_S = 120.0
"""A backend that fails again and again is asked this often at least, unless it asked for more rest itself."""
DOUBLINGS = 3
"""Of the time it is left alone, for failures in a row."""
FAILURES = 3
"""In a row that do not say for how long to leave it alone, before it is left alone all the same."""
OFF_S = 5.0
"""For how long, then."""
STALLED_S = 20.0
"""How long one that gave no first token in time is left alone."""

LEAST_PATIENCE_S = 2.0
PATIENCE = 3.0
"""Times the predicted first token that a backend has for it."""
UNLEARNT_S = 30.0
"""What it has at least while its predictions are guesses."""


def patience_s(predicted: Prediction, *, calls: int, overdue: int, whole: bool) -> float:
    """How long to wait for a first token while somebody else could be asked. It doubles with each time in a row that
    it was too short: a machine that became slow is found out, and one that hangs is not asked much more often.
    `whole` is for answers that may come in one piece, as tool calls do."""
    due_s = predicted.work_s if whole else predicted.first_s
    limit_s = max(LEAST_PATIENCE_S, PATIENCE * due_s)
    if calls < TRUSTED_CALLS:
        limit_s = max(limit_s, UNLEARNT_S)
    return limit_s * 2.0 ** min(overdue, 2 * DOUBLINGS)


class Breaker:
    """One backend's failures in a row, and until when it rests."""

    def __init__(self) -> None:
        self._why = ""
        self._until_s = -math.inf
        self._failures = 0
        self.busy = False
        """It rests because it asked to be left alone for that long."""
        self.overdue = 0
        """Times in a row that its first token did not come in time."""

    def failed(self, why: str, retry_after_s: float | None, now: float, *, busy: bool = False) -> None:
        """`retry_after_s` is how long it is left alone at least: what it asked for itself, or what the failure is
        known to last. What fails while it rests fails of the same cause, and was sent before."""
        if now < self._until_s:
            self._until_s = max(self._until_s, now + (retry_after_s or 0.0))
            return
        self._failures += 1
        if retry_after_s is None:
            if self._failures < FAILURES:
                return
            retry_after_s = OFF_S
        self.busy = busy
        doubled = retry_after_s * 2.0 ** min(self._failures - 1, DOUBLINGS)
        self._why, self._until_s = why, now + max(retry_after_s, min(doubled, MOST_OFF_S))

    def answered(self) -> None:
        self._failures = self.overdue = 0

    def retry_in_s(self, now: float) -> float | None:
        """None while it may be asked."""
        return None if now >= self._until_s else self._until_s - now

    def down(self, now: float) -> str | None:
        """Why it is left alone now, in words."""
        left_s = self.retry_in_s(now)
        if left_s is None:
            return None
        if math.isinf(left_s):
            return f"{self._why} (not asked again until the config changes)"
        return f"{self._why} (asked again in {left_s:.0f} s)"
