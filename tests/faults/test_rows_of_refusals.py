"""A Redis that answers, and says no: the rows of the fault matrix about its refusals."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from observation import REFUSED_S, Observation, Watched, wait_for

from jmcache import CacheSettings, Outcome
from jmcache.testing import PrivateServer, ReplyError
from jmcache.testing.resp import Link

SECRET = "s3cr3t-pa55"
ANOTHER = "an0ther-pa55"


def settings(server: PrivateServer, **changes: object) -> CacheSettings:
    return CacheSettings.from_url(server.url, **changes)


def count(server: PrivateServer, section: str, name: str) -> int:
    """A number that the server counts; 0 before there is one."""
    info = server.command("INFO", section)
    assert isinstance(info, bytes)
    return int(info.partition(name.encode())[2].split(b"\r")[0].split(b",")[0] or 0)


def kill_clients(server: PrivateServer) -> None:
    server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


# Writes that are not taken -------------------------------------------------------------------


def _takes_no_writes(observe: Observation, cache: Watched, reason: str) -> None:
    """Writes are refused, and after a few held back; what is there is read all the time."""
    for _ in range(8):  # no read between them, which would be a success
        assert cache.set("l", 2) is False
    for _ in range(8):
        assert cache.set_many({"l": 2, "m": 3}) is False
        assert cache.get("k") == 1
    counts = cache.stats().operations
    assert counts["set", "refused", reason] >= 1
    assert counts["set", "refused", "writes_paused"] >= 1
    assert "writes_refused" in cache.health().reasons


@pytest.mark.fault_row(24)
def test_a_full_redis_refuses_writes_and_goes_on_reading(
    observe: Observation, server: PrivateServer
) -> None:
    """Out of memory is no reason to do without what is cached already."""
    cache = observe.cache(settings(server))
    cache.set("k", 1)
    with observe.fault():
        server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
        server.command("CONFIG", "SET", "maxmemory", "1")
        _takes_no_writes(observe, cache, "oom")
        assert cache.delete("l") is True, "a delete frees memory; it is never held back"
        server.command("CONFIG", "SET", "maxmemory", "0")
    observe.back(cache)
    assert observe.breaker == {"writes: counts"}


@pytest.mark.fault_row(26)
def test_a_redis_without_its_replicas_goes_on_reading(
    observe: Observation, server: PrivateServer
) -> None:
    """A replica that restarts would empty every service of its cache."""
    cache = observe.cache(settings(server))
    cache.set("k", 1)
    with observe.fault():
        server.command("CONFIG", "SET", "min-replicas-to-write", "1")
        _takes_no_writes(observe, cache, "noreplicas")
        server.command("CONFIG", "SET", "min-replicas-to-write", "0")
    observe.back(cache)
    assert observe.breaker == {"writes: counts"}


@pytest.mark.fault_row(26)
def test_a_redis_that_cannot_save_goes_on_reading(observe: Observation, tmp_path: Path) -> None:
    """A full disk on Redis's machine must not become a load of work on ours."""
    with PrivateServer(directory=tmp_path) as server:
        cache = observe.cache(settings(server))
        cache.set("k", 1)
        with observe.fault():
            in_the_way = tmp_path / "dump.rdb"
            in_the_way.mkdir()
            server.command("CONFIG", "SET", "save", "3600 1")
            server.command("BGSAVE")
            wait_for(lambda: b"bgsave_status:err" in _persistence(server))
            _takes_no_writes(observe, cache, "misconf")
            in_the_way.rmdir()
            server.command("BGSAVE")
            wait_for(lambda: b"bgsave_status:ok" in _persistence(server))
        observe.back(cache)
    assert observe.breaker == {"writes: counts"}


def _persistence(server: PrivateServer) -> bytes:
    info = server.command("INFO", "persistence")
    assert isinstance(info, bytes)
    return info


