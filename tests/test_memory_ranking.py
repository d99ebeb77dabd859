"""What a recall is answered with, as a table of rules."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosd.memory import ranking
from aiosd.memory.ranking import CANDIDATES, SITTING_US, Found, Turn, likelihoods, meaning, named, rank
from aiosd.records import Memory


def turn(
    seq: int,
    before: int | None = None,
    *,
    session: str = "one",
    speaker: str | None = None,
    asks: bool = False,
    at: int = 0,
) -> Turn:
    return Turn(seq, f"m{seq}", before, session, at, speaker, asks, asks, 40)


def order(turns: list[Turn], words: dict[str, float], speaker: str | None = None) -> list[str]:
    return [id for id, _ in rank(turns, Found(words, {}), speaker, 10)]


def test_the_answer_to_a_matching_question_is_found_though_it_shares_no_word_with_it() -> None:
    said = [turn(1, speaker="Ann", asks=True), turn(2, 1, speaker="Ben"), turn(3, 2, speaker="Ann")]
    assert order(said, {"m1": 3.0}) == ["m1", "m2", "m3"]


def test_what_stands_beside_a_match_is_found_only_where_people_spoke() -> None:
    assert order([turn(1), turn(2, 1), turn(3, 2)], {"m1": 3.0}) == ["m1"]


def test_what_was_said_in_another_session_or_an_hour_later_is_no_answer() -> None:
    asked = turn(1, speaker="Ann", asks=True)
    assert order([asked, turn(2, session="two", speaker="Ben")], {"m1": 3.0}) == ["m1"]
    assert order([asked, turn(2, 1, speaker="Ben", at=SITTING_US)], {"m1": 3.0}) == ["m1"]


def test_what_the_one_who_is_asked_about_said_comes_first() -> None:
    said = [turn(1, speaker="Ann"), turn(3, speaker="Ben")]
    assert order(said, {"m1": 2.0, "m3": 1.9}, speaker="Ben") == ["m3", "m1"]
    assert order(said, {"m1": 2.0, "m3": 1.9}) == ["m1", "m3"]


def test_both_meaning_and_words_count() -> None:
    turns = [turn(1), turn(3, session="two"), turn(5, session="three")]
    found = Found({"m1": 2.0, "m3": 2.0}, {"m3": 0.5, "m5": 0.6})
    assert rank(turns, found, None, 1)[0][0] == "m3"


def test_one_speaker_who_is_named_is_known_by_the_first_name_or_its_first_letters() -> None:
    people = ("Caroline", "Melanie Smith", "Jo")
    assert named("What did Caroline's mother say?", people) == "Caroline"
    assert named("What did Mel paint?", people) == "Melanie Smith"
    assert named("What did caroline tell Melanie?", people) is None
    assert named("Where is the key?", people) is None
    assert named("", ()) is None


def test_a_query_is_embedded_without_what_makes_it_a_question() -> None:
    assert meaning("When did Caroline go to the support group?", "Caroline") == "go to the support group"
    assert meaning("How long has Caroline's cat been ill?", "Caroline") == "cat been ill"
    assert meaning("the blue pot", None) == "the blue pot"
    assert meaning("Who is she?", None) == "she"
    assert meaning("What is?", None) == "What is?"


SCORES = st.floats(-1, 50, allow_nan=False)
STORE = st.lists(
    st.tuples(SCORES, SCORES, st.sampled_from([None, "Ann", "Ben"]), st.booleans(), st.sampled_from("ab")),
    max_size=CANDIDATES + 20,
)


@given(store=STORE, n=st.integers(1, 100), speaker=st.sampled_from([None, "Ann"]))
def test_scores_lie_between_0_and_1_and_fall_with_the_rank(
    store: list[tuple[float, float, str | None, bool, str]], n: int, speaker: str | None
) -> None:
    last: dict[str, int] = {}
    turns, words, cosines = [], {}, {}
    for seq, (word, cosine, who, asks, session) in enumerate(store):
        turns.append(turn(seq, last.get(session), session=session, speaker=who, asks=asks))
        last[session] = seq
        if word > 0:
            words[f"m{seq}"] = word
        cosines[f"m{seq}"] = max(-1.0, cosine / 50)
    found = Found(words, cosines)
    ranked = rank(turns, found, speaker, n)
    scores = likelihoods("tea", ranked, ["tea"], found)
    assert len(scores) == len(ranked) <= n and len(dict(ranked)) == len(ranked)
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score < 1 for score in scores)


def test_a_store_without_an_answer_scores_low_and_one_that_says_it_high() -> None:
    def first(query: str, text: str, cosine: float | None) -> float:
        found = Found({"m1": 3.0}, {} if cosine is None else {"m1": cosine})
        return likelihoods(query, [("m1", 1.5)], [text], found)[0]

    tea = "Ann drinks green tea in the evening"
    assert first("green tea in the evening", tea, 0.8) > 0.9
    assert first("green tea in the evening", tea, None) > 0.9
    assert first("colour of the tram in Lisbon", tea, 0.1) < 0.1
    assert first("colour of the tram in Lisbon", tea, None) < 0.1
    assert first("of the", tea, None) < 0.1
    assert likelihoods("tea", [], [], Found({}, {})) == []


def memory(id: str, content: str, kind: str = "note") -> Memory:
    return Memory(
        memory_id=id,
        user_id="ann",
        session_id="s",
        content=content,
        speaker=None,
        kind=kind,
        source="user",
        trust=1.0,
        privacy="any",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        metadata={},
    )


LONG = "of the new building by the river, where the whole team meets each week to plan what comes next"


@pytest.mark.parametrize(
    ("one", "other", "collapse"),
    [
        ("The deploy host is falcon-7", "deploy host is  FALCON-7.", True),
        ("Ann really likes green tea", "Ann likes green tea!", True),
        ("She said that the oak is old", "She said the oak is old", True),
        (f"Room 17 {LONG}", f"Room 18 {LONG}", False),
        (f"The key is not in room 17 {LONG}", f"The key is in room 17 {LONG}", False),
        (f"He was ill in room 17 {LONG}", f"He is ill in room 17 {LONG}", False),
        ("Ann told Ben", "Ben told Ann", False),
        ("the", "a", False),
        ("👍", "👎", False),
    ],
)
def test_only_texts_that_say_the_same_are_one(one: str, other: str, collapse: bool) -> None:
    known = {"a": memory("a", one), "b": memory("b", other)}
    kept = ranking.distinct([("a", 2.0), ("b", 1.0)], known, {}, [])
    assert [id for id, _ in kept] == (["a"] if collapse else ["a", "b"])


def test_a_summary_stands_behind_nothing_that_it_was_made_from() -> None:
    known = {
        "a": memory("a", "the oak", "task"),
        "b": memory("b", "the elm", "note"),
        "s": memory("s", "trees", "summary"),
    }
    origins = {"s": ("memory:a", "task:1")}

    def order(*ranked: str, before: tuple[str, ...] = ()) -> list[str]:
        scored, earlier = ([(id, 1.0) for id in ids] for ids in (ranked, before))
        return [id for id, _ in ranking.distinct(scored, known, origins, earlier)]

    assert order("s", "a", "b") == ["s", "a", "b"]
    assert order("b", "a", "s") == ["b", "a"]
    assert order("b", "s") == ["b", "s"]
    assert order("s", before=("a",)) == []
    assert order("gone", "b", "b") == ["b"]
