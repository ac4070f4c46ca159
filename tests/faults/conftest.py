"""What the rows of the fault matrix share: a server to break, and ports where there is none."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from jmcache.testing import FaultProxy, PrivateServer


@pytest.fixture
def server() -> Iterator[PrivateServer]:
    """A real server on a Unix socket, of this test alone."""
    with PrivateServer() as running:
        yield running


@pytest.fixture
def tcp() -> Iterator[PrivateServer]:
    """As server, on a port of 127.0.0.1."""
    with PrivateServer(tcp=True) as running:
        yield running


@pytest.fixture
def proxy(server: PrivateServer) -> Iterator[FaultProxy]:
    """The network to *server*; to be asked for before `observe`, which looks for what is left."""
    with FaultProxy(server) as running:
        yield running


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listening:
        yield listening.getsockname()[1]


@pytest.fixture
def swallowing_port() -> Iterator[int]:
    """A port whose queue is full: the system drops every further SYN."""
    with socket.socket() as listening, socket.socket() as filling:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        filling.connect(listening.getsockname())
        yield listening.getsockname()[1]


@pytest.fixture
def refusing_port() -> Iterator[int]:
    """A port where nobody listens, and nobody else can begin to."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]
