"""Servers that are gone, hang, or come back: the rows of the fault matrix about them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest
from observation import REFUSED_S, D, Observation, Watched, wait_for

from jmcache import CacheSettings
from jmcache.testing import PrivateServer


def settings(server: PrivateServer, **changes: object) -> CacheSettings:
    return CacheSettings.from_url(server.url, **changes)


def connections(server: PrivateServer) -> int:
    """How many the server has, without the test's own."""
    info = server.command("INFO", "clients")
    assert isinstance(info, bytes)
    return int(info.partition(b"connected_clients:")[2].split(b"\r")[0]) - 1


# Nobody there --------------------------------------------------------------------------------


@pytest.mark.fault_row(1)
@pytest.mark.parametrize("kind", ["tcp", "server"])
def test_a_server_that_is_not_there_costs_next_to_nothing(
    observe: Observation, request: pytest.FixtureRequest, kind: str
) -> None:
    """A deploy before Redis is up: 3.4 s for each read with redis-py's defaults."""
    away: PrivateServer = request.getfixturevalue(kind)
    away.stop()
    cache = observe.cache(settings(away))
    with observe.fault():
        observe.nothing(cache.within(REFUSED_S), "refused")
        away.start()
    observe.back(cache)
    assert observe.breaker == {"counts"}


@pytest.mark.fault_row(1)
def test_the_first_call_after_the_start_works(observe: Observation, tcp: PrivateServer) -> None:
    """A failure or two before must not keep a service from a cache that is there by now."""
    tcp.stop()
    cache = observe.cache(settings(tcp))
    with observe.fault():
        assert cache.within(REFUSED_S).get("k") is None
        tcp.start()
    assert cache.set("k", 1) is True
    assert cache.get("k") == 1


@pytest.mark.fault_row(1)
def test_awaited_calls_to_nobody_cost_next_to_nothing(
    observe: Observation, refusing_port: int
) -> None:
    """The loop serves everybody else, too."""

    async def use() -> None:
        cache = observe.async_cache(CacheSettings(port=refusing_port))
        with observe.fault():
            await observe.nothing_awaited(cache.within(REFUSED_S), "refused")
        await cache.aclose()

    asyncio.run(use())


@pytest.mark.fault_row(2)
def test_a_connection_request_that_is_swallowed_costs_the_deadline(
    observe: Observation, swallowing_port: int
) -> None:
    """A firewall that drops: 59.7 s for each read with redis-py's defaults."""
    cache = observe.cache(CacheSettings(port=swallowing_port))
    with observe.fault():
        observe.nothing(cache, "timeout")
    assert observe.breaker == {"counts"}


@pytest.mark.fault_row(4)
def test_a_server_that_never_answers_costs_the_deadline(
    observe: Observation, silent_port: int
) -> None:
    """A hung server would take every request with it: 58.7 s each with redis-py's defaults."""
    cache = observe.cache(CacheSettings(port=silent_port))
    with observe.fault():
        observe.nothing(cache, "timeout")
    assert observe.breaker == {"counts"}


@pytest.mark.fault_row(4)
def test_awaited_calls_to_a_silent_server_cost_the_deadline(
    observe: Observation, silent_port: int
) -> None:
    """A deadline for the socket alone would begin anew behind each queue."""

    async def use() -> None:
        cache = observe.async_cache(CacheSettings(port=silent_port))
        with observe.fault():
            await observe.nothing_awaited(cache, "timeout")
        await cache.aclose()

    asyncio.run(use())


# Killed, restarted ---------------------------------------------------------------------------


@pytest.mark.fault_row(5)
def test_a_kill_under_traffic_costs_the_downtime_and_a_second(
    observe: Observation, server: PrivateServer
) -> None:
    """An outage that lasts much longer than Redis's own is one that we made."""
    cache = observe.cache(settings(server))
    with observe.traffic(cache):
        wait_for(lambda: observe.values > 50)
        with observe.fault():
            server.kill()
            time.sleep(2.0)  # the downtime that the row asks for
            server.start()
        observe.back(cache, within_s=1.0)
        seen = observe.values
        wait_for(lambda: observe.values > seen + 50)
    assert observe.breaker == {"counts"}


