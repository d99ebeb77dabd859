"""Which pieces of the passages answer a question, and whether any of them does.

A question's words are weighed by how rare they are in the passages; a piece is ranked by the weight it
covers, itself and by its context (heading, signature, neighbours), damped by its length as in BM25.
It answers only if enough is covered and if it has what the question asks for: a number, a default, a time.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from aiosd.models import words
from aiosd.models.passages import Piece, read
from aiosd.models.question import SUBJECT, Question, Term, analyse, is_number, modals, negated
from aiosd.models.units import fold, line_of
from aiosd.records import Source

THRESHOLD = 0.60
"""The part of the question's weight that a piece must cover. Set on the development questions in the tests."""
MOST_QUOTES = 3
LONGEST_QUOTE = 400

# How well a word of the question is met, where 1 is the word itself in the piece.
NAMED = 0.95
"""What the piece explains: the signature or the entry it belongs to."""
INNER = 0.8
"""Inside a name in the piece."""
PREFIX = 0.8
SHOWN = 0.8
ALIKE = 0.75
WITHIN = 0.7
CONTEXT = 0.7
REFERS = 0.6
BEFORE = 0.45
AFTER = 0.3

_ANAPHOR = re.compile(
    r"(?:it|its|or|and|but|so|this|that|these|those|they|their|otherwise|else|instead|then|in (?:this|that|order)|"
    r"if (?:not|so|true|false|given|set|it|unspecified|omitted|specified)|"
    r"by default|default|off by|doing so|note that (?:it|this))\b|.*\b(?:in|for) (?:this|that|such a|these) cases?\b",
    re.IGNORECASE,
)


_REVERSING = ("un", "in", "im", "non", "dis", "de", "anti")


class Quote(NamedTuple):
    passage: Source
    line: int
    """1-based, in the passage."""
    text: str


class Scored(NamedTuple):
    score: float
    covered: float
    at: int
    """Which piece."""


def best(task: str, passages: Sequence[Source]) -> tuple[Quote, ...]:
    """The quotes that answer `task`, the best first; () where nothing in `passages` does."""
    question = analyse(task)
    pieces = read(passages, question.terms)
    return _choose(rank(question, task, pieces, passages), pieces, passages)


def rank(question: Question, task: str, pieces: Sequence[Piece], passages: Sequence[Source]) -> list[Scored]:
    """Every piece that may be quoted, the best first."""
    if not pieces or not question.terms:
        return []
    refs = [frozenset() if passage.kind == "memory" else words.every(passage.ref) for passage in passages]
    view = _View(question, pieces, refs)
    own_words = fold(task).casefold()
    scored = [
        view.score(at)
        for at, piece in enumerate(pieces)
        if piece.own
        and not piece.text.rstrip("\"'*_` )").endswith("?")
        and piece.text.casefold() not in own_words
    ]
    return sorted(scored, key=lambda one: (-one.score, one.at))


