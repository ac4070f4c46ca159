"""An exception from a signal handler, at any point of any operation: only that call notices."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from interrupt_fuzz import NOTHING_LOST, server_over
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

    def __init__(self, server: PrivateServer, reached: CacheSettings) -> None:
        self.server = server
        self.settings = dataclasses.replace(
            reached,
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

    def _socket(self) -> Path:
        return Path(self.settings.unix_socket_path or "")

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
        self.cache._monitor._throttle._said.clear()
        self.cache._monitor._rare._said.clear()
        self.cache._monitor._known_digests.clear()
        self.cache._stops._outage._said_at.clear()

    def take_away(self) -> None:
        """The next connection is refused."""
        self.forget_lines()
        self.pool.drop()
        self._socket().rename(self._socket().with_name("away"))

    def bring_back(self) -> None:
        if self.settings.unix_socket_path and not self._socket().exists():
            self._socket().with_name("away").rename(self._socket())

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


@pytest.fixture(params=["unix"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    with server_over(request.param) as (server, reached):
        if request.param == "unix":  # a name of its own, which a test can take away
            socket = tmp_path / "redis.sock"
            socket.hardlink_to(server.socket_path)
            reached = dataclasses.replace(reached, unix_socket_path=str(socket))
        yield Bench(server, reached)
        RedisCacheFactory.shutdown()


# One at a time ------------------------------------------------------------------------------


@pytest.mark.fault_row(42)
# One that was just being passed on is closed by its end: no loss, but Python says so.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize(("before", "step", "operations"), STEPS.values(), ids=STEPS)
def test_an_interrupt_at_any_point_of_an_operation_costs_nothing_but_that_call(
    before: Step, step: Step, operations: int, bench: Bench
) -> None:
    """A worker's time limit would cost it a connection, a lock, or hand it another key's value."""
    interrupt_everywhere(bench, before, step, operations)


@pytest.mark.fault_row(42)
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("bench", ["tcp", "tls"], indirect=True)
@pytest.mark.parametrize("name", ["get on a new connection", "get on a connection that was closed"])
def test_an_interrupt_of_any_way_to_connect_leaves_no_descriptor(name: str, bench: Bench) -> None:
    """Python's own TLS sockets leave one open, in the traceback that an error tracker keeps."""
    interrupt_everywhere(bench, *STEPS[name])


class Lifetime(Bench):
    """Caches that come and go; each is the only one on its Redis."""

    def __init__(self, server: PrivateServer, reached: CacheSettings) -> None:
        super().__init__(server, reached)
        self.other = dataclasses.replace(self.settings, db=1)
        self.caches: list[RedisCache] = []

    def open(self) -> None:
        made = RedisCacheFactory.create_cache(self.other, metrics=[Sink()])
        assert isinstance(made, RedisCache)
        self.caches.append(made)

    def open_and_use(self) -> None:
        self.open()
        self.caches[-1].get("k")

    def heal(self) -> None:
        """Use what there is, close it, and see nothing of it left."""
        super().heal()
        if not self.caches:
            self.open()
        cache = self.caches.pop()
        if not cache._stops.closed:
            assert cache.set("k", 1)
            assert cache.get("k") == 1
        cache.close()
        backends = list(RedisCacheFactory._backends.values())
        assert backends == [RedisCacheFactory._backends[self.settings.connection_identity()]]
        assert not RedisCacheFactory._lock.locked()
        until = time.monotonic() + 5.0
        while any(t.name.startswith("jmcache-health") for t in threading.enumerate()):
            assert time.monotonic() < until, "a health thread is left"
            time.sleep(0.001)


LIFE: dict[str, tuple[Step, Step, int]] = {
    "making": (nothing, Lifetime.open, 0),
    "the first call": (Lifetime.open, lambda b: b.caches[-1].get("k"), 0),
    "closing": (Lifetime.open_and_use, lambda b: b.caches[-1].close(), 0),
}


@pytest.mark.fault_row(42)
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize(("before", "step", "operations"), LIFE.values(), ids=LIFE)
def test_an_interrupt_at_any_point_of_a_caches_life_leaves_nothing_behind(
    before: Step, step: Step, operations: int, redis_server: PrivateServer
) -> None:
    """Tasks make their cache when they first need it, within their time limit."""
    RedisCacheFactory.shutdown()
    bench = Lifetime(redis_server, CacheSettings.from_url(redis_server.url))
    try:
        interrupt_everywhere(bench, before, step, operations, only="jmcache")
    finally:
        RedisCacheFactory.shutdown()


