"""The ledger's schema, as the numbered scripts that made it: number N brings a file from schema N-1 to N.

A script that was released is never edited, since files made by it exist: a change is a new one at the end,
and an old file in tests/data that proves it. Times are microseconds since 1970 (UTC), JSON is text.
"""

from __future__ import annotations

_SESSIONS_TASKS_MEMORIES = """
CREATE TABLE sessions (
    session_id  TEXT PRIMARY KEY NOT NULL CHECK (length(session_id) = 36),
    user_id     TEXT NOT NULL,
    title       TEXT NOT NULL,
    agent       TEXT,
    permissions TEXT NOT NULL,
    privacy     TEXT NOT NULL,
    priority    TEXT NOT NULL,
    max_usd     REAL,
    workspace   TEXT,
    write       INTEGER NOT NULL,
    state       TEXT NOT NULL,
    created_at  INTEGER NOT NULL,
    used_at     INTEGER NOT NULL,
    system      TEXT
);
CREATE INDEX sessions_used ON sessions (used_at, session_id);
CREATE INDEX sessions_state_used ON sessions (state, used_at, session_id);

CREATE TABLE turns (
    turn_id    INTEGER PRIMARY KEY,
    session_id TEXT NOT NULL REFERENCES sessions ON DELETE CASCADE,
    role       TEXT NOT NULL,
    content    TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    task_id    TEXT,
    privacy    TEXT NOT NULL
);
CREATE INDEX turns_session ON turns (session_id, turn_id);

-- AUTOINCREMENT: the number of a deleted task is never given again.
CREATE TABLE tasks (
    number          INTEGER PRIMARY KEY AUTOINCREMENT,
    task_id         TEXT NOT NULL UNIQUE CHECK (length(task_id) = 36),
    session_id      TEXT NOT NULL REFERENCES sessions ON DELETE CASCADE,
    parent_id       TEXT,
    task            TEXT NOT NULL,
    state           TEXT NOT NULL,
    priority        TEXT NOT NULL,
    created_at      INTEGER NOT NULL,
    started_at      INTEGER,
    ended_at        INTEGER,
    steps           INTEGER NOT NULL DEFAULT 0,
    cost_usd        REAL NOT NULL DEFAULT 0,
    result          TEXT,
    error           TEXT,
    params          TEXT NOT NULL,
    idempotency_key TEXT
);
CREATE INDEX tasks_session ON tasks (session_id, number);
CREATE INDEX tasks_state ON tasks (state, number);
CREATE UNIQUE INDEX tasks_idempotency ON tasks (session_id, idempotency_key) WHERE idempotency_key IS NOT NULL;

CREATE TABLE events (
    task_id TEXT NOT NULL REFERENCES tasks (task_id) ON DELETE CASCADE,
    seq     INTEGER NOT NULL,
    kind    TEXT NOT NULL,
    body    TEXT NOT NULL,
    PRIMARY KEY (task_id, seq)
) WITHOUT ROWID;

-- No reference to sessions or tasks: deleting what spent the money does not give it back to the day.
CREATE TABLE spending (
    spending_id INTEGER PRIMARY KEY,
    at          INTEGER NOT NULL,
    cost_usd    REAL NOT NULL,
    session_id  TEXT NOT NULL,
    task_id     TEXT NOT NULL
);
CREATE INDEX spending_at ON spending (at);
CREATE INDEX spending_session ON spending (session_id);
CREATE INDEX spending_task ON spending (task_id);

-- No reference to sessions: a session's memories outlive it until they are forgotten.
CREATE TABLE memories (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    memory_id  TEXT NOT NULL UNIQUE CHECK (length(memory_id) = 36),
    user_id    TEXT NOT NULL,
    session_id TEXT NOT NULL,
    speaker    TEXT,
    kind       TEXT NOT NULL,
    content    TEXT NOT NULL,
    source     TEXT NOT NULL,
    trust      REAL NOT NULL,
    privacy    TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    metadata   TEXT NOT NULL
);
CREATE INDEX memories_user ON memories (user_id, created_at, seq);
CREATE INDEX memories_session ON memories (user_id, session_id, created_at, seq);
CREATE INDEX memories_notes ON memories (user_id, session_id, created_at, seq) WHERE kind <> 'task';
CREATE INDEX memories_source ON memories (source);
"""

_SPEAKERS = """
-- Who ever spoke is asked for at each recall.
CREATE INDEX memories_speaker ON memories (user_id, speaker) WHERE speaker IS NOT NULL;
CREATE INDEX memories_session_speaker ON memories (user_id, session_id, speaker) WHERE speaker IS NOT NULL;
"""

_LEARNT = """
CREATE TABLE learnt (
    backend TEXT NOT NULL,
    model   TEXT NOT NULL,
    learnt  TEXT NOT NULL,
    PRIMARY KEY (backend, model)
);
"""

