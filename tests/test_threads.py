"""How threads of ours begin: known by their name, deaf to signals, and never at a caller's cost."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
from computing_kit import SOON_S, wait_until
from interrupter import Interrupt, Interrupter

from jmcache import AsyncRedisCache, CacheSettings, RedisCacheFactory, background
from jmcache.background import Background
from jmcache.cache import _keeper
from jmcache.cache._keeper import Hold
from jmcache.connection._tracking import Tracking
from jmcache.errors import RedisConnectionError
from jmcache.near import Coherence, NearCache
from jmcache.signals import Mask, refuse_signals, signals_as_before
from jmcache.testing import PrivateServer
from jmcache.threads import start_thread, this_thread


def on_a_thread(run: Callable[[], Any]) -> Any:
    """Return what *run* returns on one that was started."""
    found: list[Any] = []
    over = threading.Event()

    def note() -> None:
        found.append(run())
        over.set()

    assert start_thread("jmcache-test", note) is True
    assert over.wait(SOON_S)
    return found[0]


def mask() -> Mask:
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, []))


def no_thread(*_: object) -> None:
    raise RuntimeError("can't start new thread")


def test_it_is_a_daemon_that_threading_knows_by_its_name() -> None:
    """A process ends without waiting for it, and a stack dump says whose it is."""
    thread = on_a_thread(this_thread)
    assert (thread.name, thread.daemon) == ("jmcache-test", True)
    thread.join(SOON_S)
    assert not thread.is_alive()


def test_it_refuses_signals_and_knows_what_was_blocked_before() -> None:
    """The application's code on it has to do as everywhere."""

    def masks() -> tuple[Mask, Mask]:
        with signals_as_before():
            foreign = mask()
        return mask(), foreign

    mine = mask()
    blocked, foreign = on_a_thread(masks)
    assert blocked > {signal.SIGTERM, signal.SIGINT}
    assert foreign == mine


def test_one_that_a_thread_of_ours_starts_knows_it_too() -> None:
    """The health thread logs a line: its handler is the application's, on a thread after that."""

    def foreign() -> Mask:
        with signals_as_before():
            return mask()

    assert on_a_thread(lambda: on_a_thread(foreign)) == mask()


def test_foreign_code_within_foreign_code_leaves_it_as_it_was() -> None:
    """A loader reads from the cache, with a validator, and goes on."""

    def masks() -> list[Mask]:
        found = []
        with signals_as_before():
            with signals_as_before():
                pass
            found.append(mask())
        return [*found, mask()]

    loader, after = on_a_thread(masks)
    assert loader == mask()
    assert signal.SIGTERM in after


def test_without_a_thread_to_be_had_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever wanted it has something else to do then."""
    monkeypatch.setattr(_thread, "start_new_thread", no_thread)
    assert start_thread("jmcache-test", pytest.fail) is False


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
def test_with_one_left_in_the_system_that_serves(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was promised by then, and a thread without a name is one, too."""

    def fails(_: threading.Thread) -> None:
        raise error

    monkeypatch.setattr(threading.Thread, "start", fails)
    thread, blocked = on_a_thread(lambda: (this_thread(), mask()))
    assert thread is None
    assert signal.SIGTERM in blocked


