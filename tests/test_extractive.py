"""The backend without weights, seen as the pool sees it: a request in, deltas out."""

from __future__ import annotations

import time
from collections.abc import Sequence

import anyio
import pytest

from aiosd.models.backend import (
    Backend,
    Delta,
    Done,
    Message,
    ModelRequest,
    TextDelta,
    ToolCallDelta,
    ToolSpec,
)
from aiosd.models.extractive.backend import Extractive
from aiosd.records import Source, TaskType, ToolUse
from tests.test_extractive_literal import TOOLS

pytestmark = pytest.mark.anyio

README = """# falcon

Falcon ships parcels.

## Install

    pip install falcon

## Tests

```sh
# everything, in one minute
falcon-test --all
```

## Settings

| setting | default | meaning |
|---|---|---|
| port | 8433 | where it listens |
| retries | 3 | how often it tries again |

- The log file is rotated every night at 02:30.
- Backups are kept for 14 days.

The web server was written by Ada Byron. It speaks HTTP/1.1 only.
"""
HOST = Source(kind="memory", ref="1f0c9a3e-5b1e-4a43-9d0c-3f1b2c4d5e6f", text="The deploy host is heron-7.")


def file(text: str, ref: str = "README.md") -> Source:
    return Source(kind="file", ref=ref, text=text)


async def ask(
    task: str,
    passages: Sequence[Source] = (),
    *,
    tools: Sequence[ToolSpec] = (),
    before: Sequence[Message] = (),
    after: Sequence[Message] = (),
    task_type: TaskType = "reasoning",
    schema: dict[str, object] | None = None,
) -> tuple[str, list[ToolUse], Done]:
    request = ModelRequest(
        messages=(*before, Message(role="user", content=task), *after),
        passages=tuple(passages),
        tools=tuple(tools),
        task_type=task_type,
        schema=schema,
    )
    backend: Backend = Extractive()
    deltas: list[Delta] = [delta async for delta in backend.stream(request)]
    done = deltas[-1]
    assert isinstance(done, Done) and not done.generated
    assert not any(isinstance(delta, Done) for delta in deltas[:-1])
    text = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
    return text, [delta.call for delta in deltas if isinstance(delta, ToolCallDelta)], done


@pytest.mark.parametrize(
    ("question", "line"),
    [
        ("How do I run the tests?", "README.md:13: falcon-test --all"),
        ("How do I install falcon?", "README.md:7: pip install falcon"),
        ("What is the default port?", "README.md:20: | port | 8433 | where it listens |"),
        ("How long are backups kept?", "README.md:24: - Backups are kept for 14 days."),
        ("When is the log file rotated?", "README.md:23: - The log file is rotated every night at 02:30."),
        (
            "Who wrote the web server?",
            "README.md:26: The web server was written by Ada Byron. It speaks HTTP/1.1 only.",
        ),
    ],
)
async def test_an_answer_is_a_quote_with_its_place(question: str, line: str) -> None:
    text, calls, done = await ask(question, [file(README)])
    assert text.splitlines()[0] == line
    place, quote = line.split(": ", 1)
    assert done.sources[0] == Source(kind="file", ref=place, text=quote)
    assert not calls and not done.abstained


@pytest.mark.parametrize(
    "question",
    [
        "What is the default timeout?",
        "Which database does falcon use?",
        "How many users can log in?",
        "Who maintains the mobile app?",
        "What does the premium plan cost?",
        "When was falcon founded?",
    ],
)
async def test_what_the_passages_do_not_say_is_abstained(question: str) -> None:
    text, calls, done = await ask(question, [file(README)])
    assert (text, calls, done.abstained, done.sources) == ("", [], True, ())


async def test_a_question_for_a_number_wants_a_number() -> None:
    without = file("The default port is written in the config file.")
    assert (await ask("What is the default port?", [without]))[2].abstained
    assert not (await ask("What is the default port?", [file("The default port is 80.")]))[2].abstained


async def test_a_memory_is_named_by_the_start_of_its_id_and_kept_by_all_of_it() -> None:
    text, _, done = await ask("What is the deploy host?", [HOST])
    assert text == "memory 1f0c9a3e: The deploy host is heron-7."
    assert done.sources == (HOST,)


async def test_several_passages_answer_together_best_first() -> None:
    notes = Source(
        kind="input", ref="notes", text="one\n\nDeploys run on the deploy host, heron-7, at noon.\n"
    )
    text, _, done = await ask("What is the deploy host?", [file(README), notes, HOST])
    assert text.splitlines() == [
        "memory 1f0c9a3e: The deploy host is heron-7.",
        "notes:3: Deploys run on the deploy host, heron-7, at noon.",
    ]
    assert [source.ref for source in done.sources] == [HOST.ref, "notes:3"]


