"""Who hears of changes, in which order, and what a listener may do."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from breaker_kit import (
    CLOSED,
    HALF_OPEN,
    OPEN,
    WAIT_S,
    SoftTimeLimitExceeded,
    end_in,
    run,
    trip,
)

from jmcache.circuit_breaker import CircuitState, Transition


def test_transitions_carry_reason_and_failures(breaker, clock, told):
    """The one WARNING of an outage is written from this."""
    for _ in range(3):
        run(breaker.call, end_in, "failure")
    clock.advance(30)
    run(breaker.call, end_in, "failure")
    run(breaker.probe, end_in, "answered")
    assert told == [
        Transition("test", CLOSED, OPEN, "timeout", 3, "3 failures in a row"),
        Transition("test", OPEN, HALF_OPEN, "reset_timeout", 3),
        Transition("test", HALF_OPEN, OPEN, "timeout", 4, "a failed probe"),
        Transition("test", OPEN, HALF_OPEN, "probe", 4),
        Transition("test", HALF_OPEN, CLOSED, "wrong_type", 4),
    ]


def test_listener_runs_without_the_lock_and_may_use_the_breaker(breaker, clock):
    """A log handler that caches its own configuration would stop the process for ever."""
    seen: list[tuple[Transition, CircuitState]] = []

    def listener(transition: Transition) -> None:
        assert breaker._lock.acquire(blocking=False)
        breaker._lock.release()
        if transition.after is OPEN:
            run(breaker.probe, end_in, "success")
        seen.append((transition, breaker.state))

    breaker.on_change(listener)
    run(breaker.call, end_in, "fatal")
    assert [(t.after, state) for t, state in seen] == [
        (OPEN, CLOSED),  # its own two transitions wait their turn
        (HALF_OPEN, CLOSED),
        (CLOSED, CLOSED),
    ]


def test_slow_listener_holds_up_nobody_else_and_hears_all_in_order(breaker, clock):
    """B8: a metrics sink that hangs for a second must not stop every thread."""
    entered, go = threading.Event(), threading.Event()
    seen: list[CircuitState] = []

    def listener(transition: Transition) -> None:
        if not seen:
            entered.set()
            assert go.wait(WAIT_S)
        seen.append(transition.after)

    breaker.on_change(listener)
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(run, breaker.call, end_in, "fatal")
        assert entered.wait(WAIT_S)
        breaker.probe(end_in, "success")  # returns although the listener hangs
        trip(breaker)
        assert seen == []
        go.set()
        first.result(WAIT_S)
    assert seen == [OPEN, HALF_OPEN, CLOSED, OPEN]


def test_exception_in_a_listener_passes_through_and_harms_neither_state_nor_news(breaker, clock):
    """A soft time limit that arrives in a listener has to reach the task."""
    seen: list[CircuitState] = []

    def listener(transition: Transition) -> None:
        seen.append(transition.after)
        if len(seen) in (1, 2):
            raise SoftTimeLimitExceeded

    breaker.on_change(listener)
    with pytest.raises(SoftTimeLimitExceeded):
        breaker.call(end_in, "fatal")
    assert breaker.state is OPEN
    with pytest.raises(SoftTimeLimitExceeded):  # before the probe has begun: it learned nothing
        breaker.probe(pytest.fail, "the probe ran")
    assert breaker.state is HALF_OPEN
    assert breaker.call(end_in, "success") == "PONG"
    assert seen == [OPEN, HALF_OPEN, CLOSED]
