"""The threads of the adapter: how a call gets to one, and what comes of it back to its loop."""

from __future__ import annotations

import _thread
import asyncio
import gc
import os
import signal
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import pytest
from interrupter import Interrupt, Interrupter

from jmcache.aio._threads import Call, Threads
from jmcache.deadline import Deadline
from jmcache.errors import RedisError


class Room:
    """Holds every thread that comes in until it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.inside: list[str] = []

    def stay(self) -> str:
        self.inside.append(threading.current_thread().name)
        assert self.opened.wait(timeout=20)
        return "stayed"


class Thing:
    """What a weak reference can be made to."""


@pytest.fixture
def threads() -> Iterator[Threads]:
    made = Threads(lambda: 3)
    yield made
    made.close()
    wait_until(lambda: made.running == 0)


def wait_until(true: Callable[[], object]) -> None:
    over = time.monotonic() + 20.0
    while not true():
        assert time.monotonic() < over
        time.sleep(0.001)


async def run(threads: Threads, work: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """What *work* returned, or the reason for which it did not run."""
    call = threads.begin(work, Deadline(timeout_s))
    await call.ended()
    return call.result() if call.refused is None else call.refused.reason


def no_thread(*_: object) -> NoReturn:
    raise RuntimeError("can't start new thread")


# Threads that come and go ------------------------------------------------------------------------


def test_nothing_is_started_before_the_first_call(threads: Threads) -> None:
    """A cache that is made before a fork must not have threads the child would miss."""
    assert threads.running == 0


def test_one_call_after_the_other_needs_one_thread(threads: Threads) -> None:
    """Ten threads for a service with one request a second are nine in vain."""

    async def use() -> set[str]:
        return {await run(threads, lambda: threading.current_thread().name) for _ in range(20)}

    (name,) = asyncio.run(use())
    assert name.startswith("jmcache-aio")
    assert threads.running == 1


def test_there_are_as_many_as_may_be_and_no_more(threads: Threads) -> None:
    """Every call over the limit would wait for a connection that nobody has."""
    room = Room()

    async def use() -> list[str]:
        calls = [asyncio.ensure_future(run(threads, room.stay)) for _ in range(20)]
        await asyncio.to_thread(wait_until, lambda: len(room.inside) == 3)
        await asyncio.sleep(0.02)
        assert len(set(room.inside)) == len(room.inside) == threads.running == 3
        assert threads.unfinished == 20
        room.opened.set()
        return await asyncio.gather(*calls)

    assert asyncio.run(use()) == ["stayed"] * 20
    assert threads.unfinished == 0


def test_loops_that_begin_together_start_no_thread_too_many() -> None:
    """Each sees that there is room for one more."""
    limit, started = 4, threading.Barrier(6)
    threads, most = Threads(lambda: limit), []

    def work() -> int:
        time.sleep(0.0005)
        most.append(threads.running)
        return threading.get_ident()

    def loop() -> None:
        async def use() -> None:
            await asyncio.to_thread(started.wait, timeout=20)
            for _ in range(20):
                assert all(await asyncio.gather(*[run(threads, work) for _ in range(10)]))

        asyncio.run(use())

    with ThreadPoolExecutor(6) as loops:
        for done in [loops.submit(loop) for _ in range(6)]:
            done.result(timeout=60)
    assert max(most) == limit
    assert len(most) == 6 * 20 * 10
    assert threads.unfinished == 0
    threads.close()


def test_they_grow_and_shrink_with_the_limit() -> None:
    """Settings change while the service runs; threads that sleep must hear of it, too."""
    limit = 2
    threads = Threads(lambda: limit)

    def fits() -> bool:
        return threads.running <= limit

    async def fill() -> None:
        room = Room()
        calls = [asyncio.ensure_future(run(threads, room.stay)) for _ in range(10)]
        await asyncio.to_thread(wait_until, lambda: len(room.inside) == limit)
        room.opened.set()
        await asyncio.gather(*calls)

    async def use() -> None:
        nonlocal limit
        for limit in (2, 6, 3):
            threads.fit()
            await asyncio.to_thread(wait_until, fits)
            await fill()
            assert threads.running == limit
        limit = 1  # and nobody says so: noticed with the next call
        await run(threads, int)
        await asyncio.to_thread(wait_until, fits)

    asyncio.run(use())
    threads.close()


def test_they_end_when_nobody_has_them_any_more() -> None:
    """Adapters that are made for a while, and never closed, would fill the process."""
    threads = Threads(lambda: 3)
    sleeping = asyncio.run(run(threads, threading.current_thread))
    assert sleeping.is_alive()
    del threads
    wait_until(lambda: not sleeping.is_alive())


def test_they_hold_up_no_end_of_the_process(threads: Threads) -> None:
    """Python waits for threads that are no daemons, and for those of every executor."""
    assert asyncio.run(run(threads, lambda: threading.current_thread().daemon)) is True


def test_a_forked_child_has_threads_of_its_own(threads: Threads) -> None:
    """Those of its parent it believes to have, and they are not there."""
    room = Room()

    async def child() -> bool:
        return threads.unfinished == 0 and await run(threads, lambda: "child") == "child"

    async def use() -> None:
        calls = [asyncio.ensure_future(run(threads, room.stay)) for _ in range(10)]
        await asyncio.to_thread(wait_until, lambda: len(room.inside) == 3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 and later: threads
            pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            right: list[bool] = []
            # Of a thread: this one believes to be in its parent's loop.
            thread = threading.Thread(target=lambda: right.append(asyncio.run(child())))
            thread.start()
            thread.join()
            os._exit(0 if right == [True] else 1)
        _, status = await asyncio.to_thread(os.waitpid, pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        room.opened.set()
        assert await asyncio.gather(*calls) == ["stayed"] * 10

    asyncio.run(use())


# Calls that do not run ---------------------------------------------------------------------------


def test_no_call_is_stuck_when_the_system_has_no_thread(
    threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the limit of processes a request would hang in place of going on without the cache."""

    async def use() -> list[str]:
        with monkeypatch.context() as patch:
            patch.setattr(_thread, "start_new_thread", no_thread)
            calls = asyncio.gather(*[run(threads, int) for _ in range(10)])
            refused = await asyncio.wait_for(calls, timeout=20)
        assert threads.running == threads.unfinished == 0
        return [*refused, await run(threads, lambda: "back")]

    assert asyncio.run(use()) == ["no_thread"] * 10 + ["back"]


