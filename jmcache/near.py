"""What this process keeps of the entries in Redis, and for how long it is known to be true.

Coherence  knows what was invalidated, and until when nothing can have been without its knowing
NearCache  the entries themselves: bytes, and of the few that are hot the value, for all to share

Whoever listens to Redis tells the coherence what changed there, and moves on the moment until
which that is all there is to know. Past that moment nothing is handed out and nothing is kept.

    token = coherence.begin()      before Redis is asked
    near.insert(token, ...)        what it answered, unless it was invalidated since
    with coherence.writing(names): around every write of this process
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Final

from jmcache.fork import renew_in_child
from jmcache.frozen import UNFIT, freeze

# Names share so many numbers. One that changed takes with it, of what is being read at that moment,
# what has its number: one read in 4,096 is not kept that could be.
_SLOTS = 4096
_WRITING_S = 10.0  # so long a write keeps its names out, should a kept traceback keep it alive
# Of what is kept, the part whose values are kept decoded, too: they take some 7 times as much.
_HOT_SHARE = 50
_HOT_BYTES = 1024 * 1024  # or so many, in a cache that holds little, but no more than
_HOT_LIMIT_SHARE = 64  # such a part of its limit
_SMALL_BYTES = 16 * 1024 * 1024  # a cache that holds less keeps more of them, all where it is few
_SMALL_LIMIT_SHARE = 4
_HOT_HITS = 2  # so many, and a value is kept decoded
_OVERHEAD = 500  # bytes of an entry besides its name and body, measured on 3.11
_TAG_OVERHEAD = 100  # and for each tag


class Writing:
    """A write of this process, from before it is sent until its answer is there."""

    __slots__ = ("__weakref__", "_coherence", "_reference", "names", "until")

    def __init__(self, coherence: Coherence, names: Sequence[bytes]) -> None:
        self._coherence = coherence
        self._reference: weakref.ref[Writing] | None = None
        self.names = frozenset(names)
        self.until = math.inf

    def __enter__(self) -> None:
        self._reference = self._coherence._begin_writing(self)  # noqa: SLF001  a part of it

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._coherence._end_writing(self._reference, self.names)  # noqa: SLF001


class Coherence:
    """What is known of the names of one namespace, for the near caches that keep some of them.

    A sequence number stands for each invalidation. Who reads from Redis remembers the number from
    before; what was invalidated since has a higher one, and is not kept. That takes no memory per
    name or reader: names share _SLOTS numbers.

    Thread-safe. A forked child knows nothing until somebody listens for it.

    Attributes:
        until: Seconds of the clock until which what is kept is true; -inf: nobody listens.
        used_at: When somebody asked last.
        wake: Called, often, by whoever finds that it is past *until*; returns at once.
    """

    def __init__(
        self, space_counter: bytes, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Know nothing yet.

        Args:
            space_counter: The counter that all entries depend on.
            clock: Seconds, never going back.
        """
        self._space = space_counter
        self._clock = clock
        self.wake: Callable[[], None] = nobody
        self._caches: set[weakref.ref[NearCache]] = set()
        self._renew_in_child()
        renew_in_child(self._renew_in_child)

    def _renew_in_child(self) -> None:
        # Everything below is written under it, and what its caches keep. No loop stands directly
        # in a `with` on it, see jmcache.fork.
        self.lock = threading.Lock()
        self.until = -math.inf
        self.used_at = -math.inf
        self._number = 0  # of the latest invalidation
        self._floor = 0  # who began before it knows nothing
        # Number of the latest one, by slot; there are none while nobody keeps anything.
        self._last = array("Q", bytes(8 * _SLOTS if self._caches else 0))
        self._session = 0
        self._writing: set[weakref.ref[Writing]] = set()

    # For caches ---------------------------------------------------------------------------------

    def begin(self) -> int | None:
        """Return what `NearCache.insert` is to be given for what Redis is asked from now on.

        None where nothing would be kept.
        """
        if self._clock() >= self.until:
            self.wake()
            return None
        return self._number

    def writing(self, names: Sequence[bytes]) -> Writing:
        """Enclose a write of this process that changes *names*, of entries or counters.

        They are forgotten before it and after it, and not kept in between: who reads one of them
        when the write is over has the new value from Redis, whatever others read meanwhile.
        """
        return Writing(self, names)

    @property
    def has_caches(self) -> bool:
        """Does anybody keep something?"""
        return bool(self._caches)

    # For who listens, and for what becomes known otherwise --------------------------------------

    def invalidate(self, names: Sequence[bytes]) -> None:
        """Forget *names*, of entries or counters; for a counter, all that depends on it.

        Any other name is welcome. What of them is being read at the moment will not be kept.
        """
        if self._caches:
            with self.lock:
                self._invalidate(names)

    def flush(self) -> None:
        """Forget everything, and keep nothing of what is being read at the moment."""
        with self.lock:
            self._flush()

    def open(self) -> int:
        """Begin to listen, from now on, with nothing kept; return the session's number."""
        with self.lock:
            self._close()
            return self._session

    def extend(self, session: int, until: float) -> bool:
        """Let what is kept be true until then, if *session* is the one that was opened last.

        False: it is not, and never will be again.
        """
        with self.lock:
            if session != self._session:
                return False
            self.until = max(self.until, until)
            return True

    def close(self, session: int | None = None) -> None:
        """Listen no more. Nothing is handed out or kept until another session was extended.

        Args:
            session: Do nothing if another one was opened since.
        """
        with self.lock:
            if session is None or session == self._session:
                self._close()

    # --------------------------------------------------------------------------------------------

    def _close(self) -> None:
        self._session += 1
        self.until = -math.inf
        self._flush()

    def _invalidate(self, names: Iterable[bytes]) -> None:
        self._number = number = self._number + 1
        last = self._last
        for name in names:
            last[hash(name) % _SLOTS] = number
        if self._space in names:
            self._flush()
            return
        for reference in tuple(self._caches):
            cache = reference()
            if cache is not None:
                cache._forget(names)  # noqa: SLF001  under our lock

    def _flush(self) -> None:
        self._number += 1
        self._floor = self._number
        for reference in tuple(self._caches):
            cache = reference()
            if cache is not None:
                cache._clear()  # noqa: SLF001

    def _begin_writing(self, writing: Writing) -> weakref.ref[Writing]:
        # Known weakly: who is torn away without a word does not keep its names out for ever.
        writing.until = self._clock() + _WRITING_S
        reference = weakref.ref(writing, self._writing.discard)
        self._writing.add(reference)
        if self._caches:
            with self.lock:
                self._invalidate(writing.names)
        return reference

    def _end_writing(self, reference: weakref.ref[Writing] | None, names: Iterable[bytes]) -> None:
        if reference is not None:
            self._writing.discard(reference)
        # After that: what was kept in between goes, too.
        if self._caches:
            with self.lock:
                self._invalidate(names)

    def _add(self, cache: NearCache) -> None:
        with self.lock:
            if not self._last:
                self._last = array("Q", bytes(8 * _SLOTS))
        self._caches.add(weakref.ref(cache, self._caches.discard))

    def _admits(self, token: int, name: bytes, counters: Sequence[bytes]) -> bool:
        """Is what was read since *token* still so? Under the lock."""
        if token < self._floor or self._clock() >= self.until:
            return False
        last = self._last
        if last[hash(name) % _SLOTS] > token:
            return False
        for counter in counters:
            if last[hash(counter) % _SLOTS] > token:
                return False
        return not self._writing or not self._is_written(name, counters)

    def _is_written(self, name: bytes, counters: Sequence[bytes]) -> bool:
        wanted = {name, self._space, *counters}
        for reference in tuple(self._writing):
            writing = reference()
            if (
                writing is not None
                and self._clock() < writing.until
                and not wanted.isdisjoint(writing.names)
            ):
                return True
        return False


