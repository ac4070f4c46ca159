"""Awaited sets: gathered into one hop and one round trip, each with its own end."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from aio_kit import MakeSettings, ended, made, turns
from forged import name_of

from jmcache import AsyncRedisCache, CacheSettings, Outcome, RedisCacheFactory
from jmcache.aio import _threads, _writes
from jmcache.testing import PrivateCluster, PrivateServer


class Flights:
    """How the sets of an adapter leave, and when they may.

    Attributes:
        sizes: How many left together.
        opened: Clear it, and whoever leaves waits on its thread until it is set.
        left: Released for each flight.
    """

    def __init__(self, cache: AsyncRedisCache, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self.opened = threading.Event()
        self.opened.set()
        self.left = threading.Semaphore(0)
        sync: Any = cache.sync
        keep = sync._set_each

        def keeping(wanted: Any, *args: Any) -> Any:
            self.sizes.append(len(wanted))
            self.left.release()
            assert self.opened.wait(timeout=20)
            return keep(wanted, *args)

        monkeypatch.setattr(sync, "_set_each", keeping)


@pytest.fixture
def cache(settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> Iterator[AsyncRedisCache]:
    """An adapter in which nobody leaves because of a pause of the machine."""
    monkeypatch.setattr(_writes, "_PATIENCE_S", 20.0)
    cache = made(settings(operation_timeout=10.0, max_connections=4))
    yield cache
    cache.sync.close()


@pytest.fixture
def flights(cache: AsyncRedisCache, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flights]:
    flights = Flights(cache, monkeypatch)
    yield flights
    flights.opened.set()


def sets(cache: AsyncRedisCache, items: list[tuple[str, Any]]) -> list[asyncio.Task[bool]]:
    loop = asyncio.get_running_loop()
    return [loop.create_task(cache.set(key, value)) for key, value in items]


async def first_out(cache: AsyncRedisCache, flights: Flights) -> asyncio.Task[bool]:
    """A set that is out, alone, and stays so until the flights are opened."""
    flights.opened.clear()
    [first] = sets(cache, [("first", 0)])
    assert await asyncio.to_thread(flights.left.acquire, timeout=20)
    return first


def numbered(count: int) -> list[tuple[str, Any]]:
    return [(f"k{number}", number) for number in range(count)]


# Together -----------------------------------------------------------------------------------------


def test_a_lone_set_leaves_at_once(cache: AsyncRedisCache, flights: Flights) -> None:
    """Most requests write one result: they must not wait for company."""

    async def use() -> None:
        first = await first_out(cache, flights)  # though the patience is 20 s
        flights.opened.set()
        assert await first is True

    asyncio.run(use())
    assert cache.sync.get("first") == 0


def test_what_is_set_while_one_is_out_leaves_together_when_it_lands(
    cache: AsyncRedisCache, flights: Flights
) -> None:
    """Each for itself, 64 callers cost 64 hops and 64 round trips."""

    async def use() -> None:
        first = await first_out(cache, flights)
        others = sets(cache, numbered(63))
        await turns(2)
        flights.opened.set()
        assert await asyncio.gather(first, *others) == [True] * 64

    asyncio.run(use())
    assert flights.sizes == [1, 63]
    assert cache.sync.get_many(f"k{number}" for number in range(63)) == dict(numbered(63))
    assert ended(cache, "set") == {("done", ""): 64}
    assert cache.sync.stats().latency["set"].count == 64


def test_nobody_waits_long_for_a_flight_that_is_out(
    cache: AsyncRedisCache, flights: Flights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that hangs must not hold up everybody else's."""
    monkeypatch.setattr(_writes, "_PATIENCE_S", 0.01)

    async def use() -> None:
        first = await first_out(cache, flights)
        others = sets(cache, numbered(3))
        assert await asyncio.to_thread(flights.left.acquire, timeout=20)
        assert not first.done()
        flights.opened.set()
        assert await asyncio.gather(first, *others) == [True] * 4

    asyncio.run(use())


def test_a_flight_is_bounded_in_values_and_bytes(cache: AsyncRedisCache, flights: Flights) -> None:
    """One long pipeline is one long wait for all who share it, and for the server's others."""
    bulky = [(f"b{number}", "x" * 50_000) for number in range(40)]

    async def use() -> None:
        first = await first_out(cache, flights)
        others = sets(cache, numbered(150))
        await turns(2)
        flights.opened.set()
        assert all(await asyncio.gather(first, *others))
        assert max(flights.sizes) <= 64
        for _ in range(2):  # how large they are is learnt
            flights.sizes.clear()
            assert all(await asyncio.gather(*sets(cache, bulky)))
        assert max(flights.sizes) <= 512 * 1024 // 50_000

    asyncio.run(use())
    assert cache.sync.get("b39") == "x" * 50_000


