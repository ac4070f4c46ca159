"""Work that nobody waits for: how many threads, how long a queue, and what becomes of them."""

from __future__ import annotations

import _thread
import os
import threading
import time

import pytest
from computing_kit import SOON_S, wait_until

from jmcache import background
from jmcache.background import Background


class Work:
    """Notes who does it, and waits until it may end."""

    def __init__(self, *, waits: bool = True) -> None:
        self.may_end = threading.Event()
        self.begun = threading.Semaphore(0)
        self.doing = 0
        self.most = 0
        self.done = 0
        self.daemons: set[bool] = set()
        self._lock = threading.Lock()
        if not waits:
            self.may_end.set()

    def __call__(self) -> None:
        with self._lock:
            self.doing += 1
            self.most = max(self.most, self.doing)
            self.daemons.add(threading.current_thread().daemon)
        self.begun.release()
        assert self.may_end.wait(SOON_S)
        with self._lock:
            self.doing -= 1
            self.done += 1


def test_work_is_done_on_daemon_threads_that_come_with_it() -> None:
    """A thread that holds up the interpreter's end makes every deploy wait for its kill."""
    pool = Background(2, 8)
    before = threading.active_count()
    work = Work(waits=False)
    assert pool.submit(work) is True
    wait_until(lambda: work.done == 1)
    assert work.daemons == {True}
    assert threading.active_count() <= before + 1


def test_what_work_asks_of_its_thread_leaves_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loader that logs left a dummy in the list of all threads, for good, for each thread."""
    monkeypatch.setattr(background, "_REST_S", 0.01)
    done_by: list[threading.Thread] = []
    pool = Background(1, 8)
    assert pool.submit(lambda: done_by.append(threading.current_thread())) is True
    wait_until(lambda: len(done_by) == 1)
    assert done_by[0].name == "jmcache-background_1"
    wait_until(lambda: done_by[0] not in threading.enumerate())


def test_no_more_threads_than_it_may_have() -> None:
    """Every refresh at one time is a stampede of its own."""
    pool = Background(3, 100)
    work = Work()
    assert all(pool.submit(work) for _ in range(50))
    for _ in range(3):
        assert work.begun.acquire(timeout=SOON_S)
    assert work.begun.acquire(timeout=0.05) is False
    work.may_end.set()
    wait_until(lambda: work.done == 50)
    assert work.most == 3
    assert pool.skipped == 0


def test_what_finds_the_queue_full_is_skipped_and_counted() -> None:
    """A queue without an end takes the memory first and the process then."""
    pool = Background(1, 2)
    work = Work()
    assert pool.submit(work) is True
    assert work.begun.acquire(timeout=SOON_S)
    assert [pool.submit(work) for _ in range(4)] == [True, True, False, False]
    assert pool.skipped == 2
    work.may_end.set()
    wait_until(lambda: work.done == 3)
    assert pool.submit(work) is True
    wait_until(lambda: work.done == 4)


def test_a_failure_costs_the_thread_nothing_and_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A pool whose threads die one by one does nothing one day, and nobody hears of it."""
    pool = Background(1, 10)

    def fail() -> None:
        raise ValueError("with a secret")

    for _ in range(3):
        pool.submit(fail)
    work = Work(waits=False)
    pool.submit(work)
    wait_until(lambda: work.done == 1)
    assert pool.failed == 3
    (record,) = caplog.records
    assert "ValueError" in record.getMessage()
    assert "secret" not in record.getMessage()


def test_threads_rest_and_end_and_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle process keeps no threads; the next refresh is done all the same."""
    monkeypatch.setattr(background, "_REST_S", 0.02)
    pool = Background(2, 10)
    for _ in range(3):
        work = Work(waits=False)
        pool.submit(work)
        wait_until(lambda: work.done == 1)  # noqa: B023 - called before the next
        wait_until(lambda: not pool._bells)


def test_no_work_is_left_behind_when_threads_end_as_it_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last look of an ending thread and a new piece of work must not miss each other."""
    monkeypatch.setattr(background, "_REST_S", 0.0005)
    pool = Background(2, 10)
    work = Work(waits=False)
    for number in range(300):
        assert pool.submit(work) is True
        if number % 3 == 0:
            time.sleep(0.0006)
        give_up_at = time.monotonic() + SOON_S
        while work.done <= number - 5:
            assert time.monotonic() < give_up_at
            time.sleep(0.0001)
    wait_until(lambda: work.done == 300)


def test_without_a_thread_to_be_had_it_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container at its limit of threads must not fail a request for a refresh."""

    def no_thread(*args: object) -> None:
        raise RuntimeError("can't start new thread")

    pool = Background(1, 10)
    with monkeypatch.context() as patched:
        patched.setattr(_thread, "start_new_thread", no_thread)
        assert pool.submit(lambda: None) is False
        assert pool.skipped == 1
    work = Work(waits=False)
    assert pool.submit(work) is True
    wait_until(lambda: work.done == 1)


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
def test_with_one_thread_left_in_the_system_work_is_done_on_that(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """It has been promised by then."""

    def no_thread(*_: object) -> None:
        raise error

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    work = Work(waits=False)
    assert Background(1, 10).submit(work) is True
    wait_until(lambda: work.done == 1)


def test_a_forked_child_begins_with_neither_work_nor_threads() -> None:
    """Its parent does the work; the threads that the child believes in are not there."""
    pool = Background(1, 10)
    work = Work()
    pool.submit(work)
    pool.submit(work)
    assert work.begun.acquire(timeout=SOON_S)
    pid = os.fork()
    if pid == 0:
        done = threading.Event()
        pool.submit(done.set)
        os._exit(0 if done.wait(SOON_S) and not pool._queue else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    work.may_end.set()
    wait_until(lambda: work.done == 2)
