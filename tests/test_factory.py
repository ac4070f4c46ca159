"""One of everything per Redis, and any number of caches on it."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from interrupter import Interrupter

from jmcache import (
    CacheSettings,
    LocalCache,
    RedisCache,
    RedisCacheFactory,
    RedisConfigurationError,
)
from jmcache.testing import PrivateServer, fake_manager

MakeSettings = Callable[..., CacheSettings]


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    RedisCacheFactory.shutdown()


def _redis(cache: object) -> RedisCache:
    assert isinstance(cache, RedisCache)
    return cache


def _wait_for(true: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + 5.0
    while not true():
        assert time.monotonic() < ends_at
        time.sleep(0.001)


def test_caches_of_one_redis_share_its_connections(settings: MakeSettings) -> None:
    """Ten namespaces with ten pools each would eat the server's client limit."""
    chosen = settings()
    first = _redis(RedisCacheFactory.create_cache(chosen, namespace="a", ttl=60))
    second = _redis(RedisCacheFactory.create_cache(chosen, namespace="b", ttl=90))
    assert first._connection is second._connection
    assert (first.settings.namespace, first.settings.ttl) == ("a", 60.0)
    assert (second.settings.namespace, second.settings.ttl) == ("b", 90.0)


def test_caches_of_two_redises_share_nothing(settings: MakeSettings) -> None:
    """An outage of one Redis must not stop the use of another."""
    first = _redis(RedisCacheFactory.create_cache(settings()))
    second = _redis(RedisCacheFactory.create_cache(settings(db=1)))
    assert first._connection is not second._connection
    assert first._breaker is not second._breaker


def test_closing_one_cache_leaves_the_others_alone(settings: MakeSettings) -> None:
    """A test or a request that closes its cache must not take the service's away."""
    first = RedisCacheFactory.create_cache(settings(), namespace="a")
    second = RedisCacheFactory.create_cache(settings(), namespace="b")
    first.close()
    first.close()
    assert second.set("k", 1) is True


def test_closing_a_cache_of_before_a_shutdown_leaves_the_new_ones_alone(
    settings: MakeSettings,
) -> None:
    """An application that is torn down late would take the next one's cache away for good."""
    old = RedisCacheFactory.create_cache(settings())
    RedisCacheFactory.shutdown()
    assert old.health().status == "degraded"
    new = RedisCacheFactory.create_cache(settings())
    old.close()
    assert new.set("k", 1) is True
    assert new.health().status == "ok"


def test_the_last_one_closed_closes_the_connections(
    settings: MakeSettings, redis_server: PrivateServer
) -> None:
    """Connections that nobody can close are a leak."""
    cache = _redis(RedisCacheFactory.create_cache(settings()))
    cache.set("k", 1)
    connection = cache._connection
    cache.close()
    assert connection.closed
    assert connection.usage().idle == 0


def test_initialize_makes_the_default_and_connects_to_nothing() -> None:
    """A service has to start while Redis is away."""
    started = time.monotonic()
    RedisCacheFactory.initialize(CacheSettings(host="192.0.2.1", namespace="mine"))
    RedisCacheFactory.initialize(CacheSettings(host="192.0.2.1", namespace="mine"))
    cache = RedisCacheFactory.create_cache()
    assert cache.settings.namespace == "mine"
    assert time.monotonic() - started < 1.0


def test_initialize_with_other_settings_replaces_the_default() -> None:
    """The second of two calls is the one that was meant."""
    RedisCacheFactory.initialize(CacheSettings(memory=True, namespace="first"))
    RedisCacheFactory.initialize(CacheSettings(memory=True, namespace="second"))
    assert RedisCacheFactory.create_cache().settings.namespace == "second"


def test_without_settings_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve-factor services set REDIS_URL and expect nothing else to be needed."""
    monkeypatch.setenv("REDIS_URL", "memory://")
    monkeypatch.setenv("JMCACHE_NAMESPACE", "from-env")
    cache = RedisCacheFactory.create_cache()
    assert isinstance(cache, LocalCache)
    assert cache.settings.namespace == "from-env"


@pytest.mark.parametrize("port", [6390, "6390"])
def test_any_object_with_the_old_names_will_do(port: object) -> None:
    """The service's settings object exists already, with its port as text from the environment."""
    old = SimpleNamespace(redis_host="10.0.0.7", redis_port=port, redis_db="2", redis_password=None)
    cache = RedisCacheFactory.create_cache(old, ttl=300)
    assert (cache.settings.host, cache.settings.port, cache.settings.db) == ("10.0.0.7", 6390, 2)


def test_an_object_without_the_names_is_refused() -> None:
    """A settings object of another service would quietly mean the default Redis."""
    with pytest.raises(RedisConfigurationError, match="redis_host"):
        RedisCacheFactory.create_cache(SimpleNamespace(host="h"))


def test_a_url_will_do_for_settings() -> None:
    """It is what everybody tries first."""
    cache = RedisCacheFactory.create_cache("redis://10.0.0.7:6390/2", ttl=60)
    assert (cache.settings.host, cache.settings.db, cache.settings.ttl) == ("10.0.0.7", 2, 60.0)


