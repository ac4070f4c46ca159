"""A child, forked while others are in the middle of calls, that uses the same cache."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable
from typing import Any, NoReturn

from soak.contenders import DEADLINE_S
from soak.judge import Tally, total
from soak.load import Script, drive
from soak.punctuality import Lag, Punctuality, Ticker

_CALLS = 20
_ENDS_WITHIN_S = 15.0  # each call may take its deadline, on a machine that is busy


def used_by_a_child(make_script: Callable[[Tally], Script], cache: Any) -> dict[str, Any]:
    """Fork; return what the child saw, judged there, or that it hung or died of it.

    Args:
        make_script: Called in the child.
    """
    theirs, ours = os.pipe()
    pid = os.fork()
    if not pid:
        _be_the_child(make_script, cache, ours)
    os.close(ours)
    try:
        said = _read(theirs)
    finally:
        os.close(theirs)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if said is None:
        return {"forks": 1, "late": 1, "examples": ["a forked child hung"]}
    if not said:
        return {"forks": 1, "exceptions": {"a forked child died": 1}}
    return {"forks": 1, **json.loads(said)}


def _be_the_child(make_script: Callable[[Tally], Script], cache: Any, pipe: int) -> NoReturn:
    try:
        lag = Lag()
        punctuality = Punctuality(DEADLINE_S, lag)
        ticker = Ticker(lag, punctuality)
        tally = Tally(punctuality, own_thread=True)
        left = iter(range(_CALLS))
        drive(make_script(tally), cache, tally, lambda: next(left, None) is not None)
        ticker.stop()
        seen = {**total([tally], time.monotonic()), "late": punctuality.late}
        os.write(pipe, json.dumps(seen).encode())
    finally:
        os._exit(0)


def _read(pipe: int) -> bytes | None:
    """Return all that comes until the other end is closed; None when that takes too long."""
    said = b""
    over = time.monotonic() + _ENDS_WITHIN_S
    while True:
        ready, _, _ = select.select([pipe], [], [], max(0.0, over - time.monotonic()))
        if not ready:
            return None
        data = os.read(pipe, 65_536)
        if not data:
            return said
        said += data
