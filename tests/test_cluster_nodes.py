"""One node of a cluster that is gone, silent, slow or full, and what it costs the others' keys."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from observation import wait_for
from scripted_cluster import ScriptedCluster, Words, bulk
from scripted_server import RESET, Client
from stopwatch import Stopwatch

from jmcache import Outcome, RedisCache, RedisCacheFactory
from jmcache.connection import RedisConnectionManager, _cluster
from jmcache.deadline import Deadline
from jmcache.errors import (
    RedisConnectionError,
    RedisCorruptEntryError,
    RedisNotReadyError,
    RedisPoolExhaustedError,
    RedisTimeoutError,
    RedisWriteRefusedError,
    RedisWrongTypeError,
)
from jmcache.testing.cluster import slot_of

MINUTE_MS = 60_000
D = 0.25
Manage = Callable[..., RedisConnectionManager]


def value(name: bytes) -> bytes:
    return b"value of " + name


def silent(client: Client, words: Words) -> bytes | None:
    """What a stopped node does; it answers what is asked for at a health check all the same."""
    return None if words[0] == b"CLUSTER" else b""


def dripping(client: Client, words: Words) -> Any:
    if words[0] == b"CLUSTER":
        return None
    return lambda client: client.drip(bulk(b"x" * 1000), every_s=0.01)


@pytest.fixture
def cluster() -> Iterator[ScriptedCluster]:
    with ScriptedCluster() as running:
        yield running


@pytest.fixture
def manage(cluster: ScriptedCluster) -> Iterator[Manage]:
    made: list[RedisConnectionManager] = []

    def make(*seeds: int, **overrides: Any) -> RedisConnectionManager:
        made.append(RedisConnectionManager(cluster.settings(*seeds, **overrides)))
        return made[-1]

    yield make
    for manager in made:
        assert manager.usage().in_use == 0
        manager.close()


@pytest.fixture
def names(cluster: ScriptedCluster) -> list[bytes]:
    """Nine names, three on each node, with their values stored."""
    names = [cluster.name_on(number, start) for start in (0, 50, 100) for number in range(3)]
    cluster.keep(*names)
    return names


# Many names -------------------------------------------------------------------------------------


def test_each_node_gets_its_names_in_one_go(
    cluster: ScriptedCluster, manage: Manage, names: list[bytes]
) -> None:
    """MGET over several slots is refused, and one GET after the other takes as many round trips."""
    manager = manage()
    assert manager.get_many([*names, b"absent"], Deadline(5.0)) == [*map(value, names), None]
    together = threading.Barrier(3)
    waited = threading.local()

    def wait_for_others(_client: Client, words: Words) -> None:
        if words[0] == b"GET" and not getattr(waited, "once", False):
            waited.once = True
            together.wait(5)

    cluster.instead.update(dict.fromkeys(range(3), wait_for_others))
    manager.drop_connections()  # each connection has a thread of its own
    # Only if all three are asked before any of them has answered, any answers.
    assert manager.get_many(names, Deadline(5.0)) == list(map(value, names))


@pytest.mark.parametrize("trouble", [silent, dripping], ids=["silent", "dripping"])
@pytest.mark.parametrize("connected", [True, False], ids=["connected", "not connected"])
def test_a_node_that_does_not_answer_costs_only_its_own_names(
    cluster: ScriptedCluster,
    manage: Manage,
    names: list[bytes],
    trouble: Any,
    connected: bool,
    stopwatch: Stopwatch,
) -> None:
    """A page of results would be empty because one server of three hangs."""
    manager = manage()
    manager.ping(Deadline(5.0))
    if not connected:
        manager.drop_connections()
    cluster.instead[1] = trouble
    deadline = Deadline(D)
    with stopwatch.call(D, "get_many"):
        found = manager.get_many(names, deadline)
    assert [isinstance(one, RedisTimeoutError) for one in found] == [False, True, False] * 3
    assert [one for one in found if isinstance(one, bytes)] == [
        value(name) for name in names if name not in names[1::3]
    ]
    assert stopwatch.late() == []


def test_a_node_that_begins_first_and_drips_does_not_use_up_the_time_of_all(
    cluster: ScriptedCluster, manage: Manage, names: list[bytes]
) -> None:
    """Who answers first is read first, and would be read until the deadline."""
    manager = manage()
    manager.ping(Deadline(5.0))
    begun = threading.Event()

    def begin_and_drip(_client: Client, words: Words) -> Any:
        def drip(client: Client) -> None:
            client.send(b"$1000\r\n")
            begun.set()
            client.drip(b"x" * 1000, every_s=0.01)

        return None if words[0] == b"CLUSTER" else drip

    def wait_a_little(client: Client, words: Words) -> None:
        begun.wait(5)
        client.ended.wait(0.05)

    cluster.instead = {0: wait_a_little, 1: begin_and_drip, 2: wait_a_little}
    found = manager.get_many(names[:3], Deadline(1.0))
    assert isinstance(found[1], RedisTimeoutError)
    assert [found[0], found[2]] == [value(names[0]), value(names[2])]


def test_time_is_left_to_make_something_of_the_answers(
    cluster: ScriptedCluster, names: list[bytes], stopwatch: Stopwatch
) -> None:
    """What arrives with the last of the deadline could not be decoded within it any more."""
    settings = cluster.settings(operation_timeout=1.0)
    with RedisCacheFactory.create_cache(settings) as cache:
        keys = [f"key {number}" for number in range(30)]
        assert cache.set_many(dict.fromkeys(keys, 1))
        cluster.instead[2] = silent
        with stopwatch.call(1.0, "get_many"):
            found = cache.get_many(keys)
        assert 10 < len(found) < 30
        reasons = {reason for _, _, reason in cache.stats().operations}
        assert "hurried" not in reasons
        assert "timeout" in reasons
    assert stopwatch.late() == []


def test_a_node_takes_no_counter_of_the_others_entries_with_it(
    cluster: ScriptedCluster, stopwatch: Stopwatch
) -> None:
    """An entry whose generation nobody can tell may have been invalidated long ago."""
    with RedisCacheFactory.create_cache(cluster.settings(operation_timeout=1.0)) as cache:
        keys = [f"key {number}" for number in range(30)]
        assert cache.set_many(dict.fromkeys(keys, 1))
        others = {key: 1 for key in keys if cluster.owners[slot_of(cache._keys.name(key)[0])] != 1}
        assert 0 < len(others) < 30
        cluster.instead[1] = silent
        with stopwatch.call(1.0, "get_many"):
            assert cache.get_many(keys) == others
        del cluster.instead[1]
        wait_for(lambda: len(cache.get_many(keys)) == 30)
    assert stopwatch.late() == []


def test_a_node_that_is_gone_costs_only_its_own_names(
    cluster: ScriptedCluster, manage: Manage, names: list[bytes]
) -> None:
    """As above, when its process was killed."""
    manager = manage()
    manager.get_many(names, Deadline(5.0))
    cluster.end(1)
    for _ in range(2):  # with a connection that was cut, and without one
        found = manager.get_many(names, Deadline(5.0))
        assert [type(one) is bytes for one in found] == [True, False, True] * 3
        assert all(isinstance(one, (bytes, RedisConnectionError)) for one in found)


def test_an_answer_that_comes_after_a_bundle_gave_up_is_nobodys(
    cluster: ScriptedCluster, manage: Manage, names: list[bytes]
) -> None:
    """The next caller on that connection would be handed another key's value."""
    manager = manage(max_connections=1)
    manager.ping(Deadline(5.0))
    late = threading.Event()
    held: list[Client] = []

    def hold_the_first(client: Client, words: Words) -> None:
        if words[0] == b"GET" and not held:
            held.append(client)
            late.wait(5)

    cluster.instead[1] = hold_the_first
    assert isinstance(manager.get_many(names[:3], Deadline(D))[1], RedisTimeoutError)
    timer = threading.Timer(0.1, late.set)  # once the next question is on its way
    timer.start()
    assert manager.get(names[4], Deadline(5.0)) == value(names[4])
    timer.join()


