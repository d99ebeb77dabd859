"""What only the index itself can show: in this process, without a line."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosd.errors import InvalidParams, InvalidState
from aiosd.memory.index import Index
from aiosd.memory.points import Point, Position, Where
from aiosd.memory.worker import Watch, Worker

ANN = Where(user_id="ann", session_id=None)


def point(seq: int, text: str) -> Point:
    return Point(
        memory_id=str(uuid4()),
        seq=seq,
        text=text,
        user_id="ann",
        session_id="one",
        kind="note",
        source="user",
        created_at=0,
    )


def test_the_index_is_filled_in_order_so_that_its_position_tells_what_it_lacks(tmp_path: Path) -> None:
    index = Index(tmp_path)
    watch = Watch(tmp_path)
    worker = Worker(index, None, watch)
    worker.put(after=0, points=[point(3, "tea"), point(7, "tea")])
    with pytest.raises(InvalidState, match="stands at 7, not at 3"):
        worker.put(after=3, points=[point(4, "tea")])
    last = point(9, "tea")
    worker.put(after=7, points=[last])
    assert worker.position() == Position(3, 9, last.memory_id, "", 0)
    index.close()
    watch.close()
    again = Index(tmp_path)
    assert again.position() == Position(3, 9, last.memory_id, "", 0)
    again.clear()
    assert again.position() == Position(0, 0, None, "", 0)
    again.put([point(1, "tea")])
    assert again.position().count == 1
    again.close()


HANGING = """
import ctypes, sys
from pathlib import Path
from aiosd.memory.worker import Watch

def engine():
    with watch.over(0.1, is_blamed=bool):
        ctypes.PyDLL(None).sleep(600)

watch = Watch(Path(sys.argv[1]))
watch.crashes()
with watch.over(60, is_blamed=bool):
    pass
engine()
"""
"""A PyDLL holds the GIL in its calls, as the engine does."""


def test_an_engine_that_hangs_with_the_gil_is_ended_and_leaves_where_it_was(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", HANGING, str(tmp_path)], check=False, timeout=60)
    assert done.returncode == -signal.SIGALRM
    assert "in engine" in (tmp_path / "crash").read_text()


def test_a_shard_of_another_format_is_removed(tmp_path: Path) -> None:
    old = tmp_path / "shard-0"
    old.mkdir()
    (old / "anything").touch()
    Index(tmp_path).close()
    assert not old.exists()


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return Index(tmp_path_factory.mktemp("index"))


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=200), query=st.text(max_size=200))
def test_any_text_can_be_put_and_asked_for(index: Index, text: str, query: str) -> None:
    one = point(1, text)
    index.put([one])
    for asked in (query, text):
        found = index.query(asked, None, ANN, 100)
        assert all(0 < score for score in found.words.values())
        assert found.words.keys() <= {one.memory_id}
        assert not found.meaning
    index.delete([one.memory_id])
    assert index.position() == Position(0, 0, None, "", 0)


def test_vectors_are_checked_before_the_engine_has_them(tmp_path: Path) -> None:
    index = Index(tmp_path)
    index.use_vectors("model", 2)
    one, two = point(1, "tea"), point(2, "tea")
    index.put([one, two])
    for bad in (
        [],
        [[1.0]],
        [[1.0, 0.0, 0.0]],
        [[math.nan, 0.0]],
        [[3.0, 4.0]],
        [[1.0, 0.0], [math.inf, 0.0]],
    ):
        with pytest.raises(InvalidParams, match="expected vectors of 2 numbers"):
            index.put_vectors({one.memory_id: [[1.0, 0.0]], two.memory_id: bad})
    assert index.lacking(10) == [two.memory_id, one.memory_id]
    index.close()


def test_a_vector_of_what_is_gone_brings_nothing_back(tmp_path: Path) -> None:
    index = Index(tmp_path)
    index.use_vectors("model", 2)
    one, two = point(1, "tea"), point(2, "tea")
    index.put([one, two])
    index.delete([one.memory_id])
    index.put_vectors({one.memory_id: [[1.0, 0.0]], two.memory_id: [[0.0, 1.0]]})
    assert index.position().count == 1
    assert index.query("", [1.0, 0.0], ANN, 10).meaning == {two.memory_id: 0.0}
    index.close()


def test_the_vectors_of_another_model_are_removed_and_lack_until_they_are_made_anew(tmp_path: Path) -> None:
    index = Index(tmp_path)
    index.use_vectors("old", 2)
    one = point(1, "tea")
    index.put([one])
    index.put_vectors({one.memory_id: [[0.6, 0.8], [1.0, 0.0]]})
    assert index.query("", [1.0, 0.0], ANN, 10).meaning == {one.memory_id: 1.0}
    assert index.position().lacking == 0
    index.close()
    again = Index(tmp_path)
    assert again.position() == Position(1, 1, one.memory_id, "", 0)
    again.use_vectors("old", 2)
    assert (again.position().lacking, again.has_vectors) == (0, True)
    again.use_vectors("new", 3)
    assert again.position() == Position(1, 1, one.memory_id, "new", 1)
    assert not again.has_vectors
    again.put_vectors({one.memory_id: [[1.0, 0.0, 0.0]]})
    assert again.lacking(10) == []
    again.close()
