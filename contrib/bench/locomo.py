"""How well memory finds what answers a question: evidence recall on LoCoMo, through a real daemon.

Run as `python contrib/bench/locomo.py PATH [--turns] [EMBEDDER...]`, in an environment that has aiosd. PATH is a JSON file of conversations
made from github.com/snap-research/locomo, whose licence (CC BY-NC 4.0) keeps it out of this repository:
`{id: {"turns": [{id, session, date, speaker, text}], "questions": [{q, category, evidence: [turn id]}]}}`.

Each turn is one memory, each question one recall. R@k is the share of a question's evidence among the first k, nDCG
that of the order, both averaged over the questions of categories 1 to 4 (5 is adversarial). A row for every
conversation as a user of its own, their mean, and all conversations as one user; then the same asked by a fresh
session, after a run in each of the others and their end, which consolidates them. With the weights of the embedder, and without. On the way: texts remembered a second, milliseconds a recall, and MB of the daemon and its worker.

With --turns the conversations are held instead: what one of the two says is a task, what the other answers a model's reply
(from a double of Ollama). Their sessions are closed, which consolidates them, and a fresh session of the same user asks. A
turn is found by the memory of its run, of which each says two turns, or by a summary that has its words; once with all of
them, and once with those of runs alone. What it lacks beside notes are dates and speakers.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from anyio.from_thread import start_blocking_portal

sys.path.insert(0, str(Path(__file__).parents[2]))

from aiosctl.client import Client
from aiosd.protocol.memory import MemoryRecall, MemoryRemember, NewMemory
from aiosd.protocol.sessions import SessionClose, SessionCreate, SessionRun
from aiosd.protocol.system import SystemInfo
from contrib.bench.idle import rss_mb
from tests.daemon import Daemon
from tests.doubles.http_double import Script
from tests.doubles.ollama_double import OllamaDouble

Row = tuple[float, float, float]
"""R@5, R@10, nDCG@10."""

BATCH = 100
"""Memories in one call."""

NAMED = 20
"""Memories asked for."""


class Told:
    """One user's conversations, remembered."""

    def __init__(self, client: Client, user: str, conversations: dict[str, Any]) -> None:
        self.client = client
        self.user = user
        self.turn_of: dict[str, tuple[str, str]] = {}
        """By memory id: conversation and turn."""
        self.recall_s: list[float] = []
        self.sessions: list[str] = []
        self.speaker = next(iter(conversations.values()))["turns"][0]["speaker"]
        for name, conversation in conversations.items():
            for turns in _sessions(conversation["turns"]):
                session = client.call(SessionCreate(user_id=user, permissions=("memory",)))
                self.sessions.append(session.session_id)
                for start in range(0, len(turns), BATCH):
                    batch = turns[start : start + BATCH]
                    done = client.call(
                        MemoryRemember(
                            session_id=session.session_id, memories=tuple(_memory(turn) for turn in batch)
                        )
                    )
                    for memory_id, turn in zip(done.memory_ids or (), batch, strict=True):
                        self.turn_of[memory_id] = name, turn["id"]

    def close(self) -> None:
        """Runs a task in every session, for its turns to be consolidated, and closes it."""
        for session in self.sessions:
            task = f"What did {self.speaker} say about the plans?"
            self.client.call(SessionRun(session_id=session, task=task, backend="extractive"), timeout_s=None)
            self.client.call(SessionClose(session_id=session))

    def ask(self, name: str, question: dict[str, Any], session_id: str | None = None) -> Row:
        started = time.perf_counter()
        user_id = self.user if session_id is None else None
        asked = MemoryRecall(query=question["q"], user_id=user_id, session_id=session_id, n=NAMED)
        found = self.client.call(asked).memories
        self.recall_s.append(time.perf_counter() - started)
        wanted = {(name, turn) for turn in question["evidence"]}
        hits = [self.turn_of.get(memory.memory_id) in wanted for memory in found]
        gains = [1 / math.log2(place + 2) for place in range(10)]
        gained = sum(gain for gain, hit in zip(gains, hits, strict=False) if hit)
        return (
            sum(hits[:5]) / len(wanted),
            sum(hits[:10]) / len(wanted),
            gained / sum(gains[: len(wanted)]),
        )


