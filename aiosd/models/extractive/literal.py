"""A tool call that stands in the request, word for word.

A call is planned only if the request names the tool's action, every argument is a span of the request, and
nothing of the request is left over that the call would ignore: "read notes/todo.txt and count the lines"
is no call of read_file. A wrong call is worse than none, so every doubt declines.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from aiosd.models.backend import ToolSpec
from aiosd.models.extractive import words
from aiosd.models.extractive.sayings import CLOSING, QUOTED, SPECIAL, plainly

LONGEST_REQUEST = 1_000
"""Characters. What asks for one act is short; a longer text is a task that mentions acts. What is to be
remembered may be as long as it likes."""

_POLITE = re.compile(
    r"(?:(?:please|kindly|now|then|ok(?:ay)?|hey|hi|hello|could you|can you|would you|will you|i want you to|"
    r"i'd like you to|i would like you to|let's|go ahead and|use (?:the |your )?\w+(?: tool)? (?:to|and))"
    r"\b[,:\s]*)+",
    re.IGNORECASE,
)
_PATH = (
    r"(?<![\w/.~-])(~?/[\w./@+~-]*\w/?|\.{1,2}(?:/[\w.@+-]+)*/?|[\w@+-][\w.@+-]*(?:/[\w.@+-]+)+/?|[\w@+-]+/"
    r"|[\w@+-]+(?:\.[\w-]+)*\.[A-Za-z]\w{0,7}|\.\w[\w.-]*)(?![\w/])"
)
_JOINT = r"\b(?:in|under|inside|within|from|of|through)\s+(?:the\s+)?(?:(?:folder|directory|dir|file)\s+)?"
_NO_FOLDER = (
    "the|this|that|my|our|a|an|all|any|it|use|order|question|conflict|progress|common|total|detail|short|"
    "general|particular|english|reverse|parallel|place|memory|front|advance|case|fact|time|need"
)
_FOLDER = re.compile(
    r"\b(?:in|under|inside|within|from|of)\s+(?:"
    r"(?:the\s+)?(?:folder|directory|dir)\s+(?:named\s+|called\s+)?(?P<after>[\w.@+-]+)|"
    r"the\s+(?P<before>[\w.@+-]+)\s+(?:folder|directory|dir)|"
    rf"(?P<bare>(?!(?:{_NO_FOLDER})\b)[\w@+-]+))\s*$",
    re.IGNORECASE,
)
_HERE = re.compile(
    r"\b(?:in\s+)?(?:here|(?:the|this|my)\s+(?:current\s+|working\s+)?(?:folder|directory|dir|workspace))\b",
    re.IGNORECASE,
)
_GLOBS = ("pattern", "glob")
_NUMBER = re.compile(r"(?<![\w.])-?\d{1,15}(?:\.\d{1,15})?(?![\w.]*\w)")
_AFTER_FOR = re.compile(
    r"\bfor\s+(?:the\s+(?:text|word|string|phrase|term|pattern)\s+)?"
    r"(?P<text>(?!the\b|a\b|an\b|all\b|any\b)\S+(?:\s+\S+){0,2})\s*$",
    re.IGNORECASE,
)
_JOINS = re.compile(r"\x00|\b(?:in|and|or|then|of|from|with|that|which|to|under|inside)\b", re.IGNORECASE)
"""What ends the literal part of a request; the words after it would have to be understood."""
_FILLER = frozenset(
    words.listed(
        "a an the of in on at for from by as into onto using me my this that it its to with and named called "
        "content contents text show give all every is are what which what's"
    )
)
_VERBS = {
    verb: frozenset(words.listed(others))
    for verb, others in {
        "read": "open cat print show display",
        "list": "ls show",
        "search": "grep find",
        "get": "show fetch check what what's tell give",
        "show": "display get print",
        "create": "make add",
        "add": "create append put",
        "delete": "remove",
        "remove": "delete",
        "start": "launch",
        "stop": "halt",
        "send": "post",
        "set": "change put turn",
        "move": "rename",
        "run": "start execute",
    }.items()
}
"""The ways to say the first word of a tool's name; a verb that is not here stands for itself alone."""
_LIGHT = frozenset(words.listed("set start create make get show run give do use check call what what's tell"))
"""Verbs that leave it to the noun what is done, for tools whose name is one: "set a timer", "what's the weather"."""
_KNOWN_KEYWORDS = frozenset(
    words.listed(
        "type enum const description title default examples minimum maximum exclusiveMinimum "
        "exclusiveMaximum minLength maxLength pattern format anyOf"
    )
)
_KNOWN_OF_OBJECTS = frozenset(
    words.listed("type properties required additionalProperties title description $schema")
)


