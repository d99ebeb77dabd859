"""The processes of tool hosts as this test's process sees them: inside its walls a host is process 1, and its calls count on."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


class Host:
    """The host of one workspace. Raises LookupError where there is none."""

    def __init__(self, workspace: Path, daemon: int | None = None) -> None:
        found = [pid for pid in _below(daemon or os.getpid()) if f'"{workspace}"' in _command(pid)]
        if not found:
            raise LookupError(f"no host of {workspace}")
        self.pid = max(found, key=lambda pid: (len(_numbers(pid)), -_numbers(pid)[-1]))

    def processes(self) -> list[int]:
        """What it has started, directly or not."""
        return _below(self.pid)

    def outside(self, pid: int) -> int:
        """The number out here of a process that has this one inside."""
        return next(p for p in (self.pid, *_below(self.pid)) if _numbers(p)[-1] == pid)


def _below(pid: int) -> list[int]:
    """Its children, and theirs."""
    found: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split()):
                found += [child, *_below(child)]
    return found


def _command(pid: int) -> str:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def _numbers(pid: int) -> list[int]:
    """Out here first, in its innermost namespace last."""
    with suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return [int(n) for n in line.split()[1:]]
    return [0]
