"""What a circuit breaker knows, as values."""

from __future__ import annotations

import enum
import math
import weakref
from dataclasses import dataclass
from typing import NamedTuple

from jmcache.circuit_breaker._window import Window


class CircuitState(enum.StrEnum):
    """Whom a circuit breaker lets through."""

    CLOSED = "closed"  # everyone
    OPEN = "open"  # nobody
    HALF_OPEN = "half_open"  # a probe


# Looking a member up in its class costs 3.11 as much as the rest of the decision.
CLOSED, OPEN, HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN


@dataclass(frozen=True, slots=True)
class Transition:
    """One change of state, told to listeners once.

    Attributes:
        name: The breaker's name.
        before: The state it left.
        after: The state it is in now.
        reason: One lower-case word. Into OPEN: the reason of the error that did it, or "slow".
            Into HALF_OPEN: "reset_timeout" when the time was over, "probe" when a health check
            came before that. Into CLOSED: "success", or the reason with which Redis said no.
        failures: Failures in a row up to now; into CLOSED, how many there had been.
        cause: Into OPEN: what was too much, for people, as "5 failures in a row", "16 failures in
            20 calls" or "14 slow calls in 20"; else "".
    """

    name: str
    before: CircuitState
    after: CircuitState
    reason: str
    failures: int
    cause: str = ""


class Permit:
    """Leave to be a probe, known by its identity.

    Only who was let through holds it, the breaker looks at it through a weak reference: what is
    lost with its thread or its frame is back by itself. Thread.is_alive() would be no way to see
    that: on 3.11 and 3.12 it takes a running thread for dead, for good, when a signal handler
    raises in it.
    """

    __slots__ = ("__weakref__", "expires_at")

    def __init__(self, expires_at: float = math.inf) -> None:
        self.expires_at = expires_at


# What an admission was given: a closed breaker's epoch, or a half-open one's permit.
Token = int | Permit


class Moment(NamedTuple):
    """All that a breaker knows, replaced as a whole.

    One reference is read and written at once: a reader without the lock never sees half a change,
    and an exception from a signal handler never leaves one.
    """

    state: CircuitState
    epoch: int  # the state changes so far
    failures: int = 0  # in a row
    last_failure: str | None = None  # a type's name: an exception would keep its frames alive
    probe_at: float = 0.0  # open: when a caller may be a probe
    permits: tuple[weakref.ref[Permit], ...] = ()  # half-open: those given out
    # Closed: how the calls of this epoch ended; None: nobody wants to know. What comes late from
    # an older epoch is counted in that one's window, where nobody looks any more.
    window: Window | None = None

    def held(self, at: float) -> tuple[weakref.ref[Permit], ...]:
        """The permits that nobody else may have at the time *at*."""
        return tuple(
            reference
            for reference in self.permits
            if (permit := reference()) is not None and at < permit.expires_at
        )

    def without(self, permit: Permit) -> Moment:
        """The same with *permit* given back."""
        return self._replace(permits=tuple(r for r in self.permits if r() is not permit))
