"""What this process runs out of, and a clock that jumps: rows of the fault matrix."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import json
import os
import re
import resource
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from observation import REFUSED_S, Observation, wait_for

import jmcache
from jmcache import CacheSettings
from jmcache.testing import PrivateServer

_STANDARD = 3  # descriptors: input, output, errors


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """Meanwhile this process can open nothing more, whatever other threads close.

    No new number is below the limit but for the three of a terminal, and those stay open.
    """
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    for standard in range(_STANDARD):
        os.fstat(standard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (_STANDARD, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            os.open(os.devnull, os.O_RDONLY)
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.fault_row(38)
@pytest.mark.parametrize("kind", ["tcp", "server"])
def test_without_a_file_descriptor_a_call_costs_next_to_nothing(
    observe: Observation, request: pytest.FixtureRequest, kind: str
) -> None:
    """A process that leaks files is slow to say so, if each call waits first."""
    server: PrivateServer = request.getfixturevalue(kind)
    cache = observe.cache(CacheSettings.from_url(server.url))
    with observe.fault(), no_descriptors():
        observe.nothing(cache.within(REFUSED_S), "descriptors")
    observe.back(cache)
    assert observe.breaker == {"counts"}


@pytest.mark.fault_row(38)
def test_a_connection_made_before_serves_on_without_a_descriptor(
    observe: Observation, server: PrivateServer
) -> None:
    """What is open needs no new one."""
    cache = observe.cache(CacheSettings.from_url(server.url))
    cache.set("k", 1)
    with observe.fault(), no_descriptors():
        for _ in range(20):
            assert cache.get("k") == 1
    assert observe.breaker == set()


@contextlib.contextmanager
def no_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Meanwhile this process can start no thread."""

    def refuse(*_: object, **__: object) -> Any:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(_thread, "start_new_thread", refuse)
        for name in ("_start_new_thread", "_start_joinable_thread"):  # the latter from 3.13 on
            patched.setattr(threading, name, refuse, raising=False)
        yield


@pytest.mark.fault_row(56)
def test_without_a_health_thread_one_caller_at_a_time_is_the_probe(
    observe: Observation, server: PrivateServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process at its limit of threads would do without its cache for ever, or hang in it."""
    cache = observe.cache(CacheSettings.from_url(server.url, reset_timeout=0.3))
    ready, together = threading.Barrier(9), threading.Barrier(8)
    reasons: Counter[str] = Counter()

    def call() -> None:
        ready.wait(timeout=20)
        wait_for(lambda: not cache.sync.answers_at_once)
        together.wait(timeout=20)
        reasons[cache.lookup("k").reason] += 1

    callers = [threading.Thread(target=call, daemon=True) for _ in range(8)]
    for caller in callers:
        caller.start()
    with no_threads(monkeypatch):
        assert cache.set("k", 1) is True
        assert cache.get("k") == 1
        with observe.fault():
            server.pause()
            observe.nothing(cache, "timeout")
            ready.wait(timeout=20)
            for caller in callers:
                caller.join(timeout=20)
            assert reasons == {"timeout": 1, "breaker_open": 7}
            server.resume()
        observe.back(cache)
        assert not cache.sync._health.running
    assert observe.breaker == {"counts"}


@pytest.mark.fault_row(56)
def test_without_threads_an_awaited_call_ends_as_saturated(
    observe: Observation, server: PrivateServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that is never woken takes its request with it."""

    async def use() -> None:
        cache = observe.async_cache(CacheSettings.from_url(server.url))
        with observe.fault(), no_threads(monkeypatch):
            assert await cache.get("k") is None
            assert await cache.set("k", 1) is False
            assert (await cache.lookup("k")).reason == "no_thread"
        assert await cache.set("k", 1) is True
        assert await cache.get("k") == 1
        await cache.aclose()

    asyncio.run(use())
    assert observe.breaker == set()
    assert set(observe.outcomes) == {"saturated no_thread"}


@pytest.mark.fault_row(57)
def test_a_wall_clock_that_jumps_is_not_noticed(observe: Observation) -> None:
    """A correction of the time would end the use of a cache, or a retry never."""
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, str(here / "jumping_clock.py")],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(Path(jmcache.__file__).parents[1]), str(here)]),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    observe.include(json.loads(done.stdout))


# What looks at the wall clock, and the argument with which backoff does.
WALL_CLOCK = re.compile(
    r"\btime\.(time|time_ns|localtime|gmtime|ctime)\b|from time import|CLOCK_REALTIME"
    r"|\.(now|utcnow|today)\(|\bmax_time="
)


@pytest.mark.fault_row(57)
def test_nothing_asks_for_the_wall_clock_but_the_times_of_an_entry() -> None:
    """Most places only wait too long or not at all, once in a year: no run of ours meets it."""
    package = Path(jmcache.__file__).parent
    asking = {
        (path.relative_to(package).as_posix(), line.strip())
        for path in package.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if WALL_CLOCK.search(line.partition("  # ")[0])
    }
    now = "now: Callable[[], float] = time.time,"
    entries = {("cache/_stops.py", now), ("envelope/__init__.py", now)}
    # A counter that is begun anew has to be another number than it ever was, and no more.
    counters = {
        ("connection/_manager.py", "now_us = int(self.now() * 1e6)"),
        ("connection/_manager.py", "return time.time()"),
        ("local.py", "return max(time.time_ns() // 1000, self._counters.get(counter, 0) + 1)"),
    }
    assert asking == entries | counters
