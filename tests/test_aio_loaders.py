"""Loaders of awaited calls: the threads they hold, and the loops they end with."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from aio_kit import MakeSettings
from computing_kit import wait_until

from jmcache import AsyncRedisCache, Outcome, RedisCacheFactory
from jmcache.aio import _driver

STALE: Any = {"ttl": 0.001, "stale_ttl": 600.0}


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("adapters", [1, 2])
def test_what_plain_loaders_ask_for_waits_for_no_thread_that_they_hold(
    levels: int, adapters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All threads waited for loads that were queued behind themselves, until the process ended."""
    monkeypatch.setattr(_driver, "_LOADER_THREADS", 2)
    outermost = 2 * adapters
    all_held = threading.Barrier(outermost)

    async def use() -> None:
        loop = asyncio.get_running_loop()

        def get(number: int, level: int) -> int:
            cache = caches[(number + level) % adapters]
            call = cache.get_or_set(f"{number} {level}", loader(number, level))
            return asyncio.run_coroutine_threadsafe(call, loop).result(timeout=20)

        def loader(number: int, level: int) -> Callable[[], int]:
            def load() -> int:
                if level == levels:
                    all_held.wait(timeout=20)
                return get(number, level - 1) if level else number

            return load

        loads = [asyncio.to_thread(get, number, levels) for number in range(outermost)]
        assert await asyncio.gather(*loads) == list(range(outermost))
        for cache in caches:
            await cache.aclose()

    caches: list[AsyncRedisCache] = [
        RedisCacheFactory.create_async_cache("memory://", namespace=str(number))
        for number in range(adapters)
    ]
    asyncio.run(use())


# Loops that were closed without cancelling their tasks --------------------------------------------


@pytest.fixture
def collected() -> Iterator[None]:
    """What was left complains in the log once it is collected: not while another test looks."""
    yield
    gc.collect()


def leave_a_refresh(cache: AsyncRedisCache, key: str) -> None:
    """Have the stale value of *key* refreshed by a loader that is under way as its loop ends."""

    async def use() -> None:
        begun = asyncio.Event()

        async def load() -> str:
            begun.set()
            return await asyncio.get_running_loop().create_future()

        assert await cache.get_or_set(key, load, **STALE) == "old"
        await asyncio.wait_for(begun.wait(), timeout=20)

    assert cache.sync.get_or_set(key, lambda: "old", **STALE) == "old"
    wait_until(lambda: cache.sync.lookup(key).outcome is Outcome.STALE)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(use())
    loop.close()


@pytest.mark.usefixtures("collected")
def test_what_a_closed_loop_left_takes_no_place(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After 256 such refreshes there was none any more until the process ended."""
    monkeypatch.setattr(_driver, "_TASKS", 2)
    cache = RedisCacheFactory.create_async_cache(settings(operation_timeout=5.0, lock_timeout=60.0))

    async def use() -> None:
        begun = asyncio.Event()

        async def load() -> str:
            begun.set()
            return "new"

        while not begun.is_set():  # the lease is being given back meanwhile
            assert await cache.get_or_set("k0", load, **STALE) in ("old", "new")
        await cache.aclose()

    for number in range(4):
        leave_a_refresh(cache, f"k{number}")
    asyncio.run(asyncio.wait_for(use(), timeout=20))
    assert "refresh_skipped" not in cache.sync.stats().events


@pytest.mark.usefixtures("collected")
def test_a_load_that_is_closed_in_another_context_gives_its_lease_back(
    settings: MakeSettings,
) -> None:
    """The collector closes what a closed loop left, in whatever context it runs."""
    given = settings(operation_timeout=5.0, lock_timeout=60.0)
    cache = RedisCacheFactory.create_async_cache(given)
    with RedisCacheFactory.create_cache(given) as other, cache.sync as sync:
        leave_a_refresh(cache, "k")
        [task] = cache._driver._tasks
        coroutine: Any = task.get_coro()
        coroutine.close()
        options: Any = {"ttl": 600.0, "stale_ttl": 600.0}
        wait_until(lambda: other.get_or_set("k", lambda: "new", **options) == "new")
        assert "refresh_failed" not in sync.stats().events
