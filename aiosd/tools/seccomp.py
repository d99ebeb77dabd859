"""Which system calls a tool may not make. seccomp(2); the filter is classic BPF, assembled here.

A list of what is refused: code of others must run, and an allow-list that is right for every libc is not to be had.
Calls newer than the list answer ENOSYS, as on an older kernel. No socket of any kind can be made, except, where there is a
way out of the tool's own network, for TCP over IPv4.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Sequence

from aiosd.tools.syscalls import call, number

SECCOMP_SET_MODE_FILTER = 1
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
RET_KILL_PROCESS, RET_ERRNO, RET_ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
"""seccomp(2)."""

LD_ABS, JEQ, JGE, JSET, RET, AND = 0x20, 0x15, 0x35, 0x45, 0x06, 0x54
"""BPF: load a word of the call's data; jumps; return; and with a constant. linux/bpf_common.h."""

ARGUMENT = 16
"""Where the low word of the first argument lies in the call's data; the next is 8 bytes on. Both machines are
little-endian."""

X32 = 0x40000000
"""Numbers from here on are x86_64's x32 calls, which would pass by every other number."""

UNKNOWN = 463
"""The first call that this list was not written for (setxattrat, Linux 6.13)."""

NEW_NAMESPACES = 0x7E020000
AF_INET, SOCK_STREAM, IPPROTO_TCP = 2, 1, 6
TYPE = 0xF
"""Of socket(2)'s second argument; the rest are flags."""
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
F_SETOWN, F_SETSIG, F_SETOWN_EX = 8, 10, 15

