"""Host names to addresses, within a deadline.

The operating system's look-up knows no timeout (10 to 28 s were measured for a name server that is
silent), so it runs on a daemon thread of its own, at most one per name, and the caller waits as
long as its deadline allows. When it is late, the addresses that worked last serve on.
"""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass, field

from jmcache.deadline import Deadline
from jmcache.errors import RedisConnectionError
from jmcache.fork import renew_in_child

Address = tuple[socket.AddressFamily, tuple[str | int, ...]]

_LOOK_AGAIN_S = 0.02  # an interrupted waiter may keep the gate shut; nobody waits longer for it
_SHARE_WITH_SPARE = 0.5  # of the deadline, when older addresses are at hand


@dataclass(eq=False)
class _LookUp:
    """One look-up under way. The gate is shut until it has ended."""

    thread: threading.Thread | None = None
    gate: threading.Lock = field(default_factory=threading.Lock)
    ended: bool = False
    addresses: list[Address] = field(default_factory=list)
    problem: str = ""


class Resolver:
    """Looks names up for connections. Thread-safe; a forked child starts with none of its state."""

    def __init__(self) -> None:
        self._renew_in_child()
        renew_in_child(self._renew_in_child)

    def _renew_in_child(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[tuple[str, int], _LookUp] = {}  # guarded by _lock
        self._last_good: dict[tuple[str, int], list[Address]] = {}  # guarded by _lock

    def addresses(self, host: str, port: int, deadline: Deadline) -> list[Address]:
        """Return at least one address of *host*.

        Raises:
            RedisConnectionError: The name is unknown, or its look-up did not end in time;
                reason "dns".
        """
        for family in (socket.AF_INET, socket.AF_INET6):
            try:
                socket.inet_pton(family, host)
            except OSError:
                continue
            return [(family, (host, port))]

        look_up = self._start(host, port)
        with self._lock:
            spare = self._last_good.get((host, port))
        wait_s = deadline.remaining() * (_SHARE_WITH_SPARE if spare else 1.0)
        if wait_s > 0.0:
            self._wait(look_up, Deadline(wait_s))
        if look_up.addresses:
            return look_up.addresses
        if spare:
            return spare
        problem = look_up.problem or "no answer in time"
        raise RedisConnectionError(f"host: its name could not be looked up: {problem}", reason="dns")

    def _start(self, host: str, port: int) -> _LookUp:
        with self._lock:
            under_way = self._under_way.get((host, port))
            # One whose starter was interrupted before the start has no living thread: not joined.
            if under_way is not None and under_way.thread and under_way.thread.is_alive():
                return under_way
            look_up = _LookUp()
            look_up.gate.acquire()
            look_up.thread = threading.Thread(
                target=self._run, args=(look_up, host, port), name="jmcache-dns", daemon=True
            )
            self._under_way[host, port] = look_up
        try:
            look_up.thread.start()
        except RuntimeError as error:  # no thread to be had: rather no connection than a long wait
            look_up.problem = str(error)
            self._finish(look_up, host, port)
        return look_up

    @staticmethod
    def _wait(look_up: _LookUp, deadline: Deadline) -> None:
        while not look_up.ended and not deadline.expired:
            if look_up.gate.acquire(timeout=min(_LOOK_AGAIN_S, deadline.remaining())):
                look_up.gate.release()

    def _run(self, look_up: _LookUp, host: str, port: int) -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            look_up.addresses = [(family, address) for family, _, _, _, address in found]
        except (OSError, UnicodeError) as error:
            look_up.problem = type(error).__name__
        finally:
            self._finish(look_up, host, port)

    def _finish(self, look_up: _LookUp, host: str, port: int) -> None:
        with self._lock:
            if look_up.addresses:
                self._last_good[host, port] = look_up.addresses
            if self._under_way.get((host, port)) is look_up:
                del self._under_way[host, port]
        look_up.ended = True
        look_up.gate.release()
