"""A shared, resilient Redis cache for job-matching results.

    from jmcache import CacheSettings, RedisCacheFactory

    cache = RedisCacheFactory.create_cache(CacheSettings.from_env(), ttl=300)
    key = cache.generate_key("candidate-42", skills=["python", "redis"])
    cache.set(key, results)
    cache.get(key)

``jmcache.aio`` has the same for coroutines, ``jmcache.integrations`` for frameworks,
``jmcache.testing`` for tests. Importing starts nothing and does not import redis-py.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jmcache.aio import AsyncRedisCache
    from jmcache.cache import (
        AsyncCachedFunction,
        Cache,
        CachedFunction,
        LoadContext,
        LocalCache,
        RedisCache,
        load_context,
    )
    from jmcache.circuit_breaker import CircuitBreaker, CircuitState, Transition
    from jmcache.connection import PoolUsage, RedisConnectionManager
    from jmcache.deadline import Deadline
    from jmcache.errors import (
        LoaderOverloadedError,
        LoaderTimeoutError,
        RedisCircuitBreakerOpenError,
        RedisClosedError,
        RedisConfigurationError,
        RedisConnectionError,
        RedisCorruptEntryError,
        RedisError,
        RedisExpiredEntryError,
        RedisForeignVersionError,
        RedisHurriedError,
        RedisMisconfiguredError,
        RedisNotReadyError,
        RedisNotServedError,
        RedisPoolExhaustedError,
        RedisProtocolError,
        RedisReadOnlyError,
        RedisRejectedError,
        RedisSerializationError,
        RedisTimeoutError,
        RedisUnreachableError,
        RedisWriteRefusedError,
        RedisWrongTypeError,
    )
    from jmcache.factory import RedisCacheFactory
    from jmcache.health import Health
    from jmcache.keys import generate_key
    from jmcache.monitoring import CacheStats, Metrics
    from jmcache.outcome import Lookup, Outcome
    from jmcache.serialization import RedisSerializer
    from jmcache.settings import CacheSettings

__version__ = "0.1.0"

__all__ = [
    "AsyncCachedFunction",
    "AsyncRedisCache",
    "Cache",
    "CacheSettings",
    "CacheStats",
    "CachedFunction",
    "CircuitBreaker",
    "CircuitState",
    "Deadline",
    "Health",
    "LoadContext",
    "LoaderOverloadedError",
    "LoaderTimeoutError",
    "LocalCache",
    "Lookup",
    "Metrics",
    "Outcome",
    "PoolUsage",
    "RedisCache",
    "RedisCacheFactory",
    "RedisCircuitBreakerOpenError",
    "RedisClosedError",
    "RedisConfigurationError",
    "RedisConnectionError",
    "RedisConnectionManager",
    "RedisCorruptEntryError",
    "RedisError",
    "RedisExpiredEntryError",
    "RedisForeignVersionError",
    "RedisHurriedError",
    "RedisMisconfiguredError",
    "RedisNotReadyError",
    "RedisNotServedError",
    "RedisPoolExhaustedError",
    "RedisProtocolError",
    "RedisReadOnlyError",
    "RedisRejectedError",
    "RedisSerializationError",
    "RedisSerializer",
    "RedisTimeoutError",
    "RedisUnreachableError",
    "RedisWriteRefusedError",
    "RedisWrongTypeError",
    "Transition",
    "generate_key",
    "load_context",
]

if not TYPE_CHECKING:

    def __getattr__(name):  # see PEP 562
        """Import everything, at the first use of anything.

        pytest imports the package at every start wherever it is installed, for its plugin: whoever
        does not use it pays nothing.
        """
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from jmcache import aio, cache, circuit_breaker, connection, deadline, errors  # noqa: I001
        from jmcache import factory, health, keys, monitoring, outcome, serialization, settings

        # The later ones win: monitoring has a Transition of its own.
        for part in (aio, cache, connection, deadline, errors, factory, health, keys, monitoring,
                     outcome, serialization, settings, circuit_breaker):  # fmt: skip
            globals().update({n: value for n, value in vars(part).items() if n in __all__})
        return globals()[name]
