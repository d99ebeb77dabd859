"""What a session may do with a tool. Permissions are fixed when a session is created; deny > ask > allow.

    name            allows the tool of that name, or every tool that has it among its permissions; `*` is all
    name(pattern)   allows it where all that the call is about fits the pattern
    ?name           allows it once the user has said yes; also with a pattern
    !name           denies it; also with a pattern, where anything that the call is about fits

A tool with `*` among its permissions is open to every session. What leaves the sandbox asks, unless the session names
that tool itself or a pattern that fits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal, TypeVar

import msgspec

from aiosd.errors import InvalidParams
from aiosd.records import Tool
from aiosd.tools.subjects import Place, Subject, holds, literal, matches

ALL = "*"
MAX_PATTERN = 1000
_NAME = r"(?:\*|[A-Za-z0-9_][A-Za-z0-9_.-]*)"
_ENTRY = re.compile(rf"(?P<sign>[!?]?)(?P<name>{_NAME})(?:\((?P<pattern>.+)\))?", re.DOTALL)
_EXPECTED = "expected `name`, `name(pattern)`, `?name`, `!name` or `*`"

T = TypeVar("T", bound=Tool)


class Entry(msgspec.Struct, frozen=True):
    sign: Literal["", "?", "!"]
    name: str
    pattern: str | None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    decision: Literal["allow", "ask", "deny"]
    rule: str | None
    """The entry that decides; None where it is a default."""
    why: str
    """A clause."""


@lru_cache(maxsize=1024)
def parse(entry: str) -> Entry:
    """Raises InvalidParams for what is no entry."""
    found = _ENTRY.fullmatch(entry)
    if found is None:
        raise InvalidParams(f"permission `{entry}`: {_EXPECTED}")
    pattern = found["pattern"]
    if pattern is not None and (len(pattern) > MAX_PATTERN or not pattern.isprintable()):
        raise InvalidParams(
            f"permission `{entry[:80]}`: expected a pattern of at most {MAX_PATTERN} printable characters"
        )
    return msgspec.convert({"sign": found["sign"], "name": found["name"], "pattern": pattern}, Entry)


def check_permissions(entries: Iterable[str]) -> None:
    """Raises InvalidParams for what is no entry."""
    for entry in entries:
        parse(entry)


def check_names(permissions: Iterable[str]) -> None:
    """The permissions that a tool asks for. Raises InvalidParams for what is not `name` or `*`."""
    for name in permissions:
        if not isinstance(name, str) or not re.fullmatch(_NAME, name):
            raise InvalidParams(f"permission `{name}`: expected `name` or `*`")


def denial(tool: Tool, permissions: Sequence[str]) -> str | None:
    """Why a session with these permissions may not use the tool, whatever its arguments: a clause; None if it may."""
    refused = _refusal(tool, permissions)
    return None if refused is None else refused.why


def _refusal(tool: Tool, permissions: Sequence[str]) -> Verdict | None:
    names = _names(tool)
    for entry in permissions:
        rule = parse(entry)
        if rule.sign == "!" and rule.pattern is None and rule.name in (ALL, *names):
            return Verdict(decision="deny", rule=entry, why=f"its permissions deny it with `{entry}`")
    if ALL in tool.permissions or any(_grants(parse(entry), names) for entry in permissions):
        return None
    wanted = " or ".join(f"`{name}`" for name in dict.fromkeys((*names[1:], names[0])))
    why = f"it needs the permission {wanted}, and has {_given(permissions)}"
    return Verdict(decision="deny", rule=None, why=why)


def decide(tool: Tool, permissions: Sequence[str], about: Sequence[Subject] | None, place: Place) -> Verdict:
    """On one call of the tool that is about these subjects; None are those of a call that is unclear."""
    if refused := _refusal(tool, permissions):
        return refused
    names = _names(tool)
    rules = [(entry, rule) for entry in permissions if (rule := parse(entry)).name in (ALL, *names)]
    for entry, rule in rules:
        if rule.sign == "!" and (touched := _touches(rule, about, place)):
            return Verdict(decision="deny", rule=entry, why=f"its permissions deny {touched} with `{entry}`")
    granting = [(entry, rule) for entry, rule in rules if rule.sign != "!"]
    covered = _together([rule for _, rule in granting], about, place)
    if not covered and ALL not in tool.permissions:
        why = f"{_shown(about)} is not among what its permissions allow: {_given(permissions)}"
        return Verdict(decision="deny", rule=None, why=why)
    for entry, rule in rules:
        if rule.sign == "?" and _touches(rule, about, place):
            return Verdict(decision="ask", rule=entry, why=f"its permissions ask with `{entry}`")
    fitting = [entry for entry, rule in granting if _together([rule], about, place)]
    if leaves_sandbox(tool) and not any(_is_explicit(tool, parse(entry)) for entry in fitting):
        return Verdict(decision="ask", rule=None, why="it leaves the sandbox")
    if fitting:
        return Verdict(decision="allow", rule=fitting[0], why=f"its permissions allow it with `{fitting[0]}`")
    why = "its permissions allow it together" if covered else "it is open to every session"
    return Verdict(decision="allow", rule=None, why=why)


def settle(
    verdict: Verdict, tool: Tool, about: Sequence[Subject] | None, always: Sequence[str], place: Place
) -> Verdict:
    """The verdict once the user's earlier `always` and `never` are heard: they answer what asks, and nothing else."""
    if verdict.decision != "ask":
        return verdict
    rules = [(entry, rule) for entry in always if (rule := parse(entry)).name == tool.name]
    for entry, rule in rules:
        if rule.sign == "!" and _touches(rule, about, place):
            return Verdict(decision="deny", rule=entry, why=f"its user said never: `{entry}`")
    for entry, rule in rules:
        if rule.sign == "" and _together([rule], about, place):
            return Verdict(decision="allow", rule=entry, why=f"its user said always: `{entry}`")
    return verdict


