"""An outage in the log: one line when it begins, one now and then, one when it is over."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from jmcache.fork import renew_in_child
from jmcache.monitoring._voice import say

_log = logging.getLogger("jmcache.circuit_breaker")

# Reasons that no waiting cures, and the settings to look at.
_CURES = {
    "auth": "username and password",
    "credentials": "password, whose function or file gives none",
    "tls": "tls, tls_ca_certs, tls_certfile, tls_keyfile, tls_check_hostname and tls_verify",
    "db": "db",
    "no_cluster": "cluster",
    "no_sentinel": "sentinels",
    "no_master": "sentinel_master",
    "sentinel_auth": "sentinel_username and sentinel_password",
    "misconfigured": "username, password, db and the tls settings",
}

# Redis coming and going every few seconds is no reason to write twenty lines a minute.
LINES = 6  # for outages that begin and end, in
WINDOW_S = 60.0

_BACK = (
    "Redis %(endpoint)s is back after %(seconds).1f s, circuit breaker closed,"
    " %(skipped)d operations were answered without it"
)
_REPLACED = (
    "Redis %(endpoint)s was replaced after %(seconds).1f s, %(skipped)d operations were answered"
    " without it"
)
_Line = tuple[int, str, dict[str, Any]]


class Transition(Protocol):
    """A change of the circuit breaker's state, as much of it as is looked at here."""

    @property
    def name(self) -> str:
        """Which circuit breaker."""

    @property
    def before(self) -> str:
        """The state it left: "closed", "open" or "half_open"."""

    @property
    def after(self) -> str:
        """The state it is in now."""

    @property
    def reason(self) -> str:
        """The reason of the error that caused it, as one word; may be empty."""

    @property
    def failures(self) -> int:
        """Failures in a row up to it."""

    @property
    def cause(self) -> str:
        """What was too much, for people: "5 failures in a row"; "" when it did not open."""


class OutageLog:
    """Listens to one circuit breaker, and logs outages instead of failed calls.

    closed ──WARNING (ERROR if a setting is wrong)──▶ open ──INFO every interval──▶ closed ──INFO

    Probes that fail meanwhile (half-open and open again) are part of the same outage. One for
    whose lines there is no room in ``WINDOW_S`` seconds gets none unless it lasts; the next line
    says how many there were.

    The methods may be called from any thread; no handler runs under the lock. A forked child
    begins without an outage, as its circuit breaker does.
    """

    def __init__(
        self,
        endpoint: str,
        clock: Callable[[], float] = time.monotonic,
        interval: float = 30.0,
        lines: int = LINES,
    ) -> None:
        """Begin without an outage.

        Args:
            endpoint: Which Redis, for people; without secrets.
            clock: Seconds, never going back.
            interval: Seconds between summaries, above 0.
            lines: In ``WINDOW_S`` seconds, for outages that do not last; 2 or more.
        """
        self._endpoint = endpoint
        self._clock = clock
        self._interval = interval
        self._lines = lines
        self._begin()
        renew_in_child(self._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        # All guarded by _lock.
        self._began_at: float | None = None
        self._summary_at = math.inf
        self._reason = ""
        self._announced = False  # did this outage get its first line?
        self._blamed = False  # was a setting named in this outage?
        self._skipped = 0  # operations answered without Redis since the last closing line
        self._unsaid = 0  # outages that came and went without a line
        self._said_at: deque[float] = deque(maxlen=self._lines)

    def on_change(self, transition: Transition) -> None:
        """Take note of a new state of the circuit breaker."""
        now = self._clock()
        with self._lock:
            if transition.after != "closed":
                line = self._open(transition, now)
            else:
                line = self._close(now)
            if line is not None:
                self._said_at.append(now)
        self._say(line)

    def move(self, endpoint: str) -> None:
        """Speak of *endpoint* from now on, which is asked in the place of the former one."""
        self._endpoint = endpoint

    def replaced(self) -> None:
        """Take note that another server has taken the place of this one, of a cluster."""
        now = self._clock()
        with self._lock:
            line = self._close(now, _REPLACED)
            if line is not None:
                self._said_at.append(now)
        self._say(line)

    def skipped(self) -> None:
        """Count one operation that was answered without asking Redis."""
        now = self._clock()
        with self._lock:
            self._skipped += 1
            if now < self._summary_at:
                return
            line = self._summarize(now)
            self._said_at.append(now)
        self._say(line)

    def _open(self, transition: Transition, now: float) -> _Line | None:
        if transition.after == "open" and transition.reason:
            self._reason = transition.reason
        # Also when the end of the one before was never heard of: a signal handler can raise just
        # while listeners are being told.
        begins = self._began_at is None or transition.before == "closed"
        if begins:
            self._began_at = now
            self._summary_at = now + self._interval
            self._blamed = False
            self._announced = self._has_room(now)
        if not self._announced:
            return None
        cure = _CURES.get(self._reason)
        if cure is not None and not self._blamed and (begins or self._has_room(now)):
            self._blamed = True
            text = (
                "Redis %(endpoint)s does not let us in (%(reason)s), look at %(settings)s; circuit"
                " breaker open, answering without it"
            )
            return logging.ERROR, text, self._fields(now, settings=cure)
        if not begins:
            return None
        text = (
            "Redis %(endpoint)s is unavailable (%(reason)s), circuit breaker open after"
            " %(cause)s, answering without it"
        )
        fields = self._fields(now, failures=transition.failures, cause=transition.cause)
        return logging.WARNING, text, fields

    def _summarize(self, now: float) -> _Line:
        self._summary_at = now + self._interval
        text = (
            "Redis %(endpoint)s is unavailable for %(seconds).0f s now (%(reason)s), %(skipped)d"
            " operations answered without it"
        )
        level = logging.INFO if self._announced else logging.WARNING
        if not self._announced:
            self._announced = True
        return level, text, self._fields(now)

    def _close(self, now: float, text: str = _BACK) -> _Line | None:
        if self._began_at is None:
            return None
        line: _Line | None = None
        if self._announced:
            if self._unsaid:
                text += " (%(unsaid)d short outages before this one were not logged)"
            line = logging.INFO, text, self._fields(now)
            self._skipped = 0
            self._unsaid = 0
        else:
            self._unsaid += 1
        self._began_at = None
        self._summary_at = math.inf
        self._reason = ""
        self._announced = self._blamed = False
        return line

    def _has_room(self, now: float) -> bool:
        """Is there room for a line, and for the one that will say that it is over?"""
        return sum(now - said_at < WINDOW_S for said_at in self._said_at) <= self._lines - 2

    def _fields(self, now: float, **more: Any) -> dict[str, Any]:
        seconds = 0.0 if self._began_at is None else now - self._began_at
        return {
            "endpoint": self._endpoint,
            "reason": self._reason or "unknown",
            "seconds": seconds,
            "skipped": self._skipped,
            "unsaid": self._unsaid,
            **more,
        }

    def _say(self, line: _Line | None) -> None:
        if line is not None:
            level, text, fields = line
            say(_log, level, text, fields)
