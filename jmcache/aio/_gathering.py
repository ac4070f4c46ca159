"""What coroutines of one loop ask for, gathered so that many leave in one flight.

What is asked in one turn of the loop leaves together. What is asked while a flight is out waits for
it, and leaves with the others, after a little patience at the latest: so the more callers there
are, the less each of them costs, and a single one waits for nothing.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from typing import Any, Generic, Protocol, TypeVar

from jmcache.cache import Key
from jmcache.sizes import Sizes


class Waiting(Protocol):
    """Somebody who waits to leave.

    Attributes:
        key: What is asked for, or written.
        future: Done when they do not want to any more.
    """

    def go_alone(self) -> None:
        """Wait for no flight any more: there is another way for one alone."""

    @property
    def key(self) -> Key: ...

    @property
    def future(self) -> asyncio.Future[Any]: ...


W = TypeVar("W", bound=Waiting)


class Gathering(Generic[W]):
    """Who waits to leave; for the thread of its loop alone. A subclass says how they leave."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, sizes: Sizes, most: int, patience_s: float
    ) -> None:
        """Wait for nobody yet.

        Args:
            sizes: Of the values.
            most: How many may be in one flight.
            patience_s: Seconds that somebody waits for a flight that is out.
        """
        self.loop = weakref.ref(loop)  # a loop that is done with is not kept
        self.sizes = sizes
        self.waiting: deque[W] = deque()
        self.out: set[Any] = set()  # the flights
        self.patience_s = patience_s
        self._most = most
        self._leaving: asyncio.Handle | None = None
        self._crowd = 0  # of the latest flight

    def add(self, one: W) -> None:
        """Let *one* leave as soon as may be."""
        self.waiting.append(one)
        if self._leaving is not None:
            return
        loop = asyncio.get_running_loop()
        if self.out:
            self._leaving = loop.call_later(self.patience_s, self._leave)
        elif self._crowd > 1:
            self._leaving = loop.call_soon(self._leave)  # with whoever else asks in this turn
        else:
            self._leave()

    def landed(self, flight: object) -> None:
        """One that was out is over."""
        self.out.discard(flight)
        if self.waiting and not self.out:
            leaving = self._leaving
            self._leave()
            if leaving is not None:  # until then it is there, should an exception come between
                leaving.cancel()

    def _leave(self) -> None:
        """Let one flight leave; the next one when it has landed, or after the patience anew."""
        # All of them at the same time land at the same time, and take a connection each.
        self._leaving = None
        try:
            while self.waiting:
                flock: list[W] = []
                try:
                    self.take(flock)
                    if flock:  # else all were cancelled
                        self._crowd = len(flock)
                        self.depart(flock)
                except BaseException:  # from a signal handler, most likely
                    send_alone(flock)
                    raise
                if self.out:
                    break
            if self.waiting:
                self.left_behind()
        finally:
            if self.waiting:
                self._leaving = asyncio.get_running_loop().call_later(self.patience_s, self._leave)

    def take(self, flock: list[W]) -> None:
        """Move those of the first that wait who may leave together to *flock*.

        None of them when the first ones do not want to any more.
        """
        most = self.sizes.most(self._most)
        while self.waiting and len(flock) < most:
            large = self.sizes.is_large(self.waiting[0].key)
            if large and flock:
                break
            one = self.waiting[0]
            if not one.future.done():
                flock.append(one)  # before it waits no more: it must not be in neither of the two
            self.waiting.popleft()
            if large and flock:
                break

    def depart(self, flock: list[W]) -> None:
        """Let *flock* leave: be `out`, until it has `landed`; or send it alone.

        Whoever raises leaves nothing out; all of *flock* are sent alone then.
        """
        raise NotImplementedError

    def left_behind(self) -> None:
        """Some wait for another flight."""


def send_alone(flock: list[W]) -> None:
    """Let all of *flock* go alone."""
    for one in flock:
        one.go_alone()
