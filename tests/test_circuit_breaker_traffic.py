"""The breaker in its place, before a server: what reaches the server, and what opens it."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from breaker_kit import CLOSED, HALF_OPEN, OPEN, WAIT_S
from scripted_server import Client, ScriptedServer, answering

from jmcache import (
    AsyncRedisCache,
    CacheSettings,
    CircuitBreaker,
    Outcome,
    RedisCache,
    RedisCacheFactory,
)
from jmcache.circuit_breaker import Transition
from jmcache.factory import _Backend
from jmcache.testing import FaultProxy, PrivateServer

ABSENT = b"$-1\r\n"
LOADING = b"-LOADING Redis is loading the dataset in memory\r\n"
OOM = b"-OOM command not allowed when used memory > 'maxmemory'.\r\n"
PROBE = {b"PING", b"CLIENT"}  # what the health thread sends, and what a connection begins with

OPERATIONS: list[Callable[[RedisCache], object]] = [
    lambda cache: cache.get("k"),
    lambda cache: cache.lookup("k"),
    lambda cache: cache.get_many(["k", "l"]),
    lambda cache: cache.exists("k"),
    lambda cache: cache.set("k", 1),
    lambda cache: cache.set_many({"k": 1, "l": 2}),
    lambda cache: cache.delete("k"),
    lambda cache: cache.delete_many(["k", "l"]),
]


@contextmanager
def cache_of(settings: CacheSettings) -> Iterator[RedisCache]:
    with RedisCacheFactory.create_cache(settings) as cache:
        assert isinstance(cache, RedisCache)
        yield cache


def patient(server: ScriptedServer, **overrides: Any) -> CacheSettings:
    """Settings with which no call is late, however busy the machine."""
    return server.settings(**{"operation_timeout": WAIT_S, **overrides})


def wait_for(condition: Callable[[], object]) -> None:
    give_up_at = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.001)


def ask_until(condition: Callable[[], object], ask: Callable[[], object]) -> None:
    for _ in range(60):
        if condition():
            return
        ask()
    raise AssertionError("asked 60 times, to no avail")


def is_read(words: list[bytes]) -> bool:
    """Is it the first command of one read? The second one asks for the namespace's counter."""
    return words[0] == b"GET" and not words[1].endswith(b"#")


def reading(*answers: bytes | Callable[[Client], None]) -> Callable[[Client], None]:
    """Give *answers* to reads of one entry in their order, the last for ever."""
    return answering(*[each for answer in answers for each in (answer, ABSENT)][:-1], ABSENT)


def reads(server: ScriptedServer) -> list[list[bytes]]:
    """The reads that it was asked."""
    return [words for words in server.asked() if is_read(words)]


def told_by(breaker: CircuitBreaker) -> list[Transition]:
    told: list[Transition] = []
    breaker.on_change(told.append)
    return told


def in_turn(which: Callable[[list[bytes]], bool], pattern: str) -> Callable[[list[bytes]], bool]:
    """A trigger for such commands: "FFFFs" strikes four of five."""
    turns = itertools.cycle(pattern)
    return lambda words: which(words) and next(turns) == "F"


# B7: what is not Redis's fault ------------------------------------------------------------------


def test_the_wait_for_a_connection_makes_no_call_slow():
    """B7: twenty callers in a row on one connection; Redis took its time for the first alone."""
    limit_s = 0.1

    def script(client: Client) -> None:
        for words in iter(client.command, None):
            if is_read(words):
                all_wait = not gets
                gets.append(words)
                if all_wait:
                    wait_for(lambda: len(pool._waiters) == 19)
                    time.sleep(1.5 * limit_s)
                client.send(ABSENT)
            else:
                others = {b"GET": ABSENT, b"PING": b"+PONG\r\n"}
                client.send(others.get(words[0], b"+OK\r\n"))

    gets: list[list[bytes]] = []
    with (
        ScriptedServer(script) as server,
        cache_of(
            patient(server, max_connections=1, slow_call_threshold=limit_s, rate_min_calls=20)
        ) as cache,
    ):
        pool = cache._connection._server.pool
        with ThreadPoolExecutor(20) as threads:
            found = list(threads.map(cache.exists, ["k"] * 20))  # unlike gets, each for itself
        assert found == [False] * 20
        assert len(gets) == 20
        window = cache._breaker._moment.window
        assert window is not None
        assert window.tally(time.monotonic())[1:] == (0, 1)
        assert cache._breaker.state is CLOSED


# B13 and B1: what reaches the server ------------------------------------------------------------


