"""get_or_set against a real Redis, with something else just at the wrong moment.

Two caches stand for two processes: *here* asks through a proxy that holds single commands back,
*there* asks Redis straight.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import pytest
from computing_kit import SOON_S, Loader, events, occupy, wait_until
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

    def names(self) -> set[bytes]:
        return set(self.server.command("KEYS", "*"))

    def leases(self) -> list[bytes]:
        return [name for name in self.names() if b"lease" in name]


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


def delete_many(cache: Cache) -> int:
    return cache.delete_many(["k"])


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


def test_a_load_without_a_lease_is_of_no_use_to_who_comes_after_a_delete(stage: Stage) -> None:
    """No lease is voided by the delete, so nothing but its age tells that the load is of before."""
    here, there = stage.caches()
    old = Loader("old", waits=True)
    loading = stage.begin(here, old, read_only=True)
    assert old.begun.wait(SOON_S)
    assert there.delete("k")
    assert stage.begin(here, lambda: "new").result(SOON_S) == "new"
    old.may_end.set()
    assert loading.result(SOON_S) == "old"
    assert kept(there) == "new"


def test_a_delete_voids_the_lease_before_it_removes_the_entry(stage: Stage) -> None:
    """The other way round, the load from before it is stored between the two, and stays."""
    here, there = stage.caches()
    assert there.set("k", "older")
    load = Loader("old", waits=True)
    loading = stage.begin(there, load, force=True)
    assert load.begun.wait(SOON_S)
    before = stage.names()
    sent: list[bytes] = []

    def is_second_step(words: Sequence[bytes]) -> bool:
        sent.extend(words[:1] if words[0] == b"UNLINK" else [])
        return len(sent) == 2

    with stage.proxy.delay(LONG_S, on=is_second_step) as held_back:
        deleting = stage.threads.submit(here.delete, "k")
        held_back.wait()
        wait_until(lambda: stage.names() != before)
        load.may_end.set()
        assert loading.result(SOON_S) == "old"
        held_back.remove()
    assert deleting.result(SOON_S)
    assert [kept(here), kept(there)] == ["nothing"] * 2


def test_what_a_waiting_thread_saw_is_not_handed_to_who_came_after_its_delete(
    stage: Stage,
) -> None:
    """It asked before the delete, and heard of it after that: what counts is when it asked."""
    here, there = stage.caches()
    theirs = Loader("old", waits=True)
    holding = stage.begin(there, theirs)
    assert theirs.begun.wait(SOON_S)
    waiting = stage.begin(here, pytest.fail)
    stage.proxy.watch(on=b"lease").wait(4)  # it looks again and again
    is_stored = threading.Event()
    with stage.proxy.stall(on=lambda _: is_stored.is_set(), times=1) as held_back:
        theirs.may_end.set()
        assert holding.result(SOON_S) == "old"
        is_stored.set()
        held_back.wait()
        assert there.delete("k")
        asking = stage.begin(here, lambda: "new")
        wait_until(lambda: events(here).get("coalesced"))
        held_back.remove()
    assert waiting.result(SOON_S) == "old"
    assert asking.result(SOON_S) == "new"


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


def test_who_wins_a_lease_looks_after_that(stage: Stage) -> None:
    """What came between its first look and the lease would be loaded once more, for nothing."""
    here, there = stage.caches()
    with stage.proxy.delay(LONG_S, on=TAKE) as held_back:
        asking = stage.begin(here, pytest.fail)
        held_back.wait()
        assert stage.begin(there, lambda: "theirs").result(SOON_S) == "theirs"
        held_back.remove()
    assert asking.result(SOON_S) == "theirs"
    wait_until(lambda: not stage.leases())


def test_who_fails_after_its_lease_has_ended_gives_back_nobody_elses(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its lease the load that followed is not stored, and a third one begins."""
    here, there = stage.caches()
    monkeypatch.setattr(here._shop.keeper, "keep", lambda hold: None)  # its renewals are lost
    failing, theirs = Loader(ZeroDivisionError(), waits=True), Loader("theirs", waits=True)
    loading = stage.begin(here, failing, lock_timeout=LEASE_S)
    assert failing.begun.wait(SOON_S)
    holding = stage.begin(there, theirs)
    assert theirs.begun.wait(SOON_S)  # after the lease has ended
    stage.server.command("CONFIG", "RESETSTAT")
    failing.may_end.set()
    with pytest.raises(ZeroDivisionError):
        loading.result(SOON_S)
    wait_until(lambda: b"cmdstat_eval:calls=1," in stage.server.command("INFO", "commandstats"))
    theirs.may_end.set()
    assert holding.result(SOON_S) == "theirs"
    assert kept(here) == "theirs"


