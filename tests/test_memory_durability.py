"""What was acknowledged is there, whatever ends when: the proof that takes minutes."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import pytest

from aiosctl.client import Client
from aiosd.errors import AiosError
from aiosd.protocol.memory import MemoryExport, MemoryRecall, MemoryRemember
from tests.daemon import Daemon

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

CONFIG = '[memory]\nembedder = "none"\n'
KILLS = 100
CUTS = 10
SYLLABLES = ("ba", "du", "fo", "ka", "lu", "mo", "no", "pa", "ru", "to", "vo", "zu")
WORDS = tuple(map("".join, itertools.product(SYLLABLES, repeat=3)))
"""So many that few memories share one: of more equally good ones than are looked at, the engine takes what it likes."""


class Writer:
    """Remembers one memory after the other, and knows which were acknowledged."""

    def __init__(self, daemon: Daemon, session_id: str) -> None:
        self.daemon = daemon
        self.session_id = session_id
        self.acknowledged: dict[str, str] = {}
        self.given: set[str] = set()
        self.count = threading.Semaphore(0)

    def write(self) -> None:
        """Until the daemon ends."""
        with suppress(AiosError), Client(self.daemon.socket) as client:
            while True:
                text = f"{random.choice(WORDS)} {random.choice(WORDS)} {uuid4().hex}"
                self.given.add(text)
                done = client.call(MemoryRemember(session_id=self.session_id, content=text))
                assert done.memory_id is not None
                self.acknowledged[done.memory_id] = text
                self.count.release()


def worker_of(daemon: Daemon) -> int | None:
    assert daemon.process is not None
    pid = daemon.process.pid
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with suppress(OSError):
            if b"aiosd.memory.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
    return None


def kept(daemon: Daemon) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    cursor = None
    while True:
        page = daemon.call(MemoryExport(cursor=cursor))
        found += [(memory.memory_id, memory.content) for memory in page.memories]
        if (cursor := page.next_cursor) is None:
            return found


def recalls(daemon: Daemon, session_id: str, queries: list[str]) -> list[list[tuple[str, float]]]:
    found = [
        daemon.call(MemoryRecall(session_id=session_id, query=query, n=20)).memories for query in queries
    ]
    return [[(memory.memory_id, round(memory.score, 4)) for memory in memories] for memories in found]


def caught_up(daemon: Daemon, session_id: str, there: list[tuple[str, str]]) -> None:
    """Returns once recall finds the last that was added: the index is filled in order, a long way behind the answers."""
    newest = there[-1][1]  # an export is in the order they were added
    deadline = time.monotonic() + 120
    while not daemon.call(MemoryRecall(session_id=session_id, query=newest.split()[2])).memories:
        assert time.monotonic() < deadline


QUERIES = 12


def checked(daemon: Daemon, writer: Writer) -> None:
    """Starts it again: nothing acknowledged is lost, nothing is there twice, and recall is what a fresh index gives."""
    fresh = Daemon(daemon.home.with_name(f"{daemon.home.name}-fresh"), CONFIG)
    shutil.copytree(daemon.home / "data", fresh.home / "data", ignore=shutil.ignore_patterns("index"))
    daemon.start()
    there = kept(daemon)
    assert writer.acknowledged.items() <= dict(there).items()
    assert len(there) == len({text for _, text in there})
    assert {text for _, text in there} <= writer.given
    texts = random.sample([text for _, text in there], min(QUERIES, len(there)))
    queries = [text.split()[2] for text in texts] + [" ".join(text.split()[:2]) for text in texts]
    caught_up(daemon, writer.session_id, there)
    after = recalls(daemon, writer.session_id, queries)
    assert all(after)
    with fresh:
        caught_up(fresh, writer.session_id, there)
        assert recalls(fresh, writer.session_id, queries) == after
    shutil.rmtree(fresh.home)


def test_a_hundred_kills_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    with Daemon(tmp_path / "home", CONFIG) as daemon:
        writer = Writer(daemon, daemon.session().session_id)
        for number in range(KILLS):
            with writing(writer):
                if number % 2 and (worker := worker_of(daemon)) is not None:
                    os.kill(worker, signal.SIGKILL)
                    for _ in range(random.randrange(1, 20)):  # the daemon goes on without it
                        assert writer.count.acquire(timeout=60)
                daemon.kill()
            checked(daemon, writer)


@contextmanager
def writing(writer: Writer) -> Iterator[None]:
    """Three at once, which are in the middle of it within, and have heard of the daemon's end after."""
    threads = [threading.Thread(target=writer.write) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(random.randrange(1, 40)):
            assert writer.count.acquire(timeout=60)
        yield
    finally:
        writer.daemon.kill()
        for thread in threads:
            thread.join(60)


# --- a power cut ---------------------------------------------------------------------------------------

SYNCED = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* After each sync of a file below SYNCED_FROM, what it holds is copied below SYNCED_TO: what a power cut would leave. */
static void keep(int fd) {
    const char *from = getenv("SYNCED_FROM"), *to = getenv("SYNCED_TO");
    char link[64], path[4096], copy[8192], half[8300], buffer[65536];
    struct stat st;
    if (!from || !to || fstat(fd, &st) || !S_ISREG(st.st_mode)) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return;
    path[n] = 0;
    if (strncmp(path, from, strlen(from))) return;
    snprintf(copy, sizeof copy, "%s%s", to, path + strlen(from));
    for (char *p = copy + strlen(to) + 1; (p = strchr(p, '/')); p++) { *p = 0; mkdir(copy, 0700); *p = '/'; }
    snprintf(half, sizeof half, "%s.half-%d", copy, getpid());
    int out = open(half, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (out < 0) return;
    off_t at = 0;
    while ((n = pread(fd, buffer, sizeof buffer, at)) > 0) { if (write(out, buffer, n) != n) break; at += n; }
    close(out);
    rename(half, copy);
}

int fsync(int fd) {
    int done = ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
    keep(fd);
    return done;
}

int fdatasync(int fd) {
    int done = ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(fd);
    keep(fd);
    return done;
}
"""


@pytest.fixture(scope="module")
def preload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("there is no C compiler to watch what is synced")
    folder = tmp_path_factory.mktemp("preload")
    (folder / "synced.c").write_text(SYNCED)
    library = folder / "synced.so"
    argv = [compiler, "-shared", "-fPIC", "-o", str(library), str(folder / "synced.c"), "-ldl"]
    subprocess.run(argv, check=True)
    return library


def test_a_power_cut_loses_nothing_that_was_acknowledged(tmp_path: Path, preload: Path) -> None:
    with Daemon(tmp_path / "0", CONFIG) as daemon:
        writer = Writer(daemon, daemon.session().session_id)
        daemon.stop()
    for number in range(CUTS):
        home, left = tmp_path / str(number), tmp_path / str(number + 1)
        shutil.copytree(home, left, ignore=shutil.ignore_patterns("run"))  # all of it is on the disk by now
        environ = {"LD_PRELOAD": str(preload), "SYNCED_FROM": str(home), "SYNCED_TO": str(left)}
        with Daemon(home, CONFIG, environ) as writer.daemon, writing(writer):
            for _ in range(random.randrange(1, 400)):
                assert writer.count.acquire(timeout=60)
            writer.daemon.kill()
        what_is_left = Daemon(left, CONFIG)
        try:
            checked(what_is_left, writer)
            what_is_left.stop()
        finally:
            what_is_left.kill()
