"""Asks again after a failure that may pass, within the time a call has.

Outermost of all that can fail: every attempt goes through the circuit breaker again, and the
refusal of an open one is not retryable, so it ends the attempts.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any, TypeVar

from jmcache.deadline import Deadline
from jmcache.errors import RedisError

T = TypeVar("T")


class Retry:
    """Runs an attempt until it succeeds, is hopeless, or has had its share of retries.

    Before retry n, counted from 0, it waits between 0 and the smaller of *max_backoff_ms* and
    *initial_backoff_ms* times 2 to the n, all lengths alike likely: full jitter (Brooker,
    "Exponential Backoff And Jitter", 2015). After a failover every worker wakes in the same
    millisecond, and half a spread would still arrive as one wave.

    Any thread may use it, before and after a fork; it keeps nothing between calls.
    """

    def __init__(
        self,
        *,
        max_retries: int = 3,
        initial_backoff_ms: float = 100,
        max_backoff_ms: float = 30000,
        on_retry: Callable[[RedisError, float], None] | None = None,
        rand: Callable[[], float] = random.random,
    ) -> None:
        """Settle how often and how long.

        Args:
            max_retries: Attempts after the first, 0 or more.
            initial_backoff_ms: The longest first wait in milliseconds, 0 or more.
            max_backoff_ms: The longest wait of all in milliseconds, 0 or more.
            on_retry: Told the error and the seconds to wait, before each wait, on the caller's
                thread. What it raises is not caught.
            rand: From 0.0 to 1.0.

        Raises:
            ValueError: A number is out of its range. Names the argument.
        """
        # With the first Retry and not with this module: importing backoff puts a handler on a
        # logger and sets its level, which an import of jmcache must not do.
        import backoff

        self._on_exception: Any = backoff.on_exception
        self._max_retries = _whole("max_retries", max_retries)
        self._initial_s = _milliseconds("initial_backoff_ms", initial_backoff_ms) / 1000
        self._max_s = _milliseconds("max_backoff_ms", max_backoff_ms) / 1000
        self._on_retry = on_retry
        self._rand = rand

    def run(self, attempt: Callable[[], T], deadline: Deadline) -> T:
        """Return what *attempt* returns, the first time it does.

        Sleeps on the calling thread between attempts. A wait that would not end before *deadline*
        is not begun: the attempt's own error comes out instead.

        Raises:
            RedisError: The latest attempt's, when it is not retryable, or neither a retry nor the
                time for one is left.

        Anything else that *attempt* raises, or that arrives during a wait, comes out as it is.
        """
        try:
            return attempt()
        except RedisError as error:
            if not error.retryable or self._max_retries == 0:
                raise
            plan = _Plan(deadline, error, self._initial_s, self._max_s, self._rand)
            return self._again(attempt, deadline, plan)

    def _again(self, attempt: Callable[[], T], deadline: Deadline, plan: _Plan) -> T:
        # A function, and a decorator, for each run: backoff mixes up the handlers of a decorator
        # that is used twice.
        def again() -> T:
            # The first time for the attempt that was made without backoff; later, when a sleep
            # took longer than it should have.
            if plan.waits == 0 or deadline.expired:
                raise plan.error
            return attempt()

        def tell(_details: object) -> None:
            if self._on_retry is not None:
                self._on_retry(plan.error, plan.wait_s)

        try:
            # Not its max_time, which is looked at only before an attempt and by the wall clock.
            result: T = self._on_exception(
                lambda: plan,
                RedisError,
                max_tries=self._max_retries + 1,
                giveup=plan.is_hopeless,
                jitter=None,  # drawn by the plan, which has to know the wait before it is begun
                on_backoff=tell,
                logger=None,
            )(again)()
            return result
        finally:
            del plan.error  # its traceback leads back here


class _Plan:
    """The waits of one run."""

    def __init__(
        self,
        deadline: Deadline,
        error: RedisError,
        initial_s: float,
        max_s: float,
        rand: Callable[[], float],
    ) -> None:
        self.error = error  # the latest
        self.wait_s = 0.0  # the next
        self.waits = 0  # begun
        self._deadline = deadline
        self._longest_s = min(initial_s, max_s)
        self._max_s = max_s
        self._rand = rand
        self._retried: dict[type[RedisError], int] = {}

    def is_hopeless(self, error: Any) -> bool:
        """True when *error*, a RedisError, is not to be retried. Asked by backoff after each."""
        self.error = error
        retried = self._retried.get(type(error), 0)
        if not error.retryable:
            return True
        if error.retry_limit is not None and retried >= error.retry_limit:
            return True
        self.wait_s = self._rand() * self._longest_s
        if self.wait_s >= self._deadline.remaining():
            return True
        self._retried[type(error)] = retried + 1
        return False

    def send(self, error: RedisError | None) -> float:
        """Return the seconds to wait; what backoff asks of a generator, after a first None.

        This is none: a generator that is not used up is closed by its end, and what a signal
        handler raises just there, nobody ever hears of.
        """
        if error is not None:
            self.waits += 1
            self._longest_s = min(2 * self._longest_s, self._max_s)
        return self.wait_s


def _whole(argument: str, value: Any) -> int:
    # Also because backoff compares with ==: 2.5 would retry without end.
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{argument}: a whole number, 0 or more, not {value!r}")
    return value


def _milliseconds(argument: str, value: Any) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value < math.inf:
        raise ValueError(f"{argument}: milliseconds as a finite number, 0 or more, not {value!r}")
    return float(value)
