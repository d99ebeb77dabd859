"""The tools that every daemon has. They run in the tool host like a user's own."""

from __future__ import annotations

import os
import re
from datetime import datetime
from pathlib import Path
from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

import msgspec

from aiosd.records import COMMAND_S
from aiosd.tools import commands, ripgrep, tool, workspace
from aiosd.tools.calculator import calculate

MAX_LINES = 2000
MAX_TEXT = 60_000
"""Characters of a file in one answer; a model's window is not for whole logs."""
MAX_NAMES = 1000
MAX_FOUND = 200
MAX_SHOWN = 300
"""Characters of a line that search_files shows."""
MAX_SEARCHED = 128 * 1024 * 1024
"""Bytes of the files that one search goes through."""

Positive = Annotated[int, msgspec.Meta(ge=1)]


@tool(permissions=["*"], read_only=True)
def calculator(expression: str) -> str:
    """Computes an arithmetic expression exactly; use it for any sum rather than guessing.

    Args:
        expression: Numbers, + - * / // % **, parentheses, sqrt, abs, round, min, max, pi and e,
            as in `(3 + 4) * 12` or `round(sqrt(2), 3)`.
    """
    return calculate(expression)


@tool(permissions=["*"], read_only=True)
def clock(timezone: str | None = None) -> str:
    """The current date and time, as ISO 8601 with the offset from UTC, and the weekday.

    Args:
        timezone: An IANA name such as `Europe/Berlin` or `UTC`; without it, this machine's own.
    """
    if timezone is None:
        now = datetime.now().astimezone()
    else:
        now = datetime.now(_zone(timezone))
    return f"{now.isoformat(timespec='seconds')} {WEEKDAYS[now.weekday()]}"


WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: `Europe` is a folder of the database
        known = "" if available_timezones() else "; this machine has no database of time zones"
        raise ValueError(f"`{name[:60]}` is no IANA time zone, as `Europe/Berlin` is{known}") from None


@tool(permissions=["read"], read_only=True)
def read_file(path: str, offset: Positive = 1, limit: Positive = MAX_LINES) -> str:
    """Reads a text file of the workspace, from a line on.

    Args:
        path: The file, relative to the workspace.
        offset: The first line to read; the first of the file is 1.
        limit: How many lines to read at most.
    """
    lines = workspace.lines(workspace.read(Path.cwd(), path))
    if not lines:
        return f"[`{workspace.shown(path)}` is empty]"
    if offset > len(lines):
        raise ValueError(f"`{workspace.shown(path)}` has {len(lines)} lines; there is no line {offset}")
    taken: list[str] = []
    room = MAX_TEXT
    for line in lines[offset - 1 : offset - 1 + min(limit, MAX_LINES)]:
        if len(line) > room and taken:
            break
        taken.append(line if len(line) <= room else f"{line[:room]}[... {len(line) - room} characters more]")
        room -= len(line)
    last = offset - 1 + len(taken)
    if last < len(lines):
        taken.append(f"[lines {offset} to {last} of {len(lines)}; go on with offset={last + 1}]")
    return "\n".join(taken)


@tool(permissions=["write"])
def write_file(path: str, content: Annotated[str, msgspec.Meta(max_length=workspace.MAX_FILE)]) -> str:
    """Writes a text file of the workspace, with the folders above it; what was there is replaced.

    Args:
        path: The file, relative to the workspace.
        content: All of its text.
    """
    workspace.write(Path.cwd(), path, content)
    return f"wrote {len(workspace.lines(content))} lines to `{workspace.shown(path)}`"


@tool(permissions=["write"])
def edit_file(path: str, old: Annotated[str, msgspec.Meta(min_length=1)], new: str, all: bool = False) -> str:
    """Replaces a text in a file of the workspace, to the character.

    Args:
        path: The file, relative to the workspace.
        old: What is there now, with its blanks and line ends; with enough of its surroundings to be there once.
        new: What is to be there instead.
        all: Replace it wherever it stands, not just where it stands alone.
    """
    text = workspace.read(Path.cwd(), path)
    name = workspace.shown(path)
    if "\N{REPLACEMENT CHARACTER}" in text:
        raise workspace.NotText(f"`{name}` is not all UTF-8; editing it would change what is not")
    count = text.count(old)
    if not count:
        raise ValueError(f"`{name}` does not contain that text; read_file shows what it does contain")
    if count > 1 and not all:
        raise ValueError(
            f"`{name}` contains that text {count} times; give more of its surroundings, or all=true"
        )
    workspace.write(Path.cwd(), path, text.replace(old, new))
    return f"replaced {count} place{'s'[: count != 1]} in `{name}`"


