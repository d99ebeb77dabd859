"""The loop of one task: ask `steps.next` what to do, do it, journal it, again. Nothing is decided here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from io import StringIO
from typing import Any, Literal, TypeVar

import anyio
import msgspec

from aiosd.child import ChildDied
from aiosd.errors import (
    AiosError,
    Cancelled,
    DeadlineExceeded,
    InvalidState,
    NoModelFits,
    NotFound,
    PermissionDenied,
)
from aiosd.memory.memory import scope_of
from aiosd.models.backend import Reply, TextDelta, ThinkingDelta, Wait
from aiosd.protocol.sessions import SessionRun
from aiosd.records import (
    ApprovalEvent,
    AuditEntry,
    CallStatus,
    Event,
    Kept,
    MessageEvent,
    Privacy,
    ProgressEvent,
    RouteEvent,
    ScoredMemory,
    Session,
    Source,
    StateEvent,
    Task,
    TaskResult,
    TaskState,
    TextEvent,
    ThinkingEvent,
    Tokens,
    ToolCallEvent,
    ToolResultEvent,
    ToolUse,
    Turn,
    UsageEvent,
)
from aiosd.state import audit, lineage, tasks
from aiosd.state.database import Connection
from aiosd.state.upgrade import LedgerFailed
from aiosd.tasks import context, steps
from aiosd.tasks.hands import Hands
from aiosd.tasks.outcome import keep, outcome
from aiosd.tasks.recollection import ACTING, Acting
from aiosd.tools import policy
from aiosd.tools.registry import Ruling

LOOKED_AT = 20
"""Memories that are looked at for a task."""

RECALLED = 5
"""Memories that it is given."""

TOOL_S = 120.0
"""Seconds one tool call may take."""

REMEMBERED_CHARS = 200
"""Characters of a result that the session's memory of the task keeps."""

logger = logging.getLogger(__name__)

E = TypeVar("E", bound=Event)


