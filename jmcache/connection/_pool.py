"""Connections, and the pool that lends them out.

A signal handler may raise at any bytecode: Celery's soft time limit, a timer, Ctrl-C. So nothing
here needs a second step to be right. Idle connections stand in a deque, whose operations are
atomic; capacity is not a count that could drift but the number of connections that are alive,
known by weak references; and a connection comes back only when its reply was read whole, so one
that was dropped half-way, wherever that was, is closed and its place is free again.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import socket
import threading
import time
import weakref
from collections import deque
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection, SSLConnection, UnixDomainSocketConnection
from redis.retry import Retry

from jmcache.connection._resolver import Resolver
from jmcache.connection._socket import DeadlineSocket
from jmcache.connection._translate import translate
from jmcache.connection._wire import pack
from jmcache.deadline import Deadline
from jmcache.errors import RedisMisconfiguredError, RedisPoolExhaustedError

Reply = bytes | int | list[Any] | Exception | None

_WAIT_SHARE = 0.8  # of the deadline may go into waiting for a connection; the rest is to ask with
_LOOK_AGAIN_S = 0.01  # a wake-up that was lost to an interrupted thread costs no more than this
_LOST_AFTER_S = 1.0  # past its call's deadline: whoever had it cannot be using it any more

# redis-py looks its own version up on disk for each connection (380 us) unless told not to. The
# server is told who we are in our own handshake, at no extra round trip.
_QUIET: dict[str, Any] = (
    {"driver_info": None}
    if "driver_info" in inspect.signature(AbstractConnection.__init__).parameters
    else {"lib_name": None, "lib_version": None}
)


class Exchanging:
    """What every connection of ours can do beyond redis-py's: one bounded exchange.

    Mixed into redis-py's connection classes (and fakeredis's, for tests).
    """

    deadline: Deadline  # of the call that has it now
    due = math.inf  # monotonic seconds when that call must be over; inf while idle
    epoch = 0  # of the pool when it was made
    ticket: weakref.ref[Any]  # its entry in the pool's set of the living

    def exchange(self: Any, packed: bytes, replies: int, deadline: Deadline, room: int) -> list[Reply]:
        """Send *packed* and read *replies* replies. Error replies are returned, not raised.

        Raises whatever redis-py or the system raise; then the connection must not be used again.
        """
        self.deadline = deadline
        if self._sock is not None and self._leftover():
            self.disconnect()
        if self._sock is None:
            self.connect()
        self._begin(deadline, room)
        self._write(packed)
        return [self._read() for _ in range(replies)]

    def shake_hands(self: Any) -> None:
        """Log in, choose the database and name the client, in one round trip."""
        self._parser.on_connect(self)
        wanted = []
        if self.password:
            user = (self.username.encode(),) if self.username else ()
            wanted.append((b"AUTH", *user, self.password.encode()))
        if self.db:
            wanted.append((b"SELECT", b"%d" % self.db))
        asked = [*wanted, (b"CLIENT", b"SETINFO", b"LIB-NAME", b"jmcache")]
        self._write(b"".join([pack(*words) for words in asked]))
        for words in asked:
            reply = self._read()
            if not isinstance(reply, Exception):
                continue
            error = translate(reply)
            if isinstance(error, RedisMisconfiguredError) and words in wanted:
                raise error from reply
            if words[0] == b"SELECT":
                raise RedisMisconfiguredError(
                    f"db: Redis has no database {self.db}", reason="db"
                ) from reply
            # An old server, or an ACL without CLIENT: the name is a courtesy.

    # How the bytes go: through redis-py's public methods here, so that any connection class will
    # do; straight through the socket in the classes below.

    def _leftover(self: Any) -> bool:
        return bool(self.can_read(0))

    def _begin(self, deadline: Deadline, room: int) -> None:
        pass

    def _write(self: Any, packed: bytes) -> None:
        self.send_packed_command([packed], check_health=False)

    def _read(self: Any) -> Reply:
        try:
            reply: Reply = self.read_response(disable_decoding=True)
        except redis.ResponseError as error:
            return error
        return reply


class _Bounded(Exchanging):
    """The connection speaks through a :class:`DeadlineSocket`, from the first SYN on."""

    connect_timeout_s = math.inf

    def connect(self: Any) -> None:
        """Connect and log in within the deadline.

        Without redis-py's own retry loop around it, which multiplies every wait, and which fails
        for want of a port when a Unix socket times out (8.1).
        """
        if self._sock is None:
            self._sock = self._connect()
            self.shake_hands()

    def _bound(self, sock: socket.socket) -> DeadlineSocket:
        return DeadlineSocket(sock, self.deadline)

    def _cut_wait(self, sock: socket.socket, share: float = 1.0) -> None:
        left = min(self.deadline.remaining() * share, self.connect_timeout_s)
        if left <= 0.0:
            raise TimeoutError("the deadline is over")
        sock.settimeout(left)

    def _leftover(self: Any) -> bool:
        return bool(self._sock.readable())

    def _begin(self: Any, deadline: Deadline, room: int) -> None:
        self._sock.begin(deadline, room)

    def _write(self: Any, packed: bytes) -> None:
        self._sock.sendall(packed)

    def _read(self: Any) -> Reply:
        reply: Reply = self._parser.read_response(disable_decoding=True)
        return reply


class TcpConnection(_Bounded, redis.Connection):
    """TCP, with every address of the name getting its share of the deadline."""

    resolver: Resolver

    def __init__(self, *, resolver: Resolver, connect_timeout_s: float, **options: Any) -> None:
        super().__init__(**options)
        self.resolver = resolver
        self.connect_timeout_s = connect_timeout_s

    def _connect(self) -> DeadlineSocket:
        addresses = self.resolver.addresses(self.host, self.port, self.deadline)
        problem: OSError = OSError("no address")
        for number, (family, address) in enumerate(addresses):
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                self._cut_wait(sock, 1 / (len(addresses) - number))
                sock.connect(address)
                self._cut_wait(sock)
                return self._bound(self._secure(sock))
            except OSError as error:
                sock.close()
                problem = error
            except BaseException:
                sock.close()
                raise
        raise problem

    def _secure(self, sock: socket.socket) -> socket.socket:
        return sock


class TlsConnection(TcpConnection, SSLConnection):
    """TCP and TLS. The handshake as a whole is bounded by the socket's timeout."""

    def _secure(self, sock: socket.socket) -> socket.socket:
        secured: socket.socket = self._wrap_socket_with_ssl(sock)
        return secured


