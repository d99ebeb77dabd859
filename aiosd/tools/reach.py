"""Which hosts a tool may reach: what `hosts=[...]` means, and what an HTTP proxy that keeps to it does with a request.

An entry is a host (`api.example.com`: its ports 80 and 443), one with a port (`api.example.com:8443`), all below a domain
(`*.example.com`), an address or network (`192.168.1.20:8080`, `10.0.0.0/8`, `[fd00::1]:443`), `localhost`, or `*`: any
public host. A name leads to public addresses only, whatever its DNS says, unless the address is listed as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import msgspec

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

WEB = (80, 443)
"""The ports of an entry that names none."""

MAX_HEAD = 16 * 1024
"""Bytes of a request before its body."""

LOOPBACK: tuple[Network, ...] = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))

NOT_PUBLIC_V4 = tuple(
    IPv4Network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15"),
        *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
    )
)
"""IANA IPv4 Special-Purpose Address Registry, with multicast and what is reserved."""

PUBLIC_V6 = IPv6Network("2000::/3")
"""All that IANA has given out as global unicast."""

NOT_PUBLIC_V6 = tuple(map(IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))
"""Of these, tunnels (6to4, Teredo) and documentation."""

NAT64 = IPv6Network("64:ff9b::/96")
"""RFC 6052: the last 32 bits are an IPv4 address."""

_LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PORT = re.compile(r"[0-9]{1,5}")
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TARGET = re.compile(rb"[\x21-\x7e]+")

HOP_BY_HOP = frozenset(
    {
        *(
            "host",
            "connection",
            "proxy-connection",
            "proxy-authorization",
            "proxy-authenticate",
            "keep-alive",
        ),
        *("te", "trailer", "upgrade", "transfer-encoding"),
    }
)
"""Headers for the proxy alone (RFC 9110, 7.6.1), and Host, which is written anew."""


class Refused(Exception):
    """What the proxy does not do; `status` is HTTP's."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Entry(msgspec.Struct, frozen=True):
    name: str
    """A host, `*.` and a domain, or `*`; empty where only addresses are listed."""
    networks: tuple[Network, ...]
    ports: tuple[int, ...]

    def names(self, host: str, port: int) -> bool:
        if port not in self.ports:
            return False
        return self.name in ("*", host) or (self.name.startswith("*.") and host.endswith(self.name[1:]))

    def lists(self, address: Address, port: int) -> bool:
        return port in self.ports and any(address in network for network in self.networks)


def entry(text: str) -> Entry:
    """Raises ValueError for what is no entry."""
    host, port = text.strip(), ""
    if host.startswith("[") and "]" in host:
        host, _, rest = host[1:].partition("]")
        if rest and not rest.startswith(":"):
            raise ValueError(f"`{text}`: expected `[ADDRESS]:PORT`")
        port = rest[1:]
    elif host.count(":") == 1:
        host, _, port = host.partition(":")
        if not port:
            raise ValueError(f"`{text}`: expected a port after `:`")
    ports = (_port(port),) if port else WEB
    if host == "*":
        return Entry("*", (), ports)
    try:
        return Entry("", (ip_network(host),), ports)
    except ValueError:
        domain = host.lower().removeprefix("*.").removesuffix(".")
    if not _NAME.fullmatch(domain) or _NUMBER.fullmatch(domain.rpartition(".")[2]):
        raise ValueError(
            f"`{text}`: expected a host such as `api.example.com`, `*.example.com` or `10.0.0.5:8080`"
        )
    return Entry(
        f"*.{domain}" if host.startswith("*.") else domain, LOOPBACK if domain == "localhost" else (), ports
    )


def entries(texts: Iterable[str]) -> tuple[Entry, ...]:
    """Raises ValueError."""
    return tuple(map(entry, texts))


def canonical(host: str) -> str:
    """A host as it is compared: lower case, without a last dot; an address in its one form. Raises ValueError for what
    a resolver may take for an address though it does not look like one (`127.1`, `0x7f000001`, `2130706433`)."""
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if ":" in bare:
        if "%" in bare or bare == host:
            raise ValueError("no IPv6 address")
        return str(plain(IPv6Address(bare)))
    bare = bare.lower().removesuffix(".")
    try:
        return str(IPv4Address(bare))
    except ValueError:
        if not _NAME.fullmatch(bare) or len(bare) > 253 or _NUMBER.fullmatch(bare.rpartition(".")[2]):
            raise ValueError("neither a host's name nor an address") from None
        return bare


