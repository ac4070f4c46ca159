"""Log lines on a thread of ours: what a caller is spared, and what it must not miss."""

from __future__ import annotations

import _thread
import contextvars
import logging
import threading
import time
from collections.abc import Iterator

import pytest
from stopwatch import Stopwatch

from jmcache import CacheSettings, RedisCacheFactory
from jmcache.monitoring import _voice
from jmcache.monitoring._voice import say

LOG = logging.getLogger("jmcache.test")
SHIPPED_WAIT_S = _voice.WAIT_S  # before conftest makes it longer


@pytest.fixture
def handler() -> Iterator[logging.Handler]:
    """A handler of the logger, whose emit a test replaces."""
    made = logging.Handler()
    LOG.addHandler(made)
    yield made
    LOG.removeHandler(made)


def speak(number: int = 0) -> None:
    say(LOG, logging.WARNING, "line %(number)d", {"number": number})


def test_a_line_is_logged_when_say_returns_with_its_fields(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What a service logs about the same request afterwards would come before it."""
    for number in range(20):
        speak(number)
        assert caplog.messages[-1] == f"line {number}"
    assert vars(caplog.records[3])["jmcache"] == {"number": 3}
    assert {record.threadName for record in caplog.records} == {"jmcache-log"}


def test_a_handler_never_runs_on_the_callers_thread(handler: logging.Handler) -> None:
    """It catches whatever is raised while it writes: a time limit that comes then was lost."""
    threads: list[threading.Thread] = []
    handler.emit = lambda record: threads.append(threading.current_thread())  # type: ignore[method-assign]
    speak()
    assert threads != [threading.current_thread()]
    assert len(threads) == 1


def test_a_handler_that_hangs_does_not_hold_up_the_caller_for_long(
    handler: logging.Handler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full pipe behind the log would stop the service together with Redis."""
    monkeypatch.setattr(_voice, "WAIT_S", 0.1)
    go = threading.Event()
    handler.emit = lambda record: go.wait(30)  # type: ignore[method-assign,return-value]
    began = time.monotonic()
    speak()
    took_s = time.monotonic() - began
    go.set()
    assert 0.1 <= took_s < 5.0


def test_a_handler_that_hangs_leaves_a_call_its_deadline(
    handler: logging.Handler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call that opens the breaker logs it, and is late already."""
    monkeypatch.setattr(_voice, "WAIT_S", SHIPPED_WAIT_S)
    go = threading.Event()
    handler.emit = lambda record: go.wait(30)  # type: ignore[method-assign,return-value]
    logging.getLogger("jmcache").addHandler(handler)
    settings = CacheSettings(host="127.0.0.1", port=1, failure_threshold=1, max_retries=0)
    try:
        with Stopwatch() as watch, RedisCacheFactory.create_cache(settings) as cache:
            with watch.call(0.0):
                assert cache.get("k") is None
            assert cache.health().breaker != "closed"  # half-open already, on a busy machine
            assert watch.late() == []
    finally:
        go.set()
        logging.getLogger("jmcache").removeHandler(handler)


def test_a_filter_sees_the_callers_context(handler: logging.Handler) -> None:
    """Services mark their lines with a request's id, kept in a context variable."""
    request = contextvars.ContextVar("request", default="none")
    seen: list[str] = []
    handler.emit = lambda record: seen.append(request.get())  # type: ignore[method-assign]
    token = request.set("4711")
    speak()
    request.reset(token)
    assert seen == ["4711"]


@pytest.mark.parametrize("where", ["first", "second"])
def test_without_a_thread_to_be_had_the_line_is_logged_all_the_same(
    where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A container at its limit of threads is just the one whose log somebody will read."""

    def none_left(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        if where == "first":
            patch.setattr(_thread, "start_new_thread", none_left)
        else:
            patch.setattr(threading.Thread, "start", none_left)
        speak()
    assert caplog.messages == ["line 0"]


def test_no_thread_is_left_when_the_line_is_logged() -> None:
    """They would add up, in a process that lives for months."""
    before = speakers()  # a thread of another test that asked who it is stays listed
    for number in range(50):
        speak(number)
    ends_at = time.monotonic() + 5
    while speakers() - before and time.monotonic() < ends_at:
        time.sleep(0.001)
    assert speakers() <= before


def speakers() -> set[threading.Thread]:
    return {
        thread for thread in threading.enumerate() if thread.name.startswith(("jmcache-log", "Dum"))
    }
