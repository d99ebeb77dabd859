"""A text cut into the pieces that can be quoted: sentences, list items, table rows, lines of code.

It reads plain text, Markdown, reStructuredText and docstrings by their layout alone. A piece is a span of
the text, so that a quote is verbatim by construction; what stands above it (headings, the signature or the
term it explains, the sentence that introduces it) comes along as its context.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

Kind = Literal["prose", "item", "row", "code", "heading"]

LONGEST = 700
"""Characters in one piece; layout that we misread must not become a page-long quote."""

_HEADING = re.compile(r"\s{0,3}(#{1,6})\s+(\S.*)$")
_UNDERLINE = re.compile(r"\s*([=\-~^\"*+])\1{2,}\s*$")
_ROW = re.compile(r"\s*\|.*\|\s*$")
_FENCE = re.compile(r"\s*(```+|~~~+)")
_MARKER = re.compile(r"\s*(?:[-*+•]|\d{1,3}[.)])\s+(?=\S)")
_DOCTEST = re.compile(r"\s*(?:>>>|\$)\s")
_KEYWORD = r"\s*(?:(?:async\s+)?def\s+|[Cc]lass\s+|[Ff]unction\s+|[Mm]ethod\s+)?"
_SIGNATURE = re.compile(_KEYWORD + r"[A-Za-z_][\w.]*\((?:[^()]|\([^()]*\))*\)(?:\s*->.*)?:?$")
_NAMED = re.compile(_KEYWORD + r"((?:['\"`*]*[A-Za-z_][\w.-]*['\"`*]*)(?:,\s*['\"`*]*[\w.-]+['\"`*]*)*)")
_CAPITALS = re.compile(r"[A-Z][A-Z0-9 _/-]{2,60}:?\s*$")
_TERM = re.compile(
    r"\s*(?:['\"`*]{0,3}[\w.*-]+(?:\([^)]*\))?['\"`*]{0,3}(?:,\s['\"`*\w]+){0,3}(?:\s\([^)]*\))?"
    r"(?:\s*:\s+|\s+(?:--?|–|:)\s+|\s{2,})\S|\S{1,20}\s{3,}\S|[^\s\w]{1,3}\s*:\s+\S)"
)
"""`name: ...`, `'a', 'b' -- ...`, `name (default) ...`, a column, `<: ...`"""
_SENTENCE = re.compile(r"(?<=[^\s.'\"`(][.!?])[\"'”’)\]*`]*(\s+)(?=\S)")
_ABBREVIATION = re.compile(
    r"(?<![\w.])(?:e\.?g|i\.?e|etc|vs|cf|no|approx|fig|sec|dr|mr|mrs|ms|st|resp|incl|[A-Za-z])\.$",
    re.IGNORECASE,
)


class Unit(NamedTuple):
    """`text[start:end]` of its passage. `context` is what stands above it, the nearest last."""

    start: int
    end: int
    kind: Kind
    context: tuple[str, ...]
    block: int
    """Pieces of one paragraph, item or code block share the number."""
    first: bool
    """It opens what its context announces: the first sentence of a docstring, of a section."""
    names: tuple[str, ...]
    """What it explains: the names in the signature it stands under, and in front of its own entry."""


class _Line(NamedTuple):
    start: int
    end: int
    text: str
    indent: int
    """-1 for a blank line."""


def fold(text: str) -> str:
    """Runs of white space as one space: the only change a quote may have."""
    return " ".join(text.split())


def units(text: str) -> list[Unit]:
    """The pieces of `text`, in order."""
    return list(_Reader(text).read())


def _is_border(text: str) -> bool:
    """A rule of a table, which says nothing: `|---|---|`, `====  ====`."""
    return not text.strip(" \t:|+=-") and any(stroke in text for stroke in ("==", "--", "-:"))


def _lines(text: str) -> list[_Line]:
    found = []
    at = 0
    for raw in text.splitlines(keepends=True):
        bare = raw.rstrip()
        indent = len(bare) - len(bare.lstrip()) if bare else -1
        found.append(_Line(at, at + len(bare), bare, indent))
        at += len(raw)
    return found


def sentences(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Spans of the sentences in `text[start:end]`."""
    begin = start
    for stop in _SENTENCE.finditer(text, start, end):
        at = stop.start(1)
        if _ABBREVIATION.search(text, max(begin, at - 12), at):
            continue
        if at > begin:
            yield begin, at
        begin = stop.end(1)
    if begin < end:
        yield begin, end


