"""What a call is about, in the one spelling that rules are held against, and the patterns of those rules.

The subjects of a call are its arguments named `path`, `url` or `argv` (and their like below); of a tool that takes
none of these, every text in its arguments. Pure: symlinks are resolved by who asks, through `resolve`.
"""

from __future__ import annotations

import ipaddress
import os.path
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from aiosd.records import Tool

PATHS = frozenset({"path", "paths", "file", "files", "folder", "directory", "source", "destination"})
URLS = frozenset({"url", "urls", "uri"})
COMMANDS = frozenset({"argv", "command"})

DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443, "ftp": 21}
MAX_URL = 8000
"""Characters; a longer one has no canonical form."""

Kind = Literal["path", "url", "command", "text"]


class Unclear(ValueError):
    """An argument without a canonical form: str() says which and why. No pattern allows it."""


class Subject(msgspec.Struct, frozen=True):
    kind: Kind
    text: str


class Place(msgspec.Struct, frozen=True):
    """Where relative paths start, and `~`, and to where an absolute path really leads."""

    workspace: str
    home: str
    resolve: Callable[[str], str] = str


def subjects(tool: Tool, arguments: Mapping[str, Any], place: Place) -> tuple[Subject, ...]:
    """What the call is about. Raises Unclear."""
    properties: Mapping[str, Any] = tool.input_schema.get("properties", {})
    named = [name for name in properties if name in PATHS | URLS | COMMANDS]
    found: list[Subject] = []
    for name in named:
        value = arguments.get(name, properties[name].get("default"))
        if value is None:
            continue
        if name in COMMANDS:
            found.append(Subject("command", _command(name, value)))
            continue
        for text in _texts(name, value):
            if name in URLS:
                found.append(Subject("url", canonical_url(text)))
            else:
                found.append(Subject("path", place.resolve(canonical_path(text, place))))
    if not named:
        found = [Subject("text", text) for text in _leaves(arguments)]
    return tuple(dict.fromkeys(found))


def canonical_path(path: str, place: Place) -> str:
    """Absolute, without `.`, `..` and doubled slashes; relative ones start in the workspace. Raises Unclear."""
    if "\0" in path:
        raise Unclear("a path has no NUL characters")
    joined = os.path.join(place.workspace, _expanded(path, place.home))
    return "/" + os.path.normpath(joined).lstrip("/")  # POSIX leaves two leading slashes alone


def canonical_url(url: str) -> str:
    """RFC 3986, section 6.2.2 and 6.2.3: scheme and host in lower case, no default port, no dot segments, and percent
    signs only before what needs them. Without user, password and fragment, which do not choose what is reached.

    Raises Unclear for what two programs could read as two addresses.
    """
    if len(url) > MAX_URL:
        raise Unclear(f"an address of {len(url)} characters")
    if re.search(r"[\\\s\x00-\x20\x7f]", url):
        raise Unclear(f"the address {url!a:.80} has a blank, a backslash or a control character")
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme.lower(), (parts.hostname or "").rstrip("."), parts.port
    except ValueError as exc:
        raise Unclear(f"the address {url!a:.80}: {exc}") from None
    if not scheme or not host:
        raise Unclear(f"the address {url!a:.80} names no scheme and host")
    if "%" in host or not host.isascii():
        host = _ascii(host, url)
    if ":" in host:
        host = f"[{ipaddress.ip_address(host.partition('%')[0]).compressed}]"
    where = host if port in (None, DEFAULT_PORTS.get(scheme)) else f"{host}:{port}"
    query = f"?{_escapes(parts.query)}" if parts.query else ""
    return f"{scheme}://{where}{_path(_escapes(parts.path))}{query}"


def _ascii(host: str, url: str) -> str:
    try:
        return host.encode("idna").decode().lower()
    except UnicodeError:
        raise Unclear(f"the address {url!a:.80} has no host that DNS could name") from None


_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]")


def _escapes(text: str) -> str:
    """`%7e` as `~`, `%2f` as `%2F`, and what is no ASCII as its bytes. Raises Unclear for `%` and no number."""

    def one(found: re.Match[str]) -> str:
        if found[0] == "%":
            raise Unclear("the address has a `%` that begins no number")
        character = chr(int(found[0][1:], 16))
        return character if _UNRESERVED.fullmatch(character) else found[0].upper()

    quoted = "".join(
        c if c.isascii() else "".join(f"%{b:02X}" for b in c.encode(errors="replace")) for c in text
    )
    return re.sub(r"%[0-9A-Fa-f]{2}|%", one, quoted)


def _path(path: str) -> str:
    """Without dot segments: RFC 3986, section 5.2.4."""
    kept: list[str] = []
    segments = path.split("/")[1:] if path.startswith("/") else path.split("/")
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)


