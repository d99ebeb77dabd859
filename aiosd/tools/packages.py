"""What a tool file needs beside itself: the `# /// script` block of PEP 723, installed once into a folder of its own.

pip runs as a process of its own, outside of the walls, and takes wheels alone: installing one runs nothing of what is in it.
"""

from __future__ import annotations

import hashlib
import logging
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

    async def folder(self, wanted: tuple[str, ...]) -> Path:
        """With all of these in it. Raises ToolFailed."""
        key = hashlib.sha256(msgspec.json.encode((wanted, sys.version_info[:2]))).hexdigest()[:32]
        folder = self._base / key
        if await anyio.to_thread.run_sync(folder.is_dir):
            return folder
        if key not in self._failed and (why := await self._install(wanted, folder)):
            self._failed[key] = why
        if key in self._failed:
            raise ToolFailed(f"{', '.join(wanted)} could not be installed: {self._failed[key]}")
        return folder

    async def _install(self, wanted: tuple[str, ...], folder: Path) -> str | None:
        """Whole or not at all; why not."""
        beside = folder.with_suffix(".new")

        def clear() -> None:
            shutil.rmtree(beside, ignore_errors=True)
            beside.parent.mkdir(mode=0o700, parents=True, exist_ok=True)

        await anyio.to_thread.run_sync(clear)
        pip = [
            sys.executable,
            "-P",
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-input",
            "--disable-pip-version-check",
        ]
        command = [*pip, "--only-binary=:all:", "--target", str(beside), "--", *wanted]
        logger.info("packages of a tool file are installed", extra={"packages": ", ".join(wanted)})
        with anyio.move_on_after(INSTALL_S):
            done = await anyio.run_process(
                command, stdin=subprocess.DEVNULL, check=False, env=self._environ, start_new_session=True
            )
            if done.returncode:
                lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
                return lines[-1] if lines else f"pip ended with status {done.returncode}"
            await anyio.to_thread.run_sync(beside.rename, folder)
            return None
        return f"pip did not end within {INSTALL_S:g} s"
