"""Results of calls that were let through before the breaker changed, or all at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from breaker_kit import (
    CLOSED,
    OPEN,
    WAIT_S,
    InFlight,
    end_in,
    opens_and_closes,
    run,
    time_is_over,
    two_failures,
)

from jmcache.circuit_breaker import CircuitBreaker, Transition
from jmcache.errors import (
    RedisConnectionError,
)
from jmcache.testing import ManualClock


def test_late_success_does_not_close_an_open_breaker(breaker, told):
    """B3: one slow call undoes five fresh failures, and everybody waits for Redis again."""
    slow = InFlight(breaker.call)
    two_failures(breaker, ManualClock())
    run(breaker.call, end_in, "failure")
    slow.end("success")
    assert breaker.state is OPEN
    assert len(told) == 1


def test_late_failures_do_not_count_against_the_breaker_that_closed_since(breaker, clock, told):
    """B5: the old wave reopens it at once: flapping."""
    wave = [InFlight(breaker.call) for _ in range(6)]
    opens_and_closes(breaker, clock)
    for call in wave:
        call.end("failure")
    assert (breaker.state, breaker.failures) == (CLOSED, 0)
    assert len(told) == 3


def test_of_several_probes_the_first_word_decides(clock):
    """The second one's is about a breaker that is no longer there."""
    for first, then, state in [("success", "failure", CLOSED), ("failure", "success", OPEN)]:
        breaker = CircuitBreaker(3, 30.0, 2, clock)
        time_is_over(breaker, clock)
        one, other = InFlight(breaker.call), InFlight(breaker.call)
        one.end(first)
        other.end(then)
        assert breaker.state is state
        assert breaker.failures == (0 if state is CLOSED else 2)


def test_threads_that_reach_the_threshold_together_open_it_once(clock):
    """B8: two threads both see the last straw, and the outage is logged and counted twice."""
    for _ in range(20):
        breaker = CircuitBreaker(10, 30.0, 1, clock)
        told: list[Transition] = []
        breaker.on_change(told.append)
        start = threading.Barrier(20)

        def fail(start: threading.Barrier = start) -> None:
            start.wait(WAIT_S)
            raise RedisConnectionError

        with ThreadPoolExecutor(20) as threads:
            for done in [threads.submit(breaker.call, fail) for _ in range(20)]:
                assert isinstance(done.exception(WAIT_S), RedisConnectionError)
        assert told == [
            Transition("jmcache", CLOSED, OPEN, "connection", 10, "10 failures in a row")
        ]


def test_no_failure_is_lost_between_threads(clock):
    """B12: 40 of 40, or the threshold means something else under load."""
    breaker = CircuitBreaker(1000, 30.0, 1, clock)
    with ThreadPoolExecutor(8) as threads:
        for _ in range(40):
            threads.submit(run, breaker.call, end_in, "failure")
    assert breaker.failures == 40


def test_call_that_finds_the_breaker_closed_after_all_is_no_probe():
    """B1, B5: the probe closed it between a caller's look and its turn at the lock."""

    class Interrupting(ManualClock):
        meanwhile: Callable[[], object] | None = None

        def __call__(self) -> float:
            meanwhile, self.meanwhile = self.meanwhile, None
            if meanwhile is not None:
                meanwhile()
            return super().__call__()

    clock = Interrupting()
    breaker = CircuitBreaker(3, 30.0, 1, clock)
    time_is_over(breaker, clock)
    clock.meanwhile = lambda: breaker.probe(end_in, "success")
    run(breaker.call, end_in, "failure")
    assert (breaker.state, breaker.failures) == (CLOSED, 1)
