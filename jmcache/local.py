"""Where ``memory://`` and LocalCache keep their blobs: this process instead of Redis."""

# ruff: noqa: ARG002 -- deadlines are there for the manager's sake: nothing waits here

from __future__ import annotations

import heapq
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from jmcache.deadline import Deadline
from jmcache.errors import RedisConfigurationError, RedisError
from jmcache.fork import renew_in_child


class LocalStore:
    """A bounded store with the verbs of the connection manager.

    Holds *max_entries* at most, at every moment. When it is full, entries whose time is over make
    room first, then the least recently used one (a read and a write are uses). Blobs are bytes, so
    nobody can change what is kept.

    The methods may be called from any thread and never wait for anything but each other; their
    *deadline* is there for the manager's sake and ignored. A forked child starts with nothing.
    """

    def __init__(
        self, max_entries: int = 1000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start empty.

        Args:
            max_entries: How many entries are kept, 1 or more.
            clock: Seconds, never going back.

        Raises:
            RedisConfigurationError: *max_entries* is no whole number above 0.
        """
        if type(max_entries) is not int or max_entries < 1:
            raise RedisConfigurationError(
                f"max_entries: a whole number above 0, not {max_entries!r}"
            )
        self._max_entries = max_entries
        self._clock = clock
        # No loop stands directly in a `with` on it: from 3.12 on, an exception from a signal
        # handler that lands on the jump at the loop's end can leave the lock held for ever.
        self._lock = threading.Lock()
        # Guarded by _lock: blob and moment of expiry, least recently used first.
        self._entries: OrderedDict[bytes, tuple[bytes, float]] = OrderedDict()
        # Guarded by _lock: a heap with the expiry of every entry, and of some that are gone or
        # written anew since; those are recognised when they come up.
        self._expiries: list[tuple[float, bytes]] = []
        renew_in_child(self._renew_in_child)

    def get(self, name: bytes, deadline: Deadline) -> bytes | None:
        """Return the blob, None if there is none or its time is over."""
        now = self._clock()
        with self._lock:
            return self._get(name, now)

    def get_many(self, names: Sequence[bytes], deadline: Deadline) -> list[bytes | None]:
        """Return what :meth:`get` would, in the order of *names*, all as of one moment."""
        now = self._clock()
        with self._lock:
            return self._get_many(names, now)

    def set(self, name: bytes, blob: bytes, ttl_ms: int, deadline: Deadline) -> None:
        """Keep *blob* for *ttl_ms* milliseconds, in place of any other of that name."""
        now = self._clock()
        with self._lock:
            self._set(name, blob, ttl_ms, now)

    def set_many(
        self, items: Sequence[tuple[bytes, bytes, int]], deadline: Deadline
    ) -> list[RedisError | None]:
        """Do :meth:`set` for each (name, blob, ttl_ms); return a None for each."""
        now = self._clock()
        with self._lock:
            self._set_many(items, now)
        return [None] * len(items)

    def delete(self, names: Sequence[bytes], deadline: Deadline) -> int:
        """Forget *names*; return how many of them there were."""
        now = self._clock()
        with self._lock:
            return self._delete(names, now)

    def ping(self, deadline: Deadline) -> None:
        """Return: this process is always there."""

    def drop_connections(self) -> None:
        """Do nothing: there are none."""

    def close(self) -> None:
        """Forget everything. Idempotent."""
        with self._lock:
            self._forget_all()

    def __len__(self) -> int:
        """How many entries there are whose time is not over."""
        now = self._clock()
        with self._lock:
            self._forget_expired(now)
            return len(self._entries)

    def _get(self, name: bytes, now: float) -> bytes | None:
        entry = self._entries.get(name)
        if entry is None:
            return None
        blob, expires_at = entry
        if now >= expires_at:
            del self._entries[name]
            return None
        self._entries.move_to_end(name)
        return blob

    def _get_many(self, names: Sequence[bytes], now: float) -> list[bytes | None]:
        return [self._get(name, now) for name in names]

    def _set(self, name: bytes, blob: bytes, ttl_ms: int, now: float) -> None:
        # Room first, then the entry: broken off anywhere, there is never one too many.
        if name not in self._entries and len(self._entries) >= self._max_entries:
            self._forget_expired(now)
            while len(self._entries) >= self._max_entries:
                self._entries.popitem(last=False)
        expires_at = now + ttl_ms / 1000
        self._entries[name] = (blob, expires_at)
        self._entries.move_to_end(name)
        if len(self._expiries) >= 2 * self._max_entries:
            # As many writes lie between two of these as there are entries.
            self._expiries = [(at, name) for name, (_, at) in self._entries.items()]
            heapq.heapify(self._expiries)
        else:
            heapq.heappush(self._expiries, (expires_at, name))

    def _set_many(self, items: Sequence[tuple[bytes, bytes, int]], now: float) -> None:
        for name, blob, ttl_ms in items:
            self._set(name, blob, ttl_ms, now)

    def _delete(self, names: Sequence[bytes], now: float) -> int:
        removed = 0
        for name in names:
            entry = self._entries.pop(name, None)
            if entry is not None and now < entry[1]:
                removed += 1
        return removed

    def _forget_expired(self, now: float) -> None:
        while self._expiries and self._expiries[0][0] <= now:
            expires_at, name = heapq.heappop(self._expiries)
            entry = self._entries.get(name)
            if entry is not None and entry[1] == expires_at:
                del self._entries[name]

    def _forget_all(self) -> None:
        self._entries = OrderedDict()
        self._expiries = []

    def _renew_in_child(self) -> None:
        self._lock = threading.Lock()
        self._forget_all()
