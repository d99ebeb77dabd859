"""What the calls of a host take together, against a host alone whose bounds are low."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aiosd import framing
from aiosd.tools import quota
from aiosd.tools.sandbox import Plan, Tier

TOOLS = """
import os, time
from aiosd.tools import tool

MB = 1024 * 1024

@tool
def write(mebibytes: int, stays_s: int) -> str:
    for n in range(mebibytes // 8):
        with open(f"many{n}", "wb") as file:
            for _ in range(8):
                file.write(b"x" * MB)
    time.sleep(stays_s)
    return "written"

@tool
def allocate(mebibytes: int) -> str:
    with open("sparse", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, mebibytes * MB)
    time.sleep(60)
    return "allocated"

@tool
def children(mebibytes: int) -> str:
    for _ in range(8):
        if os.fork() == 0:
            held = bytearray(mebibytes * MB)
            held[::4096] = b"x" * len(held[::4096])
            time.sleep(60)
            os._exit(0)
    time.sleep(60)
    return "held"

@tool
def survives() -> str:
    return "still here"
"""


class Calls:
    """A host's process, called one after the other."""

    def __init__(self, folder: Path, tier: Tier, *, written: int = 1 << 30, memory: int = 1 << 30) -> None:
        tools, workspace = folder / "tools", folder / "workspace"
        tools.mkdir()
        workspace.mkdir()
        (tools / "hungry.py").write_text(TOOLS)
        self.workspace = workspace
        plan = Plan(
            workspace=str(workspace),
            write=True,
            folders=(str(tools),),
            tiers=(tier,),
            written=written,
            memory=memory,
        )
        command = [sys.executable, "-P", "-m", "aiosd.tools.host", msgspec.json.encode(plan).decode()]
        self._host = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, cwd=workspace
        )

    def call(self, name: str, **arguments: int) -> str:
        """Its text, or the message of the error."""
        assert self._host.stdin is not None and self._host.stdout is not None
        call = {"name": name, "arguments": arguments, "timeout_s": 45}
        self._host.stdin.write(framing.request(1, "call", call))
        answer: dict[str, Any] = msgspec.json.decode(self._host.stdout.readline())
        if "error" in answer:
            return str(answer["error"]["message"])
        return str(answer["result"]["content"][0]["text"])

    def close(self) -> None:
        self._host.communicate(timeout=60)


@pytest.mark.parametrize("tier", [Tier.NAMESPACES, Tier.LANDLOCK])
def test_a_call_that_fills_the_disk_with_many_files_is_killed(tmp_path: Path, tier: Tier) -> None:
    calls = Calls(tmp_path, tier, written=64 << 20)
    if "no walls" in (said := calls.call("survives")):
        pytest.skip("this machine lacks these walls")
    assert said == "still here"
    assert calls.call("write", mebibytes=32, stays_s=1) == "written"
    assert "and was killed; it may have 64" in calls.call("write", mebibytes=240, stays_s=60)
    assert "and was killed; it may have 64" in calls.call("allocate", mebibytes=128)
    assert calls.call("survives") == "still here"
    calls.close()


def test_children_that_take_too_much_memory_together_are_killed(tmp_path: Path) -> None:
    """Each is below what one process may have."""
    calls = Calls(tmp_path, Tier.NAMESPACES, memory=512 << 20)
    if "no walls" in calls.call("survives"):
        pytest.skip("this machine has no user namespaces")
    before = time.monotonic()
    assert "MiB of memory and were killed" in calls.call("children", mebibytes=100)
    assert time.monotonic() - before < 30
    assert calls.call("survives") == "still here"
    calls.close()


def test_what_was_there_before_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"x" * 100_000)
    since = time.time() + 0.1
    time.sleep(0.2)  # the clock itself is what is waited for
    os.symlink("/usr", tmp_path / "usr")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "new").write_bytes(b"x" * 50_000)
    assert 50_000 <= quota.written(tmp_path, since) < 100_000
