"""A socket whose every wait is cut to what is left of a deadline.

A socket's own timeout starts anew with each recv, so a server that drips bytes outlives it (41 s
were measured with a timeout of 0.25 s). redis-py's parsers see a socket with the few methods they
call; the deadline and the number of bytes still welcome are set for each exchange.
"""

from __future__ import annotations

import select
import socket
import ssl

from jmcache.deadline import Deadline
from jmcache.errors import RedisCorruptEntryError

_TLS_CHUNK = 16 * 1024  # bytes; one TLS record, so that no single send outlives the deadline


class DeadlineSocket:
    """Wraps a connected socket. Used by one thread at a time, as a connection is."""

    __slots__ = ("_deadline", "_poll", "_room", "_sock", "_tls")

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._sock = sock
        self._tls = sock if isinstance(sock, ssl.SSLSocket) else None
        self._poll = select.poll()
        self._poll.register(sock.fileno(), select.POLLIN)
        self.begin(deadline, room=64 * 1024)

    def begin(self, deadline: Deadline, room: int) -> None:
        """Start an exchange: wait no longer than *deadline*, take no more than *room* bytes."""
        self._deadline = deadline
        self._room = room

    def readable(self) -> bool:
        """True when bytes, or the end of the stream, are waiting. Never blocks."""
        return bool(self._poll.poll(0)) or (self._tls is not None and self._tls.pending() > 0)

    def recv(self, size: int) -> bytes:
        self._cut_wait()
        data = self._sock.recv(size)
        self._count(len(data))
        return data

    def recv_into(self, buffer: bytearray) -> int:
        self._cut_wait()
        size = self._sock.recv_into(buffer)
        self._count(size)
        return size

    def sendall(self, data: bytes) -> None:
        if self._tls is None:
            self._cut_wait()
            self._sock.sendall(data)  # counts one timeout for all of it
            return
        view = memoryview(data)
        while view:
            self._cut_wait()
            view = view[self._sock.send(view[:_TLS_CHUNK]) :]

    def settimeout(self, _seconds: float | None) -> None:
        """Ignored: here the deadline rules, whatever redis-py would set."""

    def fileno(self) -> int:
        return self._sock.fileno()

    def shutdown(self, how: int) -> None:
        self._sock.shutdown(how)

    def close(self) -> None:
        self._sock.close()

    def _cut_wait(self) -> None:
        left = self._deadline.remaining()
        if left <= 0.0:
            raise TimeoutError("the deadline is over")
        self._sock.settimeout(left)

    def _count(self, size: int) -> None:
        self._room -= size
        if self._room < 0:
            raise RedisCorruptEntryError(
                "the reply is larger than any value of ours", reason="too_large"
            )
