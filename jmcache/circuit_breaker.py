"""Stops asking Redis while Redis is failing.

    closed ──failure_threshold failures in a row──▶ open ──reset_timeout──▶ half-open
      ▲                                              ▲                        │   │
      │                                              └───────a probe failed───┘   │
      └───────────────────────────────────────────────────────a probe succeeded───┘

Closed lets everyone through, open nobody, half-open as many probes at once as it is told and
nobody else. The state is per process on purpose: kept in Redis, it would be in what is down.

The package circuitbreaker has no lock, lets everyone through when half-open, takes any exception
that is not on its list for a success and keeps the last exception with all its frames alive. It
is here as what other tools know: a breaker of ours shows in `circuitbreaker.CircuitBreakerMonitor`,
but nothing is decided there.
"""

from __future__ import annotations

import enum
import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn, ParamSpec, TypeVar

import circuitbreaker

from jmcache import fork
from jmcache.errors import RedisCircuitBreakerOpenError, RedisError, RedisRejectedError

P = ParamSpec("P")
T = TypeVar("T")


class CircuitState(enum.StrEnum):
    """Whom a circuit breaker lets through."""

    CLOSED = "closed"  # everyone
    OPEN = "open"  # nobody
    HALF_OPEN = "half_open"  # a probe


# Looking a member up in its class costs 3.11 as much as the rest of the decision.
_CLOSED, _OPEN, _HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN


@dataclass(frozen=True, slots=True)
class Transition:
    """One change of state, told to listeners once.

    Attributes:
        name: The breaker's name.
        before: The state it left.
        after: The state it is in now.
        reason: One lower-case word. Into OPEN: the reason of the error that did it. Into HALF_OPEN:
            "reset_timeout" when the time was over, "probe" when a health check came before that.
            Into CLOSED: "success", or the reason with which Redis said no.
        failures: Failures in a row up to now; into CLOSED, how many there had been.
    """

    name: str
    before: CircuitState
    after: CircuitState
    reason: str
    failures: int


class _Verdict(enum.Enum):
    """What the end of a call says about Redis."""

    SUCCESS = enum.auto()
    ANSWERED = enum.auto()  # it said no, so it is alive
    FAILURE = enum.auto()
    FATAL = enum.auto()  # a failure that needs no second one
    NEUTRAL = enum.auto()  # nothing


class _News(NamedTuple):
    """The end of one call."""

    verdict: _Verdict
    reason: str
    type_name: str = ""


_SUCCESS = _News(_Verdict.SUCCESS, "success")
_NEUTRAL = _News(_Verdict.NEUTRAL, "neutral")
_FAILURE = _News(_Verdict.FAILURE, "failure", "failure")


class _Permit:
    """Leave to be a probe, known by its identity.

    Only who was let through holds it, the breaker looks at it through a weak reference: what is
    lost with its thread or its frame is back by itself. Thread.is_alive() would be no way to see
    that: on 3.11 and 3.12 it takes a running thread for dead, for good, when a signal handler
    raises in it.
    """

    __slots__ = ("__weakref__", "expires_at")

    def __init__(self, expires_at: float = math.inf) -> None:
        self.expires_at = expires_at


# What an admission was given: a closed breaker's epoch, or a half-open one's permit.
_Token = int | _Permit


class _Moment(NamedTuple):
    """All that a breaker knows, replaced as a whole.

    One reference is read and written at once: a reader without the lock never sees half a change,
    and an exception from a signal handler never leaves one.
    """

    state: CircuitState
    epoch: int  # the state changes so far
    failures: int = 0  # in a row
    last_failure: str | None = None  # a type's name: an exception would keep its frames alive
    probe_at: float = 0.0  # open: when a caller may be a probe
    permits: tuple[weakref.ref[_Permit], ...] = ()  # half-open: those given out

    def held(self, at: float) -> tuple[weakref.ref[_Permit], ...]:
        """The permits that nobody else may have at the time *at*."""
        return tuple(
            reference
            for reference in self.permits
            if (permit := reference()) is not None and at < permit.expires_at
        )

    def without(self, permit: _Permit) -> _Moment:
        """The same with *permit* given back."""
        return self._replace(permits=tuple(r for r in self.permits if r() is not permit))


