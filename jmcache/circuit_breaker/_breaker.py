"""The circuit breaker itself: calls, permits, and the one lock under which its state changes."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, ParamSpec, TypeVar

from jmcache import fork
from jmcache.circuit_breaker import _news
from jmcache.circuit_breaker._listeners import Listeners
from jmcache.circuit_breaker._news import News
from jmcache.circuit_breaker._rules import Next, Rules
from jmcache.circuit_breaker._states import CLOSED, OPEN, Moment, Permit, Token, Transition
from jmcache.circuit_breaker._view import Shown, View
from jmcache.errors import RedisCircuitBreakerOpenError, RedisError

P = ParamSpec("P")
T = TypeVar("T")

_UNKNOWN = math.inf  # when a call began: it took no time then


class Ongoing(NamedTuple):
    """Leave for a call that ends in another place than it begins."""

    moment: Moment
    began: float


class _Admission(NamedTuple):
    """Leave for a call that is guarded by hand."""

    token: Token
    began: float


class _ByHand(threading.local):
    """What this thread was given by `is_allowed` and has not reported on, the latest last."""

    def __init__(self) -> None:
        # Bounded for those who ask and never report.
        self.admissions: deque[_Admission] = deque(maxlen=64)


def _never() -> float:
    return 0.0


def _trips(error: RedisError) -> bool:
    return error.trips


class CircuitBreaker(View):
    """Lets calls through to Redis, or refuses them at once while it fails.

    What the end of a call means:

    - It returned: a success. Closed, the failures in a row start again at 0; half-open, the
      breaker closes.
    - A `RedisError` that *counts*: a failure. Closed, the last of *failure_threshold* in a row
      opens the breaker, and one that `opens_at_once` opens it alone; half-open, any opens it.
    - A `RedisRejectedError` that does not count: Redis answered, and said no. It closes a half-open
      breaker, and changes nothing in a closed one.
    - Anything else, a `KeyboardInterrupt` or our own exhausted pool too, says nothing about
      Redis: no failure and no success. A half-open breaker waits for the next probe.

    Two shares can open a closed breaker besides, of the successes and failures that ended in the
    last *rate_window* seconds, once those are *rate_min_calls*. A failure looks at the share of
    the failures, a slow call at that of the slow ones. Slow is a success or failure that took
    longer than *slow_call_threshold*. A slow success is a success in all other respects, except
    that a slow probe does not close the breaker but leaves it open for another *reset_timeout*.

    A result is held against the state its call was let through in: once the breaker has changed,
    it is old news and changes nothing. With several probes out, the first success or failure
    decides.

    Any thread may use it; nothing is held while a call or a listener runs. A child made by
    `os.fork` begins with a closed breaker and the same listeners.
    """

    def __init__(
        self,
        failure_threshold: int = 5,
        reset_timeout: float = 30.0,
        half_open_max_calls: int = 1,
        clock: Callable[[], float] = time.monotonic,
        *,
        failure_rate_threshold: float | None = None,
        slow_call_threshold: float | None = None,
        slow_call_rate_threshold: float = 0.5,
        rate_window: float = 10.0,
        rate_min_calls: int = 20,
        probe_lease: float | None = None,
        waited: Callable[[], float] = _never,
        name: str = "jmcache",
        counts: Callable[[RedisError], bool] = _trips,
    ) -> None:
        """Begin closed, and show in `circuitbreaker.CircuitBreakerMonitor` until `close`.

        Args:
            failure_threshold: Failures in a row that open it, 1 or more.
            reset_timeout: Seconds it stays open before a caller is let through as a probe, above 0.
            half_open_max_calls: Probes that may be out at once, 1 or more.
            clock: Seconds, never going back.
            failure_rate_threshold: Share of failures that opens it, above 0, at most 1; None: no
                share does.
            slow_call_threshold: Seconds above which a call is slow, above 0; None: none is.
            slow_call_rate_threshold: Share of slow calls that opens it, above 0, at most 1.
            rate_window: Seconds that both shares look back, above 0; in steps of a tenth.
            rate_min_calls: Calls in that time below which neither opens it, 1 or more.
            probe_lease: Seconds after which a probe that has not ended is lost, above 0: another
                is let through then, and its own end comes too late to count. None: a call is a
                probe for as long as it runs, and leave by `is_allowed` for *reset_timeout*.
            waited: Seconds that the calling thread has waited so far for what is not Redis, never
                going back. What it waited during a call does not make the call slow.
            name: One per server; in the monitor the latest of a name is seen.
            counts: Is this error evidence against Redis? By default those that `trips`.

        Raises:
            ValueError: A number is out of its range. Names the argument.
        """
        rules = Rules(
            failure_threshold=failure_threshold,
            reset_timeout=reset_timeout,
            half_open_max_calls=half_open_max_calls,
            failure_rate_threshold=failure_rate_threshold,
            slow_call_threshold=slow_call_threshold,
            slow_call_rate_threshold=slow_call_rate_threshold,
            rate_window=rate_window,
            rate_min_calls=rate_min_calls,
            probe_lease=probe_lease,
        )
        super().__init__(name, rules, clock)
        self._slow_above_s = math.inf if slow_call_threshold is None else slow_call_threshold
        self._counts = counts
        self._waited = waited
        self._lock = threading.Lock()  # held to write _moment, not to read it
        self._listeners = Listeners()
        self._by_hand = _ByHand()
        self._shown = Shown(self, rules)
        self._shown.show()
        fork.renew_in_child(self._renew_in_child)

    # Calls

    def call(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what *func* returns, or refuse to call it.

        Runs on the calling thread. A probe is held to be out as long as it runs, so *func* has
        to end within a time of its own.

        Raises:
            RedisCircuitBreakerOpenError: It is open, or half-open with every probe out; *func* was
                not called.

        What *func* raises comes out as it is.
        """
        # No lock while all is well. Reading the one reference is the decision: a breaker that
        # opens just afterwards could as well have opened just after a lock was let go.
        moment = self._moment
        if moment.state is not CLOSED:
            return self._call_as_probe(False, func, *args, **kwargs)
        began = self._clock() - self._waited() if self._slow_above_s < math.inf else _UNKNOWN
        try:
            result = func(*args, **kwargs)
        except BaseException as error:
            news = _news.judge(error, self._counts)
            self._settle(moment.epoch, news, began)
            raise
        self._count_success(moment, began)
        return result

    def _count_success(self, moment: Moment, began: float) -> None:
        """Take in that a call went well that a closed breaker let through."""
        window = moment.window
        if window is None:
            # Nothing to forget, so no lock. A failure that another thread counts just after this
            # look came after this success, and stays counted.
            if self._moment.failures:
                self._settle(moment.epoch, _news.SUCCESS)
            return
        at, step = self._clock(), window.step
        quick = began is _UNKNOWN or not self._is_slow(began, at)
        if quick and at < step.ends_at and not self._moment.failures:
            step.well += 1
        else:
            self._settle(moment.epoch, _news.SUCCESS, began)

    def probe(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Like `call`, but an open breaker takes it as a probe before *reset_timeout* is over.

        For the thread that looks after Redis, so that no customer has to be the probe. If it
        fails, *reset_timeout* begins anew.

        Raises:
            RedisCircuitBreakerOpenError: Every probe is out already; *func* was not called.
        """
        self._listeners.tell()  # what a thread that was interrupted left untold
        if self._moment.state is CLOSED:
            return self.call(func, *args, **kwargs)
        return self._call_as_probe(True, func, *args, **kwargs)

    def begin(self) -> Ongoing | None:
        """Return leave for a call that ends in another place than it begins; then `end` it there.

        None unless the breaker is closed: a probe is a call of `call`. Leave that is lost costs
        nothing, and any thread may end the call.
        """
        moment = self._moment
        if moment.state is not CLOSED:
            return None
        slow = self._slow_above_s < math.inf
        return Ongoing(moment, self._clock() - self._waited() if slow else _UNKNOWN)

    def end(self, ongoing: Ongoing, error: RedisError | None = None) -> None:
        """Take in that the call ended, well or with *error*. More than once if it has parts."""
        moment, began = ongoing
        if error is None:
            self._count_success(moment, began)
        else:
            self._settle(moment.epoch, _news.judge(error, self._counts), began)

    def is_allowed(self) -> bool:
        """Ask leave for one call, for those who guard it by hand.

        After True, report with `record_success` or `record_failure`, once and on the same thread:
        the call took the time between. Leave to be a probe is lost after *probe_lease*, or when
        the thread ends; a report that comes later is ignored.
        """
        moment, at = self._moment, self._clock()
        began = at - self._waited()
        if moment.state is CLOSED:
            self._by_hand.admissions.append(_Admission(moment.epoch, began))
            return True
        lease_s = self._rules.probe_lease or self._rules.reset_timeout
        token = self._admit(Permit(at + lease_s), early=False)
        if token is None:
            return False
        self._by_hand.admissions.append(_Admission(token, began))
        self._listeners.tell()
        return True

    def record_success(self) -> None:
        """Report that the latest call this thread was let through for succeeded."""
        self._report(_news.SUCCESS)

    def record_failure(self, error: BaseException | None = None) -> None:
        """Report that the latest call this thread was let through for failed.

        A report without having asked is taken as one on the closed breaker, and ignored by one
        that is not closed.

        Args:
            error: What it raised, judged as in `call`; None: a failure that counts.
        """
        self._report(_news.FAILURE if error is None else _news.judge(error, self._counts))

    # Whoever wants to know

    def on_change(self, listener: Callable[[Transition], None]) -> None:
        """Call *listener* with every change of state from now on.

        One at a time and in order, on the thread of whoever caused a change, with no lock held; so
        it may use the breaker, and should be quick. What it raises is not caught: it would have
        to be told from a time limit's exception that arrived just then, and stands in place of
        the operation's own result. A listener guards what may fail in it.
        """
        self._listeners.add(listener)

    def move(self, name: str) -> None:
        """Guard another server from now on, which is called *name*.

        What the former one failed does not count any more. An open breaker stays open until the
        new one has answered, but the next caller may be the probe, whenever that was to be.
        """
        self._shown.hide()
        at = self._clock()
        with self._lock:
            self._name = name
            now = self._moment
            if now.state is CLOSED:
                self._moment = self._rules.closed(now.epoch)
            elif now.state is OPEN:
                self._moment = now._replace(probe_at=min(now.probe_at, at))
        self._shown = Shown(self, self._rules)
        self._shown.show()

    def close(self) -> None:
        """Leave `circuitbreaker.CircuitBreakerMonitor`. Works on as a breaker; may be repeated."""
        self._shown.hide()

    # Decisions

    def _call_as_probe(
        self, early: bool, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        # Interrupted in the finally below, it is back with the frame that has it; and if somebody
        # keeps the traceback, and so the frame, after its lease.
        permit = Permit(self._clock() + (self._rules.probe_lease or math.inf))
        try:
            token = self._admit(permit, early=early)
            if token is None:
                raise RedisCircuitBreakerOpenError(
                    f"circuit breaker {self._name}: Redis was not asked",
                    retry_after_s=self.retry_after_s,
                )
            self._listeners.tell()
            began = self._clock() - self._waited()
            try:
                result = func(*args, **kwargs)
            except BaseException as error:
                news = _news.judge(error, self._counts)
                self._settle(token, news, began)
                raise
            self._settle(token, _news.SUCCESS, began)
            return result
        finally:
            # An exception from a signal handler may have come before anything was settled.
            if weakref.ref(permit) in self._moment.permits:
                self._settle(permit, _news.NEUTRAL)

    def _admit(self, permit: Permit, *, early: bool) -> Token | None:
        """The token of one more call: *permit* for a probe, None for a refusal."""
        at = self._clock()
        with self._lock:
            follows = self._rules.admit(self._moment, permit, at, early=early)
            if follows is None:
                return None
            self._become(follows)
        # Closed, when it has become so since the caller looked.
        return follows.moment.epoch if follows.moment.state is CLOSED else permit

    def _report(self, news: News) -> None:
        admissions = self._by_hand.admissions
        if admissions:
            token, began = admissions.pop()
            self._settle(token, news, began)
        else:
            self._settle(self._moment.epoch, news)

    def _settle(self, token: Token, news: News, began: float = _UNKNOWN) -> None:
        """Take in the end of the call that was let through with *token*, and *began* then."""
        at = self._clock()
        slow = self._is_slow(began, at)
        with self._lock:
            self._become(self._rules.settle(self._moment, token, news, at, slow=slow))
        self._listeners.tell()

    def _is_slow(self, began: float, at: float) -> bool:
        return at - self._waited() - began > self._slow_above_s

    def _become(self, follows: Next) -> None:
        """Be the moment that *follows*, and note a change of state. The lock is held."""
        before, (after, reason, cause) = self._moment, follows
        if after.state is before.state:
            self._moment = after
            return
        failures = before.failures if after.state is CLOSED else after.failures
        transition = Transition(self._name, before.state, after.state, reason, failures, cause)
        note = self._listeners.noting(transition)
        self._moment = after
        note()

    def _renew_in_child(self) -> None:
        self._lock = threading.Lock()
        self._moment = self._rules.closed(self._moment.epoch + 1)
        self._listeners.renew()
        self._by_hand = _ByHand()