@pytest.mark.fault_row(6)
def test_a_kill_while_idle_is_a_server_that_is_not_there(
    observe: Observation, server: PrivateServer
) -> None:
    """The connection in the pool looks alive: 3.8 s to find out with redis-py's defaults."""
    cache = observe.cache(settings(server))
    assert cache.set("k", 1) is True
    with observe.fault():
        server.kill()
        observe.nothing(cache.within(REFUSED_S), "refused")
        server.start()
    observe.back(cache)
    assert observe.breaker == {"counts"}


@pytest.mark.fault_row(7)
@pytest.mark.parametrize("end", ["stop", "kill"])
def test_the_first_call_after_a_restart_works(
    observe: Observation, server: PrivateServer, end: str
) -> None:
    """Every deploy of Redis would cost each worker a call: two of four peers lose it."""
    cache = observe.cache(settings(server, max_retries=0))  # it is seen, not tried
    assert cache.set("k", 1) is True
    with observe.fault():
        getattr(server, end)()
        server.start()
        assert cache.set("k", 2) is True
        assert cache.get("k") == 2
    assert observe.breaker == set()


@pytest.mark.fault_row(7)
def test_the_first_awaited_call_after_a_restart_works(
    observe: Observation, server: PrivateServer
) -> None:
    """redis.asyncio finds out by losing the call."""

    async def use() -> None:
        cache = observe.async_cache(settings(server, max_retries=0))
        assert await cache.set("k", 1) is True
        with observe.fault():
            server.stop()
            server.start()
            assert await cache.set("k", 2) is True
            assert await cache.get("k") == 2
        await cache.aclose()

    asyncio.run(use())
    assert observe.breaker == set()


# Hanging -------------------------------------------------------------------------------------


@pytest.mark.fault_row(8)
def test_a_stopped_server_costs_the_deadline_and_mixes_nothing_up(
    observe: Observation, server: PrivateServer
) -> None:
    """SIGSTOP is what a hung machine looks like; its late answers are to nobody's questions."""
    cache = observe.cache(settings(server))
    for number in range(10):
        cache.set(f"k{number}", [number])
    with observe.fault():
        server.pause()
        observe.nothing(cache, "timeout")
        server.resume()
    observe.back(cache)
    for number in range(10):
        assert cache.get(f"k{number}") == [number]
    assert observe.breaker == {"counts"}


@pytest.mark.fault_row(8)
def test_a_server_stopped_under_traffic_mixes_nothing_up(
    observe: Observation, server: PrivateServer
) -> None:
    """Eight threads have questions under way when it stops: the answers come all at once."""
    cache = observe.cache(settings(server))
    with observe.traffic(cache):
        wait_for(lambda: observe.values > 50)
        with observe.fault():
            server.pause()
            wait_for(lambda: cache.health().breaker != "closed")
            server.resume()
        observe.back(cache)
        seen = observe.values
        wait_for(lambda: observe.values > seen + 200)
    assert observe.breaker == {"counts"}


@pytest.mark.fault_row(9)
def test_paused_clients_are_served_again_when_the_pause_is_over(
    observe: Observation, server: PrivateServer
) -> None:
    """A failover begins with CLIENT PAUSE."""
    cache = observe.cache(settings(server))
    cache.set("k", 1)
    with observe.fault():
        server.command("CLIENT", "PAUSE", "2000", "ALL")
        observe.nothing(cache, "timeout")
        server.command("PING")  # comes back when the pause is over
    observe.back(cache)
    assert observe.breaker == {"counts"}


@pytest.fixture
def sleepy() -> Iterator[PrivateServer]:
    """A server that takes DEBUG."""
    server = PrivateServer()
    if server.binary.version.split(".")[0] >= "7":
        server = PrivateServer(args=("--enable-debug-command", "yes"))
    with server:
        yield server


