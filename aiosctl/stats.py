"""aiosctl stats: runs, tokens, money and misses over a time, added up from the tasks that the daemon keeps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, NamedTuple

import msgspec
import typer

from aiosctl import render
from aiosctl.client import Client
from aiosctl.options import seconds
from aiosctl.verb import connect, globals_of
from aiosd.errors import DeadlineExceeded
from aiosd.protocol.sessions import SessionList
from aiosd.protocol.tasks import TaskList
from aiosd.records import Record, Task

PAGE = 1000
WEEK_S = 7 * 86400.0


class Group(NamedTuple):
    """What tasks are added up by."""

    model: str
    agent: str


class Sum(Record, frozen=True, kw_only=True):
    """Of the tasks of one model and agent; `model` is `-` where none answered."""

    model: str
    agent: str
    runs: int = 0
    failed: int = 0
    missed: int = 0
    """Of the failed those whose deadline passed."""
    abstained: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    took_s: float = 0.0
    """From the beginning of each to its end."""


class Stats(Record, frozen=True, kw_only=True):
    since: datetime
    total: Sum
    groups: tuple[Sum, ...]
    """The most runs first."""


def stats(
    ctx: typer.Context,
    since: Annotated[
        float | None,
        typer.Option("--since", parser=seconds, metavar="TIME", help="How far back: 12h, 30m; else 7d."),
    ] = None,
) -> None:
    """Add up runs, tokens, money and misses by model and agent.

    \b
    aiosctl stats --since 7d
    aiosctl stats --since 24h --json | jq .total.cost_usd
    """
    begin = datetime.now(UTC) - timedelta(seconds=WEEK_S if since is None else since)
    with connect(ctx) as client:
        agents = dict(_agents(client))
        found = added(_since(client, begin), agents, begin)
    if globals_of(ctx).json:
        render.document(msgspec.json.encode(found))
        return
    render.table(
        ["model", "agent", "runs", "failed", "missed", "abstained", "tokens in", "out", "usd", "mean s"],
        [_row(each) for each in (*found.groups, found.total)],
    )


def added(tasks: Iterable[Task], agents: Mapping[str, str], since: datetime) -> Stats:
    """Sums of the tasks created from `since` on; `agents` by the ids of sessions."""
    groups: dict[Group, Sum] = {}
    total = Sum(model="all", agent="all")
    for task in tasks:
        if task.created_at >= since:
            model = (task.result and (task.result.model or task.result.backend)) or "-"
            group = Group(model, agents.get(task.session_id, "-"))
            groups[group] = _plus(groups.get(group, Sum(model=group.model, agent=group.agent)), task)
            total = _plus(total, task)
    ranked = sorted(groups.values(), key=lambda each: (-each.runs, each.model, each.agent))
    return Stats(since=since, total=total, groups=tuple(ranked))


def _plus(sum: Sum, task: Task) -> Sum:
    took = (task.ended_at - task.started_at).total_seconds() if task.ended_at and task.started_at else 0.0
    missed = task.error is not None and task.error.get("code") == DeadlineExceeded.code
    result = task.result
    return msgspec.structs.replace(
        sum,
        runs=sum.runs + 1,
        failed=sum.failed + (task.state == "failed"),
        missed=sum.missed + missed,
        abstained=sum.abstained + (result is not None and result.abstained),
        input_tokens=sum.input_tokens + (result.usage.input_tokens if result else 0),
        output_tokens=sum.output_tokens + (result.usage.output_tokens if result else 0),
        cost_usd=sum.cost_usd + task.cost_usd,
        took_s=sum.took_s + took,
    )


def _row(each: Sum) -> tuple[render.Cell, ...]:
    return (
        *(each.model, each.agent, each.runs, each.failed, each.missed, each.abstained),
        *(each.input_tokens, each.output_tokens, round(each.cost_usd, 6)),
        f"{each.took_s / each.runs:.2f}" if each.runs else None,
    )


def _since(client: Client, begin: datetime) -> Iterator[Task]:
    """The newest first, so that the first older one ends it."""
    cursor = None
    while True:
        page = client.call(TaskList(limit=PAGE, cursor=cursor))
        for task in page.tasks:
            if task.created_at < begin:
                return
            yield task
        if (cursor := page.next_cursor) is None:
            return


def _agents(client: Client) -> Iterator[tuple[str, str]]:
    cursor = None
    while True:
        page = client.call(SessionList(limit=PAGE, cursor=cursor))
        yield from ((each.session_id, each.agent) for each in page.sessions if each.agent)
        if (cursor := page.next_cursor) is None:
            return
