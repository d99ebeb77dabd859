"""The question set of `data/questions.json` and the requests of `data/tool_requests.json`, and what counts as right.

They were written without looking at the code that answers, and are no longer a measure once that code is
tuned to single entries: a failing test gives rates, never the questions.

The backend has no weights, so its promise is for questions asked in the words of the text: 150 answerable in the
text's own key words (wording `same`) and 50 that have no answer. The 60 in other words (`partly`, `few`) are measured
and printed beside the 200, with no bound.

`python -m tests.questions` prints the rates.
"""

from __future__ import annotations

import inspect
import pydoc
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import anyio
import msgspec

from aiosd.models.backend import Backend, Done, Message, ModelRequest, ToolCallDelta, ToolSpec
from aiosd.records import Source, ToolUse

DATA = Path(__file__).parent / "data"

PROJECT = Path(__file__).parents[1]

BUILTIN = ("calculator", "clock", "read_file", "list_files", "search_files", "remember", "recall")
"""The tools offered beside a question, as in a session that allows everything."""

MAX_QUOTE = 500
"""Characters of a quote. A longer one is the document given back, not an answer from it."""

Wording = Literal["same", "partly", "few"]
"""How much of its wording a question shares with its answer: the key terms, some of them, one or two words."""


class Doc(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="doc"):
    """The documentation strings of one or several objects of the standard library, given by dotted name."""

    object: str | None = None
    objects: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        names = self.objects if self.object is None else (self.object, *self.objects)
        return "\n\n".join(_docstring(name) for name in names)


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="file"):
    """A file of this project, given by its path from the top; it is not edited, since a rate is of just these texts."""

    path: str

    @property
    def text(self) -> str:
        return (PROJECT / self.path).read_text(encoding="utf-8")


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    document: str
    question: str
    answer: str | None
    """A part of the document that every right quote contains, its whitespace folded; None where it has no answer."""
    wording: Wording | None = None
    """Of a question with an answer."""

    @property
    def promised(self) -> bool:
        """Whether it is one of the 200 that the backend is held to."""
        return self.wording in ("same", None)


class QuestionSet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    documents: dict[str, Doc | File]
    questions: tuple[Question, ...]


