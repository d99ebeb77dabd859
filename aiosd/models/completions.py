"""OpenAI's chat completions as JSON, with the liberties that llama.cpp, vLLM and hosted services take. Pure.

Wire: https://platform.openai.com/docs/api-reference/chat-streaming.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import msgspec

from aiosd.models.backend import BackendFailed, Message, ModelRequest
from aiosd.models.endpoint import call_id, tools_of
from aiosd.records import StopReason, ToolUse

OWN_HOSTS = ("openai.com", "openai.azure.com")
"""They take the limit as `max_completion_tokens` only, for their newer models; many other servers know only
`max_tokens`."""

STOP: dict[str, StopReason] = {"length": "max_tokens", "content_filter": "refusal"}


class Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class CallPiece(msgspec.Struct):
    index: int | None = None
    function: Function | None = None


class Piece(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    """Not OpenAI's: llama.cpp's and DeepSeek's."""
    reasoning: str | None = None
    """Not OpenAI's: vLLM's and OpenRouter's."""
    tool_calls: list[CallPiece] | None = None


class Choice(msgspec.Struct):
    delta: Piece | None = None
    finish_reason: str | None = None


class Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Timings(msgspec.Struct):
    """Not OpenAI's: llama.cpp's, in the last event."""

    prompt_ms: float | None = None
    predicted_ms: float | None = None


class Chunk(msgspec.Struct):
    """An event of the stream."""

    choices: list[Choice] | None | msgspec.UnsetType = msgspec.UNSET
    usage: Usage | None = None
    timings: Timings | None = None
    error: Any = None
    """Under status 200: `{"message"}`, or the message."""


chunk = msgspec.json.Decoder(Chunk)


class Vector(msgspec.Struct):
    index: int
    embedding: tuple[float, ...]


class Vectors(msgspec.Struct):
    data: list[Vector]


class InputTokens(msgspec.Struct):
    input_tokens: int


class Meta(msgspec.Struct):
    n_ctx: int | None = None


class Card(msgspec.Struct):
    """A model as /models lists it; what follows the id is not OpenAI's."""

    id: str
    owned_by: str | None = None
    meta: Meta | None = None
    """llama.cpp's."""
    max_model_len: int | None = None
    """vLLM's."""


class Cards(msgspec.Struct):
    data: list[Card]


def seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


class Calls:
    """Tool calls, joined from their pieces by index."""

    def __init__(self, model: str, max_tokens: int) -> None:
        self._model = model
        self._max_tokens = max_tokens
        self._pieces: dict[int, list[Function]] = {}

    def add(self, piece: CallPiece) -> None:
        # Gemini's server leaves the index out, and sends each call whole.
        index = len(self._pieces) if piece.index is None else piece.index
        self._pieces.setdefault(index, []).append(piece.function or Function())

    def whole(self, *, cut_off: bool) -> Iterator[ToolUse]:
        """Raises BackendFailed for arguments that are no JSON object."""
        for _, pieces in sorted(self._pieces.items()):
            name = next((piece.name for piece in pieces if piece.name), "")
            text = "".join(piece.arguments or "" for piece in pieces)
            try:
                # Some servers send nothing for a tool without parameters.
                arguments = msgspec.json.decode(text or "{}", type=dict[str, Any])
            except msgspec.DecodeError:
                if cut_off:
                    raise BackendFailed(
                        f"`{self._model}` was cut off in its call of `{name}` by max_tokens = {self._max_tokens}",
                        fault="request",
                    ) from None
                raise BackendFailed(
                    f"`{self._model}` called `{name}` with arguments that are no JSON object"
                ) from None
            yield ToolUse(call_id=call_id(), name=name, arguments=arguments)


def is_own(url: str) -> bool:
    return (urlsplit(url).hostname or "").endswith(OWN_HOSTS)


def body_of(model: str, url: str, request: ModelRequest) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": model,
        "messages": [_message(m) for m in request.messages],
        "max_completion_tokens" if is_own(url) else "max_tokens": request.max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if request.tools:
        body["tools"] = tools_of(request)
    if request.schema is not None:
        # Not `strict`: it takes only schemas of one form, and the pool checks the answer anyway.
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": request.schema},
        }
    return body


def _message(message: Message) -> dict[str, Any]:
    wire: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        wire["content"] = message.content or None
        wire["tool_calls"] = [
            {
                "id": c.call_id,
                "type": "function",
                "function": {"name": c.name, "arguments": msgspec.json.encode(c.arguments).decode()},
            }
            for c in message.tool_calls
        ]
    if message.role == "tool":
        wire["tool_call_id"] = message.call_id
    return wire
