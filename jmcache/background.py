"""Work that nobody waits for: a few daemon threads that come with it and go again."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from jmcache.fork import renew_in_child
from jmcache.signals import signals_as_before
from jmcache.threads import start_thread

_log = logging.getLogger("jmcache.background")

_REST_S = 5.0  # a thread without work for so long ends

Work = Callable[[], object]


class Background:
    """Does work on at most *threads* threads, with at most *queue* pieces waiting.

    Threads start with work and end without it; they hold up neither a fork nor the end of the
    interpreter, which may leave work undone. A forked child begins without either. `submit` may be
    called from any thread and never waits; each of its steps is one atomic operation, so an
    exception from a signal handler costs at most the piece in hand a few seconds.

    Attributes:
        skipped: Pieces that found the queue full, or no thread to be had.
        failed: Pieces that ended in an exception; the type of the first is logged.
    """

    def __init__(self, threads: int, queue: int) -> None:
        """Start nothing yet.

        Args:
            threads: At one time, 1 or more.
            queue: Pieces of work that may wait for a thread, 1 or more.
        """
        self._threads = threads
        self._limit = queue
        self._rests = True
        self.skipped = 0
        self.failed = 0
        self._renew_in_child()
        renew_in_child(self._renew_in_child)

    def _renew_in_child(self) -> None:
        self._queue: deque[Work] = deque()
        self._bells: dict[int, threading.Lock] = {}  # of the running threads, by number
        self._resting: deque[threading.Lock] = deque()  # of those without work
        self._started = 0

    def submit(self, work: Work) -> bool:
        """Have *work* done soon; False, and counted, when that cannot be."""
        if len(self._queue) >= self._limit:
            self.skipped += 1
            return False
        self._queue.append(work)
        try:
            self._resting.pop().release()
        except IndexError:  # nobody rests
            if len(self._bells) < self._threads and not self._start():
                return self._take_back(work)
        return True

    def dismiss(self) -> None:
        """Have threads end as soon as they are without work, from now on. Idempotent."""
        self._rests = False
        while self._resting:
            try:
                self._resting.pop().release()
            except IndexError:  # found work
                return

    def _start(self) -> bool:
        bell = threading.Lock()
        bell.acquire()
        self._started += 1
        number = self._started
        self._bells[number] = bell
        started = False
        try:
            started = start_thread(f"jmcache-background_{number}", self._run, number, bell)
        finally:  # also where a signal handler raises
            if not started:
                self._bells.pop(number, None)
        return started or bool(self._bells)

    def _take_back(self, work: Work) -> bool:
        try:
            self._queue.remove(work)
        except ValueError:
            return True  # a thread had it after all
        self.skipped += 1
        return False

    def _run(self, number: int, bell: threading.Lock) -> None:
        while True:
            try:
                work = self._queue.popleft()
            except IndexError:
                if self._rest(bell):
                    continue
                self._bells.pop(number, None)
                if not self._queue:  # looked at last: whoever adds to it starts a thread from here
                    return
                self._bells[number] = bell
            else:
                self._do(work)

    def _rest(self, bell: threading.Lock) -> bool:
        """Wait for work; False when none came for long."""
        self._resting.append(bell)
        # Looked at after that: `dismiss` says so first, and rings then.
        rung = self._rests and not self._queue and bell.acquire(timeout=_REST_S)
        try:
            self._resting.remove(bell)
        except ValueError:  # taken off, to be rung
            return rung or bell.acquire(timeout=_REST_S)
        return rung or bool(self._queue)

    def _do(self, work: Work) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - the thread would die, and nobody hears of it
            self.failed += 1
            if self.failed == 1:
                # The type alone: the text of a foreign error may hold anything.
                with signals_as_before():
                    _log.error(
                        "background work failed (%s); further failures are counted, not logged",
                        type(error).__name__,
                    )
