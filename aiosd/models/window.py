"""Whether a prompt fits a model's window, where the model's tokenizer is not here to count. Pure.

Tokens are estimated from bytes of UTF-8: of what tokenizers are fed their number varies least across scripts. The
ratio is corrected by the prompt tokens that the model reports. An estimate can be wrong, so a prompt is refused only
where it is too large by any guess; in between, what was reported says afterwards whether it was cut.
"""

from __future__ import annotations

import msgspec

from aiosd.models.backend import ModelRequest

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


def size_bytes(request: ModelRequest) -> int:
    """What a request's prompt is made of."""
    size = sum(
        PER_MESSAGE
        + len(m.content.encode())
        + (len(msgspec.json.encode(m.tool_calls)) if m.tool_calls else 0)
        for m in request.messages
    )
    return size + (len(msgspec.json.encode(request.tools)) if request.tools else 0)


def tokens(size: int, ratio: float) -> int:
    return round(size / ratio)


def refusal(size: int, ratio: float, window: int) -> str | None:
    """Why a prompt of this size is not sent: the counts, and what to do."""
    if tokens(size, ratio) <= window * MARGIN:
        return None
    return (
        f"holds {window:,} tokens, and this is about {tokens(size, ratio):,} ({size:,} bytes): give less, or set a"
        " larger `context` for it in config.toml"
    )


def cut(size: int, ratio: float, window: int, reported: int) -> str | None:
    """Whether the server dropped a part of the prompt without a word: a full window leaves no room for an answer,
    and far fewer tokens than were sent are fewer texts."""
    expected = tokens(size, ratio)
    if reported >= window or (expected > window and reported * MARGIN < expected):
        return f"the prompt was cut: about {expected:,} tokens were sent and {reported:,} read, of a window of {window:,}"
    return None


def learnt(ratio: float, size: int, reported: int) -> float:
    """The bytes a token after one more report of a prompt that was not cut."""
    if size < LEARNT_FROM or not reported or not LEAST <= size / reported <= MOST:
        return ratio
    return ratio + WEIGHT * (size / reported - ratio)
