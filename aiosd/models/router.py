"""Which backend answers a request: filter, predict, choose. Pure: the pool and contrib/bench/simulation.py act on it.

Text that must stay is decided here, and once more by the pool before each dispatch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import get_args

import msgspec

from aiosd.errors import NoModelFits, NotFound
from aiosd.models.backend import ModelRequest
from aiosd.models.estimator import Prediction
from aiosd.records import Candidate, Tier

QUOTING = "extractive"
"""The kind and the model of the backend that only quotes."""
MARGIN = 1.6
"""A prediction must fit into the budget this many times: half of all answers take longer than predicted."""
MOST_WAIT_S = 10.0
"""In the queue of the local backends, before a request without a budget may cost money."""
WAYS_OUT = (
    "Ways out: install Ollama (https://ollama.com/download) and pull a model, "
    "or name a server with its key under [models.backends] in config.toml"
)
TOO_SMALL = "its window is too small for all of this"
LIST = "aiosctl model list"
PULL = "aiosctl model pull llama3.2"
"""2 GB, takes tools, runs without a GPU."""
SETUP = "aiosctl model setup"
"""The hint where no model is there at all: it says what this machine lacks."""

_COMMAND = re.compile(r": ((?:aiosctl|ollama|\S+ -m pip) [^;]+)$")

TIERS: tuple[Tier, ...] = get_args(Tier)
"""The lowest first."""
NOW = Prediction(0.0, 0.0, 0.0, 0.0)


class Standing(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A backend as it stands now, and how long it would take for the request in question.

    `gc=False`, here as in what it holds: they are made for every decision and cannot form a cycle.
    """

    name: str
    kind: str
    model: str
    local: bool
    ranks: Mapping[Tier, int]
    """Its place in the list of each tier that it serves; it counts where predictions are equal."""
    price_in: float = 0.0
    price_out: float = 0.0
    takes_tools: bool = True
    holds: bool = True
    """Its window has room for all that the task needs, as far as is known."""
    down: str | None = None
    """Why it is not asked now."""
    tried: bool = False
    """It is down because it failed this very request."""
    predicted: Prediction = NOW
    cost_usd: float = 0.0
    """What this request is expected to cost there."""

    @property
    def paid(self) -> bool:
        return self.price_in > 0 or self.price_out > 0

    def candidate(self, why: str | None) -> Candidate:
        return Candidate(
            backend=self.name,
            model=self.model,
            local=self.local,
            rejected=why,
            predicted_s=None if self.predicted is NOW else round(self.predicted.total_s, 3),
        )


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """The backend that serves, and what was weighed."""

    chosen: Standing
    reason: str
    others: tuple[Standing, ...] = ()
    """Those that could have served as well."""
    rejected: tuple[Candidate, ...] = ()
    spill: Standing | None = None
    """The remote one that takes it if it still waits when its budget runs short."""


def must_stay(request: ModelRequest) -> bool:
    """Whether the request may not leave the machine, under any fault."""
    return request.privacy == "local" or request.task_type == "embedding"


def outgoing(request: ModelRequest, *, local: bool) -> ModelRequest:
    """The request as a backend may see it: a remote one gets the `public` messages where there are any."""
    if local or request.public is None:
        return request
    return msgspec.structs.replace(request, messages=request.public, public=None)


def choose(request: ModelRequest, standings: Sequence[Standing], left_s: float | None = None) -> Choice:
    """Who serves, of those that can.

    `left_s` is what is left of the request's budget; None where it has none. With one: the fastest local backend
    whose prediction fits into it with a margin, else the cheapest that does, else whoever is predicted to be done
    first. Without: the fastest local one, as long as the queue there is short. What only quotes serves
    where no model is up. A named backend is the only one, and need not serve the tier.

    Ties go by the tier's list, then by name. Raises NotFound for an unknown name, NoModelFits.
    """
    if request.backend is not None:
        standings = [s for s in standings if s.name == request.backend] or _unknown(
            request.backend, standings
        )
    fit: list[Standing] = []
    rejected: list[Candidate] = []
    for s in standings:
        if (why := unfit(request, s)) is None:
            fit.append(s)
        else:
            rejected.append(s.candidate(why))
    # Some of an input is left out only where no model has room for all of it.
    if any(s.holds and s.kind != QUOTING for s in fit) and not all(s.holds for s in fit):
        rejected += [s.candidate(TOO_SMALL) for s in fit if not s.holds]
        fit = [s for s in fit if s.holds]
    if not fit:
        raise no_model_fits(request, rejected)
    models = [s for s in fit if s.kind != QUOTING]
    local = [s for s in models if s.local]
    remote = [s for s in models if not s.local]
    spill = None
    if request.backend is not None:
        chosen, why = fit[0], "asked for by name"
    elif not models:
        chosen = min(fit, key=lambda s: _place(request, s))
        tried = any(s.tried for s in standings)
        why = "no model answered, so it quotes" if tried else "no model is there, so it quotes"
    elif not local:
        chosen = _remote(request, remote, left_s)
        why = _no_local(request, standings)
    else:
        chosen, why = _weighed(request, local, remote, left_s, standings)
        if chosen.local:
            spill = _cheapest(request, remote)
    others = tuple(s for s in fit if s is not chosen)
    return Choice(
        chosen=chosen, reason=priced(chosen, why), others=others, rejected=tuple(rejected), spill=spill
    )


