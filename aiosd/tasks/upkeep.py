"""Tasks of the daemon's own, in which no model takes part: the index of memories is made again, here or on a server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import uuid4

from aiosd.errors import InvalidParams
from aiosd.memory.parted import Progress
from aiosd.paths import user_name
from aiosd.records import ProgressEvent, Session, StateEvent
from aiosd.state import sessions, tasks
from aiosd.state.database import Connection
from aiosd.tasks.agent import Agent
from aiosd.tasks.outcome import outcome

AGENT = "aiosd:upkeep"
"""Of the session that these tasks are in, by which a daemon after this one knows them again."""

REINDEX = "memory.reindex"
MIGRATE = "memory.migrate"
"""With the address of the server after it."""

SHOWN = 100
"""Events of progress that one task keeps at most."""


def session_of(c: Connection, now: datetime) -> Session:
    """The open session of upkeep, made where there is none."""
    found = sessions.of_agent(c, AGENT)
    if found is not None:
        return found
    made = Session(
        session_id=str(uuid4()),
        user_id=user_name(),
        title="upkeep",
        agent=AGENT,
        permissions=(),
        privacy="local",
        priority="background",
        max_usd=None,
        workspace=None,
        write=False,
        state="open",
        created_at=now,
        used_at=now,
    )
    sessions.insert(c, made, system=None)
    return made


class Upkeep(Agent):
    """One of these tasks. Doing it again from the start does no harm, so that is what happens after a restart."""

    async def _work(self) -> None:
        await self._record(self._new(StateEvent, state="working"))
        work = self._named(self.params.task)
        come, shown = Progress(0, 0), 0
        async for come in work:
            if (now := come.done * SHOWN // max(come.total, 1)) > shown:
                shown = now
                await self._record(
                    self._new(ProgressEvent, stage="indexing", done=come.done, total=come.total)
                )
        result = outcome(
            self.task,
            self.params,
            self._journal,
            "completed",
            text=f"{come.done} memories" + (f", {come.detail}" if come.detail else ""),
            stop_reason="end_turn",
            message=None,
        )

        def keep(c: Connection) -> None:
            sessions.touch(c, self.session.session_id, datetime.now(UTC))
            tasks.finish(c, self.task.task_id, result=result, error=None)

        await self._record(self._new(StateEvent, state="completed"), also=keep)

    def _named(self, task: str) -> AsyncIterator[Progress]:
        if task == REINDEX:
            return self._hands.memory.reindex()
        if task.startswith(f"{MIGRATE} "):
            return self._hands.memory.migrate(task.removeprefix(f"{MIGRATE} "))
        raise InvalidParams(f"upkeep knows no `{task}`")
