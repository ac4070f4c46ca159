"""The same cache, awaited: every call hops to a thread of the adapter's own.

Not the loop's executor, which everything else in the process shares (an unrelated name look-up
waited 5 s behind stalled cache calls when measured). No logic of the cache is here.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Never, NoReturn, ParamSpec, Self, TypeVar, Unpack, overload

from jmcache.aio._driver import Driver
from jmcache.aio._reads import Reads
from jmcache.aio._threads import Call, Threads
from jmcache.aio._writes import Writes
from jmcache.cache import (
    NO_DEFAULT,
    AsyncCachedFunction,
    Cache,
    FunctionOptions,
    KeySpec,
    Look,
    Options,
    RedisCache,
    Steps,
    TagsSpec,
    Timeout,
    Validate,
    check_cached,
    decorator,
)
from jmcache.deadline import Deadline
from jmcache.health import Health
from jmcache.monitoring import CacheStats
from jmcache.outcome import Lookup, Outcome
from jmcache.settings import CacheSettings
from jmcache.sizes import Sizes

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

# Calls that were answered at once, and the loop has a turn: a coroutine that waits for nothing else
# would keep everybody from theirs, with near hits for as long as Redis says that they are true.
_IN_A_ROW = 256
_INVALIDATIONS = frozenset({"delete", "delete_many", "invalidate_tags", "clear"})


class _Gathered:
    """What is gathered on one loop."""

    def __init__(self, cache: Cache, threads: Threads, loop: asyncio.AbstractEventLoop) -> None:
        sizes = Sizes()
        self.reads = Reads(cache.adapting, sizes, loop)
        self.writes = Writes(cache, threads, sizes, loop)

    def leave(self) -> None:
        """Another loop runs. One that only pauses goes on later."""
        loop = self.reads.loop()
        if loop is None or loop.is_closed():
            self.reads.abandon()


class AsyncRedisCache:
    """A cache for coroutines: the names and signatures of RedisCache, awaited.

    A drop-in for the old ResultsCache (``await get / set / generate_key``). The deadline starts at
    the ``await`` and covers the wait for a thread. A cancelled caller returns at once; the thread
    ends its bounded call and gives its connection back. Context variables reach the call.

    Bound to no event loop: one adapter serves several, also at once, from several threads. What
    does not wait for anything outside the process is answered on the loop, without a thread.
    Safe to make before a fork; threads start with the first call, in the child again.
    """

    def __init__(self, cache: Cache, *, max_threads: int | None = None) -> None:
        """Adapt *cache*; it is closed with the adapter.

        Args:
            max_threads: Threads at most, 1 or more; None: as many as there are connections, also
                after `reconfigure`.
        """
        if max_threads is not None and (type(max_threads) is not int or max_threads < 1):
            raise ValueError(f"max_threads: a whole number, 1 or more; not {max_threads!r}")
        self._cache = cache
        # Without `self` in it: who lets go of an adapter lets its threads end.
        self._threads = Threads(lambda: max_threads or cache.settings.max_connections)
        self._driver = Driver(cache, self._threads)
        self._adapting = cache.adapting
        self._validates = self._adapting.validates
        self._far = isinstance(cache, RedisCache)  # what it does not refuse at once takes a wait
        self._here = threading.local()  # what is gathered on the loop that this thread runs
        self._in_a_row = 0  # answers at once; two loops at the same moment count one

    @property
    def sync(self) -> Cache:
        """The cache behind the adapter, for code that is not a coroutine."""
        return self._cache

    @property
    def settings(self) -> CacheSettings:
        """The settings it was made with."""
        return self._cache.settings

    async def get(
        self, key: str, *, validate: Validate | None = None, timeout: Timeout = None
    ) -> Any | None:
        """See Cache.get."""
        found = await self._find(key, validate, timeout)
        return found.value if found.outcome is Outcome.HIT else None

    async def lookup(
        self, key: str, *, validate: Validate | None = None, timeout: Timeout = None
    ) -> Lookup:
        """See Cache.lookup."""
        found = await self._find(key, validate, timeout)
        return found.told() if isinstance(found, Look) else found

    async def get_many(
        self, keys: Iterable[str], *, validate: Validate | None = None, timeout: Timeout = None
    ) -> dict[str, Any]:
        """See Cache.get_many."""
        return await self._call(
            "get_many", self._cache.get_many, keys, validate=validate, timeout=timeout
        )

    async def exists(self, key: str, *, timeout: Timeout = None) -> bool:
        """See Cache.exists."""
        return await self._call("exists", self._cache.exists, key, timeout=timeout)

    async def set(
        self,
        key: str,
        value: Any,
        ttl: float | None = None,
        *,
        tags: Iterable[str] = (),
        timeout: Timeout = None,
    ) -> bool:
        """See Cache.set."""
        plain = timeout is None and type(tags) is tuple and not tags
        if plain and not (self._adapting.in_parts or self._cache.answers_at_once):
            kept, slot = self._adapting.to_keep(ttl), self._adapting.key(key)
            return await self._gathered().writes.set(slot, value, kept)
        return await self._call("set", self._cache.set, key, value, ttl, tags=tags, timeout=timeout)

    async def set_many(
        self,
        mapping: Mapping[str, Any],
        ttl: float | None = None,
        *,
        tags: Iterable[str] = (),
        timeout: Timeout = None,
    ) -> bool:
        """See Cache.set_many."""
        return await self._call(
            "set_many", self._cache.set_many, mapping, ttl, tags=tags, timeout=timeout
        )

    async def delete(self, key: str, *, timeout: Timeout = None) -> bool:
        """See Cache.delete."""
        return await self._call("delete", self._cache.delete, key, timeout=timeout)

    async def delete_many(self, keys: Iterable[str], *, timeout: Timeout = None) -> int:
        """See Cache.delete_many."""
        return await self._call("delete_many", self._cache.delete_many, keys, timeout=timeout)

    async def invalidate_tags(self, *tags: str, timeout: Timeout = None) -> bool:
        """See Cache.invalidate_tags."""
        return await self._call(
            "invalidate_tags", self._cache.invalidate_tags, *tags, timeout=timeout
        )

    async def clear(self, *, timeout: Timeout = None) -> bool:
        """See Cache.clear."""
        return await self._call("clear", self._cache.clear, timeout=timeout)

    @overload
    async def get_or_set(
        self,
        key: str,
        loader: Callable[..., Awaitable[T]],
        *,
        default: Any = NO_DEFAULT,
        refresher: Callable[[str], object] | None = None,
        validate: Validate | None = None,
        timeout: Timeout = None,
        **options: Unpack[Options],
    ) -> T: ...
    @overload
    async def get_or_set(
        self,
        key: str,
        loader: Callable[..., T],
        *,
        default: Any = NO_DEFAULT,
        refresher: Callable[[str], object] | None = None,
        validate: Validate | None = None,
        timeout: Timeout = None,
        **options: Unpack[Options],
    ) -> T: ...
    async def get_or_set(
        self,
        key: str,
        loader: Callable[..., Any],
        *,
        default: Any = NO_DEFAULT,
        refresher: Callable[[str], object] | None = None,
        validate: Validate | None = None,
        timeout: Timeout = None,
        **options: Unpack[Options],
    ) -> Any:
        """See Cache.get_or_set; coroutines and threads of a process wait for each other.

        Args:
            loader: A coroutine function is awaited here, on this loop; a plain function runs on a
                thread of the adapter's own.
        """
        steps = self._cache.computing(
            key,
            loader,
            self._driver.spawn,
            default,
            refresher,
            validate,
            timeout,
            options,
            detached=True,
        )
        return await self._take_all(steps)

    @overload
    async def get_or_set_many(
        self,
        keys: Iterable[str],
        loader: Callable[[list[str]], Awaitable[Mapping[str, T]]],
        *,
        validate: Validate | None = None,
        timeout: Timeout = None,
        **options: Unpack[Options],
    ) -> dict[str, T]: ...
    @overload
    async def get_or_set_many(
        self,
        keys: Iterable[str],
        loader: Callable[[list[str]], Mapping[str, T]],
        *,
        validate: Validate | None = None,
        timeout: Timeout = None,
        **options: Unpack[Options],
    ) -> dict[str, T]: ...
    async def get_or_set_many(
        self,
        keys: Iterable[str],
        loader: Callable[[list[str]], Any],
        *,
        validate: Validate | None = None,
        timeout: Timeout = None,
        **options: Unpack[Options],
    ) -> dict[str, Any]:
        """See Cache.get_or_set_many, and get_or_set for the loader."""
        steps = self._cache.computing_many(
            keys, loader, self._driver.spawn, validate, timeout, options, detached=True
        )
        return await self._take_all(steps)

    def cached(
        self,
        *bare: Never,
        key: KeySpec = None,
        tags: TagsSpec = (),
        refresher: Callable[..., object] | None = None,
        default: Any = NO_DEFAULT,
        validate: Validate | None = None,
        timeout: Timeout = None,
        **options: Unpack[FunctionOptions],
    ) -> Callable[[Callable[P, Awaitable[R]]], AsyncCachedFunction[P, R]]:
        """See Cache.cached; for coroutine functions, whose ``invalidate`` is awaited too."""
        check_cached(bare, validate, timeout, options, self.settings)
        compute = partial(
            self.get_or_set, default=default, validate=validate, timeout=timeout, **options
        )
        return decorator(AsyncCachedFunction, compute, self.delete, key, tags, refresher)

    async def generate_key(self, /, *args: Any, **kwargs: Any) -> str:
        """See Cache.generate_key."""
        return self._cache.generate_key(*args, **kwargs)

    async def stats(self) -> CacheStats:
        """See Cache.stats."""
        return self._cache.stats()

    async def health(self) -> Health:
        """See Cache.health."""
        return self._cache.health()

    async def reconfigure(self, settings: object) -> None:
        """See Cache.reconfigure."""
        self._cache.reconfigure(settings)
        self._threads.fit()

    async def aclose(self) -> None:
        """Close the cache behind it and let the threads end. Idempotent; waits for no call."""
        self._cache.close()
        # What is queued still ends, at once and as unavailable: nobody's task is cancelled.
        self._threads.close()
        self._driver.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a cache cannot be pickled: make one in each process from its settings")

    def __repr__(self) -> str:
        return f"<AsyncRedisCache of {self._cache!r}>"

    async def _find(self, key: str, validate: Validate | None, timeout: Timeout) -> Look | Lookup:
        adapting = self._adapting
        near = adapting.find_near(key, validate, timeout, at_once=True)
        if near is not None:
            if self._is_turn_due():
                await asyncio.sleep(0)
            return near
        started = time.perf_counter()
        refused = adapting.refused(key, validate, timeout, started)
        if refused is not None:
            if self._is_turn_due():
                await asyncio.sleep(0)
            return refused
        deadline = Deadline.of_call(timeout, self.settings.operation_timeout)
        # What the application has to say of a value takes its time, and has no place on the loop.
        # Nor has what is in this process, but takes long.
        validates = validate is not None or self._validates
        held = adapting.holds_near(key)
        if not (validates or held) and (self._far or not self._cache.answers_at_once):
            found = await self._gathered().reads.look(self._adapting.key(key), deadline)
            if found is not None:
                found = self._adapting.decoded(found, deadline)
                # What is corrupt is to be removed, which is for a thread.
                if found.outcome is not Outcome.CORRUPT:
                    return self._adapting.found(found, started)
        if held and not validates:
            call = self._threads.begin(partial(self._cache.lookup, key, timeout=deadline), deadline)
            await call.ended()
            if call.refused is None:
                return call.result()
            await asyncio.sleep(0)
            near = adapting.find_near(key, None, None, at_once=False)
            if near is not None:  # it is here, however busy the threads are
                return near
        return await self._call(
            "lookup", self._cache.lookup, key, validate=validate, timeout=deadline
        )

    async def _take_all(self, steps: Steps[T]) -> T:
        result = await self._driver.take_all(steps)
        if self._is_turn_due():
            await asyncio.sleep(0)
        return result

    def _is_turn_due(self) -> bool:
        """Has the loop to have a turn now, after one more that was answered at once?"""
        self._in_a_row += 1
        if self._in_a_row < _IN_A_ROW:
            return False
        self._in_a_row = 0
        return True

    def _gathered(self) -> _Gathered:
        loop = asyncio.get_running_loop()
        gathered: _Gathered | None = getattr(self._here, "gathered", None)
        if gathered is None or gathered.reads.loop() is not loop:
            if gathered is not None:
                gathered.leave()
            gathered = self._here.gathered = _Gathered(self._cache, self._threads, loop)
        return gathered

    async def _call(
        self, operation: str, method: Callable[..., T], *args: Any, timeout: Timeout, **options: Any
    ) -> T:
        timeout = Deadline.of_call(timeout, self.settings.operation_timeout)
        if self._cache.answers_at_once:
            if isinstance(self._cache, RedisCache):
                # Should the breaker let this one through after all, it must wait for nothing.
                timeout = Deadline.over()
            answer = method(*args, timeout=timeout, **options)
            if self._is_turn_due():
                await asyncio.sleep(0)
            return answer
        work = partial(method, *args, timeout=timeout, **options)
        call = self._threads.begin(work, timeout)
        if operation in _INVALIDATIONS:
            # The cache keeps what it could not tell Redis.
            keep = partial(method, *args, timeout=Deadline.over(), **options)
            return await asyncio.shield(_invalidated(call, keep))
        await call.ended()
        if call.refused is not None:
            nothing: T = self._cache.give_up(operation, call.refused)
            return nothing
        return call.result()


async def _invalidated(call: Call[T], keep: Callable[[], T]) -> T:
    """Return what came of *call*. One that did not run is kept, whoever was cancelled meanwhile."""
    try:
        await call.ended()
    except BaseException:
        keep()
        raise
    return call.result() if call.refused is None else keep()
