"""Keeps a cache outage from becoming a database outage: few loads at a time without Redis."""

from __future__ import annotations

import threading
import weakref

from jmcache.fork import renew_in_child


class Permit:
    """Leave to load, held as long as it is alive: what is lost with its frame is given back."""

    __slots__ = ("__weakref__", "space")

    def __init__(self, space: bytes) -> None:
        """For a load of the namespace whose counter is *space*."""
        self.space = space


class LoadGuard:
    """Lets few loads of each namespace run at a time, whichever caches of it they are for.

    Thread-safe; a forked child begins with none.
    """

    def __init__(self) -> None:
        """Let nobody in yet."""
        self._renew_in_child()
        renew_in_child(self._renew_in_child)

    def enter(self, permit: Permit, limit: int) -> bool:
        """Let *permit* in if fewer than *limit* of its namespace are; waits for nobody inside."""
        with self._lock:
            if self._count(permit.space) >= limit:
                return False
            self._held.add(weakref.ref(permit, self._held.discard))
            return True

    def _count(self, space: bytes) -> int:
        # A copy, made in C: places are given back without the lock.
        permits = [one() for one in self._held.copy()]
        return sum([permit is not None and permit.space == space for permit in permits])

    def leave(self, permit: Permit) -> None:
        """Give the place of *permit* back. Idempotent."""
        self._held.discard(weakref.ref(permit))  # equal to the one that was added

    def __len__(self) -> int:
        """How many are in."""
        return len(self._held)

    def _renew_in_child(self) -> None:
        self._lock = threading.Lock()
        self._held: set[weakref.ref[Permit]] = set()  # added to under _lock
