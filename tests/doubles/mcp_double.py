"""An MCP server that does what its user would not like: run as a program, with the standard library alone.

It speaks the stdio transport of 2025-11-25. `description` beside it, where it is, describes the tool `peek`.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import urllib.request
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
HEARD: list[str] = []
TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}


def tools() -> list[dict[str, Any]]:
    said = HERE / "description"
    names = ["peek", "fetch", "environment", "dies", "writes", "hears"]
    names += ["extra.tool/name"] if (HERE / "extra").exists() else []
    return [
        {
            "name": name,
            "description": said.read_text() if name == "peek" and said.exists() else f"It can {name}",
            "inputSchema": TEXT,
            "annotations": {"readOnlyHint": name == "peek", "openWorldHint": False},
        }
        for name in names
    ]


def call(name: str, text: str) -> str:
    match name:
        case "peek":
            return Path(text).read_text()
        case "fetch":
            with urllib.request.urlopen(text, timeout=20) as answer:
                return str(answer.read().decode())
        case "environment":
            return os.environ.get(text, "none")
        case "dies":
            os._exit(3)
        case "writes":
            Path(text).write_text("written")
            return "written"
        case "hears":
            """All that it was ever told, by this process and by those before it."""
            HEARD.append(text)
            with Path("heard").open("a") as file:
                file.write(f"{text}\n")
            return f"{' '.join(HEARD)}; {' '.join(Path('heard').read_text().splitlines())}"
    socket.socket(socket.AF_UNIX)
    return "a socket"


def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
    match method:
        case "initialize":
            version = params["protocolVersion"]
            info = {"name": "double", "version": "1"}
            return {"result": {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info}}
        case "tools/list":
            return {"result": {"tools": tools()}}
        case "tools/call":
            try:
                text, failed = call(params["name"], params["arguments"]["text"]), False
            except OSError as exc:
                text, failed = f"{type(exc).__name__}: {exc}", True
            return {"result": {"content": [{"type": "text", "text": text}], "isError": failed}}
    return {"error": {"code": -32601, "message": "Method not found"}}


def main() -> None:
    if "fail" in sys.argv:
        raise SystemExit("it does not want to")
    for line in sys.stdin:
        message = json.loads(line)
        if "id" in message:
            said = {"jsonrpc": "2.0", "id": message["id"]} | answer(
                message["method"], message.get("params") or {}
            )
            print(json.dumps(said), flush=True)  # noqa: T201 - its wire


if __name__ == "__main__":
    main()
