"""The model backends of the daemon: who is asked, in which order, and what follows a failure."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import anyio.to_thread
import msgspec

from aiosd import config as configs
from aiosd.config import EXTRACTIVE, TIERS
from aiosd.errors import BudgetExhausted, NoModelFits
from aiosd.models import ollama, router
from aiosd.models.answer import Form
from aiosd.models.backend import Backend, BackendFailed, Embedded, Embedder, ModelRequest, Reply
from aiosd.models.discovery import Discovery
from aiosd.models.exchange import Asked, Bill, Got, OnDelta, OnWait, Reserve, ask
from aiosd.models.gguf import open_gguf
from aiosd.models.member import Member
from aiosd.models.openai import OpenAI
from aiosd.models.router import Attempt, Plan, Standing
from aiosd.records import BackendInfo, Candidate, Decision, Tier

logger = logging.getLogger(__name__)

CLOSE_S = 2.0
"""For all backends to let go of their connections."""


class Pool:
    """Made by open_pool."""

    def __init__(
        self, members: Mapping[str, Member], discovery: Discovery | None, clock: Callable[[], float]
    ) -> None:
        self._fixed = dict(members)
        self._discovery = discovery
        self._found: dict[str, Member] = {}
        self._clock = clock

    async def reply(
        self,
        request: ModelRequest,
        *,
        on_delta: OnDelta | None = None,
        on_wait: OnWait | None = None,
        reserve: Reserve | None = None,
    ) -> Reply:
        """The reply of the first backend, in the order of the plan, that gives one.

        on_delta is given the text and the thinking as they come; with a schema the text only whole, once it fits.
        on_wait is told what is waited for. reserve is given, before each paid dispatch, the most in dollars that the
        request can have cost after it, earlier dispatches included; BudgetExhausted from it sends that one nothing. `cost_usd` is what all attempts cost,
        with the most for those that broke off.
        Raises NoModelFits, also when a backend breaks off after something was passed on: two models' replies are
        never joined, and `data` has the text so far. NotFound, InvalidParams; BudgetExhausted where no backend
        that costs less answered.
        """
        started = self._clock()
        form = None
        if request.schema is not None:
            form = await anyio.to_thread.run_sync(Form, request.schema)  # it imports jsonschema
        bill = Bill()
        asked = Asked(
            request=request, form=form, on_delta=on_delta, on_wait=on_wait, reserve=reserve, bill=bill
        )
        members = await self._members()
        plan = router.plan(request, self._standings(members))
        failed: dict[str, Candidate] = {}
        too_dear: BudgetExhausted | None = None
        for place, attempt in enumerate(plan.attempts):
            member = members[attempt.name]
            try:
                got = await ask(member, asked, last=place + 1 == len(plan.attempts), clock=self._clock)
            except BackendFailed as exc:
                logger.info("backend failed", extra={"backend": member.name, "reason": str(exc)})
                member.failed(exc, self._clock())
                if self._discovery is not None:
                    self._discovery.forget()
                failed[member.name] = member.candidate(str(exc))
            except BudgetExhausted as exc:
                too_dear = exc
                failed[member.name] = member.candidate(str(exc))
            else:
                decision = self._decision(request, plan, attempt, members, failed, started)
                decision = msgspec.structs.replace(decision, truncated=got.done.truncated)
                return _reply(member, got, bill, decision)
        if too_dear is not None:
            raise too_dear
        raise router.no_model_fits(request, (*plan.rejected, *failed.values()), cost_usd=bill.usd)

    async def route(self, request: ModelRequest) -> Decision:
        """Which backend would be asked now and why; nothing is sent to a model. Raises NoModelFits, NotFound."""
        started = self._clock()
        members = await self._members()
        plan = router.plan(request, self._standings(members))
        return self._decision(request, plan, plan.attempts[0], members, {}, started)

    async def embed(self, texts: Sequence[str]) -> Embedded:
        """By the first local backend that can, whatever its tier. Raises NoModelFits."""
        failed = []
        for member in (await self._members()).values():
            backend = member.backend
            if not backend.local or not isinstance(backend, Embedder):
                continue
            try:
                return await backend.embed(texts)
            except BackendFailed as exc:
                failed.append(f"`{member.name}`: {exc}")
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
            reasons[member.name] = await member.backend.probe() or member.down(self._clock())

        async with anyio.create_task_group() as probes:
            for member in members.values():
                probes.start_soon(probe, member)
        infos = [member.info(reasons[member.name]) for member in members.values()]
        if self._discovery is not None and (missing := self._discovery.missing) is not None:
            infos.insert(0, _absent(missing, self._discovery.url))
        return tuple(infos)

    async def aclose(self) -> None:
        """Lets go of every connection, within CLOSE_S."""
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
        self._found = {
            name: self._found.get(name) or Member(name, backend, ranks)
            for name, (backend, ranks) in self._discovery.found.items()
        }
        for name, (_, ranks) in self._discovery.found.items():
            self._found[name].ranks = ranks
        # What only quotes serves where no model is there, and never after one that failed.
        self._fixed[EXTRACTIVE].ranks = {} if self._found else dict.fromkeys(TIERS, 1)
        return self._found | self._fixed

    def _standings(self, members: Mapping[str, Member]) -> list[Standing]:
        now = self._clock()
        standings = [m.standing(now) for m in members.values()]
        if self._discovery is not None and (missing := self._discovery.missing) is not None:
            standings.insert(0, missing)
        return standings

    def _decision(
        self,
        request: ModelRequest,
        plan: Plan,
        attempt: Attempt,
        members: Mapping[str, Member],
        failed: Mapping[str, Candidate],
        started: float,
    ) -> Decision:
        after = [a.name for a in plan.attempts if a.name not in failed and a != attempt]
        reason = attempt.reason
        if request.withheld and not members[attempt.name].backend.local:
            reason += f"; private texts withheld: {request.withheld}"
        return Decision(
            tier=request.tier,
            chosen=attempt.name,
            reason=reason,
            candidates=(
                *failed.values(),
                members[attempt.name].candidate(None),
                *(members[name].candidate("not needed") for name in after),
                *plan.rejected,
            ),
            took_s=self._clock() - started,
        )


@asynccontextmanager
async def open_pool(
    config: configs.Config,
    environ: Mapping[str, str],
    extra: Mapping[str, Backend] = {},
    *,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[Pool]:
    """The backends of the config and `extra` ones, which the config cannot describe; without any, what this
    machine has. Nothing is asked or imported before the first request. Raises ConfigError.

    Keys are looked up in `environ` under the names that the config gives, and under no other.
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
        members = {name: Member(name, backend, _ranks(name, tiers)) for name, backend in backends.items()}
        pool = Pool(members, Discovery(environ, clock) if bare else None, clock)
        try:
            yield pool
        finally:
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


def _reply(member: Member, got: Got, bill: Bill, decision: Decision) -> Reply:
    done = got.done
    return Reply(
        text=got.text,
        thinking=got.thinking,
        tool_calls=got.calls,
        stop_reason=done.stop_reason,
        generated=done.generated,
        abstained=done.abstained,
        sources=done.sources,
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
        slots=1,
        in_flight=0,
        price_in=0.0,
        price_out=0.0,
    )
