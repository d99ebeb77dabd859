"""What routing rules make of the same hour: budgets missed, money spent, private work that left the machine.

Run as `python contrib/bench/simulation.py [FIRST LAST]`, in an environment that has aiosd; FIRST and LAST are seeds.
aiosd's row is decided by the very functions of the pool: choose, the queue, the estimator, the breaker. The figures in
the rules were chosen on seeds 0-9; 10-29, the default, are for reporting. The machines and their work are invented:
this ranks rules, it does not foretell a user's waiting.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import statistics
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from aiosd.errors import NoModelFits
from aiosd.models import queue
from aiosd.models.backend import ModelRequest
from aiosd.models.breaker import STALLED_S, Breaker, patience_s
from aiosd.models.estimator import Observed, Prediction, assumed, learn, predict
from aiosd.models.queue import Queue, Waiting
from aiosd.models.router import MOST_WAIT_S, Standing, choose
from aiosd.records import TaskType, Tier

HOUR_S = 3600.0
FAULT_S = 300.0
REFUSAL_S = 0.15
"""Until a 429 is back."""
CLIENT_TIMEOUT_S = 30.0
"""Of the plain rules, for a server that hangs."""
TRIES = 4
PRIVATE = 0.15
"""Of all requests."""


@dataclass
class Server:
    """A machine as it is; what the rules believe of it is another matter."""

    name: str
    slots: int
    first_s: float
    prompt_per_s: float
    output_per_s: float
    tiers: tuple[Tier, ...]
    local: bool
    jitter: float
    price_in: float = 0.0
    price_out: float = 0.0
    hangs: tuple[float, float] = (math.inf, math.inf)
    refuses: tuple[float, float] = (math.inf, math.inf)


def servers(fault: str) -> list[Server]:
    small: tuple[Tier, ...] = ("fast", "balanced")
    every: tuple[Tier, ...] = ("fast", "balanced", "capable")
    there = [
        Server("local-8b", 1, 0.15, 900, 45, small, True, 0.15),
        Server("local-32b", 1, 0.4, 300, 14, every, True, 0.15),
        Server("lan-8b", 2, 0.25, 600, 25, small, True, 0.2),
        Server("cloud", 64, 0.55, 5000, 80, every, False, 0.45, 0.5, 2.0),
    ]
    if fault in ("stall", "both"):
        there[0].hangs = (0.4 * HOUR_S, 0.4 * HOUR_S + FAULT_S)
    if fault in ("429", "both"):
        there[3].refuses = (0.6 * HOUR_S, 0.6 * HOUR_S + FAULT_S)
    return there


@dataclass(eq=False)
class Job:
    number: int
    burst: int
    arrived_s: float
    tier: Tier
    task_type: TaskType
    prompt_tokens: int
    max_tokens: int
    output_tokens: int
    budget_s: float
    private: bool
    done_s: float = math.inf
    where: str = ""
    cost_usd: float = 0.0
    tried: set[str] = field(default_factory=set)
    tries: int = 0

    @property
    def missed(self) -> bool:
        return self.done_s - self.arrived_s > self.budget_s


KINDS: tuple[tuple[Tier, TaskType, int, int, float], ...] = (
    ("fast", "reasoning", 400, 160, 5.0),
    ("balanced", "reasoning", 1500, 400, 20.0),
    ("balanced", "summarization", 5000, 250, 60.0),
    ("capable", "coding", 2500, 600, 45.0),
)
"""Tier, kind, prompt tokens, most tokens to write, budget."""
SHARES = (0.40, 0.28, 0.17, 0.15)


def work(seed: int, per_s: float) -> Iterator[Job]:
    """An hour of requests in bursts, as agents make them that fan out."""
    rng = random.Random(f"work {seed}")
    now, number = 0.0, 0
    for burst in itertools.count():
        now += rng.expovariate(per_s / 2.2)
        if now > HOUR_S:
            return
        for _ in range(1 + (rng.randint(1, 6) if rng.random() < 0.35 else 0)):
            tier, task_type, prompt, most, budget_s = rng.choices(KINDS, SHARES)[0]
            yield Job(
                number=number,
                burst=burst,
                arrived_s=now,
                tier=tier,
                task_type=task_type,
                prompt_tokens=int(prompt * rng.uniform(0.4, 1.6)),
                max_tokens=most,
                output_tokens=max(1, int(most * max(0.05, rng.betavariate(3, 2)))),
                budget_s=budget_s,
                private=rng.random() < PRIVATE,
            )
            number += 1


class Simulation:
    """The clock, and the machines. A rule is a subclass."""

    def __init__(self, seed: int, per_s: float, fault: str = "") -> None:
        self.seed = seed
        self.now = 0.0
        self.servers = {s.name: s for s in servers(fault)}
        self.jobs = list(work(seed, per_s))
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()
        for job in self.jobs:
            self.at(job.arrived_s, self.route, job)

    def at(self, when: float, do: Callable[..., None], *about: Any) -> None:
        heapq.heappush(self._events, (max(when, self.now), next(self._numbers), do, about))

    def run(self) -> list[Job]:
        while self._events:
            self.now, _, do, about = heapq.heappop(self._events)
            do(*about)
        return self.jobs

    def route(self, job: Job) -> None:
        raise NotImplementedError

    def able(self, job: Job) -> list[Server]:
        return [s for s in self.servers.values() if job.tier in s.tiers and (s.local or not job.private)]

    def times(self, server: Server, job: Job) -> tuple[float, float]:
        """Seconds to the first token and to the end: the same for a job and a server under every rule."""
        rng = random.Random(f"{self.seed} {job.number} {server.name}")
        first_s = server.first_s + job.prompt_tokens / server.prompt_per_s
        first_s *= rng.lognormvariate(0, server.jitter)
        return first_s, first_s + job.output_tokens / (server.output_per_s * rng.lognormvariate(0, 0.12))

    def refuses(self, server: Server) -> bool:
        return server.refuses[0] <= self.now < server.refuses[1]

    def hangs(self, server: Server) -> bool:
        return server.hangs[0] <= self.now < server.hangs[1]

    def finish(self, job: Job, server: Server) -> None:
        job.done_s, job.where = self.now, server.name
        job.cost_usd += (server.price_in * job.prompt_tokens + server.price_out * job.output_tokens) / 1e6


class Plain(Simulation):
    """A request goes to a server at once, and waits in the server's own queue."""

    def __init__(self, seed: int, per_s: float, fault: str = "") -> None:
        super().__init__(seed, per_s, fault)
        self.queues: dict[str, deque[Job]] = {name: deque() for name in self.servers}
        self.running: dict[str, set[Job]] = {name: set() for name in self.servers}

    def pick(self, able: list[Server]) -> Server:
        raise NotImplementedError

    def route(self, job: Job) -> None:
        able = self.able(job)
        server = self.pick([s for s in able if s.name not in job.tried] or able)
        if self.refuses(server):
            self.at(self.now + REFUSAL_S, self.failed, job, server)
        else:
            self.queues[server.name].append(job)
            self.pump(server)

    def pump(self, server: Server) -> None:
        waiting, running = self.queues[server.name], self.running[server.name]
        while waiting and len(running) < server.slots:
            job = waiting.popleft()
            running.add(job)
            if self.hangs(server):
                self.at(self.now + CLIENT_TIMEOUT_S, self.ended, job, server, False)
            else:
                self.at(self.now + self.times(server, job)[1], self.ended, job, server, True)

    def ended(self, job: Job, server: Server, answered: bool) -> None:
        self.running[server.name].discard(job)
        if answered:
            self.finish(job, server)
        else:
            self.failed(job, server)
        self.pump(server)

    def failed(self, job: Job, server: Server) -> None:
        job.tried.add(server.name)
        job.tries += 1
        if job.tries < TRIES:
            self.route(job)


