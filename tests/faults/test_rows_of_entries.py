"""What is stored is not what we wrote: the rows of the fault matrix about bytes under our names."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from observation import Observation, Watched, wait_for

from jmcache import CacheSettings, Outcome
from jmcache.keys import KeySpace
from jmcache.testing import FaultProxy, PrivateServer

GIANT_BYTES = 64 * 1024 * 1024


@pytest.fixture
def cache(observe: Observation, server: PrivateServer) -> Watched:
    return observe.cache(CacheSettings.from_url(server.url))


def name_of(cache: Watched, key: str) -> bytes:
    name, _ = KeySpace(cache.settings.namespace, cache.settings.schema_version).name(key)
    return name


def stored(server: PrivateServer, cache: Watched, key: str) -> bytes:
    blob = server.command("GET", name_of(cache, key))
    assert isinstance(blob, bytes)
    return blob


def is_refused(server: PrivateServer, cache: Watched, blob: bytes) -> None:
    """What lies there is handed to nobody, and makes place."""
    server.command("SET", name_of(cache, "k"), blob)
    assert cache.get("k") is None
    server.command("SET", name_of(cache, "k"), blob)
    assert cache.get_many(["k", "l"]) == {}
    server.command("SET", name_of(cache, "k"), blob)
    assert cache.lookup("k").outcome is Outcome.CORRUPT
    assert server.command("EXISTS", name_of(cache, "k")) == 0
    assert cache.set("k", 1) is True
    assert cache.get("k") == 1


@pytest.mark.fault_row(49)
@pytest.mark.parametrize("first", ["get", "set"])
def test_another_type_under_our_name_makes_place(
    observe: Observation, server: PrivateServer, cache: Watched, first: str
) -> None:
    """A list that somebody pushed there would keep the key useless for ever."""
    server.command("RPUSH", name_of(cache, "k"), "x")
    with observe.fault():
        if first == "get":
            assert cache.get("k") is None
            assert cache.stats().operations["get", "corrupt", "wrong_type"] == 1
        assert cache.set("k", 1) is True
        assert cache.get("k") == 1
    assert observe.breaker == set()


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self._path),)


@pytest.mark.fault_row(50)
def test_a_pickle_is_never_executed(
    observe: Observation, server: PrivateServer, cache: Watched, tmp_path: Path
) -> None:
    """Three of four peers run what they find in Redis; whoever can write there owns the service."""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path = tmp_path / str(protocol)
        bomb = pickle.dumps(Bomb(path), protocol)
        with observe.fault():
            is_refused(server, cache, bomb)
        assert not path.exists()
        pickle.loads(bomb)
        assert path.exists(), "it was no bomb"
    assert observe.breaker == set()


FOREIGN = {
    "nothing": b"",
    "null": b"null",
    "a list": b"[1]",
    "text": "Größe".encode("latin-1"),
    "5,000 digits": b"9" * 5000,
    "100,000 brackets": b"[" * 100_000,
    "chance": os.urandom(64),
    "zeros": bytes(200),
}


@pytest.mark.fault_row(50)
@pytest.mark.parametrize("blob", FOREIGN.values(), ids=FOREIGN)
def test_what_somebody_else_wrote_is_corrupt(
    observe: Observation, server: PrivateServer, cache: Watched, blob: bytes
) -> None:
    """An empty text or a long number raises in one peer, a wrong encoding in another."""
    with observe.fault():
        is_refused(server, cache, blob)
    assert cache.stats().corrupt == 3
    assert observe.breaker == set()


@pytest.mark.fault_row(50)
def test_an_entry_with_any_flipped_bit_or_missing_end_is_never_handed_out(
    observe: Observation, server: PrivateServer, cache: Watched
) -> None:
    """A flipped bit in a score changes who gets the job; half a result looks like one."""
    cache.set("k", {"score": 1})
    blob = stored(server, cache, "k")
    with observe.fault():
        for at in range(len(blob)):
            altered = bytearray(blob)
            altered[at] ^= 1 << (at % 8)
            for damaged in (bytes(altered), blob[:at]):
                server.command("SET", name_of(cache, "k"), damaged)
                found = cache.lookup("k")
                assert found.value is None, at
                # A miss where it looks like another version of the format.
                assert found.outcome is Outcome.CORRUPT or found.reason == "version", at
    observe.log.clear()  # a line for each reason, not for each entry: test_monitoring
    assert observe.breaker == set()


@pytest.mark.fault_row(50)
def test_an_entry_copied_from_another_key_is_never_handed_out(
    observe: Observation, server: PrivateServer, cache: Watched
) -> None:
    """One candidate's matches under another's key: every peer returns them."""
    cache.set("mine", {"of": "mine"})
    with observe.fault():
        is_refused(server, cache, stored(server, cache, "mine"))
    assert cache.stats().operations["get", "corrupt", "wrong_key"] == 2
    assert cache.get("mine") == {"of": "mine"}
    assert len(observe.errors()) == 1


@pytest.mark.fault_row(51)
def test_a_giant_under_our_name_is_left_unread_and_removed(
    observe: Observation, server: PrivateServer, cache: Watched
) -> None:
    """64 MB read into every worker, again and again, is an outage of the service."""
    server.command("SETRANGE", name_of(cache, "k"), GIANT_BYTES - 1, "x")
    with observe.fault():
        found = cache.lookup("k")
        if found.reason == "timeout":  # a busy server takes its time to begin with so much
            found = cache.lookup("k", timeout=5.0)
        assert (found.outcome, found.reason) == (Outcome.CORRUPT, "too_large")
        assert cache.set("k", 1) is True
        assert cache.get("k") == 1
    assert observe.breaker == set()


@pytest.mark.fault_row(51)
def test_a_giant_among_others_costs_only_itself(
    observe: Observation, server: PrivateServer, cache: Watched
) -> None:
    """It would take every page it is on down with it, for as long as it lies there."""
    cache.set_many({"a": 1, "c": 3})
    server.command("SETRANGE", name_of(cache, "b"), GIANT_BYTES - 1, "x")
    with observe.fault():
        assert cache.get_many(["a", "b", "c"], timeout=5.0) == {"a": 1, "c": 3}
        assert cache.get_many(["a", "b", "c"]) == {"a": 1, "c": 3}
    assert cache.stats().corrupt == 1
    assert observe.breaker == set()


@pytest.mark.fault_row(55)
def test_a_write_that_timed_out_may_land_and_then_expires(
    observe: Observation, server: PrivateServer, cache: Watched
) -> None:
    """False means not confirmed. No client can call back what was sent; each entry has its end."""
    cache.set("k", "old")
    with observe.fault():
        server.pause()
        assert cache.set("k", "new", ttl=60) is False
        server.resume()
    wait_for(lambda: cache.get("k") == "new")
    ttl_ms = server.command("PTTL", name_of(cache, "k"))
    assert isinstance(ttl_ms, int)
    assert 0 < ttl_ms <= 60_000


@pytest.mark.fault_row(55)
def test_a_write_that_timed_out_may_land_behind_a_delete(
    observe: Observation, tcp: PrivateServer
) -> None:
    """The network may keep a write longer than its caller waits: whoever must be sure that an
    entry is gone changes its key. Its value is right for its key all the same, and has its end.
    """
    with FaultProxy(tcp) as proxy:
        cache = observe.cache(proxy.settings())
        cache.set("k", "early")
        with observe.fault():
            held = proxy.delay(0.6, on=b"SET", times=1)
            assert cache.set("k", "late", ttl=60) is False
            held.wait()
            assert cache.delete("k") is True
            assert cache.get("k") is None
            wait_for(lambda: cache.get("k") == "late")
        ttl_ms = tcp.command("PTTL", name_of(cache, "k"))
        assert isinstance(ttl_ms, int)
        assert 0 < ttl_ms <= 60_000