_COLD: Final = object()  # in place of a value that is not kept decoded


class NearEntry:
    """What is kept of one entry.

    Attributes:
        name: Its name in Redis.
        body: The value, serialized.
        created_s: Seconds since 1970 that its age counts from.
        ttl_s: Seconds of age up to which it is fresh; inf: as long as it is there.
        load_cost_s: Seconds it took to compute.
        counters: The names of the counters of its tags.
        until: Seconds of the clock from which on it is not there.
    """

    __slots__ = (
        "body",
        "counters",
        "created_s",
        "hits",
        "load_cost_s",
        "name",
        "ttl_s",
        "until",
        "value",
    )

    def __init__(
        self,
        name: bytes,
        body: bytes,
        *,
        until: float,
        created_s: float,
        ttl_s: float = math.inf,
        load_cost_s: float = 0.0,
        counters: tuple[bytes, ...] = (),
    ) -> None:
        self.name = name
        self.body = body
        self.until = until
        self.created_s = created_s
        self.ttl_s = ttl_s
        self.load_cost_s = load_cost_s
        self.counters = counters
        self.hits = 0
        self.value: Any = _COLD

    @property
    def is_cold(self) -> bool:
        """Has its value to be decoded?"""
        return self.value is _COLD

    @property
    def size(self) -> int:
        """Bytes it takes, about, without its value."""
        extra = sum([len(counter) + _TAG_OVERHEAD for counter in self.counters])
        return len(self.body) + len(self.name) + _OVERHEAD + extra


