"""The service's cache of rankings: one per process, shared by all of its threads and event loops.

Importing this opens no connection and starts no thread, so that it may be imported before a fork
(gunicorn with preload, Celery's prefork pool) and with Redis down.
"""

from __future__ import annotations

from app.core.config import settings
from jmcache import CacheSettings, Outcome, RedisCacheFactory
from jmcache.aio import AsyncRedisCache

cache_settings = CacheSettings.from_object(
    settings,
    namespace="job-matching",
    # Raise it when the form of a ranking changes: old entries are then no longer read.
    schema_version=1,
    ttl=settings.matches_ttl_s,
)

cache = RedisCacheFactory.create_cache(cache_settings)
async_cache = AsyncRedisCache(cache)


def initialize_cache() -> bool:
    """Open the first connection now, so that the first caller need not wait for it.

    Returns:
        Whether Redis answered. False is no reason to stop: the service works without it, and the
        cache finds it by itself when it is there. Takes at most the cache's `operation_timeout`.
    """
    return cache.lookup("initialize").outcome is not Outcome.UNAVAILABLE
