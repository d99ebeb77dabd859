"""What the pieces of the passages have to say to a question: how well each covers it, and what it lacks."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from aiosd.models.extractive import thesaurus, words
from aiosd.models.extractive.passages import Piece
from aiosd.models.extractive.question import SUBJECT, Question, Term, is_number, modals, negated

# How well a word of the question is met, where 1 is the word itself in the piece.
NAMED = 0.95
"""What the piece explains: the signature or the entry it belongs to."""
INNER = 0.8
"""Inside a name in the piece."""
PREFIX = 0.8
SHOWN = 0.8
ALIKE = 0.75
WITHIN = 0.5
CONTEXT = 0.7
REFERS = 0.6
"""In the sentence before one that begins with "It" or "Otherwise"."""
BEFORE = 0.45
AFTER = 0.3
RARITY = 0.3
"""What a word weighs that is everywhere, where the rarest weighs 1."""

ANAPHOR = re.compile(
    r"(?:it|its|or|and|but|so|this|that|these|those|they|their|otherwise|else|instead|then|"
    r"in (?:this|that|order)|doing so|note that (?:it|this)|"
    r"if (?:not|so|true|false|given|set|it|unspecified|omitted|specified)|"
    r"by default|default|off by)\b|.*\b(?:in|for) (?:this|that|such a|these) cases?\b",
    re.IGNORECASE,
)
"""A sentence that starts so refers to the one before it."""
_REVERSING = ("un", "in", "im", "non", "dis", "de", "anti")


class Evidence(NamedTuple):
    """What one piece has. The parts are of the question's weight, 0 to 1."""

    at: int
    """Which piece."""
    score: float
    """Ranks the pieces of one question against each other."""
    covered: float
    """With the help of its context."""
    own: float
    """By the piece alone."""
    lacks_extreme: bool
    """`default`, `maximum` and the like, which answers do not leave out; or it has nothing else of the question."""
    lacks_form: bool
    """A number, a time, a name: what the answer must show."""


