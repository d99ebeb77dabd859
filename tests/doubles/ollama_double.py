"""A double of an Ollama server: /api/chat, /api/show, /api/tags, /api/ps, /api/embed, /api/pull, with the wire as v0.33 has it."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from tests.doubles.http_double import HttpDouble, Script, Seen

NOW = "2026-01-01T00:00:00Z"


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A model that it holds."""

    capabilities: tuple[str, ...] = ("completion", "tools")
    size: str = "8.0B"
    remote_host: str | None = None
    context_length: int | None = None
    """As its file says."""


class OllamaDouble(HttpDouble):
    """It holds `small` unless told otherwise."""

    def __init__(self, script: Script | None = None, *, models: dict[str, Held] | None = None) -> None:
        super().__init__(script)
        self.models = models if models is not None else {"small": Held()}
        self.tags_say_capabilities = True
        self.loaded: set[str] | None = None
        """The models in its memory, with their tags; None is all of them."""

    def other(self, seen: Seen) -> tuple[int, Any]:
        if seen.path == "/api/tags":
            return 200, {"models": [self._tag(name, held) for name, held in self.models.items()]}
        if seen.path == "/api/show":
            held = self.models.get(seen.body["model"])
            if held is None:
                return 404, {"error": f"model '{seen.body['model']}' not found"}
            show: dict[str, Any] = {
                "capabilities": held.capabilities,
                "model_info": {"general.architecture": "llama", "llama.vocab_size": 32000}
                | ({"llama.context_length": held.context_length} if held.context_length else {}),
                "license": "x" * 1000,
            }
            return 200, show | ({"remote_host": held.remote_host} if held.remote_host else {})
        if seen.path == "/api/ps":
            every = {name if ":" in name else f"{name}:latest" for name in self.models}
            loaded = every if self.loaded is None else self.loaded
            return 200, {"models": [{"name": name, "size": 1000} for name in sorted(loaded)]}
        if seen.path == "/api/embed":
            held = self.models.get(seen.body["model"], Held(capabilities=()))
            if "embedding" not in held.capabilities:
                return 501, {"error": "this model does not support embeddings"}
            return 200, {"embeddings": [[float(len(text)), 1.0] for text in seen.body["input"]]}
        return 404, {"error": "404 page not found"}

    def refuses(self, seen: Seen, script: Script) -> tuple[int, Any]:
        if seen.path == "/api/pull":
            return script.status, {"error": script.error}
        model = seen.body["model"]
        held = self.models.get(model)
        if held is None:
            return 404, {"error": f"model '{model}' not found"}
        if seen.body.get("tools") and "tools" not in held.capabilities:
            return 400, {"error": f"registry.ollama.ai/library/{model}:latest does not support tools"}
        return script.status, {"error": script.error}

    def pieces(self, seen: Seen, script: Script) -> list[bytes]:
        if seen.path == "/api/pull":
            return self._pulled(seen.body["model"], script)
        model = seen.body["model"]

        def line(message: dict[str, Any], **rest: Any) -> bytes:
            head = {
                "model": model,
                "created_at": NOW,
                "message": {"role": "assistant", "content": ""} | message,
            }
            return json.dumps(head | {"done": False} | rest).encode() + b"\n"

        lines = [line({"thinking": script.thinking})] if script.thinking else []
        if script.fault is not None:
            broken = {
                "error_line": b'{"error":"llama runner process has terminated"}\n',
                "garbage": b"<html>\n",
                "not_an_object": b"[1]\n",
            }
            bad = broken.get(script.fault)
            return [*lines, line({"content": script.text[0]}), *([bad] if bad else [])]
        lines += [line({"content": text}) for text in script.text]
        lines += [
            line(
                {"tool_calls": [{"function": {"index": i, "name": name, "arguments": json.loads(arguments)}}]}
            )
            for i, (name, arguments) in enumerate(script.calls)
        ]
        reason = "length" if script.length else "stop"
        took = {"load_duration": 250_000_000, "prompt_eval_duration": 500_000_000, "eval_duration": 10**9}
        lines.append(
            line({}, done=True, done_reason=reason, prompt_eval_count=script.read, eval_count=7, **took)
        )
        return lines

    def _pulled(self, model: str, script: Script) -> list[bytes]:
        steps: list[dict[str, Any]] = [{"status": "pulling manifest"}]
        if script.error != "no":
            steps.append({"error": script.error})
        elif script.fault is None:
            layer = {"status": "pulling aa", "digest": "sha256:aa", "total": 2_000_000}
            steps += [layer, layer | {"completed": 1_000_000}, layer | {"completed": 2_000_000}]
            steps += [{"status": "verifying sha256 digest"}, {"status": "success"}]
            self.models[model] = Held()
        return [json.dumps(step).encode() + b"\n" for step in steps]

    def _tag(self, name: str, held: Held) -> dict[str, Any]:
        tag: dict[str, Any] = {"name": name, "model": name, "size": 1000, "digest": f"sha256:{name}"}
        tag["details"] = {"parameter_size": held.size, "family": "llama"}
        if self.tags_say_capabilities:
            tag["capabilities"] = held.capabilities
        return tag | ({"remote_host": held.remote_host} if held.remote_host else {})
