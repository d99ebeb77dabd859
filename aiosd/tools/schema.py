"""What a function takes, as JSON Schema 2020-12 for models and as a decoder for what models send.

Both come from one msgspec type made of the signature, so that they cannot disagree.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable
from typing import Annotated, Any

import msgspec

from aiosd.errors import InvalidParams
from aiosd.records import Tool
from aiosd.tools import reach
from aiosd.tools.policy import check_names

NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
"""Names of tools that OpenAI's API takes."""

_ARGUMENTS = "arguments"


class NotATool(Exception):
    """A function that cannot be a tool: str() says which parameter, and why."""


class Signature(msgspec.Struct, frozen=True):
    name: str
    description: str
    input_schema: dict[str, Any]
    """An object at the top; nested types are in `$defs`."""
    _decoder: msgspec.json.Decoder[Any]

    def decode(self, arguments: bytes) -> dict[str, Any]:
        """Arguments from JSON, as the types the function is annotated with; those left out are absent, so the
        function's own defaults apply. Raises InvalidParams, which names the place: `arguments.items[2].size`."""
        try:
            decoded = self._decoder.decode(arguments)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise InvalidParams(_sentence(str(exc), self.input_schema)) from None
        except RecursionError:
            raise InvalidParams(f"{_ARGUMENTS}: nested too deeply") from None
        return {
            name: value
            for name in decoded.__struct_fields__
            if (value := getattr(decoded, name)) is not msgspec.UNSET
        }


def signature(function: Callable[..., Any], *, skip: int = 0) -> Signature:
    """The signature of a function, without its first `skip` parameters. Raises NotATool."""
    name = getattr(function, "__name__", "")
    if not NAME.fullmatch(name):
        raise NotATool(f"`{name}`: a tool's name has 1 to 64 of the letters a-z, A-Z, digits, `_` and `-`")
    parameters = list(inspect.signature(function).parameters.values())[skip:]
    for parameter in parameters:
        _check_kind(name, parameter)
    hints = _hints(name, function)
    description, described = read_docstring(inspect.getdoc(function) or "", {p.name for p in parameters})
    fields: list[tuple[str, Any, Any]] = []
    required = []
    for parameter in parameters:
        annotation = _described(hints[parameter.name], described.get(parameter.name))
        if parameter.default is None and not _takes_none(annotation):
            annotation = annotation | None
        if parameter.default is parameter.empty:
            required.append(parameter.name)
            fields.append((parameter.name, annotation, msgspec.NODEFAULT))
        else:
            fields.append((parameter.name, annotation, msgspec.UNSET))
        _check_type(name, parameter, annotation)
    try:
        type_ = msgspec.defstruct(_ARGUMENTS, fields, kw_only=True, forbid_unknown_fields=True)
        decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(type_)
        (top,), definitions = msgspec.json.schema_components([type_], ref_template="#/$defs/{name}")
    except TypeError as exc:
        raise NotATool(f"`{name}`: {_first_line(exc)}") from None
    schema = definitions.pop(top["$ref"].removeprefix("#/$defs/"))
    properties = schema["properties"]
    for parameter in parameters:
        if parameter.default is not parameter.empty:
            _add_default(properties[parameter.name], parameter.default)
    input_schema = {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }
    if definitions:
        input_schema["$defs"] = definitions
    return Signature(name, description, input_schema, decoder)


def tool_of(
    found: Signature,
    permissions: tuple[str, ...],
    rate_limit: int | None,
    read_only: bool,
    hosts: tuple[str, ...] = (),
) -> Tool:
    """What a decorator was told is checked here, so that a mistake is reported with the tool. Raises NotATool."""
    try:
        check_names(permissions)
    except InvalidParams as exc:
        raise NotATool(f"`{found.name}`: {exc}") from None
    if rate_limit is not None and (type(rate_limit) is not int or rate_limit < 1):
        raise NotATool(f"`{found.name}`: rate_limit: expected calls a minute, 1 or more, got {rate_limit!r}")
    try:
        reach.entries(hosts)
    except (ValueError, AttributeError) as exc:  # the latter for what is no text
        raise NotATool(f"`{found.name}`: hosts: {exc}") from None
    return Tool(
        name=found.name,
        description=found.description,
        input_schema=found.input_schema,
        annotations={"readOnlyHint": read_only} | ({"openWorldHint": True} if hosts else {}),
        permissions=permissions,
        rate_limit=rate_limit,
        hosts=hosts,
    )


