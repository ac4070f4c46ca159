"""One connection, and one exchange over it: send, then read whole."""

from __future__ import annotations

import inspect
import math
import os
import socket
import ssl
import weakref
from typing import Any

import redis
from redis.connection import AbstractConnection, UnixDomainSocketConnection

from jmcache.connection._replies import Replies, Reply
from jmcache.connection._resolver import Resolver
from jmcache.connection._socket import Address, DeadlineSocket
from jmcache.connection._tls import Tls
from jmcache.connection._translate import is_foreign, translate
from jmcache.connection._wire import NUMBER, OK, VALUE, pack, values
from jmcache.deadline import Deadline
from jmcache.errors import (
    RedisMisconfiguredError,
    RedisProtocolError,
    RedisRejectedError,
    RedisTimeoutError,
)

_GREETING_ROOM = 0  # bytes of values in the replies to a greeting: there are none
_SHORTEST_SHARE_S = 0.001  # for one of several addresses

# redis-py looks its own version up on disk for each connection (380 us) unless told not to. The
# server is told who we are in our own greeting, at no extra round trip.
QUIET: dict[str, Any] = (
    {"driver_info": None}
    if "driver_info" in inspect.signature(AbstractConnection.__init__).parameters
    else {"lib_name": None, "lib_version": None}
)


class Exchanging:
    """What every connection of ours can do beyond redis-py's: one bounded exchange.

    Mixed into redis-py's connection classes, and into fakeredis's for tests.
    """

    epoch: object = None  # of the pool when it was made; None when it must not be used again
    due = math.inf  # monotonic seconds when the call that has it is over; inf while idle
    ticket: weakref.ref[Any] | None = None  # its entry in the pool's set of the living

    def exchange(
        self: Any, packed: bytes, asked: bytes, replies: int, deadline: Deadline, room: int
    ) -> list[Reply]:
        """Send *packed* and read *replies* replies, each of them the one *asked* for.

        Raises RedisError or whatever redis-py or the system raise; then the connection must not
        be used again. Error replies are returned.
        """
        if self._sock is not None and self._leftover():
            self.disconnect()
        if self._sock is None:
            self._open(deadline)
        self._begin(deadline, room)
        self._write(packed)
        return [self._read(asked) for _ in range(replies)]

    def greet(self: Any) -> None:
        """Log in, choose the database and name the client, in one round trip."""
        for command in self._send_greeting():
            reply = self._read(OK)
            if isinstance(reply, Exception):
                self._judge_greeting(command, reply)

    def _send_greeting(self: Any) -> list[str]:
        # Apart from the reading, so that no frame of a failed log-in holds the password.
        greeting = {"CLIENT": pack(b"CLIENT", b"SETINFO", b"LIB-NAME", b"jmcache")}
        if self.db:
            greeting = {"SELECT": pack(b"SELECT", b"%d" % self.db)} | greeting
        if self.password or self.username:
            user = (self.username.encode(),) if self.username else ()
            greeting = {"AUTH": pack(b"AUTH", *user, (self.password or "").encode())} | greeting
        self._write(b"".join(greeting.values()))
        return list(greeting)

    def _judge_greeting(self: Any, command: str, reply: Exception) -> None:
        error = translate(reply)
        if command == "CLIENT" and isinstance(error, (RedisRejectedError, RedisMisconfiguredError)):
            return  # an old server, or an ACL without it: the name is a courtesy
        if type(error) is RedisRejectedError:
            error = (
                RedisMisconfiguredError(
                    "password, username: Redis does not accept the credentials", reason="auth"
                )
                if command == "AUTH"
                else RedisMisconfiguredError(f"db: Redis has no database {self.db}", reason="db")
            )
        raise error from reply

    # How the bytes go: here through redis-py's public methods, so that any connection class will
    # do; straight through the socket in the classes below.

    def _leftover(self: Any) -> bool:
        return bool(self.can_read(0))

    def _open(self: Any, deadline: Deadline) -> None:  # noqa: ARG002 - theirs knows none
        self.connect()

    def _begin(self, deadline: Deadline, room: int) -> None:
        pass

    def _write(self: Any, packed: bytes) -> None:
        self.send_packed_command([packed], check_health=False)

    def _read(self: Any, asked: bytes) -> Reply:
        try:
            reply: Reply = self.read_response(disable_decoding=True)
        except redis.ResponseError as error:
            return error
        if not _is_reply_to(asked, reply):
            raise RedisProtocolError("the reply is none that was asked for")
        return reply


