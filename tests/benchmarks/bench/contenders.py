"""jmcache, and what else one could take: each as get, set and, where it has them, their bundles.

Each is set up as its documentation begins, with up to 64 connections; where it lets one choose,
it writes JSON. Values live `TTL_S`, or as long as `set` is told. Nothing is imported before it
is needed: each runs where its package is installed.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ujson

CONNECTIONS = 64  # of each contender at most
TTL_S = 600
PLAIN, PLAIN_AWAITED = "redis-py", "redis.asyncio"  # what the others are compared with
OURS = "jmcache"
WRITES = """\
redis-py, redis.asyncio, dogpile.cache and aiocache write with ujson, "django-redis JSON" with
json; django-redis, Django's own backend, cachelib, Flask-Caching and cashews pickle, as they come.
jmcache has its defaults and everything on: envelope, checks, breaker, retry, metrics, deadline."""


def settings_of_ours(port: int, **more: Any) -> Any:
    """Return jmcache's defaults, but for a deadline that a full queue does not reach."""
    from jmcache import CacheSettings

    where: dict[str, Any] = {"host": "127.0.0.1", "port": port, "namespace": "bench"}
    return CacheSettings(**where, max_connections=CONNECTIONS, operation_timeout=30.0, **more)


def has_near() -> bool:
    """Say whether this jmcache has a near cache."""
    from jmcache import CacheSettings

    return "near" in {field.name for field in dataclasses.fields(CacheSettings)}


class Plain:
    """redis-py and ujson, and nothing between."""

    def __init__(self, port: int) -> None:
        import redis

        self._client = redis.Redis(host="127.0.0.1", port=port, max_connections=CONNECTIONS)
        self.close = self._client.close

    def get(self, key: str) -> Any:
        return ujson.loads(blob) if (blob := self._client.get(key)) is not None else None

    def set(self, key: str, value: Any, ttl_s: int = TTL_S) -> Any:
        return self._client.set(key, ujson.dumps(value), ex=ttl_s)

    def get_many(self, keys: list[str]) -> Any:
        return {
            key: ujson.loads(blob)
            for key, blob in zip(keys, self._client.mget(keys), strict=True)
            if blob is not None
        }

    def set_many(self, values: Mapping[str, Any]) -> Any:
        pipeline = self._client.pipeline(transaction=False)
        for key, value in values.items():
            pipeline.set(key, ujson.dumps(value), ex=TTL_S)
        return pipeline.execute()


class Ours:
    """jmcache with its defaults and everything on."""

    def __init__(self, port: int, **more: Any) -> None:
        from jmcache import RedisCacheFactory

        self.cache = RedisCacheFactory.create_cache(settings_of_ours(port, **more))
        self.get = self.cache.get
        self.set = self.cache.set
        self.get_many = self.cache.get_many
        self.set_many = self.cache.set_many
        self.close = self.cache.close


class OursNear(Ours):
    """The same with its near cache."""

    def __init__(self, port: int, **more: Any) -> None:
        super().__init__(port, near=True, **more)
        self._port = port

    def answers_itself(self, key: str) -> bool:
        """Read *key* until Redis is asked no more; say whether it came to that within seconds.

        What is read before its listener is there is not kept.
        """
        import redis

        with redis.Redis(port=self._port) as client:
            for _ in range(100):
                before = client.info("stats")["total_commands_processed"]
                self.get(key)
                if client.info("stats")["total_commands_processed"] == before + 1:  # our question
                    return True
                time.sleep(0.05)
        return False


class Dogpile:
    """dogpile.cache, which takes any serializer: ujson."""

    def __init__(self, port: int) -> None:
        from dogpile.cache import make_region
        from dogpile.cache.api import NO_VALUE

        arguments = {"host": "127.0.0.1", "port": port, "redis_expiration_time": TTL_S}
        arguments["connection_kwargs"] = {"max_connections": CONNECTIONS}
        self._region = make_region(
            key_mangler="dogpile:{}".format,
            serializer=lambda value: ujson.dumps(value).encode(),
            deserializer=ujson.loads,
        ).configure("dogpile.cache.redis", arguments=arguments)
        self._nothing = NO_VALUE
        self.set_many = self._region.set_multi
        self.close = self._region.backend.reader_client.close

    def get(self, key: str) -> Any:
        return found if (found := self._region.get(key)) is not self._nothing else None

    def set(self, key: str, value: Any, ttl_s: int = TTL_S) -> Any:
        return self._region.set(key, value)  # it has one TTL for all

    def get_many(self, keys: list[str]) -> Any:
        return dict(zip(keys, self._region.get_multi(keys), strict=True))


