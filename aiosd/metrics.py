"""What is counted and what there is now, as Prometheus reads it: text exposition format 0.0.4."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from aiosd import tally

if TYPE_CHECKING:
    from prometheus_client.core import Metric

PAGE, TICKS = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")


class Gauge(msgspec.Struct, frozen=True):
    """Something measured at this moment, by the values of its labels."""

    name: str
    help: str
    labels: tuple[str, ...]
    values: Sequence[tuple[tuple[str, ...], float]]


def text(gauges: Iterable[Gauge]) -> str:
    """Everything that was counted since the start, and these."""
    from prometheus_client import CollectorRegistry, generate_latest  # late: 90 ms, and few ask

    registry = CollectorRegistry()
    registry.register(_Now([*gauges, *processes(), *caches()]))
    return generate_latest(registry).decode()


class _Now:
    def __init__(self, gauges: Sequence[Gauge]) -> None:
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        for counter in tally.COUNTERS:
            family = CounterMetricFamily(counter.name, counter.help, labels=counter.labels)
            for values, number in counter.values.items():
                family.add_metric(values, number)
            yield family
        for durations in tally.DURATIONS:
            histogram = HistogramMetricFamily(durations.name, durations.help, labels=durations.labels)
            for values, counts in durations.buckets.items():
                histogram.add_metric(values, list(_cumulated(counts)), durations.sums[values])
            yield histogram
        for each in self._gauges:
            gauge = GaugeMetricFamily(each.name, each.help, labels=each.labels)
            for values, number in each.values:
                gauge.add_metric(values, number)
            yield gauge


def _cumulated(counts: Sequence[int]) -> Iterator[tuple[str, int]]:
    total = 0
    for bound, count in zip((*tally.BOUNDS, float("inf")), counts, strict=True):
        total += count
        yield ("+Inf" if bound == float("inf") else str(bound)), total


def processes() -> Iterator[Gauge]:
    """The daemon and each of its children: proc(5). One that ends while it is looked at is left out."""
    memory, cpu = [], []
    for pid in (os.getpid(), *_children(os.getpid())):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        name = "aiosd" if pid == os.getpid() else _program(words)
        memory.append(((name, str(pid)), float(int(stat[21]) * PAGE)))
        cpu.append(((name, str(pid)), (int(stat[11]) + int(stat[12])) / TICKS))
    labels = ("process", "pid")
    yield Gauge("aiosd_process_resident_bytes", "Memory of the daemon and its children.", labels, memory)
    yield Gauge("aiosd_process_cpu_seconds", "CPU time of the daemon and its children.", labels, cpu)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        found += map(int, listing.read_text().split())
    return found


def _program(argv: Sequence[bytes]) -> str:
    """The module of `python -m MODULE`, otherwise the name of the program."""
    words = [word.decode(errors="replace") for word in argv if word]
    if "-m" in words[:-1]:
        return words[words.index("-m") + 1]
    return Path(words[0]).name if words else "?"


def caches() -> Iterator[Gauge]:
    """Every functools cache of ours that is loaded."""
    hits, misses, sizes = [], [], []
    for module in [m for name, m in sys.modules.items() if name.startswith("aiosd.") and m is not None]:
        for name, found in vars(module).items():
            if callable(info := getattr(found, "cache_info", None)) and found.__module__ == module.__name__:
                label = (f"{module.__name__.removeprefix('aiosd.')}.{name}",)
                now = info()
                hits.append((label, float(now.hits)))
                misses.append((label, float(now.misses)))
                sizes.append((label, float(now.currsize)))
    yield Gauge("aiosd_cache_hits", "Answers out of a cache.", ("cache",), hits)
    yield Gauge("aiosd_cache_misses", "Answers that had to be made.", ("cache",), misses)
    yield Gauge("aiosd_cache_entries", "Entries of a cache.", ("cache",), sizes)
