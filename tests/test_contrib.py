"""The scripts of the README's two commands, where the machine lacks something: a clear line, and nothing half made."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
