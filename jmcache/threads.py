"""How threads of ours begin: daemons that take no signals, started without a wait."""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable
from typing import Any

from jmcache.signals import Mask, blocked_before, refuse_signals


def start_thread(name: str, run: Callable[..., object], *args: Any) -> bool:
    """Have *run* called with *args* on a thread of its own; return at once.

    False: the system has no thread left, or the interpreter is on its way out.

    Thread.start() is Python code, and waits for the new thread, which may use the interpreter for
    5 ms meanwhile. An exception from a signal handler in it comes out as a KeyError, in place of
    the time limit that it was. So a short-lived thread calls it, where no signal handler runs.
    """
    try:
        _thread.start_new_thread(_start, (name, run, args, blocked_before()))
    except RuntimeError:
        return False
    return True


def this_thread() -> threading.Thread | None:
    """Return the calling thread; None if it is one that threading does not know."""
    here = threading.get_ident()
    return next((one for one in threading.enumerate() if one.ident == here), None)


def _start(
    name: str, run: Callable[..., object], args: tuple[Any, ...], before: Mask | None
) -> None:
    refuse_signals(before)  # the new one begins with what this one blocks
    before = blocked_before()
    # One that threading knows: a line that is logged on any other leaves a dummy of it for good.
    thread = threading.Thread(target=_run, args=(run, args, before), name=name, daemon=True)
    try:
        thread.start()
    except BaseException:  # noqa: BLE001 - no second one is to be had, but for this one
        run(*args)


def _run(run: Callable[..., object], args: tuple[Any, ...], before: Mask | None) -> None:
    refuse_signals(before)
    run(*args)