def plain(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for; otherwise itself."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def is_public(address: Address) -> bool:
    address = plain(address)
    if isinstance(address, IPv4Address):
        return not any(address in network for network in NOT_PUBLIC_V4)
    return address in PUBLIC_V6 and not any(address in network for network in NOT_PUBLIC_V6)


def check_host(listed: Sequence[Entry], host: str, port: int) -> None:
    """Before the host, in its canonical form, is looked up. Raises Refused."""
    try:
        address = ip_address(host)
    except ValueError:
        address = None
    if address is not None and any(each.lists(plain(address), port) for each in listed):
        return
    if any(each.names(host, port) for each in listed):
        return
    if any(each.names(host, p) for each in listed for p in each.ports):
        raise Refused(403, f"port {port} of {host} is not among the tool's hosts")
    raise Refused(403, f"{host} is not among the tool's hosts")


def reachable(listed: Sequence[Entry], host: str, port: int, found: Sequence[Address]) -> tuple[Address, ...]:
    """Of the addresses that a host has, those that may be connected to. Raises Refused where that is none."""
    taken = tuple(
        address
        for address in dict.fromkeys(map(plain, found))
        if is_public(address) or any(each.lists(address, port) for each in listed)
    )
    if not taken:
        where = ", ".join(dict.fromkeys(str(plain(a)) for a in found)) or "no address"
        raise Refused(403, f"{host} is at {where}, which is not public and not among the tool's hosts")
    return taken


# --- requests ----------------------------------------------------------------------------------------------


class Asked(msgspec.Struct, frozen=True):
    """A request to the proxy."""

    host: str
    """Canonical."""
    port: int
    head: bytes
    """What the host is sent first; empty where the client speaks to it itself (CONNECT)."""
    body: int
    """Bytes that follow it."""


def request(head: bytes) -> Asked:
    """What a request asks for, from its first line to the empty one. RFC 9112. Raises Refused.

    Of a request in absolute-form all that names a host is written anew from its first line, and one request is all that a
    connection carries: what the proxy has checked is what the host reads.
    """
    first, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    parts = first.split(b" ")
    if len(parts) != 3 or parts[2] not in (b"HTTP/1.1", b"HTTP/1.0") or not _TOKEN.fullmatch(parts[0]):
        raise Refused(400, "no HTTP request")
    method, target, _ = parts
    if not _TARGET.fullmatch(target):
        raise Refused(400, "its target has characters that no URL has")
    fields = [_field(line) for line in lines]
    if method == b"CONNECT":
        host, port = _authority(target.decode(), None)
        return Asked(host, port, b"", 0)
    if target[:7].lower() != b"http://":
        raise Refused(400, "this is a proxy: it takes CONNECT and http:// URLs")
    rest = target[7:]
    cut = next((i for i, c in enumerate(rest) if c in b"/?#"), len(rest))
    host, port = _authority(rest[:cut].decode(), 80)
    path = rest[cut:].partition(b"#")[0]
    origin = path if path.startswith(b"/") else b"/" + path
    shown = f"[{host}]" if ":" in host else host
    named = {
        token.strip() for name, value in fields if name == "connection" for token in value.lower().split(b",")
    }
    kept = [
        line
        for line, (name, _) in zip(lines, fields, strict=True)
        if name not in HOP_BY_HOP and name.encode() not in named
    ]
    start = [
        b"%s %s HTTP/1.1" % (method, origin),
        b"Host: %s" % (shown if port == 80 else f"{shown}:{port}").encode(),
        b"Connection: close",
    ]
    return Asked(host, port, b"\r\n".join([*start, *kept]) + b"\r\n\r\n", _length(fields))


def _field(line: bytes) -> tuple[str, bytes]:
    name, colon, value = line.partition(b":")
    if not colon or not _TOKEN.fullmatch(name) or re.search(rb"[\x00\r\n]", value):
        raise Refused(400, "a header that is none")
    return name.decode().lower(), value.strip()


def _length(fields: Sequence[tuple[str, bytes]]) -> int:
    if any(name == "transfer-encoding" for name, _ in fields):
        raise Refused(411, "a body needs its Content-Length here")
    given = {value for name, value in fields if name == "content-length"}
    if not given:
        return 0
    if len(given) > 1 or not re.fullmatch(rb"[0-9]{1,15}", text := given.pop()):
        raise Refused(400, "a Content-Length that is none")
    return int(text)


def _authority(text: str, default: int | None) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, ""
    try:
        number = _port(port) if port or default is None else default
        return canonical(host), number
    except ValueError:
        raise Refused(400, f"`{text[:100]}` is no host and port") from None


def _port(text: str) -> int:
    if not _PORT.fullmatch(text) or not 0 < int(text) < 65536:
        raise ValueError(f"`{text}`: expected a port from 1 to 65535")
    return int(text)


def refusal(refused: Refused) -> bytes:
    """The answer to what was refused. Clients show the reason of a failed CONNECT, and no more of it."""
    why = f"aiosd: {refused}".encode("ascii", "replace")
    lines = [
        b"HTTP/1.1 %d %s" % (refused.status, why),
        b"Content-Type: text/plain",
        b"Content-Length: %d" % (len(why) + 1),
        b"Connection: close",
    ]
    return b"\r\n".join([*lines, b"", why + b"\n"])