def test_the_threads_there_are_serve_all_when_the_system_has_no_more(
    threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is slower than ten, and better than none."""

    async def use() -> list[str]:
        await run(threads, int)
        monkeypatch.setattr(threading.Thread, "start", no_thread)
        monkeypatch.setattr(_thread, "start_new_thread", no_thread)
        return await asyncio.gather(*[run(threads, lambda: "served") for _ in range(50)])

    assert asyncio.run(use()) == ["served"] * 50
    assert threads.running == 1


def test_a_cancelled_call_that_waits_is_not_run_and_takes_no_place(threads: Threads) -> None:
    """Callers that gave up would use up the queue for those that did not."""
    room, ran = Room(), []

    async def use() -> None:
        calls = [asyncio.ensure_future(run(threads, room.stay)) for _ in range(3)]
        await asyncio.to_thread(wait_until, lambda: len(room.inside) == 3)
        for _ in range(3):
            waiting = [
                asyncio.ensure_future(run(threads, lambda: ran.append(1))) for _ in range(597)
            ]
            await asyncio.sleep(0)
            assert threads.unfinished == 600
            assert await run(threads, int) == "queue_full"
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            assert threads.unfinished == 3
        room.opened.set()
        assert await asyncio.gather(*calls) == ["stayed"] * 3

    asyncio.run(use())
    assert ran == []


def test_a_call_whose_time_is_over_before_a_thread_came_free_is_not_run(threads: Threads) -> None:
    """A thousand such calls, each asking in vain, held the interpreter for 40 ms."""
    room, ran = Room(), []

    async def use() -> list[str]:
        calls = [asyncio.ensure_future(run(threads, room.stay)) for _ in range(3)]
        await asyncio.to_thread(wait_until, lambda: len(room.inside) == 3)
        late = [asyncio.ensure_future(run(threads, lambda: ran.append(1), 0.01)) for _ in range(5)]
        await asyncio.sleep(0.02)
        room.opened.set()
        assert await asyncio.gather(*calls) == ["stayed"] * 3
        return await asyncio.gather(*late)

    assert asyncio.run(use()) == ["hurried"] * 5
    assert ran == []


def test_closing_lets_run_what_waits_and_then_the_threads_end(threads: Threads) -> None:
    """A shutdown that drops calls leaves tasks that nobody ever wakes."""
    room = Room()

    async def use() -> list[str]:
        calls = [asyncio.ensure_future(run(threads, room.stay)) for _ in range(20)]
        await asyncio.to_thread(wait_until, lambda: len(room.inside) == 3)
        threads.close()
        assert await run(threads, int) == "closed"
        room.opened.set()
        return await asyncio.gather(*calls)

    assert asyncio.run(use()) == ["stayed"] * 20
    wait_until(lambda: threads.running == 0)
    threads.close()
    assert asyncio.run(run(threads, int)) == "closed"


def test_a_call_begun_while_it_is_being_closed_is_not_stuck() -> None:
    """It was let in; the threads looked for it a moment before it came."""
    for _ in range(200):
        threads = Threads(lambda: 2)

        async def use(threads: Threads = threads) -> None:
            await run(threads, int)
            closing = threading.Thread(target=threads.close)
            closing.start()
            for _ in range(20):
                assert await asyncio.wait_for(run(threads, int), timeout=20) in (0, "closed")
            closing.join()

        asyncio.run(use())


def test_a_call_that_comes_when_the_last_thread_is_leaving_gets_another(
    threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It saw a thread that was free, and the thread saw nothing that waited."""
    leave = threads._leave

    async def use() -> str:
        await run(threads, int)
        late = Call(lambda: "late", Deadline(60.0), threads)

        def leave_late(number: int) -> None:
            monkeypatch.undo()
            threads._waiting[late] = None
            leave(number)

        monkeypatch.setattr(threads, "_leave", leave_late)
        threads.close()
        await asyncio.wait_for(late.ended(), timeout=20)
        return late.result()

    assert asyncio.run(use()) == "late"


# What comes of a call ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [ZeroDivisionError(), KeyboardInterrupt(), SystemExit(3), GeneratorExit(), RedisError("mine")],
    ids=lambda error: type(error).__name__,
)
def test_whatever_it_raises_its_caller_gets_and_the_thread_lives(
    error: BaseException, threads: Threads
) -> None:
    """A time limit, an exit: not the thread's to keep, and not its end."""

    def fail() -> NoReturn:
        raise error

    async def use() -> object:
        first = await run(threads, threading.get_ident)
        with pytest.raises(type(error)) as caught:
            await run(threads, fail)
        assert caught.value is error
        return first == await run(threads, threading.get_ident)

    assert asyncio.run(use()) is True


