"""The builtin tools for the web. They run in a tool host like a user's own, and leave it by the egress proxy alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated
from urllib.parse import urlencode, urlsplit

import msgspec

from aiosd.tools import tool

MAX_TEXT = 60_000
"""Characters in one result; a model's window is not for whole sites."""


@tool(permissions=["web"], read_only=True, hosts=["*"])
def http_get(url: str, offset: Annotated[int, msgspec.Meta(ge=0)] = 0) -> str:
    """Reads a page or file of the public web as text; a page's HTML becomes plain text with its links.

    A redirect to another address is not followed but reported.

    Args:
        url: An http or https URL.
        offset: The character to start from, for what is longer than one answer.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"`{url[:100]}` is no http or https URL")
    from aiosd.tools.browsing import get, html_to_text  # late: its imports would cost every tool host 30 ms

    kind, text = get(url)
    if kind == "text/html":
        text = html_to_text(text, url)
    if offset and offset >= len(text):
        raise ValueError(f"`{url}` has {len(text)} characters; there is none at {offset}")
    rest = len(text) - offset - MAX_TEXT
    more = f"\n[{rest} characters more; go on with offset={offset + MAX_TEXT}]" if rest > 0 else ""
    return text[offset : offset + MAX_TEXT] + more


def search_at(searxng_url: str) -> Callable[..., str]:
    """The tool web_search, of this SearXNG. https://docs.searxng.org/dev/search_api.html"""
    parts = urlsplit(searxng_url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname

    @tool(permissions=["web"], read_only=True, hosts=[f"{host}:{port}"])
    def web_search(query: str, n: Annotated[int, msgspec.Meta(ge=1, le=20)] = 5) -> str:
        """Searches the web; gives titles, addresses and the words around what was found.

        Args:
            query: What to look for.
            n: How many results at most.
        """
        from aiosd.tools.browsing import get  # late, as above

        asked = urlencode({"q": query, "format": "json"})
        _, text = get(f"{searxng_url.rstrip('/')}/search?{asked}")
        try:
            found = json.loads(text)["results"][:n]
            lines = [
                f"{i}. {each['title']}\n   {each['url']}\n   {' '.join(str(each.get('content') or '').split())}"
                for i, each in enumerate(found, 1)
            ]
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{searxng_url} gave no results in JSON; its settings must allow `json` there"
            ) from None
        return "\n".join(line.rstrip() for line in lines) or "Nothing found."

    return web_search
