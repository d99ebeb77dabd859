"""Starting, watching and ending tasks. A task belongs to the daemon, not to the connection that asked for it."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import count
from typing import NamedTuple
from uuid import uuid4

import anyio
from anyio.abc import TaskGroup

from aiosd import tally, telemetry
from aiosd.child import backoff_s
from aiosd.errors import (
    AiosError,
    DeadlineExceeded,
    InternalError,
    InvalidParams,
    InvalidState,
    NotFound,
    from_wire,
)
from aiosd.protocol.sessions import SessionRun
from aiosd.protocol.tasks import TaskResolve
from aiosd.records import (
    ENDED,
    AnyEvent,
    Kept,
    Priority,
    Session,
    Span,
    StateEvent,
    Task,
    TaskResult,
    TextEvent,
    ThinkingEvent,
)
from aiosd.state import sessions, tasks
from aiosd.state.database import Connection
from aiosd.state.upgrade import LedgerFailed
from aiosd.tasks import context, descent, steps, upkeep
from aiosd.tasks.admission import check, check_room
from aiosd.tasks.agent import Agent
from aiosd.tasks.descent import Wish
from aiosd.tasks.hands import Hands
from aiosd.tasks.trace import EXPORT_S, Export, spans
from aiosd.tools.kernel import Caller

logger = logging.getLogger(__name__)


class Run:
    """A task while it is open."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.scope = anyio.CancelScope()
        self.ended = anyio.Event()
        self.cancelled = False
        """By a caller; a daemon that stops ends the run too, but leaves the task open."""


class Stuck(NamedTuple):
    """A task that nobody works on until the ledger takes a write again; then it goes on, or is cancelled."""

    why: LedgerFailed
    cancelled: bool


