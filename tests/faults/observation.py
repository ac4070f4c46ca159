"""What a test of the fault matrix sees of its caches, and what is asked of every row."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stopwatch import ALLOWED_S, Stopwatch

from jmcache import CacheSettings, Lookup, Outcome, RedisCache, RedisCacheFactory
from jmcache.aio import AsyncRedisCache

D = 0.25  # seconds: the default of operation_timeout
R = 2.0  # seconds in which a normal call works again
REFUSED_S = 0.03  # what refuses, refuses at once
# Each operation, and what its caller gets when it does not get through.
NOTHING: list[tuple[str, tuple[Any, ...], object]] = [
    ("get", ("k",), None),
    ("set", ("k", 1), False),
    ("delete", ("k",), False),
    ("exists", ("k",), False),
    ("get_many", (["k", "l"],), {}),
    ("set_many", ({"k": 1, "l": 2},), False),
    ("delete_many", (["k", "l"],), 0),
]
_LOG = logging.getLogger("jmcache")
LINES = 10  # of the log, for a test of less than a minute
OPERATIONS = frozenset({"lookup", *(name for name, _, _ in NOTHING)})
WORKED = frozenset({Outcome.HIT, Outcome.MISS, Outcome.DONE})


class Watched:
    """A cache whose every call is timed, and whose every value is held against what was written.

    As the cache itself otherwise, awaited if that one is. Values a test wrote by other ways are
    to be told with `wrote`.
    """

    def __init__(self, observation: Observation, cache: Any, limit_s: float | None = None) -> None:
        self.cache = cache
        self.sync: RedisCache = getattr(cache, "sync", cache)
        self._observation = observation
        self._limit_s = limit_s

    def within(self, limit_s: float) -> Watched:
        """The same cache, whose calls may take *limit_s* at most."""
        return Watched(self._observation, self.cache, limit_s)

    def wrote(self, key: str, value: Any) -> None:
        """From now on *value* is a right one for *key*."""
        self._observation.written.setdefault(key, set()).add(repr(value))

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.cache, name)
        if name not in OPERATIONS:
            return method

        if asyncio.iscoroutinefunction(method):

            async def awaited(*args: Any, **options: Any) -> Any:
                with self._timed(name, args, options):
                    found = await method(*args, **options)
                self._check(name, args, found)
                return found

            return awaited

        def called(*args: Any, **options: Any) -> Any:
            with self._timed(name, args, options):
                found = method(*args, **options)
            self._check(name, args, found)
            return found

        return called

    @contextlib.contextmanager
    def _timed(self, name: str, args: tuple[Any, ...], options: dict[str, Any]) -> Iterator[None]:
        if name == "set":
            self.wrote(args[0], args[1])
        elif name == "set_many":
            for key, value in args[0].items():
                self.wrote(key, value)
        timeout = options.get("timeout")
        limit_s = timeout if isinstance(timeout, (int, float)) else self._limit_s
        if limit_s is None:
            limit_s = self.sync.settings.operation_timeout
        try:
            with self._observation.stopwatch.call(limit_s, name, shed=self._is_shed):
                yield
        except BaseException as error:
            self._observation.raised.append(f"{name}: {error!r}")
            raise

    def _is_shed(self) -> bool:
        return self.sync.answers_at_once

    def _check(self, name: str, args: tuple[Any, ...], found: Any) -> None:
        if name == "get" and found is not None:
            self._check_value(args[0], found)
        elif name == "lookup" and found.outcome in (Outcome.HIT, Outcome.STALE):
            self._check_value(args[0], found.value)
        elif name == "get_many":
            for key, value in found.items():
                self._check_value(key, value)

    def _check_value(self, key: str, value: Any) -> None:
        self._observation.values += 1
        if repr(value) not in self._observation.written.get(key, ()):
            self._observation.wrong.append(f"{key!r}: {value!r}")


class Observation:
    """Made by the fixture `observe`; asks what every row asks when the test is over.

        cache = observe.cache(settings)         made, watched, and closed after the test
        with observe.fault():                   what is caught here stands in the table
            server.kill()
            observe.nothing(cache, "refused")   every operation, nothing of it worked
        server.start()
        observe.back(cache)                     a normal call works again within R

    Attributes:
        raises: The test lets exceptions reach its callers on purpose: they are its own.
    """

    def __init__(self, stopwatch: Stopwatch) -> None:
        self.stopwatch = stopwatch
        self.written: dict[str, set[str]] = {}
        self.values = 0  # read and checked
        self.wrong: list[str] = []
        self.raised: list[str] = []
        self.raises = False
        self.outcomes: Counter[str] = Counter()
        self.breaker: set[str] = set()
        self.back_s: float | None = None
        self.log: list[logging.LogRecord] = []
        self._handler = _Listening(self.log)
        self._level = _LOG.level
        _LOG.addHandler(self._handler)
        _LOG.setLevel(logging.INFO)
        self._caches: list[Any] = []
        self._lent = 0
        self._over_at: float | None = None
        self._before: tuple[set[threading.Thread], int] | None = None

    # What a test does with it

    def cache(self, settings: CacheSettings, **options: Any) -> Watched:
        """Make a cache, closed after the test."""
        self._look_before()
        return self._watch(RedisCacheFactory.create_cache(settings, **options))

    def async_cache(self, settings: CacheSettings, **options: Any) -> Watched:
        """Make a cache to be awaited. The test closes it (``await cache.aclose()``)."""
        self._look_before()
        return self._watch(AsyncRedisCache(RedisCacheFactory.create_cache(settings), **options))

    def watch(self, cache: Any) -> Watched:
        """Watch a cache that the test made, and closes, itself."""
        return Watched(self, cache)

    @contextlib.contextmanager
    def fault(self) -> Iterator[None]:
        """Note how operations end, and what the breakers do, while the fault lasts."""
        caches = [getattr(cache, "sync", cache) for cache in self._caches]
        before = [Counter(cache.stats().operations) for cache in caches]
        for cache in caches:
            for name, breaker in _breakers(cache):
                breaker.on_change(_Opening(name, self.breaker, cache.settings.failure_threshold))
        yield
        self._over_at = time.monotonic()
        for cache, earlier in zip(caches, before, strict=True):
            counts = Counter(cache.stats().operations) - earlier
            for (_, outcome, reason), count in counts.items():
                if outcome not in WORKED or reason not in ("", "absent"):
                    self.outcomes[f"{outcome} {reason}"] += count
            for name, breaker in _breakers(cache):
                if breaker.failures and breaker.state == "closed":
                    self.breaker.add(f"{name}counts")

    def nothing(self, cache: Watched, *reasons: str) -> None:
        """Call every operation of a cache that gets no answer, and once it is open many times.

        Args:
            reasons: The only ones there may be; ``breaker_open`` besides.
        """
        for name, args, nothing in NOTHING * 2:
            assert getattr(cache, name)(*args) == nothing, name
            _expect_reason(cache.lookup("k"), reasons)
        for _ in range(200 if cache.sync.answers_at_once else 0):
            _expect_reason(cache.lookup("k"), reasons)

    async def nothing_awaited(self, cache: Watched, *reasons: str) -> None:
        """As `nothing`, of a cache that is awaited."""
        for name, args, nothing in NOTHING * 2:
            assert await getattr(cache, name)(*args) == nothing, name
            _expect_reason(await cache.lookup("k"), reasons)
        for _ in range(200 if cache.sync.answers_at_once else 0):
            _expect_reason(await cache.lookup("k"), reasons)

    def back(self, cache: Watched, within_s: float = R) -> None:
        """Wait until a write and a read work, at most *within_s* after `fault`."""
        began = self._over_at or time.monotonic()
        while not (cache.set("back", 1) and cache.get("back") == 1):
            took_s = time.monotonic() - began
            assert took_s <= within_s + ALLOWED_S + self.stopwatch.lag_s(began, time.monotonic()), (
                f"not back {took_s:.2f} s after the fault"
            )
            time.sleep(0.005)
        took_s = time.monotonic() - began
        if self.back_s is None or took_s > self.back_s:
            self.back_s = took_s

    @contextlib.contextmanager
    def traffic(self, cache: Watched, threads: int = 8, rest_s: float = 0.002) -> Iterator[None]:
        """Meanwhile *threads* write and read keys of their own and each other's."""
        over = threading.Event()

        def work(number: int) -> None:
            count = 0
            while not over.wait(rest_s):
                count += 1
                key = f"{number}-{count % 10}"
                cache.set(key, [key, count])
                cache.get(key)
                cache.get_many([f"{(number + 1) % threads}-{count % 10}", key])

        workers = [
            threading.Thread(target=self._guarded, args=(work, n), daemon=True)
            for n in range(threads)
        ]
        for worker in workers:
            worker.start()
        try:
            yield
        finally:
            over.set()
            for worker in workers:
                worker.join(timeout=10)
            assert not any(worker.is_alive() for worker in workers), "a call never came back"

    def _guarded(self, work: Callable[[int], None], number: int) -> None:
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001 - it would end in pytest's warnings
            self.raised.append(repr(error))

    def include(self, seen: dict[str, Any]) -> None:
        """Take in what an Observation in another process saw, as its `as_dict`."""
        self.outcomes.update(seen["outcomes"])
        self.breaker.update(seen["breaker"])
        self.values += seen["values"]
        self.stopwatch.calls += seen["calls"]
        self.stopwatch.longest_s = max(self.stopwatch.longest_s, seen["longest_s"])
        times = [each for each in (self.back_s, seen["back_s"]) if each is not None]
        self.back_s = max(times, default=None)

    def errors(self) -> list[str]:
        """The ERROR lines of the log so far."""
        return [line.getMessage() for line in self.log if line.levelno >= logging.ERROR]

    # What is asked of every row

    def close(self) -> None:
        """Close the caches."""
        for cache in self._caches:
            sync = getattr(cache, "sync", cache)
            with contextlib.suppress(AssertionError):
                wait_for(lambda s=sync: s.health().connections_in_use == 0)
            self._lent += sync.health().connections_in_use
            sync.close()
        _LOG.removeHandler(self._handler)
        _LOG.setLevel(self._level)

    def check(self) -> None:
        """Ask, once everything is closed."""
        assert self._lent == 0, "connections that nobody gave back"
        assert self.wrong == [], f"wrong values: {self.wrong[:10]}"
        assert self.raises or self.raised == [], f"reached the caller: {self.raised[:10]}"
        over = self.stopwatch.late()
        assert over == [], f"over the deadline: {over[:10]}"
        late = self.stopwatch.late_when_shed()
        # p99; of a few calls two, because eight threads take turns in one interpreter.
        shed = self.stopwatch.shed
        assert late <= max(2, shed // 100), f"{late} of {shed} not at once"
        lines = [f"{record.levelname} {record.getMessage()}" for record in self.log]
        assert len(lines) <= LINES, lines
        if self._before is not None:
            threads, descriptors = self._before
            wait_for(lambda: _new_threads(threads) == [], lambda: _new_threads(threads))
            wait_for(lambda: _descriptors() <= descriptors, lambda: f"descriptors: {_listing()}")

    def as_dict(self) -> dict[str, Any]:
        """For the table."""
        return {
            "outcomes": dict(self.outcomes.most_common()),
            "breaker": sorted(self.breaker),
            "calls": self.stopwatch.calls,
            "values": self.values,
            "longest_s": self.stopwatch.longest_s,
            "back_s": self.back_s,
        }

    def _watch(self, cache: Any) -> Watched:
        self._caches.append(cache)
        return Watched(self, cache)

    def _look_before(self) -> None:
        if self._before is None:
            self._before = set(threading.enumerate()), _descriptors()


class _Listening(logging.Handler):
    def __init__(self, heard: list[logging.LogRecord]) -> None:
        super().__init__()
        self._heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        self._heard.append(record)


class _Opening:
    """Listens to a breaker, and notes what opened it."""

    def __init__(self, name: str, seen: set[str], threshold: int) -> None:
        self._name = name
        self._seen = seen
        self._threshold = threshold

    def __call__(self, transition: Any) -> None:
        if transition.before == "closed" and transition.after == "open":
            in_a_row = transition.cause == "1 failure" or transition.cause.endswith("in a row")
            at_once = in_a_row and transition.failures < self._threshold
            self._seen.add(f"{self._name}{'opens at once' if at_once else 'counts'}")


def _breakers(cache: RedisCache) -> list[tuple[str, Any]]:
    if not isinstance(cache, RedisCache):
        return []
    return [("", cache._breaker), ("writes: ", cache._write_breaker)]


def _expect_reason(found: Lookup, reasons: tuple[str, ...]) -> None:
    assert found.outcome is Outcome.UNAVAILABLE, found
    assert found.reason in (*reasons, "breaker_open"), found


def wait_for(
    true: Callable[[], bool], what: Callable[[], object] = str, *, within_s: float = 5.0
) -> None:
    """Return once it is *true*; *what* says what is not, if it never is."""
    ends_at = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < ends_at, what()
        time.sleep(0.005)


def _new_threads(before: set[threading.Thread]) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread not in before]


def _descriptors() -> int:
    if sys.platform != "linux":
        return 0
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - Path.iterdir keeps one open itself


def _listing() -> list[str]:
    with contextlib.suppress(OSError):
        return sorted(str(path.readlink()) for path in Path("/proc/self/fd").iterdir())
    return []