REFUSED = (
    # other processes
    *("ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "pidfd_send_signal", "kcmp"),
    *("process_madvise", "process_mrelease", "migrate_pages", "move_pages"),
    # mounts, namespaces, what a file is reached by without its path
    *("mount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "fsopen", "fsconfig", "fsmount"),
    *("fspick", "mount_setattr", "statmount", "listmount", "unshare", "setns"),
    *("open_by_handle_at", "name_to_handle_at", "mknod", "mknodat", "fanotify_init"),
    # parts of the kernel in which most of its holes were found
    *("io_uring_setup", "io_uring_enter", "io_uring_register", "bpf", "perf_event_open", "userfaultfd"),
    *(
        "keyctl",
        "add_key",
        "request_key",
        "memfd_secret",
        "modify_ldt",
        "personality",
        "mbind",
        "set_mempolicy",
    ),
    # the machine
    *("kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "reboot", "acct"),
    *(
        "swapon",
        "swapoff",
        "quotactl",
        "quotactl_fd",
        "syslog",
        "sethostname",
        "setdomainname",
        "iopl",
        "ioperm",
    ),
    *("settimeofday", "clock_settime", "adjtimex", "clock_adjtime", "vhangup", "uselib", "lookup_dcookie"),
)

REFUSED_WITHOUT_NAMESPACES = (
    # Landlock has no say in who may change what belongs to a file beside its content ...
    *("chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat", "utime", "utimes"),
    *(
        "futimesat",
        "utimensat",
        "setxattr",
        "lsetxattr",
        "fsetxattr",
        "removexattr",
        "lremovexattr",
        "fremovexattr",
    ),
    # ... nor in memory and queues shared by number or name
    *("shmget", "shmat", "shmctl", "semget", "semop", "semctl", "semtimedop", "msgget", "msgsnd", "msgrcv"),
    *("msgctl", "mq_open", "mq_unlink"),
)

Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false, constant. linux/filter.h."""


def _refuse(code: int = errno.EPERM) -> Instruction:
    return (RET, 0, 0, RET_ERRNO | code)


ALLOW: Instruction = (RET, 0, 0, RET_ALLOW)


def _head() -> list[Instruction]:
    """Ends what comes by another door (int 0x80, x32); leaves the call's number loaded."""
    arch = AUDIT_ARCH[os.uname().machine]
    kill = (RET, 0, 0, RET_KILL_PROCESS)
    return [(LD_ABS, 0, 0, 4), (JEQ, 1, 0, arch), kill, (LD_ABS, 0, 0, 0), (JGE, 0, 1, X32), kill]


def _when(name: str, body: Sequence[Instruction]) -> list[Instruction]:
    """`body` for the call of this name; it must return."""
    nr = number(name)
    return [] if nr is None else [(JEQ, 0, len(body), nr), *body]


def _refuse_all(names: Sequence[str], code: int = errno.EPERM) -> list[Instruction]:
    numbers = sorted({nr for name in names if (nr := number(name)) is not None})
    return [i for nr in numbers for i in ((JEQ, 0, 1, nr), _refuse(code))]


def _only(argument: int, value: int) -> list[Instruction]:
    """Goes on where the argument has the value, and refuses otherwise."""
    return [(LD_ABS, 0, 0, ARGUMENT + 8 * argument), (JEQ, 1, 0, value), _refuse()]


_TCP = [
    *((LD_ABS, 0, 0, ARGUMENT), (JEQ, 1, 0, AF_INET), _refuse()),
    *((LD_ABS, 0, 0, ARGUMENT + 8), (AND, 0, 0, TYPE), (JEQ, 1, 0, SOCK_STREAM), _refuse()),
    # Multipath TCP, which Landlock has no say in, is a protocol of its own.
    *((LD_ABS, 0, 0, ARGUMENT + 16), (JEQ, 1, 0, 0), (JEQ, 0, 1, IPPROTO_TCP), ALLOW, _refuse()),
]
"""For the call `socket`: family, type without its flags, protocol."""


def tools_filter(*, namespaces: bool, network: bool = False) -> bytes:
    """For a host and all its calls. `network`: TCP over IPv4, in a network of its own."""
    program = _head()
    program += [(JGE, 0, 1, UNKNOWN), _refuse(errno.ENOSYS)]
    program += _refuse_all(REFUSED if namespaces else (*REFUSED, *REFUSED_WITHOUT_NAMESPACES))
    program += _when("socket", _TCP if network else [_refuse()])
    # Space is taken by writing it, which lasts long enough to be seen (aiosd.tools.quota); programs write zeros instead.
    program += _when("fallocate", [_refuse(errno.EOPNOTSUPP)])
    program += _when("clone3", [_refuse(errno.ENOSYS)])  # its flags lie in memory; libcs fall back to clone
    program += _when("clone", [(LD_ABS, 0, 0, ARGUMENT), (JSET, 0, 1, NEW_NAMESPACES), _refuse(), ALLOW])
    terminal = [(LD_ABS, 0, 0, ARGUMENT + 8), (JEQ, 1, 0, TIOCSTI), (JEQ, 0, 1, TIOCLINUX), _refuse(), ALLOW]
    program += _when("ioctl", terminal)
    # Limits, priorities and processors: one's own only (pid 0), and by process, since "all of my user's" is others too.
    program += _when("setpriority", [*_only(0, 0), *_only(1, 0), ALLOW])
    program += _when("ioprio_set", [*_only(0, 1), *_only(1, 0), ALLOW])
    for name in ("prlimit64", "sched_setparam", "sched_setscheduler", "sched_setaffinity", "sched_setattr"):
        program += _when(name, [*_only(0, 0), ALLOW])
    return _packed([*program, ALLOW])


def signals_filter() -> bytes:
    """For a call where neither a namespace nor Landlock keeps its signals in: only its own group can be killed."""
    program = _head()
    program += _when("kill", [*_only(0, 0), ALLOW])
    program += _refuse_all(("tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo"))
    asked = [(JEQ, 2, 0, F_SETOWN), (JEQ, 1, 0, F_SETSIG), (JEQ, 0, 1, F_SETOWN_EX)]
    program += _when("fcntl", [(LD_ABS, 0, 0, ARGUMENT + 8), *asked, _refuse(), ALLOW])
    return _packed([*program, ALLOW])


def refusing(names: Sequence[str], code: int) -> bytes:
    """Only these calls, with this error: how machines without one or the other wall behave."""
    return _packed([*_head(), *_refuse_all(names, code), ALLOW])


def _packed(program: Sequence[Instruction]) -> bytes:
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


def install(program: bytes) -> None:
    """For this process, for ever, and for all it starts. Needs no_new_privs. Raises OSError."""
    held = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(held))
    call("seccomp", SECCOMP_SET_MODE_FILTER, 0, head)
