"""What a new user does, on a machine with an empty home and an empty pip cache. Slow: it installs from a registry."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[1]


@pytest.fixture
def environ(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A login of somebody who has nothing; the daemon that comes up in it is ended."""
    home = tmp_path / "home"
    home.mkdir()
    kept = {
        k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "TERM") or k.startswith(("PIP_", "SSL_"))
    }
    fresh = kept | {"HOME": str(home), "PIP_NO_CACHE_DIR": "1", "OLLAMA_HOST": "127.0.0.1:9"}
    # Not the environment these tests run in: a user has none of it.
    fresh["PATH"] = ":".join(p for p in fresh["PATH"].split(":") if not p.startswith(sys.prefix))
    yield fresh
    lock = home / ".local/share/aiosd/lock"
    if lock.exists():
        os.kill(int(lock.read_text().splitlines()[0]), signal.SIGTERM)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    subprocess.run(["git", "clone", "-q", str(ROOT), str(tmp_path / "clone")], check=True)
    return tmp_path / "clone"


def run(
    *argv: str, cwd: Path, environ: dict[str, str], check: bool = True
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        argv, cwd=cwd, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def test_the_first_command_of_the_readme(clone: Path, environ: dict[str, str]) -> None:
    began = time.monotonic()
    first = run("contrib/try", cwd=clone, environ=environ)
    installed = time.monotonic()
    second = run("contrib/try", cwd=clone, environ=environ)
    print(f"first {installed - began:.1f} s, again {time.monotonic() - installed:.1f} s")  # noqa: T201 - a figure
    for done in (first, second):
        answers = done.stdout.split("\n$ ")[1:]
        assert "Remembered: the deploy host is falcon-7" in answers[0]
        assert "README.md:" in answers[1] and "contrib/check" in answers[1]
        assert answers[2].splitlines()[1] == "84"
        assert "falcon-7" in answers[3] and "memory " in answers[3]
        assert "ln -sf" in done.stdout.splitlines()[-1]
    assert "started aiosd" in first.stderr and "started aiosd" not in second.stderr


def test_the_second_command_of_the_readme(clone: Path, environ: dict[str, str]) -> None:
    done = run("contrib/check", "tests/test_config.py", cwd=clone, environ=environ)
    assert " passed" in done.stdout


def test_pip_install_into_an_empty_environment(clone: Path, environ: dict[str, str], tmp_path: Path) -> None:
    run("python3", "-m", "venv", str(tmp_path / "venv"), cwd=tmp_path, environ=environ)
    binaries = tmp_path / "venv" / "bin"
    run(str(binaries / "pip"), "install", "-qq", str(clone), cwd=tmp_path, environ=environ)
    assert (
        run(str(binaries / "aiosctl"), "run", "-q", "What is 6 * 7?", cwd=tmp_path, environ=environ).stdout
        == "42\n"
    )
    second = run(str(binaries / "python"), "-m", "aiosd", cwd=tmp_path, environ=environ, check=False)
    assert second.returncode == 1 and "another aiosd has" in second.stderr
    installed = run(str(binaries / "pip"), "list", cwd=tmp_path, environ=environ).stdout.lower()
    assert not [name for name in ("torch", "litellm", "nvidia", "cuda") if name in installed]


def test_pipx_install(clone: Path, environ: dict[str, str], tmp_path: Path) -> None:
    run("python3", "-m", "venv", str(tmp_path / "venv"), cwd=tmp_path, environ=environ)
    run(str(tmp_path / "venv/bin/pip"), "install", "-qq", "pipx", cwd=tmp_path, environ=environ)
    run(str(tmp_path / "venv/bin/pipx"), "install", str(clone), cwd=tmp_path, environ=environ)
    binaries = Path(environ["HOME"], ".local/bin")
    assert {"aiosd", "aiosctl"} <= {path.name for path in binaries.iterdir()}
    assert (
        run(str(binaries / "aiosctl"), "run", "-q", "What is 6 * 7?", cwd=tmp_path, environ=environ).stdout
        == "42\n"
    )
