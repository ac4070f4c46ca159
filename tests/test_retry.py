"""Retries: how many, how long apart, and never past the deadline."""

from __future__ import annotations

import contextlib
import datetime
import gc
import logging
import math
import random
import subprocess
import sys
import time
import types
import weakref
from collections.abc import Callable, Iterator

import backoff
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmcache.deadline import Deadline
from jmcache.errors import (
    RedisCircuitBreakerOpenError,
    RedisConnectionError,
    RedisError,
    RedisMisconfiguredError,
    RedisNotReadyError,
    RedisPoolExhaustedError,
    RedisProtocolError,
    RedisReadOnlyError,
    RedisTimeoutError,
    RedisWrongTypeError,
)
from jmcache.retry import Retry
from jmcache.testing import ManualClock


class SoftTimeLimitExceeded(Exception):  # noqa: N818
    """As Celery's: an Exception, and none of ours."""


class Sleep:
    """Stands in for the time.sleep that backoff calls, on a clock that is turned by hand."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.slept: list[float] = []
        self.late_s = 0.0  # how much longer than asked it takes
        self.interrupted_by: BaseException | None = None

    def __call__(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.clock.advance(seconds + self.late_s)
        if self.interrupted_by is not None:
            raise self.interrupted_by


@contextlib.contextmanager
def hand_clock() -> Iterator[tuple[ManualClock, Sleep]]:
    clock = ManualClock()
    sleep = Sleep(clock)
    with pytest.MonkeyPatch.context() as patch:
        stand_in = types.SimpleNamespace(sleep=sleep, monotonic=time.monotonic)
        patch.setattr("backoff._sync.time", stand_in)
        yield clock, sleep


@pytest.fixture
def at_hand() -> Iterator[tuple[ManualClock, Sleep]]:
    with hand_clock() as both:
        yield both


@pytest.fixture
def clock(at_hand: tuple[ManualClock, Sleep]) -> ManualClock:
    return at_hand[0]


@pytest.fixture
def sleep(at_hand: tuple[ManualClock, Sleep]) -> Sleep:
    return at_hand[1]


class Attempts:
    """Ends in one thing after the other, in the last one for ever. Counts itself."""

    def __init__(self, *ends: object) -> None:
        self.made = 0
        self._ends = ends

    def __call__(self) -> object:
        end = self._ends[min(self.made, len(self._ends) - 1)]
        self.made += 1
        if isinstance(end, BaseException):
            raise end
        return end


def largest() -> float:
    return 1.0


def test_success_is_returned_as_it_is_and_asked_for_once(sleep, clock):
    """None is an answer, not a reason to ask again."""
    for value in ("value", None, False, 0, RedisConnectionError):
        attempts = Attempts(value)
        assert Retry().run(attempts, Deadline(1, clock)) is value
        assert attempts.made == 1
    assert sleep.slept == []


def test_passing_failure_is_retried_until_it_has_passed(sleep, clock):
    """A connection that Redis closed while idle must not be a miss."""
    attempts = Attempts(RedisConnectionError(), RedisNotReadyError(), "value", "later")
    assert Retry().run(attempts, Deadline(100, clock)) == "value"
    assert attempts.made == 3
    assert len(sleep.slept) == 2


@pytest.mark.parametrize("max_retries", [0, 1, 2, 3, 10])
def test_max_retries_counts_the_attempts_after_the_first(sleep, clock, max_retries):
    """backoff counts tries and compares with ==: one off, or 0, and it never stops."""
    errors = [RedisConnectionError(str(n)) for n in range(20)]
    attempts = Attempts(*errors)
    with pytest.raises(RedisConnectionError) as caught:
        Retry(max_retries=max_retries).run(attempts, Deadline(1e6, clock))
    assert caught.value is errors[max_retries]  # the latest attempt's own
    assert attempts.made == 1 + max_retries
    assert len(sleep.slept) == max_retries


@pytest.mark.parametrize(
    "error",
    [
        RedisTimeoutError(),
        RedisProtocolError(),
        RedisMisconfiguredError(),
        RedisPoolExhaustedError(),
        RedisCircuitBreakerOpenError(),
        RedisWrongTypeError(),
        RedisError(),
        ValueError(),
        ConnectionError(),
        SoftTimeLimitExceeded(),
        KeyboardInterrupt(),
        SystemExit(),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("failures_before", [0, 1, 2])
def test_what_is_not_retryable_ends_it_at_any_attempt(sleep, clock, error, failures_before):
    """An open breaker in the middle of the retries; a time limit during the third attempt."""
    attempts = Attempts(*[RedisConnectionError() for _ in range(failures_before)], error)
    with pytest.raises(type(error)) as caught:
        Retry().run(attempts, Deadline(1e6, clock))
    assert caught.value is error
    assert attempts.made == failures_before + 1


def test_read_only_replica_is_asked_once_more_and_not_three_times(sleep, clock):
    """After a failover the second connection leads to the new master, or none does."""
    attempts = Attempts(RedisReadOnlyError())
    with pytest.raises(RedisReadOnlyError):
        Retry().run(attempts, Deadline(1e6, clock))
    assert attempts.made == 2


def test_limit_of_an_error_counts_only_its_own_retries(sleep, clock):
    """A reset connection before the failover is noticed takes nothing from its one retry."""
    attempts = Attempts(
        RedisConnectionError(), RedisReadOnlyError(), RedisConnectionError(), RedisReadOnlyError()
    )
    with pytest.raises(RedisReadOnlyError):
        Retry(max_retries=10).run(attempts, Deadline(1e6, clock))
    assert attempts.made == 4


# Waits ------------------------------------------------------------------------------------------


def test_longest_waits_double_up_to_the_ceiling(sleep, clock):
    """Growing too slowly keeps hitting a server that is down."""
    retry = Retry(max_retries=6, initial_backoff_ms=100, max_backoff_ms=1000, rand=largest)
    with pytest.raises(RedisConnectionError):
        retry.run(Attempts(RedisConnectionError()), Deadline(1e6, clock))
    assert sleep.slept == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])


@given(
    share=st.floats(0, 1),
    initial=st.floats(0, 1e6) | st.integers(0, 10**6),
    ceiling=st.floats(0, 1e6),
    retries=st.integers(1, 8),
)
def test_each_wait_is_its_share_of_the_longest(share, initial, ceiling, retries):
    """Full jitter: from nothing up to all of it. Equal jitter would still arrive as one wave."""
    with hand_clock() as (clock, sleep):
        retry = Retry(
            max_retries=retries,
            initial_backoff_ms=initial,
            max_backoff_ms=ceiling,
            rand=lambda: share,
        )
        with pytest.raises(RedisConnectionError):
            retry.run(Attempts(RedisConnectionError()), Deadline(1e9, clock))
    assert sleep.slept == pytest.approx(
        [share * min(ceiling, initial * 2**n) / 1000 for n in range(retries)]
    )


def test_waits_are_drawn_anew_and_spread_over_all_lengths(sleep, clock):
    """Workers that all woke at the failover must not all come back at once."""
    retry = Retry(max_retries=1, rand=random.Random(1).random)
    for _ in range(1000):
        assert retry.run(Attempts(RedisConnectionError(), 1), Deadline(1, clock)) == 1
    tenths = [sum(n / 100 <= wait < (n + 1) / 100 for wait in sleep.slept) for n in range(10)]
    assert sum(tenths) == 1000
    assert min(tenths) > 60


def test_defaults_are_the_original_plans(sleep, clock):
    """Three retries, from 100 ms, up to 30 s: what the documentation says."""
    failing = Attempts(RedisConnectionError())
    with pytest.raises(RedisConnectionError):
        Retry(rand=largest).run(failing, Deadline(1e6, clock))
    assert sleep.slept == pytest.approx([0.1, 0.2, 0.4])

    sleep.slept.clear()
    with pytest.raises(RedisConnectionError):
        Retry(max_retries=10, rand=largest).run(failing, Deadline(1e6, clock))
    assert max(sleep.slept) == 30.0


def test_very_many_retries_do_not_overflow(sleep, clock):
    """2.0 ** 1024 is an OverflowError, in the middle of an outage."""
    retry = Retry(max_retries=1100, initial_backoff_ms=0.1, max_backoff_ms=1)
    with pytest.raises(RedisConnectionError):
        retry.run(Attempts(RedisConnectionError()), Deadline(1e6, clock))
    assert len(sleep.slept) == 1100


def test_real_waits_take_real_time():
    """All other waits here are turned by hand."""
    begun = time.monotonic()
    retry = Retry(max_retries=2, initial_backoff_ms=2, max_backoff_ms=2, rand=largest)
    assert retry.run(Attempts(RedisConnectionError(), RedisConnectionError(), 1), Deadline(5)) == 1
    assert time.monotonic() - begun >= 0.004


# Deadline ---------------------------------------------------------------------------------------


@given(
    retries=st.integers(0, 30),
    initial=st.floats(0, 1e5),
    ceiling=st.floats(0, 1e5),
    seconds=st.floats(1e-6, 100),
    shares=st.lists(st.floats(0, 1), min_size=31, max_size=31),
    attempt_s=st.floats(0, 3),
)
def test_no_wait_ends_and_no_attempt_begins_after_the_deadline(
    retries, initial, ceiling, seconds, shares, attempt_s
):
    """Promise 2: a call returns within its deadline, whatever the settings say."""
    with hand_clock() as (clock, sleep):
        deadline = Deadline(seconds, clock)
        begun_at: list[float] = []

        def attempt() -> None:
            begun_at.append(clock())
            clock.advance(attempt_s)
            raise RedisConnectionError

        retry = Retry(
            max_retries=retries,
            initial_backoff_ms=initial,
            max_backoff_ms=ceiling,
            rand=iter(shares).__next__,
        )
        with pytest.raises(RedisConnectionError):
            retry.run(attempt, deadline)

        assert all(at < deadline.at for at in begun_at)
        assert clock() < deadline.at + attempt_s  # what the last attempt took, and no wait
        assert len(begun_at) == len(sleep.slept) + 1 <= retries + 1


def test_wait_that_would_outlast_the_deadline_is_not_begun(sleep, clock):
    """Sleeping to the end of the budget and then giving up is the worst of both."""
    errors = [RedisConnectionError(str(n)) for n in range(4)]
    attempts = Attempts(*errors)
    retry = Retry(initial_backoff_ms=100, rand=largest)
    with pytest.raises(RedisConnectionError) as caught:
        retry.run(attempts, Deadline(0.25, clock))
    assert caught.value is errors[1]
    assert sleep.slept == [0.1]  # 0.2 more would be too much


def test_wait_that_ends_with_the_deadline_is_too_long(sleep, clock):
    """Nothing would be left for the attempt."""
    attempts = Attempts(RedisConnectionError())
    with pytest.raises(RedisConnectionError):
        Retry(initial_backoff_ms=250, rand=largest).run(attempts, Deadline(0.25, clock))
    assert attempts.made == 1


def test_deadline_that_is_over_is_not_retried_even_without_a_wait(sleep, clock):
    """The first attempt used all of it."""
    deadline = Deadline(0.25, clock)
    clock.advance(0.25)
    attempts = Attempts(RedisConnectionError())
    with pytest.raises(RedisConnectionError):
        Retry(initial_backoff_ms=0).run(attempts, deadline)
    assert attempts.made == 1


def test_sleep_that_overruns_the_deadline_is_followed_by_no_attempt(sleep, clock):
    """A machine under load wakes us late: the caller has no time for another attempt."""
    sleep.late_s = 1.0
    error = RedisConnectionError()
    attempts = Attempts(error)
    with pytest.raises(RedisConnectionError) as caught:
        Retry(rand=largest).run(attempts, Deadline(0.25, clock))
    assert caught.value is error
    assert (attempts.made, sleep.slept) == (1, [0.1])


def test_wall_clock_that_jumps_changes_nothing(sleep, clock, monkeypatch):
    """backoff's own max_time runs by it: set back an hour, it never ends."""

    class Jumping(datetime.datetime):
        now_at = iter(
            datetime.datetime(2026, 1, 1) - n * datetime.timedelta(days=1) for n in range(9)
        )

        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return next(cls.now_at)

    stand_in = types.SimpleNamespace(datetime=Jumping, timedelta=datetime.timedelta)
    monkeypatch.setattr("backoff._sync.datetime", stand_in, raising=False)
    attempts = Attempts(RedisConnectionError())
    with pytest.raises(RedisConnectionError):
        Retry(rand=largest).run(attempts, Deadline(0.5, clock))
    assert (attempts.made, sleep.slept) == (3, [0.1, 0.2])


