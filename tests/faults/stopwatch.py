"""Times calls on a machine that is busy with other things, and tells the two apart."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
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
    queued_s: float  # its own thread could run, and had to wait for a processor
    limit_s: float


class _Queue:
    """How long the thread that made it has waited for a processor, as the kernel counts it."""

    def __init__(self) -> None:
        try:
            self._file = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # another system, or no descriptor left
            self._file = -1

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)

    def seconds(self) -> float:
        if self._file < 0:
            return 0.0
        return int(os.pread(self._file, 100, 0).split()[1]) / 1e9


class Stopwatch:
    """Times calls; meanwhile a thread that only sleeps measures by how much the machine is late.

    A call is late when it runs on after its limit for more than ALLOWED_S in which that thread was
    woken on time, and its own did not wait for a processor. Time in which the call itself used the
    processor is no excuse: it may have held the interpreter, and made the other thread late.

    A context manager. Any thread may time calls.
    """

    def __init__(self) -> None:
        self.longest_s = 0.0
        self.calls = 0
        self.shed = 0  # calls on an open breaker
        self._lags: list[tuple[float, float]] = []  # from when it was to wake until it did
        self._slow: list[Call] = []
        self._slow_shed: list[Call] = []
        self._queues = threading.local()
        self._lock = threading.Lock()
        self._over = False
        self._ticks = 0
        self._thread = threading.Thread(target=self._doze, name="stopwatch", daemon=True)

    def __enter__(self) -> Stopwatch:
        self._thread.start()
        self.queued_s()  # opens its file now, and not between two counts of open files
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
    def call(
        self, limit_s: float, label: str = "call", *, shed: Callable[[], bool] = lambda: False
    ) -> Iterator[None]:
        """Time what happens inside.

        Args:
            shed: Is the breaker open? If it is before and after, the call is to take SHED_S.
        """
        shed_before = shed()
        queued_s = self.queued_s()
        cpu = time.thread_time()
        began = time.monotonic()
        try:
            yield
        finally:
            ended = time.monotonic()
            cpu_s = time.thread_time() - cpu
            shed_after = shed()
            queued_s = self.queued_s() - queued_s
            done = Call(label, began, ended, cpu_s, queued_s, limit_s)
            took_s = ended - began
            with self._lock:
                self.calls += 1
                self.longest_s = max(self.longest_s, took_s)
                if took_s > limit_s + ALLOWED_S:
                    self._slow.append(done)
                if shed_after and shed_before:
                    self.shed += 1
                    if took_s > SHED_S:
                        self._slow_shed.append(done)

    def late(self) -> list[str]:
        """Which calls were late, in words."""
        self._catch_up()
        return [
            f"{call.label}: {call.ended - call.began:.3f} s with a limit of {call.limit_s:.3f} s,"
            f" {unexcused_s:.3f} s of it after that, on time"
            for call in self._slow
            if (unexcused_s := max(self._on_time_s(call, call.limit_s), call.cpu_s)) > ALLOWED_S
        ]

    def late_when_shed(self) -> int:
        """How many calls on an open breaker took longer than SHED_S."""
        self._catch_up()
        return sum(self._on_time_s(call, SHED_S) > 0.0 for call in self._slow_shed)

    def lag_s(self, began: float, ended: float) -> float:
        """Seconds between two moments in which the machine was late."""
        self._catch_up()
        return self._lag_s(began, ended)

    def queued_s(self) -> float:
        """Seconds, ever, in which the calling thread could run and had to wait for a processor."""
        queue: _Queue | None = getattr(self._queues, "mine", None)
        if queue is None:
            queue = self._queues.mine = _Queue()
        return queue.seconds()

    def _on_time_s(self, call: Call, limit_s: float) -> float:
        over = call.began + limit_s
        return call.ended - over - self._lag_s(over, call.ended) - call.queued_s

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
