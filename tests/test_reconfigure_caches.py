"""Caches that are moved to another Redis, and everything that they share with others."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import circuitbreaker
import pytest

from jmcache import (
    AsyncRedisCache,
    CacheSettings,
    LocalCache,
    RedisCache,
    RedisCacheFactory,
    RedisConfigurationError,
)
from jmcache.testing import PrivateServer, fake_manager


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    RedisCacheFactory.shutdown()


@pytest.fixture(scope="module")
def _servers() -> Iterator[list[PrivateServer]]:
    with (
        PrivateServer() as first,
        PrivateServer(tcp=True, password="hemlig") as second,
        PrivateServer(tls=True) as third,
    ):
        yield [first, second, third]


@pytest.fixture
def servers(_servers: list[PrivateServer]) -> list[PrivateServer]:
    """Three servers, empty: a Unix socket, a port with a password, and one with TLS."""
    for server in _servers:
        server.restore()
        server.command("FLUSHALL")
    return _servers


def of(server: PrivateServer, **more: Any) -> CacheSettings:
    return CacheSettings.from_url(server.url, **{"operation_timeout": 5.0, **more})


def make(settings: object, **options: Any) -> RedisCache:
    cache = RedisCacheFactory.create_cache(settings, **options)
    assert isinstance(cache, RedisCache)
    return cache


def clients(server: PrivateServer) -> int:
    listed = server.command("CLIENT", "LIST", "TYPE", "normal")
    assert isinstance(listed, bytes)
    return len(listed.splitlines()) - 1


def wait_for(true: Callable[[], object]) -> None:
    ends_at = time.monotonic() + 5.0
    while not true():
        assert time.monotonic() < ends_at
        time.sleep(0.001)


# Under traffic ----------------------------------------------------------------------------------


def test_no_call_of_threads_or_coroutines_notices_a_change(servers: list[PrivateServer]) -> None:
    """Host, password, TLS and pool size are changed in the middle of the day, or not at all."""
    ways = [of(server, max_connections=limit) for limit in (8, 2) for server in servers]
    cache = make(ways[0], namespace="traffic")
    awaited = AsyncRedisCache(make(ways[0], namespace="awaited"))
    over, failed, wrong, calls = threading.Event(), [], [], [0] * 6

    def check(key: str, kept: bool, found: Any) -> None:
        if not kept:
            failed.append(key)
        if found not in (None, key):
            wrong.append((key, found))

    def work(number: int) -> None:
        while not over.is_set():
            calls[number] += 1
            key = f"{number}-{calls[number] % 5}"
            check(key, cache.set(key, key), cache.get(key))
            if cache.lookup(key).outcome not in ("hit", "miss"):
                failed.append(key)

    async def play(number: int) -> None:
        while not over.is_set():
            key = f"{number}"
            check(key, await awaited.set(key, key), await awaited.get(key))

    async def play_all() -> None:
        await asyncio.gather(*(play(number) for number in range(20)))

    with ThreadPoolExecutor(7) as threads:
        at_work = [threads.submit(work, number) for number in range(6)]
        at_work.append(threads.submit(asyncio.run, play_all()))
        for turn in range(24):
            cache.reconfigure(ways[turn % len(ways)])
            before = sum(calls)
            wait_for(lambda before=before: sum(calls) > before + 6)
        over.set()
        for thread in at_work:
            thread.result(timeout=20)
    assert (failed, wrong) == ([], [])
    last = ways[23 % len(ways)]
    assert awaited.settings.endpoint == last.endpoint
    wait_for(lambda: sum(map(clients, servers)) <= last.max_connections)
    assert cache.health().status == "ok"


# What is changed, and what stays ----------------------------------------------------------------


def test_all_caches_on_one_redis_go_along_and_stay_themselves(servers: list[PrivateServer]) -> None:
    """A service has one for each kind of result; none of them may be left behind, or mixed up."""
    one = make(of(servers[0]), namespace="a", ttl=60)
    two = make(of(servers[0]), namespace="b", ttl=90)
    other = make(of(servers[0], db=1), namespace="c")
    new = of(servers[1], namespace="not_taken_over", ttl=5, max_connections=3)
    one.reconfigure(new)
    assert two.set("k", 2)
    assert one.get("k") is None
    assert other.set("k", 3)
    # Its entry and its namespace's counter.
    assert [server.command("DBSIZE") for server in servers] == [0, 2, 0]
    assert (one.settings.namespace, one.settings.ttl) == ("a", 60.0)
    assert (two.settings.namespace, two.settings.ttl) == ("b", 90.0)
    for cache in (one, two):
        assert cache.settings.endpoint == new.endpoint
        assert cache.settings.max_connections == 3
        assert cache.health().connections_limit == 3
        assert new.endpoint in repr(cache)
    assert other.settings.db == 1


def test_the_deadline_of_calls_is_the_new_one(servers: list[PrivateServer]) -> None:
    """A setting that shows as changed and is not is worse than one that cannot be."""
    cache = make(of(servers[0], operation_timeout=5.0), namespace="a")
    cache.reconfigure(of(servers[0], operation_timeout=0.05))
    servers[0].pause()
    began = time.monotonic()
    assert cache.get("k") is None
    assert time.monotonic() - began < 1.0
    servers[0].resume()


@pytest.mark.parametrize("way", ["settings", "url", "object", "environment"])
def test_settings_come_in_every_form_that_the_factory_takes(
    way: str, servers: list[PrivateServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever makes a cache from a url has nothing else to reconfigure it with."""
    cache = make(of(servers[0]))

    class Old:
        redis_url = servers[1].url

    monkeypatch.setenv("REDIS_URL", servers[1].url)
    forms = {
        "settings": of(servers[1]),
        "url": servers[1].url,
        "object": Old,
        "environment": None,
    }
    cache.reconfigure(forms[way])
    assert cache.set("k", 1, timeout=5.0)
    assert servers[1].command("DBSIZE") == 2, "the entry and its namespace's counter"


