"""aiosctl memory: what is known, looked up, added to and forgotten."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Annotated

import msgspec
import typer

from aiosctl import inputs, render, resolve
from aiosctl.client import Client
from aiosctl.verb import Verb, answer, connect, globals_of, noun
from aiosd.errors import InvalidParams
from aiosd.paths import user_name
from aiosd.protocol.memory import (
    Export,
    Exported,
    Forgotten,
    Lineage,
    Memories,
    MemoryExport,
    MemoryForget,
    MemoryGet,
    MemoryImport,
    MemoryList,
    MemoryMigrate,
    MemoryRecall,
    MemoryReindex,
    MemoryRemember,
    MemoryStats,
    MemoryWhy,
    Recalled,
    Remembered,
    Stats,
)
from aiosd.protocol.sessions import SessionCreate, SessionList
from aiosd.protocol.system import SystemInfo
from aiosd.protocol.tasks import TaskAttach
from aiosd.records import AnyEvent, Memory, ProgressEvent, Task, TaskResult

app = noun("Memory: what is known about your work, across sessions.")

TITLE = "aiosctl"
"""Of the session made for memories where there is none."""

CHUNK = 500
"""Memories imported in one call, and CHUNK_BYTES of them: so a bar moves, and a line of the protocol holds them."""

CHUNK_BYTES = 1024 * 1024

IMPORT_S = 600.0
"""For one such call, which answers when its memories are found: embedding them takes its time."""

Everybody = Annotated[bool, typer.Option("--all", help="Every user's; without it, your own.")]
OfSession = Annotated[
    str | None,
    typer.Option("--session", "-s", metavar="ID", help="Of this session; without it, of all of yours."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Ids alone.")]
Kind = Annotated[str | None, typer.Option(metavar="KIND", help="Only of this kind, as in note or task.")]


def _brief(source: str) -> str:
    """For people the beginning of the id in `task:ID`; for programs all of it."""
    made_by, colon, id = source.partition(":")
    return f"{made_by}:{id[:8]}" if colon and len(id) == 36 and render.for_people() else source


def moment(text: str) -> datetime:
    """ISO 8601; without a zone it is this machine's time. Raises ValueError."""
    return datetime.fromisoformat(text).astimezone()


@app.command("recall", cls=Verb)
def memory_recall(
    ctx: typer.Context,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What to look for.")],
    session_id: OfSession = None,
    n: Annotated[int, typer.Option("-n", min=1, metavar="N", help="Most to give.")] = 5,
    as_of: Annotated[
        datetime | None,
        typer.Option(parser=moment, metavar="TIME", help="As it was known then, as in 2026-05-01T12:00."),
    ] = None,
    kind: Kind = None,
    source: Annotated[str | None, typer.Option(metavar="SOURCE", help="Only of this source.")] = None,
    quiet: Quiet = False,
) -> None:
    """Find what fits a query best.

    \b
    aiosctl memory recall "which port does the staging server use"
    """

    def text(found: Recalled) -> None:
        if quiet:
            render.ids(each.memory_id for each in found.memories)
            return
        ids = render.short([each.memory_id for each in found.memories])
        render.table(
            ["score", "id", "created", "kind", "content"],
            [
                (f"{each.score:.2f}", id, each.created_at, each.kind, each.content)
                for id, each in zip(ids, found.memories, strict=True)
            ],
        )

    with connect(ctx) as client:
        user_id, session_id = _whose(client, session_id)
        params = MemoryRecall(
            query=query, session_id=session_id, user_id=user_id, n=n, as_of=as_of, kind=kind, source=source
        )
        answer(ctx, client, params, text)


