"""What a question asks for: its words by weight, the thing asked for, and what an answer must contain."""

from __future__ import annotations

import re
from typing import NamedTuple

from aiosd.models.extractive import thesaurus, words

_DIGITS = "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|dozen|hundred|thousand|million"
_SPAN = "second|minute|hour|day|week|month|year"
_NUMBER = re.compile(
    rf"\d|\b(?:{_DIGITS}|once|twice|unlimited|infinite|any number|no limit)\b", re.IGNORECASE
)
_QUANTITY = re.compile(
    rf"(?:\d|\b(?:{_DIGITS})\b)[\w.,^]*[\s-]?(?:%|°|[KMGT]?i?B\b|[mun]?s\b|m\b|h\b|(?:kilo|mega|giga|tera)?(?:byte|bit)|"
    rf"(?:{_SPAN}|char|letter|word|line|column|time|item|element|entr|level|digit|percent|kilomet|met|mile|pixel|"
    r"page|row|milli|micro|token|step)\w*)|\bO\(|"
    r"\b(?:unlimited|infinite|for ?ever|no limit|without bound|linear|constant|number of \w+)\b",
    re.IGNORECASE,
)
_TIME = re.compile(
    r"\d{1,2}:\d\d|\b\d{1,2} ?[ap]m\b|\b\d{4}\b|\b\d+\.\d|\b\d+(?:st|nd|rd|th)\b|\b\d{1,2} may\b|\bmay \d|"
    rf"\b(?:\d+|{_DIGITS}|few|some)[ -](?:{_SPAN})|\bevery (?:{_SPAN}|night)\b|"
    r"\b(?:mon|tues|wednes|thurs|fri|satur|sun)day\b|"
    r"\b(?:january|february|march|april|june|july|august|september|october|november|december)\b|"
    r"\b(?:noon|midnight|today|tomorrow|yesterday|daily|nightly|weekly|monthly|yearly|hourly)\b",
    re.IGNORECASE,
)
_CONDITION = re.compile(
    r"\b(?:if|when|whenever|while|until|unless|once|after|before|upon|otherwise|as soon as|during|only|in case)\b",
    re.IGNORECASE,
)
_NAME = re.compile(r"(?<=[\w,;:)] )[A-Z][\w-]+|\b(?:by|from)\s+[A-Z]|\b\w{2,}(?:er|or)s?\b|@\w")
_REASON = re.compile(
    r"\b(?:because|since|as|so|due|therefore|thus|hence|reason|to|for|may|otherwise)\b", re.IGNORECASE
)
_DEFAULT = re.compile(
    r"\bdefault|\b(?:otherwise|unless)\b|"
    r"\b(?:if|when)\b[^.;]*\b(?:omitted|unspecified|None|not (?:given|specified|supplied|provided|set))|\w\s?=\s?[\w\"'(-]",
    re.IGNORECASE,
)
_NEGATION = re.compile(
    r"\b(?:not|no|never|without|none|neither|nor|cannot|otherwise|else|unless|un\w{4,}|non-?\w+)\b|n't\b",
    re.IGNORECASE,
)
_MODAL = re.compile(r"\b(?:must|should|may|might|shall|only|always|both|all)\b", re.IGNORECASE)

TYPED: dict[str, re.Pattern[str]] = {
    words.stem(noun): pattern
    for nouns, pattern in (
        (
            "version edition release",
            re.compile(r"\bv?\d+\.\d|\bv\d|\b\d(?:st|nd|rd|th)\b|\bpython ?\d", re.IGNORECASE),
        ),
        ("year", re.compile(r"\b[12]\d{3}\b")),
        ("port", re.compile(r"\bports?\b\W{0,3}(?:\w+\W{1,3}){0,3}\d|:\d{2,5}\b", re.IGNORECASE)),
        ("date day time hour", _TIME),
        ("error exception", re.compile(r"\b[A-Z]\w*(?:Error|Exception|Warning|Expired|Interrupt|Exit)\b")),
        ("url link website homepage", re.compile(r"https?://|\bwww\.")),
        ("email mail", re.compile(r"\w@\w")),
        (
            "unit",
            re.compile(
                r"\b(?:bytes?|bits?|characters|seconds|minutes|hours|days|[KMG]i?B|percent|pixels|m?s)\b"
            ),
        ),
        ("variable", re.compile(r"\b[A-Z][A-Z0-9]+_[A-Z0-9_]+\b")),
        ("number count percentage price cost age", re.compile(r"\d")),
    )
    for noun in nouns.split()
}
"""Nouns that an answer shows rather than says: a question for a version is met by "3.8"."""

