"""What a recall is answered with, and in which order: rules on scores, without I/O.

The signals and their weights were found on LoCoMo (dev), conversations of two: an answer often shares no word with
its question, but stands beside the turn that does. Notes that nobody spoke have no such neighbours to be found by.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from heapq import nlargest

import msgspec

from aiosd.records import Memory

CANDIDATES = 100
"""The best by meaning, and the best by words, that are looked at."""

SITTING_US = 60 * 60 * 1_000_000
"""Between two memories of one session that are further apart in time, nobody was still answering."""

MOST_LENGTH = 400
"""Characters from which a longer text is no likelier to answer."""

OPENING = re.compile(
    r"\s*(?:(?:when|what|where|who|which|why|how(?: many| much| long| often)?)\b(?:'s)?)?"
    r"\s*(?:(?:did|does|do|is|are|was|were|has|have|had|would|could|can|should)\b)?",
    re.IGNORECASE,
)
"""What makes a question of a sentence. Without it, its vector lies nearer to the answer's than to other questions'."""


FIRST = 3
"""Of those ranked, by which it is told whether the query was answered at all."""

PLAIN = frozenset(
    [
        "a",
        "an",
        "the",
        "and",
        "or",
        "but",
        "if",
        "of",
        "in",
        "on",
        "at",
        "by",
        "for",
        "with",
        "from",
        "to",
        "into",
        "as",
        "is",
        "are",
        "was",
        "were",
        "be",
        "been",
        "am",
        "do",
        "does",
        "did",
        "has",
        "have",
        "had",
        "i",
        "me",
        "my",
        "we",
        "our",
        "you",
        "your",
        "he",
        "him",
        "his",
        "she",
        "her",
        "it",
        "its",
        "they",
        "their",
        "this",
        "that",
        "these",
        "those",
        "there",
        "what",
        "which",
        "who",
        "whom",
        "whose",
        "when",
        "where",
        "why",
        "how",
        "not",
        "no",
        "than",
        "too",
        "very",
        "can",
        "will",
        "would",
        "could",
        "should",
        "about",
        "s",
    ]
)
"""Words that every text may have."""

FILLING = frozenset(
    [
        "a",
        "an",
        "the",
        "also",
        "just",
        "very",
        "really",
        "quite",
        "so",
        "well",
        "oh",
        "please",
        "actually",
        "basically",
        "simply",
        "that",
    ]
)
"""Words without which a text says the same. No tense, person, number or denial is among them."""


class Turn(msgspec.Struct, frozen=True, array_like=True):
    """What is known of a memory, apart from its text."""

    seq: int
    memory_id: str
    before: int | None
    """`seq` of the memory before it in its session, by time; None also where neither that nor the one before it was
    found, so that they have nothing to lend."""
    session_id: str
    created_at: int
    """Microseconds since 1970, UTC."""
    speaker: str | None
    asks: bool
    """There is a question mark in it."""
    ends_asking: bool
    length: int
    """Characters."""


class Found(msgspec.Struct, frozen=True, array_like=True):
    """What the index found, by memory_id: at most CANDIDATES each."""

    words: dict[str, float]
    """BM25, above 0."""
    meaning: dict[str, float]
    """Cosines; empty without an embedder."""


def named(query: str, speakers: Collection[str]) -> str | None:
    """The one speaker whose first name, or a short form of it, is in the query; None for nobody and for several."""
    words = {word for word in re.findall(r"\w+", query.casefold()) if len(word) >= 3}
    found = [
        speaker
        for speaker in speakers
        if (first := _first_name(speaker)) and (first in words or first[:3] in words)
    ]
    return found[0] if len(found) == 1 else None


def meaning(query: str, speaker: str | None) -> str:
    """The query as it is embedded: what it is about, without what makes it a question and without the speaker."""
    text = OPENING.sub("", query, count=1)
    if speaker is not None:
        text = re.sub(rf"\b{re.escape(_first_name(speaker))}(?:['’]s)?\b", "", text, flags=re.IGNORECASE)
    return " ".join(text.split()).strip(" ?") or query


def rank(turns: Sequence[Turn], found: Found, speaker: str | None, n: int) -> list[tuple[str, float]]:
    """At most `n` memory ids with what speaks for each, the best first.

    `turns` are those found and their neighbours: two after each and one before.
    """
    by_seq = {turn.seq: turn for turn in turns}
    meaning, said = _scaled(found.meaning), _scaled(found.words)
    dense = {turn.seq: score for turn in turns if (score := meaning.get(turn.memory_id, 0.0))}
    words = {turn.seq: score for turn in turns if (score := said.get(turn.memory_id, 0.0))}
    own = {seq: dense.get(seq, 0.0) + words.get(seq, 0.0) for seq in dense.keys() | words.keys()}
    priors = _priors([by_seq[seq] for seq in own], own)
    previous = {
        turn.seq: turn.before
        for turn in turns
        if turn.before in by_seq and turn.created_at - by_seq[turn.before].created_at < SITTING_US
    }
    following = {before: seq for seq, before in previous.items()}
    scores: list[tuple[float, str]] = []
    for turn in turns:
        seq = turn.seq
        lent = 0.0
        if (before := previous.get(seq)) is not None:
            if before in own:
                asked = by_seq[before].asks
                d, w = dense.get(before, 0.0), words.get(before, 0.0)
                lent += (0.4 * d + 0.7 * w) if asked else 0.35 * w
            if (earlier := previous.get(before)) in words:
                lent += 0.4 * words[earlier]
        if (after := following.get(seq)) in own:
            lent += 0.2 * dense.get(after, 0.0) + 0.25 * words.get(after, 0.0)
        score = own.get(seq, 0.0)
        if not score and (not lent or turn.speaker is None):
            continue
        score += (
            lent + 0.4 * priors.get(_sitting(turn), 0.0) + 0.06 * math.log1p(min(turn.length, MOST_LENGTH))
        )
        if speaker is not None and turn.speaker == speaker:
            score += 0.8
        if turn.ends_asking:
            score -= 0.15
        scores.append((score, turn.memory_id))
    return [(memory_id, score) for score, memory_id in nlargest(n, scores)]


def distinct(
    ranked: Sequence[tuple[str, float]],
    memories: Mapping[str, Memory],
    origins: Mapping[str, Sequence[str]],
    before: Sequence[tuple[str, float]],
) -> list[tuple[str, float]]:
    """Those of the ranked that say something of their own, after those `before`, in their order.

    Left out are texts of one speaker that are equal but for letters' case, spaces, marks and FILLING; and summaries
    behind a memory that they were made from. `origins` are those of the summaries.
    """
    said = {_saying(memories[id]) for id, _ in before}
    ahead = {f"memory:{id}" for id, _ in before}
    kept: list[tuple[str, float]] = []
    for id, score in ranked:
        memory = memories.get(id)
        if memory is None or not ahead.isdisjoint(origins.get(id, ())):
            continue
        if (saying := _saying(memory)) not in said:
            said.add(saying)
            ahead.add(f"memory:{id}")
            kept.append((id, score))
    return kept


def _saying(memory: Memory) -> tuple[str | None, str, float, str]:
    """What two memories share that say the same, as freely and from as good a source."""
    words = re.findall(r"\w+", memory.content.casefold())
    telling = [word for word in words if word not in FILLING]
    return memory.speaker, memory.privacy, memory.trust, " ".join(telling or words) or memory.content


def likelihoods(
    query: str, ranked: Sequence[tuple[str, float]], texts: Sequence[str], found: Found
) -> list[float]:
    """For each of those ranked how likely it answers the query: above 0, below 1, and falling with the rank.

    `texts` are those of the first. Whether the store has an answer at all shows in how near the nearest is, and how
    many of the query's words the best say: fitted on LoCoMo (dev) with the questions of one conversation asked in
    another, where the first has 0.2 in the middle, and 0.8 where the questions belong.
    """
    if not ranked:
        return []
    asked = _stems(query)
    covered = max((len(asked & _stems(text)) / len(asked) for text in texts), default=0.0) if asked else 0.0
    if found.meaning:
        first = -4.5 + 6 * max(found.meaning.values()) + 4.65 * covered
    else:
        first = -2.4 + 6.0 * covered
    best = max(ranked[0][1], 1e-9)
    return [1 / (1 + math.exp(-first - 6 * max(score / best - 1, -4))) for _, score in ranked]


def _stems(text: str) -> set[str]:
    """Beginnings of the words that tell something, so that forms of one word are one."""
    return {word[:5] for word in re.findall(r"\w+", text.casefold()) if word not in PLAIN}


def _first_name(speaker: str) -> str:
    return next(iter(re.findall(r"\w+", speaker.casefold())), "")


def _scaled(found: Mapping[str, float]) -> dict[str, float]:
    """The best is 1. The last is 0 where there may be more; otherwise 0 is what has nothing in common."""
    best = max(found.values(), default=0.0)
    least = min(found.values()) if len(found) >= CANDIDATES else 0.0
    span = best - least
    if span <= 0:
        return {id: float(score > 0) for id, score in found.items()}
    return {id: max(0.0, (score - least) / span) for id, score in found.items()}


def _sitting(turn: Turn) -> tuple[str, int]:
    return turn.session_id, turn.created_at // (24 * SITTING_US)


def _priors(turns: Sequence[Turn], own: Mapping[int, float]) -> dict[tuple[str, int], float]:
    """How much a session's day is about the query: the mean of its three best."""
    best: dict[tuple[str, int], list[float]] = defaultdict(list)
    for turn in turns:
        best[_sitting(turn)].append(own[turn.seq])
    return {sitting: sum(nlargest(3, scores)) / 3 for sitting, scores in best.items()}
