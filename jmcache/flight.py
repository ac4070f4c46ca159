"""One load of a key at a time in this process: who makes it, and who waits for it.

Threads and coroutines wait alike: each leaves a bell, which is rung when the load has ended. A
thread's bell is a bare lock, a coroutine's tells its event loop.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from jmcache.deadline import Deadline
from jmcache.fork import renew_in_child

_LOOK_AGAIN_S = 0.02  # a bell that was lost to an interrupted thread costs no more than this

Bell = Callable[[], object]


class Flight:
    """One load under way. Its leader makes it and ends it; everybody else waits for the end.

    Attributes:
        ended: True once there is nothing to wait for any more.
        result: What *land* was given, in a tuple of one; None without.
        error: What *crash* was given; None without. Neither of the two: the leader gave up, and
            whoever waited has to see for itself.
        mark: What tells whether the load is still of use to a newcomer; None while it has not
            begun. Set by the leader.
    """

    __slots__ = ("_bells", "ended", "error", "mark", "result")

    def __init__(self) -> None:
        self.ended = False
        self.result: tuple[Any] | None = None
        self.error: Exception | None = None
        self.mark: Any = None
        self._bells: deque[Bell] = deque()

    def land(self, result: Any) -> None:
        """End it with a result. Only the first end counts."""
        if not self.ended:
            self.result = (result,)
            self.end()

    def crash(self, error: Exception) -> None:
        """End it with what the loader raised. Only the first end counts."""
        if not self.ended:
            self.error = error
            self.end()

    def end(self) -> None:
        """End it, with nothing to show unless that was said before. Idempotent."""
        self.ended = True
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
    """The loads under way in this process, at most one for each name.

    Thread-safe without a lock: each step is one operation of a dict, so an exception from a signal
    handler leaves nothing half done. A forked child begins with none, whoever flew in the parent.
    """

    def __init__(self) -> None:
        self._flights: dict[bytes, Flight] = {}
        renew_in_child(self._renew_in_child)

    def board(self, name: bytes, mine: Flight) -> Flight:
        """Return the flight of *name*: *mine*, to be led by the caller, if there was none."""
        return self._flights.setdefault(name, mine)

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

    def void_all(self) -> None:
        """The same for every name."""
        self._flights.clear()

    def __len__(self) -> int:
        return len(self._flights)

    def _renew_in_child(self) -> None:
        self._flights = {}
