"""Threads of one adapter's own, with a queue that has an end."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from jmcache.errors import RedisClosedError, RedisPoolExhaustedError
from jmcache.fork import renew_in_child

T = TypeVar("T")

_QUEUE_PER_THREAD = 200  # calls; what a thread can serve within a deadline when Redis is well


class Threads:
    """Runs calls on threads, which start with the first one, in a child again."""

    def __init__(self, name: str, limit: Callable[[], int]) -> None:
        """Start none yet; *limit* says how many there may be, and may change."""
        self._name = name
        self._limit = limit
        self._renew_in_child()
        renew_in_child(self._renew_in_child)

    def _renew_in_child(self) -> None:
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None  # guarded by _lock
        self._threads = 0  # guarded by _lock; that it may have
        self._queued = 0  # guarded by _lock; calls handed to the executor and not yet ended

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Run *work* with the caller's context variables.

        Raises:
            RedisPoolExhaustedError: Too many wait already, reason "queue_full"; or no thread is to
                be had, reason "no_thread".
            RedisClosedError: It was closed meanwhile.
        """
        limit = self._limit()
        with self._lock:
            if self._queued >= limit * _QUEUE_PER_THREAD:
                raise RedisPoolExhaustedError(
                    "max_connections: more calls wait than can be served", reason="queue_full"
                )
            if self._executor is None or self._threads != limit:
                # One that is replaced is not shut down: who is about to hand it a call still may,
                # and its threads end when nobody has it any more.
                self._executor = ThreadPoolExecutor(limit, self._name)
                self._threads = limit
            executor = self._executor
            self._queued += 1
        try:
            future = executor.submit(partial(contextvars.copy_context().run, work))
        except RuntimeError as error:
            self._ended(None)
            if self._executor is not None:  # not shut down meanwhile
                raise RedisPoolExhaustedError(
                    "the system has no thread for the adapter", reason="no_thread"
                ) from error
            raise RedisClosedError("the adapter was closed") from error
        future.add_done_callback(self._ended)
        return future

    def close(self) -> None:
        """Let the threads end once the queue is done; waits for none. New ones may come again."""
        with self._lock:
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=False)

    def _ended(self, _future: Future[Any] | None) -> None:
        with self._lock:
            self._queued -= 1