def test_a_lease_that_gets_no_answer_is_tried_twice(stage: Stage) -> None:
    """Tried until lock_timeout is over, it would cost the caller 10 s, with a value to be had."""
    here, _ = stage.caches(operation_timeout=0.1, failure_threshold=1000, max_retries=0)
    here.get("warm")
    with stage.proxy.swallow_request(on=TAKE) as lost:
        assert stage.begin(here, lambda: "value").result(SOON_S) == "value"
        assert lost.triggered == 2


def test_no_more_than_two_holders_that_follow_each_other_are_waited_for(stage: Stage) -> None:
    """A value that kills whoever computes it would hang all who ask for it."""
    here, _ = stage.caches(lock_timeout=LEASE_S)
    name, _ = here._keys.name("k")
    holders = itertools.count()

    def follow() -> bool:
        stage.server.command("SET", here._keys.lease(name), f"holder {next(holders)}")
        return asking.done()

    stage.server.command("SET", here._keys.lease(name), "the first")
    asking = stage.begin(here, lambda: "mine")
    wait_until(follow)
    assert asking.result() == "mine"


def test_a_refresh_waits_for_none_of_another_process(stage: Stage) -> None:
    """Four slow loads there, and nothing is refreshed here: each thread waits for one of them."""
    here, there = stage.caches()
    swr = {"ttl": 0.05, "stale_ttl": 600.0}
    assert stage.begin(here, lambda: "old", **swr).result(SOON_S) == "old"
    wait_until(lambda: there.lookup("k").outcome is Outcome.STALE)
    theirs = Loader("new", waits=True)
    with stage.proxy.delay(LONG_S, on=TAKE) as held_back:
        refreshing = stage.begin(here, pytest.fail, refresh="inline", **swr)
        held_back.wait()
        assert stage.begin(there, theirs, **swr).result(SOON_S) == "old"
        assert theirs.begun.wait(SOON_S)
        held_back.remove()
    assert refreshing.result(SOON_S) == "old"
    theirs.may_end.set()
    wait_until(lambda: there.lookup("k").value == "new")


def test_a_process_asks_for_one_lease_to_refresh_a_stale_value(stage: Stage) -> None:
    """Sixteen threads that find it stale at once would all turn to Redis, and wait for it."""
    here, _ = stage.caches()
    swr = {"ttl": 0.05, "stale_ttl": 600.0}
    assert stage.begin(here, lambda: "old", **swr).result(SOON_S) == "old"
    wait_until(lambda: here.lookup("k").outcome is Outcome.STALE)
    with stage.proxy.delay(LONG_S, on=TAKE) as held_back:
        assert stage.begin(here, lambda: "new", **swr).result(SOON_S) == "old"
        held_back.wait()
        again = stage.begin(here, pytest.fail, refresh="inline", **swr)
        assert again.result(SOON_S) == "old"
        assert held_back.triggered == 1
        held_back.remove()
    wait_until(lambda: here.lookup("k").value == "new")


def test_who_computed_a_value_finds_it_also_when_it_was_loaded_in_the_background(
    stage: Stage,
) -> None:
    """A caller with a limit got its value before that was stored, and computed it again."""
    here, _ = stage.caches()
    with stage.proxy.delay(LONG_S, on=STORE) as held_back:
        asking = stage.begin(here, lambda: "value", loader_timeout=SOON_S)
        held_back.wait()
        assert not wait([asking], 0.2).done
        held_back.remove()
    assert asking.result(SOON_S) == "value"
    assert kept(here) == "value"


def test_who_waits_for_another_process_waits_no_longer_than_its_own_lock_timeout(
    stage: Stage,
) -> None:
    """A nightly job may hold a lease for an hour; a request has half a second."""
    here, there = stage.caches()
    theirs = Loader("theirs", waits=True)
    holding = stage.begin(there, theirs)
    assert theirs.begun.wait(SOON_S)
    assert stage.begin(here, lambda: "mine", lock_timeout=0.05).result(SOON_S) == "mine"
    theirs.may_end.set()
    assert holding.result(SOON_S) == kept(here) == "theirs"


