"""aiosctl top: what the daemon does, as it does it."""

from __future__ import annotations

import os
import select
import shutil
import sys
import termios
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated

import msgspec
import typer

from aiosctl import render
from aiosctl.client import Client
from aiosctl.jobs import OPEN, age, span
from aiosctl.options import seconds
from aiosctl.verb import connect, globals_of
from aiosd.protocol.budget import BudgetGet, Limits
from aiosd.protocol.models import ModelList
from aiosd.protocol.system import Info, SystemInfo
from aiosd.protocol.tasks import TaskList
from aiosd.records import BackendInfo, Record, Task

EVERY_S = 1.0
FEW = 100
"""Tasks of one state that are asked for: more fit on no terminal."""


class View(Record, frozen=True, kw_only=True):
    """All that one picture shows."""

    info: Info
    backends: tuple[BackendInfo, ...]
    tasks: tuple[Task, ...]
    limits: Limits


def top(
    ctx: typer.Context,
    every: Annotated[
        float | None,
        typer.Option("--every", parser=seconds, metavar="TIME", help="Between two looks; else 1s."),
    ] = None,
) -> None:
    """Watch tasks, queues, backends, spend and memory. Any of q, Esc and Ctrl-C ends it; in a pipe and with --json it looks once.

    \b
    aiosctl top
    aiosctl top --json | jq '.backends[] | {name, queued}'
    aiosctl top | head -3
    """
    with connect(ctx) as client:
        if globals_of(ctx).json:
            render.document(msgspec.json.encode(looked(client)))
            return
        if not (render.for_people() and sys.stdin.isatty()):
            for line in picture(looked(client), datetime.now(UTC), columns=10_000, lines=10_000):
                render.out(line)
            return
        with _whole_screen():
            while True:
                columns, lines = shutil.get_terminal_size()
                shown = picture(looked(client), datetime.now(UTC), columns=columns, lines=lines)
                sys.stdout.write("\x1b[H" + "\x1b[K\r\n".join(map(render.safe, shown)) + "\x1b[K\x1b[J")
                sys.stdout.flush()
                if select.select([0], [], [], EVERY_S if every is None else every)[0] and os.read(0, 16) in (
                    b"q",
                    b"Q",
                    b"\x1b",
                    b"\x03",
                    b"",
                ):
                    return


def looked(client: Client) -> View:
    return View(
        info=client.call(SystemInfo()),
        backends=client.call(ModelList()).backends,
        tasks=tuple(task for state in OPEN for task in client.call(TaskList(state=state, limit=FEW)).tasks),
        limits=client.call(BudgetGet()),
    )


def picture(view: View, now: datetime, *, columns: int, lines: int) -> list[str]:
    """At most `lines` lines of at most `columns` characters: how it stands, the backends, then the tasks."""
    info = view.info
    states = {state: sum(task.state == state for task in view.tasks) for state in OPEN}
    shown = [
        f"aiosd {info.version}  up {span(info.uptime_s)}  {_spent(view.limits)}",
        "tasks " + ", ".join(f"{count} {state.replace('_', ' ')}" for state, count in states.items()),
        f"memories {info.counts.get('memories', 0)}  embedder {info.embedder}  sandbox {info.sandbox}",
        "",
    ]
    widths = (16, 8, 7, 7, 9)
    shown.append(_row(("backend", "state", "busy", "queue", "tokens/s"), widths, "model"))
    for each in view.backends:
        speed = "-" if each.tokens_per_s is None else f"{each.tokens_per_s:.1f}"
        busy = f"{each.in_flight}/{each.slots}"
        about = each.model if each.reason is None else each.reason
        shown.append(_row((each.name, each.state, busy, str(each.queued), speed), widths, about))
    widths = (8, 15, 9, 6, 9)
    shown += ["", _row(("task", "state", "for", "steps", "usd"), widths, "what")]
    for task in view.tasks:
        cells = (str(task.number), task.state, age(task, now), str(task.steps), f"{task.cost_usd:.4f}")
        shown.append(_row(cells, widths, " ".join(task.task.split())))
    if len(shown) > lines:
        hidden = len(shown) - lines + 1
        shown = [*shown[: lines - 1], f"and {hidden} more"]
    return [line.rstrip() if len(line) <= columns else line[: columns - 1] + "…" for line in shown]


def _row(cells: Sequence[str], widths: Sequence[int], last: str) -> str:
    fitted = (
        cell if len(cell) <= width else cell[: width - 1] + "…"
        for cell, width in zip(cells, widths, strict=True)
    )
    return " ".join(f"{cell:{width}}" for cell, width in zip(fitted, widths, strict=True)) + " " + last


def _spent(limits: Limits) -> str:
    day = next(each for each in limits.limits if each.scope == "day")
    cap = "" if day.cap_usd is None else f" of ${day.cap_usd:.2f}"
    return f"spent today ${day.spent_usd:.4f}{cap}"


@contextmanager
def _whole_screen() -> Iterator[None]:
    """The other screen of the terminal, without a cursor, and keys as they are pressed."""
    before = termios.tcgetattr(0)
    try:
        tty.setcbreak(0)
        sys.stdout.write("\x1b[?1049h\x1b[?25l\x1b[2J")
        yield
    except KeyboardInterrupt:
        pass  # one of the ways out
    finally:
        sys.stdout.write("\x1b[?25h\x1b[?1049l")
        sys.stdout.flush()
        termios.tcsetattr(0, termios.TCSADRAIN, before)
