"""What there is to see of a circuit breaker, for us and for the package circuitbreaker."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NoReturn

import circuitbreaker

from jmcache.circuit_breaker._rules import Rules
from jmcache.circuit_breaker._states import CLOSED, HALF_OPEN, OPEN, CircuitState
from jmcache.errors import RedisError


class View:
    """Reads the one moment that a breaker is in: without a lock, and without changing anything."""

    def __init__(self, name: str, rules: Rules, clock: Callable[[], float]) -> None:
        self._name = name
        self._rules = rules
        self._clock = clock
        self._moment = rules.closed(0)

    @property
    def name(self) -> str:
        """The name it was given."""
        return self._name

    @property
    def state(self) -> CircuitState:
        """What the next caller meets; looking changes nothing.

        HALF_OPEN from the moment *reset_timeout* is over. Listeners hear of it when a probe is
        let through.
        """
        moment = self._moment
        if moment.state is OPEN and self._clock() >= moment.probe_at:
            return HALF_OPEN
        return moment.state

    @property
    def failures(self) -> int:
        """Failures in a row so far; 0 after a success."""
        return self._moment.failures

    @property
    def last_failure(self) -> str | None:
        """The type's name of the latest failure counted; None after a success."""
        return self._moment.last_failure

    @property
    def is_open(self) -> bool:
        """True when a caller would be refused now. Takes no lock and changes nothing."""
        moment = self._moment
        if moment.state is CLOSED:
            return False
        at = self._clock()
        if moment.state is OPEN:
            return at < moment.probe_at
        return len(moment.held(at)) >= self._rules.half_open_max_calls

    @property
    def retry_after_s(self) -> float:
        """Seconds until a caller is let through as a probe.

        0.0 unless it is open: while a probe is out, the answer may come at any moment.
        """
        moment = self._moment
        if moment.state is not OPEN:
            return 0.0
        return max(0.0, moment.probe_at - self._clock())


class Shown(circuitbreaker.CircuitBreaker):  # type: ignore[misc]  # it comes without types
    """Answers what the breaker answers, by circuitbreaker's names, and decides nothing."""

    def __init__(self, breaker: View, rules: Rules) -> None:
        # Both are above 0 by now: circuitbreaker would turn 0 into a default of its own.
        super().__init__(
            failure_threshold=rules.failure_threshold,
            recovery_timeout=rules.reset_timeout,
            expected_exception=RedisError,
            name=breaker.name,
        )
        self._breaker = breaker

    @property
    def state(self) -> str:
        return self._breaker.state.value

    @property
    def failure_count(self) -> int:
        return self._breaker.failures

    @property
    def last_failure(self) -> str | None:
        return self._breaker.last_failure

    @property
    def open_remaining(self) -> int:
        return math.ceil(self._breaker.retry_after_s)

    def show(self) -> None:
        """Be listed under the breaker's name, in place of whatever was."""
        circuitbreaker.CircuitBreakerMonitor.register(self)

    def hide(self) -> None:
        """Be listed no more; a later one of the same name stays."""
        listed = circuitbreaker.CircuitBreakerMonitor.circuit_breakers
        if listed.get(self._breaker.name) is self:
            listed.pop(self._breaker.name, None)

    def _only_shown(self, *_args: object, **_kwargs: object) -> NoReturn:
        raise TypeError("only to look at: make calls through jmcache's CircuitBreaker.call")

    # All ways of circuitbreaker to run something through a breaker, or to reset one.
    __enter__ = decorate = reset = _only_shown
