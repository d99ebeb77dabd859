from __future__ import annotations

import os
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosd.errors import InvalidParams
from aiosd.records import Tool
from aiosd.tools import limits
from aiosd.tools.policy import Verdict, check_permissions, decide, denial, offered, rule_for, settle
from aiosd.tools.subjects import (
    Place,
    Subject,
    Unclear,
    canonical_path,
    canonical_url,
    literal,
    matches,
    subjects,
)


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


@pytest.mark.parametrize(
    "entry",
    [
        "*",
        "!*",
        "read",
        "!write",
        "?shell",
        "server__tool",
        "a.b-c",
        "read(*.md)",
        "!read(/etc/*)",
        "?*",
        "a(b)(c)",
    ],
)
def test_entries_are_names_with_patterns_that_allow_ask_or_deny(entry: str) -> None:
    check_permissions([entry])


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "!",
        "?",
        "a b",
        "!!a",
        "?!a",
        "**",
        "a*",
        "read\n",
        "(x)",
        "-a",
        "read()",
        "read(x",
        "read(a\nb)",
        "a(b)c",
    ],
)
def test_what_is_no_entry_is_refused(entry: str) -> None:
    with pytest.raises(InvalidParams, match="expected"):
        check_permissions(["read", entry])


# --- rules on what a call is about ---------------------------------------------------------------------------

PLACE = Place(workspace="/home/me/project", home="/home/me")


def taking(name: str, argument: str, *permissions: str, leaves: bool = False) -> Tool:
    return Tool(
        name=name,
        description="",
        input_schema={"properties": {argument: {"type": "string"}, "content": {"type": "string"}}},
        annotations={"openWorldHint": leaves},
        permissions=permissions,
        rate_limit=None,
    )


READ_FILE = taking("read_file", "path", "read")
HTTP_GET = taking("http_get", "url", "web", leaves=True)
RUN = taking("run_command", "argv", "run")
CALENDAR = taking("calendar", "day", "web", leaves=True)


def verdict(tool: Tool, value: object, *permissions: str, always: tuple[str, ...] = ()) -> Verdict:
    (argument, *_) = tool.input_schema["properties"]
    try:
        about = subjects(tool, {argument: value, "content": "x"}, PLACE)
    except Unclear:
        about = None
    return settle(decide(tool, permissions, about, PLACE), tool, about, always, PLACE)


@pytest.mark.parametrize(
    ("tool", "value", "permissions", "decision", "rule"),
    [
        (READ_FILE, "a.txt", ("read",), "allow", "read"),
        (READ_FILE, "a.txt", ("read_file(/home/me/project/**)",), "allow", "read_file(/home/me/project/**)"),
        (READ_FILE, "../notes/a", ("read_file(~/notes/**)",), "allow", "read_file(~/notes/**)"),
        (READ_FILE, "/home/me/notes", ("read_file(~/notes/**)",), "allow", "read_file(~/notes/**)"),
        (READ_FILE, "/home/me/notes2/a", ("read_file(~/notes/**)",), "deny", None),
        (READ_FILE, "/home/me/notes/../.ssh/key", ("read_file(~/notes/**)",), "deny", None),
        (READ_FILE, "sub/a.md", ("read_file(*.md)",), "deny", None),
        (READ_FILE, "sub/a.md", ("read_file(**.md)",), "allow", "read_file(**.md)"),
        (READ_FILE, "a.txt", ("read", "!read(secret/**)"), "allow", "read"),
        (READ_FILE, "x/../secret/k", ("read", "!read(secret/**)"), "deny", "!read(secret/**)"),
        (READ_FILE, "secret", ("read", "!read(secret/**)"), "deny", "!read(secret/**)"),
        (READ_FILE, ".", ("read", "!read(secret/**)"), "deny", "!read(secret/**)"),  # a walk would come there
        (READ_FILE, ".env", ("*", "!*(**/.env)"), "deny", "!*(**/.env)"),
        (READ_FILE, "a\0b", ("read_file(/**)",), "deny", None),
        (READ_FILE, "a.txt", ("read", "?read_file(*.txt)"), "ask", "?read_file(*.txt)"),
        (READ_FILE, "a.md", ("read", "?read_file(*.txt)"), "allow", "read"),
        (READ_FILE, "a.txt", ("?read",), "ask", "?read"),
        (READ_FILE, "a.txt", ("?read", "!read(a.txt)"), "deny", "!read(a.txt)"),
        (HTTP_GET, "https://api.example.com/v1", ("web",), "ask", None),
        (HTTP_GET, "https://api.example.com/v1", ("*",), "ask", None),
        (HTTP_GET, "https://api.example.com/v1", ("http_get",), "allow", "http_get"),
        (HTTP_GET, "https://API.example.com:443/v1", ("web(https://api.example.com)",), "allow", ...),
        (HTTP_GET, "http://api.example.com/v1", ("http_get(https://api.example.com/**)",), "deny", None),
        (
            HTTP_GET,
            "https://api.example.com.evil.net/",
            ("http_get(https://api.example.com/**)",),
            "deny",
            None,
        ),
        (
            HTTP_GET,
            "https://api.example.com@evil.net/",
            ("http_get(https://api.example.com/**)",),
            "deny",
            None,
        ),
        (
            HTTP_GET,
            "https://api.example.com\\@evil.net/",
            ("http_get(https://api.example.com/**)",),
            "deny",
            None,
        ),
        (HTTP_GET, "https://a.com/pub/%2e%2e/in", ("http_get(https://a.com/pub/**)",), "deny", None),
        (HTTP_GET, "https://x.a.com/", ("http_get(https://*.a.com/**)",), "allow", ...),
        (HTTP_GET, "https://evil.net/x.a.com/", ("http_get(https://*.a.com/**)",), "deny", None),
        (HTTP_GET, "https://evil.net/", ("http_get", "!web(evil.net)"), "deny", "!web(evil.net)"),
        (RUN, ["git", "status"], ("run(git *)",), "allow", "run(git *)"),
        (RUN, ["git status; rm"], ("run(git *)",), "deny", None),
        (RUN, ["rm", "-r", "x"], ("run", "?run(rm *)"), "ask", "?run(rm *)"),
        (CALENDAR, "monday", ("calendar",), "allow", "calendar"),
        (CALENDAR, "monday", ("calendar(monday)",), "deny", None),  # `content` is a text of it too
    ],
)
def test_rules_hold_on_canonical_arguments_deny_before_ask_before_allow(
    tool: Tool, value: object, permissions: tuple[str, ...], decision: str, rule: object
) -> None:
    found = verdict(tool, value, *permissions)
    assert found.decision == decision, found
    assert found.why
    if rule is not ...:
        assert found.rule == rule