@pytest.mark.fault_row(25)
def test_a_replica_is_read_and_its_connections_are_made_anew(
    observe: Observation, server: PrivateServer
) -> None:
    """After a failover the old address is a replica for ever; the name may know the new one."""
    cache = observe.cache(settings(server))
    cache.set("k", 1)
    with observe.fault():
        server.command("REPLICAOF", "127.0.0.1", "1")
        made = count(server, "stats", "total_connections_received:")
        assert cache.set("l", 2) is False
        assert cache.sync._breaker.failures == 2, "one retry"
        assert count(server, "stats", "total_connections_received:") == made + 1
        for _ in range(8):
            assert cache.set("l", 2) is False
            assert cache.get("k") == 1
        assert cache.stats().operations["set", "unavailable", "readonly"] >= 1
        server.command("REPLICAOF", "NO", "ONE")
    observe.back(cache)
    assert observe.breaker == {"writes: counts"}


@pytest.mark.fault_row(25)
def test_writes_to_a_replica_do_not_take_the_reads_away(
    observe: Observation, server: PrivateServer
) -> None:
    """A job that only writes would open the breaker for everybody, again and again."""
    cache = observe.cache(settings(server))
    cache.set("k", 1)
    with observe.fault():
        server.command("REPLICAOF", "127.0.0.1", "1")
        wait_for(lambda: not cache.set("l", 2) and "writes_refused" in cache.health().reasons)
        wait_for(lambda: cache.get("k") == 1)
        for _ in range(100):
            assert cache.set("l", 2) is False
            assert cache.get("k") == 1
        server.command("REPLICAOF", "NO", "ONE")
    observe.back(cache)


# Not now ---------------------------------------------------------------------------------------


@pytest.mark.fault_row(26)
def test_a_replica_that_lost_its_master_is_an_outage(
    observe: Observation, server: PrivateServer
) -> None:
    """It answers every read with an error, and its PING, too."""
    cache = observe.cache(settings(server))
    cache.set("k", 1)
    with observe.fault():
        server.command("CONFIG", "SET", "replica-serve-stale-data", "no")
        server.command("REPLICAOF", "127.0.0.1", "1")
        observe.nothing(cache, "masterdown")
        server.command("REPLICAOF", "NO", "ONE")
    observe.back(cache)
    assert observe.breaker >= {"counts"}


@pytest.mark.fault_row(27)
def test_a_redis_that_loads_its_data_is_used_when_it_is_done(
    observe: Observation, tmp_path: Path
) -> None:
    """After a restart it takes minutes to load, and says so to everybody at once."""
    with PrivateServer(directory=tmp_path, args=("--rdbcompression", "no")) as server:
        filling = "for i = 1, 700 do redis.call('SET', i, string.rep('x', 1024)) end"
        server.command("EVAL", filling, "0")
        server.command("SAVE")
    # Several seconds, in which it answers after each key.
    slow = ("--key-load-delay", "5000", "--loading-process-events-interval-bytes", "1024")
    address = str(tmp_path / "redis.sock")
    server = PrivateServer(directory=tmp_path, args=slow)
    starting = threading.Thread(target=server.start)
    try:
        starting.start()
        wait_for(lambda: _says(address, "LOADING"))
        cache = observe.cache(CacheSettings(unix_socket_path=address))
        with observe.fault():
            observe.nothing(cache, "loading", "timeout")  # a busy machine is slow to answer
            assert "loading" in {reason for (*_, reason) in cache.stats().operations}
            assert _says(address, "LOADING"), "it was loading all the time"
            starting.join(timeout=10)
        observe.back(cache)
        assert observe.breaker == {"counts"}
    finally:
        starting.join(timeout=10)
        server.close()


def _says(address: str, word: str) -> bool:
    """Does the server refuse a PING with that word?"""
    try:
        link = Link(address, 5.0)
    except OSError:
        return False  # not there yet
    try:
        link.ask("PING")
    except ReplyError as error:
        return str(error).startswith(word)
    finally:
        link.close()
    return False


