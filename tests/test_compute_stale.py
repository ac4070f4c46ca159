"""Old values: handed out at once while one refreshes them, or when loading fails."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable
from typing import Any

import celery
import pytest
from computing_kit import SOON_S, Door, Loader, events, open_door, wait_until  # noqa: F401

from jmcache import Cache, CacheSettings, LoadContext, LocalCache, Outcome, RedisCacheFactory
from jmcache.cache import Plan, _cache, _lead
from jmcache.cache._compute import Computation
from jmcache.cache._lead import Order
from jmcache.cache._look import Look
from jmcache.testing import ManualClock, PrivateServer

OpenDoor = Callable[[Cache], Door]

SOON_STALE = {"ttl": 10.0, "stale_ttl": 60.0}


@pytest.fixture
def door(clock: ManualClock, open_door: OpenDoor) -> Door:  # noqa: F811
    """To a cache in this process, whose time is the test's."""
    return open_door(LocalCache(clock=clock))


@pytest.fixture
def stale_door(door: Door, clock: ManualClock) -> Door:
    """The same, with "old" under "k", which is stale by a second."""
    assert door.get_or_set("k", lambda: "old", **SOON_STALE) == "old"
    clock.advance(11)
    return door


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches made from here on refresh one value at a time, and let one more wait."""
    monkeypatch.setattr(_cache, "_BACKGROUND_THREADS", 1)
    monkeypatch.setattr(_cache, "_BACKGROUND_QUEUE", 1)


# While it is refreshed --------------------------------------------------------------------------


def test_a_stale_value_is_handed_out_at_once_and_refreshed_once(stale_door: Door) -> None:
    """The customer waits for a value that is a second fresher, and a hundred of them load it."""
    load = Loader("new", waits=True)
    for _ in range(20):
        assert stale_door.get_or_set("k", load, **SOON_STALE) == "old"
    assert load.begun.wait(SOON_S)
    load.may_end.set()
    wait_until(lambda: stale_door.get("k") == "new")
    assert load.runs == 1
    assert stale_door.cache.stats().operations["get_or_set", "stale", ""] == 20


def test_get_shows_no_stale_value_and_lookup_says_so(stale_door: Door) -> None:
    """Whoever did not ask for old values must not be given one."""
    assert stale_door.get("k") is None
    assert stale_door.get_many(["k"]) == {}
    found = stale_door.lookup("k")
    assert (found.outcome, found.value, found.reason) == (Outcome.STALE, "old", "expired")
    assert stale_door.cache.stats().stale == 3


def test_a_value_past_its_stale_ttl_is_waited_for(door: Door, clock: ManualClock) -> None:
    """A result of yesterday is no answer."""
    door.get_or_set("k", lambda: "old", ttl=10, stale_ttl=60, stale_if_error=900)
    clock.advance(10 + 61)
    options = {"ttl": 10, "stale_ttl": 60, "stale_if_error": 900}
    assert door.get_or_set("k", lambda: "new", **options) == "new"


def test_a_value_is_not_fresh_any_more_as_its_ttl_ends(door: Door, clock: ManualClock) -> None:
    """Who takes no old values would be handed one at that very moment; tests stop clocks there."""
    assert door.get_or_set("k", lambda: "old", **FAIL_SAFE) == "old"
    clock.advance(FAIL_SAFE["ttl"])
    assert door.get_or_set("k", lambda: "new", **FAIL_SAFE) == "new"


def test_each_caller_says_how_old_is_good_enough(stale_door: Door) -> None:
    """One page may be a minute late; the one who edits must see what is true."""
    assert stale_door.get_or_set("k", lambda: "new", ttl=10) == "new"


def test_a_refresh_that_fails_keeps_the_old_value_and_counts(stale_door: Door) -> None:
    """Nobody is there to be told; without a count, nobody ever knows."""
    failing = Loader(ConnectionError())
    assert stale_door.get_or_set("k", failing, **SOON_STALE) == "old"
    wait_until(lambda: events(stale_door.cache).get("refresh_failed"))
    assert stale_door.lookup("k").value == "old"


def test_a_refresh_that_failed_is_not_repeated_for_5_s(
    stale_door: Door, clock: ManualClock
) -> None:
    """A database that is down gets the load of every reader on top."""
    failing = Loader(ConnectionError())
    stale_door.get_or_set("k", failing, **SOON_STALE)
    wait_until(lambda: events(stale_door.cache).get("refresh_failed"))
    wait_until(lambda: _cools(stale_door))
    for _ in range(10):
        assert stale_door.get_or_set("k", failing, **SOON_STALE) == "old"
    assert failing.runs == 1
    clock.advance(5.1)
    stale_door.get_or_set("k", failing, **SOON_STALE)
    wait_until(lambda: failing.runs == 2)


@pytest.mark.usefixtures("crowded")
def test_a_refresh_that_finds_no_room_is_skipped_and_counted(clock: ManualClock) -> None:
    """An endless queue of refreshes takes the memory, and then the process."""
    door = Door(LocalCache(clock=clock), awaited=False)  # a loop has room for 256 at one time
    keys = ["a", "b", "c"]
    for key in keys:
        door.get_or_set(key, lambda: "old", **SOON_STALE)
    clock.advance(11)
    slow = Loader("new", waits=True)
    assert door.get_or_set("a", slow, **SOON_STALE) == "old"
    assert slow.begun.wait(SOON_S)  # the one thread is busy
    assert [door.get_or_set(key, slow, **SOON_STALE) for key in ("b", "c")] == ["old", "old"]
    assert events(door.cache)["refresh_skipped"] == 1
    slow.may_end.set()
    wait_until(lambda: door.get_many(keys) == {"a": "new", "b": "new"})
    assert slow.runs == 2
    door.close()


def test_an_inline_refresh_runs_on_the_time_of_who_finds_it_stale(stale_door: Door) -> None:
    """A script that ends at once would never see its refresh in the background through."""
    load = Loader("new")
    assert stale_door.get_or_set("k", load, refresh="inline", **SOON_STALE) == "old"
    assert load.runs == 1
    assert stale_door.get("k") == "new"


def test_an_inline_refresh_that_fails_is_no_failure_of_the_caller(stale_door: Door) -> None:
    """There is a value good enough to show."""
    failing = Loader(ConnectionError())
    assert stale_door.get_or_set("k", failing, refresh="inline", **SOON_STALE) == "old"
    assert events(stale_door.cache)["refresh_failed"] == 1


def test_a_refresh_does_not_store_over_a_delete(stale_door: Door) -> None:
    """The refresh began before the job was withdrawn, and would bring it back."""
    load = Loader("withdrawn", waits=True)
    stale_door.get_or_set("k", load, **SOON_STALE)
    assert load.begun.wait(SOON_S)
    assert stale_door.delete("k") is True
    load.may_end.set()
    wait_until(lambda: events(stale_door.cache).get("not_stored"))
    assert stale_door.lookup("k").outcome is Outcome.MISS


def _cools(door: Door) -> bool:
    """Is it known that the load failed, and has the one who led it left?"""
    return _holder(door.cache) == b"cooling" and not len(door.cache._shop.flights)


def _holder(cache: Cache) -> bytes | None:
    name, _ = cache._keys.name("k")
    return cache._stops.store._leases.get(cache._keys.lease(name), (None, 0))[0]


# Refreshed elsewhere ----------------------------------------------------------------------------


def test_a_hook_is_asked_once_and_nothing_is_loaded_here(stale_door: Door) -> None:
    """A queue with one refresh for each reader of a popular key is a stampede too."""
    asked: list[str] = []
    for _ in range(20):
        value = stale_door.get_or_set("k", pytest.fail, refresher=asked.append, **SOON_STALE)
        assert value == "old"
    wait_until(lambda: asked)
    assert stale_door.get_or_set("k", pytest.fail, refresher=asked.append, **SOON_STALE) == "old"
    assert asked == ["k"]


def test_what_was_asked_for_elsewhere_is_computed_and_stored_there(stale_door: Door) -> None:
    """Held off by the reader that asked for it, the worker would wait and store nothing."""
    asked: list[str] = []
    stale_door.get_or_set("k", pytest.fail, refresher=asked.append, **SOON_STALE)
    wait_until(lambda: asked)
    worker = stale_door
    assert worker.get_or_set("k", lambda: "new", force=True, **SOON_STALE) == "new"
    assert stale_door.get("k") == "new"


def test_a_hook_that_fails_is_no_failure_of_the_reader_and_is_asked_again(
    stale_door: Door,
) -> None:
    """The broker is down: that is no reason to show no results."""
    hook = Loader(ConnectionError())

    def ask(key: str) -> None:
        hook()

    assert stale_door.get_or_set("k", pytest.fail, refresher=ask, **SOON_STALE) == "old"
    wait_until(lambda: events(stale_door.cache).get("refresh_failed"))
    wait_until(lambda: _holder(stale_door.cache) is None)
    assert stale_door.get_or_set("k", pytest.fail, refresher=ask, **SOON_STALE) == "old"
    wait_until(lambda: hook.runs == 2)


def test_a_slow_hook_holds_up_no_reader(stale_door: Door) -> None:
    """A broker that takes its time, on the time of the customer."""
    hook = Loader(waits=True)
    call = stale_door.begin(
        "get_or_set", "k", pytest.fail, refresher=lambda key: hook(), **SOON_STALE
    )
    assert call.result(SOON_S) == "old"
    assert hook.begun.wait(SOON_S)
    hook.may_end.set()


def test_a_celery_task_does_the_refresh(clock: ManualClock) -> None:
    """What the service wants: the endpoint answers, a worker computes."""
    cache = LocalCache(clock=clock)
    app = celery.Celery("jobs", broker="memory://")
    app.conf.task_always_eager = True
    runs: list[tuple[str, str]] = []

    @app.task(name="refresh_matches")
    def refresh_matches(candidate: str, limit: int = 10) -> None:
        matches.refresh(candidate, limit)

    @cache.cached(ttl=10, stale_ttl=60, refresher=refresh_matches.delay)
    def matches(candidate: str, limit: int = 10) -> str:
        runs.append((candidate, threading.current_thread().name))
        return f"{len(runs)} for {candidate}"

    assert matches("c1") == "1 for c1"
    clock.advance(11)
    assert matches("c1") == "1 for c1"
    wait_until(lambda: cache.get(matches.key("c1")) == "2 for c1")
    assert matches("c1", limit=10) == "2 for c1"
    cache.close()


# Ahead of time ----------------------------------------------------------------------------------


def test_a_fresh_value_is_refreshed_after_its_share_of_the_ttl(
    door: Door, clock: ManualClock
) -> None:
    """A popular key that expires makes everybody wait once in a TTL."""
    load = Loader("new", waits=True)
    options = {"ttl": 100.0, "early_refresh": 0.8}
    assert door.get_or_set("k", lambda: "old", **options) == "old"
    clock.advance(79)
    assert door.get_or_set("k", pytest.fail, **options) == "old"
    clock.advance(2)
    for _ in range(20):
        assert door.get_or_set("k", load, **options) == "old"
    assert load.begun.wait(SOON_S)
    load.may_end.set()
    wait_until(lambda: door.get("k") == "new")
    assert load.runs == 1
    assert door.cache.stats().operations["get_or_set", "hit", ""] == 21


def test_an_early_refresh_that_failed_is_not_repeated_for_5_s(
    door: Door, clock: ManualClock
) -> None:
    """A popular key would ask a database that is down at every read, for the rest of its TTL."""
    options = {"ttl": 100.0, "early_refresh": 0.5}
    assert door.get_or_set("k", lambda: "old", **options) == "old"
    clock.advance(51)
    failing = Loader(ConnectionError())
    for _ in range(10):
        assert door.get_or_set("k", failing, **options) == "old"
        wait_until(lambda: _cools(door))
    assert failing.runs == 1
    clock.advance(5.1)
    assert door.get_or_set("k", failing, **options) == "old"
    wait_until(lambda: failing.runs == 2)


def test_who_forces_a_load_is_not_held_off_by_an_early_refresh_that_failed(
    door: Door, clock: ManualClock
) -> None:
    """Nor is who comes when the value has ended meanwhile: he has nothing else."""
    options = {"ttl": 100.0, "early_refresh": 0.5}
    for at_s, forced in ((51, True), (99, False)):
        assert door.get_or_set("k", lambda: "old", force=True, **options) == "old"
        clock.advance(at_s)
        assert door.get_or_set("k", Loader(ConnectionError()), **options) == "old"
        wait_until(lambda: _cools(door))
        clock.advance(2)
        call = door.begin("get_or_set", "k", lambda: "new", force=forced, **options)
        assert call.result(4.0) == "new"


def test_xfetch_refreshes_the_sooner_the_dearer_as_often_as_the_paper_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Too seldom, and all wait at the end; too often, and the database pays for nothing.

    The probability t before the end of a value that cost d is exp(-t / d).
    """
    cache = LocalCache()
    plan = Plan(ttl=100.0, early_refresh="xfetch")
    order = Order("get_or_set", pytest.fail, plan, 1.0)
    work = Computation(cache._shop, order, pytest.fail)
    monkeypatch.setattr("jmcache.cache._compute.random.random", random.Random(4).random)
    for cost_s, left_s in [(2.0, 4.0), (8.0, 4.0), (0.1, 4.0), (4.0, 0.0)]:
        look = Look(Outcome.HIT, age_s=100.0 - left_s, ttl_s=100.0, load_cost_s=cost_s)
        share = sum(work._is_early(look) for _ in range(5000)) / 5000
        assert share == pytest.approx(math.exp(-left_s / cost_s), abs=0.02)


