"""One server: its pool, and the verbs as bounded exchanges over a pooled connection."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jmcache.connection._commands import Command
from jmcache.connection._pool import Pool
from jmcache.connection._translate import ABSORBED, is_foreign, translate
from jmcache.connection._usage import PoolUsage, Tally
from jmcache.connection._wire import (
    OK,
    PING,
    PONG,
    VALUE,
    pack_get,
    pack_set,
)
from jmcache.deadline import Deadline
from jmcache.errors import (
    RedisError,
    RedisHurriedError,
    RedisMisconfiguredError,
    RedisNotReadyError,
    RedisNotServedError,
    RedisProtocolError,
    RedisReadOnlyError,
    RedisTimeoutError,
    RedisWrongTypeError,
)

_HEAD_ROOM = 64 * 1024  # bytes of a reply beside its values: heads, tags, and one read too many
_FAIR_ASK_S = 0.05  # a server that is well answers within this; less time proves nothing

# After these the other connections are suspect too: the name may point to another server by now,
# which idle ones would never find out, and one answer out of step may not be the only one.
_DROPPING = (RedisReadOnlyError, RedisNotReadyError, RedisMisconfiguredError, RedisProtocolError)


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds the exchanges with a server.

    Attributes:
        connections: Connections at one time.
        value_bytes: Bytes of the largest value that is taken as one of ours.
        operation_s: Seconds an exchange is usually given.
    """

    connections: int
    value_bytes: int
    operation_s: float


