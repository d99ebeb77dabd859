"""How requests say what the daemon's own tools do: four with forms of their own, other words for the rest."""

from __future__ import annotations

import ast
import re
from collections.abc import Set as AbstractSet
from typing import Any

from aiosd.models.backend import ToolSpec
from aiosd.models.extractive import words

CLOSING = re.compile(r"(?:[\s,]*\b(?:please|for me|now|right now|thanks|thank you))*[\s?.!]*$", re.IGNORECASE)
QUOTED = re.compile(r"\"([^\"\n]+)\"|(?<!\w)'([^'\n]+)'(?!\w)|`([^`\n]+)`|“([^”\n]+)”|‘([^’\n]+)’")
_FUNCTIONS = frozenset(words.listed("sqrt abs round min max pow floor ceil log exp sin cos tan pi e"))
"""What an arithmetic expression may name, where the tool's description names it too."""
_ASKS_SUM = frozenset(
    words.listed(
        "what what's whats is are equals equal calculate compute evaluate work out solve how much the result "
        "value of answer to does tell me sum do math maths find you get give when make please"
    )
)
_COMPUTES = frozenset(words.listed("calculate compute evaluate solve work"))
_QUOTE = r"(?:\"[^\"\n]+\"|'[^'\n]+'|`[^`\n]+`)"
_PATH = rf"(?P<path>[\w.~@+-]*/[\w./~@+-]*|[\w~@+-][\w.~@+-]*\.\w+|{_QUOTE})"
_FILE = rf"(?:the )?(?:file )?(?:named |called )?{_PATH}"
_TEXT = rf"(?:the )?(?:text |word |string |phrase )?(?P<text>{_QUOTE})"
_IN = rf"(?: (?:in|under|inside|of) (?:the )?(?:(?:folder|directory|file) )?{_PATH})"
_ALL = r"(?: in (?:all |any of )?(?:the |my )?(?:files|workspace))?"
_SAYINGS = (
    (rf"what(?:'s| is)(?: written)? in(?:side)?(?: of)? {_FILE}", "read {path}"),
    (rf"what(?:'s| is| are) the contents? of {_FILE}", "read {path}"),
    (rf"what does {_FILE} (?:contain|say)", "read {path}"),
    (
        rf"(?:let me see|i want to see|could i see|can i see|view|see|look at|have a look at|dump|output) {_FILE}",
        "read {path}",
    ),
    (
        rf"(?:give|get|show|print|read|display|output)(?: me| out)? the (?:contents?|text) of {_FILE}",
        "read {path}",
    ),
    (rf"(?:read|show|print|display)(?: me)? the first (?P<n>\d+) lines of {_FILE}", "read {path} limit {n}"),
    (
        rf"(?:read|show|print|display) {_FILE} (?:from|starting at|beginning at) line (?P<n>\d+)(?: on)?",
        "read {path} offset {n}",
    ),
    (r"read (?:the )?file (?:(?:named|called) (?P<path>[\w.+-]+))", "read '{path}'"),
    (r"read (?:the )?(?:file )?(?P<path>(?-i:[A-Z])[\w.+-]+)", "read '{path}'"),
    (r"(?:what|which) files are (?:there )?(?P<rest>in .+)", "list the files {rest}"),
    (r"(?:what|which) files (?:are there|do (?:i|we) have)(?P<rest>(?: in .+)?)", "list the files{rest}"),
    (rf"(?:what|which) files does {_PATH} (?:contain|have)", "list the files in {path}"),
    (
        r"what(?:'s| is) in (?P<rest>the (?:folder|directory) [\w./-]+|the [\w./-]+ (?:folder|directory))",
        "list the files in {rest}",
    ),
    (rf"(?:ls|list) (?P<path>[\w.~@+-]*/[\w./~@+-]*|{_QUOTE})", "list the files in {path}"),
    (
        r"(?:give|show) me (?:a|the) list of (?:all )?(?:the )?files(?P<rest>(?: in .+)?)",
        "list the files{rest}",
    ),
    (
        r"(?:list|show)(?: me)? (?:the )?(?:contents of|everything in) (?P<rest>(?!.*\.\w{1,5}$).+)",
        "list the files in {rest}",
    ),
    (r"list (?:the )?(?:folder|directory) (?P<rest>.+)", "list the files in {rest}"),
    (r"list everything(?: here)?", "list the files"),
    (
        r"(?:list|find|show)(?: me)? (?:all )?(?:the )?files (?:matching|named|called|like) (?P<glob>\S*[*?]\S*)(?P<rest>(?: in .+)?)",
        "list the {glob} files{rest}",
    ),
    (
        r"find (?:all )?(?:the )?(?P<glob>\S*[*?]\S*) files(?P<rest>(?: in .+)?)",
        "list the {glob} files{rest}",
    ),
    (
        rf"(?:(?:what|which) files|find (?:all |the )?files that) (?:contain|mention) {_TEXT}",
        "search the files for {text}",
    ),
    (rf"find (?:all |the )?files (?:containing|mentioning|with) {_TEXT}", "search the files for {text}"),
    (rf"where is {_TEXT} (?:used|mentioned|defined|found){_ALL}", "search the files for {text}"),
    (rf"where does {_TEXT} (?:appear|occur){_ALL}", "search the files for {text}"),
    (
        (
            rf"(?:search|look|grep|find)(?: me)?(?: for)?(?: (?:all|every|the)?\s*(?:occurrences?|lines?)"
            rf"(?: of| with| containing| that contain))? {_TEXT}(?:{_ALL}|{_IN})"
        ),
        "search the files for {text}",
    ),
    (
        r"(?:search|look|grep)(?: for)? (?P<text>[\w.-]+) (?:in|under) (?P<path>[\w.-]*/[\w./-]*)",
        "search the files for {text} in {path}",
    ),
    (
        rf"(?:search|look|grep)(?: in| through)? {_PATH} for (?P<text>[^\s\"'`]+|{_QUOTE})",
        "search the files for {text} in {path}",
    ),
)
"""Other ways to say what the tools of this daemon do, and the plain way; what stands in them stays literal."""


