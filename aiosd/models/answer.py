"""A reply that must be JSON of a schema: the schema checked before it is sent, the text when it came."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from aiosd.errors import InvalidParams

_FENCE = re.compile(r"```(?:json)?\s*\n(.*)\n\s*```", re.DOTALL | re.IGNORECASE)
"""Models put JSON into a Markdown block, however they are asked not to."""
MOST_SAID = 300
"""Characters of a validator's message: it quotes the whole value."""


class Misfit(Exception):
    """A text that is not JSON of the schema: str() says why, to a model."""


class Form:
    """A schema that replies must fit. Raises InvalidParams for one that is none, or that refers to another
    document: the daemon fetches nothing for a schema. Its making imports jsonschema, 0.2 s of CPU."""

    def __init__(self, schema: dict[str, Any]) -> None:
        import jsonschema.validators  # type: ignore[import-untyped]  # late: few requests have a schema
        import referencing

        for ref in _references(schema):
            if not ref.startswith("#"):
                raise InvalidParams(f"schema: refers to `{ref}`; it must hold all its parts itself")
        validator = jsonschema.validators.validator_for(
            schema, default=jsonschema.validators.Draft202012Validator
        )
        try:
            validator.check_schema(schema)
        except jsonschema.SchemaError as exc:
            raise InvalidParams(f"schema: {exc.message[:MOST_SAID]}") from None
        self._validator = validator(schema, registry=referencing.Registry())

    def read(self, text: str) -> str:
        """The JSON of a reply, without what stands around it. Raises Misfit."""
        import referencing.exceptions
        from jsonschema.exceptions import best_match  # type: ignore[import-untyped]

        text = text.strip()
        if fenced := _FENCE.fullmatch(text):
            text = fenced[1].strip()
        try:
            value = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as exc:
            raise Misfit(f"it is not JSON: {exc}") from None
        try:
            wrong = best_match(self._validator.iter_errors(value))
        except referencing.exceptions.Unresolvable as exc:
            raise InvalidParams(f"schema: refers to `{exc.ref}`, which is not there") from None
        if wrong is not None:
            raise Misfit(f"{wrong.json_path}: {wrong.message[:MOST_SAID]}")
        return text


def _references(schema: object) -> Iterator[str]:
    if isinstance(schema, dict):
        for key in ("$ref", "$dynamicRef"):
            if isinstance(ref := schema.get(key), str):
                yield ref
        for value in schema.values():
            yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)
