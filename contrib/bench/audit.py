"""What an entry of the audit log costs: the chain itself, a commit of its own on this disk, and verifying.

Run as `python contrib/bench/audit.py [ENTRIES]`, in an environment that has aiosd.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from aiosd.records import AuditEntry
from aiosd.state import audit
from aiosd.state.database import Connection, connect

MOST_COMMITS = 500


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    entry = AuditEntry(
        seq=0,
        at=datetime.now(UTC),
        kind="call",
        what="read_file",
        session_id="0" * 36,
        task_id="1" * 36,
        detail={
            "by": "model",
            "decision": "allow",
            "about": ["/home/me/work/a.txt"],
            "arguments_sha256": "0" * 64,
        },
    )
    print(f"load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder, closing(connect(Path(folder) / "aiosd.db")) as c:
        c.execute("BEGIN")
        started = time.perf_counter()
        for _ in range(count):
            audit.append(c, entry)
        took = time.perf_counter() - started
        c.execute("COMMIT")
        print(f"an entry, in a commit with others: {took / count * 1e6:.0f} us")
        print(
            f"an entry with a commit of its own: {_commit_ms(c, entry, min(count, MOST_COMMITS)):.2f} ms (median)"
        )
        started = time.perf_counter()
        checked = audit.Checked()
        while not checked.done:
            checked = audit.verify(c, checked)
        took = time.perf_counter() - started
        print(f"verified {checked.seq} entries in {took:.2f} s: {took / checked.seq * 1e6:.1f} us each")


def _commit_ms(c: Connection, entry: AuditEntry, count: int) -> float:
    took = []
    for _ in range(count):
        started = time.perf_counter()
        c.execute("BEGIN IMMEDIATE")
        audit.append(c, entry)
        c.execute("COMMIT")
        took.append((time.perf_counter() - started) * 1e3)
    return statistics.median(took)


if __name__ == "__main__":
    main()
