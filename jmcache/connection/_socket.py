"""A socket whose every wait is cut to what is left of a deadline.

A socket's own timeout starts anew with each recv, so a server that drips bytes outlives it (41 s
were measured with a timeout of 0.25 s). This one waits in poll only, which is told what is left.
No timeout of Python's own is set, so a plain TimeoutError can only be one that a signal handler of
the application raised, which is not ours to take for a slow server.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
from errno import EINPROGRESS
from typing import Any

from jmcache.connection._tls import TlsLayer
from jmcache.connection._translate import is_foreign
from jmcache.deadline import Deadline
from jmcache.errors import RedisTimeoutError

Address = tuple[Any, ...] | str

_READS_IN_A_TURN = 16  # of 64 KiB at most each: half a millisecond
_RECORD = 16 * 1024  # bytes; TLS's longest, and more than any flight of a handshake


class DeadlineSocket:
    """A stream socket that can be connected again. Used by one thread at a time."""

    __slots__ = ("_deadline", "_poll", "_sock", "_tls", "_turns")

    def __init__(self) -> None:
        # The C type: Python's own socket class has a constructor in which a signal handler's
        # exception can leave an open one behind, in a traceback that somebody keeps.
        self._sock: Any = None
        self._tls: TlsLayer | None = None
        self._poll = select.poll()
        self._deadline = Deadline.over()
        self._turns = 0

    def begin(self, deadline: Deadline) -> None:
        """From now on, wait no longer than *deadline*."""
        self._deadline = deadline

    def connect(self, family: int, address: Address, deadline: Deadline) -> None:
        """Connect, or raise the system's OSError or RedisTimeoutError. To be closed either way."""
        self.begin(deadline)
        self._sock = socket.SocketType(family, socket.SOCK_STREAM)
        self._sock.setblocking(False)
        if family != socket.AF_UNIX:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._poll = select.poll()
        self._poll.register(self._sock.fileno(), select.POLLIN)
        problem = self._sock.connect_ex(address)
        if problem == EINPROGRESS:
            self._await(select.POLLOUT)
            problem = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if problem:
            raise OSError(problem, os.strerror(problem))

    def secure(self, context: ssl.SSLContext, host: str) -> None:
        """Speak TLS from now on, with a server that *context* trusts to be *host*."""
        tls = TlsLayer(context, host)
        try:
            while not tls.shake_hands():
                self._send(tls.to_send())
                tls.received(self._receive(_RECORD))
        except ssl.SSLError:
            self._send_if_possible(tls.to_send())  # what we do not like about it
            raise
        self._send(tls.to_send())
        self._tls = tls

    def ready(self) -> bool:
        """True when it is connected and there is nothing to read, not even its end."""
        if self._sock is None or self._poll.poll(0):
            return False
        return self._tls is None or not self._tls.unread

    @property
    def holds_more(self) -> bool:
        """True when more came from the wire than was read, so that a poll would not tell of it."""
        return self._tls is not None and self._tls.unread

    def has_surplus(self) -> bool:
        """True when there is something to read that is not its end. TLS's own words are not."""
        if self._sock is None:
            return False
        if self._tls is not None:
            return self._tls.unread
        try:
            return bool(self._sock.recv(1, socket.MSG_PEEK))
        except OSError as error:  # nothing there, or a reset
            if is_foreign(error):
                raise
            return False

    def recv(self, size: int) -> bytes:
        """Wait for at least one byte and return at most *size*; b"" is the end of the stream."""
        tls = self._tls
        if tls is None:
            return self._receive(size)
        while (data := tls.read(size)) is None:
            self._send(tls.to_send())  # new keys, say
            tls.received(self._receive(size))
        return data

    def begin_turn(self) -> None:
        """Let `recv_now` read some more."""
        self._turns = _READS_IN_A_TURN

    def recv_now(self, size: int) -> bytes:
        """As `recv`, or BlockingIOError where that would wait, or came often since `begin_turn`."""
        tls = self._tls
        if tls is None:
            return self._receive_now(size)
        # What TLS holds is never left for the next turn: no poll would tell of it.
        while (text := tls.read(size)) is None:
            self._send(tls.to_send())
            tls.received(self._receive_now(size))
        return text

    def fileno(self) -> int:
        """Return its descriptor; it is connected."""
        number: int = self._sock.fileno()
        return number

    def sendall(self, data: bytes | memoryview) -> None:
        """Hand all of *data* to the system."""
        self._send(self.to_wire(data))

    def to_wire(self, data: bytes | memoryview) -> bytes | memoryview:
        """Return what to send for *data*, which is of use once, and next."""
        tls = self._tls
        if tls is None:
            return data
        while not tls.write(data):
            self._send(tls.to_send())
            tls.received(self._receive(_RECORD))
        return tls.to_send()

    def send_some(self, wire: memoryview) -> memoryview:
        """Hand over what the system takes of *wire* without a wait; return the rest."""
        while wire:
            try:
                wire = wire[self._sock.send(wire) :]
            except BlockingIOError:
                break
        return wire

    def close(self, *, shut_down: bool) -> None:
        """Close it. With *shut_down* also for the server and for processes that inherited it."""
        sock = self._sock
        if sock is None:
            return
        try:
            if shut_down:
                sock.shutdown(socket.SHUT_RDWR)
        except OSError as error:  # not connected any more
            if is_foreign(error):
                raise
        finally:
            sock.close()
        self._sock = self._tls = None

    def _receive(self, size: int) -> bytes:
        while True:
            self._await(select.POLLIN)
            try:
                data: bytes = self._sock.recv(size)
                return data
            except BlockingIOError:
                continue

    def _receive_now(self, size: int) -> bytes:
        if self._turns == 0:
            raise BlockingIOError("enough for one turn")
        self._turns -= 1
        data: bytes = self._sock.recv(size)
        return data

    def _send(self, data: bytes | memoryview) -> None:
        rest = data
        while rest:
            try:
                sent = self._sock.send(rest)
                if sent == len(rest):
                    return
                rest = memoryview(rest)[sent:]
            except BlockingIOError:
                pass
            self._await(select.POLLOUT)

    def _send_if_possible(self, data: bytes) -> None:
        try:
            self._sock.send(data)
        except OSError as error:
            if is_foreign(error):
                raise

    def _await(self, event: int) -> None:
        poll = self._poll
        if event != select.POLLIN:
            poll = select.poll()
            poll.register(self._sock.fileno(), event)
        left_s = self._deadline.remaining()
        # poll rounds up to whole milliseconds: when it comes back empty, the deadline is over.
        if left_s <= 0.0 or not poll.poll(left_s * 1000):
            raise RedisTimeoutError("no answer within the deadline")
