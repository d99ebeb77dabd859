from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosd.errors import InvalidParams
from aiosd.records import Tool
from aiosd.tools import limits
from aiosd.tools.policy import check_permissions, denial, offered


def tool(name: str, *permissions: str) -> Tool:
    return Tool(
        name=name, description="", input_schema={}, annotations={}, permissions=permissions, rate_limit=None
    )


OPEN = tool("calculator", "*")
READ = tool("read_file", "read")
BOTH = tool("copy", "read", "write")
BARE = tool("deploy")
TOOLS = (OPEN, READ, BOTH, BARE)


@pytest.mark.parametrize(
    ("permissions", "names"),
    [
        ((), "calculator"),
        (("memory",), "calculator"),
        (("read",), "calculator read_file copy"),
        (("write",), "calculator copy"),
        (("deploy",), "calculator deploy"),
        (("read_file",), "calculator read_file"),
        (("*",), "calculator read_file copy deploy"),
        (("*", "!write"), "calculator read_file deploy"),
        (("!write", "*"), "calculator read_file deploy"),
        (("read", "!read_file"), "calculator copy"),
        (("*", "!calculator"), "read_file copy deploy"),
        (("read", "!read"), "calculator"),
        (("*", "!*"), ""),
    ],
)
def test_a_session_is_offered_what_shares_a_name_and_is_not_denied(
    permissions: tuple[str, ...], names: str
) -> None:
    assert [t.name for t in offered(TOOLS, permissions)] == names.split()


@pytest.mark.parametrize(
    ("narrowed", "names"),
    [
        (None, "calculator read_file copy"),
        ((), ""),
        (("read_file", "deploy"), "read_file"),
        (("nothing",), ""),
    ],
)
def test_a_run_can_narrow_what_its_session_is_offered(narrowed: tuple[str, ...] | None, names: str) -> None:
    assert [t.name for t in offered(TOOLS, ("read",), narrowed)] == names.split()


@pytest.mark.parametrize(
    ("entry", "clause"),
    [
        (("memory",), "it needs the permission `read` or `write` or `copy`, and has `memory`"),
        ((), "it needs the permission `read` or `write` or `copy`, and has none"),
        (("*", "!write"), "its permissions deny it with `!write`"),
    ],
)
def test_a_denial_says_what_is_missing(entry: tuple[str, ...], clause: str) -> None:
    assert denial(BOTH, entry) == clause


@pytest.mark.parametrize("entries", [("*",), ("!*",), ("read", "!write"), ("server__tool", "a.b-c"), ()])
def test_entries_are_names_denials_and_the_star(entries: tuple[str, ...]) -> None:
    check_permissions(entries)


@pytest.mark.parametrize("entry", ["read(*.md)", "!read(/etc/*)", "?write", "?shell(rm *)", "read(a\nb)"])
def test_patterns_and_asking_are_refused_as_not_there_yet(entry: str) -> None:
    with pytest.raises(InvalidParams, match="not there yet"):
        check_permissions(["read", entry])


@pytest.mark.parametrize("entry", ["", "!", "a b", "!!a", "**", "a*", "read\n", "(x)", "-a"])
def test_what_is_no_entry_is_refused(entry: str) -> None:
    with pytest.raises(InvalidParams, match="expected"):
        check_permissions([entry])


names = st.sampled_from(["*", "a", "b", "c", "d"])
entries = st.lists(names | names.map("!{}".format), max_size=5).map(tuple)
toolboxes = st.lists(
    st.builds(lambda name, permissions: tool(name, *permissions), st.sampled_from("abcd"), st.lists(names)),
    max_size=6,
)


@given(toolboxes, entries, names, st.integers(0, 5))
def test_adding_a_denial_never_widens(
    tools: list[Tool], permissions: tuple[str, ...], name: str, place: int
) -> None:
    denied = (*permissions[:place], f"!{name}", *permissions[place:])
    assert set(map(id, offered(tools, denied))) <= set(map(id, offered(tools, permissions)))
    assert not [t for t in offered(tools, denied) if name in ("*", t.name) or name in t.permissions]


@given(toolboxes, entries, st.lists(st.sampled_from("abcd"), max_size=3))
def test_narrowing_never_widens(tools: list[Tool], permissions: tuple[str, ...], narrowed: list[str]) -> None:
    few = offered(tools, permissions, narrowed)
    assert set(map(id, few)) <= set(map(id, offered(tools, permissions)))
    assert all(t.name in narrowed for t in few)


# --- rate limits -------------------------------------------------------------------------------------------


def test_a_full_bucket_gives_its_limit_at_once_and_then_says_how_long_to_wait() -> None:
    bucket = limits.full(6, now=100)
    for _ in range(6):
        bucket, wait_s = limits.take(bucket, 6, now=100)
        assert wait_s == 0
    assert limits.take(bucket, 6, now=100)[1] == pytest.approx(10)
    assert limits.take(bucket, 6, now=105)[1] == pytest.approx(5)
    assert limits.take(bucket, 6, now=110)[1] == 0


def test_a_call_given_back_can_be_taken_again_but_never_fills_past_the_limit() -> None:
    bucket, _ = limits.take(limits.full(1, now=0), 1, now=0)
    bucket = limits.give_back(limits.give_back(bucket, 1, now=0), 1, now=0)
    bucket, first = limits.take(bucket, 1, now=0)
    assert (first, limits.take(bucket, 1, now=0)[1]) == (0, 60)


@given(st.integers(1, 100), st.lists(st.floats(0, 30), max_size=80))
def test_a_window_holds_at_most_the_limit_and_what_was_refilled_in_it(
    limit: int, pauses: list[float]
) -> None:
    bucket, now, calls = limits.full(limit, 0), 0.0, 0
    for pause in pauses:
        now += pause
        bucket, wait_s = limits.take(bucket, limit, now)
        calls += not wait_s
        if wait_s:
            assert limits.take(bucket, limit, now + wait_s)[1] == 0
    assert calls <= limit + now * limit / 60 + 1e-3


def test_a_clock_that_goes_back_fills_nothing() -> None:
    bucket, _ = limits.take(limits.full(1, now=100), 1, now=100)
    assert limits.take(bucket, 1, now=10)[1] == 60
