"""What people type for an id, and which thing aiosctl takes it for."""

from __future__ import annotations

from typing import Any

import pytest

from tests.aiosctl_double import Connection, Ctl, Double, giving, session, task

UUID = "00000000-0000-4000-8000-00000000000"


@pytest.fixture
def many(double: Double) -> Double:
    """Three tasks and three sessions, a page of the list for each."""

    def pages(noun: str, each: list[dict[str, Any]]) -> Any:
        def answer(params: dict[str, Any], connection: Connection) -> object:
            n = int(params.get("cursor", 0))
            more = {"next_cursor": str(n + 1)} if n + 1 < len(each) else {}
            return {noun: [each[n]]} | more

        return answer

    sessions = [
        session(session_id=f"aaaa1111{UUID[8:]}1", title="notes"),
        session(session_id=f"aaaa2222{UUID[8:]}2", title="work"),
        session(session_id=f"bbbb3333{UUID[8:]}3", title="notes"),
    ]
    tasks = [task(task_id=f"cccc{n}111{UUID[8:]}{n}", number=n, task=f"the {n}th\ntask") for n in (13, 12, 2)]
    double.answers["session.list"] = pages("sessions", sessions)
    double.answers["session.get"] = lambda params, connection: session(**params)
    double.answers["task.list"] = pages("tasks", tasks)
    double.answers["task.get"] = lambda params, connection: task(**params)
    return double


@pytest.mark.parametrize(
    ("noun", "given", "found"),
    [
        ("task", "12", "cccc1211"),
        ("task", "@last", "cccc1311"),
        ("task", "CCCC2", "cccc2111"),
        ("session", "work", "aaaa2222"),
        ("session", "aaaa1", "aaaa1111"),
        ("session", "@last", "aaaa1111"),
        ("session", f"dddd4444{UUID[8:]}4", "dddd4444"),
    ],
)
def test_an_id_may_be_a_number_a_beginning_a_title_or_last(
    many: Double, ctl: Ctl, noun: str, given: str, found: str
) -> None:
    done = ctl(noun, "show", given)
    assert done.returncode == 0, done.stderr
    assert many.params(f"{noun}.get")[0][f"{noun}_id"].startswith(found)


def test_an_ambiguous_id_lists_what_it_could_be(many: Double, ctl: Ctl) -> None:
    done = ctl("session", "show", "notes")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "aiosctl: `notes` is 2 sessions:",
        f"  aaaa1111{UUID[8:]}1  notes",
        f"  bbbb3333{UUID[8:]}3  notes",
    ]
    assert "`cccc1` is 2 tasks" in ctl("task", "cancel", "cccc1").stderr


@pytest.mark.parametrize("given", ["99", "zzz", ""])
def test_an_id_that_is_none_is_not_found(many: Double, ctl: Ctl, given: str) -> None:
    done = ctl("task", "show", given)
    assert (done.returncode, done.stderr) == (66, f"aiosctl: no task `{given}`\n  try: aiosctl task list\n")


def test_last_of_nothing_says_so(double: Double, ctl: Ctl) -> None:
    double.answers["session.list"] = giving({"sessions": []})
    done = ctl("run", "-s", "@last", "x")
    assert (done.returncode, done.stderr) == (
        66,
        "aiosctl: there is no session yet\n  try: aiosctl session create\n",
    )
