"""What the tests of the circuit breaker share: ways to end a call, and ways to a state."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from jmcache.circuit_breaker import CircuitBreaker, CircuitState
from jmcache.errors import (
    RedisCircuitBreakerOpenError,
    RedisCorruptEntryError,
    RedisMisconfiguredError,
    RedisPoolExhaustedError,
    RedisTimeoutError,
    RedisWrongTypeError,
)
from jmcache.testing import ManualClock

CLOSED, OPEN, HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN
LEGAL = {(CLOSED, OPEN), (OPEN, HALF_OPEN), (HALF_OPEN, CLOSED), (HALF_OPEN, OPEN)}
WAIT_S = 10  # for what should happen at once; a hang fails instead of hanging the run


class SoftTimeLimitExceeded(Exception):  # noqa: N818
    """As Celery's: an Exception, and none of ours."""


# What a call can end in. None: it returns.
ENDS: dict[str, type[BaseException] | None] = {
    "success": None,
    "failure": RedisTimeoutError,
    "fatal": RedisMisconfiguredError,
    "answered": RedisWrongTypeError,
    "saturated": RedisPoolExhaustedError,
    "undecodable": RedisCorruptEntryError,
    "foreign": SoftTimeLimitExceeded,
    "interrupt": KeyboardInterrupt,
}


def end_in(how: str) -> str:
    error = ENDS[how]
    if error is not None:
        raise error
    return "PONG"


def run(call: Callable[..., Any], func: Callable[..., Any], *args: Any) -> None:
    """Make one call and forget how it ended."""
    with contextlib.suppress(BaseException):
        call(func, *args)


def trip(breaker: CircuitBreaker) -> None:
    run(breaker.call, end_in, "fatal")
    assert breaker.state is OPEN


def refuses(breaker: CircuitBreaker) -> bool:
    """True when a call is refused; made so that a call let through changes nothing."""
    try:
        breaker.call(end_in, "saturated")
    except RedisCircuitBreakerOpenError:
        return True
    except RedisPoolExhaustedError:
        return False
    raise AssertionError("neither")


class InFlight:
    """A call on a thread of its own that is out until told how to end."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.refused = False
        self._begun, self._go = threading.Event(), threading.Event()
        self._how = "success"
        self._thread = threading.Thread(target=self._run, args=(call,), daemon=True)
        self._thread.start()
        assert self._begun.wait(WAIT_S)

    def _run(self, call: Callable[..., Any]) -> None:
        try:
            call(self._ask)
        except RedisCircuitBreakerOpenError:
            self.refused = True
        except tuple(error for error in ENDS.values() if error):
            pass
        self._begun.set()

    def _ask(self) -> str:
        self._begun.set()
        assert self._go.wait(WAIT_S)
        return end_in(self._how)

    def end(self, how: str) -> None:
        self._how = how
        self._go.set()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()


def one_failure(breaker: CircuitBreaker, clock: ManualClock) -> None:
    run(breaker.call, end_in, "failure")


def two_failures(breaker: CircuitBreaker, clock: ManualClock) -> None:
    for _ in range(2):
        run(breaker.call, end_in, "failure")


def opens(breaker: CircuitBreaker, clock: ManualClock) -> None:
    trip(breaker)


def half_opens(breaker: CircuitBreaker, clock: ManualClock) -> None:
    trip(breaker)
    clock.advance(30)
    assert breaker.is_allowed()  # and does not report


def opens_and_closes(breaker: CircuitBreaker, clock: ManualClock) -> None:
    trip(breaker)
    breaker.probe(end_in, "success")


def time_is_over(breaker: CircuitBreaker, clock: ManualClock) -> None:
    trip(breaker)
    clock.advance(30)


def another_closes(breaker: CircuitBreaker, clock: ManualClock) -> None:
    breaker.probe(end_in, "success")


def another_opens(breaker: CircuitBreaker, clock: ManualClock) -> None:
    run(breaker.probe, end_in, "failure")


def nothing(breaker: CircuitBreaker, clock: ManualClock) -> None:
    pass


def raise_(error: BaseException) -> None:
    raise error


def by_hand(func: Callable[..., Any], how: str, *, breaker: CircuitBreaker) -> None:
    if breaker.is_allowed():
        error = ENDS[how]
        breaker.record_failure(error()) if error else breaker.record_success()


def trip_somehow(breaker: CircuitBreaker) -> None:
    run(breaker.call, end_in, "fatal")
    assert breaker.state is not CLOSED
