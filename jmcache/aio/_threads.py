"""The threads that calls of a loop run on, begun at next to no cost for the loop."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import queue
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from jmcache.deadline import Deadline
from jmcache.errors import RedisClosedError, RedisError, RedisHurriedError, RedisPoolExhaustedError
from jmcache.fork import renew_in_child
from jmcache.threads import start_thread

T = TypeVar("T")

_QUEUE_PER_THREAD = 200  # calls; what a thread can serve within a deadline when Redis is well
_HANDED_OUT = 50  # calls in one turn of the loop; what their callers do next, it does in the same


class Threads:
    """A few threads, and the calls that wait for one of them.

        loop ──begin──▶ waiting ──▶ a thread ──▶ mailbox ──once for many──▶ loop

    A ThreadPoolExecutor costs the loop 30 to 58 us a call: a thousand calls begun in one turn
    held it for as many milliseconds. Here the loop takes no lock that a thread may hold while it
    waits for the interpreter, wakes one thread at most, and each that has something to do wakes
    or starts the next.

    Threads are daemons: they end with `close`, or when nobody has this object any more, and never
    hold up the end of the process. In a forked child they start anew.

    Any thread may call; the sets and queues are changed by single C calls only, which no other
    thread and no exception from a signal handler can break in two.
    """

    def __init__(self, limit: Callable[[], int] | None, name: str = "jmcache-aio") -> None:
        """Start nothing yet.

        Args:
            limit: How many threads there may be now. Asked at each call; must be quick. None: as
                many as there are calls, and one that rests.
            name: What the names of the threads begin with.
        """
        self._name = name
        self._limit = limit
        self._closed = False
        self._numbers = itertools.count()
        self._renew_in_child()
        renew_in_child(self._renew_in_child)

    def _renew_in_child(self) -> None:
        self._lock = threading.Lock()
        self._present: set[int] = set()  # their numbers; grows under _lock only
        # Those of them that are to look for a call: they sleep, start or are about to.
        self._free: set[int] = set()
        self._waiting: OrderedDict[Call[Any], None] = OrderedDict()
        self._bells: queue.SimpleQueue[object] = queue.SimpleQueue()  # each wakes one that sleeps
        self._here = threading.local()  # the mailbox of the loop that this thread runs

    @property
    def unfinished(self) -> int:
        """Calls that wait or run."""
        return len(self._waiting) + len(self._present) - len(self._free)

    @property
    def running(self) -> int:
        """Threads that are there."""
        return len(self._present)

    def _most(self) -> int:
        return self.unfinished + 1 if self._limit is None else self._limit()

    def begin(self, work: Callable[[], T], deadline: Deadline) -> Call[T]:
        """Let a thread run *work* in the caller's context. For a coroutine, which awaits the call.

        Refused at once: RedisClosedError after `close`, RedisPoolExhaustedError when too many wait
        (``queue_full``). Refused later: RedisHurriedError when *deadline* was over before a thread
        came free, RedisPoolExhaustedError when there is none and the system gives none
        (``no_thread``).
        """
        call = Call(work, deadline, self)
        if self._closed:
            call.refused = RedisClosedError("the adapter was closed")
        elif self.unfinished >= self._most() * _QUEUE_PER_THREAD:
            call.refused = RedisPoolExhaustedError(
                "max_connections: more calls wait than can be served", reason="queue_full"
            )
        else:
            try:
                self._waiting[call] = None
                self._find_a_thread()
            except BaseException:
                self.withdraw(call)
                raise
        return call

    def withdraw(self, call: Call[Any]) -> None:
        """Run *call* no more, unless it began already."""
        self._waiting.pop(call, None)

    def mailbox(self, loop: asyncio.AbstractEventLoop) -> _Mailbox:
        """Where calls of *loop*, which runs on the calling thread, are handed back."""
        mailbox: _Mailbox | None = getattr(self._here, "mailbox", None)
        if mailbox is None or mailbox.loop() is not loop:
            mailbox = self._here.mailbox = _Mailbox(loop)
        return mailbox

    def fit(self) -> None:
        """End the threads that are too many by now."""
        self._ring()

    def close(self) -> None:
        """Take no calls any more. What waits still runs; then the threads end. Idempotent."""
        self._closed = True
        self._ring()

    # Finding a thread

    def _find_a_thread(self) -> None:
        """See to it that somebody comes for what waits.

        Whoever puts a call first puts it and then looks who is free; a thread first says that it
        is free and then looks what waits: one of the two sees the other.
        """
        if self._free:
            self._ring()
        elif len(self._present) < self._most():
            self._add()

    def _ring(self) -> None:
        if self._bells.empty():  # else one is woken already, and wakes the next
            self._bells.put(None)

    def _add(self) -> None:
        number = next(self._numbers)
        try:
            with self._lock:
                if len(self._present) >= self._most():
                    return
                self._free.add(number)
                self._present.add(number)
            # Called when this object is gone: a C function, in which no signal handler can run.
            me = weakref.ref(self, self._bells.put)
            if not start_thread(f"{self._name}_{number}", _work, me, self._bells, number):
                self._refuse_without_thread(number)
        except BaseException:  # from a signal handler; should it run already, it joins by itself
            self._leave(number)
            raise

    def _refuse_without_thread(self, number: int) -> None:
        self._leave(number)
        if not self._present:
            self._refuse_all(
                RedisPoolExhaustedError(
                    "the system has no thread for the adapter", reason="no_thread"
                )
            )

    def _refuse_all(self, error: RedisError) -> None:
        while (call := self._next()) is not None:
            call.refuse(error)

    # On one of the threads

    def join(self, number: int) -> None:
        """Thread *number* runs."""
        with self._lock:
            self._free.add(number)
            self._present.add(number)

    def serve(self, number: int) -> bool:
        """Run what waits. Return whether the thread is to stay for more."""
        try:
            while self._is_wanted(number):
                call = self._next()
                if call is None:
                    if not self._closed:
                        return True
                    break
                self._free.discard(number)
                if self._waiting:
                    self._find_a_thread()
                try:
                    call.run()
                finally:
                    self._free.add(number)
                call.hand_back()
        except BaseException:
            self._end(number)
            raise
        self._end(number)
        return False

    def _is_wanted(self, number: int) -> bool:
        if len(self._present) > self._most():
            with self._lock:
                if len(self._present) > self._most():
                    self._present.discard(number)
        return number in self._present  # it is not in a forked child, either

    def _end(self, number: int) -> None:
        self._leave(number)
        if self._waiting:  # first gone, then looked, as ever
            self._find_a_thread()

    def _leave(self, number: int) -> None:
        self._free.discard(number)
        self._present.discard(number)
        self._ring()  # what it was woken for is the next one's

    def _next(self) -> Call[Any] | None:
        try:
            return self._waiting.popitem(last=False)[0]
        except KeyError:
            return None


def _work(me: weakref.ref[Threads], bells: queue.SimpleQueue[object], number: int) -> None:
    threads = me()
    if threads is not None:
        threads.join(number)
    while threads is not None and threads.serve(number):
        del threads  # while it sleeps, the thread keeps nothing alive
        bells.get()
        threads = me()


class Call(Generic[T]):
    """One call, from `Threads.begin` until its caller has what came of it."""

    __slots__ = (
        "_context", "_deadline", "_error", "_future", "_mailbox", "_result", "_threads", "_work",
        "refused",
    )  # fmt: skip

    def __init__(self, work: Callable[[], T], deadline: Deadline, threads: Threads) -> None:
        loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] = loop.create_future()
        self._mailbox = threads.mailbox(loop)
        self._threads = threads
        self._context = contextvars.copy_context()
        self._work: Callable[[], T] | None = work
        self._error: BaseException | None = None
        self._deadline = deadline
        self.refused: RedisError | None = None  # why it did not run

    async def ended(self) -> None:
        """Wait until it was refused, or ran."""
        if self.refused is None:
            try:
                await self._future
            except BaseException:
                self._threads.withdraw(self)
                raise

    def result(self) -> T:
        """Return what the call returned, or raise what it raised. Once, after `ended`."""
        if self._error is None:
            return self._result
        error, self._error = self._error, None
        try:
            # Not through the future: it takes no StopIteration, and complains of what nobody took.
            raise error
        finally:
            del error  # it leads here, by its traceback

    # On a thread

    def run(self) -> None:
        work, self._work = self._work, None
        if work is None or self._future.done():
            return
        if self._deadline.expired:
            # Of a thousand calls on a silent server 990 end so, all in the same moment. Asking the
            # cache for each used the interpreter for 40 ms, and the loop waited for its turn.
            self.refused = RedisHurriedError("no thread came free within the deadline")
            return
        try:
            self._result = self._context.run(work)
        except BaseException as error:  # noqa: BLE001 - its caller's; the thread serves others, too
            self._error = error

    def refuse(self, error: RedisError) -> None:
        self.refused = error
        self.hand_back()

    def hand_back(self) -> None:
        """Let the loop know. Nobody may wait any more: cancelled, or the loop is closed."""
        if not self._future.done():
            self._mailbox.put(self)

    def wake(self) -> None:
        """On the loop: its caller goes on."""
        if not self._future.done():
            self._future.set_result(None)

    def loop(self) -> asyncio.AbstractEventLoop:
        return self._future.get_loop()


class _Mailbox:
    """Calls that ended, until their loop takes them: all at once, woken once."""

    __slots__ = ("_ended", "_rung", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = weakref.ref(loop)  # a loop that is done with is not kept
        self._ended: deque[Call[Any]] = deque()
        # True from a call of the loop until it looks. First put, then look at this; first reset
        # this, then look what is there: nothing is left lying, at worst the loop looks in vain.
        self._rung = False

    def put(self, call: Call[Any]) -> None:
        self._ended.append(call)
        if not self._rung:
            self._rung = True
            try:
                call.loop().call_soon_threadsafe(self._hand_out)
            except RuntimeError:  # the loop is closed: nobody waits
                self._rung = False
                self._ended.clear()

    def _hand_out(self) -> None:
        self._rung = False
        try:
            for _ in range(_HANDED_OUT):
                if not self._ended:
                    return
                self._ended[0].wake()
                self._ended.popleft()
        finally:
            if self._ended:  # too many for one turn, or an exception from a signal handler
                self._rung = True
                self._ended[0].loop().call_soon(self._hand_out)
