"""Log lines, spoken by a thread of ours on behalf of a caller.

On the caller's own thread a line could cost more than itself. logging's handlers catch whatever is
raised while they write, a time limit that arrives just then, too; one that arrives a moment earlier
leaves their lock held; and a handler that hangs would take the caller with it.
"""

from __future__ import annotations

import contextvars
import logging
import threading
from typing import Any

from jmcache.signals import signals_as_before
from jmcache.threads import start_thread

WAIT_S = 0.01  # a caller, or its event loop, waits no longer for order among lines; 0.0001 is usual


def say(log: logging.Logger, level: int, text: str, fields: dict[str, Any]) -> None:
    """Log *text* filled with *fields*, which go along as the record's ``jmcache`` too.

    Waits until it is logged, as far as ``WAIT_S`` allows. The caller's context variables are there
    for filters; the thread's name is "jmcache-log".
    """
    gate = threading.Lock()
    gate.acquire()
    line = (contextvars.copy_context(), log, level, text, fields)
    if not start_thread("jmcache-log", _speak, gate, line):
        _speak(gate, line)
    gate.acquire(timeout=WAIT_S)


def _speak(gate: threading.Lock, line: Any) -> None:
    context, log, level, text, fields = line
    try:
        with signals_as_before():
            context.run(log.log, level, text, fields, extra={"jmcache": fields})
    finally:
        gate.release()