class Call(NamedTuple):
    name: str
    arguments: dict[str, Any]


def plan(request: str, tools: Sequence[ToolSpec]) -> Call | None:
    """The one call that `request` asks for in plain words, or None. String arguments are spans of it."""
    text = request.strip()
    if opening := _POLITE.match(text):
        text = text[opening.end() :]
        if " you" in opening[0].lower():
            text = text.removesuffix("?")  # "could you ...?" asks politely, and asks nothing
    able = [tool for tool in tools if len(text) <= LONGEST_REQUEST or tool.name == "remember"]
    calls = [call for tool in able if (call := _plan(text, tool)) is not None]
    return calls[0] if len(calls) == 1 else None


def _plan(text: str, tool: ToolSpec) -> Call | None:
    properties = tool.input_schema.get("properties", {})
    required = tool.input_schema.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list):
        return None
    if set(tool.input_schema) - _KNOWN_OF_OBJECTS:
        return None
    arguments = (
        SPECIAL[tool.name](text, tool) if tool.name in SPECIAL else _generic(text, tool, properties, required)
    )
    if arguments is None or any(name not in arguments for name in required):
        return None
    if any(name not in properties or not fits(value, properties[name]) for name, value in arguments.items()):
        return None
    return Call(tool.name, arguments)


class _Rest:
    """A request of which the spans that were used are taken away."""

    def __init__(self, text: str) -> None:
        self.text = text

    def take(self, found: re.Match[str]) -> str:
        """What its group holds, or all of it if it has none; all of it is used up."""
        self.text = self.text[: found.start()] + " \x00 " + self.text[found.end() :]
        return found[found.lastindex or 0]

    def words(self) -> list[str]:
        return [words.lower(token) for token in words.tokens(self.text)]


def _generic(
    text: str, tool: ToolSpec, properties: Mapping[str, Any], required: Sequence[str]
) -> dict[str, Any] | None:
    text = plainly(CLOSING.sub("", text))
    named = [part.lower() for part in (words.parts(tool.name) or (tool.name,))]
    spoken = list(words.tokens(text))
    if not spoken:
        return None
    verb = words.lower(spoken[0])
    acts = verb == named[0] or verb in _VERBS.get(named[0], ())
    if not acts and verb not in _LIGHT:
        return None
    rest = _Rest(text[re.search(r"\w[\w'’]*", text).end() :])  # type: ignore[union-attr]  # `spoken` is not empty
    arguments: dict[str, Any] = {}
    for name in sorted(
        properties, key=lambda name: (name not in _GLOBS, not _is_path(name), name not in required)
    ):
        value = _argument(name, properties[name], rest, needed=name in required)
        if value is not None:
            arguments[name] = value
    if "path" in properties and "path" not in arguments:
        rest.text = _HERE.sub(" ", rest.text)
    left = rest.words()
    objects = {words.stem(part) for part in (named[1:] if acts else named)}
    said = {words.stem(word) for word in left} | {
        words.stem(word) for name in arguments for word in words.parts(name) or (name,)
    }
    paths = any(_is_path(name) for name in arguments if name in required)
    if not objects <= said and not (acts and paths and len(objects) == 1):
        return None
    known = objects | {
        words.stem(part) for name in properties for part in (words.parts(name) or (name.lower(),))
    }
    if any(word not in _FILLER and words.stem(word) not in known for word in left):
        return None
    return arguments


def _is_path(name: str) -> bool:
    return name.lower() in ("path", "file", "filename", "file_path", "filepath", "folder", "directory", "dir")


