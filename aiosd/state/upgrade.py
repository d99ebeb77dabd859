"""A ledger of another time: what is older is brought to today's schema, after a copy; what is newer is refused by name."""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import sqlite3
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

from aiosd.errors import AiosError
from aiosd.state.migrations import SCRIPTS

Connection: TypeAlias = sqlite3.Connection

APPLICATION_ID = 0x61696F73
"""`aios` in the file's header: tells our ledger from another program's database."""

NOT_ITS_FAULT = (
    *(sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM),
    *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY),
)
"""Modes, disk or company are in the way of a good ledger, which must not be moved away. sqlite.org/rescode.html."""

logger = logging.getLogger(__name__)


class LedgerFailed(AiosError):
    """The file cannot be opened or written: the sentence names it and says why."""


def copy_of(path: Path, schema: int) -> Path:
    """Where the ledger lies as it was before it left this schema."""
    return path.with_name(f"{path.name}.schema-{schema}")


def forget_copies(path: Path) -> None:
    """What is to be forgotten is in no copy either."""
    for copy in path.parent.glob(f"{path.name}.schema-*"):
        copy.unlink(missing_ok=True)


def bring(connection: Connection, path: Path) -> None:
    """Brings the file to the last schema, or leaves it as it was; looks whose it is before it writes.

    Raises LedgerFailed for another program's file, for a newer schema, and where a script or the disk fails."""
    away = f"mv {shlex.quote(str(path))} {shlex.quote(str(path) + '.away')}"
    try:
        schema: int = connection.execute("PRAGMA user_version").fetchone()[0]
        owner: int = connection.execute("PRAGMA application_id").fetchone()[0]
        tables: int = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if owner != APPLICATION_ID and (tables or schema):
            raise LedgerFailed(f"{path} is another program's database", hint=away)
        if schema > len(SCRIPTS):
            raise _newer(connection, path, schema)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA secure_delete = ON")  # what is forgotten is not left in a free page
    except sqlite3.Error as exc:
        if exc.sqlite_errorcode & 0xFF in NOT_ITS_FAULT:
            raise LedgerFailed(f"{path} cannot be used: {exc}", hint="aiosctl doctor --fix") from exc
        raise LedgerFailed(f"{path} is no ledger that can be used: {exc}", hint=away) from exc
    if schema == len(SCRIPTS):
        return
    copy = None if schema == 0 else _copy(connection, path, schema)
    try:
        _run(connection, schema)
    except sqlite3.Error as exc:
        raise _restored(connection, path, schema, copy, exc) from exc
    if copy is not None:
        logger.info(
            "ledger upgraded", extra={"from_schema": schema, "to_schema": len(SCRIPTS), "copy": str(copy)}
        )


def _run(connection: Connection, schema: int) -> None:
    """Every script that is missing in one transaction, so that a ledger is never between two daemons."""
    scripts = ";".join(SCRIPTS[schema:])
    maker = json.dumps(version("aiosd"))
    try:
        connection.executescript(
            f"BEGIN IMMEDIATE; {scripts};"
            f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {len(SCRIPTS)};"
            f"INSERT OR REPLACE INTO settings (name, value) VALUES ('{MADE_BY}', '{maker}'); COMMIT"
        )
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


MADE_BY = "made_by"
"""The setting with the version of the aiosd that brought the ledger to its schema."""


def _copy(connection: Connection, path: Path, schema: int) -> Path:
    """The whole ledger in one file, which appears complete or not at all. Older copies go."""
    target = copy_of(path, schema)
    part = path.with_name(f"{path.name}.part")
    try:
        part.unlink(missing_ok=True)
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        connection.execute("VACUUM INTO ?", (str(part),))
        with part.open("rb") as written:
            os.fsync(written.fileno())
        forget_copies(path)
        part.rename(target)
    except (OSError, sqlite3.Error) as exc:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise LedgerFailed(
            f"{path} has schema {schema} and could not be copied before its upgrade: {exc}; it is as it was",
            hint=f"df -h {shlex.quote(str(path.parent))}",
        ) from exc
    return target


def _restored(
    connection: Connection, path: Path, schema: int, copy: Path | None, why: sqlite3.Error
) -> LedgerFailed:
    """Makes sure that the file is what it was: by its rollback, or where that did not do, by the copy."""
    how = "it is as it was"
    try:
        intact = connection.execute("PRAGMA user_version").fetchone()[0] == schema
        intact = intact and connection.execute("PRAGMA quick_check").fetchone()[0] == "ok"
    except sqlite3.Error:
        intact = False
    if not intact and copy is not None:
        connection.close()
        for log in ("-wal", "-shm"):
            path.with_name(path.name + log).unlink(missing_ok=True)
        shutil.copyfile(copy, path)
        how = f"it was restored from {copy}"
    return LedgerFailed(
        f"{path} could not be brought from schema {schema} to {len(SCRIPTS)}: {why}; {how}",
        hint="pip install 'aiosd<" + version("aiosd") + "'",
    )


def _newer(connection: Connection, path: Path, schema: int) -> LedgerFailed:
    try:
        row = connection.execute("SELECT value FROM settings WHERE name = ?", (MADE_BY,)).fetchone()
        made_by = json.loads(row[0]) if row else None
    except (sqlite3.Error, ValueError):
        made_by = None
    maker = f"aiosd {made_by}" if made_by else "a newer aiosd"
    copy = copy_of(path, len(SCRIPTS))
    before = f"; as this one knows it, it lies in {copy}" if copy.exists() else ""
    return LedgerFailed(
        f"{path} has schema {schema}, made by {maker}; this is aiosd {version('aiosd')} and knows {len(SCRIPTS)}"
        + before,
        hint=f"pip install --upgrade 'aiosd>={made_by}'" if made_by else "pip install --upgrade aiosd",
    )
