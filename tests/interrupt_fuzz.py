"""Interrupts a program that caches, at random moments, and looks for what that broke.

    python tests/interrupt_fuzz.py 20000 [--storm] [--seed N]

A timer's signal handler raises in the main thread, in the middle of whatever it is doing, as
Celery's soft time limit does, while other threads use the same two connections. Every value
carries its key. The exceptions are kept with their tracebacks, as an error tracker keeps them.
In a storm the timer goes on, so that cleaning up is interrupted as well, again and again.
Prints one JSON object; a hang prints all stacks and ends with exit code 1.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from jmcache.connection import RedisConnectionManager
from jmcache.deadline import Deadline
from jmcache.errors import RedisError, RedisPoolExhaustedError, RedisTimeoutError
from jmcache.settings import CacheSettings
from jmcache.testing import PrivateServer

LIMIT = 2  # connections, for four threads: the main one waits for its turn, too
NAMES = [b"k%03d" % number for number in range(100)]


class SoftLimit(Exception):  # noqa: N818 - Celery's is named so
    """An ordinary Exception, as Celery's SoftTimeLimitExceeded is one."""


def value_of(name: bytes) -> bytes:
    return name * 100


class Fuzz:
    """One run."""

    def __init__(self, server: PrivateServer, seed: int, storm: bool) -> None:
        self.server = server
        self.storm = storm
        self.armed = False
        self.manager = RedisConnectionManager(
            CacheSettings.from_url(server.url, max_connections=LIMIT)
        )
        self.random = random.Random(seed)
        self.stop = threading.Event()
        self.calls = 0
        self.kept: list[BaseException] = []
        self.wrong: list[tuple[Any, Any]] = []
        self.errors: list[str] = []
        self.swallowed: list[str] = []
        sys.unraisablehook = self.note_swallowed

    def note_swallowed(self, unraisable: Any) -> None:
        self.swallowed.append(f"{unraisable.exc_value!r} in {unraisable.object!r}")

    def run(self, interrupts: int) -> dict[str, Any]:
        self.manager.set_many([(name, value_of(name), 3_600_000) for name in NAMES], Deadline(5.0))
        descriptors = len(list(Path("/proc/self/fd").iterdir()))
        threads = [threading.Thread(target=self.traffic, args=(n,), daemon=True) for n in range(3)]
        for thread in threads:
            thread.start()
        signal.signal(signal.SIGALRM, self.interrupt)
        began = time.monotonic()
        while len(self.kept) < interrupts:
            self.interrupted_call()
        took_s = time.monotonic() - began
        self.stop.set()
        for thread in threads:
            thread.join(timeout=10)
        usage, waiting = self.manager.usage(), len(self.manager._server.pool._waiters)
        full_after_s, parallel = self.wait_until_full()
        return {
            "interrupts": len(self.kept),
            "calls": self.calls,
            "seconds": round(took_s, 1),
            "wrong": len(self.wrong),
            "errors": self.errors[:5],
            "swallowed": self.swallowed,
            "threads_hung": sum(thread.is_alive() for thread in threads),
            "in_use": usage.in_use,
            "waiting": waiting,
            "parallel": parallel,
            "full_after_s": full_after_s,
            "descriptors_leaked": max(
                0, len(list(Path("/proc/self/fd").iterdir())) - descriptors - LIMIT
            ),
            "wrong_afterwards": sum(
                self.manager.get(name, Deadline(5.0)) != value_of(name) for name in NAMES
            ),
        }

    def interrupt(self, _signal: int, _frame: FrameType | None) -> None:
        if self.armed:
            self.armed = self.storm
            # The recipe of many programs for a time limit of their own is the second one.
            raise SoftLimit if random.random() < 0.5 else TimeoutError("took too long")

    def interrupted_call(self) -> None:
        first_s = self.random.uniform(1e-6, self.random.choice([150e-6, 1e-3]))
        again_s = self.random.uniform(50e-6, 400e-6) if self.storm else 0.0
        try:
            try:
                self.armed = True
                signal.setitimer(signal.ITIMER_REAL, first_s, again_s)
                self.call(self.random)
            finally:
                self.armed = False
                signal.setitimer(signal.ITIMER_REAL, 0)
            self.calls += 1
        except (SoftLimit, TimeoutError) as error:
            self.kept.append(error)
        except RedisError as error:
            self.errors.append(repr(error))

    def call(self, chance: random.Random) -> None:
        manager, what = self.manager, chance.random()
        name = chance.choice(NAMES)
        if what < 0.6:
            self.check(manager.get(name, Deadline(2.0)), value_of(name))
        elif what < 0.8:
            names = chance.sample(NAMES, 5)
            self.check(manager.get_many(names, Deadline(2.0)), [value_of(one) for one in names])
        elif what < 0.9:
            manager.set(name, value_of(name), 3_600_000, Deadline(2.0))
        elif what < 0.95:
            manager.ping(Deadline(2.0))
        else:
            manager.drop_connections()

    def check(self, found: Any, expected: Any) -> None:
        if found != expected:
            self.wrong.append((found, expected))

    def traffic(self, number: int) -> None:
        chance = random.Random(number)
        while not self.stop.is_set():
            try:
                self.call(chance)
            except RedisError as error:
                self.errors.append(repr(error))
            time.sleep(0.0005)

    def wait_until_full(self) -> tuple[float, int]:
        began = time.monotonic()
        while True:
            before_s = time.monotonic() - began
            parallel = self.parallel_calls()
            if parallel == LIMIT or before_s > 10.0:
                return round(before_s), parallel

    def parallel_calls(self) -> int:
        """How many calls a frozen server keeps waiting at the same time, out of LIMIT."""
        together = threading.Barrier(LIMIT)
        reached = []

        def call() -> None:
            together.wait(timeout=10)
            try:
                self.manager.get(NAMES[0], Deadline(0.5))
            except RedisPoolExhaustedError:
                return
            except RedisTimeoutError:
                reached.append(1)

        self.server.pause()
        threads = [threading.Thread(target=call) for _ in range(LIMIT)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=10)
        self.server.resume()
        return len(reached)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("interrupts", type=int)
    parser.add_argument("--storm", action="store_true")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)))
    chosen = parser.parse_args()
    faulthandler.dump_traceback_later(30 + chosen.interrupts / 100, exit=True)
    with PrivateServer() as server:
        report = Fuzz(server, chosen.seed, chosen.storm).run(chosen.interrupts)
    print(json.dumps(vars(chosen) | report))


if __name__ == "__main__":
    main()