def _calculator(text: str, tool: ToolSpec) -> dict[str, Any] | None:
    told = str(tool.input_schema.get("properties", {}).get("expression", {})) + tool.description
    names = _FUNCTIONS & set(words.tokens(told))
    named = rf"\b(?:{'|'.join(names)})\b" if names else "(?!)"
    sums = re.finditer(rf"(?:[-+(\d.]|{named})(?:[-+*/%().,\d\s]|{named})*(?<=[\d)ie])", text)
    found = max(sums, key=lambda match: len(match[0]), default=None)
    if found is None:
        return None
    sum_ = found[0].strip()
    around = text[: found.start()] + " " + CLOSING.sub("", text[found.end() :]).strip("= ")
    rest = {words.lower(token) for token in words.tokens(around)}
    if not rest <= _ASKS_SUM or re.search(r"[^\w\s,:'?=.]", around) or not _is_sum(sum_, names):
        return None
    if not rest & _COMPUTES and re.fullmatch(r"\d+[/-]\d+(?:[/-]\d+)*", sum_):
        return None  # 24/7 and 555-1234 are no sums unless the request says so
    return {"expression": sum_}


def _is_sum(text: str, names: AbstractSet[str]) -> bool:
    """Whether it is an arithmetic expression of numbers and `names`, with something to work out."""
    if len(text) > 200 or text.count("(") > 30:
        return False
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError):
        return False
    nodes = list(ast.walk(tree))
    arithmetic = (
        ast.Expression,
        ast.BinOp,
        ast.UnaryOp,
        ast.Call,
        ast.Constant,
        ast.operator,
        ast.unaryop,
        ast.Load,
    )
    known = all(
        isinstance(node, arithmetic) or (isinstance(node, ast.Name) and node.id in names) for node in nodes
    )
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    return (
        known
        and all(isinstance(call.func, ast.Name) and not call.keywords for call in calls)
        and (bool(calls) or any(isinstance(node, ast.BinOp) for node in nodes))
    )


