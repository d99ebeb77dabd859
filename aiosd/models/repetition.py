"""When a model's text only repeats itself any more: a small model may do that until its last token. Pure."""

from __future__ import annotations

WINDOW = 4000
"""Characters of the end that are looked at."""

LEAST_CHARS = 1000
"""Of repetition: shorter ones are tables, rulers and refrains."""

LEAST_TIMES = 4
"""How often the same must stand in a row."""

EVERY_CHARS = 500
"""New text between two looks, since one at a text that does repeat itself costs a millisecond."""

_LONGEST = WINDOW // LEAST_TIMES
"""Characters of the longest piece whose repetition fits the window."""

_SAME = LEAST_CHARS - LEAST_CHARS // LEAST_TIMES
"""Characters of the end that stand once more, a piece earlier, where a text repeats itself: all but its first piece."""


def repeats_from(text: str) -> int | None:
    """Where a text that ends in repetition may be cut: behind the first time; None where it does not repeat itself.

    The end of a text has the period p where it is the same as itself p characters earlier; the prefix function of the
    text turned round gives the shortest for each length (Knuth, Morris, Pratt).
    """
    if text[-_SAME:] not in text[-_SAME - _LONGEST : -1]:
        return None  # most texts: a search in C tells in microseconds
    end = text[-WINDOW:][::-1]
    borders = [0] * len(end)
    longest: tuple[int, int] | None = None
    for i in range(1, len(end)):
        k = borders[i - 1]
        while k and end[i] != end[k]:
            k = borders[k - 1]
        borders[i] = k + (end[i] == end[k])
        length, period = i + 1, i + 1 - borders[i]
        if length >= max(LEAST_CHARS, LEAST_TIMES * period):
            longest = length, period
    if longest is None:
        return None
    length, period = longest
    start = len(text) - length
    while start >= 1 and text[start - 1] == text[start - 1 + period]:
        start -= 1  # it began before the window
    return start + period
