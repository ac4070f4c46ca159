"""What a Redis server's CPU spends on what jmcache asks, measured here on a server of our own."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from statistics import median
from typing import NamedTuple

from jmcache.testing import PrivateServer

_SMALL, _USUAL, _LARGE = 200, 5_000, 50_000  # bytes of a value
_TOGETHER = 32  # keys in one round trip
_CONNECTIONS = 16  # that ask in turn: under load a server finds several of them ready
_LISTENERS = 64
_PREFIXES = 1_000
_ROUNDS = 7


class Costs(NamedTuple):
    """Seconds of the server's one thread.

    Attributes:
        trip: Of a round trip, the namespace's counter with it.
        key: Of each GET in it.
        byte: Of each byte of the values.
        write: Of a SET of 5 KB.
        ping: Of a listener's PING.
        touch: Of a SET of a canary.
        told: Of telling one listener that one name has changed.
        prefix: Of looking, at any change, whether it is one that a listener's prefix is for; each
            listener has one more, for canaries.
    """

    trip: float
    key: float
    byte: float
    write: float
    ping: float
    touch: float
    told: float
    prefix: float

    def read(self, keys: float, value_bytes: float) -> float:
        """Of a round trip for *keys* whose values have *value_bytes* together."""
        return self.trip + self.key * keys + self.byte * value_bytes


def measure(trips: int, done: Callable[[float], object]) -> Costs:
    """Return the costs, each as the mean of *trips* round trips.

    Args:
        done: Told now and then which share of the work is done.
    """
    with PrivateServer(tcp=True) as server, ExitStack() as stack:
        clients = [stack.enter_context(_Client(server.port)) for _ in range(_CONNECTIONS)]
        clock = stack.enter_context(_Client(server.port))

        def cpu_s(asked: bytes, replies: int) -> float:
            return _cpu_s(clock, clients, asked, replies, trips)

        for size in (_SMALL, _USUAL, _LARGE):
            clock.ask(_command(b"SET", b"v%d" % size, bytes(size)))
        small, usual, large = [cpu_s(_get(size, 1), 2) for size in (_SMALL, _USUAL, _LARGE)]
        done(0.4)
        together = cpu_s(_get(_USUAL, _TOGETHER), _TOGETHER + 1)
        done(0.7)
        byte = (large - small) / (_LARGE - _SMALL)
        with_bytes = (together - usual) / (_TOGETHER - 1)
        write = cpu_s(_command(b"SET", b"w", bytes(_USUAL)), 1)
        ping = cpu_s(_command(b"PING"), 1)
        done(0.8)
        asked = _command(b"SET", b"w", b"1")
        touch = cpu_s(asked, 1)
        few = clients[:1], asked, 1, trips // 10
        alone = _cpu_s(clock, *few)
        listeners = [stack.enter_context(_Client(server.port)) for _ in range(_LISTENERS)]
        for listener in listeners:
            listener.track(b"w")
        told = _cpu_s(clock, *few, told=listeners) - alone
        for listener in listeners:
            listener.ask(_command(b"CLIENT", b"TRACKING", b"OFF"))
        listeners[0].track(*[b"%d:" % number for number in range(_PREFIXES)])
        prefix = _cpu_s(clock, *few) - alone
        done(1.0)
    return Costs(
        trip=usual - with_bytes,
        key=with_bytes - byte * _USUAL,
        byte=byte,
        write=write,
        ping=ping,
        touch=touch,
        told=told / _LISTENERS,
        prefix=prefix / _PREFIXES,
    )


class _Client:
    """One connection that speaks just enough."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> _Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def send(self, asked: bytes) -> None:
        self._socket.sendall(asked)

    def ask(self, asked: bytes) -> bytes:
        self.send(asked)
        return self.read()

    def track(self, *prefixes: bytes) -> None:
        """Be told of all names with these."""
        self.ask(_command(b"HELLO", b"3"))
        named = [word for prefix in prefixes for word in (b"PREFIX", prefix)]
        self.ask(_command(b"CLIENT", b"TRACKING", b"ON", b"BCAST", *named))

    def read(self) -> bytes:
        """Return the first line of a reply, or all of a text; pushes are replies, too."""
        head = self._file.readline()
        if head[:1] in (b"$", b"=") and head != b"$-1\r\n":
            return self._file.read(int(head[1:]) + 2)
        if head[:1] in (b"*", b">", b"%"):
            for _ in range(int(head[1:]) * (2 if head[:1] == b"%" else 1)):
                self.read()
        if head[:1] == b"-":
            raise RuntimeError(head.decode())
        return head


def _cpu_s(
    clock: _Client,
    clients: Sequence[_Client],
    asked: bytes,
    replies: int,
    trips: int,
    told: Sequence[_Client] = (),
) -> float:
    """Return what the server spends on each round trip of *asked*: a median of rounds."""
    turns = max(1, trips // len(clients) // _ROUNDS)
    took = []
    for _ in range(_ROUNDS):
        began = _used_s(clock)
        for _ in range(turns):
            for client in clients:
                client.send(asked)
            for client in clients:
                for _ in range(replies):
                    client.read()
            for listener in told:
                listener.read()
        took.append((_used_s(clock) - began) / (turns * len(clients)))
    return median(took)


def _used_s(clock: _Client) -> float:
    """Return the CPU time of the server up to now, as it says itself."""
    lines = clock.ask(_command(b"INFO", b"cpu")).decode().split()
    used = dict([line.split(":") for line in lines if ":" in line])
    return float(used["used_cpu_sys"]) + float(used["used_cpu_user"])


def _get(size: int, keys: int) -> bytes:
    return _command(b"GET", b"v%d" % size) * keys + _command(b"GET", b"counter#")


def _command(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join([b"$%d\r\n%b\r\n" % (len(w), w) for w in words])
