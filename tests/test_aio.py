"""The adapter: the same cache, awaited."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from jmcache import (
    AsyncRedisCache,
    Cache,
    CacheSettings,
    LocalCache,
    Lookup,
    Outcome,
    RedisCache,
    RedisCacheFactory,
    RedisError,
)
from jmcache.testing import PrivateServer

MakeSettings = Callable[..., CacheSettings]

SYNC_ONLY = {"adapting", "give_up", "answers_at_once", "close", "computing", "computing_many"}
NOT_AWAITED = {"cached"}  # returns a decorator
ASYNC_ONLY = {"sync", "aclose"}


class Gate(LocalCache):
    """A cache whose reads wait until the test lets them go, as a slow Redis makes them wait."""

    answers_at_once = False  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()
        self.threads: set[str] = set()
        self.seen: list[object] = []

    def lookup(self, key: str, **options: Any) -> Lookup:
        self.threads.add(threading.current_thread().name)
        self.entered.release()
        assert self.opened.wait(timeout=10)
        self.seen.append(REQUEST.get())
        return super().lookup(key, **options)


REQUEST: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="none")


def _public(thing: type) -> dict[str, Any]:
    return {name: value for name, value in inspect.getmembers(thing) if not name.startswith("_")}


@pytest.fixture
def real(settings: MakeSettings) -> Iterator[AsyncRedisCache]:
    made = RedisCacheFactory.create_async_cache(settings(operation_timeout=5.0))
    yield made
    made.sync.close()


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listening:
        yield listening.getsockname()[1]


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port where nobody listens, and nobody else can begin to."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def _untyped(parameter: inspect.Parameter) -> inspect.Parameter:
    """A loader may be a coroutine function on one side only."""
    return parameter.replace(annotation=inspect.Parameter.empty)


def test_it_has_the_names_and_signatures_of_the_sync_cache() -> None:
    """Somebody who knows one of them must not have to read the docs of the other."""
    sync, adapted = _public(Cache), _public(AsyncRedisCache)
    assert set(sync) - SYNC_ONLY == set(adapted) - ASYNC_ONLY
    for name in set(sync) & set(adapted):
        if not inspect.isfunction(sync[name]):
            continue
        ours = list(inspect.signature(adapted[name]).parameters.values())[1:]
        theirs = list(inspect.signature(sync[name]).parameters.values())
        if not isinstance(inspect.getattr_static(Cache, name), staticmethod):
            theirs = theirs[1:]
        assert [_untyped(one) for one in ours] == [_untyped(one) for one in theirs], name
        assert inspect.iscoroutinefunction(adapted[name]) is (name not in NOT_AWAITED), name


def test_it_drops_in_for_the_old_results_cache(real: AsyncRedisCache) -> None:
    """The service awaits get, set and generate_key in a hundred places that nobody will change."""

    async def use() -> object:
        key = await real.generate_key("candidate-42", skills=["python", "redis"])
        assert await real.get(key) is None
        assert await real.set(key, [{"job": 1}]) is True
        return await real.get(key)

    assert asyncio.run(use()) == [{"job": 1}]


def test_every_operation_reaches_the_cache(real: AsyncRedisCache) -> None:
    """A name that is forwarded to the wrong method loses or deletes data."""

    async def use() -> None:
        assert await real.set_many({"a": 1, "b": 2}, ttl=60) is True
        assert await real.get_many(["a", "b", "c"]) == {"a": 1, "b": 2}
        assert (await real.lookup("a")).outcome is Outcome.HIT
        assert await real.exists("a") is True
        assert await real.delete("a") is True
        assert await real.delete_many(["a", "b"]) == 1
        assert (await real.stats()).hits == 3
        assert (await real.health()).status == "ok"

    asyncio.run(use())


@pytest.mark.parametrize("ttl", [0, -1, "1", True])
def test_a_wrong_argument_raises_at_the_await(real: AsyncRedisCache, ttl: object) -> None:
    """An error that is lost in a thread is a bug that nobody finds."""
    with pytest.raises(ValueError, match="ttl"):
        asyncio.run(real.set("k", 1, ttl=ttl))  # type: ignore[arg-type]


def test_context_variables_reach_the_call() -> None:
    """Request ids are kept in them; without, a log line belongs to nobody."""
    gate = Gate()
    gate.opened.set()

    async def use() -> None:
        REQUEST.set("r-17")
        await AsyncRedisCache(gate).lookup("k")

    asyncio.run(use())
    assert gate.seen == ["r-17"]


def test_calls_run_on_threads_of_its_own() -> None:
    """In the loop's own executor, stalled cache calls hold up everybody's name look-ups."""
    gate = Gate()
    gate.opened.set()
    asyncio.run(AsyncRedisCache(gate).lookup("k"))
    assert all(name.startswith("jmcache-aio") for name in gate.threads)
    assert gate.threads


def test_a_cancelled_caller_returns_at_once_and_harms_nobody() -> None:
    """A client that hangs up must not cost a connection, a thread or another caller's answer."""
    gate = Gate()
    adapter = AsyncRedisCache(gate, max_threads=2)

    async def use() -> None:
        running = [asyncio.create_task(adapter.lookup("k")) for _ in range(2)]
        waiting = [asyncio.create_task(adapter.lookup("k", timeout=10)) for _ in range(5)]
        await asyncio.to_thread(gate.entered.acquire, timeout=10)
        for task in running + waiting[:3]:
            task.cancel()
        ended = await asyncio.gather(*running, *waiting[:3], return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ended)
        assert not gate.opened.is_set(), "they returned while the thread was still at it"
        gate.opened.set()
        for found in await asyncio.gather(*waiting[3:]):
            assert found.outcome is Outcome.MISS
        assert (await adapter.lookup("k")).outcome is Outcome.MISS

    asyncio.run(use())
    over = time.monotonic() + 10.0
    while adapter._threads.unfinished:  # those that nobody waits for
        assert time.monotonic() < over
        time.sleep(0.001)


