"""One connection that listens to what changes in Redis, from its first command to its end.

A PING goes out again and again. Its answer comes behind the pushes for everything that was written
before it was sent: so when the answer is here, what is kept was true at that moment, and is at most
*lag_s* old until that much later.

A canary proves that this connection and the pool lead to the same server: a name that was written
through the pool has to be heard of here before the answer to the next PING.
"""

from __future__ import annotations

import math
import select
import socket
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import redis

from jmcache.connection._pushes import Pushes, Said
from jmcache.connection._socket import DeadlineSocket
from jmcache.connection._translate import translate
from jmcache.connection._wire import PING, PONG, pack
from jmcache.deadline import Deadline
from jmcache.errors import (
    RedisConnectionError,
    RedisError,
    RedisNotServedError,
    RedisProtocolError,
    RedisTimeoutError,
    RedisWriteRefusedError,
)

IDLE_S = 1.0  # between PINGs while nobody uses what is kept
_PING_SHARE = 0.4  # of the lag, between PINGs while somebody does: one may be late without harm
_TRUST_SHARE = 0.9  # of the lag; the rest is for whoever has looked at the clock, and goes on
_CANARY_SHARE = 0.3  # of the lag, for the pool to write a canary: nothing is heard meanwhile
_CANARY_S = 1.0  # between canaries while it is used
_CANARY_AGAIN_S = 0.25  # after one that could not be written
_PROOF_S = 3.0  # a canary that was heard of counts so long: some may find the pool busy
_CANARY_MS = 1000  # of life
_SILENCE_S = 1.0  # without the answer to a PING, and the connection is given up
_SILENCE_LAGS = 5.0  # or so many lags, if that is longer
_READ_SIZE = 64 * 1024  # bytes

Touch = Callable[[bytes, bytes, int, Deadline], object]


class Hears(Protocol):
    """Who is told."""

    used_at: float

    @property
    def has_caches(self) -> bool:
        """Is there anybody to listen for?"""

    def invalidate(self, names: Sequence[bytes]) -> None:
        """Take note that these are not any more what they were."""

    def flush(self) -> None:
        """Take note that nothing is."""

    def open(self) -> int:
        """Take note that everything is heard from now on; return the number of this session."""

    def extend(self, session: int, until: float) -> bool:
        """Take note that what is kept is true until that moment, as far as the lag allows.

        False: another session was opened since, or this one was closed.
        """

    def close(self, session: int | None = None) -> None:
        """Take note that nothing is heard any more, unless another session was opened since."""


