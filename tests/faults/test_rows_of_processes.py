"""Many threads, forks, cancelled tasks, ends of processes: rows of the fault matrix."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

import pytest
from live import OwnedLock, locks_of, locks_of_modules
from observation import D, Observation, Watched, wait_for
from stopwatch import ALLOWED_S, Stopwatch

import jmcache
from jmcache import CacheSettings, LocalCache, RedisCache, RedisCacheFactory
from jmcache.aio import AsyncRedisCache
from jmcache.connection import _pool
from jmcache.connection._pool import Pool
from jmcache.testing import FaultProxy, PrivateServer


def settings(server: PrivateServer, **changes: object) -> CacheSettings:
    return CacheSettings.from_url(server.url, **changes)


class Sink:
    """Takes every measurement."""

    def increment(self, *_: object) -> None:
        pass

    timing = gauge = increment


# Threads ---------------------------------------------------------------------------------------


@pytest.mark.fault_row(37)
def test_two_hundred_threads_share_ten_connections(
    observe: Observation, server: PrivateServer
) -> None:
    """Stock pools fail 21 to 98 % of such a burst, or keep one thread waiting for all of it."""
    # The machine has to carry 200 threads; D is asked of the library, and only where it waits.
    cache = observe.cache(settings(server, max_connections=10, operation_timeout=10.0)).sync
    keys = [f"k{number}" for number in range(20)]
    cache.set_many({key: key for key in keys})
    turns = itertools.count()  # of all calls: who began when, and ended when
    together = threading.Barrier(200)
    over = time.monotonic() + 2.0
    waits: list[int] = []
    outcomes: Counter[str] = Counter()

    def work(number: int) -> None:
        together.wait(timeout=60)
        mine = []
        while time.monotonic() < over or not mine:
            began = next(turns)
            found = cache.lookup(keys[number % 20])
            mine.append(next(turns) - began)
            outcomes[found.reason or f"{found.outcome} {found.value == keys[number % 20]}"] += 1
        waits.extend(mine[1:-1])

    with observe.fault():
        threads = [threading.Thread(target=work, args=(number,)) for number in range(200)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=120)
    assert set(outcomes) == {"hit True"}, outcomes
    assert observe.breaker == set()
    # First come, first served: one round of all the others, not the rest of the test.
    waits.sort()
    assert waits[-1] <= 10 * 2 * 200, waits[-20:]
    assert waits[len(waits) * 99 // 100] <= 3 * 2 * 200


@pytest.mark.fault_row(37)
@pytest.mark.parametrize("rung", [0, -1], ids=["first rung", "last rung"])
def test_nobody_who_waits_for_a_connection_is_overtaken(
    proxy: FaultProxy, observe: Observation, rung: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by who had it last and asks again, nor by who is woken in another's place."""

    def ring(pool: Pool) -> None:
        with contextlib.suppress(IndexError):  # nobody waits any more
            pool._waiters[rung].ring()

    monkeypatch.setattr(Pool, "_ring_first", ring)
    monkeypatch.setattr(_pool, "_GONE_AFTER_S", 60.0)  # a busy machine costs nobody a place
    cache = observe.cache(proxy.settings(max_connections=1, operation_timeout=10.0))
    keys = [f"k{number}" for number in range(8)]
    assert cache.set_many({key: key for key in keys})
    waiters = cache.sync._connection._server.pool._waiters
    before = proxy.commands_total

    def ask(*asked: str) -> None:
        for key in asked:
            cache.get(key)

    with observe.fault():
        with proxy.stall(on=b"GET") as held:
            threads = [threading.Thread(target=ask, args=(keys[0], keys[-1]))]
            threads[0].start()
            held.wait(1)
            for place, key in enumerate(keys[1:-1]):
                wait_for(lambda before=place: len(waiters) == before)
                threads.append(threading.Thread(target=ask, args=(key,)))
                threads[-1].start()
            wait_for(lambda: len(waiters) == len(keys) - 2)
        for thread in threads:
            thread.join(timeout=30)
    served = [words[1] for words in proxy.commands if words[0] == b"GET"]
    space = cache.sync._keys
    # Each of them the entry and its namespace's counter, in one exchange.
    expected = [name for key in keys for name in (space.name(key)[0], space.space_counter)]
    assert served[-len(expected) :] == expected
    assert proxy.commands_total == before + len(expected), "and nothing else"
    assert observe.values == len(keys)
    assert observe.breaker == set()


