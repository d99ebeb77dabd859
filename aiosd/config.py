"""config.toml as frozen types: everything has a default, and what is not known here is an error."""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import msgspec

from aiosd.addresses import is_loopback
from aiosd.errors import ConfigError
from aiosd.records import Command, Tier

TIERS: tuple[Tier, ...] = ("fast", "balanced", "capable")
EXTRACTIVE = "extractive"
"""The backend that is always there and that no section needs to declare."""

MEND = "aiosctl doctor --fix"
"""It comments out what is wrong, and keeps the file as it was."""

SERVER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
"""Of an MCP server. Its tools are called NAME__TOOL, of which models take 64 characters."""

EMBEDDERS = ("auto", "minilm", "none")
"""What `memory.embedder` may name beside the local backends."""

LEAST_CONTEXT = 256
"""What llama.cpp rounds a context up to a multiple of."""


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file."""


class Backend(Section, frozen=True, kw_only=True):
    kind: Literal["ollama", "openai", "gguf", "extractive"]
    url: str | None = None
    """Of an ollama: default its usual address. An openai has none: it may be any server."""
    model: str = ""
    path: str | None = None
    """Of a gguf: the file; given relative to the config file, absolute once it is loaded."""
    slots: int = 1
    """Requests it works on at once."""
    key_env: str | None = None
    key_file: str | None = None
    price_in: float = 0.0
    """Dollars per million tokens."""
    price_out: float = 0.0
    context: int | None = None
    """Tokens of a model's window, prompt and answer. Default: of an ollama what the model takes, at most 8192; of a
    gguf 8192; of an openai what the server says (llama.cpp and vLLM do), and nothing is left out where it does not."""
    local: bool | None = None
    """Overrides what the address says."""

    @property
    def is_local(self) -> bool:
        """Loopback is local, and so is what has no address. A model's own name may still say it is remote."""
        if self.local is not None:
            return self.local
        return not self.url or is_loopback(self.url)


class Models(Section, frozen=True, kw_only=True):
    tiers: dict[Tier, tuple[str, ...]] = msgspec.field(default_factory=dict)
    """Backends by tier, in order of preference. Without any: every backend in every tier, as declared."""
    backends: dict[str, Backend] = msgspec.field(default_factory=dict)


class Agent(Section, frozen=True, kw_only=True):
    system: str | None = None
    tier: Tier = "balanced"
    permissions: tuple[str, ...] | None = None


class Budget(Section, frozen=True, kw_only=True):
    day_usd: float | None = None
    """Most that one UTC day may cost; None is no cap."""


class Tools(Section, frozen=True, kw_only=True):
    paths: tuple[str, ...] = ("tools",)
    """Folders of Python files, relative to the config file."""
    commands: dict[str, Command] = msgspec.field(default_factory=dict)
    """Programs that are tools, by name."""
    searxng_url: str | None = None
    """Of the SearXNG that web_search asks; without one there is no web_search."""


class McpServer(Section, frozen=True, kw_only=True):
    """A server of the Model Context Protocol: a program, or an address."""

    command: str | None = None
    args: tuple[str, ...] = ()
    env: dict[str, str] = msgspec.field(default_factory=dict)
    """All of its environment, beside what every tool has."""
    cwd: str | None = None
    """A folder that it may write to; without one it has a private one."""
    url: str | None = None
    """Of a server that speaks streamable HTTP."""
    hosts: tuple[str, ...] = ()
    """What it may reach, as tools list it; that of `url` need not be named."""
    paths: tuple[str, ...] = ()
    """Files and folders that it may read."""


class Mcp(Section, frozen=True, kw_only=True):
    servers: dict[str, McpServer] = msgspec.field(default_factory=dict)


class Memory(Section, frozen=True, kw_only=True):
    embedder: str = "auto"
    """`minilm`, `none`, or a backend on this machine; `auto` is minilm where its weights are found, otherwise none."""
    qdrant_url: str | None = None
    """Of a Qdrant server or cluster that indexes the memories that are not private; naming it is the user's consent."""
    key_env: str | None = None
    """Of the server."""
    key_file: str | None = None
    ca_file: str | None = None
    """PEM of who vouches for the server's certificate, where no authority that everybody knows does."""