def rule_for(tool: Tool, about: Sequence[Subject] | None) -> str | None:
    """What `always` means for such a call, as an entry: all of an address's origin, this very path, this very command;
    of a call that is about none of these the whole tool. None where no one rule says it."""
    if about is None:
        return None
    if all(subject.kind == "text" for subject in about):
        return tool.name
    patterns = {
        literal("/".join(subject.text.split("/", 3)[:3])) + "/**"
        if subject.kind == "url"
        else literal(subject.text)
        for subject in about
    }
    pattern = patterns.pop()
    if patterns or not pattern or not pattern.isprintable() or len(pattern) > MAX_PATTERN:
        return None
    return f"{tool.name}({pattern})"


def leaves_sandbox(tool: Tool) -> bool:
    return bool(tool.annotations.get("openWorldHint"))


def offered(
    tools: Iterable[T], permissions: Sequence[str], narrowed: Sequence[str] | None = None
) -> tuple[T, ...]:
    """The tools a run is given: those the session may use, and of these, where `narrowed` is not None, those
    it names."""
    return tuple(
        tool
        for tool in tools
        if denial(tool, permissions) is None and (narrowed is None or tool.name in narrowed)
    )


def _names(tool: Tool) -> tuple[str, ...]:
    return (tool.name, *(name for name in tool.permissions if name != ALL))


def _grants(rule: Entry, names: Sequence[str]) -> bool:
    return rule.sign != "!" and rule.name in (ALL, *names)


def _is_explicit(tool: Tool, rule: Entry) -> bool:
    return rule.sign == "" and (rule.name == tool.name or rule.pattern is not None)


def _touches(rule: Entry, about: Sequence[Subject] | None, place: Place) -> str | None:
    """What of the call the rule is about, if anything; an unclear call is about everything."""
    if rule.pattern is None:
        return "it"
    if about is None:
        return "a call whose arguments are unclear"
    for subject in about:
        if matches(rule.pattern, subject, place):
            return f"`{subject.text[:200]}`"
        if holds(rule.pattern, subject, place):
            return f"what lies below `{subject.text[:200]}`"
    return None


def _together(rules: Sequence[Entry], about: Sequence[Subject] | None, place: Place) -> bool:
    """Whether the rules allow all that the call is about."""
    if any(rule.pattern is None for rule in rules):
        return True
    patterns = [rule.pattern for rule in rules if rule.pattern is not None]
    return bool(about) and all(any(matches(p, s, place) for p in patterns) for s in about or ())


def _given(permissions: Sequence[str]) -> str:
    return ", ".join(f"`{entry}`" for entry in permissions) or "none"


def _shown(about: Sequence[Subject] | None) -> str:
    if about is None:
        return "a call whose arguments are unclear"
    return ", ".join(f"`{subject.text[:200]}`" for subject in about) or "a call without such an argument"
