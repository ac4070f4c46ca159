"""Where Redis is and who we are to it changes: the rows of the fault matrix about that."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from observation import Observation

from jmcache import CacheSettings
from jmcache.testing import PrivateSentinel, PrivateServer


@pytest.fixture
def guarded() -> Iterator[PrivateServer]:
    """A server that asks for the password "first"."""
    with PrivateServer(tcp=True, password="first") as running:
        yield running


@pytest.mark.fault_row(30)
@pytest.mark.parametrize("way", ["function", "file"])
def test_a_password_rotated_under_traffic_is_found_by_itself(
    way: str, observe: Observation, guarded: PrivateServer, tmp_path: Path
) -> None:
    """Rotation is a routine: one that is an outage until a deployment is never done."""
    current = tmp_path / "password"
    current.write_text("first")
    settings = CacheSettings(port=guarded.port, password=current.read_text)
    if way == "file":
        settings = CacheSettings.from_env(
            {
                "REDIS_HOST": "127.0.0.1",
                "REDIS_PORT": str(guarded.port),
                "REDIS_PASSWORD_FILE": str(current),
            }
        )
    cache = observe.cache(settings)
    with observe.traffic(cache, threads=6):
        for new in ("second", "third", "fourth"):
            with observe.fault():
                guarded.command("CONFIG", "SET", "requirepass", new)
                guarded.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                time.sleep(0.3)  # the vault, or the kubelet, is as late as this
                current.write_text(new)
            observe.back(cache)
    assert any(ending.endswith("auth") for ending in observe.outcomes)


@pytest.mark.fault_row(25)
def test_a_replica_that_is_promoted_under_traffic_takes_writes_and_has_what_there_was(
    observe: Observation, server: PrivateServer, tcp: PrivateServer
) -> None:
    """An address that is moved by hand: until somebody promotes the replica it can only be read."""
    tcp.command("CONFIG", "SET", "repl-diskless-sync-delay", "0")
    master = CacheSettings(port=tcp.port, namespace="moved", operation_timeout=5.0)
    first = observe.cache(master)
    assert first.set("k", "before")
    server.command("REPLICAOF", "127.0.0.1", tcp.port)
    assert tcp.command("WAIT", 1, 5000) == 1
    cache = observe.cache(CacheSettings.from_url(server.url, namespace="moved"))
    with observe.traffic(cache, threads=4):
        with observe.fault():
            cache.wrote("k", "before")
            assert cache.set("l", 1) is False
            assert cache.get("k") in (None, "before")  # so many refused writes open the breaker
            server.command("REPLICAOF", "NO", "ONE")
        observe.back(cache)
        assert cache.get("k", timeout=5.0) == "before"
    assert any(ending.endswith("readonly") for ending in observe.outcomes)


@pytest.fixture(scope="module")
def _watched() -> Iterator[PrivateSentinel]:
    with PrivateSentinel() as running:
        yield running


@pytest.fixture
def watched(_watched: PrivateSentinel) -> PrivateSentinel:
    """A master and its replica, watched by three sentinels, all well."""
    _watched.start()
    return _watched


@pytest.mark.fault_row(46)
@pytest.mark.parametrize("how", ["kill", "pause", "fail_over"])
def test_a_failover_costs_what_the_sentinels_take_and_a_second(
    how: str, observe: Observation, watched: PrivateSentinel
) -> None:
    """A client with a fixed address never comes back, and redis-py's takes as long as it takes."""
    cache = observe.cache(CacheSettings.from_url(watched.url, namespace=how))
    old = watched.master()
    with observe.traffic(cache):
        assert cache.set("k", "before")
        with observe.fault():
            if how == "fail_over":
                watched.fail_over()
                watched.wait_until_well()  # until the old one has been told, it takes writes
            else:
                getattr(old, how)()
                watched.wait_for_failover(old)
        observe.back(cache, within_s=1.0)
        assert watched.master() is not old
        # The old one comes back, takes itself for the master for a moment, and is made a replica.
        written = {f"after {number}": number for number in range(20)}
        assert cache.set_many(written, timeout=5.0)
        watched.start()
        assert cache.get_many(written, timeout=5.0) == written
    observe.back(cache)