class Node:
    """Pooled, lazy, reconnecting access to one server.

    Attributes:
        value_room: Bytes that a value may have in a reply.

    Thread-safe. Not used in a forked child, beyond `abandon`: its owner makes a new one. The verbs
    are those of RedisConnectionManager, with the same promises.
    """

    def __init__(self, connection_class: type, options: dict[str, Any], limits: Limits) -> None:
        """Connect to nothing yet.

        Args:
            connection_class: What the pool makes, as `Connection`.
            options: Its arguments.
        """
        self._pool = Pool(connection_class, limits.connections, **options)
        self._surplus: Tally = options.get("surplus") or Tally()  # foreign classes count none
        self.value_room = limits.value_bytes + _HEAD_ROOM
        self._fair_ask_s = min(_FAIR_ASK_S, limits.operation_s / 2)

    @property
    def pool(self) -> Pool:
        """Its connections."""
        return self._pool

    def new_connection(self) -> Any:
        """Return a connection beside the pool's, made as they are; not connected yet."""
        return self._pool.connection_class(**self._pool.connection_kwargs)

    def get(self, name: bytes, deadline: Deadline) -> bytes | None:
        """Return what is stored under *name*, or None."""
        value: bytes | None = self.ask(pack_get(name), VALUE, deadline)
        return value

    def get_many(
        self, names: Sequence[bytes], deadline: Deadline
    ) -> list[bytes | RedisError | None]:
        """Return what is stored under each of *names*, in their order, in one round trip.

        A name that holds no text has an error in its place. GETs, not MGET: that takes a name of
        another type for none, and is not a hundredth faster.
        """
        if not names:
            return []
        count = len(names)
        packed = b"".join(map(pack_get, names))
        replies = self._exchange(packed, (VALUE,) * count, deadline, count)
        return self.values(replies)

    def values(self, replies: Sequence[Any]) -> list[bytes | RedisError | None]:
        """Return *replies*, with errors that concern one name alone in place; raise any other."""
        found = list(replies)
        for place, reply in enumerate(replies):
            if isinstance(reply, Exception):
                error = found[place] = self.told(reply)
                if not isinstance(error, RedisWrongTypeError):
                    raise error
        return found

    def set(self, name: bytes, blob: bytes, ttl_ms: int, deadline: Deadline) -> None:
        """Store *blob* under *name* for *ttl_ms* milliseconds."""
        self.ask(pack_set(name, blob, ttl_ms), OK, deadline)

    def set_many(
        self, items: Sequence[tuple[bytes, bytes, int]], deadline: Deadline
    ) -> list[RedisError | None]:
        """Store several (name, blob, TTL in ms) in one round trip; not atomic.

        Returns:
            For each item None when it was stored, or why Redis refused that one.
        """
        if not items:
            return []
        packed = b"".join([pack_set(*item) for item in items])
        replies = self._exchange(packed, (OK,) * len(items), deadline)
        return [self.told(reply) if isinstance(reply, Exception) else None for reply in replies]

    def ask_each(self, commands: Sequence[Command], deadline: Deadline) -> list[Any]:
        """Carry out *commands* in one round trip; return the reply to each, or why there is none.

        Raises RedisError when the server did not answer.
        """
        if not commands:
            return []
        packed = b"".join([command.packed for command in commands])
        asked = [command.asked for command in commands]
        return [
            self.told(reply) if isinstance(reply, Exception) else reply
            for reply in self._exchange(packed, asked, deadline, len(commands))
        ]

    def ping(self, deadline: Deadline) -> None:
        """Ask for a sign of life. A server that forbids PING has given one."""
        with contextlib.suppress(RedisNotServedError):
            self.ask(PING, PONG, deadline)

    def holds_against(self, error: RedisError) -> bool:
        """Is *error* evidence against the Redis as a whole?"""
        return error.trips

    @property
    def impaired(self) -> bool:
        """Is a part of it not asked at the moment? One server has no parts."""
        return False

    def usage(self) -> PoolUsage:
        """Return how many connections there are."""
        alive, idle = self._pool.alive, self._pool.idle
        limit = self._pool.max_connections
        return PoolUsage(max(0, alive - idle), idle, limit, self._surplus.count)

    def drop_connections(self) -> None:
        """Close idle connections now and the others after their exchange; new ones come lazily."""
        self._pool.drop()

    def close(self) -> None:
        """Close all connections, those in use after their exchange. Idempotent, never blocks."""
        self._pool.close()

    def abandon(self) -> None:
        """In a forked child: let go of the parent's sockets without a word to the server."""
        self._pool.abandon()

    def ask(self, packed: bytes, asked: bytes, deadline: Deadline, count: int = 1) -> Any:
        """Return the reply to one command; *asked* as _wire says, with *count* values in it."""
        [reply] = self._exchange(packed, (asked,), deadline, count)
        if isinstance(reply, Exception):
            raise self.told(reply)
        return reply

    def _exchange(
        self, packed: bytes, asked: Sequence[bytes], deadline: Deadline, count: int = 1
    ) -> list[Any]:
        pool = self._pool
        loan: list[Any] = []
        clean = False  # nothing of an exchange is on its way
        left_s = 0.0
        try:
            try:
                left_s = pool.borrow(loan, deadline)
                if left_s <= 0.0:
                    clean = True
                    raise RedisTimeoutError("the deadline is over")
                answers: list[Any] = loan[0].exchange(
                    packed, asked, deadline, count * self.value_room
                )
                clean = True
            finally:
                if clean:
                    pool.give_back(loan)
                else:
                    pool.discard(loan)
        except RedisError as error:
            judged = self.judge(error, left_s)
            if judged is error:
                raise
            raise judged from error
        except ABSORBED as error:
            if is_foreign(error):
                raise
            raise self.judge(error, left_s) from error
        finally:
            interrupt: BaseException | None = None
            while loan:  # interrupted in the lines that were to empty it, or here
                try:
                    pool.discard(loan)
                except BaseException as error:  # noqa: BLE001 - raised below
                    interrupt = error
            if interrupt is not None:
                raise interrupt
        return answers

    def judge(self, error: Exception, left_s: float) -> RedisError:
        """Return what *error*, one that is absorbed, means for an exchange that had *left_s*."""
        ours = translate(error)
        if type(ours) is RedisTimeoutError and left_s < self._fair_ask_s:
            return RedisHurriedError("too little time was left to ask Redis")
        return self.suspect(ours)

    def told(self, reply: Exception) -> RedisError:
        """Return what an error *reply* means; its cause shows Redis's own words."""
        error = self.suspect(translate(reply))
        error.__cause__ = reply
        return error

    def suspect(self, error: RedisError) -> RedisError:
        """Return *error*, and drop the connections that it casts a doubt on."""
        if isinstance(error, _DROPPING):
            self.drop_connections()
        return error
