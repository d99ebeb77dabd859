-- A ledger as version 1 left it. Never edited: it stands for the files that users have.
PRAGMA application_id = 1634299763;
PRAGMA user_version = 1;
BEGIN TRANSACTION;
CREATE TABLE events (
    task_id TEXT NOT NULL REFERENCES tasks (task_id) ON DELETE CASCADE,
    seq     INTEGER NOT NULL,
    kind    TEXT NOT NULL,
    body    TEXT NOT NULL,
    PRIMARY KEY (task_id, seq)
) WITHOUT ROWID;
INSERT INTO "events" VALUES('00000000-0000-0000-0000-000000000002',1,'state','{"kind":"state","task_id":"00000000-0000-0000-0000-000000000002","seq":1,"at":"2026-01-02T03:04:06.678901Z","state":"working"}');
INSERT INTO "events" VALUES('00000000-0000-0000-0000-000000000002',2,'progress','{"kind":"progress","task_id":"00000000-0000-0000-0000-000000000002","seq":2,"at":"2026-01-02T03:04:06.678901Z","stage":"recalled"}');
INSERT INTO "events" VALUES('00000000-0000-0000-0000-000000000002',3,'route','{"kind":"route","task_id":"00000000-0000-0000-0000-000000000002","seq":3,"at":"2026-01-02T03:04:06.678901Z","decision":{"tier":"fast","chosen":"small","reason":"the only local one","candidates":[{"backend":"small","model":"m","local":true,"rejected":null}],"took_s":0.5}}');
INSERT INTO "events" VALUES('00000000-0000-0000-0000-000000000002',4,'message','{"kind":"message","task_id":"00000000-0000-0000-0000-000000000002","seq":4,"at":"2026-01-02T03:04:06.678901Z","text":"let me look","thinking":"hm","tool_calls":[{"call_id":"1","name":"read_file","arguments":{"path":"README.md","deep":{"list":[1,null,2.5,"ß\u0000"]},"big":1000000000000000000000000000000}}],"stop_reason":"end_turn","generated":true,"abstained":false,"backend":"small","model":"m","sources":[{"kind":"file","ref":"README.md:42","text":"aiosd is a daemon"}]}');
INSERT INTO "events" VALUES('00000000-0000-0000-0000-000000000002',5,'tool_call','{"kind":"tool_call","task_id":"00000000-0000-0000-0000-000000000002","seq":5,"at":"2026-01-02T03:04:06.678901Z","call_id":"1","name":"read_file","arguments":{"path":"README.md","deep":{"list":[1,null,2.5,"ß\u0000"]},"big":1000000000000000000000000000000},"status":"in_progress"}');
INSERT INTO "events" VALUES('00000000-0000-0000-0000-000000000002',6,'tool_result','{"kind":"tool_result","task_id":"00000000-0000-0000-0000-000000000002","seq":6,"at":"2026-01-02T03:04:06.678901Z","call_id":"1","name":"read_file","status":"completed","text":"# aiosd","sources":[{"kind":"file","ref":"README.md:42","text":"aiosd is a daemon"}]}');
INSERT INTO "events" VALUES('00000000-0000-0000-0000-000000000002',7,'usage','{"kind":"usage","task_id":"00000000-0000-0000-0000-000000000002","seq":7,"at":"2026-01-02T03:04:06.678901Z","usage":{"input_tokens":1000,"output_tokens":20},"cost_usd":0.002}');
INSERT INTO "events" VALUES('00000000-0000-0000-0000-000000000002',8,'state','{"kind":"state","task_id":"00000000-0000-0000-0000-000000000002","seq":8,"at":"2026-01-02T03:04:07.678901Z","state":"completed"}');
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
INSERT INTO "memories" VALUES(5,'00000000-0000-0000-0000-000000000003','ada','00000000-0000-0000-0000-000000000001','Ada','note','tea at five','user',1.0,'any',1767323045678901,'{"page":[1,"ß"]}');
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
INSERT INTO "sessions" VALUES('00000000-0000-0000-0000-000000000001','ada','thesis','reviewer','["memory","read(src/**)"]','local','background',0.25,'/home/ada/thesis',1,'open',1767323045678901,1767323045678901,'You review.');
CREATE TABLE spending (
    spending_id INTEGER PRIMARY KEY,
    at          INTEGER NOT NULL,
    cost_usd    REAL NOT NULL,
    session_id  TEXT NOT NULL,
    task_id     TEXT NOT NULL
);
INSERT INTO "spending" VALUES(1,1767323046678901,0.002,'00000000-0000-0000-0000-000000000001','00000000-0000-0000-0000-000000000002');
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
INSERT INTO "tasks" VALUES(7,'00000000-0000-0000-0000-000000000002','00000000-0000-0000-0000-000000000001',NULL,'count the words','completed','normal',1767323045678901,1767323046678901,1767323047678901,1,0.002,'{"task_id":"00000000-0000-0000-0000-000000000002","session_id":"00000000-0000-0000-0000-000000000001","state":"completed","result":{"words":7},"stop_reason":"end_turn","generated":true,"abstained":false,"backend":"small","model":"m","sources":[{"kind":"file","ref":"README.md:42","text":"aiosd is a daemon"}],"usage":{"input_tokens":1000,"output_tokens":20},"cost_usd":0.002,"decision":{"tier":"fast","chosen":"small","reason":"the only local one","candidates":[{"backend":"small","model":"m","local":true,"rejected":null}],"took_s":0.5}}',NULL,'{"session_id":"00000000-0000-0000-0000-000000000001","task":"count the words"}',NULL);
CREATE TABLE turns (
    turn_id    INTEGER PRIMARY KEY,
    session_id TEXT NOT NULL REFERENCES sessions ON DELETE CASCADE,
    role       TEXT NOT NULL,
    content    TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    task_id    TEXT,
    privacy    TEXT NOT NULL
);
INSERT INTO "turns" VALUES(1,'00000000-0000-0000-0000-000000000001','user','hello',1767323045678901,NULL,'any');
CREATE INDEX sessions_used ON sessions (used_at, session_id);
CREATE INDEX sessions_state_used ON sessions (state, used_at, session_id);
CREATE INDEX turns_session ON turns (session_id, turn_id);
CREATE INDEX tasks_session ON tasks (session_id, number);
CREATE INDEX tasks_state ON tasks (state, number);
CREATE UNIQUE INDEX tasks_idempotency ON tasks (session_id, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX spending_at ON spending (at);
CREATE INDEX spending_session ON spending (session_id);
CREATE INDEX spending_task ON spending (task_id);
CREATE INDEX memories_user ON memories (user_id, created_at, seq);
CREATE INDEX memories_session ON memories (user_id, session_id, created_at, seq);
CREATE INDEX memories_notes ON memories (user_id, session_id, created_at, seq) WHERE kind <> 'task';
CREATE INDEX memories_source ON memories (source);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('tasks',7);
INSERT INTO "sqlite_sequence" VALUES('memories',5);
COMMIT;
