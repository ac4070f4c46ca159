"""Reads of one event loop, gathered into one round trip that the loop itself waits for.

No thread takes part: a hop there and back costs more than the read. Whatever would take a wait is
left to one: a connection that has to be made, a second attempt, the removal of what is corrupt.
"""

from __future__ import annotations

import asyncio
from collections import deque

from jmcache.aio._gathering import Gathering, send_alone
from jmcache.cache import Adapting, AwaitedLook, Key, Look
from jmcache.deadline import Deadline
from jmcache.errors import RedisError, RedisHurriedError
from jmcache.sizes import Sizes

_PATIENCE_S = 0.002
_LARGE_PATIENCE_S = 0.01  # behind a flight with so much that its answer takes its time
_MOST = 128  # keys in one round trip
_TURN_BYTES = 128 * 1024  # of values that are decoded in one turn of the loop, some 1 ms
_NOTABLE = 96 * 1024  # bytes; a flight that hands out more has the turn for itself

Answer = Look | RedisError | None


class _Read:
    """What one caller waits for; None in the end: a thread has to ask."""

    __slots__ = ("deadline", "flight", "future", "key")

    def __init__(self, key: Key, deadline: Deadline, future: asyncio.Future[Answer]) -> None:
        self.key = key
        self.deadline = deadline
        self.future = future
        self.flight: _Flight | None = None

    def tell(self, answer: Answer) -> None:
        if not self.future.done():
            self.future.set_result(answer)

    def go_alone(self) -> None:
        self.tell(None)


class Reads(Gathering[_Read]):
    """Those of one loop, for its thread alone."""

    def __init__(self, cache: Adapting, sizes: Sizes, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop, sizes, _MOST, _PATIENCE_S)
        self._cache = cache
        self._alarm: asyncio.TimerHandle | None = None  # for whoever is out for too long
        self._alarm_at = 0.0
        self._landed: deque[tuple[AwaitedLook, _Read]] = deque()
        self._handing: asyncio.Handle | None = None

    async def look(self, key: Key, deadline: Deadline) -> Answer:
        """Return what is there for *key*, its value SEALED, or the error it ended in.

        None: a thread has to ask.
        """
        read = _Read(key, deadline, asyncio.get_running_loop().create_future())
        self.add(read)
        try:
            return await read.future
        except asyncio.CancelledError:
            if read.flight is not None:
                read.flight.forsake()
            raise

    def abandon(self) -> None:
        """Let go of all connections: the loop is closed."""
        for flight in self.out:
            flight.close()
        self.out.clear()

    def depart(self, flock: list[_Read]) -> None:
        flight = _Flight(self, flock)
        try:
            flight.look = self._cache.begin_look(flight.keys, flight.deadline)
            if flight.look is None:
                send_alone(flock)
                return
            self.out.add(flight)
            self._see_to(flight)
            flight.watch(flight.look.fileno())
            sizes = self.sizes
            long = sizes.is_large(flock[0].key) or sizes.takes_long(len(flock))
            self.patience_s = _LARGE_PATIENCE_S if long else _PATIENCE_S
        except BaseException:
            self.out.discard(flight)
            flight.close()
            raise

    def left_behind(self) -> None:
        late = [read for read in self.waiting if read.deadline.expired]
        for read in late:
            read.tell(RedisHurriedError("the deadline was over before Redis could be asked"))
            self.waiting.remove(read)

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
        try:
            for flight in tuple(self.out):
                if flight.due.expired:
                    flight.time_over()
        finally:  # whom an exception from a signal handler kept from being told is told then
            if self._landed and self._handing is None:
                self._hand_out()
            if self.out:
                self._see_to(min(self.out, key=lambda flight: flight.due.at))

    def land(self, flight: _Flight, look: AwaitedLook) -> None:
        """The round trip of *flight* is over, and *look* has what came of it."""
        if flight in self.out:
            # Before it is out no more: until then, somebody looks when its time is over.
            self._landed.extend([(look, read) for read in flight.flock])
            try:
                self.landed(flight)
            finally:
                if self._handing is None:
                    self._hand_out()

    def hand(self, look: AwaitedLook, flock: list[_Read]) -> None:
        """Tell *flock* what *look* found for them, as soon as the loop can be spared for it."""
        self._landed.extend([(look, read) for read in flock])
        if self._handing is None:
            self._hand_out()

    def _hand_out(self) -> None:
        """Let as many go on as have values that the loop can be spared to decode in one turn."""
        self._handing = None
        left = _TURN_BYTES
        landed, learn = self._landed, self.sizes.learn
        try:
            while landed and left > 0:
                look, read = landed[0]  # to be taken off when they are told
                if not read.future.done():
                    answer: Answer = None
                    try:
                        answer = look.look(read.key)
                    finally:
                        read.future.set_result(answer)
                    if isinstance(answer, Look) and answer.body is not None:
                        size = len(answer.body)
                        learn(read.key, size)
                        left -= size
                landed.popleft()
        finally:
            if landed or left < _TURN_BYTES - _NOTABLE:
                self._handing = asyncio.get_running_loop().call_soon(self._hand_out)