async def test_a_stored_question_is_no_answer_to_itself() -> None:
    asked = Source(kind="memory", ref="22222222", text="What is the deploy host?")
    assert (await ask("What is the deploy host?", [asked]))[2].abstained
    text, _, _ = await ask("What is the deploy host?", [asked, HOST])
    assert text == "memory 1f0c9a3e: The deploy host is heron-7."


async def test_the_tasks_own_text_is_never_quoted_back() -> None:
    task = "Tell me about the deploy host of the falcon cluster"
    assert (await ask(task, [Source(kind="memory", ref="33333333", text=task)]))[2].abstained


async def test_earlier_messages_are_context_and_never_quoted() -> None:
    earlier = [Message(role="user", content=HOST.text), Message(role="assistant", content=HOST.text)]
    assert (await ask("What is the deploy host?", before=earlier))[2].abstained


async def test_a_call_that_stands_in_the_request_is_made() -> None:
    text, calls, done = await ask("Please read notes/todo.txt", [file(README)], tools=TOOLS)
    assert [(call.name, call.arguments) for call in calls] == [("read_file", {"path": "notes/todo.txt"})]
    assert text == "" and not done.abstained


async def test_a_question_that_mentions_files_and_numbers_is_answered_from_the_passages() -> None:
    text, calls, _ = await ask(
        "Which port does README.md give as default, 80 or 8433?", [file(README)], tools=TOOLS
    )
    assert not calls
    assert text.startswith("README.md:20: ")


async def test_the_result_of_its_own_call_is_the_answer_as_it_is() -> None:
    call = ToolUse(call_id="renamed-by-the-pool", name="calculator", arguments={"expression": "6 * 7"})
    after = [
        Message(role="assistant", content="", tool_calls=(call,)),
        Message(role="tool", content="42", call_id=call.call_id, name="calculator"),
    ]
    text, calls, done = await ask("what is 6 * 7?", tools=TOOLS, after=after)
    assert (text, calls, done.abstained) == ("42", [], False)
    assert done.sources == (Source(kind="tool", ref="calculator", text="42"),)


async def test_the_result_of_another_models_call_is_quoted_like_any_passage() -> None:
    call = ToolUse(call_id="1", name="read_file", arguments={"path": "README.md"})
    after = [
        Message(role="assistant", content="", tool_calls=(call,)),
        Message(role="tool", content=README, call_id="1", name="read_file"),
    ]
    given = [Source(kind="tool", ref="read_file", text=README)]
    text, calls, _ = await ask("What is the default port?", given, tools=TOOLS, after=after)
    assert (text, calls) == ("read_file:20: | port | 8433 | where it listens |", [])


async def test_a_schema_cannot_be_filled() -> None:
    text, _, done = await ask("What is the default port?", [file(README)], schema={"type": "object"})
    assert (text, done.abstained) == ("", True)


async def test_nothing_to_quote_is_abstained() -> None:
    assert (await ask("What is the default port?"))[2].abstained
    assert (await ask("", [file(README)]))[2].abstained
    assert (await ask("?!", [file(README)]))[2].abstained


@pytest.mark.parametrize(
    ("task", "task_type"), [("Summarise this file.", "reasoning"), ("the readme", "summarization")]
)
async def test_a_summary_is_the_opening_and_the_central_sentences(task: str, task_type: TaskType) -> None:
    text, _, done = await ask(task, [file(README), HOST], task_type=task_type)
    lines = text.splitlines()
    assert lines[0].startswith("README.md:") and 2 <= len(lines) <= 4
    numbers = [int(line.split(":")[1]) for line in lines]
    assert numbers == sorted(numbers)
    assert all(source.text in " ".join(README.split()) for source in done.sources)


async def test_ten_megabytes_are_answered_in_seconds_while_the_loop_stays_free() -> None:
    filler = "The parcel went to another town, where nobody had asked for it.\n\n" * 80_000
    big = filler + "The heron gate opens at 06:45.\n\n" + filler
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await anyio.sleep(0.005)
            ticks += 1

    started = time.process_time()
    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        text, _, _ = await ask("When does the heron gate open?", [file(big, "big.txt")])
        group.cancel_scope.cancel()
    assert text == "big.txt:160001: The heron gate opens at 06:45."
    assert time.process_time() - started < 3
    assert ticks > 2


async def test_many_small_passages_are_narrowed_together() -> None:
    memories = [
        Source(kind="memory", ref=f"{number:08}-0000", text=f"Parcel {number} went to town. " * 20)
        for number in range(10_000)
    ]
    started = time.process_time()
    text, _, _ = await ask("What is the deploy host?", [*memories, HOST])
    assert text == "memory 1f0c9a3e: The deploy host is heron-7."
    assert time.process_time() - started < 3


async def test_it_is_always_there_and_says_what_it_is() -> None:
    assert await Extractive().probe() is None
