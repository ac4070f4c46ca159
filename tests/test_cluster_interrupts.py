"""An exception from a signal handler, at any point of a call to a cluster: only it notices."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
from interrupter import Interrupt, Interrupter
from live import held_locks_of, locks_of
from scripted_cluster import ScriptedCluster
from scripted_server import RESET
from test_interrupts import open_files

from jmcache import RedisCache, RedisCacheFactory
from jmcache.deadline import Deadline
from jmcache.testing.cluster import slot_of

# What a call to one server does not go through; tests/test_interrupts.py does all the others. An
# interrupt below these arrives in them as one that strikes at their call of it.
OF_CLUSTERS = (
    "_cluster.py",
    "_guide.py",
    "_members.py",
    "_together.py",
    "_pool.py",
    "node_guard.py",
)


class Narrowed(Interrupter):
    """Counts points in these alone."""

    def _begin(self, frame: FrameType, event: str, argument: object) -> Any:
        if not frame.f_code.co_filename.endswith(OF_CLUSTERS):
            return None
        return super()._begin(frame, event, argument)


class Bench:
    """A cache on three scripted masters, with one connection to each, and ways to upset them."""

    def __init__(self, cluster: ScriptedCluster) -> None:
        self.cluster = cluster
        settings = cluster.settings(
            max_connections=1,
            operation_timeout=5.0,
            failure_threshold=1,
            reset_timeout=1e-6,  # an open breaker lets a caller through at once, as a probe
            max_retries=0,
        )
        made = RedisCacheFactory.create_cache(settings)
        assert isinstance(made, RedisCache)
        self.cache = made
        self.cache._health.stop()
        keys = map(str, range(10_000))
        owner = {
            key: cluster.owners[slot_of(made._keys.name(key)[0])] for key in map(str, range(99))
        }
        self.keys = [next(key for key in keys if owner[key] == number) for number in range(3)]
        assert made.set_many({key: f"value of {key}" for key in self.keys})
        self.right = list(cluster.owners)
        self.stored = [dict(values) for values in cluster.stored]
        self.server = made._connection._server
        self.locks = [owned for owned in locks_of(made) if owned.guards]
        self.files = open_files()

    # States

    def reconnect(self) -> None:
        self.server.drop_connections()

    def doubt(self) -> None:
        self.server._guide.doubt()
        self.server._guide._look_at = 0.0

    def move(self) -> None:
        """The first key's slot goes to the last node, and nobody here knows."""
        self.cluster.owners = [2 if owner == 0 else owner for owner in self.right]
        self.cluster.stored[2].update(self.stored[0])

    def break_one(self) -> None:
        # Not the one that has the counter of the namespace, without which there is no hit.
        self.cluster.instead[0] = lambda _client, _words: RESET

    # Afterwards

    def heal(self) -> None:
        """All is well again outside, and a health check has come by."""
        broken = bool(self.cluster.instead)
        self.cluster.instead.clear()
        self.cluster.owners = list(self.right)
        for values, right in zip(self.cluster.stored, self.stored, strict=True):
            values.clear()
            values.update(right)
        for _ in range(1 + broken):  # one may find a connection that the other side has reset
            self.cache._breaker.probe(self.cache._connection.ping, Deadline(5.0))

    def check(self, where: str) -> None:
        """Nothing is held, lost or mixed up."""
        for owned in self.locks:
            assert owned.lock.acquire(timeout=1.0), f"{owned} held after {where}"
            owned.lock.release()
        for member in self.server._members.all():
            pool = member.node.pool
            assert pool.alive == pool.idle <= 1, where
            assert not pool._waiters, where
            moment = member.guard._breaker._moment
            assert (moment.state, moment.permits, moment.failures) == ("closed", (), 0), where
        assert len(self.server._members.all()) == 3, where
        # With one connection to each: one step out of step shows here.
        assert self.cache.get_many(self.keys) == {key: f"value of {key}" for key in self.keys}
        assert open_files() <= self.files + 3, where


Step = Callable[[Bench], object]


def nothing(_: Bench) -> None:
    pass


STEPS: dict[str, tuple[Step, Step]] = {
    "get": (nothing, lambda b: b.cache.get(b.keys[0])),
    "get that looks up": (Bench.doubt, lambda b: b.cache.get(b.keys[0])),
    "get that is sent on": (Bench.move, lambda b: b.cache.get(b.keys[0])),
    "get_many on new connections": (Bench.reconnect, lambda b: b.cache.get_many(b.keys)),
    "get_many that is sent on": (Bench.move, lambda b: b.cache.get_many(b.keys)),
    "get_many without one node": (Bench.break_one, lambda b: b.cache.get_many(b.keys)),
}


@pytest.fixture
def bench() -> Iterator[Bench]:
    with ScriptedCluster() as cluster:
        yield Bench(cluster)
        RedisCacheFactory.shutdown()


@pytest.mark.fault_row(42)
# One that was just being passed on is closed by its end: no loss, but Python says so.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize(("before", "step"), STEPS.values(), ids=STEPS)
def test_an_interrupt_at_any_point_costs_nothing_but_that_call(
    before: Step, step: Step, bench: Bench
) -> None:
    """Several connections are on their way at a time: each a slot, or another key's value."""
    kept = []  # as an error tracker keeps exceptions, with their tracebacks and all frames
    point = 0
    while True:
        before(bench)
        with Narrowed(point) as interrupter:
            try:
                step(bench)
                time.sleep(0)  # a last chance for the handler to run
            except Interrupt as error:
                kept.append(error)
        if not interrupter.done:
            break
        point += 1
        assert len(kept) == point, f"swallowed at {interrupter.where}"
        bench.heal()
        bench.check(interrupter.where)
    assert point > 10
    bench.heal()
    assert held_locks_of(bench.cache) == []