def test_a_pool_that_is_used_up_costs_only_its_own_nodes_names(
    cluster: ScriptedCluster, manage: Manage, names: list[bytes]
) -> None:
    """Threads that wait for a dead node would keep the others from all of them."""
    manager = manage(max_connections=1)
    manager.get_many(names, Deadline(5.0))
    over = threading.Event()
    asked = threading.Event()

    def hold(_client: Client, words: Words) -> None:
        if words[0] == b"GET":
            asked.set()
            over.wait(5)

    cluster.instead[1] = hold
    with ThreadPoolExecutor(2) as threads:
        holding = threads.submit(manager.get, names[1], Deadline(5.0))
        assert asked.wait(5)
        before = len(cluster.asked(2, b"GET"))
        many = threads.submit(manager.get_many, names, Deadline(2.0))
        # Long before it has waited for its turn at the one.
        wait_for(lambda: len(cluster.asked(2, b"GET")) > before, within_s=1.0)
        found = many.result(5)
        over.set()
        assert holding.result(5) == value(names[1])
    assert [isinstance(one, RedisPoolExhaustedError) for one in found] == [False, True, False] * 3
    assert [type(one) is bytes for one in found] == [True, False, True] * 3


def test_a_delete_that_one_node_did_not_confirm_is_not_confirmed(
    cluster: ScriptedCluster, manage: Manage, names: list[bytes]
) -> None:
    """The caller would take an entry for gone that is still served."""
    manager = manage()
    manager.ping(Deadline(5.0))
    cluster.instead[2] = silent
    with pytest.raises(RedisTimeoutError):
        manager.delete(names, Deadline(D))
    assert names[0] not in cluster.stored[0], "those of the others are gone all the same"