@pytest.mark.fault_row(29)
def test_a_server_that_is_blocked_costs_the_deadline(
    observe: Observation, sleepy: PrivateServer
) -> None:
    """One slow command holds up everybody behind it."""
    cache = observe.cache(settings(sleepy))
    cache.set("k", 1)
    blocked = threading.Thread(target=sleepy.command, args=("DEBUG", "SLEEP", "2"))
    with observe.fault():
        blocked.start()
        wait_for(lambda: cache.get("k") is None)
        observe.nothing(cache, "timeout")
        blocked.join(timeout=10)
    observe.back(cache)
    assert observe.breaker == {"counts"}


# Connections that the server ends ------------------------------------------------------------


@pytest.mark.fault_row(34)
@pytest.mark.parametrize("kind", ["tcp", "server"])
def test_a_server_without_room_for_us_says_so(
    observe: Observation, request: pytest.FixtureRequest, kind: str
) -> None:
    """The operator has to read what is short, and nobody waits seconds for it."""
    full: PrivateServer = request.getfixturevalue(kind)
    full.command("CONFIG", "SET", "maxclients", "1")  # the test's own
    cache = observe.cache(settings(full))
    with observe.fault():
        observe.nothing(cache, "maxclients")
        full.command("CONFIG", "SET", "maxclients", "1000")
    observe.back(cache)
    assert observe.breaker == {"counts"}


@pytest.mark.fault_row(34)
def test_what_a_full_server_says_is_heard_and_room_used_with_the_next_call(
    observe: Observation, server: PrivateServer
) -> None:
    """It may close before it was told anything: the operator would read of a reset. And a short
    peak of somebody else's connections must not become an outage of ours.
    """
    server.command("CONFIG", "SET", "maxclients", "1")
    patient = {"max_retries": 0, "failure_threshold": 1000, "failure_rate_threshold": None}
    cache = observe.cache(settings(server, **patient))
    with observe.fault():
        for _ in range(200):
            assert cache.lookup("k").reason == "maxclients"
        server.command("CONFIG", "SET", "maxclients", "1000")
    assert cache.set("k", 1) is True


def _works_at_once(cache: Watched) -> None:
    assert cache.set("k", 2) is True
    assert cache.get("k") == 2
    assert cache.get_many(["k"]) == {"k": 2}


@pytest.mark.fault_row(35)
def test_the_call_after_an_idle_connection_was_closed_works(observe: Observation) -> None:
    """After every quiet minute a customer would be the one to find out."""
    with PrivateServer(args=("--timeout", "1")) as server:
        cache = observe.cache(settings(server, max_retries=0))
        assert cache.set("k", 1) is True
        with observe.fault():
            wait_for(lambda: connections(server) == 0)
            _works_at_once(cache)
        assert observe.breaker == set()


@pytest.mark.fault_row(36)
def test_the_call_after_client_kill_works(observe: Observation, server: PrivateServer) -> None:
    """An operator tidies up connections, and every worker loses a call."""
    cache = observe.cache(settings(server, max_retries=0))
    assert cache.set("k", 1) is True
    with observe.fault():
        server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        _works_at_once(cache)
    assert observe.breaker == set()


@pytest.mark.fault_row(36)
def test_kills_under_traffic_mix_nothing_up(observe: Observation, server: PrivateServer) -> None:
    """A reply cut off by the kill must not be completed by the next connection's."""
    cache = observe.cache(settings(server))
    with observe.traffic(cache):
        wait_for(lambda: observe.values > 50)
        with observe.fault():
            for _ in range(50):
                seen = observe.values
                server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                wait_for(lambda seen=seen: observe.values > seen)
        observe.back(cache)


def test_the_default_deadline_is_the_one_the_matrix_speaks_of() -> None:
    """Its figures would be of another library."""
    assert CacheSettings().operation_timeout == D
