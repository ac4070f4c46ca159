"""Fixtures for your own tests: a real Redis of your own, and a network that fails when told to.

    def test_matches_are_computed_when_redis_hangs(jmcache_cache, jmcache_proxy):
        jmcache_proxy.blackhole()
        assert matches_for("c1", cache=jmcache_cache) == rank("c1")

pytest finds them where jmcache is installed. Nothing is imported or started before a test asks for
one of them. The server is started once in each process of pytest (with xdist in each worker) and is
running, empty and as it was configured for every test, whatever the last one did to it; the proxy
in front of it is new for every test.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from jmcache import AsyncRedisCache, CacheSettings, RedisCache
    from jmcache.testing import FaultProxy, PrivateServer


@pytest.fixture(scope="session")
def _jmcache_server() -> Iterator[PrivateServer]:
    from jmcache.testing import PrivateServer, RedisServerNotFound

    try:
        server = PrivateServer()
    except RedisServerNotFound as error:  # a failure, not a skip: "all tests passed" means all
        pytest.fail(f"jmcache: {error}", pytrace=False)
    with server:
        yield server


@pytest.fixture
def jmcache_server(_jmcache_server: PrivateServer) -> PrivateServer:
    """A real Redis server, running and empty; break it as you like (jmcache.testing)."""
    _jmcache_server.restore()
    _jmcache_server.command("FLUSHALL")
    return _jmcache_server


@pytest.fixture
def jmcache_proxy(jmcache_server: PrivateServer) -> Iterator[FaultProxy]:
    """A network to that server without any fault; add them as you like (jmcache.testing)."""
    from jmcache.testing import FaultProxy

    with FaultProxy(jmcache_server) as proxy:
        yield proxy


@pytest.fixture
def jmcache_settings(jmcache_proxy: FaultProxy) -> CacheSettings:
    """Settings of a cache on that server, through the proxy."""
    return jmcache_proxy.settings()


@pytest.fixture
def jmcache_cache(jmcache_settings: CacheSettings) -> Iterator[RedisCache]:
    """A cache with those settings, closed after the test."""
    from jmcache import RedisCache, RedisCacheFactory

    with RedisCacheFactory.create_cache(jmcache_settings) as cache:
        assert isinstance(cache, RedisCache)  # noqa: S101 - for type checkers
        yield cache


@pytest.fixture
def jmcache_async_cache(jmcache_settings: CacheSettings) -> Iterator[AsyncRedisCache]:
    """The same for coroutines, in whatever event loop; closed after the test."""
    import asyncio
    import threading

    from jmcache import RedisCacheFactory

    cache = RedisCacheFactory.create_async_cache(jmcache_settings)
    yield cache
    # On a thread of its own: the test's loop, and which one is set, are somebody else's.
    closing = threading.Thread(target=lambda: asyncio.run(cache.aclose()))
    closing.start()
    closing.join()
