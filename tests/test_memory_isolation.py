"""Fifty users with several sessions each, at random: nobody is given, told the number of, or rid of another's memories."""

from __future__ import annotations

import random

import msgspec
import pytest

from aiosctl.client import Client
from aiosd.protocol.memory import (
    Exported,
    MemoryContext,
    MemoryExport,
    MemoryForget,
    MemoryList,
    MemoryRecall,
    MemoryRemember,
    MemoryStats,
    MemoryWhy,
    NewMemory,
)
from aiosd.protocol.sessions import SessionClose, SessionCreate, SessionRun
from aiosd.protocol.tools import ToolCall
from aiosd.records import Session
from tests.daemon import Daemon

WORDS = ("river", "garden", "invoice", "falcon", "harbour", "recipe", "meeting", "password")
PERMISSIONS = (("memory",), ("*",), ("read",), (), ("*", "!memory"), ("?memory",), ("memory", "read"))
SEES_ALL = (("memory",), ("*",), ("memory", "read"))


class Town:
    """What was done, as it should be known."""

    def __init__(self, client: Client, chance: random.Random, users: int) -> None:
        self.client = client
        self.chance = chance
        self.users = [f"user-{n}" for n in range(users)]
        self.sessions = [
            client.call(SessionCreate(user_id=user, permissions=chance.choice(PERMISSIONS)))
            for user in self.users
            for _ in range(chance.randrange(2, 5))
        ]
        self.kept: dict[str, tuple[Session, str]] = {}
        self.count = 0
        self.found = 0

    def of(self, user: str | None = None, session: Session | None = None) -> list[str]:
        """Ids, in the order they were added."""
        return [
            id
            for id, (owner, _) in self.kept.items()
            if (user is None or owner.user_id == user) and session in (None, owner)
        ]

    def seen_by(self, session: Session) -> set[str]:
        whole = session.permissions in SEES_ALL
        return set(self.of(session.user_id) if whole else self.of(session=session))

    def words(self, n: int) -> str:
        return " ".join(self.chance.choices(WORDS, k=n))

    def remember(self, session: Session) -> None:
        batch = []
        for _ in range(self.chance.randrange(1, 4)):
            self.count += 1
            batch.append(NewMemory(content=f"{self.words(3)} of {session.user_id} no{self.count}"))
        done = self.client.call(MemoryRemember(session_id=session.session_id, memories=tuple(batch)))
        for id, memory in zip(done.memory_ids or (), batch, strict=True):
            self.kept[id] = session, memory.content

    def recall(self, session: Session) -> None:
        query = self.words(2)
        by_session = self.client.call(
            MemoryRecall(query=query, session_id=session.session_id, n=100)
        ).memories
        assert {m.memory_id for m in by_session} <= self.seen_by(session)
        self.found += len(by_session)
        own = self.client.call(
            MemoryRecall(query=query, session_id=session.session_id, scope="session", n=100)
        ).memories
        assert {m.memory_id for m in own} <= set(self.of(session=session))
        by_user = self.client.call(MemoryRecall(query=query, user_id=session.user_id, n=100)).memories
        assert {m.memory_id for m in by_user} <= set(self.of(session.user_id))
        assert all(m.content == self.kept[m.memory_id][1] for m in (*by_session, *own, *by_user))

    def look(self, session: Session) -> None:
        user = session.user_id
        listed = self.client.call(MemoryList(session_id=session.session_id, limit=1000)).memories
        assert {m.memory_id for m in listed} == set(self.of(session=session))
        listed = self.client.call(MemoryList(user_id=user, limit=1000)).memories
        assert {m.memory_id for m in listed} == set(self.of(user))
        assert self.client.call(MemoryStats(user_id=user)).memories == len(self.of(user))
        exported = self.client.call(MemoryExport(user_id=user)).memories
        assert [m.memory_id for m in exported] == self.of(user)
        noted = self.client.call(MemoryContext(session_id=session.session_id, last_n=100)).entries
        assert sorted(turn.content for turn in noted) == sorted(
            self.kept[id][1] for id in self.of(session=session)
        )

    def ask_by_tool(self, session: Session) -> None:
        if session.permissions not in SEES_ALL:
            return  # the tool itself needs the permission
        call = ToolCall(
            session_id=session.session_id, name="recall", arguments={"query": self.words(2), "n": 20}
        )
        text = "\n".join(block.text for block in self.client.call(call).content)
        seen = {self.kept[id][1] for id in self.seen_by(session)}
        assert text == "Nothing found." or all(line.split("] ", 1)[1] in seen for line in text.splitlines())

    def forget(self, session: Session) -> None:
        user, word = session.user_id, self.chance.choice(WORDS)
        fitting, condition = self.chance.choice(
            [
                (self.of(session=session), MemoryForget(session_id=session.session_id)),
                (
                    [id for id in self.of(user) if word in self.kept[id][1]],
                    MemoryForget(user_id=user, query=word.upper()),
                ),
                (
                    [id for id in self.of(session=session) if word in self.kept[id][1]],
                    MemoryForget(session_id=session.session_id, query=word, source="user"),
                ),
                (
                    [],
                    MemoryForget(user_id=user, session_id=self.chance.choice(self.foreign(user)).session_id),
                ),
                (
                    [],
                    MemoryForget(
                        user_id=user, memory_id=next(iter(self.of_others(user)), session.session_id)
                    ),
                ),
            ]
        )
        dry = msgspec.structs.replace(condition, dry_run=True)
        assert self.client.call(dry).forgotten == len(fitting)
        assert self.client.call(condition).forgotten == len(fitting)
        for id in fitting:
            del self.kept[id]

    def foreign(self, user: str) -> list[Session]:
        return [session for session in self.sessions if session.user_id != user]

    def of_others(self, user: str) -> list[str]:
        return [id for id, (owner, _) in self.kept.items() if owner.user_id != user]


