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
from typing import Any

# In the order of registration, so that a part is renewed before what was built on it. No
# WeakMethods: their callbacks are Python code, run where an owner happens to be collected, and what
# a signal handler raises there, nobody ever hears of.
_renewals: list[tuple[weakref.ref[Any], Callable[[Any], None]]] = []
_tidy_at = 100  # entries
_lock = threading.Lock()  # guards both


def renew_in_child(renew: Callable[[], None]) -> None:
    """Call the bound method *renew* in every child forked from now on, before its own code runs.

    Held weakly: an object that nobody uses any more is not kept alive. *renew* runs in the only
    thread of the child; it must replace locks, never take them.
    """
    method: Any = renew
    entry = (weakref.ref(method.__self__), method.__func__)
    with _lock:
        _add(entry)


def _add(entry: tuple[weakref.ref[Any], Callable[[Any], None]]) -> None:
    # A function of its own: 3.12 and 3.13 do not cover the last jump of a loop that stands directly
    # in a `with`, and a time limit that arrives there would leave the lock held.
    global _tidy_at
    if len(_renewals) >= _tidy_at:
        _renewals[:] = [known for known in _renewals if known[0]() is not None]
        _tidy_at = 2 * len(_renewals) + 100
    _renewals.append(entry)


def _renew_all() -> None:
    global _lock
    _lock = threading.Lock()
    for reference, renew in tuple(_renewals):
        owner = reference()
        if owner is not None:
            renew(owner)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
