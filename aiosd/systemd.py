"""The sd_notify(3) protocol: telling whoever started the daemon how it stands. systemd listens, and so does aiosctl."""

from __future__ import annotations

import os
import socket


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
