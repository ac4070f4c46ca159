"""Awaited reads: gathered into round trips that the loop waits for itself, each with its end."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from aio_kit import (
    MakeSettings,
    Shelf,
    asked,
    bulk,
    connect,
    ended,
    made,
    own_threads,
    shelf_of,
    stored_in,
    turns,
    usable,
)
from certificates import Certificates
from forged import entry, name_of
from scripted_server import END, RESET, Client, ScriptedServer

from jmcache import AsyncRedisCache, Outcome, RedisCacheFactory
from jmcache.aio import _reads
from jmcache.circuit_breaker import CircuitState
from jmcache.deadline import Deadline
from jmcache.settings import CacheSettings
from jmcache.testing import PrivateCluster, PrivateServer, fake_manager

D = 0.25  # seconds: the default of operation_timeout
VALUES = {f"k{number}": {"value": number} for number in range(300)}


@pytest.fixture
def shelf(redis_server: PrivateServer) -> Iterator[Shelf]:
    """VALUES, for a scripted server; whatever waits goes on in the end."""
    shelf = shelf_of(redis_server, VALUES)
    yield shelf
    shelf.opened.set()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody leaves because of a pause of the machine."""
    monkeypatch.setattr(_reads, "_PATIENCE_S", 20.0)
    monkeypatch.setattr(_reads, "_LARGE_PATIENCE_S", 20.0)


def over(server: ScriptedServer, connections: int = 1, **settings: Any) -> AsyncRedisCache:
    """An adapter over a scripted server, with connections that are open."""
    given = {"namespace": "test", "max_retries": 0, "operation_timeout": 5.0, **settings}
    return made(server.settings(**given), connections)


def gets(cache: AsyncRedisCache, *numbers: int, **options: Any) -> list[asyncio.Task[Any]]:
    loop = asyncio.get_running_loop()
    return [loop.create_task(cache.get(f"k{number}", **options)) for number in numbers]


def values(*numbers: int) -> list[Any]:
    return [VALUES[f"k{number}"] for number in numbers]


async def first_out(cache: AsyncRedisCache, shelf: Shelf) -> asyncio.Task[Any]:
    """A get that is out, alone, and stays so until the shelf is opened."""
    shelf.opened.clear()
    [first] = gets(cache, 0)
    await asked(shelf)
    return first


# Together -----------------------------------------------------------------------------------------


def test_a_lone_read_leaves_at_once_and_needs_no_thread(shelf: Shelf) -> None:
    """Most requests ask for one key: they must pay neither for company nor for a hop."""

    async def use() -> None:
        shelf.opened.clear()
        [task] = gets(cache, 1)
        await turns(1)  # the one in which it begins
        assert shelf.asked.acquire(timeout=5)  # the loop does nothing meanwhile
        assert own_threads() == before
        shelf.opened.set()
        assert await task == VALUES["k1"]
        assert own_threads() == before

    before = own_threads()
    with ScriptedServer(shelf) as server, over(server).sync as sync:
        cache = AsyncRedisCache(sync)
        asyncio.run(use())
        assert ended(cache, "get") == {("hit", ""): 1}


@pytest.mark.usefixtures("patient")
def test_what_is_asked_while_one_is_out_leaves_together_when_it_lands(shelf: Shelf) -> None:
    """Each for itself, 64 callers cost 64 round trips."""

    async def use() -> None:
        first = await first_out(cache, shelf)
        others = gets(cache, *range(1, 64))
        await turns(2)
        shelf.opened.set()
        assert await asyncio.gather(first, *others) == values(*range(64))
        assert shelf.flights == [1, 63]
        again = gets(cache, *range(64))  # in one turn, when there was a crowd before
        assert await asyncio.gather(*again) == values(*range(64))
        assert shelf.flights == [1, 63, 64]

    with ScriptedServer(shelf) as server, over(server).sync as sync:
        cache = AsyncRedisCache(sync)
        asyncio.run(use())
        assert ended(cache, "get") == {("hit", ""): 128}
        assert sync.stats().latency["get"].count == 128


@pytest.mark.usefixtures("patient")
def test_the_same_key_is_asked_once_in_a_flight_and_each_gets_a_copy(shelf: Shelf) -> None:
    """A popular key costs one GET; what one caller changes, another must not see."""

    async def use() -> None:
        first = await first_out(cache, shelf)
        others = gets(cache, *[1] * 20)
        await turns(2)
        shelf.opened.set()
        found = await asyncio.gather(first, *others)
        assert found[1:] == [VALUES["k1"]] * 20
        assert len({id(one) for one in found}) == 21
        assert shelf.flights == [1, 1]

    with ScriptedServer(shelf) as server, over(server).sync as sync:
        cache = AsyncRedisCache(sync)
        asyncio.run(use())
        assert ended(cache, "get") == {("hit", ""): 21}


