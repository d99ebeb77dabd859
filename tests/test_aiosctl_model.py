"""aiosctl model list, route, infer: what they show, ask for and end with."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aiosd import framing
from aiosd.errors import NoModelFits
from tests.aiosctl_double import Connection, Ctl, Double, giving, raising, result
from tests.terminals import OnTerminal

DECISION: dict[str, Any] = {
    "tier": "fast",
    "chosen": "small",
    "reason": "the only local one of tier fast",
    "candidates": [
        {"backend": "small", "model": "llama3.2", "local": True, "predicted_s": 1.25},
        {"backend": "cloud", "model": "gpt-4o", "local": False, "rejected": "not needed", "predicted_s": 3.0},
        {"backend": "old", "model": "m", "local": True, "rejected": "connection refused"},
    ],
}


def backend(**given: Any) -> dict[str, Any]:
    return {
        "name": "small",
        "kind": "ollama",
        "model": "llama3.2",
        "url": None,
        "local": True,
        "tiers": ["fast", "balanced", "capable"],
        "state": "up",
        "reason": None,
        "slots": 2,
        "in_flight": 1,
        "price_in": 0.0,
        "price_out": 0.0,
    } | given


def reply(**given: Any) -> dict[str, Any]:
    return {
        "text": "Hello.",
        "thinking": "",
        "tool_calls": [],
        "stop_reason": "end_turn",
        "generated": True,
        "abstained": False,
        "sources": [],
        "usage": {"input_tokens": 1, "output_tokens": 1},
        "cost_usd": 0.0,
        "backend": "small",
        "model": "llama3.2",
        "decision": DECISION,
    } | given


def test_list_shows_how_each_backend_stands(double: Double, ctl: Ctl, on_terminal: OnTerminal) -> None:
    learnt = backend(resident=True, queued=3, tokens_per_s=45.04, first_token_s=0.2)
    paid = {"name": "cloud", "model": "gpt-4o", "local": False, "tiers": ["capable"], "state": "down"}
    paid |= {"price_in": 2.5, "price_out": 10.0, "retry_in_s": 11.7, "reason": "busy", "in_flight": 0}
    double.answers["model.list"] = giving({"backends": [learnt, backend(**paid)]})
    assert [line.split("\t") for line in ctl("model", "list").stdout.splitlines()] == [
        ["small", "up", "all", "llama3.2", "yes", "3", "1/2", "45.0", "0.20 s", "-", "-", "-"],
        ["cloud", "down", "capable", "gpt-4o (remote)", "-", "0", "0/2", "-", "-", "2.5/10", "12 s", "busy"],
    ]
    terminal = on_terminal(ctl, "model", "list", columns=160)
    status, shown = terminal.end()
    assert status == 0
    assert all(heading in shown.splitlines()[0] for heading in ("resident", "queue", "first token", "retry"))


def test_route_is_one_readable_block(double: Double, ctl: Ctl) -> None:
    double.answers["model.route"] = giving(DECISION)
    done = ctl(
        "model",
        "route",
        "--tier",
        "fast",
        "--latency",
        "2s",
        "--private",
        "-m",
        "small",
        "--max-tokens",
        "7",
        "hi",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "backend\tsmall",
        "model\tllama3.2",
        "where\tthis machine",
        "tier\tfast",
        "because\tthe only local one of tier fast",
        "takes\tabout 1.2 s",
        "not cloud\tnot needed (about 3.0 s)",
        "not old\tconnection refused",
    ]
    (asked,) = double.params("model.route")
    assert asked["messages"][0]["content"] == "hi"
    assert {k: v for k, v in asked.items() if k != "messages"} == {
        "tier": "fast",
        "latency_budget_ms": 2000,
        "privacy": "local",
        "backend": "small",
        "max_tokens": 7,
    }


def test_infer_prints_the_reply_and_nothing_else(double: Double, ctl: Ctl) -> None:
    double.answers["model.infer"] = giving(reply())
    done = ctl("model", "infer", "hi", "--system", "Be short.", given="a pipe\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hello.\n", "")
    (asked,) = double.params("model.infer")
    assert [(m["role"], m["content"]) for m in asked["messages"]] == [
        ("system", "Be short."),
        ("user", '<input name="stdin">\na pipe\n\n</input>'),
        ("user", "hi"),
    ]
    assert "stream" not in asked
    assert json.loads(ctl("model", "infer", "--json", "hi").stdout)["text"] == "Hello."


def test_infer_takes_what_is_asked_from_a_pipe(double: Double, ctl: Ctl) -> None:
    double.answers["model.infer"] = giving(reply())
    assert ctl("model", "infer", given="hi\n").returncode == 0
    assert double.params("model.infer")[0]["messages"][0]["content"] == "hi"
    assert ctl("model", "infer").returncode == 2


def test_infer_writes_on_a_terminal_while_it_is_written(
    double: Double, ctl: Ctl, on_terminal: OnTerminal
) -> None:
    def infer(params: dict[str, Any], connection: Connection) -> object:
        assert params["stream"] is True
        for text in ("Hel", "lo."):
            connection.send(framing.notification("model.text", {"text": text}))
        return reply()

    double.answers["model.infer"] = infer
    status, shown = on_terminal(ctl, "model", "infer", "hi").end()
    assert (status, shown) == (0, "Hello.\n")


def test_a_paid_reply_names_its_price_and_the_reason(double: Double, ctl: Ctl) -> None:
    why = DECISION | {"chosen": "cloud", "reason": "paid: no local backend is up, $2.50 in"}
    double.answers["model.infer"] = giving(reply(backend="cloud", cost_usd=0.0123, decision=why))
    double.answers["session.run"] = giving(result(backend="cloud", cost_usd=0.0123, decision=why))
    for argv in (("model", "infer", "hi"), ("run", "hi")):
        assert ctl(*argv).stderr == "cloud: $0.0123, paid: no local backend is up, $2.50 in\n"
        assert ctl(*argv, "-q").stderr == ""


def test_a_prompt_that_was_cut_is_said(double: Double, ctl: Ctl) -> None:
    cut = DECISION | {"truncated": "the prompt was cut: about 9,000 tokens were sent"}
    double.answers["model.infer"] = giving(reply(decision=cut))
    double.answers["session.run"] = giving(result(decision=cut))
    for argv in (("model", "infer", "hi"), ("run", "hi")):
        done = ctl(*argv)
        assert done.returncode == 0
        assert "aiosctl: the prompt was cut: about 9,000 tokens were sent\n" in done.stderr


def test_a_load_is_announced_while_it_goes_on(double: Double, ctl: Ctl) -> None:
    def run(params: dict[str, Any], connection: Connection) -> object:
        connection.event("progress", stage="loading", detail="loading llama3.2, about 14 s", eta_s=14.0)
        return result()

    double.answers["session.run"] = run
    done = ctl("run", "hi")
    assert (done.stdout, done.stderr) == ("hello\n", "loading llama3.2, about 14 s\n")


def test_no_model_for_infer_is_78_with_the_next_step(double: Double, ctl: Ctl) -> None:
    double.answers["model.infer"] = raising(NoModelFits("no model fits", hint="aiosctl model setup"))
    done = ctl("model", "infer", "hi")
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr == "aiosctl: no model fits\n  try: aiosctl model setup\n"
    quoting = {"tier": "fast", "chosen": "extractive", "reason": "no model is there", "candidates": []}
    double.answers["model.infer"] = giving(reply(text="", abstained=True, generated=False, decision=quoting))
    done = ctl("model", "infer", "hi")
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.endswith("try: aiosctl model setup\n")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--tier", "huge", "hi"), "--tier"),
        (("--latency", "-1", "hi"), "--latency"),
        (("--max-tokens", "0", "hi"), "--max-tokens"),
        (("--schema", "none.json", "hi"), "none.json"),
        (("",), "empty"),
    ],
)
def test_bad_arguments_are_named_and_nothing_is_sent(
    double: Double, ctl: Ctl, argv: tuple[str, ...], says: str
) -> None:
    done = ctl("model", "infer", *argv)
    assert done.returncode in (2, 66) and says in done.stderr
    assert double.params("model.infer") == []