def test_nobody_answers_is_an_error_of_all(
    cluster: ScriptedCluster, manage: Manage, names: list[bytes], stopwatch: Stopwatch
) -> None:
    """Retry and circuit breaker would take it for an answer."""
    manager = manage()
    manager.ping(Deadline(5.0))
    cluster.instead.update(dict.fromkeys(range(3), silent))
    with stopwatch.call(D, "get_many"), pytest.raises(RedisTimeoutError):
        manager.get_many(names, Deadline(D))
    with stopwatch.call(D, "set_many"), pytest.raises(RedisTimeoutError):
        manager.set_many([(name, b"x", MINUTE_MS) for name in names], Deadline(D))
    assert stopwatch.late() == []


def test_a_refusal_of_one_node_is_that_of_its_names(
    cluster: ScriptedCluster, manage: Manage, names: list[bytes]
) -> None:
    """One full server of three would look like three full ones."""
    manager = manage()
    cluster.instead[1] = lambda _client, words: (
        b"-OOM command not allowed\r\n" if words[0] == b"SET" else None
    )
    refused = manager.set_many([(name, b"x", MINUTE_MS) for name in names], Deadline(5.0))
    assert [isinstance(one, RedisWriteRefusedError) for one in refused] == [False, True, False] * 3
    assert refused[0] is None


def test_a_giant_among_many_costs_only_itself(
    cluster: ScriptedCluster, manage: Manage, names: list[bytes]
) -> None:
    """Those that stand behind it in the reply would be taken for corrupt, and removed."""
    manager = manage(max_value_bytes=1000)
    giant = names[3]
    cluster.instead[0] = lambda client, words: (
        bulk(b"x" * 300_000) if words == [b"GET", giant] else None
    )
    found = manager.get_many(names, Deadline(5.0))
    assert isinstance(found[3], RedisCorruptEntryError)
    del names[3], found[3]
    assert found == list(map(value, names))


def test_another_type_among_many_is_told_and_removed(cluster: ScriptedCluster) -> None:
    """A list under the name would be read, and fail, for ever."""
    with RedisCacheFactory.create_cache(cluster.settings(operation_timeout=5.0)) as cache:
        keys = [f"key {number}" for number in range(9)]
        assert cache.set_many(dict.fromkeys(keys, 1))
        wrong = next(name for name in cluster.stored[1] if b"#" not in name)
        cluster.instead[1] = lambda client, words: (
            b"-WRONGTYPE not a text\r\n" if words == [b"GET", wrong] else None
        )
        assert len(cache.get_many(keys)) == 8
        assert wrong not in cluster.stored[1]
        assert cache.stats().operations["get_many", Outcome.CORRUPT, "wrong_type"] == 1


# What is held against whom ----------------------------------------------------------------------