def test_while_it_is_open_not_one_byte_reaches_the_server_but_the_probes():
    """B13: a server that struggles to its feet needs every caller to leave it alone."""
    with (
        ScriptedServer(answering(LOADING)) as server,
        cache_of(patient(server, max_retries=0)) as cache,
    ):
        ask_until(lambda: cache._breaker.state is OPEN, lambda: cache.get("k"))
        begin, over = len(server.commands), threading.Event()
        answers: list[object] = []

        def work(number: int) -> None:
            while not over.is_set():
                operation = OPERATIONS[number % len(OPERATIONS)]
                answers.append(operation(cache))
                number += 1
                time.sleep(0.001)

        async def awaited() -> None:
            async_cache = AsyncRedisCache(cache)
            for _ in range(5):
                await asyncio.gather(*(async_cache.get("k") for _ in range(20)))

        with ThreadPoolExecutor(16) as threads:
            for number in range(16):
                threads.submit(work, number)
            asyncio.run(awaited())
            wait_for(lambda: cache._health.failures >= 3)
            over.set()
        assert cache._breaker.state is OPEN
        assert len(answers) > 100
        sent = [words[0] for words in server.commands[begin:]]
        assert set(sent) <= PROBE
        assert sent.count(b"PING") <= cache._health.failures + 1
        # Nor a piece of a command, nor a connection that says nothing.
        assert all(client._data == b"" for client in server.clients)
        assert len(server.clients) <= server.commands.count([b"PING"]) + begin


def test_while_the_probe_waits_for_its_answer_nobody_else_asks():
    """B13, B1: a probe on a hung server takes its time; the others must not queue behind it."""
    asked, answer = threading.Event(), threading.Event()

    def script(client: Client) -> None:
        while (words := client.command()) is not None:
            if words[0] == b"PING":
                asked.set()
                assert answer.wait(WAIT_S)
                client.send(b"+PONG\r\n")
            elif words[0] == b"CLIENT":
                client.send(b"+OK\r\n")
            else:
                client.send(b"$-1\r\n" if answer.is_set() else LOADING)

    with ScriptedServer(script) as server, cache_of(patient(server, max_retries=0)) as cache:
        for _ in range(5):
            cache.get("k")
        assert asked.wait(WAIT_S)  # by the health thread
        assert cache._breaker.state is not CLOSED
        begin = len(server.commands)
        with ThreadPoolExecutor(16) as threads:
            list(threads.map(lambda operation: operation(cache), OPERATIONS * 8))
        assert cache.lookup("k").reason == "breaker_open"
        assert {words[0] for words in server.commands[begin:]} <= PROBE
        answer.set()
        wait_for(lambda: cache._breaker.state is CLOSED)
        assert cache.lookup("k").outcome is Outcome.MISS


def test_without_the_health_thread_exactly_one_caller_is_the_probe():
    """B1, B13: where no thread can be started, sixteen callers at once are still one question."""
    asked, answer = threading.Event(), threading.Event()

    def hang(client: Client) -> None:
        asked.set()
        assert answer.wait(WAIT_S)
        client.send(ABSENT)

    with ScriptedServer(reading(LOADING, hang, ABSENT)) as server:
        chosen = patient(server, failure_threshold=1, reset_timeout=0.05, max_retries=0)
        with cache_of(chosen) as cache:
            cache._health.stop()
            assert cache.lookup("k").reason == "loading"
            wait_for(lambda: cache._breaker.state is HALF_OPEN)
            begin, start = len(reads(server)), threading.Barrier(16)

            def read(_: int) -> str:
                start.wait(WAIT_S)
                return cache.lookup("k").reason

            with ThreadPoolExecutor(16) as threads:
                asking = [threads.submit(read, number) for number in range(16)]
                assert asked.wait(WAIT_S)
                wait_for(lambda: sum(each.done() for each in asking) == 15)
                assert len(reads(server)) == begin + 1
                assert {words[0] for words in server.asked()} == {b"GET"}
                answer.set()
                reasons = sorted(each.result(WAIT_S) for each in asking)
            assert reasons == ["absent"] + ["breaker_open"] * 15
            assert cache._breaker.state is CLOSED


# B10: whose breaker it is -----------------------------------------------------------------------


def test_a_dead_redis_cuts_off_no_other_and_all_caches_on_it(tcp_server: PrivateServer):
    """B10: one breaker for a class or a function cuts b off because a failed."""
    common = {"max_retries": 0, "operation_timeout": WAIT_S}
    with (
        FaultProxy(tcp_server) as proxy,
        cache_of(CacheSettings.from_url(tcp_server.url, namespace="a", **common)) as healthy,
        cache_of(proxy.settings(namespace="a", **common)) as dead,
        cache_of(proxy.settings(namespace="b", ttl=5, **common)) as beside_it,
    ):
        proxy.refuse()
        for _ in range(5):
            dead.get("k")
        assert dead.health().breaker != "closed"
        assert beside_it.lookup("k").reason == "breaker_open"
        assert healthy.health().breaker == "closed"
        assert healthy.set("k", 1)
        assert healthy.get("k") == 1