def test_a_closed_cache_leaves_none(
    redis_server: PrivateServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would keep all of it alive for seconds, and a service that makes caches has many."""
    monkeypatch.setattr(background, "_REST_S", 3600.0)
    monkeypatch.setattr(_keeper, "_REST_S", 3600.0)
    before = set(threading.enumerate())

    def ours() -> set[str]:
        new = set(threading.enumerate()) - before
        return {one.name.partition("_")[0] for one in new if one.name.startswith("jmcache-")}

    async def use(awaited: AsyncRedisCache) -> None:
        assert await awaited.get_or_set("a", lambda: 1) == 1
        assert await awaited.set_many({"b": 1})
        await awaited.aclose()

    settings = CacheSettings.from_url(redis_server.url, near=True, operation_timeout=SOON_S)
    cache = RedisCacheFactory.create_cache(settings)
    assert cache.get_or_set("k", lambda: 1, loader_timeout=SOON_S) == 1
    with pytest.raises(ZeroDivisionError) as kept:
        cache.get_or_set("l", lambda: 1 / 0)
    assert cache._shop.background.submit(lambda: None)
    assert cache._shop.returns.submit(lambda: None)
    wait_until(lambda: ours() >= {"jmcache-background", "jmcache-keeper", "jmcache-near"})
    asyncio.run(use(AsyncRedisCache(cache)))
    wait_until(lambda: not ours())
    assert kept.traceback
    with pytest.raises(ZeroDivisionError):
        cache.get_or_set("k", lambda: 1 / 0, loader_timeout=SOON_S)
    wait_until(lambda: not ours())


def test_a_thread_that_is_not_ours_is_left_alone() -> None:
    """A caller's own mask is none of a library's business."""

    def masks() -> list[Mask]:
        signal.pthread_sigmask(signal.SIG_SETMASK, [signal.SIGUSR2])
        found = [mask()]
        with signals_as_before():
            found.append(mask())
        return [*found, mask()]

    found: list[list[Mask]] = []
    thread = threading.Thread(target=lambda: found.append(masks()))
    thread.start()
    thread.join(SOON_S)
    assert found == [[{signal.SIGUSR2}] * 3]


def test_a_fault_is_told_and_a_profiler_sees_all_threads() -> None:
    """A blocked fault ends the process without a word of faulthandler's."""

    def blocked() -> Mask:
        refuse_signals()
        return mask()

    refused = on_a_thread(blocked)
    assert not refused & {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGPROF}


# An exception of a signal handler, at each point of a start ------------------------------------


def background_that_was(interrupted: Interrupter) -> Callable[[], object]:
    """Interrupt a start; return what tells whether work is done after it."""
    pool = Background(1, 100)
    with contextlib.suppress(Interrupt), interrupted:
        pool.submit(lambda: None)
    done = threading.Event()
    assert pool.submit(done.set)
    return done.is_set


def keeper_that_was(interrupted: Interrupter) -> Callable[[], object]:
    """The same of a lease's renewal."""
    renewed: list[Hold] = []
    keeper = _keeper.Keeper(renewed.append)
    first, second = Hold([b"lease"], b"token", 60.0), Hold([b"lease"], b"token", 0.03)
    with contextlib.suppress(Interrupt), interrupted:
        keeper.keep(first)
    keeper.keep(second)
    return lambda: second in renewed and first.leases


def listener_that_was(interrupted: Interrupter) -> Callable[[], object]:
    """The same of listening to Redis."""
    asked = threading.Event()

    def connect() -> None:
        asked.set()
        raise RedisConnectionError

    coherence = Coherence(b"#")
    kept = NearCache(coherence, 1000, 1.0)
    options = {"lag_s": 1.0, "connect_s": 1.0, "place": str}
    tracking = Tracking(connect, print, coherence, b"prefix:", **options)  # type: ignore[arg-type]
    with contextlib.suppress(Interrupt), interrupted:
        tracking.wake()
    tracking.wake()

    def has_asked() -> bool:
        if asked.is_set():
            tracking.stop()
        return asked.is_set() and kept is not None

    return has_asked


@pytest.mark.parametrize("that_was", [background_that_was, keeper_that_was, listener_that_was])
def test_a_start_that_is_interrupted_is_made_up_for_by_the_next(
    that_was: Callable[[Interrupter], Callable[[], object]],
) -> None:
    """Celery's soft limit would switch it off until the process ends."""
    point, interrupted = 0, Interrupter(0, "/jmcache/")
    while point == 0 or interrupted.done:
        interrupted = Interrupter(point, "/jmcache/")
        wait_until(that_was(interrupted))
        point += 1
    assert point > 2
