"""What a computation may have to wait for, and how a thread does so.

A computation is written once, as a generator of steps. A thread takes each step where it stands
(`run`); on an event loop, `jmcache.aio` takes the same steps without holding up the loop. Whatever
ends the taking, an exception of a signal handler too, closes the generator, whose `finally` clauses
leave nothing behind.
"""

from __future__ import annotations

import contextvars
import inspect
import os
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from jmcache.deadline import Deadline
from jmcache.flight import Flight
from jmcache.signals import signals_as_before

T = TypeVar("T")


Name = tuple[int, bytes]  # of a key: whose it is, as an id, since two caches may name it alike


class Loading:
    """A load under way, as its loader's context has it.

    Attributes:
        on_thread: Does its loader hold one of the threads that are for loaders?
    """

    __slots__ = ("names", "on_thread", "over", "process")

    def __init__(self, names: tuple[Name, ...]) -> None:
        self.names = names
        self.on_thread = False
        self.over = False  # what the loader began may go on, in a task with the same context
        self.process = os.getpid()  # or in a worker that it forked, to whom nobody says it is over


# The loads this thread or task, or whoever it works for, is part of: a loader that asks for its own
# key is let through instead of waiting for itself.
loading: contextvars.ContextVar[tuple[Loading, ...]] = contextvars.ContextVar(
    "jmcache_loading", default=()
)


def names_loading() -> set[Name]:
    """Return the names that whoever calls this is loading."""
    return {
        name
        for load in loading.get()
        if not load.over and load.process == os.getpid()
        for name in load.names
    }


@dataclass(frozen=True, slots=True)
class Ask:
    """Do what may wait for Redis until *deadline*."""

    work: Callable[[Deadline], Any]
    deadline: Deadline


@dataclass(frozen=True, slots=True)
class Work:
    """Do what waits for nothing, and may keep the processor busy; in any case."""

    work: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Join:
    """Wait until *flight* has ended; the answer is whether it has."""

    flight: Flight
    seconds: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait for a moment."""

    seconds: float


@dataclass(slots=True)
class Load:
    """Call the loader with *looks*, as one that loads *names*.

    Attributes:
        failure: What it raised, as its id: itself, it would keep its frames alive. Any other
            exception came from a signal handler, and is the business of whoever it interrupted.
    """

    loader: Callable[[Any], Any]
    looks: Any
    names: tuple[Name, ...]
    failure: int = 0

    def call(self) -> Any:
        """Call it, on whatever thread."""
        with signals_as_before():
            return self.loader(self.looks)


Step = Ask | Work | Join | Pause | Load
Steps = Generator[Step, Any, T]


def run(steps: Steps[T]) -> T:
    """Take all *steps* on the calling thread, and return what they lead to."""
    try:
        step = next(steps)
        while True:
            try:
                answer = _take(step)
            except BaseException as error:  # noqa: BLE001 - goes on in the generator
                step = steps.throw(error)
            else:
                step = steps.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        steps.close()


def _take(step: Step) -> Any:
    if isinstance(step, Ask):
        return step.work(step.deadline)
    if isinstance(step, Work):
        return step.work()
    if isinstance(step, Join):
        return step.seconds > 0.0 and step.flight.wait(Deadline(step.seconds))
    if isinstance(step, Pause):
        return time.sleep(step.seconds)
    # In a context of its own: an exception from a signal handler may come before any clean-up, and
    # a name that stays behind would be loaded by this thread at each call from then on.
    try:
        loaded = contextvars.copy_context().run(_load, step)
    except BaseException as error:
        step.failure = id(error)
        raise
    if inspect.isawaitable(loaded):
        raise TypeError("loader: what it returns has to be awaited; use AsyncRedisCache")
    return loaded


def _load(step: Load) -> Any:
    mark = Loading(step.names)
    loading.set((*loading.get(), mark))
    try:
        return step.call()
    except StopIteration as error:  # no generator lets that through, and we are one
        raise RuntimeError("the loader raised StopIteration") from error
    finally:
        mark.over = True