@pytest.mark.parametrize(
    ("tool", "value", "rule"),
    [
        (HTTP_GET, "https://User:pw@A.com:443/x?y", "http_get(https://a.com/**)"),
        (READ_FILE, "./a*.txt", "read_file(/home/me/project/a[*].txt)"),
        (RUN, ["ls", "a b"], "run_command(ls 'a b')"),
        (CALENDAR, "monday", "calendar"),
        (HTTP_GET, "nonsense", None),
    ],
)
def test_always_answers_the_like_of_what_was_asked_and_no_more(
    tool: Tool, value: object, rule: str | None
) -> None:
    (argument, *_) = tool.input_schema["properties"]
    try:
        about = subjects(tool, {argument: value}, PLACE)
    except Unclear:
        about = None
    assert rule_for(tool, about) == rule
    if rule is not None:
        permissions = (f"?{tool.name}",)
        assert verdict(tool, value, *permissions).decision == "ask"
        assert verdict(tool, value, *permissions, always=(rule,)).decision == "allow"
        assert verdict(tool, value, *permissions, always=(rule, f"!{rule}")).decision == "deny"
        assert verdict(tool, value, "nothing", always=(rule,)).decision == "deny"
        assert verdict(tool, value, *permissions, f"!{tool.name}", always=(rule,)).decision == "deny"


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        ("HTTP://Example.COM", "http://example.com/"),
        ("https://example.com:443/a/./b/../c?q=%7e#f", "https://example.com/a/c?q=~"),
        ("https://example.com./%41%2f%2F", "https://example.com/A%2F%2F"),
        ("https://u:p@example.com:8443/", "https://example.com:8443/"),
        (
            "https://b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher.example/\N{SNOWMAN}",
            "https://xn--bcher-kva.example/%E2%98%83",
        ),
        ("http://[::0001]:80/..", "http://[::1]/"),
    ],
)
def test_an_address_has_one_spelling(url: str, canonical: str) -> None:
    assert canonical_url(url) == canonical
    assert canonical_url(canonical) == canonical


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com",
        "https://",
        "https:///x",
        "https://a b/",
        "https://a.com/%zz",
        "https://a:99999/",
        "x\t:",
    ],
)
def test_an_address_that_programs_read_differently_is_unclear(url: str) -> None:
    with pytest.raises(Unclear):
        canonical_url(url)


segments = st.sampled_from(["a", "b", "..", ".", "", "*", "[", "~", "secret"])
relative = st.lists(segments, max_size=6).map("/".join)


@given(relative, relative)
def test_no_spelling_of_a_path_gets_around_a_denial(path: str, other: str) -> None:
    canonical = canonical_path(path, PLACE)
    assert canonical_path(canonical, PLACE) == canonical and "/../" not in f"{canonical}/"
    inside = f"{canonical}/".startswith("/home/me/project/secret/")
    found = verdict(READ_FILE, path, "read", "!read(secret/**)")
    assert (found.decision == "deny") == (
        inside or "/home/me/project/secret".startswith(canonical.rstrip("/") + "/")
    )
    if canonical_path(other, PLACE) == canonical:
        assert verdict(READ_FILE, other, "read", "!read(secret/**)") == found


@given(st.text(max_size=30))
def test_a_literal_pattern_matches_itself_alone(text: str) -> None:
    for kind in ("text", "command"):
        subject = Subject(kind, text)
        assert matches(literal(text), subject, PLACE)
        assert not matches(literal(text), Subject(subject.kind, f"{text}x"), PLACE)


@given(st.text(alphabet="ab/*", max_size=12), st.text(alphabet="ab/", max_size=12))
def test_patterns_match_as_the_regular_expression_would(pattern: str, text: str) -> None:
    where = Place(workspace="/", home="/")
    whole = "/" + os.path.normpath("/" + pattern).lstrip("/")
    path = canonical_path(text, where)
    parts = re.split(r"(/\*\*/|\*\*|\*)", whole)
    meant = "".join({"/**/": "/(.*/)?", "**": ".*", "*": "[^/]*"}.get(p, re.escape(p)) for p in parts)
    expected = bool(re.fullmatch(meant, path)) or (
        whole.endswith("/**") and bool(re.fullmatch(meant[: -len("/.*")] or "/", path))
    )
    assert matches(pattern, Subject("path", path), where) == expected


def test_a_pattern_full_of_stars_is_matched_in_no_time() -> None:
    started = time.process_time()
    assert not matches("*a" * 400, Subject("text", "a" * 4000 + "b"), PLACE)
    assert time.process_time() - started < 5


names = st.sampled_from(["*", "a", "b", "c", "d"])
entries = st.lists(names | names.map("!{}".format) | names.map("?{}".format), max_size=5).map(tuple)
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
