"""What keeps calls away from one node of a cluster while it fails, and says so in the log."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from jmcache.circuit_breaker import CircuitBreaker, CircuitState
from jmcache.errors import RedisCircuitBreakerOpenError, RedisError, RedisNodeDownError
from jmcache.monitoring import OutageLog

P = ParamSpec("P")
T = TypeVar("T")


class NodeGuard:
    """A circuit breaker for one node. Its refusals are the node's, not the whole cluster's."""

    def __init__(self, breaker: CircuitBreaker, outage: OutageLog) -> None:
        """Guard with *breaker*, of which nobody else asks leave; *outage* hears of it."""
        self._breaker = breaker
        self._outage = outage
        breaker.on_change(outage.on_change)

    @property
    def is_closed(self) -> bool:
        """True while everybody is let through."""
        return self._breaker.state is CircuitState.CLOSED

    def call(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what *func* returns, or raise RedisNodeDownError without calling it."""
        try:
            return self._breaker.call(func, *args, **kwargs)
        except RedisCircuitBreakerOpenError:
            refusal = self._refuse()
        raise refusal

    def probe(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Do the same for a health check, which need not wait until somebody may try."""
        try:
            return self._breaker.probe(func, *args, **kwargs)
        except RedisCircuitBreakerOpenError:
            refusal = self._refuse()
        raise refusal

    def admit(self) -> RedisError | None:
        """Return why not, or None for leave: then `report` once, on the same thread."""
        return None if self._breaker.is_allowed() else self._refuse()

    def report(self, error: RedisError | None) -> None:
        """Tell how that ended; None: well."""
        if error is None:
            self._breaker.record_success()
        else:
            self._breaker.record_failure(error)

    def close(self, *, replaced: bool) -> None:
        """The node is not asked any more; *replaced*: because the cluster has others."""
        self._breaker.close()
        if replaced:
            self._outage.replaced()

    def _refuse(self) -> RedisNodeDownError:
        self._outage.skipped()
        return RedisNodeDownError(f"circuit breaker {self._breaker.name}: the node was not asked")
