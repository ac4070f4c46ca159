"""How the calls of the last seconds ended, counted without a lock while they end well."""

from __future__ import annotations

import math
from typing import NamedTuple

STEPS = 10  # calls are forgotten a tenth of the window at a time


class _Step:
    """The calls that ended within one step of time."""

    __slots__ = ("bad", "begins_at", "ends_at", "failed", "slow", "well")

    def __init__(self, begins_at: float, ends_at: float) -> None:
        self.begins_at = begins_at
        self.ends_at = ends_at
        self.well = 0
        self.bad = 0  # failed, slow or both
        self.failed = 0
        self.slow = 0


class Tally(NamedTuple):
    """Calls, and how many of them were bad; one can have failed and been slow."""

    calls: int
    failed: int
    slow: int


class Window:
    """How the calls of the last so many seconds ended.

    A call is never counted when it is older, and may be forgotten a tenth of them earlier. A clock
    that stands still lets nothing be forgotten, one that leaps ahead lets everything.

    Attributes:
        step: The latest. Who sees a call end well before its ``ends_at`` adds 1 to its ``well``
            without a lock: with a GIL no other thread and no signal handler comes in between.
            (Without one, a success may go uncounted.) All else is for the holder of a lock.
    """

    __slots__ = ("_seconds", "_steps", "step")

    def __init__(self, seconds: float) -> None:
        """Begin with no call."""
        self._seconds = seconds
        self._steps: tuple[_Step, ...] = ()
        self.step = _Step(-math.inf, -math.inf)  # over: the first call begins one

    def add(self, at: float, *, failed: bool, slow: bool) -> None:
        """Count a call that ended at the time *at*."""
        if at >= self.step.ends_at:
            step = _Step(at, at + self._seconds / STEPS)
            self._steps = (*self._fresh(at), step)
            self.step = step
        if failed or slow:
            self.step.bad += 1
            self.step.failed += failed
            self.step.slow += slow
        else:
            self.step.well += 1

    def tally(self, at: float) -> Tally:
        """Return how the calls up to the time *at* ended."""
        steps = self._fresh(at)
        return Tally(
            sum(step.well + step.bad for step in steps),
            sum(step.failed for step in steps),
            sum(step.slow for step in steps),
        )

    def _fresh(self, at: float) -> tuple[_Step, ...]:
        return tuple(step for step in self._steps if step.begins_at > at - self._seconds)
