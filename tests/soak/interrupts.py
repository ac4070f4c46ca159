"""Calls that something outside breaks off: a timer's exception, or a cancellation."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from types import FrameType
from typing import Any

from soak.judge import Tally
from soak.load import NOTHING, Script

_LONGEST_S = 0.002  # until the timer strikes: a call takes about as long


class SoftLimit(Exception):  # noqa: N818 - Celery's is named so
    """An ordinary Exception, as Celery's SoftTimeLimitExceeded is one."""


class _Timer:
    """Raises in the main thread, wherever it is. For the main thread only."""

    def __init__(self) -> None:
        self._armed = False
        signal.signal(signal.SIGALRM, self._strike)

    def set(self, seconds: float) -> None:
        self._armed = True
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def stop(self) -> None:
        self._armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _strike(self, _signal: int, _frame: FrameType | None) -> None:
        if self._armed:
            self._armed = False
            raise SoftLimit


def drive_interrupted(script: Script, tally: Tally, cache: Any, seconds: float) -> None:
    """Carry out *script* on the main thread, with a timer that strikes in the middle of calls."""
    timer, rand = _Timer(), random.Random()
    over = time.monotonic() + seconds
    verb, args, _ = next(script)
    while time.monotonic() < over:
        answer = NOTHING[verb]
        started = tally.begin()
        try:
            try:
                timer.set(rand.uniform(1e-6, _LONGEST_S))
                answer = getattr(cache, verb)(*args)
            finally:
                timer.stop()
        except SoftLimit:
            tally.broken_off += 1
        except Exception as error:  # noqa: BLE001 - counted: none may reach a caller
            tally.raised(error)
        tally.end(verb, started)
        verb, args, _ = script.send(answer)
    tally.close()


async def drive_cancelled(jobs: list[tuple[Script, Tally]], cache: Any, seconds: float) -> None:
    """Carry out the scripts, each in a task, with every other call cancelled in the middle."""
    await asyncio.gather(*(_drive_cancelled(*job, cache, seconds) for job in jobs))


async def _drive_cancelled(script: Script, tally: Tally, cache: Any, seconds: float) -> None:
    rand = random.Random()
    over = time.monotonic() + seconds
    verb, args, think_s = next(script)
    while time.monotonic() < over:
        await asyncio.sleep(think_s)
        answer = NOTHING[verb]
        started = tally.begin()
        call = asyncio.ensure_future(getattr(cache, verb)(*args))
        try:
            if rand.random() < 0.5:
                await asyncio.sleep(rand.uniform(0.0, _LONGEST_S))
                call.cancel()
            answer = await call
        except asyncio.CancelledError:
            tally.broken_off += 1
        except Exception as error:  # noqa: BLE001 - counted: none may reach a caller
            tally.raised(error)
        tally.end(verb, started)
        verb, args, think_s = script.send(answer)
    tally.close()
