"""What tools reach of the network: the rules as tables, and hostile tools behind a real daemon's proxy."""

from __future__ import annotations

import contextlib
import http.server
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any, ClassVar

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosd.errors import ToolFailed
from aiosd.protocol.system import SystemInfo
from aiosd.protocol.tools import ToolCall, ToolGet
from aiosd.tools import egress, reach
from aiosd.tools.sandbox import Tier
from tests.daemon import Daemon

# --- the rules ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listed", "host", "port", "passes"),
    [
        ("api.test", "api.test", 443, True),
        ("api.test", "api.test", 80, True),
        ("api.test", "api.test", 22, False),
        ("api.test", "www.api.test", 443, False),
        ("api.test", "api.test.evil.example", 443, False),
        ("API.Test.", "api.test", 443, True),
        ("*.api.test", "www.api.test", 443, True),
        ("*.api.test", "a.b.api.test", 443, True),
        ("*.api.test", "api.test", 443, False),
        ("*.api.test", "evilapi.test", 443, False),
        ("api.test:8443", "api.test", 8443, True),
        ("api.test:8443", "api.test", 443, False),
        ("*", "anything.test", 443, True),
        ("*", "anything.test", 25, False),
        ("api.test", "93.184.216.34", 443, False),
        ("93.184.216.34", "93.184.216.34", 443, True),
        ("10.0.0.0/8", "10.1.2.3", 80, True),
        ("10.0.0.0/8", "11.1.2.3", 80, False),
        ("[fd00::1]:443", "fd00::1", 443, True),
        ("[fd00::1]:443", "fd00::2", 443, False),
        ("localhost:8080", "localhost", 8080, True),
    ],
)
def test_a_host_is_asked_for_by_its_entry_and_no_more(
    listed: str, host: str, port: int, passes: bool
) -> None:
    try:
        reach.check_host([reach.entry(listed)], host, port)
    except reach.Refused:
        assert not passes
    else:
        assert passes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "*.",
        "http://a.test",
        "a.test/",
        "a b",
        "a.test:",
        "a.test:0",
        "a.test:99999",
        "[::1",
        "-a.test",
        "é.test",
    ],
)
def test_what_is_no_entry_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        reach.entry(text)


@pytest.mark.parametrize(
    "host",
    [
        *(
            "127.1",
            "0x7f.1",
            "0x7f000001",
            "2130706433",
            "0177.0.0.1",
            "127.0.0.01",
            "1.2.3.4.5",
            "0x7f.0.0.0x1",
        ),
        *(
            "[::1%lo]",
            "::1",
            "a..b",
            ".",
            "",
            "a_b.test:",
            "a.test@b.test",
            "ａ.test",
            "a.test\x00",
            "127。0。0。1",
        ),
    ],
)
def test_an_address_in_an_odd_form_is_no_host(host: str) -> None:
    with pytest.raises(ValueError):
        reach.canonical(host)


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        *(("API.Test.", "api.test"), ("127.0.0.1", "127.0.0.1"), ("[::ffff:127.0.0.1]", "127.0.0.1")),
        *(("[0:0::1]", "::1"), ("[64:ff9b::a9fe:a9fe]", "169.254.169.254"), ("127.0.0.1.", "127.0.0.1")),
    ],
)
def test_a_host_has_one_form(given: str, canonical: str) -> None:
    assert reach.canonical(given) == canonical


@pytest.mark.parametrize(
    ("address", "public"),
    [
        *(("93.184.216.34", True), ("2606:2800:220:1::1", True), ("64:ff9b::5db8:d822", True)),
        *(("127.0.0.1", False), ("10.0.0.1", False), ("172.31.255.255", False), ("192.168.0.1", False)),
        *(
            ("169.254.169.254", False),
            ("100.64.0.1", False),
            ("224.0.1.1", False),
            ("255.255.255.255", False),
        ),
        *(("0.0.0.0", False), ("198.18.0.1", False), ("192.0.0.1", False), ("::1", False), ("::", False)),
        *(("fe80::1", False), ("fc00::1", False), ("ff02::1", False), ("::ffff:10.0.0.1", False)),
        *(
            ("64:ff9b::a00:1", False),
            ("2002:7f00:1::", False),
            ("2001:0:1::", False),
            ("::ffff:93.184.216.34", True),
        ),
    ],
)
def test_only_a_public_address_is_public(address: str, public: bool) -> None:
    assert reach.is_public(ip_address(address)) is public


