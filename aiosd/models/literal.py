"""A tool call that stands in the request, word for word.

A call is planned only if the request names the tool's action, every argument is a span of the request, and
nothing of the request is left over that the call would ignore: "read notes/todo.txt and count the lines"
is no call of read_file. A wrong call is worse than none, so every doubt declines.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from aiosd.models import words
from aiosd.models.backend import ToolSpec

LONGEST_REQUEST = 1_000
"""Characters. What asks for one act is short; a longer text is a task that mentions acts. What is to be
remembered may be as long as it likes."""

_POLITE = re.compile(
    r"(?:(?:please|kindly|now|then|ok(?:ay)?|hey|hi|hello|could you|can you|would you|will you|i want you to|"
    r"i'd like you to|let's|go ahead and|use the \w+ tool to)\b[,:\s]*)+",
    re.IGNORECASE,
)
_CLOSING = re.compile(
    r"(?:[\s,]*\b(?:please|for me|now|right now|thanks|thank you))*[\s?.!]*$", re.IGNORECASE
)
_QUOTED = re.compile(r"\"([^\"\n]+)\"|(?<!\w)'([^'\n]+)'(?!\w)|`([^`\n]+)`|“([^”\n]+)”|‘([^’\n]+)’")
_PATH = re.compile(
    r"(?<![\w/.~-])(?:~?/[\w./@+~-]*\w/?|\.{1,2}(?:/[\w.@+-]+)*/?|[\w@+-][\w.@+-]*(?:/[\w.@+-]+)+/?|[\w@+-]+/"
    r"|[\w@+-]+(?:\.[\w-]+)*\.[A-Za-z]\w{0,7}|\.\w[\w.-]*)(?![\w/])"
)
_FOLDER = re.compile(
    r"\b(?:in|under|inside|within|from|of)\s+(?:"
    r"(?:the\s+)?(?:folder|directory|dir)\s+(?:named\s+|called\s+)?(?P<after>[\w.@+-]+)|"
    r"the\s+(?P<before>[\w.@+-]+)\s+(?:folder|directory|dir)|"
    r"(?P<bare>(?!the\b|this\b|my\b|a\b|an\b|all\b)[\w@+-]+))\s*$",
    re.IGNORECASE,
)
_HERE = re.compile(
    r"\b(?:in\s+)?(?:here|(?:the|this|my)\s+(?:current\s+|working\s+)?(?:folder|directory|dir|workspace))\b",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"(?<![\w.])-?\d{1,15}(?:\.\d{1,15})?(?![\w.]*\w)")
_SUM = re.compile(r"[-+(\d.][-+*/%().\d\s]*[\d)]")
_ASKS_SUM = frozenset(
    words.listed(
        "what what's whats is are equals equal calculate compute evaluate work out solve how much the result "
        "value of answer to does tell me sum"
    )
)
_COMPUTES = frozenset(words.listed("calculate compute evaluate solve work"))
_AFTER_FOR = re.compile(
    r"\bfor\s+(?:the\s+(?:text|word|string|phrase|term|pattern)\s+)?"
    r"(?P<text>(?!the\b|a\b|an\b|all\b|any\b)\S+(?:\s+\S+){0,2})$",
    re.IGNORECASE,
)
_JOINS = re.compile(r"\x00|\b(?:in|and|or|then|of|from|with|that|which|to|under|inside)\b", re.IGNORECASE)
"""What ends the literal part of a request; the words after it would have to be understood."""
_FILLER = frozenset(
    words.listed(
        "a an the of in at for from me my this that it its to with and named called content contents text "
        "show give all every is are what which"
    )
)
_VERBS = {
    "read": frozenset(words.listed("read open cat print show display")),
    "list": frozenset(words.listed("list ls show")),
    "search": frozenset(words.listed("search grep find")),
    "get": frozenset(words.listed("get show fetch")),
}
"""The ways to say the first word of a tool's name; a verb that is not here stands for itself alone."""
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
        _SPECIAL[tool.name](text) if tool.name in _SPECIAL else _generic(text, tool, properties, required)
    )
    if arguments is None or any(name not in arguments for name in required):
        return None
    if any(name not in properties or not fits(value, properties[name]) for name, value in arguments.items()):
        return None
    return Call(tool.name, arguments)


# --- tools whose requests have a form of their own ------------------------------------------------------


def _calculator(text: str) -> dict[str, Any] | None:
    found = max(_SUM.finditer(text), key=lambda match: len(match[0]), default=None)
    if found is None:
        return None
    sum_ = found[0].strip()
    around = text[: found.start()] + " " + _CLOSING.sub("", text[found.end() :]).strip("= ")
    rest = {words.lower(token) for token in words.tokens(around)}
    if not rest <= _ASKS_SUM or re.search(r"[^\w\s,:'?=.]", around) or not _is_sum(sum_):
        return None
    if not rest & _COMPUTES and re.fullmatch(r"\d+[/-]\d+(?:[/-]\d+)*", sum_):
        return None  # 24/7 and 555-1234 are no sums unless the request says so
    return {"expression": sum_}


def _is_sum(text: str) -> bool:
    if len(text) > 200 or text.count("(") > 30:
        return False
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError):
        return False
    arithmetic = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.Constant, ast.operator, ast.unaryop)
    nodes = list(ast.walk(tree))
    return all(isinstance(node, arithmetic) for node in nodes) and any(
        isinstance(node, ast.BinOp) for node in nodes
    )