class _ByHand(threading.local):
    """What this thread was given by `is_allowed` and has not reported on, the latest last."""

    def __init__(self) -> None:
        # Bounded for those who ask and never report.
        self.tokens: deque[_Token] = deque(maxlen=64)


def _trips(error: RedisError) -> bool:
    return error.trips


class CircuitBreaker:
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
        name: str = "jmcache",
        counts: Callable[[RedisError], bool] = _trips,
    ) -> None:
        """Begin closed, and show in `circuitbreaker.CircuitBreakerMonitor` until `close`.

        Args:
            failure_threshold: Failures in a row that open it, 1 or more.
            reset_timeout: Seconds it stays open before a caller is let through as a probe, above 0.
            half_open_max_calls: Probes that may be out at once, 1 or more.
            clock: Seconds, never going back.
            name: One per server; in the monitor the latest of a name is seen.
            counts: Is this error evidence against Redis? By default those that `trips`.

        Raises:
            ValueError: A number is out of its range. Names the argument.
        """
        self._failure_threshold = _whole("failure_threshold", failure_threshold)
        self._reset_timeout = _seconds("reset_timeout", reset_timeout)
        self._half_open_max_calls = _whole("half_open_max_calls", half_open_max_calls)
        self._clock = clock
        self._name = name
        self._counts = counts
        self._lock = threading.Lock()
        self._moment = _Moment(_CLOSED, 0)  # written under _lock, read without
        self._untold: deque[Transition] = deque()  # appended under _lock
        self._teller: object | None = None  # taken under _lock
        self._listeners: tuple[Callable[[Transition], None], ...] = ()  # replaced under _lock
        self._by_hand = _ByHand()
        self._shown = _Shown(self, self._failure_threshold, self._reset_timeout)
        circuitbreaker.CircuitBreakerMonitor.register(self._shown)
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
        if moment.state is not _CLOSED:
            return self._call_as_probe(False, func, *args, **kwargs)
        try:
            result = func(*args, **kwargs)
        except BaseException as error:
            self._settle(moment.epoch, self._judge(error))
            raise
        # Nothing to forget, so no lock. A failure that another thread counts just after this
        # look came after this success, and stays counted.
        if self._moment.failures:
            self._settle(moment.epoch, _SUCCESS)
        return result

    def probe(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Like `call`, but an open breaker takes it as a probe before *reset_timeout* is over.

        For the thread that looks after Redis, so that no customer has to be the probe. If it
        fails, *reset_timeout* begins anew.

        Raises:
            RedisCircuitBreakerOpenError: Every probe is out already; *func* was not called.
        """
        if self._moment.state is _CLOSED:
            return self.call(func, *args, **kwargs)
        return self._call_as_probe(True, func, *args, **kwargs)

    def is_allowed(self) -> bool:
        """Ask leave for one call, for those who guard it by hand.

        After True, report with `record_success` or `record_failure`, once and on the same thread.
        Leave to be a probe is lost after *reset_timeout*, or when the thread ends; a report that
        comes later is ignored.
        """
        moment = self._moment
        if moment.state is _CLOSED:
            self._by_hand.tokens.append(moment.epoch)
            return True
        token = self._admit(_Permit(self._clock() + self._reset_timeout), early=False)
        if token is None:
            return False
        self._by_hand.tokens.append(token)
        self._tell()
        return True

    def record_success(self) -> None:
        """Report that the latest call this thread was let through for succeeded."""
        self._report(_SUCCESS)

    def record_failure(self, error: BaseException | None = None) -> None:
        """Report that the latest call this thread was let through for failed.

        A report without having asked is taken as one on the closed breaker, and ignored by one
        that is not closed.

        Args:
            error: What it raised, judged as in `call`; None: a failure that counts.
        """
        self._report(_FAILURE if error is None else self._judge(error))

    # What there is to see

    @property
    def name(self) -> str:
        """The name it was given."""
        return self._name

    @property
    def state(self) -> CircuitState:
        """What the next caller meets; looking changes nothing.

        HALF_OPEN from the moment *reset_timeout* is over. Listeners hear of it when a probe is
        let through.
        """
        moment = self._moment
        if moment.state is _OPEN and self._clock() >= moment.probe_at:
            return _HALF_OPEN
        return moment.state

    @property
    def failures(self) -> int:
        """Failures in a row so far; 0 after a success."""
        return self._moment.failures

    @property
    def last_failure(self) -> str | None:
        """The type's name of the latest failure counted; None after a success."""
        return self._moment.last_failure

    @property
    def is_open(self) -> bool:
        """True when a caller would be refused now. Takes no lock and changes nothing."""
        moment = self._moment
        if moment.state is _CLOSED:
            return False
        at = self._clock()
        if moment.state is _OPEN:
            return at < moment.probe_at
        return len(moment.held(at)) >= self._half_open_max_calls

    @property
    def retry_after_s(self) -> float:
        """Seconds until a caller is let through as a probe.

        0.0 unless it is open: while a probe is out, the answer may come at any moment.
        """
        moment = self._moment
        if moment.state is not _OPEN:
            return 0.0
        return max(0.0, moment.probe_at - self._clock())

    def on_change(self, listener: Callable[[Transition], None]) -> None:
        """Call *listener* with every change of state from now on.

        One at a time and in order, on the thread of whoever caused a change, with no lock held; so
        it may use the breaker, and should be quick. What it raises is not caught: it would have
        to be told from a time limit's exception that arrived just then, and stands in place of
        the operation's own result. A listener guards what may fail in it.
        """
        with self._lock:
            self._listeners = (*self._listeners, listener)

    def close(self) -> None:
        """Leave `circuitbreaker.CircuitBreakerMonitor`. Works on as a breaker; may be repeated."""
        shown = circuitbreaker.CircuitBreakerMonitor.circuit_breakers
        if shown.get(self._name) is self._shown:
            shown.pop(self._name, None)

    # Decisions

    def _call_as_probe(
        self, early: bool, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        permit = _Permit()
        try:
            token = self._admit(permit, early=early)
            if token is None:
                raise RedisCircuitBreakerOpenError(
                    f"circuit breaker {self._name}: Redis was not asked",
                    retry_after_s=self.retry_after_s,
                )
            self._tell()
            try:
                result = func(*args, **kwargs)
            except BaseException as error:
                self._settle(token, self._judge(error))
                raise
            self._settle(token, _SUCCESS)
            return result
        finally:
            # An exception from a signal handler may have come before anything was settled.
            if weakref.ref(permit) in self._moment.permits:
                self._settle(permit, _NEUTRAL)

    def _admit(self, permit: _Permit, *, early: bool) -> _Token | None:
        """The token of one more call: *permit* for a probe, None for a refusal."""
        at = self._clock()
        with self._lock:
            now = self._moment
            if now.state is _CLOSED:  # since the caller looked
                return now.epoch
            if now.state is _OPEN:
                if at < now.probe_at and not early:
                    return None
                reason = "probe" if at < now.probe_at else "reset_timeout"
                after = now._replace(
                    state=_HALF_OPEN, epoch=now.epoch + 1, permits=(weakref.ref(permit),)
                )
                self._become(after, reason)
                return permit
            held = now.held(at)
            if len(held) >= self._half_open_max_calls:
                return None
            self._moment = now._replace(permits=(*held, weakref.ref(permit)))
            return permit

    def _judge(self, error: BaseException) -> _News:
        if not isinstance(error, RedisError):
            return _NEUTRAL
        if self._counts(error):
            verdict = _Verdict.FATAL if error.opens_at_once else _Verdict.FAILURE
        elif isinstance(error, RedisRejectedError):
            verdict = _Verdict.ANSWERED
        else:
            return _NEUTRAL
        return _News(verdict, error.reason, type(error).__name__)

    def _report(self, news: _News) -> None:
        tokens = self._by_hand.tokens
        self._settle(tokens.pop() if tokens else self._moment.epoch, news)

    def _settle(self, token: _Token, news: _News) -> None:
        """Take in the end of the call that was let through with *token*."""
        at = self._clock()
        with self._lock:
            self._become(self._after(token, news, at), news.reason)
        self._tell()

    def _after(self, token: _Token, news: _News, at: float) -> _Moment:
        """The moment that follows from *news*. Changes nothing."""
        now, verdict = self._moment, news.verdict
        if isinstance(token, _Permit):
            if weakref.ref(token) not in now.permits:
                return now
            if verdict is _Verdict.NEUTRAL or at >= token.expires_at:
                return now.without(token)
            if verdict in (_Verdict.SUCCESS, _Verdict.ANSWERED):
                return _Moment(_CLOSED, now.epoch + 1)
        else:
            if token != now.epoch or now.state is not _CLOSED:
                return now
            if verdict is _Verdict.SUCCESS:
                return _Moment(_CLOSED, now.epoch)
            if verdict not in (_Verdict.FAILURE, _Verdict.FATAL):
                return now
            if verdict is _Verdict.FAILURE and now.failures + 1 < self._failure_threshold:
                return now._replace(failures=now.failures + 1, last_failure=news.type_name)
        probe_at = at + self._reset_timeout
        return _Moment(_OPEN, now.epoch + 1, now.failures + 1, news.type_name, probe_at)

    def _become(self, after: _Moment, reason: str) -> None:
        """Be *after*, and note a change of state. The lock is held."""
        before = self._moment
        if after.state is before.state:
            self._moment = after
            return
        failures = before.failures if after.state is _CLOSED else after.failures
        transition = Transition(self._name, before.state, after.state, reason, failures)
        self._moment = after
        self._untold.append(transition)

    def _tell(self) -> None:
        """Tell the listeners what they have not heard yet, unless another thread is doing so."""
        me = object()
        while self._untold:
            # Known before it is taken: an exception from a signal handler between the taking and
            # a try would leave nobody to tell.
            try:
                with self._lock:
                    if self._teller is None:
                        self._teller = me
                if self._teller is not me:
                    return  # whoever is telling looks again when done
                # A call, not a loop: CPython leaves the last jump back of a while loop that ends
                # a try uncovered by its finally.
                self._tell_all()
            finally:
                if self._teller is me:
                    self._teller = None

    def _tell_all(self) -> None:
        while self._untold:
            transition = self._untold.popleft()
            for listener in self._listeners:
                listener(transition)

    def _renew_in_child(self) -> None:
        self._lock = threading.Lock()
        self._moment = _Moment(_CLOSED, self._moment.epoch + 1)
        self._untold = deque()
        self._teller = None
        self._by_hand = _ByHand()


class _Shown(circuitbreaker.CircuitBreaker):  # type: ignore[misc]  # it comes without types
    """What circuitbreaker's monitor lists of a breaker: its answers, never its decisions."""

    def __init__(
        self, breaker: CircuitBreaker, failure_threshold: int, reset_timeout: float
    ) -> None:
        # Both are above 0 by now: circuitbreaker would turn 0 into a default of its own.
        super().__init__(
            failure_threshold=failure_threshold,
            recovery_timeout=reset_timeout,
            expected_exception=RedisError,
            name=breaker.name,
        )
        self._breaker = breaker

    @property
    def state(self) -> str:
        return self._breaker.state.value

    @property
    def failure_count(self) -> int:
        return self._breaker.failures

    @property
    def last_failure(self) -> str | None:
        return self._breaker.last_failure

    @property
    def open_remaining(self) -> int:
        return math.ceil(self._breaker.retry_after_s)

    def _only_shown(self, *_args: object, **_kwargs: object) -> NoReturn:
        raise TypeError("only to look at: make calls through jmcache's CircuitBreaker.call")

    # All ways of circuitbreaker to run something through a breaker, or to reset one.
    __enter__ = decorate = reset = _only_shown


def _whole(argument: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{argument}: a whole number, 1 or more, not {value!r}")
    return value


def _seconds(argument: str, value: Any) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise ValueError(f"{argument}: seconds as a finite number above 0, not {value!r}")
    return float(value)
