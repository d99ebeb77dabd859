"""What a model's window holds of a prompt: how many tokens that is, what is left out where it is too long, and whether
the server read all of it. Pure.

Where the server has no tokenizer to ask, tokens are estimated from bytes of UTF-8: of what tokenizers are fed their
number varies least across scripts. The ratio is corrected by the prompt tokens that the model reports. An estimate can
be wrong, so a prompt is refused only where it is too large by any guess; in between, what was reported says afterwards
whether it was cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from aiosd.models.backend import Message, ModelRequest, Spare, ToolSpec

BYTES_PER_TOKEN = 4.0
"""Of English and of code, before anything was reported."""
MARGIN = 1.5
"""How far an estimate may be off, either way."""
LEARNT_FROM = 400
"""Bytes of a prompt: in a shorter one the model's own template weighs too much."""
LEAST, MOST = 1.0, 7.0
"""Bytes a token that are believed. More is a server that leaves out what it had cached."""
WEIGHT = 0.3
"""Of the newest report."""
PER_MESSAGE = 16
"""Bytes that a template puts around a message, about."""
ANSWER = 4
"""The most that is kept free for an answer: this part of the window. The rest is for the prompt."""
LEAST_PIECE = 400
"""Bytes of a shortened text: less would say nothing."""


class Fitted(msgspec.Struct, frozen=True, kw_only=True):
    """A request as a window holds it."""

    request: ModelRequest
    size: int
    """Bytes, as of size_bytes."""
    dropped: tuple[str, ...] = ()
    """What was left out, in words: `3 turns`."""

    @property
    def memories(self) -> tuple[str, ...]:
        """Ids of those that are in it."""
        return tuple(ref for m in self.request.messages if isinstance(m, Spare) for ref in m.refs)


class Window:
    """One model's window, with what is known of its tokenizer."""

    def __init__(self, tokens: int | None) -> None:
        self.tokens = tokens
        """Prompt and answer together; None where nobody says."""
        self.ratio = BYTES_PER_TOKEN

    def room(self, max_tokens: int) -> int | None:
        """Tokens of a prompt that leave room for its answer."""
        return None if self.tokens is None else room(self.tokens, max_tokens)

    def fit(self, request: ModelRequest) -> Fitted:
        """By the estimate."""
        room = self.room(request.max_tokens)
        if room is None:
            return Fitted(request=request, size=size_bytes(request))
        return fit(request, int(room * self.ratio))

    def said(self, dropped: Sequence[str]) -> str | None:
        """What was left out, as one sentence."""
        if not dropped:
            return None
        return f"left out, to fit the window of {self.tokens:,} tokens: {', '.join(dropped)}"

    def refusal(self, size: int) -> str | None:
        """Why a prompt of this size is not sent: the counts, and what to do."""
        if self.tokens is None or tokens(size, self.ratio) <= self.tokens * MARGIN:
            return None
        return too_long(self.tokens, f"about {tokens(size, self.ratio):,} ({size:,} bytes)")

    def read(self, size: int, reported: int) -> str | None:
        """Learns from the tokens that a server reports of a prompt. Where it dropped a part of it without a word,
        the sentence that says so: a full window leaves no room for an answer, and far fewer tokens than were sent are
        fewer texts."""
        if not reported:  # it does not say
            return None
        expected = tokens(size, self.ratio)
        if self.tokens is not None and (
            reported >= self.tokens or (expected > self.tokens and reported * MARGIN < expected)
        ):
            return (
                f"the prompt was cut: about {expected:,} tokens were sent and {reported:,} read, of a window of"
                f" {self.tokens:,}"
            )
        self.ratio = learnt(self.ratio, size, reported)
        return None


