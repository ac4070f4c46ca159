"""An exception from a signal handler, at any point of any operation: only that call notices."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from interrupter import Interrupt, Interrupter
from live import held_locks_of, locks_of

from jmcache import CacheSettings, Outcome, RedisCache, RedisCacheFactory
from jmcache.deadline import Deadline
from jmcache.testing import PrivateServer

PERSON = {"name": "Ada", "skills": ["sql", "redis"], "note": "x" * 2000}


class Sink:
    """Takes every measurement."""

    def __init__(self) -> None:
        self.taken = 0

    def increment(self, *_: object) -> None:
        self.taken += 1

    timing = gauge = increment


class Bench:
    """A cache with one connection, and ways to bring it into a state before a call."""

    def __init__(self, server: PrivateServer, socket: Path) -> None:
        self.server = server
        self.socket = socket  # a name of its own for the server's socket, which can be taken away
        self.settings = CacheSettings(
            unix_socket_path=str(socket),
            namespace="interrupted",
            max_connections=1,
            operation_timeout=5.0,
            failure_threshold=1,
            reset_timeout=1e-6,  # an open breaker lets a caller through at once, as a probe
            max_retries=1,
            initial_backoff_ms=1,
            max_backoff_ms=1,
            compress_above_bytes=1000,
        )
        self.cache = self.make()
        # Health checks of a thread would come between; there is one for the thread, below.
        self.cache._health.stop()
        assert self.cache.set_many({"k": "value of k", "person": PERSON})
        self.pool = self.cache._connection._server.pool
        self.loan: list[Any] = []
        self.locks = [owned for owned in locks_of(self.cache) if owned.guards]
        self.files = open_files()

    def make(self) -> RedisCache:
        made = RedisCacheFactory.create_cache(self.settings, metrics=[Sink()])
        assert isinstance(made, RedisCache)
        return made

    # States

    def reconnect(self) -> None:
        self.pool.drop()

    def disconnect(self) -> None:
        """The server closes the connection; the cache does not know yet."""
        self.server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    def exhaust(self) -> None:
        self.pool.borrow(self.loan, Deadline(5.0))

    def spoil(self) -> None:
        """Somebody else writes under the name of an entry."""
        name, _ = self.cache._keys.name("foreign")
        self.server.command("SET", name, b"somebody else's")
        self.forget_lines()

    def forget_lines(self) -> None:
        """What was logged already is logged again."""
        self.cache._monitor._throttle = type(self.cache._monitor._throttle)()
        self.cache._monitor._known_digests.clear()
        self.cache._outage._announced_at.clear()

    def take_away(self) -> None:
        """The next connection is refused."""
        self.forget_lines()
        self.pool.drop()
        self.socket.rename(self.socket.with_name("away"))

    def bring_back(self) -> None:
        away = self.socket.with_name("away")
        if away.exists():
            away.rename(self.socket)

    def break_open(self) -> None:
        self.take_away()
        assert self.cache.lookup("k").outcome is Outcome.UNAVAILABLE
        assert self.cache.health().breaker != "closed"
        self.bring_back()

    def break_open_for_long(self) -> None:
        self.cache._breaker._reset_timeout = 60.0
        self.break_open()

    # Afterwards

    def heal(self) -> None:
        """All is well again outside, and a health check has come by."""
        if self.loan:
            self.pool.give_back(self.loan)
        self.bring_back()
        self.cache._breaker._reset_timeout = 1e-6
        self.cache._breaker.probe(self.cache._connection.ping, Deadline(5.0))

    def check(self, where: str) -> None:
        """Nothing is held, lost or mixed up."""
        for owned in self.locks:
            lock = getattr(owned.owner, owned.name)  # the same attribute may have a new one by now
            assert lock.acquire(timeout=1.0), f"{owned} held after {where}"  # threads may have it
            lock.release()
        assert self.pool.alive == self.pool.idle <= 1, where
        assert not self.pool._waiters, where
        for breaker in (self.cache._breaker, self.cache._write_breaker):
            moment = breaker._moment
            assert (moment.state, moment.permits, moment.failures) == ("closed", (), 0), where
            assert (breaker._listeners._teller, list(breaker._listeners._untold)) == (None, []), (
                where
            )
        # With one connection in all: one step out of step shows here.
        assert self.cache.get("k") == "value of k", where
        assert self.cache.get("person") == PERSON, where
        assert open_files() <= self.files + 1, where

    def counted(self) -> Counter[str]:
        """Operations counted so far, by name."""
        counts: Counter[str] = Counter()
        for (operation, _, _), count in self.cache.stats().operations.items():
            counts[operation] += count
        return counts


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


Step = Callable[[Bench], object]


def nothing(_: Bench) -> None:
    pass


# What comes before, what is interrupted, and how many operations it is.
STEPS: dict[str, tuple[Step, Step, int]] = {
    "get": (nothing, lambda b: b.cache.get("person"), 1),
    "lookup of nothing": (nothing, lambda b: b.cache.lookup("nothing"), 1),
    "lookup of foreign bytes": (Bench.spoil, lambda b: b.cache.lookup("foreign"), 1),
    "get_many": (
        Bench.spoil,
        lambda b: b.cache.get_many(["k", "person", "nothing", "foreign"]),
        4,
    ),
    "exists": (nothing, lambda b: b.cache.exists("k"), 1),
    "set": (nothing, lambda b: b.cache.set("person", PERSON), 1),
    "set of what is refused": (Bench.forget_lines, lambda b: b.cache.set("k", object()), 1),
    "set_many": (
        nothing,
        lambda b: b.cache.set_many({"k": "value of k", "person": PERSON}),
        2,
    ),
    "delete": (nothing, lambda b: b.cache.delete("other"), 1),
    "delete_many": (nothing, lambda b: b.cache.delete_many(["other", "another"]), 2),
    "get on a new connection": (Bench.reconnect, lambda b: b.cache.get("person"), 1),
    "set on a new connection": (Bench.reconnect, lambda b: b.cache.set("k", "value of k"), 1),
    "get on a connection that was closed": (Bench.disconnect, lambda b: b.cache.get("person"), 1),
    "get while all connections are in use": (
        Bench.exhaust,
        lambda b: b.cache.get("k", timeout=0.002),
        1,
    ),
    "get that opens the breaker": (Bench.take_away, lambda b: b.cache.get("k"), 1),
    "set that opens the breaker": (Bench.take_away, lambda b: b.cache.set("k", 1), 1),
    "get that closes the breaker": (Bench.break_open, lambda b: b.cache.get("k"), 1),
    "get while the breaker is open": (Bench.break_open_for_long, lambda b: b.cache.get("k"), 1),
    "health": (nothing, lambda b: b.cache.health(), 0),
    "stats": (nothing, lambda b: b.cache.stats(), 0),
}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with PrivateServer() as server:
        socket = tmp_path / "redis.sock"
        socket.hardlink_to(server.socket_path)
        yield Bench(server, socket)
        RedisCacheFactory.shutdown()


# One that was just being passed on is closed by its end: no loss, but Python says so.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize(("before", "step", "operations"), STEPS.values(), ids=STEPS)
def test_an_interrupt_at_any_point_of_an_operation_costs_nothing_but_that_call(
    before: Step, step: Step, operations: int, bench: Bench
) -> None:
    """A worker's time limit would cost it a connection, a lock, or hand it another key's value."""
    kept = []  # as an error tracker keeps exceptions, with their tracebacks and all frames
    point = 0
    while True:
        before(bench)
        counted = bench.counted().total()
        with Interrupter(point) as interrupter:
            try:
                step(bench)
                time.sleep(0)  # a last chance for the handler to run
            except Interrupt as error:
                kept.append(error)
        counted = bench.counted().total() - counted
        if not interrupter.done:
            break
        point += 1
        assert len(kept) == point, f"swallowed at {interrupter.where}"
        assert counted in (0, operations), interrupter.where
        bench.heal()
        bench.check(interrupter.where)
    assert point > 10
    assert counted == operations
    bench.heal()
    assert held_locks_of(bench.cache) == []
