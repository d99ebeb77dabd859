"""What is exported is everything, and importing it gives it back: the same lines, the same lineage."""

from __future__ import annotations

import getpass
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aiosd.errors import InvalidParams, InvalidState
from aiosd.protocol.memory import (
    Exported,
    MemoryExport,
    MemoryForget,
    MemoryImport,
    MemoryList,
    MemoryRecall,
    MemoryRemember,
    MemoryStats,
    MemoryWhy,
    NewMemory,
)
from tests.daemon import Daemon

NOW = datetime(2026, 11, 22, 12, 0, 0, 123456, tzinfo=UTC)

AWKWARD = (
    NewMemory(content='line one\nline "two"\t\u2028 end \\n', speaker="Ana 🙂", source="chat"),
    NewMemory(content="東京でラーメンを食べました", created_at=NOW, kind="fact"),
    NewMemory(content="\x00\x01 control \x7f", metadata={"a": [1, 2.5, None, {"ü": "\n"}], "big": 2**53 + 1}),
    NewMemory(
        content="from a page", source="https://example.org/a", created_at=datetime(1, 1, 1, tzinfo=UTC)
    ),
    NewMemory(content="x" * 300_000, created_at=datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)),
)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path / "other") as daemon:
        yield daemon


def exported(daemon: Daemon, **params: Any) -> list[Exported]:
    found: list[Exported] = []
    cursor = None
    while True:
        page = daemon.call(MemoryExport(cursor=cursor, **params))
        found += page.memories
        if (cursor := page.next_cursor) is None:
            return found


def filled(daemon: Daemon) -> None:
    """Awkward texts, a private session, and runs whose memories were made from others."""
    me = daemon.session()
    daemon.call(MemoryRemember(session_id=me.session_id, memories=AWKWARD))
    private = daemon.session(privacy="local")
    daemon.call(MemoryRemember(session_id=private.session_id, content="the alarm code is 4711"))
    daemon.run(me, "Remember that the deploy host is falcon-7")
    daemon.run(me, "What is the deploy host?")


def test_an_export_imported_elsewhere_exports_the_same_bytes(
    daemon: Daemon, other: Daemon, tmp_path: Path
) -> None:
    filled(daemon)
    first = daemon.ctl("memory", "export")
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("\n") == 9 and first.stderr == ""
    (tmp_path / "memories.jsonl").write_text(first.stdout, encoding="utf-8", newline="")
    done = other.ctl("memory", "import", str(tmp_path / "memories.jsonl"))
    assert (done.stdout, done.returncode) == (f"imported {first.stdout.count(chr(10))} memories\n", 0)
    assert other.ctl("memory", "export").stdout == first.stdout
    again = other.ctl("memory", "import", stdin=first.stdout.encode())
    assert again.stdout.startswith("imported 0 memories; ")
    assert other.ctl("memory", "export").stdout == first.stdout


def test_what_was_imported_is_found_and_forgotten_with_what_was_made_of_it(
    daemon: Daemon, other: Daemon
) -> None:
    filled(daemon)
    other.call(MemoryImport(memories=tuple(exported(daemon))))
    me = getpass.getuser()
    found = other.call(MemoryRecall(query="Where do we deploy? The host", user_id=me)).memories
    made = next(memory for memory in found if memory.source == "tool:remember")
    traced = other.call(MemoryWhy(memory_id=made.memory_id))
    assert traced.session is None and len(traced.derived) == 2
    assert other.call(MemoryForget(memory_id=made.memory_id)).forgotten == 3
    assert not any("falcon" in memory.content for memory in exported(other))


def test_an_export_goes_on_page_by_page_while_memories_come_and_go(daemon: Daemon) -> None:
    me = daemon.session(user_id="ann")
    batch = tuple(
        NewMemory(content=f"{i} {'x' * 70_000}") for i in range(100)
    )  # 7 MB: more than a page holds
    for start in (0, 50):
        daemon.call(MemoryRemember(session_id=me.session_id, memories=batch[start : start + 50]))
    page = daemon.call(MemoryExport(user_id="ann"))
    assert page.next_cursor is not None and 0 < len(page.memories) < 100
    daemon.call(MemoryForget(memory_id=page.memories[-1].memory_id))
    daemon.call(MemoryRemember(session_id=me.session_id, content="the last"))
    seen = [*page.memories, *exported_from(daemon, page.next_cursor)]
    assert [memory.content.split()[0] for memory in seen] == [*map(str, range(100)), "the"]
    limited = daemon.call(MemoryExport(user_id="ann", limit=2))
    assert [memory.content.split()[0] for memory in limited.memories] == ["0", "1"]
    assert exported(daemon, user_id="ben") == []


def exported_from(daemon: Daemon, cursor: str | None) -> list[Exported]:
    found: list[Exported] = []
    while cursor is not None:
        page = daemon.call(MemoryExport(user_id="ann", cursor=cursor))
        found += page.memories
        cursor = page.next_cursor
    return found


