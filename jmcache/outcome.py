"""How an operation ends: one word per way, the same in code, logs, metrics and docs."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any


class Outcome(enum.StrEnum):
    """The ways an operation on the cache can end. Every operation counts exactly one.

    A read ends in any of the first seven, a write in DONE, UNAVAILABLE, SATURATED or REFUSED.
    """

    HIT = "hit"  # a value of ours, fresh
    STALE = "stale"  # a value of ours, past its soft TTL
    MISS = "miss"  # Redis was asked and has nothing we may hand out
    UNAVAILABLE = "unavailable"  # Redis was not asked, or gave no answer in time
    SATURATED = "saturated"  # no connection or thread of ours came free in time
    REFUSED = "refused"  # we would not write it, or Redis would not take it
    CORRUPT = "corrupt"  # what is stored is not ours, cut short or altered
    DONE = "done"  # a write, a delete or a question was carried out


@dataclass(frozen=True, slots=True)
class Lookup:
    """What a read found, and why.

    Attributes:
        outcome: How it ended; never DONE.
        value: What was cached, for HIT and STALE; otherwise None. A cached None is a HIT
            whose value is None. Left out of the repr.
        age_s: Seconds since the value was written, by this machine's clock; None without one.
        reason: Why it is no hit, as one lower-case word such as "timeout" or "breaker_open";
            empty for a hit.
    """

    outcome: Outcome
    value: Any = field(default=None, repr=False)
    age_s: float | None = None
    reason: str = ""

    @property
    def is_hit(self) -> bool:
        """True when *value* may be used as fresh."""
        return self.outcome is Outcome.HIT