class Listening:
    """For one thread. Any exception ends it: the connection is of no use any more.

    Attributes:
        missed: A canary was written, and not heard of.
    """

    def __init__(
        self,
        stream: DeadlineSocket,
        hears: Hears,
        touch: Touch,
        *,
        lag_s: float,
        clock: Callable[[], float],
    ) -> None:
        """Say nothing yet on *stream*, which is connected."""
        self._stream = stream
        self._pushes = Pushes()
        self._hears = hears
        self._touch = touch
        self._lag_s = lag_s
        self._silence_s = max(_SILENCE_S, _SILENCE_LAGS * lag_s)
        self._clock = clock
        self._session = 0
        self._asked_at: float | None = None  # when the PING was sent that has no answer yet
        self._pinged_at = -math.inf
        self._canary_prefix = b""
        self._canaries = 0
        self._canary_at = -math.inf  # when the next one is due
        self._canary: bytes | None = None  # written, and not heard of yet
        self._canary_began = -math.inf
        self._proven_at = -math.inf  # the pool led to our server
        self.missed = False

    def begin(
        self, prefix: bytes, canaries: bytes, canary_prefix: bytes, deadline: Deadline
    ) -> None:
        """Ask to be told of the names with *prefix*, and of *canaries*.

        Args:
            canaries: What the names of ours begin with, and those of some other processes.
            canary_prefix: What the names of ours alone begin with.

        Raises:
            RedisError: As the server refuses it; RedisNotServedError and RedisRejectedError where
                it cannot do it at all.
        """
        self._stream.begin(deadline)
        self._ask(b"HELLO", b"3")
        self._ask(b"PTTL", canary_prefix)  # what is kept is asked for with it
        rest = self._ask(
            *(b"CLIENT", b"TRACKING", b"ON", b"BCAST"),
            *(b"PREFIX", prefix, b"PREFIX", canaries),
        )
        self._canary_prefix = canary_prefix
        self._session = self._hears.open()
        self._apply(rest)

    def end(self) -> None:
        """Say that nothing is heard any more."""
        self._hears.close(self._session)

    def go_on(self, bell: socket.socket, *, used: bool) -> None:
        """Say what is due, then wait for what comes, or for the *bell*.

        Args:
            used: Does somebody use what is kept?
        """
        if used and self._clock() >= self._canary_at:
            self._write_canary()
        now = self._clock()
        due = self._pinged_at + (_PING_SHARE * self._lag_s if used else IDLE_S)
        if self._asked_at is None and now >= due:
            self._asked_at = self._pinged_at = now
            self._stream.begin(Deadline(self._silence_s))
            self._stream.sendall(PING)
        if self._asked_at is not None:
            due = self._asked_at + self._silence_s
            if now >= due:
                raise RedisTimeoutError("no answer from Redis to a listener's PING")
        if used:
            due = min(due, self._canary_at)
        self._hear(bell, max(0.0, due - now))

    def _ask(self, *words: bytes) -> list[Said]:
        """Carry out a command; return what was said after its reply."""
        self._stream.sendall(pack(*words))
        said: list[Said] = []
        while not said:
            said = self._pushes.feed(_read(self._stream))
        _raise_refusal(said[0].reply)
        return said[1:]

    def _write_canary(self) -> None:
        self._canaries += 1
        canary = self._canary_prefix + b"%d" % self._canaries
        began = self._clock()
        try:
            deadline = Deadline(_CANARY_SHARE * self._lag_s)
            self._touch(canary, b"1", _CANARY_MS, deadline)
        except RedisError:  # no news of this connection; without any, nothing is believed soon
            self._canary_at = self._clock() + _CANARY_AGAIN_S
        else:
            self._canary, self._canary_began = canary, began
            self._canary_at = began + _CANARY_S

    def _hear(self, bell: socket.socket, seconds: float) -> None:
        stream = self._stream
        if not stream.holds_more:
            poll = select.poll()
            poll.register(stream.fileno(), select.POLLIN)
            poll.register(bell.fileno(), select.POLLIN)
            ready = [number for number, _ in poll.poll(seconds * 1000)]
            if bell.fileno() in ready:
                hush(bell)
            if stream.fileno() not in ready:
                return
        stream.begin(Deadline(max(seconds, 0.001)))
        try:
            data = _read(stream)
        except RedisTimeoutError:  # a part of a TLS record, say
            return
        self._apply(self._pushes.feed(data))

    def _apply(self, all_said: Iterable[Said]) -> None:
        for said in all_said:
            if said.everything:
                self._hears.flush()
            elif said.names is not None:
                self._hears.invalidate(said.names)
                if self._canary in said.names:
                    self._canary, self._proven_at = None, self._canary_began
            else:
                self._answered(said.reply)

    def _answered(self, reply: Any) -> None:
        asked_at = self._asked_at
        try:
            _raise_refusal(reply)
        except (RedisNotServedError, RedisWriteRefusedError):
            # Who may not PING, or not now, has heard of what was written before it all the same.
            is_answer = True
        else:
            is_answer = reply == PONG
        if not is_answer or asked_at is None:
            raise RedisProtocolError("the reply is none that was asked for")
        self._asked_at = None
        if self._canary is not None and asked_at >= self._canary_began:
            self.missed = True
            raise RedisConnectionError("a canary was written, and not heard of", reason="canary")
        until = asked_at + _TRUST_SHARE * self._lag_s
        if asked_at - self._proven_at < _PROOF_S and not self._hears.extend(self._session, until):
            # By a thread of an earlier turn, which ends: nobody would be believed any more.
            raise RedisConnectionError("another session was opened since")


def hush(bell: socket.socket) -> None:
    """Take back what *bell* was rung."""
    try:
        while bell.recv(64):
            pass
    except BlockingIOError:
        pass


def _read(stream: DeadlineSocket) -> bytes:
    data = stream.recv(_READ_SIZE)
    if not data:
        raise RedisConnectionError("Redis closed the connection", reason="eof")
    return data


def _raise_refusal(reply: Any) -> None:
    if isinstance(reply, redis.ResponseError):
        raise translate(reply)