_LINEAGE = """
-- An origin is `memory:ID` or `task:ID`. What it names may be gone: a session is deleted and its memories stay.
CREATE TABLE lineage (
    memory_id TEXT NOT NULL REFERENCES memories (memory_id) ON DELETE CASCADE,
    origin    TEXT NOT NULL,
    PRIMARY KEY (memory_id, origin)
) WITHOUT ROWID;
CREATE INDEX lineage_origin ON lineage (origin);
INSERT INTO lineage (memory_id, origin) SELECT memory_id, source FROM memories
    WHERE kind = 'task' AND source LIKE 'task:%';

-- What forgetting looks through: which runs were given a memory.
CREATE INDEX events_progress ON events (task_id) WHERE kind = 'progress';

-- The last turn that has become a part of long-term memory.
ALTER TABLE sessions ADD COLUMN consolidated INTEGER NOT NULL DEFAULT 0;
"""

_AUDIT = """
-- AUTOINCREMENT: sqlite_sequence remembers the last number, so that entries cut off the end are missed.
CREATE TABLE audit (
    seq  INTEGER PRIMARY KEY AUTOINCREMENT,
    body TEXT NOT NULL,
    hash TEXT NOT NULL
);
CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END;
CREATE TRIGGER audit_is_not_cut BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END;

CREATE TABLE always (
    rule_id    TEXT PRIMARY KEY NOT NULL CHECK (length(rule_id) = 36),
    user_id    TEXT NOT NULL,
    rule       TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    UNIQUE (user_id, rule)
);
"""

_MCP = """
CREATE TABLE mcp_tools (
    server TEXT NOT NULL,
    place  INTEGER NOT NULL,
    tool   TEXT NOT NULL,
    PRIMARY KEY (server, place)
) WITHOUT ROWID;
"""

_SETTINGS = """
CREATE TABLE settings (
    name  TEXT PRIMARY KEY NOT NULL,
    value TEXT NOT NULL
);
"""

_DESCENT = """
-- Whatever is below a task, however deep. No references: what a deleted child has spent stays its parent's spending.
CREATE TABLE descent (
    ancestor_id         TEXT NOT NULL,
    ancestor_session_id TEXT NOT NULL,
    task_id             TEXT NOT NULL,
    session_id          TEXT NOT NULL,
    PRIMARY KEY (ancestor_id, task_id)
) WITHOUT ROWID;
CREATE INDEX descent_task ON descent (task_id);
CREATE INDEX descent_session ON descent (ancestor_session_id, task_id);
CREATE INDEX tasks_parent ON tasks (parent_id) WHERE parent_id IS NOT NULL;
"""

_HELD = """
-- What a dispatch under way may cost at most: a daemon that is killed in the middle of it does not know what it did.
ALTER TABLE tasks ADD COLUMN held_usd REAL NOT NULL DEFAULT 0;
"""

_SUMMARIES = """
-- Each run looks for its session's last ones: without this through all of the session's notes.
CREATE INDEX memories_summaries ON memories (user_id, session_id, created_at, seq) WHERE kind = 'summary';
"""

_TOOLSETS = """
-- What models were told of their tools, once for all steps that were told the same: a journal names it by its digest.
CREATE TABLE toolsets (
    digest TEXT PRIMARY KEY NOT NULL,
    tools  TEXT NOT NULL
) WITHOUT ROWID;
"""

_TURN_NUMBERS = """
-- AUTOINCREMENT: `sessions.consolidated` and a journal's `upto` name turns by number, and may outlive them.
CREATE TABLE turns_numbered (
    turn_id    INTEGER PRIMARY KEY AUTOINCREMENT,
    session_id TEXT NOT NULL REFERENCES sessions ON DELETE CASCADE,
    role       TEXT NOT NULL,
    content    TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    task_id    TEXT,
    privacy    TEXT NOT NULL
);
INSERT INTO turns_numbered SELECT turn_id, session_id, role, content, created_at, task_id, privacy FROM turns;
DROP TABLE turns;
ALTER TABLE turns_numbered RENAME TO turns;
CREATE INDEX turns_session ON turns (session_id, turn_id);
DELETE FROM sqlite_sequence WHERE name = 'turns';
INSERT INTO sqlite_sequence (name, seq) SELECT 'turns', max(
    (SELECT coalesce(max(turn_id), 0) FROM turns),
    (SELECT coalesce(max(consolidated), 0) FROM sessions),
    (SELECT coalesce(max(CASE WHEN json_valid(body) THEN json_extract(body, '$.upto[0]') END), 0)
        FROM events WHERE kind = 'progress'));
"""

_UNTOLD = """
-- Runs of a summary that went with one of them: what is left of their turns is to be summed up again.
CREATE TABLE untold (
    untold_id  INTEGER PRIMARY KEY,
    session_id TEXT NOT NULL REFERENCES sessions ON DELETE CASCADE,
    runs       TEXT NOT NULL
);
"""

SCRIPTS: tuple[str, ...] = (
    _SESSIONS_TASKS_MEMORIES,
    _SPEAKERS,
    _LEARNT,
    _LINEAGE,
    _AUDIT,
    _SETTINGS,
    _DESCENT,
    _MCP,
    _HELD,
    _SUMMARIES,
    _TOOLSETS,
    _TURN_NUMBERS,
    _UNTOLD,
)