def test_nobody_waits_long_for_a_flight_that_is_out(shelf: Shelf) -> None:
    """One answer that takes its time must not hold up those of everybody else."""

    async def use() -> None:
        first = await first_out(cache, shelf)
        others = gets(cache, 1, 2, 3)
        await asked(shelf)  # on the other connection
        assert not first.done()
        assert shelf.flights == [1, 3]
        shelf.opened.set()
        assert await asyncio.gather(first, *others) == values(0, 1, 2, 3)

    with ScriptedServer(shelf) as server, over(server, 2).sync as sync:
        cache = AsyncRedisCache(sync)
        asyncio.run(use())


@pytest.mark.usefixtures("patient")
def test_a_flight_is_bounded_in_keys_and_bytes(shelf: Shelf, redis_server: PrivateServer) -> None:
    """A reply of 50 MB would be one long wait for all who share it."""
    bulky = {f"b{number}": "x" * 50_000 for number in range(60)}

    async def use() -> None:
        first = await first_out(cache, shelf)
        others = gets(cache, *range(1, 300))
        await turns(2)
        shelf.opened.set()
        await asyncio.gather(first, *others)
        assert max(shelf.flights) <= 128
        for _ in range(2):  # how large they are is learnt
            shelf.flights.clear()
            found = await asyncio.gather(*map(cache.get, bulky))
            assert found == list(bulky.values())
        assert max(shelf.flights) <= 512 * 1024 // 50_000

    shelf.stored |= shelf_of(redis_server, bulky).stored
    with ScriptedServer(shelf) as server, over(server, 4).sync as sync:
        cache = AsyncRedisCache(sync)
        asyncio.run(use())
        assert ended(cache, "get") == {("hit", ""): 420}


@pytest.mark.usefixtures("patient")
def test_a_giant_leaves_alone_once_it_is_known(shelf: Shelf, redis_server: PrivateServer) -> None:
    """Those who want little would wait for the giant's bytes each time."""

    async def use() -> None:
        assert await cache.get("giant") == "x" * 200_000
        shelf.flights.clear()
        first = await first_out(cache, shelf)
        others = [*gets(cache, 1, 2), asyncio.ensure_future(cache.get("giant")), *gets(cache, 3)]
        await turns(2)
        shelf.opened.set()
        await asyncio.gather(first, *others)
        assert shelf.flights == [1, 2, 1, 1]

    shelf.stored |= shelf_of(redis_server, {"giant": "x" * 200_000}).stored
    with ScriptedServer(shelf) as server, over(server).sync as sync:
        cache = AsyncRedisCache(sync)
        asyncio.run(use())