def _clock(text: str) -> dict[str, Any] | None:
    found = re.fullmatch(
        r"(?:what(?:'s| is)?|tell me|show me|give me|show|get)\s+(?:the\s+|today's\s+)?(?:current\s+|local\s+)?"
        r"(?:time|date|day|date and time|time and date)(?:\s+(?:is it|it is))?"
        r"(?:\s+(?:right now|now|today|currently))*(?:\s+in\s+(?P<zone>[A-Z]\w+(?:/[A-Z]\w+)+|UTC|GMT))?",
        _CLOSING.sub("", text),
        re.IGNORECASE,
    )
    if found is None:
        return None
    return {"timezone": found["zone"]} if found["zone"] else {}


def _remember(text: str) -> dict[str, Any] | None:
    found = re.fullmatch(
        r"(?:remember|note|memorize|memorise|keep in mind)(?:\s+(?:this|that|the following))?\s*(?::|\bthat\b)\s*"
        r"(?P<content>\S[\s\S]*)",
        text.strip(),
        re.IGNORECASE,
    )
    if found is None or "?" in found["content"][-3:]:
        return None
    return {"content": found["content"].strip()}


def _recall(text: str) -> dict[str, Any] | None:
    found = re.fullmatch(
        r"(?:recall\s+(?:everything\s+|what\s+you\s+(?:know|remember)\s+|all\s+)?(?:about\s+)?|"
        r"search\s+(?:(?:your|my|the)\s+)?(?:memory|memories)\s+for\s+|"
        r"what\s+do\s+you\s+remember\s+(?:about|of)\s+)(?P<query>\S[^\n]*)",
        _CLOSING.sub("", text),
        re.IGNORECASE,
    )
    return {"query": _unquoted(found["query"])} if found else None


_SPECIAL = {"calculator": _calculator, "clock": _clock, "remember": _remember, "recall": _recall}


def _unquoted(text: str) -> str:
    text = text.strip()
    found = _QUOTED.fullmatch(text)
    return next(group for group in found.groups() if group) if found else text


# --- any other tool -------------------------------------------------------------------------------------


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
    text = _CLOSING.sub("", text)
    named = [part.lower() for part in (words.parts(tool.name) or (tool.name,))]
    spoken = list(words.tokens(text))
    if not spoken:
        return None
    verb = words.lower(spoken[0])
    if verb != named[0] and verb not in _VERBS.get(named[0], ()):
        return None
    rest = _Rest(text[re.search(r"\w+", text).end() :])  # type: ignore[union-attr]  # `spoken` is not empty
    arguments: dict[str, Any] = {}
    for name in sorted(properties, key=lambda name: (name not in required, not _is_path(name))):
        value = _argument(name, properties[name], rest, needed=name in required)
        if value is not None:
            arguments[name] = value
    if "path" in properties and "path" not in arguments:
        rest.text = _HERE.sub(" ", rest.text)
    left = rest.words()
    objects = {words.stem(part) for part in named[1:]}
    said = {words.stem(word) for word in left} | {
        words.stem(word) for name in arguments for word in words.parts(name) or (name,)
    }
    paths = any(_is_path(name) for name in arguments if name in required)
    if not objects <= said and not (paths and len(objects) == 1):
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
        found = re.search(after_name + rf"({_NUMBER.pattern})", rest.text, re.IGNORECASE)
        numbers = list(_NUMBER.finditer(rest.text))
        if found is None and (not needed or len(numbers) != 1):
            return None
        digits = rest.take(found or numbers[0])
        if kind["type"] == "integer":
            return int(digits) if "." not in digits else None
        return float(digits)
    if kind.get("type") != "string":
        return None
    if _is_path(name):
        return _path(rest, needed=needed)
    if name in ("text", "query", "pattern", "search", "q") and needed:
        if found := re.search(rf"\bfor\s+(?:the\s+\w+\s+)?(?:{_QUOTED.pattern})", rest.text):
            return rest.take(found)
        if found := _AFTER_FOR.search(rest.text):
            return None if _JOINS.search(found["text"]) else rest.take(found)
    if found := re.search(after_name + rf"(?:{_QUOTED.pattern})", rest.text, re.IGNORECASE):
        return rest.take(found)
    quoted = list(_QUOTED.finditer(rest.text))
    if needed and len(quoted) == 1:
        return rest.take(quoted[0])
    if found := re.search(after_name + r"([\w.@/+-]+)\s*$", rest.text, re.IGNORECASE):
        return rest.take(found)
    return None


def _path(rest: _Rest, *, needed: bool) -> str | None:
    """A path: one that looks like one, a quoted one, or a bare word where a folder is named at the end."""
    joint = r"(?:\b(?:in|under|inside|within|from|of)\s+(?:the\s+)?(?:(?:folder|directory|dir|file)\s+)?)"
    quoted = re.search(rf"{joint if not needed else ''}(?:{_QUOTED.pattern})", rest.text, re.IGNORECASE)
    if quoted:
        return rest.take(quoted)
    bare = re.sub(_QUOTED, lambda found: "\x01" * len(found[0]), rest.text)
    paths = list(_PATH.finditer(bare))
    if len(paths) > 1:
        return None
    if paths:
        rest.text = rest.text[: paths[0].start()] + " " + rest.text[paths[0].end() :]
        return paths[0][0]
    if not needed and not _HERE.search(bare) and (folder := _FOLDER.search(bare)):
        rest.text = rest.text[: folder.start()] + " " + rest.text[folder.end() :]
        return folder["after"] or folder["before"] or folder["bare"]
    return None


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
