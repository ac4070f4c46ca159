"""get_or_set: once, whoever asks; and what its caller may ask for besides.

What takes several processes is in test_compute_races, old values in test_compute_stale.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from computing_kit import SOON_S, Door, Loader, events, open_door, wait_until  # noqa: F401

from jmcache import (
    AsyncRedisCache,
    Cache,
    CacheSettings,
    LoadContext,
    LoaderTimeoutError,
    LocalCache,
    Outcome,
    RedisCacheFactory,
    load_context,
)
from jmcache.deadline import Deadline
from jmcache.testing import ManualClock, PrivateServer

OpenDoor = Callable[[Cache], Door]


@pytest.fixture(params=["memory", "redis"])
def door(request: pytest.FixtureRequest, open_door: OpenDoor) -> Door:  # noqa: F811
    """To a cache in this process, and to one in Redis."""
    if request.param == "memory":
        return open_door(LocalCache())
    server: PrivateServer = request.getfixturevalue("redis_server")
    settings = CacheSettings.from_url(server.url, namespace="compute", operation_timeout=5.0)
    return open_door(RedisCacheFactory.create_cache(settings))


@pytest.fixture
def local(clock: ManualClock, open_door: OpenDoor) -> Door:  # noqa: F811
    """To a cache in this process, whose time is the test's."""
    return open_door(LocalCache(clock=clock))


# Once -------------------------------------------------------------------------------------------


def test_a_value_is_computed_once_and_then_found(door: Door) -> None:
    """Whoever pays for the computation pays again at every call otherwise."""
    load = Loader([{"job": "p00017"}])
    assert door.get_or_set("k", load) == [{"job": "p00017"}]
    assert door.get_or_set("k", load) == [{"job": "p00017"}]
    assert door.get("k") == [{"job": "p00017"}]
    assert load.runs == 1
    assert events(door.cache) == {"load": 1, "stored": 1}
    operations = door.cache.stats().operations
    assert operations["get_or_set", "miss", "computed"] == 1
    assert operations["get_or_set", "hit", ""] == 1


def test_all_who_ask_meanwhile_wait_for_one_load(door: Door) -> None:
    """A stampede: the database gets a hundred times the query that it is slow at already."""
    load = Loader({"jobs": [1]}, waits=True)
    calls = [door.begin("get_or_set", "k", load)]
    assert load.begun.wait(SOON_S)
    calls += [door.begin("get_or_set", "k", load) for _ in range(15)]
    wait_until(lambda: events(door.cache).get("coalesced") == 15)
    load.may_end.set()
    values = [call.result(SOON_S) for call in calls]
    assert values == [{"jobs": [1]}] * 16
    assert load.runs == 1
    assert len({id(value) for value in values}) == 16, "each its own copy, to change as it likes"


def test_threads_and_tasks_of_one_process_wait_for_each_other() -> None:
    """An endpoint and a worker thread beside it ask for the same candidate."""
    cache = LocalCache()
    load = Loader(waits=True)
    doors = [Door(cache, awaited=awaited) for awaited in (True, False)]
    calls = [door.begin("get_or_set", "k", load) for door in doors * 4]
    wait_until(lambda: events(cache).get("coalesced") == 7)
    load.may_end.set()
    assert [call.result(SOON_S) for call in calls] == ["value"] * 8
    assert load.runs == 1
    for door in doors:
        door.close()


def test_keys_do_not_wait_for_each_other(door: Door) -> None:
    """One slow candidate must not hold up all others."""
    slow = Loader("slow", waits=True)
    call = door.begin("get_or_set", "slow", slow)
    assert slow.begun.wait(SOON_S)
    assert door.get_or_set("quick", lambda: "quick") == "quick"
    slow.may_end.set()
    assert call.result(SOON_S) == "slow"


def test_an_awaited_loader_runs_on_the_loop_and_a_plain_one_does_not() -> None:
    """A coroutine on another loop fails at its own locks; a plain query stops every request."""

    async def use() -> None:
        cache = AsyncRedisCache(LocalCache())
        here = threading.current_thread()

        async def load() -> object:
            await asyncio.sleep(0)
            return threading.current_thread() is here, asyncio.get_running_loop() is loop

        loop = asyncio.get_running_loop()
        assert await cache.get_or_set("a", load) == (True, True)
        assert await cache.get_or_set("b", lambda: threading.current_thread() is here) is False
        await cache.aclose()

    asyncio.run(use())


