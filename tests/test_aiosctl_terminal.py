"""aiosctl in pipes, on terminals, in any locale."""

from __future__ import annotations

import json
import re
import signal
import threading
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosctl.answer import Reply
from aiosctl.screen import rows
from aiosd.errors import DeadlineExceeded
from tests.aiosctl_double import (
    WAIT_S,
    Connection,
    Ctl,
    Double,
    Hangup,
    giving,
    memory,
    message,
    result,
    session,
    task,
)
from tests.terminals import OnTerminal, screen


def streaming(*texts: tuple[int, str], whole: str) -> Any:
    """A run that sends these pieces (offset, text), then the whole message."""

    def run(params: dict[str, Any], connection: Connection) -> object:
        for offset, text in texts:
            connection.event("text", offset=offset, text=text)
        connection.event("message", seq=2, **message(whole))
        return result(result=whole)

    return run


def test_text_comes_as_it_is_written_and_stands_there_once(
    double: Double, ctl: Ctl, on_terminal: OnTerminal
) -> None:
    double.answers["session.run"] = streaming(
        (0, "one "), (4, "two"), (9, "four"), whole="one two three four"
    )
    assert on_terminal(ctl, "run", "x").end() == (0, "one two three four\n")


def test_text_is_on_the_terminal_before_the_task_has_ended(
    double: Double, ctl: Ctl, on_terminal: OnTerminal
) -> None:
    seen = threading.Event()

    def run(params: dict[str, Any], connection: Connection) -> object:
        connection.event("text", offset=0, text="half of it")
        assert seen.wait(WAIT_S)
        connection.event("message", **message("half of it, and all"))
        return result(result="half of it, and all")

    double.answers["session.run"] = run
    terminal = on_terminal(ctl, "run", "x")
    terminal.until("half of it")
    seen.set()
    assert terminal.end() == (0, "half of it, and all\n")


def test_a_reply_begun_twice_is_printed_whole_on_a_new_line(
    double: Double, ctl: Ctl, on_terminal: OnTerminal
) -> None:
    double.answers["session.run"] = streaming((0, "first tr"), (0, "second try"), whole="second try")
    assert on_terminal(ctl, "run", "x").end() == (0, "first tr\nsecond try\n")


def test_with_json_a_terminal_gets_the_document_alone(
    double: Double, ctl: Ctl, on_terminal: OnTerminal
) -> None:
    double.answers["session.run"] = streaming((0, "hello"), whole="hello")
    status, seen = on_terminal(ctl, "run", "--json", "x").end()
    assert (status, json.loads(seen)) == (0, result(result="hello"))


def test_a_model_cannot_command_the_terminal(double: Double, ctl: Ctl, on_terminal: OnTerminal) -> None:
    evil = "a\x1b]0;title\x07b\x9b2Jc\td\n"
    double.answers["session.run"] = streaming((0, evil), whole=evil)
    assert on_terminal(ctl, "run", "x").end() == (0, "a\\x1b]0;title\\x07b\\x9b2Jc\td\n")
    assert ctl("run", "x").stdout == evil + "\n"  # a program gets what was said


def test_an_error_in_the_middle_of_a_line_starts_a_new_one(
    double: Double, ctl: Ctl, on_terminal: OnTerminal
) -> None:
    def run(params: dict[str, Any], connection: Connection) -> object:
        connection.event("text", offset=0, text="half")
        raise DeadlineExceeded("time is up")

    double.answers["session.run"] = run
    assert on_terminal(ctl, "run", "x").end() == (124, "half\naiosctl: time is up\n")


def test_ctrl_c_on_a_terminal_cancels_the_task(double: Double, ctl: Ctl, on_terminal: OnTerminal) -> None:
    def run(params: dict[str, Any], connection: Connection) -> object:
        connection.event("text", offset=0, text="half")
        connection.wait_closed()
        raise Hangup

    double.answers["session.run"] = run
    double.answers["task.cancel"] = giving(task(state="cancelled"))
    terminal = on_terminal(ctl, "run", "x")
    terminal.until("half")
    terminal.type(b"\x03")
    assert terminal.end() == (130, "half^C\naiosctl: the task was cancelled\n")
    assert double.wait_for("task.cancel")[0] == {"task_id": task()["task_id"]}


def test_a_terminal_is_no_input_and_nobody_waits_for_it(
    double: Double, ctl: Ctl, on_terminal: OnTerminal
) -> None:
    assert on_terminal(ctl, "run", "x").end() == (0, "hello\n")
    assert "inputs" not in double.params("session.run")[0]
    for args in (["run"], ["run", "x", "-f", "-"], ["memory", "remember"]):
        status, seen = on_terminal(ctl, *args).end()
        assert status == 2
        assert "missing" in seen or "no pipe" in seen


