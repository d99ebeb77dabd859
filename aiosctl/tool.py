"""aiosctl tool: what models may call, called by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Annotated, Any

import msgspec
import typer

from aiosctl import render, resolve
from aiosctl.client import Client, typed
from aiosctl.quick import here
from aiosctl.verb import Verb, answer, connect, globals_of, noun
from aiosd.errors import AiosError, InvalidParams, ToolFailed
from aiosd.protocol.sessions import SessionClose, SessionCreate
from aiosd.protocol.system import SystemInfo
from aiosd.protocol.tools import Explained, ToolCall, ToolExplain, ToolGet, ToolList, Tools
from aiosd.records import ToolResult

app = noun("Tools: what models may call.")

CLOSE_S = 5.0
"""Seconds for the session of one call to be closed, after which it is left open."""

Name = Annotated[str, typer.Argument(metavar="NAME", help="A tool's name.")]


@app.command("list", cls=Verb)
def tool_list(
    ctx: typer.Context,
    session_id: Annotated[
        str | None, typer.Option("--session", "-s", metavar="ID", help="Only what this session may use.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Names alone.")] = False,
) -> None:
    """List tools.

    \b
    aiosctl tool list
    aiosctl tool list -s @last
    """

    def text(found: Tools) -> None:
        if quiet:
            render.ids(each.name for each in found.tools)
            return
        render.table(
            ["name", "permissions", "a minute", "description"],
            [
                (each.name, " ".join(each.permissions), each.rate_limit, each.description)
                for each in found.tools
            ],
        )

    with connect(ctx) as client:
        if session_id is not None:
            session_id = resolve.session(client, session_id)
        answer(ctx, client, ToolList(session_id=session_id), text)
        if not quiet and not globals_of(ctx).json:
            for problem in client.call(SystemInfo()).problems:
                render.notice(f"not loaded: {problem}")


@app.command("show", cls=Verb)
def tool_show(ctx: typer.Context, name: Name) -> None:
    """Show a tool: what it does, and its arguments as JSON Schema.

    \b
    aiosctl tool show search_files
    """
    with connect(ctx) as client:
        answer(ctx, client, ToolGet(name=name), render.record)


@app.command("call", cls=Verb)
def tool_call(
    ctx: typer.Context,
    name: Name,
    pairs: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Its arguments, by name.")
    ] = None,
    args: Annotated[
        str | None, typer.Option("--args", metavar="JSON", help="Its arguments as one object.")
    ] = None,
    session_id: Annotated[
        str | None,
        typer.Option(
            "--session",
            "-s",
            metavar="ID",
            help="With this session's rights; without it, of one for the call.",
        ),
    ] = None,
) -> None:
    """Call a tool and print what it gives.

    \b
    aiosctl tool call calculator expression="2 * 21"
    aiosctl tool call search_files --args '{"text": "TODO"}'
    """
    json = globals_of(ctx).json
    with connect(ctx) as client:
        arguments = _arguments(client, name, pairs, args)
        if session_id is None:
            with _session_for(client, name) as own:
                raw = client.ask(ToolCall(session_id=own, name=name, arguments=arguments), timeout_s=None)
        else:
            given = resolve.session(client, session_id, state="open")
            raw = client.ask(ToolCall(session_id=given, name=name, arguments=arguments), timeout_s=None)
    result: ToolResult = typed(raw, ToolResult, ToolCall.method)
    text = "\n".join(block.text for block in result.content)
    if json:
        render.document(raw)
    elif not result.is_error:
        render.out(text)
    if result.is_error:
        if json:
            raise typer.Exit(ToolFailed.exit_status)
        raise ToolFailed(f"{name}: {text}", hint=f"aiosctl tool show {name}")


@app.command("explain", cls=Verb)
def tool_explain(
    ctx: typer.Context,
    session_id: Annotated[str, typer.Argument(metavar="SESSION", help="A session.")],
    name: Annotated[str, typer.Argument(metavar="TOOL", help="A tool's name.")],
    pairs: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Its arguments, by name.")
    ] = None,
    args: Annotated[
        str | None, typer.Option("--args", metavar="JSON", help="Its arguments as one object.")
    ] = None,
) -> None:
    """Say whether a session's models may make a call, by which rule, and why. Nothing is called.

    \b
    aiosctl tool explain @last read_file path=../notes.md
    """

    def text(found: Explained) -> None:
        render.fields(
            {
                "decision": found.decision,
                "rule": found.rule,
                "because": found.why,
                "about": "its arguments are unclear" if found.about is None else "\n".join(found.about),
                "always": found.always,
                "session has": " ".join(found.permissions),
                "tool needs": " ".join(found.tool_permissions) or name,
                "sandbox": found.sandbox,
            }.items()
        )

    with connect(ctx) as client:
        arguments = _arguments(client, name, pairs, args)
        params = ToolExplain(session_id=resolve.session(client, session_id), name=name, arguments=arguments)
        answer(ctx, client, params, text)


def _arguments(client: Client, name: str, pairs: list[str] | None, args: str | None) -> dict[str, Any]:
    if args is not None and pairs:
        raise InvalidParams("arguments are given as KEY=VALUE or as --args, not both")
    return (
        whole(args)
        if args is not None
        else by_name(pairs or [], client.call(ToolGet(name=name)).input_schema)
    )


@contextmanager
def _session_for(client: Client, name: str) -> Iterator[str]:
    """A session for one call, closed after it; that also ends a tool which Ctrl-C left running."""
    new = SessionCreate(title=f"tool call {name}", workspace=here())
    session_id = client.call(new).session_id
    try:
        yield session_id
    finally:
        # Over another connection: after Ctrl-C this one still owes the tool's answer. What came of the call is the
        # news; a daemon that has gone meanwhile is not.
        with suppress(AiosError, OSError), Client(client.path, trace=client.trace) as second:
            second.call(SessionClose(session_id=session_id), timeout_s=CLOSE_S)


def whole(args: str) -> dict[str, Any]:
    """The object that --args is. Raises InvalidParams."""
    try:
        found = msgspec.json.decode(args.encode())
    except msgspec.DecodeError as exc:
        raise InvalidParams(f"--args is not JSON: {exc}") from None
    if not isinstance(found, dict):
        raise InvalidParams("--args is no JSON object")
    return found


def by_name(pairs: Sequence[str], schema: dict[str, Any]) -> dict[str, Any]:
    """KEY=VALUE as the tool's schema wants them: text where it takes text, else JSON, as in `n=5`.

    What is not JSON stays text: the daemon says what was expected there. Raises InvalidParams.
    """
    properties = schema.get("properties", {})
    arguments: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise InvalidParams(f"`{pair}` is not KEY=VALUE")
        if key in arguments:
            raise InvalidParams(f"`{key}` is given twice")
        if _takes_text(properties.get(key, {})):
            arguments[key] = value
            continue
        try:
            arguments[key] = msgspec.json.decode(value.encode())
        except msgspec.DecodeError:
            arguments[key] = value
    return arguments


def _takes_text(schema: dict[str, Any]) -> bool:
    types = schema.get("type", ())
    if isinstance(types, str):
        types = (types,)
    choices = (*schema.get("enum", ()), *([schema["const"]] if "const" in schema else ()))
    return (
        "string" in types
        or any(isinstance(each, str) for each in choices)
        or any(_takes_text(each) for each in (*schema.get("anyOf", ()), *schema.get("oneOf", ())))
    )
