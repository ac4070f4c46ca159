"""A server that answers what a test tells it to: right, wrong, slowly, by half, or not at all."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from jmcache.settings import CacheSettings

GREETINGS = frozenset({b"AUTH", b"SELECT", b"CLIENT"})
RESET = object()  # as an answer: a TCP reset
END = object()  # as an answer: the end of the stream

Answer = Any  # bytes, RESET, END, or a function of the client


class Client:
    """One connection to the server, as its script sees it."""

    def __init__(self, server: ScriptedServer, sock: socket.socket, number: int) -> None:
        self.number = number  # from 0, in the order of connecting
        self.ended = threading.Event()  # the other side has closed it, or the script is done
        self._server = server
        self._sock = sock
        self._data = b""

    def command(self) -> list[bytes] | None:
        """The next command, or None when there will be none."""
        while True:
            words, rest = _parse(self._data)
            if words is not None:
                self._data = rest
                self._server.commands.append(words)
                return words
            try:
                data = self._sock.recv(65536)
            except OSError:
                return None
            if not data:
                return None
            self._data += data

    def send(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # the other side may have had enough
            self._sock.sendall(data)

    def drip(self, data: bytes, size: int = 1, every_s: float = 0.02) -> None:
        """Send *size* bytes at a time, until the other side closes or the test is over."""
        for start in range(0, len(data), size):
            if self._server.over.wait(every_s):
                return
            try:
                self._sock.sendall(data[start : start + size])
            except OSError:
                return

    def hold(self) -> None:
        """Say nothing until the other side closes or the test is over."""
        while self.command() is not None:
            pass

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        with contextlib.suppress(OSError):  # an answer to an earlier command has done it
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()

    def give(self, answer: Answer) -> None:
        if answer is RESET:
            self.reset()
        elif answer is END:
            self.end()
        elif callable(answer):
            answer(self)
        else:
            self.send(answer)


def _parse(data: bytes) -> tuple[list[bytes] | None, bytes]:
    if not data.startswith(b"*") or b"\r\n" not in data:
        return None, data
    head, rest = data.split(b"\r\n", 1)
    words = []
    for _ in range(int(head[1:])):
        if b"\r\n" not in rest:
            return None, data
        size, rest = rest.split(b"\r\n", 1)
        count = int(size[1:])
        if len(rest) < count + 2:
            return None, data
        words.append(rest[:count])
        rest = rest[count + 2 :]
    return words, rest


Script = Callable[[Client], None]


def answering(*answers: Answer, greeting: bytes = b"+OK\r\n") -> Script:
    """Give *answers* to the commands in their order over all connections, the last for ever."""
    left = list(answers)

    def script(client: Client) -> None:
        while (words := client.command()) is not None:
            if words[0] in GREETINGS:
                client.give(greeting)
            else:
                client.give(left.pop(0) if len(left) > 1 else left[0])

    return script


class ScriptedServer:
    """Runs *script* for each connection, on a thread of its own. A context manager."""

    def __init__(
        self,
        script: Script,
        *,
        unix_path: Path | None = None,
        tls: ssl.SSLContext | None = None,
        receive_buffer: int | None = None,
    ) -> None:
        self.commands: list[list[bytes]] = []
        self.clients: list[Client] = []
        self.over = threading.Event()
        self._script = script
        self._tls = tls
        self._socks: list[socket.socket] = []
        if unix_path is None:
            self._listening = socket.socket()
            if receive_buffer:
                self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            self._listening.bind(("127.0.0.1", 0))
        else:
            self._listening = socket.socket(socket.AF_UNIX)
            self._listening.bind(str(unix_path))
        self._listening.listen(64)
        self._unix_path = unix_path
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    @property
    def port(self) -> int:
        port: int = self._listening.getsockname()[1]
        return port

    def settings(self, **overrides: Any) -> CacheSettings:
        if self._unix_path is not None:
            return CacheSettings(unix_socket_path=str(self._unix_path), **overrides)
        return CacheSettings(**{"port": self.port, **overrides})

    def asked(self) -> list[list[bytes]]:
        """The commands that came, without those of the greeting."""
        return [words for words in self.commands if words[0] not in GREETINGS]

    def __enter__(self) -> ScriptedServer:
        self._threads[0].start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it. The second time nothing happens."""
        self.over.set()
        for sock in [self._listening, *self._socks]:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(timeout=5)

    def _accept(self) -> None:
        while not self.over.is_set():
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            if self._unix_path is None:  # each send a segment, at once
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._socks.append(sock)
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        if self._tls is not None:
            try:
                sock = self._tls.wrap_socket(sock, server_side=True)
            except OSError:
                sock.close()
                return
            self._socks.append(sock)
        client = Client(self, sock, len(self.clients))
        self.clients.append(client)
        try:
            self._script(client)
        finally:
            with contextlib.suppress(OSError):
                sock.close()
            client.ended.set()
