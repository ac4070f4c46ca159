"""A cache as threads use it, and as tasks do: the same test holds both to the same promise."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from jmcache import AsyncRedisCache, Cache
from jmcache.background import Background

SOON_S = 10.0  # for what takes milliseconds, on a machine that is busy


class Door:
    """One way to a cache, for plain threads: straight, or through its awaited twin on a loop."""

    def __init__(self, cache: Cache, *, awaited: bool) -> None:
        self.cache = cache
        self.awaited = awaited
        self._threads = ThreadPoolExecutor(32)
        self._twin = AsyncRedisCache(cache)
        self._loop = asyncio.new_event_loop()
        self._runner = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._runner.start()

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        return lambda *args, **options: self.begin(verb, *args, **options).result(SOON_S)

    def begin(self, verb: str, *args: Any, **options: Any) -> Future[Any]:
        """Begin a call on a thread or in a task of its own."""
        if not self.awaited:
            return self._threads.submit(getattr(self.cache, verb), *args, **options)
        return asyncio.run_coroutine_threadsafe(
            getattr(self._twin, verb)(*args, **options), self._loop
        )

    def close(self) -> None:
        """Let go of everything, the cache too."""
        asyncio.run_coroutine_threadsafe(self._wind_up(), self._loop).result(SOON_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._runner.join(SOON_S)
        self._loop.close()
        self._threads.shutdown()

    async def _wind_up(self) -> None:
        await self._twin.aclose()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


class Loader:
    """Returns its result, or raises it, once it may; knows how often it was called."""

    def __init__(self, result: Any = "value", *, waits: bool = False) -> None:
        self.result = result
        self.runs = 0
        self.begun = threading.Event()
        self.may_end = threading.Event()
        if not waits:
            self.may_end.set()

    def __call__(self) -> Any:
        self.runs += 1
        self.begun.set()
        assert self.may_end.wait(SOON_S)
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


def occupy(pool: Background, over: threading.Event) -> None:
    """Give each of its threads work until *over*, and fill its queue.

    Threads take pieces from the queue as they come: it is not full before all of them have.
    """
    at_work: list[threading.Thread] = []

    def work() -> None:
        at_work.append(threading.current_thread())
        over.wait(SOON_S)

    while pool.submit(work) or len(at_work) < pool._threads:
        pass


def wait_until(holds: Callable[[], object]) -> None:
    """For what no event tells of, such as the end of work in the background."""
    give_up_at = time.monotonic() + SOON_S
    while not holds():
        assert time.monotonic() < give_up_at, "it never came true"
        time.sleep(0.001)


def events(cache: Cache) -> dict[str, int]:
    """What computing values led to so far."""
    return dict(cache.stats().events)


@pytest.fixture(params=["threads", "tasks"])
def open_door(request: pytest.FixtureRequest) -> Iterator[Callable[[Cache], Door]]:
    """Open a door to a cache, of either kind in turn."""
    doors: list[Door] = []

    def open_one(cache: Cache) -> Door:
        doors.append(Door(cache, awaited=request.param == "tasks"))
        return doors[-1]

    yield open_one
    for door in doors:
        door.close()
