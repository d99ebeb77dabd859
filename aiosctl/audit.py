"""aiosctl audit: what tools did, and whether the record of it is whole."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from aiosctl import render
from aiosctl.verb import Verb, answer, connect, globals_of, noun
from aiosd.errors import AiosError
from aiosd.protocol.audit import AuditExport, AuditTail, AuditVerify, Entries, Verified
from aiosd.records import AuditEntry

app = noun("The audit log: what tools did, and what was decided about them.")


class AuditBroken(AiosError):
    """An entry is not what was written."""


@app.command("tail", cls=Verb)
def audit_tail(
    ctx: typer.Context,
    n: Annotated[int, typer.Option("-n", min=1, max=1000, metavar="N", help="How many.")] = 20,
) -> None:
    """Show the last entries, the oldest of them first.

    \b
    aiosctl audit tail -n 50
    """

    def text(found: Entries) -> None:
        render.table(
            ["seq", "at", "session", "kind", "what", "outcome", "about"],
            [
                (e.seq, e.at, (e.session_id or "")[:8], e.kind, e.what, _outcome(e), _about(e))
                for e in found.entries
            ],
        )

    with connect(ctx) as client:
        answer(ctx, client, AuditTail(n=n), text)


def _outcome(entry: AuditEntry) -> str:
    detail = entry.detail
    return str(detail.get("status") or detail.get("decision") or "")


def _about(entry: AuditEntry) -> str:
    about = entry.detail.get("about") or ()
    return " ".join(map(str, about)) if isinstance(about, list | tuple) else str(about)


@app.command("verify", cls=Verb)
def audit_verify(ctx: typer.Context) -> None:
    """Recompute every hash. Exits with 1 and names the entry where one is not what was written.

    \b
    aiosctl audit verify
    """
    with connect(ctx) as client:
        raw = client.ask(AuditVerify(), timeout_s=None)
    found = msgspec.json.decode(raw, type=Verified)
    if globals_of(ctx).json:
        render.document(raw)
    elif found.broken is None:
        render.out(f"{found.entries} entries, all as they were written; the last hash is {found.head}")
    if found.broken is not None:
        if globals_of(ctx).json:
            raise typer.Exit(AuditBroken.exit_status)
        raise AuditBroken(f"entry {found.broken} is broken: {found.why}", hint="aiosctl audit export")


@app.command("export", cls=Verb)
def audit_export(ctx: typer.Context) -> None:
    """Print every entry as a line of JSON.

    \b
    aiosctl audit export > audit.jsonl
    aiosctl audit export | grep http_get
    """
    cursor = None
    with connect(ctx) as client:
        while True:
            found = client.call(AuditExport(cursor=cursor))
            for entry in found.entries:
                render.out(msgspec.json.encode(entry).decode())
            if (cursor := found.next_cursor) is None:
                return
