"""The counters of one cache at one moment, for reading."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from jmcache.monitoring._metrics import without_many
from jmcache.outcome import Outcome

# (operation, outcome, reason, bits of the latency in whole microseconds)
Slot = tuple[str, Outcome, str, int]
UNTIMED = -1  # in place of the bits: counted, its call's latency is in another slot


@dataclass(frozen=True, slots=True)
class LatencySummary:
    """How long one kind of operation took, whatever its outcome.

    Attributes:
        count: Calls measured; a bundle such as get_many is one.
        p50_s: Half of them took at most so many seconds; less than twice the exact figure.
        p99_s: 99 of 100 of them did; less than twice the exact figure.
        max_s: The longest one, in seconds, exactly.
    """

    count: int
    p50_s: float
    p99_s: float
    max_s: float


@dataclass(frozen=True, slots=True, repr=False)
class CacheStats:
    """What this process did with one cache since it began, or since it was forked. Never changes.

    Attributes:
        hits: Reads that found a fresh value.
        misses: Reads that found nothing.
        stale: Reads that found a value past its soft TTL.
        unavailable: Operations that Redis was not asked for, or did not answer in time.
        saturated: Operations for which no connection or thread of ours came free in time.
        refused: Writes we would not send, or Redis would not take.
        corrupt: Operations that met bytes which are not ours.
        sets: Values written.
        deletes: Deletes carried out.
        hit_ratio: hits / (hits + stale + misses + corrupt): of the reads that got an answer, the
            share that was of use. 0.0 before the first. Reads without an answer tell nothing
            about what is cached; they are under *unavailable* and *saturated*.
        operations: (operation, outcome, reason) -> how many; a bundle counts once a key.
        latency: operation -> how long it took.
        retries: Attempts made again.
        events: What computing values led to, by word, such as "load", "coalesced", "refresh".
        sink_errors: Measurements that a sink failed to take.
        dropped: Measurements that no sink got, because they came faster than sinks take them, or
            there was no thread to hand them over.
    """

    hits: int
    misses: int
    stale: int
    unavailable: int
    saturated: int
    refused: int
    corrupt: int
    sets: int
    deletes: int
    hit_ratio: float
    operations: Mapping[tuple[str, str, str], int]
    latency: Mapping[str, LatencySummary]
    retries: int
    events: Mapping[str, int]
    sink_errors: int
    dropped: int

    def as_dict(self) -> dict[str, Any]:
        """Return the same as plain types, ready for JSON."""
        plain: dict[str, Any] = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self)
        }
        plain["operations"] = [
            {"operation": operation, "outcome": outcome, "reason": reason, "count": count}
            for (operation, outcome, reason), count in self.operations.items()
        ]
        plain["events"] = dict(self.events)
        plain["latency"] = {
            operation: dataclasses.asdict(summary) for operation, summary in self.latency.items()
        }
        return plain

    def __repr__(self) -> str:
        counts = ", ".join(
            f"{field.name}={getattr(self, field.name)}"
            for field in dataclasses.fields(self)
            if field.type == "int"
        )
        latency = "".join(
            f"; {operation}: p50 {summary.p50_s * 1e3:.3g} ms, p99 {summary.p99_s * 1e3:.3g} ms,"
            f" max {summary.max_s * 1e3:.3g} ms"
            for operation, summary in self.latency.items()
        )
        return f"<CacheStats hit_ratio={self.hit_ratio:.1%}, {counts}{latency}>"


def summarize(
    cells: Mapping[Slot, tuple[int, float]],
    *,
    retries: int,
    events: Mapping[str, int],
    sink_errors: int,
    dropped: int,
) -> CacheStats:
    """Build the stats from the count and the longest latency (seconds) of each slot."""
    operations: dict[tuple[str, str, str], int] = {}
    outcomes: dict[str, int] = dict.fromkeys(Outcome, 0)
    done: dict[str, int] = {}
    buckets: dict[str, dict[int, int]] = {}
    longest: dict[str, float] = {}
    for (operation, outcome, reason, bits), (count, max_s) in sorted(cells.items()):
        ending = (operation, str(outcome), reason)
        operations[ending] = operations.get(ending, 0) + count
        outcomes[outcome] += count
        if outcome is Outcome.DONE:
            kind = without_many(operation)
            done[kind] = done.get(kind, 0) + count
        if bits != UNTIMED:
            histogram = buckets.setdefault(operation, {})
            histogram[bits] = histogram.get(bits, 0) + count
            longest[operation] = max(max_s, longest.get(operation, 0.0))
    hits = outcomes[Outcome.HIT]
    answered = hits + outcomes[Outcome.STALE] + outcomes[Outcome.MISS] + outcomes[Outcome.CORRUPT]
    return CacheStats(
        hits=hits,
        misses=outcomes[Outcome.MISS],
        stale=outcomes[Outcome.STALE],
        unavailable=outcomes[Outcome.UNAVAILABLE],
        saturated=outcomes[Outcome.SATURATED],
        refused=outcomes[Outcome.REFUSED],
        corrupt=outcomes[Outcome.CORRUPT],
        sets=done.get("set", 0),
        deletes=done.get("delete", 0),
        hit_ratio=hits / answered if answered else 0.0,
        operations=MappingProxyType(operations),
        latency=MappingProxyType(
            {name: _latency(buckets[name], longest[name]) for name in buckets}
        ),
        retries=retries,
        events=MappingProxyType(dict(events)),
        sink_errors=sink_errors,
        dropped=dropped,
    )


def _latency(histogram: Mapping[int, int], max_s: float) -> LatencySummary:
    count = sum(histogram.values())
    return LatencySummary(
        count=count,
        p50_s=_percentile(histogram, count * 50, max_s),
        p99_s=_percentile(histogram, count * 99, max_s),
        max_s=max_s,
    )


def _percentile(histogram: Mapping[int, int], hundredths: int, max_s: float) -> float:
    """Return the upper edge of the bucket where *hundredths* / 100 of all are reached."""
    seen = 0
    for bits in sorted(histogram):
        seen += histogram[bits]
        if seen * 100 >= hundredths:
            # So many bits hold less than 2**bits whole microseconds.
            return min((1 << bits) / 1e6, max_s)
    return max_s
