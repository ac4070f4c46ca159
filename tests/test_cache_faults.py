"""The whole cache against a Redis that is gone, hangs, lies or comes back."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from jmcache import (
    CacheSettings,
    CircuitBreaker,
    CircuitState,
    Outcome,
    RedisCache,
    RedisCacheFactory,
)
from jmcache.health import HealthThread
from jmcache.invalidation import Journal
from jmcache.keys import KeySpace
from jmcache.monitoring import Monitor, OutageLog
from jmcache.retry import Retry
from jmcache.testing import ManualClock, PrivateServer, fake_manager

MakeSettings = Callable[..., CacheSettings]
D = 0.25
ALLOWANCE = 0.25  # seconds for the scheduler of a busy machine with two cores
SECRET = "s3cr3t-pa55"

pytestmark = pytest.mark.faults


def _open(settings: CacheSettings) -> RedisCache:
    made = RedisCacheFactory.create_cache(settings)
    assert isinstance(made, RedisCache)
    return made


@pytest.fixture
def server() -> Iterator[PrivateServer]:
    with PrivateServer() as running:
        yield running


@pytest.fixture
def cache(server: PrivateServer) -> Iterator[RedisCache]:
    with _open(CacheSettings.from_url(server.url, namespace="f")) as made:
        yield made


@pytest.fixture
def drip_port() -> Iterator[int]:
    """A server that answers everything with one byte every 20 ms, and never ends."""
    stop = threading.Event()
    listening = socket.create_server(("127.0.0.1", 0))

    def serve(client: socket.socket) -> None:
        with client:
            try:
                client.recv(4096)
                client.sendall(b"$5000\r\n")
                while not stop.wait(0.02):
                    client.sendall(b"x")
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield listening.getsockname()[1]
    stop.set()
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listening:
        yield listening.getsockname()[1]


@pytest.fixture
def swallowing_port() -> Iterator[int]:
    """A port whose queue is full: the system drops every further SYN."""
    with socket.socket() as listening, socket.socket() as filling:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        filling.connect(listening.getsockname())
        yield listening.getsockname()[1]


@pytest.fixture
def refusing_port() -> Iterator[int]:
    """A port where nobody listens, and nobody else can begin to."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def _every_operation(cache: RedisCache) -> list[tuple[str, Callable[[], object], object]]:
    return [
        ("get", lambda: cache.get("k"), None),
        ("set", lambda: cache.set("k", 1), False),
        ("delete", lambda: cache.delete("k"), False),
        ("exists", lambda: cache.exists("k"), False),
        ("get_many", lambda: cache.get_many(["k", "l"]), {}),
        ("set_many", lambda: cache.set_many({"k": 1}), False),
        ("delete_many", lambda: cache.delete_many(["k"]), 0),
    ]


@pytest.mark.parametrize("kind", ["refusing", "silent", "swallowing", "drip"])
def test_every_operation_ends_within_the_deadline_without_a_word(
    request: pytest.FixtureRequest, kind: str
) -> None:
    """A request waits for the cache no longer than it was promised, whatever the network does."""
    port = request.getfixturevalue(f"{kind}_port")
    with _open(CacheSettings(port=port, failure_threshold=1000)) as cache:
        for operation, call, nothing in _every_operation(cache):
            started = time.monotonic()
            assert call() == nothing, operation
            assert time.monotonic() - started <= D + ALLOWANCE, operation
        assert cache.lookup("k").outcome is Outcome.UNAVAILABLE


def test_a_timeout_of_its_own_bounds_one_call(silent_port: int) -> None:
    """A request with little time left hands down what it has."""
    with _open(CacheSettings(port=silent_port, failure_threshold=1000)) as cache:
        started = time.monotonic()
        assert cache.get("k", timeout=0.05) is None
        assert time.monotonic() - started <= 0.05 + ALLOWANCE


def test_impatient_callers_do_not_open_the_breaker(silent_port: int, server: PrivateServer) -> None:
    """Five callers with a millisecond each say nothing about Redis; the rest needs it."""
    with _open(CacheSettings(port=silent_port)) as cache:
        for _ in range(10):
            cache.get("k", timeout=0.001)
        assert cache.health().breaker == "closed"


