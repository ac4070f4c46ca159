"""From the old cache to jmcache, with both side by side: compared first, then switched over.

    cache = SideBySide(old, new, share=0.0)     everything comes from the old one, and is compared
    cache.share = 0.1                           a tenth of the keys comes from the new one
    cache.share = 1.0                           all of them; the old one can go
    cache.enabled = False                       at any moment: the old one alone, at once

While it is switched off, what is written is deleted from the new cache, so that it returns nothing
older after it was switched on again. That deletion is what takes time then: as long as an operation
of the new cache may take, and none while its circuit breaker is open. One that did not reach Redis
holds in this process, and is repeated as soon as Redis is back.

Which keys are in the share depends on the key alone, so all replicas agree, and a key that is in it
stays in it while the share grows. One of these for each namespace ramps each by itself.
"""

from __future__ import annotations

import inspect
import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from jmcache.aio import AsyncRedisCache
from jmcache.cache import Cache, is_limit
from jmcache.errors import RedisSerializationError
from jmcache.fork import renew_in_child
from jmcache.outcome import Outcome
from jmcache.serialization import RedisSerializer

_log = logging.getLogger("jmcache.migration")

_REMEMBERED = 1000  # values whose changes by callers are noticed; as many as the old cache held
_STRIPES = 1024  # keys that share one share their writes; costs a comparison at worst


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was found so far, in this process.

    Attributes:
        reads: Values asked for while both caches were asked. One whose key was written meanwhile,
            in this process, is left out: the caches were asked before and after it.
        equal: Both had the same value.
        different: Both had one, and they differ, or comparing them raised.
        only_old: The old cache alone had one.
        only_new: The new cache alone had one.
        neither: Nobody had one.
        unavailable: The new cache gave no answer.
        unserializable: Values that the new cache will not keep, by place and type.
        mutated: Values of the old cache that a caller changed in place: with the new one, whose
            values are copies, that change is not seen by others.
        old_s: Seconds that reading the old cache took altogether.
        new_s: The same of the new one.
    """

    reads: int
    equal: int
    different: int
    only_old: int
    only_new: int
    neither: int
    unavailable: int
    unserializable: Mapping[str, int]
    mutated: int
    old_s: float
    new_s: float


class _Ledger:
    """Counts, and decides who answers. Thread-safe; a forked child counts from zero.

    A write is begun and ended. What was read while none of its key was under way, and none had
    begun, is of one moment and may be compared.
    """

    def __init__(self, share: float, equal: Callable[[Any, Any], object]) -> None:
        self.share = share
        self.enabled = True
        self._equal = equal
        self._serializer = RedisSerializer()
        self._renew_in_child()
        renew_in_child(self._renew_in_child)

    def _renew_in_child(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()  # guarded by _lock
        self._unserializable: Counter[str] = Counter()  # guarded by _lock
        self._seconds = {"old": 0.0, "new": 0.0}  # guarded by _lock
        self._bodies: OrderedDict[str, bytes] = OrderedDict()  # guarded by _lock
        self._begun = [0] * _STRIPES  # guarded by _lock
        self._ended = [0] * _STRIPES  # guarded by _lock

    @property
    def share(self) -> float:
        return self._share

    @share.setter
    def share(self, share: Any) -> None:
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise ValueError(f"share: a number from 0 to 1, not {share!r}")
        self._share = float(share)

    def is_new(self, key: str) -> bool:
        """Does the new cache answer for *key*?"""
        digest = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest) < self._share * 2**64

    @contextmanager
    def writing(self, key: Any) -> Iterator[None]:
        """For the time in which *key* is written. What was known of its value is forgotten."""
        stripe = _stripe(key)
        with self._lock:
            self._begun[stripe] += 1
            begun = self._begun[stripe]
            alone = begun == self._ended[stripe] + 1
            if isinstance(key, str):
                self._bodies.pop(key, None)
        try:
            yield
        finally:
            with self._lock:
                self._ended[stripe] += 1
                if isinstance(key, str) and not (alone and begun == self._begun[stripe]):
                    # Another write was under way: nobody knows which of the values is there now.
                    self._bodies.pop(key, None)

    def writes(self, key: Any) -> int | None:
        """Return how many writes of *key* there were; None: one is under way."""
        stripe = _stripe(key)
        with self._lock:
            begun = self._begun[stripe]
            return begun if begun == self._ended[stripe] else None

    def note_written(self, key: str, value: Any) -> None:
        """Remember what is being written, and whether the new cache can keep it."""
        try:
            body = self._serializer.serialize(value)
        except RedisSerializationError as error:
            with self._lock:
                self._unserializable[f"{error.path or 'the value itself'}: {error.type_name}"] += 1
            return
        with self._lock:
            self._bodies[key] = body
            if len(self._bodies) > _REMEMBERED:
                self._bodies.popitem(last=False)

    def note_read(
        self,
        key: str,
        writes: int | None,
        old: Any,
        new: Any,
        outcome: Outcome,
        old_s: float,
        new_s: float,
    ) -> None:
        """Compare what the two caches returned.

        Args:
            writes: As *writes* returned it before they were asked.
        """
        with self._lock:
            stripe = _stripe(key)
            if writes is None or writes != self._begun[stripe]:
                return
            known = self._bodies.get(key)
        has_new = outcome is Outcome.HIT and new is not None
        if outcome not in (Outcome.HIT, Outcome.STALE, Outcome.MISS):
            ending = "unavailable"
        elif old is not None and has_new:
            ending = "equal" if self._is_equal(old, new) else "different"
        elif old is not None or has_new:
            ending = "only_new" if has_new else "only_old"
        else:
            ending = "neither"
        changed = old is not None and known is not None and self._is_changed(old, known)
        with self._lock:
            self._counts[ending] += 1
            if changed and self._bodies.get(key) is known:
                del self._bodies[key]  # counted once
                self._counts["mutated"] += 1
            self._seconds["old"] += old_s
            self._seconds["new"] += new_s
            first = ending == "different" and self._counts["different"] == 1
        if first:
            # Neither key nor value: both may be somebody's.
            _log.warning("the old cache and the new one have different values for one key")

    def _is_equal(self, old: Any, new: Any) -> bool:
        try:
            return bool(self._equal(old, new))
        except Exception as error:
            # It is the values' own, or a comparison that is not ours: the caller only wants to
            # read. An array, say, has no single answer.
            if is_limit(error):
                raise
            return False

    def _is_changed(self, old: Any, known: bytes) -> bool:
        try:
            return self._serializer.serialize(old) != known
        except RedisSerializationError:
            return True

    def comparison(self) -> Comparison:
        with self._lock:
            counts, seconds = self._counts.copy(), self._seconds.copy()
            unserializable = dict(self._unserializable)
        endings = ("equal", "different", "only_old", "only_new", "neither", "unavailable")
        return Comparison(
            reads=sum([counts[ending] for ending in endings]),
            **{ending: counts[ending] for ending in endings},
            unserializable=unserializable,
            mutated=counts["mutated"],
            old_s=seconds["old"],
            new_s=seconds["new"],
        )


class _Switch:
    """What both kinds have in common."""

    def __init__(self, share: float, equal: Any) -> None:
        if not callable(equal) or inspect.iscoroutinefunction(equal):
            raise TypeError("equal: a plain function of an old and a new value")
        self._ledger = _Ledger(share, equal)

    @property
    def share(self) -> float:
        """The share of the keys, from 0 to 1, that the new cache answers for; may be set."""
        return self._ledger.share

    @share.setter
    def share(self, share: float) -> None:
        self._ledger.share = share

    @property
    def enabled(self) -> bool:
        """The kill switch: False has the old cache answer alone. May be set at any moment.

        Meanwhile the new one is asked for nothing, and told only to delete what is written.
        """
        return self._ledger.enabled

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        if not isinstance(enabled, bool):
            raise TypeError(f"enabled: True or False, not {type(enabled).__name__}")
        self._ledger.enabled = enabled

    def comparison(self) -> Comparison:
        """Return what was found so far."""
        return self._ledger.comparison()


def _equal(old: Any, new: Any) -> bool:
    return bool(old == new)


class SideBySide(_Switch):
    """Two caches with ``get`` and ``set`` as one, for callers without asyncio. Thread-safe."""

    def __init__(
        self,
        old: Any,
        new: Cache,
        *,
        share: float = 0.0,
        equal: Callable[[Any, Any], object] = _equal,
    ) -> None:
        """Put them side by side.

        Args:
            old: The cache there is: ``get(key)``, ``set(key, value)``, ``generate_key(...)``.
            new: The one to come.
            share: Of the keys, from 0 to 1, that *new* answers for.
            equal: Are an old and a new value the same? Tuples come back as tuples, so ``==``.

        Raises:
            ValueError: *share* is not from 0 to 1.
            TypeError: *new* or *equal* is something else.
        """
        if not isinstance(new, Cache):
            raise TypeError(f"new: a RedisCache or a LocalCache, not {type(new).__name__}")
        super().__init__(share, equal)
        self._old = old
        self._new = new

    def generate_key(self, *args: Any, **kwargs: Any) -> Any:
        """Return the old cache's key, which serves for both."""
        return self._old.generate_key(*args, **kwargs)

    def get(self, key: str) -> Any:
        """Return the value from the cache that answers for *key*; both are asked and compared."""
        ledger = self._ledger
        began = time.perf_counter()
        writes = ledger.writes(key)
        old = self._old.get(key)
        if not ledger.enabled:
            return old
        between = time.perf_counter()
        found = self._new.lookup(key)
        ended = time.perf_counter()
        ledger.note_read(
            key, writes, old, found.value, found.outcome, between - began, ended - between
        )
        if ledger.is_new(key):
            return found.value if found.outcome is Outcome.HIT else None
        return old

    def set(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        """Write both; return what the old cache returns. Further arguments are the old cache's."""
        with self._ledger.writing(key):
            enabled = self._ledger.enabled
            if not enabled and isinstance(key, str):  # the new one has no other
                # First, so that nothing older stays there however the old one's part ends.
                self._new.delete(key)
            result = self._old.set(key, value, *args, **kwargs)
            if enabled:
                self._ledger.note_written(key, value)
                if not self._new.set(key, value):
                    self._new.delete(key)  # what it has is older
        return result


class AsyncSideBySide(_Switch):
    """The same for coroutines. The old cache's methods may be coroutines, or plain."""

    def __init__(
        self,
        old: Any,
        new: AsyncRedisCache,
        *,
        share: float = 0.0,
        equal: Callable[[Any, Any], object] = _equal,
    ) -> None:
        """See SideBySide."""
        if not isinstance(new, AsyncRedisCache):
            raise TypeError(f"new: an AsyncRedisCache, not {type(new).__name__}")
        super().__init__(share, equal)
        self._old = old
        self._new = new

    async def generate_key(self, *args: Any, **kwargs: Any) -> Any:
        """See SideBySide.generate_key."""
        return await _result(self._old.generate_key(*args, **kwargs))

    async def get(self, key: str) -> Any:
        """See SideBySide.get."""
        ledger = self._ledger
        began = time.perf_counter()
        writes = ledger.writes(key)
        old = await _result(self._old.get(key))
        if not ledger.enabled:
            return old
        between = time.perf_counter()
        found = await self._new.lookup(key)
        ended = time.perf_counter()
        ledger.note_read(
            key, writes, old, found.value, found.outcome, between - began, ended - between
        )
        if ledger.is_new(key):
            return found.value if found.outcome is Outcome.HIT else None
        return old

    async def set(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        """See SideBySide.set."""
        with self._ledger.writing(key):
            enabled = self._ledger.enabled
            if not enabled and isinstance(key, str):  # the new one has no other
                # First, so that nothing older stays there however the old one's part ends.
                await self._new.delete(key)
            result = await _result(self._old.set(key, value, *args, **kwargs))
            if enabled:
                self._ledger.note_written(key, value)
                if not await self._new.set(key, value):
                    await self._new.delete(key)  # what it has is older
        return result


def _stripe(key: Any) -> int:
    return hash(key) % _STRIPES if isinstance(key, str) else 0


async def _result(maybe: Any) -> Any:
    return await maybe if inspect.isawaitable(maybe) else maybe
