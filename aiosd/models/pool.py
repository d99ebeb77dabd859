"""The model backends of the daemon: who is asked, in which order, and what follows a failure."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import TaskGroup

from aiosd import config as configs
from aiosd import tally
from aiosd.config import EXTRACTIVE, TIERS
from aiosd.errors import BudgetExhausted, NoModelFits
from aiosd.models import ollama, router
from aiosd.models.answer import Form
from aiosd.models.backend import Backend, BackendFailed, Embedded, Embedder, ModelRequest, Reply, Wait
from aiosd.models.discovery import Discovery
from aiosd.models.exchange import Asked, Bill, Got, OnDelta, OnWait, Reserve, ask
from aiosd.models.gguf import open_gguf
from aiosd.models.learning import Learning, open_learning
from aiosd.models.member import Member, Patience, Size, size
from aiosd.models.openai import OpenAI
from aiosd.models.queue import MOST_YIELDS
from aiosd.models.router import Choice, Standing, way_up
from aiosd.models.slots import Moved, Seat, Slots
from aiosd.records import BackendInfo, Candidate, Decision, Priority, Source, Tier
from aiosd.state.database import Database

logger = logging.getLogger(__name__)

MOST_PAUSE_S = 15.0
"""That a request waits in all for backends that are busy and said for how long, where nobody else could serve it."""
CLOSE_S = 2.0
"""For all backends to let go of their connections, and for what was learnt to be written down."""
SAVE_S = 300.0
"""How old what is written down of the backends may become while they work."""


class Pool:
    """Made by open_pool."""

    def __init__(
        self,
        members: Mapping[str, Member],
        discovery: Discovery | None,
        clock: Callable[[], float],
        tasks: TaskGroup,
        learning: Learning | None,
    ) -> None:
        self._fixed = dict(members)
        self._discovery = discovery
        self._found: dict[str, Member] = {}
        self._clock = clock
        self._tasks = tasks
        self._learning = learning
        self._saved_s = clock()
        self._slots = Slots(clock, tasks)
        self._users = 0
        self._unused: anyio.Event | None = None
        """Made by who waits for it."""
        for member in members.values():
            self._slots.add(member)

    async def reply(
        self,
        request: ModelRequest,
        *,
        on_delta: OnDelta | None = None,
        on_wait: OnWait | None = None,
        reserve: Reserve | None = None,
    ) -> Reply:
        """The reply of the backend that router.choose names; where it fails, of the next one chosen.

        on_delta is given the text and the thinking as they come; with a schema the text only whole, once it fits.
        on_wait is told what is waited for: a slot, a load, another backend. reserve is given, before each paid dispatch,
        the most in dollars that the request can have cost after it, earlier dispatches included; BudgetExhausted from it
        sends that one nothing. `cost_usd` is what all attempts cost, with the most for those that broke off.
        Raises NoModelFits, also when a backend breaks off after something was passed on: two models' replies are
        never joined, and `data` has the text so far. NotFound, InvalidParams; BudgetExhausted where no backend
        that costs less answered.
        """
        began = self._clock()
        self._users += 1
        try:
            reply = await self._reply(request, on_delta=on_delta, on_wait=on_wait, reserve=reserve)
        finally:
            self._users -= 1
            if not self._users and self._unused is not None:
                self._unused.set()
        tally.REPLIES.add(self._clock() - began, reply.backend)
        tally.WAITS.add(reply.decision.sent_s or 0.0, reply.backend)
        tally.TOKENS.add(reply.backend, "input", by=reply.usage.input_tokens)
        tally.TOKENS.add(reply.backend, "output", by=reply.usage.output_tokens)
        tally.COST.add(reply.backend, by=reply.cost_usd)
        return reply

    async def _reply(
        self,
        request: ModelRequest,
        *,
        on_delta: OnDelta | None,
        on_wait: OnWait | None,
        reserve: Reserve | None,
    ) -> Reply:
        started = self._clock()
        form = None
        if request.schema is not None:
            form = await anyio.to_thread.run_sync(Form, request.schema)  # it imports jsonschema
        bill = Bill()
        sized = size(request)
        asked = Asked(
            request=request,
            size=sized,
            form=form,
            on_delta=on_delta,
            on_wait=on_wait,
            reserve=reserve,
            bill=bill,
        )
        members = await self._members()
        failed: dict[str, Candidate] = {}
        too_dear: BudgetExhausted | None = None
        yielded = 0
        paused_s = 0.0
        while True:
            await self._look(request, members)
            try:
                choice = self._choose(sized, members, failed, started)
            except NoModelFits as exc:
                busy = self._busy(sized, members)
                pause_s = min(busy.values(), default=math.inf)
                left_s = anyio.current_effective_deadline() - anyio.current_time()
                if too_dear or paused_s + pause_s > MOST_PAUSE_S or pause_s >= left_s:
                    exc.data["cost_usd"] = bill.usd
                    raise too_dear or exc from None
                if on_wait is not None:
                    detail = (
                        f"{', '.join(f'`{name}`' for name in busy)}: busy, asked again in {pause_s:.0f} s"
                    )
                    await on_wait(Wait(stage="retrying", detail=detail, eta_s=pause_s))
                await anyio.sleep(pause_s)
                paused_s += pause_s
                failed = {name: why for name, why in failed.items() if name not in busy}
                continue
            to = choice.chosen
            try:
                async with self._slots.slot(asked, choice, started, yields=yielded < MOST_YIELDS) as seat:
                    to = seat.standing
                    member = members[to.name]
                    patience = self._patience(request, member, seat, choice)
                    sent = self._clock()
                    try:
                        with seat.work:
                            got = await ask(member, asked, patience=patience, clock=self._clock)
                    except BackendFailed as exc:
                        member.failed(exc, self._clock())  # before its slot is given to somebody else
                        raise
                if seat.work.cancelled_caught:
                    yielded += 1
                    if on_wait is not None:
                        await on_wait(
                            Wait(stage="queued", detail=f"`{to.name}` serves an interactive request first")
                        )
                    continue
            except Moved:
                continue
            except BackendFailed as exc:
                tally.FAILURES.add(to.name)
                logger.info("backend failed", extra={"backend": to.name, "reason": str(exc)})
                if self._discovery is not None:
                    self._discovery.forget()
                failed[to.name] = to.candidate(str(exc))
                if on_wait is not None:
                    await on_wait(Wait(stage="retrying", detail=f"`{to.name}` failed: {exc}"))
            except BudgetExhausted as exc:
                too_dear = exc
                failed[to.name] = to.candidate(str(exc))
            else:
                self._keep()
                decision = self._decision(request, choice, members, failed, started, seat)
                done = got.done
                decision = msgspec.structs.replace(
                    decision, sent_s=sent - started, dropped=done.dropped, truncated=done.truncated
                )
                return _replied(member, got, bill, decision)

    def _busy(self, asked: Size, members: Mapping[str, Member]) -> dict[str, float]:
        """Of those that could serve it and asked for a pause: how long each still lasts."""
        now = self._clock()
        found = {}
        for member in members.values():
            rest_s = member.breaker.retry_in_s(now) if member.breaker.busy else None
            if rest_s is not None:
                up = msgspec.structs.replace(member.standing(now, asked, 0.0, None), down=None)
                if router.unfit(asked.request, up) is None:
                    found[member.name] = rest_s
        return found

    def prioritize(self, task_id: str, priority: Priority) -> None:
        """What the task has waiting for a slot waits with this priority from now on."""
        self._slots.prioritize(task_id, priority)

    async def route(self, request: ModelRequest) -> Decision:
        """Which backend would serve this now, and why; no model is sent anything. Raises NoModelFits, NotFound,
        InvalidParams for a schema that is none."""
        if request.schema is not None:
            await anyio.to_thread.run_sync(Form, request.schema)
        members = await self._members()
        await self._look(request, members)
        choice = self._choose(size(request), members, {}, self._clock())
        return self._decision(request, choice, members, {}, None, None)

    async def embed(self, texts: Sequence[str], *, by: str | None = None) -> Embedded:
        """By the first local backend that can, whatever its tier, or by this one. Raises NoModelFits."""
        failed = []
        members = (await self._members()).values()
        # What was made for vectors first: some servers make them with any model, and worse ones.
        for member in sorted(members, key=lambda m: not getattr(m.backend, "embeds", False)):
            backend = member.backend
            if not backend.local or not isinstance(backend, Embedder) or by not in (None, member.name):
                continue
            why = member.breaker.down(self._clock())
            if why is None:
                try:
                    return await backend.embed(texts)
                except BackendFailed as exc:
                    member.failed(exc, self._clock())
                    why = str(exc)
            failed.append(f"`{member.name}`: {why}")
        raise NoModelFits(
            f"no local backend makes vectors: {'; '.join(failed) or 'there is none'}",
            hint="aiosctl model pull all-minilm",
        )

    async def names(self) -> tuple[str, ...]:
        """Every backend, without asking how it stands."""
        return tuple(await self._members())

    async def backends(self) -> tuple[BackendInfo, ...]:
        """Every backend as it stands now; each is probed, all at once."""
        members = await self._members()
        reasons: dict[str, str | None] = {}

        async def probe(member: Member) -> None:
            reasons[member.name] = await member.backend.probe() or member.breaker.down(self._clock())
            if reasons[member.name] is None and member.due(self._clock()):
                await member.look(self._clock())

        async with anyio.create_task_group() as probes:
            for member in members.values():
                probes.start_soon(probe, member)
        now = self._clock()
        infos = []
        for member in members.values():
            running, waiting = self._slots.counts(member.name)
            infos.append(member.info(reasons[member.name], now, in_flight=running, queued=waiting))
        if self._discovery is not None and (missing := self._discovery.missing) is not None:
            infos.insert(0, _absent(missing, self._discovery.url))
        return tuple(infos)

    def queues(self) -> dict[str, tuple[int, int]]:
        """By backend: requests at work, and requests that wait for a slot."""
        return {name: self._slots.counts(name) for name in {**self._fixed, **self._found}}

    async def idle(self) -> None:
        """Returns once no reply is on its way."""
        while self._users:
            self._unused = anyio.Event()
            await self._unused.wait()

    async def save(self) -> None:
        """Writes down what was learnt of the backends."""
        if self._learning is not None:
            members = [*self._fixed.values(), *self._found.values()]
            await self._learning.save([m for m in members if m.learnt.calls or m.learnt.loads])

    async def aclose(self) -> None:
        """Writes down what was learnt, and lets go of every connection, each within CLOSE_S."""
        with anyio.move_on_after(CLOSE_S, shield=True):
            await self.save()
        with anyio.move_on_after(CLOSE_S, shield=True):
            async with anyio.create_task_group() as closing:
                for member in self._fixed.values():
                    closing.start_soon(member.backend.aclose)
                if self._discovery is not None:
                    closing.start_soon(self._discovery.aclose)

    async def _members(self) -> dict[str, Member]:
        """The backends there are now, by name."""
        if self._discovery is None:
            return self._fixed
        await self._discovery.look()
        found = self._discovery.found
        for name, (backend, ranks) in found.items():
            if name not in self._found:
                learnt = self._learning.of(name, backend.model) if self._learning else None
                self._found[name] = Member(name, backend, ranks, learnt)
                self._slots.add(self._found[name])
            self._found[name].ranks = ranks
        # What only quotes serves where no model is there, and never after one that failed.
        self._fixed[EXTRACTIVE].ranks = {} if self._discovery.missing is None else dict.fromkeys(TIERS, 1)
        return {name: self._found[name] for name in found} | self._fixed

    async def _look(self, request: ModelRequest, members: Mapping[str, Member]) -> None:
        """Asks those that could serve whether their models are loaded, where that is not known."""
        now = self._clock()
        due = [
            m
            for m in members.values()
            if m.due(now)
            and (request.tier in m.ranks or m.name == request.backend)
            and not m.breaker.down(now)
        ]
        if not due:
            return
        async with anyio.create_task_group() as looks:
            for member in due:
                looks.start_soon(member.look, now)

    def _choose(
        self, asked: Size, members: Mapping[str, Member], failed: Mapping[str, Candidate], arrived_s: float
    ) -> Choice:
        now = self._clock()
        request = asked.request
        stays = router.must_stay(request)
        standings = []
        for member in members.values():
            if not member.ranks and member.name in self._found and request.backend != member.name:
                continue  # found, and good for vectors alone: nobody expects it to write
            wait_s = self._slots.wait_s(now, member, asked, arrived_s, stays=stays)
            tried = failed[member.name].rejected if member.name in failed else None
            standings.append(member.standing(now, asked, wait_s, tried))
        if self._discovery is not None and (missing := self._discovery.missing) is not None:
            standings.insert(0, missing)
        left_s = None
        if request.latency_budget_ms is not None:
            left_s = arrived_s + request.latency_budget_ms / 1000 - now
        return router.choose(request, standings, left_s)

    def _patience(self, request: ModelRequest, member: Member, seat: Seat, choice: Choice) -> Patience | None:
        """None where nobody else could be asked: waiting is all that is left. What only quotes steps in for a model
        where a budget was given, and then when that is over."""
        others = [s for s in (choice.chosen, *choice.others) if s.name != member.name]
        if any(s.kind != router.QUOTING for s in others):
            return member.patience(self._clock(), seat.standing.predicted, request)
        if others and request.latency_budget_ms is not None:
            return Patience(request.latency_budget_ms / 1000, of_budget=True)
        return None

    def _decision(
        self,
        request: ModelRequest,
        choice: Choice,
        members: Mapping[str, Member],
        failed: Mapping[str, Candidate],
        started: float | None,
        seat: Seat | None,
    ) -> Decision:
        served, reason = choice.chosen, choice.reason
        if seat is not None and seat.left:
            served = seat.standing
            reason = router.priced(served, seat.left)
        local = members[served.name].backend.local  # it may have been found out only now
        if request.withheld and not local:
            reason += f"; private texts withheld: {request.withheld}"
        others = (choice.chosen, *choice.others)
        return Decision(
            tier=request.tier,
            chosen=served.name,
            reason=reason,
            candidates=(
                *failed.values(),
                msgspec.structs.replace(served.candidate(None), local=local),
                *(s.candidate("not needed") for s in others if s.name != served.name),
                *(c for c in choice.rejected if c.backend not in failed),
            ),
            took_s=None if started is None else self._clock() - started,
        )

    def _keep(self) -> None:
        """Now and then what was learnt is written down; at the end it is in any case."""
        now = self._clock()
        if self._learning is not None and now - self._saved_s >= SAVE_S:
            self._saved_s = now
            self._tasks.start_soon(self.save)


@asynccontextmanager
async def open_pool(
    config: configs.Config,
    environ: Mapping[str, str],
    extra: Mapping[str, Backend] = {},
    *,
    database: Database | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[Pool]:
    """The backends of the config and `extra` ones, which the config cannot describe; without any, what this
    machine has. Nothing is asked or imported before the first request. Raises ConfigError.

    Keys are looked up in `environ` under the names that the config gives, and under no other. What is learnt of
    the backends is kept in `database`, if there is one.
    """
    async with AsyncExitStack() as stack:
        sections, tiers = config.models.backends, config.models.tiers
        backends: dict[str, Backend] = {
            name: await _backend(name, s, environ, stack) for name, s in sections.items()
        }
        added = {name: backend for name, backend in extra.items() if name != EXTRACTIVE}
        bare = not backends and not added and not tiers
        backends |= added
        if tiers:
            tiers = {tier: (*tiers.get(tier, ()), *added) for tier in TIERS}
        else:
            tiers = {tier: tuple(backends) for tier in TIERS}
        if EXTRACTIVE not in backends:
            quoting = configs.Backend(kind="extractive")
            backends[EXTRACTIVE] = extra.get(EXTRACTIVE) or await _backend(
                EXTRACTIVE, quoting, environ, stack
            )
        learning = None if database is None else await open_learning(database)
        members = {
            name: Member(
                name, backend, _ranks(name, tiers), learning.of(name, backend.model) if learning else None
            )
            for name, backend in backends.items()
        }
        discovery = Discovery(environ, clock) if bare else None
        # Entered last, so that loads end before what they load.
        tasks = await stack.enter_async_context(anyio.create_task_group())
        pool = Pool(members, discovery, clock, tasks, learning)
        try:
            yield pool
        finally:
            tasks.cancel_scope.cancel()
            await pool.aclose()


async def _backend(
    name: str, section: configs.Backend, environ: Mapping[str, str], stack: AsyncExitStack
) -> Backend:
    """`stack` ends what must be ended."""
    match section.kind:
        case "ollama":
            return ollama.Ollama(name, section, ollama.server(name, section, environ))
        case "openai":
            return OpenAI(name, section, environ)
        case "gguf":
            return await stack.enter_async_context(open_gguf(name, section))
        case "extractive":
            from aiosd.models.extractive.backend import (
                Extractive,  # late: its word lists are for those who need it
            )

            return Extractive()


def _ranks(name: str, tiers: Mapping[Tier, tuple[str, ...]]) -> dict[Tier, int]:
    return {tier: names.index(name) for tier, names in tiers.items() if name in names}


def _replied(member: Member, got: Got, bill: Bill, decision: Decision) -> Reply:
    done = got.done
    return Reply(
        text=got.text,
        thinking=got.thinking,
        tool_calls=got.calls,
        stop_reason=done.stop_reason,
        generated=done.generated,
        abstained=done.abstained,
        sources=done.sources or tuple(Source(kind="memory", ref=id, text="") for id in done.sent),
        usage=got.usage,
        cost_usd=bill.usd,
        backend=member.name,
        model=member.backend.model,
        decision=decision,
    )


def _absent(missing: Standing, url: str) -> BackendInfo:
    return BackendInfo(
        name=missing.name,
        kind=missing.kind,
        model=missing.model,
        url=url,
        local=missing.local,
        tiers=TIERS,
        state="down",
        reason=missing.down,
        hint=way_up(missing.down or ""),
        slots=1,
        in_flight=0,
        price_in=0.0,
        price_out=0.0,
    )
