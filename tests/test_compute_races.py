"""get_or_set against a real Redis, with something else just at the wrong moment.

Two caches stand for two processes: *here* asks through a proxy that holds single commands back,
*there* asks Redis straight.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from computing_kit import SOON_S, Loader, events, wait_until
from stopwatch import Stopwatch

from jmcache import Cache, CacheSettings, Outcome, RedisCacheFactory
from jmcache.testing import FaultProxy, PrivateServer

LEASE_S = 0.3  # in tests in which it ends
LONG_S = 60.0  # in tests that fail if anybody waits for it
STORE = b"EVAL"
TAKE = b"NX"


class Stage:
    """Two caches, a Redis, and threads that ask."""

    def __init__(self, server: PrivateServer, proxy: FaultProxy) -> None:
        self.server = server
        self.proxy = proxy
        self.threads = ThreadPoolExecutor(16)

    def caches(self, **options: Any) -> tuple[Cache, Cache]:
        """Return *here* and *there*."""
        options = {"namespace": "races", "operation_timeout": 5.0, "lock_timeout": LONG_S} | options
        here = RedisCacheFactory.create_cache(self.proxy.settings(**options))
        there = CacheSettings.from_url(self.server.url, **options)
        return here, RedisCacheFactory.create_cache(there)

    def begin(self, cache: Cache, loader: Callable[[], Any], **options: Any) -> Future[Any]:
        return self.threads.submit(cache.get_or_set, "k", loader, **{"ttl": 300, **options})

    def leases(self) -> list[Any]:
        found = self.server.command("KEYS", "*lease*")
        assert isinstance(found, list)
        return found


@pytest.fixture
def stage(tcp_server: PrivateServer) -> Iterator[Stage]:
    with FaultProxy(tcp_server) as proxy:
        stage = Stage(tcp_server, proxy)
        yield stage
        proxy.heal()
        stage.threads.shutdown()
        RedisCacheFactory.shutdown()


def delete(cache: Cache) -> bool:
    return cache.delete("k")


def clear(cache: Cache) -> bool:
    return cache.clear()


def invalidate(cache: Cache) -> bool:
    return cache.invalidate_tags("job:42")


def put(cache: Cache) -> bool:
    return cache.set("k", "new")


CHANGES = [delete, clear, invalidate, put]
changes = pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)


def kept(cache: Cache) -> Any:
    """What the next caller is handed; "nothing" if he has to load."""
    return cache.get("k") or "nothing"


# Changes meanwhile ------------------------------------------------------------------------------


@changes
def test_a_change_during_the_load_is_not_undone_by_it(
    change: Callable[[Cache], bool], stage: Stage
) -> None:
    """The recruiter withdraws the job while its matches are computed: they would stay for hours."""
    here, there = stage.caches()
    loader = Loader("old", waits=True)
    loading = stage.begin(here, loader, tags=("job:42",))
    assert loader.begun.wait(SOON_S)
    assert change(there)
    loader.may_end.set()
    assert loading.result(SOON_S) == "old"  # asked before the change
    assert [kept(here), kept(there)] == ["new" if change is put else "nothing"] * 2
    assert stage.leases() == []


@changes
def test_a_change_between_the_load_and_the_store_is_not_undone_by_it(
    change: Callable[[Cache], bool], stage: Stage
) -> None:
    """To look at the lease first and to store then leaves a moment between the two."""
    here, there = stage.caches()
    with stage.proxy.delay(LONG_S, on=STORE) as held_back:
        loading = stage.begin(here, lambda: "old", tags=("job:42",))
        held_back.wait()
        assert change(there)
        held_back.remove()
    assert loading.result(SOON_S) == "old"
    assert [kept(here), kept(there)] == ["new" if change is put else "nothing"] * 2
    assert stage.leases() == []


@changes
def test_who_comes_after_a_change_is_not_handed_the_load_from_before(
    change: Callable[[Cache], bool], stage: Stage
) -> None:
    """Threads that wait for a load under way would be handed what was just deleted elsewhere."""
    here, there = stage.caches()
    old, new = Loader("old", waits=True), Loader("new")
    loading = stage.begin(here, old, tags=("job:42",))
    assert old.begun.wait(SOON_S)
    assert change(there)
    asking = stage.begin(here, new, tags=("job:42",))
    if change in (clear, invalidate):  # these void no lease: one loads after the other
        old.may_end.set()
    assert asking.result(SOON_S) == "new"
    old.may_end.set()
    assert loading.result(SOON_S) == "old"
    assert kept(there) == "new"


def test_a_delete_between_the_lease_and_its_answer_voids_it(stage: Stage) -> None:
    """The load that follows begins after the delete; but whoever stores needs a lease."""
    here, there = stage.caches()
    loader = Loader("value")
    with stage.proxy.stall(on=TAKE) as held_back:
        loading = stage.begin(here, loader)
        held_back.wait()
        wait_until(stage.leases)
        assert there.delete("k")
        held_back.remove()
    assert loading.result(SOON_S) == "value"
    assert kept(there) == "nothing"


# Leases -----------------------------------------------------------------------------------------


def test_a_load_that_outlives_its_lease_does_not_overwrite_the_one_that_followed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slower of two loads has the older data."""
    here, there = stage.caches(lock_timeout=LEASE_S)
    monkeypatch.setattr(here._shop.keeper, "keep", lambda hold: None)  # its renewals are lost
    slow, quick = Loader("older", waits=True), Loader("younger")
    loading = stage.begin(here, slow)
    assert slow.begun.wait(SOON_S)
    assert there.get_or_set("k", quick, ttl=300) == "younger"  # after the lease has ended
    slow.may_end.set()
    assert loading.result(SOON_S) == "older"
    assert kept(here) == kept(there) == "younger"
    assert stage.leases() == []


