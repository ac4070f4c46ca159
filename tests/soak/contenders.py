"""jmcache, and what else one could take: each as get, get_many, set, delete and close.

The others are set up as their documentation begins, `redis-tuned` as one who knows would. What a
client does not say about a write (whether it was stored) counts as confirmed when nothing was
raised. Nothing is imported before it is needed: each runs where its package is installed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

DEADLINE_S = 0.25  # what a call may take: jmcache's default


_NEAR_BYTES = 4 * 1024 * 1024  # little, so that it is full before the end
_NEAR_ROOM = 2  # times that in memory, with what it keeps decoded


class Jmcache:
    """jmcache with nothing but its defaults."""

    awaited = False
    near = False

    def __init__(self, host: str, port: int, password: str) -> None:
        from jmcache import CacheSettings, RedisCacheFactory

        self.opened = self.closed = 0  # the breaker
        settings = CacheSettings(
            host=host,
            port=port,
            password=password,
            namespace="soak",
            near=self.near,
            near_max_bytes=_NEAR_BYTES,
        )
        self._cache = RedisCacheFactory.create_cache(settings)
        self._cache._breaker.on_change(self._note)
        self.get = self._cache.get
        self.get_many = self._cache.get_many
        self.set = self._cache.set
        self.delete = self._cache.delete
        self.close = self._cache.close

    def figures(self) -> dict[str, Any]:
        """Return what it says about itself."""
        health = self._cache.health()
        endings: dict[str, int] = {}
        for (_, outcome, reason), count in self._cache.stats().operations.items():
            ending = f"{outcome} {reason}".strip()
            endings[ending] = endings.get(ending, 0) + count
        return {
            "connections_in_use": health.connections_in_use,
            "listeners": int(self.near),
            "near_bytes": _NEAR_ROOM * _NEAR_BYTES if self.near else 0,
            "breaker": {
                "opened": self.opened,
                "closed": self.closed,
                "state": health.breaker,
            },
            "endings": endings,
        }

    def _note(self, transition: Any) -> None:
        self.opened += transition.before == "closed"
        self.closed += transition.after == "closed"


class JmcacheAwaited(Jmcache):
    """The same behind its adapter for coroutines."""

    awaited = True

    def __init__(self, host: str, port: int, password: str) -> None:
        from jmcache.aio import AsyncRedisCache

        super().__init__(host, port, password)
        adapter = AsyncRedisCache(self._cache)
        self.get = adapter.get
        self.get_many = adapter.get_many
        self.set = adapter.set
        self.delete = adapter.delete
        self.close = adapter.aclose


class JmcacheNear(Jmcache):
    """With a near cache."""

    near = True


class JmcacheNearAwaited(JmcacheAwaited):
    """The same behind the adapter."""

    near = True


class RedisPy:
    """redis-py and JSON, as it comes."""

    awaited = False

    def __init__(self, host: str, port: int, password: str) -> None:
        import redis

        self._client = redis.Redis(host=host, port=port, password=password, **self.options())
        self.close = self._client.close

    def options(self) -> dict[str, Any]:
        """Return what the client is given besides."""
        return {}

    def get(self, key: str) -> Any:
        blob = self._client.get(key)
        return None if blob is None else json.loads(blob)

    def get_many(self, keys: list[str]) -> dict[str, Any]:
        blobs = zip(keys, self._client.mget(keys), strict=True)
        return {key: json.loads(blob) for key, blob in blobs if blob is not None}

    def set(self, key: str, value: Any, ttl: float) -> bool:
        return bool(self._client.set(key, json.dumps(value), px=int(ttl * 1000)))

    def delete(self, key: str) -> bool:
        self._client.delete(key)
        return True


class RedisPyTuned(RedisPy):
    """redis-py by somebody who knows: RESP2, a waiting pool, short timeouts, no retry."""

    def __init__(self, host: str, port: int, password: str) -> None:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        self._client = redis.Redis(
            connection_pool=redis.BlockingConnectionPool(
                host=host,
                port=port,
                password=password,
                max_connections=10,
                timeout=0.1,
                protocol=2,
                socket_timeout=0.25,
                socket_connect_timeout=0.25,
                retry=Retry(NoBackoff(), 0),
            )
        )
        self.close = self._client.connection_pool.disconnect


class Cashews:
    """cashews as it comes."""

    awaited = True

    def __init__(self, host: str, port: int, password: str) -> None:
        from cashews import Cache

        self._cache = Cache()
        self._cache.setup(f"redis://:{password}@{host}:{port}/0")
        self.get = self._cache.get
        self.close = self._cache.close

    async def get_many(self, keys: list[str]) -> dict[str, Any]:
        return dict(zip(keys, await self._cache.get_many(*keys), strict=True))

    async def set(self, key: str, value: Any, ttl: float) -> bool:
        return bool(await self._cache.set(key, value, expire=ttl))

    async def delete(self, key: str) -> bool:
        # It says False also for a key that was not there: no way to know, so nothing is promised.
        return bool(await self._cache.delete(key))


class Aiocache:
    """aiocache as it comes."""

    awaited = True

    def __init__(self, host: str, port: int, password: str) -> None:
        from aiocache import RedisCache

        self._cache = RedisCache(endpoint=host, port=port, password=password)
        self.get = self._cache.get
        self.close = self._cache.close

    async def get_many(self, keys: list[str]) -> dict[str, Any]:
        return dict(zip(keys, await self._cache.multi_get(keys), strict=True))

    async def set(self, key: str, value: Any, ttl: float) -> bool:
        return bool(await self._cache.set(key, value, ttl=int(ttl)))

    async def delete(self, key: str) -> bool:
        await self._cache.delete(key)
        return True


class Dogpile:
    """dogpile.cache as it comes."""

    awaited = False

    def __init__(self, host: str, port: int, password: str) -> None:
        from dogpile.cache import make_region
        from dogpile.cache.api import NO_VALUE

        arguments = {"host": host, "port": port, "password": password}
        arguments |= {"redis_expiration_time": 600}
        self._nothing = NO_VALUE
        self._region = make_region().configure("dogpile.cache.redis", arguments=arguments)
        self.close = self._region.backend.reader_client.close

    def get(self, key: str) -> Any:
        found = self._region.get(key)
        return None if found is self._nothing else found

    def get_many(self, keys: list[str]) -> dict[str, Any]:
        found = zip(keys, self._region.get_multi(keys), strict=True)
        return {key: value for key, value in found if value is not self._nothing}

    def set(self, key: str, value: Any, ttl: float) -> bool:
        self._region.set(key, value)
        return True

    def delete(self, key: str) -> bool:
        self._region.delete(key)
        return True


class DjangoRedis:
    """django-redis as it comes."""

    awaited = False

    def __init__(self, host: str, port: int, password: str) -> None:
        from django.conf import settings

        backend = {
            "BACKEND": "django_redis.cache.RedisCache",
            "LOCATION": f"redis://:{password}@{host}:{port}/0",
            "OPTIONS": self.options(),
        }
        settings.configure(CACHES={"default": backend})
        from django.core.cache import cache

        self._cache = cache
        self.get = cache.get
        self.get_many = cache.get_many
        self.close = cache.close

    def options(self) -> dict[str, Any]:
        """Return its OPTIONS."""
        return {}

    def set(self, key: str, value: Any, ttl: float) -> bool:
        return bool(self._cache.set(key, value, timeout=ttl))

    def delete(self, key: str) -> bool:
        self._cache.delete(key)
        return True


class DjangoRedisForgiving(DjangoRedis):
    """django-redis told to ignore exceptions, with the short timeouts of redis-tuned."""

    def options(self) -> dict[str, Any]:
        """Return its OPTIONS."""
        return {
            "IGNORE_EXCEPTIONS": True,
            "SOCKET_TIMEOUT": DEADLINE_S,
            "SOCKET_CONNECT_TIMEOUT": DEADLINE_S,
        }


CONTENDERS: dict[str, Callable[[str, int, str], Any]] = {
    "jmcache": Jmcache,
    "jmcache-awaited": JmcacheAwaited,
    "jmcache-near": JmcacheNear,
    "jmcache-near-awaited": JmcacheNearAwaited,
    "redis-py": RedisPy,
    "redis-py-tuned": RedisPyTuned,
    "cashews": Cashews,
    "aiocache": Aiocache,
    "dogpile.cache": Dogpile,
    "django-redis": DjangoRedis,
    "django-redis-forgiving": DjangoRedisForgiving,
}
