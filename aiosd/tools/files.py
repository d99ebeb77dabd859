"""The user's tool files as they are now, and the last good version of each, which goes on where a newer one does not load."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from aiosd.tools.wire import Description, Problem

logger = logging.getLogger(__name__)


def stamp_of(folders: Sequence[Path]) -> tuple[tuple[str, int, int], ...]:
    """Changes when a Python file in the folders does; a folder that is not there has none."""
    found = []
    for path in sorted(path for folder in folders for path in folder.glob("*.py")):
        with suppress(FileNotFoundError):  # removed since its folder was read, or a link to nothing
            now = path.stat()
            found.append((str(path), now.st_mtime_ns, now.st_size))
    return tuple(found)


class Versions:
    """Copies in a folder of the daemon's. Both ways are blocking."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def sources(self, folders: Sequence[Path]) -> dict[str, bytes]:
        """The files as they are now; to be read before a host loads them."""
        found = {}
        for path in (path for folder in folders for path in folder.glob("[!_]*.py")):
            with suppress(OSError):
                found[str(path)] = path.read_bytes()
        return found

    def keep(self, sources: Mapping[str, bytes], broken: Collection[str]) -> None:
        """Those that are not broken, each whole or not at all."""
        for file, source in sources.items():
            copy = self._copy(file)
            try:
                if file in broken or (copy.exists() and copy.read_bytes() == source):
                    continue
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                beside = copy.with_suffix(".new")
                beside.write_bytes(source)
                os.replace(beside, copy)
            except OSError as exc:
                logger.warning("a tool file's version is not kept", extra={"file": file, "error": str(exc)})

    def instead(self, broken: Collection[str]) -> dict[str, str]:
        """The copies of those that are broken and were good once."""
        copies = {file: self._copy(file) for file in broken if file}
        return {file: str(copy.resolve()) for file, copy in copies.items() if copy.exists()}

    def _copy(self, file: str) -> Path:
        return self.folder / f"{hashlib.sha256(file.encode(errors='surrogateescape')).hexdigest()[:32]}.py"


def told(first: Description, second: Description, instead: Mapping[str, str]) -> tuple[Problem, ...]:
    """What there is to say where `second` has loaded those copies: what is broken, and which version goes on."""
    still = {problem.file for problem in second.problems}
    problems = []
    for problem in first.problems:
        if problem.file in instead and problem.file not in still:
            since = datetime.fromtimestamp(os.stat(instead[problem.file]).st_mtime, UTC)
            goes_on = f"{problem.error}; its version of {since:%Y-%m-%d %H:%M} UTC goes on"
            problem = msgspec.structs.replace(problem, error=goes_on)
        problems.append(problem)
    return tuple(problems)


def explained(description: Description, missing: Mapping[str, str]) -> Description:
    """With why what a file needs is not there."""
    problems = [
        msgspec.structs.replace(each, error=f"{each.error}; {missing[each.file]}")
        if each.file in missing
        else each
        for each in description.problems
    ]
    silent = set(missing) - {each.file for each in problems}
    problems += [Problem(file=file, line=None, error=missing[file]) for file in sorted(silent)]
    return msgspec.structs.replace(description, problems=tuple(problems))
