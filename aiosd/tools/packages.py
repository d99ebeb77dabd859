"""What a tool file needs beside itself: the `# /// script` block of PEP 723, installed once into a folder of its own.

pip runs as a process of its own, outside of the walls, and takes wheels alone: installing one runs nothing of what is in it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from aiosd.errors import ToolFailed

INSTALL_S = 180.0

UNFINISHED = ".new"
"""The end of a folder's name, until all is in it."""

_PIP = (
    "import runpy; from aiosd.tools import syscalls; syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 9); "
    "runpy.run_module('pip', run_name='__main__', alter_sys=True)"
)
"""pip, in a process that ends with the daemon."""

_INSTALL = ("install", "--quiet", "--no-input", "--disable-pip-version-check", "--only-binary=:all:")

_BLOCK = re.compile(r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$")
"""The reference implementation's, as the PEP has it."""

logger = logging.getLogger(__name__)


class _Script(msgspec.Struct, frozen=True):
    dependencies: tuple[str, ...] = ()


def declared(source: bytes) -> tuple[str, ...]:
    """The requirements of the file, sorted. Raises ToolFailed for a block that is none."""
    found = [block for block in _BLOCK.finditer(source.decode(errors="replace")) if block["type"] == "script"]
    if not found:
        return ()
    if len(found) > 1:
        raise ToolFailed("it has more than one `# /// script` block")
    lines = found[0]["content"].splitlines(keepends=True)
    text = "".join(line[2:] if line.startswith("# ") else line[1:] for line in lines)
    try:
        script = msgspec.convert(tomllib.loads(text), _Script)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as exc:
        raise ToolFailed(f"its `# /// script` block: {exc}") from None
    if wrong := [each for each in script.dependencies if each.startswith("-")]:
        raise ToolFailed(f"its `# /// script` block: `{wrong[0]}` is an option, not a requirement")
    return tuple(sorted(script.dependencies))


def _is_for_pip(name: str) -> bool:
    """The daemon's other variables may hold keys."""
    exact = ("PATH", "HOME", "LANG", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")
    return name in exact or name.startswith("PIP_") or name.lower().endswith("_proxy")


class Packages:
    """Folders by the list that they were installed for. A list that failed is not tried again by this daemon."""

    def __init__(self, base: Path, environ: Mapping[str, str]) -> None:
        self._base = base
        self._environ = {name: value for name, value in environ.items() if _is_for_pip(name)}
        self._failed: dict[str, str] = {}
        self._is_clear = False

    def folder(self, wanted: tuple[str, ...]) -> Path | None:
        """With all of these in it; None where they are not installed yet. Raises ToolFailed where they cannot be."""
        folder = self._base / _key(wanted)
        if folder.is_dir():
            return folder
        if folder.name in self._failed:
            raise ToolFailed(f"{', '.join(wanted)} could not be installed: {self._failed[folder.name]}")
        return None

    async def install(self, wanted: tuple[str, ...]) -> None:
        """Whole or not at all; `folder` says what came of it."""
        key = _key(wanted)
        beside = self._base / f"{key}.{os.urandom(4).hex()}{UNFINISHED}"
        await anyio.to_thread.run_sync(self._clear)
        command = [sys.executable, "-P", "-c", _PIP, *_INSTALL, "--target", str(beside), "--", *wanted]
        logger.info("packages of a tool file are installed", extra={"packages": ", ".join(wanted)})
        try:
            with anyio.fail_after(INSTALL_S):
                done = await anyio.run_process(
                    command, stdin=subprocess.DEVNULL, check=False, env=self._environ, start_new_session=True
                )
            if done.returncode:
                lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
                self._failed[key] = lines[-1] if lines else f"pip ended with status {done.returncode}"
            else:
                await anyio.to_thread.run_sync(os.rename, beside, self._base / key)
        except TimeoutError:
            self._failed[key] = f"pip did not end within {INSTALL_S:g} s"
        except OSError as exc:
            self._failed[key] = str(exc)

    def _clear(self) -> None:
        """Of what daemons before this one did not finish."""
        self._base.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._is_clear:
            self._is_clear = True
            for left in self._base.glob(f"*{UNFINISHED}"):
                shutil.rmtree(left, ignore_errors=True)


def _key(wanted: tuple[str, ...]) -> str:
    return hashlib.sha256(msgspec.json.encode((wanted, sys.version_info[:2]))).hexdigest()[:32]
