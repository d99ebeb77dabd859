"""Passages read into pieces that a question is held against; of big ones, the parts that share most with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from aiosd.models.extractive import thesaurus, words
from aiosd.models.extractive.question import Term
from aiosd.models.extractive.units import Unit, fold, units
from aiosd.records import Source

CLOSE = 200_000
"""Characters of all passages together that are read closely, in some 0.2 s."""
_CHUNK = 4_000


class Piece(NamedTuple):
    """A unit of a passage, with what it can be found by."""

    passage: int
    """Which of the passages."""
    unit: Unit
    """Its span counts from the start of the passage."""
    text: str
    """The span with white space folded."""
    own: frozenset[str]
    inner: frozenset[str]
    """Stems that occur in it only inside a name: `default` in `argument_default`."""
    above: frozenset[str]
    names: frozenset[str]


class _Chunk(NamedTuple):
    passage: int
    start: int
    text: str


def read(passages: Sequence[Source], terms: Sequence[Term]) -> list[Piece]:
    """The pieces of all passages in order, or of the parts of them that are worth it."""
    found: list[Piece] = []
    seen: dict[tuple[str, ...], frozenset[str]] = {}

    def stems(texts: tuple[str, ...]) -> frozenset[str]:
        if texts not in seen:
            seen[texts] = words.every(" ".join(texts))
        return seen[texts]

    for chunk in _narrow(passages, terms):
        for unit in units(chunk.text):
            span = chunk.text[unit.start : unit.end]
            own, inner = words.stems(span)
            moved = unit._replace(start=unit.start + chunk.start, end=unit.end + chunk.start)
            names = frozenset(words.stem(words.lower(name.rpartition(".")[2])) for name in unit.names)
            found.append(Piece(chunk.passage, moved, fold(span), own, inner, stems(unit.context), names))
    return found


def _narrow(passages: Sequence[Source], terms: Sequence[Term]) -> list[_Chunk]:
    """All of the passages, or CLOSE characters of them: the chunks with the rarest words of the question.

    Whether a stem's letters occur is enough to tell; searching 10 MB for them takes some 0.1 s.
    """
    if sum(len(passage.text) for passage in passages) <= CLOSE:
        return [_Chunk(number, 0, passage.text) for number, passage in enumerate(passages)]
    chunks = [
        _Chunk(number, start, passage.text[start:end])
        for number, passage in enumerate(passages)
        for start, end in _cuts(passage.text)
    ]
    needles = [{term.stem, *thesaurus.alike(term.stem)} for term in terms]
    there = []
    for chunk in chunks:
        lowered = chunk.text.lower()
        there.append([any(needle in lowered for needle in wanted) for wanted in needles])
    weights = [
        term.prior * math.log(1 + len(chunks) / (1 + sum(row[number] for row in there)))
        for number, term in enumerate(terms)
    ]
    shared = [sum(weight for weight, found in zip(weights, row, strict=True) if found) for row in there]
    kept: list[int] = []
    room = CLOSE
    for number in sorted(range(len(chunks)), key=lambda number: (-shared[number], number)):
        room -= len(chunks[number].text)
        if room < 0 and kept:
            break
        kept.append(number)
    return [chunks[number] for number in sorted(kept)]


def _cuts(text: str) -> list[tuple[int, int]]:
    """Spans of some _CHUNK characters that end with a paragraph, else with a line, at worst anywhere."""
    cuts: list[tuple[int, int]] = []
    start = 0
    while start < len(text):
        latest = min(start + 2 * _CHUNK, len(text))
        end = text.find("\n\n", start + _CHUNK, latest)
        if end < 0:
            end = text.find("\n", start + _CHUNK, latest)
        end = latest if end < 0 else end + 1
        cuts.append((start, end))
        start = end
    return cuts