class Seed(Plain):
    """The first one of the list that says it is there."""

    def pick(self, able: list[Server]) -> Server:
        return able[0]


class RoundRobin(Plain):
    turn = 0

    def pick(self, able: list[Server]) -> Server:
        self.turn += 1
        return able[self.turn % len(able)]


class LeastBusy(Plain):
    def pick(self, able: list[Server]) -> Server:
        return min(able, key=lambda s: (len(self.running[s.name]) + len(self.queues[s.name])) / s.slots)


class Aiosd(Simulation):
    """The pool's rules, with a simulated clock and simulated hands."""

    def __init__(self, seed: int, per_s: float, fault: str = "") -> None:
        super().__init__(seed, per_s, fault)
        self.learnt = {s.name: assumed(local=s.local) for s in self.servers.values()}
        self.breakers = {name: Breaker() for name in self.servers}
        self.queue = Queue()
        self.waiting: dict[int, Job] = {}
        self.jobs_by_backend: dict[str, dict[int, Waiting]] = {name: {} for name in self.servers}
        self.predicted: dict[int, Prediction] = {}
        self.alone: dict[int, bool] = {}
        for server in self.servers.values():
            self.queue.lane(server.name, server.slots)

    def route(self, job: Job) -> None:
        request = ModelRequest(
            messages=(),
            tier=job.tier,
            task_type=job.task_type,
            max_tokens=job.max_tokens,
            latency_budget_ms=int(job.budget_s * 1000),
            privacy="local" if job.private else "any",
        )
        standings = [self.standing(s, job) for s in self.servers.values()]
        try:
            choice = choose(request, standings, job.arrived_s + job.budget_s - self.now)
        except NoModelFits:
            return
        stays = not any(not s.local for s in (choice.chosen, *choice.others))
        waiting = self.add(job, choice.chosen, stays=stays)
        self.alone[waiting.number] = not choice.others
        if choice.spill is not None:
            when = queue.spill_s(job.arrived_s, job.budget_s, choice.spill.predicted, MOST_WAIT_S)
            self.at(when, self.spill, job, waiting, choice.spill)
        self.pump()

    def standing(self, server: Server, job: Job) -> Standing:
        name = server.name
        wait_s = self.queue.ahead_s(
            self.now,
            name,
            "normal",
            stays=job.private,
            arrived_s=job.arrived_s,
            deadline_s=job.arrived_s + job.budget_s,
            turn=self.queue.turns(str(job.burst)),
        )
        predicted = predict(
            self.learnt[name],
            wait_s=wait_s,
            load_s=0.0,
            prompt_tokens=job.prompt_tokens,
            max_tokens=job.max_tokens,
            task_type=job.task_type,
        )
        return Standing(
            name=name,
            kind="openai",
            model=name,
            local=server.local,
            ranks=dict.fromkeys(server.tiers, 0),
            price_in=server.price_in,
            price_out=server.price_out,
            down="tried" if name in job.tried else self.breakers[name].down(self.now),
            tried=name in job.tried,
            predicted=predicted,
            cost_usd=server.price_in * job.prompt_tokens + server.price_out * job.max_tokens,
        )

    def add(self, job: Job, chosen: Standing, *, stays: bool) -> Waiting:
        waiting = Waiting(
            number=self.queue.number(),
            backend=chosen.name,
            session_id=str(job.burst),
            stays=stays,
            arrived_s=job.arrived_s,
            deadline_s=job.arrived_s + job.budget_s,
            turn=self.queue.turns(str(job.burst)),
            work_s=chosen.predicted.work_s,
        )
        self.queue.add(waiting)
        self.waiting[waiting.number] = job
        self.jobs_by_backend[chosen.name][waiting.number] = waiting
        self.predicted[waiting.number] = chosen.predicted
        return waiting

    def leave(self, waiting: Waiting) -> Job | None:
        self.queue.leave(waiting)
        self.jobs_by_backend[waiting.backend].pop(waiting.number, None)
        return self.waiting.pop(waiting.number, None)

    def spill(self, job: Job, waiting: Waiting, to: Standing) -> None:
        if (
            waiting.number in self.jobs_by_backend[waiting.backend]
            and self.breakers[to.name].down(self.now) is None
        ):
            self.leave(waiting)
            self.alone[self.add(job, to, stays=False).number] = False
            self.pump()

    def pump(self) -> None:
        while (waiting := self.queue.start(self.now)) is not None:
            del self.jobs_by_backend[waiting.backend][waiting.number]
            self.begin(self.waiting[waiting.number], waiting)

    def begin(self, job: Job, waiting: Waiting) -> None:
        server = self.servers[waiting.backend]
        if self.refuses(server):
            self.at(self.now + REFUSAL_S, self.failed, waiting, None)
            return
        limit_s = patience_s(
            self.predicted[waiting.number],
            calls=self.learnt[server.name].calls,
            overdue=self.breakers[server.name].overdue,
            whole=False,
        )
        if self.alone[waiting.number]:
            limit_s = CLIENT_TIMEOUT_S * 10
        first_s, total_s = (math.inf, math.inf) if self.hangs(server) else self.times(server, job)
        if first_s > limit_s:
            self.at(self.now + limit_s, self.failed, waiting, STALLED_S)
        else:
            self.at(self.now + total_s, self.answered, waiting, first_s, total_s)

    def answered(self, waiting: Waiting, first_s: float, total_s: float) -> None:
        job = self.leave(waiting)
        assert job is not None
        server = self.servers[waiting.backend]
        self.finish(job, server)
        self.breakers[server.name].answered()
        seen = Observed(
            task_type=job.task_type,
            max_tokens=job.max_tokens,
            prompt_chars=4 * job.prompt_tokens,
            prompt_tokens=job.prompt_tokens,
            output_tokens=job.output_tokens,
            total_s=total_s,
            first_s=first_s,
        )
        learn(self.learnt[server.name], seen)
        self.pump()

    def failed(self, waiting: Waiting, stalled_s: float | None) -> None:
        job = self.leave(waiting)
        assert job is not None
        breaker = self.breakers[waiting.backend]
        breaker.overdue += stalled_s is not None
        breaker.failed("it failed", stalled_s or 5.0, self.now)
        job.tried.add(waiting.backend)
        self.route(job)
        # Who waited there is chosen for once more.
        for other in list(self.jobs_by_backend[waiting.backend].values()):
            moved = self.leave(other)
            assert moved is not None
            self.route(moved)
        self.pump()


