"""What models are told of a function, and what becomes of what they send.

The golden files are made again, after a change that is meant, with
    python -c "import tests.test_tools_schema as t; t.write_golden_files()"
"""

from __future__ import annotations

import enum
import inspect
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from aiosd.errors import InvalidParams
from aiosd.tools.schema import NotATool, read_docstring, signature, tool_of
from tests import tool_signatures
from tests.tool_signatures import SIGNATURES, Color, Item, Point

GOLDEN = Path(__file__).parent / "data" / "schemas"


def openai_tool(function: Callable[..., Any]) -> dict[str, Any]:
    """As the `tools` of a chat completion have it."""
    found = signature(function)
    return {
        "type": "function",
        "function": {
            "name": found.name,
            "description": found.description,
            "parameters": found.input_schema,
        },
    }


def write_golden_files() -> None:
    for function in SIGNATURES:
        encoded = msgspec.json.format(msgspec.json.encode(openai_tool(function)), indent=2)
        (GOLDEN / f"{function.__name__}.json").write_bytes(encoded + b"\n")


def test_there_are_twenty_golden_files_and_no_other() -> None:
    assert len(SIGNATURES) == 20
    assert {path.stem for path in GOLDEN.glob("*.json")} == {function.__name__ for function in SIGNATURES}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__name__)
def test_the_schema_of_a_signature_is_its_golden_file(function: Callable[..., Any]) -> None:
    golden = msgspec.json.decode((GOLDEN / f"{function.__name__}.json").read_bytes())
    assert openai_tool(function) == golden


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__name__)
def test_a_schema_is_valid_and_an_object_that_takes_nothing_else(function: Callable[..., Any]) -> None:
    schema = signature(function).input_schema
    Draft202012Validator.check_schema(schema)
    assert (schema["type"], schema["additionalProperties"]) == ("object", False)
    assert not {"$ref", "anyOf", "oneOf", "allOf"} & set(schema)
    with pytest.raises(InvalidParams, match=r"^arguments\.\w+: "):
        signature(function).decode(b'{"no_such_argument": 1}')


def decode(function: Callable[..., Any], arguments: object) -> dict[str, Any]:
    return signature(function).decode(msgspec.json.encode(arguments))


def test_arguments_arrive_as_the_types_that_were_annotated() -> None:
    assert decode(tool_signatures.enums, {"color": "red"}) == {"color": Color.RED}
    assert decode(tool_signatures.structs, {"items": [{"name": "a", "size": 1}]}) == {"items": [Item("a", 1)]}
    assert decode(tool_signatures.dataclasses, {"start": {"x": 1}, "goal": {"x": 2, "y": 3}}) == {
        "start": Point(1),
        "goal": Point(2, 3),
    }
    taken = decode(
        tool_signatures.containers,
        {"names": [], "pair": [1, "a"], "many": [1, 2], "unique": ["a"], "table": {"a": 1}},
    )
    assert taken == {"names": [], "pair": (1, "a"), "many": (1, 2), "unique": {"a"}, "table": {"a": 1.0}}


def test_what_is_left_out_is_absent_so_that_the_functions_own_default_applies() -> None:
    assert decode(tool_signatures.defaults, {"count": 4}) == {"count": 4}


def test_a_parameter_that_defaults_to_none_takes_null_whatever_it_is_annotated_with() -> None:
    assert decode(tool_signatures.optional_old, {"size": None}) == {"size": None}


