"""The verbs the cache needs of Redis, each one bounded exchange over a pooled connection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from jmcache.connection._resolver import Resolver
from jmcache.connection._wire import PING, pack, pack_get, pack_set
from jmcache.deadline import Deadline
from jmcache.errors import (
    RedisClosedError,
    RedisError,
    RedisHurriedError,
    RedisMisconfiguredError,
    RedisNotReadyError,
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
        from jmcache.connection import _pool, _translate

        self._settings = settings
        self._absorbed = _translate.ABSORBED
        self._translate = _translate.translate
        self._make_pool = _pool.Pool
        if connection_class is None:
            self._connection_class, self._options = _native(settings)
        else:
            self._connection_class = type(
                connection_class.__name__, (_pool.Exchanging, connection_class), {}
            )
            self._options = dict(connection_options or {})
        self._options |= {
            "db": settings.db,
            "username": settings.username,
            "password": settings.password,
            "socket_timeout": settings.operation_timeout,
            "socket_connect_timeout": settings.connection_timeout,
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
        reply = self._ask(pack_get(name), deadline)
        if reply is None or type(reply) is bytes:
            return reply
        self._out_of_step()

    def get_many(self, names: Sequence[bytes], deadline: Deadline) -> list[bytes | None]:
        """Return what is stored under each of *names*, in their order, in one round trip."""
        reply = self._ask(pack(b"MGET", *names), deadline, values=len(names))
        if type(reply) is list and len(reply) == len(names):
            if all(blob is None or type(blob) is bytes for blob in reply):
                return reply
        self._out_of_step()

    def set(self, name: bytes, blob: bytes, ttl_ms: int, deadline: Deadline) -> None:
        """Store *blob* under *name* for *ttl_ms* milliseconds."""
        if self._ask(pack_set(name, blob, ttl_ms), deadline) != b"OK":
            self._out_of_step()

    def set_many(
        self, items: Sequence[tuple[bytes, bytes, int]], deadline: Deadline
    ) -> list[RedisError | None]:
        """Store several (name, blob, TTL in ms) in one round trip; not atomic.

        Returns:
            For each item None when it was stored, or why Redis refused that one.
        """
        packed = b"".join([pack_set(*item) for item in items])
        problems: list[RedisError | None] = []
        for reply in self._exchange(packed, len(items), deadline, 1):
            if isinstance(reply, Exception):
                problems.append(self._absorb(reply))
            elif reply == b"OK":
                problems.append(None)
            else:
                self._out_of_step()
        return problems

    def delete(self, names: Sequence[bytes], deadline: Deadline) -> int:
        """Remove *names*; return how many of them were there."""
        reply = self._ask(pack(b"UNLINK", *names), deadline)
        if type(reply) is int:
            return reply
        self._out_of_step()

    def ping(self, deadline: Deadline) -> None:
        """Ask for a sign of life. A server that forbids PING has given one."""
        try:
            if self._ask(PING, deadline) != b"PONG":
                self._out_of_step()
        except RedisMisconfiguredError as error:
            if error.reason != "noperm":
                raise

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
        self._pool.drop()

    def _ask(self, packed: bytes, deadline: Deadline, values: int = 1) -> Any:
        reply = self._exchange(packed, 1, deadline, values)[0]
        if isinstance(reply, Exception):
            raise self._absorb(reply) from reply
        return reply

    def _exchange(self, packed: bytes, replies: int, deadline: Deadline, values: int) -> list[Any]:
        if self._closed:
            raise RedisClosedError("the connection manager is closed")
        pool = self._pool
        connection = pool.borrow(deadline)
        began_with_s = deadline.remaining()
        whole = False
        try:
            answers: list[Any] = connection.exchange(
                packed, replies, deadline, values * self._value_room
            )
            whole = True
        except self._absorbed as error:
            raise self._judge(self._absorb(error), began_with_s) from error
        finally:
            if whole:
                pool.give_back(connection)
            else:
                pool.discard(connection)
        return answers

    def _judge(self, error: RedisError, began_with_s: float) -> RedisError:
        if type(error) is RedisTimeoutError and began_with_s < self._fair_ask_s:
            return RedisHurriedError("the deadline was nearly over before Redis was asked")
        return error

    def _absorb(self, error: Exception) -> RedisError:
        ours = self._translate(error)
        if isinstance(ours, (RedisReadOnlyError, RedisNotReadyError, RedisMisconfiguredError)):
            # The name may point to another server by now; idle connections would never find out.
            self.drop_connections()
        return ours

    def _out_of_step(self) -> NoReturn:
        # Whole, but no answer to what was asked: another exchange's. All of them are suspect.
        self.drop_connections()
        raise RedisProtocolError("the reply is of a kind that was not asked for")


def _native(settings: CacheSettings) -> tuple[type, dict[str, Any]]:
    from jmcache.connection import _pool

    if settings.unix_socket_path is not None:
        return _pool.UnixConnection, {
            "path": settings.unix_socket_path,
            "connect_timeout_s": settings.connection_timeout,
        }
    options: dict[str, Any] = {
        "host": settings.host,
        "port": settings.port,
        "connect_timeout_s": settings.connection_timeout,
        "resolver": Resolver(),
    }
    if not settings.tls:
        return _pool.TcpConnection, options
    return _pool.TlsConnection, options | {
        "ssl_cert_reqs": "required" if settings.tls_verify else "none",
        "ssl_check_hostname": settings.tls_verify and settings.tls_check_hostname,
        "ssl_ca_certs": settings.tls_ca_certs,
        "ssl_certfile": settings.tls_certfile,
        "ssl_keyfile": settings.tls_keyfile,
    }
