"""Takes the steps of a computation on an event loop, without holding the loop up."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from jmcache.aio._threads import Call, Threads
from jmcache.cache import (
    Ask,
    Cache,
    Join,
    Load,
    Loading,
    Pause,
    RedisCache,
    Step,
    Steps,
    Work,
    loading,
)
from jmcache.deadline import Deadline
from jmcache.flight import Flight

T = TypeVar("T")

_NO_LIMIT_S = 10 * 86_400.0
_LOADER_THREADS = 32  # for loaders that are plain functions: theirs, so that they hold up no call
_LOOK_AGAIN_S = 0.5
_TASKS = 256  # computations in the background of one loop; more are skipped or taken by the caller


class Driver:
    """For one adapter; bound to no loop."""

    def __init__(self, cache: Cache, threads: Threads) -> None:
        self._cache = cache
        self._threads = threads
        self._loaders = Threads(lambda: _LOADER_THREADS, "jmcache-load")
        # For what a loader on a thread asks for. It must not wait for a thread: that may be one of
        # those that wait for it. There come to be as many as such loads at the same time, which are
        # no more than the loaders on threads ask for.
        self._inner_loaders = Threads(None, "jmcache-load-inner")
        self._tasks: set[asyncio.Task[Any]] = set()  # a loop knows its tasks only weakly
        self._latest: Callable[[], asyncio.AbstractEventLoop | None] = lambda: None

    def close(self) -> None:
        """Let the threads of loaders end; waits for none."""
        self._loaders.close()
        self._inner_loaders.close()

    async def take_all(self, steps: Steps[T]) -> T:
        """Take all *steps*, and return what they lead to."""
        try:
            step = next(steps)
            while True:
                try:
                    answer = await self._take(step)
                except BaseException as error:  # noqa: BLE001 - goes on in the generator
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            steps.close()

    def spawn(self, steps: Steps[Any], *, awaited: bool = False) -> bool:  # noqa: ARG002 - the same
        """Take *steps* in a task of this loop; False when there are too many."""
        loop = asyncio.get_running_loop()
        if loop is not self._latest():
            self._latest = weakref.ref(loop)
            self._end_what_was_left()
        if len(self._tasks) >= _TASKS:
            return False
        task = loop.create_task(self.take_all(steps))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    def _end_what_was_left(self) -> None:
        """End the tasks of loops that were closed without cancelling them."""
        for task in tuple(self._tasks):
            if task.get_loop().is_closed():
                self._tasks.discard(task)
                coroutine: Any = task.get_coro()
                with contextlib.suppress(Exception):  # of a loader's: nobody here has to do with it
                    coroutine.close()

    async def _take(self, step: Step) -> Any:
        if isinstance(step, Ask):
            if self._cache.answers_at_once:
                # Should the breaker let this one through after all, it must wait for nothing.
                over = isinstance(self._cache, RedisCache)
                return step.work(Deadline.over() if over else step.deadline)
            return await _done(
                self._threads.begin(partial(step.work, step.deadline), step.deadline)
            )
        if isinstance(step, Work):
            call = self._threads.begin(step.work, Deadline(_NO_LIMIT_S))
            await call.ended()
            # Without a thread the loop has to do it: a result that was loaded is not thrown away.
            return step.work() if call.refused is not None else call.result()
        if isinstance(step, Join):
            return await _join(step.flight, step.seconds)
        if isinstance(step, Pause):
            return await asyncio.sleep(step.seconds)
        mark = Loading(step.names)
        outer = loading.get()
        before = loading.set((*outer, mark))
        try:
            if getattr(step.loader, "is_async", False):
                loaded = step.loader(step.looks)
            else:
                inner = any([load.on_thread for load in outer])
                threads = self._inner_loaders if inner else self._loaders
                # As long as it takes: whoever waits for it has a limit.
                work = partial(_load, mark, step)
                loaded = await _done(threads.begin(work, Deadline(_NO_LIMIT_S)))
            return await loaded if inspect.isawaitable(loaded) else loaded
        except BaseException as error:
            if isinstance(error, StopIteration):  # no coroutine lets that through
                error = RuntimeError("the loader raised StopIteration")
            step.failure = id(error)
            raise error
        finally:
            mark.over = True
            with contextlib.suppress(ValueError):  # by the collector, where that was never set
                loading.reset(before)


def _load(mark: Loading, step: Load) -> Any:
    """Load on a thread."""
    mark.on_thread = True
    try:
        return step.call()
    finally:
        mark.on_thread = False


async def _done(call: Call[T]) -> T:
    await call.ended()
    if call.refused is not None:
        raise call.refused
    return call.result()


async def _join(flight: Flight, seconds: float) -> bool:
    loop = asyncio.get_running_loop()
    bell = loop.create_future()
    flight.when_ended(partial(_ring, loop, weakref.ref(bell)))
    until = Deadline(seconds) if seconds > 0.0 else Deadline.over()
    while not (flight.ended or until.expired):
        # Nobody rings for a leader that was torn away.
        await asyncio.wait([bell], timeout=min(_LOOK_AGAIN_S, until.remaining()))
    return flight.ended


def _ring(loop: asyncio.AbstractEventLoop, bell: weakref.ref[asyncio.Future[None]]) -> None:
    try:
        loop.call_soon_threadsafe(_wake, bell)
    except RuntimeError:
        pass  # the loop is closed, and nobody waits there


def _wake(bell: weakref.ref[asyncio.Future[None]]) -> None:
    future = bell()
    if future is not None and not future.done():
        future.set_result(None)
