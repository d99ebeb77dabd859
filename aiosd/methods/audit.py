"""audit.*"""

from __future__ import annotations

from aiosd import server
from aiosd.errors import InvalidParams
from aiosd.methods.services import Services, handles
from aiosd.protocol.audit import AuditExport, AuditTail, AuditVerify, Entries, Verified
from aiosd.state import audit


@handles(AuditTail)
async def audit_tail(services: Services, peer: server.Peer, params: AuditTail) -> Entries:
    if params.n < 1:
        raise InvalidParams(f"n: expected a number above 0, got {params.n}")
    return Entries(entries=await services.database.read(lambda c: audit.tail(c, params.n)))


@handles(AuditExport)
async def audit_export(services: Services, peer: server.Peer, params: AuditExport) -> Entries:
    entries, cursor = await services.database.read(
        lambda c: audit.page(c, limit=params.limit, cursor=params.cursor)
    )
    return Entries(entries=entries, next_cursor=cursor)


@handles(AuditVerify)
async def audit_verify(services: Services, peer: server.Peer, params: AuditVerify) -> Verified:
    checked = audit.Checked()
    while not checked.done and checked.broken is None:
        checked = await services.database.read(lambda c, so_far=checked: audit.verify(c, so_far))  # type: ignore[misc]
    return Verified(entries=checked.seq, head=checked.hash, broken=checked.broken, why=checked.why or None)
