"""Slow, broken and lying connections: the rows of the fault matrix about the way to Redis."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import tracemalloc
from collections.abc import Callable

import pytest
from observation import Observation, Watched, wait_for

from jmcache import Outcome
from jmcache.testing import Fault, FaultProxy

Break = Callable[[FaultProxy], Fault]

GREETING = {b"AUTH", b"SELECT", b"CLIENT"}
MEGABYTE = os.urandom(500_000).hex()  # as text: and it does not get much smaller


def ends(observe: Observation, proxy: FaultProxy, break_it: Break, *reasons: str) -> Watched:
    """A cache loses its connections to a fault, with every operation, and gets over it."""
    cache = observe.cache(proxy.settings())
    assert cache.set("k", "mine")
    assert cache.get("k") == "mine"
    with observe.fault():
        fault = break_it(proxy)
        observe.nothing(cache, *reasons)
        assert fault.triggered > 0
        proxy.heal()
    observe.back(cache)
    assert observe.breaker == {"counts"}
    assert cache.set("k", "mine again")
    assert cache.get("k") == "mine again"
    return cache


def ends_awaited(observe: Observation, proxy: FaultProxy, break_it: Break, *reasons: str) -> None:
    """The same, awaited."""

    async def main() -> None:
        cache = observe.async_cache(proxy.settings())
        await cache.set("k", "mine")
        with observe.fault():
            break_it(proxy)
            await observe.nothing_awaited(cache, *reasons)
            proxy.heal()
        await asyncio.to_thread(observe.back, observe.watch(cache.sync))
        assert await cache.set("k", "mine again")
        assert await cache.get("k") == "mine again"
        await cache.aclose()

    asyncio.run(main())


# Slow ----------------------------------------------------------------------------------------


@pytest.mark.fault_row(10)
def test_a_slow_line_within_the_deadline_is_full_service(
    proxy: FaultProxy, observe: Observation
) -> None:
    """Redis in another zone is 50 ms away, and no outage."""
    cache = observe.cache(proxy.settings(operation_timeout=5.0))  # busy machines are slow as well
    with observe.fault(), proxy.latency(0.05):
        assert cache.set("k", 1) is True
        assert cache.get("k") == 1
        assert cache.set_many({"k": 1, "l": 2}) is True
        assert cache.get_many(["k", "l", "m"]) == {"k": 1, "l": 2}
        assert cache.exists("l") is True
        assert cache.delete("l") is True
        assert cache.delete_many(["k", "l"]) == 1
    assert observe.breaker == set()
    assert cache.health().status == "ok"


@pytest.mark.fault_row(10)
def test_a_line_slower_than_the_deadline_degrades_opens_and_recovers(
    proxy: FaultProxy, observe: Observation
) -> None:
    """Each call would time out, and each request with it."""
    ends(observe, proxy, lambda p: p.latency(0.3), "timeout")


@pytest.mark.fault_row(10)
def test_awaited_calls_over_a_slow_line_degrade_and_recover(
    proxy: FaultProxy, observe: Observation
) -> None:
    """The event loop may not wait either."""
    ends_awaited(observe, proxy, lambda p: p.latency(0.3, jitter_s=0.1), "timeout")


@pytest.mark.fault_row(11)
def test_a_reply_that_drips_costs_the_deadline(proxy: FaultProxy, observe: Observation) -> None:
    """Each byte comes within any socket's timeout: 41.5 s for 200 of them with redis-py."""
    cache = ends(observe, proxy, lambda p: p.drip(every_s=0.2), "timeout")
    cache.set("long", "x" * 200)
    with observe.fault(), proxy.drip(size=1, every_s=0.02, on=b"GET"):
        assert cache.get("long") is None


@pytest.mark.fault_row(11)
def test_an_awaited_reply_that_drips_costs_the_deadline(
    proxy: FaultProxy, observe: Observation
) -> None:
    """A thread of the executor that waits 41.5 s is gone for everybody."""
    ends_awaited(observe, proxy, lambda p: p.drip(every_s=0.2), "timeout")


@pytest.mark.fault_row(12)
def test_a_megabyte_over_a_narrow_line_costs_the_deadline_and_the_connection(
    proxy: FaultProxy, observe: Observation
) -> None:
    """5.2 s with a socket timeout of 0.25 s. What is left of the reply must meet nobody."""
    cache = observe.cache(proxy.settings())
    assert cache.set("big", MEGABYTE, timeout=10.0)
    assert cache.get("big", timeout=10.0) == MEGABYTE
    known = proxy.connections_total
    with observe.fault(), proxy.bandwidth(200_000) as narrow:
        assert cache.get("big") is None
        assert cache.lookup("big").reason == "timeout"
        assert proxy.connections_total > known, "the same connection would have the rest to read"
        # Less of it: packing a megabyte takes a busy machine the time of a call.
        assert cache.set("large", MEGABYTE[:200_000]) is False
        narrow.remove()
    observe.back(cache)
    assert cache.get("big", timeout=10.0) == MEGABYTE