class View:
    """A question seen against the pieces: what each of its words weighs, and what may stand for it."""

    def __init__(self, question: Question, pieces: Sequence[Piece], refs: Sequence[frozenset[str]]) -> None:
        """`refs` are the stems of each passage's name; a text seldom repeats what it is about."""
        self.question = question
        self.pieces = pieces
        self.refs = refs
        count = len(pieces)
        frequency = Counter(stem for piece in pieces for stems in (piece.own, piece.inner) for stem in stems)
        vocabulary = frozenset(frequency).union(*{piece.above for piece in pieces})
        self.options = [_options(term, vocabulary) for term in question.terms]
        self.mean = sum(len(piece.own) for piece in pieces) / count
        everywhere = frozenset[str]().union(*refs)
        rarest = math.log(1 + (count + 0.5) / 0.5)
        self.weights: list[float] = []
        unknown = 0.0
        for term, options in zip(question.terms, self.options, strict=True):
            df = min(sum(frequency[stem] for stem in options), count)
            weight = term.prior * (
                RARITY + (1 - RARITY) * math.log(1 + (count - df + 0.5) / (df + 0.5)) / rarest
            )
            if term.stem in everywhere:
                weight *= 0.15
            elif df == 0:
                weight *= 0.4 if term.name or _compound(term.stem, vocabulary) else 1.0
                unknown += weight
            self.weights.append(weight)
        self.total = sum(self.weights)
        self.unknown = unknown / self.total
        """Part of the question's weight that occurs nowhere in the passages."""
        self.subject = frozenset(term.stem for term in question.terms if term.prior >= SUBJECT)

    def evidence(self, at: int) -> Evidence:
        question, piece = self.question, self.pieces[at]
        before, after = self._near(at, -1), self._near(at, 1)
        backwards = REFERS if ANAPHOR.match(piece.text) else BEFORE
        above = NAMED if piece.unit.kind in ("code", "row") else CONTEXT
        covered = own = met = carried = extremes = 0.0
        lacks_extreme = False
        for term, options, weight in zip(question.terms, self.options, self.weights, strict=True):
            inside = self._inside(term, options, piece)
            value = max(
                inside,
                SHOWN if self._shows(term, piece) else 0.0,
                above * _met(options, piece.above),
                1.0 if term.stem in self.refs[piece.passage] else 0.0,
                backwards * _met(options, before),
                AFTER * _met(options, after),
            )
            covered += weight * value
            own += weight * inside
            if term.prior >= SUBJECT:
                carried += 1
                met += value >= BEFORE
                extremes += term.extreme and value >= BEFORE
            lacks_extreme = lacks_extreme or (term.extreme and value < BEFORE)
        covered /= self.total
        if question.about and not self.subject and piece.unit.first and not piece.unit.context:
            covered = 1.0  # what the text as a whole is about
        own /= self.total
        lacks_form = not self._counted(piece) or not (
            question.wants is None or question.wants.search(piece.text)
        )
        lacks_extreme = lacks_extreme or (0 < extremes == met < carried)
        lacking = 0.75 ** (lacks_extreme + lacks_form)
        if not self.subject - self.refs[piece.passage]:
            own *= 0.3  # the question names only what the passage is about: saying it again tells nothing
        damp = 1 / (0.85 + 0.15 * len(piece.own) / self.mean)
        score = 0.6 * covered * lacking + 0.5 * own * damp + self._fit(at, own)
        return Evidence(at, score, covered, own, lacks_extreme, lacks_form)

    def _shows(self, term: Term, piece: Piece) -> bool:
        """Whether the piece is what a word asks for: a version for `version`, a line of code for `run`."""
        if term.shown is not None:
            return term.shown.search(piece.text) is not None
        return piece.unit.kind == "code" and term.stem in words.CODE_STEMS

    def _inside(self, term: Term, options: dict[str, float], piece: Piece) -> float:
        """How well the piece itself, or the name of what it explains, meets a word."""
        value = max(
            _met(options, piece.own), INNER * _met(options, piece.inner), NAMED * _met(options, piece.names)
        )
        if not value and term.stem == "default":
            assigned = any(
                re.search(rf"\b{re.escape(word)}\w*(?:\s*:\s*\w+)?\s?=\s?[^\s=]", piece.text)
                for word in self.subject
            )
            return NAMED if assigned else 0.0
        return value

    def _near(self, at: int, step: int) -> frozenset[str]:
        """The words of the neighbour, where it is of the same paragraph or introduces the piece."""
        if not 0 <= at + step < len(self.pieces):
            return frozenset()
        piece, other = self.pieces[at], self.pieces[at + step]
        introduces = step < 0 and piece.unit.kind in ("code", "item", "row")
        if piece.passage != other.passage or not (piece.unit.block == other.unit.block or introduces):
            return frozenset()
        return other.own | other.inner

    def _counted(self, piece: Piece) -> bool:
        """Whether a number stands near what is to be counted."""
        if self.question.counted is None:
            return True
        tokens = [(token, words.every(token)) for token in words.tokens(piece.text)]
        numbers = [at for at, (token, _) in enumerate(tokens) if is_number(token)]
        for term, options in zip(self.question.terms, self.options, strict=True):
            if term.stem == self.question.counted:
                things = [at for at, (_, stems) in enumerate(tokens) if not options.keys().isdisjoint(stems)]
                return any(abs(thing - number) <= 4 for thing in things for number in numbers)
        return bool(numbers)

    def _named(self, piece: Piece) -> bool:
        """Whether the piece explains something that the question names."""
        return any(
            term.prior >= SUBJECT and _met(options, piece.names) >= NAMED
            for term, options in zip(self.question.terms, self.options, strict=True)
        )

    def _adjacent(self, piece: Piece) -> int:
        """How many neighbouring words of the question are neighbours in the piece."""
        keys = [words.every(token) for token in words.tokens(piece.text)]
        pairs = itertools.pairwise(
            options
            for term, options in zip(self.question.terms, self.options, strict=True)
            if term.prior > 0.3
        )
        return sum(_together(keys, left, right) for left, right in pairs)

    def _fit(self, at: int, own: float) -> float:
        """What speaks for or against a piece besides the words it covers."""
        question, piece = self.question, self.pieces[at]
        unit = piece.unit
        unsaid = self.subject - self.refs[piece.passage]
        fit = 0.0
        if question.prefers is not None and question.prefers.search(piece.text):
            fit += 0.12 if question.prefers.match(piece.text) else 0.06
        if question.negated == negated(piece.text):
            fit += 0.03
        if question.modals & modals(piece.text):
            fit += 0.08
        if self._named(piece):
            fit += 0.15
        if own > 0.3:
            fit += 0.04 * self._adjacent(piece)
        if question.prefers is None and unit.first and len(unsaid) <= 1:
            fit += 0.08
        opening = words.every(" ".join(itertools.islice(words.tokens(piece.text), 3)))
        if self.subject & opening:
            fit += 0.06
        if question.about:
            if unit.first and (not unit.context or self.subject & piece.names) and not unsaid - piece.names:
                fit += 0.3
            elif self.subject & opening and unit.kind != "code":
                fit += 0.2
        if piece.text.endswith(":") and len(piece.own) < 10:
            fit -= 0.12
        if unit.kind == "code" and piece.text[-1] in ",([{\\":
            fit -= 0.1
        if unit.kind == "heading":
            fit -= 0.15
        return fit


def _met(options: dict[str, float], there: frozenset[str]) -> float:
    return max((value for stem, value in options.items() if stem in there), default=0.0)


def _together(keys: Sequence[frozenset[str]], left: dict[str, float], right: dict[str, float]) -> bool:
    ats = [at for at, key in enumerate(keys) if not left.keys().isdisjoint(key)]
    return any(
        other != at and not right.keys().isdisjoint(keys[other])
        for at in ats
        for other in range(max(0, at - 2), min(len(keys), at + 3))
    )


def _options(term: Term, vocabulary: frozenset[str]) -> dict[str, float]:
    """The stems in the passages that stand for a word of the question, with how well."""
    found = {stem: ALIKE for stem in thesaurus.alike(term.stem) if stem in vocabulary}
    if len(term.stem) >= 4 and term.stem.isalpha():
        for word in vocabulary:
            if len(word) >= 4 and 0 < abs(len(word) - len(term.stem)) <= 4:
                short, long = (word, term.stem) if len(word) < len(term.stem) else (term.stem, word)
                if term.stem.endswith("s"):
                    continue
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
    cuts = range(2, len(name) - 2)
    return any(words.stem(name[:cut]) in vocabulary and words.stem(name[cut:]) in vocabulary for cut in cuts)
