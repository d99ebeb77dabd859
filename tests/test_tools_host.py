"""Calls through the registry into real hosts: what a caller gets, whatever a tool does."""

from __future__ import annotations

import os
import re
import select
import signal
import time
import zipfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from aiosd import child
from aiosd.audit import Audit
from aiosd.config import Config
from aiosd.errors import (
    DeadlineExceeded,
    InvalidParams,
    InvalidState,
    NotFound,
    Overloaded,
    PermissionDenied,
    RateLimited,
    ToolFailed,
)
from aiosd.protocol.system import SystemInfo
from aiosd.protocol.tools import ToolList
from aiosd.records import Session, ToolResult
from aiosd.secrets import Secrets
from aiosd.state.database import open_database
from aiosd.tools import host, registry, results
from aiosd.tools.hosts import MAX_CALLS, Walls
from aiosd.tools.kernel import KernelTool, kernel_tool
from aiosd.tools.packages import Packages, declared
from aiosd.tools.registry import Registry, open_registry
from aiosd.tools.results import MAX_FILES, MAX_TEXT
from tests.daemon import Daemon, Silent
from tests.processes import Host

pytestmark = pytest.mark.anyio

LONG_S = 30.0
"""A deadline that nothing here meets; the machine may be slow."""

TOOLS = '''
from __future__ import annotations
import asyncio, ctypes, enum, os, signal, subprocess, sys, time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
import msgspec
from aiosd.tools import tool

opened = open("/dev/null")

@dataclass
class Item:
    name: str
    size: int = 1

class Color(enum.Enum):
    RED = "red"

@tool(permissions=["*"])
def echo(text: str) -> str:
    return text

@tool(permissions=["*"])
async def later(text: str) -> str:
    await asyncio.sleep(0)
    return text

@tool(permissions=["*"])
def types(items: list[Item], color: Color = Color.RED) -> dict:
    assert all(isinstance(item, Item) for item in items)
    return {"sizes": [item.size for item in items], "color": color, "on": date(2025, 1, 2)}

@tool(permissions=["*"])
def returns(what: str):
    return {
        "none": None, "text": "a", "number": 3, "list": [1, "a"], "object": {"a": 1}, "item": Item("x"),
        "class": object(), "function": print, "long": "x" * 300_000, "wide": ["y" * 300_000],
        "wide object": {"a": "y" * 300_000}, "surrogate": "a\\ud800b", "big int": 10**30, "euros": "€" * 50_000,
        "controls": "\\1" * 1_000_000, "huge": "x" * 5_000_000, "huge controls": "\\1" * 2_000_000,
        "set": {1}, "nan": float("nan"), "generator": (n for n in "ab"),
    }[what]

class Rude(Exception):
    def __str__(self):
        raise RuntimeError

@tool(permissions=["*"])
def raises(what: str):
    if what == "loop":
        return raises(what)
    raise {"type": TypeError("no good"), "exit": SystemExit(3), "interrupt": KeyboardInterrupt(), "empty": ValueError(),
           "rude": Rude(), "group": ExceptionGroup("two", [ValueError("a")]), "memory": MemoryError("all of it"),
           "long": ValueError("x" * 300_000)}[what]

@tool(permissions=["*"])
async def raises_later():
    raise LookupError("later")

@tool(permissions=["*"])
def dies(how: str):
    match how:
        case "_exit": os._exit(3)
        case "_exit 0": os._exit(0)
        case "segv": ctypes.string_at(0)
        case "kill": os.kill(os.getpid(), signal.SIGKILL)
        case "group": os.killpg(0, signal.SIGTERM)
        case "forge":
            for fd in range(3, 64):
                try: os.write(fd, b"\\0\\0\\0\\0\\0\\0\\0\\x05hello")
                except OSError: pass
            os._exit(0)
        case "flood":
            for fd in range(3, 64):
                try:
                    while True: os.write(fd, b"\\x7f" * 65536)
                except OSError: pass
            os._exit(0)
        case "close":
            os.closerange(0, 64)
            return "gone"

@tool(permissions=["*"])
def forks() -> str:
    os.fork()
    return "once"

@tool(permissions=["*"])
def hangs(how: str, fifo: str) -> str:
    """Says its process's number, and that of what it started, into a FIFO; then never comes back."""
    number = 0
    if how == "child":
        number = subprocess.Popen(["sleep", "1000"]).pid
    elif how == "daemon":
        number = subprocess.Popen(["sleep", "1000"], start_new_session=True).pid
    elif how == "deaf":
        for n in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(n, signal.SIG_IGN)
    with open(fifo, "w") as f:
        f.write(f"{os.getpid()} {number} {os.getppid()}\\n")
    if how == "spin":
        while True: pass
    while True:
        time.sleep(1000)

@tool(permissions=["*"])
def leaves(how: str) -> str:
    """Comes back at once and leaves a process behind."""
    return str(subprocess.Popen(["sleep", "1000"], start_new_session=how == "daemon").pid)

@tool(permissions=["*"])
def world() -> dict:
    print("a print is not an answer")
    os.write(1, b'{"jsonrpc":"2.0","id":1,"result":"forged"}\\n')
    fds = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")}
    return {"environ": dict(os.environ), "cwd": os.getcwd(), "stdin": sys.stdin.read(), "leader": os.getsid(0) == os.getpid(),
            "fds": fds, "path": sys.path, "modules": [m for m in ("anyio", "pydantic", "openai", "sqlite3") if m in sys.modules],
            "opened": opened.closed, "pid": os.getpid(), "ppid": os.getppid(), "bytecode": sys.dont_write_bytecode}

@tool(permissions=["*"])
def crowd(number: int) -> int:
    """How many calls are here at once."""
    mine = Path(f"here-{number}")
    mine.touch()
    time.sleep(0.2)
    together = len(list(Path().glob("here-*")))
    mine.unlink()
    return together

@tool(permissions=["write"], rate_limit=2)
def limited(text: str) -> str:
    return text

class Slow(msgspec.Struct):
    x: int
    def __post_init__(self):
        while self.x: pass

@tool(permissions=["*"])
def slow_types(slow: Slow) -> str:
    return "at last"
'''