def test_the_exception_that_no_future_takes_reaches_its_caller(threads: Threads) -> None:
    """An iterator that ends in a validator: the await would never come back."""

    async def use() -> None:
        with pytest.raises(RuntimeError, match="StopIteration"):
            await run(threads, lambda: next(iter(())))
        assert await run(threads, int) == 0

    asyncio.run(use())


def test_a_caller_that_is_cancelled_after_the_end_takes_no_other_one_along() -> None:
    """Both are on their way back to the loop, and the first has gone meanwhile."""
    threads = Threads(lambda: 1)

    async def use() -> int:
        gone, waiting = [asyncio.ensure_future(run(threads, int)) for _ in range(2)]
        await asyncio.sleep(0)
        mailbox = threads.mailbox(asyncio.get_running_loop())
        wait_until(lambda: len(mailbox._ended) == 2)  # and the loop does not turn meanwhile
        gone.cancel()
        found: int = await asyncio.wait_for(waiting, timeout=5)
        return found

    assert asyncio.run(use()) == 0
    threads.close()


@pytest.mark.filterwarnings("error")
def test_nobody_complains_when_nobody_waits_any_more(
    threads: Threads, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """The loop is closed, the task is cancelled: the thread has something else to do."""
    room = Room()

    def fail() -> NoReturn:
        room.stay()
        raise ZeroDivisionError

    async def leave() -> None:
        for work in (room.stay, fail):
            tasks = [asyncio.ensure_future(run(threads, work)) for _ in range(2)]
            await asyncio.sleep(0.01)
            tasks[0].cancel()

    asyncio.run(leave())  # cancels the others
    loop = asyncio.new_event_loop()
    left = loop.create_task(run(threads, room.stay))
    loop.run_until_complete(asyncio.sleep(0.01))
    left.cancel()
    loop.run_until_complete(asyncio.sleep(0.01))
    call: list[Any] = []

    async def begin() -> None:
        call.append(threads.begin(room.stay, Deadline(60.0)))

    loop.run_until_complete(begin())
    loop.close()
    room.opened.set()
    wait_until(lambda: threads.unfinished == 0)
    assert asyncio.run(run(threads, lambda: "served")) == "served"
    gc.collect()
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def test_a_thread_that_sleeps_keeps_no_result_alive(threads: Threads) -> None:
    """The last answer of a night, of 64 MB, would stay until the morning."""

    async def use() -> list[weakref.ref[Thing]]:
        found = weakref.ref(await run(threads, Thing))
        argument = Thing()
        kept = weakref.ref(argument)
        await run(threads, lambda thing=argument: None)
        del argument
        return [found, kept]

    references = asyncio.run(use())
    wait_until(lambda: [reference() for reference in references] == [None, None])


def test_an_error_leads_to_nothing_that_only_the_collector_finds(threads: Threads) -> None:
    """Its traceback leads to the call, and the call to it."""

    class Fault(Exception):  # noqa: N818 - what it is
        pass

    def fail() -> NoReturn:
        raise Fault

    async def use() -> weakref.ref[Fault]:
        try:
            await run(threads, fail)
        except Fault as error:
            return weakref.ref(error)
        raise AssertionError

    gc.disable()
    try:
        error = asyncio.run(use())
        wait_until(lambda: error() is None)
    finally:
        gc.enable()


def test_calls_that_end_together_wake_their_loop_once(threads: Threads) -> None:
    """Each time costs a system call, and a turn of the loop."""
    room = Room()

    async def use() -> int:
        loop = asyncio.get_running_loop()
        woken = 0
        call_soon = loop.call_soon_threadsafe

        def counting(*args: Any, **options: Any) -> Any:
            nonlocal woken
            woken += 1
            return call_soon(*args, **options)

        calls = [asyncio.ensure_future(run(threads, room.stay)) for _ in range(300)]
        await asyncio.to_thread(wait_until, lambda: len(room.inside) == 3)
        loop.call_soon_threadsafe = counting  # type: ignore[method-assign]
        room.opened.set()
        wait_until(lambda: threads.unfinished == 0)  # and the loop does not turn meanwhile
        await asyncio.gather(*calls)
        return woken

    assert asyncio.run(use()) <= 6  # each of three threads may have come upon the first


def test_a_crowd_that_ends_together_holds_the_loop_for_no_long_turn(threads: Threads) -> None:
    """What a thousand callers do next, the loop does in one turn when all are woken in one."""
    room, ended, turns = Room(), 0, []

    async def one() -> None:
        nonlocal ended
        await run(threads, room.stay)
        ended += 1

    async def use() -> None:
        calls = [asyncio.ensure_future(one()) for _ in range(500)]
        await asyncio.to_thread(wait_until, lambda: len(room.inside) == 3)
        room.opened.set()
        wait_until(lambda: threads.unfinished == 0)
        while ended < 500:
            before = ended
            await asyncio.sleep(0)
            turns.append(ended - before)
        await asyncio.gather(*calls)

    asyncio.run(use())
    assert max(turns) <= 100  # twice 50: a thread may ring in the middle of a turn


def test_beginning_a_call_costs_the_loop_less_than_half_of_what_an_executor_does() -> None:
    """A thousand calls in one turn of the loop, at 30 to 58 us each, held it for 30 to 58 ms."""
    count = 500
    room = Room()
    threads, executor = Threads(lambda: 3), ThreadPoolExecutor(3)

    def ours() -> None:
        for _ in range(count):
            threads.begin(room.stay, deadline)

    def theirs() -> None:
        for _ in range(count):
            asyncio.wrap_future(executor.submit(room.stay))

    async def use() -> None:
        for begin, best in ((ours, ours_s), (theirs, theirs_s)):
            for _ in range(5):
                began = time.thread_time()
                begin()
                best.append(time.thread_time() - began)
                threads._waiting.clear()

    deadline = Deadline(60.0)
    ours_s: list[float] = []
    theirs_s: list[float] = []
    asyncio.run(use())
    room.opened.set()
    executor.shutdown()
    threads.close()
    assert min(ours_s) < min(theirs_s) / 2


def test_an_exception_from_a_signal_handler_stops_no_other_call() -> None:
    """It may come at any point of beginning a call, and half of that must not be left."""
    threads, point = Threads(lambda: 2), 0

    async def use() -> bool:
        interrupter = Interrupter(point)
        try:
            with interrupter:
                call = threads.begin(lambda: "begun", Deadline(60.0))
        except Interrupt:
            pass
        else:
            await asyncio.wait_for(call.ended(), timeout=20)
        where = interrupter.where
        assert await asyncio.wait_for(run(threads, lambda: "next"), timeout=20) == "next", where
        wait_until(lambda: threads.unfinished == 0)
        assert threads.running in (1, 2), where
        threads.close()
        wait_until(lambda: threads.running == 0)
        return interrupter.done

    while asyncio.run(use()):
        point += 1
        threads = Threads(lambda: 2)
    assert point > 10