@pytest.mark.parametrize("cache", ["redis", "memory"])
def test_memory_and_redis_do_not_turn_into_each_other(
    cache: str, servers: list[PrivateServer]
) -> None:
    """Half of a service's replicas would keep to themselves what the others share."""
    made = make(of(servers[0])) if cache == "redis" else LocalCache()
    other = CacheSettings(memory=True) if cache == "redis" else of(servers[0])
    with pytest.raises(RedisConfigurationError, match=r"^memory: "):
        made.reconfigure(other)
    assert made.set("k", 1)
    assert made.get("k") == 1
    made.reconfigure(made.settings)
    assert made.get("k") == 1


@pytest.mark.parametrize("wrong", ["redis://:hemlig@h/abc", object(), 5])
def test_settings_that_cannot_work_change_nothing(
    wrong: object, servers: list[PrivateServer]
) -> None:
    """The old Redis is still right when the new address has a typing error."""
    cache = make(of(servers[0]))
    with pytest.raises(RedisConfigurationError) as caught:
        cache.reconfigure(wrong)
    assert "hemlig" not in str(caught.value)
    assert cache.settings.endpoint == of(servers[0]).endpoint
    assert cache.set("k", 1)


def test_the_adapter_grows_and_shrinks_with_the_connections(servers: list[PrivateServer]) -> None:
    """Twenty connections that ten threads use are ten."""
    cache = AsyncRedisCache(make(of(servers[0], max_connections=2)))
    fixed = AsyncRedisCache(make(of(servers[0], max_connections=2)), max_threads=3)

    async def use() -> list[int]:
        widths = []
        for limit in (2, 7, 4):
            await cache.reconfigure(of(servers[0], max_connections=limit))
            for adapter in (cache, fixed):
                assert await adapter.set("k", limit)
                assert await adapter.get("k") == limit
                await asyncio.gather(*[adapter.exists("k") for _ in range(200)])
                widths.append(adapter._threads.running)
        return widths

    assert asyncio.run(use()) == [2, 3, 7, 3, 4, 3]


