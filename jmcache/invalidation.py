"""What makes entries invalid: counters that only grow, and deletes that are owed to Redis.

Every namespace has a counter in Redis, and so has every tag. An entry carries the sum of the
counters it depends on, as they were before its value was computed; it is valid as long as their sum
is still the same. Moving a counter on invalidates any number of entries at once. It begins with the
time in microseconds and is counted up from there; so one that was evicted or flushed comes back
higher than it ever was, and brings no old entry back to life.

What could not be told to Redis is kept in a journal, and told when Redis is back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from jmcache.fork import renew_in_child

JOURNAL = 10_000  # names that a journal holds at most
_BATCH = 500  # names told to Redis at a time
_U64 = 2**64
_DIGITS = 20  # of the largest counter


def generation_of(counters: Iterable[int | None]) -> int | None:
    """Return what an entry that depends on *counters* has to carry; None if one is not there."""
    total = 0
    for counter in counters:
        if counter is None:
            return None
        total += counter
    return total % _U64


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


class Journal:
    """Deletes and invalidations that did not reach Redis, until they do.

    Holds *limit* names at most: when there are more, one move of the namespace's counter stands
    for all of them. That invalidates more than was asked for, never less. Kept in memory: what a
    process owed when it ended is bounded by the entries' TTL.

    Thread-safe; no lock is held while Redis is told. A forked child owes nothing: its parent does.
    """

    def __init__(self, limit: int = JOURNAL) -> None:
        """Owe nothing yet."""
        self._limit = limit
        self.overflows = 0
        self._renew_in_child()
        renew_in_child(self._renew_in_child)

    def _renew_in_child(self) -> None:
        self._lock = threading.Lock()
        self._debts: dict[bytes, _Debt] = {}  # written under _lock; in the order they were made

    def __len__(self) -> int:
        return len(self._debts)

    def owes(self, name: bytes) -> bool:
        """Is *name*, an entry's or a counter's, still to be told of?"""
        return name in self._debts

    def owe_deletes(
        self, spaces: tuple[bytes, ...], names: Sequence[bytes], leases: Sequence[bytes]
    ) -> None:
        """Keep that the entries *names* are to be deleted; *spaces*: their namespace's counters."""
        debts = {name: _Debt(spaces, lease) for name, lease in zip(names, leases, strict=True)}
        with self._lock:
            self._add(debts)

    def owe_moves(self, spaces: tuple[bytes, ...], counters: Sequence[bytes]) -> None:
        """Keep that *counters* are to be moved on; they may be *spaces* themselves."""
        debts = {name: _Debt(spaces, None) for name in counters}
        with self._lock:
            self._add(debts)

    def owed_for(self, names: Iterable[bytes]) -> dict[bytes, _Debt]:
        """Return what is owed for *names* now, to be forgiven later."""
        debts = [(name, self._debts.get(name)) for name in names] if self._debts else []
        return {name: debt for name, debt in debts if debt is not None}

    def forgive(self, owed: dict[bytes, _Debt]) -> None:
        """Owe *owed* no more: the entries were written anew. What came since then stays."""
        if owed:
            with self._lock:
                self._remove(owed)

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
        while self._debts:
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

    def _add(self, debts: dict[bytes, _Debt]) -> None:
        self._debts.update(debts)  # one step: nothing that was owed is ever missing
        if len(self._debts) > self._limit:
            owners = dict.fromkeys(debt.spaces for debt in self._debts.values())
            self._debts = {space: _Debt(spaces, None) for spaces in owners for space in spaces}
            self.overflows += 1

    def _first(self) -> dict[bytes, _Debt]:
        batch: dict[bytes, _Debt] = {}
        kind: bool | None = None
        for name, debt in self._debts.items():
            moves = debt.lease is None
            kind = moves if kind is None else kind
            if len(batch) == _BATCH or moves != kind:
                break
            batch[name] = debt
        return batch

    def _remove(self, batch: dict[bytes, _Debt]) -> None:
        for name, debt in batch.items():
            if self._debts.get(name) is debt:  # not owed anew meanwhile
                del self._debts[name]