@app.command("remember", cls=Verb)
def memory_remember(
    ctx: typer.Context,
    content: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="What to keep. Without it: standard input.")
    ] = None,
    session_id: Annotated[
        str | None,
        typer.Option("--session", "-s", metavar="ID", help="In this session; without it in your last one."),
    ] = None,
    kind: Annotated[str, typer.Option(metavar="KIND", help="What it is, in a word.")] = "note",
    speaker: Annotated[str | None, typer.Option(metavar="NAME", help="Who said it.")] = None,
) -> None:
    """Remember something, and print its id once it is on the disk.

    \b
    aiosctl memory remember "the staging server listens on 8081"
    aiosctl memory remember < notes.txt
    """
    if content is None:
        content = inputs.read_stdin("the text")
    if not content.strip():
        raise InvalidParams("there is nothing to remember: the text is empty")

    def text(kept: Remembered) -> None:
        render.out(f"remembered {kept.memory_id}" if render.for_people() else str(kept.memory_id))

    with connect(ctx) as client:
        session_id = (
            _mine(client) if session_id is None else resolve.session(client, session_id, state="open")
        )
        params = MemoryRemember(session_id=session_id, content=content.strip(), kind=kind, speaker=speaker)
        answer(ctx, client, params, text)


@app.command("list", cls=Verb)
def memory_list(
    ctx: typer.Context,
    session_id: OfSession = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Most to list.")] = 100,
    cursor: Annotated[
        str | None, typer.Option(metavar="CURSOR", help="Go on after a list cut short.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """List memories, the newest first.

    \b
    aiosctl memory list -s @last
    """

    def text(found: Memories) -> None:
        if quiet:
            render.ids(each.memory_id for each in found.memories)
        else:
            ids = render.short([each.memory_id for each in found.memories])
            render.table(
                ["id", "created", "kind", "source", "content"],
                [
                    (id, each.created_at, each.kind, _brief(each.source), each.content)
                    for id, each in zip(ids, found.memories, strict=True)
                ],
            )
        render.more("memory list", found.next_cursor)

    with connect(ctx) as client:
        user_id, session_id = _whose(client, session_id)
        params = MemoryList(session_id=session_id, user_id=user_id, limit=limit, cursor=cursor)
        answer(ctx, client, params, text)


@app.command("show", cls=Verb)
def memory_show(
    ctx: typer.Context,
    id: Annotated[str, typer.Argument(metavar="ID", help="Id or a beginning of it, or @last.")],
) -> None:
    """Show a memory with its source.

    \b
    aiosctl memory show @last
    """
    with connect(ctx) as client:
        answer(ctx, client, MemoryGet(memory_id=resolve.memory(client, id, user_name())), render.record)


@app.command("why", cls=Verb)
def memory_why(
    ctx: typer.Context,
    id: Annotated[str, typer.Argument(metavar="ID", help="Id or a beginning of it, or @last.")],
) -> None:
    """Show where a memory came from, and what was made from it.

    \b
    aiosctl memory why @last
    """

    with connect(ctx) as client:
        answer(ctx, client, MemoryWhy(memory_id=resolve.memory(client, id, user_name())), lineage)


def lineage(found: Lineage) -> None:
    """Where a memory came from and what became of it, a row each."""
    memory, session = found.memory, found.session
    rows: list[tuple[str, str, datetime | None, str, str]] = [_traced("memory", memory)]
    if session is not None:
        rows.append(("session", session.session_id, session.created_at, session.state, session.title))
    rows += [("task", str(run.number), None, run.state, run.task) for run in found.tasks]
    rows += [("turn", "-", turn.created_at, turn.role, turn.content) for turn in found.turns]
    rows += [_traced("made from", each) for each in found.derived_from]
    rows += [_traced("became", each) for each in found.derived]
    short = render.short([id for _, id, *_ in rows])
    render.table(
        ["", "id", "when", "kind", "content"],
        [(what, id, *more) for (what, _, *more), id in zip(rows, short, strict=True)],
    )


def _traced(what: str, memory: Memory) -> tuple[str, str, datetime | None, str, str]:
    return what, memory.memory_id, memory.created_at, _brief(memory.source), memory.content


@app.command("stats", cls=Verb)
def memory_stats(ctx: typer.Context, everybody: Everybody = False) -> None:
    """Count what is remembered.

    \b
    aiosctl memory stats
    """

    def text(found: Stats) -> None:
        counts = render.properties(found)
        for by in ("by_kind", "by_source"):
            counts[by] = "  ".join(f"{name} {n}" for name, n in getattr(found, by).items()) or None
        render.fields(counts.items())

    with connect(ctx) as client:
        answer(ctx, client, MemoryStats(user_id=None if everybody else user_name()), text)


@app.command("export", cls=Verb)
def memory_export(ctx: typer.Context, everybody: Everybody = False) -> None:
    """Write all memories, a JSON object a line, as `import` reads them.

    \b
    aiosctl memory export > memories.jsonl
    """
    user_id = None if everybody else user_name()
    shown = (
        not globals_of(ctx).json and not render.for_people()
    )  # beside what a terminal shows, a bar would be torn
    pages: list[Exported] = []
    with connect(ctx) as client:
        total = client.call(MemoryStats(user_id=user_id)).memories if shown else 0
        with render.progress("exporting", total, shown=shown) as advance:
            cursor = None
            while True:
                page = client.call(MemoryExport(user_id=user_id, cursor=cursor))
                if globals_of(ctx).json:
                    pages += page.memories
                else:
                    for memory in page.memories:
                        render.document(msgspec.json.encode(memory))
                advance(len(page.memories))
                if (cursor := page.next_cursor) is None:
                    break
    if globals_of(ctx).json:
        render.document(msgspec.json.encode(Export(memories=tuple(pages))))


@app.command("import", cls=Verb)
def memory_import(
    ctx: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="[FILE]", help="What `export` wrote; without it, standard input.")
    ] = "-",
) -> None:
    """Add the memories of a file, under their own ids. Those that are here already stay: it can be done again.

    \b
    aiosctl memory import memories.jsonl
    """
    lines, total = inputs.lines(name)
    given = added = 0
    with (
        connect(ctx) as client,
        render.progress("importing", total, shown=not globals_of(ctx).json) as advance,
    ):
        for chunk, size_bytes in _chunks(name, lines):
            done = client.call(MemoryImport(memories=chunk), timeout_s=IMPORT_S)
            given += len(done.memory_ids)
            added += done.added
            advance(size_bytes)
    if globals_of(ctx).json:
        render.document(msgspec.json.encode({"given": given, "added": added}))
    else:
        noun = "memory" if added == 1 else "memories"
        render.out(
            f"imported {added} {noun}" + (f"; {given - added} were here already" if given - added else "")
        )


@app.command("reindex", cls=Verb)
def memory_reindex(ctx: typer.Context) -> None:
    """Make the index of all memories again; nothing is lost by that, and recall goes on.

    \b
    aiosctl memory reindex
    """
    with connect(ctx) as client:
        task = client.call(MemoryReindex())
        _watch(ctx, client, task, client.call(MemoryStats(user_id=None)).memories)


@app.command("migrate", cls=Verb)
def memory_migrate(
    ctx: typer.Context,
    url: Annotated[str, typer.Argument(metavar="URL", help="Of a Qdrant server or cluster.")],
) -> None:
    """Make the index on a Qdrant server, and compare it with the one in use, which stays that until the config names
    the other. What is private stays here. Broken off, it goes on where it was when it is called again.

    The server's key is what memory.key_env or memory.key_file in the config names.

    \b
    aiosctl memory migrate https://qdrant.example:6333
    """
    with connect(ctx) as client:
        task = client.call(MemoryMigrate(qdrant_url=url))
        found = client.call(MemoryStats(user_id=None))
        _watch(ctx, client, task, found.memories - found.private)
        file = client.call(SystemInfo()).paths["config"]
    if not globals_of(ctx).json:
        line = f"qdrant_url = {msgspec.json.encode(url).decode()}"
        render.notice(f"to use it, put `{line}` under [memory] in {file}; then: aiosctl service restart")


def _watch(ctx: typer.Context, client: Client, task: Task, total: int) -> None:
    """Shows how far a task of the index has come until it ends. Raises what ended it."""
    done = 0
    with render.progress("indexing", total, shown=not globals_of(ctx).json) as advance:

        def heard(method: str, params: msgspec.Raw) -> None:
            nonlocal done
            event = msgspec.json.decode(params, type=AnyEvent)
            if isinstance(event, ProgressEvent) and event.done is not None:
                advance(event.done - done)
                done = event.done

        raw = client.ask(TaskAttach(task_id=task.task_id), timeout_s=None, on_notification=heard)
    if globals_of(ctx).json:
        render.document(raw)
    else:
        render.out(f"indexed {msgspec.json.decode(raw, type=TaskResult).result}")


def _chunks(name: str, lines: Iterable[bytes]) -> Iterator[tuple[tuple[Exported, ...], int]]:
    """Memories for one call each, with their size in the file. Raises InvalidParams, which names the line."""
    chunk: list[Exported] = []
    size = blank = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            blank += len(line)
            continue
        try:
            memory = msgspec.json.decode(line, type=Exported)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise InvalidParams(f"{name}:{number}: this is no exported memory: {exc}") from None
        if chunk and (size + len(line) > CHUNK_BYTES or len(chunk) == CHUNK):
            yield tuple(chunk), size + blank
            chunk, size, blank = [], 0, 0
        chunk.append(memory)
        size += len(line)
    if chunk:
        yield tuple(chunk), size + blank


@app.command("forget", cls=Verb)
def memory_forget(
    ctx: typer.Context,
    id: Annotated[str | None, typer.Argument(metavar="ID", help="Id or a beginning of it, or @last.")] = None,
    session_id: OfSession = None,
    query: Annotated[str | None, typer.Option(metavar="TEXT", help="What fits this.")] = None,
    source: Annotated[str | None, typer.Option(metavar="SOURCE", help="What this source made.")] = None,
    before: Annotated[
        datetime | None, typer.Option(parser=moment, metavar="TIME", help="What is older, as in 2026-05-01.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how many it would be.")] = False,
) -> None:
    """Forget what fits every condition given, and what was made from it.

    \b
    aiosctl memory forget 3f2a91c0
    aiosctl memory forget --before 2026-01-01 --dry-run
    """
    if id is None and session_id is None and query is None and source is None and before is None:
        raise InvalidParams("say what to forget", hint="aiosctl memory forget --help")

    def text(done: Forgotten) -> None:
        noun = "memory" if done.forgotten == 1 else "memories"
        render.out(f"{'would forget' if dry_run else 'forgot'} {done.forgotten} {noun}")

    with connect(ctx) as client:
        memory_id = None if id is None else resolve.memory(client, id, user_name())
        user_id, session_id = _whose(client, session_id)
        params = MemoryForget(
            memory_id=memory_id,
            query=query,
            session_id=session_id,
            user_id=user_id if id is None else None,  # an id says whose it is
            source=source,
            before=before,
            dry_run=dry_run,
        )
        answer(ctx, client, params, text)


def _whose(client: Client, session_id: str | None) -> tuple[str | None, str | None]:
    """The user or the session: one of them."""
    if session_id is None:
        return user_name(), None
    return None, resolve.session(client, session_id)


def _mine(client: Client) -> str:
    """The open session this user used last, or a new one."""
    cursor = None
    while True:
        page = client.call(SessionList(state="open", cursor=cursor))
        for each in page.sessions:
            if each.user_id == user_name():
                return each.session_id
        if (cursor := page.next_cursor) is None:
            return client.call(SessionCreate(title=TITLE)).session_id
