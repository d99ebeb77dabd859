"""Which backends may answer a request, and in which order they are asked. Pure: the pool acts on it.

Text that must stay is decided here, and once more by the pool before each dispatch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from aiosd.errors import NoModelFits, NotFound
from aiosd.models.backend import ModelRequest
from aiosd.records import Candidate, Tier

QUOTING = "extractive"
"""The kind and the model of the backend that only quotes."""
WAYS_OUT = (
    "Ways out: install Ollama (https://ollama.com/download) and pull a model, "
    "or name a server with its key under [models.backends] in config.toml"
)
LIST = "aiosctl model list"
PULL = "aiosctl model pull llama3.2"
"""2 GB, takes tools, runs without a GPU."""
SETUP = "aiosctl model setup"
"""The hint where no model is there at all: it says what this machine lacks."""


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """A backend as it stands now. Predictions will stand here too."""

    name: str
    kind: str
    model: str
    local: bool
    ranks: Mapping[Tier, int]
    """Its place in the list of each tier that it serves, the first to be asked is 0."""
    price_in: float = 0.0
    price_out: float = 0.0
    takes_tools: bool = True
    down: str | None = None
    """Why it is not asked now."""

    @property
    def paid(self) -> bool:
        return self.price_in > 0 or self.price_out > 0

    def rejected(self, why: str | None) -> Candidate:
        return Candidate(backend=self.name, model=self.model, local=self.local, rejected=why)


class Attempt(msgspec.Struct, frozen=True):
    """One backend to ask, and why when it comes to it."""

    name: str
    reason: str


class Plan(msgspec.Struct, frozen=True):
    """`attempts` in order, each to be asked when the ones before it have failed; never empty."""

    attempts: tuple[Attempt, ...]
    rejected: tuple[Candidate, ...]


def must_stay(request: ModelRequest) -> bool:
    """Whether the request may not leave the machine, under any fault."""
    return request.privacy == "local" or request.task_type == "embedding"


def outgoing(request: ModelRequest, *, local: bool) -> ModelRequest:
    """The request as a backend may see it: a remote one gets the `public` messages where there are any."""
    if local or request.public is None:
        return request
    return msgspec.structs.replace(request, messages=request.public, public=None)


def plan(request: ModelRequest, standings: Sequence[Standing]) -> Plan:
    """Who is asked: local before remote, each in the order of the tier's list; ties go by name.

    A named backend is the only one, and need not serve the tier. A paid one comes after every local one, so
    it is asked only when none of them is up. Raises NotFound for an unknown name, NoModelFits.
    """
    if request.backend is not None:
        chosen = [s for s in standings if s.name == request.backend]
        if not chosen:
            known = ", ".join(f"`{s.name}`" for s in standings)
            raise NotFound(f"no backend `{request.backend}`; there are: {known}", hint=LIST)
    else:
        chosen = list(standings)
    why_not = {s.name: _unfit(request, s) for s in chosen}
    rejected = tuple(s.rejected(why) for s in chosen if (why := why_not[s.name]) is not None)
    fit = sorted((s for s in chosen if why_not[s.name] is None), key=lambda s: _order(request, s))
    if not fit:
        raise no_model_fits(request, rejected)
    local = _no_local(request, chosen)
    return Plan(
        tuple(Attempt(s.name, _reason(request, s, fit[:i], local)) for i, s in enumerate(fit)), rejected
    )


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
    return NoModelFits(
        f"{what}: {said or 'there is none'}. {WAYS_OUT}",
        hint=LIST if models else SETUP,
        candidates=[{"backend": c.backend, "model": c.model, "rejected": c.rejected} for c in tried],
        cost_usd=cost_usd,
    )


def _unfit(request: ModelRequest, standing: Standing) -> str | None:
    """Why a backend cannot be asked: what never changes first, what passes last."""
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


def _order(request: ModelRequest, standing: Standing) -> tuple[bool, bool, int, str]:
    """What only quotes comes last wherever it is listed: it always answers, and would hide what follows."""
    quotes = standing.kind == QUOTING
    return (quotes, not standing.local, standing.ranks.get(request.tier, 0), standing.name)


def _no_local(request: ModelRequest, standings: Sequence[Standing]) -> str:
    """Why a remote one is asked before any local one, if it is."""
    local = [s for s in standings if s.local and s.kind != QUOTING and request.tier in s.ranks]
    if not local:
        return f"no local backend serves tier {request.tier}"
    if all(s.down is not None for s in local):
        return "no local backend is up"
    return "no local backend can take it"


def _reason(request: ModelRequest, standing: Standing, ahead: Sequence[Standing], no_local: str) -> str:
    if request.backend is not None:
        why = "asked for by name"
    elif standing.kind == QUOTING:
        why = "no model answered, so it quotes" if ahead else "no model is there, so it quotes"
    elif standing.local:
        why = f"the {'next' if ahead else 'first'} local one of tier {request.tier}"
    else:
        why = "no local backend answered" if any(s.local for s in ahead) else no_local
    return f"paid: {why}, {_price(standing)}" if standing.paid else why


def _price(standing: Standing) -> str:
    return f"${standing.price_in:.2f} in and ${standing.price_out:.2f} out for a million tokens"
