"""A shared, resilient Redis cache for job-matching results.

    from jmcache import CacheSettings, RedisCacheFactory

    cache = RedisCacheFactory.create_cache(CacheSettings.from_env(), ttl=300)
    key = cache.generate_key("candidate-42", skills=["python", "redis"])
    cache.set(key, results)
    cache.get(key)

``jmcache.aio`` has the same for coroutines, ``jmcache.integrations`` for frameworks,
``jmcache.testing`` for tests. Importing starts nothing and does not import redis-py.
"""

from jmcache.aio import AsyncRedisCache
from jmcache.cache import Cache, LocalCache, RedisCache
from jmcache.circuit_breaker import CircuitBreaker, CircuitState, Transition
from jmcache.connection import PoolUsage, RedisConnectionManager
from jmcache.deadline import Deadline
from jmcache.errors import (
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
    "AsyncRedisCache",
    "Cache",
    "CacheSettings",
    "CacheStats",
    "CircuitBreaker",
    "CircuitState",
    "Deadline",
    "Health",
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
]
