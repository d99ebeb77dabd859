"""The README's table of methods, from `rpc.discover` itself. Run as `python contrib/methods.py --write` after a change."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from aiosd.discover import openrpc
from aiosd.methods import table  # noqa: F401  # each module of methods registers its own
from aiosd.methods.services import HANDLERS

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- python contrib/methods.py --write -->\n", "<!-- methods end -->\n"


def rows() -> Iterator[str]:
    """Markdown, a line a method: its name, its params (`?` = optional), and the first sentence of what it does."""
    yield "| method | params | what it does |"
    yield "|---|---|---|"
    for method in sorted(openrpc(HANDLERS)["methods"], key=lambda each: str(each["name"])):
        params = ", ".join(p["name"] + ("" if p["required"] else "?") for p in method["params"])
        summary = " ".join(method["summary"].split()).partition(". ")[0].rstrip(".").replace("|", "\\|")
        yield f"| `{method['name']}` | {params} | {summary} |"


def written(readme: str) -> str:
    """The README with today's table."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + "".join(f"{row}\n" for row in rows()) + END + after


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(*rows(), sep="\n")
