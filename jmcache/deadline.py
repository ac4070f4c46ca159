"""The time one call may take, shared by everything the call waits for."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import Self

_DAY_S = 86400.0  # the system's own waits overflow after some weeks


class Deadline:
    """A moment on a monotonic clock that every wait of one call is cut to.

    Immutable; may be read from any thread. Handed down from the call to the socket, so that the
    waits add up to one budget instead of each having its own.
    """

    __slots__ = ("_clock", "at")

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Start now.

        Args:
            seconds: The whole budget, above 0 and finite.
            clock: Seconds, never going back.

        Raises:
            ValueError: *seconds* is not a finite number above 0.
        """
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
            raise ValueError(f"timeout: seconds as a number above 0, not {type(seconds).__name__}")
        if not 0 < seconds <= sys.float_info.max:
            raise ValueError("timeout: seconds as a finite number above 0")
        self._clock = clock
        self.at = clock() + seconds

    @classmethod
    def of_call(cls, timeout: float | Deadline | None, default_s: float) -> Deadline:
        """Return the deadline that a caller's ``timeout`` argument asks for.

        Args:
            timeout: Seconds, at most a day; one that runs already; or None for *default_s*.

        Raises:
            ValueError: *timeout* is no number of seconds above 0, or more than a day.
        """
        if isinstance(timeout, Deadline):
            return timeout
        if timeout is None:
            # A setting, checked when it was made: one does not pay for that in each call.
            deadline = cls.__new__(cls)
            deadline._clock = clock = time.monotonic  # noqa: SLF001 - of this class
            deadline.at = clock() + default_s
            return deadline
        deadline = cls(timeout)
        if timeout > _DAY_S:
            raise ValueError("timeout: seconds as a number above 0 and at most a day")
        return deadline

    @classmethod
    def over(cls) -> Self:
        """Return one that is over already: for a call that must not wait at all."""
        deadline = cls(1.0)
        deadline.at = -math.inf
        return deadline

    def part(self, share: float) -> Deadline:
        """Return one that is over when *share*, from 0 to 1, of what is left now has gone by."""
        part = Deadline(1.0, self._clock)
        part.at = self.at - (1.0 - share) * self.remaining() if share < 1.0 else self.at
        return part

    def remaining(self) -> float:
        """Seconds left, 0.0 when it is over."""
        left = self.at - self._clock()
        return left if left > 0.0 else 0.0

    @property
    def expired(self) -> bool:
        """True once nothing is left."""
        return self._clock() >= self.at
