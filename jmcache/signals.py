"""Signals and our threads: they take none, but while they run what is not ours.

The system hands a signal to any thread that does not block it. One that ends the process by default
does so then, although the main thread blocks it to finish what must not be left half done. So ended
Celery's children, whose last word goes through a pipe under a lock that all of them share, with
SIGTERM blocked on that thread alone: a thread of ours took the signal, the lock stayed held, and no
child of that worker did anything any more.

What the application's own code starts on a thread of ours, such as a program that says a password,
would begin its life with these signals blocked, too: so that code runs as if there was nothing. It
is enclosed by itself, where it is called. Around it we wait for Redis, which may take long.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

Mask = set[int | signal.Signals]

# A fault is its own thread's, whatever it blocks, and a profiler wants to see every thread.
_OTHERS = {"SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGPROF", "SIGSEGV", "SIGSYS", "SIGTRAP"}
_SIGNALS = [one for one in signal.valid_signals() if getattr(one, "name", "") not in _OTHERS]

_NOTHING = nullcontext()
_here = threading.local()


def refuse_signals(before: Mask | None = None) -> None:
    """Block signals on the calling thread, one of ours, from its beginning to its end.

    Args:
        before: What `blocked_before` returned on the thread that started it.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    _here.before = blocked if before is None else before


def blocked_before() -> Mask | None:
    """Return what the calling thread blocked before it refused signals; None if it did not."""
    before: Mask | None = getattr(_here, "before", None)
    return before


def signals_as_before() -> AbstractContextManager[None]:
    """Enclose the application's code: as if the calling thread had not refused signals."""
    before = blocked_before()
    return _NOTHING if before is None else _blocking(before)


@contextmanager
def _blocking(mask: Mask) -> Iterator[None]:
    around = signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, around)
