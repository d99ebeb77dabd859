"""What an agent does next, decided from its task's journal alone: the same journal always goes on the same way."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from aiosd.records import (
    ApprovalEvent,
    Kept,
    MessageEvent,
    ProgressEvent,
    ToolCallEvent,
    ToolResultEvent,
    ToolUse,
)

MAX_STEPS = 12
"""Model replies in one task, unless the caller says otherwise."""


class Recall(msgspec.Struct, frozen=True):
    """Ask memory what fits the task."""


class Infer(msgspec.Struct, frozen=True):
    """Ask a model, with all that the journal holds."""


class CallTools(msgspec.Struct, frozen=True):
    """Call these, each once."""

    calls: tuple[ToolUse, ...]


class Doubt(msgspec.Struct, frozen=True):
    """These calls had begun when the daemon stopped, and nobody knows whether they took effect: ask the user."""

    calls: tuple[ToolUse, ...]


class Answer(msgspec.Struct, frozen=True):
    """The task is done; `out_of_steps` if the model wanted to go on."""

    message: MessageEvent
    out_of_steps: bool


Action = Recall | Infer | CallTools | Doubt | Answer


def next(
    journal: Sequence[Kept], *, max_steps: int = MAX_STEPS, repeatable: Collection[str] = frozenset()
) -> Action:
    """The next action: recall, then infer and call tools in turn, until a reply asks for no tool.

    A call that began and has no result is made again if its tool is among the `repeatable` ones, or once the
    user said so (`pending` again).
    """
    places = [i for i, e in enumerate(journal) if isinstance(e, MessageEvent)]
    if not places:
        recalled = any(isinstance(e, ProgressEvent) and e.stage == "recalled" for e in journal)
        return Infer() if recalled else Recall()
    last = journal[places[-1]]
    assert isinstance(last, MessageEvent)
    since = journal[places[-1] + 1 :]  # backends may give the same call_id again in each reply
    ended = {e.call_id for e in since if isinstance(e, ToolResultEvent)}
    status = {e.call_id: e.status for e in since if isinstance(e, ToolCallEvent)}
    waiting = tuple(call for call in last.tool_calls if call.call_id not in ended)
    if doubtful := tuple(
        call
        for call in waiting
        if status.get(call.call_id, "pending") != "pending" and call.name not in repeatable
    ):
        return Doubt(doubtful)
    if waiting:
        return Answer(last, out_of_steps=True) if len(places) >= max_steps else CallTools(waiting)
    if last.tool_calls:
        return Infer()
    return Answer(last, out_of_steps=False)


def approval(journal: Sequence[Kept], call_id: str) -> ApprovalEvent | None:
    """The last word on a call of the last reply, or the request for one that has none yet."""
    for event in reversed(journal):
        if isinstance(event, MessageEvent):
            return None
        if isinstance(event, ApprovalEvent) and event.call_id == call_id:
            return event
    return None


def asks(journal: Sequence[Kept]) -> bool:
    """Whether a call of the last reply waits for its user's word."""
    words: dict[str, ApprovalEvent] = {}
    for event in journal:
        if isinstance(event, MessageEvent):
            words.clear()
        elif isinstance(event, ApprovalEvent):
            words[event.call_id] = event
    return any(event.decision is None for event in words.values())