@pytest.mark.fault_row(13)
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_reply_that_stops_half_way_costs_the_deadline_and_mixes_nothing_up(
    proxy: FaultProxy, observe: Observation, after: int
) -> None:
    """58 s with redis-py's defaults. The other half arrives in the end."""
    ends(observe, proxy, lambda p: p.stall(after=after), "timeout")


@pytest.mark.fault_row(13)
def test_an_awaited_reply_that_stops_half_way_costs_the_deadline(
    proxy: FaultProxy, observe: Observation
) -> None:
    """A hundred awaits on one stalled Redis are a hundred requests."""
    ends_awaited(observe, proxy, lambda p: p.stall(after=1), "timeout")


# Broken --------------------------------------------------------------------------------------

BROKEN: dict[str, tuple[Break, set[str]]] = {
    "half-closed": (lambda p: p.half_close(), {"eof", "reset"}),
    "reset before": (lambda p: p.reset(), {"reset"}),
    "reset within": (lambda p: p.reset(after=3), {"reset"}),
    "truncated": (lambda p: p.truncate(after=3), {"eof", "reset"}),
}
_BREAKS = [
    pytest.param("half-closed", marks=pytest.mark.fault_row(14)),
    pytest.param("reset before", marks=pytest.mark.fault_row(15)),
    pytest.param("reset within", marks=pytest.mark.fault_row(15)),
    pytest.param("truncated", marks=pytest.mark.fault_row(16)),
]


@pytest.mark.parametrize("how", _BREAKS)
def test_a_broken_connection_is_a_failure_that_passes(
    proxy: FaultProxy, observe: Observation, how: str
) -> None:
    """4.7 s of retries with redis-py's defaults; and half a reply must never be a value."""
    break_it, reasons = BROKEN[how]
    # A retry that found no time is a timeout, on a machine that is slow enough.
    ends(observe, proxy, break_it, *reasons, "timeout")
    assert {o.partition(" ")[2] for o in observe.outcomes} & reasons


@pytest.mark.parametrize("how", _BREAKS)
def test_an_awaited_broken_connection_is_a_failure_that_passes(
    proxy: FaultProxy, observe: Observation, how: str
) -> None:
    """The same, for coroutines."""
    break_it, reasons = BROKEN[how]
    ends_awaited(observe, proxy, break_it, *reasons, "timeout")


@pytest.mark.parametrize("how", _BREAKS)
def test_a_connection_that_breaks_once_costs_a_retry(
    proxy: FaultProxy, observe: Observation, how: str
) -> None:
    """A load balancer that is restarted breaks every connection once. Nobody need notice."""
    cache = observe.cache(proxy.settings(operation_timeout=5.0, initial_backoff_ms=1))
    assert cache.set("k", "mine")
    break_once = {
        "half-closed": lambda: proxy.half_close(on=b"GET", times=1),
        "reset before": lambda: proxy.reset(on=b"GET", times=1),
        "reset within": lambda: proxy.reset(after=3, on=b"GET", times=1),
        "truncated": lambda: proxy.truncate(after=3, on=b"GET", times=1),
    }
    with observe.fault():
        broken = break_once[how]()
        assert cache.get("k") == "mine"
        assert broken.triggered == 1
    assert cache.stats().retries == 1
    assert cache.health().breaker == "closed"


@pytest.mark.parametrize("how", _BREAKS)
def test_connections_that_break_under_traffic_mix_nothing_up(
    proxy: FaultProxy, observe: Observation, how: str
) -> None:
    """Every third reply is lost in a network that is being repaired."""
    cache = observe.cache(proxy.settings(failure_threshold=1000))
    seen = 0

    def every_third(words: list[bytes]) -> bool:
        nonlocal seen
        counts = words[0] not in GREETING
        seen += counts
        return counts and seen % 3 == 0

    break_it = {
        "half-closed": lambda: proxy.half_close(on=every_third),
        "reset before": lambda: proxy.reset(on=every_third),
        "reset within": lambda: proxy.reset(after=3, on=every_third),
        "truncated": lambda: proxy.truncate(after=3, on=every_third),
    }
    with observe.traffic(cache), observe.fault():
        fault = break_it[how]()
        fault.wait(100, timeout_s=30)
        proxy.heal()
    observe.back(cache)
    assert observe.values > 0


