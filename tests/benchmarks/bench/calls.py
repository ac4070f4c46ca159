"""The same call again and again: alone, on threads at once, in tasks at once.

Each function returns what does it so many times; of calls at once each does its share.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any

from benchmarks.bench.rounds import Run

Call = Callable[..., Any]
CallAwaited = Callable[..., Awaitable[Any]]


def alone(call: Call, *args: Any) -> Run:
    """On the thread that asks for it."""

    def run(count: int) -> None:
        for _ in range(count):
            call(*args)

    return run


def at_once(threads: ThreadPoolExecutor, parallel: int, call: Call, *args: Any) -> Run:
    """On *parallel* of *threads* at once; one caller needs no thread but its own."""
    if parallel == 1:
        return alone(call, *args)

    def run(count: int) -> None:
        each = alone(call, *args)
        list(threads.map(each, [count // parallel] * parallel))

    return run


def gathered(loop: asyncio.AbstractEventLoop, parallel: int, call: CallAwaited, *args: Any) -> Run:
    """In *parallel* tasks at once on *loop*, which runs only meanwhile."""

    async def one(count: int) -> None:
        for _ in range(count):
            await call(*args)

    async def every(count: int) -> None:
        await asyncio.gather(*[one(count // parallel) for _ in range(parallel)])

    return lambda count: loop.run_until_complete(every(count))


def timed(call: Call, into: list[float]) -> Call:
    """Return *call* that notes how many microseconds it took. List.append is safe from threads."""

    def one(*args: Any) -> None:
        began = perf_counter()
        call(*args)
        into.append((perf_counter() - began) * 1e6)

    return one


def timed_awaited(call: CallAwaited, into: list[float]) -> CallAwaited:
    """The same for what is awaited."""

    async def one(*args: Any) -> None:
        began = perf_counter()
        await call(*args)
        into.append((perf_counter() - began) * 1e6)

    return one
