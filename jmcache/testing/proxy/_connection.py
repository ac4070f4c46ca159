"""One client's connection, led on to the server: commands up, replies down, faults in between."""

from __future__ import annotations

import random
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from jmcache.testing.proxy._faults import Fault
from jmcache.testing.proxy._frames import (
    Command,
    CommandCutter,
    NotACommandError,
    Piece,
    ReplyCutter,
)
from jmcache.testing.proxy._lane import Item, Lane

_READ_SIZE = 64 * 1024  # bytes


@dataclass(slots=True)
class _Exchange:
    """A command on its way, and what is to go wrong with its reply."""

    faults: list[Fault]
    sent: int = 0  # bytes of the reply
    whole: bytearray = field(default_factory=bytearray)


class Connection:
    """For the proxy's thread only. The sockets do not block, and are the engine's to close."""

    def __init__(
        self,
        client: socket.socket,
        server: socket.socket,
        *,
        connected: bool,
        faults_for: Callable[[Command | None], list[Fault]],
    ) -> None:
        """Lead *client* to *server*.

        Args:
            connected: *server* is; else it is being connected.
            faults_for: What goes wrong with a command, or with bytes that belong to none.
        """
        self.down = Lane(client, connected=True)
        self.up = Lane(server, connected=connected)
        self.client_over = False  # the client sends nothing more
        self.server_over = False  # the server sends nothing more
        self._faults_for = faults_for
        self._commands = CommandCutter()
        self._replies = ReplyCutter()
        self._opaque = False  # no Redis protocol: bytes that only pass
        self._asked: deque[_Exchange] = deque()
        self._late: list[Item] = []  # to be sent after the next command has come

    @property
    def open(self) -> bool:
        """The client has it, as far as we can see."""
        return not self.client_over and not self.down.reset

    @property
    def over(self) -> bool:
        """Nothing more will come of it."""
        return self.server_over and self.down.over and not self.open

    def due(self) -> float:
        """The moment from which `pump` has something to do."""
        return min(self.up.due(), self.down.due())

    def pump(self) -> None:
        """Send what is due, either way."""
        now = time.monotonic()
        self.up.pump(now)
        self.down.pump(now)
        if self.down.reset and not self.client_over:
            self._end_client(now)

    def read_client(self) -> None:
        """Take what the client sent."""
        now = time.monotonic()
        try:
            data = self.down.sock.recv(_READ_SIZE)
        except BlockingIOError:
            return
        except OSError:  # a reset: it will not read either
            self.down.stop(reset=True)
            data = b""
        if not data:
            self._end_client(now)
        elif self._opaque:
            self._pass_up(data, now)
        else:
            try:
                for command in self._commands.feed(data):
                    self._ask(command, now)
            except NotACommandError:
                self._opaque = True
                self._pass_up(self._commands.rest, now)

    def read_server(self) -> None:
        """Take what the server sent."""
        now = time.monotonic()
        try:
            data = self.up.sock.recv(_READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            self._end_server(now, "reset")
            return
        if not data:
            self._end_server(now, "end")
        elif self._opaque:
            self.down.put(_reply(data, now, self._faults_for(None)))
        else:
            for piece in self._replies.feed(data):
                if piece.pushed or not self._asked:
                    self.down.put(_reply(piece.data, now, self._faults_for(None)))
                    continue
                self._answer(self._asked[0], piece, now)
                if piece.ends:
                    self._asked.popleft()

    def server_connected(self) -> None:
        """The kernel has an answer from the server: it is there, or nobody is."""
        if self.up.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._end_server(time.monotonic(), "reset")
        self.up.blocked = False

    def _end_client(self, now: float) -> None:
        # Behind what it sent: the server is still to get that, as it would over a network.
        self.client_over = True
        self.up.put(Item(memoryview(b""), now, ending="end"))

    def _end_server(self, now: float, ending: str) -> None:
        self.server_over = True
        self.up.stop(reset=True)
        self.down.put(Item(memoryview(b""), now, ending=ending))

    def _pass_up(self, data: bytes, now: float) -> None:
        self.up.put(_request(data, now, self._faults_for(None)))

    def _ask(self, command: Command, now: float) -> None:
        faults = self._faults_for(command)
        for item in self._late:
            self.down.put(item)
        self._late.clear()
        if any(fault.effect.command_lost for fault in faults):
            return
        self._asked.append(_Exchange(faults))
        self.up.put(_request(command.raw, now, faults))

    def _answer(self, exchange: _Exchange, piece: Piece, now: float) -> None:
        faults = [fault for fault in exchange.faults if fault.active]
        data = piece.data
        effects = [fault.effect for fault in faults]
        if any(effect.twice for effect in effects):
            exchange.whole += data
        for effect in effects:
            if effect.answer is not None:
                data = effect.answer if piece.ends else b""
        for effect in effects if piece.ends else ():
            extra = bytes(exchange.whole) if effect.twice else effect.extra
            if extra is not None and effect.late:
                self._late.append(Item(memoryview(extra), now))
            elif extra is not None:
                data += extra  # in one send: it is there as soon as the reply is
        self._cut(exchange, data, piece.ends, now, faults)

    def _cut(
        self, exchange: _Exchange, data: bytes, ends: bool, now: float, faults: list[Fault]
    ) -> None:
        for fault in faults:
            after, then = fault.effect.cut_after, fault.effect.then
            if after is None:
                continue
            room = max(0, after - exchange.sent)
            exchange.sent += len(data)
            kept, rest = data[:room], data[room:]
            if then == "hold":
                self.down.put(_reply(kept, now, faults))
                held = _reply(rest, now, faults)
                held.holds = (fault,)
                self.down.put(held)
            else:
                item = _reply(kept, now, faults)
                item.ending = then if rest or ends else None
                self.down.put(item)
            return
        self.down.put(_reply(data, now, faults))


def _request(data: bytes, now: float, faults: list[Fault]) -> Item:
    return Item(
        memoryview(data),
        now,
        delays=tuple((f, f.effect.command_delay_s) for f in faults if f.effect.command_delay_s),
        paces=tuple((f, f.effect.command_pace) for f in faults if f.effect.command_pace),
    )


def _reply(data: bytes, now: float, faults: list[Fault]) -> Item:
    return Item(
        memoryview(data),
        now,
        delays=tuple(
            (f, f.effect.delay_s + random.uniform(0.0, f.effect.jitter_s))
            for f in faults
            if f.effect.delay_s or f.effect.jitter_s
        ),
        paces=tuple((f, f.effect.pace) for f in faults if f.effect.pace),
    )
