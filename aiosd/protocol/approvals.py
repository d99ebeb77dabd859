"""Calls that wait for their user's word, and what was answered once and for all."""

from __future__ import annotations

from aiosd.protocol.base import Params
from aiosd.records import AlwaysRule, ApprovalDecision, ApprovalEvent, Record, Task


class TaskApprove(Params[Task], frozen=True, kw_only=True):
    """Answers a call that waits for approval. `always` keeps the request's `rule` for all of the user's sessions."""

    task_id: str
    call_id: str
    decision: ApprovalDecision

    method = "task.approve"
    returns = Task


class ApprovalsFound(Record, frozen=True, kw_only=True):
    waiting: tuple[ApprovalEvent, ...]
    rules: tuple[AlwaysRule, ...]


class ApprovalList(Params[ApprovalsFound], frozen=True, kw_only=True):
    """What waits for a word now, and what was answered with `always` or `never`."""

    method = "approval.list"
    returns = ApprovalsFound


class ApprovalRevoke(Params[AlwaysRule], frozen=True, kw_only=True):
    """Forgets a rule: what it settled asks again."""

    rule_id: str

    method = "approval.revoke"
    returns = AlwaysRule
