"""Whole runs through the daemon, with llama.cpp on a model that is made here."""

from __future__ import annotations

import os
import select
import shutil
import signal
from pathlib import Path

import pytest

from aiosd import records as r
from aiosd.errors import NoModelFits
from aiosd.protocol.models import ModelList
from tests.daemon import PATIENCE_S, Daemon

CONFIG = """
[models.backends.small]
kind = "gguf"
path = "models/tiny.gguf"
context = 4096
"""
AREA = '''
from aiosd.tools import tool

@tool(permissions=["read"])
def area(width: int, height: int) -> str:
    """The area of a field."""
    return f"{width} x {height} = {width * height}"
'''


@pytest.fixture
def home(tmp_path: Path, tiny: Path) -> Path:
    """Of a daemon with a model and a tool."""
    home = tmp_path / "home"
    for folder in ("models", "tools"):
        (home / folder).mkdir(parents=True)
    shutil.copy(tiny, home / "models" / "tiny.gguf")
    (home / "tools" / "area.py").write_text(AREA)
    return home


def children(daemon: Daemon) -> list[int]:
    """The processes of the daemon that hold a model."""
    assert daemon.process is not None
    pid = daemon.process.pid
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(c) for c in found if b"gguf_server" in Path(f"/proc/{c}/cmdline").read_bytes()]


def test_a_run_calls_a_tool_and_goes_on_with_what_it_gave(home: Path) -> None:
    with Daemon(home, CONFIG) as daemon:
        assert daemon.call(ModelList()).backends[0].state == "up"
        assert children(daemon) == []  # nobody has asked for it yet
        result = daemon.run(daemon.session(permissions=("read",)), "How large is the field?", tools=("area",))
        (child,) = children(daemon)
        end = os.pidfd_open(child)
        assert daemon.stop() == 0
    assert "How large" not in daemon.log.read_text()
    (source,) = result.sources
    assert (source.kind, source.ref) == ("tool", "area")
    width, height, area = (int(n) for n in source.text.replace("=", "x").split("x"))
    assert width * height == area
    assert (result.state, result.backend, result.model) == ("completed", "small", "tiny")
    assert (result.generated, result.cost_usd) == (True, 0.0)
    assert result.usage.output_tokens > 0
    assert select.select([end], [], [], 0)[0], "the model's process outlived the daemon"
    os.close(end)


def test_a_private_session_is_served_and_a_schema_is_filled(home: Path) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    with Daemon(home, CONFIG) as daemon:
        session = daemon.session(privacy="local", permissions=())
        assert isinstance(daemon.run(session, "Is it?", schema=schema).result["ok"], bool)


def test_the_model_dies_with_a_daemon_that_is_killed(home: Path) -> None:
    with Daemon(home, CONFIG) as daemon:
        daemon.run(daemon.session(permissions=()), "Hello")
        (child,) = children(daemon)
        end = os.pidfd_open(child)
        daemon.kill()
    assert select.select([end], [], [], PATIENCE_S)[0]
    os.close(end)


def test_a_model_that_was_killed_serves_the_next_run(home: Path) -> None:
    with Daemon(home, CONFIG) as daemon:
        session = daemon.session(permissions=())
        daemon.run(session, "Hello")
        (child,) = children(daemon)
        end = os.pidfd_open(child)
        os.kill(child, signal.SIGKILL)
        assert select.select([end], [], [], PATIENCE_S)[0]
        os.close(end)
        assert daemon.run(session, "And again").state == "completed"
        assert children(daemon) not in ([], [child])


def test_a_file_that_is_not_there_is_a_reason_and_no_failure_to_start(home: Path) -> None:
    path = home / "models" / "tiny.gguf"
    path.unlink()
    with Daemon(home, CONFIG) as daemon:
        listed: r.BackendInfo = daemon.call(ModelList()).backends[0]
        assert (listed.name, listed.state) == ("small", "down")
        assert listed.reason == f"{path}: No such file or directory"
        with pytest.raises(NoModelFits) as caught:
            daemon.run(daemon.session(permissions=()), "Write it", tier="capable")
    assert f"`small`: {path}: No such file or directory" in str(caught.value)
