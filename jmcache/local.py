"""Where ``memory://`` and LocalCache keep their blobs: this process instead of Redis."""

# ruff: noqa: ARG002 -- deadlines are there for the manager's sake: nothing waits here

from __future__ import annotations

import heapq
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from jmcache.deadline import Deadline
from jmcache.errors import RedisConfigurationError, RedisError
from jmcache.fork import renew_in_child
from jmcache.store import COOLING, Found, Item

_LEASES = 1_000  # from so many on, those whose time is over are looked for
_COUNTERS = 100_000  # tags and namespaces that are known; some 15 MB


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
        # Guarded by _lock: what Redis keeps beside the entries, with bounds of its own.
        self._counters: dict[bytes, int] = {}
        self._leases: dict[bytes, tuple[bytes, float]] = {}
        self._leases_limit = _LEASES
        renew_in_child(self._renew_in_child)

    in_parts = False  # see Store.in_parts

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

    def read(
        self,
        names: Sequence[bytes],
        counters: Sequence[bytes],
        leases: Sequence[bytes],
        deadline: Deadline,
        *,
        lives: bool = False,
    ) -> Found:
        """See Store.read; all as of one moment. Without lives: nobody keeps a copy of these."""
        now = self._clock()
        with self._lock:
            return self._read(names, counters, leases, now)

    def write(
        self, items: Sequence[Item], counters: Sequence[bytes], deadline: Deadline
    ) -> tuple[Sequence[RedisError | None], Sequence[bytes | RedisError | None]]:
        """See Store.write."""
        now = self._clock()
        with self._lock:
            self._write(items, now)
            return [None] * len(items), self._read((), counters, (), now).counters

    def take(
        self,
        names: Sequence[bytes],
        leases: Sequence[bytes],
        token: bytes,
        lease_ms: int,
        counters: Sequence[bytes],
        deadline: Deadline,
        *,
        steal: bool = False,
    ) -> tuple[list[bool], Found]:
        """See Store.take."""
        now = self._clock()
        with self._lock:
            taken = self._take(leases, token, now + lease_ms / 1000, now, steal)
            return taken, self._read(names, counters, leases, now)

    def write_held(self, items: Sequence[Item], token: bytes, deadline: Deadline) -> list[bool]:
        """See Store.write_held."""
        now = self._clock()
        with self._lock:
            return self._write_held(items, token, now)

    def free(self, leases: Sequence[bytes], token: bytes, cool_ms: int, deadline: Deadline) -> None:
        """See Store.free."""
        now = self._clock()
        with self._lock:
            self._free(leases, token, cool_ms, now)

    def renew(
        self, leases: Sequence[bytes], token: bytes, lease_ms: int, deadline: Deadline
    ) -> None:
        """See Store.renew."""
        now = self._clock()
        with self._lock:
            for lease in leases:
                holder, ends_at = self._leases.get(lease, (None, 0.0))
                if holder == token and ends_at > now:
                    self._leases[lease] = token, now + lease_ms / 1000

    def move(self, counters: Sequence[bytes], deadline: Deadline) -> None:
        """See Store.move."""
        with self._lock:
            self._move(counters)

    def seed(self, counters: Sequence[bytes], deadline: Deadline) -> None:
        """See Store.seed."""
        with self._lock:
            self._move([name for name in counters if name not in self._counters])

    def delete(
        self, names: Sequence[bytes], deadline: Deadline, leases: Sequence[bytes] = ()
    ) -> int:
        """Forget *leases* and *names*; return how many of the names there were."""
        now = self._clock()
        with self._lock:
            self._void(leases)
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

    def _void(self, leases: Sequence[bytes]) -> None:
        for lease in leases:
            self._leases.pop(lease, None)

    def _delete(self, names: Sequence[bytes], now: float) -> int:
        removed = 0
        for name in names:
            entry = self._entries.pop(name, None)
            if entry is not None and now < entry[1]:
                removed += 1
        return removed

    def _read(
        self,
        names: Sequence[bytes],
        counters: Sequence[bytes],
        leases: Sequence[bytes],
        now: float,
    ) -> Found:
        return Found(
            self._get_many(names, now),
            [b"%d" % self._counters[name] if name in self._counters else None for name in counters],
            [self._holder(lease, now) for lease in leases],
        )

    def _holder(self, lease: bytes, now: float) -> bytes | None:
        token, ends_at = self._leases.get(lease, (None, math.inf))
        if now >= ends_at:
            del self._leases[lease]
            return None
        return token

    def _take(
        self, leases: Sequence[bytes], token: bytes, ends_at: float, now: float, steal: bool
    ) -> list[bool]:
        if len(self._leases) >= self._leases_limit:
            # Of those that nobody gave back; as many new ones lie between two of these.
            self._leases = {name: held for name, held in self._leases.items() if now < held[1]}
            self._leases_limit = max(_LEASES, 2 * len(self._leases))
        taken = [steal or self._holder(lease, now) is None for lease in leases]
        self._leases.update(
            {lease: (token, ends_at) for lease, ours in zip(leases, taken, strict=True) if ours}
        )
        return taken

    def _write_held(self, items: Sequence[Item], token: bytes, now: float) -> list[bool]:
        held = [self._holder(item.lease, now) == token for item in items]
        self._write([item for item, ours in zip(items, held, strict=True) if ours], now)
        return held

    def _write(self, items: Sequence[Item], now: float) -> None:
        for item in items:
            self._leases.pop(item.lease, None)
            self._set(item.name, item.blob, item.ttl_ms, now)

    def _free(self, leases: Sequence[bytes], token: bytes, cool_ms: int, now: float) -> None:
        for lease in leases:
            if self._holder(lease, now) == token:
                if cool_ms:
                    self._leases[lease] = COOLING, now + cool_ms / 1000
                else:
                    del self._leases[lease]

    def _move(self, counters: Sequence[bytes]) -> None:
        if len(self._counters) >= _COUNTERS:
            self._counters = {}  # as if evicted: too much is invalid, never too little
        self._counters.update({name: self._next(name) for name in counters})

    def _next(self, counter: bytes) -> int:
        return max(time.time_ns() // 1000, self._counters.get(counter, 0) + 1)

    def _forget_expired(self, now: float) -> None:
        while self._expiries and self._expiries[0][0] <= now:
            expires_at, name = heapq.heappop(self._expiries)
            entry = self._entries.get(name)
            if entry is not None and entry[1] == expires_at:
                del self._entries[name]

    def _forget_all(self) -> None:
        self._entries = OrderedDict()
        self._expiries = []
        self._counters = {}
        self._leases = {}

    def _renew_in_child(self) -> None:
        self._lock = threading.Lock()
        self._forget_all()