def test_a_giant_leaves_alone_once_it_is_known(cache: AsyncRedisCache, flights: Flights) -> None:
    """It takes 20 ms to pack, and those who want little kept would wait for it each time."""
    giant = ("giant", "x" * 200_000)

    async def use() -> None:
        assert await cache.set(*giant)
        flights.sizes.clear()
        first = await first_out(cache, flights)
        others = sets(cache, [*numbered(3), giant, ("k9", 9)])
        await turns(2)
        flights.opened.set()
        assert all(await asyncio.gather(first, *others))

    asyncio.run(use())
    assert flights.sizes == [1, 3, 1, 1]


def test_of_two_sets_of_a_key_the_later_one_stays(cache: AsyncRedisCache, flights: Flights) -> None:
    """A task that writes twice, or two that follow each other, must not end with the first one."""
    draw = random.Random(5)
    items = [(f"k{draw.randrange(5)}", number) for number in range(60)]

    async def use() -> None:
        first = await first_out(cache, flights)
        others = sets(cache, items)
        await turns(2)
        flights.opened.set()
        assert all(await asyncio.gather(first, *others))

    asyncio.run(use())
    assert flights.sizes == [1, 60]
    assert cache.sync.get_many(dict(items)) == dict(items)


def test_values_are_packed_by_a_thread(
    cache: AsyncRedisCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 KB take milliseconds to pack, which the loop has for everybody."""
    stops: Any = cache.sync._stops
    pack, threads = stops.pack, set()

    def packing(value: Any) -> bytes:
        threads.add(threading.current_thread().name.partition("_")[0])
        return pack(value)

    monkeypatch.setattr(stops, "pack", packing)
    assert asyncio.run(cache.set("k", 1)) is True
    assert threads == {"jmcache-aio"}


# Each with its own end ----------------------------------------------------------------------------


def test_a_value_that_is_refused_fails_its_own_caller_alone(
    cache: AsyncRedisCache, flights: Flights
) -> None:
    """Somebody else's mistake must not cost the others what they keep."""

    async def use() -> None:
        first = await first_out(cache, flights)
        others = sets(cache, [("a", 1), ("bad", object()), ("b", 2), ("large", "x" * 2_000_000)])
        await turns(2)
        flights.opened.set()
        assert await asyncio.gather(first, *others) == [True, True, False, True, False]

    asyncio.run(use())
    assert cache.sync.get_many(["a", "b", "bad", "large"]) == {"a": 1, "b": 2}
    sets_ended = ended(cache, "set")
    assert sets_ended.pop(("done", "")) == 3
    assert {outcome for outcome, _ in sets_ended} == {"refused"}
    assert sum(sets_ended.values()) == 2


class Limit(BaseException):
    """A time limit's, as gevent's."""


@pytest.mark.parametrize("kind", [RuntimeError, Limit])
def test_what_a_value_raises_its_own_caller_gets(
    kind: type[BaseException],
    cache: AsyncRedisCache,
    flights: Flights,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A class of the application that fails while it is packed must be found where it is used."""
    stops: Any = cache.sync._stops
    pack = stops.pack

    def packing(value: Any) -> bytes:
        if value == "bad":
            raise kind("its own")
        packed: bytes = pack(value)
        return packed

    async def use() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        first = await first_out(cache, flights)
        monkeypatch.setattr(stops, "pack", packing)
        others = sets(cache, [("a", 1), ("bad", "bad"), ("b", 2)])
        await turns(2)
        flights.opened.set()
        found = await asyncio.gather(first, *others, return_exceptions=True)
        assert [type(one) for one in found] == [bool, bool, kind, bool]

    asyncio.run(use())
    assert cache.sync.get_many(["a", "b", "bad"]) == {"a": 1, "b": 2}
    assert ended(cache, "set") == {("done", ""): 3}


def test_a_flight_that_cannot_begin_leaves_nobody_waiting(
    cache: AsyncRedisCache, flights: Flights
) -> None:
    """A time limit's signal may strike while it does; the application's tasks may be its own."""
    struck: list[int] = []

    def factory(loop: Any, coroutine: Any, **options: Any) -> Any:
        if coroutine.__name__ == "_fly" and flights.sizes and not struck:
            struck.append(1)
            raise RuntimeError
        return asyncio.Task(coroutine, loop=loop, **options)

    async def use() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: None)
        loop.set_task_factory(factory)
        first = await first_out(cache, flights)
        others = sets(cache, numbered(3))
        await turns(2)
        flights.opened.set()
        assert await asyncio.gather(first, *others) == [True] * 4

    asyncio.run(use())
    assert struck
    assert cache.sync.get_many(["k0", "k1", "k2"]) == dict(numbered(3))


def test_more_sets_than_can_be_served_are_saturated_each(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue without an end is memory without an end, and answers that come too late."""
    monkeypatch.setattr(_threads, "_QUEUE_PER_THREAD", 1)
    cache = AsyncRedisCache(made(settings(operation_timeout=10.0)).sync, max_threads=1)
    flights = Flights(cache, monkeypatch)

    async def use() -> list[bool]:
        first = await first_out(cache, flights)
        found = await asyncio.gather(*sets(cache, numbered(5)))  # after a little patience
        flights.opened.set()
        assert await first is True
        return found

    with cache.sync:
        assert asyncio.run(use()) == [False] * 5
        assert ended(cache, "set") == {("done", ""): 1, ("saturated", "queue_full"): 5}


def test_a_cancelled_writer_harms_no_other(cache: AsyncRedisCache, flights: Flights) -> None:
    """A client that hangs up is no reason to write nothing for the others."""

    async def use() -> None:
        first = await first_out(cache, flights)
        waiting, *others = sets(cache, numbered(4))
        await turns(2)
        for task in (first, waiting):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        flights.opened.set()
        assert await asyncio.gather(*others) == [True] * 3

    asyncio.run(use())
    assert flights.sizes == [1, 3]  # who was cancelled before it left, left not
    assert ended(cache, "set") == {("done", ""): 3}


def test_who_cancels_all_tasks_of_a_loop_costs_no_writer_its_value(
    cache: AsyncRedisCache, flights: Flights
) -> None:
    """Servers do when they shut down; the flight is such a task, and its writers shield theirs."""

    async def use() -> None:
        first = await first_out(cache, flights)
        ours = asyncio.current_task()
        for task in asyncio.all_tasks():
            if task is not ours and task is not first:
                task.cancel()
        flights.opened.set()
        assert await first is True

    asyncio.run(use())
    assert cache.sync.get("first") == 0


def test_what_waits_when_it_is_closed_ends_as_unavailable(
    cache: AsyncRedisCache, flights: Flights
) -> None:
    """Nobody's task may hang, or raise, because the service shuts down."""

    async def use() -> None:
        first = await first_out(cache, flights)
        others = sets(cache, numbered(3))
        await turns(2)
        await cache.aclose()
        flights.opened.set()
        assert await asyncio.gather(first, *others) == [False] * 4
        assert await cache.set("k", 1) is False

    asyncio.run(use())
    assert ended(cache, "set") == {("unavailable", "closed"): 5}


# What a set may be told ---------------------------------------------------------------------------


def test_ttl_tags_and_timeout_mean_what_they_do_in_the_sync_cache(
    cache: AsyncRedisCache, flights: Flights, redis_server: PrivateServer
) -> None:
    """Each of a flight has a TTL of its own; tags and timeouts go a way of their own."""

    async def use() -> None:
        first = await first_out(cache, flights)
        ttls = [cache.set(f"k{ttl}", ttl, ttl) for ttl in (50, 500)]
        others = list(map(asyncio.ensure_future, ttls))
        await turns(2)
        flights.opened.set()
        assert all(await asyncio.gather(first, *others))
        assert await cache.set("tagged", 1, tags=["t"], timeout=5.0)
        assert await cache.get("tagged") == 1
        assert await cache.invalidate_tags("t")
        assert await cache.get("tagged") is None
        for wrong in ({"ttl": 0}, {"timeout": -1}):
            with pytest.raises(ValueError, match=r"ttl|timeout"):
                await cache.set("k", 1, **wrong)  # type: ignore[arg-type]
        for tags in (None, "", "text", 5):
            with pytest.raises(TypeError, match="tags"):
                await cache.set("k", 1, tags=tags)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="key"):
            await cache.set(5, 1)  # type: ignore[arg-type]

    asyncio.run(use())
    for ttl in (50, 500):
        left_ms = redis_server.command("PTTL", name_of(cache.sync, f"k{ttl}"))
        assert isinstance(left_ms, int)
        assert ttl * 850 <= left_ms <= ttl * 1000


def test_on_a_cluster_each_goes_for_itself(
    redis_cluster: PrivateCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that hangs would hold up the sets of keys that are not its own."""
    given = CacheSettings.from_url(redis_cluster.url, namespace="test", operation_timeout=5.0)
    cache = RedisCacheFactory.create_async_cache(given)
    flights = Flights(cache, monkeypatch)

    async def use() -> None:
        assert all(await asyncio.gather(*sets(cache, numbered(20))))
        await cache.aclose()

    asyncio.run(use())
    assert flights.sizes == []
    assert ended(cache, "set") == {("done", ""): 20}


@pytest.mark.faults
def test_an_outage_is_one_failure_for_each_flight_and_an_end_for_each_set(
    settings: MakeSettings, redis_server: PrivateServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 writers on one lost answer would open the breaker at once, for all of the process."""
    monkeypatch.setattr(_writes, "_PATIENCE_S", 20.0)
    cache = made(settings(operation_timeout=0.3, max_retries=0))
    flights = Flights(cache, monkeypatch)

    async def use() -> list[bool]:
        first = await first_out(cache, flights)
        others = sets(cache, numbered(30))
        await turns(2)
        redis_server.pause()
        flights.opened.set()
        return await asyncio.gather(first, *others)

    with cache.sync:
        stops: Any = cache.sync._stops
        assert asyncio.run(use()) == [False] * 31
        assert stops._breaker._moment.failures <= 2
        redis_server.resume()
        assert sum(ended(cache, "set").values()) == 31
        assert {outcome for outcome, _ in ended(cache, "set")} == {str(Outcome.UNAVAILABLE)}