@pytest.mark.parametrize("fault", ["swallow_reply", "reset"])
def test_a_lease_whose_answer_was_lost_is_not_waited_for_by_its_holder(
    fault: str, stage: Stage
) -> None:
    """One lost packet would cost the caller lock_timeout, 10 s, on a key that nobody loads."""
    here, there = stage.caches(operation_timeout=0.5)
    here.get("warm")
    lost = getattr(stage.proxy, fault)(on=TAKE, times=1)
    with Stopwatch() as watch:
        with watch.call(3.0, "get_or_set"):
            assert stage.begin(here, lambda: "value").result(LONG_S) == "value"
        assert watch.late() == []
    lost.wait()
    assert kept(there) == "value"
    assert stage.leases() == []


def test_two_processes_refresh_a_stale_value_once(stage: Stage) -> None:
    """Every process would ask the database for each hot key at the end of its TTL."""
    here, there = stage.caches()
    swr = {"ttl": 0.05, "stale_ttl": 600.0}
    assert stage.begin(here, lambda: "old", **swr).result(SOON_S) == "old"
    wait_until(lambda: there.lookup("k").outcome is Outcome.STALE)
    loader = Loader("new", waits=True)
    with stage.proxy.delay(LONG_S, on=TAKE) as held_back:
        assert stage.begin(here, loader, **swr).result(SOON_S) == "old"
        held_back.wait()  # it saw the stale value, and is on its way to the lease
        assert stage.begin(there, loader, **swr).result(SOON_S) == "old"
        assert loader.begun.wait(SOON_S)
        held_back.remove()
    for cache in (here, there) * 3:
        assert stage.begin(cache, loader, **swr).result(SOON_S) == "old"
    loader.may_end.set()
    wait_until(lambda: there.lookup("k").value == "new")
    wait_until(lambda: not stage.leases())
    assert loader.runs == 1


# Redis meanwhile --------------------------------------------------------------------------------


def test_a_redis_killed_between_the_lease_and_the_store_costs_the_store(stage: Stage) -> None:
    """The result is there: to raise now would waste the load and fail the caller."""
    here, there = stage.caches(operation_timeout=0.3, max_retries=0)
    loader = Loader("value")

    def load() -> Any:
        stage.server.kill()
        return loader()

    assert stage.begin(here, load).result(SOON_S) == "value"
    stage.server.start()
    wait_until(lambda: there.lookup("k").outcome is Outcome.MISS)
    wait_until(lambda: here.health().breaker == "closed")
    assert stage.begin(here, loader).result(SOON_S) == "value"
    assert kept(there) == "value"
    assert loader.runs == 2


@pytest.mark.parametrize("how", ["kill", "pause"])
def test_who_waits_for_a_lease_in_a_redis_that_goes_away_loads_the_value(
    how: str, stage: Stage
) -> None:
    """lock_timeout is for a holder that is slow; with Redis gone nobody will ever say a word."""
    timeout_s, failures = 0.2, 3
    settings = {"operation_timeout": timeout_s, "failure_threshold": failures, "max_retries": 0}
    here, there = stage.caches(**settings)
    theirs, ours = Loader("theirs", waits=True), Loader("ours")
    holding = stage.begin(there, theirs)
    assert theirs.begun.wait(SOON_S)
    waiting = stage.begin(here, ours)
    stage.proxy.watch(on=b"lease").wait(4)  # it looks again and again
    with Stopwatch() as watch:
        with watch.call((failures + 1) * timeout_s, "wait"):
            getattr(stage.server, how)()
            assert waiting.result(LONG_S) == "ours"
        assert watch.late() == []
    theirs.may_end.set()
    assert holding.result(SOON_S) == "theirs"


def test_a_load_under_way_is_shared_while_redis_is_away(stage: Stage) -> None:
    """Sixteen threads of each process would turn to the database at once."""
    here, _ = stage.caches(operation_timeout=0.2, failure_threshold=1, max_retries=0)
    stage.server.kill()
    assert here.lookup("k").outcome is Outcome.UNAVAILABLE
    loader = Loader("value", waits=True)
    asking = [stage.begin(here, loader) for _ in range(8)]
    wait_until(lambda: events(here).get("coalesced", 0) >= 7)
    loader.may_end.set()
    assert [future.result(SOON_S) for future in asking] == ["value"] * 8
    assert loader.runs == 1


def test_a_lease_is_given_back_however_long_refreshes_take(stage: Stage) -> None:
    """In one queue with them, or left out of it, it would be waited for until it ends."""
    here, there = stage.caches()
    over = threading.Event()
    while here._shop.background.submit(lambda: over.wait(SOON_S)):
        pass
    try:
        with pytest.raises(ZeroDivisionError):
            stage.begin(here, Loader(ZeroDivisionError())).result(SOON_S)
        wait_until(lambda: not stage.leases())
        assert stage.begin(there, Loader("there's")).result(SOON_S) == "there's"
    finally:
        over.set()