# What is told, and what is left behind ----------------------------------------------------------


def test_on_retry_hears_of_each_wait_before_it_begins(sleep, clock):
    """The counter of retries, and the log line that says how long."""
    told: list[tuple[RedisError, float, int]] = []
    errors = [RedisConnectionError("0"), RedisNotReadyError("1"), RedisConnectionError("2")]
    retry = Retry(
        max_retries=2,
        rand=largest,
        on_retry=lambda error, wait_s: told.append((error, wait_s, len(sleep.slept))),
    )
    with pytest.raises(RedisConnectionError):
        retry.run(Attempts(*errors), Deadline(1e6, clock))
    assert told == [(errors[0], 0.1, 0), (errors[1], 0.2, 1)]


@pytest.mark.parametrize("error", [SoftTimeLimitExceeded(), KeyboardInterrupt()], ids=repr)
def test_exception_during_a_wait_passes_through(sleep, clock, error):
    """A soft time limit mostly finds us sleeping."""
    sleep.interrupted_by = error
    attempts = Attempts(RedisConnectionError())
    with pytest.raises(type(error)) as caught:
        Retry().run(attempts, Deadline(1, clock))
    assert caught.value is error
    assert attempts.made == 1


def test_two_runs_do_not_share_counts(sleep, clock):
    """backoff mixes up what a decorator does that is used for two functions."""
    told: list[float] = []
    retry = Retry(max_retries=1, on_retry=lambda error, wait_s: told.append(wait_s), rand=largest)
    for run in range(1, 4):
        attempts = Attempts(RedisReadOnlyError())
        with pytest.raises(RedisReadOnlyError):
            retry.run(attempts, Deadline(1, clock))
        assert attempts.made == 2
        assert told == [0.1] * run