def test_one_node_that_fails_is_no_evidence_against_the_others(
    cluster: ScriptedCluster, manage: Manage, names: list[bytes]
) -> None:
    """Threads that wait for one dead node fail together, and would cut off all."""
    manager = manage()
    manager.ping(Deadline(5.0))
    manager._server._guide._look_at = math.inf  # a look-up would be an answer
    cluster.instead[0] = silent
    for _ in range(3):
        with pytest.raises(RedisTimeoutError) as caught:
            manager.get(names[0], Deadline(D))
        assert not manager.holds_against(caught.value)
    cluster.instead[1] = silent
    with pytest.raises(RedisTimeoutError) as caught:
        manager.get(names[1], Deadline(D))
    assert manager.holds_against(caught.value)
    manager.get(names[2], Deadline(5.0))
    assert not manager.holds_against(caught.value), "somebody has answered since"


def test_a_cluster_that_is_down_says_so_by_any_node(
    cluster: ScriptedCluster, manage: Manage, names: list[bytes]
) -> None:
    """Whichever node says it, asking the others is of no use."""
    manager = manage()
    cluster.instead[0] = lambda _client, words: (
        b"-CLUSTERDOWN The cluster is down\r\n" if words[0] == b"GET" else None
    )
    with pytest.raises(RedisNotReadyError) as caught:
        manager.get(names[0], Deadline(5.0))
    assert manager.holds_against(caught.value)


def test_nodes_that_may_not_be_asked_how_they_are_are_alive(
    cluster: ScriptedCluster, manage: Manage
) -> None:
    """The health check would keep the breaker open for ever, on a cluster that serves."""

    def forbidding(_: Client, words: Words) -> bytes | None:
        how = words[:2] == [b"CLUSTER", b"INFO"]
        return b"-NOPERM User app has no permissions\r\n" if how else None

    cluster.instead = dict.fromkeys(range(3), forbidding)
    manage().ping(Deadline(5.0))
    assert all([b"CLUSTER", b"INFO"] in cluster.asked(number) for number in range(3))


def test_of_one_node_everything_is_evidence() -> None:
    """A cluster of one would never open its breaker."""
    with ScriptedCluster(1) as cluster:
        manager = RedisConnectionManager(cluster.settings())
        manager.ping(Deadline(5.0))
        cluster.instead[0] = silent
        with pytest.raises(RedisTimeoutError) as caught:
            manager.get(b"k", Deadline(D))
        assert manager.holds_against(caught.value)
        assert not manager.holds_against(RedisWrongTypeError())
        manager.close()


# Kept away from -----------------------------------------------------------------------------------


@pytest.fixture
def cache(cluster: ScriptedCluster) -> Iterator[RedisCache]:
    settings = cluster.settings(operation_timeout=5.0, failure_threshold=3, max_retries=0)
    with RedisCacheFactory.create_cache(settings) as made:
        assert isinstance(made, RedisCache)
        yield made


def key_on(cluster: ScriptedCluster, cache: RedisCache, number: int) -> str:
    return next(
        key
        for key in map(str, range(10_000))
        if cluster.owners[slot_of(cache._keys.name(key)[0])] == number
    )


def test_a_dead_node_is_not_asked_and_the_others_are(
    cluster: ScriptedCluster, cache: RedisCache
) -> None:
    """Its keys would cost everybody the deadline for as long as it is dead."""
    keys = [key_on(cluster, cache, number) for number in range(3)]
    assert cache.set_many(dict.fromkeys(keys, 1))
    cluster.end(0)  # with it goes whoever could tell of a failover
    reasons = [cache.lookup(keys[0]).reason for _ in range(5)]
    assert reasons[3:] == ["node_down", "node_down"]
    assert cache._breaker.state == "closed"
    assert (cache.get(keys[1]), cache.get(keys[2])) == (1, 1)
    assert cache.get_many(keys) == dict.fromkeys(keys[1:], 1)
    assert cache.set(keys[0], 2) is False
    assert cache.set(keys[1], 2) is True
    assert cache.set_many(dict.fromkeys(keys, 3)) is False
    assert cache.get_many(keys) == dict.fromkeys(keys[1:], 3)
    health = cache.health()
    assert (health.status, health.reasons) == ("degraded", ("node_down",))
    assert cache.answers_at_once is False


def test_a_node_that_is_back_is_asked_again_by_the_health_thread_first(
    cluster: ScriptedCluster, cache: RedisCache
) -> None:
    """A third of the keys would stay away until some caller is let through, after reset_timeout."""
    key = key_on(cluster, cache, 0)
    assert cache.set(key, 1)
    cluster.instead[0] = lambda _client, words: RESET
    while cache.lookup(key).reason != "node_down":
        pass
    # The check that its failure rang for has failed, too.
    wait_for(lambda: [b"CLUSTER", b"INFO"] in cluster.asked(0))
    del cluster.instead[0]
    wait_for(lambda: cache.get(key) == 1, within_s=2.0)
    assert cache.health().status == "ok"


