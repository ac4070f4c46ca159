"""A host name to addresses, within a deadline.

The operating system's look-up knows no timeout (10 to 28 s were measured for a name server that is
silent), so it runs on a thread of its own, one at a time, and the caller waits as long as its
deadline allows. When it is late, or fails, the addresses that it found last serve on.
"""

from __future__ import annotations

import _thread
import socket
import threading
from typing import Any

from jmcache.deadline import Deadline
from jmcache.errors import RedisConnectionError
from jmcache.fork import renew_in_child

Found = list[tuple[int, tuple[Any, ...]]]  # (address family, socket address)

_LOOK_AGAIN_S = 0.02  # an interrupted waiter may keep the gate shut; nobody waits longer for it
_SHARE_WITH_SPARE = 0.5  # of the deadline, when older addresses are at hand
_NO_ADDRESS = ("illegal IP address string passed to inet_pton",)


class _LookUp:
    """One look-up. The gate is shut until it has ended."""

    def __init__(self) -> None:
        self.gate = threading.Lock()
        self.gate.acquire()
        self.ended = False
        self.found: Found = []
        self.problem = "no answer in time"


class Resolver:
    """Looks up one host for connections. Thread-safe; a forked child starts with nothing known."""

    def __init__(self, host: str, port: int) -> None:
        """Look nothing up yet. A host that is an address already never will be."""
        self._host = host
        self._port = port
        self._literal = _literal(host, port)
        self._renew_in_child()
        renew_in_child(self._renew_in_child)

    def _renew_in_child(self) -> None:
        self._lock = threading.Lock()
        self._under_way: _LookUp | None = None  # guarded by _lock
        self._last_found: Found = []  # replaced as a whole

    def addresses(self, deadline: Deadline) -> Found:
        """Return the addresses of the host, at least one.

        Raises:
            RedisConnectionError: The name is unknown, or its look-up did not end in time;
                reason "dns".
        """
        if self._literal:
            return self._literal
        look_up = self._start()
        spare = self._last_found
        wait_s = deadline.remaining() * (_SHARE_WITH_SPARE if spare else 1.0)
        if wait_s > 0.0:
            _wait(look_up, Deadline(wait_s))
        found = look_up.found or spare
        if not found:
            raise RedisConnectionError(
                f"host: its name could not be looked up: {look_up.problem}", reason="dns"
            )
        return found

    def _start(self) -> _LookUp:
        with self._lock:
            if self._under_way is not None:
                return self._under_way
            look_up = _LookUp()
            try:
                # Not threading's Thread: to start one waits in a way that a signal handler's
                # exception leaves locked.
                _thread.start_new_thread(self._run, (look_up,))
            except RuntimeError as error:  # no thread is to be had
                look_up.problem = str(error)
                look_up.ended = True
            else:
                self._under_way = look_up  # its end waits for the lock
        return look_up

    def _run(self, look_up: _LookUp) -> None:
        try:
            answers = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            look_up.found = [(family, address) for family, _, _, _, address in answers]
        except (OSError, UnicodeError) as error:
            look_up.problem = type(error).__name__
        finally:
            with self._lock:
                if look_up.found:
                    self._last_found = look_up.found
                if self._under_way is look_up:
                    self._under_way = None
            look_up.ended = True
            look_up.gate.release()


def _literal(host: str, port: int) -> Found:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError as error:
            if error.args != _NO_ADDRESS:
                raise  # a signal handler's: it may be an OSError too, and inet_pton's has no number
            continue
        return [(family, (host, port))]
    return []


def _wait(look_up: _LookUp, deadline: Deadline) -> None:
    while not look_up.ended and not deadline.expired:
        if look_up.gate.acquire(timeout=min(_LOOK_AGAIN_S, deadline.remaining())):
            look_up.gate.release()