def _weighed(
    request: ModelRequest,
    local: Sequence[Standing],
    remote: Sequence[Standing],
    left_s: float | None,
    standings: Sequence[Standing],
) -> tuple[Standing, str]:
    """Local backends are up, and there may be others."""
    # Work that may leave does not stand in the way of what asked for the larger model, and often cannot leave.
    open_ = list(local)
    if remote and not all(_above(request, s) for s in local):
        open_ = [s for s in local if s.predicted.wait_s == 0 or not _above(request, s)]
    if left_s is None:
        best = min(open_, key=lambda s: _soonest(request, s))
        which = (
            "next" if any(s.tried and s.local for s in standings) else "fastest" if len(open_) > 1 else "only"
        )
        why = f"the {which} local one of tier {request.tier}"
        least_s = min(s.predicted.wait_s for s in open_)
        if least_s < MOST_WAIT_S or not remote:
            return best, why
        other = _remote(request, remote, None)
        if other.predicted.total_s >= best.predicted.total_s:
            return best, why
        return other, f"the queue of every local one would take {least_s:.0f} s"
    in_time = [s for s in open_ if s.predicted.total_s * MARGIN <= left_s]
    if in_time:
        best = min(in_time, key=lambda s: _soonest(request, s))
        return best, f"the fastest local one of tier {request.tier} that fits the {_budget(request)}"
    if remote:
        best = _remote(request, remote, left_s)
        if best.predicted.total_s * MARGIN <= left_s:
            return best, f"no local one fits the {_budget(request)}, and it does at the least cost"
    best = min([*open_, *remote], key=lambda s: _soonest(request, s))
    return best, f"none fits the {_budget(request)} for certain, and it is predicted to be done first"


def _remote(request: ModelRequest, remote: Sequence[Standing], left_s: float | None) -> Standing:
    """The cheapest that is in time, else the soonest."""
    if left_s is None:
        return min(remote, key=lambda s: (s.cost_usd, *_soonest(request, s)))
    in_time = [s for s in remote if s.predicted.total_s * MARGIN <= left_s]
    if in_time:
        return min(in_time, key=lambda s: (s.cost_usd, *_soonest(request, s)))
    return min(remote, key=lambda s: _soonest(request, s))


def _cheapest(request: ModelRequest, remote: Sequence[Standing]) -> Standing | None:
    return min(remote, key=lambda s: (s.cost_usd, *_soonest(request, s))) if remote else None


def _soonest(request: ModelRequest, standing: Standing) -> tuple[float, int, str]:
    return (standing.predicted.total_s, *_place(request, standing))


def _place(request: ModelRequest, standing: Standing) -> tuple[int, str]:
    return (standing.ranks.get(request.tier, 0), standing.name)


def _above(request: ModelRequest, standing: Standing) -> bool:
    """Whether it serves a higher tier than the request asks for."""
    above = TIERS[TIERS.index(request.tier) + 1 :]
    return any(tier in standing.ranks for tier in above)


def _budget(request: ModelRequest) -> str:
    return f"budget of {(request.latency_budget_ms or 0) / 1000:g} s"


def _unknown(name: str, standings: Sequence[Standing]) -> list[Standing]:
    known = ", ".join(f"`{s.name}`" for s in standings)
    raise NotFound(f"no backend `{name}`; there are: {known}", hint=LIST)


def priced(standing: Standing, why: str) -> str:
    """The reason for a backend; for one that costs money with its price."""
    if not standing.paid:
        return why
    price = f"${standing.price_in:.2f} in and ${standing.price_out:.2f} out for a million tokens"
    return f"paid: {why}, {price}"


def no_model_fits(request: ModelRequest, tried: Sequence[Candidate], *, cost_usd: float = 0.0) -> NoModelFits:
    """The error for a request that nobody answered: each backend with its reason, and the ways out. `cost_usd` is
    what was spent on it all the same."""
    if request.backend is None:
        # A backend of another tier is no news to somebody who did not name it.
        near = [c for c in tried if c.rejected != _not_in(request.tier)]
    else:
        near = list(tried)
    said = "; ".join(f"`{c.backend}`: {c.rejected}" for c in near)
    what = f"no model fits a {request.tier} request" + (
        " for coding" if request.task_type == "coding" else ""
    )
    models = any(c.model not in ("", QUOTING) for c in near)
    way = next((way for c in near if c.rejected and (way := way_up(c.rejected))), None)
    if way is None:
        said = (said or "there is none") + ("" if said.endswith("?") else ".") + f" {WAYS_OUT}"
    return NoModelFits(
        f"{what}: {said}",
        hint=way or (LIST if models else SETUP),
        candidates=[{"backend": c.backend, "model": c.model, "rejected": c.rejected} for c in tried],
        cost_usd=cost_usd,
    )


def way_up(reason: str) -> str | None:
    """The command that a backend's reason ends in, which may bring it up."""
    found = _COMMAND.search(reason)
    return found[1] if found else None


def unfit(request: ModelRequest, standing: Standing) -> str | None:
    """Why a backend cannot be asked: what never changes first, what passes last."""
    if standing.tried:
        return standing.down
    if request.backend is None and request.tier not in standing.ranks:
        return _not_in(request.tier)
    if must_stay(request) and not standing.local:
        return "it is remote, and this text stays on the machine"
    if standing.kind == QUOTING:
        if request.task_type == "coding" or request.tier == "capable":
            return "it only quotes, and this needs a model"
        if request.schema is not None:
            return "it only quotes, and cannot fill a schema"
    if request.tools and not standing.takes_tools:
        return f"`{standing.model}` takes no tools"
    return standing.down


def _not_in(tier: Tier) -> str:
    return f"not in tier {tier}"


def _no_local(request: ModelRequest, standings: Sequence[Standing]) -> str:
    """Why a remote one is asked before any local one."""
    local = [s for s in standings if s.local and s.kind != QUOTING and request.tier in s.ranks]
    if not local:
        return f"no local backend serves tier {request.tier}"
    if any(s.tried for s in local):
        return "no local backend answered"
    if all(s.down is not None for s in local):
        return "no local backend is up"
    return "no local backend can take it"