def _check_kind(name: str, parameter: inspect.Parameter) -> None:
    match parameter.kind:
        case inspect.Parameter.VAR_POSITIONAL:
            problem = f"`*{parameter.name}` has no names to call it by; take a list"
        case inspect.Parameter.VAR_KEYWORD:
            problem = f"`**{parameter.name}` says nothing a schema could; name each parameter, or take a dict"
        case inspect.Parameter.POSITIONAL_ONLY:
            problem = f"parameter `{parameter.name}` is positional-only, but arguments are given by name"
        case _ if parameter.annotation is parameter.empty:
            problem = f"parameter `{parameter.name}` has no annotation, as in `{parameter.name}: str`"
        case _:
            return
    raise NotATool(f"`{name}`: {problem}")


def _hints(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception as exc:  # noqa: BLE001 - annotations given as strings are evaluated here, and may do anything
        raise NotATool(f"`{name}`: an annotation cannot be read: {type(exc).__name__}: {exc}") from None


def _check_type(name: str, parameter: inspect.Parameter, annotation: Any) -> None:
    """msgspec names the type that it does not take, but not whose it is."""
    try:
        msgspec.json.Decoder(annotation)
        msgspec.json.schema(annotation)
    except TypeError as exc:
        raise NotATool(f"`{name}`: parameter `{parameter.name}`: {_first_line(exc)}") from None


def _first_line(exc: TypeError) -> str:
    """msgspec's sentence without the advice on its own API; that advice comes first where there is any."""
    lines = [line for line in str(exc).splitlines() if line and not line.startswith(("- ", "Generating "))]
    return lines[0] if lines else str(exc)


def _takes_none(annotation: Any) -> bool:
    if typing.get_origin(annotation) is Annotated:
        annotation = typing.get_args(annotation)[0]
    return annotation in (Any, None, type(None)) or type(None) in typing.get_args(annotation)


def _described(annotation: Any, text: str | None) -> Any:
    """The annotation with its description where msgspec looks for it. A plain string in Annotated is one, and
    what stands in the annotation is nearer than the docstring."""
    if typing.get_origin(annotation) is Annotated:
        extras = annotation.__metadata__
        if any(isinstance(e, msgspec.Meta) and e.description for e in extras):
            return annotation
        text = next((e for e in extras if isinstance(e, str)), text)
    return annotation if text is None else Annotated[annotation, msgspec.Meta(description=text)]


def _add_default(schema: dict[str, Any], default: object) -> None:
    """Tells models what leaving it out means; a default that JSON cannot say is left to the description."""
    try:
        schema["default"] = msgspec.json.decode(msgspec.json.encode(default))
    except (TypeError, ValueError, OverflowError):
        schema.pop("default", None)


_PARAMETER = re.compile(r"(?::param\s+(?:[^:]*\s)?)?\*{0,2}(?P<name>\w+)\s*(?:\([^)]*\))?\s*:(?P<text>.*)")
_SECTION = re.compile(r"(?P<ours>Args|Arguments|Parameters|Params):|[A-Z]\w+:")


def read_docstring(text: str, names: set[str]) -> tuple[str, dict[str, str]]:
    """The first paragraph, and what is said of each parameter in `name`.

    Read as parameters are the lines `x: ...` (also in an `Args:` section, also `x (int): ...`) and
    `:param x: ...`, each with the deeper indented lines after it, but nothing in a section such as `Returns:`.
    """
    summary: list[str] = []
    described: dict[str, str] = {}
    current: tuple[str, int] | None = None
    in_summary = in_ours = True
    for number, line in enumerate(text.splitlines()):
        stripped = line.strip()
        indent = len(line) - len(line.lstrip())
        found = _PARAMETER.fullmatch(stripped) if number else None
        if current and stripped and indent > current[1]:
            described[current[0]] = f"{described[current[0]]} {stripped}".strip()
        elif section := _SECTION.fullmatch(stripped) if number and stripped[:-1] not in names else None:
            in_summary, in_ours, current = False, bool(section["ours"]), None
        elif found and found["name"] in names and in_ours:
            in_summary = False
            current = (found["name"], indent)
            described[found["name"]] = found["text"].strip()
        else:
            current = None
            in_summary = in_summary and bool(stripped or not summary)
            if in_summary and stripped:
                summary.append(stripped)
    return " ".join(summary), {name: said for name, said in described.items() if said}


_MISSING = re.compile(r"Object missing required field `(.*)`")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)


def _sentence(message: str, schema: dict[str, Any]) -> str:
    """msgspec's "Expected `int`, got `str` - at `$.items[2].size`" as a path and what is wrong there."""
    what, _, at = message.partition(" - at `")
    path = _ARGUMENTS + at.removesuffix("`").removeprefix("$")
    if found := _MISSING.fullmatch(what):
        return f"{path}.{found[1]}: required, but not given"
    if found := _UNKNOWN.fullmatch(what):
        known = ", ".join(schema["properties"]) or "no arguments"
        return f"{path}.{found[1]}: not known" + ("" if at else f"; it takes {known}")
    return f"{path}: {what[:1].lower()}{what[1:].replace('`', '')}"