RULES: dict[str, type[Simulation]] = {
    "rules seed": Seed,
    "round robin": RoundRobin,
    "least-busy": LeastBusy,
    "aiosd": Aiosd,
}
CASES = ((0.2, ""), (0.4, ""), (0.2, "429"), (0.2, "stall"), (0.2, "both"))


@dataclass
class Row:
    missed: float
    """Per cent of the requests, as are the next two."""
    missed_private: float
    failed: float
    p50_s: float
    p95_s: float
    usd_per_1000: float
    leaks: int


def row(jobs: list[Job]) -> Row:
    took = sorted(j.done_s - j.arrived_s for j in jobs if j.where)
    private = [j for j in jobs if j.private]
    return Row(
        missed=100 * statistics.mean(j.missed for j in jobs),
        missed_private=100 * statistics.mean(j.missed for j in private),
        failed=100 * statistics.mean(not j.where for j in jobs),
        p50_s=took[len(took) // 2],
        p95_s=took[int(len(took) * 0.95)],
        usd_per_1000=1000 * sum(j.cost_usd for j in jobs) / len(jobs),
        leaks=sum(j.private and j.where == "cloud" for j in jobs),
    )


def mean(rows: list[Row]) -> Row:
    return Row(*(statistics.mean(column) for column in zip(*(vars(r).values() for r in rows), strict=True)))


def main() -> None:
    first, last = (int(a) for a in sys.argv[1:3]) if len(sys.argv) > 2 else (10, 29)
    print(f"seeds {first}-{last}, an hour each")
    print("requests/s  fault  rule         missed %  of private %  failed %   p50 s   p95 s  $/1000  leaks")
    for per_s, fault in CASES:
        for name, rule in RULES.items():
            r = mean([row(rule(seed, per_s, fault).run()) for seed in range(first, last + 1)])
            print(
                f"{per_s:10} {fault or '-':>6}  {name:12} {r.missed:8.2f} {r.missed_private:13.1f}"
                f" {r.failed:9.2f} {r.p50_s:7.1f} {r.p95_s:7.1f} {r.usd_per_1000:7.3f} {r.leaks:6.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
