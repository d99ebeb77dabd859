"""Tools of the conformance suite that need answers of the client before they can answer themselves (2026-07-28, SEP-2322)."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Any

import mcp_types as t
from mcp import MCPError

KEY = secrets.token_bytes(32)
CAPABILITIES = "io.modelcontextprotocol/clientCapabilities"
NEEDS = {"elicitation/create": "elicitation", "sampling/createMessage": "sampling", "roots/list": "roots"}

Requests = dict[str, t.InputRequest]


def ask(message: str, field: str, kind: str = "string") -> t.ElicitRequest:
    schema = {"type": "object", "properties": {field: {"type": kind}}, "required": [field]}
    return t.ElicitRequest(params=t.ElicitRequestFormParams(message=message, requested_schema=schema))


def sample(text: str, most: int) -> t.CreateMessageRequest:
    message = t.SamplingMessage(role="user", content=t.TextContent(text=text))
    return t.CreateMessageRequest(params=t.CreateMessageRequestParams(messages=[message], max_tokens=most))


NAME = ask("What is your name?", "name")
ROOTS = t.ListRootsRequest()
ROUNDS: dict[str, list[Requests]] = {
    "elicitation": [{"user_name": NAME}],
    "sampling": [{"capital_question": sample("What is the capital of France?", 100)}],
    "list_roots": [{"client_roots": ROOTS}],
    "request_state": [{"confirm": ask("Please confirm", "ok", "boolean")}],
    "multiple_inputs": [
        {"user_name": NAME, "greeting": sample("Generate a greeting", 50), "client_roots": ROOTS}
    ],
    "multi_round": [
        {"step1": ask("Step 1: What is your name?", "name")},
        {"step2": ask("Step 2: What is your favorite color?", "color")},
    ],
    "tampered_state": [{"confirm": ask("Please confirm", "ok", "boolean")}],
    "capabilities": [{"user_name": NAME, "greeting": sample("Generate a greeting", 50)}],
}
"""What each asks for, round by round."""

TOOLS = {f"test_input_required_result_{name}": rounds for name, rounds in ROUNDS.items()}
TOOLS["test_streaming_elicitation"] = ROUNDS["elicitation"]
PROMPT = "test_input_required_result_prompt"
CONTEXT: list[Requests] = [{"user_context": ask("What context should the prompt use?", "context")}]


def missing(
    rounds: list[Requests], params: t.CallToolRequestParams | t.GetPromptRequestParams
) -> t.InputRequiredResult | None:
    """What is still to be asked; None where all is there. The state is the round that comes next, signed."""
    at = _opened(params.request_state)
    given = params.input_responses or {}
    if at and not rounds[at - 1].keys() <= given.keys():
        at -= 1
    if at >= len(rounds):
        return None
    if not at and params.request_state is None and rounds[0].keys() <= given.keys():
        return None
    able = declared(params.meta)
    wanted = {key: each for key, each in rounds[at].items() if able is None or NEEDS[each.method] in able}
    return t.InputRequiredResult(input_requests=wanted or rounds[at], request_state=_sealed(at + 1))


def declared(meta: Any) -> dict[str, Any] | None:
    """What the client of this request can do; None where it does not say."""
    found = (meta or {}).get(CAPABILITIES)
    return found if isinstance(found, dict) else None


def need_sampling(meta: Any) -> None:
    """Raises MCPError where the client cannot."""
    if "sampling" not in (declared(meta) or {}):
        needed: dict[str, Any] = {"requiredCapabilities": {"sampling": {}}}
        raise MCPError(t.MISSING_REQUIRED_CLIENT_CAPABILITY, "it needs the client's sampling", needed)


def _sealed(at: int) -> str:
    return f"{at}.{hmac.new(KEY, str(at).encode(), hashlib.sha256).hexdigest()}"


def _opened(state: str | None) -> int:
    if state is None:
        return 0
    at, _, _ = state.partition(".")
    if not at.isdigit() or not hmac.compare_digest(state, _sealed(int(at))):
        raise MCPError(t.INVALID_PARAMS, "the request's state is not what this server gave")
    return int(at)


def answered(params: Any) -> str:
    return f"state-ok, {params.name}: {sorted(params.input_responses or {})}"
