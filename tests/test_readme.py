"""What the README and the guide show is what happens: their console examples are run again, in order, as they stand."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from aiosd import config
from aiosd.protocol.tools import ToolList
from tests.daemon import PATIENCE_S, Daemon

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "contrib" / "guide.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("text", [README, GUIDE], ids=["README", "guide"])
def test_every_console_example_gives_what_it_shows(daemon: Daemon, tmp_path: Path, text: str) -> None:
    # The executable as it is installed, and no other aiosctl of this machine.
    (tmp_path / "aiosctl").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m aiosctl "$@"\n')
    (tmp_path / "aiosctl").chmod(0o755)
    environ = daemon.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    shown = 0
    for block in blocks(text, "console"):
        for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=ROOT,
                env=environ,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=PATIENCE_S,
            )
            assert (command, done.stdout) == (command, expected), done.stderr
            shown += 1
    assert shown >= 10


def test_the_config_it_shows_loads(tmp_path: Path) -> None:
    loaded = []
    for shown in [*blocks(README, "toml"), *blocks(GUIDE, "toml")]:
        (tmp_path / "config.toml").write_text(shown)
        loaded.append(config.load(tmp_path / "config.toml"))
    assert loaded[0].models.tiers["capable"] == ("cloud",)


def test_the_tool_it_shows_works(tmp_path: Path) -> None:
    (shown,) = blocks(README, "python")
    folder = tmp_path / "home" / "tools"
    folder.mkdir(parents=True)
    (folder / "deploy.py").write_text(shown)
    with Daemon(tmp_path / "home") as daemon:
        session = daemon.session(permissions=("deploy",)).session_id
        done = daemon.ctl("tool", "call", "-s", session, "deploy", "service=web", "stage=live")
        assert (done.stdout, done.returncode) == ("deployed web to live\n", 0)
        wrong = daemon.ctl("tool", "call", "-s", session, "deploy", "service=web", "stage=moon")
        assert wrong.returncode == 2 and "stage" in wrong.stderr


def test_every_built_in_tool_is_in_its_table(daemon: Daemon) -> None:
    built_in = [tool.name for tool in daemon.call(ToolList()).tools]
    assert {"calculator", "read_file", "recall"} <= set(built_in)
    assert [name for name in built_in if not re.search(rf"^\|.*`{name}`", README, re.MULTILINE)] == []


def test_its_table_of_methods_is_todays() -> None:
    sys.path.insert(0, str(ROOT / "contrib"))
    try:
        methods = importlib.import_module("methods")
    finally:
        sys.path.pop(0)
    assert methods.written(README) == README, "run: python contrib/methods.py --write"


def test_its_picture_is_there_and_was_drawn_from_commands_that_worked() -> None:
    (name,) = re.findall(r"!\[[^]]*\]\((.*)\)", README)
    picture = (ROOT / name).read_text(encoding="utf-8").replace("&#160;", " ")
    assert "invoke_agent" in picture and "falcon-7" in picture
    assert "Traceback" not in picture and "aiosctl:" not in picture


def anchors(text: str) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", ["README.md", "contrib/guide.md"])
def test_every_link_leads_somewhere(name: str) -> None:
    page = ROOT / name
    links = re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8"))
    assert links
    for path, anchor in links:
        target = (page.parent / path) if path else page
        assert target.is_file(), path
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), (path, anchor)
