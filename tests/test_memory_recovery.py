"""The index may die, lag, lie and be lost: what was remembered is recalled, and by nobody else."""

from __future__ import annotations

import fcntl
import logging
import os
import random
import shutil
import signal
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import anyio
import msgspec
import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiosd.child import ChildDied
from aiosd.errors import DeadlineExceeded
from aiosd.memory.embedding import LocalModel
from aiosd.memory.graph import DIM
from aiosd.memory.memory import Memories, scope_of
from aiosd.protocol.memory import MemoryRecall, MemoryReindex, MemoryRemember, NewMemory
from aiosd.protocol.tasks import TaskWait
from aiosd.records import Embedded, Session
from aiosd.state import memories as table
from tests.daemon import Daemon
from tests.test_memory import contents, opened, session

LONG_S = 30.0


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.INFO, "aiosd"):
        yield


def worker(caplog: pytest.LogCaptureFixture) -> int:
    """The process that was started last."""
    pid: int = [r.__dict__["pid"] for r in caplog.records if r.message == "child started"][-1]
    return pid


def openings(caplog: pytest.LogCaptureFixture) -> list[tuple[int, bool, int]]:
    """What each process found: points, whether they were kept, rows behind."""
    found = [r.__dict__ for r in caplog.records if r.message == "memory index opened"]
    return [(r["points"], r["kept"], r["behind"]) for r in found]