def test_a_closed_cache_stays_closed(servers: list[PrivateServer]) -> None:
    """A service that is going down must not connect again because its configuration changed."""
    cache = make(of(servers[0]))
    cache.close()
    cache.reconfigure(of(servers[1]))
    assert cache.lookup("k").reason == "closed"
    assert RedisCacheFactory._backends == {}
    gone, other = make(of(servers[0])), make(of(servers[0]))
    gone.close()
    gone.reconfigure(of(servers[1]))
    assert other.settings.endpoint == of(servers[0]).endpoint
    shut = make(of(servers[0]))
    RedisCacheFactory.shutdown()
    shut.reconfigure(of(servers[1]))
    assert shut.lookup("k").reason == "closed"
    assert RedisCacheFactory._backends == {}


def test_a_manager_of_ones_own_is_moved_with_its_cache(servers: list[PrivateServer]) -> None:
    """Tests hand in the fake; what they reconfigure must not reach what others share."""
    manager = fake_manager()
    shared = make(CacheSettings())
    cache = make(CacheSettings(), connection=manager)
    cache.reconfigure(CacheSettings(max_connections=3))
    assert manager.settings.max_connections == 3
    assert cache.set("k", 1)
    assert shared.settings.max_connections == 10


# What caches share -------------------------------------------------------------------------------


def test_caches_made_later_find_the_moved_one_under_its_new_settings(
    servers: list[PrivateServer],
) -> None:
    """Under its old ones they would be led to the new Redis; under the new, connect once more."""
    moved = make(of(servers[0]), namespace="a")
    moved.reconfigure(of(servers[1]))
    same, former = make(of(servers[1]), namespace="b"), make(of(servers[0]), namespace="c")
    assert same._connection is moved._connection
    assert former._connection is not moved._connection
    assert former.set("k", 1)
    assert servers[0].command("DBSIZE") == 2, "the entry and its namespace's counter"
    assert former.settings.endpoint == of(servers[0]).endpoint


def test_a_redis_that_is_in_use_already_stays_with_those_who_use_it(
    servers: list[PrivateServer],
) -> None:
    """One of the two would be closed by the last of the wrong caches."""
    there, moved = make(of(servers[1])), make(of(servers[0]))
    moved.reconfigure(of(servers[1]))
    assert moved._connection is not there._connection
    assert make(of(servers[1]))._connection is there._connection
    there.close()
    assert moved.set("k", 1)
    RedisCacheFactory.shutdown()
    assert moved.lookup("k").reason == "closed", "a shutdown must not miss one"


def test_the_default_moves_with_its_caches(servers: list[PrivateServer]) -> None:
    """A worker that makes its cache a minute later would talk to the old Redis."""
    RedisCacheFactory.initialize(of(servers[0], namespace="default"))
    make(None).reconfigure(of(servers[1]))
    later = make(None)
    assert later.settings.endpoint == of(servers[1]).endpoint
    assert later.settings.namespace == "default"
    make(of(servers[2])).reconfigure(of(servers[0]))
    assert make(None).settings.endpoint == of(servers[1]).endpoint, "another one's move is not its"