class Call(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    arguments: dict[str, Any]


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    request: str
    call: Call | None
    """The one right call, all its arguments literally in the request; None where none may be made."""


class RequestSet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tools: tuple[ToolSpec, ...]
    """The built-in ones as aiosd.tools describes them, then the invented."""
    requests: tuple[Request, ...]


class Rates(msgspec.Struct, frozen=True):
    right: float
    """Of the promised questions with an answer, 0 to 1: the first quote holds it."""
    abstained: float
    """Of the questions without an answer, 0 to 1."""
    tool_calls: int
    """For promised questions; each is one too many."""
    right_by_wording: dict[Wording, float]

    def __str__(self) -> str:
        wordings = self.right_by_wording
        return (
            f"quotes: {self.right:.1%} right, {self.abstained:.1%} abstained, {self.tool_calls} tool calls; "
            f"in other words: {wordings['partly']:.1%} right (partly), {wordings['few']:.1%} (few)"
        )


class CallRates(msgspec.Struct, frozen=True):
    exact: int
    """Requests with a right call that got this call and no other."""
    wrong: int
    """Requests that got any other call."""

    def __str__(self) -> str:
        return f"tool calls: {self.exact} exact, {self.wrong} wrong"


def load_questions() -> QuestionSet:
    return msgspec.json.decode((DATA / "questions.json").read_bytes(), type=QuestionSet)


def load_requests() -> RequestSet:
    return msgspec.json.decode((DATA / "tool_requests.json").read_bytes(), type=RequestSet)


def fold(text: str) -> str:
    return " ".join(text.split())


def is_right(question: Question, quote: str | None, text: str) -> bool:
    """Whether the quote stands in the text and holds the answer; for a question without one, that there is none."""
    if question.answer is None or quote is None:
        return question.answer is None and quote is None
    quote = fold(quote)
    return len(quote) <= MAX_QUOTE and quote in fold(text) and question.answer in quote


async def score(
    answer: Callable[[str, str, str], Awaitable[tuple[str | None, bool]]], asked: QuestionSet
) -> Rates:
    """`answer` takes question, document name and text; it gives the first quote, and whether a tool was called."""
    texts = {name: document.text for name, document in asked.documents.items()}
    right: dict[Wording | None, list[bool]] = {"same": [], "partly": [], "few": [], None: []}
    tool_calls = 0
    for question in asked.questions:
        text = texts[question.document]
        quote, called = await answer(question.question, question.document, text)
        right[question.wording].append(is_right(question, quote, text))
        tool_calls += called and question.promised
    abstained = right.pop(None)
    by_wording = {wording: _share(some) for wording, some in right.items() if wording is not None}
    return Rates(
        right=by_wording["same"],
        abstained=_share(abstained),
        tool_calls=tool_calls,
        right_by_wording=by_wording,
    )


async def score_calls(
    call: Callable[[str, tuple[ToolSpec, ...]], Awaitable[Sequence[ToolUse]]], asked: RequestSet
) -> CallRates:
    """`call` takes a request and the tools, and gives the calls that were made."""
    schemas = {tool.name: tool.input_schema for tool in asked.tools}
    exact = wrong = 0
    for request in asked.requests:
        calls = await call(request.request, asked.tools)
        if request.call is not None and len(calls) == 1 and _is_same(request.call, calls[0], schemas):
            exact += 1
        elif calls:
            wrong += 1
    return CallRates(exact=exact, wrong=wrong)


async def measure_quotes(backend: Backend, asked: QuestionSet, tools: Sequence[ToolSpec]) -> Rates:
    """Each document is the input of the task; of `tools` the built-in ones are offered."""
    builtin = tuple(tool for tool in tools if tool.name in BUILTIN)

    async def answer(question: str, name: str, text: str) -> tuple[str | None, bool]:
        done, calls = await _ask(backend, question, builtin, Source(kind="input", ref=name, text=text))
        return done.sources[0].text if done.sources else None, bool(calls)

    return await score(answer, asked)


async def measure_calls(backend: Backend, asked: RequestSet) -> CallRates:
    async def call(request: str, tools: tuple[ToolSpec, ...]) -> Sequence[ToolUse]:
        _, calls = await _ask(backend, request, tools)
        return calls

    return await score_calls(call, asked)


async def _ask(
    backend: Backend, text: str, tools: tuple[ToolSpec, ...], *passages: Source
) -> tuple[Done, list[ToolUse]]:
    request = ModelRequest(messages=(Message(role="user", content=text),), tools=tools, passages=passages)
    deltas = [delta async for delta in backend.stream(request)]
    assert isinstance(deltas[-1], Done)
    return deltas[-1], [delta.call for delta in deltas if isinstance(delta, ToolCallDelta)]


def _is_same(wanted: Call, made: ToolUse, schemas: Mapping[str, dict[str, Any]]) -> bool:
    if made.name != wanted.name:
        return False
    properties = schemas[made.name]["properties"]
    given = {
        key: value
        for key, value in made.arguments.items()
        if key in wanted.arguments or key not in properties or value != properties[key].get("default", ...)
    }
    return given == wanted.arguments


def _share(right: Sequence[bool]) -> float:
    return sum(right) / len(right)


def _docstring(name: str) -> str:
    text = inspect.getdoc(pydoc.locate(name))
    if text is None:
        raise LookupError(f"`{name}` has no documentation string")
    return text


async def main() -> None:
    from aiosd.models.extractive.backend import Extractive  # here, so that the sets can be loaded without it

    backend, requests = Extractive(), load_requests()
    print(await measure_quotes(backend, load_questions(), requests.tools))  # noqa: T201 - what it is for
    print(await measure_calls(backend, requests))  # noqa: T201 - as above


if __name__ == "__main__":
    anyio.run(main)
