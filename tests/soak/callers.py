"""Those who use the cache in one replica: threads, or tasks of an event loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import random
import threading
import time
import zlib
from collections.abc import Callable
from typing import Any

from soak.contenders import CONTENDERS
from soak.forks import used_by_a_child
from soak.interrupts import drive_cancelled, drive_interrupted
from soak.judge import Tally, add, total
from soak.load import Script, callers_script, checking_script, drive, drive_async
from soak.punctuality import Punctuality
from soak.trace import MARKER, replay

_REST_WITHIN_S = 3.0  # the last calls have come back by then, or never will
_INTERRUPTED_S = 0.5


class Callers:
    """The threads or tasks that use the cache. Methods for the main thread only."""

    own_thread = True  # has each caller one?

    def __init__(self, options: dict[str, Any], punctuality: Punctuality) -> None:
        self._options = options
        self._punctuality = punctuality
        self._going = False
        self._look_ups = replay()
        self._scripts = 0
        self._tallies: list[Tally] = []
        self._past: dict[str, Any] = {}  # what those saw who are no more
        self.cache: Any = None

    def prepare(self) -> None:
        """Make the cache, and use it once."""
        raise NotImplementedError

    def start(self) -> None:
        """Let all callers begin."""
        raise NotImplementedError

    def rest(self) -> None:
        """Let all callers end after the call they are in; return when they have, or should have."""
        self._going = False
        over = time.monotonic() + _REST_WITHIN_S
        while time.monotonic() < over and self._running():
            time.sleep(0.01)

    def check(self) -> int:
        """Make some round trips, and return how many were right."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the cache."""
        raise NotImplementedError

    def _running(self) -> bool:
        raise NotImplementedError

    def interrupt(self) -> None:
        """Make calls for a moment in which all of them are broken off."""
        raise NotImplementedError

    def fork(self) -> None:
        """Let a forked child use the cache for a moment, where a fork is no nonsense."""

    def total(self) -> dict[str, Any]:
        """Return what all of them saw."""
        return add(total(self._tallies, time.monotonic()), self._past)

    def _make(self) -> None:
        make = CONTENDERS[self._options["contender"]]
        self.cache = make(*(self._options[name] for name in ("host", "port", "password")))

    def _jobs(self) -> list[tuple[Script, Tally]]:
        return [self._job() for _ in range(self._options["callers"])]

    def _job(self) -> tuple[Script, Tally]:
        tally = self._tally()
        return self._new_script()(tally), tally

    def _new_script(self) -> Callable[[Tally], Script]:
        self._scripts += 1
        caller = f"{self._options['name']}.{self._scripts}"  # nobody's ever before
        rand = random.Random(zlib.crc32(f"{self._options['seed']} {caller}".encode()))
        return lambda tally: callers_script(caller, self._look_ups, tally, rand)

    def _forget(self, jobs: list[tuple[Script, Tally]]) -> None:
        """Keep of jobs that are done what they saw: a night has thousands of them."""
        done = [tally for _, tally in jobs]
        past = add(self._past, total(done, 0.0))
        self._tallies = [tally for tally in self._tallies if tally not in done]
        self._past = past

    def _tally(self) -> Tally:
        tally = Tally(self._punctuality, own_thread=self.own_thread)
        self._tallies.append(tally)
        return tally

    def _checking(self, right: list[str]) -> tuple[Script, Any, Tally, Callable[[], bool]]:
        script = checking_script(self._options["name"], right)
        return script, self.cache, self._tally(), lambda: True


class Threads(Callers):
    """Callers that are threads."""

    def prepare(self) -> None:
        self._make()
        self.cache.get(f"first-{MARKER}")

    def start(self) -> None:
        self._going = True
        self._threads = [
            threading.Thread(
                target=drive,
                args=(script, self.cache, tally, lambda: self._going),
                name="soak-caller",
                daemon=True,
            )
            for script, tally in self._jobs()
        ]
        for thread in self._threads:
            thread.start()

    def interrupt(self) -> None:
        job = self._job()
        drive_interrupted(*job, self.cache, _INTERRUPTED_S)
        self._forget([job])

    def fork(self) -> None:
        self._past = add(self._past, used_by_a_child(self._new_script(), self.cache))

    def check(self) -> int:
        right: list[str] = []
        drive(*self._checking(right))
        return len(right)

    def close(self) -> None:
        self.cache.close()

    def _running(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)


class Tasks(Callers):
    """Callers that are tasks of one event loop, in a thread of its own."""

    own_thread = False

    def __init__(self, options: dict[str, Any], punctuality: Punctuality) -> None:
        super().__init__(options, punctuality)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="soak-loop", daemon=True).start()
        self._do(asyncio.sleep(0))  # it runs, and has opened what it needs

    def prepare(self) -> None:
        self._do(self._prepare())

    async def _prepare(self) -> None:
        self._make()
        await self.cache.get(f"first-{MARKER}")

    def start(self) -> None:
        self._going = True
        self._futures = [
            asyncio.run_coroutine_threadsafe(
                drive_async(script, self.cache, tally, lambda: self._going),
                self._loop,
            )
            for script, tally in self._jobs()
        ]

    def interrupt(self) -> None:
        jobs = self._jobs()
        self._do(drive_cancelled(jobs, self.cache, _INTERRUPTED_S))
        self._forget(jobs)

    def check(self) -> int:
        right: list[str] = []
        self._do(drive_async(*self._checking(right)))
        return len(right)

    def close(self) -> None:
        self._do(self.cache.close())

    def _running(self) -> bool:
        return not all(future.done() for future in self._futures)

    def _do(self, coroutine: Any) -> Any:
        future: concurrent.futures.Future[Any] = asyncio.run_coroutine_threadsafe(
            coroutine, self._loop
        )
        return future.result()
