"""The values of the keys that the config names, and how they are kept out of everything that is stored or sent."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from aiosd.config import Config

SHORTEST = 8
"""Characters. What is shorter is no key, and its masking would tear words apart."""

T = TypeVar("T")


class Secrets:
    """Key files are read again once they have changed: `aiosctl model key` replaces them while the daemon runs."""

    def __init__(self, config: Config, environ: Mapping[str, str]) -> None:
        backends = config.models.backends.values()
        names = sorted({b.key_env for b in backends if b.key_env})
        self._fixed = {
            value: f"[${name}]" for name in names if len(value := environ.get(name, "").strip()) >= SHORTEST
        }
        self._files = tuple(sorted({b.key_file for b in backends if b.key_file}))
        self._read: dict[str, tuple[tuple[int, int, int], str]] = {}

    def mask(self, text: str) -> str:
        """The text with the name of a key where its value stood."""
        for value, name in self._values().items():
            text = text.replace(value, name)
        return text

    def masked(self, noun: T) -> T:
        """The struct with every text in it masked; the very same where there is nothing to mask."""
        values = self._values()
        encoded = whole = msgspec.json.encode(noun)
        for value, name in values.items():
            encoded = encoded.replace(_quoted(value), _quoted(name))
        return noun if encoded == whole else msgspec.json.decode(encoded, type=type(noun))

    def _values(self) -> dict[str, str]:
        """Longest first: one key may begin another."""
        values = dict(self._fixed)
        for file in self._files:
            if len(value := self._of_file(file)) >= SHORTEST:
                values[value] = f"[key file {os.path.basename(file)}]"
        return dict(sorted(values.items(), key=lambda item: -len(item[0])))

    def _of_file(self, file: str) -> str:
        path = Path(file).expanduser()
        try:
            found = path.stat()
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
            known = self._read.get(file)
            if known is None or known[0] != stamp:
                known = self._read[file] = (stamp, path.read_text().strip())
            return known[1]
        except (OSError, UnicodeDecodeError):
            return ""  # the backend that needs it says so


def _quoted(text: str) -> bytes:
    """As it stands inside of a JSON string."""
    return msgspec.json.encode(text)[1:-1]
