"""What one look at the store found, and what it is to keep something there."""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

from jmcache.outcome import Lookup, Outcome

SEALED: Final = object()  # in place of a value that was not decoded yet
NEAR = "near"  # the reason of a hit that Redis was not asked for
_AWAY = ("breaker_open", "node_down", "writes_paused", "closed")
_SCARCE = ("hurried", "pool_exhausted", "queue_full", "no_thread")


class Key(NamedTuple):
    """One key as the stops know it."""

    name: bytes
    digest: bytes
    lease: bytes


class Look(NamedTuple):
    """What one look found.

    Attributes:
        outcome: HIT and STALE: *value* is there. Else how it ended.
        reason: Why it is no hit, as one word; NEAR for one from this process.
        value: The caller's own copy; SEALED while nobody wanted it.
        body: The same, serialized, to copy it for others.
        age_s: Seconds since it was computed.
        ttl_s: Seconds it is fresh.
        load_cost_s: Seconds it took to compute.
        holder: Who holds the lease; None for nobody, or when that was not asked.
        generation: What an entry written now has to carry; None when that is not known.
        reached: Did the store answer?
        asked_at: When the store was asked, by time.monotonic.
    """

    outcome: Outcome
    reason: str = ""
    value: Any = None
    body: bytes | None = None
    age_s: float | None = None
    ttl_s: float = math.inf
    load_cost_s: float = 0.0
    holder: bytes | None = None
    generation: int | None = None
    reached: bool = True
    asked_at: float = -math.inf

    @property
    def is_there(self) -> bool:
        """Is there a value, fresh or not?"""
        return self.outcome is Outcome.HIT or self.outcome is Outcome.STALE

    @property
    def is_away(self) -> bool:
        """Is the store known to be away? Else, without an answer, another question may have one."""
        return not self.reached and self.reason in _AWAY

    @property
    def is_scarce(self) -> bool:
        """Had we no time, thread or connection to ask the store with? It may be well, then."""
        return not self.reached and self.reason in _SCARCE

    @property
    def over_s(self) -> float:
        """Seconds since it went stale, 0.0 while it is fresh."""
        return max(0.0, (self.age_s or 0.0) - self.ttl_s)

    def is_within(self, seconds: float) -> bool:
        """Is there a value that went stale no longer ago than that? None is for 0 seconds."""
        return seconds > 0.0 and self.is_there and self.over_s <= seconds

    def told(self) -> Lookup:
        """Return what a caller is told of it."""
        reason = "" if self.outcome is Outcome.HIT else self.reason
        return Lookup(self.outcome, self.value, self.age_s, reason)


class Kept(NamedTuple):
    """How an entry is to be kept.

    Attributes:
        ttl_s: Seconds it is fresh, before jitter.
        after_s: Seconds it stays after that, to be handed out stale.
        load_cost_s: Seconds it took to compute.
        tags: What it can be invalidated by.
        generation: The sum of the counters it depends on, from before it was computed.
        negative: Does it stand for "there is none"?
        timed: Is its TTL to be known to whoever finds it, to refresh it early?
    """

    ttl_s: float
    after_s: float = 0.0
    load_cost_s: float = 0.0
    tags: tuple[str, ...] = ()
    generation: int = 0
    negative: bool = False
    timed: bool = False
