"""How a task's answer reaches the user: piece by piece on a terminal, as one text where a program reads."""

from __future__ import annotations

import os
import sys
from types import FrameType

import msgspec

from aiosctl import render
from aiosctl.client import typed
from aiosctl.quick import aside_line
from aiosd.errors import ConfigError
from aiosd.protocol.tasks import TASK_EVENT
from aiosd.records import (
    AnyEvent,
    Candidate,
    Decision,
    MessageEvent,
    ProgressEvent,
    TaskResult,
    TextEvent,
    ToolCallEvent,
    ToolResultEvent,
)

ABSTAINED = 78
"""Exit status: nothing that answers, and no model that could (EX_CONFIG)."""


class Reply:
    """A model's reply as it is being printed: each call gives the text that is new.

    Pieces may be missing, overlap, or start again; the whole message comes at the end.
    """

    def __init__(self) -> None:
        self._shown = ""

    def piece(self, offset: int, text: str) -> str:
        """Nothing where a piece before it is missing, or where it is of another try."""
        known = self._shown[offset : offset + len(text)]
        if offset > len(self._shown) or not text.startswith(known):
            return ""
        new = text[len(known) :]
        self._shown += new
        return new

    def whole(self, text: str) -> str:
        """What has not been shown; after a reply that was begun otherwise, all of it on a new line."""
        shown, self._shown = self._shown, ""
        if text.startswith(shown):
            return text[len(shown) :]
        return ("" if shown.endswith("\n") else "\n") + text


class Watch:
    """Shows a task's events as they come, then its result.

    `live` prints the text on standard output while it is written; without, the result is printed at the end.
    """

    def __init__(self, *, live: bool, quiet: bool) -> None:
        self.task_id: str | None = None
        self._live = live
        self._quiet = quiet
        self._reply = Reply()
        self._printed: str | None = None
        """The last whole message on the terminal."""
        self._line_open = False
        self._calls: set[str] = set()
        self._failure: str | None = None
        """Of the last tool that failed."""
        self._interrupted = False

    def __call__(self, method: str, params: msgspec.Raw) -> None:
        if method != TASK_EVENT:
            return
        try:
            event = msgspec.json.decode(params, type=AnyEvent)
        except msgspec.ValidationError:
            return  # a kind that a newer daemon has; the result will say what matters
        self.task_id = event.task_id
        if self._interrupted:
            raise KeyboardInterrupt
        self._show(event)

    def interrupt(self, signum: int, frame: FrameType | None) -> None:
        """For SIGINT. One before the first event waits for that, which names the task to cancel; a second does not."""
        if self.task_id is None and not self._interrupted:
            self._interrupted = True
            render.notice("cancelling as soon as the task is known; Ctrl-C again leaves at once")
            return
        raise KeyboardInterrupt

    def end_line(self) -> None:
        """What follows starts on a line of its own."""
        if self._line_open:
            render.out("")
            self._line_open = False

    def leave(self) -> None:
        """After Ctrl-C, which a terminal echoes on the line it is at."""
        self._line_open |= self._live
        self.end_line()

    def _show(self, event: AnyEvent) -> None:
        match event:
            case TextEvent() if self._live:
                self._write(self._reply.piece(event.offset, event.text))
            case MessageEvent() if self._live and event.text:
                self._write(self._reply.whole(event.text))
                self.end_line()
                self._printed = event.text
            case ToolCallEvent() if event.call_id not in self._calls:
                self._calls.add(event.call_id)
                self._aside(f"{event.name} {msgspec.json.encode(event.arguments).decode()}")
            case ToolResultEvent(status="failed"):
                self._failure = f"{event.name} failed: {event.text}"
                self._aside(self._failure)
            case ProgressEvent(stage="loading"):
                self._aside(event.detail)
            case ProgressEvent(stage="queued" | "retrying") if render.on_terminal(sys.stderr):
                eta = "" if event.eta_s is None else f" (about {event.eta_s:.0f} s)"
                self._aside((event.detail or event.stage) + eta)
            case _:
                pass

    def _write(self, text: str) -> None:
        if text:
            self._line_open = not text.endswith("\n")  # first: Ctrl-C may come as soon as it is written
            render.out(text, end="")
            sys.stdout.flush()

    def _aside(self, text: str) -> None:
        if not self._quiet:
            self.end_line()
            render.aside(aside_line(text))

    def finish(self, raw: bytes, method: str, *, json: bool) -> int:
        """Prints what of the result is not there yet, and what is to be known about it; gives the exit status."""
        result: TaskResult = typed(raw, TaskResult, method)
        if json:
            render.document(raw)
        if result.abstained:
            render.complaint(*_abstention(result, self._failure))
            return ABSTAINED
        if json:
            return 0
        text = render.value(result.result)
        if self._printed is None or self._printed != text:
            render.out(text)
        if not self._quiet:
            self._notes(result)
        return 0

    def _notes(self, result: TaskResult) -> None:
        if result.stop_reason not in ("end_turn", "cancelled"):
            render.notice(f"the answer stops early: {result.stop_reason}")
        if not result.generated:
            render.notice(f"quoted, not generated; for a model: {next_step(result.decision)}")
            return
        if result.decision is not None:
            for said in (result.decision.dropped, result.decision.truncated):
                if said:
                    render.notice(said)
        for source in result.sources:
            self._aside(f"{source.kind} {source.ref}: {source.text}")
        if result.cost_usd:
            why = f", {result.decision.reason}" if result.decision else ""
            self._aside(f"{result.backend}: ${result.cost_usd:.4f}{why}")


def _abstention(result: TaskResult, failure: str | None) -> tuple[str, str]:
    """The sentence, with why the backends that could have written an answer did not; and what to do."""
    if failure is not None:
        return f"no answer: {failure}", f"aiosctl task show {result.task_id}"
    sentence = (
        "no answer: nothing in the inputs, the session or its memories answers this, and no model was there"
    )
    if result.decision is None:
        return sentence, next_step(None)
    if result.generated:
        return f"no answer: {result.backend} ({result.model}) declined to give one", "aiosctl model list"
    missing = [f"{each.backend}: {each.rejected}" for each in result.decision.candidates if each.rejected]
    return sentence + (f" ({'; '.join(missing)})" if missing else ""), next_step(result.decision)


def next_step(decision: Decision | None) -> str:
    """The line that leads to a model: where one is configured, what is wrong with it; else what this machine lacks."""
    if decision is not None and any(c.rejected and c.model for c in decision.candidates):
        return "aiosctl model list"
    from aiosctl.servers import look  # late: it looks at the network, and only a quote needs it

    try:
        return look(os.environ).next_step
    except ConfigError:  # an OLLAMA_HOST that is no address: setup says so, an answer does not fail for it
        return "aiosctl model setup"


def not_chosen(candidate: Candidate) -> str:
    """Why a backend was passed over."""
    took = "" if candidate.predicted_s is None else f" (about {candidate.predicted_s:.1f} s)"
    return f"{candidate.rejected}{took}"