def test_after_a_restart_hits_come_again_within_two_seconds(
    server: PrivateServer, cache: RedisCache, caplog: pytest.LogCaptureFixture
) -> None:
    """An outage that lasts longer than Redis's own is one that we made."""
    caplog.set_level(logging.INFO, "jmcache")
    cache.set("k", 1)
    server.kill()
    for _ in range(200):
        assert cache.get("k") is None
    _wait_for(lambda: cache.health().breaker == "open", within_s=2.0)
    server.start()
    _wait_for(lambda: cache.set("k", 2) and cache.get("k") == 2, within_s=2.0)
    _wait_for(lambda: "is back after" in caplog.text, within_s=2.0)  # said after the first answer
    levels = [record.levelname for record in caplog.records]
    assert levels == ["WARNING", "INFO"], "two lines for an outage of 200 calls"


def _name(cache: RedisCache, key: str) -> bytes:
    name, _ = KeySpace(cache.settings.namespace, cache.settings.schema_version).name(key)
    return name


def _stored(server: PrivateServer, cache: RedisCache, key: str) -> bytes:
    blob = server.command("GET", _name(cache, key))
    assert isinstance(blob, bytes)
    return blob


def test_an_entry_copied_to_another_key_is_corrupt_logged_and_removed(
    server: PrivateServer, cache: RedisCache, caplog: pytest.LogCaptureFixture
) -> None:
    """One candidate's matches under another's key: the worst thing a cache can do."""
    cache.set("mine", {"secret": "mine"})
    server.command("SET", _name(cache, "yours"), _stored(server, cache, "mine"))
    found = cache.lookup("yours")
    assert (found.outcome, found.value, found.reason) == (Outcome.CORRUPT, None, "wrong_key")
    assert server.command("EXISTS", _name(cache, "yours")) == 0
    assert cache.get("mine") == {"secret": "mine"}
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "mine" not in caplog.text
    assert "yours" not in caplog.text, "a digest, not the key"


def test_an_entry_of_a_future_version_is_a_miss_and_stays(
    server: PrivateServer, cache: RedisCache
) -> None:
    """In a rolling deploy the old replicas must not throw away what the new ones write."""
    cache.set("k", 1)
    blob = bytearray(_stored(server, cache, "k"))
    blob[2] += 1
    server.command("SET", _name(cache, "k"), bytes(blob))
    found = cache.lookup("k")
    assert (found.outcome, found.reason) == (Outcome.MISS, "version")
    assert server.command("EXISTS", _name(cache, "k")) == 1


def test_one_corrupt_entry_of_many_costs_only_itself(
    server: PrivateServer, cache: RedisCache
) -> None:
    """A page of twenty matches must not be empty for one bad entry."""
    cache.set_many({"a": 1, "b": 2, "c": 3})
    server.command("SET", _name(cache, "b"), b"garbage")
    assert cache.get_many(["a", "b", "c"]) == {"a": 1, "c": 3}
    assert server.command("EXISTS", _name(cache, "b")) == 0


def test_a_write_that_is_held_back_is_no_sign_of_life(clock: ManualClock) -> None:
    """It would close the breaker of a Redis that is still away, and log that it is back."""
    breaker = CircuitBreaker(1, 5.0, clock=clock, name="all")
    write_breaker = CircuitBreaker(1, 500.0, clock=clock, name="writes")
    cache = RedisCache(
        fake_manager(),
        CacheSettings(),
        retry=Retry(),
        breaker=breaker,
        write_breaker=write_breaker,
        health=HealthThread(lambda: None, lambda: False),
        outage=OutageLog("x"),
        write_outage=OutageLog("x for writes"),
        journal=Journal(),
        monitor=Monitor("x"),
    )
    with cache:
        for each in (breaker, write_breaker):
            each.record_failure()
        clock.advance(6.0)
        assert breaker.state is CircuitState.HALF_OPEN
        assert cache.set("k", 1) is False
        assert breaker.state is CircuitState.HALF_OPEN
        assert cache.get("k") is None
        assert breaker.state is CircuitState.CLOSED, "a read that got an answer is one"
        cache.set("k", 1)
        assert cache.stats().operations[("set", "refused", "writes_paused")] == 2
        cache._health.stop()


def test_a_full_redis_is_found_out_by_bundles_too(server: PrivateServer, cache: RedisCache) -> None:
    """A service that only writes pages would send each of them to be refused."""
    server.command("CONFIG", "SET", "maxmemory", "1")
    for _ in range(5):
        assert cache.set_many({"a": 1, "b": 2}) is False
    assert "writes_refused" in cache.health().reasons


