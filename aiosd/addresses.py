"""Where servers are on this machine: whether an address is here, and what their own environment variables say."""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit

from aiosd.errors import ConfigError

OLLAMA_PORT = 11434
OLLAMA = f"http://127.0.0.1:{OLLAMA_PORT}"
"""Its usual address."""


def ollama(host: str) -> str:
    """OLLAMA_HOST as a URL; where it is empty, the usual address. It is written for the server too, where 0.0.0.0
    means every address of this machine; a client then means this machine. Raises ConfigError."""
    text = host.strip()
    if not text:
        return OLLAMA
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        port = parts.port
    except ValueError as exc:
        raise ConfigError(f"OLLAMA_HOST: `{host}` is no address: {exc}") from None
    if parts.scheme not in ("http", "https"):
        raise ConfigError(f"OLLAMA_HOST: expected http or https, got `{host}`")
    name = parts.hostname or "127.0.0.1"
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(name, name)
    if port is None:
        port = OLLAMA_PORT if "://" not in text else 443 if parts.scheme == "https" else 80
    return f"{parts.scheme}://{f'[{name}]' if ':' in name else name}:{port}{parts.path.rstrip('/')}"


def is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
