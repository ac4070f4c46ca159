"""The circuit breaker: who is let through, and what the end of a call changes."""

from __future__ import annotations

import contextlib
import dis
import gc
import itertools
import math
import os
import random
import signal
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import circuitbreaker
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from jmcache import circuit_breaker
from jmcache.circuit_breaker import CircuitBreaker, CircuitState, Transition
from jmcache.errors import (
    RedisCircuitBreakerOpenError,
    RedisConnectionError,
    RedisCorruptEntryError,
    RedisError,
    RedisMisconfiguredError,
    RedisPoolExhaustedError,
    RedisTimeoutError,
    RedisWriteRefusedError,
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


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def breaker(clock: ManualClock) -> Iterator[CircuitBreaker]:
    breaker = CircuitBreaker(3, 30.0, 1, clock, name="test")
    yield breaker
    breaker.close()


@pytest.fixture
def told(breaker: CircuitBreaker) -> list[Transition]:
    told: list[Transition] = []
    breaker.on_change(told.append)
    return told


# Every state, kind of admission and end ---------------------------------------------------------


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


SAME: dict[str, tuple[CircuitState, int]] = {}
# before, meanwhile: state and failures after each end, and after those not listed
TABLE: list[tuple[Any, Any, dict[str, tuple[CircuitState, int]], tuple[CircuitState, int]]] = [
    (
        one_failure,
        nothing,
        {"success": (CLOSED, 0), "failure": (CLOSED, 2), "fatal": (OPEN, 2)},
        (CLOSED, 1),
    ),
    (
        two_failures,
        nothing,
        {"success": (CLOSED, 0), "failure": (OPEN, 3), "fatal": (OPEN, 3)},
        (CLOSED, 2),
    ),
    (nothing, opens, SAME, (OPEN, 1)),
    (nothing, half_opens, SAME, (HALF_OPEN, 1)),
    (nothing, opens_and_closes, SAME, (CLOSED, 0)),
    (
        time_is_over,
        nothing,
        {"success": (CLOSED, 0), "answered": (CLOSED, 0), "failure": (OPEN, 2), "fatal": (OPEN, 2)},
        (HALF_OPEN, 1),
    ),
    (time_is_over, another_closes, SAME, (CLOSED, 0)),
    (time_is_over, another_opens, SAME, (OPEN, 2)),
]


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("verb", ["call", "probe", "by_hand"])
@pytest.mark.parametrize(
    ("before", "meanwhile", "after", "otherwise"),
    TABLE,
    ids=[f"{before.__name__}-{meanwhile.__name__}" for before, meanwhile, _, _ in TABLE],
)
def test_each_end_of_a_call_leads_where_the_table_says(
    clock, before, meanwhile, after, otherwise, verb, how
):
    """A wrong cell is an outage that lasts too long, or one that nobody is spared."""
    breaker = CircuitBreaker(3, 30.0, 2 if before is time_is_over else 1, clock)
    before(breaker, clock)

    def func() -> str:
        meanwhile(breaker, clock)
        return end_in(how)

    if verb == "by_hand":
        # On a thread of its own: reports go by the thread that asked.
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(breaker.is_allowed).result(WAIT_S)
            meanwhile(breaker, clock)
            error = ENDS[how]
            report = (breaker.record_failure, error()) if error else (breaker.record_success,)
            thread.submit(*report).result(WAIT_S)
    else:
        run(getattr(breaker, verb), func)

    assert (breaker._moment.state, breaker.failures) == after.get(how, otherwise)


@pytest.mark.parametrize("how", ENDS)
def test_a_permit_whose_time_is_over_changes_nothing_however_it_ends(breaker, clock, how):
    """It was given up for lost; its news is older than the permit's next holder."""
    time_is_over(breaker, clock)
    assert breaker.is_allowed()
    clock.advance(30)

    error = ENDS[how]
    breaker.record_failure(error()) if error else breaker.record_success()

    assert (breaker.state, breaker.failures) == (HALF_OPEN, 1)
    assert breaker.is_allowed()


def test_success_in_between_starts_the_count_again(breaker):
    """The threshold is failures in a row: one slow answer an hour must not open it some day."""
    for _ in range(5):
        two_failures(breaker, ManualClock())
        assert breaker.call(end_in, "success") == "PONG"
    assert (breaker.state, breaker.failures) == (CLOSED, 0)


@pytest.mark.parametrize("how", ["answered", "saturated", "undecodable", "foreign", "interrupt"])
def test_what_says_nothing_about_redis_does_not_break_a_row_of_failures(breaker, how):
    """Otherwise a wrong type now and then keeps a breaker closed on a dead server."""
    for _ in range(3):
        assert breaker.state is CLOSED
        run(breaker.call, end_in, how)
        run(breaker.call, end_in, "failure")
    assert breaker.state is OPEN


def test_counts_decides_which_errors_are_failures(clock):
    """A breaker for writes counts what the one for reads must not."""
    writes = CircuitBreaker(1, 30.0, 1, clock, name="w", counts=lambda error: error.trips_writes)
    run(writes.call, end_in, "fatal")
    assert writes.state is CLOSED

    with pytest.raises(RedisWriteRefusedError):
        writes.call(raise_, RedisWriteRefusedError())
    assert writes.state is OPEN

    # Half-open too, what counts is a failure, though Redis answered.
    with pytest.raises(RedisWriteRefusedError):
        writes.probe(raise_, RedisWriteRefusedError())
    assert writes.state is OPEN


def raise_(error: BaseException) -> None:
    raise error


def test_results_arguments_and_exceptions_pass_through_unchanged(breaker):
    """A breaker that touches what it carries is a second source of wrong data."""
    value, error = object(), KeyboardInterrupt()
    kwargs = {"func": value, "self": 3, "early": 4}

    for verb in (breaker.call, breaker.probe):
        assert verb(lambda *a, **k: (a, k), 1, 2, **kwargs) == ((1, 2), kwargs)
        with pytest.raises(KeyboardInterrupt) as caught:
            verb(raise_, error)
        assert caught.value is error
    trip(breaker)
    assert breaker.probe(lambda *a, **k: (a, k), 1, 2, **kwargs) == ((1, 2), kwargs)


# Time -------------------------------------------------------------------------------------------


def test_open_breaker_refuses_until_the_reset_timeout_is_over(breaker, clock):
    """Too early is traffic on a dead server, too late is an outage made longer."""
    trip(breaker)
    clock.advance(29.75)
    assert (breaker.state, breaker.is_open, breaker.retry_after_s) == (OPEN, True, 0.25)
    with pytest.raises(RedisCircuitBreakerOpenError) as refusal:
        breaker.call(pytest.fail, "reached Redis")
    assert refusal.value.retry_after_s == 0.25
    assert not breaker.is_allowed()

    clock.advance(0.25)
    assert (breaker.state, breaker.is_open, breaker.retry_after_s) == (HALF_OPEN, False, 0.0)
    assert breaker.call(end_in, "success") == "PONG"
    assert (breaker.state, breaker.is_open, breaker.retry_after_s) == (CLOSED, False, 0.0)


def test_failed_probe_begins_a_fresh_open_time(breaker, clock):
    """Otherwise every caller after the first failed probe is a probe."""
    time_is_over(breaker, clock)
    clock.advance(100)
    run(breaker.call, end_in, "failure")
    assert breaker.retry_after_s == 30.0

    clock.advance(10)
    run(breaker.probe, end_in, "failure")
    assert breaker.retry_after_s == 30.0


def test_late_failures_do_not_make_the_open_time_longer(breaker, clock):
    """B4: calls in flight fail one after the other, and each would put recovery off."""
    calls = [InFlight(breaker.call) for _ in range(8)]
    for call in calls[:3]:
        call.end("failure")
    assert breaker.retry_after_s == 30.0

    for call in calls[3:]:
        clock.advance(1)
        call.end("failure")

    assert (breaker.retry_after_s, breaker.failures) == (25.0, 3)


def test_looking_at_an_open_breaker_takes_no_permit(breaker, clock, told):
    """B9: a dashboard must not steal the probe."""
    time_is_over(breaker, clock)
    told.clear()
    for _ in range(3):
        assert breaker.state is HALF_OPEN
        assert not breaker.is_open
        assert breaker.retry_after_s == 0.0
        assert circuitbreaker.CircuitBreakerMonitor.get("test").state == "half_open"
    assert told == []
    assert breaker.call(end_in, "success") == "PONG"


# Probes -----------------------------------------------------------------------------------------


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


# Late news --------------------------------------------------------------------------------------


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
        assert told == [Transition("jmcache", CLOSED, OPEN, "connection", 10)]


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


# By hand ----------------------------------------------------------------------------------------


def test_guarding_by_hand_walks_the_same_circle(breaker, clock, told):
    """The original plan's users."""
    for _ in range(3):
        assert breaker.is_allowed()
        breaker.record_failure()
    assert not breaker.is_allowed()
    clock.advance(30)
    assert breaker.is_allowed()
    assert not breaker.is_allowed()
    breaker.record_success()
    assert breaker.is_allowed()
    breaker.record_success()
    assert [(t.before, t.after) for t in told] == [
        (CLOSED, OPEN),
        (OPEN, HALF_OPEN),
        (HALF_OPEN, CLOSED),
    ]
    assert [t.reason for t in told] == ["failure", "reset_timeout", "success"]


def test_report_without_having_asked_counts_only_while_closed(breaker, clock):
    """It can't be known which state it is about, but a closed breaker is the only one it fits."""
    for _ in range(3):
        breaker.record_failure()
    assert breaker.state is OPEN
    breaker.record_success()
    assert breaker.state is OPEN
    clock.advance(30)
    breaker.record_success()
    assert breaker.is_allowed()
    other = threading.Thread(target=breaker.record_success)
    other.start()
    other.join(WAIT_S)
    assert breaker.state is HALF_OPEN


def test_reports_by_hand_go_to_the_latest_admission_first(clock):
    """Two guards, one inside the other: the inner one reports first."""
    breaker = CircuitBreaker(1, 30.0, 2, clock)
    assert breaker.is_allowed()  # outer, while closed
    trip(breaker)
    clock.advance(30)
    assert breaker.is_allowed()  # inner, a probe
    breaker.record_success()
    assert breaker.state is CLOSED
    breaker.record_failure()  # the outer one's: old news
    assert breaker.state is CLOSED


def test_asking_without_ever_reporting_keeps_no_memory(breaker):
    """A gauge that polls is_allowed() once a second for a year."""
    for _ in range(10_000):
        assert breaker.is_allowed()
    assert len(breaker._by_hand.tokens) < 100


# Listeners --------------------------------------------------------------------------------------


def test_transitions_carry_reason_and_failures(breaker, clock, told):
    """The one WARNING of an outage is written from this."""
    for _ in range(3):
        run(breaker.call, end_in, "failure")
    clock.advance(30)
    run(breaker.call, end_in, "failure")
    run(breaker.probe, end_in, "answered")
    assert told == [
        Transition("test", CLOSED, OPEN, "timeout", 3),
        Transition("test", OPEN, HALF_OPEN, "reset_timeout", 3),
        Transition("test", HALF_OPEN, OPEN, "timeout", 4),
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


# Exceptions out of nowhere ----------------------------------------------------------------------


class Ambush:
    """Raises in the breaker's code, at the n-th place where CPython may run a signal handler.

    Such places are after a call, at the start of a function, and on a jump back.
    """

    PLACES = ("CALL", "RESUME", "JUMP_BACKWARD")

    def __init__(self, nth: int) -> None:
        self.left = nth
        self._previous: dict[FrameType, str] = {}

    def __enter__(self) -> None:
        self._trace = sys.gettrace()
        # 3.12 looks for opcodes only if a frame asks for them before the tracing begins.
        sys._getframe().f_trace_opcodes = True
        sys.settrace(self._on_event)

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._trace)

    def _on_event(self, frame: FrameType, event: str, _arg: object) -> Any:
        if frame.f_code.co_filename != circuit_breaker.__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            previous = self._previous.get(frame, "")
            code, at = frame.f_code.co_code, frame.f_lasti
            self._previous[frame] = dis.opname[code[at]]
            if previous.startswith(self.PLACES):
                self.left -= 1
                if self.left == 0:
                    raise SoftTimeLimitExceeded
        return self._on_event


def by_hand(func: Callable[..., Any], how: str, *, breaker: CircuitBreaker) -> None:
    if breaker.is_allowed():
        error = ENDS[how]
        breaker.record_failure(error()) if error else breaker.record_success()


@pytest.mark.parametrize("how", ["success", "failure", "foreign"])
@pytest.mark.parametrize("verb", ["call", "probe", "by_hand"])
@pytest.mark.parametrize("before", [two_failures, opens, time_is_over])
def test_exception_at_any_place_leaves_no_lock_permit_or_silence(before, verb, how):
    """Promise 6: Celery's soft time limit arrives wherever it likes."""
    # In a thread of its own: an exception that lands between an except clause and its end stays
    # the context of whatever the thread raises later, in any other test.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(ambush_everywhere, before, verb, how).result(60)


def ambush_everywhere(before: Callable[..., None], verb: str, how: str) -> None:
    for nth in range(1, 1000):
        clock = ManualClock()
        breaker = CircuitBreaker(3, 30.0, 1, clock, name="ambush")
        told: list[Transition] = []
        breaker.on_change(told.append)
        before(breaker, clock)
        ambush = Ambush(nth)
        if verb == "by_hand":
            with contextlib.suppress(SoftTimeLimitExceeded), ambush:
                by_hand(end_in, how, breaker=breaker)
            clock.advance(30)
        else:
            with contextlib.suppress(SoftTimeLimitExceeded, RedisError), ambush:
                getattr(breaker, verb)(end_in, how)
            assert breaker._moment.permits == ()
        if ambush.left > 0:
            assert nth > 3
            return

        assert breaker._lock.acquire(blocking=False), f"lock kept, place {nth}"
        breaker._lock.release()
        assert breaker._teller is None, f"nobody left to tell, place {nth}"
        trip_somehow(breaker)
        assert breaker.probe(end_in, "success") == "PONG", f"permit lost, place {nth}"
        assert breaker.state is CLOSED
        assert told[-1].after is CLOSED
        assert {(t.before, t.after) for t in told} <= LEGAL
        assert len({id(t) for t in told}) == len(told)
    raise AssertionError("never got through")


def trip_somehow(breaker: CircuitBreaker) -> None:
    run(breaker.call, end_in, "fatal")
    assert breaker.state is not CLOSED


# Under fire -------------------------------------------------------------------------------------


def test_fifty_threads_with_every_kind_of_end_never_see_two_probes():
    """The checks above, in all orders that a second of real threads finds."""
    breaker = CircuitBreaker(3, 0.002, 1, name="hammer")
    told: list[Transition] = []
    breaker.on_change(told.append)
    count = threading.Lock()
    probes_out = most_out = 0
    stop = time.monotonic() + 1.0
    broken: list[BaseException] = []

    def ask(rng: random.Random) -> str:
        nonlocal probes_out, most_out
        caller = sys._getframe(1).f_locals  # a probe's has the permit it was given
        probing = "permit" in caller and caller["permit"] is caller["token"]
        if probing:
            with count:
                probes_out += 1
                most_out = max(most_out, probes_out)
        try:
            if rng.random() < 0.3:
                time.sleep(rng.random() * 0.005)  # longer than the breaker is open: a late result
            return end_in(rng.choice([*ENDS, "success", "failure"]))
        finally:
            if probing:
                with count:
                    probes_out -= 1

    def hammer(seed: int) -> None:
        rng = random.Random(seed)
        verb = [breaker.call, breaker.call, breaker.call, breaker.probe][seed % 4]
        while time.monotonic() < stop:
            try:
                if rng.random() < 0.05:
                    by_hand(end_in, rng.choice([*ENDS]), breaker=breaker)
                else:
                    verb(ask, rng)
            except RedisCircuitBreakerOpenError:
                time.sleep(0.0005)
            except (RedisError, SoftTimeLimitExceeded, KeyboardInterrupt):
                pass
            except BaseException as error:  # noqa: BLE001  # the main thread asks for it
                broken.append(error)
                return

    threads = [threading.Thread(target=hammer, args=(seed,)) for seed in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert broken == []
    assert most_out == 1
    assert len(told) > 20
    assert told[0].before is CLOSED
    assert all(one.after is then.before for one, then in itertools.pairwise(told))
    assert {(t.before, t.after) for t in told} == LEGAL
    trip_somehow(breaker)
    assert breaker.probe(end_in, "success") == "PONG"
    assert breaker.state is CLOSED
    breaker.close()


def test_signal_handler_that_raises_leaves_the_breaker_as_usable_as_before():
    """Promise 6 with real signals: where CPython delivers them is not quite where it says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of forks beside threads
        # In a child: an exception that lands between an except clause and its end stays the
        # context of whatever the thread raises later, in any other test.
        child = os.fork()
    if child == 0:  # no pytest from here on
        verdict = 1
        try:
            signal.alarm(WAIT_S)
            interrupt_for(0.7)
            verdict = 0
        finally:
            os._exit(verdict)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def interrupt_for(seconds: float) -> None:
    def limit(*_: object) -> None:
        raise SoftTimeLimitExceeded

    rng = random.Random(7)
    breaker = CircuitBreaker(2, 0.0005, 1, name="signals")
    breaker.on_change(lambda transition: None)
    interrupted = 0
    # A handler that raises in what the garbage collector calls is lost, by Python's own rules.
    gc.collect()
    gc.disable()
    stop = time.monotonic() + seconds
    signal.signal(signal.SIGALRM, limit)
    while time.monotonic() < stop:
        try:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, 1.5e-4))
            for _ in range(4):
                run_unless_interrupted(breaker, rng)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except SoftTimeLimitExceeded:
            interrupted += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert breaker._lock.acquire(blocking=False)
        breaker._lock.release()
        assert breaker._teller is None
        assert breaker.probe(end_in, "success") == "PONG"
        assert breaker.state is CLOSED
    assert interrupted > 10


def run_unless_interrupted(breaker: CircuitBreaker, rng: random.Random) -> None:
    verb = rng.choice([breaker.call, breaker.call, breaker.probe])
    with contextlib.suppress(RedisError):
        verb(end_in, rng.choice(["success", "failure", "failure", "fatal", "saturated"]))


class Reference:
    """What a breaker is, without threads, in as few lines as it takes."""

    def __init__(self, threshold: int, reset: float, most: int, clock: ManualClock) -> None:
        self.threshold, self.reset, self.most, self.clock = threshold, reset, most, clock
        self.state, self.era, self.failures, self.probe_at = CLOSED, 0, 0, 0.0
        self.out: dict[object, float] = {}  # permit: when it expires

    def free(self) -> bool:
        return sum(self.clock() < end for end in self.out.values()) < self.most

    def admit(self, early: bool = False, lease: float = math.inf) -> object:
        if self.state is CLOSED:
            return self.era
        if self.state is OPEN and (early or self.clock() >= self.probe_at):
            self.go(HALF_OPEN)
        if self.state is OPEN or not self.free():
            return None
        token = object()
        self.out[token] = self.clock() + lease
        return token

    def go(self, state: CircuitState) -> None:
        self.state, self.era, self.out = state, self.era + 1, {}
        if state is OPEN:
            self.probe_at = self.clock() + self.reset
        if state is CLOSED:
            self.failures = 0

    def settle(self, token: object, how: str) -> None:
        if isinstance(token, int):
            probing = False
            valid = token == self.era
        else:
            probing = True
            valid = self.clock() < self.out.pop(token, -1.0)
        if not valid:
            return
        if how in ("failure", "fatal"):
            self.failures += 1
            if probing or how == "fatal" or self.failures >= self.threshold:
                self.go(OPEN)
        elif how == "success" or (how == "answered" and probing):
            self.failures = 0
            if probing:
                self.go(CLOSED)


class BreakerMachine(RuleBasedStateMachine):
    """Any order of calls that overlap, reports by hand and time: the breaker is its reference."""

    calls = Bundle("calls")

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.breaker = CircuitBreaker(2, 30.0, 2, self.clock, name="machine")
        self.model = Reference(2, 30.0, 2, self.clock)
        self.by_hand: list[object] = []
        self.flying: set[InFlight] = set()
        self.told: list[Transition] = []
        self.breaker.on_change(self.told.append)

    @rule(target=calls, early=st.booleans())
    def begin(self, early: bool) -> tuple[InFlight, object]:
        call = InFlight(self.breaker.probe if early else self.breaker.call)
        self.flying.add(call)
        token = self.model.admit(early)
        assert call.refused == (token is None)
        return call, token

    @rule(pair=consumes(calls), how=st.sampled_from(list(ENDS)))
    def end(self, pair: tuple[InFlight, object], how: str) -> None:
        call, token = pair
        call.end(how)
        self.flying.discard(call)
        if token is not None:
            self.model.settle(token, how)

    @rule(how=st.sampled_from(["failure", "failure", *ENDS]))
    def call_at_once(self, how: str) -> None:
        run(self.breaker.call, end_in, how)
        token = self.model.admit()
        if token is not None:
            self.model.settle(token, how)

    @rule()
    def ask_by_hand(self) -> None:
        token = self.model.admit(lease=30.0)
        assert self.breaker.is_allowed() == (token is not None)
        if token is not None:
            self.by_hand.append(token)

    @rule(how=st.sampled_from(list(ENDS)))
    def report_by_hand(self, how: str) -> None:
        error = ENDS[how]
        self.breaker.record_failure(error()) if error else self.breaker.record_success()
        if self.by_hand:
            self.model.settle(self.by_hand.pop(), how)
        elif self.model.state is CLOSED:
            self.model.settle(self.model.era, how)

    @rule(seconds=st.sampled_from([0.25, 15.0, 30.0, 100.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def shows_what_the_reference_knows(self) -> None:
        model, at = self.model, self.clock()
        over = model.state is OPEN and at >= model.probe_at
        assert self.breaker.state is (HALF_OPEN if over else model.state)
        assert self.breaker.failures == model.failures
        refused = model.state is not CLOSED and not over
        if model.state is HALF_OPEN:
            refused = not model.free()
        assert self.breaker.is_open == refused
        left = max(0.0, model.probe_at - at) if model.state is OPEN else 0.0
        assert self.breaker.retry_after_s == left
        shown = circuitbreaker.CircuitBreakerMonitor.get("machine")
        assert (shown.state, shown.failure_count) == (self.breaker.state, model.failures)
        # The era is one per change, so it also counts what was told.
        assert len(self.told) == model.era

    def teardown(self) -> None:
        for call in self.flying:
            call.end("foreign")
        self.breaker.close()


TestBreakerAgainstItsReference = BreakerMachine.TestCase
TestBreakerAgainstItsReference.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None
)


# Fork -------------------------------------------------------------------------------------------


def test_child_forked_while_a_thread_holds_the_lock_begins_closed(breaker, clock):
    """B11: the child would wait for ever for a thread that it does not have."""
    breaker.on_change(lambda transition: None)
    time_is_over(breaker, clock)
    assert breaker.is_allowed()  # a permit and a report that the child must not inherit
    held, go = threading.Event(), threading.Event()

    def hold() -> None:
        with breaker._lock:
            held.set()
            assert go.wait(WAIT_S)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(WAIT_S)
    try:
        with warnings.catch_warnings():
            # 3.12 warns of what is being tested here.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:  # no pytest from here on
            verdict = 1
            try:
                signal.alarm(WAIT_S)
                was_closed = breaker.state is CLOSED
                breaker.record_failure()  # not a report on the parent's permit
                two_failures(breaker, clock)
                opened = breaker._moment.state is OPEN
                probed = breaker.probe(end_in, "success")
                shown = circuitbreaker.CircuitBreakerMonitor.get("test")
                if (was_closed, opened, probed, shown.state) == (True, True, "PONG", "closed"):
                    verdict = 0
            finally:
                os._exit(verdict)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    finally:
        go.set()
        holder.join(WAIT_S)
    assert breaker.state is HALF_OPEN  # the parent's is as it was


def test_child_forked_while_listeners_are_told_tells_its_own_news_and_no_other(breaker):
    """Its outage log would stay silent for ever, or begin with the parent's outage."""
    parent = os.getpid()
    entered, go = threading.Event(), threading.Event()
    told: list[CircuitState] = []

    def listener(transition: Transition) -> None:
        told.append(transition.after)
        if os.getpid() == parent and not entered.is_set():
            entered.set()
            assert go.wait(WAIT_S)

    breaker.on_change(listener)
    teller = threading.Thread(target=run, args=(breaker.call, end_in, "fatal"))
    teller.start()
    assert entered.wait(WAIT_S)
    breaker.probe(end_in, "success")  # two changes that wait to be told
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            verdict = 1
            try:
                signal.alarm(WAIT_S)
                told.clear()
                trip(breaker)
                verdict = 0 if told == [OPEN] else 1
            finally:
                os._exit(verdict)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    finally:
        go.set()
        teller.join(WAIT_S)
    assert told == [OPEN, HALF_OPEN, CLOSED]


def test_call_that_forks_reports_to_neither_breaker_twice(breaker, clock):
    """multiprocessing from within a cached loader: the child comes out of the parent's probe."""
    time_is_over(breaker, clock)
    children = []

    def forks() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            children.append(os.fork())
        if children[0] == 0:
            raise RedisMisconfiguredError  # would open a breaker that listens

    try:
        breaker.call(forks)
    except RedisMisconfiguredError:
        os._exit(0 if breaker.state is CLOSED and breaker.failures == 0 else 1)
    _, status = os.waitpid(children[0], 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert breaker.state is CLOSED


# circuitbreaker's monitor -----------------------------------------------------------------------


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


# Settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("argument", ["failure_threshold", "half_open_max_calls"])
@pytest.mark.parametrize("value", [0, -1, 1.0, 2.5, True, False, None, "3", math.nan, math.inf])
def test_counts_that_cannot_work_are_refused_by_name(argument, value):
    """circuitbreaker turns 0 into its own 5, and says nothing."""
    with pytest.raises(ValueError, match=argument):
        CircuitBreaker(**{argument: value})


@pytest.mark.parametrize("value", [0, 0.0, -1, math.nan, math.inf, True, None, "30"])
def test_reset_timeout_that_cannot_work_is_refused_by_name(value):
    """circuitbreaker turns 0 into its own 30 s, and says nothing."""
    with pytest.raises(ValueError, match="reset_timeout"):
        CircuitBreaker(reset_timeout=value)


def test_refused_breaker_is_not_in_the_monitor():
    """A half-built breaker there breaks whoever lists them all."""
    with pytest.raises(ValueError):
        CircuitBreaker(0, name="half built")
    assert circuitbreaker.CircuitBreakerMonitor.get("half built") is None


def test_defaults_are_the_original_plans(clock):
    """Five failures, thirty seconds, one probe: what the documentation says."""
    breaker = CircuitBreaker(clock=clock)
    for _ in range(5):
        assert breaker.state is CLOSED
        run(breaker.call, end_in, "failure")
    assert (breaker.name, breaker.retry_after_s) == ("jmcache", 30.0)
    clock.advance(30)
    assert [breaker.is_allowed(), breaker.is_allowed()] == [True, False]


def test_smallest_settings_are_taken_as_they_are(clock):
    """One failure opens it, for a millisecond."""
    breaker = CircuitBreaker(1, 0.001, 1, clock)
    run(breaker.call, end_in, "failure")
    assert (breaker.state, breaker.retry_after_s) == (OPEN, pytest.approx(0.001))
    clock.advance(0.0011)
    assert breaker.call(end_in, "success") == "PONG"
