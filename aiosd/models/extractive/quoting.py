"""The quotes that answer a question, or none.

A question's words are weighed by how rare they are in the passages; a piece is ranked by the weight it
covers, itself and by its context (heading, signature, neighbours), damped by its length as in BM25
(evidence.py). It is quoted only if enough is covered and it has what the question asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from aiosd.models.extractive import words
from aiosd.models.extractive.evidence import ANAPHOR, Evidence, View
from aiosd.models.extractive.passages import Piece, read
from aiosd.models.extractive.question import analyse
from aiosd.models.extractive.units import fold, line_of
from aiosd.records import Source

MOST_QUOTES = 3
ENOUGH = 0.55
"""The part of the question's weight that a quote covers: nine of ten questions without an answer stay below, of some
600 written for it (about half are in tests/test_extractive_questions.py) and of those in tests/data."""
LACKS_EXTREME = 0.5
"""How much more of it a quote covers that lacks the `default` or the `maximum` that is asked for."""
AS_GOOD = 0.95
AS_GOOD_ELSEWHERE = 0.85
"""Parts of the best piece's score that a further quote has, from the same passage or from another one."""
LONGEST_QUOTE = 400
"""Characters up to which a piece takes the sentence along that it refers to, or that refers to it."""


class Quote(NamedTuple):
    passage: Source
    line: int
    """1-based, in the passage."""
    text: str


def best(task: str, passages: Sequence[Source]) -> tuple[Quote, ...]:
    """The quotes that answer `task`, the best first; () where nothing in `passages` does."""
    question = analyse(task)
    pieces = read(passages, question.terms)
    if not pieces or not question.terms:
        return ()
    view = View(question, pieces, [_name(passage) for passage in passages])
    return _choose(rank(view), view, task, passages)


def _name(passage: Source) -> frozenset[str]:
    return frozenset() if passage.kind == "memory" else words.every(passage.ref)


def rank(view: View) -> list[Evidence]:
    """What every piece that may be quoted has to say, the best first. A question is no answer."""
    found = [
        view.evidence(at)
        for at, piece in enumerate(view.pieces)
        if piece.own and not piece.text.rstrip("\"'*_` )").endswith("?")
    ]
    return sorted(found, key=lambda one: (-one.score, one.at))


def answers(one: Evidence) -> bool:
    """Whether a piece says enough to be quoted."""
    return not one.lacks_form and one.covered - LACKS_EXTREME * one.lacks_extreme >= ENOUGH


def _choose(
    ranked: Sequence[Evidence], view: View, task: str, passages: Sequence[Source]
) -> tuple[Quote, ...]:
    """The best piece that answers and those nearly as good; what the task itself says is no answer."""
    said = fold(task).casefold()
    chosen: list[Quote] = []
    taken: set[int] = set()
    top: Evidence | None = None
    for one in ranked:
        piece = view.pieces[one.at]
        if top is not None:
            if len(chosen) == MOST_QUOTES or one.score < AS_GOOD_ELSEWHERE * top.score:
                break
            if piece.passage == view.pieces[top.at].passage and one.score < AS_GOOD * top.score:
                continue
        if one.at in taken or not answers(one) or _echoes(piece.text.casefold(), said):
            continue
        at = _under(one.at, view.pieces)
        if at is None:
            continue
        top = top or one
        first, last = _extent(at, view.pieces)
        taken.update(range(first, last + 1))
        passage = passages[piece.passage]
        start = view.pieces[first].unit.start
        text = fold(passage.text[start : view.pieces[last].unit.end])
        if all(text not in quote.text and quote.text not in text for quote in chosen):
            chosen.append(Quote(passage, line_of(passage.text, start), text))
    return tuple(chosen)


def _under(at: int, pieces: Sequence[Piece]) -> int | None:
    """Where a piece says what it says: a heading only promises it, so that is what stands first below."""
    for below in range(at, len(pieces)):
        if pieces[below].passage != pieces[at].passage:
            return None
        if pieces[below].unit.kind != "heading":
            return below
    return None


def _echoes(text: str, said: str) -> bool:
    """Whether a piece is from the task, or tells of somebody who asked the same."""
    return text in said or (said.endswith("?") and said in text)


def _extent(at: int, pieces: Sequence[Piece]) -> tuple[int, int]:
    """The piece with the sentence before it that it refers to, and the one after it that refers to it."""
    first = last = at
    room = LONGEST_QUOTE - len(pieces[at].text)
    if at and _refers(pieces[at], pieces[at - 1]) and len(pieces[at - 1].text) < room:
        first -= 1
        room -= len(pieces[first].text)
    if at + 1 < len(pieces) and _refers(pieces[at + 1], pieces[at]) and len(pieces[at + 1].text) < room:
        last += 1
    return first, last


def _refers(piece: Piece, before: Piece) -> bool:
    together = piece.passage == before.passage and piece.unit.block == before.unit.block
    return together and piece.unit.kind != "code" and ANAPHOR.match(piece.text) is not None