# Lying ---------------------------------------------------------------------------------------

GARBAGE = {
    "web server": b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    "another server": b"SSH-2.0-OpenSSH_9.2\r\n",
    "mail server": b"+OK POP3 server ready\r\n",  # begins as the answer to a SET does
    "bytes": bytes(range(128, 256)) * 20,
    "text without end": b"x" * 100_000,
}


@pytest.mark.fault_row(17)
@pytest.mark.parametrize("what", GARBAGE)
def test_what_is_no_redis_is_no_value(proxy: FaultProxy, observe: Observation, what: str) -> None:
    """django-redis hands the parser's error to the page."""
    ends(observe, proxy, lambda p: p.garbage(GARBAGE[what]), "protocol")


@pytest.mark.fault_row(17)
def test_what_is_no_redis_is_no_value_for_coroutines(
    proxy: FaultProxy, observe: Observation
) -> None:
    """A port that was given to another service answers something else for good."""
    ends_awaited(observe, proxy, lambda p: p.garbage(), "protocol")


@pytest.mark.fault_row(22)
@pytest.mark.parametrize(
    "reply", [b":42\r\n", b"+OK\r\n", b"*1\r\n$1\r\nx\r\n", b"*0\r\n", b"_\r\n"]
)
def test_a_reply_of_another_kind_is_no_value(
    proxy: FaultProxy, observe: Observation, reply: bytes
) -> None:
    """django-redis hands the 42 to the page."""
    cache = observe.cache(proxy.settings())
    assert cache.set("k", "mine")
    with observe.fault(), proxy.garbage(reply, on=b"GET"):
        for _ in range(3):
            assert cache.lookup("k").reason == "protocol"
            assert cache.get_many(["k", "l"]) in ({}, {"k": "mine"})
    observe.back(cache)
    assert cache.get("k") == "mine"


ABSURD = {
    "list": b"*2147483647\r\n",
    "string": b"$536870912\r\n" + b"x" * 100_000,
    "list for a list": b"*2147483647\r\n$-1\r\n",
    "negative": b"$-2147483647\r\n",
    "longest number": b"$" + b"9" * 5000 + b"\r\n",
    "depth": b"*1\r\n" * 100_000,
    "error": b"-" + b"E" * 1_000_000,
}


@pytest.mark.fault_row(23)
@pytest.mark.parametrize("what", ABSURD)
def test_an_absurd_size_is_refused_before_anything_is_reserved(
    proxy: FaultProxy, observe: Observation, what: str
) -> None:
    """`*2147483647` takes redis-py 16 GB and 90 s."""
    cache = observe.cache(proxy.settings(failure_threshold=1000))
    assert cache.set("k", "mine")
    tracemalloc.start()
    try:
        with observe.fault(), proxy.garbage(ABSURD[what]):
            found = cache.lookup("k")
            assert found.value is None
            assert found.reason in ("protocol", "too_large")
            assert cache.get_many(["k", "l"]) == {}
            assert cache.set("l", 1) is False
            assert cache.delete("l") is False
        # The proxy has it in its memory, too.
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    observe.back(cache)


# Out of step ---------------------------------------------------------------------------------


def ends_exchange(words: list[bytes]) -> bool:
    """Reads and writes of one entry end with the namespace's counter."""
    return words[0] == b"GET" and words[1].endswith(b"#")


SURPLUS: dict[str, Break] = {
    "value": lambda p: p.surplus(on=ends_exchange),
    "nothing": lambda p: p.surplus(b"$-1\r\n", on=ends_exchange),
    "ok": lambda p: p.surplus(b"+OK\r\n", on=ends_exchange),
}


@pytest.mark.fault_row(18)
@pytest.mark.parametrize("what", SURPLUS)
def test_a_reply_too_many_is_found_before_the_next_command(
    proxy: FaultProxy, observe: Observation, what: str
) -> None:
    """Every later value belongs to another key, for ever, with redis-py's defaults."""
    _stays_in_step(proxy, observe, SURPLUS[what])


@pytest.mark.fault_row(20)
def test_replies_that_come_twice_are_found_before_the_next_command(
    proxy: FaultProxy, observe: Observation
) -> None:
    """The second one looks right: only its place is wrong."""
    _stays_in_step(proxy, observe, lambda p: p.duplicate(on=ends_exchange))