def test_runs_inside_runs_keep_to_themselves(sleep, clock):
    """A loader that uses a second cache, with the same Retry, inside an attempt."""
    retry = Retry(max_retries=1, rand=largest)
    inner = Attempts(RedisConnectionError())
    outer = [0]

    def attempt() -> object:
        outer[0] += 1
        return retry.run(inner, Deadline(100, clock))

    with pytest.raises(RedisConnectionError):
        retry.run(attempt, Deadline(100, clock))
    assert (outer, inner.made) == ([2], 4)


def test_failed_run_keeps_nothing_alive(sleep, clock):
    """An outage must not fill memory with tracebacks that wait for the garbage collector."""

    class Payload:
        pass

    seen = []

    def attempt() -> None:
        payload = Payload()
        seen.append(weakref.ref(payload))
        raise RedisConnectionError

    def run(retry: Retry) -> None:
        with contextlib.suppress(RedisConnectionError):
            retry.run(attempt, Deadline(100, clock))

    gc.collect()
    gc.disable()
    try:
        run(Retry())
        run(Retry(max_retries=0))
        assert [ref() for ref in seen] == [None] * 5
    finally:
        gc.enable()


def test_nothing_is_logged_even_with_every_logger_listening(sleep, clock, caplog):
    """backoff writes a line per wait and an ERROR per call: a flood in an outage."""
    with caplog.at_level(logging.DEBUG), pytest.raises(RedisConnectionError):
        Retry().run(Attempts(RedisConnectionError()), Deadline(100, clock))
    assert caplog.records == []


