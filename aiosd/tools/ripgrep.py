"""Where ripgrep is installed, it says which files search_files need not read; what is found in the others, and how it is
told, is never its word. So a search gives the same with it and without, only sooner.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from aiosd.tools import workspace

PATIENCE_S = 60.0

ALSO = {"i": "\u0130\u0131", "k": "\u212a", "s": "\u017f"}
"""The letters beyond ASCII that Python takes for these in any case. re.IGNORECASE in Python's library reference."""


def files_with(text: str, root: Path, path: str) -> frozenset[str] | None:
    """All files there that contain the text, by their whole names, and maybe others. None where that is not known: there is
    no ripgrep, or the text has what the two might compare differently. Raises as workspace.real."""
    program = shutil.which("rg")
    if program is None or not (text.isascii() and text.isprintable()):
        return None
    place = workspace.real(root, path)
    options = ["--no-config", "--no-messages", "--no-ignore", "--hidden", "--glob=!.*/", "--no-mmap"]
    kinds = ["--text", "--encoding=none", f"--max-filesize={workspace.MAX_FILE}"]
    asked = ["--files-with-matches", "--null", "--regexp", "".join(map(_class, text)), "--", place]
    try:
        done = subprocess.run(
            [program, *options, *kinds, *asked],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode not in (0, 1) and done.stderr:  # without a word, it could not read a file: nor can we
        return None
    return frozenset(map(os.fsdecode, done.stdout.split(b"\0")))


def _class(character: str) -> str:
    """The regular expression of it in any case."""
    lower = character.lower()
    every = {lower, character.upper(), *ALSO.get(lower, "")}
    return "[" + "".join(rf"\x{{{ord(each):x}}}" for each in sorted(every)) + "]"
