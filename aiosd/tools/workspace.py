"""Files of a session's workspace, opened so that nothing outside it, and nothing that could hang, ever is.

A path is opened twice: first as a mere place (O_PATH: no device starts, no FIFO waits), to which openat2(2) goes
without ever leaving the workspace and of which the kernel says what and where it really is, then that very file for
reading. A path swapped for a symlink in between changes nothing. A file is written beside its place, in a folder that
was found in the same way, and moved there whole.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from aiosd.tools import syscalls

MAX_FILE = 16 * 1024 * 1024
"""Bytes of a file that is read; a larger one is no text for a model."""
MAX_DEPTH = 40
MAX_VISITED = 100_000
"""Files looked at in one walk."""


RESOLVE_NO_MAGICLINKS, RESOLVE_BENEATH = 0x02, 0x08
"""openat2(2)."""

SWAPS = 100
"""How often a path is tried anew that is changed while the kernel walks it."""


outputs: str | None = None
"""The folder with the session's long outputs, which is read like the workspace; set once, by the tool host."""


class OutsideWorkspace(PermissionError):
    """The path leads out of the workspace."""


class NotText(ValueError):
    """Not something to read: a folder, a device, a binary, a file too large."""


class Binary(NotText):
    """A file that is no text at all."""


class TooMany(Exception):
    """The walk ended before it saw everything."""


def _outside(path: str) -> OutsideWorkspace:
    return OutsideWorkspace(f"`{shown(path)}` is outside the workspace; only files inside it can be read")


@contextmanager
def _place(root: Path, path: str) -> Iterator[tuple[int, str]]:
    """An O_PATH descriptor of what the path names, and the path from the root to where that really lies.

    Raises OutsideWorkspace, FileNotFoundError, OSError.
    """
    base, wanted = _inside(root, path)
    try:
        descriptor = _found(base, wanted)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no `{shown(path)}` in the workspace") from None
    except OSError as exc:
        if exc.errno == errno.EXDEV:
            raise _outside(path) from None
        raise OSError(f"`{shown(path)}`: {os.strerror(exc.errno or 0)}") from None
    try:
        real = os.readlink(f"/proc/self/fd/{descriptor}")
        if real != base and not real.startswith(base.rstrip("/") + "/"):
            raise _outside(path)
        yield descriptor, os.path.relpath(real, base)
    finally:
        os.close(descriptor)


def _found(base: str, wanted: str) -> int:
    """An O_PATH descriptor of what is there. Raises OSError, with EXDEV for a way that leads out."""
    flags = os.O_PATH | os.O_CLOEXEC
    top = os.open(base, flags | os.O_DIRECTORY)
    try:
        try:
            return _openat2(top, os.path.relpath(wanted, base), flags)
        except OSError as exc:
            if exc.errno == errno.ENOSYS:
                return os.open(wanted, flags)  # whoever asked looks where that has led
            if exc.errno != errno.EXDEV:
                raise
        # To the kernel a symlink with a whole path leads out, wherever it leads; this one may lead back in.
        return _openat2(top, os.path.relpath(os.path.realpath(wanted), base), flags)
    finally:
        os.close(top)


def _inside(root: Path, path: str) -> tuple[str, str]:
    """The workspace and the path, absolute, by their words alone. Raises OutsideWorkspace, NotText."""
    if "\0" in path:
        raise NotText("a path has no NUL characters")
    base = os.path.realpath(root)
    wanted = os.path.normpath(os.path.join(base, path))
    if wanted != base and not wanted.startswith(base.rstrip("/") + "/"):
        raise _outside(path)
    return base, wanted


def _top(root: Path, path: str) -> Path:
    """The folder that the path may not leave: the workspace, or that of the outputs where it names one of these."""
    within = outputs is not None and os.path.normpath(path).startswith(outputs.rstrip("/") + "/")
    return Path(outputs or "") if within else root


def read(root: Path, path: str) -> str:
    """A whole text file; what is not UTF-8 in it becomes U+FFFD. Raises as `_place`, and NotText."""
    with _place(_top(root, path), path) as (place, _):
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
            raise Binary(f"`{name}` is a binary file of {os.fstat(file.fileno()).st_size} bytes, not text")
        if len(raw) > MAX_FILE:
            size = os.fstat(file.fileno()).st_size
            raise NotText(f"`{name}` has {size} bytes; files up to {MAX_FILE} bytes are read")
    return raw.decode("utf-8", errors="replace")