def test_import_leaves_no_handler_and_no_level_on_any_logger():
    """backoff puts both on its own when it is imported; an application may count on neither."""
    program = """
import logging, sys
import jmcache.retry
loggers = [logging.getLogger(), *(logging.getLogger(n) for n in logging.root.manager.loggerDict)]
print([(one.name, one.handlers) for one in loggers if one.handlers])
print("backoff" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\nFalse\n"


# Settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-1, 2.5, 3.0, True, False, None, "3", math.nan, math.inf])
def test_number_of_retries_that_cannot_work_is_refused_by_name(value):
    """backoff takes -1 and 2.5 for without end."""
    with pytest.raises(ValueError, match="max_retries"):
        Retry(max_retries=value)


@pytest.mark.parametrize("argument", ["initial_backoff_ms", "max_backoff_ms"])
@pytest.mark.parametrize("value", [-1, -0.5, True, None, "100", math.nan, math.inf])
def test_waits_that_cannot_work_are_refused_by_name(argument, value):
    """time.sleep refuses a negative wait: a ValueError in the middle of an outage."""
    with pytest.raises(ValueError, match=argument):
        Retry(**{argument: value})


def test_backoff_has_every_argument_that_is_used(sleep, clock, monkeypatch):
    """Its maintained fork, python-backoff, has the same ones: no other may creep in."""
    seen: list[set[str]] = []
    real: Callable[..., object] = backoff.on_exception

    def spy(*args: object, **kwargs: object) -> object:
        seen.append(set(kwargs))
        return real(*args, **kwargs)

    monkeypatch.setattr(backoff, "on_exception", spy)
    assert Retry().run(Attempts(RedisConnectionError(), 1), Deadline(1, clock)) == 1
    assert seen == [{"max_tries", "giveup", "jitter", "on_backoff", "logger"}]