def test_xfetch_goes_by_what_the_load_has_cost(door: Door, clock: ManualClock) -> None:
    """A cost that is not kept with the value makes every value look cheap."""
    object.__setattr__(door.cache._shop, "clock", clock)
    door.get_or_set("dear", lambda: clock.advance(1000.0), ttl=100.0, early_refresh="xfetch")
    door.get_or_set("cheap", lambda: None, ttl=100.0, early_refresh="xfetch")
    clock.advance(99.0)
    for _ in range(20):  # exp(-1/1000), and exp(-1/0)
        door.get_or_set("cheap", pytest.fail, ttl=100.0, early_refresh="xfetch")
    again = Loader()
    for _ in range(20):
        door.get_or_set("dear", again, ttl=100.0, early_refresh="xfetch")
    wait_until(lambda: again.runs)


def test_one_process_refreshes_what_all_find_early(
    redis_server: PrivateServer,
    open_door: OpenDoor,  # noqa: F811
) -> None:
    """Each replica by itself refreshes once: ten replicas, ten loads."""
    settings = CacheSettings.from_url(redis_server.url, namespace="early", operation_timeout=5.0)
    doors = [open_door(RedisCacheFactory.create_cache(settings)) for _ in range(4)]
    options = {"ttl": 60.0, "early_refresh": 1e-9}
    load = Loader("new", waits=True)
    doors[0].set("k", "old")
    for door in doors:
        assert door.get_or_set("k", load, **options) == "old"
    assert load.begun.wait(SOON_S)
    wait_until(lambda: all(not len(door.cache._shop.flights) for door in doors[1:]) or load.runs)
    for door in doors:
        assert door.get_or_set("k", load, **options) == "old"
    load.may_end.set()
    wait_until(lambda: doors[3].get("k") == "new")
    assert load.runs == 1