@pytest.mark.parametrize(
    ("function", "arguments", "sentence"),
    [
        (
            tool_signatures.structs,
            {"items": [{"name": "a", "size": 1}, {"name": "b", "size": 1}, {"name": "c", "size": "x"}]},
            "arguments.items[2].size: expected int, got str",
        ),
        (tool_signatures.google_style, {}, "arguments.query: required, but not given"),
        (
            tool_signatures.structs,
            {"items": [{"name": "a"}]},
            "arguments.items[0].size: required, but not given",
        ),
        (
            tool_signatures.google_style,
            {"query": "x", "limits": 1},
            "arguments.limits: not known; it takes query, limit",
        ),
        (tool_signatures.nothing, {"x": 1}, "arguments.x: not known; it takes no arguments"),
        (tool_signatures.enums, {"color": "green"}, "arguments.color: invalid enum value 'green'"),
        (tool_signatures.google_style, {"query": None}, "arguments.query: expected str, got null"),
        (tool_signatures.scalars, [], "arguments: expected object, got array"),
        (tool_signatures.typed_dicts, {"address": 1}, "arguments.address: expected object, got int"),
        (
            tool_signatures.constrained,
            {"port": 0, "name": "a"},
            "arguments.port: expected int >= 1",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(
    function: Callable[..., Any], arguments: object, sentence: str
) -> None:
    with pytest.raises(InvalidParams) as caught:
        decode(function, arguments)
    assert str(caught.value) == sentence


def test_deep_nesting_and_broken_text_are_refused_not_crashes() -> None:
    found = signature(tool_signatures.bare_containers)
    deep = b'{"anything": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    for hostile in (deep, b'{"anything": "\xff"}', b"{", b""):
        with pytest.raises(InvalidParams, match=r"^arguments"):
            found.decode(hostile)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    ),
    st.sampled_from(SIGNATURES),
)
def test_any_json_is_taken_or_refused_with_a_sentence(value: object, function: Callable[..., Any]) -> None:
    found = signature(function)
    names = list(found.input_schema["properties"])
    for arguments in (value, dict.fromkeys(names, value)):
        try:
            taken = found.decode(msgspec.json.encode(arguments))
        except InvalidParams as exc:
            assert str(exc).startswith("arguments")
        except OverflowError:
            pass  # encoding an int beyond 64 bits; not ours to test
        else:
            assert set(taken) <= set(names)


@dataclass
class Spot:
    x: int
    tags: list[str]


PLAIN: list[Any] = [
    int,
    float,
    bool,
    str,
    Any,
    Spot,
    Literal["a", "b", 3],
    Annotated[int, msgspec.Meta(ge=-2, le=5)],
    Annotated[str, msgspec.Meta(min_length=1, max_length=3)],
]
ANNOTATIONS = st.recursive(
    st.sampled_from(PLAIN),
    lambda inner: st.one_of(
        inner.map(lambda t: list[t]),  # type: ignore[valid-type]
        inner.map(lambda t: dict[str, t]),  # type: ignore[valid-type]
        inner.map(lambda t: t | None if t is not Any else t),
        inner.map(lambda t: tuple[t, str]),  # type: ignore[valid-type]
    ),
    max_leaves=4,
)
PAIRS, EACH = 100_000, 50


def some_json(dice: random.Random, depth: int = 3) -> Any:
    """Near enough to what annotations take that it often fits."""
    plain = [None, True, dice.randint(-9, 9), dice.uniform(-3, 3), dice.choice(["", "a", "b", "abcd"])]
    match dice.randrange(5 if depth else 3):
        case 3:
            return [some_json(dice, depth - 1) for _ in range(dice.randrange(4))]
        case 4:
            keys = dice.sample(["x", "tags", "k"], dice.randrange(4))
            return {key: some_json(dice, depth - 1) for key in keys}
        case _:
            return dice.choice(plain)


@pytest.mark.slow
@settings(max_examples=PAIRS // EACH, deadline=None)
@given(st.lists(ANNOTATIONS, min_size=1, max_size=3), st.integers(0, 2**32))
def test_no_argument_that_its_schema_forbids_reaches_a_tool(annotations: list[Any], seed: int) -> None:
    """100,000 pairs of a generated schema and generated arguments."""
    dice = random.Random(seed)

    def tool(**arguments: Any) -> None: ...

    names = [f"p{number}" for number in range(len(annotations))]
    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter(n, kind, annotation=t) for n, t in zip(names, annotations, strict=True)]
    tool.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    tool.__annotations__ = dict(zip(names, annotations, strict=True))
    found = signature(tool)
    schema = Draft202012Validator(found.input_schema)
    for _ in range(EACH):
        arguments = {name: some_json(dice) for name in names}
        try:
            found.decode(msgspec.json.encode(arguments))
        except InvalidParams as exc:
            assert str(exc).startswith("arguments")
        else:
            assert schema.is_valid(arguments), (found.input_schema, arguments)


class Opaque:
    pass


def starred(*names: str) -> None: ...
def double_starred(**names: str) -> None: ...
def positional(name: str, /) -> None: ...
def untyped(good: str, name) -> None: ...  # type: ignore[no-untyped-def]
def opaque(name: Opaque) -> None: ...
def function_of(name: Callable[[int], int]) -> None: ...
def two_arrays(name: list[int] | set[int]) -> None: ...
def unknown_type(name: NoSuchType) -> None: ...  # type: ignore[name-defined]  # noqa: F821
def name_of_a_tool_that_goes_on_and_on_and_on_until_it_passes_sixty_four() -> None: ...


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (starred, "`*name"),
        (double_starred, "`**name"),
        (positional, "parameter `name` is positional-only"),
        (untyped, "parameter `name` has no annotation"),
        (opaque, "parameter `name`: "),
        (function_of, "parameter `name`: "),
        (two_arrays, "parameter `name`: Type unions"),
        (unknown_type, "NoSuchType"),
        (name_of_a_tool_that_goes_on_and_on_and_on_until_it_passes_sixty_four, "1 to 64"),
        (lambda: None, "1 to 64"),
    ],
)
def test_a_function_that_cannot_be_a_tool_is_refused_by_its_parameter(
    function: Callable[..., Any], words: str
) -> None:
    with pytest.raises(NotATool) as caught:
        signature(function)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("permissions", "rate_limit"),
    [
        (("a b",), None),
        (("!a",), None),
        (("",), None),
        ((1,), None),
        ((), 0),
        ((), -1),
        ((), 1.5),
        ((), True),
    ],
)
def test_what_the_decorator_is_told_is_checked(permissions: Any, rate_limit: Any) -> None:
    with pytest.raises(NotATool, match="`nothing`: "):
        tool_of(signature(tool_signatures.nothing), permissions, rate_limit, False)


@given(st.text(alphabet="ab: \n\t:param()*-", max_size=80))
def test_any_docstring_is_read(text: str) -> None:
    summary, described = read_docstring(text, {"a", "b"})
    assert "\n" not in summary
    assert set(described) <= {"a", "b"}


def test_a_user_error_inside_a_nested_type_is_the_callers_error() -> None:
    @dataclass
    class Even:
        number: int

        def __post_init__(self) -> None:
            if self.number % 2:
                raise ValueError("not even")

    def half(of: Any) -> None: ...

    half.__annotations__["of"] = Even
    with pytest.raises(InvalidParams, match=r"arguments\.of: not even"):
        decode(half, {"of": {"number": 1}})


def test_an_enum_member_that_json_cannot_say_is_no_default_in_the_schema() -> None:
    class Kind(enum.Enum):
        A = "a"

    def pick(kind: Any = object()) -> None: ...  # noqa: B008

    assert "default" not in signature(pick).input_schema["properties"]["kind"]
