"""Which state follows from which end of a call, when, and for whom."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import circuitbreaker
import pytest
from breaker_kit import (
    CLOSED,
    ENDS,
    HALF_OPEN,
    OPEN,
    WAIT_S,
    InFlight,
    another_closes,
    another_opens,
    end_in,
    half_opens,
    nothing,
    one_failure,
    opens,
    opens_and_closes,
    raise_,
    run,
    time_is_over,
    trip,
    two_failures,
)

from jmcache.circuit_breaker import CircuitBreaker, CircuitState
from jmcache.errors import (
    RedisCircuitBreakerOpenError,
    RedisWriteRefusedError,
)
from jmcache.testing import ManualClock

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
    assert len(breaker._by_hand.admissions) < 100


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
