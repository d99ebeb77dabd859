"""Where a task's time went: spans as a function of its journal, for `task.trace` and for OpenTelemetry alike.

Names and attributes are those of OpenTelemetry's semantic conventions for generative AI (1.37), where they have one.
No span carries content, that is a prompt, an argument or a result, unless it is asked for: only an exporter ever does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from hashlib import blake2b
from types import MappingProxyType
from typing import Any, Protocol

import msgspec

from aiosd.records import (
    ENDED,
    ApprovalEvent,
    Kept,
    MessageEvent,
    ProgressEvent,
    RouteEvent,
    Span,
    StateEvent,
    Task,
    ToolCallEvent,
    ToolResultEvent,
    UsageEvent,
)
from aiosd.tasks import steps

_NONE: Mapping[str, Any] = MappingProxyType({})

EXPORT_S = 2.0
"""For reading the journal of a task that has ended."""


class Export(Protocol):
    """Given each task that has ended, with where its time went."""

    content: bool
    """Whether it wants texts too, of tasks that nothing private came into."""

    def __call__(self, task: Task, spans: Sequence[Span]) -> None: ...


def spans(
    task: Task, journal: Sequence[Kept], max_steps: int = steps.MAX_STEPS, *, content: bool = False
) -> tuple[Span, ...]:
    """The task's own span, then its parts in the order in which they began. What goes on has no end yet.

    Every moment from the first event to the last lies in a part: what the agent does between two events is known. Only
    the time without a daemon is in none.
    """
    reading = _Reading(task, content=content)
    for place, event in enumerate(journal):
        reading.take(event, journal[:place], max_steps)
    return reading.result()


class _Reading:
    def __init__(self, task: Task, *, content: bool) -> None:
        self._task = task
        self._content = content
        self._root = _id(task.task_id, 0)
        self._spans: list[Span] = []
        self._at = task.created_at
        """Up to here the time has a span."""
        self._ended: datetime | None = None
        self._waits: list[ProgressEvent] = []
        self._calls: dict[str, int] = {}
        self._asked: dict[str, int] = {}
        self._chat = -1
        self._cost_usd = 0.0
        self._waits_for_user = False

    def take(self, event: Kept, before: Sequence[Kept], max_steps: int) -> None:
        match event:
            case StateEvent() if event.state in ENDED:
                self._end(event, before, max_steps)
            case StateEvent(state="queued"):
                self._at = event.at
            case StateEvent(state="input_required"):
                self._waits_for_user, self._at = True, event.at
            case StateEvent():
                self._add("input_required" if self._waits_for_user else "start", self._at, event.at)
                self._waits_for_user = False
            case ProgressEvent(stage="recalled"):
                found: dict[str, Any] = {"aiosd.memory.count": len(event.memories)}
                if event.detail:
                    found["error.type"] = "unavailable"
                self._add("search_memory", self._at, event.at, found)
            case ProgressEvent():
                self._waits.append(event)
            case RouteEvent():
                self._route(event)
            case MessageEvent():
                self._describe(
                    self._chat,
                    {
                        "gen_ai.request.model": event.model,
                        "aiosd.backend": event.backend,
                        "gen_ai.response.finish_reasons": [
                            "tool_call" if event.tool_calls else event.stop_reason
                        ],
                    },
                    f"chat {event.model}",
                )
                self._tell(self._chat, "gen_ai.output.messages", _replied(event))
                self._at = event.at
            case UsageEvent():
                self._describe(
                    self._chat,
                    {
                        "gen_ai.usage.input_tokens": event.usage.input_tokens,
                        "gen_ai.usage.output_tokens": event.usage.output_tokens,
                        "aiosd.cost_usd": event.cost_usd,
                    },
                )
                self._cost_usd += event.cost_usd
                self._chat = -1  # what comes next without a reply is the money of one that never came whole
            case ToolCallEvent(status="in_progress"):
                named = {"gen_ai.tool.name": event.name, "gen_ai.tool.call.id": event.call_id}
                call = self._add(f"execute_tool {event.name}", event.at, None, named)
                self._calls[event.call_id] = call
                self._tell(call, "gen_ai.tool.call.arguments", event.arguments)
            case ToolCallEvent():
                pass
            case ApprovalEvent(decision=None):
                self._asked[event.call_id] = self._add(
                    "approval", event.at, None, parent=self._calls.get(event.call_id)
                )
            case ApprovalEvent():
                if (asked := self._asked.pop(event.call_id, None)) is not None:
                    self._close(asked, event.at, {"aiosd.decision": event.decision, "aiosd.by": event.by})
            case ToolResultEvent():
                failed = {} if event.status == "completed" else {"error.type": event.status}
                if (ended := self._calls.pop(event.call_id, None)) is not None:
                    self._close(ended, event.at, failed)
                    self._tell(ended, "gen_ai.tool.call.result", event.text)
                self._at = event.at

    def result(self) -> tuple[Span, ...]:
        task = self._task
        root = Span(
            span_id=self._root,
            parent_id=None,
            name="invoke_agent",
            started_at=task.created_at,
            ended_at=self._ended,
            attributes={
                "gen_ai.operation.name": "invoke_agent",
                "gen_ai.conversation.id": task.session_id,
                "gen_ai.usage.input_tokens": self._sum("gen_ai.usage.input_tokens"),
                "gen_ai.usage.output_tokens": self._sum("gen_ai.usage.output_tokens"),
                "aiosd.task.number": task.number,
                "aiosd.task.state": task.state,
                "aiosd.cost_usd": self._cost_usd,
                **({"error.type": str(task.error.get("code"))} if task.error else {}),
                **(self._said() if self._content else {}),
            },
        )
        return (root, *sorted(self._spans, key=lambda span: span.started_at))

    def _route(self, event: RouteEvent) -> None:
        """A reply: what was waited for before the backend that gave it was asked lies inside of it."""
        began = event.began_at or (self._waits[0].at if self._waits else self._at)
        if began > self._at:
            self._add("prepare", self._at, began)
        attributes: dict[str, Any] = {"aiosd.tier": event.decision.tier}
        if event.first_token_at is not None:
            seconds = (event.first_token_at - began).total_seconds()
            attributes["gen_ai.response.time_to_first_chunk"] = round(seconds, 6)
        self._chat = self._add("chat", began, event.at, attributes)
        sent = event.at if event.decision.sent_s is None else began + timedelta(seconds=event.decision.sent_s)
        self._wait(self._chat, sent)

    def _wait(self, chat: int, until: datetime) -> None:
        ends = [*(wait.at for wait in self._waits[1:]), until]
        for wait, end in zip(self._waits, ends, strict=False):
            end = max(wait.at, end)  # two clocks
            if wait.stage == "retrying":
                self._describe(chat, {"aiosd.retried": wait.detail.partition("`")[2].partition("`")[0]})
            else:
                self._add({"queued": "queue", "loading": "load"}[wait.stage], wait.at, end, parent=chat)
        self._waits.clear()

    def _end(self, event: StateEvent, before: Sequence[Kept], max_steps: int) -> None:
        """Of a task that completed: the time to keep what came of it. Of another: the step that it broke off."""
        self._ended = event.at
        broken = {"error.type": event.state}
        for open_ in (*self._calls.values(), *self._asked.values()):
            self._close(open_, event.at, broken)
        if event.state == "completed":
            self._add("keep", self._at, event.at)
        elif not self._calls:
            match steps.next(before, max_steps=max_steps):
                case steps.Infer():
                    self._chat = self._add("chat", self._at, event.at, broken)
                    self._wait(self._chat, event.at)
                case steps.Recall():
                    self._add("search_memory", self._at, event.at, broken)
                case _:
                    self._add("stop", self._at, event.at, broken)

    def _add(
        self,
        name: str,
        start: datetime,
        end: datetime | None,
        attributes: Mapping[str, Any] = _NONE,
        *,
        parent: int | None = None,
    ) -> int:
        operation = name.partition(" ")[0]
        span = Span(
            span_id=_id(self._task.task_id, len(self._spans) + 1),
            parent_id=self._root if parent is None else self._spans[parent].span_id,
            name=name,
            started_at=start,
            ended_at=end,
            attributes={"gen_ai.operation.name": operation, **attributes},
        )
        self._spans.append(span)
        if parent is None and end is not None:
            self._at = max(self._at, end)
        return len(self._spans) - 1

    def _close(self, place: int, at: datetime, attributes: Mapping[str, Any] = _NONE) -> None:
        self._spans[place] = msgspec.structs.replace(self._spans[place], ended_at=at)
        self._describe(place, attributes)

    def _describe(self, place: int, attributes: Mapping[str, Any], name: str | None = None) -> None:
        if place < 0:
            return
        span = self._spans[place]
        self._spans[place] = msgspec.structs.replace(
            span, name=name or span.name, attributes={**span.attributes, **attributes}
        )

    def _tell(self, place: int, attribute: str, content: Any) -> None:
        """Where content was asked for."""
        if self._content:
            self._describe(place, {attribute: _text(content)})

    def _said(self) -> dict[str, str]:
        """What the task was, and what came of it."""
        said = {"gen_ai.input.messages": _text([_message("user", self._task.task)])}
        if self._task.result is not None:
            answer = _message("assistant", _text(self._task.result.result))
            said["gen_ai.output.messages"] = _text([answer])
        return said

    def _sum(self, attribute: str) -> Any:
        return sum(span.attributes.get(attribute, 0) for span in self._spans)


def _id(task_id: str, number: int) -> str:
    """Eight bytes as hexadecimal digits, the same at every reading."""
    return blake2b(f"{task_id}/{number}".encode(), digest_size=8).hexdigest()


def _message(role: str, text: str) -> dict[str, Any]:
    """As in the convention's schema of messages: gen-ai-input-messages.json."""
    return {"role": role, "parts": [{"type": "text", "content": text}]}


def _replied(event: MessageEvent) -> list[dict[str, Any]]:
    message = _message("assistant", event.text)
    message["parts"] += [
        {"type": "tool_call", "id": call.call_id, "name": call.name, "arguments": call.arguments}
        for call in event.tool_calls
    ]
    return [message]


def _text(content: Any) -> str:
    """Attributes are texts: what is none goes as JSON."""
    return content if isinstance(content, str) else msgspec.json.encode(content).decode()
