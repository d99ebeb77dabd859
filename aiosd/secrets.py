"""The values of the keys that the config names, and how they are kept out of everything that is stored or sent."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from aiosd.config import Backend, Config, Memory
from aiosd.systemd import credential

SHORTEST = 8
"""Characters. What is shorter is no key, and its masking would tear words apart."""

_SECRET = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)
"""In the name of a variable of an MCP server, whose other variables hold ordinary words."""

T = TypeVar("T")


class Secrets:
    """Key files are read again once they have changed: `aiosctl model key` replaces them while the daemon runs."""

    def __init__(self, config: Config, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._read: dict[str, tuple[tuple[int, int, int], str]] = {}
        self.configure(config)

    def configure(self, config: Config) -> None:
        keys: list[Backend | Memory] = [*config.models.backends.values(), config.memory]
        fixed = [(k.key_env, self._given(k.key_env)) for k in keys if k.key_env]
        for server in config.mcp.servers.values():
            fixed += [(name, value.strip()) for name, value in server.env.items() if _SECRET.search(name)]
        self._fixed = [(value, f"[${name}]") for name, value in sorted(set(fixed))]
        self._files = tuple(sorted({k.key_file for k in keys if k.key_file}))

    def mask(self, text: str) -> str:
        """The text with the name of a key where its value stood."""
        for value, name in self._values().items():
            text = text.replace(value, name)
        return text

    def masked(self, noun: T) -> T:
        """The struct with every text in it masked; the very same where there is nothing to mask."""
        values = self._values()
        if not values:
            return noun
        encoded = msgspec.json.encode(noun)
        if not any(_quoted(value) in encoded for value in values):
            return noun
        return msgspec.convert(self._walked(msgspec.to_builtins(noun)), type=type(noun))

    def _walked(self, value: Any) -> Any:
        match value:
            case str():
                return self.mask(value)
            case dict():
                return {self._walked(key): self._walked(each) for key, each in value.items()}
            case list() | tuple():
                return [self._walked(each) for each in value]
            case _:
                return value

    def stream(self) -> MaskedStream:
        """For a text that comes in pieces."""
        return MaskedStream(self._values())

    def _values(self) -> dict[str, str]:
        """Longest first: one key may begin another. Each also as it stands in JSON, which texts may be."""
        files = ((self._of_file(file), f"[key file {os.path.basename(file)}]") for file in self._files)
        values: dict[str, str] = {}
        for value, name in (*self._fixed, *files):
            if len(value) >= SHORTEST:
                values |= {value: name, _quoted(value).decode(): name}
        return dict(sorted(values.items(), key=lambda item: -len(item[0])))

    def _given(self, name: str) -> str:
        return self._environ.get(name, "").strip() or credential(name, self._environ) or ""

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


class MaskedStream:
    """Masks a text that comes in pieces, wherever they part it: what may be the beginning of a key is held back until it is
    known to be none. The end of a text that is held back never comes."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values
        self._longest = max(map(len, values), default=0)
        self._keys = re.compile("|".join(map(re.escape, values)))
        self._held = ""

    def feed(self, piece: str) -> str:
        """What can be shown now."""
        if not self._values:
            return piece
        text, done, shown = self._held + piece, 0, ""
        while True:
            held = self._begun(text, done)
            found = self._keys.search(text, done)
            if found is None or found.start() >= held:
                self._held = text[held:]
                return shown + text[done:held]
            shown += text[done : found.start()] + self._values[found[0]]
            done = found.end()

    def _begun(self, text: str, after: int) -> int:
        """Where the rest of the text is the beginning of a key, but not all of it."""
        first = max(after, len(text) + 1 - self._longest)
        for at in range(first, len(text)):
            rest = text[at:]
            if any(len(key) > len(rest) and key.startswith(rest) for key in self._values):
                return at
        return len(text)


def _quoted(text: str) -> bytes:
    """As it stands inside of a JSON string."""
    return msgspec.json.encode(text)[1:-1]
