"""Bytes on their way to one socket: in order, and not before their time."""

from __future__ import annotations

import math
import socket
import struct
from collections import deque
from dataclasses import dataclass

from jmcache.testing.proxy._faults import Fault, Pace

FULL = 4 * 1024 * 1024  # bytes under way, after which no more are taken in


@dataclass(slots=True)
class Item:
    """Some bytes, or an end.

    Attributes:
        arrived: When they came, on the monotonic clock.
        delays: Seconds that each fault holds them back, as long as it is in place.
        paces: How fast each fault lets them go.
        holds: Faults that keep them until they are removed.
        ending: "end" or "reset" of the stream, after the bytes.
    """

    data: memoryview
    arrived: float
    delays: tuple[tuple[Fault, float], ...] = ()
    paces: tuple[tuple[Fault, Pace], ...] = ()
    holds: tuple[Fault, ...] = ()
    ending: str | None = None

    def due(self) -> float:
        """The moment from which they may go."""
        if any(fault.active for fault in self.holds):
            return math.inf
        return self.arrived + sum(delay for fault, delay in self.delays if fault.active)

    def pace(self) -> Pace | None:
        """The slowest of those that are in place."""
        active = [pace for fault, pace in self.paces if fault.active]
        return max(active, key=lambda pace: pace.every_s / pace.size, default=None)


class Lane:
    """One direction of one connection. For the proxy's thread only."""

    def __init__(self, sock: socket.socket, *, connected: bool) -> None:
        """Lead to *sock*, which does not block."""
        self.sock = sock
        self.blocked = not connected  # the kernel takes nothing more at the moment
        self.over = False  # nothing more can be sent; what comes is thrown away
        self.reset = False  # and it ended with a reset, which closing the socket will send
        self._items: deque[Item] = deque()
        self._bytes = 0
        self._paced_until = 0.0

    @property
    def full(self) -> bool:
        """Too much is under way to take in more."""
        return self._bytes >= FULL

    def put(self, item: Item) -> None:
        """Send it when everything before it has gone and its time has come."""
        if not self.over:
            self._items.append(item)
            self._bytes += len(item.data)

    def due(self) -> float:
        """The moment from which there is something to send; infinity for none."""
        if self.blocked or self.over or not self._items:
            return math.inf
        head = self._items[0]
        return head.due() if head.pace() is None else max(head.due(), self._paced_until)

    def pump(self, now: float) -> None:
        """Send what is due, as far as the kernel takes it."""
        while self.due() <= now:
            item = self._items[0]
            if item.data and not self._send(item, now):
                return
            if not item.data:
                self._items.popleft()
                if item.ending is not None:
                    self.stop(reset=item.ending == "reset")

    def _send(self, item: Item, now: float) -> bool:
        pace = item.pace()
        try:
            sent = self.sock.send(item.data[: pace.size if pace else None])
        except BlockingIOError:
            self.blocked = True
            return False
        except OSError:  # the other side is gone
            self.stop(reset=True)
            return False
        item.data = item.data[sent:]
        self._bytes -= sent
        if pace is not None:
            self._paced_until = now + pace.every_s * sent / pace.size
        return True

    def stop(self, *, reset: bool) -> None:
        """End the stream after what was sent, or with a reset. Nothing the second time."""
        if self.over:
            return
        self.over = True
        self.reset = reset
        self._items.clear()
        self._bytes = 0
        try:
            if reset:
                # Closing it then sends RST, for no other thread sits in a recv on this socket.
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the other side was faster
