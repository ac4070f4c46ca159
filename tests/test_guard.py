"""With Redis away: coalescing goes on, and few load at a time."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from computing_kit import SOON_S, Door, Loader, events, open_door, wait_until  # noqa: F401

from jmcache import (
    Cache,
    CacheSettings,
    LoaderOverloadedError,
    LocalCache,
    Outcome,
    RedisCacheFactory,
    RedisError,
    RedisHurriedError,
    RedisPoolExhaustedError,
    RedisTimeoutError,
)
from jmcache.cache._guard import LoadGuard, Permit
from jmcache.testing import PrivateServer

OpenDoor = Callable[[Cache], Door]

SPACE = b"test:v1:#"


# The guard by itself ----------------------------------------------------------------------------


def test_no_more_than_its_limit_are_in() -> None:
    """The outage of a cache becomes one of the database."""
    guard = LoadGuard()
    first, second, third, other = Permit(SPACE), Permit(SPACE), Permit(SPACE), Permit(b"other")
    entered = [guard.enter(permit, 2) for permit in (first, second, third, other)]
    assert entered == [True, True, False, True]
    guard.leave(first)
    guard.leave(first)
    assert guard.enter(third, 2) is True
    assert len(guard) == 3


def test_a_place_comes_back_with_the_frame_that_held_it() -> None:
    """An exception from a signal handler may strike before the place is given back."""
    guard = LoadGuard()
    permit = Permit(SPACE)
    assert guard.enter(permit, 1) is True
    del permit
    gc.collect()
    assert guard.enter(Permit(SPACE), 1) is True


def test_many_threads_never_are_one_too_many() -> None:
    """The one that slips in between look and entry; and who leaves while another counts."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        crowd_in()
    finally:
        sys.setswitchinterval(before)


def crowd_in() -> None:
    guard = LoadGuard()
    most = []
    start = threading.Barrier(8)

    def work() -> None:
        start.wait(SOON_S)
        for _ in range(500):
            permit = Permit(SPACE)
            if guard.enter(permit, 3):
                most.append(len(guard))
                guard.leave(permit)

    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(work) for _ in range(8)]:
            done.result(SOON_S)
    assert max(most) <= 3
    assert len(guard) == 0


def test_a_forked_child_begins_with_all_places() -> None:
    """The parent's loads are not the child's, and would never leave."""
    guard = LoadGuard()
    held = Permit(SPACE)
    guard.enter(held, 1)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if guard.enter(Permit(SPACE), 1) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# Without Redis ----------------------------------------------------------------------------------


@pytest.fixture
def make_door(redis_server: PrivateServer, open_door: OpenDoor) -> Iterator[Any]:  # noqa: F811
    """Make doors to caches whose Redis is away, and whose breaker is open."""

    def make(**overrides: Any) -> Door:
        RedisCacheFactory.shutdown()
        options = {"namespace": "test", "operation_timeout": 0.2, "max_retries": 0, **overrides}
        door = open_door(
            RedisCacheFactory.create_cache(CacheSettings.from_url(redis_server.url, **options))
        )
        door.cache.set("warm", 1, timeout=SOON_S)
        redis_server.stop()
        for _ in range(6):
            door.cache.get("k")
        assert door.cache.lookup("k").reason == "breaker_open"
        return door

    yield make
    redis_server.start()


@pytest.mark.faults
def test_with_redis_away_values_are_computed_and_not_kept(make_door: Any) -> None:
    """Redis being away is no reason for a customer to see nothing."""
    door = make_door()
    load = Loader()
    assert door.get_or_set("k", load) == "value"
    assert door.get_or_set("k", load) == "value"
    assert load.runs == 2
    assert door.get_or_set_many(["a", "b"], lambda keys: dict.fromkeys(keys, 1)) == {"a": 1, "b": 1}
    assert "stored" not in events(door.cache)


@pytest.fixture
def neighbours(make_door: Any) -> Iterator[tuple[Door, Cache]]:
    """Two caches of one namespace, made apart, as an application's modules do."""
    door = make_door(max_outage_loads=2)
    with RedisCacheFactory.create_cache(door.cache.settings) as other:
        yield door, other