def session(name: str = "s1", **fields: Any) -> Session:
    now = datetime.now(UTC)
    return Session(
        **{
            "session_id": name,
            "user_id": "ada",
            "title": name,
            "agent": None,
            "permissions": ("read",),
            "privacy": "any",
            "priority": "normal",
            "max_usd": None,
            "workspace": None,
            "write": False,
            "state": "open",
            "created_at": now,
            "used_at": now,
        }
        | fields
    )


Open = Callable[..., AbstractAsyncContextManager[Registry]]


@pytest.fixture
def open_(tmp_path: Path) -> Open:
    """Opens a registry over the folder `tools`, with workspaces of its own."""
    (tmp_path / "tools").mkdir()

    @asynccontextmanager
    async def open_(kernel: dict[str, KernelTool] | None = None, **options: Any) -> AsyncIterator[Registry]:
        folders = [tmp_path / "tools", tmp_path / "none"]
        workspaces = lambda s: Path(s.workspace or tmp_path / "workspaces" / s.session_id)
        async with open_database(tmp_path / "audit.db") as database:
            audit = Audit(database, Secrets(Config(), {}))
            rooms: dict[str, Any] = {
                "outputs": tmp_path / "outputs",
                "versions": tmp_path / "versions",
                "packages": Packages(tmp_path / "packages", os.environ),
            }
            async with open_registry(folders, workspaces, kernel or {}, audit, **rooms | options) as opened:
                yield opened

    return open_


@pytest.fixture
async def tools(open_: Open, tmp_path: Path) -> AsyncIterator[Registry]:
    (tmp_path / "tools" / "mine.py").write_text(TOOLS)
    async with open_() as opened:
        assert await opened.problems() == ()
        yield opened


async def call(tools: Registry, name: str, /, *, timeout_s: float = LONG_S, **arguments: Any) -> ToolResult:
    return await tools.call(session(), name, arguments, timeout_s=timeout_s)


def text(result: ToolResult) -> str:
    (block,) = result.content
    return block.text


# --- what a call gives -------------------------------------------------------------------------------------


async def test_sync_and_async_functions_are_called_with_the_types_they_ask_for(tools: Registry) -> None:
    assert text(await call(tools, "echo", text="hello €")) == "hello €"
    assert text(await call(tools, "later", text="hello")) == "hello"
    result = await call(tools, "types", items=[{"name": "a"}, {"name": "b", "size": 2}])
    assert text(result) == '{"sizes":[1,2],"color":"red","on":"2025-01-02"}'
    assert result.structured_content == {"sizes": [1, 2], "color": "red", "on": "2025-01-02"}


async def test_a_returned_value_becomes_text_and_objects_also_structure(tools: Registry) -> None:
    for what, expected, structured in (
        ("none", "", None),
        ("text", "a", None),
        ("number", "3", None),
        ("list", '[1,"a"]', None),
        ("object", '{"a":1}', {"a": 1}),
        ("item", '{"name":"x","size":1}', {"name": "x", "size": 1}),
        ("set", "[1]", None),
        ("nan", "null", None),
        ("surrogate", "a?b", None),
        ("big int", str(10**30), None),
    ):
        result = await call(tools, "returns", what=what)
        assert (text(result), result.structured_content, result.is_error) == (expected, structured, False)


async def test_what_json_cannot_hold_is_a_clear_error(tools: Registry) -> None:
    for what, kind in (
        ("class", "object"),
        ("function", "builtin_function_or_method"),
        ("generator", "generator"),
    ):
        result = await call(tools, "returns", what=what)
        assert result.is_error
        assert text(result).startswith(f"TypeError: `returns` returned a `{kind}` that JSON cannot hold")


def kept_in(told: str) -> Path:
    """The file that a shortened output names."""
    return Path(told.split("`")[1])


async def test_of_a_long_output_the_ends_are_shown_and_all_of_it_is_kept(tools: Registry) -> None:
    for what, whole in (
        ("long", "x" * 300_000),
        ("wide", f'["{"y" * 300_000}"]'),
        ("wide object", f'{{"a":"{"y" * 300_000}"}}'),
        ("controls", "\1" * 1_000_000),
    ):
        result = await call(tools, "returns", what=what)
        assert len(text(result)) < MAX_TEXT and result.structured_content is None
        head, note, tail = text(result).split("\n")
        left_out, length = (int(word) for word in note.split() if word.isdigit())
        assert (left_out + len(head) + len(tail), whole[: len(head)]) == (length, head)
        kept = kept_in(note).read_text()
        assert kept == whole and kept.endswith(tail)
    assert text(await call(tools, "returns", what="euros")) == "€" * 50_000  # as many as a model is shown


async def test_calls_of_one_host_wait_for_their_turn(tools: Registry) -> None:
    seen: list[int] = []

    async def one(number: int) -> None:
        seen.append(int(text(await call(tools, "crowd", number=number))))

    async with anyio.create_task_group() as together:
        for number in range(3 * MAX_CALLS):
            together.start_soon(one, number)
    assert len(seen) == 3 * MAX_CALLS and 1 < max(seen) <= MAX_CALLS