def kill(pid: int) -> None:
    """As the kernel would when memory is short. One that has ended already is as dead."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


async def all_found(memories: Memories, ann: Session, n: int) -> list[int]:
    """Those of the numbered memories that recall does not find."""
    return [i for i in range(n) if not await contents(memories, scope_of(ann), f"stone{i}x", n=1)]


def stones(*numbers: int) -> list[NewMemory]:
    return [NewMemory(content=f"stone{i}x by the river") for i in numbers]


@pytest.mark.anyio
async def test_killing_the_worker_in_the_middle_of_remembers_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ann = session()
    killed = set()
    async with opened(tmp_path) as (memories, _):

        async def remember(first: int) -> None:
            await memories.remember(ann, stones(*range(first, first + 5)))
            if first % 100 == 50:
                killed.add(worker(caplog))
                kill(worker(caplog))

        await memories.remember(ann, stones(1_000))
        async with anyio.create_task_group() as tasks:
            for first in range(0, 500, 5):
                tasks.start_soon(remember, first)
        assert len(killed) >= 1
        await memories.remember(ann, stones(1_001))
        assert await all_found(memories, ann, 500) == []
    async with opened(tmp_path) as (memories, _):
        assert await all_found(memories, ann, 500) == []
    assert openings(caplog)[-1] == (502, True, 0)


@pytest.mark.anyio
async def test_what_a_dead_worker_did_not_hear_is_found_by_the_very_next_recall(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ann = session()
    async with opened(tmp_path) as (memories, database):
        await memories.remember(ann, stones(0))
        for i in range(1, 6):
            kill(worker(caplog))
            # Added without a word to the index, as by a daemon that died right after its commit.
            row = memories.record(
                ann, f"stone{i}x", kind="note", source="user", privacy="any", created_at=ann.created_at
            )
            await database.write(lambda c, row=row: table.add(c, [row]))  # type: ignore[misc]
            assert await contents(memories, scope_of(ann), f"stone{i}x") == [f"stone{i}x"]


Damage = Callable[[Path], None]


def everything_cut(shard: Path) -> None:
    for file in shard.rglob("*"):
        if file.is_file():
            os.truncate(file, file.stat().st_size // 2)


def everything_flipped(shard: Path) -> None:
    for file in shard.rglob("*"):
        if file.is_file():
            flip(file)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    chance = random.Random(1)
    for _ in range(64 if content else 0):
        content[chance.randrange(min(len(content), 4_000))] ^= 0xFF
    file.write_bytes(content)


def cut(name: str) -> Damage:
    def damage(shard: Path) -> None:
        (file,) = shard.rglob(name)
        os.truncate(file, file.stat().st_size // 2)

    return damage


def gone(name: str) -> Damage:
    def damage(shard: Path) -> None:
        for file in shard.rglob(name):
            file.unlink()

    return damage


def flipped(name: str) -> Damage:
    def damage(shard: Path) -> None:
        (file,) = shard.rglob(name)
        flip(file)

    return damage


def zero(shard: Path, name: str) -> None:
    (file,) = shard.rglob(name)
    file.write_bytes(bytes(file.stat().st_size))


def scrambled(name: str) -> Damage:
    def damage(shard: Path) -> None:
        (file,) = shard.rglob(name)
        file.write_bytes(bytes(b ^ 0xFF for b in file.read_bytes()))

    return damage


DAMAGES: dict[str, Damage] = {
    "the folder is gone": shutil.rmtree,
    "every file is gone": gone("*.*"),
    "every file is cut": everything_cut,
    "every file is flipped": everything_flipped,
    "its config is cut": cut("edge_config.json"),
    "its config is gone": gone("edge_config.json"),
    "its segments are gone": lambda shard: shutil.rmtree(shard / "segments"),
    "its ids are cut": cut("mutable_id_tracker.mappings"),
    "its ids are flipped, which aborts the process that loads them": flipped("mutable_id_tracker.mappings"),
    "its ids are scrambled": scrambled("mutable_id_tracker.mappings"),
    "its ids are gone": gone("mutable_id_tracker.mappings"),
    "its vectors are zeroed": lambda shard: zero(shard, "vector_storage-bm25/store/page_0.dat"),
    "its vectors are flipped": lambda shard: flip(next(shard.rglob("vector_storage-bm25/store/page_0.dat"))),
    "its version is gone": gone("version.info"),
    "its segment is scrambled": scrambled("segment.json"),
}


@pytest.mark.anyio
@pytest.mark.parametrize("name", DAMAGES)
async def test_a_damaged_index_is_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    ann, ben = session(permissions=()), session("ben")
    async with opened(tmp_path) as (memories, _):
        for first in range(0, 100, 10):
            await memories.remember(ann, stones(*range(first, first + 10)))
    (shard,) = (tmp_path / "index").glob("shard-*")
    DAMAGES[name](shard)
    async with opened(tmp_path) as (memories, _):
        await memories.remember(ann, stones(100))
        assert await all_found(memories, ann, 101) == []
        assert await contents(memories, scope_of(ben), "river") == []
    async with opened(tmp_path) as (memories, _):
        assert await all_found(memories, ann, 101) == []
    assert openings(caplog)[-1] == (101, True, 0)


@pytest.mark.anyio
async def test_an_index_of_another_database_is_not_believed(tmp_path: Path) -> None:
    ann = session()
    for place in ("one", "two"):
        async with opened(tmp_path / place) as (memories, _):
            await memories.remember(ann, stones(*range(10)) if place == "one" else stones(*range(10, 20)))
    shutil.rmtree(tmp_path / "two" / "index")
    shutil.copytree(tmp_path / "one" / "index", tmp_path / "two" / "index")
    async with opened(tmp_path / "two") as (memories, _):
        assert [m for m in range(10, 20) if not await contents(memories, scope_of(ann), f"stone{m}x")] == []


@pytest.mark.anyio
async def test_what_was_forgotten_as_the_daemon_died_is_taken_out_and_nothing_else_is_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ann = session()
    async with opened(tmp_path) as (memories, database):
        ids = await memories.remember(ann, stones(*range(20)))
        await database.write(lambda c: table.delete(c, ids[10:15]))  # without a word to the index
        await database.write(lambda c: table.delete(c, ids[-1:]))
    async with opened(tmp_path) as (memories, _):
        assert await all_found(memories, ann, 20) == [10, 11, 12, 13, 14, 19]
    assert openings(caplog)[-1] == (14, True, 0)


@pytest.mark.anyio
async def test_damage_that_no_opening_sees_is_mended_behind_the_first_answers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ann = session()
    async with opened(tmp_path) as (memories, _):
        await memories.remember(ann, stones(*range(1_500)))
    (page,) = (tmp_path / "index").rglob("vector_storage-bm25/store/page_0.dat")
    (payloads,) = (tmp_path / "index").rglob("payload_storage/page_0.dat")
    page.write_bytes(page.read_bytes().replace(b"\x99\x3f", b"\x99\x39", 40))  # weights of words, here 1.2
    payloads.write_bytes(payloads.read_bytes().replace(b'"user_id":"ann"', b'"user_id":"bob"', 40))
    with listening("memory index checked") as checked:
        async with opened(tmp_path) as (memories, _):
            await memories.remember(ann, stones(1_500))
            with anyio.fail_after(LONG_S):
                await checked.wait()
            assert await all_found(memories, ann, 100) == []
    assert openings(caplog)[-1][:2] == (1_500, True)
    done = [r.__dict__["mended"] for r in caplog.records if r.message == "memory index checked"]
    assert 40 <= done[-1] < 100


@pytest.mark.anyio
async def test_an_idle_worker_ends_and_whoever_asks_next_finds_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ann = session()
    async with opened(tmp_path, idle_s=0.2) as (memories, _):
        for i in range(3):
            with listening("child ended") as ended:
                await memories.remember(ann, stones(i))
                with anyio.fail_after(LONG_S):
                    await ended.wait()
        async with anyio.create_task_group() as tasks:  # in flight while it may be ending
            for i in range(3, 9):
                tasks.start_soon(memories.remember, ann, stones(i))
                await anyio.sleep(0.1)
        assert await all_found(memories, ann, 9) == []
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_an_index_made_again_by_command_goes_on_after_a_kill_and_misses_nothing(tmp_path: Path) -> None:
    with Daemon(tmp_path, '[memory]\nembedder = "none"\n') as daemon:
        ann = daemon.session()
        daemon.call(MemoryRemember(session_id=ann.session_id, memories=tuple(stones(*range(700)))))
        done = daemon.ctl("memory", "reindex")
        assert (done.returncode, done.stdout) == (0, "indexed 700 memories\n"), done.stderr
        task = daemon.call(MemoryReindex())
        assert daemon.call(MemoryReindex()).task_id == task.task_id
        daemon.kill()
        daemon.start()
        assert daemon.call(TaskWait(task_id=task.task_id, timeout_s=LONG_S)).result == "700 memories"
        found = [
            daemon.call(MemoryRecall(session_id=ann.session_id, query=f"stone{i}x", n=1)).memories
            for i in range(0, 700, 50)
        ]
        assert [one[0].content.split()[0] for one in found] == [f"stone{i}x" for i in range(0, 700, 50)]
        result = msgspec.json.decode(daemon.ctl("--json", "memory", "reindex").stdout)
        assert (result["state"], result["generated"]) == ("completed", False)


async def by_chance(texts: Sequence[str]) -> Embedded:
    """Vectors as large as MiniLM's: to load that at each opening would take most of the time."""
    chances = map(random.Random, texts)
    vectors = tuple(tuple(chance.gauss(0, 1) for _ in range(DIM)) for chance in chances)
    return Embedded(vectors=vectors, model="chance", dim=DIM)