class Config(Section, frozen=True, kw_only=True):
    default_permissions: tuple[str, ...] = ("memory", "read")
    models: Models = Models()
    agents: dict[str, Agent] = msgspec.field(default_factory=dict)
    budget: Budget = Budget()
    memory: Memory = Memory()
    tools: Tools = Tools()
    mcp: Mcp = Mcp()


def load(path: Path) -> Config:
    """The config in this file; a missing one is all defaults. Raises ConfigError with file, key path and what
    was expected there."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return Config()
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}", hint=MEND) from None
    try:
        table = tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: not TOML: {exc}", hint=MEND) from None
    try:
        return _config(table, path.parent)
    except _Wrong as exc:
        raise ConfigError(f"{path}: {exc}", hint=MEND) from None


def changed(old: Config, new: Config) -> tuple[str, ...]:
    """The keys that differ, with dots between: `budget.day_usd`; a whole entry where it came or went."""
    return tuple(_changed(msgspec.to_builtins(old), msgspec.to_builtins(new), ""))


def _changed(old: dict[str, Any], new: dict[str, Any], where: str) -> Iterator[str]:
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _changed(before, after, f"{where}{key}.")
        elif before != after:
            yield f"{where}{key}"


class _Wrong(Exception):
    """Something at a key path; str() is both."""


T = TypeVar("T")


def _config(table: dict[str, Any], folder: Path) -> Config:
    # msgspec names a wrong entry of a mapping `[...]`; entries are converted one by one so that we can name it.
    models = _table(table, "models")
    backends = {
        name: _checked(name, _convert(value, Backend, f"models.backends.{name}"), folder)
        for name, value in _table(models, "backends", "models.").items()
    }
    agents = {
        name: _convert(value, Agent, f"agents.{name}") for name, value in _table(table, "agents").items()
    }
    mcp = _table(table, "mcp")
    servers = {
        name: _check_server(name, _convert(value, McpServer, f"mcp.servers.{name}"), folder)
        for name, value in _table(mcp, "servers", "mcp.").items()
    }
    tools = _table(table, "tools")
    commands = {
        name: _check_command(name, _convert(value, Command, f"tools.commands.{name}"))
        for name, value in _table(tools, "commands", "tools.").items()
    }
    config = _convert(
        table
        | {
            "models": models | {"backends": {}},
            "agents": {},
            "mcp": mcp | {"servers": {}},
            "tools": tools | {"commands": {}},
        }
        if table
        else {},
        Config,
        "",
    )
    config = msgspec.structs.replace(
        config,
        agents=agents,
        models=msgspec.structs.replace(config.models, backends=backends),
        mcp=Mcp(servers=servers),
        tools=msgspec.structs.replace(config.tools, commands=commands),
    )
    if config.tools.searxng_url is not None:
        _check_url("tools.searxng_url", config.tools.searxng_url)
    for tier, names in config.models.tiers.items():
        for i, name in enumerate(names):
            if name not in backends and name != EXTRACTIVE:
                known = ", ".join([*backends, EXTRACTIVE])
                raise _Wrong(f"models.tiers.{tier}[{i}]: no backend `{name}`; there are: {known}")
    _check_memory(config.memory, backends)
    if config.budget.day_usd is not None and not 0 <= config.budget.day_usd < math.inf:
        raise _Wrong("budget.day_usd: expected dollars >= 0")
    return config


def _check_memory(memory: Memory, backends: dict[str, Backend]) -> None:
    if memory.qdrant_url is not None:
        _check_url("memory.qdrant_url", memory.qdrant_url)
    if memory.key_env and memory.key_file:
        raise _Wrong("memory: expected key_env or key_file, not both")
    name = memory.embedder
    if name in EMBEDDERS:
        return
    backend = backends.get(name)
    if backend is None:
        known = ", ".join([*EMBEDDERS, *(n for n, b in backends.items() if b.kind in ("ollama", "openai"))])
        raise _Wrong(f"memory.embedder: no embedder and no backend `{name}`; there are: {known}")
    if backend.kind not in ("ollama", "openai"):
        raise _Wrong(f"memory.embedder: `{name}` is of kind {backend.kind}, which makes no vectors")
    if not backend.is_local:
        raise _Wrong(f"memory.embedder: `{name}` is remote, and memories are embedded on this machine only")


def _table(parent: dict[str, Any], key: str, where: str = "") -> dict[str, Any]:
    value = parent.get(key, {})
    if not isinstance(value, dict):
        raise _Wrong(f"{where}{key}: expected a table")
    return value


def _convert(value: object, type: type[T], where: str) -> T:
    try:
        return msgspec.convert(value, type)
    except msgspec.ValidationError as exc:
        what, _, at = str(exc).partition(" - at `")
        path = where + at.removesuffix("`").removeprefix("$").removeprefix("" if where else ".")
        raise _Wrong(f"{path}: {what}" if path else what) from None


def _checked(name: str, backend: Backend, folder: Path) -> Backend:
    where = f"models.backends.{name}"
    if backend.kind == "gguf":
        backend = _gguf(where, backend, folder)
    else:
        if backend.path is not None:
            raise _Wrong(f'{where}.path: expected only with kind = "gguf"')
        if backend.kind != "extractive" and not backend.model:
            raise _Wrong(f"{where}.model: expected the name of a model")
    if backend.url is not None:
        _check_url(f"{where}.url", backend.url)
    elif backend.kind == "openai":
        raise _Wrong(f"{where}.url: expected the server's address, as in https://api.openai.com/v1")
    if backend.slots < 1:
        raise _Wrong(f"{where}.slots: expected a number >= 1, got {backend.slots}")
    if backend.context is not None and backend.context < 1:
        raise _Wrong(f"{where}.context: expected a number of tokens >= 1, got {backend.context}")
    if backend.price_in < 0 or backend.price_out < 0:
        raise _Wrong(f"{where}: expected prices >= 0")
    if backend.key_env and backend.key_file:
        raise _Wrong(f"{where}: expected key_env or key_file, not both")
    return backend


def is_url(url: str) -> bool:
    """Whether a server of HTTP can be there."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets that do not close, a port over 65535
        return False