def test_a_redis_that_takes_no_writes_is_still_read_from(redis_server, settings):
    """B10: one breaker for both would throw away the reads, which are most of the use."""
    with cache_of(settings(operation_timeout=WAIT_S)) as cache:
        assert cache.set("k", 1)
        for _ in range(20):
            cache._write_breaker.record_failure()
        assert cache.set("k", 2) is False
        assert cache.get("k") == 1
        assert cache._breaker.state is CLOSED


# B6 and B7: what is not held against the server -------------------------------------------------


def our_own_crowd(cache: RedisCache, server: PrivateServer) -> str:
    return cache.lookup("k", timeout=0.02).reason


def too_little_time(cache: RedisCache, server: PrivateServer) -> str:
    return cache.lookup("k", timeout=1e-6).reason


def a_value_that_cannot_be_kept(cache: RedisCache, server: PrivateServer) -> str:
    assert cache.set("k", object()) is False
    return "unserializable"


def an_entry_of_somebody_else(cache: RedisCache, server: PrivateServer) -> str:
    server.command("SET", cache._keys.name("k")[0], "foreign")
    return cache.lookup("k").reason


def another_type(cache: RedisCache, server: PrivateServer) -> str:
    server.command("DEL", cache._keys.name("k")[0])
    server.command("RPUSH", cache._keys.name("k")[0], "x")
    return cache.lookup("k").reason


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (our_own_crowd, "pool_exhausted"),
        (too_little_time, "hurried"),
        (a_value_that_cannot_be_kept, "unserializable"),
        (an_entry_of_somebody_else, "magic"),
        (another_type, "wrong_type"),
    ],
)
def test_troubles_of_our_own_are_in_no_row_and_no_share(tcp_server, trouble, reason):
    """B6, B7: 200 threads on ten connections open the breaker of a healthy server."""
    with FaultProxy(tcp_server) as proxy:
        chosen = proxy.settings(
            max_connections=1, failure_threshold=2, rate_min_calls=2, operation_timeout=WAIT_S
        )
        with cache_of(chosen) as cache, ThreadPoolExecutor(1) as thread:
            cache.get("k")
            cache._health.stop()
            told = told_by(cache._breaker)
            if trouble is our_own_crowd:
                stalled = proxy.stall(on=b"GET", times=1)
                busy = thread.submit(cache.lookup, "k")
                wait_for(lambda: cache.health().connections_in_use == 1)
            for _ in range(25):
                assert trouble(cache, tcp_server) == reason
            if trouble is our_own_crowd:
                stalled.remove()
                assert busy.result(WAIT_S).outcome is Outcome.MISS
            window = cache._breaker._moment.window
            assert window.tally(time.monotonic()).failed == cache._breaker.failures == 0
            assert told == []


def test_a_command_that_is_forbidden_is_in_no_row_and_no_share():
    """B7: one forbidden command would cut off all the allowed ones, twenty times over."""
    with PrivateServer() as server:
        server.command("ACL", "SETUSER", "app", "on", ">s3cret", "~*", "+get")
        chosen = CacheSettings.from_url(
            server.url,
            username="app",
            password="s3cret",
            failure_threshold=2,
            rate_min_calls=2,
            operation_timeout=WAIT_S,
        )
        with cache_of(chosen) as cache:
            for _ in range(25):
                assert cache.set("k", 1) is False
            assert cache.lookup("k").reason == "absent"
            assert (cache._breaker.state, cache._write_breaker.state) == (CLOSED, CLOSED)


# Shares, from the settings to the server --------------------------------------------------------


@pytest.mark.parametrize(("share", "opens"), [(None, False), (0.75, True)])
def test_four_of_five_lost_are_an_outage_unless_the_share_is_off(tcp_server, share, opens):
    """Four of five backends behind a balancer are dead, and never five calls in a row fail."""
    with FaultProxy(tcp_server) as proxy:
        chosen = proxy.settings(
            failure_rate_threshold=share, max_retries=0, operation_timeout=WAIT_S
        )
        with cache_of(chosen) as cache:
            assert cache.set("k", 1)
            told = told_by(cache._breaker)
            proxy.reset(on=in_turn(is_read, "FFFFs"))
            for _ in range(80):  # the first set asked four times, to begin its counter
                cache.get("k")
            assert bool(told) == opens
            if opens:
                first = told[0]
                assert (first.before, first.after, first.reason) == (CLOSED, OPEN, "reset")
                assert first.cause.endswith(" calls")


def test_by_default_three_of_four_calls_failing_open_it():
    """What configuration.md says, down to the socket."""
    answers = [ABSENT, LOADING, LOADING, LOADING] * 15
    with (
        ScriptedServer(reading(*answers)) as server,
        cache_of(patient(server, max_retries=0)) as cache,
    ):
        cache._health.stop()
        ask_until(lambda: cache._breaker.state is not CLOSED, lambda: cache.get("k"))
        assert len(reads(server)) == 20


