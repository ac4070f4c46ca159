"""Writes of one event loop, gathered into one hop to a thread and one round trip."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import time
from functools import partial
from typing import Any

from jmcache.aio._gathering import Gathering, send_alone
from jmcache.aio._threads import Threads
from jmcache.cache import Cache, Kept, Key
from jmcache.deadline import Deadline
from jmcache.errors import RedisError
from jmcache.sizes import Sizes

_PATIENCE_S = 0.01  # so long takes the work on a flight of large values
_MOST = 64  # values in one round trip
_ALONE = RedisError("to be written alone")  # in place of an answer


class _Write:
    """What one caller wants kept."""

    __slots__ = ("deadline", "future", "kept", "key", "started", "value")

    def __init__(self, key: Key, value: Any, kept: Kept, deadline: Deadline) -> None:
        self.key = key
        self.value = value
        self.kept = kept
        self.deadline = deadline
        self.started = time.perf_counter()
        self.future: asyncio.Future[RedisError | None]
        self.future = asyncio.get_running_loop().create_future()

    def tell(self, problem: RedisError | None) -> None:
        if not self.future.done():
            self.future.set_result(problem)

    def go_alone(self) -> None:
        self.tell(_ALONE)


class Writes(Gathering[_Write]):
    """Those of one loop, for its thread alone; all with the time that the setting gives them."""

    def __init__(
        self, cache: Cache, threads: Threads, sizes: Sizes, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(loop, sizes, _MOST, _PATIENCE_S)
        self._cache = cache
        self._adapting = cache.adapting
        self._threads = threads
        self._tasks: set[asyncio.Task[None]] = set()  # a loop knows its tasks only weakly

    async def set(self, key: Key, value: Any, kept: Kept) -> bool:
        """Return whether *value* was kept; counted."""
        deadline = Deadline(self._cache.settings.operation_timeout)
        write = _Write(key, value, kept, deadline)
        self.add(write)
        problem = await write.future
        if problem is _ALONE:
            [problem] = await self._set_each([write])
        return self._adapting.wrote(problem, write.started)

    def depart(self, flock: list[_Write]) -> None:
        flight = self._fly(flock)
        try:
            task = asyncio.get_running_loop().create_task(flight)
            self._tasks.add(task)
            task.add_done_callback(partial(self._ended, flock))
            self.out.add(flock[0])
        except BaseException:
            flight.close()
            raise

    async def _fly(self, flock: list[_Write]) -> None:
        problems: list[RedisError | None] = [_ALONE] * len(flock)
        try:
            # Whose value raises what it likes finds out when it is written alone.
            with contextlib.suppress(Exception):
                problems = await self._set_each(flock)
        finally:
            try:
                self.landed(flock[0])
            finally:
                _tell(flock, problems)

    def _ended(self, flock: list[_Write], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self.out.discard(flock[0])
        if not flock[-1].future.done():  # an exception from a signal handler struck at its end
            send_alone(flock)

    async def _set_each(self, flock: list[_Write]) -> list[RedisError | None]:
        wanted = [(write.key, write.value, write.kept) for write in flock]
        deadline = flock[0].deadline  # the first to be over
        call = self._threads.begin(partial(self._adapting.set_each, wanted, deadline), deadline)
        await call.ended()
        try:
            if call.refused is not None:
                raise call.refused
            problems, sizes = call.result()
        except RedisError as error:
            # One for each caller, as each adds its own traceback.
            return [copy.copy(error) for _ in flock]
        for write, size in zip(flock, sizes, strict=True):
            self.sizes.learn(write.key, size)
        return problems


def _tell(flock: list[_Write], problems: list[RedisError | None]) -> None:
    for write, problem in zip(flock, problems, strict=True):
        write.tell(problem)