class NearCache:
    """Entries of Redis in this process, as long as *coherence* says that they are true.

    Holds *max_bytes* at most, and the values of the hottest besides: those are decoded once and
    shared by all callers, read-only (see jmcache.frozen); a 50th of the bytes is kept so, or a MiB,
    which takes some 7 times as much memory. The least recently used entry goes first.

    Thread-safe: a hit takes no lock. A forked child starts with nothing.
    """

    def __init__(
        self,
        coherence: Coherence,
        max_bytes: int,
        ttl_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start empty.

        Args:
            max_bytes: That entries may take.
            ttl_s: Seconds an entry is kept at most, whatever its own life.
            clock: The one of *coherence*.
        """
        self._coherence = coherence
        self._max_bytes = max_bytes
        self._hot_least_bytes = min(_HOT_BYTES, max_bytes // _HOT_LIMIT_SHARE)
        self._small_bytes = min(_SMALL_BYTES, max_bytes // _SMALL_LIMIT_SHARE)
        self._ttl_s = ttl_s
        self._clock = clock
        # Written under the lock of the coherence. Read without: each look is one atomic step.
        self._clear()
        renew_in_child(self._clear)
        coherence._add(self)  # noqa: SLF001

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def bytes_kept(self) -> int:
        """Bytes that entries take, about."""
        return self._bytes

    def get(self, name: bytes) -> NearEntry | None:
        """Return the entry of *name*, if it is here and known to be true."""
        now = self._clock()
        coherence = self._coherence
        coherence.used_at = now
        if now >= coherence.until:
            coherence.wake()
            return None
        entry = self._entries.get(name)
        if entry is None:
            return None
        if now >= entry.until:
            self.forget(entry)
            return None
        try:
            self._entries.move_to_end(name)
            if entry.value is not _COLD:
                self._hot.move_to_end(name)
        except KeyError:  # forgotten since the line above
            pass
        return entry

    @property
    def _hot_most_bytes(self) -> int:
        spare = (self._small_bytes - self._bytes) // 2
        return max(self._hot_least_bytes, self._bytes // _HOT_SHARE, spare)

    def peek(self, name: bytes) -> NearEntry | None:
        """Return what `get` would, and count it as no use."""
        entry = self._entries.get(name)
        now = self._clock()
        usable = entry is not None and now < entry.until and now < self._coherence.until
        return entry if usable else None

    def value(self, entry: NearEntry, decode: Callable[[bytes], Any]) -> Any:
        """Return the value of *entry*: read-only, or a copy of the caller's own.

        The same is returned to others where it is read-only. Otherwise it holds something that
        nothing can keep from being changed, and is decoded anew each time.
        """
        value = entry.value
        if value is not _COLD:
            return value
        decoded = decode(entry.body)
        value = freeze(decoded)
        if value is UNFIT:
            return decoded
        entry.hits += 1
        if entry.hits >= _HOT_HITS and 2 * len(entry.body) <= self._hot_most_bytes:
            with self._coherence.lock:
                self._heat(entry, value)
        return value

    def insert(self, token: int, entry: NearEntry) -> bool:
        """Keep *entry*, as it was read since `Coherence.begin` returned *token*.

        False where it is not kept: it, or something it depends on, was invalidated since then or
        is being written; nobody listens any more; or it is larger than all entries may be.
        """
        entry.until = min(entry.until, self._clock() + self._ttl_s)
        with self._coherence.lock:
            if not self._coherence._admits(token, entry.name, entry.counters):  # noqa: SLF001
                return False
            return self._put(entry)

    def forget(self, entry: NearEntry) -> None:
        """Keep *entry* no longer."""
        with self._coherence.lock:
            if self._entries.get(entry.name) is entry:
                self._drop(entry.name)

    # Under the lock -----------------------------------------------------------------------------

    def _clear(self) -> None:
        self._entries: OrderedDict[bytes, NearEntry] = OrderedDict()  # least recently used first
        self._hot: OrderedDict[bytes, NearEntry] = OrderedDict()  # of these, those with a value
        self._dependents: dict[bytes, set[bytes]] = {}  # the names with a tag, by its counter
        self._bytes = 0
        self._hot_bytes = 0

    def _put(self, entry: NearEntry) -> bool:
        size = entry.size
        if size > self._max_bytes:
            return False
        self._drop(entry.name)
        # In this order: what is found can be invalidated, wherever a signal handler raises.
        for counter in entry.counters:
            self._dependents.setdefault(counter, set()).add(entry.name)
        self._bytes += size
        self._entries[entry.name] = entry
        while self._bytes > self._max_bytes:
            self._evict()
        self._cool_down()
        return True

    def _evict(self) -> None:
        # One step, not a look at the first and its removal: readers move entries without the lock.
        try:
            _, oldest = self._entries.popitem(last=False)
        except KeyError:  # a signal handler raised where an entry was counted, and it is not there
            self._clear()
        else:
            self._let_go(oldest)

    def _heat(self, entry: NearEntry, value: Any) -> None:
        if self._entries.get(entry.name) is not entry or entry.value is not _COLD:
            return
        self._hot_bytes += len(entry.body)
        self._hot[entry.name] = entry
        entry.value = value
        self._cool_down()

    def _cool_down(self) -> None:
        while self._hot_bytes > self._hot_most_bytes:
            try:
                _, coolest = self._hot.popitem(last=False)
            except KeyError:  # as in _evict
                self._hot_bytes = 0
            else:
                self._cool(coolest)

    def _cool(self, entry: NearEntry) -> None:
        entry.value = _COLD
        entry.hits = 0
        self._hot_bytes -= len(entry.body)

    def _forget(self, names: Iterable[bytes]) -> None:
        for name in names:
            self._drop(name)
            # Known as dependents until they are gone, wherever a signal handler raises.
            for dependent in tuple(self._dependents.get(name, ())):
                self._drop(dependent)
            self._dependents.pop(name, None)

    def _drop(self, name: bytes) -> None:
        entry = self._entries.pop(name, None)
        if entry is not None:
            self._let_go(entry)

    def _let_go(self, entry: NearEntry) -> None:
        """Account for *entry*, which was taken out."""
        name = entry.name
        self._bytes -= entry.size
        if self._hot.pop(name, None) is not None:
            self._cool(entry)
        for counter in entry.counters:
            names = self._dependents.get(counter)
            if names is not None:
                names.discard(name)
                if not names:
                    del self._dependents[counter]


def nobody() -> None:
    """Nobody listens who could be woken."""
