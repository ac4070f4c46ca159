"""Shares of failures and of slow calls over a window: what a row of failures does not see."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from breaker_kit import (
    CLOSED,
    ENDS,
    HALF_OPEN,
    OPEN,
    WAIT_S,
    InFlight,
    end_in,
    run,
    trip,
)

from jmcache.circuit_breaker import CircuitBreaker, Transition
from jmcache.testing import ManualClock

ROW = 1000  # failures in a row, so that only the shares can open it
MakeBreaker = Callable[..., CircuitBreaker]


@pytest.fixture
def make(clock: ManualClock) -> MakeBreaker:
    def make(failure_threshold: int = ROW, **options: Any) -> CircuitBreaker:
        return CircuitBreaker(failure_threshold, 30.0, 1, clock, name="rates", **options)

    return make


def calls(breaker: CircuitBreaker, how: str, times: int) -> None:
    for _ in range(times):
        run(breaker.call, end_in, how)


def slow_call(breaker: CircuitBreaker, clock: ManualClock, seconds: float, how: str) -> None:
    def func() -> str:
        clock.advance(seconds)
        return end_in(how)

    run(breaker.call, func)


def tally(breaker: CircuitBreaker, clock: ManualClock) -> tuple[int, int, int]:
    """Calls, failures and slow calls that a closed breaker knows of."""
    window = breaker._moment.window
    assert window is not None
    return tuple(window.tally(clock()))  # type: ignore[return-value]


# Failures ---------------------------------------------------------------------------------------


def test_four_failures_of_five_open_it_though_they_are_never_five_in_a_row(make):
    """A server that answers one call in five costs a deadline for each of the others, for ever."""
    for failure_rate_threshold, opens in [(None, False), (0.5, True)]:
        breaker = make(5, failure_rate_threshold=failure_rate_threshold)
        for _ in range(100):
            calls(breaker, "failure", 4)
            calls(breaker, "success", 1)
        assert (breaker.state is OPEN) == opens


def test_the_share_opens_it_exactly_when_it_is_reached(make):
    """One failure early is an outage of our own making, one late a setting that lies."""
    breaker = make(failure_rate_threshold=0.3, rate_min_calls=10)
    calls(breaker, "success", 14)
    calls(breaker, "failure", 5)  # 5 of 19
    assert breaker.state is CLOSED
    calls(breaker, "failure", 1)  # 6 of 20
    assert breaker.state is OPEN


def test_too_few_calls_prove_nothing(make):
    """The first call of the morning fails, and is a hundred percent."""
    breaker = make(failure_rate_threshold=0.5, rate_min_calls=20)
    calls(breaker, "failure", 19)
    assert breaker.state is CLOSED
    calls(breaker, "failure", 1)
    assert breaker.state is OPEN


def test_a_success_never_opens_it(make):
    """Whoever was served would be told that Redis is away; the next failure is soon enough."""
    breaker = make(failure_rate_threshold=0.5, rate_min_calls=20)
    calls(breaker, "failure", 19)
    calls(breaker, "success", 1)  # 19 of 20
    assert breaker.state is CLOSED
    calls(breaker, "failure", 1)
    assert breaker.state is OPEN


def test_what_says_nothing_about_redis_is_in_no_share(make, clock):
    """Our own exhausted pool would open it, or water the share down until nothing does."""
    breaker = make(failure_rate_threshold=0.5, slow_call_threshold=0.1)
    for how in set(ENDS) - {"success", "failure", "fatal"}:
        slow_call(breaker, clock, 1.0, how)
        calls(breaker, how, 5)
    assert tally(breaker, clock) == (0, 0, 0)


def test_a_row_of_failures_still_opens_it_before_there_are_enough_calls(make):
    """A dead server must cost five calls, not twenty."""
    breaker = make(5, failure_rate_threshold=0.5, rate_min_calls=20)
    calls(breaker, "failure", 5)
    assert breaker.state is OPEN


def test_one_fatal_failure_still_opens_it_alone(make):
    """A wrong password is no matter of shares."""
    breaker = make(failure_rate_threshold=0.5)
    trip(breaker)


# Time -------------------------------------------------------------------------------------------


def test_calls_older_than_the_window_are_forgotten(make, clock):
    """Yesterday's outage would open it at the first hiccup of today."""
    breaker = make(failure_rate_threshold=0.5, rate_window=10.0, rate_min_calls=20)
    calls(breaker, "failure", 19)
    clock.advance(10.0)
    assert tally(breaker, clock) == (0, 0, 0)
    calls(breaker, "failure", 1)
    assert breaker.state is CLOSED
    assert tally(breaker, clock) == (1, 1, 0)