def test_by_default_every_other_call_failing_opens_nothing():
    """One of two backends is dead: with retries every call is served all the same."""
    answers = [ABSENT, LOADING] * 40
    with (
        ScriptedServer(reading(*answers)) as server,
        cache_of(patient(server, initial_backoff_ms=0)) as cache,
    ):
        cache._health.stop()
        assert {cache.lookup("k").reason for _ in range(30)} == {"absent"}
        assert len(reads(server)) > 50
        assert cache._breaker.state is CLOSED


def test_each_attempt_of_a_call_counts():
    """One call with three retries brings four failures, and the breaker sees each of them."""
    with ScriptedServer(answering(LOADING)) as server:
        chosen = patient(server, max_retries=3, initial_backoff_ms=0, failure_threshold=100)
        with cache_of(chosen) as cache:
            cache._health.stop()
            cache.get("k")
            assert cache._breaker.failures == len(reads(server)) == 4


def test_refused_writes_open_the_breaker_for_writes_by_their_share():
    """A Redis at its limit takes a write now and then, and each refusal is a round trip lost."""
    answers = itertools.cycle([b"+OK\r\n", OOM, OOM, OOM])

    def script(client: Client) -> None:
        for words in iter(client.command, None):
            others = {b"GET": b"$1\r\n7\r\n", b"UNLINK": b":0\r\n", b"CLIENT": b"+OK\r\n"}
            client.send(next(answers) if words[0] == b"SET" else others[words[0]])

    with ScriptedServer(script) as server, cache_of(patient(server)) as cache:
        cache._health.stop()
        told = told_by(cache._write_breaker)
        ask_until(lambda: told, lambda: cache.set("k", 1))
        assert (told[0].after, told[0].reason) == (OPEN, "oom")
        assert told[0].cause == "15 failures in 20 calls"
        assert cache._breaker.state is CLOSED


def test_slow_answers_open_it_where_a_limit_is_set_and_quick_ones_close_it(tcp_server):
    """A cache slower than computing is none, until it is quick again."""
    with FaultProxy(tcp_server) as proxy:
        chosen = proxy.settings(slow_call_threshold=0.2, rate_min_calls=4, operation_timeout=WAIT_S)
        with cache_of(chosen) as cache:
            assert cache.set("k", 1)
            told = told_by(cache._breaker)
            slow = proxy.latency(0.3)
            ask_until(lambda: told, lambda: cache.get("k"))
            assert (told[0].after, told[0].reason) == (OPEN, "slow")
            wait_for(lambda: any(t.cause == "a slow probe" for t in told))
            slow.remove()
            wait_for(lambda: cache._breaker.state is CLOSED)
            assert cache.get("k") == 1


def test_slow_answers_open_nothing_by_default(tcp_server):
    """They are hits; how long one may wait for a hit is what operation_timeout says."""
    with (
        FaultProxy(tcp_server) as proxy,
        cache_of(proxy.settings(operation_timeout=WAIT_S, rate_min_calls=2)) as cache,
    ):
        assert cache.set("k", 1)
        proxy.latency(0.1)
        assert [cache.get("k") for _ in range(6)] == [1] * 6
        assert cache.health().breaker == "closed"


def settings_of(breaker: CircuitBreaker) -> dict[str, Any]:
    rules = breaker._rules
    return {name: getattr(rules, name) for name in rules.__dataclass_fields__}


def test_the_factory_hands_every_share_on(settings):
    """A setting that reaches nobody is believed to protect."""
    given = {
        "failure_threshold": 7,
        "reset_timeout": 8.0,
        "failure_rate_threshold": 0.25,
        "slow_call_threshold": 0.125,
        "slow_call_rate_threshold": 0.75,
        "rate_window": 6.0,
        "rate_min_calls": 9,
    }
    # Four deadlines, and no less than two health checks.
    fixed = {"half_open_max_calls": 1, "probe_lease": 3.0}
    chosen = settings(**given, operation_timeout=0.75, connection_timeout=0.75)
    backend = _Backend(chosen)
    node = backend._guard_node("node", lambda error: error.trips)
    assert settings_of(backend.breaker) == given | fixed
    for other in (backend.write_breaker, node._breaker):
        rules = settings_of(other)
        # Around a write are all its attempts and their waits, and the nodes of a bundle wait for
        # each other: how long it took says nothing.
        assert rules.pop("slow_call_threshold") is None
        # Writes are tried sooner: a refusal costs one round trip.
        assert rules.pop("reset_timeout") == (1.0 if other is backend.write_breaker else 8.0)
        assert rules.items() <= (given | fixed).items()
    backend.close()