def test_the_loop_turns_while_a_plain_loader_works() -> None:
    """An endpoint with a plain loader would hold up every other request."""
    load = Loader(waits=True)

    async def use() -> None:
        cache = AsyncRedisCache(LocalCache())
        call = asyncio.create_task(cache.get_or_set("k", load))
        assert await asyncio.to_thread(load.begun.wait, SOON_S)
        load.may_end.set()  # reached only if the loop turns
        assert await call == "value"
        await cache.aclose()

    asyncio.run(asyncio.wait_for(use(), SOON_S))


def test_a_cancelled_caller_returns_at_once_and_the_others_get_their_value() -> None:
    """The first customer closes the page; those who waited for the same must not fail with it."""

    async def use() -> None:
        cache = AsyncRedisCache(LocalCache())
        begun, may_end = asyncio.Event(), asyncio.Event()
        runs = []

        async def load() -> str:
            runs.append(1)
            begun.set()
            await may_end.wait()
            return "value"

        first = asyncio.create_task(cache.get_or_set("k", load))
        await begun.wait()
        second = asyncio.create_task(cache.get_or_set("k", load))
        await asyncio.sleep(0.01)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        may_end.set()
        assert await second == "value"
        assert len(runs) == 1
        assert await cache.get("k") == "value"
        await cache.aclose()

    asyncio.run(asyncio.wait_for(use(), SOON_S))


# Failing ----------------------------------------------------------------------------------------


class NoAnswerError(Exception):
    """Of the database."""


def test_what_the_loader_raises_reaches_all_who_wait_and_is_not_cached(door: Door) -> None:
    """A failure that stays cached keeps a page broken long after the database is back."""
    load = Loader(NoAnswerError(), waits=True)
    calls = [door.begin("get_or_set", "k", load)]
    assert load.begun.wait(SOON_S)
    calls += [door.begin("get_or_set", "k", load) for _ in range(7)]
    wait_until(lambda: events(door.cache).get("coalesced") == 7)
    load.may_end.set()
    for call in calls:
        with pytest.raises(NoAnswerError):
            call.result(SOON_S)
    assert load.runs == 1
    assert door.lookup("k").outcome is Outcome.MISS
    again = Loader("back")
    began = time.monotonic()
    assert door.get_or_set("k", again) == "back"
    assert time.monotonic() - began < 5.0, "the failed load's lease was given back"
    assert door.cache.stats().operations["get_or_set", "miss", "loader_failed"] == 8


def test_a_leader_whose_own_time_is_over_does_not_end_the_others(door: Door) -> None:
    """Celery's soft time limit is of one task; the others have time, and load themselves."""

    class SoftTimeLimitExceeded(Exception):  # noqa: N818 - Celery's name
        pass

    first = Loader(SoftTimeLimitExceeded(), waits=True)
    second = Loader("second")
    leader = door.begin("get_or_set", "k", first)
    assert first.begun.wait(SOON_S)
    waiter = door.begin("get_or_set", "k", second)
    wait_until(lambda: events(door.cache).get("coalesced") == 1)
    first.may_end.set()
    assert waiter.result(SOON_S) == "second"
    if not door.awaited:
        with pytest.raises(SoftTimeLimitExceeded):
            leader.result(SOON_S)


def test_a_waiter_waits_no_longer_than_its_own_lock_timeout(door: Door) -> None:
    """A hanging loader of somebody else must not hang everybody."""
    hanging = Loader(waits=True)
    leader = door.begin("get_or_set", "k", hanging)
    assert hanging.begun.wait(SOON_S)
    assert door.get_or_set("k", lambda: "mine", lock_timeout=0.05) == "mine"
    hanging.may_end.set()
    assert leader.result(SOON_S) == "value"


def test_a_loader_may_ask_the_cache_also_for_its_own_key(door: Door) -> None:
    """It would wait for itself until its lock_timeout is over, at every call."""
    depth = []

    def load() -> str:
        depth.append(1)
        if len(depth) > 1:
            return "inner"
        assert cache.get("k") is None
        assert cache.get_or_set("other", lambda: 2) == 2
        return "outer over " + cache.get_or_set("k", load)

    cache = door.cache
    assert door.begin("get_or_set", "k", load).result(5.0) == "outer over inner"
    assert door.get("k") == "outer over inner"


