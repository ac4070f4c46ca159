"""The verbs the cache needs of Redis, each one bounded exchange over a pooled connection."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jmcache.connection._resolver import Resolver
from jmcache.connection._tls import Tls
from jmcache.connection._wire import (
    NUMBER,
    OK,
    PING,
    PONG,
    VALUE,
    pack,
    pack_get,
    pack_set,
    values,
)
from jmcache.deadline import Deadline
from jmcache.errors import (
    RedisClosedError,
    RedisError,
    RedisHurriedError,
    RedisMisconfiguredError,
    RedisNotReadyError,
    RedisNotServedError,
    RedisProtocolError,
    RedisReadOnlyError,
    RedisTimeoutError,
)
from jmcache.fork import renew_in_child

if TYPE_CHECKING:
    from jmcache.connection._pool import Pool
    from jmcache.settings import CacheSettings

_HEAD_ROOM = 64 * 1024  # bytes of a reply beside its values: heads, tags, and one read too many
_FAIR_ASK_S = 0.05  # a server that is well answers within this; less time proves nothing

# After these the other connections are suspect too: the name may point to another server by now,
# which idle ones would never find out, and one answer out of step may not be the only one.
_DROPPING = (RedisReadOnlyError, RedisNotReadyError, RedisMisconfiguredError, RedisProtocolError)


@dataclass(frozen=True, slots=True)
class PoolUsage:
    """Connections of this process to one Redis."""

    in_use: int
    idle: int
    limit: int


class RedisConnectionManager:
    """Pooled, lazy, reconnecting access to one Redis.

    Thread-safe. Nothing is connected before the first verb; a forked child starts with no
    connection. Every verb ends within the deadline it is given, and raises one of
    :mod:`jmcache.errors` when it fails: RedisConnectionError and its kin (no answer),
    RedisRejectedError (Redis said no), RedisPoolExhaustedError, RedisCorruptEntryError (a reply
    larger than any value of ours), RedisClosedError. What a signal handler raises passes through
    and costs the connection in use, nothing else.
    """

    def __init__(
        self,
        settings: CacheSettings,
        *,
        connection_class: type | None = None,
        connection_options: dict[str, Any] | None = None,
    ) -> None:
        """Prepare access to the Redis that *settings* name.

        Args:
            connection_class: A redis-py connection class to use instead, such as fakeredis's.
            connection_options: Its further arguments.
        """
        # redis-py takes 0.15 s to import: paid here, neither by `import jmcache` nor by a call.
        from jmcache.connection import _foreign, _pool, _translate

        self._settings = settings
        self._absorbed = _translate.ABSORBED
        self._is_foreign = _translate.is_foreign
        self._translate = _translate.translate
        self._make_pool = _pool.Pool
        if connection_class is None:
            self._connection_class, self._options = _native(settings)
        else:
            self._connection_class = _foreign.made_ours(connection_class)
            self._options = _foreign.options(settings) | (connection_options or {})
        self._options |= {
            "db": settings.db,
            "username": settings.username,
            "password": settings.password,
        }
        self._value_room = settings.max_value_bytes + _HEAD_ROOM
        self._fair_ask_s = min(_FAIR_ASK_S, settings.operation_timeout / 2)
        self._closed = False
        self._pool = self._new_pool()
        renew_in_child(self._renew_in_child)

    def _new_pool(self) -> Pool:
        return self._make_pool(
            self._connection_class, self._settings.max_connections, **self._options
        )

    def _renew_in_child(self) -> None:
        inherited = self._pool
        self._pool = self._new_pool()
        inherited.abandon()

    def get(self, name: bytes, deadline: Deadline) -> bytes | None:
        """Return what is stored under *name*, or None."""
        value: bytes | None = self._ask(pack_get(name), VALUE, deadline)
        return value

    def get_many(self, names: Sequence[bytes], deadline: Deadline) -> list[bytes | None]:
        """Return what is stored under each of *names*, in their order, in one round trip."""
        if not names:
            return []
        count = len(names)
        found: list[bytes | None] = self._ask(pack(b"MGET", *names), values(count), deadline, count)
        return found

    def set(self, name: bytes, blob: bytes, ttl_ms: int, deadline: Deadline) -> None:
        """Store *blob* under *name* for *ttl_ms* milliseconds."""
        self._ask(pack_set(name, blob, ttl_ms), OK, deadline)

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
        replies = self._exchange(packed, OK, len(items), deadline)
        return [
            self._suspect(self._translate(reply)) if isinstance(reply, Exception) else None
            for reply in replies
        ]

    def delete(self, names: Sequence[bytes], deadline: Deadline) -> int:
        """Remove *names*; return how many of them were there."""
        removed: int = self._ask(pack(b"UNLINK", *names), NUMBER, deadline) if names else 0
        return removed

    def ping(self, deadline: Deadline) -> None:
        """Ask for a sign of life. A server that forbids PING has given one."""
        with contextlib.suppress(RedisNotServedError):
            self._ask(PING, PONG, deadline)

    def drop_connections(self) -> None:
        """Close idle connections now and the others after their exchange; new ones come lazily."""
        self._pool.drop()

    def usage(self) -> PoolUsage:
        """Return how many connections there are."""
        alive, idle = self._pool.alive, self._pool.idle
        return PoolUsage(max(0, alive - idle), idle, self._settings.max_connections)

    @property
    def closed(self) -> bool:
        """True after close()."""
        return self._closed

    def close(self) -> None:
        """Close all connections, those in use after their exchange. Idempotent, never blocks."""
        self._closed = True
        self._pool.close()

    def _ask(self, packed: bytes, asked: bytes, deadline: Deadline, count: int = 1) -> Any:
        reply = self._exchange(packed, asked, 1, deadline, count)[0]
        if isinstance(reply, Exception):
            raise self._suspect(self._translate(reply)) from reply
        return reply

    def _exchange(
        self, packed: bytes, asked: bytes, replies: int, deadline: Deadline, count: int = 1
    ) -> list[Any]:
        if self._closed:
            raise RedisClosedError("the connection manager is closed")
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
                    packed, asked, replies, deadline, count * self._value_room
                )
                clean = True
            finally:
                if clean:
                    pool.give_back(loan)
                else:
                    pool.discard(loan)
        except RedisError as error:
            if type(error) is RedisTimeoutError and left_s < self._fair_ask_s:
                raise RedisHurriedError("too little time was left to ask Redis") from error
            self._suspect(error)
            raise
        except self._absorbed as error:
            if self._is_foreign(error):
                raise
            raise self._suspect(self._translate(error)) from error
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

    def _suspect(self, error: RedisError) -> RedisError:
        if isinstance(error, _DROPPING):
            self.drop_connections()
        return error


def _native(settings: CacheSettings) -> tuple[type, dict[str, Any]]:
    from jmcache.connection import _connection

    options: dict[str, Any] = {
        "open_within_s": settings.connection_timeout,
    }
    if settings.unix_socket_path is not None:
        return _connection.UnixConnection, options | {"path": settings.unix_socket_path}
    tls = None
    if settings.tls:
        tls = Tls(
            ca_certs=settings.tls_ca_certs,
            certfile=settings.tls_certfile,
            keyfile=settings.tls_keyfile,
            verify=settings.tls_verify,
            check_hostname=settings.tls_check_hostname,
        )
    return _connection.TcpConnection, options | {
        "host": settings.host,
        "port": settings.port,
        "resolver": Resolver(settings.host, settings.port),
        "tls": tls,
    }
