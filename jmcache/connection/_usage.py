"""How many connections there are, how often one was out of step, how long one was waited for."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PoolUsage:
    """Connections of this process to one Redis; to a cluster, those to all its nodes.

    Attributes:
        surplus: How often one was found with a reply that nobody had asked for, and was closed:
            something on the way to Redis repeats or delays what passes.
    """

    in_use: int
    idle: int
    limit: int
    surplus: int = 0


class Tally:
    """A number that any thread may count up."""

    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()

    def add(self) -> None:
        with self._lock:
            self.count += 1


class _Waited(threading.local):
    """What each thread has waited for connections so far."""

    seconds = 0.0


waited = _Waited()


def waited_s() -> float:
    """Seconds that the calling thread has waited for a free connection so far, of any pool."""
    return waited.seconds