@tool(permissions=["run"])
def run_command(
    argv: Annotated[list[str], msgspec.Meta(min_length=1)],
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=COMMAND_S)] = COMMAND_S,
) -> str:
    """Runs a program in the workspace, without a shell and without network; gives its output and exit status.

    Args:
        argv: The program and each of its arguments, as in `["grep", "-rn", "TODO", "."]`.
        timeout_s: Seconds after which it is killed.
    """
    return commands.run(argv, timeout_s=timeout_s)


@tool(permissions=["read"], read_only=True)
def list_files(path: str = ".", pattern: str = "*") -> str:
    """Lists the files of the workspace, one path a line, also those in folders below; not hidden folders.

    Args:
        path: The folder to start from, relative to the workspace.
        pattern: A glob for the name or the path of a file, such as `*.py` or `docs/*.md`.
    """
    names: list[str] = []
    try:
        for relative, name, _ in workspace.walk(Path.cwd(), path):
            if not workspace.matches(relative, name, pattern):
                continue
            if len(names) == MAX_NAMES:
                names.append(f"[more than {MAX_NAMES} files; name a folder or a narrower pattern]")
                break
            names.append(workspace.shown(relative))
    except workspace.TooMany as exc:
        names.append(f"[{exc}]")
    return "\n".join(names) or f"[no file matches `{pattern}`]"


@tool(permissions=["read"], read_only=True)
def search_files(text: Annotated[str, msgspec.Meta(min_length=1)], path: str = ".") -> str:
    """Finds the lines that contain a text, in any case, in the text files of the workspace: `PATH:LINE: text` each.

    Args:
        text: What to find, literally; not a regular expression.
        path: A file or folder to search, relative to the workspace; without it, all of it.
    """
    wanted = re.compile(re.escape(text), re.IGNORECASE)
    found: list[str] = []
    unread = 0
    room = MAX_SEARCHED
    root = Path.cwd()
    likely = ripgrep.files_with(text, root, path)
    try:
        for relative, name, folder in workspace.walk(root, path):
            try:
                room -= workspace.size_at(folder, name)
                skipped = likely is not None and os.path.join(root, relative) not in likely
                content = None if skipped else workspace.read_at(folder, name)
            except workspace.Binary:
                continue
            except (workspace.NotText, OSError):
                unread += 1
                continue
            if content is not None:
                found.extend(
                    _matching(wanted, workspace.shown(relative), content, MAX_FOUND + 1 - len(found))
                )
            if len(found) > MAX_FOUND:
                found[MAX_FOUND:] = [f"[more than {MAX_FOUND} lines; search a folder or a longer text]"]
                break
            if room < 0:
                found.append(f"[stopped at `{workspace.shown(relative)}` after {MAX_SEARCHED} bytes]")
                break
    except workspace.TooMany as exc:
        found.append(f"[{exc}]")
    if not found:
        found = [f"[no line contains `{text}`]"]
    if unread:
        found.append(f"[not searched, being too large or unreadable: {unread} file{'s'[: unread != 1]}]")
    return "\n".join(found)


def _matching(wanted: re.Pattern[str], name: str, content: str, most: int) -> list[str]:
    found: list[str] = []
    if not wanted.search(content):
        return found
    for number, line in enumerate(workspace.lines(content), 1):
        if match := wanted.search(line):
            start = max(0, match.start() - MAX_SHOWN // 2) if len(line) > MAX_SHOWN else 0
            found.append(f"{name}:{number}: {line[start : start + MAX_SHOWN].strip()}")
            if len(found) == most:
                break
    return found
