"""What all tests share: servers of their own, one per xdist worker, and a clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest
from certificates import Certificates

from jmcache.circuit_breaker import CircuitBreaker, Transition
from jmcache.monitoring import _voice
from jmcache.settings import CacheSettings
from jmcache.testing import (
    ManualClock,
    PrivateCluster,
    PrivateServer,
    RedisServerNotFound,
    find_server,
)

# On a busy machine any single example may take long, which says nothing about the code. The
# examples are the same in each run, so that no change is held up by what it did not touch; others
# are looked for with `make test ARGS=--hypothesis-profile=random`.
hypothesis.settings.register_profile("jmcache", deadline=None, derandomize=True)
hypothesis.settings.register_profile("random", deadline=None)
hypothesis.settings.load_profile("jmcache")

pytest_plugins = ["matrix"]  # tests/faults/matrix.py

SERVER_FIXTURES = frozenset(
    {"valkey_server", "redis_server", "tcp_server", "redis_cluster", "settings"}
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if SERVER_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("redis")


@pytest.fixture
def clock() -> ManualClock:
    """A clock that stands at 1000.0 s until the test advances it."""
    return ManualClock()


@pytest.fixture
def breaker(clock: ManualClock) -> Iterator[CircuitBreaker]:
    """Opens after three failures, for 30 s."""
    breaker = CircuitBreaker(3, 30.0, 1, clock, name="test")
    yield breaker
    breaker.close()


@pytest.fixture
def told(breaker: CircuitBreaker) -> list[Transition]:
    """Every change of *breaker*."""
    told: list[Transition] = []
    breaker.on_change(told.append)
    return told


@pytest.fixture(autouse=True)
def _no_line_comes_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log lines are spoken on a thread; on a busy machine a test would look before it has them."""
    monkeypatch.setattr(_voice, "WAIT_S", 10.0)


@pytest.fixture(scope="session")
def _unix_server() -> Iterator[PrivateServer]:
    with _server() as server:
        yield server


@pytest.fixture(scope="session")
def _port_server() -> Iterator[PrivateServer]:
    with _server(tcp=True) as server:
        yield server


@pytest.fixture
def redis_server(_unix_server: PrivateServer) -> PrivateServer:
    """A real server on a Unix socket: running, empty, and free to be paused, stopped or killed.

    The next test gets it running again, with its configuration as it was.
    """
    return _as_new(_unix_server)


@pytest.fixture
def tcp_server(_port_server: PrivateServer) -> PrivateServer:
    """As redis_server, on a port of 127.0.0.1."""
    return _as_new(_port_server)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Certificates for 127.0.0.1."""
    return Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def _valkey() -> Iterator[PrivateServer]:
    try:
        binary = find_server("valkey")
    except RedisServerNotFound as error:  # it comes with the extra "test" where there is one
        pytest.skip(str(error))
    with PrivateServer(tcp=True, password="hemlig", binary=binary) as server:
        yield server


@pytest.fixture
def valkey_server(_valkey: PrivateServer) -> PrivateServer:
    """As tcp_server, but Valkey, and with a password."""
    return _as_new(_valkey)


@pytest.fixture(scope="session")
def _three_masters() -> Iterator[PrivateCluster]:
    try:
        cluster = PrivateCluster()
    except RedisServerNotFound as error:
        pytest.fail(str(error), pytrace=False)
    with cluster:
        yield cluster


@pytest.fixture
def redis_cluster(_three_masters: PrivateCluster) -> PrivateCluster:
    """Three masters with a replica each: all running, empty, and free to be broken as above."""
    _three_masters.start()
    for master in _three_masters.masters():
        master.command("FLUSHALL")
    return _three_masters


@pytest.fixture
def settings(redis_server: PrivateServer) -> Callable[..., CacheSettings]:
    """Settings for redis_server: ``settings(operation_timeout=0.5)``."""

    def make(**overrides: Any) -> CacheSettings:
        return CacheSettings.from_url(redis_server.url, **{"namespace": "test", **overrides})

    return make


def _server(**kwargs: Any) -> PrivateServer:
    try:
        return PrivateServer(**kwargs)
    except RedisServerNotFound as error:  # a failure, not a skip: "all tests passed" means all
        pytest.fail(str(error), pytrace=False)


def _as_new(server: PrivateServer) -> PrivateServer:
    server.restore()
    server.command("FLUSHALL")
    return server
