"""http_get and web_search against real servers, behind the proxy; and pages as text."""

from __future__ import annotations

import gzip
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosd.protocol.system import SystemInfo
from aiosd.protocol.tools import ToolCall, ToolGet, ToolList
from aiosd.records import ToolResult
from aiosd.tools import browsing, web
from tests.daemon import Daemon

PAGE = """<!doctype html><html><head><title>The title</title><style>p {color: red}</style>
<script>document.write("<p>no</p>")</script></head><body><nav><a href="/home">Home</a></nav>
<h1>A &amp; B</h1><p>One
 two&nbsp;three <a href="../up?q=1#x">there</a> <a href="javascript:alert(1)">click</a></p>
<ul><li>first<li>second</ul><pre>  kept
    so</pre><table><tr><td>a</td><td>b</td></tr></table><img alt="a  picture"><noscript>hidden</noscript>"""

SEEN = """The title

Home <http://a.test/home>

# A & B

One two three there <http://a.test/up?q=1#x> click

- first
- second

kept
so

a\tb

[a picture]"""


def test_a_page_becomes_what_a_reader_sees() -> None:
    assert browsing.html_to_text(PAGE, "http://a.test/dir/page") == SEEN


@given(st.text(alphabet="<>/!-?ab\"'= &;#[]\n") | st.text())
def test_any_text_is_a_page(text: str) -> None:
    browsing.html_to_text(text, "http://a.test/")
    browsing.html_to_text(f"<a href='{text}'>a</a><![{text}", "http://a.test/")


class Site(http.server.BaseHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        status, headers, body = (
            200,
            {"Content-Type": "text/html; charset=latin-1"},
            "<p>caf\xe9".encode("latin-1"),
        )
        match self.path.split("?")[0]:
            case "/away":
                status, headers = 302, {"Location": "http://169.254.169.254/latest"}
            case "/missing":
                status, body = 404, b"<p>not <b>here</b>"
            case "/picture":
                headers = {"Content-Type": "image/png"}
            case "/packed":
                headers |= {"Content-Encoding": "gzip"}
                body = gzip.compress(b"<p>" + b"a" * (3 * browsing.MAX_BYTES))
            case "/long":
                headers = {"Content-Type": "text/plain"}
                body = b"x" * (web.MAX_TEXT + 10)
            case "/search":
                headers = {"Content-Type": "application/json"}
                found = [
                    {"title": f"T{i}", "url": f"http://r.test/{i}", "content": "some\n words"}
                    for i in range(9)
                ]
                body = json.dumps({"results": found}).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """No word on stderr."""


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("path", "gives"),
    [
        ("/page", "caf\xe9"),
        ("/away", "[302: it is at http://169.254.169.254/latest now; call http_get with that]"),
        ("/long", "x" * web.MAX_TEXT + f"\n[10 characters more; go on with offset={web.MAX_TEXT}]"),
    ],
)
def test_a_page_is_read_as_text_and_a_redirect_is_not_followed(site: str, path: str, gives: str) -> None:
    """In this process: a public host is not to be had in a test."""
    assert web.http_get(site + path) == gives
    assert Site.asked[-1] == path


def test_the_rest_of_a_long_page_can_be_had(site: str) -> None:
    assert web.http_get(f"{site}/long", offset=web.MAX_TEXT) == "x" * 10


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("{site}/missing", "answered 404 Not Found: not here"),
        ("{site}/picture", "it is image/png, not text"),
        ("file:///etc/passwd", "no http or https URL"),
        ("ftp://a.test/", "no http or https URL"),
        ("http://[::1/", "Invalid IPv6 URL"),
        ("{site}/long\r\nX: 1", "could not be read"),
    ],
)
def test_what_is_no_text_page_is_an_error_that_says_so(site: str, url: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        web.http_get(url.format(site=site))


def test_a_page_that_unpacks_to_more_than_there_is_room_for_is_cut(site: str) -> None:
    _, text = browsing.get(f"{site}/packed")
    assert len(text) < browsing.MAX_BYTES + 100
    assert text.endswith(f"[cut at {browsing.MAX_BYTES} bytes]")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, site: str) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("web") / "home", f'[tools]\nsearxng_url = "{site}"\n') as running:
        if not running.call(SystemInfo()).sandbox.startswith("namespaces"):
            pytest.skip("this machine has no user namespaces")
        yield running


def call(daemon: Daemon, name: str, **arguments: Any) -> ToolResult:
    session = daemon.session(permissions=["web"])
    return daemon.call(ToolCall(session_id=session.session_id, name=name, arguments=arguments))


def test_web_search_asks_the_searxng_of_the_config(daemon: Daemon) -> None:
    found = call(daemon, "web_search", query="a b&c", n=2).content[0].text
    assert found == "1. T0\n   http://r.test/0\n   some words\n2. T1\n   http://r.test/1\n   some words"
    assert Site.asked[-1] == "/search?q=a+b%26c&format=json"


def test_http_get_reaches_no_private_address(daemon: Daemon, site: str) -> None:
    before = len(Site.asked)
    result = call(daemon, "http_get", url=f"{site}/page")
    assert result.is_error
    assert "is not among the tool's hosts" in result.content[0].text
    assert len(Site.asked) == before
    tool = daemon.call(ToolGet(name="http_get"))
    assert tool.annotations == {"readOnlyHint": True, "openWorldHint": True}


def test_without_a_searxng_there_is_no_web_search(tmp_path: Path) -> None:
    with Daemon(tmp_path / "home") as plain:
        names = {tool.name for tool in plain.call(ToolList()).tools}
    assert "http_get" in names
    assert "web_search" not in names