@pytest.mark.fault_row(37)
def test_a_pool_that_slow_calls_use_up_is_no_evidence_against_redis(
    proxy: FaultProxy, observe: Observation
) -> None:
    """Our own congestion would cut off a healthy Redis, and make the congestion complete."""
    cache = observe.cache(proxy.settings(max_connections=2))
    assert cache.set("k", "v")
    with observe.fault():
        # Whoever has a connection keeps it for as long as the others wait, and has time for its
        # answer; of the others nobody gets as far as to ask.
        with proxy.stall(on=b"GET") as held:
            slow = [
                threading.Thread(target=cache.get, args=("k",), kwargs={"timeout": 30.0})
                for _ in range(2)
            ]
            for thread in slow:
                thread.start()
            held.wait(2)
            others = [threading.Thread(target=cache.get, args=("k",)) for _ in range(24)]
            for thread in others:
                thread.start()
            for thread in others:
                thread.join(timeout=30)
        for thread in slow:
            thread.join(timeout=30)
    assert observe.outcomes == {"saturated pool_exhausted": 24}
    assert observe.values == 2
    assert observe.breaker == set()
    assert cache.sync._breaker.failures == 0
    observe.back(cache)


# Forks -----------------------------------------------------------------------------------------


def in_child(work: Callable[[], bool], within_s: int = 30) -> bool:
    """Fork, and return what *work* returned there; a child that hangs is killed."""
    with warnings.catch_warnings():
        # 3.12 and later warn of forking with threads, which is the point here.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        right = False
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(within_s)
            right = work()
        finally:
            os._exit(0 if right else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def works(cache: RedisCache) -> bool:
    """All that a child does with what it inherited."""
    key = f"child-{os.getpid()}"
    right = cache.set(key, key) and cache.get(key) == key
    right &= cache.get_many(["parent", key]) == {"parent": "parent", key: key}
    right &= cache.delete(key) and cache.get(key) is None
    return right and cache.health().status == "ok" and cache.stats().sets == 1


@pytest.mark.fault_row(39)
def test_a_child_forked_while_threads_are_busy_starts_anew(
    observe: Observation, server: PrivateServer
) -> None:
    """Gunicorn and Celery fork from whatever the process is doing; a hung child is a lost one."""
    cache = observe.cache(settings(server, operation_timeout=10.0))
    cache.set("parent", "parent")
    with observe.traffic(cache, threads=6, rest_s=0.0005), observe.fault():
        assert all(in_child(lambda: works(cache.sync)) for _ in range(100))
    assert cache.get("parent") == "parent"
    assert observe.breaker == set()


def held_by_another_thread(owned: OwnedLock, then: Callable[[], bool]) -> bool:
    """Return what *then* returns while another thread holds the lock."""
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with owned.lock:
            held.set()
            over.wait(timeout=60)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(timeout=10), owned
        return then()
    finally:
        over.set()
        thread.join(timeout=10)


@pytest.mark.fault_row(39)
def test_a_child_works_whichever_of_our_locks_another_thread_held(
    observe: Observation, server: PrivateServer
) -> None:
    """The thread that held it does not exist in the child, which would wait for it for ever.

    Every lock there is: of all objects that a cache in use leads to, of classes, of modules.
    """
    cache = observe.cache(settings(server, operation_timeout=10.0), metrics=[Sink()]).sync
    adapter = AsyncRedisCache(cache)
    memory = LocalCache()
    memory.set("k", 1)
    cache.set("parent", "parent")
    assert asyncio.run(adapter.get("parent")) == "parent"
    assert cache.lookup("parent", timeout=5.0).is_hit

    def every_lock() -> list[OwnedLock]:
        found = [*locks_of(cache, adapter, memory, RedisCacheFactory), *locks_of_modules()]
        return [owned for owned in found if owned.guards]

    locks = every_lock()
    names = {str(owned) for owned in locks}
    assert len(locks) >= 15, names
    for known in ("Pool._grow_lock", "Monitor._lock", "Delivery._lock", "OutageLog._lock",
                  "HealthThread._lock", "CircuitBreaker._lock", "Listeners._lock",
                  "Threads._lock", "LocalStore._lock", "RedisCacheFactory._lock",
                  "jmcache.fork._lock"):  # fmt: skip
        assert known in names, (known, names)

    def child() -> bool:
        right = works(cache) and memory.get("k") is None and memory.set("k", 2)
        right &= asyncio.run(adapter.get("parent")) == "parent"
        with RedisCacheFactory.create_cache(server.url, namespace="another") as other:
            right &= other.set("k", 3) and other.get("k") == 3
        cache.close()
        return right

    for owned in locks:
        assert held_by_another_thread(owned, lambda: in_child(child)), f"{owned} was held"
    assert cache.get("parent") == "parent"


@pytest.mark.fault_row(39)
def test_a_child_forked_out_of_a_running_loop_has_a_loop_of_its_own(
    observe: Observation, server: PrivateServer
) -> None:
    """An async service that forks a worker: the loop's threads and futures are not there."""

    def child(cache: Watched) -> bool:
        found: list[Any] = []

        async def use() -> None:
            found.extend(await asyncio.gather(*[cache.cache.get("parent") for _ in range(20)]))

        # Of a thread: the forked one believes to be in its parent's loop.
        thread = threading.Thread(target=lambda: asyncio.run(use()))
        thread.start()
        thread.join(timeout=20)
        return found == ["parent"] * 20 and works(cache.sync)

    async def parent() -> None:
        cache = observe.async_cache(settings(server, operation_timeout=10.0))
        await cache.set("parent", "parent")
        for _ in range(5):
            calls = [asyncio.ensure_future(cache.get("parent")) for _ in range(50)]
            await asyncio.sleep(0)
            assert in_child(lambda: child(cache))
            assert await asyncio.gather(*calls) == ["parent"] * 50
        await cache.aclose()

    asyncio.run(parent())


def use_in_a_process(url: str, answers: Any) -> None:
    """What a process does that was started, not forked: it makes a cache of its own."""
    chosen = CacheSettings.from_url(url, operation_timeout=10.0)
    with RedisCacheFactory.create_cache(chosen) as cache:
        answers.put((os.getpid(), cache.get("parent"), cache.set(str(os.getpid()), "child")))


@pytest.mark.fault_row(39)
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_every_way_to_start_a_process_gives_it_a_cache_that_works(
    method: str, observe: Observation, server: PrivateServer
) -> None:
    """A pool of worker processes is used as its platform, and not as we, would have it."""
    cache = observe.cache(settings(server, operation_timeout=10.0))
    cache.set("parent", "parent")
    context = multiprocessing.get_context(method)
    answers = context.Queue()
    started = [
        context.Process(target=use_in_a_process, args=(server.url, answers)) for _ in range(3)
    ]
    with observe.traffic(cache, threads=2):
        for process in started:
            process.start()
        for process in started:
            process.join(timeout=60)
    assert [process.exitcode for process in started] == [0, 0, 0]
    told = [answers.get(timeout=10) for _ in started]
    assert sorted(told) == sorted((process.pid, "parent", True) for process in started)
    for process in started:
        cache.wrote(str(process.pid), "child")
        assert cache.get(str(process.pid)) == "child"
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(cache.sync)


# Tasks -----------------------------------------------------------------------------------------


class Stepped:
    """Awaits a coroutine, and cancels the task it is in at the n-th of its awaits."""

    def __init__(self, coroutine: Any, nth: int) -> None:
        self._coroutine = coroutine
        self._nth = nth
        self.awaits = 0

    async def run(self) -> Any:
        return await self

    def __await__(self) -> Iterator[Any]:
        error: BaseException | None = None
        while True:
            try:
                step = self._coroutine.send(None) if error is None else self._throw(error)
            except StopIteration as end:
                return end.value
            if self.awaits == self._nth:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            self.awaits += 1
            try:
                yield step
                error = None
            except BaseException as caught:  # noqa: BLE001 - the coroutine's to see
                error = caught

    def _throw(self, error: BaseException) -> Any:
        return self._coroutine.throw(error)


@pytest.mark.fault_row(40)
@pytest.mark.parametrize("verb", ["get", "set", "get_many", "lookup", "delete"])
def test_a_task_cancelled_at_any_await_gives_everything_back(
    verb: str, observe: Observation, server: PrivateServer
) -> None:
    """Clients that hang up cancel their requests: each would cost a connection, or a value."""
    arguments = {"set": ("k", "k"), "get_many": (["k", "l"],)}.get(verb, ("k",))

    async def use() -> None:
        cache = observe.async_cache(settings(server, max_connections=2, operation_timeout=10.0))
        await cache.set_many({"k": "k", "l": "l"})
        cancelled, nth = 0, 0
        while True:
            stepped = Stepped(getattr(cache, verb)(*arguments), nth)
            try:
                await asyncio.ensure_future(stepped.run())
            except asyncio.CancelledError:
                cancelled += 1
            if stepped.awaits <= nth:
                break
            nth += 1
            await quiet(cache)  # a delete goes on though its caller was cancelled
            await cache.set_many({"k": "k", "l": "l"})
            assert await cache.get_many(["k", "l"]) == {"k": "k", "l": "l"}
            await quiet(cache)
        assert cancelled == nth > 0
        await cache.aclose()

    observe.raises = True  # the cancellations
    asyncio.run(use())


async def quiet(cache: Watched) -> None:
    """Wait until no call of the adapter is under way, and every connection is back."""
    until = time.monotonic() + 10.0
    while cache.sync.health().connections_in_use or cache.cache._threads.unfinished:
        assert time.monotonic() < until, "something was not given back"
        await asyncio.sleep(0.005)


@pytest.mark.fault_row(40)
def test_half_of_a_thousand_tasks_cancelled_in_mid_call_harm_nobody(
    observe: Observation, server: PrivateServer
) -> None:
    """Whose reply is it, when nobody waits for it any more?"""
    chance = random.Random(40)

    async def one(cache: Watched, number: int) -> str:
        key = f"k{number % 50}"
        if number % 5 == 0:
            return "right" if await cache.set(key, key) else "wrong"
        if number % 5 == 1:
            return "right" if await cache.get_many([key]) == {key: key} else "wrong"
        return "right" if await cache.get(key) == key else "wrong"

    async def use() -> None:
        with FaultProxy(server) as proxy:
            cache = observe.async_cache(proxy.settings(operation_timeout=20.0))
            await cache.set_many({f"k{number}": f"k{number}" for number in range(50)})
            proxy.latency(0.001, jitter_s=0.002)
            with observe.fault():
                tasks = [asyncio.ensure_future(one(cache, number)) for number in range(1000)]
                for task in chance.sample(tasks, 500):
                    await asyncio.sleep(chance.choice([0.0, 0.0, 0.002]))
                    task.cancel()
                results = await asyncio.gather(*tasks, return_exceptions=True)
            counts = Counter(
                "cancelled" if isinstance(result, asyncio.CancelledError) else result
                for result in results
            )
            assert counts["right"] >= 500
            assert counts["cancelled"] > 40
            assert set(counts) == {"right", "cancelled"}, counts
            await quiet(cache)
            # As many at a time as there are connections.
            assert await asyncio.gather(*[cache.get("k1") for _ in range(10)]) == ["k1"] * 10
            await cache.aclose()

    observe.raises = True  # the cancellations
    asyncio.run(use())
    assert observe.breaker == set()


@pytest.fixture
def little_garbage() -> Iterator[None]:
    """To look through all that a test run has in memory takes 50 ms by itself."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.fault_row(41)
@pytest.mark.usefixtures("little_garbage")
@pytest.mark.parametrize("cancelled", [0, 500])
def test_a_thousand_awaits_on_a_silent_server_are_over_in_time(
    cancelled: int, observe: Observation, silent_port: int
) -> None:
    """Ten threads with a timeout each took 25 s over them, one after the other.

    And whatever else the loop serves does not notice: it is never held for more than 50 ms.
    """
    # Not through `observe`: it excuses no call that uses the processor, and a loop that serves a
    # thousand calls uses it for all of them. A busy machine is late at times, a queue is always.
    for _ in range(3):
        crowd = asyncio.run(a_thousand_awaits(silent_port, observe.stopwatch, cancelled))
        assert set(crowd.reasons) <= {
            "timeout", "breaker_open", "pool_exhausted", "hurried", "queue_full",
        }  # fmt: skip
        assert crowd.reasons.total() >= 2 * (1000 - cancelled)
        # Threads that came late, on a busy machine, hold nothing against the server.
        if crowd.is_in_time() and crowd.breaker != "closed":
            break
    assert crowd.is_in_time(), crowd
    assert crowd.breaker != "closed", crowd


class Crowd(NamedTuple):
    longest_s: float  # await
    lag_s: float  # of the loop: the longest time between two ticks of a millisecond
    usual_lag_s: float  # 99 % are shorter
    reasons: Counter[str]  # how calls ended that were not cancelled
    breaker: str  # after the second thousand

    def is_in_time(self) -> bool:
        return self.longest_s <= D + ALLOWED_S and self.lag_s <= 0.05 and self.usual_lag_s <= 0.02


async def a_thousand_awaits(port: int, stopwatch: Stopwatch, cancelled: int) -> Crowd:
    """Twice as many, *cancelled* of each thousand some time before they are over."""
    reasons: Counter[str] = Counter()
    takes: list[tuple[float, float]] = []  # began, ended
    lags: list[float] = []
    chance = random.Random(41)

    async def call(cache: AsyncRedisCache, number: int) -> None:
        began = time.monotonic()
        reason = (await cache.lookup(f"k{number}")).reason
        takes.append((began, time.monotonic()))
        reasons[reason] += 1

    async def tick() -> None:
        while True:
            began, queued_s = time.monotonic(), stopwatch.queued_s()
            await asyncio.sleep(0.001)
            took_s = time.monotonic() - began
            lags.append(took_s - (stopwatch.queued_s() - queued_s))

    async with RedisCacheFactory.create_async_cache(CacheSettings(port=port)) as cache:
        ticking = asyncio.ensure_future(tick())
        await asyncio.sleep(0.01)
        for _ in range(2):  # the second thousand finds an open breaker
            calls = [asyncio.ensure_future(call(cache, number)) for number in range(1000)]
            await asyncio.sleep(0)
            for task in chance.sample(calls, cancelled):
                task.cancel()
                if chance.random() < 0.1:
                    await asyncio.sleep(0.001)
            ended = await asyncio.gather(*calls, return_exceptions=True)
            assert set(map(type, ended)) <= {NoneType, asyncio.CancelledError}
            breaker = cache.sync.health().breaker
            await asyncio.sleep(0.5)  # of a hundred ticks, the usual one would be the longest
        ticking.cancel()
    lags.sort()
    return Crowd(longest(takes, stopwatch), lags[-1], lags[len(lags) * 99 // 100], reasons, breaker)


def longest(spans: list[tuple[float, float]], stopwatch: Stopwatch) -> float:
    """The longest of *spans* in seconds, without those in which the machine was late."""
    spans.sort(key=lambda span: span[1] - span[0])
    return max(ended - began - stopwatch.lag_s(began, ended) for began, ended in spans[-20:])


# The end ---------------------------------------------------------------------------------------

# How a process ends: what it does before, while everything of ours is alive. A mark on standard
# output tells when the end began.
ENDINGS = {
    "with the health thread alive": "cache.get('k'); end()",
    "with a call in flight in a daemon thread": "start(daemon=True); end()",
    "with a call in flight in a thread that is waited for": "start(daemon=False); end()",
    "with calls in flight in the loop's tasks": """
async def main():
    tasks = [asyncio.ensure_future(adapter.get('k')) for _ in range(20)]
    await asyncio.sleep(0.02)
    end()
asyncio.run(main())
""",
    "with a loop that was left without a word": """
loop = asyncio.new_event_loop()
loop.run_until_complete(asyncio.wait({loop.create_task(adapter.get('k'))}, timeout=0.02))
end()
""",
    "with a line that a filter of the log keeps": """
handler = logging.StreamHandler()
handler.addFilter(lambda _: time.sleep(60))
logging.getLogger("jmcache").addHandler(handler)
cache.set("k", object())
end()
""",
    "with a name whose look-up has no end": """
socket.getaddrinfo = lambda *_, **__: time.sleep(60)
RedisCacheFactory.create_cache("redis://nobody.test").get("k")
end()
""",
    "by sys.exit in the middle of a transaction": "cache.set('k', 1); end(); sys.exit(3)",
    "by an exception": "cache.get('k'); end(); raise SystemExit(3)",
}
PROGRAM = """
import asyncio, atexit, logging, socket, sys, threading, time
from jmcache import AsyncRedisCache, CacheSettings, RedisCacheFactory

logging.getLogger("jmcache").addHandler(logging.NullHandler())

class Sink:
    def increment(self, *_): pass
    timing = gauge = increment

def say(*words):
    print(*words, flush=True)

def end():
    say("end", time.monotonic())

def start(daemon):
    began = threading.Event()
    def call():
        began.set()
        cache.get("k")
    threading.Thread(target=call, daemon=daemon).start()
    began.wait()
    time.sleep(0.02)

@atexit.register  # before anything of jmcache is there: it comes last
def at_exit():
    say("atexit", cache.lookup("k", timeout=0.1).outcome, cache.set("k", 1, timeout=0.1))

settings = CacheSettings.from_url(sys.argv[1])
cache = RedisCacheFactory.create_cache(settings, metrics=[Sink()])
adapter = AsyncRedisCache(cache)
cache.get("k")  # the threads that there are run now
"""


@pytest.fixture(params=["up", "down", "silent"])
def answers(request: pytest.FixtureRequest, tcp: PrivateServer) -> tuple[str, set[str]]:
    """A Redis that is up, down or silent: its url, and how an operation at the end may end."""
    if request.param == "up":
        tcp.command("FLUSHALL")
        return tcp.url, {"hit True", "miss True"}
    if request.param == "silent":
        port = request.getfixturevalue("silent_port")
        # Calls in flight may have all connections, and nobody waits for them to end.
        return f"redis://127.0.0.1:{port}/0", {"unavailable False", "saturated False"}
    tcp.stop()
    return tcp.url, {"unavailable False"}


@pytest.mark.fault_row(54)
@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
def test_a_process_ends_at_once_and_without_a_word(
    ending: str, answers: tuple[str, set[str]], stopwatch: Stopwatch
) -> None:
    """A deploy waits for each replica's end; a process that never ends is killed with its data."""
    url, expected = answers
    for _ in range(4):  # a busy machine is late at times, a process that waits is always
        began, ended = an_end(ending, url, expected)
        late_s = ended - began - 1.0 - ALLOWED_S - stopwatch.lag_s(began, ended)
        if late_s <= 0.0:
            break
    assert late_s <= 0.0


def an_end(ending: str, url: str, expected: set[str]) -> tuple[float, float]:
    """Let a process come to its end; when that began, and when the process was gone."""
    root = str(Path(jmcache.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM + ending, url],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([root, *sys.path])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    said, complained = process.communicate(timeout=60)
    ended = time.monotonic()
    assert complained == ""
    assert process.returncode in (0, 3)
    words = dict(line.split(maxsplit=1) for line in said.splitlines())
    assert words["atexit"] in expected, said
    return float(words["end"]), ended
