"""A clock that moves only when it is told to."""

from __future__ import annotations

import threading


class ManualClock:
    """Stands in for ``time.monotonic`` wherever a ``clock`` argument takes one.

    May be read and advanced from any thread.
    """

    def __init__(self, start: float = 1000.0) -> None:
        """Stand still at *start* seconds."""
        self._lock = threading.Lock()
        self._now = float(start)  # seconds; guarded by _lock

    def __call__(self) -> float:
        """The time in seconds."""
        with self._lock:
            return self._now

    def advance(self, seconds: float) -> None:
        """Move on by *seconds*, 0 or more.

        Raises:
            ValueError: *seconds* is negative: a monotonic clock never goes back.
        """
        if not seconds >= 0:
            raise ValueError(f"seconds: 0 or more, not {seconds!r}")
        with self._lock:
            self._now += seconds
