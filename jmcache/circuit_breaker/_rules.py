"""Which state of a circuit breaker follows from which news."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass
from typing import Any, NamedTuple

from jmcache.circuit_breaker._news import News, Verdict
from jmcache.circuit_breaker._states import CLOSED, HALF_OPEN, OPEN, Moment, Permit, Token
from jmcache.circuit_breaker._window import Window


class Next(NamedTuple):
    """The moment that follows, and with a new state, what it is told with."""

    moment: Moment
    reason: str = ""
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Everything a breaker was told when it was made, and what follows from it.

    Decides and changes nothing, but for the counts of a closed moment's window; so it is asked
    with the breaker's lock held. The attributes are those of `CircuitBreaker`.
    """

    failure_threshold: int
    reset_timeout: float
    half_open_max_calls: int
    failure_rate_threshold: float | None
    slow_call_threshold: float | None
    slow_call_rate_threshold: float
    rate_window: float
    rate_min_calls: int
    probe_lease: float | None

    def __post_init__(self) -> None:
        _check_whole("failure_threshold", self.failure_threshold)
        _check_seconds("reset_timeout", self.reset_timeout)
        _check_whole("half_open_max_calls", self.half_open_max_calls)
        if self.failure_rate_threshold is not None:
            _check_share("failure_rate_threshold", self.failure_rate_threshold)
        if self.slow_call_threshold is not None:
            _check_seconds("slow_call_threshold", self.slow_call_threshold)
        _check_share("slow_call_rate_threshold", self.slow_call_rate_threshold)
        _check_seconds("rate_window", self.rate_window)
        _check_whole("rate_min_calls", self.rate_min_calls)
        if self.probe_lease is not None:
            _check_seconds("probe_lease", self.probe_lease)

    def closed(self, epoch: int) -> Moment:
        """The moment in which a breaker closes, or begins."""
        counted = self.failure_rate_threshold is not None or self.slow_call_threshold is not None
        return Moment(CLOSED, epoch, window=Window(self.rate_window) if counted else None)

    def admit(self, now: Moment, permit: Permit, at: float, *, early: bool) -> Next | None:
        """What follows when one more caller comes, with *permit* given out if it is in there.

        None: the caller is refused.
        """
        if now.state is CLOSED:
            return Next(now)
        if now.state is OPEN:
            if at < now.probe_at and not early:
                return None
            after = now._replace(
                state=HALF_OPEN, epoch=now.epoch + 1, permits=(weakref.ref(permit),)
            )
            return Next(after, "probe" if at < now.probe_at else "reset_timeout")
        held = now.held(at)
        if len(held) >= self.half_open_max_calls:
            return None
        return Next(now._replace(permits=(*held, weakref.ref(permit))))

    def settle(self, now: Moment, token: Token, news: News, at: float, *, slow: bool) -> Next:
        """What follows from the end, at the time *at*, of the call let through with *token*."""
        if isinstance(token, Permit):
            return self._after_probe(now, token, news, at, slow)
        if token != now.epoch or now.state is not CLOSED:
            return Next(now)
        if news.verdict in (Verdict.NEUTRAL, Verdict.ANSWERED):
            return Next(now)
        return self._after_call(now, news, at, slow)

    def _after_probe(self, now: Moment, permit: Permit, news: News, at: float, slow: bool) -> Next:
        if weakref.ref(permit) not in now.permits:
            return Next(now)
        if news.verdict is Verdict.NEUTRAL or at >= permit.expires_at:
            return Next(now.without(permit))
        if news.verdict in (Verdict.FAILURE, Verdict.FATAL):
            return self._opened(_failed(now, news), at, news.reason, "a failed probe")
        if slow:
            return self._opened(now, at, "slow", "a slow probe")
        return Next(self.closed(now.epoch + 1), news.reason)

    def _after_call(self, now: Moment, news: News, at: float, slow: bool) -> Next:
        failed = news.verdict is not Verdict.SUCCESS
        after = _failed(now, news) if failed else now._replace(failures=0, last_failure=None)
        if now.window is not None:
            now.window.add(at, failed=failed, slow=slow)
        if failed and (news.verdict is Verdict.FATAL or after.failures >= self.failure_threshold):
            row = f"{after.failures} failures in a row" if after.failures > 1 else "1 failure"
            return self._opened(after, at, news.reason, row)
        if now.window is None or not (failed or slow):
            return Next(after)
        # A success that was quick makes no share larger, so these are looked at here alone.
        calls, failures, slow_calls = now.window.tally(at)
        if calls < self.rate_min_calls:
            return Next(after)
        if failed and self.failure_rate_threshold is not None:
            if failures / calls >= self.failure_rate_threshold:
                return self._opened(after, at, news.reason, f"{failures} failures in {calls} calls")
        if slow and slow_calls / calls >= self.slow_call_rate_threshold:
            return self._opened(after, at, "slow", f"{slow_calls} slow calls in {calls}")
        return Next(after)

    def _opened(self, now: Moment, at: float, reason: str, cause: str) -> Next:
        return Next(
            Moment(OPEN, now.epoch + 1, now.failures, now.last_failure, at + self.reset_timeout),
            reason,
            cause,
        )


def _failed(now: Moment, news: News) -> Moment:
    return now._replace(failures=now.failures + 1, last_failure=news.type_name)


def _check_whole(argument: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{argument}: a whole number, 1 or more, not {value!r}")


def _check_seconds(argument: str, value: Any) -> None:
    if not _is_number(value) or not 0 < value < math.inf:
        raise ValueError(f"{argument}: seconds as a finite number above 0, not {value!r}")


def _check_share(argument: str, value: Any) -> None:
    if not _is_number(value) or not 0 < value <= 1:
        raise ValueError(f"{argument}: a number above 0, at most 1, not {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