def _check_url(where: str, url: str) -> None:
    if not is_url(url):
        raise _Wrong(f"{where}: expected http://HOST[:PORT] or https://..., got `{url}`")


def _check_command(name: str, command: Command) -> Command:
    where = f"tools.commands.{name}.argv[0]"
    if not command.argv[0] or "{" in command.argv[0]:
        raise _Wrong(f"{where}: expected a program, and what a tool is given only in the parts after it")
    return command


def _check_server(name: str, server: McpServer, folder: Path) -> McpServer:
    where = f"mcp.servers.{name}"
    if not SERVER_NAME.fullmatch(name) or "__" in name:
        raise _Wrong(f"{where}: expected a name of at most 32 letters, digits, `-` and single `_`")
    if (server.command is None) == (server.url is None):
        raise _Wrong(f"{where}: expected either command or url")
    if server.url is not None:
        _check_url(f"{where}.url", server.url)
        for key in ("args", "env", "cwd", "paths"):
            if getattr(server, key):
                raise _Wrong(f"{where}.{key}: expected only with a command")

    def absolute(path: str) -> str:
        return str(folder.absolute() / os.path.expanduser(path))

    return msgspec.structs.replace(
        server,
        cwd=None if server.cwd is None else absolute(server.cwd),
        paths=tuple(map(absolute, server.paths)),
    )


def _gguf(where: str, backend: Backend, folder: Path) -> Backend:
    for key in ("url", "model", "key_env", "key_file"):
        if getattr(backend, key):
            raise _Wrong(f"{where}.{key}: a gguf has none, only the path of its file")
    if not backend.path:
        raise _Wrong(f"{where}.path: expected the path of a .gguf file")
    if backend.context is not None and backend.context < LEAST_CONTEXT:
        raise _Wrong(f"{where}.context: expected tokens >= {LEAST_CONTEXT}, got {backend.context}")
    # Not Path.expanduser, which raises for a user that there is not.
    return msgspec.structs.replace(backend, path=str(folder.absolute() / os.path.expanduser(backend.path)))
