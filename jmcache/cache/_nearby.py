"""What is kept in this process of the entries in Redis, as looks."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from jmcache.cache._look import NEAR, Look
from jmcache.envelope import Entry
from jmcache.errors import RedisError
from jmcache.frozen import UNFIT, freeze
from jmcache.near import Coherence, NearCache, NearEntry
from jmcache.outcome import Outcome

_HIT = Outcome.HIT
_UNWATCHED = contextlib.nullcontext()
# What an event loop decodes itself; the rest is for threads. All callers of a turn may find theirs
# here, and no call gives way to the loop meanwhile.
_LARGE = 64 * 1024  # bytes of one value, which take half a millisecond to decode
_AT_ONCE = 128 * 1024  # bytes of all within one spell
_SPELL_S = 0.005


class Reading(NamedTuple):
    """From before Redis was asked for something that may be kept: when, and the token."""

    asked_at: float
    token: int


class Nearby:
    """The near cache of one cache, or the place where there is none. Thread-safe.

    Attributes:
        decode: From a body to its value: read-only where there is a near cache, the first time
            too. Else it would be a matter of luck whether a caller may change what he was handed.
    """

    def __init__(
        self,
        coherence: Coherence | None,
        near: NearCache | None,
        decode: Callable[[bytes], Any],
        now: Callable[[], float],
    ) -> None:
        """Keep what is given.

        Args:
            coherence: What all near caches of the namespace in this process know; None: there are
                none.
            near: Its own; None: it keeps nothing.
            decode: From a body to a value.
            now: Seconds since 1970.
        """
        self._coherence = coherence
        self._near = near  # read once by each method: another thread may close it meanwhile
        self._decode_plain = decode
        self.decode = decode if near is None else lambda body: read_only(decode(body))
        self._now = now
        # Not guarded: two loops at the same moment decode a value more.
        self._spell_began = -math.inf
        self._left_at_once = 0

    def own(self, value: Any) -> Any:
        """Return a value that was computed as it is handed out to whoever computed it."""
        return value if self._near is None else read_only(value)

    def writing(self, names: Sequence[bytes]) -> AbstractContextManager[None]:
        """Enclose a write of *names*, of entries or counters."""
        return _UNWATCHED if self._coherence is None else self._coherence.writing(names)

    def begin(self) -> Reading | None:
        """Return what `keep` is to be given for what is read from now on; None: nothing is kept."""
        if self._near is None or self._coherence is None:
            return None
        asked_at = time.monotonic()
        token = self._coherence.begin()
        return None if token is None else Reading(asked_at, token)

    def keep(
        self,
        reading: Reading,
        name: bytes,
        entry: Entry,
        life_ms: int,
        counters: tuple[bytes, ...],
    ) -> None:
        """Keep *entry*, which is fresh, if it can be.

        Args:
            life_ms: Milliseconds it had left in Redis; below 0: no end, or none at all.
            counters: Of its tags.
        """
        near = self._near
        if near is not None and life_ms > 0:
            kept = NearEntry(
                name,
                entry.body,
                until=reading.asked_at + life_ms / 1000,
                created_s=entry.created_ms / 1000,
                ttl_s=entry.soft_ttl_ms / 1000 or math.inf,
                load_cost_s=entry.load_cost_ms / 1000,
                counters=counters,
            )
            near.insert(reading.token, kept)

    def holds(self, name: bytes) -> bool:
        """Would `find` return something?"""
        near = self._near
        entry = None if near is None else near.peek(name)
        return entry is not None and self._now() - entry.created_s < entry.ttl_s

    def find(self, name: bytes, *, at_once: bool = False) -> tuple[NearEntry, Look] | None:
        """Return a fresh hit on *name*, and what to give `forget`; None: Redis has to be asked.

        Args:
            at_once: Not if there is a lot to decode, with what was decoded so just before.
        """
        near = self._near
        if near is None:
            return None
        entry = near.get(name)
        if entry is None:
            return None
        age_s = self._now() - entry.created_s
        if age_s >= entry.ttl_s:
            return None  # Redis knows whether somebody refreshes it
        body = entry.body
        if at_once and entry.is_cold and not self._is_little(len(body)):
            return None
        try:
            value = near.value(entry, self._decode_plain)
        except RedisError:  # it is Redis's copy that is judged, and removed
            near.forget(entry)
            return None
        age_s = max(age_s, 0.0)
        ttl_s, cost_s = entry.ttl_s, entry.load_cost_s
        asked_at = time.monotonic()
        return entry, Look(
            _HIT, NEAR, value, body, age_s, ttl_s, cost_s, None, None, True, asked_at
        )

    def _is_little(self, size: int) -> bool:
        """May so many bytes be decoded at once? Then they are reckoned among those that were."""
        if size > _LARGE:
            return False
        now = time.monotonic()
        if now - self._spell_began >= _SPELL_S:
            self._spell_began, self._left_at_once = now, _AT_ONCE
        self._left_at_once -= size
        return self._left_at_once >= 0

    def forget(self, entry: NearEntry) -> None:
        """Keep *entry* no longer."""
        near = self._near
        if near is not None:
            near.forget(entry)

    @property
    def is_on(self) -> bool:
        """Is there a near cache?"""
        return self._near is not None

    def close(self) -> None:
        """Let go of it: nobody listens for a cache that was closed."""
        self._near = None
        self.decode = self._decode_plain


def read_only(value: Any) -> Any:
    """Return *value* as one that cannot be changed; itself where that cannot be."""
    frozen = freeze(value)
    return value if frozen is UNFIT else frozen
