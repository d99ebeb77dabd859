"""Who watches which task. Kept events reach every watcher, if need be from the ledger; deltas may be merged
or dropped for a slow one, and the `message` that follows them has the whole text."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from aiosd.records import AnyEvent, ApprovalEvent, Kept, TextEvent, ThinkingEvent

BACKLOG = 256
"""Kept events one watcher may fall behind before it reads them from the ledger instead."""

DELTA = 16 * 1024
"""Characters of deltas that wait for one watcher before further ones are dropped for it."""


class Watcher:
    """One reader's view of one task, from when it began to watch."""

    def __init__(self, *, answers: bool) -> None:
        self.answers = answers
        """A user may be behind it, who is asked."""
        self._events: list[AnyEvent] = []
        self._behind = False
        self._woken: asyncio.Future[None] | None = None
        """While somebody waits."""

    @property
    def has_news(self) -> bool:
        return self._behind or bool(self._events)

    async def next(self) -> list[AnyEvent] | None:
        """What came since the last call, waiting if need be; None when kept events were skipped here: read
        them from the ledger."""
        if not self.has_news:
            self._woken = asyncio.get_running_loop().create_future()
            try:
                await self._woken
            finally:
                self._woken = None
        behind, self._behind = self._behind, False
        events, self._events = self._events, []
        return None if behind else events

    def wake(self) -> None:
        """For a look at the ledger."""
        self._events.clear()
        self._behind = True
        self._rouse()

    def put(self, event: AnyEvent) -> None:
        if isinstance(event, TextEvent | ThinkingEvent):
            self._put_delta(event)
        elif len(self._events) >= BACKLOG:
            self._events.clear()
            self._behind = True
        elif not self._behind:
            self._events.append(event)
        self._rouse()

    def _rouse(self) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    def _put_delta(self, event: TextEvent | ThinkingEvent) -> None:
        """Merged with the one that waits, if the one follows on the other."""
        last = self._events[-1] if self._events else None
        if type(last) is not type(event):
            if len(self._events) < BACKLOG and not self._behind:
                self._events.append(event)
            return
        assert isinstance(last, TextEvent | ThinkingEvent)
        if last.offset + len(last.text) == event.offset and len(last.text) < DELTA:
            self._events[-1] = msgspec.structs.replace(last, text=last.text + event.text)


class Broker:
    """Watchers by task. Publishing never waits: a slow watcher never slows the task.

    What a task asks its user also reaches the watchers of the tasks above it."""

    def __init__(self) -> None:
        self._watchers: defaultdict[str, set[Watcher]] = defaultdict(set)
        self._above: dict[str, tuple[str, ...]] = {}
        """Of the tasks that others have started, the nearest first."""

    @contextmanager
    def descent(self, task_id: str, parent_id: str | None) -> Iterator[None]:
        """In this block the task is known as one that another has started."""
        self._above[task_id] = () if parent_id is None else (parent_id, *self._above.get(parent_id, ()))
        try:
            yield
        finally:
            del self._above[task_id]

    def is_below(self, task_id: str, above: str) -> bool:
        return above in self._above.get(task_id, ())

    @contextmanager
    def watch(self, task_id: str, *, answers: bool = True) -> Iterator[Watcher]:
        watcher = Watcher(answers=answers)
        self._watchers[task_id].add(watcher)
        try:
            yield watcher
        finally:
            self._watchers[task_id].discard(watcher)
            if not self._watchers[task_id]:
                del self._watchers[task_id]

    def is_watched(self, task_id: str) -> bool:
        """By somebody who can say yes, there or further up."""
        tasks = (task_id, *self._above.get(task_id, ()))
        return any(watcher.answers for each in tasks for watcher in self._watchers.get(each, ()))

    def wake(self, task_id: str) -> None:
        """Lets the task's watchers see for themselves how it stands, where there may be no event that says it."""
        for watcher in self._watchers.get(task_id, ()):
            watcher.wake()

    def publish(self, *events: Kept | TextEvent | ThinkingEvent) -> None:
        """Kept events are published after they are committed, never before."""
        for event in events:
            asks = isinstance(event, ApprovalEvent)
            for task_id in (event.task_id, *(self._above.get(event.task_id, ()) if asks else ())):
                for watcher in self._watchers.get(task_id, ()):
                    watcher.put(event)
