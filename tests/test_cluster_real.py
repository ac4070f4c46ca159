"""The connection manager on a real cluster: forks, other settings, narrow rights, deaf nodes."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator

import pytest
from stopwatch import Stopwatch
from test_connection_pool import in_child

from jmcache import CacheSettings, Outcome, RedisCacheFactory
from jmcache.connection import RedisConnectionManager
from jmcache.deadline import Deadline
from jmcache.errors import RedisError, RedisTimeoutError
from jmcache.testing import PrivateCluster, PrivateServer

MINUTE_MS = 60_000
NAMES = [b"k%d" % number for number in range(60)]


def value(name: bytes) -> bytes:
    return b"value of " + name


def soon() -> Deadline:
    return Deadline(5.0)


@pytest.fixture
def manager(redis_cluster: PrivateCluster) -> Iterator[RedisConnectionManager]:
    made = RedisConnectionManager(
        CacheSettings.from_url(redis_cluster.url, max_connections=2, max_value_bytes=16_000_000)
    )
    assert made.set_many([(name, value(name), MINUTE_MS) for name in NAMES], soon()) == [None] * 60
    yield made
    assert made.usage().in_use == 0
    made.close()


def reads_right(manager: RedisConnectionManager) -> bool:
    found = [manager.get(name, soon()) for name in NAMES[:10]]
    wanted = list(map(value, NAMES))
    return found == wanted[:10] and manager.get_many(NAMES, soon()) == wanted


def test_parent_and_child_have_connections_of_their_own(manager: RedisConnectionManager) -> None:
    """Two processes on one socket read each other's answers, from each of the nodes."""
    assert reads_right(manager)
    assert in_child(lambda: manager.usage().idle == 0 and reads_right(manager))
    assert reads_right(manager)


def test_a_child_reads_whatever_lock_was_held(manager: RedisConnectionManager) -> None:
    """A thread that looks up, or meets a new node, at that moment is not there to let go."""
    cluster = manager._server
    with cluster._guide._lock, cluster._members._lock:
        assert in_child(lambda: reads_right(manager))


def test_a_cluster_takes_the_place_of_one_server_under_traffic(
    redis_cluster: PrivateCluster, tcp_server: PrivateServer
) -> None:
    """Growing out of one server would be a restart of every process."""
    one = CacheSettings(port=tcp_server.port)
    many = CacheSettings.from_url(redis_cluster.url)
    manager = RedisConnectionManager(one)
    over = threading.Event()
    wrong: list[object] = []

    def use(number: int) -> None:
        names = [b"%d-%d" % (number, each) for each in range(6)]
        while not over.is_set():
            try:
                manager.set_many([(name, value(name), MINUTE_MS) for name in names], soon())
                found = manager.get_many(names, soon())
                wrong.extend(set(found) - {None, *map(value, names)})
            except RedisError as error:
                wrong.append(error)

    users = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for user in users:
        user.start()
    for _ in range(10):
        manager.reconfigure(many)
        assert reads_right_of(manager, b"in the cluster")
        manager.reconfigure(one)
        assert reads_right_of(manager, b"in the server")
    over.set()
    for user in users:
        user.join(timeout=10)
    assert wrong == []
    assert manager.usage().in_use == 0
    manager.close()


def reads_right_of(manager: RedisConnectionManager, name: bytes) -> bool:
    manager.set(name, value(name), MINUTE_MS, soon())
    return manager.get(name, soon()) == value(name)


def test_a_user_with_the_documented_rights_can_do_everything(
    redis_cluster: PrivateCluster,
) -> None:
    """An operator who reads the page would find out by misses what it forgot."""
    for node in redis_cluster.nodes:
        node.command(
            "ACL", "SETUSER", "app", "reset", "on", ">s3cret", "~jobs:*",
            "+get", "+set", "+unlink", "+cluster|slots", "+asking",
        )  # fmt: skip
    settings = dataclasses.replace(
        CacheSettings.from_url(redis_cluster.url, operation_timeout=5.0),
        username="app",
        password="s3cret",
        namespace="jobs",
    )
    try:
        with RedisCacheFactory.create_cache(settings) as cache:
            values = {f"key {number}": number for number in range(30)}
            assert cache.set_many(values)
            assert cache.get_many(values) == values
            RedisCacheFactory.warm_up()
            assert cache.health().status == "ok"
            key = "key 1"
            slot = redis_cluster.slot_of(cache._keys.name(key)[0])
            source = redis_cluster.master_of(slot)
            target = next(node for node in redis_cluster.masters() if node is not source)
            redis_cluster.begin_migration(slot, target)
            assert cache.delete(key)
            assert cache.set(key, 2), "it goes where the slot is going"
            redis_cluster.end_migration(slot, target)
            assert cache.lookup(key).value == 2
            assert cache.exists(key)
            assert {outcome for _, outcome, _ in cache.stats().operations} <= {
                Outcome.HIT,
                Outcome.DONE,
            }
    finally:
        for node in redis_cluster.nodes:
            node.command("ACL", "DELUSER", "app")


def test_a_node_that_takes_nothing_holds_up_no_bundle(
    redis_cluster: PrivateCluster, manager: RedisConnectionManager, stopwatch: Stopwatch
) -> None:
    """More than the system buffers, for a node that does not read, would stop what goes behind."""
    owners = redis_cluster.owners()
    names = {owners[redis_cluster.slot_of(name)]: name for name in NAMES}
    deaf, *_ = names
    blob = bytes(10_000_000)
    deaf.pause()
    with stopwatch.call(3.0, "set_many"):
        stored = manager.set_many(
            [(name, blob, MINUTE_MS) for name in names.values()], Deadline(3.0)
        )
    deaf.resume()
    assert isinstance(stored[0], RedisTimeoutError)
    assert stored[1:] == [None, None]
    assert stopwatch.late() == []