class UnixConnection(_Bounded, UnixDomainSocketConnection):
    """A Unix domain socket."""

    def __init__(self, *, connect_timeout_s: float, **options: Any) -> None:
        super().__init__(**options)
        self.connect_timeout_s = connect_timeout_s

    def _connect(self) -> DeadlineSocket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._cut_wait(sock)
            sock.connect(self.path)
        except BaseException:
            sock.close()
            raise
        return self._bound(sock)


class _Waiter:
    """A thread waiting for a connection. Known to the pool weakly: an interrupted one is gone."""

    __slots__ = ("__weakref__", "_bell", "_hands", "_left")

    def __init__(self) -> None:
        self._hands: deque[Any] = deque()
        self._left = False
        self._bell = threading.Lock()
        self._bell.acquire()

    def offer(self, connection: Any) -> bool:
        """Put *connection* into its hands; False when it left and did not take it."""
        self._hands.append(connection)
        if self._left:
            return self.take() is None
        self.ring()
        return True

    def take(self) -> Any:
        try:
            return self._hands.popleft()
        except IndexError:
            return None

    def leave(self) -> Any:
        """Take no more offers; return the one that came at the last moment, or None."""
        self._left = True
        return self.take()

    def ring(self) -> None:
        try:
            self._bell.release()
        except RuntimeError:  # rung already, and not heard yet
            return

    def wait(self, seconds: float) -> None:
        self._bell.acquire(timeout=seconds)


