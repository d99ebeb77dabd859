"""aiosctl session: conversations, and what they may do."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from aiosctl import render, resolve
from aiosctl.options import AgentName, Cursor, IdsAlone, Limit, MaxUsd, SessionId
from aiosctl.quick import here
from aiosctl.verb import Verb, answer, connect, noun
from aiosd.protocol.sessions import (
    SessionClose,
    SessionCreate,
    SessionDelete,
    SessionGet,
    SessionList,
    Sessions,
)
from aiosd.records import Priority, Session, SessionState

app = noun("Sessions: conversations with their own rights and memory.")


@app.command("create", cls=Verb)
def session_create(
    ctx: typer.Context,
    title: Annotated[str | None, typer.Argument(metavar="TITLE", help="A name to find it by.")] = None,
    agent: AgentName = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="Instructions to the model.")] = None,
    permissions: Annotated[
        str | None, typer.Option(metavar="A,B", help="What it may do; default: the agent's or the config's.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Nothing of it leaves this machine.")] = False,
    priority: Annotated[Priority, typer.Option(help="Whose turn it is when models are busy.")] = "normal",
    max_usd: MaxUsd = None,
    workspace: Annotated[
        str | None, typer.Option(metavar="FOLDER", help='What tools see; default: this folder; "" is none.')
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="Tools may change the workspace.")] = False,
    user: Annotated[str | None, typer.Option(metavar="NAME", help="Whose it is; default: yours.")] = None,
) -> None:
    """Open a session and print its id.

    \b
    aiosctl session create notes
    id=$(aiosctl session create --agent reviewer); aiosctl run -s "$id" "review HEAD"
    """
    new = SessionCreate(
        user_id=user,
        title=title,
        agent=agent,
        system=system,
        permissions=None if permissions is None else names(permissions),
        privacy="local" if private else "any",
        priority=priority,
        max_usd=max_usd,
        workspace=here() if workspace is None else os.path.abspath(workspace) if workspace else None,
        write=write,
    )
    with connect(ctx) as client:
        answer(ctx, client, new, _created)


def _created(session: Session) -> None:
    if render.for_people():
        render.out(f"session {session.session_id} {session.title}".rstrip())
    else:
        render.out(session.session_id)


def names(listed: str) -> tuple[str, ...]:
    """`a,b` as names; nothing gives none."""
    return tuple(name.strip() for name in listed.split(",") if name.strip())


@app.command("list", cls=Verb)
def session_list(
    ctx: typer.Context,
    state: Annotated[SessionState | None, typer.Option(help="Only these.")] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
    quiet: IdsAlone = False,
) -> None:
    """List sessions, the last used first.

    \b
    aiosctl session list --state open
    aiosctl session list -q | head -1
    """

    def text(found: Sessions) -> None:
        if quiet:
            render.ids(each.session_id for each in found.sessions)
        else:
            ids = render.short([each.session_id for each in found.sessions])
            render.table(
                ["id", "state", "used", "user", "workspace", "title"],
                [
                    (id, each.state, each.used_at, each.user_id, each.workspace, each.title)
                    for id, each in zip(ids, found.sessions, strict=True)
                ],
            )
        render.more("session list", found.next_cursor)

    with connect(ctx) as client:
        answer(ctx, client, SessionList(state=state, limit=limit, cursor=cursor), text)


@app.command("show", cls=Verb)
def session_show(ctx: typer.Context, id: SessionId) -> None:
    """Show a session: its rights, its workspace, its state.

    \b
    aiosctl session show @last
    """

    def text(session: Session) -> None:
        render.record(session)

    with connect(ctx) as client:
        answer(ctx, client, SessionGet(session_id=resolve.session(client, id)), text)


@app.command("close", cls=Verb)
def session_close(ctx: typer.Context, id: SessionId) -> None:
    """Close a session: no more runs; what it remembers stays.

    \b
    aiosctl session close notes
    """
    with connect(ctx) as client:
        closing = SessionClose(session_id=resolve.session(client, id, state="open"))
        answer(ctx, client, closing, lambda session: render.out(f"closed {session.session_id}"))


@app.command("delete", cls=Verb)
def session_delete(
    ctx: typer.Context,
    id: SessionId,
    forget: Annotated[bool, typer.Option("--forget", help="Its memories go too.")] = False,
) -> None:
    """Delete a session with its turns and tasks.

    \b
    aiosctl session delete notes --forget
    """
    with connect(ctx) as client:
        session_id = resolve.session(client, id)
        deleting = SessionDelete(session_id=session_id, forget=forget)
        answer(ctx, client, deleting, lambda _: render.out(f"deleted {session_id}"))