class Runner:
    def __init__(self, hands: Hands, running: TaskGroup) -> None:
        self._hands = hands
        self._running = running
        self._runs: dict[str, Run] = {}
        self._stuck: dict[str, Stuck] = {}
        self._resolving: set[str] = set()
        self.export: Export | None = None

    @property
    def open(self) -> int:
        return len(self._runs)

    async def idle(self) -> None:
        """Returns once no task is open."""
        while self._runs:
            await next(iter(self._runs.values())).ended.wait()

    async def start(self, params: SessionRun) -> Task:
        """The task, once its row is on the disk. With an idempotency_key seen before, the task it made.

        Raises NotFound, InvalidState for a closed session, InvalidParams, Overloaded."""
        check(params)
        params = self._hands.registry.audit.secrets.masked(params)
        open_of = self._open_of()
        task_id = str(uuid4())
        now = datetime.now(UTC)

        def create(c: Connection) -> tuple[Task, Agent, tuple[Kept, ...]]:
            session = sessions.get(c, params.session_id)
            if session.state != "open":
                raise InvalidState(f"the session {session.title!r} is closed", hint="aiosctl session create")
            task = tasks.insert(
                c,
                task_id,
                session.session_id,
                params=params,
                priority=session.priority,
                created_at=now,
                idempotency_key=params.idempotency_key,
            )
            queued: tuple[Kept, ...] = ()
            if task.task_id == task_id:
                check_room(open_of, session.user_id)
                queued = (StateEvent(task_id=task_id, seq=1, at=now, state="queued"),)
                tasks.append(c, *queued)
                sessions.touch(c, session.session_id, now)
            return task, _agent(c, self._hands, session, task, params, queued), queued

        with anyio.CancelScope(shield=True):  # a row that is kept is worked on, whoever has gone meanwhile
            task, agent, queued = await self._hands.database.write(create)
            if queued:
                self._go(task, agent, queued)
        return task

    async def spawn(self, caller: Caller, wish: Wish) -> Task:
        """The task that this call has started, or has started before: one call never has two. It may do what the
        caller's task may, or less, and its cost is its parent's too.

        Raises InvalidState outside of a task and where there are too many, InvalidParams, PermissionDenied."""
        parent = self._runs.get(caller.task_id or "")
        if parent is None or caller.call is None or parent.cancelled:
            raise InvalidState("only a task that runs can start another", hint='aiosctl run --detach "..."')
        of, call = parent.agent, caller.call
        check_room(self._open_of(), of.session.user_id)
        agent = None
        if wish.agent is not None and (agent := self._hands.agents.get(wish.agent)) is None:
            known = ", ".join(self._hands.agents) or "none"
            raise InvalidParams(f"agent: no `{wish.agent}` in the config; there are: {known}")
        tools = await self._hands.registry.list()
        now = datetime.now(UTC)
        task_id, _ = descent.child_ids(of.task.task_id, call)

        def create(c: Connection) -> tuple[Task, Agent, tuple[Kept, ...]] | Task:
            if (before := tasks.found(c, task_id)) is not None:
                return before
            depth, children, tree = tasks.kin(c, of.task.task_id)
            descent.check_room(descent.Kin(depth=depth, children=children, tree=tree))
            session, params = descent.child_of(
                of.session,
                of.task,
                of.params,
                wish,
                call=call,
                agent=agent,
                tools=tools,
                privacy=of.privacy,
                last=depth == descent.MAX_DEPTH,
                now=now,
            )
            sessions.insert(c, session, system=agent.system if agent else None)
            task = tasks.insert(
                c,
                task_id,
                session.session_id,
                params=params,
                parent_id=of.task.task_id,
                priority=of.priority,
                created_at=now,
            )
            queued = StateEvent(task_id=task_id, seq=1, at=now, state="queued")
            tasks.append(c, queued)
            return task, _agent(c, self._hands, session, task, params, (queued,)), (queued,)

        with anyio.CancelScope(shield=True):
            made = await self._hands.database.write(create)
            if isinstance(made, Task):
                return made
            task, child, queued = made
            self._go(task, child, queued)
        return task

    def _open_of(self) -> Counter[str]:
        """How many tasks of each user are open. Starts that are being committed are not among them."""
        return Counter(run.agent.session.user_id for run in self._runs.values())

    async def child(self, caller: Caller, number: int) -> str:
        """The id of a task that the caller's has started. Raises NotFound."""
        parent_id = caller.task_id
        if parent_id is not None:
            for task in await self._hands.database.read(lambda c: tasks.children(c, parent_id)):
                if task.number == number:
                    return task.task_id
        raise NotFound(f"this task has started no task {number}")

    async def ended(self, task_id: str) -> Task:
        """The task once it has ended, however long it waits for its user meanwhile. Raises NotFound."""
        with self._hands.broker.watch(task_id, answers=False) as watcher:
            while (task := await self._get(task_id)).state not in ENDED:
                while True:
                    news = await watcher.next()
                    if news is None or any(isinstance(event, StateEvent) for event in news):
                        break
        if (run := self._runs.get(task_id)) is not None:
            await run.ended.wait()  # what belongs to its end is done, too
        return task

    async def start_upkeep(self, work: str) -> Task:
        """A task of the daemon's own; the one that is at this work already, if there is one."""
        for task_id in self._runs:
            task = await self._get(task_id)
            if task.task == work:
                return task
        session = await self._hands.database.write(lambda c: upkeep.session_of(c, datetime.now(UTC)))
        return await self.start(SessionRun(session_id=session.session_id, task=work))

    async def recover(self) -> int:
        """Takes up every task that a daemon before this one left open, from where its journal ends. Those that
        asked for approval ask again; those with a call in doubt go on waiting."""
        await self._hands.database.write(lambda c: tasks.spend_held(c, datetime.now(UTC)))
        left = [(t, *await self._reopen(t)) for t in await self._hands.database.read(tasks.unended)]
        left = [each for each in left if each[0].state != "input_required" or steps.asks(each[2])]
        for task, agent, journal in left:
            self._go(task, agent, journal)
        return len(left)

    async def resolve(self, params: TaskResolve) -> Task:
        """Settles one call of a task that waits for that, which goes on once nothing is in doubt any more.

        Raises NotFound for the task or the call, InvalidState for a task that does not wait."""
        task = await self._get(params.task_id)
        if task.state != "input_required" or task.task_id in self._runs:
            raise InvalidState(f"task {task.number} is {task.state}: it asks nothing")
        if task.task_id in self._resolving:
            raise InvalidState(f"task {task.number} is being resolved")
        self._resolving.add(task.task_id)
        try:
            agent, journal = await self._reopen(task)
            if await agent.resolve(params.call_id, params.action):
                self._go(task, agent, journal)
        finally:
            self._resolving.discard(task.task_id)
        return await self._get(task.task_id)

    async def _reopen(self, task: Task) -> tuple[Agent, tuple[Kept, ...]]:
        """The task's agent, where its journal ends, and that journal."""

        def read(c: Connection) -> tuple[Agent, tuple[Kept, ...]]:
            session, params = sessions.get(c, task.session_id), tasks.params(c, task.task_id)
            journal = tasks.events(c, task.task_id)
            return _agent(c, self._hands, session, task, params, journal), journal

        return await self._hands.database.read(read)

    async def cancel(self, task_id: str) -> Task:
        """The task as it is once it has ended. Raises NotFound, and InvalidState if it had ended before."""
        task = await self._get(task_id)
        if task.state in ENDED:
            raise InvalidState(f"task {task.number} is {task.state} already")
        await self._end_tree(task)
        if (stuck := self._stuck.get(task_id)) is not None:
            raise stuck.why
        return await self._get(task_id)

    async def _end_tree(self, task: Task) -> None:
        """Cancels the task, which cancels what it has started."""
        run = self._runs.get(task.task_id)
        if run is not None:
            run.cancelled = True
            run.scope.cancel()
            await run.ended.wait()
        elif self._stuck.pop(task.task_id, None) is not None or task.state == "input_required":
            try:
                below = await self._end_children(task)
                agent, _ = await self._reopen(task)
                await agent.cancel(below)
                await self._close(task)
            except LedgerFailed as exc:
                self._leave(task.task_id, exc, cancelled=True)
                raise

    async def _end_children(self, task: Task) -> list[Task]:
        """Cancels what the task has started and is not over, all side by side; those that it was."""
        started = await self._hands.database.read(lambda c: tasks.children(c, task.task_id))
        below = [child for child in started if child.state not in ENDED]
        async with anyio.create_task_group() as ending:
            for child in below:
                ending.start_soon(self._end_tree, child)
        return below

    async def _close(self, task: Task) -> None:
        """The session of a task that an agent has started ends with it."""
        if task.parent_id is not None:
            await self._hands.database.write(lambda c: sessions.close(c, task.session_id))
            await self._hands.registry.end(task.session_id)

    async def prioritize(self, task_id: str, priority: Priority) -> Task:
        """Changes who is served first, of the task and all that it has started: from the next step on, and where one
        waits now, at once. Raises NotFound, and InvalidState if it has ended."""

        def change(c: Connection) -> tuple[Task, ...]:
            own = tasks.prioritize(c, task_id, priority)
            below = [child for child in tasks.descendants(c, task_id) if child.state not in ENDED]
            return own, *(tasks.prioritize(c, child.task_id, priority) for child in below)

        changed = await self._hands.database.write(change)
        for task in changed:
            if (run := self._runs.get(task.task_id)) is not None:
                run.agent.priority = priority
                self._hands.pool.prioritize(task.task_id, priority)
        return changed[0]

    async def end_session(self, session_id: str) -> None:
        """Cancels what runs in the session and lets go of what it holds."""
        opened = await self._hands.database.read(tasks.unended)
        for task in opened:
            if task.session_id == session_id and task.task_id in self._runs:
                await self.cancel(task.task_id)
        await self._hands.registry.end(session_id)

    async def wait(self, task_id: str, timeout_s: float | None = None) -> TaskResult:
        """The result of a completed task; otherwise raises what ended it. DeadlineExceeded leaves it running."""
        if (run := self._runs.get(task_id)) is not None:
            with anyio.move_on_after(timeout_s) as patience:
                await run.ended.wait()
            if patience.cancelled_caught:
                raise DeadlineExceeded(f"the task still runs after {timeout_s:g} s", task_id=task_id)
            if run.agent.result is not None:
                return run.agent.result
        if (stuck := self._stuck.get(task_id)) is not None:
            raise stuck.why
        return _outcome(await self._get(task_id))

    async def watch(self, task_id: str, after_seq: int = 0) -> AsyncIterator[AnyEvent]:
        """The task's events after this number, each kept one once and in order, then live until it ends; between them what
        the tasks that it has started ask their user.

        Raises NotFound, and InvalidParams for a number that no event has yet."""
        database = self._hands.database
        if after_seq:
            newest = await database.read(lambda c: tasks.last_seq(c, task_id))
            if not 0 <= after_seq <= newest:
                raise InvalidParams(
                    f"after_seq: expected 0 to {newest}, the task's last event; got {after_seq}"
                )
        with self._hands.broker.watch(task_id) as watcher:
            # Watching begins before the ledger is read, so that nothing falls between the two.
            events: list[AnyEvent] | tuple[AnyEvent, ...] = await database.read(
                lambda c: tasks.events(c, task_id, after_seq)
            )
            below = self._hands.broker.is_below
            asked = [e for e in self._hands.approvals.waiting if below(e.task_id, task_id)]
            events = [*events, *asked]
            seen = after_seq
            while True:
                for event in events:
                    if isinstance(event, TextEvent | ThinkingEvent) or event.task_id != task_id:
                        yield event
                    elif event.seq > seen:
                        seen = event.seq
                        yield event
                        if isinstance(event, StateEvent) and event.state in ENDED:
                            return
                last = next((event for event in reversed(events) if event.task_id == task_id), None)
                if isinstance(last, StateEvent) and last.state == "input_required":
                    return  # who answers the request tells that it waits for its user
                if task_id not in self._runs and not watcher.has_news:
                    return  # it had ended, or nobody works on it
                live = await watcher.next()
                since = seen
                events = (
                    live
                    if live is not None
                    else await database.read(lambda c, since=since: tasks.events(c, task_id, since))  # type: ignore[misc]
                )

    async def _get(self, task_id: str) -> Task:
        return await self._hands.database.read(lambda c: tasks.get(c, task_id))

    def _go(self, task: Task, agent: Agent, journal: tuple[Kept, ...]) -> None:
        run = Run(agent)
        self._runs[task.task_id] = run
        self._hands.broker.publish(*journal)
        self._running.start_soon(self._work, run, task, name=f"task {task.number}")

    async def _work(self, run: Run, task: Task) -> None:
        began = time.monotonic()
        try:
            with (
                self._hands.consolidation.beside(),
                run.scope,
                telemetry.about(task_id=task.task_id, session_id=task.session_id),
                self._hands.broker.descent(task.task_id, task.parent_id),
            ):
                try:
                    await run.agent.run()
                except AiosError:
                    raise
                except Exception:
                    logger.exception("a bug in a task", extra={"task_id": task.task_id})
                    await run.agent.end("failed", InternalError("a bug; its traceback is in the log"))
            if run.cancelled and run.agent.state not in ENDED:
                below = await self._end_children(task)
                await run.agent.cancel(below)
            if run.agent.state in ENDED:
                if run.agent.state != "completed":
                    await self._end_children(task)
                await self._close(task)
        except LedgerFailed as exc:
            logger.error("a task waits for the ledger: %s", exc, extra={"task_id": task.task_id})
            self._leave(task.task_id, exc, cancelled=run.cancelled)
        except AiosError:
            logger.exception("the end of a task could not be kept", extra={"task_id": task.task_id})
        finally:
            tally.TASKS.add(time.monotonic() - began, run.agent.state)
            del self._runs[task.task_id]
            run.ended.set()
            if task.task_id in self._stuck:
                self._hands.broker.wake(
                    task.task_id
                )  # a last event, which its watchers wait for, was not kept
        if self.export is not None and run.agent.state in ENDED:
            content = self.export.content and run.agent.privacy == "any"
            try:
                with anyio.move_on_after(EXPORT_S, shield=True):  # the daemon may be told to stop just now
                    self.export(*await self.trace(task.task_id, content=content))
            except AiosError:
                logger.exception("a trace could not be read", extra={"task_id": task.task_id})

    def _leave(self, task_id: str, why: LedgerFailed, *, cancelled: bool) -> None:
        self._stuck[task_id] = Stuck(why, cancelled)
        self._running.start_soon(self._take_up, task_id)

    async def _take_up(self, task_id: str) -> None:
        """Goes on with a task from where its journal ends, once the ledger takes a write again."""
        for tries in count(2):
            await anyio.sleep(backoff_s(tries))
            try:
                task = await self._hands.database.write(lambda c: tasks.touch(c, task_id))
                if (stuck := self._stuck.get(task_id)) is None:
                    return
                if stuck.cancelled:
                    return await self._end_tree(task)
                agent, journal = await self._reopen(task)
            except LedgerFailed:
                continue
            except AiosError:  # it was cancelled or deleted meanwhile
                self._stuck.pop(task_id, None)
                return
            if self._stuck.pop(task_id, None) is not None:
                self._go(task, agent, journal)
            return

    async def trace(self, task_id: str, *, content: bool = False) -> tuple[Task, tuple[Span, ...]]:
        """The task and where its time went. Raises NotFound."""

        def read(c: Connection) -> tuple[Task, SessionRun, tuple[Kept, ...]]:
            return tasks.get(c, task_id), tasks.params(c, task_id), tasks.events(c, task_id)

        task, params, journal = await self._hands.database.read(read)
        return task, spans(task, journal, params.max_steps or steps.MAX_STEPS, content=content)