def _sessions(turns: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    by_session: dict[int, list[dict[str, Any]]] = {}
    for turn in turns:
        by_session.setdefault(turn["session"], []).append(turn)
    yield from by_session.values()


def _memory(turn: dict[str, Any]) -> NewMemory:
    when = datetime.strptime(turn["date"], "%I:%M %p on %d %B, %Y").replace(tzinfo=UTC)
    return NewMemory(content=turn["text"], speaker=turn["speaker"], created_at=when)


def _questions(conversation: dict[str, Any]) -> list[dict[str, Any]]:
    return [q for q in conversation["questions"] if q["category"] != 5]


def _mean(rows: list[Row]) -> Row:
    r5, r10, ndcg = (statistics.mean(column) for column in zip(*rows, strict=True))
    return r5, r10, ndcg


def _print(what: str, row: Row, more: str = "") -> None:
    print("{:24} {:6.3f} {:6.3f} {:8.3f}".format(what, *row), more, flush=True)


def hold(client: Client, double: OllamaDouble, user: str, turns: list[dict[str, Any]]) -> dict[str, str]:
    """The conversation in runs, two turns each, in a session for each of its own, which is closed after them. What was
    said in each run, by the source of its memory."""
    runs: dict[str, str] = {}
    for said in _sessions(turns):
        session = client.call(SessionCreate(user_id=user, permissions=("memory",))).session_id
        for first in range(0, len(said), 2):
            task, reply = (_line(turn) for turn in (said[first], said[min(first + 1, len(said) - 1)]))
            double.script = Script(text=(reply,))
            run = SessionRun(session_id=session, task=task, backend="near", tools=())
            done = client.call(run, timeout_s=None)
            runs[f"task:{done.task_id}"] = f"{task} {reply}"
        client.call(SessionClose(session_id=session))
    return runs


def _line(turn: dict[str, Any]) -> str:
    return f"{turn['speaker']}: {' '.join(turn['text'].split())}"


def _of_turns(found: list[str], evidence: list[str]) -> Row:
    """By the words of what was found; a turn counts where it is found first."""
    left = set(evidence)
    hits = []
    for text in found[:10]:
        here = {turn for turn in left if turn in text}
        left -= here
        hits.append(len(here))
    gains = [1 / math.log2(place + 2) for place in range(10)]
    gained = sum(gain for gain, hit in zip(gains, hits, strict=False) if hit)
    places = sum(map(bool, hits)) or 1
    return sum(hits[:5]) / len(evidence), sum(hits) / len(evidence), gained / sum(gains[:places])


def measure_turns(data: dict[str, Any], embedder: str) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(OllamaDouble()) as double,
    ):
        config = (
            f'[memory]\nembedder = "{embedder}"\n[models.tiers]\nfast = ["extractive"]\n'
            f'[models.backends.near]\nkind = "ollama"\nmodel = "small"\nurl = "{double.url}"\n'
        )
        with Daemon(Path(folder) / "home", config=config) as daemon, Client(daemon.socket) as client:
            rows: dict[str, list[Row]] = {"runs and summaries": [], "runs alone": []}
            for name, conversation in data.items():
                asked_before = len(rows["runs alone"])
                runs = hold(client, double, name, conversation["turns"])
                line_of = {turn["id"]: _line(turn) for turn in conversation["turns"]}
                fresh = client.call(SessionCreate(user_id=name, permissions=("memory",))).session_id
                for question in _questions(conversation):
                    asked = MemoryRecall(query=question["q"], session_id=fresh, n=NAMED)
                    found = client.call(asked).memories
                    evidence = [line_of[turn] for turn in question["evidence"]]
                    for what, kinds in (
                        ("runs and summaries", ("task", "summary")),
                        ("runs alone", ("task",)),
                    ):
                        texts = [
                            runs.get(m.source, " ".join(m.content.split())) for m in found if m.kind in kinds
                        ]
                        rows[what].append(_of_turns(texts, evidence))
                _print(name, _mean(rows["runs and summaries"][asked_before:]))
            for what, own in rows.items():
                _print(what, _mean(own))


def measure(data: dict[str, Any], embedder: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        daemon = Daemon(Path(folder) / "home", config=f'[memory]\nembedder = "{embedder}"\n')
        with daemon, Client(daemon.socket) as client:
            rows: list[Row] = []
            for name, conversation in data.items():
                told = Told(client, name, {name: conversation})
                own = [told.ask(name, question) for question in _questions(conversation)]
                _print(name, _mean(own))
                rows += own
            _print("each its own user", _mean(rows))
            started = time.perf_counter()
            told = Told(client, "all", data)
            took_s = time.perf_counter() - started
            rows = [
                told.ask(name, q) for name, conversation in data.items() for q in _questions(conversation)
            ]
            recall_ms = statistics.median(told.recall_s) * 1e3
            _print("all one user", _mean(rows), f"recall p50 {recall_ms:.1f} ms")
            told.close()
            fresh = client.call(SessionCreate(user_id="all", permissions=("memory",))).session_id
            rows = [
                told.ask(name, q, fresh)
                for name, conversation in data.items()
                for q in _questions(conversation)
            ]
            _print("from a fresh session", _mean(rows))
            assert daemon.process is not None
            pid = daemon.process.pid
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            print(
                f"embedder {client.call(SystemInfo()).embedder}: {len(told.turn_of) / took_s:.0f} texts/s"
                f" remembered, daemon {rss_mb(pid):.0f} MB, worker {sum(rss_mb(int(c)) for c in children):.0f} MB"
            )


def main() -> None:
    data = json.loads(Path(sys.argv[1]).read_text())
    embedders = [each for each in sys.argv[2:] if each != "--turns"]
    for embedder in embedders or ("none", "minilm"):
        print(f"{'embedder ' + embedder:24} {'R@5':>6} {'R@10':>6} {'nDCG@10':>8}")
        (measure_turns if "--turns" in sys.argv else measure)(data, embedder)


if __name__ == "__main__":
    main()