def test_an_awaited_loader_may_ask_for_its_own_key() -> None:
    """The same on a loop."""

    async def use() -> None:
        cache = AsyncRedisCache(LocalCache())
        depth = []

        async def load() -> str:
            depth.append(1)
            if len(depth) > 1:
                return "inner"
            return "outer over " + await cache.get_or_set("k", load)

        assert await asyncio.wait_for(cache.get_or_set("k", load), 5.0) == "outer over inner"
        assert await cache.get("k") == "outer over inner"
        await cache.aclose()

    asyncio.run(use())


def test_loaders_of_two_keys_that_ask_for_each_other_end(door: Door) -> None:
    """Two profiles that mention each other, asked for at once: neither may wait for ever."""
    start = threading.Barrier(2)

    def load(own: str, other: str) -> str:
        start.wait(SOON_S)
        return door.cache.get_or_set(other, lambda: "short", lock_timeout=0.05) + own

    calls = [
        door.begin("get_or_set", "a", lambda: load("a", "b")),
        door.begin("get_or_set", "b", lambda: load("b", "a")),
    ]
    assert all("short" in call.result(SOON_S) for call in calls)


# What a caller may ask for ----------------------------------------------------------------------


def test_force_computes_it_anew_and_puts_it_in_its_place(door: Door) -> None:
    """An editor pressed "refresh" and must see what is true now, as must all others after that."""
    door.set("k", "old")
    assert door.get_or_set("k", lambda: "new", force=True) == "new"
    assert door.get("k") == "new"


def test_force_waits_for_nobody_and_its_value_stays(door: Door) -> None:
    """The load under way began before the change that the forced one is about."""
    old = Loader("old", waits=True)
    leader = door.begin("get_or_set", "k", old)
    assert old.begun.wait(SOON_S)
    assert door.get_or_set("k", lambda: "new", force=True) == "new"
    old.may_end.set()
    assert leader.result(SOON_S) == "old"
    assert door.get("k") == "new"


def test_read_only_keeps_nothing(door: Door) -> None:
    """A canary looks at production's cache and must leave no trace in it."""
    assert door.get_or_set("k", lambda: "mine", read_only=True) == "mine"
    assert door.get("k") is None
    door.set("k", "theirs")
    assert door.get_or_set("k", lambda: "mine", read_only=True) == "theirs"


def test_write_only_does_not_look_and_keeps(door: Door) -> None:
    """A warm-up job after a deploy replaces what the old version left."""
    door.set("k", "old")
    assert door.get_or_set("k", lambda: "new", write_only=True) == "new"
    assert door.get("k") == "new"


def test_the_loader_chooses_its_ttl(local: Door, clock: ManualClock) -> None:
    """A result that says itself how long it holds would be shown for longer."""

    def load(context: LoadContext) -> str:
        assert (context.ttl, context.has_stale, context.stale) == (60, False, None)
        context.ttl = 5
        return "short"

    assert local.get_or_set("k", load, ttl=60) == "short"
    clock.advance(4.9)
    assert local.get("k") == "short"
    clock.advance(0.2)
    assert local.get("k") is None


def test_the_loader_is_shown_the_old_value(local: Door, clock: ManualClock) -> None:
    """ "304 Not Modified" needs the old answer in hand."""
    local.get_or_set("k", lambda: "old", ttl=10, stale_if_error=60)
    clock.advance(11)

    def load(context: LoadContext) -> str:
        assert context.has_stale
        return f"{context.stale}, confirmed"

    assert local.get_or_set("k", load, ttl=10, stale_if_error=60) == "old, confirmed"


def test_the_loader_may_say_that_its_result_is_not_kept(door: Door) -> None:
    """Half a result is good enough to show, and not to keep."""

    def load(context: LoadContext) -> str:
        context.stored = False
        return "half"

    assert door.get_or_set("k", load) == "half"
    assert door.get("k") is None
    assert door.get_or_set("k", lambda: "whole") == "whole", "and holds nobody off"


def test_a_loader_without_an_argument_finds_its_context(local: Door, clock: ManualClock) -> None:
    """The arguments of a cached function are its own."""

    def load() -> str:
        context = load_context()
        assert context is not None
        context.ttl = 5
        return "short"

    assert load_context() is None
    local.get_or_set("k", load)
    assert load_context() is None
    clock.advance(5.1)
    assert local.get("k") is None


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), "5"])
def test_a_ttl_of_the_loader_that_is_none_is_an_error(local: Door, ttl: Any) -> None:
    """Taken wrongly, it would keep data for ever."""

    def load(context: LoadContext) -> str:
        context.ttl = ttl
        return "value"

    with pytest.raises(ValueError, match="ttl"):
        local.get_or_set("k", load)


