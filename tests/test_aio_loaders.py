"""Loaders of awaited calls: the threads they hold, and the loops they end with."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from jmcache import AsyncRedisCache, RedisCacheFactory
from jmcache.aio import _driver


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
