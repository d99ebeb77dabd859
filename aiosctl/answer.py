"""How a task's answer reaches the user: piece by piece on a terminal, as one text where a program reads."""

from __future__ import annotations

import os
import sys
from types import FrameType, TracebackType
from typing import Self

import msgspec

from aiosctl import asking, render
from aiosctl.asking import Asker
from aiosctl.client import typed
from aiosctl.quick import aside_line
from aiosctl.screen import Page, Spinner
from aiosd.errors import ConfigError
from aiosd.protocol.tasks import TASK_EVENT
from aiosd.records import (
    AnyEvent,
    ApprovalEvent,
    Candidate,
    Decision,
    MessageEvent,
    ProgressEvent,
    RouteEvent,
    TaskResult,
    TextEvent,
    ThinkingEvent,
    ToolCallEvent,
    ToolResultEvent,
)

ABSTAINED = 78
"""Exit status: nothing that answers, and no model that could (EX_CONFIG)."""


EXTRACTIVE = "extractive"
"""As a model: it quotes, so that nothing of its text is Markdown."""


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
    """Shows a task's events as they come, then its result. Used as a context: what is on the terminal is put in order.

    `live` prints the text on standard output, a terminal, while it is written; without, the result is printed at the end.
    `lines` prints every event as a line of JSON instead, and the result as the last one.
    """

    def __init__(self, *, live: bool, quiet: bool, lines: bool = False) -> None:
        self.task_id: str | None = None
        self._page = Page() if live else None
        self._quiet = quiet
        self._lines = lines
        self._spinner = Spinner() if not quiet and render.on_terminal(sys.stderr) else None
        self._reply = Reply()
        self._thought = Reply()
        self._printed: str | None = None
        """The last whole message on the terminal."""
        self._thinking = False
        """A line of thoughts is open."""
        self._calls: set[str] = set()
        self._failure: str | None = None
        """Of the last tool that failed."""
        self._interrupted = False
        self._asked: set[tuple[str, str]] = set()
        """Calls that wait for the user's word, with their tasks."""
        self.asker: Asker | None = None
        """Asks for it."""

    def __enter__(self) -> Self:
        if self._spinner is not None:
            self._spinner.__enter__()
            self._spinner.show("waiting for aiosd")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._spinner is not None:
            self._spinner.__exit__(kind, exc, trace)
        if isinstance(exc, KeyboardInterrupt) and self._page is not None:
            self._page.leave()  # on the line where the terminal wrote ^C
        self.end_line()

    def __call__(self, method: str, params: msgspec.Raw) -> None:
        if method != TASK_EVENT:
            return
        try:
            event = msgspec.json.decode(params, type=AnyEvent)
        except msgspec.ValidationError:
            return  # a kind that a newer daemon has; the result will say what matters
        self.task_id = self.task_id or event.task_id  # what it has started may ask between its own events
        if self._interrupted:
            raise KeyboardInterrupt
        if isinstance(event, ApprovalEvent):
            self._ask(event)
        if self._lines:
            render.document(bytes(params))
            sys.stdout.flush()
        else:
            self._show(event)

    def interrupt(self, signum: int, frame: FrameType | None) -> None:
        """For SIGINT. One before the first event waits for that, which names the task to cancel; a second does not."""
        if self.task_id is None and not self._interrupted:
            self._interrupted = True
            if self._spinner is not None:
                self._spinner.clear()
            render.notice("cancelling as soon as the task is known; Ctrl-C again leaves at once")
            return
        raise KeyboardInterrupt

    def end_line(self) -> None:
        """What follows starts on a line of its own."""
        if self._thinking:
            render.thought("\n")
            self._thinking = False
        if self._page is not None:
            self._page.end()

    def _show(self, event: AnyEvent) -> None:
        match event:
            case RouteEvent():
                chosen = next(
                    (c for c in event.decision.candidates if c.backend == event.decision.chosen), None
                )
                if self._page is not None and chosen is not None:
                    self._page.verbatim |= chosen.model == EXTRACTIVE
                self._wait(f"{event.decision.chosen} reads" if chosen is None else f"{chosen.model} reads")
            case TextEvent() if self._page is not None:
                self._write(self._reply.piece(event.offset, event.text))
            case ThinkingEvent():
                self._think(self._thought.piece(event.offset, event.text))
            case MessageEvent():
                self._thought = Reply()
                if self._page is not None and event.text:
                    self._write(self._reply.whole(event.text))
                    self.end_line()
                    self._printed = event.text
            case ToolCallEvent() if event.call_id not in self._calls:
                self._calls.add(event.call_id)
                self._aside(f"{event.name} {msgspec.json.encode(event.arguments).decode()}")
                self._wait(event.name)
            case ToolResultEvent():
                if event.status == "failed":
                    self._failure = f"{event.name} failed: {event.text}"
                    self._aside(self._failure)
                self._wait("the model")
            case ProgressEvent(stage="stopped"):
                self._aside(event.detail)
            case ProgressEvent(stage="loading"):
                self._aside(event.detail)
                self._wait((event.detail or "loading the model") + _eta(event))
            case ProgressEvent(stage="queued" | "retrying"):
                place = "" if event.place is None else f", place {event.place}"
                self._wait((event.detail or event.stage) + place + _eta(event))
            case _:
                pass

    def _ask(self, event: ApprovalEvent) -> None:
        """The question has the terminal's last line for itself until it is answered."""
        if self.asker is not None:
            self._clear()
            self.end_line()
            (self._asked.add if event.decision is None else self._asked.discard)(asking.key(event))
            self.asker.hear(event)

    def _wait(self, for_what: str) -> None:
        if self._spinner is not None and not self._asked:
            self._spinner.show(for_what)

    def _write(self, text: str) -> None:
        if text and self._page is not None:
            self._clear()
            self._page.write(text)

    def _think(self, text: str) -> None:
        """On a terminal what a model thinks is seen as it comes; a log of errors is no place for it."""
        if text and not self._quiet and render.on_terminal(sys.stderr):
            if not self._thinking:
                self._clear()
            render.thought(text)
            self._thinking = not text.endswith("\n")

    def _clear(self) -> None:
        if self._spinner is not None:
            self._spinner.clear()
        if self._thinking:
            render.thought("\n")
            self._thinking = False

    def _aside(self, text: str) -> None:
        if not self._quiet:
            self._clear()
            self.end_line()
            render.aside(aside_line(text))

    def finish(self, raw: bytes, method: str, *, json: bool) -> int:
        """Prints what of the result is not there yet, and what is to be known about it; gives the exit status."""
        result: TaskResult = typed(raw, TaskResult, method)
        if self._lines:
            render.document(b'{"kind":"result",' + raw.lstrip()[1:])
        elif json:
            render.document(raw)
        if result.abstained:
            render.complaint(*_abstention(result, self._failure))
            return ABSTAINED
        if json or self._lines:
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


def _eta(event: ProgressEvent) -> str:
    return "" if event.eta_s is None else f", about {event.eta_s:.0f} s"


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
