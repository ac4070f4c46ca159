"""The cache in this process."""

from __future__ import annotations

import time
from collections.abc import Callable

from jmcache.cache._cache import Cache
from jmcache.cache._stops import Stops, Validate
from jmcache.invalidation import Journal
from jmcache.local import LocalStore
from jmcache.monitoring import Monitor
from jmcache.serialization import RedisSerializer
from jmcache.settings import CacheSettings


class LocalCache(Cache):
    """The same cache in this process alone: the old in-memory ResultsCache, made thread-safe.

    For development, for tests, and where nothing is shared. Entries expire after their TTL, the
    least recently used one goes when there are more than *max_entries*. Values take the same way
    as to Redis, through serialization and envelope, so what works here works there. A forked child
    starts empty.
    """

    def __init__(
        self,
        max_entries: int = 1000,
        ttl: float = 300.0,
        *,
        clock: Callable[[], float] = time.monotonic,
        settings: CacheSettings | None = None,
        store: LocalStore | None = None,
        monitor: Monitor | None = None,
        serializer: RedisSerializer | None = None,
        validate: Validate | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        """Start empty.

        Args:
            max_entries: Entries kept at most, 1 or more.
            ttl: Seconds a value stays, above 0, where ``set`` is not told otherwise.
            clock: Seconds, never going back; decides what has expired.
            settings: Taken instead of *max_entries* and *ttl*, for namespace and limits too.
            store: Shared with other caches of this process; None: one of its own.
            on_close: Called when the cache is closed, each time it is.
        """
        if settings is None:
            settings = CacheSettings(memory=True, max_entries=max_entries, ttl=ttl, ttl_jitter=0.0)
        if store is None:
            store = LocalStore(settings.max_entries, clock)
            on_close = on_close or store.close
        super().__init__(
            Stops(
                store,
                settings,
                monitor=monitor or Monitor(settings.namespace),
                journal=Journal(),
                serializer=serializer,
                validate=validate,
                now=clock,
            ),
            on_close=on_close,
        )
