"""Has somebody listen to what changes in Redis: CLIENT TRACKING, on a connection of its own.

rest ──▶ open ──HELLO 3, TRACKING ON──▶ listen, see _listening ──lost, silent, canary missed─┐
  ▲                                                                                          │
  └──────────────────────────────────────────────────────────────────────────────────────────┘
"""

from __future__ import annotations

import logging
import random
import secrets
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from jmcache.connection._listening import IDLE_S, Hears, Listening, Touch, hush
from jmcache.connection._translate import ABSORBED
from jmcache.deadline import Deadline
from jmcache.errors import (
    RedisError,
    RedisMisconfiguredError,
    RedisNotServedError,
    RedisRejectedError,
)
from jmcache.fork import renew_in_child
from jmcache.signals import signals_as_before
from jmcache.threads import start_thread

_log = logging.getLogger("jmcache.near")

_USED_S = 1.0  # so long after the last look, what is kept is in use
_BACKOFF_S = 0.1  # the first rest at most; each is twice the one before
_LONGEST_BACKOFF_S = 5.0
_REFUSED_S = 60.0  # a server that cannot do it learns it with an upgrade, not by being asked


class Tracking:
    """One thread that listens, on one connection, for the names with one prefix.

    Starts with `wake`, in a forked child again; ends when nobody is left to listen for, or with
    `stop`. Holds up neither a caller nor the interpreter's exit. The methods may be called from any
    thread, and return at once.

    Attributes:
        running: True while the thread is at work.
        sessions: How often it began to listen.
        missed: Canaries that were not heard of.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        touch: Touch,
        hears: Hears,
        prefix: bytes,
        *,
        lag_s: float,
        connect_s: float,
        place: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start nothing yet.

        Args:
            connect: Returns a connection, made as those of the pool are; or raises RedisError.
            touch: Stores a value for so many milliseconds through the pool, as `set` of a manager.
            hears: Is told.
            prefix: Of the names to listen for; ends in ":".
            lag_s: Seconds that what is kept may be behind Redis.
            connect_s: Seconds that connecting may take.
            place: Says where Redis is, for the log.
            clock: That of *hears*.
        """
        self._connect = connect
        self._touch = touch
        self._hears = hears
        self._prefix = prefix
        self._lag_s = lag_s
        self._connect_s = connect_s
        self._place = place
        self._clock = clock
        self._stopped = False
        self._said_refused = False
        self.sessions = 0
        self.missed = 0
        self._connections: set[Any] = set()  # one, and for a moment that of a thread that ends
        self._bell: socket.socket | None = None
        self._renew_in_child()
        renew_in_child(self._renew_in_child)

    def _renew_in_child(self) -> None:
        for connection in self._connections:
            connection.disconnect()  # without a word: the parent goes on with it
        if self._bell is not None:
            self._bell.close()
        self._lock = threading.Lock()
        self._connections.clear()
        self._bell = None  # guarded by _lock; rung to end a wait of the thread
        self.running = False  # guarded by _lock
        self._turn = 0  # guarded by _lock; a thread of an older turn ends
        self._awake = False  # nobody needs to wake it; in a hurry, not guarded
        # Not overlapping with the prefix, which Redis refuses, and allowed by its pattern in an
        # ACL. At each change Redis looks at all prefixes that there are, and tells all who listen
        # to one: so thousands of processes share 256 of them, and few hear of another's canary.
        token = secrets.token_hex(8).encode()
        self._canaries = self._prefix[:-1] + b"#near:" + token[:2]
        self._canary = self._canaries + token[2:] + b":"

    def wake(self) -> None:
        """Somebody wants to know what is true. Costs next to nothing while that is known."""
        if not self._awake:
            self._wake()

    def restart(self) -> None:
        """Forget everything, and listen on a new connection."""
        self._hears.close()
        with self._lock:
            self._turn += 1
            self._ring()
            self._bell, self.running, self._awake = None, False, False

    def stop(self) -> None:
        """Listen no more, for good. Idempotent."""
        self._stopped = True
        self.restart()

    def _wake(self) -> None:
        try:
            with self._lock:
                if self._awake or self._stopped:
                    return
                self._awake = True
                if self.running:
                    self._ring()
                    return
                self._turn += 1
                turn = self._turn
            self._awake = start_thread("jmcache-near", self._run, turn)
        except BaseException:  # from a signal handler: the next one wakes it
            self._awake = False
            raise

    def _ring(self) -> None:
        if self._bell is not None:
            try:
                self._bell.send(b"!")
            except BlockingIOError:  # rung often enough
                pass

    # The thread ---------------------------------------------------------------------------------

    def _run(self, turn: int) -> None:
        pair = self._new_bell(turn)
        if pair is None:
            return
        mine, theirs = pair
        try:
            with self._lock:
                if turn != self._turn:
                    return
                self._bell, self.running = theirs, True
            failures = 0
            while self._is_on(turn):
                heard = self.sessions
                pause_s = self._listen_until_lost(turn, mine)
                failures = 0 if self.sessions > heard else failures + 1
                if pause_s is None:
                    most_s = min(_LONGEST_BACKOFF_S, _BACKOFF_S * 2 ** min(failures, 10))
                    # Full jitter: all replicas lose Redis in the same moment.
                    pause_s = random.uniform(0.0, most_s)
                self._rest(turn, mine, pause_s)
        finally:
            with self._lock:
                theirs.close()
                mine.close()
                if turn == self._turn:
                    self._bell, self.running, self._awake = None, False, False

    def _new_bell(self, turn: int) -> tuple[socket.socket, socket.socket] | None:
        while turn == self._turn and not self._stopped:
            try:
                pair = socket.socketpair()
            except OSError:  # no descriptor is left; the pool meets the same, and tells of it
                time.sleep(_BACKOFF_S)
            else:
                for end in pair:
                    end.setblocking(False)
                return pair
        return None

    def _is_on(self, turn: int) -> bool:
        return turn == self._turn and not self._stopped and self._hears.has_caches

    def _rest(self, turn: int, bell: socket.socket, seconds: float) -> None:
        """Rest, however often it is rung, but for whoever ends this."""
        ends_at = self._clock() + seconds
        while self._is_on(turn) and (left_s := ends_at - self._clock()) > 0.0:
            poll = select.poll()  # select() cannot have descriptors above 1023
            poll.register(bell.fileno(), select.POLLIN)
            poll.poll(min(left_s, IDLE_S) * 1000)
            hush(bell)

    def _listen_until_lost(self, turn: int, bell: socket.socket) -> float | None:
        """Return seconds to rest; None for as long as usual after a failure."""
        try:
            connection = self._connect()
            self._connections.add(connection)
            try:
                self._listen(turn, connection, bell)
            finally:
                self._connections.discard(connection)
                connection.disconnect()
        except (RedisNotServedError, RedisRejectedError) as error:
            self._tell(error)
            return random.uniform(0.5, 1.0) * _REFUSED_S
        except RedisMisconfiguredError:
            return random.uniform(0.5, 1.0) * _REFUSED_S  # accounts are locked by those who go on
        except (RedisError, *ABSORBED):
            return None  # the pool meets the same, and the circuit breaker tells of it
        except Exception as error:  # noqa: BLE001
            # The thread would die, and the near cache stay off without a word.
            with signals_as_before():
                _log.error("listening to %s failed (%s); tried again", self._place(), type(error))
            return None
        return 0.0

    def _listen(self, turn: int, connection: Any, bell: socket.socket) -> None:
        deadline = Deadline(self._connect_s)
        stream = connection.open_stream(deadline)
        listening = Listening(
            stream,
            self._hears,
            self._touch,
            lag_s=self._lag_s,
            clock=self._clock,
        )
        try:
            listening.begin(self._prefix, self._canaries, self._canary, deadline)
            self.sessions += 1
            while self._is_on(turn):
                # Said first, looked at after that: whoever comes in between rings, or is seen.
                self._awake = False
                used = self._awake = self._clock() - self._hears.used_at < _USED_S
                listening.go_on(bell, used=used)
        finally:
            listening.end()
            self.missed += listening.missed

    def _tell(self, error: RedisError) -> None:
        if not self._said_refused:
            self._said_refused = True
            with signals_as_before():
                _log.warning(
                    "near: %s does not tell us what changes in it (%s): the near cache is off, and"
                    " tried again every minute. It takes Redis 6.0, and of an ACL user the rights"
                    " +client|tracking +pttl",
                    self._place(),
                    error.reason,
                )