# When loading fails -----------------------------------------------------------------------------


FAIL_SAFE = {"ttl": 10.0, "stale_if_error": 900.0}


@pytest.fixture
def safe_door(door: Door, clock: ManualClock) -> Door:
    """To a cache with "old" under "k", past its TTL, good enough for who has nothing better."""
    assert door.get_or_set("k", lambda: "old", **FAIL_SAFE) == "old"
    clock.advance(11)
    return door


def test_the_last_good_value_is_handed_out_when_the_loader_fails(safe_door: Door) -> None:
    """The database is away; yesterday's matches are better than an error page."""
    assert safe_door.get_or_set("k", Loader(ConnectionError()), **FAIL_SAFE) == "old"
    assert safe_door.cache.stats().operations["get_or_set", "stale", ""] == 1
    assert events(safe_door.cache)["stale_on_error"] == 1
    assert safe_door.lookup("k").outcome is Outcome.STALE


def test_what_a_loader_does_to_the_old_value_it_was_shown_harms_nobody(
    door: Door, clock: ManualClock
) -> None:
    """It changes it in place to make the new one, and fails: half of it is no last good value."""
    assert door.get_or_set("k", lambda: ["old"], **FAIL_SAFE) == ["old"]
    clock.advance(11)

    def load(context: LoadContext) -> Any:
        context.stale.clear()
        raise ConnectionError

    assert door.get_or_set("k", load, **FAIL_SAFE) == ["old"]


