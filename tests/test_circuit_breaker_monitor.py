"""What circuitbreaker's monitor shows."""

from __future__ import annotations

import gc
import weakref

import circuitbreaker
import pytest
from breaker_kit import (
    OPEN,
    end_in,
    run,
    trip,
    two_failures,
)

from jmcache.circuit_breaker import CircuitBreaker
from jmcache.errors import (
    RedisMisconfiguredError,
)


def test_monitor_shows_name_state_and_failures_truthfully(breaker, clock):
    """Dashboards that know circuitbreaker see an outage of ours without knowing us."""
    monitor = circuitbreaker.CircuitBreakerMonitor
    shown = monitor.get("test")
    assert str(shown) == shown.name == "test"
    assert shown in monitor.get_closed()
    assert shown not in monitor.get_open()
    assert (shown.state, shown.closed, shown.opened) == ("closed", True, False)

    two_failures(breaker, clock)
    assert (shown.failure_count, shown.last_failure) == (2, "RedisTimeoutError")
    trip(breaker)
    assert (shown.state, shown.failure_count) == ("open", 3)
    assert shown.last_failure == "RedisMisconfiguredError"
    assert shown in monitor.get_open()
    assert shown not in monitor.get_closed()
    assert not monitor.all_closed()
    clock.advance(10.5)
    assert shown.open_remaining == 20

    clock.advance(19.5)
    assert (shown.state, shown.opened, shown.closed) == ("half_open", False, False)
    breaker.call(end_in, "success")
    assert (shown.state, shown.failure_count, shown.last_failure) == ("closed", 0, None)


def test_monitor_offers_no_way_around_the_breaker(breaker):
    """circuitbreaker's own call and with never look at the state, and its reset() closes it."""
    shown = circuitbreaker.CircuitBreakerMonitor.get("test")
    trip(breaker)
    for way in (
        lambda: shown(pytest.fail),
        lambda: shown.call(pytest.fail, "ran"),
        lambda: list(shown.call_generator(pytest.fail, "ran")),
        lambda: shown.__enter__(),
        shown.reset,
    ):
        with pytest.raises(TypeError, match="only to look at"):
            way()
    assert breaker.state is OPEN


def test_closed_breaker_leaves_the_monitor_but_not_its_successor(clock):
    """reconfigure() builds the new one before it closes the old one, under the same name."""
    monitor = circuitbreaker.CircuitBreakerMonitor
    old = CircuitBreaker(clock=clock, name="twice")
    new = CircuitBreaker(clock=clock, name="twice")
    trip(new)
    old.close()
    assert monitor.get("twice").state == "open"
    new.close()
    assert monitor.get("twice") is None
    new.close()
    assert new.probe(end_in, "success") == "PONG"


def test_open_breaker_keeps_no_exception_and_no_frame_alive(breaker):
    """circuitbreaker's last_failure holds payloads and passwords as long as the outage lasts."""

    class Payload:
        pass

    seen = []

    def fail() -> None:
        payload = Payload()
        seen.append(weakref.ref(payload))
        raise RedisMisconfiguredError("a secret")

    gc.collect()
    gc.disable()
    try:
        run(breaker.call, fail)
        run(breaker.probe, fail)
        assert [ref() for ref in seen] == [None, None]
    finally:
        gc.enable()
    assert breaker.last_failure == "RedisMisconfiguredError"
