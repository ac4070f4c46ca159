"""One load of a key at a time in this process: who makes it, and who waits for it.

Threads and coroutines wait alike: each leaves a bell, which is rung when the load has ended. A
thread's bell is a bare lock, a coroutine's tells its event loop.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from jmcache.deadline import Deadline
from jmcache.fork import renew_in_child

_LOOK_AGAIN_S = 0.02  # a bell that was lost to an interrupted thread costs no more than this

Bell = Callable[[], object]


class Crew(dict[Any, "Flight"]):
    """The flights that somebody leads, by key.

    An exception from a signal handler may tear a leader away before any clean-up. So a flight lasts
    no longer than its crew, which nobody but its leader has.
    """

    def lead(self, flights: Mapping[Any, Flight]) -> Self:
        """Lead *flights* from now on, whoever did so before."""
        self.update(flights)
        for flight in flights.values():
            flight.crew = weakref.ref(self)
        return self


class Flight:
    """One load under way. Its leader makes it and ends it; everybody else waits for the end.

    Attributes:
        crew: Its leader's.
        result: What *land* was given, in a tuple of one; None without.
        error: What *crash* was given; None without. Neither of the two: the leader gave up, and
            whoever waited has to see for itself.
        mark: What tells whether the load is still of use to a newcomer; None while it has not
            begun. Set by the leader.
    """

    __slots__ = ("_bells", "_is_over", "_traceback", "crew", "error", "mark", "result")

    def __init__(self, crew: Crew) -> None:
        self.crew = weakref.ref(crew)
        self._is_over = False
        self.result: tuple[Any] | None = None
        self.error: BaseException | None = None
        self._traceback: TracebackType | None = None  # of the error, as it was given
        self.mark: Any = None
        self._bells: deque[Bell] = deque()

    @property
    def ended(self) -> bool:
        """True once there is nothing to wait for any more."""
        return self._is_over or self.crew() is None

    def land(self, result: Any) -> None:
        """End it with a result. Only the first end counts."""
        if not self._is_over:
            self.result = (result,)
            self.end()

    def crash(self, error: BaseException) -> None:
        """End it with what the loader raised. Only the first end counts."""
        if not self._is_over:
            self._traceback = error.__traceback__
            self.error = error
            self.end()

    def check(self) -> None:
        """Raise what *crash* was given, if it was."""
        if self.error is not None:
            # Each time it is raised it adds to what it has: the last of a hundred who waited would
            # be shown the ways of all of them.
            raise self.error.with_traceback(self._traceback)

    def end(self) -> None:
        """End it, with nothing to show unless that was said before. Idempotent."""
        self._is_over = True
        self._ring_all()

    def when_ended(self, ring: Bell) -> None:
        """Call *ring*, which must not raise, when it ends, or at once; on whatever thread."""
        self._bells.append(ring)
        if self.ended:
            self._ring_all()

    def wait(self, deadline: Deadline) -> bool:
        """Wait on the calling thread; return whether it has ended."""
        bell = threading.Lock()
        bell.acquire()
        self.when_ended(bell.release)
        while not self.ended and not deadline.expired:
            bell.acquire(timeout=min(_LOOK_AGAIN_S, deadline.remaining()))
        return self.ended

    def _ring_all(self) -> None:
        while self._bells:
            try:
                ring = self._bells.popleft()
            except IndexError:  # somebody else rings
                return
            ring()


class Flights:
    """The loads under way in this process, at most one for each name, for all caches of a store.

    Thread-safe without a lock: each step is one operation of a dict, so an exception from a signal
    handler leaves nothing half done. A forked child begins with none, whoever flew in the parent.
    """

    def __init__(self) -> None:
        self._flights: dict[bytes, Flight] = {}
        renew_in_child(self._renew_in_child)

    def board(self, name: bytes, mine: Flight) -> Flight:
        """Return the flight of *name*: *mine*, to be led by the caller, if there was none."""
        flight = self._flights.setdefault(name, mine)
        if flight.crew() is None:
            self._flights[name] = mine
            return mine
        return flight

    def replace(self, name: bytes, mine: Flight) -> None:
        """Make *mine* the flight of *name*; who is on another stays there."""
        self._flights[name] = mine

    def leave(self, name: bytes, mine: Flight) -> None:
        """End *mine*, if its leader has not, and take it off. Idempotent."""
        if self._flights.get(name) is mine:
            # Between the two another may have taken the place. Then two load, and nobody is wrong.
            self._flights.pop(name, None)
        mine.end()

    def void(self, name: bytes) -> None:
        """Let newcomers begin anew: the key was deleted, and whoever loads began before that."""
        self._flights.pop(name, None)

    def void_all(self, prefix: bytes) -> None:
        """The same for every name that begins with *prefix*."""
        for name in tuple(self._flights):
            if name.startswith(prefix):
                self._flights.pop(name, None)

    def __len__(self) -> int:
        """How many somebody leads."""
        return sum([flight.crew() is not None for flight in list(self._flights.values())])

    def _renew_in_child(self) -> None:
        self._flights = {}