def test_whoever_waits_for_a_load_that_fails_gets_the_old_value_too(safe_door: Door) -> None:
    """One of them sees results, the others an error, by chance."""
    load = Loader(ConnectionError(), waits=True)
    calls = [safe_door.begin("get_or_set", "k", load, **FAIL_SAFE) for _ in range(4)]
    wait_until(lambda: events(safe_door.cache).get("coalesced") == 3)
    load.may_end.set()
    assert [call.result(SOON_S) for call in calls] == ["old"] * 4
    assert load.runs == 1


def test_a_loader_that_failed_is_left_alone_for_5_s(safe_door: Door, clock: ManualClock) -> None:
    """Tried by every request, a database never comes up again, and every request waits for it."""
    failing = Loader(ConnectionError())
    safe_door.get_or_set("k", failing, **FAIL_SAFE)
    wait_until(lambda: _cools(safe_door))
    for _ in range(10):
        assert safe_door.get_or_set("k", failing, **FAIL_SAFE) == "old"
    assert failing.runs == 1
    wait_until(lambda: _cools(safe_door))
    clock.advance(5.1)
    assert safe_door.get_or_set("k", failing, **FAIL_SAFE) == "old"
    assert failing.runs == 2
    wait_until(lambda: _cools(safe_door))
    clock.advance(5.1)
    assert safe_door.get_or_set("k", lambda: "new", **FAIL_SAFE) == "new"