def _argument(name: str, schema: object, rest: _Rest, *, needed: bool) -> Any:
    """The value that the request gives for one parameter, taken out of `rest`; None where it gives none."""
    kind = _plain(schema)
    if kind is None:
        return None
    after_name = rf"\b{re.escape(name).replace('_', '[_ ]')}\s*(?:=|:|\bis\b|\bof\b|\bnamed\b|\bcalled\b)?\s*"
    if "enum" in kind:
        for value in kind["enum"]:
            if (
                isinstance(value, str)
                and value
                and (found := re.search(rf"(?<!\w){re.escape(value)}(?!\w)", rest.text))
            ):
                return rest.take(found)
        return None
    if kind.get("type") in ("integer", "number"):
        found = re.search(after_name + rf"({_NUMBER.pattern})", rest.text, re.IGNORECASE) or re.search(
            rf"({_NUMBER.pattern})\s+{re.escape(name).removesuffix('s')}s?\b", rest.text, re.IGNORECASE
        )
        numbers = list(_NUMBER.finditer(rest.text))
        if found is None and (not needed or len(numbers) != 1):
            return None
        digits = rest.take(found or numbers[0])
        if kind["type"] == "integer":
            return int(digits) if "." not in digits else None
        return float(digits)
    if kind.get("type") != "string":
        return None
    if name in _GLOBS:
        globs = list(re.finditer(r"(?<!\S)[\w./-]*[*?][\w.*?/-]*(?=\s|$)", rest.text))
        return rest.take(globs[0]) if len(globs) == 1 else None
    if _is_path(name):
        return _path(rest, needed=needed)
    if name in ("text", "query", "search", "q") and needed:
        if found := re.search(rf"\bfor\s+(?:the\s+\w+\s+)?(?:{QUOTED.pattern})", rest.text):
            return rest.take(found)
        if found := _AFTER_FOR.search(rest.text):
            return None if _JOINS.search(found["text"]) else rest.take(found)
    if found := re.search(after_name + rf"(?:{QUOTED.pattern})", rest.text, re.IGNORECASE):
        return rest.take(found)
    quoted = list(QUOTED.finditer(rest.text))
    if needed and len(quoted) == 1:
        return rest.take(quoted[0])
    if found := re.search(after_name + r"([\w.@/+-]+)\s*$", rest.text, re.IGNORECASE):
        return rest.take(found)
    if needed and (
        found := re.search(r"\b(?:in|for|of|at)\s+((?:[A-Z][\w-]*)(?:\s+[A-Z][\w-]*){0,2})\s*$", rest.text)
    ):
        return rest.take(found)
    return None


def _path(rest: _Rest, *, needed: bool) -> str | None:
    """A path: one that looks like one, a quoted one, or a bare word where a folder is named at the end.

    One that is not needed says what it is: "in src/".
    """
    joint = "" if needed else _JOINT
    if quoted := re.search(rf"{joint}(?:{QUOTED.pattern})", rest.text, re.IGNORECASE):
        return rest.take(quoted)
    bare = QUOTED.sub(lambda found: "\x01" * len(found[0]), rest.text)
    paths = list(re.finditer(f"{joint}{_PATH}", bare, re.IGNORECASE))
    if len(paths) > 1:
        return None
    found = paths[0] if paths else None
    if found is None and not needed and not _HERE.search(bare) and ("\x01" in bare or " for " not in bare):
        found = _FOLDER.search(bare)
    if found is None:
        return None
    rest.text = rest.text[: found.start()] + " " + rest.text[found.end() :]
    return found[found.lastindex or 0]


# --- JSON Schema, as far as a literal value goes ----------------------------------------------------------


def _plain(schema: object) -> dict[str, Any] | None:
    """A parameter's schema without the "or null" of an optional one; None if it says more than we check."""
    if not isinstance(schema, dict) or set(schema) - _KNOWN_KEYWORDS:
        return None
    if "anyOf" not in schema:
        return schema
    kinds = schema["anyOf"]
    if not isinstance(kinds, list):
        return None
    one = [kind for kind in kinds if isinstance(kind, dict) and kind.get("type") != "null"]
    return _plain(one[0]) if len(one) == 1 and "anyOf" not in one[0] else None


def fits(value: str | float, schema: object) -> bool:
    """Whether a literal value is valid under a parameter's schema; a schema we cannot check fits nothing."""
    kind = _plain(schema)
    if (
        kind is None
        or ("enum" in kind and value not in kind["enum"])
        or ("const" in kind and value != kind["const"])
    ):
        return False
    if isinstance(value, str):
        return (
            kind.get("type", "string") == "string"
            and kind.get("minLength", 0) <= len(value) <= kind.get("maxLength", len(value))
            and "pattern" not in kind
            and kind.get("format") is None
        )
    return (
        kind.get("type") in ("number", "integer")
        and kind.get("minimum", value) <= value <= kind.get("maximum", value)
        and ("exclusiveMinimum" not in kind or value > kind["exclusiveMinimum"])
        and ("exclusiveMaximum" not in kind or value < kind["exclusiveMaximum"])
    )
