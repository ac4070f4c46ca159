"""Half-open: who is a probe, and what becomes of its permit."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import circuitbreaker
import pytest
from breaker_kit import (
    CLOSED,
    HALF_OPEN,
    OPEN,
    WAIT_S,
    InFlight,
    end_in,
    half_opens,
    opens,
    refuses,
    run,
    time_is_over,
    trip,
    two_failures,
)

from jmcache.circuit_breaker import CircuitBreaker
from jmcache.errors import (
    RedisCircuitBreakerOpenError,
)


def test_half_open_lets_exactly_one_of_fifty_threads_out(breaker, clock):
    """B1: the others double and redouble the load on a server that is just waking up."""
    time_is_over(breaker, clock)
    start, refused = threading.Barrier(50), threading.Barrier(50)
    probes = []

    def ask() -> None:
        probes.append(threading.current_thread())
        refused.wait(WAIT_S)  # until everyone else has been turned away

    def caller() -> None:
        start.wait(WAIT_S)
        try:
            breaker.call(ask)
        except RedisCircuitBreakerOpenError:
            refused.wait(WAIT_S)

    threads = [threading.Thread(target=caller) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)

    assert len(probes) == 1
    assert breaker.state is CLOSED


@pytest.mark.parametrize("probes", [1, 2, 5])
def test_half_open_lets_out_as_many_probes_as_it_is_told(clock, probes):
    """More is load, fewer is a setting that lies."""
    breaker = CircuitBreaker(1, 30.0, probes, clock)
    time_is_over(breaker, clock)
    calls = [InFlight(breaker.call) for _ in range(probes)]
    assert not any(call.refused for call in calls)
    assert breaker.is_open
    assert refuses(breaker)
    assert breaker.retry_after_s == 0.0

    calls.pop().end("foreign")
    assert not breaker.is_open
    calls.append(InFlight(breaker.call))
    assert not calls[-1].refused
    assert refuses(breaker)

    for call in calls:
        call.end("success")
    assert breaker.state is CLOSED


def test_a_slow_probe_stays_the_only_one(breaker, clock):
    """B1: reset_timeout may be shorter than a call on a hung server takes to fail."""
    time_is_over(breaker, clock)
    probe = InFlight(breaker.call)
    clock.advance(1000)
    assert refuses(breaker)
    assert not breaker.is_allowed()
    assert InFlight(breaker.probe).refused
    probe.end("success")
    assert breaker.state is CLOSED


@pytest.mark.parametrize("end", ["success", "failure"])
def test_probe_that_is_out_for_longer_than_its_lease_is_lost(clock, end):
    """B2: its thread was torn out of it, again while cleaning up, and a traceback is kept."""
    breaker = CircuitBreaker(1, 30.0, 1, clock, probe_lease=2.0)
    time_is_over(breaker, clock)
    lost = InFlight(breaker.call)
    clock.advance(1.75)
    assert breaker.is_open
    assert refuses(breaker)

    clock.advance(0.25)
    assert not breaker.is_open
    another = InFlight(breaker.probe)
    assert not another.refused
    assert refuses(breaker)
    lost.end(end)
    assert breaker.state is HALF_OPEN
    assert refuses(breaker)
    another.end("success")
    assert breaker.state is CLOSED


def test_leave_by_hand_is_lost_after_the_same_lease(clock):
    """B2: not after the reset_timeout, when there is a lease."""
    breaker = CircuitBreaker(1, 30.0, 1, clock, probe_lease=2.0)
    time_is_over(breaker, clock)
    assert breaker.is_allowed()
    clock.advance(1.75)
    assert not breaker.is_allowed()
    clock.advance(0.25)
    assert breaker.is_allowed()


@pytest.mark.parametrize("how", ["saturated", "undecodable", "foreign", "interrupt"])
@pytest.mark.parametrize("verb", ["call", "probe"])
def test_probe_that_learned_nothing_leaves_its_permit_to_the_next(breaker, clock, told, verb, how):
    """B2: one soft time limit in the probe, and the breaker is half-open for ever."""
    time_is_over(breaker, clock)
    for _ in range(3):
        run(getattr(breaker, verb), end_in, how)
        assert breaker.state is HALF_OPEN
        assert not breaker.is_open
    assert [t.after for t in told] == [OPEN, HALF_OPEN]
    assert breaker.call(end_in, "success") == "PONG"
    assert breaker.state is CLOSED


def test_permit_of_a_dead_thread_comes_back(breaker, clock):
    """B2: a worker thread that ends between asking and reporting."""
    time_is_over(breaker, clock)
    allowed = []
    thread = threading.Thread(target=lambda: allowed.append(breaker.is_allowed()))
    thread.start()
    thread.join(WAIT_S)
    assert allowed == [True]

    assert not breaker.is_open
    assert breaker.call(end_in, "success") == "PONG"


def test_permit_that_is_never_reported_on_expires(breaker, clock):
    """B2: somebody asks is_allowed() to decide whether to show a banner."""
    time_is_over(breaker, clock)
    assert breaker.is_allowed()
    assert not breaker.is_allowed()
    clock.advance(29.75)
    assert breaker.is_open
    assert not breaker.is_allowed()

    clock.advance(0.25)
    assert not breaker.is_open
    late, breaker_before = breaker, breaker.call(end_in, "success")
    assert breaker_before == "PONG"
    late.record_failure()
    late.record_failure()
    assert (breaker.state, breaker.failures) == (
        CLOSED,
        1,
    )  # the second had no admission: it is now


def test_late_report_does_not_end_the_probe_that_took_over(breaker, clock):
    """B2, B3: the first holder woke up again, and spoke for a permit it no longer had."""
    time_is_over(breaker, clock)
    assert breaker.is_allowed()
    clock.advance(30)
    probe = InFlight(breaker.call)
    breaker.record_failure()
    assert breaker.state is HALF_OPEN
    assert breaker.is_open
    probe.end("success")
    assert breaker.state is CLOSED


def test_health_check_is_the_probe_before_the_time_is_over(breaker, clock, told):
    """Redis is back after two seconds, and customers would be spared it for thirty."""
    trip(breaker)
    clock.advance(2)
    assert refuses(breaker)
    assert breaker.probe(end_in, "success") == "PONG"
    assert breaker.state is CLOSED
    assert [(t.after, t.reason) for t in told] == [
        (OPEN, "misconfigured"),
        (HALF_OPEN, "probe"),
        (CLOSED, "success"),
    ]


def test_health_check_waits_its_turn_while_a_customer_is_the_probe(breaker, clock):
    """B1 holds for the health thread too."""
    time_is_over(breaker, clock)
    customer = InFlight(breaker.call)
    with pytest.raises(RedisCircuitBreakerOpenError):
        breaker.probe(pytest.fail, "a second probe")
    customer.end("failure")
    assert breaker.probe(end_in, "success") == "PONG"


def test_customers_are_refused_while_the_health_check_is_out(breaker, clock):
    """B13: no traffic while open but the probe."""
    trip(breaker)
    probe = InFlight(breaker.probe)
    assert breaker.is_open
    assert refuses(breaker)
    probe.end("failure")
    assert (breaker.state, breaker.retry_after_s) == (OPEN, 30.0)


def test_health_check_on_a_closed_breaker_is_a_call_like_any_other(breaker):
    """Its failures are evidence as good as a customer's."""
    for _ in range(3):
        run(breaker.probe, end_in, "failure")
    assert breaker.state is OPEN


def test_reading_the_state_waits_for_nobody(breaker, clock):
    """B9: a health route that hangs with the breaker takes the service out of its balancer."""
    shown = circuitbreaker.CircuitBreakerMonitor.get("test")
    for prepare in (two_failures, opens, half_opens):
        prepare(breaker, clock)
        with breaker._lock, ThreadPoolExecutor(1) as thread:  # as if a thread were stuck in it
            looks = [
                thread.submit(look)
                for look in (
                    lambda: breaker.state,
                    lambda: breaker.is_open,
                    lambda: breaker.retry_after_s,
                    lambda: breaker.failures,
                    lambda: breaker.last_failure,
                    lambda: (shown.state, shown.failure_count, shown.open_remaining),
                )
            ]
            for look in looks:
                look.result(WAIT_S)
