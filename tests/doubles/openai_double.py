"""A double of a server that speaks OpenAI's chat completions, streamed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.doubles.http_double import HttpDouble, Script, Seen


class OpenAIDouble(HttpDouble):
    """`key` is the one it lets in; None lets in everyone. `url` + `/v1` is its base."""

    def __init__(self, script: Script | None = None, *, key: str | None = None) -> None:
        super().__init__(script)
        self.key = key
        self.embeds = True
        self.meaning: Callable[[str], list[float]] = lambda text: [float(len(text)), 1.0]
        self.timings: dict[str, float] | None = None
        """As llama.cpp sends them, with the usage."""
        self.card: dict[str, Any] = {}
        """What it says of its model, besides the name."""
        self.usage: dict[str, int] | None = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}

    @property
    def base(self) -> str:
        return f"{self.url}/v1"

    def other(self, seen: Seen) -> tuple[int, Any]:
        if seen.path == "/v1/embeddings" and (refused := self._locked(seen)) is None:
            if not self.embeds:
                return 501, {"error": {"message": "This server does not support embeddings."}}
            texts = seen.body["input"]
            data = [{"index": i, "embedding": self.meaning(text)} for i, text in enumerate(texts)]
            return 200, {"object": "list", "data": data[::-1]}
        if seen.path != "/v1/models":
            return 404, {"error": {"message": "no such page"}}
        if (refused := self._locked(seen)) is not None:
            return refused
        return 200, {"object": "list", "data": [{"id": "m", "object": "model"} | self.card]}

    def refuses(self, seen: Seen, script: Script) -> tuple[int, Any]:
        if (refused := self._locked(seen)) is not None:
            return refused
        return script.status, {"error": {"message": script.error, "type": "x", "code": None}}

    def pieces(self, seen: Seen, script: Script) -> list[bytes]:
        base = {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": seen.body["model"],
        }

        def event(value: Any) -> bytes:
            return b"data: " + json.dumps(value).encode() + b"\n\n"

        def delta(value: dict[str, Any], finish: str | None = None) -> bytes:
            return event(base | {"choices": [{"index": 0, "delta": value, "finish_reason": finish}]})

        events = [delta({"role": "assistant", "content": ""})]
        if script.thinking:
            events.append(delta({"reasoning_content": script.thinking}))
        if script.fault is not None:
            broken = {
                "error_line": event({"error": {"message": "the engine died"}}),
                "garbage": b"data: <html>\n\n",
                "not_an_object": event([1]),
            }
            bad = broken.get(script.fault)
            return [*events, delta({"content": script.text[0]}), *([bad] if bad else [])]
        events += [delta({"content": text}) for text in script.text]
        for i, (name, arguments) in enumerate(script.calls):
            head = {
                "index": i,
                "id": "call_0",
                "type": "function",
                "function": {"name": name, "arguments": ""},
            }
            events.append(delta({"tool_calls": [head]}))
            for at in range(0, len(arguments), 5):
                piece = {"index": i, "function": {"arguments": arguments[at : at + 5]}}
                events.append(delta({"tool_calls": [piece]}))
        events.append(delta({}, "length" if script.length else "tool_calls" if script.calls else "stop"))
        if self.usage is not None and seen.body.get("stream_options", {}).get("include_usage"):
            timings = {"timings": self.timings} if self.timings else {}
            events.append(event(base | {"choices": [], "usage": self.usage} | timings))
        return [*events, b"data: [DONE]\n\n"]

    def _locked(self, seen: Seen) -> tuple[int, Any] | None:
        sent = seen.headers.get("authorization", "").removeprefix("Bearer ")
        if self.key is None or sent == self.key:
            return None
        return 401, {
            "error": {"message": f"Incorrect API key provided: {sent}", "type": "invalid_request_error"}
        }