class _InDjango:
    alias = ""

    def __init__(self, port: int) -> None:
        from django.conf import settings
        from django.core.cache import caches

        url = f"redis://127.0.0.1:{port}/0"
        theirs = {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": url, "TIMEOUT": TTL_S}
        pool = {"CONNECTION_POOL_KWARGS": {"max_connections": CONNECTIONS}}
        json = {"SERIALIZER": "django_redis.serializers.json.JSONSerializer"}
        own = theirs | {"BACKEND": "django.core.cache.backends.redis.RedisCache"}
        if not settings.configured:
            settings.configure(
                CACHES={
                    "default": theirs | {"OPTIONS": pool},
                    "json": theirs | {"OPTIONS": pool | json, "KEY_PREFIX": "json"},
                    "own": own | {"OPTIONS": {"max_connections": CONNECTIONS}, "KEY_PREFIX": "own"},
                }
            )
        self._cache = caches[self.alias]
        self.get = self._cache.get
        self.get_many = self._cache.get_many
        self.set_many = self._cache.set_many
        self.close = self._cache.close

    def set(self, key: str, value: Any, ttl_s: int = TTL_S) -> Any:
        return self._cache.set(key, value, timeout=ttl_s)


class DjangoRedis(_InDjango):
    """django-redis as it comes: pickle."""

    alias = "default"


class DjangoRedisJson(_InDjango):
    """django-redis with its JSON serializer."""

    alias = "json"


class Django(_InDjango):
    """Django's own backend as it comes: pickle."""

    alias = "own"


class Cachelib:
    """cachelib as it comes: pickle."""

    def __init__(self, port: int) -> None:
        from cachelib import RedisCache

        options = {"max_connections": CONNECTIONS, "key_prefix": "cachelib:"}
        self._cache: Any = RedisCache("127.0.0.1", port, default_timeout=TTL_S, **options)
        self.get = self._cache.get
        self.set_many = self._cache.set_many

    def set(self, key: str, value: Any, ttl_s: int = TTL_S) -> Any:
        return self._cache.set(key, value, timeout=ttl_s)

    def get_many(self, keys: list[str]) -> Any:
        return dict(zip(keys, self._cache.get_many(*keys), strict=True))

    def close(self) -> None:
        self._cache._read_client.close()


class FlaskCaching(Cachelib):
    """Flask-Caching as it comes: pickle."""

    def __init__(self, port: int) -> None:
        from flask import Flask
        from flask_caching import Cache

        config = {"CACHE_TYPE": "RedisCache", "CACHE_DEFAULT_TIMEOUT": TTL_S}
        config |= {"CACHE_REDIS_HOST": "127.0.0.1", "CACHE_REDIS_PORT": port}
        config |= {"CACHE_OPTIONS": {"max_connections": CONNECTIONS}}
        config |= {"CACHE_KEY_PREFIX": "flask:"}
        self._cache = Cache(Flask("bench"), config=config)
        self.get = self._cache.get
        self.set_many = self._cache.set_many

    def close(self) -> None:
        self._cache.cache._read_client.close()


class PlainAwaited:
    """redis.asyncio and ujson, and nothing between."""

    def __init__(self, port: int) -> None:
        from redis import asyncio

        # Waits for a connection: 256 callers are more than its pool would otherwise take.
        pool = asyncio.BlockingConnectionPool(
            host="127.0.0.1", port=port, max_connections=CONNECTIONS, timeout=None
        )
        self._client = asyncio.Redis(connection_pool=pool)
        self.close = pool.disconnect

    async def get(self, key: str) -> Any:
        return ujson.loads(blob) if (blob := await self._client.get(key)) is not None else None

    async def set(self, key: str, value: Any) -> Any:
        return await self._client.set(key, ujson.dumps(value), ex=TTL_S)

    async def get_many(self, keys: list[str]) -> Any:
        blobs = await self._client.mget(keys)
        return {
            key: ujson.loads(blob)
            for key, blob in zip(keys, blobs, strict=True)
            if blob is not None
        }

    async def set_many(self, values: Mapping[str, Any]) -> Any:
        pipeline = self._client.pipeline(transaction=False)
        for key, value in values.items():
            pipeline.set(key, ujson.dumps(value), ex=TTL_S)
        return await pipeline.execute()


class OursAwaited:
    """jmcache's adapter for coroutines, everything on."""

    def __init__(self, port: int) -> None:
        from jmcache import AsyncRedisCache, RedisCacheFactory

        self.cache = RedisCacheFactory.create_cache(settings_of_ours(port))
        adapter = AsyncRedisCache(self.cache)
        self.get = adapter.get
        self.set = adapter.set
        self.get_many = adapter.get_many
        self.set_many = adapter.set_many
        self.close = adapter.aclose


class Aiocache:
    """aiocache with its JSON serializer, which takes ujson where that is installed."""

    def __init__(self, port: int) -> None:
        from aiocache import RedisCache
        from aiocache.serializers import JsonSerializer
        from redis.asyncio import BlockingConnectionPool

        self._cache = RedisCache(
            serializer=JsonSerializer(),
            endpoint="127.0.0.1",
            port=port,
            namespace="aiocache:",
            pool_max_size=CONNECTIONS,
            connection_pool_class=BlockingConnectionPool,
        )
        self.get = self._cache.get
        self.get_many = self._cache.multi_get
        self.close = self._cache.close

    async def set(self, key: str, value: Any) -> Any:
        return await self._cache.set(key, value, ttl=TTL_S)

    async def set_many(self, values: Mapping[str, Any]) -> Any:
        return await self._cache.multi_set(list(values.items()), ttl=TTL_S)


class Cashews:
    """cashews as it comes: pickle."""

    def __init__(self, port: int) -> None:
        from cashews import Cache

        self._cache = Cache()
        self._cache.setup(f"redis://127.0.0.1:{port}/0", max_connections=CONNECTIONS)
        self.close = self._cache.close

    async def get(self, key: str) -> Any:
        return await self._cache.get(f"cashews:{key}")

    async def set(self, key: str, value: Any) -> Any:
        return await self._cache.set(f"cashews:{key}", value, expire=TTL_S)

    async def get_many(self, keys: list[str]) -> Any:
        return await self._cache.get_many(*[f"cashews:{key}" for key in keys])

    async def set_many(self, values: Mapping[str, Any]) -> Any:
        theirs = {f"cashews:{key}": value for key, value in values.items()}
        return await self._cache.set_many(theirs, expire=TTL_S)


Make = Callable[[int], Any]

CALLED: dict[str, Make] = {
    PLAIN: Plain,
    OURS: Ours,
    "dogpile.cache": Dogpile,
    "django-redis": DjangoRedis,
    "django-redis JSON": DjangoRedisJson,
    "Django": Django,
    "cachelib": Cachelib,
    "Flask-Caching": FlaskCaching,
}
AWAITED: dict[str, Make] = {
    PLAIN_AWAITED: PlainAwaited,
    OURS: OursAwaited,
    "aiocache": Aiocache,
    "cashews": Cashews,
}
CONTENDERS = {"called": CALLED, "awaited": AWAITED}
REFERENCE = {"called": PLAIN, "awaited": PLAIN_AWAITED}
PACKAGES = (
    "redis",
    "ujson",
    "dogpile.cache",
    "django-redis",
    "Django",
    "cachelib",
    "Flask-Caching",
    "aiocache",
    "cashews",
)


def chosen(makers: Mapping[str, Make], names: Iterable[str] | None, port: int) -> dict[str, Any]:
    """Make each of *makers*, or of those only that *names* has."""
    wanted = set(makers if names is None else names)
    return {name: make(port) for name, make in makers.items() if name in wanted}
