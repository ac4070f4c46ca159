"""Loads, deletes and reads of one key in every order: no order serves what was deleted.

This is the cache itself, not a copy of its rules: two caches, as two processes have them, on one
store that takes one command at a time as Redis does. Between any two commands, and before a flight
is boarded or left, everybody else may do something.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from interleave import Run, explore

from jmcache import CacheSettings, LocalCache
from jmcache.cache import _compute, _steps
from jmcache.cache._keeper import Hold
from jmcache.cache._look import Kept
from jmcache.deadline import Deadline
from jmcache.flight import Flight, Flights
from jmcache.local import LocalStore
from jmcache.store import Found, Item

TTL_S = 300.0


class OneByOne:
    """A store in which the commands of a pipeline are carried out one by one."""

    in_parts = False

    def __init__(self, run: Run) -> None:
        self._run = run
        self.at_once = LocalStore(clock=lambda: 1000.0)

    def read(
        self,
        names: Sequence[bytes],
        counters: Sequence[bytes],
        leases: Sequence[bytes],
        deadline: Deadline,
    ) -> Found:
        blobs, holders, known = [], [], []
        if names:
            self._run.point("GET the entry")
            blobs = list(self.at_once.read(names, (), (), deadline).blobs)
        if leases:
            self._run.point("GET the lease")
            holders = list(self.at_once.read((), (), leases, deadline).holders)
        if counters:
            self._run.point("GET the counters")
            known = list(self.at_once.read((), counters, (), deadline).counters)
        return Found(blobs, known, holders)

    def write(
        self, items: Sequence[Item], counters: Sequence[bytes], deadline: Deadline
    ) -> tuple[Sequence[None], Sequence[bytes | None]]:
        self._run.point("UNLINK the lease")
        self.at_once.delete((), deadline, [item.lease for item in items])
        self._run.point("SET the entry")
        self.at_once.set_many([item[:3] for item in items], deadline)
        self._run.point("GET the counters")
        return [None] * len(items), self.at_once.read((), counters, (), deadline).counters

    def delete(
        self, names: Sequence[bytes], deadline: Deadline, leases: Sequence[bytes] = ()
    ) -> int:
        if leases:
            self._run.point("UNLINK the lease")
            self.at_once.delete((), deadline, leases)
        self._run.point("UNLINK the entry")
        return self.at_once.delete(names, deadline)

    def take(
        self,
        names: Sequence[bytes],
        leases: Sequence[bytes],
        token: bytes,
        lease_ms: int,
        counters: Sequence[bytes],
        deadline: Deadline,
        *,
        steal: bool = False,
    ) -> tuple[Sequence[bool], Found]:
        self._run.point("SET the lease" if steal else "SET the lease NX")
        taken, _ = self.at_once.take((), leases, token, lease_ms, (), deadline, steal=steal)
        return taken, self.read(names, counters, leases, deadline)

    def write_held(self, items: Sequence[Item], token: bytes, deadline: Deadline) -> Sequence[bool]:
        self._run.point("store, if the lease is held")
        return self.at_once.write_held(items, token, deadline)

    def free(self, leases: Sequence[bytes], token: bytes, cool_ms: int, deadline: Deadline) -> None:
        self._run.point("free the lease")
        self.at_once.free(leases, token, cool_ms, deadline)

    def move(self, counters: Sequence[bytes], deadline: Deadline) -> None:
        self._run.point("INCR the counters")
        self.at_once.move(counters, deadline)

    def seed(self, counters: Sequence[bytes], deadline: Deadline) -> None:
        self._run.point("SET the counters NX")
        self.at_once.seed(counters, deadline)


class Watched(Flights):
    """Flights with a point before each step."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._flights = {}

    def board(self, name: bytes, mine: Flight) -> Flight:
        self._run.point("boards")
        return super().board(name, mine)

    def leave(self, name: bytes, mine: Flight) -> None:
        self._run.point("leaves")
        super().leave(name, mine)

    def void(self, name: bytes) -> None:
        self._run.point("voids the flight")
        super().void(name)

    def void_all(self, prefix: bytes) -> None:
        self._run.point("voids all flights")
        super().void_all(prefix)


class NoTimeGoesBy:
    """In place of the keeper, whose thread is there for 10 s: thousands were, one for each run."""

    @staticmethod
    def keep(hold: Hold) -> None:
        """No lease ends."""


