"""What the calls of a host may take together, where the kernel bounds each process and each file alone: space in the
workspace, and memory. The host looks while calls run: there is no event for either, and a cgroup is not to be had everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

LOOK_S = 0.25
"""Seconds between two looks. Each is a statvfs(2) and a line of /proc for each process; a disk takes far less than a
gigabyte in that time."""

MAX_WRITTEN = 2 * 1024**3
"""Bytes that a call may leave in the workspace, in all of its files."""

TICK_S = 0.02
"""By how much the times of files may be behind the clock. ktime_get_coarse_real_ts64, at 100 Hz."""


def free(folder: Path) -> int:
    """Bytes of the file system that it is on."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def written(folder: Path, since: float) -> int:
    """Bytes of the disk that files below the folder take which were changed since then (of time.time()).

    By the time of change of the inode, which no program can set.
    """
    return sum(found.st_blocks * 512 for found in _files(folder) if found.st_ctime >= since - TICK_S)


def _files(folder: Path) -> Iterator[os.stat_result]:
    waiting = [os.fspath(folder)]
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                with suppress(OSError):  # gone again
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        yield entry.stat(follow_symlinks=False)


def resident() -> Mapping[int, int]:
    """Bytes of memory by process group, pages that are shared left out; empty where /proc does not tell."""
    page = os.sysconf("SC_PAGE_SIZE")
    found: dict[int, int] = {}
    try:
        names = os.listdir("/proc")
    except OSError:  # Landlock alone shows none of it
        return found
    for name in names:
        if name.isdigit():
            with suppress(OSError, IndexError, ValueError):
                _, pages, shared, *_ = map(int, Path("/proc", name, "statm").read_text().split())
                group = os.getpgid(int(name))
                found[group] = found.get(group, 0) + (pages - shared) * page
    return found