def _stays_in_step(proxy: FaultProxy, observe: Observation, break_it: Break) -> None:
    # The connection is made anew for every call, which takes its time on a busy machine.
    cache = observe.cache(proxy.settings(operation_timeout=2.0))
    for number in range(10):
        assert cache.set(f"k{number}", number)
    with observe.fault():
        fault = break_it(proxy)
        for number in range(10):
            assert cache.set(f"k{number}", number)
            assert cache.get(f"k{number}") == number, "and a value, not a miss"
        proxy.heal()
    counted = cache.sync._connection.usage().surplus
    assert fault.triggered == 20
    assert fault.triggered - 1 <= counted <= fault.triggered, "the last one waits to be found"
    assert cache.health().status == "ok"
    observe.back(cache)


AMID: dict[str, Break] = {
    "value": lambda p: p.surplus(on=b"GET"),
    "nothing": lambda p: p.surplus(b"$-1\r\n", on=b"GET"),
    "ok": lambda p: p.surplus(b"+OK\r\n", on=b"SET"),
    "number": lambda p: p.surplus(b":1\r\n", on=b"UNLINK"),
    "counter": lambda p: p.surplus(b"$16\r\n1234567890123456\r\n", on=b"GET"),
    "entry twice": lambda p: p.duplicate(on=lambda w: w[0] == b"GET" and not ends_exchange(w)),
}


@pytest.mark.fault_row(20)
def test_when_everything_comes_twice_nothing_is_mixed_up(
    proxy: FaultProxy, observe: Observation
) -> None:
    """Several commands in one exchange: the second reply is the next command's."""
    _mixes_nothing_up(proxy, observe, lambda p: p.duplicate())


@pytest.mark.fault_row(18)
@pytest.mark.parametrize("what", AMID)
def test_a_reply_too_many_amid_an_exchange_is_nobodys_value(
    proxy: FaultProxy, observe: Observation, what: str
) -> None:
    """It takes the place of a reply of the same exchange: a miss then, or a write that is not
    confirmed. What is behind it is found before the next command.
    """
    _mixes_nothing_up(proxy, observe, AMID[what])


def _mixes_nothing_up(proxy: FaultProxy, observe: Observation, break_it: Break) -> None:
    cache = observe.cache(proxy.settings(operation_timeout=2.0, failure_threshold=1000))
    for number in range(10):
        assert cache.set(f"k{number}", number)
    with observe.fault():
        fault = break_it(proxy)
        for number in range(10):
            cache.set(f"k{number}", number)
            assert cache.get(f"k{number}") in (number, None)
            found = cache.get_many([f"k{number}", f"k{(number + 1) % 10}"])
            assert found.items() <= {f"k{each}": each for each in range(10)}.items()
            cache.delete(f"k{number}")
        assert fault.triggered >= 10
        proxy.heal()
    observe.back(cache)
    for number in range(10):
        assert cache.set(f"k{number}", number)
        assert cache.get(f"k{number}") == number


LATE: dict[str, Break] = {
    "another's value": lambda p: p.duplicate(late=True, on=b"GET"),
    "foreign value": lambda p: p.surplus(late=True, on=b"GET"),
    "nothing": lambda p: p.surplus(b"$-1\r\n", late=True, on=b"GET"),
    "ok": lambda p: p.surplus(b"+OK\r\n", late=True),
    "number": lambda p: p.surplus(b":1\r\n", late=True),
    "everything twice": lambda p: p.duplicate(late=True),
}


@pytest.mark.fault_row(19)
@pytest.mark.parametrize("what", LATE)
def test_a_reply_too_many_that_comes_after_the_check_is_nobodys_value(
    proxy: FaultProxy, observe: Observation, what: str
) -> None:
    """No look at the connection can find it: the key in the value does."""
    cache = observe.cache(proxy.settings(operation_timeout=2.0, failure_threshold=1000))
    for number in range(10):
        assert cache.set(f"k{number}", number)
    with observe.fault():
        fault = LATE[what](proxy)
        for number in range(30):
            cache.get(f"k{number % 10}")  # `observe` holds the value against the key
            cache.get(f"k{(number + 1) % 10}")  # one value is asked for where another comes
            cache.get_many([f"k{number % 10}", f"k{(number + 1) % 10}"])
            cache.set(f"k{number % 10}", number % 10)
        assert fault.triggered > 0
        proxy.heal()
    observe.back(cache)
    for number in range(10):
        assert cache.set(f"k{number}", number)
        assert cache.get(f"k{number}") == number


