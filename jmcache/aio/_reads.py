"""Reads of one event loop, gathered into one round trip that the loop itself waits for.

No thread takes part: a hop there and back costs more than the read. Whatever would take a wait is
left to one: a connection that has to be made, a second attempt, the removal of what is corrupt.
"""

from __future__ import annotations

import asyncio
from collections import deque

from jmcache.aio._gathering import Gathering
from jmcache.cache import Adapting, AwaitedLook, Key, Look
from jmcache.deadline import Deadline
from jmcache.errors import RedisError, RedisTimeoutError

_PATIENCE_S = 0.002
_MOST = 128  # keys in one round trip
_MOST_BYTES = 512 * 1024  # in one reply, as far as one can tell beforehand
_LARGE = 64 * 1024  # bytes; whose value had so many last time leaves alone
_LARGE_KEYS = 1_024  # known at most
_SHARE = 8  # what is expected follows what was seen latest by an eighth
_TURN_BYTES = 256 * 1024  # of values that are decoded in one turn of the loop, 1 to 2 ms

Answer = Look | RedisError | None


class _Read:
    """What one caller waits for; None in the end: a thread has to ask."""

    __slots__ = ("deadline", "future", "key")

    def __init__(self, key: Key, deadline: Deadline, future: asyncio.Future[Answer]) -> None:
        self.key = key
        self.deadline = deadline
        self.future = future

    def tell(self, answer: Answer) -> None:
        if not self.future.done():
            self.future.set_result(answer)


class Reads(Gathering[_Read]):
    """Those of one loop, for its thread alone."""

    def __init__(self, cache: Adapting, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop, _PATIENCE_S)
        self._cache = cache
        self._flights: set[_Flight] = set()
        self._alarm: asyncio.TimerHandle | None = None  # for whoever is out for too long
        self._alarm_at = 0.0
        self._large: dict[Key, None] = {}
        self._expected = 0.0  # bytes of a value

    async def look(self, key: Key, deadline: Deadline) -> Answer:
        """Return what is there for *key*, its value SEALED, or the error it ended in.

        None: a thread has to ask.
        """
        read = _Read(key, deadline, asyncio.get_running_loop().create_future())
        self.add(read)
        return await read.future

    def take(self) -> list[_Read]:
        most = min(_MOST, int(_MOST_BYTES / (self._expected + 1)) or 1)
        flock: list[_Read] = []
        while self.waiting and len(flock) < most:
            if self.waiting[0].key in self._large and flock:
                break
            read = self.waiting.popleft()
            if not read.future.done():
                flock.append(read)
            if read.key in self._large:
                break
        return flock

    def depart(self, flock: list[_Read]) -> bool:
        flight = _Flight(self, flock)
        look = self._cache.begin_look(flight.keys, flight.deadline)
        if look is None:
            for read in flock:
                read.tell(None)
            return False
        self._flights.add(flight)
        flight.begin(look)
        self._see_to(flight)
        return True

    def _see_to(self, flight: _Flight) -> None:
        """Have *flight* looked after when it is due."""
        # One alarm for all, left as it is when they land: to set and take back one for each is a
        # tenth of what a read costs.
        if self._alarm is not None:
            if self._alarm_at <= flight.due.at:
                return
            self._alarm.cancel()
        self._alarm_at = flight.due.at
        self._alarm = flight.loop.call_later(flight.due.remaining(), self._ring)

    def _ring(self) -> None:
        self._alarm = None
        for flight in tuple(self._flights):
            if flight.due.expired:
                flight.time_over()
        if self._flights:
            self._see_to(min(self._flights, key=lambda flight: flight.due.at))

    def over(self, flight: _Flight) -> None:
        """Its round trip is."""
        self._flights.discard(flight)
        self.landed()

    def learn(self, key: Key, look: Look) -> int:
        """Note and return how large a value is, in bytes."""
        size = len(look.body or b"")
        if size >= _LARGE:
            if len(self._large) >= _LARGE_KEYS:
                self._large.clear()
            self._large[key] = None
            return size
        if self._large:
            self._large.pop(key, None)
        self._expected += (size - self._expected) / _SHARE
        return size


class _Flight:
    """One round trip, and those who wait for it.

    Attributes:
        deadline: Of the one who can wait longest.
        due: Of the one who cannot.
    """

    def __init__(self, reads: Reads, flock: list[_Read]) -> None:
        self.keys = tuple({read.key: None for read in flock})
        self.deadline = max([read.deadline for read in flock], key=_moment)
        self.due = self._due(flock)
        self._reads = reads
        self._flock = flock
        self._todo: deque[_Read] = deque()

    @staticmethod
    def _due(flock: list[_Read]) -> Deadline:
        return min([read.deadline for read in flock], key=_moment)

    def begin(self, look: AwaitedLook) -> None:
        """Wait for *look*, which has begun."""
        self.loop = asyncio.get_running_loop()
        self._look = look
        self._watch()

    def _watch(self) -> None:
        self._descriptor = self._look.fileno()
        self.loop.add_reader(self._descriptor, self._read)

    def _unwatch(self) -> None:
        self.loop.remove_reader(self._descriptor)

    def _read(self) -> None:
        over = True
        try:
            over = self._look.step()
        finally:
            if over:
                self._land()
            elif self._look.fileno() != self._descriptor:
                self._unwatch()
                self._watch()

    def time_over(self) -> None:
        """Of one of them at least."""
        if self.deadline.expired:
            self._look.give_up()
            self._land()
            return
        late = [read for read in self._flock if read.deadline.expired]
        self._flock = [read for read in self._flock if not read.deadline.expired]
        for read in late:
            read.tell(RedisTimeoutError("no answer within the deadline"))
        self.due = self._due(self._flock)

    def _land(self) -> None:
        self._unwatch()
        self._look.close()
        self._todo.extend(self._flock)
        self._hand_out()
        self._reads.over(self)

    def _hand_out(self) -> None:
        """Let as many go on as have values that the loop can be spared to decode in one turn."""
        left = _TURN_BYTES
        while self._todo and left > 0:
            read = self._todo.popleft()
            if not read.future.done():
                answer = self._look.look(read.key)
                if isinstance(answer, Look):
                    left -= self._reads.learn(read.key, answer)
                read.tell(answer)
        if self._todo:
            self.loop.call_soon(self._hand_out)


def _moment(deadline: Deadline) -> float:
    return deadline.at
