"""The audit log: what it keeps of calls, and that nobody changes it unseen."""

from __future__ import annotations

import itertools
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from aiosd.errors import PermissionDenied
from aiosd.protocol.audit import AuditExport, AuditTail, AuditVerify
from aiosd.protocol.tools import ToolCall
from aiosd.records import AuditEntry
from aiosd.state import audit
from aiosd.state.database import connect
from tests.daemon import Daemon


def test_calls_decisions_and_results_are_kept_without_the_arguments_themselves(
    daemon: Daemon, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("the text")
    session = daemon.session(permissions=("read(*.txt)",), workspace=str(tmp_path))
    daemon.call(ToolCall(session_id=session.session_id, name="read_file", arguments={"path": "./a.txt"}))
    with pytest.raises(PermissionDenied) as caught:
        daemon.call(ToolCall(session_id=session.session_id, name="read_file", arguments={"path": "b.md"}))
    assert "b.md" in str(caught.value)
    with pytest.raises(PermissionDenied):
        daemon.call(
            ToolCall(session_id=session.session_id, name="remember", arguments={"content": "between us"})
        )
    entries = daemon.call(AuditTail()).entries
    assert [(e.kind, e.what, e.detail.get("decision") or e.detail["status"]) for e in entries] == [
        ("call", "read_file", "allow"),
        ("result", "read_file", "completed"),
        ("call", "read_file", "deny"),
        ("call", "remember", "deny"),
    ]
    assert entries[0].detail["about"] == [str(tmp_path / "a.txt")]
    assert (entries[0].detail["rule"], entries[0].detail["by"]) == ("read(*.txt)", "owner")
    assert [e.seq for e in entries] == [1, 2, 3, 4]
    assert {e.session_id for e in entries} == {session.session_id}
    assert daemon.call(AuditVerify()).broken is None
    shown = daemon.ctl("audit", "tail", "-n", "2").stdout
    assert "read_file" in shown and "deny" in shown and "b.md" in shown


def test_an_export_has_every_entry_once_and_its_chain_can_be_verified_without_us(daemon: Daemon) -> None:
    session = daemon.session()
    for _ in range(3):
        daemon.call(ToolCall(session_id=session.session_id, name="clock"))
    pages = [daemon.call(AuditExport(limit=4))]
    pages.append(daemon.call(AuditExport(limit=4, cursor=pages[0].next_cursor)))
    assert [len(page.entries) for page in pages] == [4, 2] and pages[1].next_cursor is None
    lines = daemon.ctl("audit", "export").stdout.splitlines()
    assert [json.loads(line)["seq"] for line in lines] == [1, 2, 3, 4, 5, 6]
    verified = daemon.ctl("audit", "verify")
    assert verified.returncode == 0
    assert verified.stdout == (
        f"6 entries, all as they were written; the last hash is {json.loads(lines[-1])['hash']}\n"
    )


CHANGES = {
    "a byte of the body": (
        "UPDATE audit SET body = replace(body, 'clock', 'cloak') WHERE seq = 3",
        "entry 3 is broken",
    ),
    "a byte of the hash": (
        "UPDATE audit SET hash = replace(hash, substr(hash, 9, 1), 'z') WHERE seq = 4",
        "entry 4 is broken",
    ),
    "a body of another type": (
        "UPDATE audit SET body = CAST(body AS BLOB) WHERE seq = 2",
        "entry 2 is broken",
    ),
    "a number": ("UPDATE audit SET seq = 99 WHERE seq = 6", "entry 6 is broken: it is missing"),
    "an entry left out": ("DELETE FROM audit WHERE seq = 2", "entry 2 is broken: it is missing"),
    "the end cut off": (
        "DELETE FROM audit WHERE seq > 4",
        "entry 5 is broken: it is missing: entries up to 6",
    ),
    "an entry put twice": (
        "UPDATE audit SET (body, hash) = (SELECT body, hash FROM audit o WHERE o.seq = 4) WHERE seq = 3",
        "entry 3 is broken",
    ),
}


def test_what_is_changed_in_the_file_is_named(tmp_path: Path) -> None:
    with Daemon(tmp_path / "home") as daemon:
        session = daemon.session()
        for _ in range(3):
            daemon.call(ToolCall(session_id=session.session_id, name="clock"))
        whole = daemon.call(AuditVerify())
        assert (whole.entries, whole.broken) == (6, None)
        daemon.stop()
        path = daemon.home / "data" / "aiosd.db"
        before = path.read_bytes()
        for change, (sql, said) in CHANGES.items():
            path.write_bytes(before)
            with closing(sqlite3.connect(path, isolation_level=None)) as c:
                for trigger in ("audit_is_not_changed", "audit_is_not_cut"):
                    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                        c.execute(
                            "UPDATE audit SET seq = 1000 + seq"
                            if "changed" in trigger
                            else "DELETE FROM audit"
                        )
                    c.execute(f"DROP TRIGGER {trigger}")
                c.execute(sql)
            daemon.start()
            found = daemon.ctl("audit", "verify")
            assert found.returncode == 1 and said in found.stderr, (change, found)
            assert json.loads(daemon.ctl("audit", "verify", "--json").stdout)["broken"] is not None
            daemon.stop()


def test_any_flipped_byte_of_any_entry_is_found_at_that_entry(tmp_path: Path) -> None:
    entry = msgspec.convert(
        {"seq": 0, "at": "2026-01-01T00:00:00Z", "kind": "call", "what": "x", "detail": {"about": ["ü"]}},
        AuditEntry,
    )
    with closing(connect(tmp_path / "aiosd.db")) as c:
        audit.append(c, entry, entry)
        audit.append(c, entry)
        whole = audit.verify(c, audit.Checked())
        assert whole.done and whole.seq == 3
        for trigger in ("audit_is_not_changed", "audit_is_not_cut"):
            c.execute(f"DROP TRIGGER {trigger}")
        rows = c.execute("SELECT seq, body, hash FROM audit").fetchall()
        for seq, body, kept in rows:
            for column, text in (("body", body), ("hash", kept)):
                raw = text.encode()
                for at, bit in itertools.product(range(len(raw)), (1, 0x80)):
                    flipped = raw[:at] + bytes([raw[at] ^ bit]) + raw[at + 1 :]
                    c.execute(f"UPDATE audit SET {column} = CAST(? AS TEXT) WHERE seq = ?", (flipped, seq))
                    assert _broken(c) == seq, (seq, column, at)
                c.execute(f"UPDATE audit SET {column} = ? WHERE seq = ?", (text, seq))
        assert audit.verify(c, audit.Checked()) == whole


def _broken(c: sqlite3.Connection) -> int | None:
    return audit.verify(c, audit.Checked()).broken


def test_a_long_log_is_verified_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "VERIFIED", 2)
    entry = msgspec.convert({"seq": 0, "at": "2026-01-01T00:00:00Z", "kind": "call", "what": "x"}, AuditEntry)
    with closing(connect(tmp_path / "aiosd.db")) as c:
        for n in range(5):
            checked = audit.Checked()
            while not checked.done:
                checked = audit.verify(c, checked)
            assert (checked.seq, checked.broken) == (n, None)
            audit.append(c, entry)
