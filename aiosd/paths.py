"""Where aiosd keeps things: one folder under AIOSD_HOME, else the XDG base directories (by platformdirs)."""

from __future__ import annotations

import getpass
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec


class Paths(msgspec.Struct, frozen=True):
    """Folders and files of one daemon. None of them need exist yet."""

    config: Path
    """The file config.toml."""
    data: Path
    """The database and the index: what must not be lost."""
    state: Path
    """Logs and private workspaces."""
    cache: Path
    run: Path

    @property
    def config_dir(self) -> Path:
        return self.config.parent

    @property
    def database(self) -> Path:
        return self.data / "aiosd.db"

    @property
    def index(self) -> Path:
        return self.data / "index"

    @property
    def lock(self) -> Path:
        """Beside the data, so that two daemons with one database never meet, whatever their sockets. Its two lines
        are the process id and the socket of the daemon that holds it, or of the last that did."""
        return self.data / "lock"

    @property
    def log(self) -> Path:
        return self.state / "aiosd.log"

    def workspace(self, session_id: str) -> Path:
        """The private folder of a session that was given none."""
        return self.state / "workspaces" / session_id


def paths(environ: Mapping[str, str] = os.environ) -> Paths:
    """The folders that this environment names."""
    if home := environ.get("AIOSD_HOME"):
        base = Path(home).absolute()
        return Paths(base / "config.toml", base / "data", base / "state", base / "cache", base / "run")
    from platformdirs import PlatformDirs  # late: aiosctl needs the socket only, which mostly needs no XDG

    dirs = PlatformDirs("aiosd", appauthor=False)
    return Paths(
        dirs.user_config_path / "config.toml",
        dirs.user_data_path,
        dirs.user_state_path,
        dirs.user_cache_path,
        _run(environ, dirs.user_state_path),
    )


def _run(environ: Mapping[str, str], state: Path) -> Path:
    """Without XDG_RUNTIME_DIR (cron, sudo) the socket stands in the state folder, which outlives a login."""
    runtime = environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "aiosd" if runtime else state


def user_name() -> str:
    """The login name; a user that the system has no name for is called by number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def socket_path(option: str | None = None, environ: Mapping[str, str] = os.environ) -> Path:
    """The first that applies: `--socket`, AIOSD_SOCKET, AIOSD_HOME, XDG_RUNTIME_DIR, ~/.local/state/aiosd."""
    if option:
        return Path(option).absolute()
    if named := environ.get("AIOSD_SOCKET"):
        return Path(named).absolute()
    if not environ.get("AIOSD_HOME") and (runtime := environ.get("XDG_RUNTIME_DIR")):
        return Path(runtime) / "aiosd" / "aiosd.sock"
    return paths(environ).run / "aiosd.sock"