def test_calls_within_the_window_are_remembered(make, clock):
    """Two calls a second are twenty in ten seconds: forgotten early, they never are."""
    breaker = make(failure_rate_threshold=0.5, rate_window=10.0, rate_min_calls=20)
    for _ in range(20):
        assert breaker.state is CLOSED
        calls(breaker, "failure", 1)
        clock.advance(0.45)
    assert breaker.state is OPEN


def test_the_window_forgets_in_steps_of_a_tenth(make, clock):
    """All at once, or never: either way the share says nothing about now."""
    breaker = make(failure_rate_threshold=1.0, rate_window=10.0)
    calls(breaker, "success", 1)
    for second in range(1, 30):
        clock.advance(1.0)
        calls(breaker, "success", 1)
        known, _, _ = tally(breaker, clock)
        assert known == min(second + 1, 10)
    clock.advance(4.5)
    assert tally(breaker, clock)[0] == 6
    assert len(breaker._moment.window._steps) <= 11


@pytest.mark.parametrize("window_s", [0.001, 0.3, 10.0, 86_400.0, 1e9])
def test_windows_of_any_length_keep_a_bounded_number_of_steps(make, clock, window_s):
    """A busy process that runs for a year must not remember each of its seconds."""
    breaker = make(failure_rate_threshold=0.5, rate_window=window_s)
    for _ in range(500):
        calls(breaker, "success", 1)
        clock.advance(window_s / 33)
    assert len(breaker._moment.window._steps) <= 11
    assert 24 <= tally(breaker, clock)[0] <= 33


def test_a_clock_that_stands_still_lets_nothing_be_forgotten_and_nothing_break(make, clock):
    """A clock that a test has stopped; the shares are then those of all calls."""
    breaker = make(failure_rate_threshold=0.5, rate_min_calls=20)
    calls(breaker, "success", 500)
    calls(breaker, "failure", 499)
    assert tally(breaker, clock) == (999, 499, 0)
    calls(breaker, "failure", 1)
    assert breaker.state is OPEN


def test_a_clock_that_leaps_ahead_lets_everything_be_forgotten(make, clock):
    """A laptop that slept: what it knows of Redis is of no use."""
    breaker = make(failure_rate_threshold=0.5, rate_min_calls=20)
    calls(breaker, "failure", 19)
    clock.advance(1e12)
    calls(breaker, "success", 1)
    assert tally(breaker, clock) == (1, 0, 0)


def test_a_clock_that_goes_back_against_its_promise_breaks_nothing():
    """Somebody passes time.time, and the time is set back by an hour."""
    now = [5000.0]
    breaker = CircuitBreaker(
        ROW, 30.0, 1, lambda: now[0], failure_rate_threshold=0.5, slow_call_threshold=1.0
    )
    calls(breaker, "success", 30)
    now[0] -= 3600
    calls(breaker, "failure", 29)
    assert breaker.state is CLOSED
    calls(breaker, "failure", 1)
    assert breaker.state is OPEN
    assert breaker.probe(end_in, "success") == "PONG"
    assert breaker.state is CLOSED


# Slow calls -------------------------------------------------------------------------------------


def test_half_of_the_calls_being_slow_opens_it(make, clock):
    """A cache that takes longer than computing is none."""
    breaker = make(slow_call_threshold=0.1, slow_call_rate_threshold=0.5, rate_min_calls=20)
    calls(breaker, "success", 10)
    for _ in range(9):
        slow_call(breaker, clock, 0.125, "success")
    assert breaker.state is CLOSED
    slow_call(breaker, clock, 0.125, "success")
    assert breaker.state is OPEN


