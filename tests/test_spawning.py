"""Agents that start agents: what a child may do, what it costs, and that it ends with its parent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiosd import records as r
from aiosd.errors import BudgetExhausted, Cancelled, DeadlineExceeded, InvalidState
from aiosd.protocol.sessions import SessionDelete, SessionList, SessionRun
from aiosd.protocol.tasks import TaskCancel, TaskGet, TaskList, TaskPrioritize, TaskWait
from aiosd.protocol.tools import ToolCall
from aiosd.state import sessions, tasks
from aiosd.state.database import Connection, open_database
from aiosd.tasks import descent
from aiosd.tasks.budget import Budget, billionths
from aiosd.tools import policy
from aiosd.tools.subjects import Place, Subject
from tests.daemon import Daemon
from tests.doubles.http_double import Script
from tests.doubles.ollama_double import OllamaDouble

pytestmark = pytest.mark.anyio

T = TypeVar("T")
NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


async def aside(work: Callable[[], T]) -> T:
    return await anyio.to_thread.run_sync(work)


class Model(OllamaDouble):
    """Answers by the task: `spawn: A | B` asks for those side by side; `hang ...` never ends; `meet N ...` waits until N
    such requests are here; anything else is answered by `did: TASK`."""

    def __init__(self) -> None:
        super().__init__()
        self.choose = self._script
        self.hanging = asyncio.Event()
        self.hangs = True
        self._here = 0
        self._met = asyncio.Event()

    def _script(self, body: dict[str, Any]) -> Script:
        messages = body["messages"]
        task = next(m["content"] for m in reversed(messages) if m["role"] == "user")
        given = [m["content"] for m in messages if m["role"] == "tool"]
        if task.startswith("hang") and self.hangs:
            self.hanging.set()
            return Script(text=("half",), fault="hang_after")
        if task.startswith("spawn") and not given:
            extra = json.loads(task.partition("with ")[2] or "{}")
            wanted = task.removeprefix("spawn: ").partition(" with ")[0].split(" | ")
            return Script(
                text=(), calls=tuple(("spawn", json.dumps({"task": one} | extra)) for one in wanted)
            )
        if task == "again":
            return (
                Script(text=(), calls=(("spawn", json.dumps({"task": "again"})),)) if not given else Script()
            )
        if task == "collect it" and len(given) < 2:
            if not given:
                return Script(text=(), calls=(("spawn", '{"task": "part", "wait": false}'),))
            return Script(text=(), calls=(("collect", json.dumps({"number": int(given[0].split()[1])})),))
        return Script(text=(" + ".join(given) or f"did: {task}",))

    async def _answer(self, seen: Any, reader: Any, writer: Any) -> None:
        task = seen.body["messages"][-1]["content"] if seen.path == "/api/chat" else ""
        if task.startswith("meet"):
            self._here += 1
            if self._here == int(task.split()[1]):
                self._met.set()
            await self._met.wait()
        await super()._answer(seen, reader, writer)


def config(model: Model, *, slots: int = 8) -> str:
    agents = '[agents.reader]\nsystem = "You only read."\npermissions = ["read"]\n'
    backend = (
        f'[models.backends.small]\nkind = "ollama"\nmodel = "small"\nurl = "{model.url}"\nslots = {slots}\n'
    )
    return agents + backend


def tree(daemon: Daemon) -> list[r.Task]:
    """All tasks, the oldest first."""
    return list(reversed(daemon.call(TaskList()).tasks))


async def test_five_children_work_at_once_and_their_answers_return_to_the_parent(tmp_path: Path) -> None:
    async with Model() as model:
        with Daemon(tmp_path / "home", config(model)) as daemon:
            parts = " | ".join(f"meet 5 part {n}" for n in range(5))
            session = await aside(lambda: daemon.session(permissions=["spawn"]))
            result = await aside(lambda: daemon.run(session, f"spawn: {parts}"))
            started = await aside(lambda: tree(daemon))
            open_sessions = await aside(lambda: daemon.call(SessionList(state="open")).sessions)
    assert sorted(result.result.split(" + ")) == [f"did: meet 5 part {n}" for n in range(5)]
    parent, *children = started
    assert [child.parent_id for child in children] == [parent.task_id] * 5
    assert len({task.session_id for task in started}) == 6
    assert [s.session_id for s in open_sessions] == [session.session_id]


async def test_cancelling_the_parent_cancels_the_tree_and_says_so(tmp_path: Path) -> None:
    async with Model() as model:
        with Daemon(tmp_path / "home", config(model)) as daemon:
            session = await aside(lambda: daemon.session(permissions=["spawn"]))
            task = await aside(lambda: daemon.start_task(session, "spawn: spawn: hang | hang"))
            with anyio.fail_after(30):
                await model.hanging.wait()
            with anyio.fail_after(10):
                ended = await aside(lambda: daemon.call(TaskCancel(task_id=task.task_id)))
                await model.dropped.wait()
            states = [t.state for t in await aside(lambda: tree(daemon))]
            with pytest.raises(Cancelled, match="and with it .*task 2"):
                await aside(lambda: daemon.call(TaskWait(task_id=task.task_id)))
    assert len(states) >= 3 and set(states) == {"cancelled"}
    assert ended.error is not None
    assert {"the tool `spawn`", "task 2"} <= set(ended.error["data"]["ended"])


async def test_a_parent_out_of_time_takes_its_children_along(tmp_path: Path) -> None:
    async with Model() as model:
        with Daemon(tmp_path / "home", config(model)) as daemon:
            session = await aside(lambda: daemon.session(permissions=["spawn"]))
            for timeout_s in (1, 5, 30):  # until the machine is fast enough for a child to be there by then
                run = partial(daemon.start_task, session, "spawn: hang", timeout_s=timeout_s)
                task = await aside(run)
                with pytest.raises(DeadlineExceeded):
                    await aside(partial(daemon.call, TaskWait(task_id=task.task_id)))
                if model.hanging.is_set():
                    break
            with anyio.fail_after(30):
                await model.dropped.wait()
            *_, child = (t for t in await aside(lambda: tree(daemon)) if t.parent_id is not None)
            with pytest.raises(Cancelled):
                await aside(lambda: daemon.call(TaskWait(task_id=child.task_id)))
            assert (await aside(lambda: daemon.call(TaskGet(task_id=task.task_id)))).state == "failed"


async def test_after_a_kill_the_parent_finds_its_children_again_and_starts_no_others(tmp_path: Path) -> None:
    async with Model() as model:
        daemon = Daemon(tmp_path / "home", config(model))
        with daemon:
            session = await aside(lambda: daemon.session(permissions=["spawn"]))
            task = await aside(lambda: daemon.start_task(session, "spawn: hang 1 | part 2"))
            with anyio.fail_after(30):
                await model.hanging.wait()
            await aside(daemon.kill)
            model.hangs = False
            await aside(daemon.start)
            result = await aside(lambda: daemon.call(TaskWait(task_id=task.task_id)))
            started = await aside(lambda: tree(daemon))
    assert sorted(result.result.split(" + ")) == ["did: hang 1", "did: part 2"]
    assert [t.state for t in started] == ["completed"] * 3


async def test_a_child_that_is_not_waited_for_is_collected_later(tmp_path: Path) -> None:
    async with Model() as model:
        with Daemon(tmp_path / "home", config(model)) as daemon:
            session = await aside(lambda: daemon.session(permissions=["spawn"]))
            result = await aside(lambda: daemon.run(session, "collect it"))
    assert result.result == "Task 2 has been started. For its answer, collect it. + did: part"


async def test_a_tree_ends_at_its_third_generation(tmp_path: Path) -> None:
    async with Model() as model:
        with Daemon(tmp_path / "home", config(model)) as daemon:
            session = await aside(lambda: daemon.session(permissions=["*"]))
            await aside(lambda: daemon.run(session, "again"))
            depths = [t.state for t in await aside(lambda: tree(daemon))]
    assert depths == ["completed"] * (1 + descent.MAX_DEPTH)


async def test_a_child_has_its_parents_rights_or_less(tmp_path: Path) -> None:
    async with Model() as model:
        with Daemon(tmp_path / "home", config(model)) as daemon:
            session = await aside(
                lambda: daemon.session(
                    permissions=["spawn", "read"], privacy="local", workspace=str(tmp_path)
                )
            )
            agent = 'spawn: look with {"agent": "reader"}'
            assert (await aside(lambda: daemon.run(session, agent))).result == "did: look"
            refused = await aside(lambda: daemon.run(session, 'spawn: x with {"tools": ["remember"]}'))
            unknown = await aside(lambda: daemon.run(session, 'spawn: x with {"agent": "nobody"}'))
            all_sessions = await aside(lambda: daemon.call(SessionList()).sessions)
            asked = [chat for chat in model.chats() if chat["messages"][-1]["content"] == "look"]
            child = next(s for s in all_sessions if s.agent == "reader")
            # the user's last session is never a child's
            assert all_sessions[0].session_id == session.session_id
            await aside(lambda: daemon.call(SessionDelete(session_id=session.session_id)))
            assert not await aside(lambda: daemon.call(SessionList()).sessions)
    assert (child.privacy, child.workspace, child.write) == ("local", str(tmp_path), False)
    offered = {tool["function"]["name"] for tool in asked[0]["tools"]}
    assert "read_file" in offered and not offered & {"spawn", "remember", "recall"}
    assert "You only read." in asked[0]["messages"][0]["content"]
    assert "may not use remember" in refused.result and "there are: reader" in unknown.result


async def test_spawning_is_for_tasks_and_for_sessions_that_may(tmp_path: Path) -> None:
    async with Model() as model:
        with Daemon(tmp_path / "home", config(model)) as daemon:
            plain = await aside(daemon.session)
            result = await aside(lambda: daemon.run(plain, "spawn: part"))
            assert "may not use `spawn`" in result.result
            able = await aside(lambda: daemon.session(permissions=["spawn"]))
            call = ToolCall(session_id=able.session_id, name="spawn", arguments={"task": "part"})
            with pytest.raises(InvalidState, match="only a task that runs"):
                await aside(lambda: daemon.call(call))


async def test_a_priority_is_that_of_the_whole_tree(tmp_path: Path) -> None:
    async with Model() as model:
        with Daemon(tmp_path / "home", config(model)) as daemon:
            session = await aside(lambda: daemon.session(permissions=["spawn"]))
            task = await aside(lambda: daemon.start_task(session, "spawn: hang"))
            with anyio.fail_after(30):
                await model.hanging.wait()
            params = TaskPrioritize(task_id=task.task_id, priority="background")
            assert (await aside(lambda: daemon.call(params))).priority == "background"
            assert [t.priority for t in await aside(lambda: tree(daemon))] == ["background"] * 2


# --- rights: a child is never allowed what its parent is not ----------------------------------------------------

names = st.sampled_from(["a", "b", "c", "*"])
patterns = st.sampled_from(["", "", "(one)", "(o*)", "(two)"])
entries = st.builds(
    lambda sign, name, pattern: sign + name + pattern, st.sampled_from(["", "!", "?"]), names, patterns
)
lists = st.lists(entries, max_size=5).map(tuple)
PLACE = Place("/work", "/home/ann", lambda path: path)


@st.composite
def tools_of(draw: st.DrawFn) -> tuple[r.Tool, ...]:
    return tuple(
        r.Tool(
            name=name,
            description="",
            input_schema={},
            annotations={"openWorldHint": draw(st.booleans())},
            permissions=tuple(draw(st.lists(names, max_size=2))),
            rate_limit=None,
        )
        for name in ("a", "b", "t1", "t2")
    )


@given(lists, st.none() | lists, tools_of())
def test_no_child_may_use_a_tool_that_its_parent_or_its_agent_may_not(
    parent: tuple[str, ...], agent: tuple[str, ...] | None, tools: tuple[r.Tool, ...]
) -> None:
    child = descent.narrowed(parent, agent, tools)
    policy.check_permissions(child)
    strict = ["allow", "ask", "deny"]
    abouts = [None, (), *((Subject("text", text),) for text in ("one", "two", "other"))]
    for tool in tools:
        for about in abouts:
            for whose in [parent] if agent is None else [parent, agent]:
                its, limit = (
                    policy.decide(tool, entries, about, PLACE).decision for entries in (child, whose)
                )
                allowed = limit != "deny" or its == "deny"
                assert strict.index(its) >= strict.index(limit) if whose is parent else allowed


# --- money: what a tree spends never passes any of its caps -----------------------------------------------------

dollars = st.none() | st.floats(0, 3)


def a_session(max_usd: float | None, session_id: str) -> r.Session:
    return r.Session(
        session_id=session_id,
        user_id="ann",
        title="t",
        agent=None,
        permissions=("*",),
        privacy="any",
        priority="normal",
        max_usd=max_usd,
        workspace=None,
        write=False,
        state="open",
        created_at=NOW,
        used_at=NOW,
    )


def an_id(n: int) -> str:
    return f"00000000-0000-4000-8000-{n:012d}"


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # each example opens a ledger
@given(
    session_usd=dollars,
    caps=st.lists(dollars, min_size=4, max_size=4),
    spends=st.lists(
        st.tuples(st.integers(0, 3), st.floats(0, 1), st.floats(0, 1), st.booleans()), max_size=12
    ),
)
async def test_no_tree_spends_more_than_any_cap_above_it(
    tmp_path_factory: pytest.TempPathFactory,
    session_usd: float | None,
    caps: list[float | None],
    spends: list[tuple[int, float, float, bool]],
) -> None:
    async with open_database(tmp_path_factory.mktemp("ledger") / "db") as database:
        budget = Budget(database, None, lambda: NOW)
        runs = [SessionRun(session_id=an_id(100 + n), task="t", max_usd=cap) for n, cap in enumerate(caps)]
        parents = [None, 0, 1, 0]
        kept = [a_session(session_usd if n == 0 else None, an_id(100 + n)) for n in range(4)]

        def begin(c: Connection) -> None:
            for n, (session, run, parent) in enumerate(zip(kept, runs, parents, strict=True)):
                sessions.insert(c, session, system=None)
                parent_id = None if parent is None else an_id(parent)
                tasks.insert(
                    c,
                    an_id(n),
                    session.session_id,
                    params=run,
                    parent_id=parent_id,
                    priority="normal",
                    created_at=NOW,
                )

        await database.write(begin)
        total = [0] * 4
        for seq, (n, usd, share, holds_on) in enumerate(spends, 1):
            try:
                await budget.hold(kept[n], an_id(n), caps[n], usd)
            except BudgetExhausted:
                continue
            cost = usd * share
            event = r.UsageEvent(task_id=an_id(n), seq=seq, at=NOW, usage=r.Tokens(), cost_usd=cost)
            await database.write(lambda c, event=event: tasks.append(c, event))  # type: ignore[misc]
            total[n] += billionths(cost)
            if not holds_on:
                await budget.release(an_id(n))
        below = {0: (0, 1, 2, 3), 1: (1, 2), 2: (2,), 3: (3,)}
        for n, cap in enumerate(caps):
            assert cap is None or sum(total[m] for m in below[n]) <= billionths(cap)
        assert session_usd is None or sum(total) <= billionths(session_usd)