def test_more_calls_than_can_be_served_are_saturated_at_once() -> None:
    """An endless queue is memory without end, and answers for callers long gone."""
    gate = Gate()
    adapter = AsyncRedisCache(gate, max_threads=1)

    async def use() -> list[Lookup]:
        calls = [asyncio.create_task(adapter.lookup("k")) for _ in range(205)]
        done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        gate.opened.set()
        await asyncio.gather(*calls)
        return [task.result() for task in done]

    refused = asyncio.run(use())
    assert len(refused) == 5
    assert {(found.outcome, found.reason) for found in refused} == {
        (Outcome.SATURATED, "queue_full")
    }


def test_one_adapter_serves_two_event_loops_at_once(real: AsyncRedisCache) -> None:
    """A worker that runs a loop in a thread beside the server's own is nothing special."""
    start = threading.Barrier(2)
    found: dict[int, object] = {}

    def run(number: int) -> None:
        async def use() -> None:
            start.wait(timeout=10)
            for turn in range(50):
                await real.set(f"{number}", [number, turn])
                found[number] = await real.get(f"{number}")

        asyncio.run(use())

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert found == {0: [0, 49], 1: [1, 49]}


def test_one_adapter_serves_one_loop_after_another(real: AsyncRedisCache) -> None:
    """ "Event loop is closed" is what users of native clients know best."""
    for turn in range(3):
        assert asyncio.run(real.set("k", turn)) is True
        assert asyncio.run(real.get("k")) == turn


@pytest.mark.faults
def test_the_deadline_starts_at_the_await(silent_port: int) -> None:
    """Counted from the thread's start, the last of many callers waited 25 s when measured."""
    made = RedisCacheFactory.create_async_cache(
        CacheSettings(port=silent_port, max_connections=4, failure_threshold=1000)
    )

    async def timed() -> float:
        started = time.monotonic()
        assert await made.get("k") is None
        return time.monotonic() - started

    async def use() -> float:
        return max(await asyncio.gather(*(timed() for _ in range(100))))

    try:
        assert asyncio.run(use()) < 0.25 + 0.15
    finally:
        made.sync.close()


@pytest.mark.faults
def test_an_open_breaker_answers_without_a_thread(free_port: int) -> None:
    """In an outage every request goes this way; a hop for each would be the second outage."""
    made = RedisCacheFactory.create_async_cache(
        CacheSettings(port=free_port, failure_threshold=1, max_retries=0)
    )

    async def use() -> None:
        assert await made.get("k") is None
        before = threading.active_count()
        assert isinstance(made.sync, RedisCache)
        made._threads._limit = lambda: 0  # every call that hops would be refused as saturated
        found = await made.lookup("k")
        assert (found.outcome, found.reason) == (Outcome.UNAVAILABLE, "breaker_open")
        assert await made.set("k", 1) is False
        assert await made.get_many(["k"]) == {}
        assert threading.active_count() == before

    try:
        asyncio.run(use())
    finally:
        made.sync.close()


def test_closing_cancels_nobodys_task() -> None:
    """An application takes a CancelledError for its own, and ends what it was doing."""
    gate = Gate()
    adapter = AsyncRedisCache(gate, max_threads=1)

    async def use() -> list[Lookup]:
        calls = [asyncio.create_task(adapter.lookup("k", timeout=10)) for _ in range(5)]
        await asyncio.to_thread(gate.entered.acquire, timeout=10)
        await adapter.aclose()
        gate.opened.set()
        return await asyncio.gather(*calls)

    assert {found.reason for found in asyncio.run(use())} == {"closed"}


def test_a_wrong_timeout_is_refused_also_where_nothing_waits() -> None:
    """It would be found in production, where something does."""
    with pytest.raises(ValueError, match="timeout"):
        asyncio.run(AsyncRedisCache(LocalCache()).get("k", timeout=-1))


def test_a_closed_adapter_answers_as_unavailable(redis_server: PrivateServer) -> None:
    """A request that comes during shutdown gets no results, not a traceback."""
    made = RedisCacheFactory.create_async_cache(CacheSettings.from_url(redis_server.url))

    async def use() -> Lookup:
        async with made:
            await made.set("k", 1)
        await made.aclose()
        return await made.lookup("k")

    assert asyncio.run(use()).reason == "closed"


@pytest.mark.parametrize("threads", [0, -1, 1.5, True])
def test_a_number_of_threads_that_cannot_work_is_refused(threads: object) -> None:
    """It would be found at the first call, by a customer."""
    with pytest.raises(ValueError, match="max_threads"):
        AsyncRedisCache(LocalCache(), max_threads=threads)  # type: ignore[arg-type]


def test_it_cannot_be_pickled() -> None:
    """A pickled cache would carry a password and somebody else's sockets."""
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(AsyncRedisCache(LocalCache()))


def test_what_the_cache_raises_is_what_the_await_raises() -> None:
    """Celery's time limit, a bug in a validator: none of it may turn into a miss."""

    class Broken(LocalCache):
        answers_at_once = False  # type: ignore[assignment]

        def lookup(self, key: str, **options: Any) -> Lookup:
            raise ZeroDivisionError

    assert not issubclass(ZeroDivisionError, RedisError)
    with pytest.raises(ZeroDivisionError):
        asyncio.run(AsyncRedisCache(Broken()).lookup("k"))
