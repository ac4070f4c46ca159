"""The pool that lends connections.

A signal handler may raise at any bytecode: Celery's soft time limit, a timer, Ctrl-C. So nothing
here needs a second step to be right. Idle connections stand in a deque, whose operations are
atomic; capacity is no count that could drift but the set of connections that are alive, known by
weak references. And a connection on its way is never in a variable, where a traceback that
somebody keeps would hold it, but moves in one step from the deque into the *loan*, a list that the
borrower owns, and back. Whatever is still in the loan when the call ends is closed.
"""

from __future__ import annotations

import math
import operator
import threading
import time
import weakref
from collections import deque
from typing import Any

import redis

from jmcache.connection._usage import waited
from jmcache.deadline import Deadline
from jmcache.errors import RedisClosedError, RedisPoolExhaustedError

Loan = list[Any]  # of one connection, or empty

WAIT_SHARE = 0.8  # of the deadline may go into waiting for a connection; the rest is to ask with
_LOOK_AGAIN_S = 0.02  # a wake-up that was lost to an interrupted thread costs no more than this
_GONE_AFTER_S = 0.2  # a waiter looks ten times in it, unless its thread was interrupted
_LOST_AFTER_S = 1.0  # past its call's deadline: whoever had it cannot be using it any more
_NEVER_MISSED = (math.inf, math.nan)
_TICKET = operator.attrgetter("ticket")  # in C: a variable of ours would hold the connection


class Ticket(weakref.ref[Any]):
    """What the pool knows of a connection without holding it."""

    __slots__ = ("due", "epoch", "missed")

    due: float  # monotonic seconds when the call that has it, or had it last, is over
    epoch: object  # of the pool when it was made; None when it must not be used again
    missed: tuple[float, float]  # since when nobody had it though it was not idle, and its due then


class _Waiter:
    """A thread's place in the queue for a connection."""

    __slots__ = ("bell", "passed_over", "seen")

    def __init__(self) -> None:
        self.seen = time.monotonic()  # when its thread last looked whether it is its turn
        self.passed_over = False  # its thread was not seen for long, and lost its place
        self.bell = threading.Lock()
        self.bell.acquire()

    def ring(self) -> None:
        try:
            self.bell.release()
        except RuntimeError:  # rung already, and not heard yet
            pass


