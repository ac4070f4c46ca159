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

from jmcache.connection._translate import is_foreign
from jmcache.deadline import Deadline
from jmcache.errors import RedisTimeoutError

Address = tuple[Any, ...] | str


class DeadlineSocket:
    """A stream socket that can be connected again. Used by one thread at a time."""

    __slots__ = ("_deadline", "_poll", "_sock")

    def __init__(self) -> None:
        # The C type: Python's own socket class has a constructor in which a signal handler's
        # exception can leave an open one behind, in a traceback that somebody keeps.
        self._sock: Any = None
        self._poll = select.poll()
        self._deadline = Deadline.over()

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
        self._sock = context.wrap_socket(
            self._sock, server_hostname=host, do_handshake_on_connect=False
        )
        while True:
            try:
                self._sock.do_handshake()
            except ssl.SSLWantReadError:
                self._await(select.POLLIN)
            except ssl.SSLWantWriteError:
                self._await(select.POLLOUT)
            else:
                return

    def ready(self) -> bool:
        """True when it is connected and there is nothing to read, not even its end."""
        return self._sock is not None and not self._poll.poll(0)

    def recv(self, size: int) -> bytes:
        """Wait for at least one byte and return at most *size*; b"" is the end of the stream.

        Args:
            size: Not below a TLS record's 16 KiB, or TLS would keep bytes that poll cannot see.
        """
        while True:
            self._await(select.POLLIN)
            try:
                data: bytes = self._sock.recv(size)
                return data
            except (BlockingIOError, ssl.SSLWantReadError):
                continue
            except ssl.SSLWantWriteError:
                self._await(select.POLLOUT)

    def fileno(self) -> int:
        """Return its descriptor; it is connected."""
        number: int = self._sock.fileno()
        return number

    def send_some(self, data: memoryview) -> memoryview:
        """Hand over what the system takes without a wait; return the rest."""
        while data:
            try:
                data = data[self._sock.send(data) :]
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                break
        return data

    def sendall(self, data: bytes) -> None:
        """Hand all of *data* to the system."""
        rest: bytes | memoryview = data
        while True:
            waits_for = select.POLLOUT
            try:
                sent = self._sock.send(rest)
                if sent == len(rest):
                    return
                rest = memoryview(rest)[sent:]
            except ssl.SSLWantReadError:
                waits_for = select.POLLIN
            except (BlockingIOError, ssl.SSLWantWriteError):
                pass
            self._await(waits_for)

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
        self._sock = None

    def _await(self, event: int) -> None:
        poll = self._poll
        if event != select.POLLIN:
            poll = select.poll()
            poll.register(self._sock.fileno(), event)
        left_s = self._deadline.remaining()
        # poll rounds up to whole milliseconds: when it comes back empty, the deadline is over.
        if left_s <= 0.0 or not poll.poll(left_s * 1000):
            raise RedisTimeoutError("no answer within the deadline")