def test_writes_that_are_held_back_are_told_of_at_the_end(
    server: PrivateServer, caplog: pytest.LogCaptureFixture
) -> None:
    """How much was not cached is what the operator wants to know of a full Redis."""
    caplog.set_level(logging.INFO, "jmcache")
    with _open(
        CacheSettings.from_url(server.url, failure_threshold=1, reset_timeout=0.05)
    ) as cache:
        server.command("CONFIG", "SET", "maxmemory", "1")
        cache.set("k", 1)
        held_back = sum(cache.set("k", 1) is False for _ in range(3))
        server.command("CONFIG", "SET", "maxmemory", "0")
        _wait_for(lambda: cache.set("k", 1), within_s=2.0)
        cache.get("k")
    lines = [record.getMessage() for record in caplog.records]
    assert held_back == 3
    assert len(lines) == 2
    assert "for writes" in lines[0]
    assert "oom" in lines[0]
    assert " 0 operations" not in lines[1]


def test_a_corrupt_entry_is_counted_also_where_only_its_being_there_is_asked(
    server: PrivateServer, cache: RedisCache
) -> None:
    """A counter that misses some of them hides who writes them."""
    server.command("SET", _name(cache, "k"), b"garbage")
    assert cache.exists("k") is False
    assert cache.stats().corrupt == 1
    assert server.command("EXISTS", _name(cache, "k")) == 0


def test_a_wrong_password_opens_the_breaker_at_once_and_is_never_shown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Eleven logins per call lock the account; a password in a log is a breach."""
    caplog.set_level(logging.DEBUG)
    with PrivateServer(password="right-" + SECRET) as server:
        url = server.url.replace("right-" + SECRET, "wrong-" + SECRET)
        settings = CacheSettings.from_url(url, username=None)
        with _open(settings) as cache:
            found = cache.lookup("k")
            assert (found.outcome, found.reason) == (Outcome.UNAVAILABLE, "auth")
            assert cache._breaker.state is CircuitState.OPEN
            for _ in range(20):
                cache.get("k")
            errors = [record for record in caplog.records if record.levelname == "ERROR"]
            assert len(errors) == 1
            assert "password" in errors[0].getMessage()
            shown = [repr(cache), repr(settings), str(settings), repr(cache.health().as_dict())]
            shown += [
                repr(cache.stats()),
                repr(cache._connection),
                repr(cache._connection._server.pool),
            ]
            shown += [str(record.__dict__) for record in caplog.records]
            shown.append(caplog.text)
            assert not any(SECRET in text for text in shown)


def test_a_password_is_used(caplog: pytest.LogCaptureFixture) -> None:
    """The plain case: a server with a password, and settings that have it."""
    with (
        PrivateServer(password=SECRET) as server,
        _open(CacheSettings.from_url(server.url)) as cache,
    ):
        assert cache.set("k", 1) is True
        assert cache.get("k") == 1
    assert SECRET not in caplog.text


def test_a_full_pool_is_saturated_and_nobody_elses_fault(silent_port: int) -> None:
    """A spike of ours must not read as an outage of Redis, nor end the use of it."""
    settings = CacheSettings(port=silent_port, max_connections=1, failure_threshold=1000)
    with _open(settings) as cache:
        busy = threading.Thread(target=lambda: cache.get("k", timeout=2.0))
        busy.start()
        _wait_for(lambda: cache.health().connections_in_use == 1, within_s=2.0)
        started = time.monotonic()
        found = cache.lookup("k")
        assert time.monotonic() - started <= D + ALLOWANCE
        assert found.outcome is Outcome.SATURATED
        assert found.reason == "pool_exhausted"
        busy.join(timeout=5)


def test_a_process_ends_at_once_whatever_redis_does(silent_port: int) -> None:
    """A worker that cannot be stopped is killed, and loses what it was doing."""
    program = (
        "import atexit, jmcache\n"
        f"c = jmcache.RedisCacheFactory.create_cache(jmcache.CacheSettings(port={silent_port}))\n"
        "c.get('k'); atexit.register(lambda: print(c.lookup('k').outcome))\n"
        "print('done', flush=True)\n"
    )
    ran = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert ran.stdout is not None
    assert ran.stdout.readline() == "done\n"
    started = time.monotonic()
    out, err = ran.communicate(timeout=10)
    assert time.monotonic() - started < 1.0 + ALLOWANCE
    assert (out, err, ran.returncode) == ("unavailable\n", "", 0)


def _wait_for(true: Callable[[], Any], *, within_s: float) -> None:
    ends_at = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < ends_at, f"not within {within_s} s"
        time.sleep(0.01)
