"""One connection, and one exchange over it: send, then read whole."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Sequence
from typing import Any

from jmcache.connection._credentials import Credentials, Pair
from jmcache.connection._look_up import LookUp
from jmcache.connection._replies import Replies, Reply
from jmcache.connection._resolver import Found
from jmcache.connection._socket import DeadlineSocket
from jmcache.connection._tls import Tls
from jmcache.connection._translate import is_foreign, translate
from jmcache.connection._usage import Tally
from jmcache.connection._wire import OK, pack, pack_auth
from jmcache.deadline import Deadline
from jmcache.errors import RedisMisconfiguredError, RedisRejectedError, RedisTimeoutError

_GREETING_ROOM = 0  # bytes of values in the replies to a greeting: there are none
_SHORTEST_SHARE_S = 0.001  # for one of several addresses


class Connection:
    """Speaks through a :class:`DeadlineSocket`, from the first SYN on. For one thread at a time.

    None of redis-py's connection classes: their constructor takes 100 us, and both it and their
    destructor can swallow what a signal handler raises there.
    """

    def __init__(
        self,
        *,
        db: int,
        credentials: Credentials,
        open_within_s: float,
        surplus: Tally,
        **_of_redis_py: Any,  # its pool has some arguments of its own for each connection
    ) -> None:
        self._db = db
        self._credentials = credentials
        self._open_within_s = open_within_s
        self._surplus = surplus
        self._process = os.getpid()
        self.ticket: object = None  # the pool's
        self._sock = DeadlineSocket()
        self._replies = Replies(self._sock.recv)

    def exchange(
        self, packed: bytes, asked: Sequence[bytes], deadline: Deadline, room: int
    ) -> list[Reply]:
        """Send *packed* and read a reply for each of *asked*, which must be that.

        Connects first where that is needed. Error replies are returned. Raises RedisError, or
        what the system raises; then the connection must not be used again.

        Args:
            room: Bytes that the values in the replies may have together.
        """
        sock, answers = self._sock, self._replies
        if answers.unread or not sock.ready():
            self._open_anew(deadline)
        sock.begin(deadline)
        answers.begin(room)
        sock.sendall(packed)
        replies: list[Reply] = []
        answers.read_all(asked, replies)
        return replies

    # The same in steps, for whoever waits for several connections at a time.

    @property
    def ready(self) -> bool:
        """True when it can be sent to at once."""
        return not self._replies.unread and self._sock.ready()

    def begin(self, packed: bytes, room: int, deadline: Deadline) -> memoryview:
        """Connect where that is needed, for an exchange whose values have *room* bytes at most.

        Returns:
            What `send_some` is to be given for *packed*, first and whole.
        """
        if not self.ready:
            self._open_anew(deadline)
        self._sock.begin(deadline)
        self._replies.begin(room)
        return memoryview(self._sock.to_wire(packed))

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._sock.fileno()

    def send_some(self, wire: memoryview) -> memoryview:
        """Send what goes without a wait; return the rest."""
        return self._sock.send_some(wire)

    def receive(self, asked: bytes, deadline: Deadline) -> Reply:
        """Read one reply whole, as in `exchange`."""
        self._sock.begin(deadline)
        return self._replies.read(asked)

    # Not an exchange at all, for whoever listens.

    def open_stream(self, deadline: Deadline) -> DeadlineSocket:
        """Connect and log in; return the socket, on which anything may be said from now on."""
        self._open(deadline)
        return self._sock

    # The same for an event loop, which waits for many things at a time.

    def send_now(self, packed: bytes, room: int) -> bool:
        """Send *packed* whole without a wait; False when that is not possible: it is of no use."""
        sock = self._sock
        self._replies.begin(room, sock.recv_now)
        sock.begin(Deadline.over())
        return not sock.send_some(memoryview(sock.to_wire(packed)))

    def receive_now(self, asked: Sequence[bytes], replies: list[Reply]) -> bool:
        """Read into *replies* what is there; return whether that is a reply for each of *asked*.

        Of very much that is there, a part: it is to be called again as long as there is more.
        """
        self._sock.begin_turn()
        try:
            self._replies.read_all(asked, replies)
        except BlockingIOError:
            return False
        return True

    def disconnect(self) -> None:
        """Close it, without a word to the server in a forked child. Idempotent."""
        self._sock.close(shut_down=os.getpid() == self._process)

    def _open_anew(self, deadline: Deadline) -> None:
        if self._replies.unread or self._sock.has_surplus():
            self._surplus.add()  # whatever it has to say, nobody asked for it
        self.disconnect()
        self._open(deadline)

    def _open(self, deadline: Deadline) -> None:
        left_s = min(deadline.remaining(), self._open_within_s)
        if left_s <= 0.0:
            raise RedisTimeoutError("no time was left to connect")
        deadline = Deadline(left_s)
        self._dial(deadline)
        self._sock.begin(deadline)
        self._replies.begin(_GREETING_ROOM)
        pair = self._credentials.get(deadline)
        try:
            commands = self._send_greeting(pair)
        except OSError as error:
            if not is_foreign(error):
                self._hear_why()
            raise
        for command in commands:
            reply = self._replies.read(OK)
            if isinstance(reply, Exception):
                if command == "AUTH":
                    self._credentials.refused(pair)
                judge_greeting(command, reply, self._db)

    def _hear_why(self) -> None:
        """Raise what a server said that closed the connection before it heard anything.

        One without room for us does, and a Unix socket then takes nothing from us any more.
        """
        reply = self._replies.read(OK)
        if isinstance(reply, Exception):
            raise translate(reply) from reply

    def _dial(self, deadline: Deadline) -> None:
        """Connect the socket."""
        raise NotImplementedError

    def _send_greeting(self, pair: Pair) -> list[str]:
        # Views, see pack_auth: a failed log-in shows its frames.
        commands = greeting(self._db, *pair)
        self._sock.sendall(memoryview(b"".join(commands.values())))
        return list(commands)


class TcpConnection(Connection):
    """TCP, plain or with TLS; every address of the name gets its share of the deadline."""

    def __init__(
        self, *, host: str, port: int, resolver: LookUp[Found], tls: Tls | None, **options: Any
    ) -> None:
        super().__init__(**options)
        self._name = f"{host}:{port}"
        self._resolver = resolver
        self._tls = tls

    def __repr__(self) -> str:
        return f"<{'TLS' if self._tls else 'TCP'} connection to {self._name}>"

    def _dial(self, deadline: Deadline) -> None:
        addresses = self._resolver.get(deadline)
        for left in range(len(addresses), 0, -1):
            share_s = max(deadline.remaining() / left, _SHORTEST_SHARE_S)
            family, place, host = addresses[-left]
            try:
                self._sock.connect(family, place, Deadline(share_s))
                if self._tls is not None:
                    self._secure(self._tls, host)
            except (OSError, RedisTimeoutError) as error:
                if left == 1 or is_foreign(error):
                    raise
                self.disconnect()
            else:
                return

    def _secure(self, tls: Tls, host: str) -> None:
        try:
            self._sock.secure(tls.context(), host)
        except ssl.SSLError:
            tls.forget()
            raise


class UnixConnection(Connection):
    """A Unix domain socket."""

    def __init__(self, *, path: str, **options: Any) -> None:
        super().__init__(**options)
        self._path = path

    def __repr__(self) -> str:
        return f"<connection to {self._path}>"

    def _dial(self, deadline: Deadline) -> None:
        self._sock.connect(socket.AF_UNIX, self._path, deadline)


def greeting(db: int, username: str | None, password: str | None) -> dict[str, bytes | memoryview]:
    """Return what to send first, by command: log in, choose the database, name the client.

    All of it is sent at once, in one round trip; each reply is to be OK or judged.
    """
    commands: dict[str, bytes | memoryview] = {}
    if password or username:
        commands["AUTH"] = pack_auth(username, password or "")
    if db:
        commands["SELECT"] = pack(b"SELECT", b"%d" % db)
    return commands | {"CLIENT": pack(b"CLIENT", b"SETINFO", b"LIB-NAME", b"jmcache")}


def judge_greeting(command: str, refusal: Exception, db: int) -> None:
    """Raise what the *refusal* of a command of the greeting means, if it matters."""
    error = translate(refusal)
    if command == "CLIENT" and isinstance(error, (RedisRejectedError, RedisMisconfiguredError)):
        return  # an old server, or an ACL without it: the name is a courtesy
    if type(error) is RedisRejectedError or error.reason == "unknown_command":
        error = (
            RedisMisconfiguredError(
                "password, username: Redis does not accept the credentials", reason="auth"
            )
            if command == "AUTH"
            else RedisMisconfiguredError(f"db: Redis has no database {db}", reason="db")
        )
    raise error from refusal
