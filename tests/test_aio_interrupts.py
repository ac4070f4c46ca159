"""An exception from a signal handler at any point of a flight: nobody is left to wait for ever.

Not where asyncio loses sight itself: of a future that has its result while nobody is told.
"""

from __future__ import annotations

import asyncio
import linecache
from types import FrameType
from typing import Any

import pytest
from aio_kit import MakeSettings, asked, made, shelf_of, usable
from computing_kit import wait_until
from interrupter import Interrupt, Interrupter
from scripted_server import ScriptedServer

from jmcache import AsyncRedisCache, Outcome
from jmcache.aio import _reads, _writes
from jmcache.cache._awaited import AwaitedLook
from jmcache.testing import PrivateServer


class InFlight(Interrupter):
    def _is_it(self, frame: FrameType) -> bool:
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        return "set_result" not in line and super()._is_it(frame)


async def five(cache: AsyncRedisCache, verb: str, interrupter: Interrupter) -> None:
    """Three flights, interrupted."""
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    tasks = [
        asyncio.ensure_future(cache.get(f"k{n}") if verb == "get" else cache.set(f"k{n}", n))
        for n in range(5)
    ]
    with interrupter:
        _, waiting = await asyncio.wait(tasks, timeout=20)
    assert not waiting, interrupter.where
    raised = [error for task in tasks if (error := task.exception())]
    assert [type(error) for error in raised] in ([], [Interrupt]), interrupter.where
    assert await cache.set("after", interrupter.where, timeout=20)
    assert await cache.get("after", timeout=20) == interrupter.where


@pytest.mark.parametrize(
    ("verb", "file"),
    [("get", "_gathering"), ("get", "_reads"), ("set", "_gathering"), ("set", "_writes")],
)
def test_wherever_it_strikes_everybody_else_goes_on(
    verb: str, file: str, settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Celery's soft limit struck one caller, and 270 others waited until the next one came."""
    monkeypatch.setattr(_reads, "_MOST", 2)
    monkeypatch.setattr(_writes, "_MOST", 2)
    # Some are told only when their time is over.
    given = {
        "operation_timeout": 0.1,
        "max_retries": 0,
        "failure_threshold": 10**6,
        "failure_rate_threshold": None,
    }
    cache, point, done = made(settings(max_connections=4, **given), 4), 0, True
    with cache.sync as sync:
        sync.set_many({f"k{n}": n for n in range(5)})
        while done:
            interrupter = InFlight(point, f"jmcache/aio/{file}")
            asyncio.run(five(cache, verb, interrupter))
            done = interrupter.done
            point += 1
        wait_until(lambda: usable(cache) == sync.settings.max_connections)
    assert point > 20


def test_who_strikes_where_the_time_of_one_flight_is_over_stops_the_clock_of_no_other(
    redis_server: PrivateServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One alarm rings for all flights; behind a silent server nothing else would ever tell them."""
    shelf = shelf_of(redis_server, {f"k{n}": n for n in range(3)})
    too_late = AwaitedLook.too_late
    struck: list[int] = []

    def strike(*args: Any) -> Any:
        if not struck:
            struck.append(1)
            raise Interrupt
        return too_late(*args)

    async def use() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        shelf.opened.clear()
        tasks = []
        for number in range(3):  # a flight each
            tasks.append(asyncio.ensure_future(cache.lookup(f"k{number}")))
            await asked(shelf)
        looks = await asyncio.wait_for(asyncio.gather(*tasks), timeout=20)
        assert {look.outcome for look in looks} == {Outcome.UNAVAILABLE}
        assert struck

    monkeypatch.setattr(AwaitedLook, "too_late", strike)
    given = {"namespace": "test", "max_retries": 0, "operation_timeout": 1.0}
    with ScriptedServer(shelf) as server:
        cache = made(server.settings(**given), 3)
        with cache.sync:
            try:
                asyncio.run(use())
            finally:
                shelf.opened.set()