BY_CHANCE = LocalModel("chance", by_chance)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty memories with vectors, and their index as a daemon leaves it."""
    folder = tmp_path_factory.mktemp("whole")

    async def fill() -> None:
        async with opened(folder, model=BY_CHANCE) as (memories, _):
            for first in range(0, 40, 10):
                await memories.remember(ANN, stones(*range(first, first + 10)))

    anyio.run(fill)
    return folder


ANN = session(permissions=())


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.anyio
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(Path.unlink, id="deleted"),
        pytest.param(truncate, id="truncated"),
        pytest.param(flip, id="flipped"),
    ],
)
async def test_any_one_file_of_the_index_may_be_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, whole: Path, damage: Callable[[Path], None]
) -> None:
    files = sorted(file.relative_to(whole) for file in (whole / "index").rglob("*") if file.is_file())
    assert len(files) > 30
    lost: dict[str, list[int]] = {}
    refused: dict[str, str] = {}
    for number, file in enumerate(files):
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder)
        damage(folder / file)
        with listening("memory index checked", "checking the index was interrupted") as told:
            async with opened(folder, model=BY_CHANCE) as (memories, _):
                await memories.remember(ANN, stones(40))
                if openings(caplog)[-1][1]:  # where it was made again nothing is checked
                    with anyio.fail_after(LONG_S):
                        await told.wait()
                for _ in range(3):  # a query that hangs or dies on a damaged file says so, and is asked again
                    try:
                        missing = await all_found(memories, ANN, 41)
                        break
                    except (ChildDied, DeadlineExceeded) as exc:
                        missing = [-1]
                        refused[str(file)] = str(exc)
                if missing:
                    lost[str(file)] = missing
        shutil.rmtree(folder)
    assert lost == {}, refused


class Heard(logging.Handler):
    """Sets an event at the first record with one of these messages, or with one as a line of a child."""

    def __init__(self, what: Collection[str]) -> None:
        super().__init__()
        self.what = what
        self.event = anyio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() in self.what or record.__dict__.get("line") in self.what:
            self.event.set()


@contextmanager
def listening(*what: str) -> Iterator[anyio.Event]:
    heard = Heard(what)
    logging.getLogger("aiosd").addHandler(heard)
    try:
        yield heard.event
    finally:
        logging.getLogger("aiosd").removeHandler(heard)


@pytest.mark.anyio
async def test_a_long_rebuild_does_not_keep_callers_waiting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ann = session()
    async with opened(tmp_path) as (memories, _):
        await memories.remember(ann, stones(*range(6_000)))
    shutil.rmtree(tmp_path / "index")
    with listening("memory index caught up") as caught_up:
        async with opened(tmp_path) as (memories, _):
            await memories.recall(scope_of(ann), "stone5999x")  # whatever there is of it yet
            assert openings(caplog)[-1] == (0, True, 6_000)
            (memory_id,) = await memories.remember(ann, stones(6_000))
            assert not caught_up.is_set()
            with anyio.fail_after(LONG_S):
                await caught_up.wait()
            (found,) = await memories.recall(scope_of(ann), "stone6000x", n=1)
            assert found.memory_id == memory_id
            assert await contents(memories, scope_of(ann), "stone5999x") == ["stone5999x by the river"]


@pytest.mark.anyio
async def test_a_new_worker_waits_for_an_older_one_to_leave_the_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ann = session()
    (tmp_path / "index").mkdir()
    with (
        (tmp_path / "index" / "lock").open("w") as older,
        listening("waiting for an older worker to end") as waits,
    ):
        fcntl.flock(older, fcntl.LOCK_EX)
        async with opened(tmp_path) as (memories, _), anyio.create_task_group() as tasks:
            tasks.start_soon(memories.remember, ann, stones(0))
            with anyio.fail_after(LONG_S):
                await waits.wait()
            with anyio.move_on_after(0.5) as patience:
                await memories.recall(scope_of(ann), "stone0x")
            assert patience.cancelled_caught
            assert [file.name for file in (tmp_path / "index").iterdir()] == ["lock"]
            fcntl.flock(older, fcntl.LOCK_UN)
            assert await contents(memories, scope_of(ann), "stone0x") == ["stone0x by the river"]


@pytest.mark.anyio
async def test_the_worker_outlives_a_signal_to_the_whole_service(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ann = session()
    async with opened(tmp_path) as (memories, _):
        await memories.remember(ann, stones(0))
        os.kill(worker(caplog), signal.SIGTERM)
        await memories.remember(ann, stones(1))
        assert await all_found(memories, ann, 2) == []
    assert len(openings(caplog)) == 1


@pytest.mark.anyio
async def test_what_cannot_be_indexed_now_is_remembered_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ann = session()
    (tmp_path / "index").write_text("in the way")
    async with opened(tmp_path) as (memories, database):
        ids = await memories.remember(ann, stones(0, 1))
        assert set(await database.read(lambda c: table.fetch(c, ids, scope_of(ann)))) == set(ids)
        with pytest.raises(ChildDied, match="memory worker does not start: .*FileExistsError"):
            await memories.recall(scope_of(ann), "river")
        assert await memories.forget(memory_id=ids[0]) == 1
    (tmp_path / "index").unlink()
    async with opened(tmp_path) as (memories, _):
        assert await contents(memories, scope_of(ann), "river") == ["stone1x by the river"]


# --- whoever asks, whatever dies -----------------------------------------------------------------------

WORDS = ("tea", "rome", "key", "чай")

Step = tuple[str, int, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["remember", "remember", "recall", "forget", "kill", "together"]),
        st.integers(0, 5),
        st.integers(0, 3),
    ),
    min_size=3,
    max_size=20,
)


class House:
    """Two users with three sessions each, and what each of the sessions must be able to see."""

    def __init__(self, memories: Memories, kill_worker: Callable[[], None]) -> None:
        self.memories = memories
        self.kill_worker = kill_worker
        self.kept: dict[str, tuple[Session, str]] = {}
        house = uuid4().hex
        self.sessions = [
            session(f"{user}-{house}", permissions)
            for user in ("ann", "ben")
            for permissions in (("memory",), ("*", "!memory"), ())
        ]

    def seen_by(self, one: Session, word: str) -> set[str]:
        return {
            id
            for id, (owner, text) in self.kept.items()
            if text == word
            and owner.user_id == one.user_id
            and ("memory" in one.permissions or owner.session_id == one.session_id)
        }

    async def live(self, steps: list[Step]) -> None:
        for step, who, what in steps:
            one, word = self.sessions[who], WORDS[what]
            match step:
                case "remember":
                    await self.remember(one, word)
                case "recall":
                    assert await self.recalled(one, word) == self.seen_by(one, word)
                case "forget" if mine := self.seen_by(one, word):
                    assert await self.memories.forget(memory_id=min(mine)) == 1
                    del self.kept[min(mine)]
                case "kill":
                    self.kill_worker()
                case "together":
                    async with anyio.create_task_group() as tasks:
                        for other in self.sessions:
                            tasks.start_soon(self.remember, other, word)
                            tasks.start_soon(self.recalled, other, word)
                        self.kill_worker()
        for one in self.sessions:
            for word in WORDS:
                assert await self.recalled(one, word) == self.seen_by(one, word)

    async def remember(self, one: Session, word: str) -> None:
        (memory_id,) = await self.memories.remember(one, [NewMemory(content=f"{word} {uuid4()}")])
        self.kept[memory_id] = (one, word)

    async def recalled(self, one: Session, word: str) -> set[str]:
        found = await self.memories.recall(scope_of(one), word, n=100)
        assert {memory.user_id for memory in found} <= {one.user_id}
        if "memory" not in one.permissions:
            assert {memory.session_id for memory in found} <= {one.session_id}
        return {memory.memory_id for memory in found}


class Pids(logging.Handler):
    """The worker that was started last."""

    last = 0

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() == "child started":
            self.last = record.__dict__["pid"]

    def kill(self) -> None:
        if self.last:
            kill(self.last)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[list[Step]], None]]:
    pids = Pids()
    logger = logging.getLogger("aiosd.child")
    level = logger.level
    logger.addHandler(pids)
    logger.setLevel(logging.INFO)
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(opened(tmp_path_factory.mktemp("house"))) as (memories, _),
    ):
        yield lambda steps: portal.call(House(memories, pids.kill).live, steps)
    logger.removeHandler(pids)
    logger.setLevel(level)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_every_session_recalls_all_it_may_see_and_nothing_else_whatever_dies(
    house: Callable[[list[Step]], None], steps: list[Step]
) -> None:
    house(steps)