class Agent:
    """One task from its journal, empty or not, to its end."""

    def __init__(
        self,
        hands: Hands,
        session: Session,
        system: str | None,
        task: Task,
        params: SessionRun,
        journal: Sequence[Kept],
        turns: Sequence[Turn],
        upto: tuple[int, int],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._hands = hands
        self.session = session
        self._system = system
        self.task = task
        self.params = params
        self._journal = list(journal)
        self._clock = clock
        self._turns, self._upto = turns, upto
        """Of its session, before it."""
        self.result: TaskResult | None = None
        """Once it is completed and that is kept."""
        self._partial = StringIO()
        self._unkept: tuple[Kept, ...] = ()
        self._unaudited: list[AuditEntry] = []
        self._broken_off: list[str] = []
        """What was under way when the task was cancelled."""
        self.priority = task.priority
        self._asking = 0
        """Calls that wait for the user's word."""
        self._repeatable: frozenset[str] = frozenset()
        """Tools whose calls do no harm when made again."""

    @property
    def state(self) -> TaskState:
        """As the journal has it."""
        return next((e.state for e in reversed(self._journal) if isinstance(e, StateEvent)), "queued")

    async def run(self) -> None:
        """Works until the task has an outcome, or needs the user, and keeps that. A bug rises."""
        try:
            with anyio.fail_after(self.params.timeout_s):
                answer = await self._work()
        except TimeoutError:
            await self.end("failed", DeadlineExceeded(f"the task took more than {self.params.timeout_s:g} s"))
        except AiosError as exc:
            await self.end("failed", exc)
        else:
            if answer is not None:
                await self._complete(answer)

    async def resolve(self, call_id: str, action: Literal["retry", "skip", "done"]) -> bool:
        """Keeps what the user says of a call that nobody knows the end of; True if the task can go on.

        Raises InvalidState for a task that does not ask, NotFound for a call that is not in doubt."""
        doubt = self._next()
        if not isinstance(doubt, steps.Doubt):
            raise InvalidState(f"task {self.task.number} asks nothing")
        call = next((c for c in doubt.calls if c.call_id == call_id), None)
        if call is None:
            asked = ", ".join(c.call_id for c in doubt.calls)
            raise NotFound(f"task {self.task.number} has no call {call_id!r} in doubt; it has: {asked}")
        if action == "retry":
            settled: Kept = self._tool_call(call, "pending")
        elif action == "done":
            said = "The user says that it was done; what it gave is not known."
            settled = self._tool_result(call, "completed", said)
        else:
            said = "The user skipped it; whether it took effect is not known."
            settled = self._tool_result(call, "failed", said)
        goes_on = not isinstance(self._next(settled), steps.Doubt)
        await self._record(settled, *([self._new(StateEvent, ahead=1, state="working")] if goes_on else []))
        return goes_on

    def _next(self, *more: Kept) -> steps.Action:
        return steps.next(
            [*self._journal, *more] if more else self._journal,
            max_steps=self.params.max_steps or steps.MAX_STEPS,
            max_total_tokens=self.params.max_total_tokens,
            repeatable=self._repeatable,
        )

    async def _work(self) -> steps.Answer | None:
        states = [e.state for e in self._journal if isinstance(e, StateEvent)]
        if not states or states[-1] != "working":
            working = self._new(StateEvent, state="working")
            if isinstance(self._next(), steps.Recall):
                self._later(working)
            else:
                await self._record(working)
        if any(state != "queued" for state in states):  # a daemon before this one was at it
            self._repeatable = frozenset(
                tool.name
                for tool in await self._hands.registry.list()
                if tool.annotations.get("readOnlyHint") or tool.annotations.get("idempotentHint")
            )
        while True:
            match self._next():
                case steps.Recall():
                    await self._recall()
                case steps.Infer():
                    await self._infer()
                case steps.CallTools(calls):
                    async with anyio.create_task_group() as together:
                        for call in calls:
                            together.start_soon(self._call, call)
                case steps.Doubt(calls):
                    for call in calls:
                        await self._record(self._tool_call(call, "unknown"))
                    await self._record(self._new(StateEvent, state="input_required"))
                    return None
                case steps.Answer() as answer:
                    return answer

    async def _recall(self) -> None:
        """A memory that cannot be asked now is no reason to leave the task undone; the journal says so."""
        detail = ""
        found: tuple[ScoredMemory, ...] = ()
        try:
            found = await self._hands.memory.recall(scope_of(self.session), self.params.task, n=LOOKED_AT)
        except (ChildDied, DeadlineExceeded) as exc:
            logger.warning("a task goes on without memories", extra={"task_id": self.task.task_id})
            detail = f"without memories: {exc}"
        memories = context.chosen(found, RECALLED)
        await self._record(
            self._new(ProgressEvent, stage="recalled", detail=detail, memories=memories, upto=self._upto)
        )

    async def _infer(self) -> None:
        hands, params = self._hands, self.params
        secrets = hands.registry.audit.secrets
        tools = await hands.registry.offered(self.session, params.tools)
        digest = await hands.told(tools)
        agent = hands.agents.get(self.session.agent or "")
        tier = params.tier or (agent.tier if agent else "balanced")
        request = msgspec.structs.replace(
            context.request(self.session, self._system, params, self._turns, self._journal, tools, tier),
            task_id=self.task.task_id,
            priority=self.priority,
        )
        self._partial, spoken, thinking = StringIO(), 0, 0
        written, thought = secrets.stream(), secrets.stream()
        began_at, first_at = self._clock(), None

        async def on_delta(delta: TextDelta | ThinkingDelta) -> None:
            nonlocal spoken, thinking, first_at
            first_at = first_at or self._clock()
            if isinstance(delta, TextDelta):
                text = written.feed(delta.text)
                hands.broker.publish(self._new(TextEvent, offset=spoken, text=text))
                spoken += self._partial.write(text)
            else:
                text = thought.feed(delta.text)
                hands.broker.publish(self._new(ThinkingEvent, offset=thinking, text=text))
                thinking += len(text)

        async def on_wait(wait: Wait) -> None:
            nonlocal spoken, thinking, first_at, written, thought
            self._partial, spoken, thinking, first_at = (
                StringIO(),
                0,
                0,
                None,
            )  # a reply that gave its slot away begins anew
            written, thought = secrets.stream(), secrets.stream()
            await self._record(self._new(ProgressEvent, **msgspec.structs.asdict(wait)))

        owed = 0.0

        async def reserve(usd: float) -> None:
            nonlocal owed
            await hands.budget.hold(self.session, self.task.task_id, params.max_usd, usd)
            owed = usd

        try:
            reply = await hands.pool.reply(request, on_delta=on_delta, on_wait=on_wait, reserve=reserve)
            await self._record_reply(secrets.masked(reply), began_at, first_at, digest)
            owed = 0.0
        except anyio.get_cancelled_exc_class():
            self._broken_off.append("a model's reply")
            raise
        except NoModelFits as exc:
            owed = exc.data.get("cost_usd", 0.0)  # of replies that broke off
            raise
        finally:
            if owed:  # of one that was cancelled, the most that its server can ask for
                await self._record(self._new(UsageEvent, usage=Tokens(), cost_usd=owed))
            with anyio.CancelScope(shield=True):  # memory only, but for a lock that is never held for long
                await hands.budget.release(self.task.task_id)

    async def _record_reply(
        self, reply: Reply, began_at: datetime, first_at: datetime | None, digest: str
    ) -> None:
        events: tuple[Kept, ...] = (
            self._new(
                RouteEvent, decision=reply.decision, began_at=began_at, first_token_at=first_at, tools=digest
            ),
            self._new(
                MessageEvent,
                ahead=1,
                text=reply.text,
                thinking=reply.thinking,
                tool_calls=reply.tool_calls,
                stop_reason=reply.stop_reason,
                generated=reply.generated,
                abstained=reply.abstained,
                backend=reply.backend,
                model=reply.model,
                sources=reply.sources,
            ),
            self._new(UsageEvent, ahead=2, usage=reply.usage, cost_usd=reply.cost_usd),
        )
        # What was spent must be on the books before its hold is let go of; what was free can wait for the end, or for the
        # first call that it asks for, which is kept before the tool begins.
        if reply.cost_usd == 0 and isinstance(self._next(*events), steps.Answer | steps.CallTools):
            self._later(*events)
        else:
            await self._record(*events)

    async def _call(self, call: ToolUse) -> None:
        """A tool's failure is told to the model, which may do better."""
        acting = Acting(self.task.task_id)
        ACTING.set(acting)  # each call is a task of its own, so it is set for this one alone

        async def keep(entry: AuditEntry) -> None:
            self._unaudited.append(entry)  # for the commits of the journal, which say the same
            if entry.kind == "call":
                await self._record(self._tool_call(call, "in_progress"))

        replies = sum(isinstance(event, MessageEvent) for event in self._journal)
        try:
            if self.params.tools is not None and call.name not in self.params.tools:
                raise InvalidState(f"the tool {call.name} was not offered")  # a model may name any
            approved = await self._approved(call)
            result = await self._hands.registry.call(
                self.session,
                call.name,
                call.arguments,
                timeout_s=TOOL_S,
                by="model",
                task_id=self.task.task_id,
                call=f"{replies} {call.call_id}",
                approved=approved,
                keep=keep,
            )
            failed, text = result.is_error, "\n".join(block.text for block in result.content)
        except anyio.get_cancelled_exc_class():
            self._broken_off.append(f"the tool `{call.name}`")
            raise
        except AiosError as exc:
            failed, text = True, self._hands.registry.audit.secrets.mask(str(exc))
        result_event = self._tool_result(call, "failed" if failed else "completed", text)
        sources = tuple(Source(kind="memory", ref=id, text="") for id in acting.memories)
        await self._record(msgspec.structs.replace(result_event, sources=sources))

    @property
    def privacy(self) -> Privacy:
        """Of what its models have written so far."""
        return context.privacy(self.session, self._turns, self._journal)

    async def _approved(self, call: ToolUse) -> Ruling | None:
        """What the user said yes to, now or once and for all; None where nothing asks. Raises PermissionDenied for a
        no, NotFound."""
        hands = self._hands
        ruling = await hands.registry.ruling(self.session, call.name, call.arguments)
        if ruling.verdict.decision != "ask":
            return None
        always = await hands.approvals.always(self.session)
        verdict = policy.settle(ruling.verdict, ruling.tool, ruling.about, always, ruling.place)
        if verdict.decision == "deny":
            raise PermissionDenied(f"`{call.name}` was not called: {verdict.why}")
        if verdict.decision == "ask":
            word = steps.approval(self._journal, call.call_id)
            if word is None or word.decision is None:
                word = await self._word(call, ruling, asked_before=word is not None)
            await hands.approvals.settled(word, self.session)
        return ruling

    async def _word(self, call: ToolUse, ruling: Ruling, *, asked_before: bool) -> ApprovalEvent:
        """Asks the user. Nobody is asked where nobody watches, unless a daemon before this one was asking."""
        fields: dict[str, Any] = {
            "call_id": call.call_id,
            "name": call.name,
            "arguments": call.arguments,
            "why": ruling.verdict.why,
            "rule": policy.rule_for(ruling.tool, ruling.about),
        }
        watched = asked_before or self._hands.broker.is_watched(self.task.task_id)
        if self.params.approve == "never" or not watched:
            await self._record(no := self._new(ApprovalEvent, **fields, decision="reject_once", by="nobody"))
            return no
        self._asking += 1
        try:
            # The request comes last: a watcher that ends with the state knows by it that the task only waits.
            waits = [] if self._asking > 1 else [self._new(StateEvent, state="input_required")]
            request = self._new(ApprovalEvent, ahead=len(waits), **fields)
            await self._record(*waits, request)
            decision = await self._hands.approvals.word(request, self.session)
        finally:
            self._asking -= 1
        word = self._new(
            ApprovalEvent,
            **fields,
            decision=decision or "reject_once",
            by="user" if decision else "timeout",
        )
        await self._record(word, *([] if self._asking else [self._new(StateEvent, ahead=1, state="working")]))
        return word

    def _tool_call(self, call: ToolUse, status: CallStatus) -> ToolCallEvent:
        return self._new(
            ToolCallEvent, call_id=call.call_id, name=call.name, arguments=call.arguments, status=status
        )

    def _tool_result(self, call: ToolUse, status: CallStatus, text: str) -> ToolResultEvent:
        return self._new(ToolResultEvent, call_id=call.call_id, name=call.name, status=status, text=text)

    async def _complete(self, answer: steps.Answer) -> None:
        message = answer.message
        result = outcome(
            self.task,
            self.params,
            self._journal,
            "completed",
            text=message.text,
            stop_reason=answer.stopped or message.stop_reason,
            message=message,
        )
        if self.params.schema is not None and message.text and not message.tool_calls:
            result = msgspec.structs.replace(result, result=msgspec.json.decode(message.text))
        now = self._clock()
        privacy = context.privacy(self.session, self._turns, self._journal)
        said = (self.params.task, message.text)
        given = context.given(self._journal)
        quoted = {source.ref for source in result.sources if source.kind == "memory"}
        rests_on = given if result.generated else quoted | context.by_tools(self._journal)
        memory = self._hands.memory.record(
            self.session,
            f"Task: {self.params.task}\nResult: {message.text[:REMEMBERED_CHARS]}",
            kind="task",
            source=f"task:{self.task.task_id}",
            privacy=privacy,
            created_at=now,
            trust=context.trust(self.params, self._journal, rests_on),
        )

        if answer.stopped:
            self._later(self._new(ProgressEvent, stage="stopped", detail=answer.why))
        forgotten = await self._record(
            self._new(StateEvent, state="completed"),
            also=lambda c: keep(c, result, memory, rests_on, said, self._journal),
        )
        self.result = result  # who waits is told what the ledger may have forgotten already
        if forgotten:
            await self._blanked()
            return
        await self._hands.memory.index([memory])

    async def _blanked(self) -> None:
        """What was forgotten while it ran is in no file any more."""
        await self._hands.registry.clear_outputs([self.session.session_id])
        await self._hands.database.scrub()

    async def cancel(self, below: Sequence[Task]) -> None:
        """Keeps that the task was cancelled, with a receipt of what ended with it."""
        ended = [*self._broken_off, *(f"task {task.number}" for task in below)]
        with_it = f", and with it {', '.join(ended)}" if ended else ""
        await self.end("cancelled", Cancelled(f"the task was cancelled{with_it}", ended=ended))

    async def end(self, state: TaskState, exc: AiosError) -> None:
        """Keeps that the task failed or was cancelled, with what there was."""
        message = next((e for e in reversed(self._journal) if isinstance(e, MessageEvent)), None)
        text = self._partial.getvalue() or (message.text if message else "")
        result = outcome(
            self.task, self.params, self._journal, state, text=text, stop_reason="cancelled", message=message
        )
        wire = exc.to_wire()
        wire["data"] = wire.get("data", {}) | {"result": msgspec.to_builtins(result)}
        given = context.given(self._journal)

        def keep(c: Connection) -> bool:
            tasks.finish(c, self.task.task_id, result=None, error=wire)
            return lineage.catch_up(c, self.task.task_id, given, given)

        if await self._record(self._new(StateEvent, state=state), also=keep):
            await self._blanked()

    def _new(self, cls: type[E], *, ahead: int = 0, **fields: Any) -> E:
        """The next event, or the one `ahead` of it in the same commit. A delta carries the last kept number."""
        kept = self._journal[-1].seq if self._journal else 0
        seq = kept if cls in (TextEvent, ThinkingEvent) else kept + 1 + ahead
        return cls(task_id=self.task.task_id, seq=seq, at=self._clock(), **fields)

    def _later(self, *events: Kept) -> None:
        """For events that nothing rests on before the next ones are kept: both go in one commit."""
        self._journal += events
        self._unkept += events

    async def _record(self, *events: Kept, also: Callable[[Connection], bool | None] | None = None) -> bool:
        """On the disk first, then in the journal and told to watchers; what `also` gave."""

        def write(c: Connection) -> bool:
            tasks.append(c, *events)
            audit.append(c, *entries)
            return bool(also and also(c))

        self._journal += events  # numbered from here on, as calls run side by side
        events, self._unkept = (*self._unkept, *events), ()
        entries, self._unaudited = self._unaudited, []
        try:
            with anyio.CancelScope(shield=True):  # a commit under way must be told of; it lasts milliseconds
                given = await self._hands.database.write(write)
        except LedgerFailed:  # the next commit has them too: what is numbered after them must not stand alone
            self._unkept, self._unaudited = (*events, *self._unkept), [*entries, *self._unaudited]
            raise
        self._hands.broker.publish(*events)
        return given
