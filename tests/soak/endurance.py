"""make endurance: one thing after the other, at length, and the figures that it has to reach.

    make endurance                                      all of it, half an hour
    make endurance ARGS="forks --times 500"             one run, shorter

    crowd       200 threads on 10 connections: what they wait for one, and who misses
    open        32 threads while Redis is down: what a call costs that is answered without it
    forks       children forked while six threads are in the middle of calls, Redis killed besides
    recovery    Redis killed and started again: how long until there are hits again
    interrupts  exceptions from signal handlers (tests/interrupt_fuzz.py)

Exit code 1: a figure was not reached.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from interrupt_fuzz import NOTHING_LOST

from jmcache import CacheSettings, Outcome, RedisCache, RedisCacheFactory
from jmcache.connection import waited_s
from jmcache.testing import PrivateServer

_KILL_EVERY_S = 10.0
_HANG_S = 30.0  # a child that is not done by then hangs
_GIVE_UP_S = 30.0  # on a cache that does not come back
_FUZZ = Path(__file__).parents[1] / "interrupt_fuzz.py"


class Figure(NamedTuple):
    """One thing measured, and what it has to be."""

    what: str
    found: float
    at_most: float

    @property
    def reached(self) -> bool:
        """Is it as it has to be?"""
        return self.found <= self.at_most


def crowd(seconds: int) -> list[Figure]:
    """Have 200 threads read through 10 connections, as fast as they can."""
    waits: list[float] = []
    misses: list[Outcome] = []

    def read(cache: RedisCache, until: float) -> None:
        longest = 0.0
        while time.monotonic() < until:
            before = waited_s()
            found = cache.lookup("k")
            longest = max(longest, waited_s() - before)
            if not found.is_hit:
                misses.append(found.outcome)
        waits.append(longest)

    with PrivateServer() as server, _cache(server) as cache:
        assert cache.set("k", {"value": "v" * 500})
        until = time.monotonic() + seconds
        _together(200, lambda: read(cache, until))
        hits = cache.stats().hits
    return [
        Figure(f"misses among {hits:,} reads", len(misses), 0),
        Figure("longest wait for a connection, ms", 1e3 * max(waits), 50),
    ]


def when_open(seconds: int) -> list[Figure]:
    """Have 32 threads, which think for 2 ms between two calls, ask a cache without its Redis."""
    took: list[float] = []

    def ask(cache: RedisCache, until: float) -> None:
        while time.monotonic() < until:
            time.sleep(0.002)
            began = time.perf_counter()
            cache.get("k")
            took.append(time.perf_counter() - began)

    with PrivateServer() as server, _cache(server) as cache:
        server.kill()
        _wait_until(lambda: cache.get("k") is None and cache.health().breaker == "open")
        until = time.monotonic() + seconds
        _together(32, lambda: ask(cache, until))
    took.sort()
    return [
        Figure(f"99 of 100 of {len(took):,} calls, ms", 1e3 * took[int(0.99 * len(took))], 1),
        Figure("calls over 300 ms", sum(call_s > 0.3 for call_s in took), 0),
    ]


def forks(times: int) -> list[Figure]:
    """Fork out of a process that is busy with the cache, and have the children use it."""
    over = threading.Event()
    ends = {"wrong": 0, "hung": 0}

    def be_busy(cache: RedisCache) -> None:
        while not over.is_set():
            if cache.get("k") not in (None, "v"):
                ends["wrong"] += 1
            time.sleep(0.0005)

    def kill(server: PrivateServer, cache: RedisCache) -> None:
        while not over.wait(_KILL_EVERY_S):
            server.kill()
            server.start()
            _wait_until(lambda: cache.set("k", "v"))

    with PrivateServer() as server, _cache(server) as cache:
        assert cache.set("k", "v")
        work = [threading.Thread(target=be_busy, args=(cache,)) for _ in range(6)]
        work.append(threading.Thread(target=kill, args=(server, cache)))
        for thread in work:
            thread.start()
        try:
            for _ in _shown(times):
                end = _child(cache)
                if end:
                    ends[end] += 1
        finally:
            over.set()
            for thread in work:
                thread.join()
    return [
        Figure(f"children of {times:,} that hung", ends["hung"], 0),
        Figure("wrong values", ends["wrong"], 0),
    ]


def recovery(times: int) -> list[Figure]:
    """Kill Redis, wait for the breaker to open, start it: when is there a hit again?"""
    took: list[float] = []
    with PrivateServer() as server, _cache(server) as cache:
        for _ in _shown(times):
            server.kill()
            _wait_until(lambda: cache.get("k") is None and cache.health().breaker == "open")
            server.start()
            began = time.monotonic()
            _wait_until(lambda: cache.set("k", "v") and cache.get("k") == "v")
            took.append(time.monotonic() - began)
    took.sort()
    return [
        Figure(f"99 of 100 of {times} recoveries, s", took[int(0.99 * (len(took) - 1))], 1.5),
        Figure("the longest, s", took[-1], 2.0),
    ]


def interrupts(times: int) -> list[Figure]:
    """Interrupt calls, in processes of 20,000: each has to have full capacity afterwards."""
    broken: list[str] = []
    for number in _shown(max(1, times // 20_000)):
        options = [["--by", "timer"], ["--by", "storm"], ["--by", "timer", "--trouble"]][number % 3]
        done = subprocess.run(
            [sys.executable, str(_FUZZ), str(min(times, 20_000)), *options],
            capture_output=True,
            text=True,
        )
        broken += _complaints(done)
    print(*broken[:10], sep="\n", file=sys.stderr)
    return [Figure(f"complaints after {times:,} interrupts", len(broken), 0)]


RUNS: dict[str, tuple[Callable[[int], list[Figure]], int]] = {
    "crowd": (crowd, 5),
    "open": (when_open, 10),
    "forks": (forks, 10_000),
    "recovery": (recovery, 200),
    "interrupts": (interrupts, 2_000_000),
}


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="make endurance", description=__doc__)
    parser.add_argument("runs", nargs="*", metavar="RUN", help=", ".join(RUNS))
    parser.add_argument("--times", type=int, help="instead of each run's own number, or seconds")
    asked = parser.parse_args()
    unknown = set(asked.runs) - set(RUNS)
    if unknown:
        parser.error(f"no run {', '.join(sorted(unknown))}: choose from {', '.join(RUNS)}")
    missed = 0
    for name in asked.runs or RUNS:
        run, times = RUNS[name]
        began = time.monotonic()
        figures = run(asked.times or times)
        print(f"{name}, {time.monotonic() - began:.0f} s", flush=True)
        for figure in figures:
            verdict = "reached" if figure.reached else "MISSED "
            print(f"  {verdict} {figure.what}: {figure.found:.4g}, at most {figure.at_most:g}")
            missed += not figure.reached
    return 1 if missed else 0


@contextlib.contextmanager
def _cache(server: PrivateServer) -> Iterator[RedisCache]:
    with RedisCacheFactory.create_cache(CacheSettings.from_url(server.url)) as cache:
        assert isinstance(cache, RedisCache)
        yield cache


def _together(count: int, work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _wait_until(true: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + _GIVE_UP_S
    while not true():
        if time.monotonic() > give_up_at:
            raise TimeoutError("the cache did not get there")
        time.sleep(0.001)


def _shown(times: int) -> Iterator[int]:
    for number in range(times):
        if sys.stderr.isatty():
            print(f"\r\033[K{number} of {times}", end="", file=sys.stderr, flush=True)
        yield number
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def _child(cache: RedisCache) -> str:
    """How a child ended that used what it inherited; "" for well."""
    pid = os.fork()
    if pid == 0:
        right = False
        try:
            own = f"child-{os.getpid()}"
            cache.set(own, own)
            right = cache.get("k") in (None, "v") and cache.get(own) in (None, own)
        finally:
            os._exit(0 if right else 1)
    give_up_at = time.monotonic() + _HANG_S
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return "wrong" if status else ""
        if time.monotonic() > give_up_at:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            return "hung"
        time.sleep(0.0005)


def _complaints(done: subprocess.CompletedProcess[str]) -> list[str]:
    if done.returncode:
        return [f"exit code {done.returncode}: {done.stderr[-2000:]}"]
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    found = [
        f"seed {report['seed']}: {name} {report[name]}"
        for name, value in NOTHING_LOST.items()
        if report[name] != value
    ]
    if report["back_s"] > 2.0:
        found.append(f"seed {report['seed']}: back after {report['back_s']} s")
    return found


if __name__ == "__main__":
    sys.exit(main())