def test_a_none_is_kept_for_its_own_time(local: Door, clock: ManualClock) -> None:
    """ "There is none" holds until somebody adds one: to look soon, but not at each call."""
    load = Loader(None)
    for _ in range(3):
        assert local.get_or_set("k", load, ttl=300, negative_ttl=5) is None
    assert load.runs == 1
    clock.advance(5.1)
    assert local.get_or_set("k", load, ttl=300, negative_ttl=5) is None
    assert load.runs == 2
    assert local.get_or_set("found", lambda: 1, ttl=300, negative_ttl=5) == 1
    clock.advance(5.1)
    assert local.get("found") == 1


def test_a_caller_says_what_stands_for_none(local: Door, clock: ManualClock) -> None:
    """An empty list of matches is one for many services."""
    options = {"ttl": 300, "negative": lambda value: value == [], "negative_ttl": 5}
    assert local.get_or_set("empty", list, **options) == []
    assert local.get_or_set("none", lambda: None, **options) is None
    clock.advance(5.1)
    assert local.lookup("empty").outcome is Outcome.MISS
    assert local.lookup("none").outcome is Outcome.HIT


def test_a_value_that_cannot_be_kept_is_handed_out_all_the_same(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller asked for a result; that it cannot be cached is the operator's to hear."""
    odd = {"matches": [complex(1, 2)]}
    load = Loader(odd, waits=True)
    calls = [door.begin("get_or_set", "k", load)]
    assert load.begun.wait(SOON_S)
    calls += [door.begin("get_or_set", "k", load) for _ in range(3)]
    wait_until(lambda: events(door.cache).get("coalesced") == 3)
    load.may_end.set()
    assert [call.result(SOON_S) for call in calls] == [odd] * 4
    assert load.runs == 1
    assert door.get("k") is None
    assert "matches[0]" in caplog.text
    began = time.monotonic()
    assert door.get_or_set("k", lambda: "other") == "other"
    assert time.monotonic() - began < 5.0, "it holds nobody off"


def test_a_load_past_its_loader_timeout_ends_for_its_caller_and_goes_on(door: Door) -> None:
    """The request has to answer now; the work that is done already serves the next one."""
    load = Loader(waits=True)
    with pytest.raises(LoaderTimeoutError) as raised:
        door.get_or_set("k", load, loader_timeout=0.05)
    assert isinstance(raised.value, TimeoutError)
    load.may_end.set()
    wait_until(lambda: door.get("k") == "value")
    assert load.runs == 1
    assert door.cache.stats().operations["get_or_set", "unavailable", "loader_timeout"] == 1


def test_a_load_past_its_soft_timeout_hands_out_the_old_value_and_goes_on(
    local: Door, clock: ManualClock
) -> None:
    """Something good enough is at hand: nobody waits for the slow one."""
    options = {"ttl": 10, "stale_if_error": 60, "soft_timeout": 0.05}
    assert local.get_or_set("k", lambda: "old", **options) == "old"
    clock.advance(11)
    load = Loader("new", waits=True)
    assert local.get_or_set("k", load, **options) == "old"
    load.may_end.set()
    wait_until(lambda: local.get("k") == "new")
    assert load.runs == 1


def test_a_soft_timeout_without_an_old_value_waits(door: Door) -> None:
    """There is nothing to hand out: late is better than nothing."""
    load = Loader(waits=True)
    call = door.begin("get_or_set", "k", load, soft_timeout=0.02)
    assert load.begun.wait(SOON_S)
    time.sleep(0.05)
    load.may_end.set()
    assert call.result(SOON_S) == "value"


def test_an_old_value_past_what_its_caller_takes_stands_in_for_no_slow_load(
    local: Door, clock: ManualClock
) -> None:
    """It is kept that long for others; this one would be shown what is a quarter of an hour old."""
    local.get_or_set("k", lambda: "old", ttl=10, stale_if_error=900)
    clock.advance(11)
    load = Loader("new", waits=True)
    call = local.begin("get_or_set", "k", load, ttl=10, soft_timeout=0.02)
    assert load.begun.wait(SOON_S)
    time.sleep(0.05)
    load.may_end.set()
    assert call.result(SOON_S) == "new"


def test_many_loads_with_a_limit_run_at_one_time(door: Door) -> None:
    """Limits are for slow loaders: behind four of them, a quick one would end in its timeout."""
    slow = Loader(waits=True)
    calls = [
        door.begin("get_or_set", f"slow{number}", slow, loader_timeout=SOON_S)
        for number in range(12)
    ]
    wait_until(lambda: slow.runs == 12)
    slow.may_end.set()
    assert [call.result(SOON_S) for call in calls] == ["value"] * 12


# Nonsense ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"tll": 5}, "tll"),
        ({"ttl": 0}, "ttl"),
        ({"ttl": "5"}, "ttl"),
        ({"tags": "job:42"}, "tags"),
        ({"tags": [1]}, "tags"),
        ({"tags": [""]}, "tags"),
        ({"stale_ttl": -1}, "stale_ttl"),
        ({"stale_if_error": True}, "stale_if_error"),
        ({"early_refresh": 1.5}, "early_refresh"),
        ({"early_refresh": "often"}, "early_refresh"),
        ({"early_refresh": 1}, "early_refresh"),
        ({"negative_ttl": 0}, "negative_ttl"),
        ({"lock_timeout": 0}, "lock_timeout"),
        ({"soft_timeout": float("inf")}, "soft_timeout"),
        ({"loader_timeout": -1}, "loader_timeout"),
        ({"read_only": True, "force": True}, "read_only"),
        ({"read_only": True, "write_only": True}, "read_only"),
        ({"refresh": "later"}, "refresh"),
        ({"negative": 5}, "negative"),
        ({"no_stale_for": ValueError}, "no_stale_for"),
        ({"timeout": 0}, "timeout"),
    ],
    ids=str,
)
def test_an_option_that_cannot_work_is_named(
    local: Door, options: dict[str, Any], named: str
) -> None:
    """A misspelt option that is taken and ignored is found in production."""
    with pytest.raises((TypeError, ValueError), match=f"^{named}:"):
        local.get_or_set("k", pytest.fail, **options)


