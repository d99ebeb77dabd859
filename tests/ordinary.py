"""Runs a command as an ordinary user, or on a machine without one wall or another:

    python -m tests.ordinary UID WITHOUT COMMAND...

Root drops to UID, for good; anyone else stays who they are. Where that user could not read this Python (in a home of
mode 0700, say), it is mounted where it lies in a mount namespace, with nothing else of that home. WITHOUT is "" or some
of `namespaces,landlock,userns-quota`: the system calls fail as they do on such a machine.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

from aiosd.tools import seccomp
from aiosd.tools import syscalls as sc

UID = 61_234
"""Nobody's, most likely."""


def main() -> None:
    uid, without, *command = sys.argv[1:]
    if os.geteuid() == 0:
        _make_readable([Path(sys.prefix), Path(sys.base_prefix), Path(__file__).parents[1]])
        os.setgroups([])
        os.setgid(int(uid))
        os.setuid(int(uid))
    sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
    if "userns-quota" in without:
        uid_map = f"{os.geteuid()} {os.geteuid()} 1"
        sc.prctl(sc.PR_SET_DUMPABLE, 1)  # lost with root
        sc.unshare(sc.CLONE_NEWUSER)
        Path("/proc/self/uid_map").write_text(uid_map)
        Path("/proc/sys/user/max_user_namespaces").write_text("0")
        sc.drop_capabilities()
    if "namespaces" in without:  # as Docker's filter
        seccomp.install(seccomp.refusing(["unshare"], errno.EPERM))
    if "landlock" in without:
        seccomp.install(seccomp.refusing(["landlock_create_ruleset"], errno.ENOSYS))
    os.execv(command[0], command)


def _make_readable(places: list[Path]) -> None:
    closed: dict[Path, list[Path]] = {}
    for place in dict.fromkeys(places):
        for parent in reversed(place.parents):
            if not parent.stat().st_mode & 0o001:
                closed.setdefault(parent, []).append(place)
                break
    if not closed:
        return
    sc.unshare(sc.CLONE_NEWNS)
    sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
    for parent, below in closed.items():
        sources = {place: os.open(place, os.O_PATH) for place in below}
        sc.mount("tmpfs", str(parent), "tmpfs", 0, "mode=755")
        for place, source in sources.items():
            place.mkdir(parents=True)
            sc.mount(f"/proc/self/fd/{source}", str(place), None, sc.MS_BIND | sc.MS_REC)
            os.close(source)


if __name__ == "__main__":
    main()
