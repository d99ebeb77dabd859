"""A page or file of the web as text: what http_get and web_search do inside the walls, with the standard library alone."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
import zlib
from html.parser import HTMLParser
from http.client import HTTPException, HTTPMessage
from typing import IO
from urllib.parse import urljoin

MAX_BYTES = 5 * 1024 * 1024
"""Of an answer, packed or not."""
MAX_SAID = 500
"""Characters of an error's page."""
PATIENCE_S = 30.0
"""For each step of an exchange."""

HEADERS = {
    "User-Agent": "aiosd",
    "Accept": "text/html, text/*, application/json, */*;q=0.1",
    "Accept-Encoding": "gzip",
}


class _Stay(urllib.request.HTTPRedirectHandler):
    """What was permitted is this address, not where it leads."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> None:
        return None


def get(url: str, *, upgraded: bool = False) -> tuple[str, str]:
    """Media type and text. Raises ValueError for whatever keeps it from being had."""
    opener = urllib.request.build_opener(_Stay)
    try:
        with opener.open(urllib.request.Request(url, headers=HEADERS), timeout=PATIENCE_S) as answer:
            return _text(url, answer.headers, answer.read(MAX_BYTES + 1))
    except urllib.error.HTTPError as exc:
        with exc:
            where = urljoin(url, exc.headers.get("Location") or "")
            if 300 <= exc.code < 400 and where != url:
                if not upgraded and where == re.sub("^http:", "https:", url):
                    return get(where, upgraded=True)
                return "text/plain", f"[{exc.code}: it is at {where} now; call http_get with that]"
            said = exc.read(4 * MAX_SAID).decode(errors="replace")
        said = html_to_text(said, url) if exc.headers.get_content_type() == "text/html" else said
        raise ValueError(f"`{url}` answered {exc.code} {exc.reason}: {said[:MAX_SAID].strip()}") from None
    except (OSError, HTTPException, ValueError) as exc:
        raise ValueError(f"`{url[:200]}` could not be read: {getattr(exc, 'reason', exc)}") from None


def _text(url: str, headers: HTTPMessage, data: bytes) -> tuple[str, str]:
    kind = headers.get_content_type()
    if not (kind.startswith("text/") or re.search(r"json|xml|javascript|yaml", kind)):
        raise ValueError(f"it is {kind}, not text")
    if headers.get("Content-Encoding", "").lower() == "gzip":
        try:
            data = zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(data, MAX_BYTES + 1)
        except zlib.error as exc:
            raise ValueError(f"it is packed wrongly: {exc}") from None
    cut = f"\n[cut at {MAX_BYTES} bytes]" if len(data) > MAX_BYTES else ""
    charset = headers.get_content_charset() or _declared(data) or "utf-8"
    try:
        text = data[:MAX_BYTES].decode(charset, errors="replace")
    except LookupError:
        text = data[:MAX_BYTES].decode(errors="replace")
    return ("text/html" if kind == "application/xhtml+xml" else kind), text + cut


def _declared(data: bytes) -> str | None:
    """The charset in a page's first bytes. HTML, 13.2.3.2."""
    found = re.search(rb"<meta[^>]{0,200}charset=[\"']?([A-Za-z0-9_-]{1,40})", data[:1024], re.IGNORECASE)
    return found[1].decode() if found else None


# --- HTML to text ------------------------------------------------------------------------------------------

UNSEEN = frozenset({"script", "style", "noscript", "template", "svg", "iframe", "object", "select"})
BLOCKS = frozenset(
    {
        *(
            "p",
            "div",
            "section",
            "article",
            "header",
            "footer",
            "main",
            "nav",
            "aside",
            "ul",
            "ol",
            "li",
            "table",
            "tr",
        ),
        *(
            "blockquote",
            "pre",
            "form",
            "figure",
            "dl",
            "dt",
            "dd",
            "hr",
            "h1",
            "h2",
            "h3",
            "h4",
            "h5",
            "h6",
            "title",
        ),
    }
)
HEADING = re.compile(r"h([1-6])")


class _Page(HTMLParser):
    def __init__(self, base: str) -> None:
        super().__init__()
        self.base = base
        self.parts: list[str] = []
        self.unseen = 0
        self.exact = 0
        """Inside so many <pre>."""
        self.link: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in UNSEEN:
            self.unseen += 1
        elif tag == "br":
            self.parts.append("\n")
        elif tag in BLOCKS:
            self.parts.append("\n\n" if tag in ("p", "pre", "blockquote") or HEADING.fullmatch(tag) else "\n")
            self.exact += tag == "pre"
            if found := HEADING.fullmatch(tag):
                self.parts.append("#" * int(found[1]) + " ")
            elif tag == "li":
                self.parts.append("- ")
        elif tag in ("td", "th"):
            self.parts.append("\t")
        elif tag == "img" and (said := given.get("alt")) and not self.unseen:
            self.parts.append(f"[{' '.join(said.split())}]")
        elif tag == "a":
            self.link = given.get("href")

    def handle_endtag(self, tag: str) -> None:
        if tag in UNSEEN:
            self.unseen = max(0, self.unseen - 1)
        elif tag in BLOCKS:
            self.parts.append("\n\n" if tag in ("p", "pre") or HEADING.fullmatch(tag) else "\n")
            self.exact = max(0, self.exact - (tag == "pre"))
        elif tag == "a" and self.link and not self.unseen:
            self.parts.append(self._where(self.link))
            self.link = None

    def handle_data(self, data: str) -> None:
        if not self.unseen:
            self.parts.append(data if self.exact else re.sub(r"\s+", " ", data))

    def _where(self, link: str) -> str:
        try:
            whole = urljoin(self.base, link.strip())
        except ValueError:
            return ""
        inside = whole.startswith(("http://", "https://")) and whole.partition("#")[0] != self.base
        return f" <{whole}>" if inside else ""


def html_to_text(html: str, base: str) -> str:
    """What a reader of the page sees, with where its links lead; never raises."""
    page = _Page(base)
    try:
        page.feed(html)
        page.close()
    except AssertionError:  # html.parser's own word for what it did not expect; what came before still counts
        page.parts.append("\n[the rest of the page cannot be read]")
    lines = [re.sub(r"[ \xa0]+", " ", line).strip() for line in "".join(page.parts).split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