@pytest.mark.faults
def test_caches_of_one_namespace_load_a_key_once_and_share_the_places(
    neighbours: tuple[Door, Cache],
) -> None:
    """The database does not care how many caches a process made."""
    door, other = neighbours
    load = Loader(waits=True)
    first = door.begin("get_or_set", "k", load)
    assert load.begun.wait(SOON_S)
    with ThreadPoolExecutor(2) as threads:
        joined = threads.submit(other.get_or_set, "k", load)
        wait_until(lambda: events(other).get("coalesced"))
        second = threads.submit(other.get_or_set, "second", load)
        wait_until(lambda: load.runs == 2)
        with pytest.raises(LoaderOverloadedError):
            door.get_or_set("third", pytest.fail, lock_timeout=0.05)
        load.may_end.set()
        assert first.result(SOON_S) == joined.result(SOON_S) == second.result(SOON_S) == "value"
    assert load.runs == 2


@pytest.mark.faults
def test_a_cache_with_a_validation_of_its_own_joins_nobody_elses_load(
    neighbours: tuple[Door, Cache],
) -> None:
    """What it would be handed was accepted by nobody."""
    door, _ = neighbours
    other = Loader("theirs", waits=True)
    leading = door.begin("get_or_set", "k", other)
    assert other.begun.wait(SOON_S)
    settings = door.cache.settings
    with RedisCacheFactory.create_cache(settings, validate=lambda it: it == "ours") as strict:
        assert strict.get_or_set("k", lambda: "ours") == "ours"
    other.may_end.set()
    assert leading.result(SOON_S) == "theirs"


@pytest.mark.faults
def test_who_has_a_place_needs_no_other_in_another_namespace(
    neighbours: tuple[Door, Cache],
) -> None:
    """Two that ask each other would hold all places, and wait for one."""
    _, cache = neighbours
    with RedisCacheFactory.create_cache(cache.settings, namespace="other") as other:
        all_are_in = threading.Barrier(4)

        def ask(first: Cache, second: Cache, key: str) -> object:
            def load() -> object:
                all_are_in.wait(SOON_S)
                return second.get_or_set(f"inner {key}", lambda: key, lock_timeout=SOON_S)

            return first.get_or_set(key, load, lock_timeout=SOON_S)

        with ThreadPoolExecutor(4) as threads:
            asked = [threads.submit(ask, cache, other, key) for key in "ab"]
            asked += [threads.submit(ask, other, cache, key) for key in "cd"]
            assert [call.result(SOON_S) for call in asked] == list("abcd")


@pytest.mark.faults
@pytest.mark.parametrize(
    "change",
    [
        lambda cache: cache.delete("k"),
        lambda cache: cache.delete_many(["k"]),
        lambda cache: cache.invalidate_tags("tag"),
        lambda cache: cache.clear(),
    ],
    ids=["delete", "delete_many", "invalidate_tags", "clear"],
)
def test_what_one_deletes_is_not_loaded_from_before_that_by_another(
    change: Callable[[Cache], object], neighbours: tuple[Door, Cache]
) -> None:
    """It counts in this process from that moment, whichever cache it was told."""
    door, other = neighbours
    old = Loader("old", waits=True)
    loading = door.begin("get_or_set", "k", old, tags=("tag",))
    assert old.begun.wait(SOON_S)
    assert not change(other)
    assert door.get_or_set("k", lambda: "new", tags=("tag",)) == "new"
    old.may_end.set()
    assert loading.result(SOON_S) == "old"


@pytest.mark.faults
def test_with_redis_away_a_process_computes_a_key_once_at_a_time(make_door: Any) -> None:
    """Each of its threads would ask the database for the same."""
    door = make_door()
    load = Loader(waits=True)
    calls = [door.begin("get_or_set", "k", load)]
    assert load.begun.wait(SOON_S)
    before = events(door.cache).get("coalesced", 0)
    calls += [door.begin("get_or_set", "k", load) for _ in range(7)]
    wait_until(lambda: events(door.cache).get("coalesced", 0) == before + 7)
    load.may_end.set()
    assert [call.result(SOON_S) for call in calls] == ["value"] * 8
    assert load.runs == 1


@pytest.mark.faults
def test_with_redis_away_no_more_than_the_setting_load_at_a_time(make_door: Any) -> None:
    """All misses at once: the database is the next one to go."""
    door = make_door(max_outage_loads=3)
    load = Loader(waits=True)
    calls = [door.begin("get_or_set", f"k{number}", load) for number in range(10)]
    wait_until(lambda: load.runs == 3)
    assert len(door.cache._shop.guard) == 3
    with pytest.raises(LoaderOverloadedError, match="max_outage_loads"):
        door.get_or_set("late", pytest.fail, lock_timeout=0.05)
    assert load.runs == 3
    load.may_end.set()
    assert [call.result(SOON_S) for call in calls] == ["value"] * 10, "the rest waited"
    assert len(door.cache._shop.guard) == 0
    assert door.cache.stats().operations["get_or_set", "saturated", "loaders_busy"] == 1
    assert events(door.cache)["overloaded"] == 1


