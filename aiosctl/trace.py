"""aiosctl trace: where a task's time went, as a waterfall."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from aiosctl import render, resolve
from aiosctl.verb import answer, connect
from aiosd.protocol.tasks import TaskTrace, Trace
from aiosd.records import Span

LEAST_BAR = 10
"""Columns of the waterfall on the narrowest terminal."""

TOKENS_IN, TOKENS_OUT = "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"


def trace(
    ctx: typer.Context,
    id: Annotated[
        str, typer.Argument(metavar="ID", help="Number, id or a beginning of it, or @last.")
    ] = "@last",
) -> None:
    """Show where a task's time went: recall, queue, load, model, tools, with tokens and money.

    \b
    aiosctl trace @last
    aiosctl trace 12 --json | jq '.spans[] | select(.name == "queue")'
    """

    def text(found: Trace) -> None:
        now = datetime.now(UTC)
        if render.for_people():
            for line in waterfall(found.spans, now, shutil.get_terminal_size().columns):
                render.out(line)
        else:
            for row in rows(found.spans, now):
                render.out("\t".join(row))

    with connect(ctx) as client:
        answer(ctx, client, TaskTrace(task_id=resolve.task(client, id)), text)


def rows(spans: Sequence[Span], now: datetime) -> Iterator[tuple[str, ...]]:
    """For programs: name, seconds after the task began, seconds it took, what it used."""
    for span in spans:
        begin, seconds = _times(span, spans[0], now)
        yield span.name, f"{begin:.6f}", f"{seconds:.6f}", used(span)


def waterfall(spans: Sequence[Span], now: datetime, width: int) -> Iterator[str]:
    """A line a span: its name, what it took, a bar where it lay in the task, and what it used."""
    root = spans[0]
    total = max(_times(root, root, now)[1], 1e-6)
    depths = _depths(spans)
    names = ["  " * depths[span.span_id] + span.name for span in spans]
    notes = [used(span) for span in spans]
    name_width = min(max(map(len, names)), max(16, width // 3))
    room = width - name_width - 10 - max(map(len, notes)) - 3
    bar_width = max(room, LEAST_BAR)
    for span, name, note in zip(spans, names, notes, strict=True):
        begin, seconds = _times(span, root, now)
        lead = min(int(begin / total * bar_width), bar_width - 1)
        length = min(max(1, round(seconds / total * bar_width)), bar_width - lead)
        bar = " " * lead + "█" * length
        line = f"{_cut(name, name_width):{name_width}} {_seconds(seconds):>8}  {bar:{bar_width}}"
        yield f"{line}  {note}".rstrip()[: max(width, name_width + LEAST_BAR + 11)]


def used(span: Span) -> str:
    """Tokens, money, and how it went."""
    has = span.attributes.get
    parts: list[Any] = []
    if has(TOKENS_IN) or has(TOKENS_OUT):
        parts.append(f"{has(TOKENS_IN, 0)}→{has(TOKENS_OUT, 0)} tokens")
    if cost := has("aiosd.cost_usd"):
        parts.append(f"${cost:.4f}")
    if first := has("gen_ai.response.time_to_first_chunk"):
        parts.append(f"first after {_seconds(first)}")
    if (count := has("aiosd.memory.count")) is not None:
        parts.append(f"{count} memories")
    if decision := has("aiosd.decision"):
        parts.append(decision)
    if retried := has("aiosd.retried"):
        parts.append(f"after {retried} failed")
    if error := has("error.type"):
        parts.append(f"error {error}")
    if span.ended_at is None:
        parts.append("goes on")
    return ", ".join(parts)


def _depths(spans: Sequence[Span]) -> dict[str, int]:
    parents = {span.span_id: span.parent_id for span in spans}

    def depth(span_id: str) -> int:
        parent = parents.get(span_id)
        return 0 if parent is None else 1 + depth(parent)

    return {span.span_id: depth(span.span_id) for span in spans}


def _times(span: Span, root: Span, now: datetime) -> tuple[float, float]:
    """Seconds after the task began, and seconds it took so far."""
    begin = (span.started_at - root.started_at).total_seconds()
    return begin, ((span.ended_at or root.ended_at or now) - span.started_at).total_seconds()


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