def room(window: int, max_tokens: int) -> int:
    return window - min(max_tokens, window // ANSWER)


def size_bytes(request: ModelRequest) -> int:
    """What a request's prompt is made of."""
    return sum(map(_size, request.messages)) + _size_of_tools(request.tools)


def tokens(size: int, ratio: float) -> int:
    return round(size / ratio)


def too_long(window: int, size: str) -> str:
    return f"holds {window:,} tokens, and this is {size}: give less, or set a larger `context` for it in config.toml"


def learnt(ratio: float, size: int, reported: int) -> float:
    """The bytes a token after one more report of a prompt that was not cut."""
    if size < LEARNT_FROM or not reported or not LEAST <= size / reported <= MOST:
        return ratio
    return ratio + WEIGHT * (size / reported - ratio)


def fit(request: ModelRequest, most: int) -> Fitted:
    """The request in at most so many bytes, as far as what may be left out allows that. First to go are

    1. the session's turns, the oldest first, an answer together with what it answers;
    2. what was recalled, the worst match first;
    3. the middles of what this task's tools gave, the oldest first;
    4. tools that the task has not called, the largest first: it takes the fewest;
    5. the middles of the inputs, all down to one length.

    The task, the instructions before it and the calls that were made always stay.
    """
    size = size_bytes(request)
    if size <= most:
        return Fitted(request=request, size=size)
    fitting = _Fitting(request, size - most)
    fitting.turns()
    fitting.memories()
    fitting.results()
    fitting.tools()
    fitting.inputs()
    fitted = msgspec.structs.replace(
        request, messages=tuple(m for m in fitting.messages if m is not None), tools=tuple(fitting.specs)
    )
    return Fitted(request=fitted, size=size_bytes(fitted), dropped=tuple(fitting.dropped))


class _Fitting:
    """A request that loses what it can spare until `over` bytes are gone."""

    def __init__(self, request: ModelRequest, over: int) -> None:
        self.messages: list[Message | None] = list(request.messages)
        self.specs = list(request.tools)
        self.over = over
        self.dropped: list[str] = []

    def turns(self) -> None:
        gone = 0
        for i, turn in self._spare("turn"):
            if self.over <= 0 and not (gone and turn.role == "assistant"):
                break
            self.over -= _size(turn)
            self.messages[i] = None
            gone += 1
        self._say(gone, "turn")

    def memories(self) -> None:
        for i, message in self._spare("memory"):
            kept = list(message.pieces)
            while kept and self.over > 0:
                self.over -= len(kept.pop().encode()) + 1
            if len(kept) < len(message.pieces):
                self.messages[i] = message.with_pieces(kept)
                self._say(len(message.pieces) - len(kept), "memory", "memories")

    def results(self) -> None:
        lost = 0
        for i, message in self._spare("result"):
            least = min(len(message.content.encode()), LEAST_PIECE)
            lost += self._shorten(i, message, [max(least, len(message.content.encode()) - self.over)])
        self._say(lost, "byte of tool results", "bytes of tool results")

    def tools(self) -> None:
        called = {call.name for m in self.messages if m is not None for call in m.tool_calls}
        spare = sorted((s for s in self.specs if s.name not in called), key=_size_of_tool)
        gone = set()
        while spare and self.over > 0:
            tool = spare.pop()
            gone.add(tool.name)
            self.over -= _size_of_tool(tool)
        self.specs = [s for s in self.specs if s.name not in gone]
        self._say(len(gone), "tool")

    def inputs(self) -> None:
        lost = 0
        for i, message in self._spare("input"):
            lengths = [len(piece.encode()) for piece in message.pieces]
            cap = max(LEAST_PIECE, _level(lengths, sum(lengths) - self.over))
            lost += self._shorten(i, message, [min(length, cap) for length in lengths])
        self._say(lost, "byte of the input", "bytes of the input")

    def _shorten(self, i: int, message: Spare, lengths: Sequence[int]) -> int:
        """The bytes that it has lost."""
        if self.over <= 0:
            return 0
        pieces = message.pieces or (message.content,)
        shorter = message.with_pieces(
            [_without_middle(piece, most) for piece, most in zip(pieces, lengths, strict=True)]
        )
        lost = _size(message) - _size(shorter)
        self.messages[i] = shorter
        self.over -= lost
        return lost

    def _spare(self, kind: str) -> Iterable[tuple[int, Spare]]:
        return [(i, m) for i, m in enumerate(self.messages) if isinstance(m, Spare) and m.kind == kind]

    def _say(self, n: int, one: str, many: str | None = None) -> None:
        if n:
            self.dropped.append(f"{n:,} {one if n == 1 else many or one + 's'}")


def _level(lengths: Sequence[int], most: int) -> int:
    """The length that all are cut to, so that together they have `most`."""
    left, rest = most, len(lengths)
    for length in sorted(lengths):
        if length * rest > left:
            break
        left, rest = left - length, rest - 1
    return max(0, left // rest) if rest else max(lengths, default=0)


def _without_middle(text: str, most: int) -> str:
    """Its beginning and its end in at most so many bytes, and between them how much is missing: of a log the end
    says most, of a document the beginning."""
    raw = text.encode()
    if len(raw) <= most:
        return text
    mark = f"\n[... {len(raw) - most:,} bytes left out ...]\n"
    half = max(0, most - len(mark)) // 2
    return raw[:half].decode(errors="ignore") + mark + raw[len(raw) - half :].decode(errors="ignore")


def _size(message: Message) -> int:
    calls = len(msgspec.json.encode(message.tool_calls)) if message.tool_calls else 0
    return PER_MESSAGE + len(message.content.encode()) + calls


def _size_of_tools(tools: Sequence[ToolSpec]) -> int:
    return len(msgspec.json.encode(tools)) if tools else 0


def _size_of_tool(tool: ToolSpec) -> int:
    return len(msgspec.json.encode(tool)) + 1
