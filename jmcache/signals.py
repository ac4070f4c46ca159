"""Signals and our threads: they take none, but while they run what is not ours.

The system hands a signal to any thread that does not block it. One that ends the process by default
does so then, although the main thread blocks it to finish what must not be left half done. So ended
Celery's children, whose last word goes through a pipe under a lock that all of them share, with
SIGTERM blocked on that thread alone: a thread of ours took the signal, the lock stayed held, and no
child of that worker did anything any more.

What the application's own code starts on a thread of ours, such as a program that says a password,
would begin its life with these signals blocked, too: so that code runs as if there was nothing.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# A fault is its own thread's, whatever it blocks, and a profiler wants to see every thread.
_OTHERS = {"SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGPROF", "SIGSEGV", "SIGSYS", "SIGTRAP"}
_SIGNALS = [one for one in signal.valid_signals() if getattr(one, "name", "") not in _OTHERS]

_here = threading.local()


def refuse_signals() -> None:
    """Block signals on the calling thread, one of ours, from its beginning to its end."""
    _here.before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


@contextmanager
def signals_as_before() -> Iterator[None]:
    """Meanwhile undo what `refuse_signals` did on the calling thread, if it did."""
    before = getattr(_here, "before", None)
    if before is None:
        yield
        return
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