def test_a_name_that_leads_to_a_private_address_leads_nowhere() -> None:
    """DNS rebinding: what was checked is what is connected to, and of several addresses only the good ones."""
    listed = reach.entries(["api.test", "10.0.0.0/24"])
    public, private = IPv4Address("93.184.216.34"), IPv4Address("192.168.0.1")
    assert reach.reachable(listed, "api.test", 443, [private, public]) == (public,)
    assert reach.reachable(listed, "api.test", 443, [IPv4Address("10.0.0.9")]) == (IPv4Address("10.0.0.9"),)
    for found in ([], [private], [IPv6Address("::ffff:127.0.0.1")]):
        with pytest.raises(reach.Refused, match="not public"):
            reach.reachable(listed, "api.test", 443, found)


def test_a_request_names_its_host_once() -> None:
    """Host headers, connection lists and proxy credentials are the proxy's business."""
    asked = reach.request(
        b"POST http://API.test/a?b#c HTTP/1.1\r\nHost: evil.test\r\nhost: evil2.test\r\nConnection: X-Secret\r\n"
        b"X-Secret: 1\r\nProxy-Authorization: a\r\nAccept: */*\r\nContent-Length: 3\r\n\r\n"
    )
    assert (asked.host, asked.port, asked.body) == ("api.test", 80, 3)
    assert asked.head == (
        b"POST /a?b HTTP/1.1\r\nHost: api.test\r\nConnection: close\r\nAccept: */*\r\nContent-Length: 3\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n", 400),
        (b"GET https://api.test/ HTTP/1.1\r\n\r\n", 400),
        (b"GET http://a@api.test/ HTTP/1.1\r\n\r\n", 400),
        (b"GET http://api.test/ HTTP/2\r\n\r\n", 400),
        (b"GET http://api.test/ a HTTP/1.1\r\n\r\n", 400),
        (b"GET http://api.test/ HTTP/1.1\r\nA: 1\nHost: b\r\n\r\n", 400),
        (b"GET http://api.test/ HTTP/1.1\r\nA: 1\r\n folded\r\n\r\n", 400),
        (b"GET http://api.test/ HTTP/1.1\r\nHost : b\r\n\r\n", 400),
        (b"POST http://api.test/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n", 411),
        (b"POST http://api.test/ HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST http://api.test/ HTTP/1.1\r\nContent-Length: +1\r\n\r\n", 400),
        (b"CONNECT api.test HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT api.test:0443 HTTP/1.1\r\n\r\n", 0),
        (b"CONNECT api.test:443/ HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT 2130706433:80 HTTP/1.1\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
    ],
)
def test_a_request_that_could_be_read_in_two_ways_is_read_in_none(head: bytes, status: int) -> None:
    if not status:
        assert reach.request(head).port == 443
        return
    with pytest.raises(reach.Refused) as caught:
        reach.request(head)
    assert caught.value.status == status


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_refused(data: bytes) -> None:
    for head in (data + b"\r\n\r\n", b"GET http://" + data + b" HTTP/1.1\r\n\r\n", b"CONNECT " + data):
        try:
            asked = reach.request(head)
        except reach.Refused as exc:
            assert reach.refusal(exc).startswith(b"HTTP/1.1 4")
        else:
            assert reach.canonical(f"[{asked.host}]" if ":" in asked.host else asked.host) == asked.host


# --- a daemon's proxy --------------------------------------------------------------------------------------

TOOLS = """
import os, socket, urllib.request, urllib.error, pathlib
from aiosd.tools import tool

PORT = int(pathlib.Path(__file__).with_name("port").read_text())

def fetch(url):
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as exc:
        return f"{exc.code} {exc.reason}"
    except OSError as exc:
        return f"no way: {exc}"

def raw(request, port=3128):
    try:
        with socket.create_connection(("127.0.0.1", port), 20) as way:
            way.sendall(request.encode())
            got = b""
            while data := way.recv(65536):
                got += data
            return got.decode()
    except OSError as exc:
        return f"no way: {exc}"

@tool(permissions=["*"], hosts=[f"localhost:{PORT}"])
def listed(url: str) -> str:
    return fetch(url)

@tool(permissions=["*"], hosts=[f"localhost:{PORT}"])
def speak(request: str, port: int = 3128) -> str:
    return raw(request, port)

@tool(permissions=["*"], hosts=[f"*:{PORT}"])
def anywhere(url: str) -> str:
    return fetch(url)

@tool(permissions=["*"])
def walled(url: str) -> str:
    return fetch(url)

@tool(permissions=["*"])
def walled_speak(request: str) -> str:
    return raw(request)

@tool(permissions=["*"], hosts=[f"localhost:{PORT}"])
def sockets() -> dict:
    made = {}
    for name, arguments in {"tcp": (2, 1), "udp": (2, 2), "tcp6": (10, 1), "unix": (1, 1), "raw": (2, 3),
                            "netlink": (16, 3), "packet": (17, 3), "vsock": (40, 1), "mptcp": (2, 1, 262)}.items():
        try:
            socket.socket(*arguments).close()
            made[name] = True
        except OSError:
            made[name] = False
    try:
        server = socket.create_server(("127.0.0.1", 0))
        made["listen"] = True
    except OSError:
        made["listen"] = False
    return made
"""