class _Flight:
    """One round trip, and those who wait for it.

    Attributes:
        deadline: Of the one who can wait longest.
        due: Of the one who cannot.
        look: What is waited for; None when nothing is.
    """

    def __init__(self, reads: Reads, flock: list[_Read]) -> None:
        self.keys = tuple({read.key: None for read in flock})
        self.deadline = self.due = flock[0].deadline
        if len(flock) > 1:
            self.deadline = max([read.deadline for read in flock], key=_moment)
            self.due = self._due(flock)
        self.flock = flock
        self.loop = asyncio.get_running_loop()
        self._reads = reads
        self.look: AwaitedLook | None = None
        self._watched = -1  # the descriptor
        for read in flock:
            read.flight = self

    @staticmethod
    def _due(flock: list[_Read]) -> Deadline:
        return min([read.deadline for read in flock], key=_moment)

    def watch(self, descriptor: int) -> None:
        """Wait until *descriptor*, and no other, can be read; -1: none."""
        if descriptor == self._watched:
            return
        if self._watched >= 0:
            self.loop.remove_reader(self._watched)
        self._watched = descriptor
        if descriptor >= 0:
            self.loop.add_reader(descriptor, self._step)

    def _step(self) -> None:
        look = self.look
        if look is None:
            return
        over = True
        # Before it may be closed: uvloop hangs when a descriptor is that it still waits for.
        self.watch(-1)
        try:
            over = look.step()
        finally:
            if over:
                self._land(look)
            else:
                self.watch(look.fileno())
                if self._watched < 0:  # it has something to do besides
                    self.loop.call_soon(self._step)
        if look.waits_for_tags:
            self._hand_out_untagged(look)

    def _hand_out_untagged(self, look: AwaitedLook) -> None:
        """Let those go on who would not wait for tags if they were alone."""
        untagged = [read for read in self.flock if not look.depends_on_tags(read.key)]
        if untagged:
            self._reads.hand(look, untagged)
            self.flock = [read for read in self.flock if look.depends_on_tags(read.key)]

    def time_over(self) -> None:
        """Of one of them at least."""
        look = self.look
        if look is None:
            return
        patient = []
        # Each is looked at once: between two looks at the clock one more may be late.
        for read in self.flock:
            if read.deadline.expired:
                read.tell(look.too_late(read.deadline))
            else:
                patient.append(read)
        self.flock = patient
        if patient:
            self.due = self._due(patient)
            return
        self.watch(-1)
        look.give_up()
        self._land(look)

    def forsake(self) -> None:
        """One of them was cancelled. The answer is of no use when all were."""
        if self.look is not None and all([read.future.done() for read in self.flock]):
            self._land(self.look)

    def close(self) -> None:
        """Let go of the connection; nobody is told. Idempotent."""
        if self._watched >= 0 and not self.loop.is_closed():
            self.watch(-1)
        if self.look is not None:
            self.look.close()

    def _land(self, look: AwaitedLook) -> None:
        try:
            self.close()
        finally:
            self._reads.land(self, look)
        self.look = None


def _moment(deadline: Deadline) -> float:
    return deadline.at
