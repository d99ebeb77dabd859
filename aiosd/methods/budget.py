"""budget.*"""

from __future__ import annotations

from msgspec import UNSET

from aiosd import server
from aiosd.errors import InvalidParams
from aiosd.methods.services import Services, handles
from aiosd.protocol.budget import BudgetGet, BudgetSet, Limits


@handles(BudgetGet)
async def budget_get(services: Services, peer: server.Peer, params: BudgetGet) -> Limits:
    return Limits(limits=await services.budget.limits(params.session_id))


@handles(BudgetSet)
async def budget_set(services: Services, peer: server.Peer, params: BudgetSet) -> Limits:
    if (params.session_id is None) != (params.max_usd is UNSET):
        raise InvalidParams("a session's cap takes both session_id and max_usd")
    if params.session_id is None and params.day_usd is UNSET:
        raise InvalidParams("expected day_usd, or session_id and max_usd")
    await services.budget.set(params.day_usd, params.session_id, params.max_usd)
    return Limits(limits=await services.budget.limits(params.session_id))