OTHER = """
from aiosd.tools import tool
import sys
if "net.py" in sys.argv[-1]:
    raise SystemExit("loaded where it should not")

@tool(permissions=["*"])
def other() -> str:
    return "here"
"""


class Web(http.server.BaseHTTPRequestHandler):
    """Counts who comes; /away leads to another host."""

    asked: ClassVar[list[tuple[str, str, str]]] = []
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.asked.append((self.command, self.path, str(self.headers["Host"])))
        body = b"the page"
        self.send_response(302 if self.path == "/away" else 200)
        if self.path == "/away":
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/secret")  # type: ignore[attr-defined]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """No word on stderr."""


class Place:
    def __init__(self, home: Path, port: int, tiers: str | None = None) -> None:
        self.port = port
        self.session_id = ""
        self.daemon = Daemon(home, environ={} if tiers is None else {"AIOSD_TIERS": tiers})
        (home / "tools").mkdir()
        (home / "tools" / "net.py").write_text(TOOLS)
        (home / "tools" / "other.py").write_text(OTHER)
        (home / "tools" / "port").write_text(str(port))

    def call(self, name: str, /, **arguments: Any) -> str:
        params = ToolCall(session_id=self.session_id, name=name, arguments=arguments)
        result = self.daemon.call(params)
        return "\n".join(block.text for block in result.content)


@contextmanager
def web() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with web() as port:
        made = Place(tmp_path_factory.mktemp("egress") / "home", port)
        with made.daemon:
            if not made.daemon.call(SystemInfo()).sandbox.startswith("namespaces"):
                pytest.skip("this machine has no user namespaces")
            made.session_id = made.daemon.session(permissions=["*"]).session_id
            yield made


def test_a_tool_reaches_the_host_it_lists_by_the_proxy_its_environment_names(place: Place) -> None:
    assert place.call("listed", url=f"http://localhost:{place.port}/page") == "the page"
    assert Web.asked[-1] == ("GET", "/page", f"localhost:{place.port}")
    tool = place.daemon.call(ToolGet(name="listed"))
    assert (tool.hosts, tool.annotations["openWorldHint"]) == ((f"localhost:{place.port}",), True)


def test_a_tunnel_carries_what_both_sides_say(place: Place) -> None:
    said = place.call(
        "speak",
        request=f"CONNECT localhost:{place.port} HTTP/1.1\r\n\r\nGET /in HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    )
    assert said.startswith("HTTP/1.1 200 Connection established\r\n\r\nHTTP/1.1 200 OK")
    assert said.endswith("the page")


@pytest.mark.parametrize(
    ("name", "url", "says"),
    [
        ("listed", "http://other.test/", "403 aiosd: other.test is not among the tool's hosts"),
        ("listed", "http://localhost.evil.test:{port}/", "is not among"),
        ("listed", "http://localhost/", "403 aiosd: port 80 of localhost is not among"),
        ("listed", "https://localhost:22/", "403 aiosd: port 22 of localhost is not among"),
        ("listed", "http://169.254.169.254/latest/meta-data", "169.254.169.254 is not among"),
        ("listed", "http://2130706433:{port}/", "400"),
        ("listed", "http://0x7f.1:{port}/", "400"),
        ("anywhere", "http://localhost:{port}/", "which is not public"),
        ("anywhere", "http://127.0.0.1:{port}/", "which is not public"),
        ("anywhere", "http://[::ffff:127.0.0.1]:{port}/", "which is not public"),
        ("walled", "http://localhost:{port}/", "no way"),
    ],
)
def test_a_tool_reaches_nothing_else(place: Place, name: str, url: str, says: str) -> None:
    before = len(Web.asked)
    assert says in place.call(name, url=url.format(port=place.port))
    assert len(Web.asked) == before


def test_a_redirect_leads_no_further_than_the_tool_itself_may(place: Place) -> None:
    """The listing is of `localhost`, by name; the redirect names an address of it, which is listed with the name."""
    assert place.call("listed", url=f"http://localhost:{place.port}/away") == "the page"
    assert "not public" in place.call("anywhere", url=f"http://localhost:{place.port}/away")


def test_a_connection_carries_one_request_and_its_host_is_the_one_that_was_checked(place: Place) -> None:
    before = len(Web.asked)
    place.call(
        "speak",
        request=f"GET http://localhost:{place.port}/one HTTP/1.1\r\nHost: evil.test\r\n\r\n"
        f"GET http://localhost:{place.port}/two HTTP/1.1\r\nHost: evil.test\r\n\r\n",
    )
    assert Web.asked[before:] == [("GET", "/one", f"localhost:{place.port}")]


def test_there_is_no_socket_but_the_one_to_the_proxy(place: Place) -> None:
    made = place.daemon.call(ToolCall(session_id=place.session_id, name="sockets")).structured_content
    assert {name for name, there in made.items() if there} == {"tcp"}
    assert "no way" in place.call("speak", request="GET / HTTP/1.1\r\n\r\n", port=place.port)
    assert "Operation not permitted" in place.call("walled_speak", request="GET / HTTP/1.1\r\n\r\n")


def test_the_way_out_is_closed_with_its_session_and_attempts_are_kept(place: Place) -> None:
    assert place.call("other") == "here"
    log = place.daemon.log.read_text()
    assert "egress" in log
    assert "loaded where it should not" not in log
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.settimeout(30)
        stranger.connect(str(place.daemon.home / "run" / "egress.sock"))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            socket.send_fds(stranger, [b"guessed"], [listener.fileno()])
            assert stranger.recv(1) == b""


@pytest.mark.anyio
async def test_whatever_a_stranger_says_to_it_costs_nobody_else_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(egress, "HELLO_S", 0.2)

    async def forget(passage: egress.Passage) -> None:
        """Nothing passes here."""

    async with egress.open_egress(tmp_path / "egress.sock", forget) as opened:
        with opened.expect(["api.test"], server="s") as key, select.epoll() as no_socket:
            with socket.socket() as unbound:
                for said in (b"", b"guessed", key.encode()):
                    for sent in ([], [no_socket.fileno()], [unbound.fileno()]):
                        with socket.socket(socket.AF_UNIX) as stranger:
                            stranger.connect(str(tmp_path / "egress.sock"))
                            if said:
                                socket.send_fds(stranger, [said], sent)
                            await ended(stranger)
            with socket.socket(socket.AF_UNIX) as host, socket.create_server(("127.0.0.1", 0)) as listener:
                host.connect(str(tmp_path / "egress.sock"))
                socket.send_fds(host, [key.encode()], [listener.fileno()])
                way = await anyio.connect_tcp("127.0.0.1", listener.getsockname()[1])
                async with way:
                    await way.send(b"CONNECT other.test:443 HTTP/1.1\r\n\r\n")
                    with anyio.fail_after(30):
                        assert (await way.receive()).startswith(b"HTTP/1.1 403 aiosd: other.test")


async def ended(stranger: socket.socket) -> None:
    """The other side has closed it."""
    stranger.setblocking(False)
    with anyio.fail_after(30):
        await anyio.wait_readable(stranger)
    with contextlib.suppress(ConnectionResetError):
        assert stranger.recv(1) == b""


def test_where_there_are_no_namespaces_a_tool_that_lists_hosts_is_not_run(tmp_path: Path) -> None:
    with web() as port:
        made = Place(tmp_path / "home", port, Tier.LANDLOCK.value)
        with made.daemon:
            if made.daemon.call(SystemInfo()).sandbox != Tier.LANDLOCK:
                pytest.skip("this machine has no Landlock")
            made.session_id = made.daemon.session(permissions=["*"]).session_id
            with pytest.raises(ToolFailed, match="it needs the network") as caught:
                made.call("listed", url=f"http://localhost:{port}/")
            assert "user namespaces" in str(caught.value.hint)
            assert made.call("other") == "here"