async def test_a_turn_that_does_not_come_is_told_apart_from_a_slow_tool(
    tools: Registry, tmp_path: Path
) -> None:
    fifos = [tmp_path / "workspaces" / "s1" / f"fifo{number}" for number in range(MAX_CALLS)]
    fifos[0].parent.mkdir(parents=True)
    async with anyio.create_task_group() as together:
        for fifo in fifos:
            os.mkfifo(fifo)
            together.start_soon(partial(call, tools, "hangs", how="sleep", fifo=str(fifo)))
        for fifo in fifos:
            await anyio.to_thread.run_sync(fifo.read_text)  # it is at work
        with pytest.raises(DeadlineExceeded, match=f"{MAX_CALLS} other calls of the session were at work"):
            await call(tools, "echo", text="a", timeout_s=0.2)
        together.cancel_scope.cancel()
    assert text(await call(tools, "echo", text="a")) == "a"


async def test_what_is_kept_of_an_output_has_an_end_that_is_told(tools: Registry) -> None:
    for what, size in (("huge", results.MAX_KEPT), ("huge controls", results.MAX_ENCODED // 6)):
        result = await call(tools, "returns", what=what)
        kept = kept_in(text(result)).read_text()
        body, note = kept.rsplit("\n", 1)
        assert len(body) == size and note.startswith("[cut here: ") and text(result).endswith(note)


async def test_a_sessions_own_tools_alone_read_what_is_kept_and_none_writes_it(
    tools: Registry, tmp_path: Path
) -> None:
    one, other = session("s1", permissions=("*",)), session("s2", permissions=("*",))

    async def use(session: Session, name: str, **arguments: Any) -> str:
        return text(await tools.call(session, name, arguments, timeout_s=LONG_S, by="owner"))

    told = await use(one, "run_command", argv=["seq", "1", "100000"])
    assert told.startswith("1\n2\n") and told.endswith("\n100000\n")
    path = told.split("`")[1]
    assert (await use(one, "read_file", path=path, offset=54321, limit=1)).startswith("54321\n")
    assert (await use(one, "search_files", path=path, text="77777")) == f"{path}:77777: 77777"
    assert (await use(one, "run_command", argv=["tail", "-n", "1", path])) == "100000\n"
    assert (await use(one, "write_file", path=path, content="")).startswith("OutsideWorkspace: ")
    assert "Read-only" in await use(one, "run_command", argv=["rm", path])
    assert (await use(other, "read_file", path=path)).startswith("OutsideWorkspace: ")
    assert "No such file" in await use(other, "run_command", argv=["cat", path])
    away = await use(one, "read_file", path=f"{Path(path).parent}/../../audit.db")
    assert away.startswith("OutsideWorkspace: ")
    await tools.end("s1")
    assert not kept_in(told).exists()


async def test_the_newest_of_many_long_outputs_are_kept(tools: Registry) -> None:
    told = [text(await call(tools, "returns", what="long")) for _ in range(MAX_FILES + 2)]
    kept = [kept_in(each) for each in told]
    assert len(set(kept)) == len(kept)
    assert [path.exists() for path in kept] == [False] * 2 + [True] * MAX_FILES


async def test_a_tool_that_raises_gives_type_and_message_and_no_traceback(tools: Registry) -> None:
    for what, expected in (
        ("type", "TypeError: no good"),
        ("exit", "SystemExit: 3"),
        ("interrupt", "KeyboardInterrupt"),
        ("empty", "ValueError"),
        ("rude", "Rude"),
        ("group", "ExceptionGroup: two (1 sub-exception)"),
        ("memory", "MemoryError: all of it"),
        ("loop", "RecursionError: maximum recursion depth exceeded"),
        ("long", "ValueError: xxx"),
    ):
        result = await call(tools, "raises", what=what)
        assert result.is_error
        assert text(result).startswith(expected)
        assert "Traceback" not in text(result)
        assert len(text(result)) < MAX_TEXT + 100


async def test_an_async_tool_that_raises_gives_its_own_exception(tools: Registry) -> None:
    assert text(await call(tools, "raises_later")) == "LookupError: later"


async def test_a_tool_that_kills_its_process_fails_by_name_and_the_next_call_works(tools: Registry) -> None:
    for how, words in (
        ("_exit", "`dies` ended the process with status 3"),
        ("_exit 0", "`dies` ended the process with status 0"),
        ("segv", "`dies` was killed by SIGSEGV"),
        ("kill", "`dies` was killed by SIGKILL"),
        ("group", "`dies` was killed by SIGTERM"),
        ("forge", "`dies` gave an answer that is none"),
        ("flood", "`dies` gave more than"),
        ("close", "`dies` ended the process with status"),
    ):
        with pytest.raises(ToolFailed) as caught:
            await call(tools, "dies", how=how)
        assert words in str(caught.value)
        assert text(await call(tools, "echo", text="still here")) == "still here"


async def test_a_tool_that_forks_answers_once(tools: Registry) -> None:
    assert text(await call(tools, "forks")) == "once"
    assert text(await call(tools, "echo", text="next")) == "next"


async def test_a_tools_world_is_its_workspace_and_nothing_of_the_daemons(
    tools: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    fifo = made_fifo(tmp_path)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: call(tools, "hangs", how="sleep", fifo=str(fifo)))
        await numbers(fifo)  # beside another call, whose answer it must not be able to read
        world = (await call(tools, "world")).structured_content
        tasks.cancel_scope.cancel()
    assert world["environ"] == {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
    assert world["cwd"] == str(tmp_path / "workspaces" / "s1")
    assert (tmp_path / "workspaces" / "s1").stat().st_mode & 0o777 == 0o700
    assert (world["stdin"], world["leader"], world["modules"], world["opened"]) == ("", True, [], False)
    assert "" not in world["path"]
    assert world["path"][-2] == str(tmp_path / "tools")
    # beside the three standard ones: its own answer's pipe, and what the user's module opened
    rest = [target for fd, target in world["fds"].items() if int(fd) > 2]
    assert sorted(target.split(":")[0] for target in rest) == ["/dev/null", "pipe"]
    assert not (tmp_path / "tools" / "__pycache__").exists()


async def test_user_code_never_runs_in_the_daemon(tools: Registry) -> None:
    one, two = [(await call(tools, "world")).structured_content for _ in range(2)]
    assert one["ppid"] == two["ppid"] != os.getpid()
    assert one["pid"] != two["pid"]


# --- deadlines, cancellation, and what is left behind ------------------------------------------------------


def made_fifo(tmp_path: Path, name: str = "fifo", session: str = "s1") -> Path:
    """In the session's workspace: elsewhere no tool could write to it."""
    fifo = tmp_path / "workspaces" / session / name
    fifo.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.mkfifo(fifo)
    return fifo


async def numbers(fifo: Path) -> list[int]:
    """What `hangs` said: the call's process, one that it started (or 0), and the host's, as numbered out here."""
    said = [int(n) for n in (await anyio.to_thread.run_sync(fifo.read_text)).split()]
    host = Host(fifo.parent)
    return [host.outside(n) if n else 0 for n in said]


async def gone(pid: int) -> None:
    """Returns when the process has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with anyio.fail_after(LONG_S):
            await anyio.wait_readable(descriptor)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("how", ["sleep", "spin", "child", "daemon", "deaf"])
async def test_a_call_past_its_deadline_is_killed_with_all_it_started(
    tools: Registry, tmp_path: Path, how: str
) -> None:
    fifo = made_fifo(tmp_path)
    found: list[int] = []

    async def note() -> None:
        found.extend(await numbers(fifo))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(note)
        with pytest.raises(DeadlineExceeded, match="`hangs` did not answer within 1.5 s"):
            await call(tools, "hangs", how=how, fifo=str(fifo), timeout_s=1.5)
    await gone(found[0])
    if found[1]:
        await gone(found[1])
    assert text(await call(tools, "echo", text="still here")) == "still here"


@pytest.mark.parametrize("how", ["child", "daemon"])
async def test_a_cancelled_call_is_killed_with_all_it_started(
    tools: Registry, tmp_path: Path, how: str
) -> None:
    fifo = made_fifo(tmp_path)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: call(tools, "hangs", how=how, fifo=str(fifo)))
        process, started, _ = await numbers(fifo)
        tasks.cancel_scope.cancel()
    await gone(process)
    await gone(started)
    assert text(await call(tools, "echo", text="still here")) == "still here"


@pytest.mark.parametrize("how", ["child", "daemon"])
async def test_what_a_finished_call_leaves_behind_is_killed(
    tools: Registry, tmp_path: Path, how: str
) -> None:
    await call(tools, "leaves", how=how)
    for pid in Host(tmp_path / "workspaces" / "s1").processes():
        await gone(pid)


async def test_what_a_file_started_at_its_import_lives_as_long_as_the_host(
    open_: Open, tmp_path: Path
) -> None:
    (tmp_path / "tools" / "mine.py").write_text(
        "import subprocess\nfrom aiosd.tools import tool\n"
        "companion = subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
        "@tool(permissions=['*'])\ndef pid() -> int:\n    return companion.pid\n"
    )
    async with open_() as tools:
        pids = [int(text(await call(tools, "pid"))) for _ in range(2)]
        companion = Host(tmp_path / "workspaces" / "s1").outside(pids[0])
        assert pids[0] == pids[1]
    await gone(companion)


async def test_one_calls_end_leaves_another_call_and_its_processes_alone(
    tools: Registry, tmp_path: Path
) -> None:
    fifo = made_fifo(tmp_path)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: call(tools, "hangs", how="daemon", fifo=str(fifo)))
        process, started, _ = await numbers(fifo)
        for _ in range(3):
            await call(tools, "leaves", how="daemon")
        os.kill(process, 0)
        os.kill(started, 0)
        tasks.cancel_scope.cancel()


async def test_calls_run_side_by_side(tools: Registry, tmp_path: Path) -> None:
    """Each of the five waits, and says so, before any is ended."""
    async with anyio.create_task_group() as tasks:
        for n in range(5):
            fifo = made_fifo(tmp_path, f"fifo{n}")
            tasks.start_soon(partial(call, tools, "hangs", how="sleep", fifo=str(fifo)))
        hosts = [(await numbers(fifo.with_name(f"fifo{n}")))[2] for n in range(5)]
        assert len(set(hosts)) == 1
        assert text(await call(tools, "echo", text="meanwhile")) == "meanwhile"
        tasks.cancel_scope.cancel()


async def test_hostile_types_count_as_part_of_the_call(tools: Registry) -> None:
    with pytest.raises(DeadlineExceeded):
        await call(tools, "slow_types", slow={"x": 1}, timeout_s=0.5)


async def test_a_killed_host_fails_its_calls_and_the_next_call_has_a_new_one(
    tools: Registry, tmp_path: Path
) -> None:
    fifo = made_fifo(tmp_path)
    process = 0

    async def kill() -> None:
        nonlocal process
        process, _, its_host = await numbers(fifo)
        os.kill(its_host, signal.SIGKILL)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(kill)
        with pytest.raises(ToolFailed, match="`hangs`"):
            await call(tools, "hangs", how="sleep", fifo=str(fifo))
    await gone(process)
    assert text(await call(tools, "echo", text="again")) == "again"


# --- one host a session ------------------------------------------------------------------------------------


async def host_of(tools: Registry, name: str) -> int:
    result = await tools.call(session(name), "world", {}, timeout_s=LONG_S)
    return Host(Path(result.structured_content["cwd"])).pid


async def test_each_session_has_its_own_host_until_it_ends(tools: Registry) -> None:
    one, two = await host_of(tools, "one"), await host_of(tools, "two")
    assert one != two
    assert await host_of(tools, "one") == one
    await tools.end("one")
    await gone(one)
    assert await host_of(tools, "one") != one
    assert await host_of(tools, "two") == two
    await tools.end("one")
    await tools.end("never seen")


async def test_the_least_recently_used_host_makes_room_and_a_busy_one_never_does(
    open_: Open, tmp_path: Path
) -> None:
    (tmp_path / "tools" / "mine.py").write_text(TOOLS)
    async with open_(max_hosts=2) as tools:
        one, two = await host_of(tools, "one"), await host_of(tools, "two")
        assert await host_of(tools, "one") == one
        await host_of(tools, "three")
        await gone(two)
        async with anyio.create_task_group() as tasks:
            for name in ("one", "three"):
                fifo = made_fifo(tmp_path, session=name)
                arguments = {"how": "sleep", "fifo": str(fifo)}
                tasks.start_soon(partial(tools.call, session(name), "hangs", arguments, timeout_s=LONG_S))
                await numbers(fifo)
            with pytest.raises(Overloaded, match="2 sessions"):
                await tools.call(session("two"), "echo", {"text": "a"}, timeout_s=0.2)
            tasks.cancel_scope.cancel()
        assert await host_of(tools, "two")


async def test_a_registry_that_closes_ends_its_hosts_and_their_calls(open_: Open, tmp_path: Path) -> None:
    (tmp_path / "tools" / "mine.py").write_text(TOOLS)
    fifo = made_fifo(tmp_path)
    failed = anyio.Event()

    async with anyio.create_task_group() as tasks:

        async def hang(tools: Registry) -> None:
            with pytest.raises(ToolFailed):
                await call(tools, "hangs", how="daemon", fifo=str(fifo))
            failed.set()

        async with open_() as tools:
            tasks.start_soon(hang, tools)
            found = await numbers(fifo)
        for pid in found:
            await gone(pid)
        await failed.wait()


async def test_a_workspace_that_is_gone_is_said(tools: Registry, tmp_path: Path) -> None:
    with pytest.raises(InvalidState, match="is not there any more"):
        await tools.call(session(workspace=str(tmp_path / "gone")), "echo", {"text": "a"}, timeout_s=LONG_S)


async def test_the_workspace_of_a_session_is_what_its_file_tools_see(tools: Registry, tmp_path: Path) -> None:
    (tmp_path / "tools" / "os.py").write_text("raise SystemExit")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "os.py").write_text("a module of the workspace is never imported")
    mine = session(workspace=str(tmp_path / "mine"))
    result = await tools.call(mine, "read_file", {"path": "os.py"}, timeout_s=LONG_S)
    assert text(result) == "a module of the workspace is never imported"
    outside = await tools.call(mine, "read_file", {"path": "../tools/mine.py"}, timeout_s=LONG_S)
    assert outside.is_error
    assert text(outside).startswith("OutsideWorkspace: ")


# --- refusals ----------------------------------------------------------------------------------------------


async def test_an_unknown_tool_is_not_found_and_names_its_neighbours(tools: Registry) -> None:
    with pytest.raises(NotFound, match="no tool `calculater`; did you mean `calculator`"):
        await call(tools, "calculater")
    with pytest.raises(NotFound, match="no tool `zzz`$"):
        await tools.get("zzz")
    with pytest.raises(NotFound):
        await tools.offered(session(), ["zzz"])


async def test_a_denied_tool_says_which_permission_is_missing(tools: Registry) -> None:
    with pytest.raises(PermissionDenied, match="`write` or `limited`, and has `read`"):
        await call(tools, "limited", text="a")


async def test_arguments_that_do_not_fit_name_their_place(tools: Registry) -> None:
    with pytest.raises(InvalidParams, match=r"^arguments\.items\[1\]\.size: expected int, got str$"):
        await call(tools, "types", items=[{"name": "a"}, {"name": "b", "size": "2"}])


async def test_a_rate_limit_is_the_users_over_all_sessions_and_refused_calls_use_none(
    tools: Registry,
) -> None:
    writer = session("a", permissions=("write",))
    other = session("b", permissions=("write",))
    for _ in range(3):
        with pytest.raises(InvalidParams):
            await tools.call(writer, "limited", {}, timeout_s=LONG_S)
        with pytest.raises(PermissionDenied):
            await tools.call(session("c"), "limited", {"text": "a"}, timeout_s=LONG_S)
    for who in (writer, other):
        assert text(await tools.call(who, "limited", {"text": "a"}, timeout_s=LONG_S)) == "a"
    for who in (writer, other, session("new", permissions=("*",))):
        with pytest.raises(RateLimited, match="2 times a minute") as caught:
            await tools.call(who, "limited", {"text": "a"}, timeout_s=LONG_S)
        assert 0 < caught.value.data["retry_after_s"] <= 30
    grace = session("g", user_id="grace", permissions=("write",))
    assert text(await tools.call(grace, "limited", {"text": "a"}, timeout_s=LONG_S)) == "a"


async def test_a_session_is_offered_what_it_may_use_and_a_run_may_narrow_it(tools: Registry) -> None:
    offered = {tool.name for tool in await tools.offered(session())}
    assert {"calculator", "clock", "read_file", "list_files", "search_files", "echo"} <= offered
    assert "limited" not in offered
    assert [tool.name for tool in await tools.offered(session(), ["limited", "echo"])] == ["echo"]
    assert await tools.offered(session(), []) == ()
    names = [tool.name for tool in await tools.list()]
    assert names == sorted(names)
    assert (await tools.get("limited")).rate_limit == 2
    assert (await tools.get("calculator")).annotations == {"readOnlyHint": True}


# --- the user's files --------------------------------------------------------------------------------------

GOOD = "from aiosd.tools import tool\n@tool(permissions=['*'])\ndef good() -> str:\n    return 'good'\n"


@pytest.mark.parametrize(
    ("source", "line", "words"),
    [
        ("import nothing_of_that_name\n", 1, "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("x = 1\ndef broken(:\n", 2, "SyntaxError: "),
        ("def f():\n    1 / 0\n\nf()\n", 2, "ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit('enough')\n", 2, "SystemExit: enough"),
        ("raise KeyboardInterrupt\n", 1, "KeyboardInterrupt"),
        ("import json\njson.loads('x')\n", 2, "JSONDecodeError"),
        ("from aiosd.tools import tool\n\n@tool\ndef bare(x): ...\n", 3, "parameter `x` has no annotation"),
        ("from aiosd.tools import tool\n@tool\ndef many(*x: int): ...\n", 2, "`*x`"),
        ("from aiosd.tools import tool\n@tool\ndef clock(): ...\n", 2, "a tool of that name already"),
        ("from aiosd.tools import tool\n@tool(rate_limit=0)\ndef never(): ...\n", 2, "rate_limit"),
        ("import os\nos._exit(0)\n", None, "importing it ended the process with status 0"),
        ("import os\nos.abort()\n", None, "importing it was killed by SIGABRT"),
        ("\0", None, "null bytes"),
        ("# -*- coding: latin-9000 -*-\n", None, "unknown encoding"),
    ],
)
async def test_a_file_that_fails_is_reported_and_the_others_load(
    open_: Open, tmp_path: Path, source: str, line: int | None, words: str
) -> None:
    (tmp_path / "tools" / "bad.py").write_text(source)
    (tmp_path / "tools" / "good.py").write_text(GOOD)
    (tmp_path / "tools" / "_helper.py").write_text("raise SystemExit")
    async with open_() as tools:
        (problem,) = await tools.problems()
        assert words in problem.error
        assert problem.file == str(tmp_path / "tools" / "bad.py")
        assert line is None or problem.line == line
        assert str(problem).startswith(problem.file)
        assert text(await call(tools, "good")) == "good"
        assert text(await call(tools, "calculator", expression="12*7")) == "84"


async def test_a_file_may_import_its_neighbour_and_is_no_owner_of_what_it_imports(
    open_: Open, tmp_path: Path
) -> None:
    (tmp_path / "tools" / "_shared.py").write_text(GOOD)
    (tmp_path / "tools" / "user.py").write_text(f"from _shared import good as theirs\n{GOOD}")
    async with open_() as tools:
        assert await tools.problems() == ()
        assert text(await call(tools, "good")) == "good"


async def test_a_changed_file_is_seen_by_the_next_list_and_the_next_call(open_: Open, tmp_path: Path) -> None:
    file = tmp_path / "tools" / "good.py"
    file.write_text(GOOD)
    async with open_() as tools:
        assert text(await call(tools, "good")) == "good"
        file.write_text(GOOD.replace("'good'", "'better'") + "@tool\ndef more() -> None: ...\n")
        assert "more" in {tool.name for tool in await tools.list()}
        assert text(await call(tools, "good")) == "better"
        file.unlink()
        with pytest.raises(NotFound):
            await call(tools, "good")


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ("def broken(:\n", "SyntaxError"),
        ("import os\nos._exit(0)\n", "importing it ended the process with status 0"),
        ("from aiosd.tools import tool\n@tool\ndef bare(x): ...\n", "parameter `x` has no annotation"),
    ],
)
async def test_where_a_changed_file_is_broken_its_last_good_version_goes_on(
    open_: Open, tmp_path: Path, broken: str, why: str
) -> None:
    file = tmp_path / "tools" / "good.py"
    where = f"{GOOD}\n@tool(permissions=['*'])\ndef where() -> str:\n    return __file__\n"
    file.write_text(where)
    walls = Walls(hidden=(tmp_path / "versions",))  # as the daemon has it
    async with open_(walls=walls) as tools:
        assert text(await call(tools, "good")) == "good"
        file.write_text(broken)
        assert text(await call(tools, "good")) == "good"
        assert text(await call(tools, "where")) == str(file)
        (problem,) = await tools.problems()
        assert problem.file == str(file) and why in problem.error
        assert re.search(r"; its version of \d{4}-\d\d-\d\d \d\d:\d\d UTC goes on$", problem.error)
    async with open_(walls=walls) as tools:  # also in the next daemon
        assert text(await call(tools, "good")) == "good"
        file.write_text(where.replace("'good'", "'better'"))
        assert text(await call(tools, "good")) == "better"
        assert await tools.problems() == ()
        file.write_text(broken)
        assert text(await call(tools, "good")) == "better"
        file.unlink()
        assert await tools.problems() == ()
        with pytest.raises(NotFound):
            await call(tools, "good")


def wheel(folder: Path, name: str, source: str) -> Path:
    """A package of one module."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}.py", source)
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    return path


class Watched(Packages):
    """Begins to install once it may."""

    def __init__(self, base: Path) -> None:
        super().__init__(base, os.environ)
        self.may = anyio.Event()
        self.ended = anyio.Event()

    async def install(self, wanted: tuple[str, ...]) -> None:
        await self.may.wait()
        await super().install(wanted)
        self.ended.set()


def needing(package: Path, source: str) -> str:
    name = package.name.partition("-")[0]
    return f'# /// script\n# dependencies = ["{name} @ {package.as_uri()}"]\n# ///\n{source}'


async def test_what_a_file_declares_to_need_is_installed_once_beside_all_else(
    open_: Open, tmp_path: Path
) -> None:
    made = wheel(tmp_path, "tinypackage", "word = 'tiny'\n")
    source = needing(made, f"import tinypackage\n{GOOD}".replace("'good'", "tinypackage.word"))
    file = tmp_path / "tools" / "good.py"
    file.write_text(source)
    (tmp_path / "tools" / "other.py").write_text(GOOD.replace("good", "other"))
    packages = Watched(tmp_path / "packages")
    async with open_(packages=packages) as tools:
        (problem,) = await tools.problems()
        assert problem.file == str(file) and problem.error.startswith("installing tinypackage @ file:")
        with pytest.raises(NotFound, match="are being installed"):
            await call(tools, "good")
        assert text(await call(tools, "other")) == "other"
        packages.may.set()
        with anyio.fail_after(LONG_S):
            await packages.ended.wait()
        assert text(await call(tools, "good")) == "tiny"
        assert await tools.problems() == ()
        (installed,) = (tmp_path / "packages").iterdir()
        made.unlink()  # from here on it can be installed no more
        file.write_text(f"{source}\n")
        assert text(await call(tools, "good")) == "tiny"
        file.write_text(needing(made, "def broken(:\n"))
        assert text(await call(tools, "good")) == "tiny"
        assert list((tmp_path / "packages").iterdir()) == [installed]


async def test_while_new_packages_are_installed_the_good_version_goes_on(open_: Open, tmp_path: Path) -> None:
    file = tmp_path / "tools" / "good.py"
    file.write_text(GOOD)
    packages = Watched(tmp_path / "packages")
    async with open_(packages=packages) as tools:
        assert text(await call(tools, "good")) == "good"
        file.write_text(needing(wheel(tmp_path, "tinypackage", ""), GOOD.replace("'good'", "'new'")))
        assert text(await call(tools, "good")) == "good"
        (problem,) = await tools.problems()
        assert problem.error.startswith("installing ") and problem.error.endswith("goes on")
        packages.may.set()
        with anyio.fail_after(LONG_S):
            await packages.ended.wait()
        assert text(await call(tools, "good")) == "new"


async def test_where_no_host_starts_after_an_install_the_next_who_asks_still_finds_what_came_of_it(
    open_: Open, tmp_path: Path
) -> None:
    made = wheel(tmp_path, "tinypackage", "")
    (tmp_path / "tools" / "good.py").write_text(needing(made, f"import tinypackage\n{GOOD}"))
    packages = Watched(tmp_path / "packages")

    async def none_starts(files: Any) -> Any:
        raise ToolFailed("the tools are not known")

    async with open_(packages=packages) as tools:
        assert len(await tools.problems()) == 1
        packages.may.set()
        with anyio.fail_after(LONG_S):
            await packages.ended.wait()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(registry, "_ask", none_starts)
            with pytest.raises(ToolFailed):
                await tools.list()
        assert text(await call(tools, "good")) == "good"


async def test_what_cannot_be_installed_is_told_with_the_file_and_by_name(
    open_: Open, tmp_path: Path
) -> None:
    gone = tmp_path / "gonepackage-1.0-py3-none-any.whl"
    (tmp_path / "tools" / "needy.py").write_text(needing(gone, "import gonepackage\n"))
    (tmp_path / "tools" / "option.py").write_text('# /// script\n# dependencies = ["--pre"]\n# ///\n')
    (tmp_path / "tools" / "good.py").write_text(GOOD)
    packages = Watched(tmp_path / "packages")
    packages.may.set()
    async with open_(packages=packages) as tools:
        assert text(await call(tools, "good")) == "good"
        with anyio.fail_after(LONG_S):
            await packages.ended.wait()
        needy, option = await tools.problems()
        assert needy.file.endswith("needy.py") and "No module named 'gonepackage'" in needy.error
        assert f"gonepackage @ {gone.as_uri()} could not be installed: " in needy.error
        assert option.file.endswith("option.py") and "`--pre` is an option" in option.error
        assert text(await call(tools, "good")) == "good"


def test_an_install_keeps_nothing_waiting_ends_with_the_daemon_and_is_begun_again(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "tools").mkdir(parents=True)
    source = '# /// script\n# dependencies = ["tinypackage"]\n# ///\n' + f"import tinypackage\n{GOOD}"
    (home / "tools" / "good.py").write_text(source.replace("'good'", "tinypackage.word"))
    packages = home / "cache" / "packages"
    plain = {"PIP_CONFIG_FILE": os.devnull}
    with Silent() as index, Daemon(home, environ=plain | {"PIP_INDEX_URL": index.url}) as daemon:
        assert "installing tinypackage" in str(daemon.call(SystemInfo()).problems)
        assert index.asked.wait(60)  # pip waits for it
        assert "clock" in {tool.name for tool in daemon.call(ToolList()).tools}
        result = daemon.ctl("tool", "call", "clock", "timezone=UTC")
        assert result.returncode == 0 and "installing tinypackage" in str(daemon.call(SystemInfo()).problems)
        with ExitStack() as opened:
            pips = [os.pidfd_open(pid) for pid in running(str(packages))]
            for pip in pips:
                opened.callback(os.close, pip)
            assert len(pips) == 1
            daemon.kill()
            assert select.select(pips, [], [], 60)[0]
    (packages / "half.new").mkdir(parents=True)
    wheel(tmp_path, "tinypackage", "word = 'tiny'\n")
    with Daemon(home, environ=plain | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}) as daemon:
        while "installing" in str(daemon.call(SystemInfo()).problems):  # it has a deadline of its own
            time.sleep(0.1)
        assert daemon.ctl("tool", "call", "good").stdout == "tiny\n"
        assert len(list(packages.iterdir())) == 1


def running(argument: str) -> list[int]:
    """Processes with an argument that begins like this."""
    found = []
    for process in Path("/proc").iterdir():
        with suppress(OSError):
            if process.name.isdigit() and f"\0{argument}".encode() in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("", ()),
        ('# /// script\n# dependencies = ["b>1", "a"]\n# ///\nimport a\n', ("a", "b>1")),
        ('# /// script\n# requires-python = ">=3.11"\n#\n# dependencies = [\n#   "a",\n# ]\n# ///\n', ("a",)),
        ('# /// other\n# dependencies = ["a"]\n# ///\n', ()),
        ('# /// script\n# dependencies = ["a"]\n', ()),
        ("# /// script\n# dependencies = 3\n# ///\n", "array"),
        ("# /// script\n# ]\n# ///\n", "block"),
        ("# /// script\n# ///\n# /// script\n#\n# ///\n\n# /// script\n#\n# ///\n", "more than one"),
    ],
)
def test_the_block_of_pep_723_is_read_as_it_says(source: str, expected: tuple[str, ...] | str) -> None:
    if isinstance(expected, str):
        with pytest.raises(ToolFailed, match=expected):
            declared(source.encode())
    else:
        assert declared(source.encode()) == expected


