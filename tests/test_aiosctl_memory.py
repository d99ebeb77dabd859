"""How far the long verbs of `aiosctl memory` have come: bars on terminals, and nothing of them anywhere else."""

from __future__ import annotations

import json
import shlex
import threading
from typing import Any

import pytest

from tests.aiosctl_double import AIOSCTL, WAIT_S, Connection, Ctl, Double, giving, memory, result, task
from tests.terminals import OnTerminal

STATS = {
    "memories": 12,
    "users": 1,
    "sessions": 1,
    "by_kind": {},
    "by_source": {},
    "private": 2,
    "untrusted": 0,
    "derived": 0,
    "content_bytes": 100,
    "first_at": None,
    "last_at": None,
    "embedder": "none",
}
URL = "http://qdrant.example:6333"


@pytest.fixture
def upkeep(double: Double) -> threading.Event:
    """A task of the index that is half done until this is set."""
    go_on = threading.Event()

    def attach(params: dict[str, Any], connection: Connection) -> object:
        total = 12 if double.params("memory.reindex") else 10
        connection.event("progress", stage="indexing", done=total // 2, total=total)
        assert go_on.wait(WAIT_S)
        return result(result=f"{total} memories", generated=False)

    double.answers["memory.stats"] = giving(STATS)
    double.answers["memory.reindex"] = double.answers["memory.migrate"] = giving(task())
    double.answers["task.attach"] = attach
    double.answers["system.info"] = giving(
        {
            "version": "1",
            "protocol": 1,
            "uptime_s": 1.0,
            "paths": {"config": "/home/ada/config.toml"},
            "sandbox": "none",
            "embedder": "none",
            "counts": {},
            "backends": [],
        }
    )
    return go_on


@pytest.mark.parametrize("columns", [40, 160])
@pytest.mark.parametrize("verb", ["reindex", "migrate"])
def test_a_bar_shows_how_far_the_index_is_and_leaves_no_trace(
    ctl: Ctl, on_terminal: OnTerminal, upkeep: threading.Event, verb: str, columns: int
) -> None:
    args = ("reindex",) if verb == "reindex" else ("migrate", URL)
    terminal = on_terminal(ctl, "memory", *args, columns=columns)
    terminal.until("indexing")
    terminal.until("50%")
    upkeep.set()
    shown = "".join(terminal.screen())
    assert "%" not in shown and "indexing" not in shown
    assert ("indexed 12 memories" if verb == "reindex" else f'`qdrant_url = "{URL}"` under [memory]') in shown


def test_in_a_pipe_there_is_no_bar(double: Double, ctl: Ctl, upkeep: threading.Event) -> None:
    upkeep.set()
    done = ctl("memory", "reindex")
    assert (done.stdout, done.stderr) == ("indexed 12 memories\n", "")
    done = ctl("--json", "memory", "reindex")
    assert json.loads(done.stdout)["result"] == "12 memories" and done.stderr == ""


@pytest.mark.parametrize("columns", [40, 160])
def test_an_import_shows_its_bar_until_all_is_there(
    double: Double, ctl: Ctl, on_terminal: OnTerminal, columns: int
) -> None:
    go_on = threading.Event()

    def take(params: dict[str, Any], connection: Connection) -> object:
        assert go_on.wait(WAIT_S)
        return {"memory_ids": [each["memory_id"] for each in params["memories"]], "added": 1}

    double.answers["memory.import"] = take
    (ctl.folder / "memories.jsonl").write_text(json.dumps(memory()) + "\n")
    terminal = on_terminal(ctl, "memory", "import", "memories.jsonl", columns=columns)
    terminal.until("importing")
    go_on.set()
    assert [line for line in terminal.screen() if line] == ["imported 1 memory"]
    done = ctl("memory", "import", "memories.jsonl")
    assert (done.stdout, done.stderr) == ("imported 1 memory\n", "")


def test_an_export_into_a_file_shows_its_bar_on_the_terminal_and_nothing_of_it_in_the_file(
    double: Double, ctl: Ctl, on_terminal: OnTerminal
) -> None:
    go_on = threading.Event()

    def page(params: dict[str, Any], connection: Connection) -> object:
        if params.get("cursor"):
            assert go_on.wait(WAIT_S)
            return {"memories": []}
        return {"memories": [memory()] * 6, "next_cursor": "6"}

    double.answers["memory.stats"] = giving(STATS)
    double.answers["memory.export"] = page
    command = f"{shlex.join(AIOSCTL)} memory export > memories.jsonl"
    terminal = on_terminal(ctl, command=["/bin/sh", "-c", command])
    terminal.until("exporting")
    terminal.until("50%")
    go_on.set()
    assert [line for line in terminal.screen() if line] == []
    lines = (ctl.folder / "memories.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [memory(derived_from=[])] * 6
