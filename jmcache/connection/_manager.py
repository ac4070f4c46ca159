"""The front of the connections: the verbs, whatever Redis is behind them, and the change of it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jmcache.connection import _commands
from jmcache.connection._commands import Command
from jmcache.connection._credentials import Credentials
from jmcache.connection._resolver import Resolver
from jmcache.connection._tls import Tls
from jmcache.connection._usage import PoolUsage, Tally
from jmcache.deadline import Deadline
from jmcache.errors import (
    RedisClosedError,
    RedisError,
    RedisNotServedError,
    RedisWrongTypeError,
)
from jmcache.fork import renew_in_child
from jmcache.store import Found, Item

if TYPE_CHECKING:
    from jmcache.connection._cluster import Cluster
    from jmcache.connection._listening import Hears
    from jmcache.connection._members import Guard
    from jmcache.connection._node import Limits, Node
    from jmcache.connection._reading import Reading
    from jmcache.connection._tracking import Tracking
    from jmcache.settings import CacheSettings

    Server = Node | Cluster

# Of the name of one node of a cluster, and of what is evidence against it.
MakeGuard = Callable[[str, Callable[[RedisError], bool]], "Guard"]

_READS = ("get", "get_many", "ping")


@dataclass(frozen=True, slots=True)
class _Present:
    """What is in use, replaced as a whole: a reader never sees half a change."""

    settings: CacheSettings
    server: Server


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
        make_guard: MakeGuard | None = None,
    ) -> None:
        """Prepare access to the Redis that *settings* name.

        Args:
            connection_class: A redis-py connection class to use instead, such as fakeredis's.
            connection_options: Its further arguments.
            make_guard: Brings a circuit breaker for each node of a cluster, from a name for it and
                what tells whether an error is evidence against it; None: there is none.
        """
        # redis-py takes 0.15 s to import: paid here, neither by `import jmcache` nor by a call.
        from jmcache.connection import _node, _reading

        self._make_limits = _node.Limits
        self._make_node = _node.Node
        self._make_reading: Callable[..., Reading] = _reading.Reading
        self._connection_class = connection_class
        self._connection_options = connection_options or {}
        self._make_guard = make_guard
        self._closed = False
        self._lock = threading.Lock()
        self._present = _Present(settings, self._new_server(settings))  # replaced under _lock
        # Servers that are to be closed, and perhaps the present one: see reconfigure.
        self._former: deque[Server] = deque()
        renew_in_child(self._renew_in_child)

    @property
    def settings(self) -> CacheSettings:
        """The settings in use."""
        return self._present.settings

    @property
    def in_parts(self) -> bool:
        """See Store.in_parts."""
        return self._present.settings.cluster

    def get(self, name: bytes, deadline: Deadline) -> bytes | None:
        """Return what is stored under *name*, or None."""
        found: bytes | None = self._carry_out("get", name, deadline)
        return found

    def get_many(
        self, names: Sequence[bytes], deadline: Deadline
    ) -> Sequence[bytes | RedisError | None]:
        """Return what is stored under each of *names*, in their order, in one round trip.

        A name that holds no text has an error in its place. Of a cluster, several nodes are asked
        at the same time; so has a name whose node gave no answer, unless none gave any.
        """
        found: Sequence[bytes | RedisError | None] = self._carry_out("get_many", names, deadline)
        return found

    def set(self, name: bytes, blob: bytes, ttl_ms: int, deadline: Deadline) -> None:
        """Store *blob* under *name* for *ttl_ms* milliseconds."""
        self._carry_out("set", name, blob, ttl_ms, deadline)

    def set_many(
        self, items: Sequence[tuple[bytes, bytes, int]], deadline: Deadline
    ) -> list[RedisError | None]:
        """Store several (name, blob, TTL in ms) in one round trip; not atomic.

        Returns:
            For each item None when it was stored, or why Redis refused that one.
        """
        refused: list[RedisError | None] = self._carry_out("set_many", items, deadline)
        return refused

    def delete(
        self, names: Sequence[bytes], deadline: Deadline, leases: Sequence[bytes] = ()
    ) -> int:
        """Void *leases*, then remove *names*; return how many of the names were there."""
        commands = [*map(_commands.void, leases), *map(_commands.remove, names)]
        replies = self._each(commands, deadline)
        _raise_first(replies)
        return sum(replies[len(leases) :])

    def read(
        self,
        names: Sequence[bytes],
        counters: Sequence[bytes],
        leases: Sequence[bytes],
        deadline: Deadline,
        *,
        lives: bool = False,
    ) -> Found:
        """See Store.read."""
        wanted = (*names, *leases, *counters)
        count = len(names)
        found: Sequence[bytes | RedisError | None]
        lives_ms: list[int] = []
        if lives:
            commands = [*map(_commands.get, wanted), *map(_commands.life, names)]
            replies = self._each(commands, deadline)
            found = replies[: len(wanted)]
            # Who may not ask reads all the same, and has been told so: see _listening.
            lives_ms = [one if isinstance(one, int) else -1 for one in replies[len(wanted) :]]
        else:
            found = self._carry_out("get_many", wanted, deadline)
        only = found[0] if count == 1 else None
        if isinstance(only, RedisError) and not isinstance(only, RedisWrongTypeError):
            raise only
        return self._found(found, count, len(leases), lives_ms)

    def begin_reading(
        self, names: Sequence[bytes], deadline: Deadline, lives: Sequence[bytes] = ()
    ) -> Reading | None:
        """Ask for *names* without a wait, for an event loop; None where that is not possible.

        Not retried, and for one server alone.

        Args:
            lives: Names whose lives are asked for too.
        """
        if self._closed or self._connection_class or self.in_parts:
            return None
        reading = self._make_reading(self._present.server, names, deadline, lives)
        return reading if reading.begin() else None

    def write(
        self, items: Sequence[Item], counters: Sequence[bytes], deadline: Deadline
    ) -> tuple[list[RedisError | None], list[bytes | RedisError | None]]:
        """See Store.write."""
        leases = [item.lease for item in items]
        commands = self._void(leases)
        before = len(commands)
        commands += map(_commands.store, items)
        commands += map(_commands.get, counters)
        replies = self._each(commands, deadline)[before:]
        stored, found = replies[: len(items)], replies[len(items) :]
        return [reply if isinstance(reply, RedisError) else None for reply in stored], found

    def take(
        self,
        names: Sequence[bytes],
        leases: Sequence[bytes],
        token: bytes,
        lease_ms: int,
        counters: Sequence[bytes],
        deadline: Deadline,
        *,
        steal: bool = False,
    ) -> tuple[list[bool], Found]:
        """See Store.take."""
        commands = [_commands.take(lease, token, lease_ms, steal=steal) for lease in leases]
        commands += map(_commands.get, (*names, *leases, *counters))
        replies = self._each(commands, deadline)
        taken, found = replies[: len(leases)], replies[len(leases) :]
        _raise_first(taken)
        return [reply is not None for reply in taken], self._found(found, len(names), len(leases))

    def write_held(self, items: Sequence[Item], token: bytes, deadline: Deadline) -> list[bool]:
        """See Store.write_held."""
        replies = self._each([_commands.store_held(item, token) for item in items], deadline)
        if all([isinstance(reply, RedisError) for reply in replies]):
            _raise_first(replies)
        return [reply == 1 for reply in replies]

    def free(self, leases: Sequence[bytes], token: bytes, cool_ms: int, deadline: Deadline) -> None:
        """See Store.free."""
        commands = [_commands.free(lease, token, cool_ms) for lease in leases]
        _raise_first(self._each(commands, deadline))

    def renew(
        self, leases: Sequence[bytes], token: bytes, lease_ms: int, deadline: Deadline
    ) -> None:
        """See Store.renew."""
        commands = [_commands.renew(lease, token, lease_ms) for lease in leases]
        _raise_first(self._each(commands, deadline))

    def move(self, counters: Sequence[bytes], deadline: Deadline) -> None:
        """See Store.move."""
        now_us = int(self.now() * 1e6)
        commands: list[Command] = []
        for counter in counters:
            commands += (_commands.seed(counter, now_us), _commands.count_up(counter))
            commands += (_commands.keep(counter),)
        _raise_first(self._each(commands, deadline))

    def seed(self, counters: Sequence[bytes], deadline: Deadline) -> None:
        """See Store.seed."""
        now_us = int(self.now() * 1e6)
        commands = [_commands.seed(counter, now_us) for counter in counters]
        _raise_first(self._each(commands, deadline))

    def _found(
        self, replies: Sequence[Any], names: int, leases: int, lives_ms: Sequence[int] = ()
    ) -> Found:
        """Return *replies*, of so many names and leases, and of counters, as Found."""
        counters = replies[names + leases :]
        if not self.in_parts:
            _raise_first(counters)  # without them nothing can be said of the blobs
        holders: Sequence[bytes | None] = ()
        if leases:
            found = replies[names : names + leases]
            holders = [None if isinstance(reply, RedisError) else reply for reply in found]
        return Found(replies[:names], counters, holders, lives_ms)

    def _void(self, leases: Sequence[bytes]) -> list[Command]:
        if self.in_parts:  # each may be another node's
            return [_commands.void(lease) for lease in leases]
        return [_commands.void(*leases)] if leases else []

    def _each(self, commands: Sequence[Command], deadline: Deadline) -> list[Any]:
        replies: list[Any] = self._carry_out("ask_each", commands, deadline)
        return replies

    def ping(self, deadline: Deadline) -> None:
        """Ask for a sign of life. A server that forbids PING has given one."""
        if self._former:  # somebody was interrupted in reconfigure
            self._close_former()
        self._carry_out("ping", deadline)

    def reconfigure(self, settings: CacheSettings) -> None:
        """Use the Redis that *settings* name from now on: another host, password, pool size.

        Returns at once and connects to nothing. Costs no call that is under way: it ends on the
        connection it has. One that fails there, because the old Redis or the old password is gone,
        and one that still waits for a connection, are carried out on the new Redis within their
        deadline; so is a write that was still done by the old one. Until such calls are over there
        may be more connections than *settings* allow.

        Idempotent. Whoever is interrupted in it may find either Redis in use; calling it again
        makes sure. Has no effect after `close`.
        """
        try:
            if settings != self._present.settings:
                server = self._new_server(settings)
                with self._lock:
                    # Noted before it is replaced: an interrupt between leaves one here that is
                    # still in use, which is not closed then, rather than one that nobody closes.
                    self._former.append(self._present.server)
                    self._present = _Present(settings, server)
        finally:
            self._close_former()
            if self._closed:  # meanwhile, perhaps before there was a new one to close
                self._server.close()

    def tracking(self, hears: Hears, prefix: bytes, lag_s: float) -> Tracking:
        """Return who has *hears* told what changes among the names with *prefix*; not started.

        Args:
            prefix: Ends in ":".
            lag_s: Seconds that what is kept of them may be behind Redis.
        """
        from jmcache.connection._tracking import Tracking

        return Tracking(
            self.new_connection,
            self.set,
            hears,
            prefix,
            lag_s=lag_s,
            connect_s=self.settings.connection_timeout,
            place=lambda: self.settings.endpoint,
        )

    def new_connection(self) -> Any:
        """Return a connection beside those of the pool, made as they are; not connected yet.

        Raises RedisNotServedError where there is no single server, or its connections speak for
        themselves.
        """
        if self._closed:
            raise RedisClosedError("the connection manager is closed")
        server = self._server
        if self._connection_class is not None or not isinstance(server, self._make_node):
            raise RedisNotServedError("no connection to listen on", reason="no_tracking")
        return server.new_connection()

    def now(self) -> float:
        """Seconds since 1970."""
        return time.time()

    def drop_connections(self) -> None:
        """Close idle connections now and the others after their exchange; new ones come lazily."""
        self._server.drop_connections()

    def usage(self) -> PoolUsage:
        """Return how many connections there are."""
        return self._server.usage()

    def holds_against(self, error: RedisError) -> bool:
        """Is *error* evidence against Redis as a whole, and not only against a node of a cluster?

        So *counts* of a circuit breaker around it.
        """
        return self._server.holds_against(error)

    @property
    def impaired(self) -> bool:
        """Is a node of a cluster not asked at the moment, because it failed?"""
        return self._server.impaired

    @property
    def closed(self) -> bool:
        """True after close()."""
        return self._closed

    def close(self) -> None:
        """Close all connections, those in use after their exchange. Idempotent, never blocks."""
        self._closed = True
        self._close_former()
        self._server.close()

    @property
    def _server(self) -> Server:
        return self._present.server

    def _carry_out(self, verb: str, *args: Any) -> Any:
        while True:
            if self._closed:
                raise RedisClosedError("the connection manager is closed")
            server = self._present.server
            try:
                done = getattr(server, verb)(*args)
            except RedisError:
                if server is self._present.server:
                    raise
            else:
                if server is self._present.server or verb in _READS:
                    return done
            # Reconfigured meanwhile: once more, on the new one, in what is left of the deadline.

    def _close_former(self) -> None:
        for server in tuple(self._former):
            if server is not self._present.server:
                server.close()
                self._forget_former(server)

    def _forget_former(self, server: Server) -> None:
        try:
            self._former.remove(server)
        except ValueError:  # another thread closed it, too
            pass

    def _renew_in_child(self) -> None:
        inherited = (*self._former, self._present.server)
        self._lock = threading.Lock()
        self._former.clear()
        settings = self._present.settings
        self._present = _Present(settings, self._new_server(settings))
        for server in inherited:
            server.abandon()

    def _new_server(self, settings: CacheSettings) -> Server:
        credentials = Credentials(settings.username, settings.password)
        if self._connection_class is not None:
            return self._new_node(settings, credentials)
        if settings.sentinels:
            return self._new_master(settings, credentials)
        if not settings.cluster:
            return self._new_node(settings, credentials)
        from jmcache.connection._cluster import Cluster, is_of_node

        def make_node(place: tuple[str, int]) -> Node:
            host, port = place
            return self._new_node(
                replace(settings, host=host, port=port, cluster=False, cluster_nodes=""),
                credentials,
            )

        make, name = self._make_guard, settings.endpoint

        def make_guard(place: tuple[str, int]) -> Guard | None:
            host, port = place
            return make and make(f"{host}:{port} of {name.partition(',')[0]}", is_of_node)

        return Cluster(settings.seeds, make_node, make_guard)

    def _new_master(self, settings: CacheSettings, credentials: Credentials) -> Node:
        from jmcache.connection._sentinel import MasterNode, Sentinels

        theirs = Credentials(settings.sentinel_username, settings.sentinel_password)
        plain = replace(
            settings,
            db=0,
            max_connections=1,
            sentinels="",
            sentinel_master=None,
            sentinel_username=None,
            sentinel_password=None,
        )
        sentinels = Sentinels(
            [
                self._new_node(replace(plain, host=host, port=port), theirs)
                for host, port in settings.sentinel_places
            ],
            settings.sentinel_master or "",
            settings.operation_timeout,
        )
        _, options = _native(settings, credentials)
        return MasterNode(sentinels, options, self._limits(settings))

    def _new_node(self, settings: CacheSettings, credentials: Credentials) -> Node:
        if self._connection_class is None:
            connection_class, options = _native(settings, credentials)
        else:
            from jmcache.connection import _foreign

            connection_class = _foreign.made_ours(self._connection_class)
            options = _foreign.options(settings, credentials) | self._connection_options
        return self._make_node(connection_class, options, self._limits(settings))

    def _limits(self, settings: CacheSettings) -> Limits:
        return self._make_limits(
            connections=settings.max_connections,
            value_bytes=settings.max_value_bytes,
            operation_s=settings.operation_timeout,
        )


def _raise_first(replies: Sequence[Any]) -> None:
    for reply in replies:
        if isinstance(reply, RedisError):
            raise reply


def _native(settings: CacheSettings, credentials: Credentials) -> tuple[type, dict[str, Any]]:
    from jmcache.connection import _connection

    options: dict[str, Any] = {
        "db": settings.db,
        "credentials": credentials,
        "open_within_s": settings.connection_timeout,
        "surplus": Tally(),
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
