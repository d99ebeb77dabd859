"""Child processes are real here: small programs over aiosd.stdio, and some that know nothing of it."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from aiosd import framing
from aiosd.child import Call, Child, ChildDied, backoff_s, open_child
from aiosd.errors import DeadlineExceeded, InternalError, InvalidParams, MethodNotFound, NotFound, ToolFailed

pytestmark = pytest.mark.anyio

LONG_S = 30.0

PROGRAM = """
import os, subprocess, sys, threading, time
from aiosd import stdio
from aiosd.errors import DeadlineExceeded, InternalError, InvalidParams, MethodNotFound, NotFound, ToolFailed

def missing(): raise NotFound("no such thing", thing="it")
def bug(): raise ValueError("secret")
def noisy():
    print("Content-Length: 12"); print('{"jsonrpc": "2.0", "id": 1, "result": "forged"}', flush=True)
    os.write(1, b"straight to the descriptor"); os.system("echo from a shell")
    return "quiet"
def hang(): print("hanging", flush=True); time.sleep(1000)
def grandchild():
    p = subprocess.Popen(["sleep", "1000"])
    return p.pid
def die(status, when=None):
    if when: open(when, "rb").read(1)
    print("the last words", file=sys.stderr, flush=True); os._exit(status)

stdio.serve({
    "echo": lambda text: text, "add": lambda a, b: a + b, "pid": os.getpid, "missing": missing, "bug": bug,
    "noisy": noisy, "ask_stdin": lambda: sys.stdin.read(), "die": die, "hang": hang,
    "big": lambda n: "x" * n, "unspeakable": lambda: object(), "grandchild": grandchild,
    "environment": lambda: dict(os.environ), "group": lambda: [os.getpid(), os.getpgid(0), os.getsid(0)],
})
"""

# Answers out of order, so that many calls are really in flight at once.
REVERSING = """
from aiosd import stdio
line = stdio.open_line()
held = []
for request in line:
    held.append(request.id)
    if len(held) == 100:
        for id in reversed(held): line.answer(id, id)
        held.clear()
"""

# Hangs in `hang`, answers everything else, and tells which calls were given up.
PATIENT = """
import msgspec
from aiosd import stdio
line = stdio.open_line()
given_up = []
for request in line:
    if request.method == "$/cancelRequest": given_up.append(msgspec.json.decode(request.params)["id"])
    elif request.method == "given_up": line.answer(request.id, given_up)
    elif request.method != "hang": line.answer(request.id, request.method)
"""


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


def spoken(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.__dict__["line"] for r in caplog.records if r.message == "child says"]


async def gone(pid: int) -> None:
    """Returns when this process has ended, whoever reaps it."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with anyio.fail_after(LONG_S):
            await anyio.wait_readable(fd)
    finally:
        os.close(fd)


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.DEBUG, "aiosd.child"):
        yield


async def test_a_call_is_answered_by_a_process_that_the_first_call_starts() -> None:
    async with open_child(python(PROGRAM), name="demo", env={}) as child:
        assert child.pid is None
        assert await child.call("echo", {"text": "привет 🙂"}, timeout_s=LONG_S) == "привет 🙂"
        assert await child.call("add", [1, 2], timeout_s=LONG_S) == 3
        assert await child.call("pid", timeout_s=LONG_S) == child.pid


async def test_an_error_of_the_child_rises_as_the_error_it_was() -> None:
    async with open_child(python(PROGRAM), name="demo", env={}) as child:
        with pytest.raises(NotFound, match="no such thing") as raised:
            await child.call("missing", timeout_s=LONG_S)
        assert raised.value.data == {"thing": "it"}
        with pytest.raises(MethodNotFound):
            await child.call("unheard_of", timeout_s=LONG_S)