def _command(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    return shlex.join(_texts(name, value))


def _texts(name: str, value: object) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise Unclear(f"`{name}` is no text")
    return list(texts)


def _leaves(value: object) -> Iterator[str]:
    waiting = [value]
    while waiting:
        match waiting.pop():
            case str() as text:
                yield text
            case Mapping() as table:
                waiting += reversed(list(table.values()))
            case list() | tuple() as items:
                waiting += reversed(items)
            case _:
                pass


def _expanded(path: str, home: str) -> str:
    return home + path[1:] if path == "~" or path.startswith("~/") else path


# --- patterns ------------------------------------------------------------------------------------------

_TOKEN = re.compile(r"/\*\*/|\*\*|\*|\?|\[(.)\]|[^*?\[/]+|\[|/", re.DOTALL)


class _Wild(msgspec.Struct, frozen=True):
    kind: Literal["/**/", "**", "*", "?"]


def matches(pattern: str, subject: Subject, place: Place) -> bool:
    """`*` is anything within a segment, `**` anything, `/**/` also a single slash, `?` one character (in paths), `[*]`
    a star itself. A relative path pattern starts in the workspace; `/**` at the end also names the folder; an address
    without a path is all of its host. In other texts `*` is anything."""
    whole = _whole(pattern, subject.kind, place)
    if subject.kind == "path" and whole.endswith("/**") and _fits(whole[:-3] or "/", subject):
        return True
    return _fits(whole, subject)


def holds(pattern: str, subject: Subject, place: Place) -> bool:
    """Whether something that the pattern names may lie below the folder that is the subject: a walk through it would
    come there."""
    if subject.kind != "path":
        return False
    start = ""
    for token in _tokens(_whole(pattern, "path", place), "path"):
        if isinstance(token, _Wild):
            start += "/" * (token.kind == "/**/")
            break
        start += token
    return start.startswith(subject.text.rstrip("/") + "/")


def literal(text: str) -> str:
    """The pattern that matches this alone."""
    return re.sub(r"[*?\[]", lambda found: f"[{found[0]}]", text)


def _whole(pattern: str, kind: Kind, place: Place) -> str:
    if kind == "path":
        joined = os.path.join(literal(place.workspace), _expanded(pattern, literal(place.home)))
        return _resolved("/" + os.path.normpath(joined).lstrip("/"), place)
    if kind == "url":
        scheme, found, rest = pattern.partition("://") if "://" in pattern else ("*", "://", pattern)
        host, slash, path = rest.partition("/")
        host = host.lower().removesuffix(f":{DEFAULT_PORTS.get(scheme.lower(), 0)}")
        return f"{scheme.lower()}{found}{host}/{path if slash else '**'}"
    return pattern


def _resolved(pattern: str, place: Place) -> str:
    """With its folders before the first wildcard as they really lie, as in the paths it is held against."""
    folders = ""
    for token in _tokens(pattern, "path"):
        if isinstance(token, _Wild):
            break
        folders += token
    else:
        return literal(place.resolve(folders))
    folder = folders.rpartition("/")[0]
    return literal(place.resolve(folder or "/")).rstrip("/") + pattern[len(literal(folder)) :]


def _tokens(pattern: str, kind: Kind) -> Iterator[str | _Wild]:
    words = kind in ("command", "text")
    for found in _TOKEN.finditer(pattern):
        match found[0]:
            case "/**/" if words:
                yield from ("/", _Wild("**"), "/")
            case "/**/":
                yield _Wild("/**/")
            case "*" if not words:
                yield _Wild("*")
            case "**" | "*":
                yield _Wild("**")
            case "?" if kind == "path":
                yield _Wild("?")
            case token:
                yield found[1] or token


def _fits(pattern: str, subject: Subject) -> bool:
    """In time proportional to both lengths: the places that have been reached, token by token."""
    text, end = subject.text, len(subject.text)
    places = {0}
    for token in _tokens(pattern, subject.kind):
        match token:
            case str():
                places = {at + len(token) for at in places if text.startswith(token, at)}
            case _Wild(kind="?"):
                places = {at + 1 for at in places if at < end and text[at] != "/"}
            case _Wild(kind="**"):
                places = set(range(min(places), end + 1))
            case _Wild(kind="/**/"):
                first = min((at for at in places if at < end and text[at] == "/"), default=end)
                places = {at + 1 for at in range(first, end) if text[at] == "/"}
            case _:
                places = _stretched(text, places)
        if not places:
            return False
    return end in places


def _stretched(text: str, places: set[int]) -> set[int]:
    """Each place, and those after it up to the next slash."""
    reached: set[int] = set()
    for at in sorted(places):
        while at not in reached:
            reached.add(at)
            if at == len(text) or text[at] == "/":
                break
            at += 1
    return reached