def greet(connection: Any) -> None:
    """What redis-py is to call when it has connected one of its own connection classes."""
    connection._parser.on_connect(connection)  # noqa: SLF001 - there is no other way to it
    connection.greet()


def _is_reply_to(asked: bytes, reply: Reply) -> bool:
    if asked == VALUE:
        return reply is None or type(reply) is bytes
    if asked == NUMBER:
        return type(reply) is int
    if isinstance(reply, list):
        return asked == values(len(reply)) and all(_is_reply_to(VALUE, one) for one in reply)
    return asked[:1] + reply == asked if type(reply) is bytes else False


class _Bounded(Exchanging):
    """The connection speaks through a :class:`DeadlineSocket`, from the first SYN on."""

    open_within_s = math.inf

    def disconnect(self: Any, *_args: Any, **_kwargs: Any) -> None:
        """Close the socket, without a word to the server in a forked child. Idempotent."""
        sock = self._sock
        if sock is not None:
            sock.close(shut_down=os.getpid() == self.pid)
            self._sock = None

    def _leftover(self: Any) -> bool:
        return self._replies.unread or bool(self._sock.readable())

    def _open(self: Any, deadline: Deadline) -> None:
        # Without redis-py's own retry loop around it, which multiplies every wait.
        left_s = min(deadline.remaining(), self.open_within_s)
        if left_s <= 0.0:
            raise RedisTimeoutError("no time was left to connect")
        self._dial(Deadline(left_s))
        self._replies = Replies(self._sock.recv)
        self._replies.begin(_GREETING_ROOM)
        self.greet()

    def _dial(self, deadline: Deadline) -> None:
        raise NotImplementedError

    def _connect_to(self: Any, family: int, address: Address, deadline: Deadline) -> DeadlineSocket:
        # Ours before it is connected, so that whoever closes this connection closes it too.
        sock = self._sock = DeadlineSocket(family, deadline)
        sock.connect(address)
        return sock

    def _begin(self: Any, deadline: Deadline, room: int) -> None:
        self._sock.begin(deadline)
        self._replies.begin(room)

    def _write(self: Any, packed: bytes) -> None:
        self._sock.sendall(packed)

    def _read(self: Any, asked: bytes) -> Reply:
        reply: Reply = self._replies.read(asked)
        return reply


class TcpConnection(_Bounded, redis.Connection):
    """TCP, plain or with TLS; every address of the name gets its share of the deadline."""

    def __init__(
        self, *, resolver: Resolver, tls: Tls | None, open_within_s: float, **options: Any
    ) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self._resolver = resolver
        self._tls = tls
        self.open_within_s = open_within_s

    def _dial(self, deadline: Deadline) -> None:
        addresses = self._resolver.addresses(deadline)
        for left in range(len(addresses), 0, -1):
            share = Deadline(max(deadline.remaining() / left, _SHORTEST_SHARE_S))
            try:
                sock = self._connect_to(*addresses[-left], share)
                if self._tls is not None:
                    self._secure(sock, self._tls)
            except (OSError, RedisTimeoutError) as error:
                if left == 1 or is_foreign(error):
                    raise
                self.disconnect()
            else:
                sock.begin(deadline)
                return

    def _secure(self, sock: DeadlineSocket, tls: Tls) -> None:
        try:
            sock.secure(tls.context(), self.host)
        except ssl.SSLError:
            tls.forget()
            raise


class UnixConnection(_Bounded, UnixDomainSocketConnection):
    """A Unix domain socket."""

    def __init__(self, *, open_within_s: float, **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self.open_within_s = open_within_s

    def _dial(self, deadline: Deadline) -> None:
        self._connect_to(socket.AF_UNIX, self.path, deadline)
