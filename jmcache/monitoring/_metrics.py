"""What a sink is, and which measurement goes to it under which name.

redis.cache.hit .miss .stale .corrupt .unavailable .saturated .refused     counters
redis.cache.set .delete .exists ...          counters: operations carried out
redis.cache.get_latency .set_latency ...     timings, seconds
redis.error                                  counter: Redis gave no answer, or a corrupt one
redis.retry                                  counter
redis.cache.load .coalesced .refresh ...     counters: what computing values led to
redis.circuit_breaker.skip                   counter: Redis was not asked
redis.circuit_breaker.opened .closed         counters: outages begun and ended
redis.circuit_breaker.state                  gauge: 0 closed, 1 half-open, 2 open
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

from jmcache.outcome import Outcome

_STATE_VALUES = {"closed": 0.0, "half_open": 1.0, "open": 2.0}
_ERRORS = frozenset({Outcome.UNAVAILABLE, Outcome.CORRUPT})


class Metrics(Protocol):
    """Where measurements go: Prometheus, StatsD, a list in a test.

    Called on a thread of ours, one call at a time, a moment after the fact. May be slow or fail:
    no cache operation notices. *labels* are namespace, operation, outcome and reason, as far as
    they apply: always the same ones for a name, few values each, never a key.
    """

    def increment(self, name: str, value: int = 1, labels: Mapping[str, str] | None = None) -> None:
        """Add *value* to the counter *name*."""

    def timing(self, name: str, seconds: float, labels: Mapping[str, str] | None = None) -> None:
        """Note that *name* took *seconds*, once."""

    def gauge(self, name: str, value: float, labels: Mapping[str, str] | None = None) -> None:
        """Set the gauge *name* to *value*."""


def without_many(operation: str) -> str:
    """Return the operation that "get_many" or "delete_many" is a bundle of."""
    return operation.removesuffix("_many")


def report_operation(
    namespace: str, operation: str, outcome: Outcome, reason: str, seconds: float, sink: Metrics
) -> None:
    """Tell *sink* how one operation ended, and how long it took."""
    labels = _labels(namespace, operation, outcome, reason)
    _count(operation, outcome, reason, 1, labels, sink)
    sink.timing(f"redis.cache.{operation}_latency", seconds, labels)


def report_bundle(
    namespace: str,
    operation: str,
    endings: Mapping[tuple[Outcome, str], int],
    seconds: float,
    sink: Metrics,
) -> None:
    """Tell *sink* how the parts of one call ended, and how long the call took."""
    for (outcome, reason), count in endings.items():
        labels = _labels(namespace, operation, outcome, reason)
        _count(operation, outcome, reason, count, labels, sink)
    if len(endings) > 1:
        labels = _labels(namespace, operation, Outcome.DONE, "")  # no single outcome, but an answer
    sink.timing(f"redis.cache.{operation}_latency", seconds, labels)


def _labels(namespace: str, operation: str, outcome: Outcome, reason: str) -> Mapping[str, str]:
    # Read-only: every sink is handed the same one.
    return MappingProxyType(
        {
            "namespace": namespace,
            "operation": operation,
            "outcome": str(outcome),
            "reason": reason,
        }
    )


def _count(
    operation: str,
    outcome: Outcome,
    reason: str,
    count: int,
    labels: Mapping[str, str],
    sink: Metrics,
) -> None:
    ending = without_many(operation) if outcome is Outcome.DONE else outcome
    sink.increment(f"redis.cache.{ending}", count, labels)
    if reason == "breaker_open":
        sink.increment("redis.circuit_breaker.skip", count, labels)
    elif outcome in _ERRORS:
        sink.increment("redis.error", count, labels)


def report_retry(namespace: str, reason: str, sink: Metrics) -> None:
    """Tell *sink* of one attempt that is made again because of *reason*."""
    labels = MappingProxyType({"namespace": namespace, "reason": reason})
    sink.increment("redis.retry", 1, labels)


def report_event(namespace: str, event: str, sink: Metrics) -> None:
    """Tell *sink* of one thing that happened while a value was computed."""
    sink.increment(f"redis.cache.{event}", 1, MappingProxyType({"namespace": namespace}))


def report_transition(namespace: str, before: str, after: str, reason: str, sink: Metrics) -> None:
    """Tell *sink* that the circuit breaker changed its state.

    A failed probe, half-open to open, opens nothing anew: opened minus closed is 0 or 1.
    """
    labels = MappingProxyType({"namespace": namespace})
    sink.gauge("redis.circuit_breaker.state", _STATE_VALUES[after], labels)
    if after == "closed":
        sink.increment("redis.circuit_breaker.closed", 1, labels)
    elif before == "closed":
        why = MappingProxyType({"namespace": namespace, "reason": reason})
        sink.increment("redis.circuit_breaker.opened", 1, why)
