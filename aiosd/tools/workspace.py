"""Files of a session's workspace, read so that nothing outside it, and nothing that could hang, is opened.

A path is opened twice: first as a mere place (O_PATH: no device starts, no FIFO waits), where the kernel says
what it really is and where it really lies, then that very file for reading. A path swapped for a symlink in
between changes nothing.
"""

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_FILE = 16 * 1024 * 1024
"""Bytes of a file that is read; a larger one is no text for a model."""
MAX_DEPTH = 40
MAX_VISITED = 100_000
"""Files looked at in one walk."""


class OutsideWorkspace(PermissionError):
    """The path leads out of the workspace."""


class NotText(ValueError):
    """Not something to read: a folder, a device, a binary, a file too large."""


class TooMany(Exception):
    """The walk ended before it saw everything."""


def _outside(path: str) -> OutsideWorkspace:
    return OutsideWorkspace(f"`{shown(path)}` is outside the workspace; only files inside it can be read")


@contextmanager
def _place(root: Path, path: str) -> Iterator[tuple[int, str]]:
    """An O_PATH descriptor of what the path names, and the path from the root to where that really lies.

    Raises OutsideWorkspace, FileNotFoundError, OSError.
    """
    if "\0" in path:
        raise NotText("a path has no NUL characters")
    base = os.path.realpath(root)
    wanted = os.path.normpath(os.path.join(base, path))
    if wanted != base and not wanted.startswith(base.rstrip("/") + "/"):
        raise _outside(path)
    try:
        descriptor = os.open(wanted, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no `{shown(path)}` in the workspace") from None
    except OSError as exc:
        raise OSError(f"`{shown(path)}`: {exc.strerror}") from None
    try:
        real = os.readlink(f"/proc/self/fd/{descriptor}")
        if real != base and not real.startswith(base.rstrip("/") + "/"):
            raise _outside(path)
        yield descriptor, os.path.relpath(real, base)
    finally:
        os.close(descriptor)


def read(root: Path, path: str) -> str:
    """A whole text file; what is not UTF-8 in it becomes U+FFFD. Raises as `_place`, and NotText."""
    with _place(root, path) as (place, _):
        mode = os.fstat(place).st_mode
        if stat.S_ISDIR(mode):
            raise NotText(f"`{shown(path)}` is a folder; list_files shows what is in it")
        if not stat.S_ISREG(mode):
            raise NotText(f"`{shown(path)}` is not a file: it is a device, a pipe or a socket")
        return _text(os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC), shown(path))


def _text(descriptor: int, name: str) -> str:
    """Takes the descriptor over. Raises NotText."""
    with open(descriptor, "rb") as file:
        raw = file.read(MAX_FILE + 1)
        if b"\0" in raw[:8192]:
            raise NotText(f"`{name}` is a binary file of {os.fstat(file.fileno()).st_size} bytes, not text")
        if len(raw) > MAX_FILE:
            size = os.fstat(file.fileno()).st_size
            raise NotText(f"`{name}` has {size} bytes; files up to {MAX_FILE} bytes are read")
    return raw.decode("utf-8", errors="replace")


def walk(root: Path, path: str) -> Iterator[tuple[str, str, int]]:
    """Regular files at or below a path, folder by folder, by name: path from the root, name, and an open
    descriptor of its folder to read it from, which lasts until the next step.

    Hidden folders, symlinks and folders deeper than `MAX_DEPTH` are passed over. Raises as `_place`, NotText,
    and TooMany after `MAX_VISITED` files.
    """
    with _place(root, path) as (place, top):
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            folder, name = os.path.split(top)
            with _place(root, folder) as (parent, _):
                if not is_file(parent, name):
                    raise NotText(f"`{shown(path)}` is neither a file nor a folder")
                yield top, name, parent
            return
        descriptor = os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        visited = 0
        for folder, folders, names, here in os.fwalk(".", dir_fd=descriptor):
            relative = os.path.normpath(os.path.join(top, folder))
            deep = folder.count("/") >= MAX_DEPTH
            folders[:] = [] if deep else sorted(f for f in folders if not f.startswith("."))
            for name in sorted(names):
                visited += 1
                if visited > MAX_VISITED:
                    raise TooMany(f"stopped after {MAX_VISITED} files; name a folder")
                if is_file(here, name):
                    yield os.path.normpath(os.path.join(relative, name)), name, here
    finally:
        os.close(descriptor)


def is_file(folder: int, name: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except FileNotFoundError:  # removed since its folder was read
        return False


def read_at(folder: int, name: str) -> str:
    """A file of an open folder, never through a symlink. Raises NotText, OSError."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(name, flags, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotText(f"`{shown(name)}` is not a file")
    return _text(descriptor, shown(name))


def lines(text: str) -> list[str]:
    """As editors count them: unlike str.splitlines, a form feed ends no line."""
    found = text.replace("\r\n", "\n").split("\n")
    return found if found[-1] else found[:-1]


def matches(path: str, name: str, pattern: str) -> bool:
    """Whether a glob names the file, by its name or by its path; `*` also passes over `/`, `**/` over nothing."""
    return (
        fnmatch.fnmatchcase(name, pattern)
        or fnmatch.fnmatchcase(path, pattern)
        or fnmatch.fnmatchcase(path, pattern.removeprefix("./").removeprefix("**/"))
    )


def shown(path: str) -> str:
    """A path as one line of valid text, whatever bytes it has."""
    text = os.fsencode(path).decode("utf-8", errors="replace") if _has_surrogates(path) else path
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= c <= "\udfff" for c in text)