class _View:
    """A question seen against the pieces: what each of its words weighs, and what may stand for it."""

    def __init__(self, question: Question, pieces: Sequence[Piece], refs: Sequence[frozenset[str]]) -> None:
        self.question = question
        self.pieces = pieces
        self.refs = refs
        count = len(pieces)
        frequency = Counter(stem for piece in pieces for stems in (piece.own, piece.inner) for stem in stems)
        vocabulary = frozenset(frequency).union(*{piece.above for piece in pieces})
        self.options = [_options(term, vocabulary) for term in question.terms]
        everywhere = frozenset[str]().union(*refs)
        rarest = math.log(1 + (count + 0.5) / 0.5)
        self.weights: list[float] = []
        for term, options in zip(question.terms, self.options, strict=True):
            df = min(sum(frequency[stem] for stem in options), count)
            weight = term.prior * (0.3 + 0.7 * math.log(1 + (count - df + 0.5) / (df + 0.5)) / rarest)
            if term.stem in everywhere:
                weight *= 0.15
            elif df == 0 and (term.name or _compound(term.stem, vocabulary)):
                weight *= 0.4
            self.weights.append(weight)
        self.total = sum(self.weights)
        self.mean = sum(len(piece.own) for piece in pieces) / count
        self.subject = frozenset(term.stem for term in question.terms if term.prior >= SUBJECT)

    def score(self, at: int) -> Scored:
        question, piece = self.question, self.pieces[at]
        refers = bool(_ANAPHOR.match(piece.text))
        before, after = self._near(at, -1), self._near(at, 1)
        covered = own = 0.0
        missing = question.wants is not None and not question.wants.search(piece.text)
        missing = missing or not self._counted(piece)
        for term, options, weight in zip(question.terms, self.options, self.weights, strict=True):
            inside = max(
                _met(options, piece.own),
                INNER * _met(options, piece.inner),
                NAMED * _met(options, piece.names),
            )
            if (
                term.stem == "default"
                and not inside
                and any(re.search(rf"\b{re.escape(word)}\s?=\s?[^\s=]", piece.text) for word in self.subject)
            ):
                inside = NAMED
            value = max(
                inside,
                SHOWN if term.shown is not None and term.shown.search(piece.text) else 0.0,
                (NAMED if piece.unit.kind in ("code", "row") else CONTEXT) * _met(options, piece.above),
                1.0 if term.stem in self.refs[piece.passage] else 0.0,
                (REFERS if refers else BEFORE) * _met(options, before),
                AFTER * _met(options, after),
            )
            covered += weight * value
            own += weight * inside
            missing = missing or (term.required and value < BEFORE)
        covered /= self.total
        if missing:
            covered *= 0.6
        damp = 1 / (0.85 + 0.15 * len(piece.own) / self.mean)
        return Scored(
            0.6 * covered + 0.5 * own / self.total * damp + self._fit(at, own / self.total), covered, at
        )

    def _near(self, at: int, step: int) -> frozenset[str]:
        """The words of the neighbour, where it is of the same paragraph or introduces the piece."""
        if not 0 <= at + step < len(self.pieces):
            return frozenset()
        piece, other = self.pieces[at], self.pieces[at + step]
        if piece.passage != other.passage:
            return frozenset()
        joined = piece.unit.block == other.unit.block or (
            step < 0 and piece.unit.kind in ("code", "item", "row")
        )
        return other.own | other.inner if joined else frozenset()

    def _counted(self, piece: Piece) -> bool:
        """Whether a number stands near what is to be counted."""
        if self.question.counted is None:
            return True
        options = next(
            (
                o
                for t, o in zip(self.question.terms, self.options, strict=True)
                if t.stem == self.question.counted
            ),
            {},
        )
        tokens = list(words.tokens(piece.text))
        things = [at for at, token in enumerate(tokens) if not options.keys().isdisjoint(words.every(token))]
        numbers = [at for at, token in enumerate(tokens) if is_number(token)]
        return any(abs(thing - number) <= 4 for thing in things for number in numbers)

    def _named(self, piece: Piece) -> bool:
        """Whether the piece explains something that the question names."""
        return any(
            term.prior >= SUBJECT and _met(options, piece.names) >= NAMED
            for term, options in zip(self.question.terms, self.options, strict=True)
        )

    def _adjacent(self, piece: Piece) -> int:
        """How many neighbouring words of the question are neighbours in the piece."""
        keys = [words.every(token) for token in words.tokens(piece.text)]
        content = [o for t, o in zip(self.question.terms, self.options, strict=True) if t.prior > 0.3]
        count = 0
        for left, right in itertools.pairwise(content):
            ats = [at for at, key in enumerate(keys) if not key.isdisjoint(left)]
            count += any(
                not keys[other].isdisjoint(right)
                for at in ats
                for other in range(max(0, at - 2), min(len(keys), at + 3))
                if other != at
            )
        return count

    def _fit(self, at: int, own: float) -> float:
        """What speaks for or against a piece besides the words it covers."""
        question, piece = self.question, self.pieces[at]
        fit = 0.0
        if question.prefers is not None and question.prefers.search(piece.text):
            fit += 0.12 if question.prefers.match(piece.text) else 0.06
        if question.negated == negated(piece.text):
            fit += 0.03
        if question.modals & modals(piece.text):
            fit += 0.08
        if self._named(piece):
            fit += 0.15
        if question.about:
            opening = {words.stem(words.lower(token)) for token in list(words.tokens(piece.text))[:2]}
            if (
                piece.unit.first
                and (not piece.unit.context or self.subject & piece.names)
                and not self.subject - self.refs[piece.passage] - piece.names
            ):
                fit += 0.3
            elif self.subject & opening:
                fit += 0.2
        if own > 0.3:
            fit += 0.04 * self._adjacent(piece)
        if (
            question.prefers is None
            and piece.unit.first
            and len(self.subject - self.refs[piece.passage]) <= 1
        ):
            fit += 0.08
        if piece.text.endswith(":") and len(piece.own) < 10:
            fit -= 0.12
        if piece.unit.kind == "heading":
            fit -= 0.15
        return fit