async def test_a_good_version_that_needs_what_is_gone_is_not_said_to_go_on(
    open_: Open, tmp_path: Path
) -> None:
    (tmp_path / "tools" / "_shared.py").write_text("value = 1\n")
    file = tmp_path / "tools" / "good.py"
    file.write_text(f"import _shared\n{GOOD}")
    async with open_() as tools:
        assert text(await call(tools, "good")) == "good"
        file.write_text("def broken(:\n")
        (tmp_path / "tools" / "_shared.py").unlink()
        (problem,) = await tools.problems()
        assert "SyntaxError" in problem.error and "goes on" not in problem.error
        with pytest.raises(NotFound):
            await call(tools, "good")


async def test_many_who_ask_at_once_share_one_description(
    open_: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    ask = registry._ask

    async def counted(files: Any) -> Any:
        nonlocal asked
        asked += 1
        return await ask(files)

    monkeypatch.setattr(registry, "_ask", counted)
    async with open_() as tools, anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(tools.list)
    assert asked == 1


# --- kernel tools ------------------------------------------------------------------------------------------


async def shout(session: Session, word: str, times: int = 1) -> dict[str, Any]:
    """Says a word loudly.

    word: What to say.
    """
    if word == "hang":
        await anyio.sleep_forever()
    return {"said": word.upper() * times, "by": session.user_id}


async def test_a_kernel_tool_runs_in_the_daemon_and_is_checked_like_any_other(
    open_: Open, tmp_path: Path
) -> None:
    (tmp_path / "tools" / "good.py").write_text(GOOD.replace("good", "shout"))
    async with open_({"shout": kernel_tool(shout, permissions=["memory"], rate_limit=2)}) as tools:
        (problem,) = await tools.problems()
        assert "`shout`" in problem.error
        described = await tools.get("shout")
        assert described.description == "Says a word loudly."
        assert list(described.input_schema["properties"]) == ["word", "times"]
        loud = session(permissions=("memory",))
        result = await tools.call(loud, "shout", {"word": "hey"}, timeout_s=LONG_S)
        assert result.structured_content == {"said": "HEY", "by": "ada"}
        with pytest.raises(PermissionDenied):
            await call(tools, "shout", word="hey")
        with pytest.raises(InvalidParams, match=r"^arguments\.times: expected int, got str"):
            await tools.call(loud, "shout", {"word": "hey", "times": "2"}, timeout_s=LONG_S)
        with pytest.raises(DeadlineExceeded):
            await tools.call(loud, "shout", {"word": "hang"}, timeout_s=0.01)
        with pytest.raises(RateLimited):
            await tools.call(loud, "shout", {"word": "hey"}, timeout_s=LONG_S)


def test_the_host_knows_the_daemons_word_for_a_cancelled_call() -> None:
    assert host.CANCEL == child.CANCEL


async def test_a_thousand_calls_from_ten_sessions_of_one_user_are_exactly_as_many_as_the_limit(
    open_: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def limited(session: Session) -> str:
        """May be called 37 times a minute."""
        return "called"

    monkeypatch.setattr(anyio, "current_time", lambda: 100.0)  # within one moment, nothing is refilled
    kernel = {"limited": kernel_tool(limited, permissions=["*"], rate_limit=37)}
    through: list[str] = []
    refused: list[float] = []
    async with open_(kernel) as tools, anyio.create_task_group() as group:
        await tools.list()

        async def ask(number: int) -> None:
            try:
                result = await tools.call(session(f"s{number % 10}"), "limited", {}, timeout_s=LONG_S)
            except RateLimited as exc:
                refused.append(exc.data["retry_after_s"])
            else:
                through.append(text(result))

        for number in range(1000):
            group.start_soon(ask, number)
    assert (len(through), len(refused)) == (37, 963)
    assert all(0 < wait_s <= 60 for wait_s in refused)
