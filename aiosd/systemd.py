"""How a service manager and the daemon talk: sd_notify(3) and sd_listen_fds(3). aiosctl listens by the same protocol."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

LISTEN_FDS_START = 3


def notify(state: str) -> None:
    """Sends one state, such as `READY=1`; nothing where nobody listens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.setblocking(False)  # a listener that does not read must not hold the daemon up
        try:
            sender.sendto(state.encode(), address)
        except (BlockingIOError, ConnectionError, FileNotFoundError):
            return


def watchdog_s(environ: Mapping[str, str]) -> float | None:
    """Seconds between two signs of life: half of what the service manager waits. sd_watchdog_enabled(3); None where
    it does not watch this process."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    usec = environ.get("WATCHDOG_USEC", "")
    return int(usec) / 2e6 if usec.isdecimal() and int(usec) else None


def credential(name: str, environ: Mapping[str, str]) -> str | None:
    """The text of a credential of the service: LoadCredential= in systemd.exec(5). None where there is none of that
    name that can be read."""
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if not folder or "/" in name:
        return None
    try:
        return (Path(folder) / name).read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def passed_socket(environ: Mapping[str, str]) -> socket.socket | None:
    """The listening socket that socket activation hands over; None where the daemon was started otherwise."""
    if environ.get("LISTEN_PID") != str(os.getpid()) or environ.get("LISTEN_FDS") != "1":
        return None
    passed = socket.socket(fileno=LISTEN_FDS_START)
    passed.set_inheritable(False)
    return passed
