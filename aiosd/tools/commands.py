"""Programs as tools: those that the config declares by an argv template, and run_command's own way to run one.

There is no shell: each part of a template stays one argument, whatever a model puts into it.
"""

from __future__ import annotations

import inspect
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Annotated, Any

import msgspec

from aiosd.records import Command
from aiosd.tools import MARK, Marked
from aiosd.tools.results import MAX_KEPT

HEAD = TAIL = MAX_KEPT // 2 - 1000
"""Bytes of output that are kept from its beginning and its end."""

_PLACE = re.compile(r"\{([a-z][a-z0-9_]*)\}")


def function_of(name: str, command: Command) -> Callable[..., str]:
    """The command as a function that is marked as a tool, with a parameter a place."""

    def run_it(**arguments: str) -> str:
        return run(filled(command.argv, arguments), timeout_s=command.timeout_s)

    keyword = inspect.Parameter.KEYWORD_ONLY
    text = Annotated[str, msgspec.Meta(min_length=1)]
    places = list(dict.fromkeys(name for part in command.argv for name in _PLACE.findall(part)))
    parameters = [inspect.Parameter(place, keyword, annotation=text) for place in places]
    function: Any = run_it
    function.__name__ = name
    function.__doc__ = command.description or f"Runs `{' '.join(command.argv)}` in the workspace."
    function.__signature__ = inspect.Signature(parameters)
    function.__annotations__ = dict.fromkeys(places, text)
    setattr(function, MARK, Marked(command.permissions, None, command.read_only, ()))
    return run_it


def filled(argv: Sequence[str], arguments: dict[str, str]) -> list[str]:
    """The template with its places filled. Raises ValueError for what a program would take for an option."""
    found = []
    for part in argv:
        if part.startswith("{") and (first := _PLACE.match(part)) and arguments[first[1]].startswith("-"):
            raise ValueError(f"`{first[1]}`: a value that begins with `-` would be an option of `{argv[0]}`")
        found.append(_PLACE.sub(lambda place: arguments[place[1]], part))
    if any("\0" in part for part in found):
        raise ValueError("an argument has no NUL characters")
    return found


def run(argv: Sequence[str], *, timeout_s: float) -> str:
    """What the program wrote on both its outputs, then its exit status where that is not 0.

    Raises ValueError where there is no such program, TimeoutError with what it had written until then.
    """
    try:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except (OSError, ValueError) as exc:
        raise ValueError(
            f"`{argv[0][:200]}` cannot be run: {getattr(exc, 'strerror', None) or exc}"
        ) from None
    try:
        text, in_time = _output(process, time.monotonic() + timeout_s)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and what it left running
    status = process.wait()
    if not in_time:
        raise TimeoutError(
            f"`{argv[0]}` did not end within {timeout_s:g} s and was killed; it wrote:\n{text}"
        )
    if status == 0:
        return text
    ended = f"exit status {status}" if status > 0 else f"killed by {signal.Signals(-status).name}"
    return f"{text}{'' if text.endswith(chr(10)) or not text else chr(10)}[{ended}]"


def _output(process: subprocess.Popen[bytes], deadline: float) -> tuple[str, bool]:
    """What it wrote, its middle left out where it is long; and whether it came to its end."""
    assert process.stdout is not None
    head, tail, dropped = bytearray(), bytearray(), 0
    ended = os.pidfd_open(process.pid)
    in_time = over = False
    with process.stdout as stream:
        os.set_blocking(stream.fileno(), False)
        waited_for = [stream.fileno(), ended]
        while not over:
            patience = deadline - time.monotonic()
            ready = select.select(waited_for, [], [], patience)[0] if patience > 0 else []
            if not ready:
                break
            in_time = over = ended in ready  # a child that it left may hold the pipe: that is not waited for
            while piece := stream.read(1 << 16):
                kept = max(0, HEAD - len(head))
                head += piece[:kept]
                tail += piece[kept:]
                dropped += max(0, len(tail) - TAIL)
                del tail[:-TAIL]
                if time.monotonic() > deadline:
                    break
            if piece == b"":
                waited_for = [ended]
    os.close(ended)
    left_out = f"\n[... {dropped} bytes are left out ...]\n".encode() if dropped else b""
    return (bytes(head) + left_out + bytes(tail)).decode(errors="replace"), in_time