@pytest.mark.parametrize("columns", [20, 80])
def test_a_list_fits_the_terminal(double: Double, ctl: Ctl, columns: int, on_terminal: OnTerminal) -> None:
    near = [session(session_id=f"aaaaaaaa-{n}000-4000-8000-000000000000", title="t" * 200) for n in (1, 2)]
    double.answers["session.list"] = giving({"sessions": near})
    status, seen = on_terminal(ctl, "session", "list", columns=columns).end()
    lines = re.sub(r"\x1b\[[\d;]*m", "", seen).splitlines()
    assert (status, len(lines)) == (0, 3)
    assert all(len(line) <= columns for line in lines)
    if columns == 80:
        assert lines[0].split() == ["id", "state", "used", "user", "workspace", "title"]
        assert lines[1].startswith("aaaaaaaa-1 ")  # as long as it takes to tell them apart


def test_ids_of_memories_are_readable_on_a_narrow_terminal(
    double: Double, ctl: Ctl, on_terminal: OnTerminal
) -> None:
    kept = memory(kind="task", source="task:923fbd65-0000-4000-8000-000000000000", content="c" * 200)
    double.answers["memory.list"] = giving({"memories": [kept]})
    _, seen = on_terminal(ctl, "memory", "list").end()
    assert "33333333 " in seen and "task:923fbd65 " in seen
    assert "task:923fbd65-0000-4000-8000-000000000000" in ctl("memory", "list").stdout


def test_colour_is_left_out_where_it_is_not_wanted(double: Double, ctl: Ctl, on_terminal: OnTerminal) -> None:
    def run(params: dict[str, Any], connection: Connection) -> object:
        connection.event("tool_call", call_id="c", name="clock", arguments={}, status="pending")
        return result()

    double.answers["session.run"] = run
    assert "\x1b[2mclock {}\x1b[0m" in on_terminal(ctl, "run", "x").end()[1]
    ctl.env["NO_COLOR"] = "1"
    assert on_terminal(ctl, "run", "x").end()[1] == "clock {}\nhello\n"


@given(
    st.text(),
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), st.booleans()), max_size=20),
)
def test_whatever_pieces_come_a_reply_is_shown_once(whole: str, cuts: list[tuple[int, int, bool]]) -> None:
    """Pieces overlap and go missing; the message ends it."""
    reply = Reply()
    shown = "".join(reply.piece(start, whole[start : start + n]) for start, n, dropped in cuts if not dropped)
    assert whole.startswith(shown)
    assert shown + reply.whole(whole) == whole


@given(st.text(), st.lists(st.tuples(st.integers(0, 20), st.text()), max_size=10))
def test_a_whole_message_is_always_there_in_the_end(whole: str, pieces: list[tuple[int, str]]) -> None:
    """Pieces of anything, as a second try sends them."""
    reply = Reply()
    shown = "".join(reply.piece(offset, text) for offset, text in pieces)
    assert (shown + reply.whole(whole)).endswith(whole)


MARKDOWN = """# Ports

The **staging** server listens on `8081`.

1. stop it
2. start it

```sh
echo a  b

```
| a | b |
|---|---|
| 1 | 2 |
"""


def in_pieces(whole: str, *, size: int = 3) -> Any:
    return streaming(*((at, whole[at : at + size]) for at in range(0, len(whole), size)), whole=whole)


@pytest.mark.parametrize("columns", [30, 80])
def test_markdown_is_drawn_as_soon_as_a_block_of_it_is_complete(
    double: Double, ctl: Ctl, columns: int, on_terminal: OnTerminal
) -> None:
    double.answers["session.run"] = in_pieces(MARKDOWN)
    shown = on_terminal(ctl, "run", "x", columns=columns).screen()
    text = "\n".join(line.rstrip() for line in shown)
    assert not re.search(r"\*\*|`|^#|\|---", text, re.MULTILINE)
    for said in ("Ports", "staging", "8081", "echo a  b", "1 stop it", "2 start it"):
        assert text.count(said) == 1
    assert ctl("run", "x").stdout == MARKDOWN + "\n"  # a program gets what was said


def test_a_block_that_has_left_the_screen_stays_as_it_was_written(
    double: Double, ctl: Ctl, on_terminal: OnTerminal
) -> None:
    long = "".join(f"- line {n}\n" for n in range(40))
    double.answers["session.run"] = in_pieces(long, size=7)
    assert [line for line in on_terminal(ctl, "run", "x").screen() if line] == long.splitlines()


def test_a_dumb_terminal_is_not_drawn_on(double: Double, ctl: Ctl, on_terminal: OnTerminal) -> None:
    double.answers["session.run"] = in_pieces(MARKDOWN)
    ctl.env["TERM"] = "dumb"
    assert "\x1b" not in on_terminal(ctl, "run", "x").end()[1]


