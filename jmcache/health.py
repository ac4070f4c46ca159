"""Whether Redis is there: a thread that asks it, and what is said about it to the outside."""

from __future__ import annotations

import _thread
import dataclasses
import logging
import math
import random
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from jmcache.errors import RedisCircuitBreakerOpenError, RedisError
from jmcache.fork import renew_in_child
from jmcache.signals import signals_as_before
from jmcache.threads import start_thread, this_thread

_log = logging.getLogger("jmcache.health")

JITTER = 0.25  # share; replicas that lost Redis together do not come back as one wave
JOIN_S = 0.3  # stop() waits so long at most: a probe may hang in a system call
LOGIN_PAUSE_S = 4.0  # the longest while a login is refused; 5 s with the jitter
LOGIN_REFUSED = ("auth", "sentinel_auth")  # reasons
START_RETRY_S = 5.0  # a system that is out of threads is not asked for one on every call


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What a health route may show. Holds no host, user, key or value.

    Attributes:
        live: Always True: a process is not restarted because Redis is away.
        ready: May traffic come? True also when degraded: the service works without its cache, and
            one Redis must not take every replica out at once.
        status: "degraded" when the service has to do without the cache, wholly or in part.
        breaker: State of the circuit breaker: "closed", "open" or "half_open".
        reasons: Why it is degraded, as single words; empty when it is not.
        last_ok_age_s: Seconds since Redis last answered the health check; None before the first.
        connections_in_use: Connections that callers hold at this moment.
        connections_limit: Connections there may be.
        last_error_reason: Why the latest health check failed, as one word; None if it did not.
    """

    live: bool = True
    ready: bool = True
    status: Literal["ok", "degraded"] = "ok"
    breaker: str = "closed"
    reasons: tuple[str, ...] = ()
    last_ok_age_s: float | None = None
    connections_in_use: int = 0
    connections_limit: int = 0
    last_error_reason: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the same as plain types, ready for JSON."""
        return {
            **dataclasses.asdict(self),
            "breaker": str(self.breaker),
            "reasons": list(self.reasons),
        }


