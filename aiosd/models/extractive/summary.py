"""A summary in quotes: the sentence that opens a text and the ones that say most of what it is about."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from aiosd.models.extractive import words
from aiosd.models.extractive.quoting import Quote
from aiosd.models.extractive.units import Unit, fold, line_of, units
from aiosd.records import Source

SENTENCES = 4
READ = 200_000
"""Characters of all passages together that are read; the opening of a long text says what it is about."""


def summarize(passages: Sequence[Source]) -> tuple[Quote, ...]:
    """Up to SENTENCES quotes in the order of the text, or one a passage where there are more passages."""
    texts = [passage for passage in passages if passage.text.strip()]
    if not texts:
        return ()
    each = max(1, SENTENCES // len(texts))
    return tuple(
        quote
        for passage in texts[: 2 * SENTENCES]
        for quote in _central(passage, each, READ // len(texts[: 2 * SENTENCES]))
    )


def _central(passage: Source, wanted: int, room: int) -> list[Quote]:
    text = passage.text[:room]
    sentences = [unit for unit in units(text) if unit.kind in ("prose", "item") and _says(text, unit)]
    if not sentences:
        sentences = [unit for unit in units(text) if unit.kind != "heading"][:wanted]
    own = [words.every(text[unit.start : unit.end]) - words.STOP_STEMS for unit in sentences]
    frequency = Counter(stem for stems in own for stem in stems)

    def weight(at: int) -> float:
        shared = sum(math.log(frequency[stem]) for stem in own[at] if len(stem) > 2)
        return shared / (len(own[at]) + 6) - 0.002 * at

    lead = next((at for at, unit in enumerate(sentences) if unit.kind == "prose"), 0)
    ranked = [lead, *sorted((at for at in range(len(sentences)) if at != lead), key=lambda at: -weight(at))]
    chosen: list[int] = []
    for at in ranked:
        if len(chosen) == wanted or at >= len(sentences):
            break
        if all(len(own[at] & own[other]) < 0.6 * min(len(own[at]), len(own[other]) or 1) for other in chosen):
            chosen.append(at)
    return [
        Quote(
            passage, line_of(text, sentences[at].start), fold(text[sentences[at].start : sentences[at].end])
        )
        for at in sorted(chosen)
    ]


def _says(text: str, unit: Unit) -> bool:
    """A whole sentence that can stand alone."""
    span = text[unit.start : unit.end].rstrip()
    return len(span.split()) > 4 and not span.endswith((":", "?"))