def test_a_call_of_exactly_the_limit_is_not_slow(make, clock):
    """The limit is what is still all right."""
    breaker = make(slow_call_threshold=0.125)
    slow_call(breaker, clock, 0.125, "success")
    slow_call(breaker, clock, 0.1875, "success")
    assert tally(breaker, clock) == (2, 0, 1)


@pytest.mark.parametrize("how", ["success", "failure"])
def test_what_a_call_waited_for_something_else_does_not_make_it_slow(make, clock, how):
    """B7: a pool that is too small would cut off a Redis that is quick."""
    waited = [7.0]
    breaker = make(slow_call_threshold=0.125, rate_min_calls=4, waited=lambda: waited[0])

    def func() -> str:
        clock.advance(0.25)
        waited[0] += 0.125
        return end_in(how)

    for _ in range(4):
        run(breaker.call, func)
        assert breaker.is_allowed()
        run(lambda by_hand: by_hand(), func)
        breaker.record_success()
    assert tally(breaker, clock)[2] == 0
    assert breaker.state is CLOSED


def test_slow_calls_are_no_news_without_a_limit(make, clock):
    """Off is off: an hour for a call is the caller's own business."""
    breaker = make(failure_rate_threshold=0.5, slow_call_rate_threshold=0.1)
    for _ in range(30):
        slow_call(breaker, clock, 0.125, "success")
    assert tally(breaker, clock) == (30, 0, 0)
    assert breaker.state is CLOSED


def test_failures_are_no_share_when_only_slow_calls_are_looked_at(make, clock):
    """Off is off, this way round too."""
    breaker = make(slow_call_threshold=0.1)
    calls(breaker, "failure", 30)
    assert tally(breaker, clock) == (30, 30, 0)
    assert breaker.state is CLOSED


def test_a_slow_failure_is_in_both_shares(make, clock):
    """A server that times out half of the calls and is slow at the others is slow at all."""
    breaker = make(slow_call_threshold=0.1, slow_call_rate_threshold=0.8, rate_min_calls=20)
    calls(breaker, "success", 4)
    for _ in range(7):
        slow_call(breaker, clock, 0.125, "success")
        slow_call(breaker, clock, 0.25, "failure")
    assert tally(breaker, clock) == (18, 7, 14)
    for _ in range(2):
        assert breaker.state is CLOSED
        slow_call(breaker, clock, 0.125, "success")
    assert breaker.state is OPEN


def test_a_slow_success_ends_a_row_of_failures(make, clock):
    """It is an answer: Redis is late, but not dead."""
    breaker = make(3, slow_call_threshold=0.1)
    calls(breaker, "failure", 2)
    slow_call(breaker, clock, 1.0, "success")
    assert (breaker.failures, breaker.last_failure) == (0, None)
    calls(breaker, "failure", 2)
    assert breaker.state is CLOSED


def test_slow_calls_and_failures_have_shares_of_their_own(make, clock):
    """Two of five fail quickly and two are slow: neither is half, and each limit means itself."""
    breaker = make(failure_rate_threshold=0.5, slow_call_threshold=0.1, rate_min_calls=10)
    for _ in range(10):
        for _ in range(2):
            slow_call(breaker, clock, 0.125, "success")
            calls(breaker, "failure", 1)
        calls(breaker, "success", 1)
    assert breaker.state is CLOSED


def test_calls_guarded_by_hand_take_the_time_between_asking_and_reporting(make, clock):
    """The original plan's users get the same breaker."""
    breaker = make(failure_rate_threshold=0.6, slow_call_threshold=0.1, rate_min_calls=4)
    for seconds in (0.0625, 0.125):
        assert breaker.is_allowed()
        clock.advance(seconds)
        breaker.record_success()
    breaker.record_failure()  # without having asked: nobody knows how long it took
    assert tally(breaker, clock) == (3, 1, 1)
    assert breaker.is_allowed()
    clock.advance(0.125)
    breaker.record_failure()
    assert breaker.state is OPEN


