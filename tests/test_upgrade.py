"""Two versions that meet: a ledger of another time, and a daemon from before the upgrade. The files are test_state's."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tests.aiosctl_double import Ctl, Double
from tests.daemon import Daemon

OLD = Path(__file__).parent / "data" / "ledger-1.sql"


def test_a_daemon_upgrades_an_old_ledger_and_serves_what_is_in_it(tmp_path: Path) -> None:
    ledger = tmp_path / "data" / "aiosd.db"
    ledger.parent.mkdir()
    c = sqlite3.connect(ledger)
    c.executescript(OLD.read_text())
    sessions = [row[0] for row in c.execute("SELECT session_id FROM sessions ORDER BY session_id")]
    c.close()
    with Daemon(tmp_path) as daemon:
        assert sorted(daemon.ctl("session", "list", "-q").stdout.split()) == sessions
        assert '"copy": "' + str(ledger) in daemon.log.read_text()


def test_a_daemon_refuses_a_newer_ledger_by_version_and_touches_nothing(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon:
        daemon.stop()
    ledger = tmp_path / "data" / "aiosd.db"
    c = sqlite3.connect(ledger)
    c.execute("PRAGMA user_version = 7001")
    c.execute("UPDATE settings SET value = '\"9.1.0\"' WHERE name = 'made_by'")
    c.commit()
    c.close()
    refused = Daemon(tmp_path).ctl("ping")
    assert refused.returncode == 69
    assert "schema 7001, made by aiosd 9.1.0; this is aiosd 0" in refused.stderr
    assert "pip install --upgrade 'aiosd>=9.1.0'" in refused.stderr


@pytest.mark.parametrize("verb", [("metrics",), ("task", "list")])
def test_an_aiosctl_that_meets_an_older_daemon_says_restart(
    double: Double, ctl: Ctl, verb: tuple[str, ...]
) -> None:
    double.answers["system.ping"] = lambda p, c: {"pong": True, "version": "0.0.9", "pid": 4711}
    double.answers["task.list"] = lambda p, c: {"tasks": "of another shape"}
    done = ctl(*verb)
    assert done.returncode == 1
    assert "the daemon is aiosd 0.0.9, this aiosctl is 0" in done.stderr
    assert done.stderr.endswith("try: kill 4711; aiosctl ping\n")


def test_with_a_daemon_of_its_own_time_an_error_is_what_it_is(daemon: Daemon) -> None:
    wrong = daemon.ctl("memory", "recall", "x", "-n", "0")
    assert wrong.returncode == 2 and "restart" not in wrong.stderr