def test_unverified_tls_is_said_aloud(caplog: pytest.LogCaptureFixture) -> None:
    """A switch that was flipped to try something is forgotten, and then protects nobody."""
    RedisCacheFactory.create_cache(CacheSettings(tls=True, tls_verify=False))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "tls_verify" in caplog.text


def test_warming_up_connects_and_starts_the_health_thread(settings: MakeSettings) -> None:
    """The first task of a worker should not be the one that waits for a handshake."""
    cache = _redis(RedisCacheFactory.create_cache(settings()))
    RedisCacheFactory.warm_up()
    _wait_for(lambda: cache._health.running)
    assert cache._connection.usage().idle == 1


def test_warming_up_without_redis_is_no_error() -> None:
    """A worker has to come up while Redis is away."""
    RedisCacheFactory.initialize(CacheSettings(unix_socket_path="/nonexistent"))
    RedisCacheFactory.warm_up()


def test_shutdown_ends_everything_and_can_be_repeated(settings: MakeSettings) -> None:
    """A process that should end must not hang on a thread or a socket of ours."""
    cache = _redis(RedisCacheFactory.create_cache(settings()))
    cache.set("k", 1)
    RedisCacheFactory.shutdown()
    RedisCacheFactory.shutdown()
    assert cache.lookup("k").reason == "closed"
    assert not cache._health.running
    fresh = RedisCacheFactory.create_cache(settings())
    assert fresh.get("k") == 1


def test_many_threads_make_caches_of_one_manager(settings: MakeSettings) -> None:
    """The first requests of a service arrive together."""
    chosen = settings()
    start = threading.Barrier(16)

    def make(_: int) -> object:
        start.wait(timeout=10)
        return _redis(RedisCacheFactory.create_cache(chosen))._connection

    with ThreadPoolExecutor(16) as threads:
        assert len(set(threads.map(make, range(16)))) == 1


def test_the_health_thread_starts_with_the_first_call_and_ends_with_the_last_cache(
    settings: MakeSettings,
) -> None:
    """A thread that starts at import breaks every fork; one that never ends leaks."""
    cache = _redis(RedisCacheFactory.create_cache(settings()))
    assert cache._health._thread is None
    cache.get("k")
    _wait_for(lambda: cache._health.running)
    thread = cache._health._thread
    assert thread is not None
    cache.close()
    thread.join(timeout=5)
    assert not thread.is_alive()


def test_metrics_hear_of_operations_and_of_the_breaker(settings: MakeSettings) -> None:
    """An alert on the breaker's state is the first thing an operator sets up."""
    heard: list[str] = []

    class Sink:
        def increment(
            self, name: str, value: int = 1, labels: Mapping[str, str] | None = None
        ) -> None:
            heard.append(name)

        def timing(
            self, name: str, seconds: float, labels: Mapping[str, str] | None = None
        ) -> None:
            heard.append(name)

        def gauge(self, name: str, value: float, labels: Mapping[str, str] | None = None) -> None:
            heard.append(name)

    with _redis(
        RedisCacheFactory.create_cache(settings(failure_threshold=1), metrics=[Sink()])
    ) as cache:
        cache.get("k")
        cache._breaker.record_failure()
        cache._monitor.flush()
    assert {"redis.cache.miss", "redis.circuit_breaker.state"} <= set(heard)


def test_a_cache_that_is_dropped_is_collected(settings: MakeSettings) -> None:
    """The breaker lives on; it must not keep every cache that ever listened to it."""
    keep = RedisCacheFactory.create_cache(settings())

    class Sink:
        def increment(self, *_args: Any, **_more: Any) -> None: ...
        def timing(self, *_args: Any, **_more: Any) -> None: ...
        def gauge(self, *_args: Any, **_more: Any) -> None: ...

    dropped = RedisCacheFactory.create_cache(settings(), metrics=[Sink()])
    dropped.get("k")
    dropped.close()
    reference = weakref.ref(dropped)
    del dropped
    gc.collect()
    assert reference() is None
    keep.close()


def test_nothing_runs_when_a_cache_goes_in_which_an_interrupt_would_be_lost(
    settings: MakeSettings,
) -> None:
    """A time limit that a task meets where it lets go of its cache would never reach the task."""

    class Sink:
        def increment(self, *_args: Any, **_more: Any) -> None: ...
        def timing(self, *_args: Any, **_more: Any) -> None: ...
        def gauge(self, *_args: Any, **_more: Any) -> None: ...

    with RedisCacheFactory.create_cache(settings()):  # the breaker lives on
        caches = [_redis(RedisCacheFactory.create_cache(settings(), metrics=[Sink()]))]
        caches[0].close()
        monitor = weakref.ref(caches[0]._monitor)
        gc.collect()
        # Where callbacks of weak references would be; an ended thread has one of Python's own.
        with Interrupter(0, only="/weakref.py") as interrupter:
            caches.clear()
            gc.collect()
        assert monitor() is None
    assert not interrupter.done, interrupter.where


def test_a_connection_of_ones_own_is_used_and_closed_with_the_cache() -> None:
    """Tests hand in the fake; it must not reach, nor close, what others share."""
    connection = fake_manager()
    with RedisCacheFactory.create_cache(CacheSettings(), connection=connection) as cache:
        assert cache.set("k", 1) is True
    assert connection.closed
