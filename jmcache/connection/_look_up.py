"""What is asked of somebody else before a connection can be made, within a deadline.

The operating system's look-up of a name knows no timeout (10 to 28 s were measured for a name
server that is silent), and neither does a function of the application's. So it runs on a thread of
its own, one at a time, and the caller waits as long as its deadline allows. When it is late, or
fails, what it found last serves on. One that never comes back is given up, and asked again.
"""

from __future__ import annotations

import _thread
import threading
import time
from typing import Generic, TypeVar

from jmcache.deadline import Deadline
from jmcache.errors import RedisError
from jmcache.fork import renew_in_child
from jmcache.signals import Mask, blocked_before, refuse_signals

T = TypeVar("T")

_LOOK_AGAIN_S = 0.02  # an interrupted waiter may keep the gate shut; nobody waits longer for it
_SHARE_WITH_SPARE = 0.5  # of the deadline, when something older is at hand
# Then the next one is asked, beside the one that hangs; for twice as long, until one comes back.
_PATIENCE_S = 30.0


class Asking(Generic[T]):
    """One look-up. The gate is shut until it has ended."""

    def __init__(self, patience_s: float) -> None:
        self.patience_s = patience_s
        self.given_up_at = time.monotonic() + patience_s
        self.gate = threading.Lock()
        self.gate.acquire()
        self.ended = False
        self.found: T | None = None
        self.problem: RedisError | None = None


class LookUp(Generic[T]):
    """Asks for something anew for each connection; several callers at once share one answer.

    Thread-safe; a forked child starts with nothing known.
    """

    def __init__(self) -> None:
        self._renew_in_child()
        renew_in_child(self._renew_in_child)

    def _renew_in_child(self) -> None:
        self._lock = threading.Lock()
        self._under_way: Asking[T] | None = None  # guarded by _lock
        self._last_found: T | None = None  # replaced as a whole

    def get(self, deadline: Deadline) -> T:
        """Return what there is to find.

        Raises:
            RedisError: There is nothing, or it was not found in time; as `_ask` and `_vain` say.
        """
        asking = self._start()
        spare = self._last_found
        wait_s = deadline.remaining() * (1.0 if spare is None else _SHARE_WITH_SPARE)
        if wait_s > 0.0:
            wait(asking, Deadline(wait_s))
        found = spare if asking.found is None else asking.found
        if found is None:
            problem = asking.problem or self._vain("no answer in time")
            # Its own for each caller: a traceback grows with whoever raises it.
            raise type(problem)(str(problem), reason=problem.reason)
        return found

    def _ask(self) -> T:
        """Ask, on a thread that may wait as long as it takes; raise RedisError if in vain."""
        raise NotImplementedError

    def _vain(self, why: str) -> RedisError:
        """What a caller gets that could not wait any longer, or for whom nobody could ask."""
        raise NotImplementedError

    def _start(self) -> Asking[T]:
        with self._lock:
            last = self._under_way
            if last is not None and time.monotonic() < last.given_up_at:
                return last
            asking = Asking[T](_PATIENCE_S if last is None else 2 * last.patience_s)
            try:
                # Not threading's Thread: to start one waits in a way that a signal handler's
                # exception leaves locked.
                _thread.start_new_thread(self._run, (asking, blocked_before()))
            except RuntimeError as error:  # no thread is to be had
                asking.problem = self._vain(str(error))
                asking.ended = True
            else:
                self._under_way = asking  # its end waits for the lock
        return asking

    def _run(self, asking: Asking[T], before: Mask | None) -> None:
        refuse_signals(before)
        try:
            asking.found = self._ask()
        except RedisError as error:
            asking.problem = error
        finally:
            with self._lock:
                if self._under_way is asking:  # else given up: what it says is older
                    self._under_way = None
                    self._last_found = self._last_found if asking.found is None else asking.found
            asking.ended = True
            asking.gate.release()


def wait(asking: Asking[T], deadline: Deadline) -> None:
    """Return when *asking* has ended, or *deadline* is over."""
    while not asking.ended and not deadline.expired:
        if asking.gate.acquire(timeout=min(_LOOK_AGAIN_S, deadline.remaining())):
            asking.gate.release()
