"""Keeps the leases of loads that take longer than a lease lasts.

A lease ends soon, because its holder may have died; and a value is stored only under a lease that
is still held, because a delete may have voided it. So whoever is alive and loads has it renewed. A
load that never ends must not hold off the others for ever, though.
"""

from __future__ import annotations

import math
import queue
import threading
import time
import weakref
from collections.abc import Callable

from jmcache.errors import RedisError
from jmcache.fork import renew_in_child
from jmcache.threads import start_thread

_RENEWALS = 3  # in the time a lease lasts: one of them may be lost
_LONGEST = 30  # times a lease: who loads for longer hangs, and the others are to be rid of him
_REST_S = 10.0  # without a load the thread ends


class Hold:
    """The leases of one load; kept as long as somebody has this, and until `end`."""

    __slots__ = ("__weakref__", "due", "every_s", "lease_s", "leases", "token", "until")

    def __init__(self, leases: list[bytes], token: bytes, lease_s: float) -> None:
        """Hold *leases*, which last *lease_s* seconds, by *token*."""
        self.leases = leases
        self.token = token
        self.lease_s = lease_s
        self.every_s = lease_s / _RENEWALS
        now = time.monotonic()
        self.due = now + self.every_s
        self.until = now + _LONGEST * lease_s

    def end(self) -> None:
        """Keep them no longer."""
        self.leases = []


class Keeper:
    """Renews leases on a daemon thread, which is there while somebody loads. Thread-safe.

    A forked child begins with neither.
    """

    def __init__(self, renew: Callable[[Hold], object]) -> None:
        """Start nothing yet; *renew* makes the leases last anew, or raises RedisError."""
        self._renew = renew
        self._rests = True
        self._renew_in_child()
        renew_in_child(self._renew_in_child)

    def _renew_in_child(self) -> None:
        # Known weakly, as are flights: a leader who was torn away keeps nothing.
        self._holds: set[weakref.ref[Hold]] = set()
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._looks_at = 0.0  # when the thread looks again; 0: there is none
        self._lock = threading.Lock()

    def keep(self, hold: Hold) -> None:
        """Renew what *hold* has, from a third of its time on."""
        self._holds.add(weakref.ref(hold, self._holds.discard))  # in C: no handler can run there
        if self._looks_at == 0.0:
            self._start()
        elif hold.due < self._looks_at:
            self._bell.put(None)

    def dismiss(self) -> None:
        """Have the thread end as soon as nobody loads, from now on. Idempotent."""
        self._rests = False
        self._bell.put(None)

    def _start(self) -> None:
        try:
            if not self._claim() or start_thread("jmcache-keeper", self._run):
                return
        except BaseException:  # from a signal handler; at worst two threads look for a while
            self._looks_at = 0.0
            raise
        self._looks_at = 0.0  # a long load may lose its lease

    def _claim(self) -> bool:
        """Be the one thread there is, or the one to start it; False if there is one."""
        with self._lock:
            if self._looks_at:
                return False
            self._looks_at = time.monotonic()
            return True

    def _run(self) -> None:
        idle_since = time.monotonic()
        while True:
            self._looks_at = math.inf  # who comes from here on rings
            now = time.monotonic()
            due = self._look_round(now)
            if due == math.inf and not (self._rests and now - idle_since <= _REST_S):
                if self._ends():
                    return
                due = now  # somebody came meanwhile
            if due == math.inf:
                due = now + _REST_S
            else:
                idle_since = now
            self._looks_at = due
            self._sleep()

    def _look_round(self, now: float) -> float:
        """Renew what is due; return when the next one is, math.inf when nobody loads."""
        # By itself, so that the sleeping thread has no hold in any variable: it would keep the
        # leases of a leader who was torn away.
        due = math.inf
        for one in self._holds.copy():
            hold = one()
            if hold is not None and hold.until <= now:
                hold.end()
            if hold is None or not hold.leases:
                continue
            if hold.due <= now:
                hold.due = now + hold.every_s
                self._renew_one(hold)
            due = min(due, hold.due)
        return due

    def _renew_one(self, hold: Hold) -> None:
        try:
            self._renew(hold)
        except RedisError:
            pass  # there are further ones before it ends

    def _ends(self) -> bool:
        self._looks_at = 0.0
        # Looked at after that: who came before it rang for a thread that was about to leave. What
        # somebody keeps with a traceback, and has ended, is there still.
        return self._look_round(time.monotonic()) == math.inf or not self._claim()

    def _sleep(self) -> None:
        try:
            self._bell.get(timeout=max(0.0, self._looks_at - time.monotonic()))
        except queue.Empty:
            pass