def test_the_holder_that_a_thread_has_waited_for_is_not_waited_for_again(stage: Stage) -> None:
    """First as the thread that loads, then as the holder of the lease: twice lock_timeout."""
    here, _ = stage.caches()
    hanging = Loader(waits=True)
    loading = stage.begin(here, hanging)
    assert hanging.begun.wait(SOON_S)
    with stage.proxy.watch(on=b"lease") as asked:
        assert stage.begin(here, lambda: "mine", lock_timeout=0.05).result(SOON_S) == "mine"
        assert asked.triggered == 4, "two looks, and one attempt with its look"
    hanging.may_end.set()
    assert loading.result(SOON_S) == "value"


def test_who_waits_for_a_thread_that_waits_for_another_process_goes_on_when_it_loads(
    stage: Stage,
) -> None:
    """The holder is dead, and its time is over for one thread after the other: each would load."""
    here, there = stage.caches()
    theirs, ours = Loader("theirs", waits=True), Loader("ours", waits=True)
    holding = stage.begin(there, theirs)
    assert theirs.begun.wait(SOON_S)
    asking = [stage.begin(here, ours, lock_timeout=0.1)]
    wait_until(lambda: len(here._shop.flights))
    asking += [stage.begin(here, ours, lock_timeout=0.6)]  # over a good while after that
    assert ours.begun.wait(SOON_S)
    wait_until(lambda: events(here).get("coalesced") == 2)  # joined again: now it is loaded
    assert not wait(asking, 0.1).done
    assert ours.runs == 1
    ours.may_end.set()
    assert [future.result(SOON_S) for future in asking] == ["ours"] * 2
    assert ours.runs == 1
    theirs.may_end.set()
    assert holding.result(SOON_S) == "theirs"


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


@pytest.mark.parametrize("change", [delete, delete_many, clear, invalidate])
def test_a_load_from_before_a_change_serves_nobody_after_it_without_redis_either(
    change: Callable[[Cache], object], stage: Stage
) -> None:
    """No lease can tell: this process itself has to know that the load began before that."""
    here, _ = stage.caches(operation_timeout=0.2, failure_threshold=1, max_retries=0)
    stage.server.kill()
    assert here.lookup("k").outcome is Outcome.UNAVAILABLE
    old = Loader("old", waits=True)
    loading = stage.begin(here, old, tags=("job:42",))
    assert old.begun.wait(SOON_S)
    assert not change(here)
    assert stage.begin(here, lambda: "new", tags=("job:42",)).result(SOON_S) == "new"
    old.may_end.set()
    assert loading.result(SOON_S) == "old"


def test_a_lease_is_given_back_however_long_refreshes_take(stage: Stage) -> None:
    """In one queue with them, or left out of it, it would be waited for until it ends."""
    here, there = stage.caches()
    over = threading.Event()
    try:
        occupy(here._shop.background, over)
        with pytest.raises(SystemExit):  # no failure of the loader: given back in the background
            stage.begin(here, Loader(SystemExit())).result(SOON_S)
        wait_until(lambda: not stage.leases())
        assert stage.begin(there, Loader("there's")).result(SOON_S) == "there's"
    finally:
        over.set()


@pytest.mark.parametrize("left", [[], [b"cooling"]], ids=["nothing old", "an old value"])
def test_a_lease_is_given_back_before_a_caller_hears_that_his_loader_failed(
    left: list[bytes], stage: Stage
) -> None:
    """His process ends with that: every other one would wait for a lease of nobody."""
    here, there = stage.caches()
    options: dict[str, Any] = {"ttl": 0.001, "stale_if_error": LONG_S}
    if left:
        assert there.get_or_set("k", lambda: "old", **options) == "old"
        wait_until(lambda: there.lookup("k").outcome is Outcome.STALE)
    over = threading.Event()
    try:
        occupy(here._shop.returns, over)  # nothing is done in the background any more
        failing = stage.begin(here, Loader(ZeroDivisionError()), **options)
        if left:
            assert failing.result(SOON_S) == "old"
        else:
            with pytest.raises(ZeroDivisionError):
                failing.result(SOON_S)
        assert [stage.server.command("GET", lease) for lease in stage.leases()] == left
    finally:
        over.set()


def test_a_load_that_hangs_holds_the_others_off_for_a_limited_time(stage: Stage) -> None:
    """Renewed for ever, its lease lets nobody keep anything until that process ends."""
    here, there = stage.caches(lock_timeout=0.02)
    hanging = Loader("late", waits=True)
    leading = stage.begin(here, hanging)
    assert hanging.begun.wait(SOON_S)
    wait_until(lambda: stage.begin(there, lambda: "new").result(SOON_S) and there.get("k"))
    hanging.may_end.set()
    assert leading.result(SOON_S) == "late"
    assert there.get("k") == "new", "who lost his lease stores nothing"
