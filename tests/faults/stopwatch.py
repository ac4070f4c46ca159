"""Times calls on a machine that is busy with other things, and tells the two apart."""

from __future__ import annotations

import contextlib
import resource
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple

ALLOWED_S = 0.05  # for the scheduler of a machine that is on time
SHED_S = 0.001  # a call on an open breaker
_TICK_S = 0.004


class Call(NamedTuple):
    label: str
    began: float  # time.monotonic
    ended: float
    cpu_s: float  # of its own thread
    limit_s: float


class Stopwatch:
    """Times calls; meanwhile a thread that only sleeps measures by how much the machine is late.

    A call is late when it runs on after its limit for more than ALLOWED_S in which that thread was
    woken on time. Time in which the call itself used the processor is no excuse: it may have held
    the interpreter, and made the other thread late.

    A context manager. Any thread may time calls.
    """

    def __init__(self) -> None:
        self.longest_s = 0.0
        self.calls = 0
        self.shed = 0  # calls on an open breaker
        self._lags: list[tuple[float, float]] = []  # from when it was to wake until it did
        self._slow: list[Call] = []
        self._slow_shed: list[Call] = []
        self._lock = threading.Lock()
        self._over = False
        self._ticks = 0
        self._thread = threading.Thread(target=self._doze, name="stopwatch", daemon=True)

    def __enter__(self) -> Stopwatch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over = True
        self._thread.join()

    @contextlib.contextmanager
    def call(self, limit_s: float, label: str = "call", *, shed: bool = False) -> Iterator[None]:
        """Time what happens inside; *shed*: on an open breaker, which is to take SHED_S."""
        preempted = _preempted() if shed else 0
        cpu = time.thread_time()
        began = time.monotonic()
        try:
            yield
        finally:
            ended = time.monotonic()
            done = Call(label, began, ended, time.thread_time() - cpu, limit_s)
            took_s = ended - began
            with self._lock:
                self.calls += 1
                self.longest_s = max(self.longest_s, took_s)
                if took_s > limit_s + ALLOWED_S:
                    self._slow.append(done)
                if shed:
                    self.shed += 1
                    # Taken off the processor by the system, it did not wait: that is no
                    # evidence. The sleeper may not have been due just then.
                    if took_s > SHED_S and _preempted() == preempted:
                        self._slow_shed.append(done)

    def late(self) -> list[str]:
        """Which calls were late, in words."""
        self._catch_up()
        return [
            f"{call.label}: {call.ended - call.began:.3f} s with a limit of {call.limit_s:.3f} s,"
            f" {unexcused_s:.3f} s of it after that, on time"
            for call in self._slow
            if (unexcused_s := self._after_limit_s(call, call.limit_s)) > ALLOWED_S
        ]

    def late_when_shed(self) -> int:
        """How many calls on an open breaker took longer than SHED_S."""
        self._catch_up()
        return sum(self._after_limit_s(call, SHED_S) > 0.0 for call in self._slow_shed)

    def lag_s(self, began: float, ended: float) -> float:
        """Seconds between two moments in which the machine was late."""
        self._catch_up()
        return self._lag_s(began, ended)

    def _after_limit_s(self, call: Call, limit_s: float) -> float:
        over = call.began + limit_s
        return call.ended - over - max(0.0, self._lag_s(over, call.ended) - call.cpu_s)

    def _lag_s(self, began: float, ended: float) -> float:
        return sum(max(0.0, min(ended, to) - max(began, at)) for at, to in self._lags)

    def _catch_up(self) -> None:
        """Wait for the tick that was due, so that the latest lag is known."""
        ticks = self._ticks
        while self._thread.is_alive() and self._ticks < ticks + 2:
            time.sleep(_TICK_S)

    def _doze(self) -> None:
        while not self._over:
            due = time.monotonic() + _TICK_S
            time.sleep(_TICK_S)
            woke = time.monotonic()
            if woke - due > 0.0005:
                self._lags.append((due, woke))
            self._ticks += 1


def _preempted() -> int:
    """How often the system took the processor from this thread before it gave it up."""
    who = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)
    return resource.getrusage(who).ru_nivcsw