def test_a_node_that_hangs_does_not_hold_up_the_health_check_of_the_others(
    cluster: ScriptedCluster, cache: RedisCache, stopwatch: Stopwatch
) -> None:
    """After a failover the large breaker would stay open a second longer, for all keys."""
    cache._health.stop()
    key = key_on(cluster, cache, 0)
    assert cache.set(key, 1)
    cluster.instead[0] = lambda _client, words: b""
    while cache.lookup(key, timeout=D).reason != "node_down":
        pass
    with stopwatch.call(1.0, "health check"):
        cache._connection.ping(Deadline(4.0))
    assert stopwatch.late() == []


def test_when_all_are_dead_the_large_breaker_opens_too(
    cluster: ScriptedCluster, cache: RedisCache
) -> None:
    """Each node for itself would take three times as many deadlines until nobody waits any more."""
    keys = [key_on(cluster, cache, number) for number in range(3)]
    assert cache.set_many(dict.fromkeys(keys, 1))
    cluster.instead.update(dict.fromkeys(range(3), lambda _client, words: RESET))
    for key in [*keys, *keys]:
        cache.get(key)
    assert cache._breaker.is_open


def test_without_a_health_thread_a_caller_is_the_probe(cluster: ScriptedCluster) -> None:
    """Where no thread can be started, a node that is back would never be asked again."""
    settings = cluster.settings(
        operation_timeout=5.0, failure_threshold=1, max_retries=0, reset_timeout=0.05
    )
    with RedisCacheFactory.create_cache(settings) as cache:
        cache._health.stop()
        keys = [key_on(cluster, cache, number) for number in range(3)]
        assert cache.set_many(dict.fromkeys(keys, 1))
        cluster.instead[0] = lambda _client, words: RESET
        assert len(cache.get_many(keys)) == 2
        del cluster.instead[0]
        wait_for(lambda: len(cache.get_many(keys)) == 3)


def test_an_interrupted_bundle_gives_its_leave_back(
    cluster: ScriptedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node's only probe would be out, and the node away, until its leave is over."""
    settings = cluster.settings(
        operation_timeout=5.0, failure_threshold=1, max_retries=0, reset_timeout=0.5
    )
    with RedisCacheFactory.create_cache(settings) as cache:
        cache._health.stop()
        keys = [key_on(cluster, cache, number) for number in range(3)]
        assert cache.set_many(dict.fromkeys(keys, 1))
        cluster.instead[0] = lambda _client, words: RESET
        assert len(cache.get_many(keys)) == 2
        del cluster.instead[0]
        while cache._connection._server._members.all()[0].guard._breaker.state == "open":
            time.sleep(0.01)
        with monkeypatch.context() as patch:
            patch.setattr(_cluster, "exchange", _interrupt)
            with pytest.raises(ZeroDivisionError):
                cache.get_many(keys)
        assert len(cache.get_many(keys)) == 3


def _interrupt(*_: object) -> None:
    raise ZeroDivisionError


def test_the_log_names_the_node_that_fails_and_is_replaced(
    cluster: ScriptedCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator would look for it among fifty, and wait for the line that it is back."""
    caplog.set_level("INFO", "jmcache")
    settings = cluster.settings(1, operation_timeout=5.0, failure_threshold=3, max_retries=0)
    with RedisCacheFactory.create_cache(settings) as cache:
        key = key_on(cluster, cache, 0)
        assert cache.set(key, 1)
        cluster.instead[0] = lambda _client, words: RESET
        while cache.lookup(key).reason != "node_down":
            pass
        node = f"Redis 127.0.0.1:{cluster.ports[0]} of redis+cluster://127.0.0.1:{cluster.ports[1]}"
        wait_for(lambda: f"{node} is unavailable (reset)" in caplog.text)
        cluster.owners = [owner or 2 for owner in cluster.owners]
        wait_for(lambda: cache.set(key, 1))
        wait_for(lambda: f"{node} was replaced after" in caplog.text)
        assert "operations were answered without it" in caplog.text