class World:
    """A database, Redis, and two processes that use them."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.store = OneByOne(run)
        self.database = 1  # the value; each change makes it one more
        self.floor = 1  # what nobody is to fall short of who comes now
        self.changes = 0  # that are over
        self.loads = 0
        self.most_loads = 10
        settings = CacheSettings(
            memory=True, ttl_jitter=0.0, lock_timeout=3600.0, operation_timeout=3600.0
        )
        self.here, self.there = [self._process(settings) for _ in range(2)]
        self.store.at_once.seed([self.here._keys.space_counter], Deadline(1.0))

    def _process(self, settings: CacheSettings) -> LocalCache:
        store: Any = self.store
        cache = LocalCache(settings=settings, store=store, clock=lambda: 1000.0)
        object.__setattr__(cache._shop, "flights", Watched(self.run))
        object.__setattr__(cache._shop, "background", self)
        object.__setattr__(cache._shop, "returns", self)
        object.__setattr__(cache._shop, "keeper", NoTimeGoesBy)
        return cache

    def submit(self, work: Callable[[], object]) -> bool:
        """In place of background threads: one more actor."""
        self.run.start("in the background", work)
        return True

    def load(self) -> int:
        self.loads += 1
        self.run.point("begins to load")
        value = self.database
        self.run.point("ends loading")
        return value

    # What actors do

    def compute(self, cache: LocalCache, **options: Any) -> Callable[[], None]:
        def actor() -> None:
            floor = self.floor
            value = cache.get_or_set("k", self.load, ttl=TTL_S, **options)
            assert value >= floor, f"served {value}, from before a change: it is {floor} now"

        return actor

    def get(self, cache: LocalCache) -> Callable[[], None]:
        def actor() -> None:
            floor = self.floor
            value = cache.get("k") or floor
            assert value >= floor, f"read {value}, from before a change: it is {floor} now"

        return actor

    def change(self, tell: Callable[[], object]) -> Callable[[], None]:
        """Change the database, then *tell* the cache."""

        def actor() -> None:
            self.database += 1
            changed = self.database
            assert tell()
            self.floor = changed
            self.changes += 1

        return actor

    # Afterwards

    def check(self) -> None:
        """Nothing is left behind, what is kept is right, and nobody loaded in vain."""
        assert self.store.at_once._leases == {}, "a lease is left"
        for cache in (self.here, self.there):
            assert len(cache._shop.flights) == 0, "a flight is left"
            assert len(cache._shop.guard) == 0, "a permit is left"
        self.run.is_over = True
        self.get(self.there)()
        assert self.loads <= self.most_loads, f"{self.loads} loads"


@pytest.fixture(autouse=True)
def _time_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits end when what is waited for has come: no time goes by."""
    wait = Flight.wait

    def join(flight: Flight, deadline: Deadline) -> bool:
        if not Current.run.is_played_here():
            return wait(flight, deadline)
        Current.run.point("is told", lambda: flight.ended)
        return True

    monkeypatch.setattr(Flight, "wait", join)
    monkeypatch.setattr(_steps, "time", Pauses)


class Pauses:
    """In place of the module."""

    @staticmethod
    def sleep(seconds: float) -> None:
        if Current.run.is_played_here():
            Current.run.pause()
        else:
            time.sleep(seconds)


class Current:
    run: Run = Run([], [], 0)  # until the first one


Scene = Callable[[World], None]


def play(*scenes: Scene, preemptions: int) -> World:
    """Play the scenes together in every order; return the world of the last one."""
    worlds: list[World] = []

    def stage(run: Run) -> Callable[[], None]:
        Current.run = run
        world = World(run)
        for scene in scenes:
            scene(world)
        worlds[:] = [world]
        return world.check

    orders = explore(stage, preemptions)
    assert orders > 10
    return worlds[0]


# Who does what ------------------------------------------------------------------------------


def is_cached(world: World) -> None:
    """The value of the database is in Redis."""
    stops = world.here._stops
    key = world.here._key("k")
    store = world.store.at_once
    counters = store.read((), [stops.keys.space_counter], (), Deadline(1.0)).counters
    kept = Kept(TTL_S, generation=int(counters[0] or 0))
    item = stops.seal(key, stops.pack(world.database), kept)
    store.set(item.name, item.blob, item.ttl_ms, Deadline(1.0))


def loads_here(world: World) -> None:
    world.run.start("loader here", world.compute(world.here))


def loads_there(world: World) -> None:
    world.run.start("loader there", world.compute(world.there))


def loads_without_a_look(world: World) -> None:
    world.run.start("loader here", world.compute(world.here, write_only=True))


def loads_by_force(world: World) -> None:
    world.run.start("loader here", world.compute(world.here, force=True))


def refreshes_here(world: World) -> None:
    world.run.start("early", world.compute(world.here, early_refresh=1e-9, refresh="inline"))


def deletes_there(world: World) -> None:
    world.run.start("deleter", world.change(lambda: world.there.delete("k")))


def deletes_here(world: World) -> None:
    world.run.start("deleter", world.change(lambda: world.here.delete("k")))


def clears_there(world: World) -> None:
    world.run.start("clearer", world.change(world.there.clear))


