"""How answers look: tables by rich on a terminal, tab-separated lines where another program reads."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any, TextIO

import msgspec

Cell = str | int | float | bool | datetime | None

GAP = 2
"""Between columns: rich's own padding, one on each side."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What a terminal may obey; a tab and a line end are what they are."""


def on_terminal(stream: TextIO) -> bool:
    return stream.isatty()


def for_people() -> bool:
    """Somebody looks at standard output; otherwise another program reads it."""
    return on_terminal(sys.stdout)


def safe(text: str, stream: TextIO | None = None) -> str:
    """The text as it may go to this stream, by default standard output.

    What a model, a tool or a file said must not command a terminal.
    """
    return printable(text) if on_terminal(stream or sys.stdout) else text


def printable(text: str) -> str:
    """The text as any terminal may have it."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text.replace("\r", ""))


def out(text: str, *, end: str = "\n") -> None:
    sys.stdout.write(safe(text) + end)


def document(raw: bytes) -> None:
    """The --json answer: the bytes of the wire and a line end."""
    sys.stdout.flush()
    sys.stdout.buffer.write(raw + b"\n")


def value(result: Any) -> str:
    """A task's result: text as it is, an object as JSON, in one line where a program reads."""
    if isinstance(result, str):
        return result
    raw = msgspec.json.encode(result)
    return (msgspec.json.format(raw, indent=2) if for_people() else raw).decode()


def notice(text: str) -> None:
    """A line beside the answer."""
    _err(f"aiosctl: {text}")


def aside(text: str) -> None:
    """A line about what goes on; dim where a terminal can."""
    _err(_dim(safe(text, sys.stderr)), ready=True)


def thought(text: str) -> None:
    """A piece of what a model thinks, dim too, without a line end of its own."""
    sys.stderr.write(_dim(safe(text, sys.stderr)))
    sys.stderr.flush()


def _dim(text: str) -> str:
    plain = not on_terminal(sys.stderr) or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    return text if plain else f"\x1b[2m{text}\x1b[0m"


def complaint(message: str, hint: str | None) -> None:
    """The one form of an error."""
    _err(f"aiosctl: {message}" + (f"\n  try: {hint}" if hint else ""))


def _err(text: str, *, ready: bool = False) -> None:
    with suppress(OSError):  # a full disk is main's to report, when all has been said
        sys.stdout.flush()  # so that both streams on one terminal keep their order
    sys.stderr.write((text if ready else safe(text, sys.stderr)) + "\n")
    sys.stderr.flush()


def table(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
    """Rows under headings; for a program without headings. The last column takes what room is left."""
    if not for_people():
        for row in rows:
            out("\t".join(_line(cell) for cell in row))
        return
    from rich.cells import cell_len  # late: 80 ms, and only people need rich
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    cells = [[safe(_line(cell)) for cell in row] for row in rows]
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    room = console.width
    for heading, *texts in zip(columns[:-1], *(row[:-1] for row in cells), strict=True):
        drawn.add_column(heading, no_wrap=True, overflow="ellipsis")
        room -= max(map(cell_len, (heading, *texts))) + GAP
    # Without a limit rich shortens all columns alike: a long text at the end would cost the ids before it.
    room = max(room, len(columns[-1]))
    drawn.add_column(columns[-1], no_wrap=True, overflow="ellipsis", max_width=room)
    for row in cells:
        drawn.add_row(*map(Text, row))
    console.print(drawn)


def fields(pairs: Iterable[tuple[str, Cell]]) -> None:
    """One thing, a line a property."""
    pairs = list(pairs)
    width = max(len(name) for name, _ in pairs)
    for name, cell in pairs:
        out(f"{name:{width}}  {_line(cell)}" if for_people() else f"{name}\t{_line(cell)}")


def record(noun: msgspec.Struct) -> None:
    fields(properties(noun).items())


def properties(noun: msgspec.Struct) -> dict[str, Cell]:
    """Every property of a record, by its name on the wire."""
    names = zip(noun.__struct_encode_fields__, noun.__struct_fields__, strict=True)
    return {on_wire: _cell(getattr(noun, name)) for on_wire, name in names}


def ids(listed: Iterable[str]) -> None:
    """-q: one id a line."""
    for each in listed:
        out(each)


def more(verb: str, cursor: str | None) -> None:
    """Says that a list was cut short, and how to go on."""
    if cursor is not None:
        notice(f"there are more; go on with: aiosctl {verb} --cursor {cursor}")


def short(ids: Sequence[str]) -> list[str]:
    """For people beginnings of the ids, 8 characters or more, that still tell them apart; for programs the ids."""
    if not for_people():
        return list(ids)
    length = 8
    while length < 36 and len({each[:length] for each in ids}) < len(set(ids)):
        length += 1
    return [each[:length] for each in ids]


@contextmanager
def progress(what: str, total: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, where that is a terminal, that moves by what is given; 0 is an unknown total."""
    if not shown or not on_terminal(sys.stderr):
        yield lambda by: None
        return
    from rich.console import Console  # late: only people see it
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(what, total=total or None)
        yield lambda by: bars.advance(bar, by)


def _cell(value: Any) -> Cell:
    match value:
        case str() | int() | float() | datetime() | None:
            return value
        case tuple() if all(isinstance(each, str) for each in value):
            return " ".join(value) or None
        case _:
            return msgspec.json.encode(value).decode()


def _line(cell: Cell) -> str:
    """In one line: a tab or a line end inside a cell would be read as the next one."""
    match cell:
        case None:
            return "-"
        case bool():
            return "yes" if cell else "no"
        case datetime():
            if for_people():
                return cell.astimezone().strftime("%Y-%m-%d %H:%M")
            return cell.isoformat().replace("+00:00", "Z")
        case float():
            return f"{cell:.6g}"
        case _:
            return " ".join(str(cell).split())
