"""The MCP door: `aiosctl mcp serve` driven by the SDK's client, and the official conformance suite over loopback HTTP."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from mcp import Client, MCPError, StdioServerParameters

from aiosd import records as r
from aiosd.protocol.memory import MemoryRemember
from aiosd.protocol.tools import ToolCall
from tests.daemon import Daemon

CONFORMANCE = "@modelcontextprotocol/conformance@0.2.0-alpha.12"
REQUIRED = {"2025-11-25": 30, "2026-07-28": 37}
"""Server scenarios that a revision requires. Not required and not there: the extension `tasks`, custom headers."""

TOOLS = """
from aiosd.tools import tool

@tool(permissions=["*"], hosts=["api.example.test"])
def send(text: str) -> str:
    return "sent"
"""


@asynccontextmanager
async def served(daemon: Daemon, *args: str) -> AsyncIterator[Client]:
    argv = ["-m", "aiosctl", "mcp", "serve", *args]
    parameters = StdioServerParameters(command=sys.executable, args=argv, env=dict(daemon.environ))
    async with Client(parameters, read_timeout_seconds=60) as client:
        yield client


def remember(daemon: Daemon, session: r.Session, content: str) -> str:
    return str(daemon.call(MemoryRemember(session_id=session.session_id, content=content)).memory_id)


@pytest.mark.anyio
async def test_a_session_is_offered_to_any_mcp_client(tmp_path: Path) -> None:
    with Daemon(tmp_path / "home") as daemon:
        tools = daemon.home / "tools"
        tools.mkdir()
        (tools / "send.py").write_text(TOOLS)
        session = daemon.session(permissions=["memory"], title="work")
        known = remember(daemon, session, "The deploy host is falcon-7")
        private = remember(daemon, daemon.session(privacy="local"), "The door code is 1234")
        strange = remember(daemon, daemon.session(user_id="somebody else"), "Not yours")
        async with served(daemon, "-s", "work") as client:
            offered = {tool.name: tool for tool in (await client.list_tools()).tools}
            assert {"calculator", "recall", "remember"} <= set(offered)
            assert "read_file" not in offered  # the session has no permission for it
            assert offered["calculator"].annotations and offered["calculator"].annotations.read_only_hint
            answer = await client.call_tool("calculator", {"expression": "6 * 7"})
            assert [getattr(block, "text", "") for block in answer.content] == ["42"]
            wrong = await client.call_tool("calculator", {"expresion": "6 * 7"})
            assert wrong.is_error and "expresion" in str(wrong.content)
            with pytest.raises(MCPError, match="there is no tool `nothing`"):
                await client.call_tool("nothing", {})
            refused = await client.call_tool("send", {"text": "a"})
            assert refused.is_error and "needs its user's approval" in str(refused.content)
            listed = (await client.list_resources()).resources
            assert [str(each.uri) for each in listed] == [f"memory:///{known}"]
            (read,) = (await client.read_resource(f"memory:///{known}")).contents
            assert "falcon-7" in getattr(read, "text", "")
            for hidden in (private, strange, str(uuid4()), "../x"):
                with pytest.raises(MCPError, match="there is no resource"):
                    await client.read_resource(f"memory:///{hidden}")


def test_the_owner_may_call_in_the_name_of_a_model_and_is_held_to_its_rules(tmp_path: Path) -> None:
    with Daemon(tmp_path / "home") as daemon:
        session = daemon.session(permissions=["read"])
        call = ToolCall(session_id=session.session_id, name="clock", by="model")
        assert not daemon.call(call).is_error


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("revision", sorted(REQUIRED))
def test_the_door_does_what_the_official_suite_requires(tmp_path: Path, revision: str) -> None:
    """npm brings the suite, and the Node 22 that it wants."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    install = [npm, "install", "--prefix", str(tmp_path), "--no-audit", "--no-fund", CONFORMANCE, "node@22"]
    done = subprocess.run(install, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        pytest.skip(f"npm fetches nothing here: {done.stderr[-300:]}")
    modules = tmp_path / "node_modules"
    path = f"{modules / 'node' / 'bin'}:{os.environ['PATH']}"
    with subprocess.Popen(
        [sys.executable, "-m", "tests.mcp_offer"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None and server.stderr is not None
        try:
            url = server.stdout.readline().strip()
            assert url, server.stderr.read()
            suite = [
                str(modules / ".bin" / "conformance"),
                "server",
                "--url",
                url,
                "--requirements",
                revision,
            ]
            run = subprocess.run(
                suite,
                capture_output=True,
                text=True,
                timeout=600,
                check=False,
                env=os.environ | {"PATH": path},
            )
        finally:
            server.terminate()
    requirements = modules / "@modelcontextprotocol" / "conformance" / "requirements" / f"{revision}.yaml"
    servers = requirements.read_text().partition("\nserver:\n")[2].partition("\nclient:\n")[0]
    required = set(re.findall(r"^  - (\S+)", servers, re.MULTILINE))
    passed = set(re.findall(r"^✓ (\S+): [1-9]\d* passed, 0 failed", run.stdout, re.MULTILINE))
    assert len(required) == REQUIRED[revision]
    assert required <= passed, (required - passed, run.stdout[-3000:])
    assert run.returncode == 0
