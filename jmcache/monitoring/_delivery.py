"""Measurements on their way to the sinks: in small batches, on a daemon thread of ours.

Not in the caller's thread: a sink could be slow or fail there, and guarding the caller against its
errors would also swallow a time limit that a signal handler raises meanwhile.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import threading
import time
import weakref
from collections.abc import Callable, Sequence

from jmcache.fork import renew_in_child
from jmcache.monitoring._metrics import Metrics
from jmcache.signals import signals_as_before
from jmcache.threads import start_thread, this_thread

_log = logging.getLogger("jmcache.monitoring")

QUEUE_LIMIT = 10_000  # measurements, 2 to 3 MB; at the pause below 100,000 a second
PAUSE_S = 0.1  # between two batches: one wake-up for many measurements
CLOSE_S = 0.3  # close() waits so long at most: a sink may hang
START_RETRY_S = 5.0  # a system that is out of threads is not asked for one on every call

Report = Callable[[Metrics], None]  # tells one sink of one measurement


class Delivery:
    """A bounded queue of reports, and the thread that takes them to every sink.

    Nothing starts before the first report. A forked child begins with an empty queue and without a
    thread: what was queued is the parent's to deliver. The methods may be called from any thread.

    Attributes:
        dropped: Reports that no sink got.
        sink_errors: Reports that a sink failed to take.
    """

    def __init__(
        self, sinks: Sequence[Metrics], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sinks = tuple(sinks)
        self._clock = clock
        self._closed = False
        self._owner: weakref.ref[object] | None = None
        self._turn = 0  # guarded by _lock; a thread of an older turn ends
        self._begin()
        renew_in_child(self._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._batch: list[Report] = []  # guarded by _lock
        self._gates: list[threading.Lock] = []  # guarded by _lock; opened when _batch is delivered
        self._resting = False  # guarded by _lock; True: the thread sleeps until the bell rings
        self._running = False  # guarded by _lock
        self._retry_at = -math.inf  # guarded by _lock
        self._turn += 1
        self._thread: threading.Thread | None = None
        # A queue in C as a bell: Event and Condition are Python code, which an exception from a
        # signal handler can leave locked for ever.
        self._bell: queue.SimpleQueue[object] = queue.SimpleQueue()
        owner = None if self._owner is None else self._owner()
        if owner is not None:
            self.end_with(owner)
        self._failed: set[int] = set()  # by the thread alone: places of sinks that ever failed
        self.sink_errors = 0  # by the thread alone
        self.dropped = 0  # guarded by _lock

    def put(self, report: Report) -> None:
        """Queue *report*; drop and count it when the queue is full or closed. Never waits."""
        with self._lock:
            if self._closed or len(self._batch) >= QUEUE_LIMIT:
                self.dropped += 1
            else:
                self._batch.append(report)
                if self._resting:
                    self._ring()
                    self._resting = False
        if not self._running:
            self._start()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything queued so far is delivered; False after *timeout_s* seconds."""
        gate = threading.Lock()
        gate.acquire()
        with self._lock:
            if not self._running and not self._batch:
                return True
            self._gates.append(gate)
            self._ring()
        if not self._running:
            self._start()
        return gate.acquire(timeout=timeout_s)

    def close(self) -> None:
        """Deliver what is queued, as far as ``CLOSE_S`` allows, and end the thread. Idempotent."""
        on_thread = self._thread is threading.current_thread()  # a sink may close the cache
        delivered = not on_thread and self.flush(CLOSE_S)
        self.end()
        thread = self._thread
        if delivered and thread is not None and thread.is_alive():
            thread.join(CLOSE_S)
        with self._lock:
            self.dropped += len(self._batch)
            self._batch = []

    def end(self) -> None:
        """Let the thread deliver what is queued and end; wait for nothing."""
        self._closed = True
        self._ring()

    def end_with(self, owner: object) -> None:
        """Do the same once *owner* is gone.

        The callback is C: the garbage collector may call it in the middle of anything, and of what
        a signal handler raises in one of Python's own nobody ever hears.
        """
        self._owner = weakref.ref(owner, self._bell.put)

    def _ring(self) -> None:
        self._bell.put(None)

    def _start(self) -> None:
        now = self._clock()
        with self._lock:
            if self._running or self._closed or now < self._retry_at:
                return
            self._retry_at = now + START_RETRY_S
            self._turn += 1
            turn = self._turn
        # The thread says that it runs, once it does: if one never gets so far, a later call starts
        # another, and only the latest turn works.
        start_thread("jmcache-metrics", self._run, turn)

    def _run(self, turn: int) -> None:
        bell, here = self._bell, this_thread()
        try:
            while True:
                with self._lock:
                    if turn != self._turn:
                        return
                    self._running, self._thread = True, here
                    batch, self._batch = self._batch, []
                    gates, self._gates = self._gates, []
                    idle = self._resting = not batch and not gates
                if idle:
                    if self._closed or (self._owner is not None and self._owner() is None):
                        return
                    bell.get()
                    continue
                for report in batch:
                    self._deliver(report)
                for gate in gates:
                    gate.release()
                with contextlib.suppress(queue.Empty):
                    bell.get(timeout=PAUSE_S)
        finally:
            with self._lock:
                if turn == self._turn:
                    self._running = False

    def _deliver(self, report: Report) -> None:
        for place, sink in enumerate(self._sinks):
            try:
                with signals_as_before():
                    report(sink)
            except Exception as error:  # noqa: BLE001
                # This thread would die, and with it the measurements for every other sink. Nobody's
                # time limit lands here: signal handlers run on the main thread.
                self.sink_errors += 1
                if place not in self._failed:
                    self._failed.add(place)
                    with signals_as_before():
                        _log.warning(
                            "the metrics sink %s failed (%s); it is tried again with every"
                            " measurement, and further failures are counted, not logged",
                            type(sink).__name__,
                            type(error).__name__,
                        )
