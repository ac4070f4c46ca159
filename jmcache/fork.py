"""What a forked child must not inherit: locks that a thread held, sockets, threads.

Only the thread that forks exists in the child. A lock that another thread held at that moment
stays locked there for ever, so an object with a lock, a socket or a thread of its own asks here
for a fresh start in the child.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable

# In the order of registration, so that a part is renewed before what was built on it.
_renewals: list[weakref.WeakMethod[Callable[[], None]]] = []
_lock = threading.Lock()  # guards _renewals


def renew_in_child(renew: Callable[[], None]) -> None:
    """Call the bound method *renew* in every child forked from now on, before its own code runs.

    Held weakly: an object that nobody uses any more is not kept alive. *renew* runs in the only
    thread of the child; it must replace locks, never take them.
    """
    with _lock:
        _add(weakref.WeakMethod(renew))


def _add(reference: weakref.WeakMethod[Callable[[], None]]) -> None:
    # A function of its own: 3.12 and 3.13 do not cover the last jump of a loop that stands directly
    # in a `with`, and a time limit that arrives there would leave the lock held.
    _renewals[:] = [known for known in _renewals if known() is not None]
    _renewals.append(reference)


def _renew_all() -> None:
    global _lock
    _lock = threading.Lock()
    for reference in tuple(_renewals):
        renew = reference()
        if renew is not None:
            renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
