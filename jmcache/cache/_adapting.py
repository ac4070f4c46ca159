"""What an adapter for event loops asks of a cache besides its verbs: the same in pieces."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jmcache.cache._awaited import AwaitedLook
from jmcache.cache._look import Kept, Key, Look
from jmcache.cache._stops import Stops, Validate
from jmcache.deadline import Deadline
from jmcache.errors import RedisError
from jmcache.outcome import Outcome

if TYPE_CHECKING:
    from jmcache.cache._cache import Cache, Timeout


class Adapting:
    """One cache, taken apart. Thread-safe, as that is; what it does not say of waits, waits not."""

    def __init__(self, cache: Cache, stops: Stops) -> None:
        self._cache = cache
        self._stops = stops
        self.key = cache._key  # noqa: SLF001 - of the same package
        self.refused = cache._refused  # noqa: SLF001
        self.found = cache._found  # noqa: SLF001

    @property
    def validates(self) -> bool:
        """Is every value that is found given to a validation of the application?"""
        return self._stops.validates

    @property
    def in_parts(self) -> bool:
        """Are keys asked of several servers, of which one may be slow for its own keys alone?"""
        return self._stops.store.in_parts

    def to_keep(self, ttl: float | None) -> Kept:
        """Return how an entry is kept for *ttl* seconds. Raises ValueError."""
        return Kept(self._cache._ttl(ttl))  # noqa: SLF001

    def find_near(
        self,
        key: str,
        validate: Validate | None,
        timeout: Timeout,
        *,
        at_once: bool,
    ) -> Look | None:
        """Return a fresh hit on *key* that is kept in this process, counted.

        Args:
            at_once: Not one that would keep an event loop from its work, as a lot to decode does,
                and code of the application's.
        """
        if not self._stops.nearby.is_on:
            return None
        return self._cache._find_near(key, validate, timeout, at_once=at_once)  # noqa: SLF001

    def holds_near(self, key: str) -> bool:
        """Is a fresh value of *key* kept in this process?"""
        nearby = self._stops.nearby
        return nearby.is_on and nearby.holds(self.key(key).name)

    def begin_look(self, keys: Sequence[Key], deadline: Deadline) -> AwaitedLook | None:
        """Begin to look at *keys*; None where that takes a wait."""
        return self._stops.begin_look(keys, deadline)

    def decoded(self, look: Look | RedisError, deadline: Deadline) -> Look | RedisError:
        """Return *look* with its value, or what that ended in."""
        if isinstance(look, RedisError):
            return look
        try:
            return self._stops.decoded(look, deadline)
        except RedisError as error:
            return error

    def set_each(
        self, wanted: Sequence[tuple[Key, Any, Kept]], deadline: Deadline
    ) -> tuple[list[RedisError | None], list[int]]:
        """Keep values in one round trip, uncounted, which waits for Redis.

        Returns:
            None for each, or why not; and its bytes, 0 for one that cannot be kept.

        Raises RedisError when none could be kept, for the same reason.
        """
        sizes: list[int] = []
        return self._cache._set_each(wanted, (), deadline, sizes), sizes  # noqa: SLF001

    def wrote(self, problem: RedisError | None, started: float) -> bool:
        """Count a set that *started* then and ended in *problem*, or well."""
        if problem is not None:
            return bool(self._cache.give_up("set", problem, started))
        self._stops.monitor.record("set", Outcome.DONE, "", time.perf_counter() - started)
        return True
