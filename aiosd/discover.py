"""The OpenRPC document of the method table: made from the types themselves, so that it cannot drift.

Source: https://spec.open-rpc.org, version 1.3.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from typing import Any

import msgspec

from aiosd.errors import BY_CODE
from aiosd.protocol.base import Params
from aiosd.protocol.models import MODEL_PROGRESS, MODEL_TEXT, Progress
from aiosd.protocol.sessions import SessionRun
from aiosd.protocol.tasks import TASK_EVENT
from aiosd.records import AnyEvent, Task

VERSION = version("aiosd")


def openrpc(methods: Iterable[type[Params[Any]]]) -> dict[str, Any]:
    return _document(tuple(methods))


@cache
def _document(methods: tuple[type[Params[Any]], ...]) -> dict[str, Any]:
    types = [*methods, *(m.returns for m in methods), Task, AnyEvent, Progress]
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    params, results = schemas[: len(methods)], schemas[len(methods) : -3]
    task, event, progress = schemas[-3:]
    described = []
    for method, own, result in zip(methods, params, results, strict=True):
        shape = components.pop(own["$ref"].rsplit("/", 1)[1])
        required = set(shape.get("required", ()))
        described.append(
            {
                "name": method.method,
                "summary": inspect.cleandoc(method.__doc__ or "") if method.__doc__ != Params.__doc__ else "",
                "paramStructure": "by-name",
                "params": [
                    {"name": name, "required": name in required, "schema": schema}
                    for name, schema in shape.get("properties", {}).items()
                ],
                "result": {
                    "name": "result",
                    "schema": {"anyOf": [result, task]} if method is SessionRun else result,
                },
            }
        )
    return {
        "openrpc": "1.3.2",
        "info": {"title": "aiosd", "version": VERSION},
        "methods": described,
        "components": {
            "schemas": components,
            "errors": {
                cls.__name__: {"code": code, "message": cls.reserved or (cls.__doc__ or cls.__name__)}
                for code, cls in sorted(BY_CODE.items())
            },
        },
        "x-notifications": [
            {"name": TASK_EVENT, "params": event},
            {"name": MODEL_PROGRESS, "params": progress},
            {
                "name": MODEL_TEXT,
                "params": {
                    "type": "object",
                    "properties": {"text": {"type": "string"}},
                    "required": ["text"],
                },
            },
        ],
    }