class Pool(redis.ConnectionPool):
    """Lends connections, at most *limit* at a time, first come first served.

    Thread-safe, and safe against exceptions from signal handlers at any point. Not used in a
    forked child: its owner makes a new one.
    """

    def __init__(self, connection_class: type, limit: int, **options: Any) -> None:
        self._idle: deque[Any] = deque()
        self._waiters: deque[_Waiter] = deque()  # the first one is served next
        self._alive: set[Ticket] = set()
        self._grow_lock = threading.Lock()
        self._epoch = object()  # connections of an older one are closed when they come back
        self._closed = False
        super().__init__(
            connection_class=connection_class,
            max_connections=limit,
            **options,
        )

    # redis-py's is Python code, in which a signal handler's exception would be lost. It cannot be
    # taken away, but it can be C: this is called without arguments, and does nothing.
    __del__ = bool  # type: ignore[assignment]

    def __repr__(self) -> str:
        # redis-py 6.4 shows the password.
        return f"<Pool of {len(self._alive)} connections, at most {self.max_connections}>"

    @property
    def idle(self) -> int:
        """Connections nobody is using."""
        return len(self._idle)

    @property
    def alive(self) -> int:
        """Connections in use or idle."""
        return len(self._alive)

    def borrow(self, loan: Loan, deadline: Deadline, wait_share: float = WAIT_SHARE) -> float:
        """Put a connection for one exchange into *loan*, which is empty; connected or not.

        Args:
            wait_share: How much of what is left of *deadline* may go into waiting for one.

        Returns:
            Seconds left of *deadline* when it was there.

        Raises:
            RedisPoolExhaustedError: None came free in time.
            RedisClosedError: The pool is closed, perhaps since this call began to wait.
        """
        if self._closed:
            raise RedisClosedError("the pool is closed")
        if self._waiters or not (self._take_idle(loan) or self._grow(loan)):
            self._wait(loan, deadline.remaining() * wait_share)
        left_s = deadline.remaining()
        loan[0].ticket.due = time.monotonic() + left_s
        return left_s

    def give_back(self, loan: Loan) -> None:
        """Take back what is in *loan* after an exchange that was read whole."""
        epoch = loan[0].ticket.epoch
        if epoch is not self._epoch or self._closed:
            self.discard(loan)
            return
        self._idle.append(loan.pop())
        if epoch is not self._epoch or self._closed:  # since the line above
            self._close_idle()
        if self._waiters:
            self._ring_first()

    def discard(self, loan: Loan) -> None:
        """Close what is in *loan*, whatever state it is in, and free its place."""
        for connection in tuple(loan):
            connection.disconnect()
            self._alive.discard(connection.ticket)
        loan.clear()
        if self._waiters:
            self._ring_first()

    def drop(self) -> None:
        """Close the idle connections now, and those in use when they come back."""
        self._epoch = object()
        self._close_idle()

    def close(self) -> None:
        """Lend none from now on, and keep none that comes back."""
        self._closed = True
        self.drop()

    def abandon(self) -> None:
        """In a forked child: let go of the parent's sockets without a word to the server."""
        for ticket in self._alive.copy():
            connection = ticket()
            if connection is not None:
                connection.disconnect()

    def _close_idle(self) -> None:
        loan: Loan = []
        try:
            for _ in range(len(self._idle)):
                loan.append(self._idle.popleft())
                self.discard(loan)
        except IndexError:  # somebody was faster
            pass
        finally:
            self.discard(loan)

    def _take_idle(self, loan: Loan) -> bool:
        while True:
            try:
                loan.append(self._idle.pop())  # used last: warm, and the others may time out
            except IndexError:
                return False
            if loan[0].ticket.epoch is self._epoch:
                return True
            self.discard(loan)

    def _grow(self, loan: Loan) -> bool:
        if len(self._alive) >= self.max_connections and not self._forget_lost():
            return False
        loan.append(self.connection_class(**self.connection_kwargs))
        with self._grow_lock:
            if len(self._alive) < self.max_connections:
                # The set drops it by itself, in C, when the connection is no more.
                ticket = Ticket(loan[0], self._alive.discard)
                ticket.due, ticket.epoch, ticket.missed = 0.0, self._epoch, _NEVER_MISSED
                self._alive.add(ticket)
                loan[0].ticket = ticket
                return True
        loan.clear()  # somebody was faster
        return False

    def _forget_lost(self) -> bool:
        # Who is interrupted again and again while cleaning up can leave a connection in a loan
        # that a kept traceback keeps. No call outlives its deadline, and nobody is on the way
        # from one place to the other for long, so it is known by its age.
        now = time.monotonic()
        idle = set(map(_TICKET, self._idle.copy()))
        for ticket in self._alive - idle:
            if ticket.due >= now:
                continue
            since, due = ticket.missed
            if due != ticket.due:
                ticket.missed = (now, ticket.due)
            elif since + _LOST_AFTER_S < now:
                ticket.epoch = None
                self._alive.discard(ticket)
        return len(self._alive) < self.max_connections

    def _wait(self, loan: Loan, seconds: float) -> None:
        waiter = _Waiter()
        began = waiter.seen
        until = began + seconds
        try:
            self._waiters.append(waiter)
            while not self._is_served(waiter, loan) and waiter.seen < until:
                if self._closed:
                    raise RedisClosedError("the pool was closed")
                waiter.bell.acquire(timeout=min(until - waiter.seen, _LOOK_AGAIN_S))
                waiter.seen = time.monotonic()
                if waiter.passed_over:
                    waiter.passed_over = False
                    self._waiters.append(waiter)
            self._leave(waiter)
        finally:
            self._leave(waiter)  # again, for one who was interrupted in the line above
            waited.seconds += time.monotonic() - began
        if not loan:
            raise RedisPoolExhaustedError(
                "max_connections: all are in use; more of them, or fewer threads"
            )

    def _is_served(self, waiter: _Waiter, loan: Loan) -> bool:
        return self._first_waiter() is waiter and (self._take_idle(loan) or self._grow(loan))

    def _first_waiter(self) -> _Waiter | None:
        now = time.monotonic()
        while self._waiters:
            try:
                first = self._waiters[0]
                if first.seen + _GONE_AFTER_S >= now:
                    return first
                self._waiters.remove(first)
            except (IndexError, ValueError):  # it left
                continue
            first.passed_over = True
        return None

    def _leave(self, waiter: _Waiter) -> None:
        try:
            self._waiters.remove(waiter)
        except ValueError:
            return
        if self._idle or len(self._alive) < self.max_connections:
            self._ring_first()

    def _ring_first(self) -> None:
        try:
            self._waiters[0].ring()
        except IndexError:  # it left
            pass
