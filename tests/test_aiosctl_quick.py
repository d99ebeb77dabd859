"""`ping` and `run TASK` without Typer: that they are the same commands, only sooner."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiosctl import main, quick
from aiosctl.verb import Globals
from aiosd.errors import NoModelFits
from aiosd.paths import socket_path
from tests.aiosctl_double import (
    WAIT_S,
    Connection,
    Ctl,
    Double,
    Hangup,
    giving,
    message,
    raising,
    result,
)

ROOT = typer.main.get_command(main.app)


def parsed(argv: list[str]) -> tuple[str, dict[str, Any]]:
    """The command's name and its params, by Typer."""
    context = ROOT.make_context("aiosctl", list(argv), obj=Globals())
    name, command, rest = ROOT.resolve_command(context, [*context._protected_args, *context.args])  # type: ignore[attr-defined]
    return name, command.make_context(name, rest, parent=context).params


DEFAULTS = parsed(["run"])[1]


@pytest.mark.parametrize(
    "argv",
    [
        ["ping"],
        ["run", "hi"],
        ["run", " a b "],
        ["run", "ping"],
        ["run", "a--b"],
        ["run", "grüße"],
        ["run", "@last"],
        ["run", "a=b"],
    ],
)
def test_what_is_hot_is_what_typer_makes_of_it(argv: list[str]) -> None:
    assert quick.hot(argv)
    expected = {} if argv == ["ping"] else DEFAULTS | {"task": argv[1]}
    assert parsed(argv) == (argv[0], expected)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_task_that_is_hot_is_typers_task(task: str) -> None:
    if quick.hot(["run", task]):
        assert parsed(["run", task]) == ("run", DEFAULTS | {"task": task})


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["run"],
        ["run", ""],
        ["run", " "],
        ["run", "-"],
        ["run", "--"],
        ["run", "-q"],
        ["run", "--help"],
        ["run", "--json"],
        ["run", "x", "-q"],
        ["--json", "ping"],
        ["ping", "--json"],
        ["ping", "--help"],
        ["status"],
    ],
)
def test_all_else_is_not_hot(argv: list[str]) -> None:
    assert not quick.hot(argv)


@pytest.mark.parametrize(
    "environ",
    [
        {"AIOSD_SOCKET": "/a/s", "AIOSD_HOME": "/b"},
        {"AIOSD_SOCKET": "s", "XDG_RUNTIME_DIR": "/run/user/1"},
        {"AIOSD_HOME": "/b", "XDG_RUNTIME_DIR": "/run/user/1"},
        {"AIOSD_HOME": "b"},
        {"XDG_RUNTIME_DIR": "/run/user/1", "AIOSD_HOME": ""},
    ],
)
def test_the_socket_is_the_same(environ: dict[str, str]) -> None:
    found = quick.socket_path(environ)
    assert found is not None
    assert Path(found).absolute() == socket_path(environ=environ)


def test_without_a_variable_that_names_the_socket_the_ordinary_way_looks_for_it() -> None:
    assert quick.socket_path({"HOME": "/home/ada"}) is None


PLAIN = result(result="grüße", sources=[{"kind": "memory", "ref": "m1", "text": "so\nit " + "is " * 60}])


def with_events(*events: dict[str, Any], answer: object = PLAIN) -> Any:
    def run(params: dict[str, Any], connection: Connection) -> object:
        for seq, event in enumerate(events, 1):
            connection.event(event["kind"], seq=seq, **{k: v for k, v in event.items() if k != "kind"})
        return answer

    return run


def hanging_up(params: dict[str, Any], connection: Connection) -> object:
    connection.event("state", state="queued")
    connection.event("state", seq=2, state="working")
    raise Hangup


USUAL: tuple[dict[str, Any], ...] = (
    {"kind": "state", "state": "queued"},
    {"kind": "progress", "stage": "queued", "place": 2},
    {"kind": "text", "offset": 0, "text": "grü"},
    {"kind": "message", **message("grüße")},
    {"kind": "usage", "usage": {"input_tokens": 1, "output_tokens": 1}, "cost_usd": 0.0},
)
CALL = {"kind": "tool_call", "call_id": "c", "name": "clock", "arguments": {"zone": "ü"}, "status": "pending"}
CUT = {"tier": "balanced", "chosen": "small", "reason": "", "candidates": [], "truncated": "it was cut"}

ANSWERS: dict[str, Any] = {
    "plain": giving(PLAIN),
    "with its events": with_events(*USUAL),
    "with a tool call": with_events(*USUAL, CALL),
    "with a load": with_events({"kind": "progress", "stage": "loading", "detail": "loading m"}),
    "with a kind of event nobody knows": with_events({"kind": "hologram"}),
    "an object": giving(result(result={"a": 1})),
    "quoted": giving(result(generated=False)),
    "abstained": giving(result(abstained=True, result="")),
    "paid": giving(result(cost_usd=0.01)),
    "cut": giving(result(decision=CUT)),
    "stopped early": giving(result(stop_reason="max_tokens")),
    "an error": raising(NoModelFits("no model fits", hint="aiosctl model list")),
    "a hang-up at once": raising(Hangup()),
    "a hang-up in the middle": hanging_up,
    "not JSON": giving(b"}{\n"),
    "another protocol": giving(b'{"jsonrpc":"2.0","id":2,"result":{"odd":true}}\n'),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_it_asks_prints_and_ends_as_the_ordinary_way_does(double: Double, ctl: Ctl, name: str) -> None:
    double.answers["session.run"] = ANSWERS[name]
    soon = ctl("run", ' say "hello"\\ and  grüße 🎈 ')
    asked = [(method, params) for method, params, _ in double.calls]
    double.calls.clear()
    ordinary = ctl("run", "--no-start", ' say "hello"\\ and  grüße 🎈 ')
    assert asked == [(method, params) for method, params, _ in double.calls]
    assert [each for each in asked if each[0] == "session.run"] != []
    assert (soon.returncode, soon.stdout, soon.stderr) == (
        ordinary.returncode,
        ordinary.stdout,
        ordinary.stderr,
    )


def test_a_pong_is_the_same(double: Double, ctl: Ctl) -> None:
    assert ctl("ping").stdout == ctl("ping", "--no-start").stdout != ""


def loaded(*argv: str, ctl: Ctl) -> set[str]:
    """Modules imported by a Python that does this."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *argv],
        cwd=ctl.folder,
        env=ctl.env,
        check=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    return {
        line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time")
    }


@pytest.mark.parametrize("command", [["ping"], ["run", "hi"]], ids=lambda command: command[0])
def test_it_loads_this_and_nothing_else(double: Double, ctl: Ctl, command: list[str]) -> None:
    double.answers["session.run"] = with_events(*USUAL)
    script = str(Path(main.__file__).with_name("aiosctl"))
    more = loaded("-P", script, *command, ctl=ctl) - loaded("-c", "pass", ctl=ctl)
    assert more <= {"__future__", "aiosctl", "aiosctl.quick", "_socket", "_json"}


def test_the_help_of_all_says_of_each_command_what_its_own_does() -> None:
    context = ROOT.make_context("aiosctl", [], resilient_parsing=True)
    for name, (_, summary) in main.COMMANDS.items():
        command = ROOT.get_command(context, name)  # type: ignore[attr-defined]
        assert command.help.startswith(summary), name