async def test_a_bug_in_the_child_is_an_internal_error_whose_traceback_only_the_log_has(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_child(python(PROGRAM), name="demo", env={}) as child:
        for method in ("bug", "unspeakable"):
            with pytest.raises(InternalError) as raised:
                await child.call(method, timeout_s=LONG_S)
            assert "secret" not in str(raised.value.to_wire())
        assert await child.call("echo", ["still here"], timeout_s=LONG_S) == "still here"
    assert any("secret" in line for line in spoken(caplog))


async def test_a_child_that_dies_under_calls_fails_them_at_once_and_the_next_call_finds_a_new_process(
    tmp_path: Path,
) -> None:
    os.mkfifo(tmp_path / "word")
    word = os.open(tmp_path / "word", os.O_RDWR)
    async with open_child(python(PROGRAM), name="demo", env={}) as child:
        first = await child.call("pid", timeout_s=LONG_S)
        died: list[ChildDied] = []

        async def ask(method: str, *params: object) -> None:
            with pytest.raises(ChildDied) as raised:
                await child.call(method, params, timeout_s=LONG_S)
            died.append(raised.value)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, "die", 3, str(tmp_path / "word"))
            tasks.start_soon(ask, "echo", "never heard")
            await anyio.wait_all_tasks_blocked()  # both are under way
            os.write(word, b"!")
        assert [str(e) for e in died] == [
            "demo ended during `die`: exit status 3: the last words",
            "demo ended during `echo`: exit status 3: the last words",
        ]
        assert await child.call("pid", timeout_s=LONG_S) not in (first, None)
    os.close(word)


async def test_a_call_right_after_a_kill_finds_a_new_process_though_nobody_has_noticed_yet() -> None:
    async with open_child(python(PROGRAM), name="demo", env={}) as child:
        for _ in range(3):
            pid = await child.call("pid", timeout_s=LONG_S)
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222 - the loop must not see it first
            assert await child.call("pid", timeout_s=LONG_S) != pid


async def test_a_call_that_hangs_is_late_and_the_others_are_answered() -> None:
    async with open_child(python(PATIENT), name="demo", env={}) as child:
        await child.call("warm", timeout_s=LONG_S)
        with pytest.raises(DeadlineExceeded, match="demo did not answer `hang` within 0.05 s"):
            await child.call("hang", timeout_s=0.05)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_late, child)
            assert await child.call("echo", timeout_s=LONG_S) == "echo"
        assert len(await child.call("given_up", timeout_s=LONG_S)) == 2


async def _late(child: Child) -> None:
    with pytest.raises(DeadlineExceeded):
        await child.call("hang", timeout_s=0.05)


async def test_a_child_that_hangs_for_good_can_be_killed() -> None:
    async with open_child(python(PROGRAM), name="demo", env={}) as child:
        await child.call("pid", timeout_s=LONG_S)

        async def hang() -> None:
            with pytest.raises(ChildDied, match="it hung and was killed"):
                await child.call("hang", timeout_s=LONG_S)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hang)
            await anyio.lowlevel.checkpoint()
            child.kill()
        assert await child.call("echo", ["back"], timeout_s=LONG_S) == "back"


async def test_prints_of_user_code_do_not_break_the_line(caplog: pytest.LogCaptureFixture) -> None:
    async with open_child(python(PROGRAM), name="demo", env={"PATH": os.environ["PATH"]}) as child:
        assert await child.call("noisy", timeout_s=LONG_S) == "quiet"
        assert await child.call("ask_stdin", timeout_s=LONG_S) == ""
    assert {"Content-Length: 12", "straight to the descriptorfrom a shell"} <= set(spoken(caplog))


async def test_a_foreign_child_may_print_garbage_and_answers_that_nobody_asked_for() -> None:
    foreign = """
import sys
print("Hello, I am a server!", flush=True)
for id in ('99', '"1"', 'null', 'true', '{}'): print('{"jsonrpc":"2.0","id":' + id + ',"result":0}', flush=True)
print('{"jsonrpc":"2.0","method":"notice","params":{}}', flush=True)
sys.stdin.readline()
print('[[]]'); print('{"jsonrpc":"2.0","id":1,"result":"ok"}', flush=True)
print('{"jsonrpc":"2.0","id":1,"result":"again"}', flush=True)
sys.stdin.read()
"""
    async with open_child(python(foreign), name="foreign", env={}) as child:
        assert await child.call("anything", timeout_s=LONG_S) == "ok"


async def test_a_hundred_calls_are_in_flight_at_once() -> None:
    async with open_child(python(REVERSING), name="demo", env={}) as child:
        answers: list[object] = []

        async def ask() -> None:
            answers.append(await child.call("anything", timeout_s=LONG_S))

        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(ask)
        assert sorted(answers, key=str) == sorted(range(1, 101), key=str)


async def test_a_child_that_dies_at_start_is_named_with_its_last_line_and_left_alone_for_a_while(
    tmp_path: Path,
) -> None:
    starts = tmp_path / "starts"
    broken = f"open({str(starts)!r}, 'a').write('x'); import a_module_that_is_not_there"
    async with open_child(python(broken), name="broken", env={}) as child:
        errors = []
        for _ in range(200):
            with pytest.raises(ChildDied) as raised:
                await child.call("anything", timeout_s=LONG_S)
            errors.append(raised.value)
    assert all("No module named 'a_module_that_is_not_there'" in str(error) for error in errors)
    assert errors[-1].retry_after_s > 0
    assert len(starts.read_text()) < 10