@pytest.mark.fault_row(19)
def test_anothers_value_is_told_once_and_every_connection_is_dropped(
    proxy: FaultProxy, observe: Observation
) -> None:
    """Where one is out of step, the others had the same network."""
    cache = observe.cache(proxy.settings(operation_timeout=2.0))
    assert cache.set_many({"k": "k's", "l": "l's"})
    _use_several_connections(proxy, cache, 4)
    known = proxy.connections_total
    with observe.fault():
        proxy.duplicate(late=True, on=b"GET", times=1)
        assert cache.get("k") == "k's"
        found = cache.lookup("l")
        assert (found.outcome, found.reason, found.value) == (Outcome.CORRUPT, "wrong_key", None)
    # Those that were there are gone; the one that took the wrong entry away is new.
    proxy.wait_until(lambda: proxy.connections - (proxy.connections_total - known) <= 0)
    assert [record.levelname for record in observe.log].count("ERROR") == 1
    assert cache.get("k") == "k's"
    assert cache.get("l") is None
    assert cache.stats().corrupt == 1
    assert cache.health().breaker == "closed"
    observe.back(cache)


@pytest.mark.parametrize(
    "late",
    [
        pytest.param(False, marks=pytest.mark.fault_row(20), id="before"),
        pytest.param(True, marks=pytest.mark.fault_row(19), id="after the check"),
    ],
)
def test_replies_that_come_twice_under_traffic_mix_nothing_up(
    proxy: FaultProxy, observe: Observation, late: bool
) -> None:
    """64,540 wrong values in a minute with redis-py's defaults."""
    cache = observe.cache(proxy.settings(failure_threshold=1000))
    with observe.traffic(cache), observe.fault():
        twice = proxy.duplicate(late=late)
        twice.wait(300, timeout_s=30)
        proxy.heal()
    observe.back(cache)


@pytest.mark.fault_row(19)
def test_replies_that_come_twice_are_no_awaited_value(
    proxy: FaultProxy, observe: Observation
) -> None:
    """Gathered reads share a connection: one shift is many wrong values."""

    async def main() -> None:
        cache = observe.async_cache(proxy.settings(failure_threshold=1000))
        for number in range(10):
            assert await cache.set(f"k{number}", number)
        with observe.fault():
            proxy.duplicate(late=True)
            for _ in range(10):
                await asyncio.gather(*(cache.get(f"k{number}") for number in range(10)))
            proxy.heal()
        await asyncio.to_thread(observe.back, observe.watch(cache.sync))
        await cache.aclose()

    asyncio.run(main())


@pytest.mark.fault_row(21)
@pytest.mark.parametrize("late_s", [0.6, 6.0])
def test_a_reply_after_our_timeout_belongs_to_nobody(
    proxy: FaultProxy, observe: Observation, late_s: float
) -> None:
    """It broke in three clients: the next question on that connection got its answer."""
    cache = observe.cache(proxy.settings())
    assert cache.set_many({"k": "k's", "l": "l's"})
    with observe.fault():
        late = proxy.latency(late_s, on=b"GET", times=1)
        began = time.monotonic()
        assert cache.get("k") is None
        assert late.triggered == 1
        if late_s > 1.0:
            proxy.heal()  # and with it the reply comes
        while time.monotonic() - began < min(late_s, 1.0):
            assert cache.get("l") in ("l's", None)
            assert cache.get("k") in ("k's", None)
    observe.back(cache)
    assert (cache.get("k"), cache.get("l")) == ("k's", "l's")


@pytest.mark.fault_row(21)
def test_an_awaited_reply_after_our_timeout_belongs_to_nobody(
    proxy: FaultProxy, observe: Observation
) -> None:
    """redis-py #4283: about 2,000 of them in three days of production."""

    async def main() -> None:
        cache = observe.async_cache(proxy.settings(failure_threshold=1000))
        for number in range(10):
            assert await cache.set(f"k{number}", number)
        with observe.fault():
            proxy.latency(0.4, on=b"GET", times=5)
            for _ in range(5):
                await asyncio.gather(*(cache.get(f"k{number}") for number in range(10)))
            proxy.heal()
        await asyncio.to_thread(observe.back, observe.watch(cache.sync))
        for number in range(10):
            assert await cache.get(f"k{number}") == number
        await cache.aclose()

    asyncio.run(main())


def _use_several_connections(proxy: FaultProxy, cache: Watched, count: int) -> None:
    """Leave *count* idle connections in the pool."""
    with proxy.stall(on=b"GET") as held:
        callers = [threading.Thread(target=cache.sync.get, args=("k",)) for _ in range(count)]
        for caller in callers:
            caller.start()
        held.wait(count)
    for caller in callers:
        caller.join(timeout=5)
    wait_for(lambda: cache.health().connections_in_use == 0)
    assert proxy.connections >= count
