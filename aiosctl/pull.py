"""aiosctl model pull: a model for Ollama, by Ollama's own /api/pull."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
import typer

from aiosctl import render
from aiosctl.servers import look
from aiosctl.verb import connect, globals_of
from aiosd import addresses
from aiosd.errors import AiosError, InvalidParams, NoModelFits, NotFound
from aiosd.protocol.models import ModelList

READ_S = 300.0
"""Between two lines of progress: checking a large file says nothing for minutes."""


class Step(msgspec.Struct, frozen=True):
    """A line of /api/pull."""

    status: str = ""
    digest: str = ""
    total: int = 0
    """Bytes of the file that `digest` names; these come many times."""
    completed: int = 0
    error: str = ""


Show = Callable[[Step], None]


def pull(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="As in Ollama's library.")],
) -> None:
    """Get a model for Ollama; where it was interrupted it goes on.

    \b
    aiosctl model pull llama3.2
    """
    if not name.strip():
        raise InvalidParams("NAME: expected a model, as in: aiosctl model pull llama3.2")
    url = _url(ctx)
    with _progress(quiet=globals_of(ctx).json) as show:
        _pull(url, name, show)
    if globals_of(ctx).json:
        render.document(msgspec.json.encode({"model": name, "url": url}))
    else:
        render.out(f"{name} is there" if render.for_people() else name)


def _url(ctx: typer.Context) -> str:
    """The Ollama that the daemon uses, one on this machine first; else the usual one."""
    with connect(ctx) as client:
        found = [b for b in client.call(ModelList()).backends if b.kind == "ollama" and b.url]
    found.sort(key=lambda b: not b.local)
    return (found[0].url if found else None) or addresses.ollama(os.environ.get("OLLAMA_HOST", ""))


def _pull(url: str, name: str, show: Show) -> None:
    """Raises NotFound for a name that the library does not have, NoModelFits where no Ollama is, AiosError."""
    import http.client  # late: only this verb speaks HTTP for long

    parts = urlsplit(url)
    over = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = over(parts.hostname or "", parts.port, timeout=READ_S)
    body = msgspec.json.encode({"model": name, "stream": True})
    done = False
    try:
        connection.request("POST", f"{parts.path}/api/pull", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        for line in answer:
            step = msgspec.json.decode(line, type=Step)
            if step.error:
                raise _refused(name, step.error)
            show(step)
            done = step.status == "success"
        if answer.status != 200:
            raise AiosError(f"{url} answered with HTTP status {answer.status}")
    except ConnectionRefusedError:
        raise NoModelFits(f"no Ollama answers at {url}", hint=look(os.environ).next_step) from None
    except (OSError, http.client.HTTPException, ValueError) as exc:
        raise AiosError(f"{url}: {exc}", hint=f"aiosctl model pull {name}") from None
    finally:
        connection.close()
    if not done:
        raise AiosError(f"{url} broke off before all was there", hint=f"aiosctl model pull {name}")


def _refused(name: str, why: str) -> AiosError:
    if "does not exist" in why or "not found" in why:
        return NotFound(
            f"Ollama's library has no `{name}`: {why}", hint="xdg-open https://ollama.com/library"
        )
    return AiosError(f"`{name}` was not pulled: {why}", hint=f"aiosctl model pull {name}")


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Show]:
    """A bar a file on a terminal, else a line a step; beside standard output."""
    if quiet or not render.on_terminal(sys.stderr):
        yield _lines(quiet=quiet)
        return
    from rich.console import Console  # late: only people see it
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        files = {}

        def show(step: Step) -> None:
            if step.total:
                if step.digest not in files:
                    files[step.digest] = bars.add_task(render.safe(step.status, sys.stderr), total=step.total)
                bars.update(files[step.digest], completed=step.completed)

        yield show


def _lines(*, quiet: bool) -> Show:
    said: set[str] = set()

    def show(step: Step) -> None:
        if step.status not in said and not quiet:
            said.add(step.status)
            size = f" ({step.total / 1e6:,.0f} MB)" if step.total else ""
            render.aside(step.status + size)

    return show
