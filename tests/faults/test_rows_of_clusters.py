"""Clusters whose slots move and whose masters die: the rows of the fault matrix about them."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from observation import Observation, R, Watched, wait_for
from stopwatch import ALLOWED_S

from jmcache import CacheSettings, Outcome
from jmcache.keys import KeySpace
from jmcache.testing import PrivateCluster, PrivateServer

PATIENT_S = 2.0  # where it is not about time, a busy machine shall have enough


def settings(cluster: PrivateCluster, **changes: object) -> CacheSettings:
    return CacheSettings.from_url(cluster.url, namespace="rows", **changes)


def name_of(cache: Watched, key: str) -> bytes:
    name: bytes = cache.sync._keys.name(key)[0]
    return name


def keys_by_master(cluster: PrivateCluster, cache: Watched) -> dict[PrivateServer, list[str]]:
    """A hundred keys, by the node that has them now."""
    owners = cluster.owners()
    found: dict[PrivateServer, list[str]] = {}
    for number in range(100):
        key = f"key {number}"
        found.setdefault(owners[cluster.slot_of(name_of(cache, key))], []).append(key)
    return found


# Slots that move -------------------------------------------------------------------------------


@pytest.mark.fault_row(47)
def test_slots_that_move_under_traffic_lose_and_tell_nothing(
    observe: Observation, redis_cluster: PrivateCluster
) -> None:
    """A cluster that is scaled at noon: a client without it gets 57 % errors."""
    cache = observe.cache(settings(redis_cluster, operation_timeout=PATIENT_S))
    kept = {f"kept {number}": number for number in range(1000)}
    assert cache.set_many(kept)
    first, second, third = redis_cluster.masters()
    with observe.fault(), observe.traffic(cache):
        redis_cluster.migrate(redis_cluster.slots_of(first)[:600], second)
        redis_cluster.migrate(redis_cluster.slots_of(second)[:600], third)
    assert cache.get_many(kept) == kept
    assert observe.outcomes == {}, "every call was served"
    assert cache.stats().corrupt == 0


@pytest.mark.fault_row(47)
def test_a_slot_that_is_half_moved_serves_its_keys_from_both_ends(
    observe: Observation, redis_cluster: PrivateCluster
) -> None:
    """A migration that was interrupted can stand for hours."""
    cache = observe.cache(settings(redis_cluster, operation_timeout=PATIENT_S))
    slot = redis_cluster.slot_of(name_of(cache, "there"))
    source = redis_cluster.master_of(slot)
    target = next(node for node in redis_cluster.masters() if node is not source)
    assert cache.set("there", 1)
    with observe.fault():
        redis_cluster.begin_migration(slot, target)
        assert cache.get("there") == 1
        source.command("MIGRATE", "127.0.0.1", target.port, name_of(cache, "there"), 0, 5000)
        assert cache.get("there") == 1
        assert cache.get_many(["there", "elsewhere"]) == {"there": 1}
        assert cache.set("there", 2)
        assert cache.delete("there")
        assert cache.set_many({"there": 3, "elsewhere": 4})
        redis_cluster.end_migration(slot, target)
    assert cache.get_many(["there", "elsewhere"]) == {"there": 3, "elsewhere": 4}
    assert observe.outcomes == {}


@pytest.mark.fault_row(47)
def test_a_cluster_that_nobody_named_as_one_is_told_once(
    observe: Observation, redis_cluster: PrivateCluster
) -> None:
    """Two thirds of the keys would never be cached, and nobody know why."""
    space = KeySpace(CacheSettings().namespace, CacheSettings().schema_version)
    node = redis_cluster.master_of(redis_cluster.slot_of(space.space_counter))
    cache = observe.cache(CacheSettings(port=node.port))
    with observe.fault():
        for number in range(60):
            cache.set(f"key {number}", number)
        found = Counter(cache.lookup(f"key {number}").reason for number in range(60))
    assert found["cluster"] > 20
    assert found[""] > 5, "what this node has is served"
    assert cache.health().breaker == "closed"
    assert len(observe.errors()) == 2, "one for get, one for set"
    assert all("cluster=True" in line for line in observe.errors())


@pytest.mark.fault_row(47)
def test_a_node_without_the_counter_serves_nothing_and_says_why(
    observe: Observation, redis_cluster: PrivateCluster
) -> None:
    """The same on another node: of no entry can be said whether it still counts."""
    space = KeySpace(CacheSettings().namespace, CacheSettings().schema_version)
    home = redis_cluster.master_of(redis_cluster.slot_of(space.space_counter))
    node = next(node for node in redis_cluster.masters() if node is not home)
    cache = observe.cache(CacheSettings(port=node.port))
    with observe.fault():
        for number in range(60):
            assert cache.set(f"key {number}", number) is False
        assert {cache.lookup(f"key {number}").reason for number in range(60)} == {"cluster"}
    assert cache.health().breaker == "closed"
    assert len(observe.errors()) == 2, "one for get, one for set"
    assert all("cluster=True" in line for line in observe.errors())


@pytest.mark.fault_row(47)
def test_a_server_that_is_named_as_a_cluster_and_is_none_is_told_once(
    observe: Observation, tcp: PrivateServer
) -> None:
    """A test environment with one server, and the settings of production."""
    cache = observe.cache(CacheSettings(port=tcp.port, cluster=True))
    with observe.fault():
        observe.nothing(cache, "no_cluster", "node_down")
    assert any("look at cluster" in line for line in observe.errors())


# Masters that die ------------------------------------------------------------------------------


@contextlib.contextmanager
def watched_failover(cluster: PrivateCluster, dead: PrivateServer) -> Iterator[list[float]]:
    """When the cluster itself was well again without *dead*, as its living masters say."""
    well_at: list[float] = []
    living = [node for node in cluster.nodes if node is not dead]

    def watch() -> None:
        over = time.monotonic() + 20.0
        while time.monotonic() < over:
            states = [node.command("CLUSTER", "INFO") for node in living]
            view = living[0].command("CLUSTER", "NODES")
            assert isinstance(view, bytes)
            mine = next(line for line in view.splitlines() if b":%d@" % dead.port in line)
            slots = mine.split()[8:]
            if not slots and all(b"cluster_state:ok" in bytes(str(s), "utf-8") for s in states):
                well_at.append(time.monotonic())
                return
            time.sleep(0.02)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    yield well_at
    watcher.join(timeout=30)
    assert well_at, "the cluster did not recover"


def is_replicated(master: PrivateServer) -> bool:
    """Do its replicas have everything?"""
    info = bytes(str(master.command("INFO", "replication")), "utf-8")
    (sent,) = re.findall(rb"master_repl_offset:(\d+)", info)
    taken = re.findall(rb"offset=(\d+),lag", info)
    return bool(taken) and all(int(offset) >= int(sent) for offset in taken)


@pytest.mark.fault_row(48)
@pytest.mark.parametrize("end", ["kill", "pause"])
def test_a_master_that_dies_under_traffic_costs_what_the_cluster_takes_and_a_second(
    observe: Observation, redis_cluster: PrivateCluster, end: str
) -> None:
    """One call took 55 s, and the failover was over long before."""
    cache = observe.cache(settings(redis_cluster))
    by_master = keys_by_master(redis_cluster, cache)
    dead, keys = next(iter(by_master.items()))
    assert cache.within(5.0).set_many(dict.fromkeys(keys, 1), timeout=5.0)
    wait_for(lambda: is_replicated(dead))  # what the replica does not have is lost with its master
    with observe.traffic(cache):
        with observe.fault(), watched_failover(redis_cluster, dead) as well_at:
            getattr(dead, end)()
            wait_for(lambda: cache.get(keys[0]) is None)
            wait_for(lambda: cache.get(keys[0]) == 1, within_s=20.0)
            back_at = time.monotonic()
        late_s = back_at - well_at[0]
        assert late_s < 1.0 + ALLOWED_S + observe.stopwatch.lag_s(well_at[0], back_at)
        observe.back(cache)
    wait_for(lambda: len(cache.get_many(keys, timeout=5.0)) == len(keys))
    assert cache.set_many(dict.fromkeys(keys, 2), timeout=5.0)


@pytest.mark.fault_row(48)
def test_a_master_that_hangs_costs_the_others_keys_nothing(
    observe: Observation, redis_cluster: PrivateCluster
) -> None:
    """The threads that wait for it fail together, and would cut all of the cluster off."""
    cache = observe.cache(settings(redis_cluster, operation_timeout=0.5))
    by_master = keys_by_master(redis_cluster, cache)
    dead = next(iter(by_master))
    others = [key for node, keys in by_master.items() if node is not dead for key in keys]
    assert cache.set_many(dict.fromkeys(others, 1), timeout=5.0)
    assert cache.set_many(dict.fromkeys(by_master[dead], 1), timeout=5.0)
    seen: Counter[tuple[bool, str]] = Counter()
    over = threading.Event()

    def read(number: int) -> None:
        while not over.wait(0.001):
            number += 7
            for key in (others[number % len(others)], by_master[dead][number % 10]):
                found = cache.lookup(key)
                seen[key in others, found.reason if found.outcome is not Outcome.HIT else ""] += 1

    with patient(redis_cluster), observe.fault():
        readers = [threading.Thread(target=read, args=(n,), daemon=True) for n in range(16)]
        dead.pause()
        try:
            for reader in readers:
                reader.start()
            time.sleep(3.0)
            assert len(cache.get_many([*others, *by_master[dead]])) == len(others)
        finally:
            over.set()
            for reader in readers:
                reader.join(timeout=10)
        dead.resume()
        assert seen.keys() & {(True, "breaker_open"), (True, "node_down")} == set()
        assert seen[True, ""] >= 0.99 * sum(n for (other, _), n in seen.items() if other)
        assert seen[False, "timeout"] <= 16 + 5 * 5  # a thread each, and what probes cost later
        assert seen[False, "node_down"] > 10 * seen[False, "timeout"]
        assert cache.health().reasons == ("node_down",)
    began = time.monotonic()
    wait_for(lambda: len(cache.get_many(by_master[dead])) == len(by_master[dead]), within_s=R + 1)
    assert time.monotonic() - began < R + observe.stopwatch.lag_s(began, time.monotonic())


@pytest.mark.fault_row(48)
@pytest.mark.parametrize("counter_is_there", [True, False])
def test_a_master_that_hangs_and_has_the_others_counter_costs_the_deadline(
    observe: Observation, redis_cluster: PrivateCluster, counter_is_there: bool
) -> None:
    """Slots were moved one by one, and an entry's counter is not where the entry is: while it is
    away of that entry nothing can be said. Whose counter is elsewhere notices nothing.
    """
    cache = observe.cache(settings(redis_cluster, operation_timeout=0.5))
    home, other = redis_cluster.masters()[:2]
    owners = redis_cluster.owners()
    pieces: dict[int, list[str]] = {}  # keys of *home*, by the slot of their counter, there as well
    for key in keys_by_master(redis_cluster, cache)[home]:
        counter = cache.sync._keys.piece_counter(name_of(cache, key))
        slot = redis_cluster.slot_of(counter)
        if owners[slot] is home:
            pieces.setdefault(slot, []).append(key)
    slot, moved = next(iter(pieces.items()))
    keys = [key for piece in pieces.values() for key in piece]
    rest = [key for key in keys if key not in moved]
    assert cache.set_many(dict.fromkeys(keys, 1), timeout=5.0)
    redis_cluster.migrate([slot], other)
    assert cache.get_many(keys, timeout=5.0) == dict.fromkeys(keys, 1), "a move costs nothing"
    with patient(redis_cluster), observe.fault():
        if counter_is_there:
            other.pause()
            for _ in range(20):
                found = cache.lookup(moved[0])
                assert (found.outcome, found.value) == (Outcome.UNAVAILABLE, None)
                assert found.reason in ("timeout", "node_down")
                assert cache.get_many(keys) == dict.fromkeys(rest, 1)
            assert cache.clear() is False, "not confirmed, but it counts here"
            assert cache.get_many(keys) == {}
            other.resume()
        else:
            redis_cluster.masters()[2].pause()
            for _ in range(20):
                assert cache.get_many(keys) == dict.fromkeys(keys, 1)
                assert cache.lookup(moved[0]).outcome is Outcome.HIT
                assert cache.set(moved[0], 1) is True
    redis_cluster.migrate([slot], home)


@pytest.mark.fault_row(48)
def test_what_is_cleared_while_a_master_hangs_stays_cleared(
    observe: Observation, redis_cluster: PrivateCluster
) -> None:
    """Each master has counters of its own: the one that was away must be told, too."""
    cache = observe.cache(settings(redis_cluster, operation_timeout=0.5))
    elsewhere = observe.cache(settings(redis_cluster, operation_timeout=0.4))  # its own journal
    by_master = keys_by_master(redis_cluster, cache)
    keys = [key for each in by_master.values() for key in each]
    dead = next(iter(by_master))
    assert cache.set_many(dict.fromkeys(keys, 1), timeout=5.0)
    with patient(redis_cluster), observe.fault():
        dead.pause()
        assert cache.clear() is False
        assert cache.get_many(keys) == {}
        assert elsewhere.get_many(keys) == {}, "the others have been told, and it is away"
        assert cache.health().reasons[-1] == "invalidations_owed"
        dead.resume()
        wait_for(lambda: "invalidations_owed" not in cache.health().reasons, within_s=10.0)
        for each in (cache, elsewhere):
            wait_for(lambda c=each: "node_down" not in c.health().reasons, within_s=10.0)
            assert each.get_many(keys, timeout=5.0) == {}
    assert cache.set_many(dict.fromkeys(keys, 2), timeout=5.0)
    assert elsewhere.get_many(keys, timeout=5.0) == dict.fromkeys(keys, 2)


@contextlib.contextmanager
def patient(cluster: PrivateCluster) -> Iterator[None]:
    """Meanwhile no node holds another for dead."""
    for node in cluster.nodes:
        node.command("CONFIG", "SET", "cluster-node-timeout", 60_000)
    try:
        yield
    finally:
        for node in cluster.nodes:
            node.resume()
            node.command("CONFIG", "SET", "cluster-node-timeout", 1500)


@pytest.mark.fault_row(48)
def test_a_cluster_of_which_nobody_answers_costs_the_deadline(
    observe: Observation, redis_cluster: PrivateCluster
) -> None:
    """The network to it is gone: 55 s for a call, and each of its nodes asked in turn."""
    cache = observe.cache(settings(redis_cluster))
    assert cache.set("k", 1, timeout=5.0)
    with observe.fault():
        for node in redis_cluster.nodes:
            node.pause()
        for _ in range(20):
            cache.get("k")
            cache.get_many([f"key {number}" for number in range(9)])
            cache.set("k", 1)
        observe.nothing(cache, "timeout", "node_down")
        assert cache.health().breaker == "open"
        for node in redis_cluster.nodes:
            node.resume()
    observe.back(cache, within_s=R + 2.0)  # their own: they take each other for dead first
