"""What is known, across sessions."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec

from aiosd.protocol.base import Params
from aiosd.records import Memory, Record, ScoredMemory, Session, Task, TaskState, Turn


class NewMemory(Record, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    content: str
    speaker: str | None = None
    created_at: datetime | None = None
    kind: str = "note"
    source: str = "user"
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)


class Remembered(Record, frozen=True, kw_only=True, omit_defaults=True):
    memory_id: str | None = None
    memory_ids: tuple[str, ...] | None = None


class MemoryRemember(Params[Remembered], frozen=True, kw_only=True):
    """Answers once what was given is on the disk: one `content`, or many `memories`."""

    session_id: str
    content: str | None = None
    speaker: str | None = None
    created_at: datetime | None = None
    kind: str = "note"
    source: str = "user"
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)
    memories: tuple[NewMemory, ...] | None = None

    method = "memory.remember"
    returns = Remembered


class Recalled(Record, frozen=True, kw_only=True):
    memories: tuple[ScoredMemory, ...]


class MemoryRecall(Params[Recalled], frozen=True, kw_only=True):
    """What fits the query best, for a session (as far as it may see) or for a user."""

    query: str
    session_id: str | None = None
    user_id: str | None = None
    scope: Literal["user", "session"] = "user"
    n: int = 5
    as_of: datetime | None = None
    kind: str | None = None
    source: str | None = None

    method = "memory.recall"
    returns = Recalled


class Context(Record, frozen=True, kw_only=True):
    text: str
    """`[created_at] content`, one entry a line."""
    entries: tuple[Turn, ...]


class MemoryContext(Params[Context], frozen=True, kw_only=True):
    """The session's working memory: its last turns, the oldest first."""

    session_id: str
    last_n: int = 10

    method = "memory.context"
    returns = Context


class Memories(Record, frozen=True, kw_only=True, omit_defaults=True):
    memories: tuple[Memory, ...]
    next_cursor: str | None = None


class MemoryList(Params[Memories], frozen=True, kw_only=True):
    """Memories of a session or a user, the newest first."""

    session_id: str | None = None
    user_id: str | None = None
    limit: int = 100
    cursor: str | None = None

    method = "memory.list"
    returns = Memories


class MemoryGet(Params[Memory], frozen=True, kw_only=True):
    """One memory."""

    memory_id: str

    method = "memory.get"
    returns = Memory


class Origin(Record, frozen=True, kw_only=True):
    """A run that a memory was made in; `aiosctl task show` has the rest of it."""

    task_id: str
    number: int
    task: str
    state: TaskState


class Lineage(Record, frozen=True, kw_only=True):
    """What has been deleted since is not here."""

    memory: Memory
    session: Session | None
    tasks: tuple[Origin, ...]
    """The runs that it was made in."""
    turns: tuple[Turn, ...]
    """What was said there."""
    derived_from: tuple[Memory, ...]
    derived: tuple[Memory, ...]
    """What was made from it; forgetting it forgets those too."""


class MemoryWhy(Params[Lineage], frozen=True, kw_only=True):
    """Where a memory came from, and what was made from it."""

    memory_id: str

    method = "memory.why"
    returns = Lineage


class Exported(Memory, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A memory as one line of a file: whole, so that an import gives back what was exported."""

    derived_from: tuple[str, ...] = ()
    """What it was made from: `memory:ID`, and `task:ID` for the run."""


class Export(Record, frozen=True, kw_only=True, omit_defaults=True):
    memories: tuple[Exported, ...]
    next_cursor: str | None = None


class MemoryExport(Params[Export], frozen=True, kw_only=True):
    """Every memory of a user, or of everybody, in the order they were added."""

    user_id: str | None = None
    limit: int = 1000
    cursor: str | None = None

    method = "memory.export"
    returns = Export


class Imported(Record, frozen=True, kw_only=True):
    memory_ids: tuple[str, ...]
    """Of all that were given, in their order."""
    added: int
    """Those that were not here before."""


class MemoryImport(Params[Imported], frozen=True, kw_only=True):
    """Adds what an export gave, all or none, under the same ids; what is here already, and the same, stays."""

    memories: tuple[Exported, ...]

    method = "memory.import"
    returns = Imported


class Stats(Record, frozen=True, kw_only=True):
    memories: int
    users: int
    sessions: int
    by_kind: dict[str, int]
    by_source: dict[str, int]
    """`task` for every `task:ID`, and so on: what stands before the colon."""
    private: int
    untrusted: int
    """Of a trust below 1."""
    derived: int
    """Made from other memories."""
    content_bytes: int
    first_at: datetime | None
    last_at: datetime | None
    embedder: str


class MemoryStats(Params[Stats], frozen=True, kw_only=True):
    """Counts, of a user's memories or of everybody's."""

    user_id: str | None = None

    method = "memory.stats"
    returns = Stats


class MemoryReindex(Params[Task], frozen=True, kw_only=True):
    """Makes the index of all memories again, in a task that `task.attach` shows; recall goes on meanwhile."""

    method = "memory.reindex"
    returns = Task


class MemoryMigrate(Params[Task], frozen=True, kw_only=True):
    """Makes the index of what may leave on another Qdrant server, and compares its counts and some recalls with the one
    in use, which stays in use: `memory.qdrant_url` in the config names the other."""

    qdrant_url: str

    method = "memory.migrate"
    returns = Task


class Forgotten(Record, frozen=True, kw_only=True):
    forgotten: int


class MemoryForget(Params[Forgotten], frozen=True, kw_only=True):
    """Removes what fits every condition given, one at least, and all that was made from it. With `dry_run`, counts
    only."""

    memory_id: str | None = None
    query: str | None = None
    session_id: str | None = None
    user_id: str | None = None
    source: str | None = None
    before: datetime | None = None
    dry_run: bool = False

    method = "memory.forget"
    returns = Forgotten
