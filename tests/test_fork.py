"""What a child gets of its parent: nothing that could be locked, and no socket."""

from __future__ import annotations

import gc
import os
import signal
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from interrupter import Interrupter

from jmcache import CacheSettings, RedisCache, RedisCacheFactory, fork
from jmcache.fork import renew_in_child
from jmcache.testing import PrivateServer

MakeSettings = Callable[..., CacheSettings]


class Part:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        renew_in_child(self.renew)

    def renew(self) -> None:
        self.lock = threading.Lock()


def in_child(work: Callable[[], bool]) -> bool:
    """Fork, and return what *work* returned there; a child that hangs is killed after 10 s."""
    with warnings.catch_warnings():
        # 3.12 and later warn of forking with threads, which is the point here.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        signal.alarm(10)
        right = False
        try:
            right = work()
        finally:
            os._exit(0 if right else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.fixture
def cache(settings: MakeSettings) -> Iterator[RedisCache]:
    made = RedisCacheFactory.create_cache(settings(operation_timeout=5.0))
    assert isinstance(made, RedisCache)
    with made:
        yield made


def test_a_part_is_renewed_in_the_child_and_not_in_the_parent() -> None:
    """A lock that another thread held at the fork stays locked in the child for ever."""
    part = Part()
    part.lock.acquire()
    assert in_child(lambda: not part.lock.locked())
    assert part.lock.locked()


def test_parts_registered_by_many_threads_at_once_are_all_renewed() -> None:
    """The first requests of a service build its caches together; one forgotten lock is enough."""
    start = threading.Barrier(8)

    def make(_: int) -> list[Part]:
        start.wait(timeout=10)
        return [Part() for _ in range(50)]

    with ThreadPoolExecutor(8) as threads:
        parts = [part for made in threads.map(make, range(8)) for part in made]
    for part in parts:
        part.lock.acquire()
    assert in_child(lambda: not any(part.lock.locked() for part in parts))


def test_a_child_can_register_though_another_thread_did_at_the_fork() -> None:
    """A worker that makes its cache after the fork would hang in its first line."""
    with fork._lock:
        assert in_child(lambda: Part() is not None)


def test_registering_keeps_nothing_alive() -> None:
    """A service that makes a cache for each request would keep them all."""
    part = Part()
    reference = weakref.ref(part)
    del part
    gc.collect()
    assert reference() is None
    assert in_child(lambda: True)


def test_nothing_runs_when_a_part_goes_in_which_an_interrupt_would_be_lost() -> None:
    """A time limit that a task meets where it lets go of a cache would never reach the task."""
    parts = [Part()]
    gc.collect()
    with Interrupter(0) as interrupter:
        parts.clear()
    assert not interrupter.done, interrupter.where


def test_parent_and_child_talk_over_connections_of_their_own(cache: RedisCache) -> None:
    """Two processes on one socket read each other's answers."""
    cache.set("k", "parent")

    def child() -> bool:
        right = cache.get("k") == "parent"
        right &= cache.set("k", "child")
        return right and all(cache.get("k") == "child" for _ in range(50))

    assert in_child(child)
    assert all(cache.get("k") == "child" for _ in range(50))


def _locks(thing: Any, seen: set[int]) -> Iterator[tuple[Any, str]]:
    """All locks of ours that *thing* leads to, with the object and the attribute that hold them."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    attributes = dict(getattr(thing, "__dict__", {}))
    for cls in type(thing).__mro__:
        for name in getattr(cls, "__slots__", ()):
            if isinstance(name, str) and hasattr(thing, name):
                attributes[name] = getattr(thing, name)
    for name, value in attributes.items():
        if isinstance(value, type(threading.Lock())):
            yield thing, name
        elif type(value).__module__.startswith("jmcache") or "jmcache" in repr(type(value)):
            yield from _locks(value, seen)


def test_a_child_works_whatever_lock_was_held_at_the_fork(cache: RedisCache) -> None:
    """Gunicorn and Celery fork from a busy process: one held lock would be one dead worker."""
    cache.set("k", 1)
    cache.stats()
    held = list(_locks(cache, set()))
    owners = {type(owner).__name__ for owner, _ in held}
    assert {"Pool", "CircuitBreaker", "Monitor", "OutageLog"} <= owners, owners
    acquired = []
    try:
        for owner, name in held:
            lock = getattr(owner, name)
            if lock.acquire(blocking=False):
                acquired.append(lock)
        with_factory = RedisCacheFactory._lock
        with_factory.acquire()
        acquired.append(with_factory)

        def child() -> bool:
            found = cache.get("k") == 1 and cache.set("k", 2) and cache.stats().hits == 1
            RedisCacheFactory.create_cache(cache.settings).close()
            return found and cache.health().status == "ok"

        assert in_child(child)
    finally:
        for lock in acquired:
            lock.release()
    assert cache.get("k") == 2


def test_a_child_of_a_busy_process_never_hangs_and_never_sees_wrong_data(cache: RedisCache) -> None:
    """The same by chance: forks under busy threads, as they come in production."""
    stop = threading.Event()
    wrong: list[object] = []

    def traffic(number: int) -> None:
        while not stop.is_set():
            cache.set(f"{number}", number)
            found = cache.get(f"{number}")
            if found not in (number, None):
                wrong.append(found)

    threads = [threading.Thread(target=traffic, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:

        def child() -> bool:
            cache.set("child", "child")
            return all(cache.get("child") == "child" for _ in range(5))

        assert all(in_child(child) for _ in range(40))
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=10)
    assert wrong == []


def test_an_outage_of_the_parent_is_none_of_the_childs(redis_server: PrivateServer) -> None:
    """A child forked during an outage would serve no hit for half a minute after it."""
    made = RedisCacheFactory.create_cache(
        CacheSettings.from_url(redis_server.url, failure_threshold=1, max_retries=0)
    )
    with made:
        redis_server.kill()
        made.get("k")
        assert made.health().breaker != "closed"
        redis_server.start()
        assert in_child(lambda: made.health().breaker == "closed" and made.set("k", 1))
