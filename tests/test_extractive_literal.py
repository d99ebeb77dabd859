"""Calls whose arguments stand in the request: rather none than a wrong one."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosd.models.backend import ToolSpec
from aiosd.models.extractive.literal import fits, plan

STRING = {"type": "string"}
PATH = {"type": "string", "description": "A path in the workspace."}


def tool(name: str, description: str, required: tuple[str, ...] = (), **properties: Any) -> ToolSpec:
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }
    return ToolSpec(name=name, description=description, input_schema=schema)


TOOLS = (
    tool("calculator", "Works out + - * / and sqrt, round, pi, e.", ("expression",), expression=STRING),
    tool("clock", "The time now.", timezone={"anyOf": [STRING, {"type": "null"}], "default": None}),
    tool("read_file", "Read a text file of the workspace.", ("path",), path=PATH),
    tool(
        "list_files",
        "List the files in a folder.",
        path={**PATH, "default": "."},
        pattern={**STRING, "default": "*"},
    ),
    tool(
        "search_files", "Search the files for a text.", ("text",), text=STRING, path={**PATH, "default": "."}
    ),
    tool("remember", "Keep a text in memory.", ("content",), content=STRING),
    tool("recall", "Find what was remembered.", ("query",), query=STRING),
)
OTHERS = (
    tool("restart_service", "Restart a systemd service.", ("service",), service=STRING),
    tool(
        "set_volume", "Set the volume.", ("level",), level={"type": "integer", "minimum": 0, "maximum": 100}
    ),
    tool("list_processes", "List processes.", sort={"type": "string", "enum": ["cpu", "memory"]}),
    tool("delete_all", "Delete everything."),
    tool("get_weather", "The weather in a city.", ("city",), city=STRING),
    tool("timer", "A timer.", ("minutes",), minutes={"type": "integer"}),
)


@pytest.mark.parametrize(
    ("request_", "name", "arguments"),
    [
        ("what is 12 * (3 + 4)?", "calculator", {"expression": "12 * (3 + 4)"}),
        ("2+2", "calculator", {"expression": "2+2"}),
        ("Calculate 24/7.", "calculator", {"expression": "24/7"}),
        ("How much is -3.5 * 2 ** 10?", "calculator", {"expression": "-3.5 * 2 ** 10"}),
        (
            "use the calculator to work out round(sqrt(2) * 3, 2)",
            "calculator",
            {"expression": "round(sqrt(2) * 3, 2)"},
        ),
        ("what time is it?", "clock", {}),
        ("Give me the current UTC time", "clock", {"timezone": "UTC"}),
        ("What's the date today?", "clock", {}),
        ("What time is it now in Europe/Berlin?", "clock", {"timezone": "Europe/Berlin"}),
        ("list the files in src", "list_files", {"path": "src"}),
        ("show me the files in the src folder", "list_files", {"path": "src"}),
        ("List all files in the current directory", "list_files", {}),
        ("list the files", "list_files", {}),
        ("what files are in src/?", "list_files", {"path": "src/"}),
        ("list the *.py files in src", "list_files", {"pattern": "*.py", "path": "src"}),
        ("list the contents of the src folder", "list_files", {"path": "src"}),
        ("read notes/todo.txt", "read_file", {"path": "notes/todo.txt"}),
        ("Please read the file notes/todo.txt.", "read_file", {"path": "notes/todo.txt"}),
        ("could you show me README.md?", "read_file", {"path": "README.md"}),
        ("show contents of ~/notes.txt", "read_file", {"path": "~/notes.txt"}),
        ('read the file "my notes.txt"', "read_file", {"path": "my notes.txt"}),
        ("search the files for 'TODO'", "search_files", {"text": "TODO"}),
        ('search files for "def main" in src', "search_files", {"text": "def main", "path": "src"}),
        ("grep the files for TODO", "search_files", {"text": "TODO"}),
        ("search for TODO in src/", "search_files", {"text": "TODO", "path": "src/"}),
        ("which files contain 'import os'?", "search_files", {"text": "import os"}),
        ("what is in notes/todo.txt?", "read_file", {"path": "notes/todo.txt"}),
        ("remember that the deploy host is falcon-7", "remember", {"content": "the deploy host is falcon-7"}),
        ("Please remember: the key is under the mat", "remember", {"content": "the key is under the mat"}),
        ("Note that x = 5", "remember", {"content": "x = 5"}),
        ("Don't forget that the gate code is 4711", "remember", {"content": "the gate code is 4711"}),
        (
            "Remember my train is at nine, platform 4 is far",
            "remember",
            {"content": "my train is at nine, platform 4 is far"},
        ),
        ("recall the deploy host", "recall", {"query": "the deploy host"}),
        ("search my memories for backup policy", "recall", {"query": "backup policy"}),
        ("What did I tell you about the gate?", "recall", {"query": "the gate"}),
        ("what's the weather in New York?", "get_weather", {"city": "New York"}),
        ("set a timer for 10 minutes", "timer", {"minutes": 10}),
        ("restart the service nginx", "restart_service", {"service": "nginx"}),
        ("set the volume to 40", "set_volume", {"level": 40}),
        ("list processes sort by memory", "list_processes", {"sort": "memory"}),
        ("list processes, sort memory", "list_processes", {"sort": "memory"}),
    ],
)
def test_a_plain_request_is_a_call(request_: str, name: str, arguments: dict[str, Any]) -> None:
    call = plan(request_, TOOLS + OTHERS)
    assert (call and call.name) == name
    assert (call.arguments if call else {}) == arguments


@pytest.mark.parametrize(
    "request_",
    [
        "What does shutil.copy2 return?",
        "How does read_file treat symlinks?",
        "What is the time complexity of merge?",
        "what time is it in Tokyo?",
        "What is 3.11.7?",
        "what is 24/7?",
        "call 555-1234",
        "When was 2024-01-02?",
        "what is 15% of 80?",
        "what is the sum of 3 + 4 and the ages in notes.txt?",
        "what is 2 + 2 in binary?",
        "open README.md and count the lines",
        "read README.md and summarise it",
        "read a.txt and b.txt",
        "read a book",
        "read the docs",
        "list the reasons",
        "list the files changed last week",
        "list the files that mention falcon",
        "search the files for the thing we talked about",
        "search the files for TODO in src and docs",
        "search for hotels",
        "do you remember that the host is falcon-7?",
        "Remember that question I asked?",
        "remember when we met",
        "write down that list",
        "note that",
        "time",
        "read the file system",
        "what is the weather?",
        "how does the timer work for 10 minutes?",
        "make the weather better in Paris",
        "show me what the timer does",
        "what is pi?",
        "what is sqrt?",
        "what files are in use",
        "which files are the largest in src?",
        "what does config.toml say about the port?",
        "what's in a name?",
        "what time is it in europe/berlin?",
        "search the web for 'cats'",
        "search the files for changes in behaviour",
        "find 'x' and delete it",
        "don't remember that I said so",
        "I remember that the host is falcon-7",
        "restart nginx and apache",
        "set the volume to 400",
        "set the volume to 4.5",
        "set the volume between 10 and 20",
        "delete all my doubts about it",
        "make it louder",
        "write me a poem about 3 + 4",
        "",
        "?",
    ],
)
def test_in_doubt_nothing_is_called(request_: str) -> None:
    assert plan(request_, TOOLS + OTHERS) is None


def test_what_was_not_offered_is_not_called() -> None:
    assert plan("read notes/todo.txt", [spec for spec in TOOLS if spec.name != "read_file"]) is None
    assert plan("read notes/todo.txt", ()) is None


def test_a_schema_that_says_more_than_is_checked_is_left_alone() -> None:
    strict = tool("read_file", "Read.", ("path",), path={"type": "string", "pattern": "^/srv/"})
    odd = ToolSpec(
        name="read_file", description="", input_schema={"$ref": "#/x", "properties": {"path": PATH}}
    )
    assert plan("read notes/todo.txt", [strict]) is None
    assert plan("read notes/todo.txt", [odd]) is None


def test_two_tools_that_fit_alike_are_no_plain_request() -> None:
    twice = [tool("read_file", "", ("path",), path=PATH), tool("read_text", "", ("path",), path=PATH)]
    assert plan("read notes/todo.txt", twice) is None


WORDS = """
read list search remember recall what is the files file in src for that note time 3 + 4 * ( ) 'TODO' "x y" a.txt
notes/ ? . , : = service nginx volume 40 -7 1.5 cpu all and now please `z` ~/ .. 10**9 0x10 00 …
"""
REQUESTS = st.lists(st.sampled_from(WORDS.split()), max_size=9).map(" ".join) | st.text(max_size=60)


@settings(max_examples=400, deadline=None)
@given(REQUESTS)
def test_every_argument_stands_in_the_request_and_fits_its_schema(text: str) -> None:
    call = plan(text, TOOLS + OTHERS)
    if call is None:
        return
    spec = next(spec for spec in TOOLS + OTHERS if spec.name == call.name)
    properties = spec.input_schema["properties"]
    assert set(spec.input_schema["required"]) <= set(call.arguments) <= set(properties)
    for name, value in call.arguments.items():
        assert fits(value, properties[name])
        assert (value if isinstance(value, str) else f"{value:g}") in text
        assert not isinstance(value, float) or math.isfinite(value)
