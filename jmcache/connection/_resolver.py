"""A host name to addresses, within a deadline."""

from __future__ import annotations

import socket
from typing import Any, NamedTuple

from jmcache.connection._look_up import LookUp
from jmcache.deadline import Deadline
from jmcache.errors import RedisConnectionError, RedisError

_NO_ADDRESS = ("illegal IP address string passed to inet_pton",)


class Address(NamedTuple):
    """Where a server is."""

    family: int  # socket.AF_INET or AF_INET6
    place: tuple[Any, ...]  # as its sockets want it
    host: str  # what a certificate has to name


Found = list[Address]


class Resolver(LookUp[Found]):
    """Looks up one host for connections."""

    def __init__(self, host: str, port: int) -> None:
        """Look nothing up yet. A host that is an address already never will be."""
        super().__init__()
        self._host = host
        self._port = port
        self._literal = literal(host, port)

    def get(self, deadline: Deadline) -> Found:
        """Return the addresses of the host, at least one.

        Raises:
            RedisConnectionError: The name is unknown, or its look-up did not end in time;
                reason "dns".
        """
        return self._literal or super().get(deadline)

    def _ask(self) -> Found:
        return look_up(self._host, self._port)

    def _vain(self, why: str) -> RedisError:
        return _not_found(why)


def look_up(host: str, port: int) -> Found:
    """Return the addresses of *host*, at least one; waits as long as the system does.

    Raises:
        RedisConnectionError: The name is unknown; reason "dns".
    """
    try:
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise _not_found(type(error).__name__) from error
    return [Address(family, place, host) for family, _, _, _, place in answers]


def literal(host: str, port: int) -> Found:
    """Return the address that *host* is already, nothing for a name."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError as error:
            if error.args != _NO_ADDRESS:
                raise  # a signal handler's: it may be an OSError too, and inet_pton's has no number
            continue
        return [Address(family, (host, port), host)]
    return []


def _not_found(problem: str) -> RedisError:
    return RedisConnectionError(f"host: its name could not be looked up: {problem}", reason="dns")