class HealthThread:
    """Probes Redis from one daemon thread, so that a thread and not a customer waits for it.

    closed: every *interval*.  open: about every *open_interval*, a quarter more or less. While it
    is our login that Redis refuses, each pause is twice the one before, up to 5 s: accounts are
    locked by those who try again and again.

    Starts when first wanted, again in a forked child, and ends when whoever owns it is collected:
    while the thread rests it keeps nothing alive. It holds up neither a caller nor the
    interpreter's exit. The methods and attributes may be used from any thread.

    Attributes:
        running: True while the thread is at work.
        failures: Probes that ended in a RedisError.
        unexpected_errors: Probes that ended in any other error: a bug, logged once.
        last_error_reason: Why the latest probe failed, as one word; None if it did not.
    """

    def __init__(
        self,
        probe: Callable[[], object],
        is_open: Callable[[], bool],
        *,
        interval: float = 30.0,
        open_interval: float = 0.75,
        clock: Callable[[], float] = time.monotonic,
        rand: Callable[[], float] = random.random,
    ) -> None:
        """Start nothing yet.

        Args:
            probe: Asks Redis and tells the circuit breaker; bounded in time; raises RedisError.
            is_open: Is the circuit breaker anything but closed? Returns at once.
            interval: Seconds between probes while it is closed, above 0; also before the first.
            open_interval: Seconds between probes while it is open, above 0.
            clock: Seconds, never going back.
            rand: A number from 0 up to 1.
        """
        self._probe = probe
        self._is_open = is_open
        self._interval = interval
        self._open_interval = open_interval
        self._clock = clock
        self._rand = rand

        self._lock = threading.Lock()
        self.running = False  # guarded by _lock
        self._stopped = False  # guarded by _lock
        self._turn = 0  # guarded by _lock; a thread of an older turn ends
        self._retry_at = -math.inf  # guarded by _lock
        self._bell = _silent_bell()
        self._thread: threading.Thread | None = None

        # Written by the thread alone.
        self._pause_s = open_interval  # before the next probe, while open
        self._probing: int | None = None  # its own identity, during a probe
        self.failures = 0
        self.unexpected_errors = 0
        self.last_error_reason: str | None = None
        self._last_ok_at: float | None = None
        self._probed_at = -math.inf

        renew_in_child(self._renew_in_child)

    @property
    def last_ok_age_s(self) -> float | None:
        """Seconds since a probe last succeeded; None before the first."""
        last_ok_at = self._last_ok_at
        return None if last_ok_at is None else self._clock() - last_ok_at

    def start(self) -> None:
        """Start the thread unless it runs or was stopped; costs next to nothing while it runs.

        The cache works without it: a thread that cannot be started is tried again by a call that
        comes ``START_RETRY_S`` later.
        """
        if not self.running:
            self._start()

    def ring(self) -> None:
        """Probe now instead of when the rest is over: the circuit breaker has just opened.

        Returns at once; safe in a signal handler. However often it rings, half an *open_interval*
        lies between two probes. A refused login is tried in the quick rhythm again.
        """
        # The probe itself may open the breaker: that has been looked into already.
        if _thread.get_ident() != self._probing:
            _ring(self._bell)

    def stop(self) -> None:
        """End the thread for good, within ``JOIN_S`` also when a probe hangs. Idempotent."""
        with self._lock:
            self._stopped = True
            self._turn += 1
            self.running = False
        _ring(self._bell)
        thread = self._thread
        if thread is not None and thread is not threading.current_thread() and thread.is_alive():
            thread.join(JOIN_S)

    def _start(self) -> None:
        now = self._clock()
        with self._lock:
            if self.running or self._stopped or now < self._retry_at:
                return
            self._retry_at = now + START_RETRY_S
            self._turn += 1
            turn = self._turn
        # The thread says that it runs, once it does: if one never gets so far, a later call starts
        # another, and only the latest turn works.
        bell = self._bell
        step = weakref.WeakMethod(self._step, lambda _: _ring(bell))
        start_thread("jmcache-health", _run, step, turn, bell)

    def _step(
        self, turn: int, here: threading.Thread | None = None, *, rung: bool = False
    ) -> float | None:
        """Do what is due; return how many seconds to rest, None to end the thread, *here*."""
        with self._lock:
            if turn != self._turn:
                return None
            begins = not self.running
            self.running, self._thread = True, here
        if begins:
            return self._interval
        if rung:
            self._pause_s = self._open_interval
        early_s = self._probed_at + self._open_interval / 2 - self._clock()
        if early_s > 0.0:
            return early_s
        began = self._clock()
        try:
            quick = self._look()
        except BaseException:
            with self._lock:
                if turn == self._turn:
                    self.running = False
            raise
        if turn != self._turn:
            return None  # stopped meanwhile
        self._probed_at = self._clock()
        if not quick:
            return self._interval
        # From one beginning to the next: a probe that hung is part of the rest, or Redis would be
        # found back as much later.
        refused = self.last_error_reason in LOGIN_REFUSED
        if not refused:
            self._pause_s = self._open_interval
        period_s = self._pause_s * (1.0 + JITTER * (2.0 * self._rand() - 1.0))
        if refused:
            self._pause_s = max(self._open_interval, min(2 * self._pause_s, LOGIN_PAUSE_S))
        return max(0.0, period_s - (self._probed_at - began))

    def _look(self) -> bool:
        """Probe; return whether to probe again soon."""
        try:
            self._probing = _thread.get_ident()
            self._ask()
            return self._is_open()
        except Exception as error:  # noqa: BLE001
            # This thread would die, the only one that finds Redis back while the circuit breaker
            # is open. Nobody's time limit lands here: signal handlers run on the main thread.
            self.unexpected_errors += 1
            self.last_error_reason = "unexpected"
            if self.unexpected_errors == 1:
                # The type alone: the text of a foreign error may hold anything.
                with signals_as_before():
                    _log.error(
                        "health check failed in a way nobody foresaw (%s); it goes on, and further"
                        " failures like it are counted, not logged",
                        type(error).__name__,
                    )
            return True
        finally:
            self._probing = None

    def _ask(self) -> None:
        try:
            self._probe()
        except RedisError as error:
            self.failures += 1
            if not isinstance(error, RedisCircuitBreakerOpenError):  # not asked: no news
                self.last_error_reason = error.reason
        else:
            self._last_ok_at = self._clock()
            self.last_error_reason = None

    def _renew_in_child(self) -> None:
        self._lock = threading.Lock()
        self._bell = _silent_bell()
        self._thread = None
        self._turn += 1
        self.running = False
        self._retry_at = -math.inf


def _run(
    weak_step: weakref.WeakMethod[Callable[..., float | None]], turn: int, bell: threading.Lock
) -> None:
    rung, here = False, this_thread()
    while True:
        step = weak_step()
        rest_s = None if step is None else step(turn, here, rung=rung)
        del step  # or the rest would keep its owner alive
        if rest_s is None:
            return
        rung = bell.acquire(timeout=rest_s)


def _silent_bell() -> threading.Lock:
    """Return a lock to serve as a bell: held it is silent, released it rings.

    A bare lock: Event and Condition are Python code, which an exception from a signal handler can
    leave locked for ever.
    """
    bell = threading.Lock()
    bell.acquire()
    return bell


def _ring(bell: threading.Lock) -> None:
    try:
        bell.release()
    except RuntimeError:
        pass  # it rings already
