"""Options and arguments that several verbs take, each declared once; and what a shell completes them with.

A completion asks the daemon that runs, starts none, and gives nothing rather than an error or a wait.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated

import typer

from aiosctl.client import Client
from aiosd.errors import AiosError
from aiosd.paths import socket_path, user_name
from aiosd.protocol.memory import MemoryList
from aiosd.protocol.models import ModelList
from aiosd.protocol.sessions import SessionList
from aiosd.protocol.tasks import TaskList
from aiosd.protocol.tools import AgentList, ToolList

COMPLETE_S = 0.3
"""Seconds that a shell waits for names: less than who types takes for a stand-still."""
COMPLETED = 50
"""Most names, the latest."""

_SECONDS = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}


def seconds(text: str) -> float:
    """`5`, `5s`, `500ms`, `2m`, `1h` or `7d`, in seconds. Raises BadParameter."""
    found = _SECONDS.fullmatch(text)
    if not found or not (value := float(found[1]) * _UNITS[found[2]]):
        raise typer.BadParameter(f"{text!r} is no time: seconds, or 500ms, 5s, 2m, 1h, 7d")
    return value


Named = list[tuple[str, str]]
"""What may be typed, with what it is."""


def completing(names: Callable[[Client], Named]) -> Callable[[str], Named]:
    """A completion of Typer's: of those names the ones that begin as what is typed does."""

    def complete(incomplete: str) -> Named:
        try:
            with Client(socket_path()) as client:
                found = names(client)
        except (AiosError, OSError):
            return []
        # A line end would be another name for the shell, a colon divides words for bash.
        named = ((name, " ".join(about.split())[:60]) for name, about in found)
        return [(name, about) for name, about in named if name.startswith(incomplete)]

    return complete


@completing
def sessions(client: Client) -> Named:
    found = client.call(SessionList(limit=COMPLETED), timeout_s=COMPLETE_S).sessions
    titled = [(each.title, each.session_id) for each in found if each.title]
    return [("@last", "the one used last"), *titled, *((each.session_id, each.title) for each in found)]


@completing
def tasks(client: Client) -> Named:
    found = client.call(TaskList(limit=COMPLETED), timeout_s=COMPLETE_S).tasks
    return [("@last", "the newest"), *((str(each.number), each.task) for each in found)]


@completing
def memories(client: Client) -> Named:
    asked = MemoryList(user_id=user_name(), limit=COMPLETED)
    return [(each.memory_id, each.content) for each in client.call(asked, timeout_s=COMPLETE_S).memories]


@completing
def backends(client: Client) -> Named:
    return [(each.name, each.model) for each in client.call(ModelList(), timeout_s=COMPLETE_S).backends]


@completing
def agents(client: Client) -> Named:
    found = client.call(AgentList(), timeout_s=COMPLETE_S).agents
    return [(each.name, each.system or "") for each in found]


@completing
def tools(client: Client) -> Named:
    found = client.call(ToolList(), timeout_s=COMPLETE_S).tools
    return [(each.name, each.description) for each in found]


SessionId = Annotated[
    str,
    typer.Argument(metavar="ID", help="Id or a beginning of it, title, or @last.", autocompletion=sessions),
]
TaskId = Annotated[
    str,
    typer.Argument(metavar="ID", help="Number, id or a beginning of it, or @last.", autocompletion=tasks),
]
MemoryId = Annotated[
    str,
    typer.Argument(metavar="ID", help="Id or a beginning of it, or @last.", autocompletion=memories),
]
OfSession = Annotated[
    str | None,
    typer.Option("--session", "-s", metavar="ID", help="Only of this session.", autocompletion=sessions),
]
Backend = Annotated[
    str | None,
    typer.Option(
        "--backend",
        "-m",
        "--model",
        metavar="NAME",
        help="This backend and no other.",
        autocompletion=backends,
    ),
]
AgentName = Annotated[
    str | None, typer.Option("--agent", metavar="NAME", help="An agent of the config.", autocompletion=agents)
]
Files = Annotated[
    list[str] | None,
    typer.Option("--file", "-f", metavar="FILE", help="Give a file with it; - is standard input. Many."),
]
Deadline = Annotated[
    float | None, typer.Option("--deadline", parser=seconds, metavar="TIME", help="Most time: 30, 5s, 2m.")
]
MaxUsd = Annotated[float | None, typer.Option("--max-usd", min=0, metavar="USD", help="Most it may cost.")]
Limit = Annotated[int, typer.Option("--limit", min=1, metavar="N", help="Most to list.")]
Cursor = Annotated[
    str | None, typer.Option("--cursor", metavar="CURSOR", help="Go on after a list cut short.")
]
IdsAlone = Annotated[bool, typer.Option("--quiet", "-q", help="Ids alone.")]
AnswerAlone = Annotated[bool, typer.Option("--quiet", "-q", help="The answer and errors alone.")]