def test_a_quote_is_shown_as_it_stands(double: Double, ctl: Ctl, on_terminal: OnTerminal) -> None:
    chosen = {"backend": "extractive", "model": "extractive", "local": True}
    decision = {"tier": "fast", "chosen": "extractive", "reason": "alone", "candidates": [chosen]}

    def run(params: dict[str, Any], connection: Connection) -> object:
        connection.event("route", decision=decision)
        connection.event("text", offset=0, text="a.md:1: # **a**\n\n")
        connection.event("message", seq=2, **message("a.md:1: # **a**\n\nb"))
        return result(result="a.md:1: # **a**\n\nb")

    double.answers["session.run"] = run
    assert on_terminal(ctl, "run", "x").end() == (0, "a.md:1: # **a**\n\nb\n")


@given(st.text(alphabet="ab *\t字🙂é\n", max_size=60), st.integers(2, 9))
def test_rows_are_what_a_terminal_takes(text: str, columns: int) -> None:
    text = text.replace("\t", " ") + "\n"
    assert rows(text, columns) == len(screen(text.replace("\n", "\r\n"), columns)) - 1


def test_while_nothing_comes_it_says_what_is_waited_for(
    double: Double, ctl: Ctl, on_terminal: OnTerminal
) -> None:
    seen = threading.Event()

    def run(params: dict[str, Any], connection: Connection) -> object:
        connection.event("progress", stage="queued", place=2, eta_s=12.0)
        assert seen.wait(WAIT_S)
        return result()

    double.answers["session.run"] = run
    terminal = on_terminal(ctl, "run", "x", columns=60)
    terminal.until("queued, place 2, about 12 s (")
    seen.set()
    assert terminal.screen() == ["hello", ""]


def test_what_a_model_thinks_is_dim_and_apart_from_its_answer(
    double: Double, ctl: Ctl, on_terminal: OnTerminal
) -> None:
    def run(params: dict[str, Any], connection: Connection) -> object:
        connection.event("thinking", offset=0, text="hm, ")
        connection.event("thinking", offset=4, text="six")
        connection.event("text", offset=0, text="hello")
        connection.event("message", seq=2, **message("hello"))
        return result()

    double.answers["session.run"] = run
    _, seen = on_terminal(ctl, "run", "x").end()
    assert seen == "\x1b[2mhm, \x1b[0m\x1b[2msix\x1b[0m\x1b[2m\n\x1b[0mhello\n"
    assert on_terminal(ctl, "run", "-q", "x").end() == (0, "hello\n")
    assert ctl("run", "x").stderr == ""


# --- pipes and locales -----------------------------------------------------------------------------------


def test_head_ends_it_without_a_word(double: Double, ctl: Ctl) -> None:
    many = [session(session_id=f"{n:08d}-0000-4000-8000-000000000000") for n in range(20000)]
    double.answers["session.list"] = giving({"sessions": many})
    done = ctl.shell("$AIOSCTL session list -q | head -1; echo ${PIPESTATUS[0]}")
    assert done.stdout.splitlines() == [many[0]["session_id"], str(128 + signal.SIGPIPE)]
    assert done.stderr == ""


def test_a_full_disk_is_a_sentence(double: Double, ctl: Ctl) -> None:
    done = ctl.shell("$AIOSCTL ping > /dev/full")
    assert (done.returncode, done.stderr) == (1, "aiosctl: standard output: No space left on device\n")


def test_a_closed_standard_output_breaks_nothing(double: Double, ctl: Ctl) -> None:
    done = ctl.shell("$AIOSCTL ping >&- 2>&-; echo $?; $AIOSCTL ping --json >&-; echo $?")
    assert (done.stdout, done.stderr) == ("0\n0\n", "")


@pytest.mark.parametrize(
    "locale", [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"LC_ALL": "C"}]
)
def test_utf8_goes_through_any_locale(double: Double, ctl: Ctl, locale: Mapping[str, str]) -> None:
    (ctl.folder / "ü.txt").write_text("Ü", encoding="utf-8")
    double.answers["session.run"] = giving(result(result="schöne Grüße 🙂"))
    done = ctl("run", "Grüße", "-f", "ü.txt", **locale)
    assert (done.returncode, done.stdout) == (0, "schöne Grüße 🙂\n"), done.stderr
    run = double.params("session.run")[0]
    assert (run["task"], run["inputs"]) == ("Grüße", [{"name": "ü.txt", "text": "Ü"}])


def test_an_argument_that_is_not_utf8_is_a_sentence(ctl: Ctl) -> None:
    done = ctl.shell("$AIOSCTL run $'\\xff'")
    assert (done.returncode, done.stderr) == (2, "aiosctl: an argument is not UTF-8 text\n")
