"""Finds the tools of a host: the builtin ones and those in the user's files. Runs the user's code, so it runs in
the host only."""

from __future__ import annotations

import importlib.util
import inspect
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, MappingProxyType, ModuleType
from typing import Any, NamedTuple

from aiosd.records import Command, Tool
from aiosd.tools import MARK, Marked, builtin, web
from aiosd.tools.commands import function_of
from aiosd.tools.schema import NotATool, Signature, signature, tool_of
from aiosd.tools.wire import Problem

IMPORT_S = 10
"""Seconds that one file may take to import."""


class Loaded(NamedTuple):
    tool: Tool
    signature: Signature
    function: Callable[..., Any]
    file: str | None = None
    """The user's; a builtin tool has none."""


class ImportTooSlow(Exception):
    """Raised inside a file that does not come to its end."""


def load(
    folders: Sequence[Path],
    *,
    careful: bool = False,
    only: Collection[str] | None = None,
    without: Collection[str] = (),
    instead: Mapping[str, str] = MappingProxyType({}),
    commands: Mapping[str, Command] = MappingProxyType({}),
    searxng_url: str | None = None,
) -> tuple[dict[str, Loaded], tuple[Problem, ...]]:
    """Tools by name, and what was passed over and why: never does one file keep another's tools away.

    `careful` tries each file in a process of its own first. It is for when loading has ended the host, which no
    exception can prevent: os._exit(), a crash or an endless loop in native code. `only` names the files that are
    loaded, where not all are, `without` those that are not; `instead` the copies that stand for some; with `searxng_url` there is a web_search.
    """
    tools: dict[str, Loaded] = {}
    problems: list[Problem] = []
    for module in (builtin, web):
        _collect(module, tools, problems)
    for name, command in commands.items():
        _add(function_of(name, command), None, tools, problems)
    if searxng_url is not None:
        _add(web.search_at(searxng_url), None, tools, problems)
    for number, folder in enumerate(folders):
        sys.path.append(str(folder))  # last, so that `calendar.py` among the tools shadows nothing
        for path in sorted(folder.glob("*.py")):
            if path.name.startswith("_") or str(path) in without:
                continue
            if only is None or str(path) in only:
                name = f"aiosd_tools_{number}_{path.stem}"
                source = Path(instead.get(str(path), path))
                if careful and (why := _deadly(path, source, name)):
                    problems.append(Problem(file=str(path), line=None, error=why))
                else:
                    _load_file(path, source, name, tools, problems)
    return tools, tuple(problems)


def _load_file(
    path: Path, source: Path, name: str, tools: dict[str, Loaded], problems: list[Problem]
) -> None:
    try:
        with _time_limit():
            module = _import(path, source, name)
    except BaseException as exc:  # noqa: BLE001 - it may also call sys.exit(); the other files still load
        sys.modules.pop(name, None)
        traceback.print_exc()
        problems.append(_problem(path, exc))
    else:
        _collect(module, tools, problems)


def _import(path: Path, source: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, source)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses look their own module up there
    spec.loader.exec_module(module)
    return module


def _deadly(path: Path, source: Path, name: str) -> str | None:
    """How importing the file ends a process; None if it does not, though it may raise."""
    receiving, sending = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            _import(path, source, name)
        finally:
            os.write(sending, b"alive")
            os._exit(0)
    os.close(sending)
    try:
        in_time, _, _ = select.select([receiving], [], [], IMPORT_S)
        alive = bool(in_time) and bool(os.read(receiving, 1))
    finally:
        os.close(receiving)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    if alive:
        return None
    return f"importing it {ending(status)}" if in_time else f"importing it took longer than {IMPORT_S} s"


def ending(status: int) -> str:
    """What a status of waitpid() says of the process, as the rest of a sentence."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"ended the process with status {code}"
    with suppress(ValueError):  # a real-time signal has no name
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"


@contextmanager
def _time_limit() -> Iterator[None]:
    def too_slow(signum: int, frame: FrameType | None) -> None:
        raise ImportTooSlow(f"importing it took longer than {IMPORT_S} s")

    before = signal.signal(signal.SIGALRM, too_slow)
    signal.setitimer(signal.ITIMER_REAL, IMPORT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _problem(path: Path, exc: BaseException) -> Problem:
    if isinstance(exc, SyntaxError) and exc.filename == str(path):
        return Problem(file=str(path), line=exc.lineno, error=f"{type(exc).__name__}: {exc.msg}")
    frames = traceback.extract_tb(exc.__traceback__)
    line = next((frame.lineno for frame in reversed(frames) if frame.filename == str(path)), None)
    return Problem(file=str(path), line=line, error="".join(traceback.format_exception_only(exc)).strip())


def _collect(module: ModuleType, tools: dict[str, Loaded], problems: list[Problem]) -> None:
    for function in list(vars(module).values()):
        # what a file imports from another is the other's
        if not callable(function) or getattr(function, "__module__", None) != module.__name__:
            continue
        _add(function, None if module in (builtin, web) else str(module.__file__), tools, problems)


def _add(
    function: Callable[..., Any], file: str | None, tools: dict[str, Loaded], problems: list[Problem]
) -> None:
    """If it is marked as a tool. `file` is the user's, None for a builtin one."""
    marked = getattr(function, MARK, None)
    if not isinstance(marked, Marked):
        return
    try:
        found = signature(function)
        loaded = Loaded(tool_of(found, *marked), found, function, file)
        if loaded.tool.name in tools:
            raise NotATool(f"`{loaded.tool.name}`: there is a tool of that name already")
    except NotATool as exc:
        line = function.__code__.co_firstlineno if inspect.isfunction(function) else None
        problems.append(Problem(file=file or "", line=line, error=str(exc)))
    else:
        tools[loaded.tool.name] = loaded
