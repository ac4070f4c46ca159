"""Who was late: a call, or the machine."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

ALLOWANCE_S = 0.05  # beyond the deadline: waking a thread takes the scheduler some time

_TICK_S = 0.005
_NOTICEABLE_S = 0.002
_SETTLED_S = 0.5  # the lag of a moment is known for certain some time later
_EXAMPLES = 5
_SCHEDULER = Path("/proc/thread-self/schedstat")


class Processor:
    """What one thread got of the processors, and how long it stood in the queue for them.

    For that thread only.
    """

    def __init__(self) -> None:
        self._file = os.open(_SCHEDULER, os.O_RDONLY) if _SCHEDULER.exists() else -1

    def queued_s(self) -> float:
        """Return the seconds in which it could have run, and others did; 0.0 where unknown."""
        return int(os.pread(self._file, 100, 0).split()[1]) / 1e9 if self._file >= 0 else 0.0

    def close(self) -> None:
        """Ask no more."""
        if self._file >= 0:
            os.close(self._file)


class Lag:
    """When, and for how long, threads of this process that wanted to run did not get to.

    One thread calls `tick` again and again, any may ask.
    """

    def __init__(self) -> None:
        self._kept: deque[tuple[float, float]] = deque(maxlen=5_000)
        self.worst_s = 0.0

    def tick(self) -> None:
        """Sleep for a moment, and see how much longer it became."""
        due = time.monotonic() + _TICK_S
        time.sleep(_TICK_S)
        self.note(due, time.monotonic())

    def note(self, due: float, woke: float) -> None:
        """Somebody who wanted to run at *due* did at *woke*, in monotonic seconds."""
        if woke - due > _NOTICEABLE_S:
            self._kept.append((due, woke))
            self.worst_s = max(self.worst_s, woke - due)

    def between(self, start: float, end: float) -> float:
        """Return the seconds of lag in that time."""
        found = 0.0
        for due, woke in reversed(tuple(self._kept)):
            if woke <= start:
                break
            found += max(0.0, min(woke, end) - max(due, start))
        return found


class Punctuality:
    """Holds every call of a process against its deadline. Thread-safe.

    A call is late when it takes longer than the deadline, `ALLOWANCE_S`, and the time in which the
    machine did not let it run: that in which its thread stood in the queue for a processor, and
    that after the deadline in which a thread that only sleeps was woken late, as when the one that
    holds the interpreter stands in that queue. Processor time of the call itself is no excuse: it
    may have been what kept others from running.
    """

    def __init__(self, deadline_s: float, lag: Lag) -> None:
        self._deadline_s = deadline_s
        self._lag = lag
        self._suspects: deque[tuple[float, float, float, float, str]] = deque()
        self.late = 0
        self.latest_s = 0.0  # of a call, without the machine's lag
        self.examples: list[dict[str, Any]] = []

    def took(
        self, verb: str, started: float, ended: float, cpu_s: float = 0.0, queued_s: float = 0.0
    ) -> None:
        """Take note of one call, in monotonic seconds.

        Args:
            cpu_s: Processor time it used.
            queued_s: For which it waited for a processor.
        """
        self._suspects.append((started, ended, cpu_s, queued_s, verb))

    def is_suspect(self, seconds: float) -> bool:
        """Does a call of so many *seconds* have to be explained?"""
        return seconds > self._deadline_s + ALLOWANCE_S

    def settle(self, now: float) -> None:
        """Judge the calls that ended long enough before *now*. One thread at a time."""
        while self._suspects and self._suspects[0][1] + _SETTLED_S < now:
            started, ended, cpu_s, queued_s, verb = self._suspects.popleft()
            slept_s = self._lag.between(started + self._deadline_s, ended)
            lag_s = queued_s + max(0.0, slept_s - cpu_s)
            own_s = ended - started - lag_s
            self.latest_s = max(self.latest_s, own_s)
            if self.is_suspect(own_s):
                self.late += 1
                if len(self.examples) < _EXAMPLES:
                    self.examples.append(
                        {"verb": verb, "ended": ended, "took_s": ended - started, "lag_s": lag_s}
                    )


class Ticker:
    """The thread that measures the machine's lag, and settles who was late."""

    def __init__(self, lag: Lag, punctuality: Punctuality) -> None:
        self._lag = lag
        self._punctuality = punctuality
        self._over = False
        self._thread = threading.Thread(target=self._run, name="soak-ticker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it; every call that ended is judged then."""
        self._over = True
        self._thread.join()
        self._punctuality.settle(float("inf"))

    def _run(self) -> None:
        while not self._over:
            self._lag.tick()
            self._punctuality.settle(time.monotonic())