# Probes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["success", "answered"])
@pytest.mark.parametrize("verb", ["call", "probe"])
def test_a_slow_probe_leaves_it_open_for_another_while(make, clock, verb, how):
    """It would close, and let through another twenty slow calls, once a second for ever."""
    breaker = make(slow_call_threshold=0.1)
    told: list[Transition] = []
    trip(breaker)
    breaker.on_change(told.append)
    clock.advance(30.0)

    def func(seconds: float) -> str:
        clock.advance(seconds)
        return end_in(how)

    run(getattr(breaker, verb), func, 0.125)
    assert (breaker.state, breaker.retry_after_s, breaker.failures) == (OPEN, 30.0, 1)
    assert told[-1] == Transition("rates", HALF_OPEN, OPEN, "slow", 1, "a slow probe")

    clock.advance(30.0)
    run(getattr(breaker, verb), func, 0.125 - 0.0625)
    assert breaker.state is CLOSED


def test_a_slow_probe_that_failed_is_a_failure(make, clock):
    """The reason in the log is what Redis did, not how long it took."""
    breaker = make(slow_call_threshold=0.1)
    told: list[Transition] = []
    trip(breaker)
    breaker.on_change(told.append)
    clock.advance(30.0)
    slow_call(breaker, clock, 0.125, "failure")
    assert told[-1] == Transition("rates", HALF_OPEN, OPEN, "timeout", 2, "a failed probe")


def test_a_slow_probe_guarded_by_hand_leaves_it_open_too(make, clock):
    """One breaker, one rule."""
    breaker = make(slow_call_threshold=0.1)
    trip(breaker)
    clock.advance(30.0)
    assert breaker.is_allowed()
    clock.advance(0.125)
    breaker.record_success()
    assert breaker.state is OPEN


def test_however_slow_a_probe_is_it_closes_the_breaker_without_a_limit(make, clock):
    """Off is off, for probes too."""
    breaker = make(failure_rate_threshold=0.5)
    trip(breaker)
    clock.advance(30.0)
    slow_call(breaker, clock, 1000.0, "success")
    assert breaker.state is CLOSED


# Epochs -----------------------------------------------------------------------------------------


def test_a_breaker_that_closes_begins_with_an_empty_window(make, clock):
    """The failures that opened it would open it again at the first one after: flapping."""
    breaker = make(failure_rate_threshold=0.5, rate_min_calls=20)
    calls(breaker, "failure", 20)
    assert breaker.state is OPEN
    breaker.probe(end_in, "success")
    assert tally(breaker, clock) == (0, 0, 0)
    calls(breaker, "failure", 19)
    assert breaker.state is CLOSED


@pytest.mark.parametrize("how", ["success", "failure"])
def test_late_results_are_in_no_later_window(make, clock, how):
    """B3, B5: the old wave's failures open it again; its successes water down the new share."""
    breaker = make(failure_rate_threshold=0.5, rate_min_calls=6)
    wave = [InFlight(breaker.call) for _ in range(8)]
    trip(breaker)
    breaker.probe(end_in, "success")
    for call in wave:
        call.end(how)
    assert tally(breaker, clock) == (0, 0, 0)
    calls(breaker, "failure", 5)
    assert breaker.state is CLOSED
    calls(breaker, "failure", 1)
    assert breaker.state is OPEN


# Threads ----------------------------------------------------------------------------------------


def test_successes_are_counted_exactly_by_many_threads(make, clock):
    """B12: a lost success makes the share of failures larger than it is."""
    breaker = make(failure_rate_threshold=0.5)
    start = threading.Barrier(8)

    def work() -> None:
        start.wait(WAIT_S)
        for number in range(4000):
            breaker.call(end_in, "success")
            if number % 100 == 0:
                clock.advance(0.0005)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as threads:
            for done in [threads.submit(work) for _ in range(8)]:
                done.result(60)
    finally:
        sys.setswitchinterval(before)
    assert tally(breaker, clock) == (32_000, 0, 0)


def test_no_lock_is_taken_while_calls_end_well(make, clock):
    """A lock that every call takes is a queue for every thread."""
    breaker = make(failure_rate_threshold=0.5, slow_call_threshold=0.1)
    breaker.call(end_in, "success")  # begins a step of the window
    with breaker._lock, ThreadPoolExecutor(1) as thread:
        done = [thread.submit(breaker.call, end_in, "success") for _ in range(5)]
        assert [each.result(WAIT_S) for each in done] == ["PONG"] * 5
    assert tally(breaker, clock) == (6, 0, 0)


# News and settings ------------------------------------------------------------------------------


