"""approval.*, task.approve"""

from __future__ import annotations

from aiosd import server
from aiosd.methods.services import Services, handles
from aiosd.protocol.approvals import ApprovalList, ApprovalRevoke, ApprovalsFound, TaskApprove
from aiosd.records import AlwaysRule, Task
from aiosd.state import approvals, tasks


@handles(TaskApprove)
async def task_approve(services: Services, peer: server.Peer, params: TaskApprove) -> Task:
    task = await services.database.read(lambda c: tasks.get(c, params.task_id))
    await services.approvals.answer(task.task_id, params.call_id, params.decision)
    return await services.database.read(lambda c: tasks.get(c, params.task_id))


@handles(ApprovalList)
async def approval_list(services: Services, peer: server.Peer, params: ApprovalList) -> ApprovalsFound:
    return ApprovalsFound(
        waiting=services.approvals.waiting, rules=await services.database.read(approvals.rules)
    )


@handles(ApprovalRevoke)
async def approval_revoke(services: Services, peer: server.Peer, params: ApprovalRevoke) -> AlwaysRule:
    return await services.database.write(lambda c: approvals.revoke(c, params.rule_id))
