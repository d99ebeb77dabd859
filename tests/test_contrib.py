"""The scripts of the README's two commands, where the machine lacks something: a clear line, and nothing half made."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.aiosctl_double import AIOSCTL, Ctl, Double, giving
from tests.daemon import Daemon

ROOT = Path(__file__).parents[1]


def environment(tmp_path: Path, python: str) -> subprocess.CompletedProcess[str]:
    """Runs contrib/environment with this shell script as its Python."""
    fake = tmp_path / "python3"
    fake.write_text(f"#!/bin/sh\n{python}\n")
    fake.chmod(0o755)
    return subprocess.run(
        [ROOT / "contrib" / "environment", tmp_path / "made", ""],
        env={"PATH": os.environ["PATH"], "PYTHON": str(fake)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("python", "said", "way_out"),
    [
        (
            f'case "$2" in *ensurepip*) exit 1;; esac; exec {sys.executable} "$@"',
            "has no venv module",
            "try: sudo apt install python3",
        ),
        ('test "$1" = --version && echo Python 3.9.2; exit 1', "needs Python 3.11 or newer", "try: PYTHON="),
        ("exit 127", "needs Python 3.11 or newer", "try: PYTHON="),
    ],
    ids=["no venv", "too old", "no Python"],
)
def test_what_is_missing_is_said_with_the_way_out(
    tmp_path: Path, python: str, said: str, way_out: str
) -> None:
    done = environment(tmp_path, python)
    assert done.returncode == 1
    assert said in done.stderr and way_out in done.stderr
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completions_are_what_the_command_prints(ctl: Ctl, shell: str) -> None:
    assert (ROOT / "contrib" / "completions" / f"aiosctl.{shell}").read_text() == ctl(
        "completion", shell
    ).stdout


def test_the_profile_for_apparmor_is_one(tmp_path: Path) -> None:
    parser = shutil.which("apparmor_parser", path=f"{os.environ['PATH']}:/sbin:/usr/sbin")
    if parser is None:
        pytest.skip("apparmor_parser is not installed")
    text = (ROOT / "contrib" / "aiosd.apparmor").read_text()
    if not Path("/etc/apparmor.d/abi/4.0").exists():  # before 4.0 it knows all of it but `userns`
        assert text.count("  userns,\n") == 1
        text = text.replace("<abi/4.0>", "<abi/3.0>").replace("  userns,\n", "")
    profile = tmp_path / "aiosd"
    profile.write_text(text)
    parse = [parser, "--skip-kernel-load", "--skip-cache", "--debug", str(profile)]
    done = subprocess.run(parse, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = (done.stdout + done.stderr).split("\n")
    assert "Name:\t\taiosd" in said and "Mode: unconfined" in said, done


def test_the_example_config_and_tools_work(tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(ROOT / "contrib" / "tools", home / "tools")
    (tmp_path / "a.json").write_text('{"servers": [{"a/b": 8081}]}')
    (tmp_path / "a.txt").write_text("one two Two")
    with Daemon(home, (ROOT / "contrib" / "config.toml").read_text()) as daemon:
        session = daemon.session(
            permissions=("read", "notes"), workspace=str(tmp_path), write=True
        ).session_id

        def call(*args: str) -> str:
            done = daemon.ctl("tool", "call", "-s", session, *args)
            assert done.returncode == 0, done.stderr
            return done.stdout.strip()

        assert call("json_value", "path=a.json", "pointer=/servers/0/a~1b") == "8081"
        assert call("most_common_words", "path=a.txt", "n=1") == '{"two":2}'
        assert call("add_note", "text=buy\\nmilk") == "noted in NOTES.md"
    assert (tmp_path / "NOTES.md").read_text() == "- buy\\nmilk\n"


def committed(ctl: Ctl, tmp_path: Path, *more: str) -> str:
    """The message of a commit with the hook, by an editor that leaves it as it is."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "aiosctl").write_text(f'#!/bin/sh\nexec {" ".join(AIOSCTL)} "$@"\n')
    (tmp_path / "bin" / "aiosctl").chmod(0o755)
    done = ctl.shell(
        f"""set -e
        git init -q .; ln -sf {ROOT}/contrib/prepare-commit-msg .git/hooks/prepare-commit-msg
        echo one > a.txt; git add a.txt
        git -c user.name=a -c user.email=a@b commit -q {" ".join(more)} || echo refused
        git log -1 --format=%B 2> /dev/null || true""",
        PATH=f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        GIT_EDITOR="true",
        GIT_CONFIG_GLOBAL="/dev/null",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


REPLY = {
    "text": "Add a file",
    "thinking": "",
    "tool_calls": [],
    "stop_reason": "end_turn",
    "generated": True,
    "abstained": False,
    "sources": [],
    "usage": {},
    "cost_usd": 0.0,
    "backend": "small",
    "model": "m",
    "decision": {"tier": "fast", "chosen": "small", "reason": "alone", "candidates": []},
}


def test_the_hook_drafts_a_message_from_the_diff(double: Double, ctl: Ctl, tmp_path: Path) -> None:
    double.answers["model.infer"] = giving(REPLY)
    assert committed(ctl, tmp_path) == "Add a file"
    (asked,) = double.params("model.infer")
    assert "+one" in asked["messages"][0]["content"] and asked["privacy"] == "local"


def test_the_hook_leaves_a_message_that_is_there_and_a_quote_is_none(
    double: Double, ctl: Ctl, tmp_path: Path
) -> None:
    double.answers["model.infer"] = giving(REPLY | {"generated": False})
    assert committed(ctl, tmp_path) == "refused"
    (tmp_path / "bin" / "aiosctl").unlink()
    (tmp_path / "bin").rmdir()
    assert committed(ctl, tmp_path, "-m", "mine") == "mine"
    assert len(double.params("model.infer")) == 1
