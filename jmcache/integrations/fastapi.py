"""A cache for a FastAPI application: opened and closed with it, handed to its endpoints.

    app = FastAPI(lifespan=cache_lifespan(CacheSettings.from_env(), lifespan=yours))
    app.include_router(health_router())

    @app.get("/matches")
    async def matches(cache: Annotated[AsyncRedisCache, Depends(get_cache)]): ...

    @app.get("/report")
    def report(cache: Annotated[Cache, Depends(get_sync_cache)]): ...

Redis is not asked when the application starts: it starts and stops the same with Redis down. In
tests, `app.dependency_overrides[get_cache]` takes a cache of their own, or the settings are
`memory://`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI
from starlette.requests import HTTPConnection

from jmcache.aio import AsyncRedisCache
from jmcache.cache import Cache
from jmcache.factory import RedisCacheFactory
from jmcache.settings import CacheSettings

Lifespan = Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any] | None]]
ComposedLifespan = Callable[[FastAPI], AbstractAsyncContextManager[Mapping[str, Any]]]

_STATE = "jmcache"  # where on app.state the AsyncRedisCache is


def cache_lifespan(
    settings: CacheSettings | object | None = None,
    *,
    cache: AsyncRedisCache | None = None,
    lifespan: Lifespan | None = None,
) -> ComposedLifespan:
    """Return a lifespan that opens a cache before yours starts and closes it after yours ended.

    What yours yields as state is passed through, and what it raises too. The cache is on
    `app.state.jmcache` meanwhile; endpoints get it through `get_cache` or `get_sync_cache`.

    Args:
        settings: Where Redis is: `CacheSettings`, or an object with `redis_host` and so on. None:
            what `RedisCacheFactory.initialize` was given, else the environment; read when the
            application starts.
        cache: A cache of your own to use instead, for instance a module's. It stays open when the
            application stops: closing it is yours.
        lifespan: Your own, if you have one.

    Raises:
        ValueError: Both *settings* and *cache* are given.
    """
    if settings is not None and cache is not None:
        raise ValueError("cache_lifespan: give settings or cache, not both")

    @asynccontextmanager
    async def opened(app: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
        async with AsyncExitStack() as closing:
            current = cache
            if current is None:
                current = RedisCacheFactory.create_async_cache(settings)
                await closing.enter_async_context(current)
            setattr(app.state, _STATE, current)
            closing.callback(delattr, app.state, _STATE)
            state = None if lifespan is None else await closing.enter_async_context(lifespan(app))
            yield {} if state is None else state

    return opened


# Coroutines though they never wait: FastAPI would send plain functions through its thread pool.
async def get_cache(connection: HTTPConnection) -> AsyncRedisCache:
    """Dependency: the application's cache, for `async def` endpoints and WebSockets.

    Raises:
        RuntimeError: The application runs without `cache_lifespan`.
    """
    cache: AsyncRedisCache | None = getattr(connection.app.state, _STATE, None)
    if cache is None:
        raise RuntimeError(
            "no cache on this application: build it with FastAPI(lifespan=cache_lifespan(...)) and,"
            " in tests, use TestClient as a context manager, without which no lifespan runs"
        )
    return cache


async def get_sync_cache(
    cache: Annotated[AsyncRedisCache, Depends(get_cache)],
) -> Cache:
    """Dependency: the same cache for plain `def` endpoints, which run in threads of FastAPI's.

    Not for `async def` endpoints: it would hold up the event loop.

    Raises:
        RuntimeError: The application runs without `cache_lifespan`.
    """
    return cache.sync


def health_router(path: str = "/health") -> APIRouter:
    """Return a router with one GET route that answers how the cache is, without asking Redis.

    The status is 200 also when Redis is down: the application works without its cache, and a
    balancer that took all replicas out because of it would turn a slow service into none. Alert on
    `status` in the body. Neither the address of Redis nor anything secret is in it.
    """
    router = APIRouter()

    @router.get(path)
    async def health(cache: Annotated[AsyncRedisCache, Depends(get_cache)]) -> dict[str, Any]:
        return (await cache.health()).as_dict()

    return router
