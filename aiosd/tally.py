"""What the daemon counts of itself, as plain numbers: `metrics.py` gives them Prometheus's form when somebody asks.

One tally a process, as there is one log: whoever does something counts it, without being handed a place to. A count costs
less than a microsecond; the client library, with its import and its locks, is only needed for the text.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Seconds: from a ping to a long answer."""


class Counter:
    """Only goes up. One number for each combination of its labels' values."""

    def __init__(self, name: str, help: str, labels: tuple[str, ...]) -> None:
        self.name = name
        self.help = help
        self.labels = labels
        self.values: defaultdict[tuple[str, ...], float] = defaultdict(float)
        COUNTERS.append(self)

    def add(self, *values: str, by: float = 1.0) -> None:
        self.values[values] += by


class Durations:
    """Seconds, sorted into BOUNDS; the last place is for what took longer than all of them."""

    def __init__(self, name: str, help: str, labels: tuple[str, ...]) -> None:
        self.name = name
        self.help = help
        self.labels = labels
        self.buckets: defaultdict[tuple[str, ...], list[int]] = defaultdict(lambda: [0] * (len(BOUNDS) + 1))
        self.sums: defaultdict[tuple[str, ...], float] = defaultdict(float)
        DURATIONS.append(self)

    def add(self, seconds: float, *values: str) -> None:
        self.buckets[values][bisect_left(BOUNDS, seconds)] += 1
        self.sums[values] += seconds


def kind(child: str) -> str:
    """The name of a child without the session's id that may end it: labels must not grow without end."""
    return re.sub(r" [0-9a-f]{8}$", "", child)


COUNTERS: list[Counter] = []
DURATIONS: list[Durations] = []

REQUESTS = Durations(
    "aiosd_request_seconds", "Requests on the socket, by how they ended.", ("method", "code")
)
TASKS = Durations("aiosd_task_seconds", "Tasks from their start here to their end.", ("state",))
REPLIES = Durations(
    "aiosd_reply_seconds",
    "Replies of models, from the request with its waits to the last token.",
    ("backend",),
)
WAITS = Durations(
    "aiosd_queue_seconds", "Waits for a slot of a backend, and for its model to load.", ("backend",)
)
FAILURES = Counter("aiosd_backend_failures", "Attempts that a backend failed at.", ("backend",))
TOKENS = Counter("aiosd_tokens", "Tokens that models read and wrote.", ("backend", "direction"))
COST = Counter("aiosd_cost_usd", "Dollars spent on models.", ("backend",))
TOOL_CALLS = Durations("aiosd_tool_call_seconds", "Calls of tools, by how they ended.", ("tool", "status"))
CHILD_STARTS = Counter("aiosd_child_starts", "Starts of child processes.", ("child",))
CHILD_FAILURES = Counter("aiosd_child_failures", "Child processes that died unwanted.", ("child",))