def write(root: Path, path: str, text: str) -> None:
    """Puts the text there whole or not at all, with the folders above it; a file that was there keeps its mode.

    Raises OutsideWorkspace, NotText for what is no file, OSError.
    """
    base, wanted = _inside(root, path)
    folder, name = os.path.split(os.path.relpath(wanted, base))
    if name in (".", ""):
        raise NotText(f"`{shown(path)}` is a folder")
    raw = text.encode("utf-8", errors="surrogateescape")
    top = os.open(base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        parent = _folder(top, folder, path)
    finally:
        os.close(top)
    try:
        _replace(parent, name, raw, path)
    except OSError as exc:
        if exc.errno == errno.EROFS:
            raise PermissionError("the workspace is read-only in this session") from None
        raise
    finally:
        os.close(parent)


def _replace(parent: int, name: str, raw: bytes, path: str) -> None:
    mode = 0o666
    try:
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        pass
    else:
        if not stat.S_ISREG(found.st_mode):
            kind = "a folder" if stat.S_ISDIR(found.st_mode) else "no plain file"
            raise NotText(f"`{shown(path)}` is {kind}; only a file can be written")
        mode = stat.S_IMODE(found.st_mode) & 0o777
    beside = f".{name[:100]}.{os.getpid()}~"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    mask = os.umask(0) if mode != 0o666 else None
    try:
        with open(os.open(beside, flags, mode, dir_fd=parent), "wb") as file:
            file.write(raw)
        os.rename(beside, name, src_dir_fd=parent, dst_dir_fd=parent)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(beside, dir_fd=parent)
        raise
    finally:
        if mask is not None:
            os.umask(mask)


def _folder(top: int, folder: str, path: str) -> int:
    """A descriptor of the folder below the open one, made with those above it where it is not there."""
    here = os.dup(top)
    for end, name in _steps(folder):
        try:
            try:
                there = _beneath(top, end)
            except FileNotFoundError:
                with suppress(FileExistsError):
                    os.mkdir(name, dir_fd=here)
                there = _beneath(top, end)
        except OSError as exc:
            if exc.errno in (errno.EXDEV, errno.ELOOP):
                raise _outside(path) from None
            if exc.errno == errno.EROFS:
                raise PermissionError("the workspace is read-only in this session") from None
            raise type(exc)(exc.errno, f"`{shown(path)}`: {os.strerror(exc.errno or 0)}") from None
        finally:
            os.close(here)
        here = there
    return here


def _steps(folder: str) -> Iterator[tuple[str, str]]:
    """`a/b` as `a`, then `a/b`, each with its last name."""
    names = [name for name in folder.split("/") if name]
    for count, name in enumerate(names, 1):
        yield "/".join(names[:count]), name


def _beneath(top: int, folder: str) -> int:
    """An O_PATH descriptor of a folder below the open one. Where the kernel has no openat2(2), no symlink is followed.
    Raises OSError, with EXDEV or ELOOP for a way that leads out."""
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        return _openat2(top, folder, flags)
    except OSError as exc:
        if exc.errno != errno.ENOSYS:
            raise
        return _walked(top, folder, flags)


def _openat2(top: int, path: str, flags: int) -> int:
    """What is below the open folder: the kernel goes there without ever leaving it. Raises OSError, with EXDEV for a way
    that leads out and ENOSYS before Linux 5.6."""
    how = struct.pack("QQQ", flags, 0, RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS)
    for _ in range(SWAPS):
        try:
            return syscalls.call("openat2", top, os.fsencode(path) + b"\0", how, len(how))
        except OSError as exc:
            if exc.errno != errno.EAGAIN:
                raise
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def _walked(top: int, folder: str, flags: int) -> int:
    here = os.dup(top)
    for name in folder.split("/"):
        try:
            there = os.open(name, flags | os.O_NOFOLLOW, dir_fd=here)
        except NotADirectoryError:
            if stat.S_ISLNK(os.stat(name, dir_fd=here, follow_symlinks=False).st_mode):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
            raise
        finally:
            os.close(here)
        here = there
    return here


def walk(root: Path, path: str) -> Iterator[tuple[str, str, int]]:
    """Regular files at or below a path, folder by folder, by name: path from the root, name, and an open
    descriptor of its folder to read it from, which lasts until the next step.

    Hidden folders, symlinks and folders deeper than `MAX_DEPTH` are passed over. Raises as `_place`, NotText,
    and TooMany after `MAX_VISITED` files.
    """
    root = _top(root, path)
    within = outputs if outputs == str(root) else ""
    with _place(root, path) as (place, top):
        top = os.path.join(within, top)
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


def real(root: Path, path: str) -> str:
    """The whole name of what the path names, where that really lies. Raises as `_place`."""
    root = _top(root, path)
    with _place(root, path) as (_, relative):
        return os.path.normpath(os.path.join(os.path.realpath(root), relative))


def size_at(folder: int, name: str) -> int:
    """Bytes of a file of an open folder that could be read. Raises NotText for more than MAX_FILE, OSError."""
    if not os.access(name, os.R_OK, dir_fd=folder):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
    size = os.stat(name, dir_fd=folder, follow_symlinks=False).st_size
    if size > MAX_FILE:
        raise NotText(f"`{shown(name)}` has {size} bytes")
    return size


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