@pytest.mark.fault_row(28)
def test_a_redis_that_is_busy_with_a_script_is_an_outage(
    observe: Observation, server: PrivateServer
) -> None:
    """It answers everything with BUSY, until somebody kills the script."""
    server.command("CONFIG", "SET", "lua-time-limit", "50")
    address = str(server.socket_path)
    cache = observe.cache(settings(server))
    cache.set("k", 1)
    script = Link(address, 10.0)
    running = threading.Thread(target=_ask, args=(script, "EVAL", "while true do end", "0"))
    with observe.fault():
        running.start()
        wait_for(lambda: _says(address, "BUSY"))
        observe.nothing(cache, "busy")
        server.command("SCRIPT", "KILL")
        running.join(timeout=10)
        script.close()
    observe.back(cache)
    assert observe.breaker == {"counts"}


def _ask(link: Link, *words: str) -> None:
    with contextlib.suppress(ReplyError):
        link.ask(*words)


# Not you -----------------------------------------------------------------------------------------


def _one_login_for_each_probe(cache: Watched, made: Callable[[], int], before: int) -> None:
    """Watch the first three probes: what the server counts, and the pauses between them."""
    health = cache.sync._health
    moments = []
    for probes in (1, 2, 3):
        wait_for(lambda probes=probes: health.failures >= probes)
        moments.append(time.monotonic())
    assert made() - before == 1 + 3, "the caller that opened the breaker, and three probes"
    assert moments[2] - moments[1] > 1.0, "the second pause is longer than any first one"


@pytest.mark.fault_row(30)
def test_a_password_switched_on_later_is_one_login_for_each_probe(
    observe: Observation, server: PrivateServer
) -> None:
    """Eleven logins a call, from each worker, lock the account, and everybody with it out."""
    cache = observe.cache(settings(server))
    cache.set("k", 1)
    with observe.fault():
        server.command("CONFIG", "SET", "requirepass", SECRET)
        assert cache.get("k") == 1, "a connection that is logged in goes on"

        def made() -> int:
            return count(server, "stats", "total_connections_received:")

        before = made()
        kill_clients(server)
        observe.nothing(cache.within(REFUSED_S), "auth")
        _one_login_for_each_probe(cache, made, before)
        server.command("CONFIG", "SET", "requirepass", "")
    observe.back(cache, within_s=5.0)
    assert observe.breaker == {"opens at once"}
    (error,) = observe.errors()
    assert "password" in error


@pytest.mark.fault_row(31)
def test_a_wrong_password_is_one_login_for_each_probe_and_shown_to_nobody(
    observe: Observation,
) -> None:
    """Those who try again and again are locked out; those who log passwords are broken into."""
    with PrivateServer(password=SECRET) as server:
        cache = observe.cache(settings(server, password=ANOTHER))

        def made() -> int:
            return count(server, "commandstats", "cmdstat_auth:calls=")

        before = made()
        with observe.fault():
            observe.nothing(cache.within(REFUSED_S), "auth")
            _one_login_for_each_probe(cache, made, before)
            server.command("CONFIG", "SET", "requirepass", ANOTHER)
        observe.back(cache, within_s=5.0)
    assert observe.breaker == {"opens at once"}
    (error,) = observe.errors()
    assert "password" in error
    shown = [repr(cache.sync), repr(cache.settings), repr(cache.health()), repr(cache.stats())]
    shown += [str(vars(record)) for record in observe.log]
    assert not [text for text in shown if SECRET in text or ANOTHER in text]


@pytest.mark.fault_row(32)
def test_a_right_that_is_missing_costs_only_what_it_forbids(
    observe: Observation, server: PrivateServer
) -> None:
    """A user who may only read still reads; one ERROR says which right is missing."""
    server.command("ACL", "SETUSER", "reader", "on", f">{SECRET}", "~*", "+get")
    owner = observe.cache(settings(server))
    reader = observe.cache(settings(server, username="reader", password=SECRET))
    owner.set("k", 1)
    with observe.fault():
        for _ in range(8):
            assert reader.set("k", 2) is False
            assert reader.get("k") == 1
        assert reader.get_many(["k", "l"]) == {"k": 1}
        assert reader.delete("k") is False
    counts = reader.stats().operations
    assert counts["set", "unavailable", "noperm"] == 8
    assert counts["delete", "unavailable", "noperm"] == 1
    assert observe.breaker == set()
    assert len(observe.errors()) == 2, "one for each operation"
    assert all("ACL" in line for line in observe.errors())


