"""What only the index itself can show: in this process, without a line."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosd.errors import InvalidState
from aiosd.memory.index import Index
from aiosd.memory.points import Point, Position, Where
from aiosd.memory.worker import Worker

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
    worker = Worker(index)
    worker.put(after=0, points=[point(3, "tea"), point(7, "tea")])
    with pytest.raises(InvalidState, match="stands at 7, not at 3"):
        worker.put(after=3, points=[point(4, "tea")])
    last = point(9, "tea")
    worker.put(after=7, points=[last])
    assert worker.position() == Position(3, 9, last.memory_id)
    index.close()
    again = Index(tmp_path)
    assert again.position() == Position(3, 9, last.memory_id)
    again.clear()
    assert again.position() == Position(0, 0, None)
    again.put([point(1, "tea")])
    assert again.position().count == 1
    again.close()


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
    assert all(0 < score < 1 for _, score in index.query(query, ANN, 100))
    scores = [score for _, score in index.query(text, ANN, 100)]
    assert scores == sorted(scores, reverse=True)
    index.delete([one.memory_id])
    assert index.position() == Position(0, 0, None)
