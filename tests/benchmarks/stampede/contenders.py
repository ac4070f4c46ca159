"""jmcache, and what else one could take: each as one verb, compute through the cache.

Each is set up as its documentation says one is protected from stampedes; where it has no
protection, as it is. Nothing is imported before it is needed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

Load = Callable[[], Any]
LoadAwaited = Callable[[], Awaitable[Any]]

_LOCK_S = 10  # what a load may take before another one begins, where that can be said


class Jmcache:
    """jmcache with nothing but its defaults."""

    stale_ttl: float | None = None

    def __init__(self, port: int) -> None:
        from jmcache import CacheSettings, RedisCacheFactory

        settings = CacheSettings(host="127.0.0.1", port=port, namespace="stampede", ttl_jitter=0.0)
        self._cache = RedisCacheFactory.create_cache(settings)

    def get(self, key: str, load: Load, ttl_s: float) -> Any:
        options = {} if self.stale_ttl is None else {"stale_ttl": self.stale_ttl}
        return self._cache.get_or_set(key, load, ttl=ttl_s, **options)


class JmcacheStale(Jmcache):
    """jmcache that may hand out an old value while one caller's request refreshes it."""

    stale_ttl = 600.0


class JmcacheAwaited(Jmcache):
    """jmcache's adapter for coroutines."""

    awaited = True

    def __init__(self, port: int) -> None:
        from jmcache import AsyncRedisCache

        super().__init__(port)
        self._adapter = AsyncRedisCache(self._cache)

    async def get(self, key: str, load: LoadAwaited, ttl_s: float) -> Any:
        return await self._adapter.get_or_set(key, load, ttl=ttl_s)


class Dogpile:
    """dogpile.cache with its lock in Redis."""

    def __init__(self, port: int) -> None:
        from dogpile.cache import make_region

        arguments = {"host": "127.0.0.1", "port": port, "distributed_lock": True}
        arguments |= {"lock_timeout": _LOCK_S, "thread_local_lock": False}
        self._region = make_region().configure("dogpile.cache.redis", arguments=arguments)

    def get(self, key: str, load: Load, ttl_s: float) -> Any:
        return self._region.get_or_create(key, load, expiration_time=ttl_s)


class Cashews:
    """cashews with ``lock=True``."""

    awaited = True

    def __init__(self, port: int) -> None:
        from cashews import Cache

        self._cache = Cache()
        self._cache.setup(f"redis://127.0.0.1:{port}/0")
        self._functions: dict[str, Any] = {}

    async def get(self, key: str, load: LoadAwaited, ttl_s: float) -> Any:
        if key not in self._functions:
            decorate = self._cache(ttl=ttl_s, key=key, lock=True)

            async def function() -> Any:
                return await load()

            self._functions[key] = decorate(function)
        return await self._functions[key]()


class Aiocache:
    """aiocache with ``cached_stampede``."""

    awaited = True

    def __init__(self, port: int) -> None:
        self._port = port
        self._functions: dict[str, Any] = {}

    async def get(self, key: str, load: LoadAwaited, ttl_s: float) -> Any:
        from aiocache import RedisCache, cached_stampede
        from aiocache.serializers import JsonSerializer

        if key not in self._functions:

            async def function() -> Any:
                return await load()

            self._functions[key] = cached_stampede(
                lease=_LOCK_S, ttl=ttl_s, key=key, cache=RedisCache, endpoint="127.0.0.1",
                port=self._port, serializer=JsonSerializer(),
            )(function)  # fmt: skip
        return await self._functions[key]()


class DjangoRedis:
    """django-redis, which has no protection."""

    def __init__(self, port: int) -> None:
        from django.conf import settings

        location = f"redis://127.0.0.1:{port}/0"
        settings.configure(
            CACHES={"default": {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": location}}
        )
        from django.core.cache import cache

        self._cache = cache

    def get(self, key: str, load: Load, ttl_s: float) -> Any:
        return self._cache.get_or_set(key, load, timeout=ttl_s)


CONTENDERS: dict[str, Callable[[int], Any]] = {
    "jmcache": Jmcache,
    "jmcache, stale_ttl": JmcacheStale,
    "jmcache, awaited": JmcacheAwaited,
    "dogpile.cache": Dogpile,
    "cashews": Cashews,
    "aiocache": Aiocache,
    "django-redis": DjangoRedis,
}