_ASKING = re.compile(
    r"\b(?:(?P<many>how (?:many|much)|(?:what|which)(?: is the| are the)? number of)|(?P<who>who|whose|whom)|"
    r"(?P<when>when|since when|until when)|(?P<why>why)|(?P<how>how)|(?P<what>what|which)|"
    r"(?P<closed>(?:is|are|was|were|do|does|did|can|could|may|must|should|will|would|has|have)))\b",
    re.IGNORECASE,
)
_AUXILIARY = frozenset(words.listed("do does did can could will would shall should may might must to"))
_BE = frozenset(words.listed("is are was were be been being get gets"))
_PRONOUN = frozenset(words.listed("i you we one they it he she this that there"))
_NUMERIC = frozenset(
    map(words.stem, words.listed("port year age price cost percentage percent count pid uid"))
)
_EXTREME = frozenset(
    map(
        words.stem,
        words.listed(
            "default maximum minimum max min largest smallest longest shortest highest lowest limit"
        ),
    )
)
_INTRODUCING = frozenset(map(words.stem, words.listed("mean do represent describe stand provide")))
_MEASURED = frozenset(map(words.stem, words.listed("long large big fast deep wide high far tall often old")))
LONGEST = 1_000
"""Characters of a question that are looked at: a task that is a whole text asks for nothing in particular."""
_SYMBOL = re.compile(r"(?<!\S)['\"`]?([^\s\w'\"`]{1,3})['\"`]?(?!\S)")
"""Punctuation that is asked about: `**`, '<'."""
_NAMELIKE = re.compile(r"\w_|_\w|[a-z][A-Z]|[A-Z]{2}[a-z]|[a-z]\d|[A-Za-z]\.[A-Za-z]")
SUBJECT = 0.5
"""A word with at least this prior weight carries the question."""


class Term(NamedTuple):
    """A word of the question."""

    stem: str
    prior: float
    """How much it matters before anything is known of the passages."""
    extreme: bool
    """`default`, `maximum`: what an answer does not leave out."""
    name: bool
    """An identifier, or what `does X ...` is asked of: a text may leave out the name of what it is about."""
    joined: tuple[str, ...]
    """It and a neighbour as one name: `tab size` is tabsize and tab_size."""
    shown: re.Pattern[str] | None
    """What stands for it in an answer without being like it."""


class Question(NamedTuple):
    terms: tuple[Term, ...]
    wants: re.Pattern[str] | None
    """What an answer must contain."""
    prefers: re.Pattern[str] | None
    about: bool
    """It asks what a thing is or does: the answer is where the thing is introduced."""
    closed: bool
    """It asks yes or no."""
    negated: bool
    modals: frozenset[str]
    counted: str | None
    """The stem of what is to be counted: a number must stand near it."""


def asked(task: str) -> str:
    """The question inside a task: its last sentence with a question mark, else all of it."""
    sentences = re.split(r"(?<=[?!.])\s+|\n+", task.strip())
    marked = [part for part in sentences if part.rstrip("\"'”` )").endswith("?")]
    return (marked[-1] if marked else task)[:LONGEST]


def is_number(token: str) -> bool:
    """Whether it is a number, or announces one: "the number of lines, which defaults to three"."""
    return bool(_NUMBER.search(token)) or token.lower() in ("number", "count", "amount")


def negated(text: str) -> bool:
    return bool(_NEGATION.search(text))


def modals(text: str) -> frozenset[str]:
    return frozenset(found.lower() for found in _MODAL.findall(text))


def analyse(task: str) -> Question:
    """What a task asks for. A task that is no question is a request for what covers its words."""
    text = thesaurus.plain(asked(task))
    found = _ASKING.search(text)
    kind = found.lastgroup if found else None
    focus = _focus(text, found) if found and kind in ("what", "many") else None
    terms = _terms(text, found, focus)
    measured = (
        kind == "how"
        and found
        and (first := next(words.tokens(text[found.end() :]), None))
        and (words.stem(words.lower(first)) in _MEASURED)
    )
    wants = prefers = None
    if kind == "many":
        wants = _NUMBER
    elif measured:
        wants = _QUANTITY
    elif focus in _NUMERIC or any(term.stem in _NUMERIC for term in terms if kind == "what"):
        wants = TYPED.get(focus or "", _NUMBER)
    elif kind == "when":
        past = re.search(r"\bwhen (?:was|were|did)\b", text, re.IGNORECASE)
        wants, prefers = (_TIME, None) if past else (None, _CONDITION)
    elif kind == "who":
        wants = _NAME
    elif kind == "why":
        prefers = _REASON
    if any(term.stem == "default" for term in terms):
        wants = wants or _DEFAULT
    if found and _CONDITION.search(text, found.end()):
        prefers = prefers or _CONDITION
    content = tuple(term for term in terms if term.prior >= SUBJECT)
    introduced = (
        re.match(r"\W*(?:what|which)(?:'s| is| are| does| do)\b", text, re.IGNORECASE) and prefers is None
    )
    about = bool(introduced) and len(content) <= 1 and not any(term.extreme for term in content)
    if about:
        terms = tuple(term for term in terms if term.stem not in _INTRODUCING)
    return Question(
        terms,
        wants,
        prefers,
        about,
        kind == "closed",
        negated(text),
        modals(text),
        focus if kind == "many" else None,
    )


