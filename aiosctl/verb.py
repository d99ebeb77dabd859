"""What every verb shares: the options that may stand before or after it, and its way to the daemon."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from aiosctl import render
from aiosctl.client import CALL_S, Client, ErrorObject, decode
from aiosd.errors import AiosError, InternalError
from aiosd.paths import paths
from aiosd.protocol.base import Params

R = TypeVar("R")


@dataclass
class Globals:
    """Options of the whole command line. Filled as they are met, so the last one given holds."""

    socket: str | None = None
    no_start: bool = False
    json: bool = False
    debug: bool = False


def globals_of(ctx: typer.Context) -> Globals:
    found = ctx.find_root().obj
    assert isinstance(found, Globals)  # main gives one to the root
    return found


def _global_options() -> list[TyperOption]:
    def keep(ctx: typer.Context, param: TyperOption, value: Any) -> None:
        if value:
            setattr(globals_of(ctx), str(param.name), value)

    def option(*names: str, help: str, flag: bool = True, metavar: str | None = None) -> TyperOption:
        return TyperOption(
            param_decls=list(names),
            help=help,
            is_flag=flag,
            metavar=metavar,
            callback=keep,
            expose_value=False,
        )

    return [
        option("--json", help="Print the answer as one JSON document, as the daemon gave it."),
        option(
            "--socket", help="Use the daemon on this socket; never start one.", flag=False, metavar="PATH"
        ),
        option("--no-start", help="Fail where no daemon answers, instead of starting one."),
        option("--debug", help="Show what goes over the socket, and tracebacks."),
    ]


class Verb(TyperCommand):
    """A command that also takes the global options after its name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += _global_options()


class Group(TyperGroup):
    """The command line itself, or a noun: it takes the global options before the verb."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += _global_options()


def noun(help: str) -> typer.Typer:
    """The group of one noun's verbs."""
    return typer.Typer(cls=Group, help=help, add_completion=False, rich_markup_mode=None)


def complain(exc: AiosError, *, json: bool) -> None:
    """On stderr: what happened, why, and the line that mends it; or the error as the daemon gave it."""
    if json:
        wire = exc.__cause__.error if isinstance(exc.__cause__, ErrorObject) else exc.to_wire()
        sys.stderr.write(msgspec.json.encode(wire).decode() + "\n")
    else:
        bug = f"tail {paths().log}" if isinstance(exc, InternalError) else None
        render.complaint(str(exc) or type(exc).__name__, exc.hint or bug)


def connect(ctx: typer.Context) -> Client:
    """A connection to the daemon, which is started where that is allowed. Raises NoDaemon."""
    from aiosctl import start  # late: most of it is for starting

    given = globals_of(ctx)
    return start.connect(
        option=given.socket, may_start=not given.no_start, quiet=given.json, trace=given.debug
    )


def answer(
    ctx: typer.Context,
    client: Client,
    params: Params[R],
    text: Callable[[R], None],
    *,
    timeout_s: float | None = CALL_S,
) -> None:
    """Makes the verb's one call and prints its result: the document with --json, else by `text`."""
    raw = client.ask(params, timeout_s=timeout_s)
    if globals_of(ctx).json:
        render.document(raw)
    else:
        text(decode(params, raw))
