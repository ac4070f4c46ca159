"""What a forked child begins with."""

from __future__ import annotations

import os
import signal
import threading
import warnings

import circuitbreaker
from breaker_kit import (
    CLOSED,
    HALF_OPEN,
    OPEN,
    WAIT_S,
    end_in,
    run,
    time_is_over,
    trip,
    two_failures,
)

from jmcache.circuit_breaker import CircuitState, Transition
from jmcache.errors import (
    RedisMisconfiguredError,
)


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
