"""aiosctl chat: one session, a task a line."""

from __future__ import annotations

import os
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from aiosctl import render, resolve
from aiosctl.options import AgentName, Backend, OfSession
from aiosctl.quick import here, title
from aiosctl.run import watched
from aiosctl.verb import complain, connect, globals_of
from aiosd.errors import AiosError, InvalidParams
from aiosd.paths import paths
from aiosd.protocol.sessions import SessionCreate, SessionRun
from aiosd.records import Tier

PROMPT = "> "
KEPT_LINES = 1000
"""Of the history."""

KEYS = (
    r'"\C-x\C-k": kill-whole-line',
    r'"\C-c": "\C-x\C-k\C-m"',
    r'"\C-@": "\C-d"',
)
"""At the prompt. Ctrl-C drops the line. A Ctrl-D that was typed while the answer came is a NUL when readline gets it: the
terminal then read lines, and marks their end by one (n_tty.c)."""


def chat(
    ctx: typer.Context,
    session_id: OfSession = None,
    go_on_here: Annotated[
        bool, typer.Option("--continue", "-c", help="In the last session of this folder, if there is one.")
    ] = False,
    agent: AgentName = None,
    write: Annotated[bool, typer.Option("--write", help="A new session may change this folder.")] = False,
    private: Annotated[
        bool, typer.Option("--private", help="Nothing of a new session leaves this machine.")
    ] = False,
    tier: Annotated[Tier | None, typer.Option(help="How able a model is asked.")] = None,
    backend: Backend = None,
) -> None:
    """Talk in one session, a task a line. Ctrl-C cancels an answer, Ctrl-D ends; Up and Ctrl-R find earlier lines.
    With --json each answer is a document of its own, on one line.

    \b
    aiosctl chat
    aiosctl chat -c --tier capable
    """
    workspace, json = here(), globals_of(ctx).json
    if session_id and (agent or write or private):
        raise InvalidParams("--agent, --write and --private are for a new session")
    with connect(ctx) as client:
        if session_id:
            session_id = resolve.session(client, session_id, state="open")
        elif go_on_here:
            session_id = resolve.session_here(client, workspace)
    with _history():
        for words in _lines():
            try:
                with connect(ctx) as client:  # one a line: a daemon that was restarted meanwhile is no end
                    if session_id is None:
                        new = SessionCreate(
                            title=title(words),
                            agent=agent,
                            privacy="local" if private else "any",
                            workspace=workspace,
                            write=write,
                        )
                        session_id = client.call(new).session_id
                    params = SessionRun(
                        session_id=session_id, task=words, tier=tier, backend=backend, stream=True
                    )
                    watched(client, params, json=json)
            except AiosError as exc:
                complain(exc, json=json)


def _lines() -> Iterator[str]:
    """What is typed, until Ctrl-D; or piped in. A Ctrl-C there drops the line."""
    while True:
        try:
            with _prompting():
                words = input(PROMPT if render.for_people() else "").strip()
        except EOFError:
            if render.for_people():
                render.out("")
            return
        except KeyboardInterrupt:
            render.out("")
            continue
        except UnicodeDecodeError:
            render.complaint("that line is not UTF-8 text", None)
            continue
        if words:
            yield words


@contextmanager
def _prompting() -> Iterator[None]:
    """Ctrl-C is a key among others here: as a signal that comes before `input` waits, it would wait for the next key."""
    if not _has_editing():
        yield
        return
    before = termios.tcgetattr(0)
    keys = termios.tcgetattr(0)
    keys[6][termios.VINTR] = os.fpathconf(0, "PC_VDISABLE")
    termios.tcsetattr(0, termios.TCSANOW, keys)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSANOW, before)


def _has_editing() -> bool:
    return sys.stdin.isatty() and render.for_people()


@contextmanager
def _history() -> Iterator[None]:
    """Lines can be edited and found again, those of earlier chats too. They are the user's alone."""
    if not _has_editing():
        yield
        return
    import readline  # late: importing it is what makes input() edit

    file = paths().state / "chat_history"
    try:
        readline.read_history_file(file)
    except OSError:
        pass  # the first chat
    readline.set_history_length(KEPT_LINES)
    for key in KEYS:
        readline.parse_and_bind(key)
    try:
        yield
    finally:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600))
        readline.write_history_file(file)
