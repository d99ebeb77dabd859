"""Which files a tool may open, by Landlock (landlock(7)): an allow-list that needs no namespace.

What it has no say in: stat, readlink, chdir; chmod and its like; sockets by path. seccomp.py refuses what it can of these.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Sequence
from pathlib import Path

from aiosd.tools.syscalls import call

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
MAKE_CHAR, MAKE_BLOCK = 1 << 6, 1 << 11
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
READ = EXECUTE | READ_FILE | READ_DIR
OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
WRITE = ((1 << 15) - 1) & ~(MAKE_CHAR | MAKE_BLOCK)
RULE_PATH_BENEATH, RULE_NET_PORT = 1, 2
BIND_TCP, CONNECT_TCP = 1, 2
SCOPE_ABSTRACT_UNIX, SCOPE_SIGNAL = 1, 2
CREATE_RULESET_VERSION = 1

ALONE = 3
"""The ABI from which Landlock can be the only wall around files: before, truncate(2) reached all of them. Linux 6.2."""

NETWORK = 4
"""The ABI from which it has a say in TCP. Linux 6.7."""

SIGNALS = 6
"""The ABI from which it keeps signals in. Linux 6.12."""


def abi() -> int:
    """0 where the kernel has none, or has it turned off."""
    try:
        return call("landlock_create_ruleset", None, 0, CREATE_RULESET_VERSION)
    except OSError:
        return 0


def ruleset(
    abi: int,
    *,
    read: Sequence[Path],
    write: Sequence[Path],
    folders: Sequence[int] = (),
    ports: Sequence[int] = (),
) -> int:
    """A descriptor for `restrict`, of which any number of processes can make use.

    Paths that are not there are passed over; `folders` are open ones to read. No TCP but to `ports`, and from SIGNALS on neither
    signals nor abstract sockets to who is not in the same domain or one below it.
    """
    handled = (1 << 13) - 1
    handled |= (REFER if abi >= 2 else 0) | (TRUNCATE if abi >= 3 else 0) | (IOCTL_DEV if abi >= 5 else 0)
    fields = [handled]
    if abi >= NETWORK:
        fields.append(BIND_TCP | CONNECT_TCP)
    if abi >= SIGNALS:
        fields.append(SCOPE_ABSTRACT_UNIX | SCOPE_SIGNAL)
    attributes = struct.pack(f"{len(fields)}Q", *fields)
    made = call("landlock_create_ruleset", attributes, len(attributes), 0)
    for path in read:
        _allow(made, path, READ & handled)
    for path in write:
        _allow(made, path, (WRITE | IOCTL_DEV) & handled)
    for port in ports if abi >= NETWORK else ():
        call("landlock_add_rule", made, RULE_NET_PORT, struct.pack("=QQ", CONNECT_TCP, port), 0)
    for folder in folders:
        _add(made, folder, (READ_FILE | READ_DIR) & handled)
    return made


def _allow(made: int, path: Path, access: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        _add(made, descriptor, access)
    finally:
        os.close(descriptor)


def _add(made: int, descriptor: int, access: int) -> None:
    if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
        access &= OF_A_FILE
    call("landlock_add_rule", made, RULE_PATH_BENEATH, struct.pack("=Qi", access, descriptor), 0)


def restrict(made: int) -> None:
    """This process, for ever, and all it starts. Needs no_new_privs."""
    call("landlock_restrict_self", made, 0)