def invalidates_there(world: World) -> None:
    world.run.start("invalidator", world.change(lambda: world.there.invalidate_tags("t")))


def comes_and_goes(world: World) -> None:
    """Somebody else stores the value; then it is deleted."""
    there: list[bool] = []

    def store() -> None:
        world.run.point("stores the value")
        is_cached(world)
        there.append(True)

    world.run.start("other", store)
    delete = world.change(lambda: world.there.delete("k"))
    world.run.start("deleter", delete, lambda: there)


def sets_there(world: World) -> None:
    """The database changes, and what is new is put into the cache."""

    def put() -> bool:
        return world.there.set("k", world.database, ttl=TTL_S)

    world.run.start("setter", world.change(put))


def asks_after_it(world: World) -> None:
    world.run.start("reader here", world.compute(world.here), lambda: world.changes)


def reads_after_it(world: World) -> None:
    world.run.start("reader there", world.get(world.there), lambda: world.changes)


# All orders ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [deletes_there, deletes_here, clears_there, sets_there],
    ids=lambda scene: scene.__name__,
)
def test_no_order_serves_what_was_loaded_before_a_change(changes: Scene) -> None:
    """A candidate who withdrew goes on being proposed until the TTL is over."""
    play(loads_here, changes, asks_after_it, preemptions=2)


@pytest.mark.parametrize(
    "loads",
    [loads_without_a_look, loads_by_force, refreshes_here],
    ids=lambda scene: scene.__name__,
)
def test_no_way_to_load_is_an_exception(loads: Scene) -> None:
    """A nightly job that writes without looking puts back what was deleted meanwhile."""
    play(is_cached, loads, deletes_there, asks_after_it, preemptions=1)
    play(is_cached, loads, clears_there, reads_after_it, preemptions=1)


def test_two_loaders_a_delete_and_two_readers_are_no_exception_either() -> None:
    """The second loader may take over from the first one whose lease was voided."""
    play(loads_here, loads_there, deletes_there, asks_after_it, preemptions=1)
    play(loads_here, deletes_there, asks_after_it, reads_after_it, preemptions=1)


def test_a_reader_is_not_handed_what_its_process_found_before_the_delete() -> None:
    """Whoever leads a flight may find the value, and be slow to say so until it is deleted."""
    play(loads_here, comes_and_goes, asks_after_it, preemptions=2)


def test_in_no_order_is_a_key_loaded_twice_that_nobody_deletes() -> None:
    """One load for each process is what a cache without leases does."""

    def once(world: World) -> None:
        world.most_loads = 1
        loads_here(world)
        loads_there(world)

    play(once, preemptions=2)
    play(once, loads_here, preemptions=1)


# Without a guard it is found ----------------------------------------------------------------


def stores_whatever_the_lease(
    store: LocalStore, items: Sequence[Item], _token: bytes, now: float
) -> list[bool]:
    store._write(items, now)
    return [True] * len(items)


def is_of_use_to_anybody(*_: object) -> bool:
    return True


def has_landed_for_anybody(flight: Flight, _began: float) -> Any:
    return flight.result and flight.result[0]


@pytest.mark.parametrize(
    ("owner", "guard", "without", "scenes"),
    [
        (LocalStore, "_write_held", stores_whatever_the_lease, (loads_here, deletes_there)),
        (LocalStore, "_void", lambda *_: None, (loads_here, deletes_there)),
        (_compute, "_serves", is_of_use_to_anybody, (loads_here, deletes_there)),
        (_compute, "_serves", is_of_use_to_anybody, (loads_here, clears_there)),
        (_compute, "_landed", has_landed_for_anybody, (loads_here, comes_and_goes)),
    ],
    ids=["token", "void", "mark", "generation", "moment"],
)
def test_without_a_guard_an_order_is_found_that_serves_the_past(
    owner: Any,
    guard: str,
    without: Callable[..., Any],
    scenes: tuple[Scene, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else nobody knows whether this search would see a fault."""
    monkeypatch.setattr(owner, guard, without)
    with pytest.raises(AssertionError, match="before a change"):
        play(*scenes, asks_after_it, preemptions=2)


def test_a_lease_that_nobody_respects_is_found_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for the promise to load once."""
    take = LocalStore._take
    monkeypatch.setattr(LocalStore, "_take", lambda *args: take(*args[:-1], True))
    with pytest.raises(AssertionError, match="loads"):
        test_in_no_order_is_a_key_loaded_twice_that_nobody_deletes()


def test_a_lease_that_is_left_is_found_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others would wait for nobody."""
    monkeypatch.setattr(LocalStore, "_write_held", lambda _, items, *__: [False] * len(items))
    with pytest.raises(AssertionError, match=r"lease is left|nobody can go on"):
        play(loads_here, loads_there, preemptions=1)