@pytest.mark.fault_row(32)
def test_a_key_that_is_not_ours_costs_only_itself(
    observe: Observation, server: PrivateServer
) -> None:
    """Rights for one namespace are the usual ones; a second one must not end the first."""
    rights = ("~ours:*", "+get", "+set", "+unlink")
    server.command("ACL", "SETUSER", "app", "on", f">{SECRET}", *rights)
    user = {"username": "app", "password": SECRET}
    ours = observe.cache(settings(server, namespace="ours", **user))
    theirs = observe.cache(settings(server, namespace="theirs", **user))
    with observe.fault():
        for _ in range(8):
            assert theirs.set("k", 2) is False
            assert ours.set("k", 1) is True
            assert theirs.get("k") is None
            assert ours.get("k") == 1
    assert observe.breaker == set()


@pytest.mark.fault_row(32)
def test_a_ping_that_is_forbidden_is_a_sign_of_life(observe: Observation) -> None:
    """The health check would keep the breaker open for ever, on a Redis that serves."""
    rights = ("--user", "app", "on", f">{SECRET}", "~*", "+get", "+set", "+get", "+unlink")
    with PrivateServer(args=rights) as server:
        cache = observe.cache(settings(server, username="app", password=SECRET))
        with observe.fault():
            server.kill()
            observe.nothing(cache.within(REFUSED_S), "refused")
            server.start()
        observe.back(cache)
        wait_for(lambda: cache.health().last_error_reason is None)
        assert cache.health().last_ok_age_s is not None
    assert observe.breaker == {"counts"}


@pytest.mark.fault_row(33)
def test_the_rights_in_the_docs_are_enough(observe: Observation, server: PrivateServer) -> None:
    """Whoever gives no more than what is asked for must not find out later what was missing."""
    page = Path(__file__).parents[2] / "docs/configuration.md"
    match = re.search(
        r'"SETUSER", "app", "on", ">s3cret", (.*?)\n    \)\n', page.read_text("utf-8"), re.S
    )
    assert match is not None
    rights = re.findall('"(.*?)"', match[1])
    assert rights[0] == "~jobs:*"
    assert len(rights) == 1 + 6, "as the page says"
    server.command("ACL", "SETUSER", "app", "on", ">s3cret", *rights)
    cache = observe.cache(settings(server, username="app", password="s3cret", namespace="jobs"))
    with observe.fault():
        assert cache.set("a", 1) is True
        assert cache.set_many({"b": 2, "c": 3}) is True
        assert cache.get("a") == 1
        assert cache.lookup("a").outcome is Outcome.HIT
        assert cache.get_many(["a", "b", "c"]) == {"a": 1, "b": 2, "c": 3}
        assert cache.exists("a") is True
        assert cache.delete("a") is True
        assert cache.delete_many(["b", "c"]) == 2
        for key, value in {"d": 4, "e": 5, "f": 6}.items():
            cache.wrote(key, value)
        assert cache.get_or_set("d", lambda: 4, tags=("t",)) == 4
        assert cache.get("d") == 4
        assert cache.get_or_set_many(["d", "e"], lambda keys: dict.fromkeys(keys, 5)) == {
            "d": 4,
            "e": 5,
        }
        assert cache.get_or_set("d", lambda: 6, force=True) == 6
        with pytest.raises(LookupError):  # gives its lease back
            cache.get_or_set("f", {}.popitem)
        assert cache.set("g", 7, tags=("t",)) is True
        assert cache.invalidate_tags("t") is True
        assert cache.get("g") is None
        assert cache.clear() is True
        assert cache.get_many(["d", "e"]) == {}
        cache.sync._health._probe()  # PING is not among them
    assert observe.breaker == set()
    assert observe.outcomes == {
        "miss computed": 3,
        "miss loader_failed": 1,
        "miss invalidated": 3,
    }
    assert observe.log == []
