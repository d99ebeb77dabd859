"""Texts cut into what can be quoted, whatever they look like."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosd.models.extractive.quoting import best
from aiosd.models.extractive.summary import summarize
from aiosd.models.extractive.units import Kind, fold, line_of, units
from aiosd.records import Source


def cut(text: str) -> list[tuple[Kind, str]]:
    return [(unit.kind, fold(text[unit.start : unit.end])) for unit in units(text)]


def test_sentences_end_where_they_end_and_not_at_abbreviations() -> None:
    text = "Use a tool, e.g. rsync. See dr. Who (i.e. her).  Wrapped\nover lines! Each is 0.5 s. It ends"
    assert [quote for _, quote in cut(text)] == [
        "Use a tool, e.g. rsync.",
        "See dr. Who (i.e. her).",
        "Wrapped over lines!",
        "Each is 0.5 s. It ends",
    ]


def test_markdown_is_cut_into_headings_items_rows_and_lines_of_code() -> None:
    text = (
        "# Top\n\nOne line.\n\n## Use ##\n\n- first\n  goes on\n- second\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n"
        "~~~\nmake all\n\nmake test\n~~~\nafter\n"
    )
    assert cut(text) == [
        ("heading", "# Top"),
        ("prose", "One line."),
        ("heading", "## Use ##"),
        ("item", "- first goes on"),
        ("item", "- second"),
        ("row", "| 1 | 2 |"),
        ("code", "make all"),
        ("code", "make test"),
        ("prose", "after"),
    ]
    row = next(unit for unit in units(text) if unit.kind == "row")
    assert row.context == ("Top", "Use", "| a | b |")


def test_a_docstring_is_cut_into_signature_entries_and_examples() -> None:
    text = (
        "copy(src, *, follow=True)\n"
        "    Copy a file. It keeps the mode.\n\n"
        "    Args:\n"
        "      src: Where from.\n"
        "      follow (default: true)\n"
        "        whether links are followed. Off on some systems.\n\n"
        "    >>> copy('a')\n    'b'\n"
    )
    assert cut(text) == [
        ("heading", "copy(src, *, follow=True)"),
        ("prose", "Copy a file."),
        ("prose", "It keeps the mode."),
        ("prose", "Args:"),
        ("item", "src: Where from."),
        ("item", "follow (default: true) whether links are followed."),
        ("item", "Off on some systems."),
        ("code", ">>> copy('a') 'b'"),
    ]
    found = {fold(text[unit.start : unit.end]): unit for unit in units(text)}
    assert found["Copy a file."].first and found["Copy a file."].names == ("copy",)
    assert found["Off on some systems."].names == ("copy", "follow")


def test_a_table_of_restructured_text_is_cut_into_rows() -> None:
    text = "====  =====\nmode  means\n====  =====\n'r'   read\n'w'   write\n====  =====\n"
    assert [quote for kind, quote in cut(text) if kind == "row"] == ["mode means", "'r' read", "'w' write"]


def test_a_sentence_takes_along_the_one_it_refers_to() -> None:
    text = "The gate has a timer. It defaults to 30 seconds. Nobody knows why."
    quotes = best("What does the timer default to?", [Source(kind="input", ref="x", text=text)])
    assert quotes[0].text == "The gate has a timer. It defaults to 30 seconds."


@pytest.mark.parametrize(
    "nasty", ["-", "#", " ", "(", "a.", "a ", '"', "| ", "`", "a:\n", "\n", "- ", ">>> ", "x" * 50]
)
def test_no_layout_takes_long(nasty: str) -> None:
    text = "# " + nasty * (60_000 // len(nasty)) + "z"
    assert isinstance(units(text), list)  # the suite's timeout is the assertion
    assert isinstance(best(text, [Source(kind="input", ref="x", text=text)]), tuple)


LINES = st.sampled_from(
    [
        "# Head",
        "Title",
        "=====",
        "-----",
        "",
        "",
        "  ",
        "- item one",
        "  goes on. And on?",
        "1. first",
        "| a | b |",
        "|---|---|",
        "```sh",
        "```",
        "def run(a, b=3):",
        "    Run it. It returns 3.",
        "    a: the default port is 80.",
        "name (default: 70)",
        "\tvalue -- what it is",
        ">>> run(1)",
        "1",
        "== ==",
        "NAME:",
        "The default port is 8080. It may be changed!",
        "\x00\x85\u2028\x0c",
        "ﬀ ß İ 日本語 🙂",
        "\r",
    ]
)
TEXTS = st.lists(LINES, max_size=14).map("\n".join) | st.text(max_size=120)
TASKS = st.sampled_from(
    ["What is the default port?", "How do I run it?", "name", "What does run return?"]
) | st.text(max_size=60)


@settings(max_examples=400, deadline=None)
@given(TEXTS)
def test_pieces_are_in_order_and_inside_the_text(text: str) -> None:
    at = 0
    for unit in units(text):
        assert at <= unit.start < unit.end <= len(text)
        at = unit.start


@settings(max_examples=400, deadline=None)
@given(TASKS, st.lists(TEXTS, max_size=3))
def test_quotes_are_verbatim_and_stand_on_their_line(task: str, texts: list[str]) -> None:
    passages = [Source(kind="file", ref=f"f{number}", text=text) for number, text in enumerate(texts)]
    quotes = best(task, passages)
    assert len(quotes) <= 3
    for quote in (*quotes, *summarize(passages)):
        assert quote.text and quote.text in fold(quote.passage.text)
        rest = quote.passage.text.split("\n", quote.line - 1)[-1]
        assert fold(rest).startswith(quote.text) or quote.text in fold(rest)
        assert 1 <= quote.line <= line_of(quote.passage.text, len(quote.passage.text))