def interrupt_everywhere(
    bench: Bench, before: Step, step: Step, operations: int, only: str = ""
) -> None:
    """Take *step* again and again, interrupted at its first point, its second one, and so on."""
    kept = []  # as an error tracker keeps exceptions, with their tracebacks and all frames
    point = 0
    while True:
        before(bench)
        counted = bench.counted().total()
        with Interrupter(point, only) as interrupter:
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


# Thousands, with a timer --------------------------------------------------------------------


def fuzz(*arguments: str) -> dict[str, Any]:
    """Run the fuzz in a process of its own; its report. A crash or a hang fails here."""
    program = Path(__file__).with_name("interrupt_fuzz.py")
    shared = os.environ.get("PYTHONPATH")
    path = os.pathsep.join(filter(None, [str(program.parent.parent), shared]))
    ran = subprocess.run(
        [sys.executable, str(program), *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    report: dict[str, Any] = json.loads(ran.stdout)
    print(report)  # with its seed; pytest shows it when the test fails
    return report


AT_ONCE: dict[str, Any] = {"errors": [], "in_use": 0, "waiting": 0, "back_s": 0.0}


def in_(report: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    return {name: report[name] for name in expected}


@pytest.mark.fault_row(42)
@pytest.mark.parametrize("hiredis", ["with hiredis", "without hiredis"])
def test_twenty_thousand_real_interrupts_cost_nothing_but_their_calls(hiredis: str) -> None:
    """The stock client: wrong values, lost slots, a deadlock, and with hiredis a crash."""
    without = hiredis == "without hiredis"
    if not without:
        pytest.importorskip("hiredis", reason="the test extra brings it")
    how = ["--over", "tcp", "--without-hiredis"] if without else ["--over", "unix"]
    report = fuzz("20000", *how)
    assert report["interrupts"] >= 20_000
    assert report["hiredis_installed"] is not without
    expected = NOTHING_LOST | AT_ONCE
    assert in_(report, expected) == expected
    assert report["threads_left_s"] < 2.0


@pytest.mark.fault_row(42)
@pytest.mark.parametrize(
    "how",
    [("--by", "sigint"), ("--over", "tls"), ("--by", "sigint", "--over", "tls")],
    ids=" ".join,
)
def test_ctrl_c_and_tls_are_no_exceptions(how: tuple[str, ...]) -> None:
    """OpenSSL has state of its own in the middle of a record, and Ctrl-C is no Exception."""
    report = fuzz("2000", *how)
    expected = NOTHING_LOST | AT_ONCE
    assert in_(report, expected) == expected


@pytest.mark.fault_row(42)
@pytest.mark.parametrize("by", ["timer", "storm"])
def test_interrupts_while_redis_is_in_trouble_are_survived_too(by: str) -> None:
    """Retries, a breaker that opens and closes, probes: the paths that are seldom taken."""
    report = fuzz("4000", "--trouble", "--by", by)
    assert in_(report, NOTHING_LOST) == NOTHING_LOST
    assert report["errors"] == []
    assert report["back_s"] <= 2.0
    if by == "timer":
        assert report["breaker_changes"] > 0
        assert report["retries"] > 0


@pytest.mark.fault_row(42)
@pytest.mark.parametrize("over", ["unix", "tcp", "tls"])
def test_a_storm_of_interrupts_loses_nothing_for_good(over: str) -> None:
    """Interrupted while cleaning up, a call can keep its connection; the pool gets over it."""
    report = fuzz("1500", "--by", "storm", "--over", over)
    expected = {name: value for name, value in NOTHING_LOST.items() if name != "full_after_s"}
    assert in_(report, expected) == expected
    assert report["full_after_s"] <= 4.0


def test_hiredis_is_asked_for_nothing_though_it_is_there(
    redis_server: PrivateServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its packer crashes the process when a time limit arrives while it converts a number."""
    hiredis = pytest.importorskip("hiredis", reason="the test extra brings it")
    used = []
    for name in ("Reader", "pack_command"):
        monkeypatch.setattr(hiredis, name, lambda *_, name=name, **__: used.append(name) or 1 / 0)
    with pytest.raises(ZeroDivisionError):  # redis-py takes it
        redis.Redis(unix_socket_path=str(redis_server.socket_path)).ping()
    assert used
    used.clear()
    with RedisCacheFactory.create_cache(redis_server.url) as cache:
        assert cache.set("k", PERSON, ttl=60)
        assert cache.get("k") == PERSON
        assert cache.set_many({"l": 1, "m": 2.5})
        assert cache.get_many(["k", "l", "m", "n"]) == {"k": PERSON, "l": 1, "m": 2.5}
        assert cache.exists("k")
        assert cache.delete("k")
        assert cache.delete_many(["l", "m"]) == 2
        cache._connection.ping(Deadline(5.0))
    assert used == []