@pytest.mark.parametrize(
    ("error", "waits"),
    [
        (RedisTimeoutError(), True),
        (RedisHurriedError(), False),
        (RedisPoolExhaustedError(), False),
        (RedisPoolExhaustedError(reason="queue_full"), False),
        (RedisPoolExhaustedError(reason="no_thread"), False),
    ],
    ids=lambda value: getattr(value, "reason", ""),
)
def test_who_could_not_ask_a_redis_that_is_well_needs_no_place(
    error: RedisError,
    waits: bool,
    open_door: OpenDoor,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A crowd at one moment would be told of an outage that there is none of."""

    def refuse(*_: Any, **__: Any) -> None:
        raise error

    door = open_door(LocalCache(settings=CacheSettings(memory=True, max_outage_loads=1)))
    monkeypatch.setattr(door.cache._stops, "look", refuse)
    monkeypatch.setattr(door.cache._stops, "take", refuse)
    slow = Loader(waits=True)
    call = door.begin("get_or_set", "slow", slow)
    assert slow.begun.wait(SOON_S)
    quick = "no place" if waits else "quick"
    options = {"lock_timeout": 0.05, "default": "no place"}
    assert door.get_or_set("quick", lambda: "quick", **options) == quick
    slow.may_end.set()
    assert call.result(SOON_S) == "value"


@pytest.mark.faults
def test_who_finds_no_place_gets_the_default_where_there_is_one(make_door: Any) -> None:
    """Better "no recommendations now" than an error page; None may be that."""
    door = make_door(max_outage_loads=1)
    load = Loader(waits=True)
    call = door.begin("get_or_set", "busy", load)
    assert load.begun.wait(SOON_S)
    for default in ([], None):
        options = {"default": default, "lock_timeout": 0.02}
        assert door.get_or_set("k", pytest.fail, **options) == default
    with pytest.raises(LoaderOverloadedError):
        door.get_or_set_many(["a"], pytest.fail, lock_timeout=0.02)
    load.may_end.set()
    assert call.result(SOON_S) == "value"


@pytest.mark.faults
def test_a_place_comes_back_from_a_loader_that_fails(make_door: Any) -> None:
    """Thirty-two failures, and nobody loads again until the process is restarted."""
    door = make_door(max_outage_loads=1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            door.get_or_set("k", Loader(ZeroDivisionError()))
    assert door.get_or_set("k", lambda: "value") == "value"


def test_who_finds_no_place_gets_an_old_value_where_there_is_one(
    redis_server: PrivateServer,
    open_door: OpenDoor,  # noqa: F811
) -> None:
    """Redis still reads, but takes no writes: the old value is at hand."""
    RedisCacheFactory.shutdown()
    settings = CacheSettings.from_url(
        redis_server.url, namespace="test", max_outage_loads=1, operation_timeout=5.0
    )
    door = open_door(RedisCacheFactory.create_cache(settings))
    options = {"ttl": 0.02, "stale_if_error": 900.0}
    door.get_or_set("k", lambda: "old", **options)
    wait_until(lambda: door.lookup("k").outcome is Outcome.STALE)
    with redis_server.fill():
        wait_until(lambda: door.set("no", 1) is False)
        load = Loader(waits=True)
        call = door.begin("get_or_set", "busy", load)
        assert load.begun.wait(SOON_S)
        assert door.get_or_set("k", pytest.fail, lock_timeout=0.05, **options) == "old"
        load.may_end.set()
        assert call.result(SOON_S) == "value"


def test_with_redis_there_any_number_loads(
    redis_server: PrivateServer,
    open_door: OpenDoor,  # noqa: F811
) -> None:
    """The guard is for outages: a service with many slow loaders must not be held back."""
    settings = CacheSettings.from_url(
        redis_server.url, namespace="many", max_outage_loads=1, operation_timeout=5.0
    )
    door = open_door(RedisCacheFactory.create_cache(settings))
    load = Loader(waits=True)
    calls = [door.begin("get_or_set", f"k{number}", load) for number in range(5)]
    wait_until(lambda: load.runs == 5)
    load.may_end.set()
    assert [call.result(SOON_S) for call in calls] == ["value"] * 5