def _clock(text: str, _: ToolSpec) -> dict[str, Any] | None:
    found = re.fullmatch(
        r"(?:(?:what|which)(?:'s| is)?|tell me|show me|show|give me|get|check)?\s*(?:what\s+)?"
        r"(?:the\s+|today's\s+)?"
        r"(?:current\s+|local\s+|exact\s+)?(?:(?P<before>UTC|GMT)\s+)?"
        r"(?:time|date|(?:day|month|year|weekday)(?: of the week)?|date and time|time and date|day and time)"
        r"(?:\s+(?:is it|it is|is today|do we have))?"
        r"(?:\s+(?:right now|now|today|currently))*(?:\s+in\s+(?P<zone>(?-i:[A-Z]\w+(?:/[A-Z][\w-]+)+|UTC|GMT)))?"
        r"(?:\s+(?:right now|now|today|currently))*",
        CLOSING.sub("", text),
        re.IGNORECASE,
    )
    if found is None or len(text.split()) < 2:
        return None
    zone = found["zone"] or found["before"]
    return {"timezone": zone} if zone else {}


def _remember(text: str, _: ToolSpec) -> dict[str, Any] | None:
    found = re.fullmatch(
        r"(?:(?:remember|note|memori[sz]e|keep in mind|don't forget|do not forget|make a note|take note|"
        r"save to memory|store in memory|add to memory|keep in memory)"
        r"(?:\s+(?:this|the following|down|of this))?\s*(?::|\bthat\b)|"
        r"remember(?=\s+(?:my|our|the)\s[^?]*?\s(?:is|are)\s))"
        r"\s*(?P<content>\S[\s\S]*)",
        text.strip(),
        re.IGNORECASE,
    )
    if found is None or "?" in found["content"][-3:] or len(found["content"].split()) < 2:
        return None
    return {"content": found["content"].strip()}


def _recall(text: str, _: ToolSpec) -> dict[str, Any] | None:
    found = re.fullmatch(
        r"(?:recall\s+(?:(?:everything|anything|all|what)\s+"
        r"(?:(?:i|we|you)\s+(?:know|knew|said|told you|remember|noted|wrote|mentioned)\s+)?)?(?:about\s+)?|"
        r"(?:search|look in|look through|check)\s+(?:(?:your|my|the)\s+)?(?:memory|memories)\s+(?:for|about)\s+|"
        r"find\s+(?:(?:my|the|your)\s+)?memories\s+(?:about|of)\s+|"
        r"what\s+(?:do|can)\s+you\s+(?:remember|recall)\s+(?:about|of)\s+|"
        r"what\s+did\s+(?:i|we)\s+(?:tell\s+you|say)\s+about\s+|do\s+you\s+(?:remember|recall)\s+"
        r"(?!that\b|when\b|how\b|if\b|whether\b))(?P<query>\S[^\n]*)",
        re.sub(
            r"(?:search for|look up|look for|find) (.+) in (?:(?:your|my|the) )?memor(?:y|ies)",
            r"recall \1",
            CLOSING.sub("", text),
        ),
        re.IGNORECASE,
    )
    return {"query": _unquoted(found["query"])} if found else None


SPECIAL = {"calculator": _calculator, "clock": _clock, "remember": _remember, "recall": _recall}


def _unquoted(text: str) -> str:
    text = text.strip()
    found = QUOTED.fullmatch(text)
    return next(group for group in found.groups() if group) if found else text


def plainly(text: str) -> str:
    """A request in the words that literal.py reads, if it is another way to say one of them."""
    for saying, plain in _SAYINGS:
        if found := re.fullmatch(saying, text, re.IGNORECASE):
            said = found.groupdict()
            where = f" in {said['path']}" if said.get("path") and "{path}" not in plain else ""
            return plain.format_map(said) + where
    return text