def _terms(text: str, found: re.Match[str] | None, focus: str | None) -> tuple[Term, ...]:
    raw = list(words.tokens(text))
    plain = [words.lower(token) for token in raw]
    lead = {words.lower(token) for token in words.tokens(found[0])} if found else set()
    closed = found is not None and found.lastgroup == "closed"
    measures = found is not None and found.lastgroup == "how"
    verbs = _verbs(plain, raw)
    subject = _subject(plain)
    asked_verb = bool(re.match(r"\W*what (?:does|do|did|should|must|can|will)\b", text, re.IGNORECASE))
    terms: dict[str, Term] = {}
    for at, (token, word) in enumerate(zip(raw, plain, strict=True)):
        name = _NAMELIKE.search(token) is not None
        if (word in lead and at < len(lead) + 2) or (word in words.STOP and not name):
            continue
        stem = words.key(token) if at else words.stem(word)
        prior = 1.0
        if stem in words.VAGUE_STEMS:
            prior = 0.25
        elif stem in words.CATEGORY_STEMS:
            prior = 0.35
        elif at in verbs and not closed and not asked_verb:
            prior = 0.6
        if stem in _EXTREME or (stem == focus and prior == 1.0 and stem not in TYPED):
            prior = 1.2
        shown = TYPED.get(stem)
        if measures and at and plain[at - 1] == "how" and stem in _MEASURED:
            prior, shown = 0.6, _QUANTITY
        sides = [
            (plain[other], word) if other < at else (word, plain[other])
            for other in (at - 1, at + 1)
            if 0 <= other < len(plain)
        ]
        joined = tuple(words.stem(left + between + right) for left, right in sides for between in ("", "_"))
        terms.setdefault(stem, Term(stem, prior, stem in _EXTREME, name or at == subject, joined, shown))
    for symbol in _SYMBOL.findall(text.rstrip("?!. ")):
        shown = re.compile(rf"(?<![^\s'\"`(]){re.escape(symbol)}(?=[\s'\"`)]|[,.:;](?:\s|$)|$)")
        terms.setdefault(symbol, Term(symbol, 1.2, extreme=False, name=False, joined=(), shown=shown))
    return tuple(terms.values())


def _verbs(plain: list[str], raw: list[str]) -> frozenset[int]:
    """Which words are verbs, as far as their place tells. Answers reword verbs more often than nouns."""
    found: set[int] = set()
    for at, word in enumerate(plain[:-1]):
        following = at + 1
        if word == "to" or (word in _AUXILIARY and plain[following] not in _PRONOUN and at == 0):
            if word == "to":
                found.add(following)
        elif (
            word in _AUXILIARY
            and plain[following] in _PRONOUN
            and following + 1 < len(plain)
            or (
                word in ("does", "do", "did")
                and following + 1 < len(plain)
                and plain[following] not in words.STOP
            )
        ):
            found.add(following + 1)
    for at, word in enumerate(plain):
        if (
            at
            and word.endswith("ed")
            and (plain[at - 1] in _BE or at + 1 == len(plain) or any(be in _BE for be in plain[:at]))
        ):
            found.add(at)
        if (
            at > 1
            and plain[0] in ("which", "what")
            and word.endswith("s")
            and not word.endswith("ss")
            and raw[at].islower()
        ):
            after = plain[at + 1] if at + 1 < len(plain) else ""
            if after in ("the", "a", "an", "whether", "how", "to", "on", "that") or after.isdigit():
                found.add(at)
    return frozenset(found)


def _subject(plain: list[str]) -> int | None:
    """Where the thing stands that `does X ...` and `is X ...` are asked of."""
    for at, word in enumerate(plain[:-1]):
        if word in ("does", "do", "did", "is", "are", "can", "will") and at <= 2:
            following = at + 1
            if plain[following] in ("the", "a", "an", "this") and following + 1 < len(plain):
                return None
            return following if plain[following] not in words.STOP else None
    return None


def _focus(text: str, found: re.Match[str]) -> str | None:
    """The stem of what `which` or `how many` asks for: the word after it, if that is no name."""
    token = next(words.tokens(text[found.end() :]), None)
    if token is None or words.lower(token) in words.STOP or words.parts(token):
        return None
    return words.key(token)