def _agent(
    c: Connection, hands: Hands, session: Session, task: Task, params: SessionRun, journal: tuple[Kept, ...]
) -> Agent:
    """With what it is told before it begins, from the snapshot that its caller has open."""
    kind = upkeep.Upkeep if session.agent == upkeep.AGENT else Agent
    system = sessions.system(c, session.session_id)
    upto = context.upto(journal) or sessions.moment_now(c)
    turns = sessions.turns(c, session.session_id, context.TURNS, upto)
    return kind(hands, session, system, task, params, journal, turns, upto)


@asynccontextmanager
async def open_runner(hands: Hands) -> AsyncIterator[Runner]:
    """Tasks run inside this block. Leaving it stops them where they are: their journals stay, and `recover`
    takes them up."""
    async with anyio.create_task_group() as running:
        yield Runner(hands, running)
        running.cancel_scope.cancel()


def _outcome(task: Task) -> TaskResult:
    if task.result is not None:
        return task.result
    if task.error is not None:
        raise from_wire(task.error)
    if task.state == "input_required":
        raise InvalidState(
            f"task {task.number} needs you: the daemon stopped while a tool ran, and nobody knows whether it took"
            " effect",
            hint=f"aiosctl task resolve {task.number} retry|skip|done",
        )
    raise InvalidState(f"task {task.number} is {task.state}: the daemon is stopping")
