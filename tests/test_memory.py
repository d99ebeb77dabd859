"""Memory through its public door: a real database, and the real worker process with its index."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest

from aiosd.errors import InvalidParams, NotFound
from aiosd.memory.checks import MAX_CONTENT
from aiosd.memory.embedding import LocalModel
from aiosd.memory.follower import IDLE_S
from aiosd.memory.memory import MAX_QUERY, Memories, open_memory, scope_of
from aiosd.protocol.memory import NewMemory
from aiosd.records import Privacy, Session
from aiosd.state import memories as table
from aiosd.state import sessions
from aiosd.state.database import Database, open_database
from aiosd.state.memories import Scope

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def session(
    user_id: str = "ann", permissions: tuple[str, ...] = ("memory",), privacy: Privacy = "any"
) -> Session:
    return Session(
        session_id=str(uuid4()),
        user_id=user_id,
        title="",
        agent=None,
        permissions=permissions,
        privacy=privacy,
        priority="normal",
        max_usd=None,
        workspace=None,
        write=False,
        state="open",
        created_at=NOW,
        used_at=NOW,
    )


@asynccontextmanager
async def opened(
    folder: Path, weights: Path | None = None, model: LocalModel | None = None, idle_s: float = IDLE_S
) -> AsyncIterator[tuple[Memories, Database]]:
    async with (
        open_database(folder / "aiosd.db") as database,
        open_memory(database, folder / "index", weights, model, idle_s=idle_s) as memories,
    ):
        yield memories, database


async def contents(memories: Memories, scope: Scope, query: str, n: int = 5) -> list[str]:
    return [memory.content for memory in await memories.recall(scope, query, n=n)]


async def test_what_is_remembered_is_recalled_at_once_and_whole(tmp_path: Path) -> None:
    ann = session(privacy="local")
    async with opened(tmp_path) as (memories, database):
        given = NewMemory(
            content="  The spare key lies under the blue pot.\n",
            speaker="Ben",
            created_at=NOW,
            kind="fact",
            source="chat",
            metadata={"room": 101, "tags": ["key"]},
        )
        (memory_id,) = await memories.remember(ann, [given], trust=0.5)
        (found,) = await memories.recall(scope_of(ann), "Where is the spare key?")
        kept = await database.read(lambda c: table.get(c, memory_id))
    assert 0 < found.score < 1
    assert msgspec.structs.asdict(found) == msgspec.structs.asdict(kept) | {"score": found.score}
    assert kept.content == given.content
    assert (kept.user_id, kept.session_id, kept.speaker) == ("ann", ann.session_id, "Ben")
    assert (kept.kind, kept.source, kept.trust, kept.privacy) == ("fact", "chat", 0.5, "local")
    assert (kept.created_at, kept.metadata) == (NOW, {"room": 101, "tags": ["key"]})


FACTS = {
    "Where do I live?": "Ann lives in Lisbon, near the river",
    "What is Ben allergic to?": "Ben has an allergy to peanuts",
    "When does the backup run?": "Backups of the photo folder are running every Sunday night",
    "Which font do I use in the terminal?": "The terminal font is JetBrains Mono, size 13",
    "what was error E0425 about": "error E0425 came from a missing import in main.rs",
    "Who is coming to the party?": "Maria and José come to the party on Friday",
    "What did Ann study at university?": "Ann studied physics at the university of Porto",
    "What is the number of my hotel room?": "The hotel room is number 417",
    "How do I like my coffee?": "Coffee: black, without sugar, two cups a day",
    "Which cafe did we like?": "We liked the Café Central best",
    "Где живёт бабушка?": "Бабушка живёт в Казани",
    "東京で何を食べた": "東京でラーメンを食べました",
    "北京的面条": "我喜欢在北京吃面条",
    "서울에서 만난 친구": "서울에서 친구를 만났다",
}


async def test_natural_questions_find_the_one_memory_that_answers_them(tmp_path: Path) -> None:
    ann = session()
    async with opened(tmp_path) as (memories, _):
        await memories.remember(ann, [NewMemory(content=fact) for fact in FACTS.values()])
        first = {q: (await contents(memories, scope_of(ann), q, n=1))[:1] for q in FACTS}
    wrong = {q: (found, FACTS[q]) for q, found in first.items() if found != [FACTS[q]]}
    assert len(wrong) <= 1, wrong


async def test_who_said_it_helps_to_find_it(tmp_path: Path) -> None:
    ann = session()
    async with opened(tmp_path) as (memories, _):
        said = [NewMemory(content="I went to Rome", speaker=name) for name in ("Ben", "Caroline", "Dora")]
        await memories.remember(ann, said)
        (found, *_) = await memories.recall(scope_of(ann), "Where did Caroline go?")
    assert found.speaker == "Caroline"


async def test_who_speaks_for_the_first_time_is_known_by_the_next_recall(tmp_path: Path) -> None:
    ann = session()
    async with opened(tmp_path) as (memories, _):
        await memories.remember(ann, [NewMemory(content="I went to Rome", speaker="Ben")])
        await memories.recall(scope_of(ann), "Did Mel go to Rome?")
        said = [NewMemory(content="I went to Rome", speaker=name) for name in ("Melanie", "Dorothy")]
        await memories.remember(ann, said)
        for short, name in (("Mel", "Melanie"), ("Dor", "Dorothy")):  # which are no words of theirs
            (found,) = await memories.recall(scope_of(ann), f"Did {short} go to Rome?", n=1)
            assert found.speaker == name


async def test_the_better_match_scores_more(tmp_path: Path) -> None:
    ann = session()
    async with opened(tmp_path) as (memories, _):
        texts = ["a red bicycle with a bell", "a red bicycle", "a red car", "a green tree"]
        await memories.remember(ann, [NewMemory(content=text) for text in texts])
        found = await memories.recall(scope_of(ann), "the red bicycle with its bell")
    assert [memory.content for memory in found] == texts[:3]
    scores = [memory.score for memory in found]
    assert scores == sorted(set(scores), reverse=True)
    assert all(0 < score < 1 for score in scores)


async def test_a_query_without_a_matching_word_finds_nothing(tmp_path: Path) -> None:
    ann = session()
    async with opened(tmp_path) as (memories, _):
        await memories.remember(ann, [NewMemory(content="🙂 tea 🚀"), NewMemory(content="!?")])
        for query in (
            "",
            "  \n",
            "🙂 🚀",
            "the of and",
            "\x00",
            "'; DROP TABLE memories; --",
            "*" * 50,
            "coffee",
        ):
            assert await memories.recall(scope_of(ann), query) == (), query


async def test_a_very_long_query_is_cut_and_a_very_long_memory_is_found_by_its_end(tmp_path: Path) -> None:
    ann = session()
    long = "x\x01y " * (MAX_CONTENT // 4 - 10) + " zebra"
    async with opened(tmp_path) as (memories, _):
        ids = await memories.remember(
            ann, [NewMemory(content="tea and toast"), *[NewMemory(content=f"{i} {long}") for i in range(5)]]
        )
        assert await contents(memories, scope_of(ann), "tea " * 25_000) == ["tea and toast"]
        assert await contents(memories, scope_of(ann), "x" * MAX_QUERY + " toast") == []
        assert {m.memory_id for m in await memories.recall(scope_of(ann), "zebra")} == set(ids[1:])


async def test_a_batch_with_one_bad_memory_keeps_none(tmp_path: Path) -> None:
    ann, good = session(), NewMemory(content="good")
    bad = {
        r"memories\[1\].content: expected a text": NewMemory(content=" \t\n"),
        r"\[1\].content: 1048578 bytes; at most 1048576": NewMemory(content="ü" * (MAX_CONTENT // 2 + 1)),
        r"memories\[1\]: not Unicode": NewMemory(content="\ud800"),
        r"\[1\].kind: expected 1 to 256 characters": NewMemory(content="x", kind=""),
        r"memories\[1\].source": NewMemory(content="x", source="s" * 257),
        r"memories\[1\].metadata": NewMemory(content="x", metadata={"x": "y" * 70_000}),
    }
    async with opened(tmp_path) as (memories, database):
        for sentence, memory in bad.items():
            with pytest.raises(InvalidParams, match=sentence):
                await memories.remember(ann, [good, memory])
        assert await memories.remember(ann, []) == ()
        assert await database.read(table.count) == 0


async def test_a_number_of_memories_out_of_range_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as (memories, _):
        for n in (0, -1, 101):
            with pytest.raises(InvalidParams, match="n: expected 1 to 100"):
                await memories.recall(Scope("ann", None), "tea", n=n)


async def test_recall_narrows_by_kind_source_and_time_and_reads_a_time_without_a_zone_as_utc(
    tmp_path: Path,
) -> None:
    ann = session()
    day = timedelta(days=1)
    async with opened(tmp_path) as (memories, _):
        await memories.remember(
            ann,
            [
                NewMemory(content="tea one", created_at=NOW - day),
                NewMemory(content="tea two", created_at=NOW.replace(tzinfo=None), kind="fact"),
                NewMemory(content="tea three", created_at=NOW + day, source="chat"),
            ],
        )

        async def found(**narrowed: object) -> set[str]:
            all = await memories.recall(Scope("ann", None), "tea", **narrowed)  # type: ignore[arg-type]
            return {memory.content.removeprefix("tea ") for memory in all}

        assert await found() == {"one", "two", "three"}
        assert await found(kind="fact") == {"two"}
        assert await found(source="chat") == {"three"}
        assert await found(as_of=NOW) == {"one", "two"}
        assert await found(as_of=(NOW - timedelta(microseconds=1)).replace(tzinfo=None)) == {"one"}
        assert await found(as_of=NOW - 2 * day) == set()
        assert await found(kind="fact", source="chat") == set()


async def test_a_user_sees_no_other_user_and_a_session_without_the_permission_only_itself(
    tmp_path: Path,
) -> None:
    ann, also_ann, alone, ben = session(), session(), session(permissions=("read",)), session("ben")
    async with opened(tmp_path) as (memories, _):
        for who, what in ((ann, "one"), (also_ann, "two"), (alone, "three"), (ben, "four")):
            await memories.remember(who, [NewMemory(content=f"secret {what}")])
        seen = [set(await contents(memories, scope_of(s), "secret")) for s in (ann, also_ann, alone, ben)]
    of_ann = {"secret one", "secret two", "secret three"}
    assert seen == [of_ann, of_ann, {"secret three"}, {"secret four"}]


async def test_what_others_said_does_not_crowd_out_what_the_asker_said(tmp_path: Path) -> None:
    ann, other_ann, ben = session(permissions=()), session(), session("ben")
    async with opened(tmp_path) as (memories, _):
        for crowd in (other_ann, ben):
            await memories.remember(crowd, [NewMemory(content="tea") for _ in range(120)])
        await memories.remember(ann, [NewMemory(content="tea and many other things that make a text long")])
        (found,) = await memories.recall(scope_of(ann), "tea", n=1)
    assert found.session_id == ann.session_id


@pytest.mark.parametrize(
    ("permissions", "whole_user"),
    [
        (("memory",), True),
        (("*",), True),
        (("read", "memory"), True),
        ((), False),
        (("read",), False),
        (("?memory",), False),
        (("*", "!memory"), False),
        (("memory(ben)",), False),
    ],
)
def test_only_memory_or_everything_opens_the_whole_users_memories(
    permissions: tuple[str, ...], whole_user: bool
) -> None:
    one = session(permissions=permissions)
    assert scope_of(one) == Scope("ann", None if whole_user else one.session_id)


async def test_how_rare_a_word_is_does_not_tell_what_other_users_said(tmp_path: Path) -> None:
    ann, ben = session(), session("ben")
    async with opened(tmp_path) as (memories, _):
        await memories.remember(ann, [NewMemory(content="tea"), NewMemory(content="coffee")])
        before = await memories.recall(scope_of(ann), "tea")
        await memories.remember(ben, [NewMemory(content="tea") for _ in range(50)])
        assert await memories.recall(scope_of(ann), "tea") == before


async def test_what_is_forgotten_is_never_recalled_again(tmp_path: Path) -> None:
    ann = session()
    async with opened(tmp_path) as (memories, database):
        one, two = await memories.remember(ann, [NewMemory(content="tea one"), NewMemory(content="tea two")])
        assert await memories.forget(memory_id=one) == 1
        assert await contents(memories, scope_of(ann), "tea") == ["tea two"]
        # As if the daemon had died between the two: the index still has it.
        await database.write(lambda c: table.delete(c, [two]))
        assert await memories.recall(scope_of(ann), "tea") == ()
    async with opened(tmp_path) as (memories, _):
        assert await memories.recall(scope_of(ann), "tea") == ()


async def test_forget_removes_what_fits_every_condition(tmp_path: Path) -> None:
    ann, ben = session(), session("ben")
    async with opened(tmp_path) as (memories, database):
        await database.write(lambda c: sessions.insert(c, ann, system=None))
        await memories.remember(
            ann,
            [
                NewMemory(content="My old Address: 5 Oak Street", created_at=NOW),
                NewMemory(content="address and street, but nothing else", created_at=NOW),
                NewMemory(content="tea", source="chat", created_at=NOW + timedelta(days=1)),
            ],
        )
        await memories.remember(ben, [NewMemory(content="old address of Ben", source="chat", created_at=NOW)])
        day = timedelta(days=1)

        async def count(**conditions: object) -> int:
            return await memories.forget(**conditions, dry_run=True)  # type: ignore[arg-type]

        assert await count(query="OLD address") == 2
        assert await count(query="old address", user_id="ann") == 1
        assert await count(source="chat") == 2
        assert await count(source="chat", user_id="ben") == 1
        assert await count(before=NOW) == 0
        assert await count(before=(NOW + day).replace(tzinfo=None)) == 3
        assert await count(session_id=ann.session_id) == 3
        assert await count(session_id=ann.session_id, user_id="ben") == 0
        assert await count(memory_id=str(uuid4())) == 0
        assert await database.read(table.count) == 4
        with pytest.raises(InvalidParams, match="expected a condition"):
            await memories.forget()
        with pytest.raises(InvalidParams, match="expected words"):
            await memories.forget(query=" ")
        with pytest.raises(NotFound):
            await memories.forget(session_id=str(uuid4()))
        assert await memories.forget(session_id=ann.session_id, source="chat") == 1
        assert await memories.forget(user_id="ann") == 2
        assert await contents(memories, scope_of(ben), "address") == ["old address of Ben"]


async def test_a_memory_added_in_another_transaction_is_found_once_the_index_is_told(tmp_path: Path) -> None:
    ann = session()
    async with opened(tmp_path) as (memories, database):
        memory = memories.record(
            ann,
            "Task: boil water " + "é" * MAX_CONTENT,
            kind="task",
            source="task:1",
            privacy="local",
            created_at=NOW,
        )
        assert memory.privacy == "local"
        assert len(memory.content.encode()) in (MAX_CONTENT, MAX_CONTENT - 1)
        await database.write(lambda c: table.add(c, [memory]))
        await memories.index([memory])
        (found,) = await memories.recall(scope_of(ann), "water")
    assert (found.memory_id, found.kind, found.source) == (memory.memory_id, "task", "task:1")


def test_a_private_session_makes_whatever_it_remembers_private() -> None:
    memories = Memories(None, None, None)  # type: ignore[arg-type]  # none is used
    made = memories.record(
        session(privacy="local"), "x", kind="task", source="task:1", privacy="any", created_at=NOW
    )
    assert made.privacy == "local"


async def test_what_says_the_same_is_kept_as_given_and_recalled_once(tmp_path: Path) -> None:
    ann, private = session(), session(privacy="local")
    same = ["The spare key is blue", "the spare key is BLUE!", "The  spare key,\nis blue."]
    async with opened(tmp_path) as (memories, database):
        ids = await memories.remember(ann, [NewMemory(content=text) for text in same * 20])
        await memories.remember(ann, [NewMemory(content="The spare key is blue", speaker="Ben")])
        await memories.remember(ann, [NewMemory(content="The spare key is blue, says Cem")])
        await memories.remember(private, [NewMemory(content="The spare key is blue")])
        found = await memories.recall(scope_of(ann), "Which colour has the spare key?")
        assert await database.read(table.count) == len(ids) + 3
    assert len(found) == 4  # the notes, Ben's word, another sentence, and what may not leave
    assert [m.score for m in found] == sorted((m.score for m in found), reverse=True)


async def test_ten_thousand_memories_in_one_call(tmp_path: Path) -> None:
    ann = session()
    async with opened(tmp_path) as (memories, _):
        batch = [NewMemory(content=f"stone number {i} lies by the river") for i in range(10_000)]
        ids = await memories.remember(ann, batch)
        assert len(set(ids)) == 10_000
        for i in (0, 7_777, 9_999):
            (found,) = await memories.recall(scope_of(ann), f"stone {i}", n=1)
            assert found.memory_id == ids[i]
