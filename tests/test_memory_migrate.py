"""Migrating the index of memories to a Qdrant server: through the real daemon, against a double of the server."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import anyio.to_thread
import pytest

from aiosd.errors import InvalidParams, InvalidState, Overloaded, PermissionDenied
from aiosd.memory.remote import Server
from aiosd.protocol.memory import MemoryForget, MemoryMigrate, MemoryRecall, MemoryRemember, NewMemory
from aiosd.protocol.tasks import TaskWait
from aiosd.records import Session, Task
from tests.daemon import Daemon
from tests.doubles.qdrant_double import QdrantDouble, puts

pytestmark = pytest.mark.anyio

LONG_S = 60.0

KEY = "qdrant-key-0123456789"

CONFIG = '[memory]\nembedder = "none"\n'


def remember(daemon: Daemon, session: Session, *contents: str) -> tuple[str, ...]:
    new = tuple(NewMemory(content=content) for content in contents)
    return daemon.call(MemoryRemember(session_id=session.session_id, memories=new)).memory_ids or ()


def stones(n: int) -> tuple[str, ...]:
    return tuple(f"stone{i}x by the river" for i in range(n))


def first(daemon: Daemon, session: Session, query: str) -> str:
    found = daemon.call(MemoryRecall(session_id=session.session_id, query=query, n=1)).memories
    return found[0].content if found else ""


def wait(daemon: Daemon, task: Task) -> str:
    return str(daemon.call(TaskWait(task_id=task.task_id, timeout_s=LONG_S)).result)


async def live(test: Callable[[], None]) -> None:
    """Runs a test that waits beside the double, which is in the event loop of this thread."""
    await anyio.to_thread.run_sync(test)


async def test_the_index_moves_to_a_server_and_what_is_private_stays(tmp_path: Path) -> None:
    async with QdrantDouble() as server:

        def moves() -> None:
            with Daemon(tmp_path, CONFIG) as daemon:
                ann, secret = daemon.session(), daemon.session(privacy="local")
                ids = remember(daemon, ann, *stones(150))
                (hidden,) = remember(daemon, secret, "the canary sings in the mine")
                done = daemon.ctl("memory", "migrate", server.url)
                assert done.returncode == 0, done.stderr
                assert done.stdout == "indexed 150 memories, 20 recalls compared, 100% found alike\n"
                line = f'qdrant_url = "{server.url}"'
                assert line in done.stderr and str(tmp_path / "config.toml") in done.stderr
                assert server.ids() == set(ids)
                asked = len(server.seen)
                assert first(daemon, ann, "stone7x") == "stone7x by the river"
                assert len(server.seen) == asked, "the index in use is still the one here"
                assert daemon.call(MemoryForget(memory_id=ids[3])).forgotten == 1
                daemon.stop()
                (tmp_path / "config.toml").write_text(f"{CONFIG}{line}\n")
                daemon.start()
                assert first(daemon, ann, "stone7x") == "stone7x by the river"
                assert len(server.seen) > asked
                assert server.ids() == {*ids} - {ids[3]}, "what was forgotten in between is not there"
                assert first(daemon, secret, "the canary") == "the canary sings in the mine"
                with pytest.raises(InvalidState, match="already"):
                    daemon.call(MemoryMigrate(qdrant_url=f"{server.url}/"))
            assert not [seen for seen in server.seen if hidden in str(seen.body) + seen.path]
            assert not [seen for seen in server.seen if "river" in str(seen.body)], "no text goes out"

        await live(moves)


async def test_a_migration_that_a_kill_broke_off_goes_on_where_it_was(tmp_path: Path) -> None:
    async with QdrantDouble() as server:
        server.holds = lambda seen: puts(seen) and len(server.ids()) >= 128

        def kills() -> None:
            with Daemon(tmp_path, CONFIG) as daemon:
                ann = daemon.session()
                ids = remember(daemon, ann, *stones(2_300))
                task = daemon.call(MemoryMigrate(qdrant_url=server.url))
                assert server.held.wait(LONG_S)
                assert daemon.call(MemoryMigrate(qdrant_url=server.url)).task_id == task.task_id
                assert first(daemon, ann, "stone2200x") == "stone2200x by the river"
                late = remember(daemon, ann, "a late stone")
                daemon.kill()
                before = len(server.seen)
                assert 128 <= len(server.ids()) < 2_300
                anyio.from_thread.run_sync(server.go.set)
                daemon.start()
                assert wait(daemon, task).startswith("2301 memories, 20 recalls compared")
                assert server.ids() == {*ids, *late}
                again = [
                    point["id"]
                    for seen in server.seen[before:]
                    if puts(seen)
                    for point in seen.body["points"]
                ]
                assert len(again) < 2_301 and len(set(again)) == len(again)

        await live(kills)


async def test_a_server_that_dies_midway_fails_the_task_and_the_next_call_goes_on(tmp_path: Path) -> None:
    async with QdrantDouble() as server:
        server.cuts = lambda seen: len(server.ids()) >= 64

        def dies() -> None:
            with Daemon(tmp_path, CONFIG) as daemon:
                ann = daemon.session()
                ids = remember(daemon, ann, *stones(2_200))
                task = daemon.call(MemoryMigrate(qdrant_url=server.url))
                with pytest.raises(Overloaded, match=f"{server.url} does not answer") as raised:
                    wait(daemon, task)
                assert raised.value.hint and server.url in raised.value.hint
                assert (tmp_path / "config.toml").read_text() == CONFIG
                assert first(daemon, ann, "stone7x") == "stone7x by the river"
                server.cuts = lambda seen: False
                done = daemon.ctl("memory", "migrate", server.url)
                assert (done.returncode, done.stdout[:21]) == (0, "indexed 2200 memories"), done.stderr
                assert server.ids() == set(ids)

        await live(dies)


async def test_a_server_that_finds_something_else_is_not_said_to_be_ready(tmp_path: Path) -> None:
    async with QdrantDouble() as server:
        answer = server.other

        def finds_nothing(seen: object) -> object:
            status, body = answer(seen)  # type: ignore[arg-type]
            if getattr(seen, "path", "").endswith("/query/batch"):
                body["result"] = [{"points": []} for _ in body["result"]]
            return status, body

        server.other = finds_nothing  # type: ignore[assignment, method-assign]

        def fails() -> None:
            with Daemon(tmp_path, CONFIG) as daemon:
                remember(daemon, daemon.session(), *stones(30))
                done = daemon.ctl("memory", "migrate", server.url)
                assert (done.returncode, done.stdout) == (1, "")
                assert "finds 0% of what is found here, in 20 recalls: it is not to be used" in done.stderr

        await live(fails)


@pytest.mark.parametrize("where", ["environment", "file", "credential"])
async def test_the_key_of_the_server_is_sent_from_where_the_config_says(tmp_path: Path, where: str) -> None:
    file = tmp_path / "the-key" / "QDRANT_KEY"
    file.parent.mkdir()
    file.write_text(f"{KEY}\n")
    named = f'key_file = "{file}"' if where == "file" else 'key_env = "QDRANT_KEY"'
    environ = {
        "environment": {"QDRANT_KEY": KEY},
        "file": {},
        "credential": {"CREDENTIALS_DIRECTORY": str(file.parent)},
    }[where]
    async with QdrantDouble(key=KEY) as server:

        def asks() -> None:
            config = f'{CONFIG}{named}\nqdrant_url = "{server.url}"\n'
            with Daemon(tmp_path / "home", config, environ) as daemon:
                ann = daemon.session()
                (kept,) = remember(daemon, ann, "stone1x")
                assert first(daemon, ann, "stone1x") == "stone1x"
                assert server.ids() == {kept}
                assert KEY not in daemon.log.read_text()
            assert {seen.headers.get("api-key") for seen in server.seen} == {KEY}

        await live(asks)


async def test_a_server_that_asks_for_a_key_says_so_and_takes_one_once_the_config_names_it(
    tmp_path: Path,
) -> None:
    async with QdrantDouble(key=KEY) as server:

        def refused() -> None:
            with Daemon(tmp_path, CONFIG, {"QDRANT_KEY": "wrong-key-0123456789"}) as daemon:
                remember(daemon, daemon.session(), *stones(5))
                done = daemon.ctl("memory", "migrate", server.url)
                assert done.returncode == PermissionDenied.exit_status
                assert f"{server.url} refused to answer without a key" in done.stderr
                assert "try: aiosctl config edit" in done.stderr
                (tmp_path / "config.toml").write_text(f'{CONFIG}key_env = "QDRANT_KEY"\n')
                assert daemon.ctl("reload").returncode == 0
                done = daemon.ctl("memory", "migrate", server.url)
                assert done.returncode == PermissionDenied.exit_status
                assert "refused the key in $QDRANT_KEY" in done.stderr
                (tmp_path / "key").write_text(KEY)
                (tmp_path / "config.toml").write_text(f'{CONFIG}key_file = "{tmp_path / "key"}"\n')
                assert daemon.ctl("reload").returncode == 0
                assert daemon.ctl("memory", "migrate", server.url).returncode == 0
                assert len(server.ids()) == 5

        await live(refused)


def certificate(folder: Path) -> ssl.SSLContext:
    """Of a server on this machine, which vouches for itself: it is in ca.pem there."""
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    made += ["-subj", "/CN=aiosd", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    key, pem = folder / "key.pem", folder / "ca.pem"
    subprocess.run([*made, "-keyout", key, "-out", pem], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem, key)
    return context


async def test_a_certificate_that_nobody_knows_is_refused_until_the_config_names_who_does(
    tmp_path: Path,
) -> None:
    server = QdrantDouble()
    server.tls = certificate(tmp_path)
    async with server:

        def refused() -> None:
            with Daemon(tmp_path / "home", CONFIG) as daemon:
                ann = daemon.session()
                remember(daemon, ann, *stones(5))
                done = daemon.ctl("memory", "migrate", server.url)
                assert done.returncode == PermissionDenied.exit_status, done.stderr
                assert f"nobody known vouches for the memory server {server.url}" in done.stderr
                assert "memory.ca_file" in done.stderr and server.seen == []
                file = tmp_path / "home" / "config.toml"
                file.write_text(f'{CONFIG}ca_file = "{tmp_path / "no.pem"}"\n')
                assert daemon.ctl("reload").returncode == 0
                done = daemon.ctl("memory", "migrate", server.url)
                assert done.returncode == 1 and "no.pem: No such file" in done.stderr
                file.write_text(f'{CONFIG}ca_file = "{tmp_path / "ca.pem"}"\n')
                assert daemon.ctl("reload").returncode == 0
                done = daemon.ctl("memory", "migrate", server.url)
                assert (done.returncode, done.stdout[:18]) == (0, "indexed 5 memories"), done.stderr

        await live(refused)


class Status(Exception):
    """As qdrant_client's, which has the status of the answer."""

    def __init__(self, status_code: int) -> None:
        super().__init__(f"Unexpected Response: {status_code}")
        self.status_code = status_code


@pytest.mark.parametrize(
    ("exc", "key", "code", "said"),
    [
        (Status(401), None, -32003, "memory.key_env"),
        (Status(403), "$KEY", -32003, "refused the key in $KEY"),
        (Status(500), "$KEY", -32001, "does not answer: Unexpected Response: 500"),
        (OSError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed"), None, -32003, "memory.ca_file"),
        (ConnectionRefusedError("refused"), None, -32001, "does not answer: refused"),
        (TimeoutError(), None, -32001, "does not answer: TimeoutError"),
        (OSError("x" * 10_000), None, -32001, "x" * 200),
    ],
)
def test_what_went_wrong_at_a_server_is_said_with_what_mends_it(
    exc: Exception, key: str | None, code: int, said: str
) -> None:
    wire = Server("http://q", "c", lambda: None, key).failure(exc).to_wire()  # type: ignore[arg-type, return-value]
    assert wire["code"] == code and said in wire["message"] and wire["data"]["hint"]
    assert len(wire["message"]) < 500


def test_what_is_no_address_is_refused(daemon: Daemon) -> None:
    with pytest.raises(InvalidParams, match="qdrant_url"):
        daemon.call(MemoryMigrate(qdrant_url="qdrant.example:6333"))
