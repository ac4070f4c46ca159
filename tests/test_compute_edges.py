"""get_or_set at its edges: long loads, limits on joined ones, errors of all kinds, nested loads."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import math
import os
import signal
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from computing_kit import (
    SOON_S,
    Door,
    Loader,
    events,
    occupy,
    open_door,  # noqa: F401
    wait_until,
)

from jmcache import (
    AsyncRedisCache,
    Cache,
    CacheSettings,
    LoadContext,
    LoaderOverloadedError,
    LoaderTimeoutError,
    LocalCache,
    Outcome,
    RedisCache,
    RedisCacheFactory,
    RedisCorruptEntryError,
)
from jmcache.background import Background
from jmcache.cache import _keeper
from jmcache.cache._keeper import Hold, Keeper
from jmcache.testing import ManualClock, PrivateServer

OpenDoor = Callable[[Cache], Door]


@pytest.fixture
def cache(redis_server: PrivateServer) -> RedisCache:
    settings = CacheSettings.from_url(
        redis_server.url, namespace="edges", operation_timeout=5.0, lock_timeout=0.2
    )
    made = RedisCacheFactory.create_cache(settings)
    assert isinstance(made, RedisCache)
    return made


@pytest.fixture
def renewed(cache: RedisCache, monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Released whenever a lease of *cache* was renewed."""
    renewed = threading.Semaphore(0)
    renew = cache._stops.store.renew

    def note(*args: Any) -> None:
        renew(*args)
        renewed.release()

    monkeypatch.setattr(cache._stops.store, "renew", note)
    return renewed


# Long loads -------------------------------------------------------------------------------------


def test_a_load_that_takes_longer_than_a_lease_lasts_is_kept(
    cache: RedisCache, redis_server: PrivateServer, renewed: threading.Semaphore
) -> None:
    """It would be computed by everybody, for ever: the slowest results need the cache most."""

    def load() -> str:
        for _ in range(5):  # renewed every third of a lease
            assert renewed.acquire(timeout=SOON_S)
        return "slow"

    assert cache.get_or_set("k", load) == "slow"
    assert cache.get("k") == "slow"
    assert events(cache)["stored"] == 1
    assert redis_server.command("KEYS", "*lease*") == []


def test_a_delete_voids_a_lease_that_is_renewed(
    cache: RedisCache, renewed: threading.Semaphore
) -> None:
    """Renewed without a look at its token, it would be somebody else's, or come to life again."""

    def load() -> str:
        assert renewed.acquire(timeout=SOON_S)
        assert cache.delete("k")
        for _ in range(2):
            assert renewed.acquire(timeout=SOON_S)
        return "from before"

    assert cache.get_or_set("k", load) == "from before"
    assert cache.get("k") is None


def test_a_lease_that_comes_while_the_keeper_looks_is_renewed_in_its_time() -> None:
    """It slept until the longer lease before was due, and the shorter one had ended by then."""
    renewing, go_on, short = threading.Event(), threading.Event(), threading.Event()

    def renew(hold: Hold) -> None:
        if hold.token == b"long":
            renewing.set()
            assert go_on.wait(SOON_S)
            hold.every_s = 3600.0
        else:
            short.set()

    keeper = Keeper(renew)
    long = Hold([b"lease"], b"long", 0.03)
    long.every_s = 3600.0  # after the first time
    keeper.keep(long)
    assert renewing.wait(SOON_S)
    newcomer = Hold([b"other"], b"short", 0.03)
    keeper.keep(newcomer)
    go_on.set()
    assert short.wait(SOON_S / 2), "nobody came for it"


def test_a_lease_that_comes_while_the_keeper_sleeps_wakes_it() -> None:
    """The same for one that comes a moment later."""
    short = threading.Event()
    keeper = Keeper(lambda hold: short.set() if hold.token == b"short" else None)
    long = Hold([b"lease"], b"long", 3600.0)
    keeper.keep(long)
    wait_until(lambda: keeper._looks_at == long.due)
    newcomer = Hold([b"other"], b"short", 0.03)
    keeper.keep(newcomer)
    assert short.wait(SOON_S / 2), "nobody came for it"