def test_who_takes_no_old_value_is_not_held_off_by_a_failure(safe_door: Door) -> None:
    """The one caller who needs the truth would wait 5 s for an error."""
    safe_door.get_or_set("k", Loader(ConnectionError()), **FAIL_SAFE)
    wait_until(lambda: _cools(safe_door))
    assert safe_door.begin("get_or_set", "k", lambda: "new", ttl=10).result(4.0) == "new"


def test_an_old_value_is_too_old_one_day(safe_door: Door, clock: ManualClock) -> None:
    """After stale_if_error the failure has to show."""
    clock.advance(900)
    with pytest.raises(ConnectionError):
        safe_door.get_or_set("k", Loader(ConnectionError()), **FAIL_SAFE)


class WithdrawnError(Exception):
    """The candidate is gone."""


def test_listed_exceptions_always_come_out(safe_door: Door) -> None:
    """ "There is no such candidate" is an answer, not a failure: the old one must not hide it."""
    with pytest.raises(WithdrawnError):
        safe_door.get_or_set(
            "k", Loader(WithdrawnError()), no_stale_for=(WithdrawnError,), **FAIL_SAFE
        )


class SoftTimeLimitExceeded(Exception):  # noqa: N818 - billiard's name
    """As Celery's: an ordinary exception that means "stop now"."""


@pytest.mark.parametrize("limit", [SoftTimeLimitExceeded, KeyboardInterrupt, SystemExit])
def test_a_time_limit_is_no_failure_to_be_covered(
    limit: type[BaseException], clock: ManualClock
) -> None:
    """A task that is told to stop and goes on with an old value is killed."""
    cache = LocalCache(clock=clock)
    cache.get_or_set("k", lambda: "old", **FAIL_SAFE)
    clock.advance(11)

    def load() -> Any:
        raise limit

    with pytest.raises(limit):
        cache.get_or_set("k", load, **FAIL_SAFE)
    assert cache.get_or_set("k", lambda: "new", **FAIL_SAFE) == "new", "and nobody is held off"


def test_the_time_without_a_new_attempt_is_the_documented_one() -> None:
    """docs/computing.md says 5 s; the tests above move the clock by that."""
    assert _lead._COOL_S == 5.0


def test_a_real_redis_keeps_the_old_value_for_the_longer_of_both(
    redis_server: PrivateServer,
    open_door: OpenDoor,  # noqa: F811
) -> None:
    """Removed at the end of its TTL, there is nothing to hand out when it is needed."""
    settings = CacheSettings.from_url(
        redis_server.url, namespace="stale", operation_timeout=5.0, ttl_jitter=0.0
    )
    door = open_door(RedisCacheFactory.create_cache(settings))
    options = {"ttl": 0.05, "stale_ttl": 30.0, "stale_if_error": 100.0}
    assert door.get_or_set("k", lambda: "old", **options) == "old"
    wait_until(lambda: door.lookup("k").outcome is Outcome.STALE)
    (name,) = [name for name in redis_server.command("KEYS", "stale:*") if b"#" not in name]
    assert 90_000 < redis_server.command("PTTL", name) <= 100_050
    failing = Loader(ConnectionError())
    assert door.get_or_set("k", failing, ttl=0.05, stale_if_error=100.0) == "old"
    wait_until(lambda: door.get_or_set("k", failing, **options) == "old")
    load = Loader("new")
    redis_server.command("DEL", f"stale:v1:#lease{{{name.decode()}}}")
    assert door.get_or_set("k", load, **options) == "old"
    wait_until(lambda: door.lookup("k").value == "new")
