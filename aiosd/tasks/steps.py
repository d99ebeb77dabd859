"""What an agent does next, decided from its task's journal alone: the same journal always goes on the same way."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from aiosd.records import (
    ApprovalEvent,
    Kept,
    MessageEvent,
    ProgressEvent,
    StopReason,
    ToolCallEvent,
    ToolResultEvent,
    ToolUse,
    UsageEvent,
)

MAX_STEPS = 12
"""Model replies in one task, unless the caller says otherwise."""

MOST_ALIKE = 3
"""Replies in a row that ask for the same calls: the last of them is not followed, and the task ends."""


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
    """The task is done; `stopped` if the model wanted to go on, with the reason in a clause."""

    message: MessageEvent
    stopped: StopReason | None = None
    why: str = ""


Action = Recall | Infer | CallTools | Doubt | Answer


def next(
    journal: Sequence[Kept],
    *,
    max_steps: int = MAX_STEPS,
    max_total_tokens: int | None = None,
    repeatable: Collection[str] = frozenset(),
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
    if not last.tool_calls:
        return Answer(last)
    if waiting and not status:  # none of them has begun: stopping here leaves nothing half done
        if len(places) >= max_steps:
            return Answer(last, "max_steps", f"it has taken {max_steps} steps")
        if (again := repeated([journal[i] for i in places])) is not None:
            return Answer(last, "repetition", f"it asked for {again} {MOST_ALIKE} times in a row")
    if not status or not waiting:
        used = [e.usage for e in journal if isinstance(e, UsageEvent)]
        tokens = sum(usage.input_tokens + usage.output_tokens for usage in used)
        if max_total_tokens is not None and tokens >= max_total_tokens:
            return Answer(last, "max_tokens", f"it has used {tokens} of {max_total_tokens} tokens")
    return CallTools(waiting) if waiting else Infer()


def repeated(replies: Sequence[Kept]) -> str | None:
    """What the last replies have all asked for, of the same tools with the same arguments; None where they differ."""
    asked = [
        sorted((call.name, msgspec.json.encode(call.arguments, order="sorted")) for call in reply.tool_calls)
        for reply in replies[-MOST_ALIKE:]
        if isinstance(reply, MessageEvent)
    ]
    if len(asked) < MOST_ALIKE or any(calls != asked[0] for calls in asked):
        return None
    return "the same call of " + " and ".join(
        f"`{name}`" for name in dict.fromkeys(name for name, _ in asked[0])
    )


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
