"""Just enough of the Redis protocol to command a server of our own, on a plain socket.

The tests' second opinion: it shares no code with what they test.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from collections.abc import Sequence
from typing import TypeAlias

Reply: TypeAlias = "str | bytes | int | list[Reply] | None"
"""What a server answers: status as str, data as bytes, numbers, lists of these, or None."""


class ReplyError(Exception):
    """The server answered with an error; the message is the server's."""


class Link:
    """One connection. Not thread-safe; of no use after any exception but ReplyError."""

    def __init__(
        self,
        address: str | tuple[str, int],
        timeout_s: float,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Connect to a socket path or a (host, port); *timeout_s* bounds each wait."""
        self._socket: socket.socket
        if isinstance(address, str):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        else:
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(timeout_s)
            self._socket.connect(address)
            if tls is not None:
                self._socket = tls.wrap_socket(self._socket)
        except BaseException:
            self._socket.close()
            raise
        self._replies = self._socket.makefile("rb")

    @property
    def stale(self) -> bool:
        """True when there is something to read before anything was asked: an end, usually."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    def ask(self, *args: str | bytes | float) -> Reply:
        """Send one command and return its reply.

        Raises:
            ReplyError: The server said no.
            OSError: It did not answer in time, or is gone.
        """
        self.send(*args)
        return self._read()

    def ask_all(self, commands: Sequence[Sequence[str | bytes | float]]) -> list[Reply]:
        """Send *commands* together and return their replies. Raises the first error among them."""
        for command in commands:
            self.send(*command)
        replies: list[Reply] = []
        refusal: ReplyError | None = None
        for _ in commands:
            try:
                replies.append(self._read())
            except ReplyError as error:
                refusal = refusal or error
        if refusal is not None:
            raise refusal
        return replies

    def send(self, *args: str | bytes | float) -> None:
        """Send one command whose reply nobody will read."""
        words = [arg if isinstance(arg, bytes) else str(arg).encode() for arg in args]
        head = b"*%d\r\n" % len(words)
        self._socket.sendall(head + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in words))

    def answers_within(self, seconds: float) -> bool:
        """Ask PING; of no more use after a False."""
        self.send("PING")
        self._socket.settimeout(seconds)
        try:
            return self._read() == "PONG"
        except TimeoutError:
            return False

    def close(self) -> None:
        """Close it. Never raises."""
        with contextlib.suppress(OSError):
            self._replies.close()
            self._socket.close()

    def _read(self) -> Reply:
        line = self._replies.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the server closed the connection")
        kind, rest = line[:1], line[1:-2]
        match kind:
            case b"+":
                return rest.decode()
            case b"-":
                raise ReplyError(rest.decode())
            case b":":
                return int(rest)
            case b"$":
                size = int(rest)
                if size < 0:
                    return None
                data = self._replies.read(size + 2)
                if len(data) != size + 2:
                    raise ConnectionError("the server closed the connection")
                return data[:-2]
            case b"*":
                count = int(rest)
                return None if count < 0 else [self._read() for _ in range(count)]
        raise ConnectionError(f"not a reply: {line[:40]!r}")