def test_a_lease_whose_load_was_torn_away_is_renewed_no_more() -> None:
    """Its thread itself kept it alive: nobody would ever have that lease, or that thread, again."""
    renewed = threading.Event()
    keeper = Keeper(lambda _: renewed.set())
    hold = Hold([b"lease"], b"token", 0.03)
    known = weakref.ref(hold)
    keeper.keep(hold)
    assert renewed.wait(SOON_S)
    del hold
    wait_until(lambda: known() is None)


@pytest.mark.parametrize("comes", ["before", "after"])
def test_a_lease_that_comes_as_the_keeper_leaves_is_renewed_by_one_thread(
    comes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It rang for a thread that was about to leave: a load longer than its lease is not kept."""
    monkeypatch.setattr(_keeper, "_REST_S", 0.0)
    renewed = threading.Semaphore(0)
    threads: set[int] = set()
    holds: list[Hold] = []

    def renew(_: Hold) -> None:
        threads.add(threading.get_ident())
        renewed.release()

    class Leaving(Keeper):
        """One to whom somebody comes as it writes that it is not there."""

        at = 0.0

        @property
        def _looks_at(self) -> float:
            return self.at

        @_looks_at.setter
        def _looks_at(self, at: float) -> None:
            leaves = at == 0.0 and self.at == math.inf and not threads
            if leaves and comes == "before":
                self.come()
            self.at = at
            if leaves and comes == "after":
                self.come()

        def come(self) -> None:
            holds.append(Hold([b"lease"], b"token", 0.03))
            self.keep(holds[0])

    keeper = Leaving(renew)
    keeper._start()
    for _ in range(5):
        assert renewed.acquire(timeout=SOON_S / 2), "nobody came for it"
    assert len(threads) == 1
    holds.clear()
    wait_until(lambda: keeper.at == 0.0)


def test_a_lease_is_kept_no_longer_than_its_load(cache: RedisCache) -> None:
    """A load that failed would hold off everybody for good."""
    with pytest.raises(ZeroDivisionError):
        cache.get_or_set("k", Loader(ZeroDivisionError()))
    holds = [hold for one in cache._shop.keeper._holds if (hold := one()) is not None]
    assert [hold for hold in holds if hold.leases] == []


# Limits -----------------------------------------------------------------------------------------


def test_who_joins_a_load_has_a_limit_of_his_own(open_door: OpenDoor) -> None:  # noqa: F811
    """He said how long he waits; whose load it is does not matter."""
    door = open_door(LocalCache())
    slow = Loader("slow", waits=True)
    leading = door.begin("get_or_set", "k", slow)
    assert slow.begun.wait(SOON_S)
    with pytest.raises(LoaderTimeoutError, match="loader_timeout"):
        door.get_or_set("k", slow, loader_timeout=0.05)
    slow.may_end.set()
    assert leading.result(SOON_S) == "slow"
    assert slow.runs == 1


def test_who_joins_a_load_is_handed_the_old_value_in_time(
    open_door: OpenDoor,  # noqa: F811
    clock: ManualClock,
) -> None:
    """soft_timeout, too."""
    door = open_door(LocalCache(clock=clock))
    options: dict[str, Any] = {"ttl": 10.0, "stale_if_error": 100.0}
    assert door.get_or_set("k", lambda: "old", **options) == "old"
    clock.advance(11)
    slow = Loader("new", waits=True)
    leading = door.begin("get_or_set", "k", slow, **options)
    assert slow.begun.wait(SOON_S)
    assert door.get_or_set("k", slow, soft_timeout=0.05, **options) == "old"
    slow.may_end.set()
    assert leading.result(SOON_S) == "new"


def test_a_fresh_value_stands_in_for_no_forced_load_that_is_late(
    open_door: OpenDoor,  # noqa: F811
) -> None:
    """He asked for another one, and for no old value in its place."""
    door = open_door(LocalCache())
    assert door.set("k", "fresh")
    slow = Loader("new", waits=True)
    with pytest.raises(LoaderTimeoutError):
        door.get_or_set("k", slow, force=True, loader_timeout=0.05)
    slow.may_end.set()
    wait_until(lambda: door.get("k") == "new")


def test_who_waited_for_what_he_cannot_read_loads_it_himself(
    open_door: OpenDoor,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An error of the cache, where nothing is wrong with the loader."""
    door = open_door(LocalCache())
    slow = Loader("theirs", waits=True)
    leading = door.begin("get_or_set", "k", slow)
    assert slow.begun.wait(SOON_S)
    joining = door.begin("get_or_set", "k", lambda: "mine")
    wait_until(lambda: events(door.cache).get("coalesced"))

    def unreadable(body: bytes) -> object:
        raise RedisCorruptEntryError("no", reason="undecodable")

    monkeypatch.setattr(door.cache._stops, "copy", unreadable)
    monkeypatch.setattr(door.cache._stops.nearby, "decode", unreadable)
    slow.may_end.set()
    assert leading.result(SOON_S) == "theirs"
    assert joining.result(SOON_S) == "mine"


def test_a_limit_holds_though_no_thread_is_left_to_load_on() -> None:
    """A database that hangs takes all threads: the caller's own would be next."""
    cache = LocalCache()
    over = threading.Event()
    try:
        occupy(cache._loads, over)
        with pytest.raises(LoaderTimeoutError):
            cache.get_or_set("k", pytest.fail, loader_timeout=0.05)
        assert len(cache._shop.flights) == 0
    finally:
        over.set()


# Errors -----------------------------------------------------------------------------------------


class WithdrawnError(Exception):
    """There is no such candidate any more."""


def test_a_forced_load_that_fails_raises_though_a_fresh_value_is_there(
    open_door: OpenDoor,  # noqa: F811
) -> None:
    """Nobody said that an old value may stand in."""
    door = open_door(LocalCache())
    assert door.set("k", "fresh")
    for option in ("force", "write_only"):
        with pytest.raises(WithdrawnError):
            door.get_or_set("k", Loader(WithdrawnError()), **{option: True})
    assert door.get_or_set("k", Loader(WithdrawnError()), force=True, stale_if_error=9.0) == "fresh"


def test_listed_exceptions_come_out_of_every_call(
    open_door: OpenDoor,  # noqa: F811
    clock: ManualClock,
) -> None:
    """Held off after the first one, the next callers would be handed the old value after all."""
    door = open_door(LocalCache(clock=clock))
    options: dict[str, Any] = {
        "ttl": 10.0,
        "stale_if_error": 100.0,
        "no_stale_for": (WithdrawnError,),
    }
    assert door.get_or_set("k", lambda: "old", **options) == "old"
    clock.advance(11)
    for _ in range(3):
        with pytest.raises(WithdrawnError):
            door.get_or_set("k", Loader(WithdrawnError()), **options)
    assert door.get_or_set("k", lambda: "new", **options) == "new"


class SoftTimeLimitExceeded(Exception):  # noqa: N818 - billiard's name
    """As Celery's."""


@pytest.mark.parametrize("error", [SoftTimeLimitExceeded(), SystemExit(3), KeyboardInterrupt()])
def test_what_ends_a_loader_for_good_comes_out_of_a_load_elsewhere(error: BaseException) -> None:
    """On a thread of its own it ended that thread, and the caller was told of a KeyError."""
    cache = LocalCache()
    for _ in range(2):
        with pytest.raises(type(error)):
            cache.get_or_set("k", Loader(error), loader_timeout=SOON_S)
    assert cache.get_or_set("k", lambda: "value", loader_timeout=SOON_S) == "value"


@pytest.mark.parametrize("options", [{}, {"loader_timeout": SOON_S}], ids=["", "limited"])
@pytest.mark.parametrize("where", ["take", "pack", "store_held"])
def test_what_goes_wrong_beside_the_loader_comes_out_of_a_load_elsewhere(
    where: str,
    options: dict[str, Any],
    open_door: OpenDoor,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A validation or a codec of the application: whoever is told of a KeyError looks elsewhere."""

    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    door = open_door(LocalCache())
    with monkeypatch.context() as broken:
        broken.setattr(door.cache._stops, where, fail)
        with pytest.raises(ZeroDivisionError):
            door.get_or_set("k", lambda: "value", timeout=SOON_S, **options)
    assert door.get_or_set("k", lambda: "value", **options) == "value"


def test_what_ends_a_loader_for_good_comes_out_of_an_awaited_one() -> None:
    """The loader's own task was cancelled, or its time was over."""

    async def load() -> None:
        inner = asyncio.ensure_future(asyncio.sleep(SOON_S))
        inner.cancel()
        await inner

    async def use() -> None:
        async with AsyncRedisCache(LocalCache()) as twin:
            with pytest.raises(asyncio.CancelledError):
                await twin.get_or_set("k", load)
            with pytest.raises(SoftTimeLimitExceeded):
                await twin.get_or_set("k", Loader(SoftTimeLimitExceeded()))

    asyncio.run(use())


def test_a_stop_iteration_is_a_failure_like_any_other(
    open_door: OpenDoor,  # noqa: F811
    clock: ManualClock,
) -> None:
    """next() without a default, in a loader; no generator may let it through."""
    door = open_door(LocalCache(clock=clock))
    with pytest.raises(RuntimeError, match="StopIteration"):
        door.get_or_set("k", Loader(StopIteration()))
    assert door.get_or_set("k", lambda: "old", ttl=10.0, stale_if_error=100.0) == "old"
    clock.advance(11)
    assert door.get_or_set("k", Loader(StopIteration()), ttl=10.0, stale_if_error=100.0) == "old"


def test_a_thread_in_the_background_outlives_whatever_its_work_raises() -> None:
    """Four SystemExits, and nothing would ever be refreshed again."""
    background = Background(1, 10)
    done = threading.Event()

    def leave() -> None:
        raise SystemExit(1)

    for _ in range(3):
        assert background.submit(leave)
    assert background.submit(done.set)
    assert done.wait(SOON_S)
    assert background.failed == 3


# Loads in loads ---------------------------------------------------------------------------------


def test_a_load_in_a_load_needs_no_place_of_its_own_while_redis_is_away() -> None:
    """All places taken by loads that wait for a place."""
    nobody = CacheSettings(host="127.0.0.1", port=1)
    settings = dataclasses.replace(nobody, max_outage_loads=1, lock_timeout=SOON_S)
    with RedisCacheFactory.create_cache(settings) as cache:

        def outer() -> str:
            inner: str = cache.get_or_set("inner", lambda: "inner")
            return f"outer of {inner}"

        assert cache.get_or_set("outer", outer) == "outer of inner"


def test_what_a_load_began_is_no_part_of_it_once_it_is_over() -> None:
    """A task made in a loader has its context, and would load its key at every call for ever."""
    cache = LocalCache()
    contexts: list[contextvars.Context] = []

    def load() -> str:
        contexts.append(contextvars.copy_context())
        return "value"

    assert cache.get_or_set("k", load) == "value"
    assert contexts[0].run(cache.get_or_set, "k", pytest.fail) == "value"
    cache.delete("k")
    later = Loader("later")
    for _ in range(2):
        assert contexts[0].run(cache.get_or_set, "k", later) == "later"
    assert later.runs == 1


def test_a_loader_that_asks_for_its_own_key_and_others_loads_what_is_missing(
    open_door: OpenDoor,  # noqa: F811
) -> None:
    """A recursive result over several keys, some of which are there."""
    door = open_door(LocalCache())
    assert door.set("b", "cached")
    asked: list[list[str]] = []

    def many(keys: list[str]) -> dict[str, str]:
        asked.append(keys)
        return dict.fromkeys(keys, "inner")

    def load() -> dict[str, str]:
        found: dict[str, str] = door.cache.get_or_set_many(["a", "b"], many)
        return found

    assert door.get_or_set("a", load) == {"a": "inner", "b": "cached"}
    assert asked == [["a"]]


def test_a_key_for_which_nothing_is_returned_is_loaded_once_for_all_who_wait() -> None:
    """One after the other, the last of six would wait six times as long."""
    cache = LocalCache()
    slow = Loader({}, waits=True)
    threads = [
        threading.Thread(
            target=lambda: found.append(cache.get_or_set_many(["k"], lambda _: slow()))
        )
        for _ in range(6)
    ]
    found: list[dict[str, Any]] = []
    for thread in threads:
        thread.start()
    wait_until(lambda: events(cache).get("coalesced", 0) >= 5)
    slow.may_end.set()
    for thread in threads:
        thread.join(SOON_S)
    assert found == [{}] * 6
    assert slow.runs == 1


def test_a_load_of_one_cache_is_none_of_another_that_its_loader_asks(
    cache: RedisCache,
    open_door: OpenDoor,  # noqa: F811
) -> None:
    """Tiers name their keys alike: the inner one would load at every call, and keep nothing."""
    front = open_door(LocalCache(settings=CacheSettings(memory=True, namespace="edges")))
    load = Loader("value")

    def load_behind() -> Any:
        return cache.get_or_set("k", load, lock_timeout=SOON_S)

    for _ in range(2):
        assert front.get_or_set("k", load_behind) == "value"
        assert front.delete("k")
    assert load.runs == 1
    assert events(cache) == {"load": 1, "stored": 1}


def test_a_load_of_another_cache_has_no_place_while_redis_is_away(
    open_door: OpenDoor,  # noqa: F811
) -> None:
    """Behind another cache, the outage of Redis would be one of the database after all."""
    front = open_door(LocalCache())
    nobody = CacheSettings(host="127.0.0.1", port=1)
    settings = dataclasses.replace(nobody, max_outage_loads=1, operation_timeout=5.0)
    slow = Loader("slow", waits=True)
    with RedisCacheFactory.create_cache(settings) as away:
        leading = front.begin("get_or_set", "a", lambda: away.get_or_set("a", slow))
        assert slow.begun.wait(SOON_S)
        with pytest.raises(LoaderOverloadedError):
            front.get_or_set("b", lambda: away.get_or_set("b", pytest.fail, lock_timeout=0.05))
        slow.may_end.set()
        assert leading.result(SOON_S) == "slow"


def test_a_worker_that_a_loader_forked_is_no_part_of_that_load() -> None:
    """Nobody tells it that the load is over: it would load the key at every call for ever."""
    cache = LocalCache()
    children: list[int] = []

    def load() -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
            children.append(os.fork())
        if not children[0]:
            signal.alarm(10)
            runs: list[int] = []
            try:
                for _ in range(2):
                    cache.get_or_set("k", lambda: runs.append(1))
            finally:
                os._exit(len(runs))
        return "value"

    assert cache.get_or_set("k", load) == "value"
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 1


# TTLs -------------------------------------------------------------------------------------------


def test_early_refresh_goes_by_the_ttl_that_the_entry_has(
    open_door: OpenDoor,  # noqa: F811
    clock: ManualClock,
) -> None:
    """The loader may have chosen another one than the caller asks with."""
    door = open_door(LocalCache(clock=clock))

    def load(context: LoadContext) -> str:
        context.ttl = 10.0
        return "old"

    options: dict[str, Any] = {"ttl": 1000.0, "early_refresh": 0.5, "refresh": "inline"}
    assert door.get_or_set("k", load, **options) == "old"
    clock.advance(4)
    assert door.get_or_set("k", pytest.fail, **options) == "old"
    clock.advance(2)
    again = Loader("new")
    assert door.get_or_set("k", again, **options) == "old"
    wait_until(lambda: again.runs == 1)


def test_a_ttl_that_the_loader_chose_is_kept_for_an_absence_too(clock: ManualClock) -> None:
    """It knows when the next look is worth while."""
    cache = LocalCache(clock=clock)

    def load(context: LoadContext) -> None:
        context.ttl = 1.0

    cache.get_or_set("k", load, ttl=300.0, negative_ttl=100.0)
    assert cache.lookup("k").outcome is Outcome.HIT
    clock.advance(1.5)
    assert cache.lookup("k").outcome is Outcome.MISS


def test_who_only_reads_refreshes_nothing(open_door: OpenDoor, clock: ManualClock) -> None:  # noqa: F811
    """What is not stored would be computed again at every call."""
    door = open_door(LocalCache(clock=clock))
    options: dict[str, Any] = {"ttl": 10.0, "stale_ttl": 100.0}
    assert door.get_or_set("k", lambda: "old", **options) == "old"
    clock.advance(11)
    assert door.get_or_set("k", pytest.fail, read_only=True, refresh="inline", **options) == "old"
