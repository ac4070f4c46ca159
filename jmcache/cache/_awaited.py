"""A look whose answer an event loop waits for, in place of a thread."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from jmcache.cache._look import Key, Look
from jmcache.connection import RedisConnectionManager
from jmcache.deadline import Deadline
from jmcache.envelope import Entry
from jmcache.errors import (
    RedisCorruptEntryError,
    RedisError,
    RedisHurriedError,
    RedisTimeoutError,
)
from jmcache.invalidation import read_counter

if TYPE_CHECKING:
    from jmcache.cache._stops import Stops
    from jmcache.connection._reading import Reading

_TURN_BYTES = 256 * 1024  # of values that are unsealed in one turn of the loop, 1 ms at most


class AwaitedLook:
    """Looks at several keys in one round trip, and in one more if an entry has tags.

    On the loop's thread: `begin`, then `step` whenever `fileno` can be read, or soon while that is
    -1, until it says it is over; then `look` for each key. `close` in any case. Nothing here waits.
    """

    def __init__(
        self,
        keys: Sequence[Key],
        stops: Stops,
        store: RedisConnectionManager,
        end: Callable[[RedisError | None], None],
        deadline: Deadline,
    ) -> None:
        """Ask nothing yet.

        Args:
            end: Told once how the question ended.
            deadline: Of the question.
        """
        self._keys = keys
        self._stops = stops
        self._store = store
        self._end = end
        self._deadline = deadline
        self._space = b""
        self._reading: Reading | None = None
        self._names: tuple[bytes, ...] = ()  # of the counters that are asked for
        self._known: dict[bytes, int | RedisError | None] = {}
        self._entries: dict[Key, Entry | RedisError | None] | None = None
        self._sealed: deque[tuple[Key, bytes | RedisError | None]] = deque()
        self._opened: dict[Key, Entry | RedisError | None] = {}
        self._tags: set[str] = set()
        self._error: RedisError | None = None
        self._since = stops.journal.settled
        self._kept_from = stops.nearby.begin()
        self._lives_ms: dict[Key, int] = {}  # of those that may be kept, and were not yet

    def begin(self, space: bytes) -> bool:
        """Ask for the keys, and for the counter *space*; False when that takes a wait."""
        self._space = space
        self._names = (space,)
        names = [key.name for key in self._keys]
        self._ask(names, names if self._kept_from is not None else ())
        return self._reading is not None

    def fileno(self) -> int:
        """Return the descriptor to wait for, another one perhaps after each `step`; -1: none."""
        return -1 if self._reading is None else self._reading.fileno()

    def step(self) -> bool:
        """Read what is there; return whether it is over."""
        if self._reading is None:
            return self._open_some()
        try:
            if not self._reading.step():
                return False
            found = self._reading.found
        except RedisError as error:
            self._fail(error)
            return True
        lives = self._reading.lives_ms
        self._lives_ms |= zip(self._keys, lives, strict=False)
        self._reading = None
        return self._learn(found)

    def give_up(self) -> None:
        """The time is over."""
        if self._reading is not None:
            self._fail(self._reading.give_up())

    def too_late(self, deadline: Deadline) -> RedisError:
        """Return what it is to somebody whose *deadline* is over before the question is."""
        if self._reading is None:
            return RedisHurriedError("the deadline was over before the work on the value was done")
        return self._reading.too_late(deadline)

    def close(self) -> None:
        """Let go of the connection. Idempotent."""
        if self._reading is not None:
            self._reading.close()

    @property
    def waits_for_tags(self) -> bool:
        """Does it wait for nothing but the counters of tags? See `depends_on_tags`."""
        return self._reading is not None and self._entries is not None

    def depends_on_tags(self, key: Key) -> bool:
        """Has what was found for *key* tags? Else `look` can tell of it already."""
        entry = self._entries.get(key) if self._entries is not None else None
        return isinstance(entry, Entry) and bool(entry.tags)

    def look(self, key: Key) -> Look | RedisError | None:
        """Return what was found for *key*, its value SEALED, or what it ended in.

        None: a thread has to ask again, as that may help.
        """
        if self._error is not None:
            return _for_one(self._error)
        if self._entries is None:
            return None
        try:
            look = self._stops.weigh(
                key,
                self._entries[key],
                self._space,
                self._known,
                self._since,
                self._deadline,
                decode=False,
            )
        except RedisError as error:
            return _for_one(error)
        if self._kept_from is not None and key in self._lives_ms:
            life_ms = self._lives_ms.pop(key)
            self._stops.keep(self._kept_from, key, self._entries[key], look, life_ms)
        return look

    def _ask(self, names: Iterable[bytes], lives: Sequence[bytes] = ()) -> None:
        wanted = [*names, *self._names]
        self._reading = self._store.begin_reading(wanted, self._deadline, lives)

    def _learn(self, found: Sequence[bytes | RedisError | None]) -> bool:
        counters = found[len(found) - len(self._names) :]
        for name, stored in zip(self._names, counters, strict=True):
            self._known[name] = stored if isinstance(stored, RedisError) else read_counter(stored)
        if self._entries is not None:
            return True
        self._end(None)
        self._stops.remember(self._space, self._known[self._space])
        self._sealed.extend(zip(self._keys, found, strict=False))
        return self._open_some()

    def _open_some(self) -> bool:
        """Unseal as much as a loop can be spared for in one turn; return whether it is over."""
        left = _TURN_BYTES
        sealed, opened, unseal = self._sealed, self._opened, self._stops.unseal
        while sealed and left > 0:
            key, blob = sealed.popleft()
            entry = opened[key] = unseal(key, blob)
            if isinstance(entry, Entry):
                left -= len(entry.body)
                if entry.tags:
                    self._tags.update(entry.tags)
        if sealed:
            return False
        self._entries = self._opened
        if self._tags:
            self._names = tuple(map(self._stops.keys.tag_counter, self._tags))
            self._ask(())
            if self._reading is None:
                self._entries = None
        return self._reading is None

    def _fail(self, error: RedisError) -> None:
        self._reading = None
        self._end(error)
        if self._entries is None:
            self._error = error
        else:  # it costs entries with tags alone
            self._known.update(dict.fromkeys(self._names, error))


def _for_one(error: RedisError) -> RedisError | None:
    """Return *error* for one of those whom it concerns; None if asking again may help."""
    spoilt = isinstance(error, RedisCorruptEntryError)  # one value spoils the common reply
    if spoilt or (error.retryable and not isinstance(error, RedisTimeoutError)):
        return None
    return copy.copy(error)