class Pool(redis.ConnectionPool):  # type: ignore[misc]  # redis-py's class has untyped parts
    """Lends connections, at most *limit* at a time, first come first served.

    Thread-safe, and safe against exceptions from signal handlers at any point. Not used in a
    forked child: its owner makes a new one.
    """

    def __init__(self, connection_class: type, limit: int, **options: Any) -> None:
        self._idle: deque[Any] = deque()
        self._waiters: deque[weakref.ref[_Waiter]] = deque()
        self._live: set[weakref.ref[Any]] = set()
        self._grow_lock = threading.Lock()
        self._epoch = 0
        super().__init__(
            connection_class=connection_class,
            max_connections=limit,
            protocol=2,
            retry=Retry(NoBackoff(), 0),  # ours is the one place that retries
            redis_connect_func=connection_class.shake_hands,  # type: ignore[attr-defined]
            **_QUIET,
            **options,
        )

    @property
    def idle(self) -> int:
        """Connections nobody is using."""
        return len(self._idle)

    @property
    def alive(self) -> int:
        """Connections in use or idle."""
        return len(self._live)

    def borrow(self, deadline: Deadline) -> Any:
        """Return a connection for one exchange, connected or not.

        Raises:
            RedisPoolExhaustedError: None came free in four fifths of what is left of *deadline*.
        """
        connection = None
        if not self._waiters:
            connection = self._take_idle()
        if connection is None:
            connection = self._grow() if not self._waiters else None
        if connection is None:
            connection = self._wait(Deadline(max(deadline.remaining() * _WAIT_SHARE, 1e-6)))
        connection.due = deadline.at
        return connection

    def give_back(self, connection: Any) -> None:
        """Take *connection* back after an exchange that was read whole."""
        if connection.epoch != self._epoch or connection.ticket not in self._live:
            self.discard(connection)
            return
        connection.due = math.inf
        self._hand_on(connection)

    def discard(self, connection: Any) -> None:
        """Close *connection*, whatever state it is in, and free its place."""
        self._live.discard(connection.ticket)
        connection.disconnect()
        waiter = self._first_waiter()
        if waiter is not None:
            waiter.ring()

    def drop(self) -> None:
        """Close the idle connections now, and those in use when they come back."""
        self._epoch += 1
        while (connection := self._take_idle()) is not None:
            self.discard(connection)

    def abandon(self) -> None:
        """In a forked child: let go of the parent's sockets without a word to the server."""
        for ticket in tuple(self._live):
            connection = ticket()
            if connection is not None:
                connection.disconnect()  # redis-py closes, and shuts down only what it opened

    def _take_idle(self) -> Any:
        try:
            return self._idle.pop()  # the one used last: warm, and the others may time out in peace
        except IndexError:
            return None

    def _grow(self) -> Any:
        with self._grow_lock:
            if len(self._live) >= self.max_connections and not self._forget_lost():
                return None
            connection = self.connection_class(**self.connection_kwargs)
            connection.epoch = self._epoch
            # The set drops the reference itself, in C, when the connection is no more.
            connection.ticket = weakref.ref(connection, self._live.discard)
            self._live.add(connection.ticket)
            return connection

    def _forget_lost(self) -> bool:
        # An interrupted thread's traceback can keep its connection alive for as long as somebody
        # keeps the traceback. No call outlives its deadline, so such a one is known by its age.
        now = time.monotonic()
        for ticket in tuple(self._live):
            connection = ticket()
            if connection is not None and connection.due + _LOST_AFTER_S < now:
                self._live.discard(ticket)
        return len(self._live) < self.max_connections

    def _hand_on(self, connection: Any) -> None:
        while True:
            try:
                waiter = self._waiters.popleft()()
            except IndexError:
                break
            if waiter is not None and waiter.offer(connection):
                return
        self._idle.append(connection)
        if self._waiters:  # one came between the two lines above
            late = self._take_idle()
            if late is not None:
                self._hand_on(late)

    def _first_waiter(self) -> _Waiter | None:
        while True:
            try:
                waiter = self._waiters[0]()
            except IndexError:
                return None
            if waiter is not None:
                return waiter
            try:
                self._waiters.popleft()  # a ghost; at worst a live one, which looks again by itself
            except IndexError:
                return None

    def _wait(self, deadline: Deadline) -> Any:
        waiter = _Waiter()
        place = weakref.ref(waiter)
        self._waiters.append(place)
        try:
            while True:
                connection = waiter.take()
                if connection is None and self._first_waiter() in (waiter, None):
                    connection = self._take_idle() or self._grow()
                if connection is not None:
                    return connection
                if deadline.expired:
                    raise RedisPoolExhaustedError(
                        "max_connections: all are in use; more of them, or fewer threads"
                    )
                waiter.wait(min(deadline.remaining(), _LOOK_AGAIN_S))
        finally:
            unused = waiter.leave()
            with contextlib.suppress(ValueError, IndexError):  # taken out by whoever served it
                self._waiters.remove(place)
            if unused is not None:
                self._hand_on(unused)
