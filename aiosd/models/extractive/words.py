"""Words of a text, reduced so that a question and its answer can meet: stems and stop words.

The lists are the English of technical writing in general, not of any one text. A language they do not
know still matches word for word, and then more of a question has to be found before it counts as answered.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

TOKEN = re.compile(r"\w+(?:[.'’-]\w+)*")
"""A word, an identifier, a dotted name, a number with a point."""

_IDIOM = re.compile(r"\b(?:in order to|in case of|so as to|as well as|for example|such as)\b", re.IGNORECASE)
"""Words that mean nothing by themselves where they stand together."""

_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_a-zA-Z]+")
"""The parts of `copy2`, `break_long_words`, `FileHandler`."""


def listed(text: str) -> tuple[str, ...]:
    """A word list as it reads best in source."""
    return tuple(text.split())


STOP = frozenset(
    listed("""
a about after again all already also am an and any are as at be been being both but by can cannot
could did do does doing done each ever every for from had has have having he her here his how i if
in into is it its itself just let lot lots many few several may
me might mine more must my no nor not now of off on once one
only or other our out over own per please same shall she should so some such than that the their
them then there these they this those through to too under until up upon us very via was we were
what when where whether which while who whom whose why will with within without would yes yet you
your
""")
)
VAGUE = frozenset(
    listed("""
actually allow answer available behave call case come concern contain describe detail do document
documentation exactly explain find following general get give go handle happen help include info
information input instead involve keep kind know make mean mention name need nothing occur part
passage possible present provide question quote read refer result say section see set show something anything
specify state support take tell text thing try use want way work write put represent useful differ
perform treat hold become becomes becoming always usually typically often
""")
)
"""Words that frame a question more often than they carry it."""
CATEGORY = frozenset(
    listed("""
argument attribute class command constant field flag function input item key keyword member method
module object option package parameter property setting string tool value variable
""")
)
"""What a thing is called in general: the answer names the thing and may leave the category out."""

_IRREGULAR = {
    irregular: verb
    for verb, forms in (
        pair.split(":")
        for pair in listed("""
begin:began,begun break:broke,broken bring:brought build:built choose:chose,chosen do:did,done
drop:dropped find:found forget:forgot,forgotten give:gave,given go:gone,went hide:hid,hidden
hold:held keep:kept know:knew,known leave:left lie:lay,lain lose:lost make:made mean:meant meet:met
pay:paid run:ran say:said see:saw,seen sell:sold send:sent show:shown speak:spoke,spoken spend:spent
take:took,taken tell:told think:thought throw:threw,thrown understand:understood use:used,using,uses
wake:woke,woken write:wrote,written index:indices,indexes vertex:vertices child:children
person:people id:ids
""")
    )
    for irregular in forms.split(",")
}
_SUFFIXES = listed("""
ization isation ational ations ation iveness fulness ousness ively ments ment ness able ible ably
ibly ally izers isers izer iser ize ise ance ence ity ous ful ive ions ion ers er ors or al ly
""")


def lower(word: str) -> str:
    return word.lower().replace("’", "'").removesuffix("'s")


@functools.lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """What `copies`, `copied` and `copying` share. `word` is lower case; identifiers stay as they are."""
    if word in _IRREGULAR:
        word = _IRREGULAR[word]
    if len(word) < 4 or not word.isalpha():
        return word
    if word.endswith("ies") and len(word) > 4:
        word = word[:-3] + "y"
    elif word.endswith(("sses", "shes", "ches", "xes")):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending in ("ing", "ied", "ed"):
        root = word[: -len(ending)]
        if word.endswith(ending) and len(root) > 2 and any(vowel in root for vowel in "aeiouy"):
            word = root + "y" if ending == "ied" else root
            if word[-1] == word[-2] and word[-1] not in "lsz":
                word = word[:-1]
            break
    for _ in range(2):
        for suffix in _SUFFIXES:
            if word.endswith(suffix) and len(word) - len(suffix) > (4 if suffix in ("ize", "ise") else 3):
                word = word[: -len(suffix)]
                break
    if word.endswith("e") and len(word) > 3:
        word = word[:-1]
    return word[:-1] + "i" if word.endswith("y") and len(word) > 3 else word


STOP_STEMS = frozenset(stem(word) for word in STOP)
VAGUE_STEMS = frozenset(stem(word) for word in VAGUE)
CODE_STEMS = frozenset(stem(word) for word in listed("run execute start launch invoke command example code"))
"""What a line of code is an answer to."""
CATEGORY_STEMS = frozenset(stem(word) for word in CATEGORY)


@functools.lru_cache(maxsize=65536)
def parts(token: str) -> tuple[str, ...]:
    """The lower-case words inside an identifier or a dotted or hyphenated name; () for a plain word."""
    found = tuple(match.lower() for match in _PART.findall(token))
    return found if len(found) > 1 else ()


@functools.lru_cache(maxsize=65536)
def key(token: str) -> str:
    """The stem a word is matched by. One written like a name keeps its s: HTTPS is not HTTP."""
    word = lower(token)
    return word if token[0].isupper() and word.endswith("s") else stem(word)


@functools.lru_cache(maxsize=65536)
def _keys(token: str) -> tuple[frozenset[str], frozenset[str]]:
    word = lower(token)
    if word.isalpha() and not parts(token):
        return frozenset((stem(word), key(token))), frozenset()
    pieces = (*re.split(r"[.'’-]", word), *parts(token), word.replace("-", ""))
    return frozenset((stem(word),)), frozenset(stem(piece) for piece in pieces if len(piece) > 1)


def tokens(text: str) -> Iterator[str]:
    return (match[0] for match in TOKEN.finditer(text))


def stems(text: str) -> tuple[frozenset[str], frozenset[str]]:
    """What `text` can be found by: the stems of its words, and those that occur only inside its names."""
    found: set[str] = set()
    inner: set[str] = set()
    for token in TOKEN.findall(_IDIOM.sub(" ", text)):
        plain, within = _keys(token)
        found |= plain
        inner |= within
    return frozenset(found), frozenset(inner - found)


def every(text: str) -> frozenset[str]:
    """All stems of `text`, those inside its names too."""
    own, inner = stems(text)
    return own | inner
