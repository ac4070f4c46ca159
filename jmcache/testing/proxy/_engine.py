"""The proxy's one thread: every socket, and everything that has its time."""

from __future__ import annotations

import contextlib
import errno
import math
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from jmcache import fork
from jmcache.testing.proxy._connection import Connection
from jmcache.testing.proxy._faults import Effect, Fault, Trigger
from jmcache.testing.proxy._frames import Command

Address: TypeAlias = "str | tuple[str, int]"
"""The path of a Unix socket, or (host, port)."""

_ANSWER_WITHIN = 5.0  # seconds; the thread is never busy for long
_REMEMBERED = 1000  # commands
_LONGEST_WORD = 100  # bytes of a word that is remembered
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Engine:
    """Runs the connections on a thread of its own.

    Faults, connections and sockets belong to that thread; what others want of them is done there
    on their behalf. One thread, so that a reset is one: where another thread sits in a recv on
    the socket, closing it sends nothing.
    """

    def __init__(self, target: Address) -> None:
        """Lead to *target*; start nothing yet."""
        self.changed = threading.Condition()  # notified whenever something was seen
        self.connections_total = 0
        self.commands_total = 0
        self.triggered = 0
        self.commands: deque[list[bytes]] = deque(maxlen=_REMEMBERED)
        self.faults: tuple[Fault, ...] = ()
        self.port = 0
        self._family, self._address = _resolve(target)
        self._connections: set[Connection] = set()
        self._waiting: set[Connection] = set()  # have something to send
        self._noted: set[Connection] = set()  # have sent something into a black hole
        self._events: dict[socket.socket, int] = {}  # as registered
        self._orders: deque[Callable[[], None]] = deque()
        self._broken: BaseException | None = None
        self._stopping = False
        self._reserved: socket.socket | None = None
        self._listening: socket.socket | None = None
        self._thread: threading.Thread | None = None

    @property
    def connections(self) -> int:
        """How many clients are connected now."""
        return sum(connection.open for connection in tuple(self._connections))

    def start(self) -> None:
        """Listen, and start the thread."""
        self._selector = selectors.DefaultSelector()
        self._bell, self._ear = socket.socketpair()
        self._bell.setblocking(False)
        self._ear.setblocking(False)
        self._selector.register(self._ear, _READ, lambda _: self._listen_to_orders())
        self._reserve_port()
        self._listen()
        self._thread = threading.Thread(target=self._run, name="jmcache-proxy", daemon=True)
        self._thread.start()
        fork.renew_in_child(self._renew_in_child)

    def stop(self) -> None:
        """End the thread and close every socket."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._stopping = True
        self._ring()
        thread.join(_ANSWER_WITHIN)
        if thread.is_alive():
            raise RuntimeError("the proxy's thread does not end")
        if self._broken is not None:
            raise RuntimeError("the proxy broke down") from self._broken

    def order(self, work: Callable[[], None]) -> None:
        """Do *work* on the proxy's thread, and wait until it is done."""
        if threading.current_thread() is self._thread:
            work()
            return
        done = []

        def order() -> None:
            work()
            done.append(True)

        with self.changed:
            if self._broken is not None:
                raise RuntimeError("the proxy broke down") from self._broken
            if self._thread is None or not self._thread.is_alive():
                raise RuntimeError("the proxy is not running in this process")
            self._orders.append(order)
            self._ring()
            if not self.changed.wait_for(lambda: done or self._broken, _ANSWER_WITHIN):
                raise RuntimeError("the proxy's thread does not answer")
        if not done:
            raise RuntimeError("the proxy broke down") from self._broken

    def add(self, name: str, effect: Effect, on: Trigger, times: int | None) -> Fault:
        """Put a fault in place."""
        fault = Fault(name, effect, on, times, changed=self.changed, remove=self._ask_to_remove)
        self.order(partial(self._set_faults, fault))
        return fault

    def heal(self) -> None:
        """Remove every fault."""
        self.order(lambda: self._remove(*self.faults))

    def disconnect(self) -> None:
        """Reset every connection that is open."""
        self.order(self._reset_all)

    def _ask_to_remove(self, fault: Fault) -> None:
        if fault.active and self._thread is not None:
            self.order(partial(self._remove, fault))

    # What follows runs on the proxy's thread.

    def _remove(self, *faults: Fault) -> None:
        for fault in faults:
            fault.active = False
        self._set_faults()

    def _set_faults(self, *more: Fault) -> None:
        self.faults = tuple(fault for fault in (*self.faults, *more) if fault.active)
        self._noted.clear()
        if any(fault.effect.refuse for fault in self.faults):
            self._close(self._listening)
            self._listening = None
            self._reset_all()
        elif self._listening is None:
            self._listen()
        self._waiting |= self._connections

    def _reset_all(self) -> None:
        for connection in tuple(self._connections):
            connection.down.stop(reset=True)
            self._waiting.add(connection)

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._turn()
        except BaseException as error:  # noqa: BLE001 - raised where somebody waits for us
            self._broken = error
        finally:
            for sock in (*self._events, self._listening, self._reserved):
                self._close(sock)
            for connection in self._connections:
                self._close_both(connection)
            self._connections.clear()
            self._selector.close()
            self._bell.close()
            self._ear.close()
            with self.changed:
                self.changed.notify_all()

    def _turn(self) -> None:
        frozen = self._frozen()
        due = math.inf if frozen else min((c.due() for c in self._waiting), default=math.inf)
        timeout = None if due == math.inf else max(0.0, due - time.monotonic())
        for key, events in self._selector.select(timeout):
            key.data(events)
        if not self._frozen():
            for connection in tuple(self._waiting):
                connection.pump()
        for connection in tuple(self._waiting):
            self._settle(connection)
        with self.changed:
            self.changed.notify_all()

    def _settle(self, connection: Connection) -> None:
        """Close what is over, and wait for what can still happen."""
        frozen = self._frozen() is not None
        if connection.over:
            self._close_both(connection)
            self._connections.discard(connection)
            self._waiting.discard(connection)
            return
        down, up = connection.down, connection.up
        if down.reset:
            self._close(down.sock)
        else:
            reads = not connection.client_over and not up.full
            if frozen:
                reads = connection not in self._noted
            self._watch(down.sock, reads, down.blocked and not frozen, connection, client=True)
        reads = not connection.server_over and not down.full and not frozen
        self._watch(up.sock, reads, up.blocked and not frozen, connection, client=False)
        if connection.due() == math.inf:
            self._waiting.discard(connection)

    def _watch(
        self,
        sock: socket.socket,
        reads: bool,
        writes: bool,
        connection: Connection,
        *,
        client: bool,
    ) -> None:
        wanted = reads * _READ | writes * _WRITE
        known = self._events.get(sock, 0)
        if wanted == known:
            return
        if known:
            self._selector.unregister(sock)
            del self._events[sock]
        if wanted:
            ready = self._client_ready if client else self._server_ready
            self._selector.register(sock, wanted, partial(ready, connection))
            self._events[sock] = wanted

    def _client_ready(self, connection: Connection, events: int) -> None:
        self._waiting.add(connection)
        hole = self._frozen()
        if hole is not None:
            self._noted.add(connection)
            hole.triggered += 1
            self.triggered += 1
            return
        if events & _WRITE:
            connection.down.blocked = False
        if events & _READ:
            connection.read_client()

    def _server_ready(self, connection: Connection, events: int) -> None:
        self._waiting.add(connection)
        if self._frozen():
            return
        if events & _WRITE:
            connection.server_connected()
        if events & _READ:
            connection.read_server()

    def _frozen(self) -> Fault | None:
        return next((fault for fault in self.faults if fault.effect.blackhole), None)

    def _faults_for(self, command: Command | None) -> list[Fault]:
        if command is None:
            return [fault for fault in self.faults if fault.effect.line]
        self.commands_total += 1
        self.commands.append([word[:_LONGEST_WORD] for word in command.words])
        taken = [fault for fault in self.faults if fault.takes(command)]
        self.triggered += len(taken)
        return taken

    def _listen_to_orders(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._ear.recv(4096):
                pass
        while self._orders:
            self._orders.popleft()()

    def _accept(self) -> None:
        while self._listening is not None:
            try:
                client, _ = self._listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in (errno.ECONNABORTED, errno.EMFILE, errno.ENFILE):
                    raise
                return
            self.connections_total += 1
            self._connect(client)

    def _connect(self, client: socket.socket) -> None:
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server = socket.socket(self._family, socket.SOCK_STREAM)
        server.setblocking(False)
        if self._family != socket.AF_UNIX:
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        result = server.connect_ex(self._address)
        if result not in (0, errno.EINPROGRESS):  # nobody is there
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            server.close()
            return
        connection = Connection(client, server, connected=result == 0, faults_for=self._faults_for)
        self._connections.add(connection)
        self._waiting.add(connection)

    def _reserve_port(self) -> None:
        # Bound and never listening: connecting is refused while nobody else listens, and nobody
        # else can be given the number meanwhile.
        while True:
            self._reserved = _bound(0)
            self.port = self._reserved.getsockname()[1]
            if self.port != 6379:
                return
            self._reserved.close()

    def _listen(self) -> None:
        self._listening = _bound(self.port)
        self._listening.listen(1024)
        self._listening.setblocking(False)
        self._selector.register(self._listening, _READ, lambda _: self._accept())
        self._events[self._listening] = _READ

    def _close(self, sock: socket.socket | None) -> None:
        if sock is not None:
            if self._events.pop(sock, 0):
                self._selector.unregister(sock)
            sock.close()

    def _close_both(self, connection: Connection) -> None:
        self._close(connection.down.sock)
        self._close(connection.up.sock)

    def _ring(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            self._bell.send(b"!")

    def _renew_in_child(self) -> None:
        if self._thread is None:
            return
        self._thread = None
        self.changed = threading.Condition()
        self._selector.close()
        for sock in (self._bell, self._ear, self._listening, self._reserved):
            if sock is not None:
                sock.close()
        for connection in self._connections:
            connection.down.sock.close()
            connection.up.sock.close()
        self._connections.clear()
        self._events.clear()


def _resolve(target: Address) -> tuple[socket.AddressFamily, Address]:
    if isinstance(target, str):
        return socket.AF_UNIX, target
    family, _, _, _, address = socket.getaddrinfo(*target, type=socket.SOCK_STREAM)[0]
    return family, address  # type: ignore[return-value]  # (host, port, ...) for IPv6


def _bound(port: int) -> socket.socket:
    sock = socket.socket()
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("127.0.0.1", port))
    except BaseException:
        sock.close()
        raise
    return sock
