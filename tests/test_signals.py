"""Signals and our threads: none of them takes one, but in the midst of what is not ours."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from computing_kit import SOON_S, wait_until

from jmcache import AsyncRedisCache, CacheSettings, RedisCacheFactory
from jmcache.signals import Mask
from jmcache.testing import FaultProxy, PrivateServer

LOOKS = """
    import os, signal, sys, threading, time
    from pathlib import Path
    from jmcache import AsyncRedisCache, CacheSettings, RedisCacheFactory

    class Sink:
        def __getattr__(self, name):
            return lambda *args, **kwargs: None

    def takes_it(task):
        try:
            status = Path(f"/proc/self/task/{task}/status").read_text()
        except FileNotFoundError:
            return False  # it has ended
        blocked = int(status.split("SigBlk:")[1].split()[0], 16)
        return not blocked >> signal.SIGTERM - 1 & 1

    def tasks():
        return {task for task in os.listdir("/proc/self/task") if int(task) != os.getpid()}
"""

AT_REST = """
    import asyncio
    settings = CacheSettings.from_url(sys.argv[1], near=True)
    cache = RedisCacheFactory.create_cache(settings, metrics=[Sink()])
    cache.get_or_set("k", lambda: 1)
    cache._shop.background.submit(lambda: None)
    awaited = AsyncRedisCache(cache)

    async def use():
        await awaited.set_many({"a": 1})
        await awaited.get_or_set("b", lambda: 1)

    asyncio.run(use())
    own = {signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, own)
    over = time.monotonic() + 10
    looks = 0  # in a row: by then all have begun, and none is at work
    names = set()
    while looks < 30 and time.monotonic() < over:
        looks = looks + 1 if not any(map(takes_it, tasks())) else 0
        names |= {one.name.rpartition("_")[0] or one.name for one in threading.enumerate()}
        time.sleep(0.01)
    print(" ".join(sorted(names - {"MainThread"})), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)
    print("finished what it was at", flush=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, own)
    time.sleep(10)
"""

AT_WORK = """
    settings = CacheSettings.from_url(sys.argv[1], near=True, failure_threshold=2)
    cache = RedisCacheFactory.create_cache(settings, metrics=[Sink()])
    for _ in range(3):
        cache.get("k")  # from now on the health thread asks, and the near one, and both wait
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    seen = {}  # how often in a row, of those that have refused it before
    over = time.monotonic() + 3
    while time.monotonic() < over:
        for task in tasks():
            if not takes_it(task):
                seen[task] = 0
            elif task in seen:
                seen[task] += 1
        if max(seen.values()) >= 10:  # a sink is the application's, and soon over
            print("taken")
            break
        time.sleep(0.01)
"""


def run(program: str, url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LOOKS) + textwrap.dedent(program), url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")


@needs_proc
def test_a_signal_that_the_main_thread_blocks_waits_for_it(tcp_server: PrivateServer) -> None:
    """Else it ends the process half way: a child of Celery's, with a lock of all children held."""
    done = run(AT_REST, tcp_server.url)
    names, *rest = done.stdout.splitlines()
    assert rest == ["finished what it was at"], done.stderr
    ours = "aio background health keeper load metrics near"
    assert names == " ".join(f"jmcache-{name}" for name in ours.split())
    assert done.returncode == -signal.SIGTERM


@needs_proc
def test_it_waits_while_our_threads_wait_for_redis(tcp_server: PrivateServer) -> None:
    """In an outage they do so most of the time."""
    with FaultProxy(tcp_server) as silent:
        silent.blackhole()
        done = run(AT_WORK, silent.url)
    assert (done.stdout, done.returncode) == ("", 0), done.stderr


class Masks:
    """What is blocked where the application's code runs."""

    def __init__(self) -> None:
        self.seen: dict[str, list[Mask]] = {}

    def note(self, where: str, answer: Any = None) -> Any:
        blocked = set(signal.pthread_sigmask(signal.SIG_BLOCK, []))
        self.seen.setdefault(where, []).append(blocked)
        return answer

    def noting(self, where: str, answer: Any = None) -> Callable[..., Any]:
        return lambda *_args, **_named: self.note(where, answer)


@contextmanager
def handling(masks: Masks, logger: str) -> Iterator[None]:
    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            masks.note(f"handler on {record.threadName}")

    handler = Handler()
    logging.getLogger(logger).addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger(logger).removeHandler(handler)


class Sink:
    def __init__(self, masks: Masks) -> None:
        self._masks = masks

    def increment(self, *_args: object, **_named: object) -> None:
        self._masks.note("sink")
        raise ZeroDivisionError  # that is logged, too

    timing = gauge = increment


def test_what_is_the_applications_runs_with_the_signals_as_they_were(
    redis_server: PrivateServer,
) -> None:
    """A program that says a password would never hear of Ctrl-C."""
    redis_server.command("ACL", "SETUSER", "u", "on", ">secret", "~*", "&*", "+@all")
    masks = Masks()
    settings = CacheSettings(
        unix_socket_path=str(redis_server.socket_path),
        username="u",
        password=masks.noting("password", "secret"),
        operation_timeout=SOON_S,
        near=True,
    )
    with (
        handling(masks, "jmcache"),
        RedisCacheFactory.create_cache(settings, metrics=[Sink(masks)]) as cache,
    ):
        awaited = AsyncRedisCache(cache)

        async def use() -> None:
            assert await awaited.get_or_set("a", masks.noting("loader", 1)) == 1
            assert await awaited.get_many(["a"], validate=masks.noting("validate")) == {"a": 1}
            assert not await awaited.set_many({"b": object()})  # which is logged

        asyncio.run(use())
        options = {"ttl": 0.001, "stale_ttl": 60.0, "negative": masks.noting("negative", False)}
        assert cache.get_or_set("c", lambda: 1, **options) == 1
        refreshed = masks.noting("refreshing loader", 2)
        wait_until(
            lambda: (
                cache.get_or_set("c", refreshed, **options) and "refreshing loader" in masks.seen
            )
        )
        assert cache._shop.background.submit(lambda: 1 / 0)
        wanted = {"password", "loader", "validate", "negative", "refreshing loader", "sink"}
        wanted |= {"handler on jmcache-log", "handler on jmcache-metrics"}
        wait_until(lambda: wanted <= masks.seen.keys())
        wait_until(lambda: any("jmcache-background" in where for where in masks.seen))
    here = set(signal.pthread_sigmask(signal.SIG_BLOCK, []))
    assert {
        where: seen
        for where, seen in masks.seen.items()
        if set(map(frozenset, seen)) != {frozenset(here)}
    } == {}
