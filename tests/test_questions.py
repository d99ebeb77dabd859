"""How well the backend that quotes answers, and how rarely it is wrong, on sets written blind to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

import pytest

from aiosd.models.backend import Backend, ToolSpec
from aiosd.records import ToolUse
from tests import questions
from tests.questions import BUILTIN, Doc, Question, QuestionSet, RequestSet

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def asked() -> QuestionSet:
    return questions.load_questions()


@pytest.fixture(scope="module")
def requests() -> RequestSet:
    return questions.load_requests()


@pytest.fixture
def backend() -> Backend:
    from aiosd.models.extractive.backend import Extractive  # here, so that the sets can be checked without it

    return Extractive()


def test_the_promise_is_for_150_questions_in_the_words_of_the_text_and_50_without_an_answer(
    asked: QuestionSet,
) -> None:
    assert all((question.wording is None) == (question.answer is None) for question in asked.questions)
    wordings = Counter(question.wording for question in asked.questions)
    assert (wordings["same"], wordings[None]) == (150, 50)
    assert sum(question.promised for question in asked.questions) == 200
    assert (wordings["partly"], wordings["few"]) == (40, 20)


def test_no_question_is_asked_twice(asked: QuestionSet) -> None:
    assert not _twice((question.document, question.question.casefold()) for question in asked.questions)


def test_every_answer_stands_in_its_document(asked: QuestionSet) -> None:
    texts = {name: questions.fold(document.text) for name, document in asked.documents.items()}
    assert {question.document for question in asked.questions} == texts.keys()
    for question in asked.questions:
        if question.answer is not None:
            assert question.answer in texts[question.document], question.question
            assert question.answer == questions.fold(question.answer)
            assert len(question.answer) >= 12, f"{question.answer} may stand in a wrong quote as well"


def test_documentation_strings_are_short_and_long(asked: QuestionSet) -> None:
    docs = (document for document in asked.documents.values() if isinstance(document, Doc))
    lines = [len(document.text.splitlines()) for document in docs]
    assert 10 <= min(lines) < 20
    assert 100 < max(lines) <= 150


def test_half_of_the_requests_take_one_call_whose_arguments_stand_in_them(requests: RequestSet) -> None:
    assert Counter(request.call is not None for request in requests.requests) == {True: 30, False: 30}
    assert not _twice(request.request.casefold() for request in requests.requests)
    schemas = {tool.name: tool.input_schema for tool in requests.tools}
    for request in requests.requests:
        if request.call is not None:
            given = request.call.arguments
            schema = schemas[request.call.name]
            assert set(schema["required"]) <= given.keys() <= schema["properties"].keys(), request.request
            assert all(str(value) in request.request for value in given.values()), request.request


def test_every_tool_has_requests(requests: RequestSet) -> None:
    names = [tool.name for tool in requests.tools]
    assert names[: len(BUILTIN)] == list(BUILTIN)
    assert len(names) == len(set(names)) == len(BUILTIN) + 6
    assert {request.call.name for request in requests.requests if request.call} == set(names)


@pytest.mark.parametrize(
    ("quote", "right"),
    [
        ("the moon is\n  made of cheese", True),
        ("the moon is made", False),
        ("it is made of cheese, the moon", False),
        (None, False),
    ],
)
def test_a_right_quote_is_verbatim_and_holds_the_answer(quote: str | None, right: bool) -> None:
    question = Question("a", "What is the moon made of?", "made of cheese")
    assert questions.is_right(question, quote, "They say: the moon is made of\ncheese. Not so.") is right


def test_a_whole_document_is_no_quote() -> None:
    text = "the moon is made of cheese. " * 20
    assert not questions.is_right(Question("a", "What is the moon made of?", "made of cheese"), text, text)


async def test_who_never_answers_abstains_and_is_never_right(asked: QuestionSet) -> None:
    async def silent(question: str, name: str, text: str) -> tuple[None, bool]:
        return None, True

    rates = await questions.score(silent, asked)
    assert (rates.right, rates.abstained, rates.tool_calls) == (0.0, 1.0, 200)


async def test_who_knows_the_answers_is_always_right(asked: QuestionSet) -> None:
    known = {(question.document, question.question): question.answer for question in asked.questions}

    async def knowing(question: str, name: str, text: str) -> tuple[str | None, bool]:
        return known[name, question], False

    rates = await questions.score(knowing, asked)
    assert (rates.right, rates.abstained, rates.tool_calls) == (1.0, 1.0, 0)
    assert rates.right_by_wording == {"same": 1.0, "partly": 1.0, "few": 1.0}


async def test_only_the_one_call_with_its_arguments_is_exact(requests: RequestSet) -> None:
    wanted = {request.request: request.call for request in requests.requests}

    def use(name: str, /, **arguments: object) -> ToolUse:
        return ToolUse(call_id="1", name=name, arguments=arguments)

    async def knowing(request: str, tools: Sequence[ToolSpec]) -> list[ToolUse]:
        call = wanted[request]
        return [use(call.name, **call.arguments)] if call else []

    async def with_defaults(request: str, tools: Sequence[ToolSpec]) -> list[ToolUse]:
        call = wanted[request]
        properties = {tool.name: tool.input_schema["properties"] for tool in tools}
        if call is None:
            return []
        defaults = {key: one["default"] for key, one in properties[call.name].items() if "default" in one}
        return [use(call.name, **(defaults | call.arguments))]

    async def telling_the_time(request: str, tools: Sequence[ToolSpec]) -> list[ToolUse]:
        return [use("clock")]

    async def twice(request: str, tools: Sequence[ToolSpec]) -> list[ToolUse]:
        return 2 * await knowing(request, tools)

    assert await questions.score_calls(knowing, requests) == questions.CallRates(exact=30, wrong=0)
    assert await questions.score_calls(with_defaults, requests) == questions.CallRates(exact=30, wrong=0)
    assert await questions.score_calls(telling_the_time, requests) == questions.CallRates(exact=1, wrong=59)
    assert await questions.score_calls(twice, requests) == questions.CallRates(exact=0, wrong=30)


async def test_the_backend_quotes_what_answers_and_abstains_where_nothing_does(
    asked: QuestionSet, requests: RequestSet, backend: Backend, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = await questions.measure_quotes(backend, asked, requests.tools)
    with capsys.disabled():
        print(f"\n{rates}")  # noqa: T201 - the rates are what the test is for
    assert rates.right >= 0.85
    assert rates.abstained >= 0.90
    assert rates.tool_calls == 0


async def test_the_backend_calls_a_tool_only_when_the_request_says_so(
    requests: RequestSet, backend: Backend, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = await questions.measure_calls(backend, requests)
    with capsys.disabled():
        print(f"\n{rates}")  # noqa: T201 - as above
    assert rates.wrong == 0
    assert rates.exact >= 20


def _twice(items: Iterable[Hashable]) -> list[Hashable]:
    return [item for item, count in Counter(items).items() if count > 1]
