"""What makes entries invalid: counters that only grow, and deletes that are owed to Redis.

Every namespace has a counter in Redis, and so has every tag. An entry carries the sum of the
counters it depends on, as they were before its value was computed; it is valid as long as their sum
is still the same. Moving a counter on invalidates any number of entries at once. It begins with the
time in microseconds and is counted up from there; so one that was evicted or flushed comes back
higher than it ever was, and brings no old entry back to life.

What could not be told to Redis is kept in a journal, and told when Redis is back.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from jmcache.deadline import Deadline
from jmcache.fork import renew_in_child

JOURNAL = 10_000  # names that a journal holds at most
_BATCH = 500  # names told to Redis at a time
_WAIT_SHARE = 0.5  # of a write's deadline may go into waiting until Redis was told
_LOOK_AGAIN_S = 0.002  # whose turn it is; seconds after an outage, not in each call
_TELL_WITHIN_S = 1.0  # a write ends sooner; whoever holds it longer was torn away
# Names share so many numbers. What is settled takes with it, of what is being read at that moment,
# what has its number: a miss in place of a hit, for one read in 4,096.
_SLOTS = 4096
COUNTER_ROOM = 2**64  # a sum of counters is kept modulo that
_DIGITS = 20  # of the largest counter


def generation_of(counters: Iterable[int | None]) -> int | None:
    """Return what an entry that depends on *counters* has to carry; None if one is not there."""
    total = 0
    for counter in counters:
        if counter is None:
            return None
        total += counter
    return total % COUNTER_ROOM


def read_counter(stored: bytes | None) -> int | None:
    """Return a counter from what Redis stores; None when it is not there, or not ours."""
    if stored is None or len(stored) > _DIGITS or not stored.isdigit():
        return None
    return int(stored)


@dataclass(frozen=True, slots=True, eq=False)
class _Debt:
    """One name that Redis is to be told of. Known by its identity."""

    spaces: tuple[bytes, ...]  # the counters of the namespace it belongs to
    lease: bytes | None  # of an entry, to be deleted; None: it is a counter, to be moved on


class _Turn:
    """Leave to tell Redis, or to write what is owed, as long as somebody has it.

    Known weakly: a lock would stay held by whoever a signal handler's exception tore away.
    """

    __slots__ = ("__weakref__",)


class Journal:
    """Deletes and invalidations that did not reach Redis, until they do.

    Holds *limit* names at most: when there are more, one move of the namespace's counter stands
    for all of them. That invalidates more than was asked for, never less. Kept in memory: what a
    process owed when it ended is bounded by the entries' TTL.

    Who reads from Redis may have asked before it was told, and be answered after that: what he was
    told then is as old as what is owed. So each settlement has a number, and he remembers the one
    from before he asked.

    Thread-safe. Nobody waits while Redis is told, but for a write of what is owed. A forked child
    owes nothing: its parent does.

    Attributes:
        debts: What is owed, by name. To be looked at only.
        settled: The number of the latest settlement.
    """

    def __init__(self, limit: int = JOURNAL) -> None:
        """Owe nothing yet."""
        self._limit = limit
        self.overflows = 0
        self._renew_in_child()
        renew_in_child(self._renew_in_child)

    def _renew_in_child(self) -> None:
        self._lock = threading.Lock()
        self._turn: weakref.ref[_Turn] | None = None  # whose it is; written under _lock
        self.debts: dict[bytes, _Debt] = {}  # written under _lock; in the order they were made
        self.settled = 0  # written under _lock, as is the next
        self._last = array("Q")  # of the latest settlement, by slot; empty before the first

    def __len__(self) -> int:
        return len(self.debts)

    def voids(self, names: Iterable[bytes], since: int) -> bool:
        """Is what depends on one of *names* invalid, as Redis has it or had it a moment ago?

        False in any case where nothing is owed and after that `settled` is *since* still: who looks
        at that, in this order, is spared this call.

        Args:
            since: What `settled` was before Redis was asked.
        """
        for name in names:
            # In this order: a debt is settled before it is taken off.
            if name in self.debts or (self._last and self._last[hash(name) % _SLOTS] > since):
                return True
        return False

    def owe_deletes(
        self, spaces: tuple[bytes, ...], names: Sequence[bytes], leases: Sequence[bytes]
    ) -> bool:
        """Keep that the entries *names* are to be deleted; *spaces*: their namespace's counters.

        False: that was too much, and everything in the namespace is invalid from now on.
        """
        debts = {name: _Debt(spaces, lease) for name, lease in zip(names, leases, strict=True)}
        with self._lock:
            return self._add(debts)

    def owe_moves(self, spaces: tuple[bytes, ...], counters: Sequence[bytes]) -> bool:
        """Keep that *counters* are to be moved on; as `owe_deletes`. They may be *spaces*."""
        debts = {name: _Debt(spaces, None) for name in counters}
        with self._lock:
            return self._add(debts)

    def owed_for(self, names: Iterable[bytes]) -> dict[bytes, _Debt]:
        """Return what is owed for *names* now, to be forgiven later."""
        debts = [(name, self.debts.get(name)) for name in names] if self.debts else []
        return {name: debt for name, debt in debts if debt is not None}

    def forgive(self, owed: dict[bytes, _Debt]) -> None:
        """Owe *owed* no more: the entries were written anew. What came since then stays."""
        if owed:
            with self._lock:
                self._remove(owed)

    @contextlib.contextmanager
    def overtaking(
        self, names: Sequence[bytes], deadline: Deadline
    ) -> Iterator[dict[bytes, _Debt]]:
        """Hand out what is owed for *names*, to be forgiven when they were written anew.

        Redis is told nothing meanwhile, if that can be had within half of *deadline*: what is on
        its way would come behind the write, and remove what was just confirmed.
        """
        if not self.owed_for(names):
            yield {}
            return
        turn = _Turn()
        try:
            self._wait_for(turn, deadline.remaining() * _WAIT_SHARE)
            yield self.owed_for(names)
        finally:
            self._leave(turn)

    def settle(
        self,
        delete: Callable[[Sequence[bytes], Sequence[bytes]], object],
        move: Callable[[Sequence[bytes]], object],
    ) -> None:
        """Tell Redis everything, in order; what *delete* or *move* raises ends it, and is kept.

        Args:
            delete: Given names and their leases.
            move: Given counters.

        May run on several threads at once: each name is told at least once.
        """
        while self.debts:
            turn = _Turn()
            try:
                self._wait_for(turn, _TELL_WITHIN_S)
                self._tell_first(delete, move)
            finally:
                self._leave(turn)

    def _wait_for(self, turn: _Turn, seconds: float) -> None:
        """Wait until it is *turn*, but no longer than that."""
        ends_at = time.monotonic() + seconds
        while not self._is(turn) and time.monotonic() < ends_at:
            time.sleep(_LOOK_AGAIN_S)

    def _is(self, turn: _Turn) -> bool:
        with self._lock:
            holder = None if self._turn is None else self._turn()
            if holder is None:
                self._turn = weakref.ref(turn)
            return holder is None

    def _leave(self, turn: _Turn) -> None:
        with self._lock:
            if self._turn is not None and self._turn() is turn:
                self._turn = None

    def _tell_first(
        self,
        delete: Callable[[Sequence[bytes], Sequence[bytes]], object],
        move: Callable[[Sequence[bytes]], object],
    ) -> None:
        with self._lock:
            batch = self._first()
        names = list(batch)
        leases = [debt.lease for debt in batch.values() if debt.lease is not None]
        if leases:
            delete(names, leases)
        elif names:
            move(names)
        with self._lock:
            self._remove(batch)

    def _add(self, debts: dict[bytes, _Debt]) -> bool:
        self.debts.update(debts)  # one step: nothing that was owed is ever missing
        if len(self.debts) <= self._limit:
            return True
        owners = dict.fromkeys(debt.spaces for debt in self.debts.values())
        self.debts = {space: _Debt(spaces, None) for spaces in owners for space in spaces}
        self.overflows += 1
        return False

    def _first(self) -> dict[bytes, _Debt]:
        batch: dict[bytes, _Debt] = {}
        kind: bool | None = None
        for name, debt in self.debts.items():
            moves = debt.lease is None
            kind = moves if kind is None else kind
            if len(batch) == _BATCH or moves != kind:
                break
            batch[name] = debt
        return batch

    def _remove(self, batch: dict[bytes, _Debt]) -> None:
        number = self.settled + 1
        last = self._last or array("Q", bytes(8 * _SLOTS))
        for name in batch:
            last[hash(name) % _SLOTS] = number
        self._last, self.settled = last, number
        for name, debt in batch.items():
            if self.debts.get(name) is debt:  # not owed anew meanwhile
                del self.debts[name]