def test_the_back_off_spares_one_accident_then_doubles_up_to_half_a_minute() -> None:
    assert [backoff_s(n) for n in (0, 1, 2, 3, 4, 50)] == [0, 0, 0.25, 0.5, 1.0, 30.0]


async def test_a_program_that_is_not_there_is_a_typed_error() -> None:
    async with open_child(["/no/such/program"], name="ghost", env={}) as child:
        with pytest.raises(ChildDied, match="ghost does not start: .*/no/such/program"):
            await child.call("anything", timeout_s=LONG_S)


async def test_a_message_over_the_limit_is_refused_in_both_directions_and_harms_nobody() -> None:
    async with open_child(python(PROGRAM), name="demo", env={}) as child:
        pid = await child.call("pid", timeout_s=LONG_S)
        with pytest.raises(InvalidParams, match="8 MiB"):
            await child.call("echo", {"text": "x" * framing.MAX_LINE}, timeout_s=LONG_S)
        with pytest.raises(ToolFailed, match="8 MiB"):
            await child.call("big", {"n": framing.MAX_LINE}, timeout_s=LONG_S)
        most = framing.MAX_LINE - 1000
        assert len(await child.call("big", {"n": most}, timeout_s=LONG_S)) == most
        assert len(await child.call("echo", {"text": "y" * most}, timeout_s=LONG_S)) == most
        assert await child.call("pid", timeout_s=LONG_S) == pid


async def test_a_foreign_child_that_floods_its_line_is_killed() -> None:
    flood = "import sys\nwhile True: sys.stdout.write('x' * 100000)"
    async with open_child(python(flood), name="flood", env={}) as child:
        with pytest.raises(ChildDied, match="a line passed 8388608 bytes"):
            await child.call("anything", timeout_s=LONG_S)


async def test_started_runs_on_every_process_before_anything_else_is_asked() -> None:
    seen: list[int] = []

    async def started(call: Call) -> None:
        seen.append(await call("pid", timeout_s=LONG_S))
        await anyio.lowlevel.checkpoint()
        seen.append(await call("pid", timeout_s=LONG_S))

    async with open_child(python(PROGRAM), name="demo", env={}, started=started) as child:

        async def ask() -> None:
            pid = await child.call("pid", timeout_s=LONG_S)
            assert seen == [pid, pid]

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(ask)
        with pytest.raises(ChildDied):
            await child.call("die", [0], timeout_s=LONG_S)
        pid = await child.call("pid", timeout_s=LONG_S)
        assert seen[2:] == [pid, pid]


async def test_calls_get_the_reason_why_a_process_could_not_be_made_ready() -> None:
    async def started(call: Call) -> None:
        await call("missing", timeout_s=LONG_S)

    async with open_child(python(PROGRAM), name="demo", env={}, started=started) as child:
        with pytest.raises(ChildDied, match="demo does not start: no such thing"):
            await child.call("pid", timeout_s=LONG_S)


async def test_an_idle_child_is_ended_and_the_next_call_starts_it_again() -> None:
    async with open_child(python(PROGRAM), name="demo", env={}, idle_s=0.05) as child:
        first = await child.call("pid", timeout_s=LONG_S)
        await gone(first)
        assert await child.call("pid", timeout_s=LONG_S) != first


async def test_a_child_that_is_held_is_not_idle() -> None:
    async with open_child(python(PROGRAM), name="demo", env={}, idle_s=0.05) as child:
        async with child.hold(timeout_s=LONG_S) as process:
            assert child.is_ready
            with anyio.move_on_after(0.5) as still:
                await process.ended.wait()
            assert still.cancelled_caught
        with anyio.fail_after(LONG_S):
            await process.ended.wait()


async def test_who_holds_a_child_learns_of_its_end_and_why() -> None:
    async with (
        open_child(python(PROGRAM), name="demo", env={}) as child,
        child.hold(timeout_s=LONG_S) as process,
    ):
        with pytest.raises(ChildDied):
            await child.call("die", [3], timeout_s=LONG_S)
        assert process.ended.is_set()
        assert process.failure == "exit status 3: the last words"


