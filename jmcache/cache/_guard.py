"""Keeps a cache outage from becoming a database outage: few loads at a time without Redis."""

from __future__ import annotations

import threading
import weakref

from jmcache.fork import renew_in_child


class Permit:
    """Leave to load, held as long as it is alive: what is lost with its frame is given back."""

    __slots__ = ("__weakref__",)


class LoadGuard:
    """Lets *limit* loads run at a time. Thread-safe; a forked child begins with none."""

    def __init__(self, limit: int) -> None:
        """Take the *limit*, 1 or more."""
        self._limit = limit
        self._renew_in_child()
        renew_in_child(self._renew_in_child)

    def enter(self, permit: Permit) -> bool:
        """Let *permit* in if there is room; never waits for more than other callers of this."""
        with self._lock:
            if len(self._held) >= self._limit:
                return False
            self._held.add(permit)
            return True

    def leave(self, permit: Permit) -> None:
        """Give the place of *permit* back. Idempotent."""
        self._held.discard(permit)

    def __len__(self) -> int:
        """How many are in."""
        return len(self._held)

    def _renew_in_child(self) -> None:
        self._lock = threading.Lock()
        self._held: weakref.WeakSet[Permit] = weakref.WeakSet()  # added to under _lock
