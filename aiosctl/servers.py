"""What could serve models here: an Ollama, a llama.cpp server, a key in the environment. Looked at, never used."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from aiosd import addresses

LOOK_S = 2.0
"""For a server on this machine to say what it has."""
LLAMA_PORT = 8080
"""Of llama.cpp's server, where LLAMA_ARG_PORT, which it reads too, says nothing else."""
SUGGESTED = "llama3.2"
"""2 GB, takes tools, runs without a GPU."""
DAY_USD = 2.0
"""The day's cap in the commands that are shown; the user's own is asked for."""
UNITS = (Path("/etc/systemd/system/ollama.service"), Path("/usr/lib/systemd/system/ollama.service"))


class Service(msgspec.Struct, frozen=True):
    """A hosted service, by the variable that its own documents name. Prices in dollars per million tokens."""

    key_env: str
    name: str
    url: str
    model: str
    price_in: float
    price_out: float


SERVICES = (Service("OPENAI_API_KEY", "openai", "https://api.openai.com/v1", "gpt-4o", 2.50, 10.00),)


class Model(msgspec.Struct, frozen=True):
    """A chat model that a server on this machine has."""

    kind: str
    url: str
    name: str
    billions: float = 0.0
    """Of its parameters; 0 where nobody says."""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    ollama_url: str
    ollama_installed: bool
    ollama_answers: bool
    models: tuple[Model, ...]
    """The smallest first."""
    services: tuple[Service, ...]
    """Those that have a key in the environment."""

    @property
    def next_step(self) -> str:
        """The line to paste that brings a model nearest, one that costs nothing first."""
        if self.models:
            return "aiosctl model setup"
        if self.ollama_answers:
            return f"aiosctl model pull {SUGGESTED}"
        if self.ollama_installed:
            return "sudo systemctl start ollama" if any(unit.exists() for unit in UNITS) else "ollama serve"
        if self.services:
            return f"aiosctl model setup --day-usd {DAY_USD:g}"
        return "aiosctl model setup"


def look(environ: Mapping[str, str]) -> Found:
    """Asks this machine's servers. Raises ConfigError for an OLLAMA_HOST that is no address."""
    url = addresses.ollama(environ.get("OLLAMA_HOST", ""))
    tags = _get(url, "/api/tags")
    models = [*_ollama(url, tags)]
    port = environ.get("LLAMA_ARG_PORT", "")
    llama = f"http://127.0.0.1:{port if port.isdecimal() else LLAMA_PORT}"
    models += _openai(f"{llama}/v1", _get(llama, "/v1/models"))
    return Found(
        ollama_url=url,
        ollama_installed=shutil.which("ollama", path=environ.get("PATH")) is not None,
        ollama_answers=tags is not None,
        models=tuple(sorted(models, key=lambda m: (m.billions, m.name))),
        services=tuple(s for s in SERVICES if environ.get(s.key_env, "").strip()),
    )


class _Details(msgspec.Struct):
    parameter_size: str | None = None


class _Tag(msgspec.Struct):
    name: str
    capabilities: tuple[str, ...] | None = None
    details: _Details | None = None
    remote_host: str | None = None


class _Tags(msgspec.Struct):
    models: list[_Tag] | None = None


class _Card(msgspec.Struct):
    id: str


class _Cards(msgspec.Struct):
    data: list[_Card]


def _ollama(url: str, tags: Any) -> list[Model]:
    try:
        found = msgspec.convert(tags or {}, _Tags).models or []
    except msgspec.ValidationError:
        return []  # something else listens there
    return [
        Model("ollama", url, tag.name, _billions(tag.details.parameter_size if tag.details else None))
        for tag in found
        if not tag.remote_host
        and not tag.name.endswith((":cloud", "-cloud"))
        and (tag.capabilities is None or "completion" in tag.capabilities)
    ]


def _openai(url: str, cards: Any) -> list[Model]:
    try:
        return [Model("openai", url, card.id) for card in msgspec.convert(cards or {"data": []}, _Cards).data]
    except msgspec.ValidationError:
        return []  # port 8080 is many a program's


def _billions(size: str | None) -> float:
    """`8.0B` or `494.03M`, as Ollama writes it."""
    try:
        return float(size[:-1]) * {"T": 1e3, "B": 1.0, "M": 1e-3}[size[-1]] if size else 0.0
    except (ValueError, KeyError):
        return 0.0


def _get(url: str, path: str) -> Any:
    """The JSON there, or None where nothing answers with any."""
    import http.client  # late: 20 ms, and few commands look

    parts = urlsplit(url)
    over = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = over(parts.hostname or "", parts.port, timeout=LOOK_S)
    try:
        connection.request("GET", parts.path + path)
        answer = connection.getresponse()
        return msgspec.json.decode(answer.read()) if answer.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