def test_listeners_hear_what_was_too_much(make, clock):
    """ "Open after 1 failure" for sixteen of twenty sends the reader the wrong way."""
    told: list[Transition] = []
    breaker = make(failure_rate_threshold=0.75, slow_call_threshold=0.1, rate_min_calls=20)
    breaker.on_change(told.append)
    calls(breaker, "success", 5)
    calls(breaker, "failure", 15)
    assert told[-1] == Transition("rates", CLOSED, OPEN, "timeout", 15, "15 failures in 20 calls")
    assert (breaker.failures, breaker.last_failure) == (15, "RedisTimeoutError")

    breaker.probe(end_in, "success")
    calls(breaker, "success", 10)
    for _ in range(10):
        slow_call(breaker, clock, 0.125, "success")
    assert told[-1] == Transition("rates", CLOSED, OPEN, "slow", 0, "10 slow calls in 20")

    breaker.probe(end_in, "success")
    trip(breaker)
    assert told[-1] == Transition("rates", CLOSED, OPEN, "misconfigured", 1, "1 failure")


def test_a_failure_that_fills_both_shares_is_told_as_a_failure(make, clock):
    """Timeouts are slow by nature; what to look for is why there is no answer."""
    told: list[Transition] = []
    breaker = make(failure_rate_threshold=0.5, slow_call_threshold=0.1, rate_min_calls=2)
    breaker.on_change(told.append)
    for _ in range(2):
        slow_call(breaker, clock, 0.25, "failure")
    assert told == [Transition("rates", CLOSED, OPEN, "timeout", 2, "2 failures in 2 calls")]


SHARES = ["failure_rate_threshold", "slow_call_rate_threshold"]
NO_NUMBER = [True, "0.5", float("nan"), float("inf"), -1, 0, 0.0]


@pytest.mark.parametrize(
    ("argument", "value"),
    [(name, value) for name in SHARES for value in [*NO_NUMBER, 1.01, 50]]
    + [(name, value) for name in ("slow_call_threshold", "rate_window") for value in NO_NUMBER]
    + [("rate_min_calls", value) for value in [*NO_NUMBER, 2.5, None]]
    + [("slow_call_rate_threshold", None), ("rate_window", None)],
)
def test_shares_that_cannot_work_are_refused_by_name(make, argument, value):
    """50 for 50 % would never open it, and nobody would find out before the outage."""
    with pytest.raises(ValueError, match=argument):
        make(**{argument: value})


def test_every_share_is_off_unless_asked_for(clock):
    """Whoever makes a breaker by hand gets what the arguments say: failures in a row."""
    breaker = CircuitBreaker(clock=clock)
    for _ in range(50):
        calls(breaker, "failure", 4)
        slow_call(breaker, clock, 1000.0, "success")
    assert breaker.state is CLOSED


def test_shares_look_back_ten_seconds_and_want_twenty_calls_unless_told_otherwise(make, clock):
    """What the documentation says."""
    breaker = make(failure_rate_threshold=0.5, slow_call_threshold=0.125)
    calls(breaker, "failure", 1)
    clock.advance(9.75)
    calls(breaker, "failure", 18)
    assert breaker.state is CLOSED
    assert tally(breaker, clock) == (19, 19, 0)
    clock.advance(0.25)
    assert tally(breaker, clock) == (18, 18, 0)
    calls(breaker, "failure", 1)
    assert breaker.state is CLOSED
    calls(breaker, "failure", 1)
    assert breaker.state is OPEN

    breaker.probe(end_in, "success")
    calls(breaker, "success", 10)
    for _ in range(10):
        assert breaker.state is CLOSED
        slow_call(breaker, clock, 0.25, "success")
    assert breaker.state is OPEN


def test_largest_and_smallest_shares_are_taken_as_they_are(make):
    """1 is all of them, not none; 1 call can be enough."""
    breaker = make(failure_rate_threshold=1, rate_min_calls=3)
    calls(breaker, "success", 1)
    calls(breaker, "failure", 100)
    assert breaker.state is CLOSED
    breaker = make(failure_rate_threshold=0.001, rate_min_calls=1)
    calls(breaker, "failure", 1)
    assert breaker.state is OPEN
