"""What a task is given beside its words: files, and what is piped in."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from aiosd.errors import InvalidParams, NotFound
from aiosd.framing import MAX_LINE
from aiosd.records import Input

STDIN = "-"
"""As a file name: standard input."""


def task_and_inputs(task: str | None, files: Sequence[str]) -> tuple[str, tuple[Input, ...]]:
    """The task's words and its inputs. Raises InvalidParams, and NotFound for a file that cannot be read."""
    forced = STDIN in files
    if task is None:
        if forced:
            raise InvalidParams(
                "standard input cannot be both the task and a file", hint='aiosctl run "..." -f -'
            )
        task = read_stdin("the task")
    elif not forced and _stdin_is_input():
        given = _read(sys.stdin.buffer, "standard input")
        return _words(task), (*_named_stdin(given), *map(_file, files))
    return _words(task), tuple(_forced() if name == STDIN else _file(name) for name in files)


def read_stdin(what: str) -> str:
    """All of standard input, if it is a pipe or a file. Else raises InvalidParams: nobody waits for a keyboard."""
    mode = os.fstat(0).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISREG(mode)):
        raise InvalidParams(
            f"{what} is missing: it is neither an argument nor piped in", hint="aiosctl --help"
        )
    return _read(sys.stdin.buffer, "standard input")


def lines(name: str) -> tuple[Iterator[bytes], int]:
    """Those of a file, or of standard input for `-`, and how many bytes they are; 0 where nobody knows.

    Raises NotFound for a file that cannot be read, InvalidParams where standard input is a keyboard.
    """
    if name == STDIN:
        mode = os.fstat(0)
        if not (stat.S_ISFIFO(mode.st_mode) or stat.S_ISREG(mode.st_mode)):
            raise InvalidParams(
                "a file is missing: it is neither an argument nor piped in", hint="aiosctl --help"
            )
        return iter(sys.stdin.buffer), mode.st_size if stat.S_ISREG(mode.st_mode) else 0
    try:
        file = open(name.encode(), "rb")  # noqa: SIM115  # it is read to its end, and then the process ends
    except OSError as exc:
        raise NotFound(f"{name}: {exc.strerror}") from None
    return iter(file), os.fstat(file.fileno()).st_size


def is_input(mode: int, *, at_start: bool, parents: bool) -> bool:
    """Whether standard input is meant for a task that has its words already, by its `st_mode`.

    A file is, where nobody has begun to read it. A pipe is, unless it is our parent's own standard input: then
    we stand in the body of its `while read` loop, and what is in the pipe are its next lines. Sockets, terminals
    and other devices are not.
    """
    return (stat.S_ISREG(mode) and at_start) or (stat.S_ISFIFO(mode) and not parents)


def _stdin_is_input() -> bool:
    at = os.fstat(0)
    regular = stat.S_ISREG(at.st_mode)
    return is_input(
        at.st_mode, at_start=regular and os.lseek(0, 0, os.SEEK_CUR) == 0, parents=_is_parents(at)
    )


def _is_parents(at: os.stat_result) -> bool:
    try:
        parents = os.stat(f"/proc/{os.getppid()}/fd/0")
    except FileNotFoundError:
        return False  # the parent has closed its own, or is gone
    except OSError:
        return True  # another user's (sudo): it may well be the same pipe, and lines lost are worse than -f -
    return (parents.st_dev, parents.st_ino) == (at.st_dev, at.st_ino)


def _forced() -> Input:
    text = read_stdin("`-f -` reads standard input, and that")
    return Input(name=_stdin_name(), text=text)


def _named_stdin(text: str) -> tuple[Input, ...]:
    """None for an empty one: that is how cron, ssh and CI call us."""
    return (Input(name=_stdin_name(), text=text),) if text.strip() else ()


def _stdin_name() -> str:
    """The file it was redirected from, from here if it is below; else "stdin"."""
    if not stat.S_ISREG(os.fstat(0).st_mode):
        return "stdin"
    name = os.readlink(b"/proc/self/fd/0").decode(errors="replace")
    if not os.path.exists(name):
        return "stdin"  # a here-document: its file is deleted already
    below = os.path.relpath(name)
    return name if below.startswith("../") else below


def _file(name: str) -> Input:
    try:
        with open(name.encode(), "rb") as file:  # bytes: the locale may not know the letters
            return Input(name=name, text=_read(file, name))
    except OSError as exc:
        raise NotFound(f"{name}: {exc.strerror}") from None


def _read(file: BinaryIO, name: str) -> str:
    raw = file.read(MAX_LINE + 1)
    if len(raw) > MAX_LINE:
        raise InvalidParams(f"{name} has more than {MAX_LINE:,} bytes: give a part of it")
    try:
        return raw.decode()
    except UnicodeDecodeError as exc:
        raise InvalidParams(f"{name} is not UTF-8 text (byte {exc.start})") from None


def _words(task: str) -> str:
    if not task.strip():
        raise InvalidParams("the task is empty", hint='aiosctl run "what does this project do?" -f README.md')
    return task.strip()