@pytest.mark.parametrize("loader", [None, 5, "value"])
def test_what_cannot_be_called_is_no_loader(local: Door, loader: Any) -> None:
    """A value in its place would be an error far from where it was given."""
    with pytest.raises(TypeError, match="loader"):
        local.get_or_set("k", loader)


def test_a_coroutine_function_is_no_loader_of_the_plain_cache() -> None:
    """Nobody would await it, and what is cached would be a coroutine."""

    async def load() -> str:
        return "value"

    cache = LocalCache()
    with pytest.raises(TypeError, match="AsyncRedisCache"):
        cache.get_or_set("k", load)
    with pytest.raises(TypeError, match="AsyncRedisCache"):
        cache.get_or_set_many(["k"], load)
    with pytest.raises(TypeError, match="AsyncRedisCache"):
        cache.cached()(load)


def test_a_value_that_was_loaded_is_handed_out_though_no_thread_comes_free_in_time(
    redis_server: PrivateServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All threads wait for a slow Redis: the caller got an error in place of his result."""
    settings = CacheSettings.from_url(redis_server.url, namespace="busy", operation_timeout=0.1)
    over = threading.Event()
    cache = RedisCacheFactory.create_cache(settings)
    packing: list[threading.Thread] = []
    pack = cache._stops.pack

    def watched(value: Any) -> bytes:
        packing.append(threading.current_thread())
        return pack(value)

    monkeypatch.setattr(cache._stops, "pack", watched)

    async def use() -> None:
        async with AsyncRedisCache(cache, max_threads=1) as twin:

            async def load() -> str:
                twin._threads.begin(lambda: over.wait(SOON_S), Deadline(SOON_S))
                asyncio.get_running_loop().call_later(0.3, over.set)
                return "value"

            assert await twin.get_or_set("k", load) == "value"
            assert over.is_set()

    asyncio.run(use())
    assert packing[0] is not threading.current_thread(), "the loop was held up for it"


def test_a_value_that_was_loaded_is_handed_out_by_an_adapter_that_was_closed_meanwhile() -> None:
    """There is no thread any more; what was computed is thrown away for nothing."""

    async def use() -> None:
        twin = AsyncRedisCache(LocalCache())

        async def load() -> str:
            twin._threads.close()
            return "value"

        assert await twin.get_or_set("k", load) == "value"

    asyncio.run(use())