def _named(term: str) -> tuple[str, ...]:
    """The names at the head of an entry or a signature: `'prefix', 'dir' -- as for mkstemp` has two."""
    head = _NAMED.match(term)
    return tuple(re.findall(r"[A-Za-z_][\w.]*", head[1])) if head else ()


class _Above(NamedTuple):
    """Something that announces what follows: a heading by its level, or a line by its indent."""

    rank: int
    text: str
    names: tuple[str, ...] = ()


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.lines = _lines(text)
        self.headings: list[_Above] = []
        self.outer: list[_Above] = []
        self.intro = ""
        self.block = 0
        self.opens = True

    def read(self) -> Iterator[Unit]:
        at = 0
        while at < len(self.lines):
            line = self.lines[at]
            if line.indent < 0:
                at += 1
            elif fence := _FENCE.match(line.text):
                stop = at + 1
                while stop < len(self.lines) and not self.lines[stop].text.lstrip().startswith(fence[1]):
                    stop += 1
                yield from self._code(at + 1, stop)
                at = stop + 1
            elif heading := self._heading(at):
                yield from heading[1]
                at = heading[0]
            else:
                stop = at + 1
                while (
                    stop < len(self.lines)
                    and self.lines[stop].indent >= 0
                    and not _FENCE.match(self.lines[stop].text)
                ):
                    if self._heading(stop, peek=True):
                        break
                    stop += 1
                yield from self._paragraph(at, stop)
                at = stop

    def _heading(self, at: int, *, peek: bool = False) -> tuple[int, list[Unit]] | None:
        """Where the text goes on after the heading that starts here, and its own piece."""
        line = self.lines[at]
        after = self.lines[at + 1] if at + 1 < len(self.lines) else None
        if marks := _HEADING.match(line.text):
            level, title, stop = len(marks[1]), marks[2].rstrip("# "), at + 1
        elif (
            after
            and (marks := _UNDERLINE.match(after.text))
            and after.indent >= 0
            and abs(len(after.text) - len(line.text)) < 4
            and not _ROW.match(line.text)
            and any(map(str.isalnum, line.text))
        ):
            level, title, stop = 1 if marks[1] == "=" else 2, line.text.strip(), at + 2
        elif _CAPITALS.match(line.text) and line.indent == 0 and (after is None or after.indent != 0):
            level, title, stop = 2, line.text.strip(" :"), at + 1
        else:
            return None
        if peek:
            return stop, []
        self.headings = [above for above in self.headings if above.rank < level]
        piece = self._unit(line.start, line.end, "heading")
        self.headings.append(_Above(level, title))
        self.outer, self.intro, self.opens = [], "", True
        return stop, [piece]

    def _context(self) -> tuple[str, ...]:
        above = [heading.text for heading in self.headings] + [outer.text for outer in self.outer]
        return (*above, self.intro) if self.intro else tuple(above)

    def _unit(self, start: int, end: int, kind: Kind, term: str = "") -> Unit:
        first, self.opens = self.opens, self.opens and kind == "heading"
        context = self._context()
        names = tuple(name for outer in self.outer for name in outer.names) + _named(term)
        if term:
            context = (*context, term)
        return Unit(start, min(end, start + LONGEST), kind, context, self.block, first, names)

    def _code(self, at: int, stop: int) -> Iterator[Unit]:
        self.block += 1
        for line in self.lines[at:stop]:
            if line.indent >= 0:
                yield self._unit(line.start + line.indent, line.end, "code")

    def _paragraph(self, at: int, stop: int) -> Iterator[Unit]:
        """Lines without a blank one between them: split where the layout starts something new."""
        base = self.lines[at].indent
        self.outer = [above for above in self.outer if above.rank < base]
        table = ""
        if base == 0 and not self._continues(at):
            self.intro = ""
        while at < stop:
            line = self.lines[at]
            if _is_border(line.text):
                at += 1
            elif (
                _ROW.match(line.text)
                or (at > 0 and _is_border(self.lines[at - 1].text) and " " in self.lines[at - 1].text.strip())
                or table == "rst"
            ):
                if _ROW.match(line.text):
                    if not table:
                        table = line.text
                        if at + 1 < stop and _is_border(self.lines[at + 1].text):
                            at += 1
                            self.intro = table
                            continue
                else:
                    table = "rst"
                self.block += 1
                yield self._unit(line.start + line.indent, line.end, "row")
                at += 1
            else:
                end = self._piece_end(at, stop)
                yield from self._piece(at, end, stop)
                at = end

    def _continues(self, at: int) -> bool:
        return bool(
            _MARKER.match(self.lines[at].text)
            or _ROW.match(self.lines[at].text)
            or _DOCTEST.match(self.lines[at].text)
        )

    def _piece_end(self, at: int, stop: int) -> int:
        """The line after the piece that starts at `at`: hanging lines belong to it, a new item ends it."""
        first = self.lines[at]
        end = at + 1
        if _DOCTEST.match(first.text):
            while end < stop and not _DOCTEST.match(self.lines[end].text):
                end += 1
            return end
        announces = bool(_SIGNATURE.match(first.text)) or (
            first.text.endswith(":") and first.text.count("(") <= first.text.count(")")
        )
        if end < stop and announces and self.lines[end].indent > first.indent:
            return end
        hanging = end < stop and self.lines[end].indent > first.indent
        entries = bool(_MARKER.match(first.text) or _TERM.match(first.text)) or hanging
        while end < stop:
            line = self.lines[end]
            if _DOCTEST.match(line.text) or _is_border(line.text):
                break
            if _MARKER.match(line.text) and (
                line.indent <= first.indent
                or _MARKER.match(first.text)
                or self.lines[end - 1].text[-1] in ".:;"
            ):
                break
            if entries and line.indent <= first.indent and (hanging or _TERM.match(line.text)):
                break
            opens = end + 1 < stop and self.lines[end + 1].indent > line.indent
            if line.indent < first.indent or (entries and opens and line.indent == first.indent):
                break
            if not entries and line.indent > first.indent + 1 and self.lines[end - 1].text.endswith(":"):
                break
            end += 1
        return end

    def _piece(self, at: int, end: int, stop: int) -> Iterator[Unit]:
        first, last = self.lines[at], self.lines[end - 1]
        self.outer = [above for above in self.outer if above.rank < first.indent]
        self.block += 1
        start = first.start + first.indent
        if _DOCTEST.match(first.text):
            yield self._unit(start, last.end, "code")
            return
        following = next((line for line in self.lines[end : end + 3] if line.indent >= 0), None)
        deeper = following is not None and following.indent > first.indent
        if deeper and _SIGNATURE.match(first.text) and end == at + 1:
            yield self._unit(start, last.end, "heading")
            self.outer.append(_Above(first.indent, first.text.partition("(")[0].strip(), _named(first.text)))
            self.opens, self.intro = True, ""
            return
        marker = _MARKER.match(first.text)
        label = first.text[marker.end() :] if marker else first.text.lstrip()
        term = ""
        if entry := _TERM.match(label):
            term = entry[0][:-1].strip()
        elif not marker and end - at > 1 and self.lines[at + 1].indent > first.indent and len(label) < 60:
            term = label
        kind: Kind = "item" if marker or term else "prose"
        spans = list(sentences(self.text, start, last.end))
        for begin, close in spans:
            yield self._unit(begin, close, kind, term)
        if last.text.endswith(":"):
            begin, close = spans[-1]
            announcement = fold(self.text[begin:close])
            if deeper:
                self.outer.append(_Above(first.indent, announcement))
                self.opens = len(spans) == 1
            else:
                self.intro = announcement
        elif kind == "prose":
            self.intro = ""


def line_of(text: str, start: int) -> int:
    """1-based number of the line that `start` is on."""
    return text.count("\n", 0, start) + 1