def test_an_interrupt_in_the_middle_leads_nobody_to_the_wrong_redis(
    servers: list[PrivateServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time limit that strikes just then: production's caches would be made on staging's."""

    class Interrupt(Exception):  # noqa: N818 - it is no error
        pass

    moved = make(of(servers[0]), namespace="a")

    def interrupted(_name: str) -> None:
        raise Interrupt

    with monkeypatch.context() as patch:
        patch.setattr(moved._breaker, "move", interrupted)
        with pytest.raises(Interrupt):
            moved.reconfigure(of(servers[1]))
    former = make(of(servers[0]), namespace="a")
    assert former.set("k", 1)
    assert moved.get("k") is None
    assert moved.set("k", 2)
    moved.reconfigure(of(servers[1]))
    assert make(of(servers[1]))._connection is moved._connection
    RedisCacheFactory.shutdown()
    assert {former.lookup("k").reason, moved.lookup("k").reason} == {"closed"}


# Breakers and what is said -----------------------------------------------------------------------


def test_an_open_breaker_is_tried_at_once(servers: list[PrivateServer], tmp_path: Path) -> None:
    """The new Redis is well, and the breaker waits half a minute for the old one."""
    gone = CacheSettings(
        unix_socket_path=str(tmp_path / "gone"), failure_threshold=1, operation_timeout=5.0
    )
    cache = make(gone, namespace="a")
    assert not cache.set("k", 1)
    assert cache.health().breaker == "open"
    cache._health.stop()  # also without it
    cache.reconfigure(of(servers[0]))
    assert cache.set("k", 1)
    assert cache.health().breaker == "closed"


def test_the_health_thread_tries_at_once_too(
    servers: list[PrivateServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any call the health route would go on to say that it is degraded."""
    cache = make(CacheSettings(unix_socket_path=str(tmp_path / "gone"), failure_threshold=1))
    cache.get("k")
    assert cache.health().status == "degraded"
    rung, ring = [], cache._health.ring
    monkeypatch.setattr(cache._health, "ring", lambda: (rung.append(1), ring()))
    cache.reconfigure(of(servers[0]))
    assert rung
    wait_for(lambda: cache.health().status == "ok")


def test_writes_that_the_old_redis_refused_are_tried_at_once(servers: list[PrivateServer]) -> None:
    """It was full, which is why there is a new one."""
    cache = make(of(servers[0], failure_threshold=1), namespace="a")
    with servers[0].fill():
        assert not cache.set("k", 1)
        assert cache.health().reasons == ("writes_refused",)
        cache.reconfigure(of(servers[1]))
        assert cache.set("k", 1)
        assert cache.health().status == "ok"


def test_failures_of_the_old_redis_are_not_held_against_the_new(
    servers: list[PrivateServer],
) -> None:
    """Four of five, and the first hiccup of the new one would open the breaker."""
    cache = make(of(servers[0], failure_threshold=5), namespace="a")
    for _ in range(4):
        cache._breaker.record_failure()
    assert cache._breaker.failures == 4
    cache.reconfigure(of(servers[1]))
    cache._breaker.record_failure()
    assert cache.health().breaker == "closed"


def test_names_and_log_lines_are_those_of_the_new_redis(
    servers: list[PrivateServer], caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever reads them at night would look at the wrong machine."""
    old, new = of(servers[0]).endpoint, of(servers[1]).endpoint
    cache = make(of(servers[0], failure_threshold=1), namespace="a")
    with caplog.at_level(logging.INFO, "jmcache"):
        cache.reconfigure(of(servers[1]))
        cache.reconfigure(of(servers[1]))
        cache._breaker.record_failure()
    said = [record.getMessage() for record in caplog.records]
    assert [line for line in said if "is asked from now on" in line] == [
        f"Redis {new} is asked from now on, as new settings say; it was {old} until now"
    ]
    assert any(f"Redis {new} is unavailable" in line for line in said)
    assert "hemlig" not in caplog.text
    listed = circuitbreaker.CircuitBreakerMonitor.circuit_breakers
    assert {f"jmcache {new}", f"jmcache {new} writes"} <= set(listed)
    assert not {f"jmcache {old}", f"jmcache {old} writes"} & set(listed)
    cache.close()
    assert not {f"jmcache {new}", f"jmcache {new} writes"} & set(listed)


def test_unverified_tls_is_said_aloud_also_when_it_comes_later(
    servers: list[PrivateServer], caplog: pytest.LogCaptureFixture
) -> None:
    """It protects from nobody, whenever it was switched on."""
    cache = make(of(servers[0]))
    cache.reconfigure(dataclasses.replace(of(servers[2]), tls_verify=False))
    assert "tls_verify is off" in caplog.text
    assert cache.set("k", 1)