def test_large_values_are_handed_out_over_several_turns(
    shelf: Shelf, redis_server: PrivateServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of a flight decoded in one turn is a pause for every other coroutine of the loop."""
    bulky = {f"b{number}": "x" * 50_000 for number in range(64)}
    bytes_in_turn: list[int] = []
    turn = [0]

    async def use() -> None:
        stops = cache.sync._stops
        decode, unseal = stops.nearby.decode, stops.unseal

        def decoding(body: bytes) -> Any:
            bytes_in_turn[-1] += len(body)
            return decode(body)

        def unsealing(key: Any, blob: Any) -> Any:
            opened = unseal(key, blob)
            bytes_in_turn[-1] += len(getattr(opened, "body", b""))
            return opened

        monkeypatch.setattr(stops.nearby, "decode", decoding)
        monkeypatch.setattr(stops, "unseal", unsealing)
        over_now = False

        async def tick() -> None:
            while not over_now:
                bytes_in_turn.append(0)
                turn[0] += 1
                await asyncio.sleep(0)

        ticking = asyncio.ensure_future(tick())
        for _ in range(3):
            found = await asyncio.gather(*map(cache.get, bulky))
            assert found == list(bulky.values())
        over_now = True
        await ticking

    shelf.stored |= shelf_of(redis_server, bulky).stored
    with ScriptedServer(shelf) as server, over(server, 4).sync as sync:
        cache = AsyncRedisCache(sync)
        asyncio.run(use())
        # Unsealed of one flight and decoded of another, and one value more of each.
        assert max(bytes_in_turn) <= 2 * (256 * 1024 + 50_004)
        assert ended(cache, "get") == {("hit", ""): 192}


def test_flights_that_land_together_share_a_turn(
    shelf: Shelf, redis_server: PrivateServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ten connections a turn would be ten times as long."""
    bulky = {f"b{number}": "x" * 50_000 for number in range(20)}
    landed = threading.Semaphore(0)
    decoded = [0]

    def answer(client: Client, data: bytes) -> None:
        client.send(data)
        landed.release()

    async def tick() -> None:
        while True:
            decoded.append(0)
            await asyncio.sleep(0)

    async def use() -> None:
        shelf.opened.clear()
        tasks = []
        for number in range(4):  # of five each
            keys = list(bulky)[number::4]
            tasks.append(asyncio.ensure_future(asyncio.gather(*map(cache.get, keys))))
            await asked(shelf)
        stops: Any = cache.sync._stops
        decode = stops.nearby.decode

        def decoding(body: bytes) -> Any:
            decoded[-1] += len(body)
            return decode(body)

        monkeypatch.setattr(stops.nearby, "decode", decoding)
        ticking = asyncio.ensure_future(tick())
        shelf.opened.set()
        for _ in shelf.flights:
            assert landed.acquire(timeout=20)  # the loop does nothing meanwhile
        await asyncio.gather(*tasks)
        ticking.cancel()

    shelf.answer = answer
    shelf.stored |= shelf_of(redis_server, bulky, compress_above_bytes=0).stored
    with ScriptedServer(shelf) as server, over(server, 8).sync as sync:
        cache = AsyncRedisCache(sync)
        asyncio.run(use())
        assert sum(decoded) == 20 * 50_003
        assert max(decoded) < 256 * 1024 + 50_003


# Where a thread takes over ------------------------------------------------------------------------


def test_the_first_read_connects_by_a_thread(shelf: Shelf) -> None:
    """A name look-up and a handshake may take the whole deadline."""

    async def use() -> list[Any]:
        return await asyncio.gather(*gets(cache, *range(64)))

    with ScriptedServer(shelf) as server, over(server, 0).sync as sync:
        cache = AsyncRedisCache(sync)
        assert asyncio.run(use()) == values(*range(64))
        assert cache._threads.running
        assert ended(cache, "get") == {("hit", ""): 64}


@pytest.mark.usefixtures("patient")
def test_tls_needs_no_thread_either(shelf: Shelf, certificates: Certificates) -> None:
    """Records end where they like: in a head, between two values, in the middle of one."""

    def in_small_records(client: Client, data: bytes) -> None:
        for place in range(0, len(data), 13):
            client.send(data[place : place + 13])

    async def use() -> list[Any]:
        return await asyncio.gather(*gets(cache, *range(20)))

    shelf.answer = in_small_records
    tls = certificates.context(certificates.good)
    secure = {"tls": True, "tls_ca_certs": certificates.authority}
    with ScriptedServer(shelf, tls=tls) as server, over(server, **secure).sync as sync:
        cache = AsyncRedisCache(sync)
        for _ in range(3):
            assert asyncio.run(use()) == values(*range(20))
        assert cache._threads.running == 0
        assert len(server.clients) == 1


@pytest.mark.parametrize("known", [True, False], ids=["of the call", "of the cache"])
def test_a_validation_runs_on_a_thread(known: bool, settings: MakeSettings) -> None:
    """What the application has to say may take as long as it likes; not on the loop."""
    threads: set[str] = set()

    def validate(value: object) -> bool:
        threads.add(threading.current_thread().name)
        return value != "bad"

    of_cache = {} if known else {"validate": validate}
    of_call = {"validate": validate} if known else {}
    cache = RedisCacheFactory.create_async_cache(settings(operation_timeout=5.0), **of_cache)

    async def use() -> None:
        await cache.set("good", "good")
        await cache.set("bad", "bad")
        assert await cache.get("good", **of_call) == "good"
        assert (await cache.lookup("bad", **of_call)).outcome is Outcome.CORRUPT
        await cache.aclose()

    asyncio.run(use())
    assert all(name.startswith("jmcache-aio") for name in threads)
    assert len(threads) > 0
    assert ended(cache, "get") == {("hit", ""): 1, ("corrupt", "invalid"): 1}


def test_a_validation_that_is_falsy_is_asked_like_any_other(settings: MakeSettings) -> None:
    """A registry of rules that is still empty, has a length of 0, and lets nothing through."""

    class Rules(list[Callable[[object], bool]]):
        def __call__(self, value: object) -> bool:
            return bool(self)

    async def use() -> None:
        async with RedisCacheFactory.create_async_cache(settings(operation_timeout=5.0)) as cache:
            await cache.set("k", 1)
            found = await cache.lookup("k", validate=Rules())
            assert (found.outcome, found.reason) == (Outcome.CORRUPT, "invalid")

    asyncio.run(use())


@pytest.mark.parametrize("kind", ["cluster", "fake"])
def test_it_works_where_there_is_no_one_socket_to_wait_for(
    kind: str, redis_cluster: PrivateCluster
) -> None:
    """A cluster's nodes are asked for their keys alone, and a fake has no socket: same outcome."""
    given = {"namespace": "test", "operation_timeout": 5.0, "max_connections": 4}
    if kind == "fake":
        settings = CacheSettings(**given)  # type: ignore[arg-type]
        manager = fake_manager(settings)
        cache = RedisCacheFactory.create_async_cache(settings, connection=manager)
    else:
        port = redis_cluster.masters()[0].port
        settings = CacheSettings(port=port, cluster=True, **given)  # type: ignore[arg-type]
        cache = RedisCacheFactory.create_async_cache(settings)

    async def use() -> None:
        assert all(await asyncio.gather(*(cache.set(k, v) for k, v in VALUES.items())))
        assert await asyncio.gather(*map(cache.get, VALUES)) == list(VALUES.values())
        await cache.aclose()

    asyncio.run(use())
    assert ended(cache, "get") == {("hit", ""): 300}
    assert ended(cache, "set") == {("done", ""): 300}


def test_an_open_breaker_and_a_half_open_one(shelf: Shelf) -> None:
    """An open one answers without asking; a half-open one lets one call out, as a probe."""

    async def use() -> None:
        stops: Any = cache.sync._stops
        stops._health = SimpleNamespace(start=int, ring=int)  # whose probes would interfere
        breaker = stops._breaker
        for _ in range(3):
            shelf.answer = lambda client, _: client.give(RESET)
            assert await cache.get("k1") is None
        assert breaker.state is CircuitState.OPEN
        asked = len(shelf.flights)
        look = await cache.lookup("k1")
        assert (look.outcome, look.reason) == (Outcome.UNAVAILABLE, "breaker_open")
        assert len(shelf.flights) == asked
        shelf.answer = Client.send
        breaker._moment = breaker._moment._replace(probe_at=0.0)
        assert await cache.get("k1") == VALUES["k1"]
        assert breaker.state is CircuitState.CLOSED

    settings = {"failure_threshold": 3, "reset_timeout": 60.0}
    with ScriptedServer(shelf) as server, over(server, **settings).sync as sync:
        cache = AsyncRedisCache(sync)
        asyncio.run(use())


# Each with its own end ----------------------------------------------------------------------------


def silent(client: Client, data: bytes) -> None:
    """Say nothing."""


def dripping(client: Client, data: bytes) -> None:
    client.drip(data, every_s=0.005)


async def timed(get: Any) -> tuple[Any, float]:
    started = time.monotonic()
    found = await get
    return found, time.monotonic() - started


@pytest.mark.faults
@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("how", [silent, dripping])
def test_each_of_a_flight_returns_within_its_own_deadline(
    how: Callable[[Client, bytes], None], shelf: Shelf
) -> None:
    """The patient ones of a flight must not decide how long the others wait; nor is a loop held."""
    timeouts = (0.1, 0.2, 0.4)
    answers = [Client.send, how]

    async def use() -> list[tuple[Any, float]]:
        first = await first_out(cache, shelf)
        late = [cache.lookup(f"k{n}", timeout=t) for n, t in enumerate(timeouts, 1)]
        others = [asyncio.ensure_future(timed(one)) for one in late]
        await turns(2)
        lags: list[float] = []
        shelf.opened.set()
        while not all(one.done() for one in others):
            started = time.monotonic()
            await asyncio.sleep(0.01)
            lags.append(time.monotonic() - started - 0.01)
        assert await first == VALUES["k0"]
        assert shelf.flights == [1, 3]
        assert sorted(lags)[len(lags) // 2] < 0.02  # most turns are short, whatever the machine
        return await asyncio.gather(*others)

    shelf.answer = lambda client, data: answers.pop(0)(client, data)
    with ScriptedServer(shelf) as server, over(server).sync as sync:
        cache = AsyncRedisCache(sync)
        for (found, took_s), timeout in zip(asyncio.run(use()), timeouts, strict=True):
            assert found.outcome is Outcome.UNAVAILABLE
            assert timeout * 0.9 <= took_s < timeout + 0.15
        assert usable(cache) == sync.settings.max_connections


@pytest.mark.faults
@pytest.mark.usefixtures("patient")
def test_nobody_is_forgotten_whose_time_is_over_while_the_others_are_told(shelf: Shelf) -> None:
    """Callers of one turn are microseconds apart: one was, and waited for ever."""
    ticks = itertools.count()

    def clock() -> float:
        return time.monotonic() + next(ticks) / 1000  # it leaps whenever somebody looks

    async def use() -> list[Any]:
        first = await first_out(cache, shelf)
        late = [cache.lookup(f"k{n}", timeout=Deadline(0.3 + n / 200, clock)) for n in range(1, 40)]
        others = asyncio.gather(*late)
        await turns(2)
        shelf.answer = silent
        shelf.opened.set()
        first.cancel()  # so that the others leave
        return await asyncio.wait_for(others, 10.0)

    with ScriptedServer(shelf) as server, over(server, 2).sync as sync:
        cache = AsyncRedisCache(sync)
        looks = asyncio.run(use())
        assert {look.outcome for look in looks} == {Outcome.UNAVAILABLE}
        assert sum(ended(cache, "get").values()) == 39
        stops: Any = sync._stops
        assert stops._breaker._moment.failures == 1


@pytest.mark.faults
def test_who_waits_for_a_flight_that_hangs_is_held_to_its_deadline_too(
    shelf: Shelf, redis_server: PrivateServer
) -> None:
    """Giants leave one by one: the last of a hundred would begin when its time is long over."""
    giants = {f"g{number}": "x" * 70_000 for number in range(100)}
    shelf.stored |= shelf_of(redis_server, giants).stored

    async def use() -> list[tuple[Any, float]]:
        for key in giants:
            assert await cache.get(key) is not None  # that it is one is known now
        shelf.answer = silent
        first = asyncio.ensure_future(cache.get("g0"))
        await turns(2)
        ends = await asyncio.gather(*[timed(cache.lookup(key, timeout=0.2)) for key in giants])
        first.cancel()
        return ends

    with ScriptedServer(shelf) as server, over(server, max_connections=4).sync as sync:
        cache = AsyncRedisCache(sync)
        ends = asyncio.run(use())
        assert {look.outcome for look, _ in ends} <= {Outcome.UNAVAILABLE, Outcome.SATURATED}
        assert max(took_s for _, took_s in ends) < 0.5


@pytest.mark.usefixtures("patient")
def test_what_asking_again_may_help_is_asked_again_by_a_thread(shelf: Shelf) -> None:
    """A server that restarts must cost no hit, as it costs none in threads."""

    async def use() -> list[Any]:
        first = await first_out(cache, shelf)
        others = gets(cache, *range(1, 20))
        await turns(2)
        answers = [Client.send, lambda client, _: client.give(END)]

        def answer(client: Client, data: bytes) -> None:
            (answers.pop(0) if answers else Client.send)(client, data)

        shelf.answer = answer
        shelf.opened.set()
        return await asyncio.gather(first, *others)

    retried = {"max_retries": 3, "initial_backoff_ms": 1}
    with ScriptedServer(shelf) as server, over(server, **retried).sync as sync:
        cache = AsyncRedisCache(sync)
        assert asyncio.run(use()) == values(*range(20))
        assert ended(cache, "get") == {("hit", ""): 20}


@pytest.mark.faults
@pytest.mark.usefixtures("patient")
def test_a_flight_that_fails_is_one_failure_to_the_breaker(shelf: Shelf) -> None:
    """64 callers on one lost answer would open it at once, for all of the process."""

    async def use() -> None:
        first = await first_out(cache, shelf)
        others = gets(cache, *range(1, 64), timeout=0.2)
        await turns(2)
        shelf.answer = lambda client, data: client.send(data) if data == one else None
        shelf.opened.set()
        assert await asyncio.gather(*others) == [None] * 63
        await first

    with ScriptedServer(shelf) as server, over(server, failure_threshold=5).sync as sync:
        cache = AsyncRedisCache(sync)
        stops: Any = cache.sync._stops
        one = _flight(shelf, cache, "k0")
        asyncio.run(use())
        assert stops._breaker._moment.failures == 1
        assert ended(cache, "get") == {("hit", ""): 1, ("unavailable", "timeout"): 63}


def _flight(shelf: Shelf, cache: AsyncRedisCache, *keys: str) -> bytes:
    """What the shelf answers to a flight of these keys."""
    names = [name_of(cache.sync, key) for key in keys]
    counter = cache.sync._stops.keys.space_counter
    return b"".join(bulk(shelf.stored.get(name)) for name in [*names, counter])


def test_corrupt_entries_are_removed_and_cost_the_others_nothing(
    settings: MakeSettings, redis_server: PrivateServer
) -> None:
    """Half-written bytes of somebody else's would be met again and again."""
    bad = ["junk", "list", "undecodable"]

    async def use() -> list[Any]:
        await asyncio.gather(cache.get("good"), cache.get("good"))
        return await asyncio.gather(*[cache.lookup(key) for key in ["good", *bad, "none"]])

    cache = made(settings(operation_timeout=5.0), 2)
    with cache.sync as sync:
        sync.set("good", 1)
        redis_server.command("SET", name_of(sync, "junk"), b"junk")
        redis_server.command("SET", name_of(sync, "undecodable"), entry(sync, "undecodable", b"{"))
        redis_server.command("RPUSH", name_of(sync, "list"), "x")
        outcomes = [look.outcome for look in asyncio.run(use())]
        assert outcomes == [Outcome.HIT, *[Outcome.CORRUPT] * 3, Outcome.MISS]
        for key in bad:
            assert redis_server.command("EXISTS", name_of(sync, key)) == 0
        reads = ended(cache, "get")
        assert reads.pop(("hit", "")) == 3
        assert reads.pop(("miss", "absent")) == 1
        assert sum(reads.values()) == 3


# Whoever leaves -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("patient")
def test_a_cancelled_caller_returns_at_once_and_harms_no_other(shelf: Shelf) -> None:
    """A client that hangs up is no reason for the others to ask again."""

    async def use() -> None:
        first = await first_out(cache, shelf)
        gone, out, *others = gets(cache, *range(1, 9))
        await turns(2)
        for task in (gone, first):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await asked(shelf)  # nobody is out any more
        out.cancel()
        with pytest.raises(asyncio.CancelledError):
            await out
        shelf.opened.set()
        assert await asyncio.gather(*others) == values(*range(3, 9))
        assert shelf.flights == [1, 7]
        assert cache._threads.running == 0

    with ScriptedServer(shelf) as server, over(server, 2).sync as sync:
        cache = AsyncRedisCache(sync)
        asyncio.run(use())
        assert ended(cache, "get") == {("hit", ""): 6}
        assert usable(cache) == sync.settings.max_connections


def test_the_connection_comes_free_when_all_of_a_flight_are_gone(shelf: Shelf) -> None:
    """Its answer may take as long as the deadline, and nobody wants it."""

    async def use() -> None:
        first = await first_out(cache, shelf)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert usable(cache) == 1
        shelf.opened.set()
        assert await cache.get("k1") == VALUES["k1"]

    with ScriptedServer(shelf) as server, over(server, max_connections=1).sync as sync:
        cache = AsyncRedisCache(sync)
        asyncio.run(use())


@pytest.mark.parametrize("how", ["run ends", "loop is closed"])
def test_a_loop_that_ends_amid_a_flight_leaves_no_connection_behind(how: str, shelf: Shelf) -> None:
    """A worker that runs a loop for each job would have none left after ten of them."""

    async def leave() -> None:
        first = await first_out(cache, shelf)
        waiting = gets(cache, 1, 2)
        await turns(2)
        kept.extend([first, *waiting])

    def close_at_once() -> None:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(leave())
        loop.close()

    kept: list[asyncio.Task[Any]] = []
    with ScriptedServer(shelf) as server, over(server, max_connections=1).sync as sync:
        cache = AsyncRedisCache(sync)
        for _ in range(3):
            connect(cache, 1)
            if how == "run ends":
                asyncio.run(leave())
            else:
                close_at_once()
                for task in kept:
                    task._log_destroy_pending = False  # type: ignore[attr-defined]
            shelf.opened.set()
            if how == "run ends":
                assert usable(cache) == 1
            assert asyncio.run(cache.get("k1")) == VALUES["k1"]
            assert usable(cache) == 1
        kept.clear()


@pytest.mark.usefixtures("patient")
def test_an_exception_in_a_step_leaves_nobody_waiting(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time limit's signal may strike while the loop begins a flight, or hands one out."""

    class Limit(Exception):  # noqa: N818 - as Celery's
        pass

    async def use(place: str) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        first = await first_out(cache, shelf)
        others = gets(cache, *range(1, 9))
        await turns(2)
        owner, name = {
            "begin": (cache.sync._stops, "begin_look"),
            "hand out": (cache.sync._stops, "weigh"),
            "read": (cache.sync._stops, "unseal"),
        }[place]
        original = getattr(owner, name)
        struck: list[int] = []

        def strike(*args: Any, **options: Any) -> Any:
            if not struck:
                struck.append(1)
                raise Limit
            return original(*args, **options)

        monkeypatch.setattr(owner, name, strike)
        shelf.opened.set()
        found = await asyncio.gather(first, *others, return_exceptions=True)
        assert struck
        assert found == values(*range(9))

    with ScriptedServer(shelf) as server:
        for place in ("begin", "hand out", "read"):
            with over(server).sync as sync:
                cache = AsyncRedisCache(sync)
                asyncio.run(use(place))
                assert usable(cache) == sync.settings.max_connections


def test_several_loops_in_several_threads_share_one_adapter(settings: MakeSettings) -> None:
    """Frameworks that run a loop for each worker thread hand all of them the same cache."""
    cache = made(settings(operation_timeout=5.0), 4)

    async def use() -> None:
        for _ in range(20):
            assert await asyncio.gather(*map(cache.get, keys)) == list(range(40))

    keys = [f"k{number}" for number in range(40)]
    with cache.sync as sync:
        sync.set_many({f"k{number}": number for number in range(40)})
        with ThreadPoolExecutor(4) as threads:
            for run in [threads.submit(asyncio.run, use()) for _ in range(4)]:
                run.result(timeout=30)
        assert ended(cache, "get") == {("hit", ""): 3200}
        assert usable(cache) == sync.settings.max_connections


def test_a_loop_that_pauses_for_another_goes_on_later(shelf: Shelf) -> None:
    """Code that is no coroutine may run a loop of its own between two steps of one that waits."""

    async def read() -> Any:
        return await cache.get("k1")

    with ScriptedServer(shelf) as server, over(server, 2).sync as sync:
        cache = AsyncRedisCache(sync)
        loop = asyncio.new_event_loop()
        first = loop.run_until_complete(first_out(cache, shelf))
        shelf.opened.set()
        assert asyncio.run(read()) == VALUES["k1"]
        assert loop.run_until_complete(first) == VALUES["k0"]
        loop.close()
        assert cache._threads.running == 0


@pytest.mark.usefixtures("patient")
def test_a_forked_child_reads_for_itself(shelf: Shelf) -> None:
    """What the parent waits for is the parent's; the child has connections of its own."""

    async def use() -> None:
        first = await first_out(cache, shelf)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 and later: threads
            pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            right: list[object] = []
            # Of a thread: this one believes to be in its parent's loop.
            child = threading.Thread(target=lambda: right.append(asyncio.run(cache.get("k1"))))
            child.start()
            child.join()
            os._exit(0 if right == [VALUES["k1"]] else 1)
        await asked(shelf)
        shelf.opened.set()
        _, status = await asyncio.to_thread(os.waitpid, pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert await first == VALUES["k0"]

    with ScriptedServer(shelf) as server, over(server).sync as sync:
        cache = AsyncRedisCache(sync)
        asyncio.run(use())
        assert usable(cache) == sync.settings.max_connections


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """A job in the background of a shell is started with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_a_run_and_leaves_no_connection_behind(shelf: Shelf, ctrl_c: None) -> None:
    """The application may catch it, tidy up, and go on with the same cache."""

    async def use() -> None:
        first = await first_out(cache, shelf)
        asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)
        await first

    with ScriptedServer(shelf) as server, over(server, max_connections=1).sync as sync:
        cache = AsyncRedisCache(sync)
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(use())
        assert usable(cache) == 1
        shelf.opened.set()
        assert asyncio.run(cache.get("k1")) == VALUES["k1"]


def test_a_loop_that_is_run_again_after_ctrl_c_has_its_answer(shelf: Shelf, ctrl_c: None) -> None:
    """An interactive session goes on with the loop that it interrupted."""
    with ScriptedServer(shelf) as server, over(server).sync as sync:
        cache = AsyncRedisCache(sync)
        loop = asyncio.new_event_loop()
        first = loop.run_until_complete(first_out(cache, shelf))
        loop.call_soon(signal.raise_signal, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            loop.run_forever()
        shelf.opened.set()
        assert loop.run_until_complete(first) == VALUES["k0"]
        loop.close()
        assert usable(cache) == sync.settings.max_connections


def test_an_adapter_that_nobody_has_is_gone(settings: MakeSettings) -> None:
    """Those that are made for a job, and never closed, would fill the process."""

    async def use(cache: AsyncRedisCache) -> weakref.ref[AsyncRedisCache]:
        await cache.set("k", 1)
        assert await cache.get("k") == 1
        cache.sync.close()
        return weakref.ref(cache)

    gone = asyncio.run(use(made(settings(operation_timeout=5.0))))
    gc.collect()  # the loop that asyncio.run has left
    assert gone() is None


# What became invalid ------------------------------------------------------------------------------


def test_tags_cost_a_flight_one_more_round_trip_however_many_there_are(
    shelf: Shelf, redis_server: PrivateServer, patient: None
) -> None:
    """One for each entry would make of a flight of a hundred a hundred flights."""
    tagged = {f"t{number}": number for number in range(40)}
    shelf.stored |= shelf_of(redis_server, tagged, tags=["one", "two"]).stored
    shelf.stored = stored_in(redis_server)  # with one state of the counters

    async def use() -> None:
        first = await first_out(cache, shelf)
        others = [asyncio.ensure_future(cache.get(key)) for key in tagged]
        await turns(2)
        shelf.opened.set()
        await first
        assert await asyncio.gather(*others) == list(tagged.values())

    with ScriptedServer(shelf) as server, over(server).sync as sync:
        cache = AsyncRedisCache(sync)
        asyncio.run(use())
        assert shelf.flights == [1, 40, 1]  # the last: two counters
        assert cache._threads.running == 0


@pytest.mark.faults
def test_counters_that_cannot_be_had_cost_the_tagged_entries_alone(
    shelf: Shelf, redis_server: PrivateServer, patient: None
) -> None:
    """Nobody may be shown what is perhaps invalid; the rest of the flight is as good as ever."""
    shelf_of(redis_server, {"tagged": 1}, tags=["one"])
    shelf.stored = stored_in(redis_server)

    async def use() -> None:
        first = await first_out(cache, shelf)
        plain, tagged = gets(cache, 1)[0], asyncio.ensure_future(cache.lookup("tagged"))
        await turns(2)

        def answer(client: Client, data: bytes) -> None:
            if shelf.flights[-1:] != [0]:
                client.send(data)

        shelf.answer = answer
        shelf.opened.set()
        assert await asyncio.gather(first, plain) == values(0, 1)
        assert (await tagged).outcome is Outcome.UNAVAILABLE

    with ScriptedServer(shelf) as server, over(server, operation_timeout=0.4).sync as sync:
        cache = AsyncRedisCache(sync)
        asyncio.run(use())
        assert ended(cache, "get") == {("hit", ""): 2, ("unavailable", "timeout"): 1}


@pytest.mark.usefixtures("patient")
def test_counters_are_asked_for_again_where_that_may_help(
    shelf: Shelf, redis_server: PrivateServer
) -> None:
    """A connection that breaks between two questions must cost no hit, nor make a miss of one."""
    shelf_of(redis_server, {"tagged": 1}, tags=["one"])
    shelf.stored = stored_in(redis_server)
    broken: list[int] = []

    def answer(client: Client, data: bytes) -> None:
        if shelf.flights[-1] == 0 and not broken:  # the counters alone
            broken.append(1)
            client.give(RESET)
        else:
            client.send(data)

    shelf.answer = answer
    with ScriptedServer(shelf) as server, over(server).sync as sync:
        cache = AsyncRedisCache(sync)
        assert asyncio.run(cache.get("tagged")) == 1
        assert broken
        assert ended(cache, "get") == {("hit", ""): 1}


@pytest.mark.usefixtures("patient")
def test_nobody_joins_a_flight_that_left_before_he_came(
    shelf: Shelf, redis_server: PrivateServer
) -> None:
    """What somebody set meanwhile, and was told is kept, would not be in its answer."""

    async def use() -> None:
        first = await first_out(cache, shelf)  # its answer is on the way
        shelf.stored |= shelf_of(redis_server, {"k0": "new"}).stored
        [second] = gets(cache, 0)
        await turns(2)
        shelf.opened.set()
        assert await asyncio.gather(first, second) == [VALUES["k0"], "new"]

    with ScriptedServer(shelf) as server, over(server).sync as sync:
        cache = AsyncRedisCache(sync)
        asyncio.run(use())


FOREIGN = """
import sys
from jmcache import CacheSettings, RedisCacheFactory

url = sys.argv[1]
cache = RedisCacheFactory.create_cache(
    CacheSettings.from_url(url, namespace="test", operation_timeout=10.0)
)
for line in sys.stdin:
    verb, key, version = line.split()
    if verb == "set":
        right = cache.set(key, int(version), tags=[key])
    elif verb == "delete":
        right = cache.delete(key)
    else:
        right = cache.invalidate_tags(key)
    print(right, flush=True)
"""


class Truth:
    """What a read that begins now may see of each key: nothing, or no less than its floor."""

    def __init__(self, keys: list[str]) -> None:
        self.floor = dict.fromkeys(keys, 0)
        self.newest = dict.fromkeys(keys, 0)
        self.busy = {key: asyncio.Lock() for key in keys}
        self.hits = 0

    async def read(self, cache: AsyncRedisCache, key: str) -> None:
        floor = self.floor[key]
        seen = await cache.get(key)
        if seen is not None:
            self.hits += 1
            assert floor <= seen <= self.newest[key], (key, floor, seen)

    async def change(self, key: str, verb: str, how: Callable[[int], Any]) -> None:
        """Have *how* set, delete or invalidate, one at a time for a key."""
        async with self.busy[key]:
            self.newest[key] += 1
            version = self.newest[key]
            assert await how(version) is True, verb
            # What is there after a delete is from before it, or from a set after it.
            self.floor[key] = version if verb == "set" else version + 1


@pytest.mark.parametrize("seed", [1, 2])
def test_no_read_sees_what_was_replaced_before_it_began(
    seed: int, settings: MakeSettings, redis_server: PrivateServer
) -> None:
    """Whoever saves and reads again is shown what he saved, and what is deleted stays away."""
    draw = random.Random(seed)
    keys = [f"k{number}" for number in range(6)]
    cache = made(settings(operation_timeout=10.0), 3)
    other = [sys.executable, "-c", FOREIGN, redis_server.url]

    async def use() -> int:
        truth = Truth(keys)
        foreign = await asyncio.create_subprocess_exec(
            *other, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        asking = asyncio.Lock()

        async def elsewhere(verb: str, key: str, version: int) -> bool:
            assert foreign.stdin is not None and foreign.stdout is not None  # noqa: PT018
            async with asking:
                foreign.stdin.write(f"{verb} {key} {version}\n".encode())
                return await foreign.stdout.readline() == b"True\n"

        here: dict[str, Callable[[str, int], Any]] = {
            "set": cache.set,
            "delete": lambda key, _: cache.delete(key),
            "invalidate": lambda key, _: cache.invalidate_tags(key),
        }

        async def write() -> None:
            for _ in range(25):
                key, verb = draw.choice(keys), draw.choice(["set", "set", "delete", "invalidate"])
                way = draw.choice(["here", "there"])
                if verb == "set" and way == "here" and draw.random() < 0.5:
                    call = partial(_tagged, cache, key)
                elif way == "here":
                    # Without its tag an entry is not what invalidate_tags is about.
                    verb = "delete" if verb == "invalidate" else verb
                    call = partial(here[verb], key)
                else:
                    verb = "delete" if verb == "invalidate" else verb
                    call = partial(elsewhere, verb, key)
                await truth.change(key, verb, call)

        async def read() -> None:
            for _ in range(60):
                await truth.read(cache, draw.choice(keys))

        await asyncio.gather(*[write() for _ in range(8)], *[read() for _ in range(56)])
        await _invalidated_everywhere(cache, truth, keys, elsewhere)
        assert foreign.stdin is not None
        foreign.stdin.close()
        await foreign.wait()
        return truth.hits

    with cache.sync:
        assert asyncio.run(use()) > 500
        assert {outcome for outcome, _ in ended(cache, "get")} == {"hit", "miss"}


async def _tagged(cache: AsyncRedisCache, key: str, version: int) -> bool:
    return await cache.set(key, version, tags=[key])


async def _invalidated_everywhere(
    cache: AsyncRedisCache, truth: Truth, keys: list[str], elsewhere: Callable[..., Any]
) -> None:
    """Tags and `clear`, of this process and another, with readers all the time."""
    over_now = False

    async def read(key: str) -> None:
        while not over_now:
            await truth.read(cache, key)

    readers = [asyncio.ensure_future(read(key)) for key in keys * 8]
    for turn in range(12):
        for key in keys:
            await truth.change(key, "set", partial(_tagged, cache, key))
        for key in keys:
            if turn % 3 == 0:
                await truth.change(key, "invalidate", lambda _, k=key: cache.invalidate_tags(k))
            elif turn % 3 == 1:
                await truth.change(key, "invalidate", partial(elsewhere, "invalidate", key))
        if turn % 3 == 2:
            assert await cache.clear() is True
            truth.floor = {key: version + 1 for key, version in truth.newest.items()}
    over_now = True
    await asyncio.gather(*readers)
