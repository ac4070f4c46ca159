"""The same cache, awaited: every call hops to a thread of the adapter's own.

Not the loop's executor, which everything else in the process shares (an unrelated name look-up
waited 5 s behind stalled cache calls when measured). No logic of the cache is here.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

from jmcache.cache import Cache, RedisCache, Timeout, Validate
from jmcache.deadline import Deadline
from jmcache.errors import RedisClosedError, RedisError, RedisPoolExhaustedError
from jmcache.fork import renew_in_child
from jmcache.health import Health
from jmcache.monitoring import CacheStats
from jmcache.outcome import Lookup
from jmcache.settings import CacheSettings

T = TypeVar("T")

_QUEUE_PER_THREAD = 200  # calls; what a thread can serve within a deadline when Redis is well


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
        self._max_threads = max_threads
        self._renew_in_child()
        renew_in_child(self._renew_in_child)

    def _renew_in_child(self) -> None:
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None  # guarded by _lock
        self._threads = 0  # guarded by _lock; that it may have
        self._queued = 0  # guarded by _lock; calls handed to the executor and not yet ended

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
        return await self._call("get", self._cache.get, key, validate=validate, timeout=timeout)

    async def lookup(
        self, key: str, *, validate: Validate | None = None, timeout: Timeout = None
    ) -> Lookup:
        """See Cache.lookup."""
        return await self._call(
            "lookup", self._cache.lookup, key, validate=validate, timeout=timeout
        )

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
        self, key: str, value: Any, ttl: float | None = None, *, timeout: Timeout = None
    ) -> bool:
        """See Cache.set."""
        return await self._call("set", self._cache.set, key, value, ttl, timeout=timeout)

    async def set_many(
        self, mapping: Mapping[str, Any], ttl: float | None = None, *, timeout: Timeout = None
    ) -> bool:
        """See Cache.set_many."""
        return await self._call("set_many", self._cache.set_many, mapping, ttl, timeout=timeout)

    async def delete(self, key: str, *, timeout: Timeout = None) -> bool:
        """See Cache.delete."""
        return await self._call("delete", self._cache.delete, key, timeout=timeout)

    async def delete_many(self, keys: Iterable[str], *, timeout: Timeout = None) -> int:
        """See Cache.delete_many."""
        return await self._call("delete_many", self._cache.delete_many, keys, timeout=timeout)

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

    async def aclose(self) -> None:
        """Close the cache behind it and let the threads end. Idempotent; waits for no call."""
        with self._lock:
            executor, self._executor = self._executor, None
        self._cache.close()
        if executor is not None:
            # What is queued still ends, at once and as unavailable: nobody's task is cancelled.
            executor.shutdown(wait=False)

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

    async def _call(
        self, operation: str, method: Callable[..., T], *args: Any, timeout: Timeout, **options: Any
    ) -> T:
        timeout = Deadline.of_call(timeout, self.settings.operation_timeout)
        if self._cache.answers_at_once:
            if isinstance(self._cache, RedisCache):
                # Should the breaker let this one through after all, it must wait for nothing.
                timeout = Deadline.over()
            return method(*args, timeout=timeout, **options)
        work = functools.partial(
            contextvars.copy_context().run, method, *args, timeout=timeout, **options
        )
        try:
            future = self._submit(work)
        except RedisError as error:
            nothing: T = self._cache.give_up(operation, error)
            return nothing
        return await asyncio.wrap_future(future)

    def _submit(self, work: Callable[[], T]) -> Future[T]:
        limit = self._max_threads
        if limit is None:
            limit = self._cache.settings.max_connections
        with self._lock:
            if self._queued >= limit * _QUEUE_PER_THREAD:
                raise RedisPoolExhaustedError(
                    "max_connections: more calls wait than can be served", reason="queue_full"
                )
            if self._executor is None or self._threads != limit:
                # One that is replaced is not shut down: who is about to hand it a call still may,
                # and its threads end when nobody has it any more.
                self._executor = ThreadPoolExecutor(limit, "jmcache-aio")
                self._threads = limit
            executor = self._executor
            self._queued += 1
        try:
            future = executor.submit(work)
        except RuntimeError as error:
            self._ended(None)
            if self._executor is not None:  # not shut down meanwhile
                raise RedisPoolExhaustedError(
                    "the system has no thread for the adapter", reason="no_thread"
                ) from error
            raise RedisClosedError("the adapter was closed") from error
        future.add_done_callback(self._ended)
        return future

    def _ended(self, _future: Future[Any] | None) -> None:
        with self._lock:
            self._queued -= 1