async def test_what_does_not_start_cannot_be_held() -> None:
    async def never(call: Call) -> None:
        await anyio.sleep_forever()

    async def wrong(call: Call) -> None:
        raise InvalidParams("no")

    async with open_child(python(PROGRAM), name="demo", env={}, started=never) as child:
        with pytest.raises(DeadlineExceeded, match=r"demo was not ready within 0\.1 s"):
            async with child.hold(timeout_s=0.1):
                pass
    async with open_child(python(PROGRAM), name="demo", env={}, started=wrong) as child:
        with pytest.raises(ChildDied, match="demo does not start: no"):
            async with child.hold(timeout_s=LONG_S):
                pass


async def test_the_first_line_that_tells_the_cause_is_the_reason() -> None:
    program = "import sys; print('so\\nE cause: one\\nE cause: two\\nbye', file=sys.stderr); sys.exit(1)"
    cause = re.compile("E cause: (.+)")
    async with open_child(python(program), name="demo", env={}, cause=cause) as child:
        with pytest.raises(ChildDied, match="exit status 1: one$"):
            await child.call("echo", ["x"], timeout_s=LONG_S)


async def test_closing_kills_the_childs_whole_process_group() -> None:
    async with open_child(python(PROGRAM), name="demo", env={"PATH": os.environ["PATH"]}) as child:
        pid, group, session = await child.call("group", timeout_s=LONG_S)
        assert pid == group == session
        grandchild = await child.call("grandchild", timeout_s=LONG_S)
    await gone(pid)
    await gone(grandchild)


async def test_a_child_that_dies_takes_its_process_group_along() -> None:
    async with open_child(python(PROGRAM), name="demo", env={"PATH": os.environ["PATH"]}) as child:
        grandchild = await child.call("grandchild", timeout_s=LONG_S)
        with pytest.raises(ChildDied):
            await child.call("die", [1], timeout_s=LONG_S)
        await gone(grandchild)


async def test_closing_ends_a_child_that_hangs_and_calls_after_it_are_refused() -> None:
    async with open_child(python(PROGRAM), name="demo", env={}) as child:
        pid = await child.call("pid", timeout_s=LONG_S)
        with pytest.raises(DeadlineExceeded):
            await child.call("hang", timeout_s=0.05)
    await gone(pid)
    with pytest.raises(ChildDied, match="demo is closed"):
        await child.call("pid", timeout_s=LONG_S)


async def test_a_child_may_finish_its_work_when_the_line_is_closed(tmp_path: Path) -> None:
    flushed = tmp_path / "flushed"
    program = (
        f"from aiosd import stdio\nstdio.serve({{'hi': lambda: 1}})\nopen({str(flushed)!r}, 'w').close()"
    )
    async with open_child(python(program), name="demo", env={}) as child:
        await child.call("hi", timeout_s=LONG_S)
    assert flushed.exists()


async def test_a_cancelled_owner_still_ends_its_child() -> None:
    with anyio.CancelScope() as scope:
        async with open_child(python(PROGRAM), name="demo", env={}) as child:
            pid = await child.call("pid", timeout_s=LONG_S)
            scope.cancel()
            await anyio.sleep_forever()
    await gone(pid)


async def test_the_environment_is_the_one_given() -> None:
    async with open_child(python(PROGRAM), name="demo", env={"ONLY": "this"}) as child:
        environment = await child.call("environment", timeout_s=LONG_S)
    assert {name for name in environment if not name.startswith("LC_")} == {"ONLY"}


@pytest.mark.parametrize("doing", ["nothing", "hang"])
async def test_a_child_ends_with_the_daemon_even_when_that_is_killed(doing: str) -> None:
    daemon = f"""
import logging, sys, anyio
from aiosd.child import open_child

class Hanging(logging.Handler):
    def emit(self, record):
        if getattr(record, "line", "") == "hanging": print(pid, flush=True)

logging.getLogger("aiosd.child").addHandler(Hanging())
logging.getLogger("aiosd.child").setLevel(logging.INFO)

async def main():
    global pid
    async with open_child([sys.executable, "-c", {PROGRAM!r}], name="demo", env={{}}) as child:
        pid = await child.call("pid", timeout_s=30)
        if {doing!r} == "hang":
            await child.call("hang", timeout_s=1000)
        print(pid, flush=True)
        await anyio.sleep_forever()

anyio.run(main)
"""
    async with await anyio.open_process(python(daemon), stderr=None) as process:
        assert process.stdout is not None
        with anyio.fail_after(LONG_S):
            pid = int(await process.stdout.receive())
        process.kill()
        await gone(pid)
