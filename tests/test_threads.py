"""How threads of ours begin: known by their name, deaf to signals, and never at a caller's cost."""

from __future__ import annotations

import _thread
import asyncio
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
from computing_kit import SOON_S, wait_until

from jmcache import AsyncRedisCache, CacheSettings, RedisCacheFactory, background
from jmcache.cache import _keeper
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
    assert cache._shop.background.submit(lambda: None)
    assert cache._shop.returns.submit(lambda: None)
    wait_until(lambda: ours() >= {"jmcache-background", "jmcache-keeper", "jmcache-near"})
    asyncio.run(use(AsyncRedisCache(cache)))
    wait_until(lambda: not ours())
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