def _met(options: dict[str, float], there: frozenset[str]) -> float:
    return max((value for stem, value in options.items() if stem in there), default=0.0)


def _options(term: Term, vocabulary: frozenset[str]) -> dict[str, float]:
    """The stems in the passages that stand for a word of the question, with how well."""
    found = {stem: ALIKE for stem in words.ALIKE.get(term.stem, ()) if stem in vocabulary}
    if len(term.stem) >= 4 and term.stem.isalpha():
        for word in vocabulary:
            if len(word) >= 4 and 0 < abs(len(word) - len(term.stem)) <= 4:
                short, long = (word, term.stem) if len(word) < len(term.stem) else (term.stem, word)
                if long.startswith(short) and (len(short) > 4 or len(long) - len(short) < 3):
                    found[word] = PREFIX
                elif len(short) > 4 and long.endswith(short) and not long.startswith(_REVERSING):
                    found[word] = WITHIN
    found.update((word, NAMED) for word in term.joined if word in vocabulary)
    if term.stem in vocabulary:
        found[term.stem] = 1.0
    return found


def _compound(name: str, vocabulary: frozenset[str]) -> bool:
    """`copytree` in a text that speaks of copying a tree: a name made of two of its words."""
    return any(
        words.stem(name[:cut]) in vocabulary and words.stem(name[cut:]) in vocabulary
        for cut in range(2, len(name) - 2)
    )


def _choose(
    ranked: Sequence[Scored], pieces: Sequence[Piece], passages: Sequence[Source]
) -> tuple[Quote, ...]:
    chosen: list[Quote] = []
    taken: set[int] = set()
    for one in ranked:
        if len(chosen) == MOST_QUOTES or one.score < 0.85 * ranked[0].score:
            break
        other = pieces[one.at].passage != pieces[ranked[0].at].passage
        if (
            one.covered < THRESHOLD
            or one.at in taken
            or (chosen and not other and one.score < 0.95 * ranked[0].score)
        ):
            continue
        first, last = _extent(one.at, pieces)
        taken.update(range(first, last + 1))
        passage = passages[pieces[one.at].passage]
        start = pieces[first].unit.start
        text = fold(passage.text[start : pieces[last].unit.end])
        if all(text != quote.text for quote in chosen):
            chosen.append(Quote(passage, line_of(passage.text, start), text))
    return tuple(chosen)


def _extent(at: int, pieces: Sequence[Piece]) -> tuple[int, int]:
    """The piece with the sentence before it that it refers to, and the one after it that refers to it."""
    first = last = at
    size = len(pieces[at].text)

    def joins(one: int, other: int) -> bool:
        if not 0 <= one < len(pieces) or not 0 <= other < len(pieces):
            return False
        left, right = pieces[one], pieces[other]
        return (
            left.passage == right.passage
            and left.unit.block == right.unit.block
            and left.unit.kind != "code"
            and bool(_ANAPHOR.match(right.text))
        )

    if joins(at - 1, at) and size + len(pieces[at - 1].text) < LONGEST_QUOTE:
        first -= 1
        size += len(pieces[first].text)
    if joins(at, at + 1) and size + len(pieces[at + 1].text) < LONGEST_QUOTE:
        last += 1
    return first, last