def lived_in(daemon: Daemon, *, users: int, steps: int, seed: int) -> None:
    chance = random.Random(seed)
    with Client(daemon.socket) as client:
        town = Town(client, chance, users)
        for session in town.sessions:
            town.remember(session)
        for _ in range(steps):
            act = chance.choice([town.remember, town.recall, town.look, town.ask_by_tool, town.forget])
            act(chance.choice(town.sessions))
        left: list[Exported] = []
        cursor: str | None = None
        while True:
            page = client.call(MemoryExport(cursor=cursor))
            left += page.memories
            if (cursor := page.next_cursor) is None:
                break
        assert [memory.memory_id for memory in left] == list(town.kept)
        assert town.found > steps / 10


def test_fifty_users_never_meet(daemon: Daemon) -> None:
    lived_in(daemon, users=50, steps=150, seed=7)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_fifty_users_never_meet_for_long(daemon: Daemon, seed: int) -> None:
    lived_in(daemon, users=50, steps=1_000, seed=seed)


def test_runs_and_what_is_made_of_them_stay_with_their_user(daemon: Daemon) -> None:
    with Client(daemon.socket) as client:
        sessions = [client.call(SessionCreate(user_id=f"user-{n % 3}")) for n in range(6)]
        for n, session in enumerate(sessions):
            for task in (f"Remember that the key of user-{n % 3} is k{n % 3}", "What is the key?"):
                client.call(SessionRun(session_id=session.session_id, task=task))
            client.call(SessionClose(session_id=session.session_id))
        every = client.call(MemoryExport()).memories
        assert {memory.kind for memory in every} == {"note", "task", "summary"}
        for memory in every:
            traced = client.call(MemoryWhy(memory_id=memory.memory_id))
            users = {other.user_id for other in (*traced.derived_from, *traced.derived)}
            assert users <= {memory.user_id}
            number = memory.user_id.removeprefix("user-")
            assert not any(f"k{n}" in memory.content for n in range(3) if str(n) != number)
