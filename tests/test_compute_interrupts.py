"""An exception from a signal handler at any point of a computation: only that call notices.

What a handler raises in a loader, or on the last steps to it, cannot be told from what the loader
raises: there it may be covered by an old value.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from interrupter import Interrupt, Interrupter
from live import held_locks_of

from jmcache import CacheSettings, RedisCache, RedisCacheFactory
from jmcache.testing import PrivateServer

TTL_S = 60.0
# The last steps to a loader, and the first ones from it.
THE_LOADERS = (
    *("_take", "_load", "_wants_argument", "for_one", "for_many", "LoadContext", "Look.is_there"),
    *("Load.call", "Lead.hand_over.<locals>", "Loading", "check_ttl", "Seconds"),
)


class Bench:
    """A cache of one connection, and what its loader does."""

    def __init__(self, server: PrivateServer) -> None:
        self.settings = CacheSettings.from_url(
            server.url,
            namespace="interrupted",
            max_connections=2,  # one for giving leases back in the background
            operation_timeout=5.0,
            lock_timeout=0.2,  # what an interrupted holder costs the next one
            max_retries=0,
        )
        made = RedisCacheFactory.create_cache(self.settings)
        assert isinstance(made, RedisCache)
        self.cache = made
        self.cache._health.stop()
        self.loads = 0
        self.broken = False

    def load(self) -> dict[str, Any]:
        self.loads += 1
        if self.broken:
            raise ZeroDivisionError
        return {"load": self.loads}

    def load_many(self, keys: list[str]) -> dict[str, Any]:
        return {key: self.load() for key in keys}

    def forget(self) -> None:
        assert self.cache.delete_many(["k", "l"], timeout=5.0) >= 0

    @property
    def stored(self) -> int:
        return self.cache.stats().events.get("stored", 0)

    def age(self) -> None:
        """Have a value whose time is over, and which nobody refreshes yet."""
        stored = self.stored
        while self.stored == stored:  # a machine that stands still for a lease keeps nothing
            self.forget()
            got = self.cache.get_or_set("k", self.load, ttl=0.001, stale_ttl=TTL_S)
            assert got == {"load": self.loads}

    def idle(self) -> None:
        """Whatever was done in the background is over."""
        done = threading.Event()
        while not self.cache._shop.returns.submit(done.set):
            pass
        assert done.wait(10)


@pytest.fixture
def bench(redis_server: PrivateServer) -> Iterator[Bench]:
    bench = Bench(redis_server)
    yield bench
    bench.cache.close()


def cold(bench: Bench) -> object:
    return bench.cache.get_or_set("k", bench.load, ttl=TTL_S)


def tagged(bench: Bench) -> object:
    return bench.cache.get_or_set("k", bench.load, ttl=TTL_S, tags=["t"])


def by_force(bench: Bench) -> object:
    return bench.cache.get_or_set("k", bench.load, ttl=TTL_S, force=True)


def several(bench: Bench) -> object:
    return bench.cache.get_or_set_many(["k", "l"], bench.load_many, ttl=TTL_S)["k"]


def inline(bench: Bench) -> object:
    return bench.cache.get_or_set("k", bench.load, ttl=TTL_S, stale_ttl=TTL_S, refresh="inline")


def covered(bench: Bench) -> object:
    bench.broken = True
    return bench.cache.get_or_set("k", bench.load, ttl=TTL_S, stale_if_error=TTL_S)


def handed_over(bench: Bench) -> object:
    return bench.cache.get_or_set(
        "k", bench.load, ttl=TTL_S, stale_ttl=TTL_S, refresh="inline", refresher=lambda _: None
    )


Call = Callable[[Bench], object]


@pytest.mark.parametrize(
    ("prepare", "call"),
    [
        (Bench.forget, cold),
        (Bench.forget, tagged),
        (Bench.forget, several),
        (Bench.age, by_force),
        (Bench.age, inline),
        (Bench.age, covered),
        (Bench.age, handed_over),
    ],
    ids=lambda value: value.__name__,
)
def test_an_interrupt_at_any_point_comes_out_and_leaves_nothing(
    bench: Bench, prepare: Callable[[Bench], None], call: Call
) -> None:
    """Promise 6: swallowed, Celery's task runs into its hard limit; or the key waits for ever."""
    point = 0
    while True:
        bench.broken = False
        prepare(bench)
        got: Any = None
        interrupter = Interrupter(point, only="/jmcache/cache/")
        try:
            with interrupter:
                got = call(bench)
        except Interrupt:
            came_out = True
        else:
            came_out = False
        where = f"{call.__name__}, point {point}: {interrupter.where}"
        if not interrupter.done:
            assert got["load"] <= bench.loads
            break
        assert came_out or interrupter.where.startswith(THE_LOADERS), f"swallowed at {where}"
        assert held_locks_of(bench.cache) == [], where
        assert len(bench.cache._shop.flights) == 0, where
        assert len(bench.cache._shop.guard) == 0, where
        bench.broken = False
        bench.idle()
        assert bench.cache.get_or_set("k", bench.load, ttl=TTL_S, force=True) is not None, where
        point += 1
    assert point > 50, "hardly a point was tried"