def test_an_import_is_all_or_nothing_and_says_what_is_wrong(daemon: Daemon) -> None:
    me = daemon.session(user_id="ann")
    daemon.call(MemoryRemember(session_id=me.session_id, content="one"))
    (one,) = exported(daemon)
    new = msgspec.structs.replace(one, memory_id="00000000-0000-4000-8000-000000000001")
    for wrong, sentence in (
        (msgspec.structs.replace(one, memory_id="x"), r"memories\[1\].memory_id: expected a UUID"),
        (msgspec.structs.replace(one, session_id=""), r"\[1\].session_id"),
        (msgspec.structs.replace(one, user_id=""), r"\[1\].user_id"),
        (msgspec.structs.replace(one, content=" "), r"\[1\].content"),
        (msgspec.structs.replace(one, trust=1.5), r"\[1\].trust: expected 0 to 1, got 1.5"),
        (msgspec.structs.replace(one, derived_from=("turn:1",)), r"\[1\].derived_from"),
        (msgspec.structs.replace(new, content="two"), r"\[1\]: .* is given twice"),
    ):
        with pytest.raises(InvalidParams, match=sentence):
            daemon.call(MemoryImport(memories=(new, wrong)))
    with pytest.raises(InvalidState, match="is here already, and is another"):
        daemon.call(MemoryImport(memories=(new, msgspec.structs.replace(one, content="two"))))
    assert exported(daemon) == [one]


def test_an_imported_lineage_reaches_no_other_user(daemon: Daemon) -> None:
    ann, ben = daemon.session(user_id="ann"), daemon.session(user_id="ben")
    daemon.run(ann, "Remember that the deploy host is falcon-7")
    hers = exported(daemon, user_id="ann")
    daemon.call(MemoryRemember(session_id=ben.session_id, content="mine"))
    (his,) = exported(daemon, user_id="ben")
    forged = msgspec.structs.replace(
        his,
        memory_id="00000000-0000-4000-8000-000000000001",
        derived_from=tuple(
            sorted(
                {f"memory:{memory.memory_id}" for memory in hers} | {o for m in hers for o in m.derived_from}
            )
        ),
    )
    daemon.call(MemoryImport(memories=(forged,)))
    traced = daemon.call(MemoryWhy(memory_id=forged.memory_id))
    assert (traced.derived_from, traced.tasks, traced.turns) == ((), (), ())
    assert not any(daemon.call(MemoryWhy(memory_id=memory.memory_id)).derived == (forged,) for memory in hers)
    assert daemon.call(MemoryForget(user_id="ann")).forgotten == len(hers)
    assert {memory.memory_id for memory in exported(daemon)} == {his.memory_id, forged.memory_id}


def test_a_file_that_is_no_export_is_refused_by_its_line(daemon: Daemon, tmp_path: Path) -> None:
    filled(daemon)
    lines = daemon.ctl("memory", "export").stdout.split("\n")  # a JSON string may hold other line ends
    file = tmp_path / "broken.jsonl"
    file.write_text("\n".join([lines[0], "", '{"content": "x"}']), encoding="utf-8")
    done = daemon.ctl("memory", "import", str(file))
    assert done.returncode == 2 and f"{file}:3: this is no exported memory" in done.stderr
    assert daemon.ctl("memory", "import", str(tmp_path / "none")).returncode == 66


def test_statistics_count_one_user_or_all(daemon: Daemon) -> None:
    filled(daemon)
    ben = daemon.session(user_id="ben")
    daemon.call(MemoryRemember(session_id=ben.session_id, content="tea", created_at=NOW))
    mine = daemon.call(MemoryStats(user_id=getpass.getuser()))
    every = daemon.call(MemoryStats())
    assert (mine.users, every.users, every.memories) == (1, 2, mine.memories + 1)
    assert mine.memories == len(daemon.call(MemoryList(user_id=getpass.getuser())).memories)
    assert mine.by_kind == {"fact": 1, "note": 6, "task": 2}
    assert mine.by_source == {"chat": 1, "https": 1, "task": 2, "tool": 1, "user": 4}
    # Both runs were given the private memory; one rests on what a model chose to remember.
    assert (mine.private, mine.untrusted, mine.derived) == (3, 3, 2)
    assert mine.last_at and mine.last_at - every.last_at == timedelta(0)  # type: ignore[operator]
    empty = daemon.call(MemoryStats(user_id="nobody"))
    assert (empty.memories, empty.by_kind, empty.first_at, empty.content_bytes) == (0, {}, None, 0)
    shown = daemon.ctl("memory", "stats").stdout
    assert f"memories\t{mine.memories}\n" in shown and "by_kind\tfact 1 note 6 task 2\n" in shown
    assert json.loads(daemon.ctl("memory", "stats", "--all", "--json").stdout)["memories"] == every.memories
