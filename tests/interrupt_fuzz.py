"""Interrupts a program that caches, at random moments, and looks for what that broke.

    python tests/interrupt_fuzz.py 20000 [--by timer|storm|sigint] [--over unix|tcp|tls]
                                         [--trouble] [--without-hiredis] [--seed N]

A signal's handler raises in the main thread, in the middle of whatever it is doing, as Celery's
soft time limit and Ctrl-C do, while other threads use the same cache and its two connections.
Every value carries its key, and a version. The exceptions are kept with their tracebacks, as an
error tracker keeps them.

--by storm       the timer goes on, so that cleaning up is interrupted as well, again and again
--by sigint      another process sends SIGINT, and KeyboardInterrupt comes of it
--trouble        connections are cut and the server is paused, so that retry, breaker and health
                 thread have to do

Prints one JSON object; a hang prints all stacks and ends with exit code 1.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import faulthandler
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

if "--without-hiredis" in sys.argv:
    sys.modules["hiredis"] = None  # type: ignore[assignment]  # what is not installed is not found

import redis.utils
from live import held_locks_of

from jmcache import CacheSettings, Outcome, RedisCache, RedisCacheFactory
from jmcache.testing import PrivateServer

LIMIT = 2  # connections, for four threads: the main one waits for its turn, too
KEYS = [f"k{number:03}" for number in range(100)]  # written by everybody, deleted by nobody
OWN = [f"own{number}" for number in range(10)]  # the main thread's alone
# What a report has to say, whatever was done.
NOTHING_LOST: dict[str, Any] = {
    "wrong": 0,
    "swallowed": [],
    "threads_hung": 0,
    "full_after_s": 0.0,  # as many calls at a time as there may be connections, all of them hits
    "locks_held": [],
    "permits": 0,
    "miscounted": [],
    "descriptors_leaked": 0,
    "hiredis_used": [],
}
LATE = 8  # writes of one key that were interrupted, and may still land
VERSIONS = itertools.count(1)


class SoftLimit(Exception):  # noqa: N818 - Celery's is named so
    """An ordinary Exception, as Celery's SoftTimeLimitExceeded is one."""


def value_of(key: str, version: int) -> dict[str, Any]:
    # From a few bytes to 12 kB, compressed and not.
    return {"key": key, "version": version, "pad": f"{key}/" * (version % 7) ** 4}


class Sink:
    """Takes every measurement."""

    def increment(self, *_: object) -> None:
        pass

    timing = gauge = increment


class Mine:
    """What may be stored under a key that only one caller writes."""

    def __init__(self) -> None:
        self.sure: int | None = None  # version; None: nothing
        self.unsure: list[int | None] = []  # written or not, since then and a little before

    def allows(self, value: Any) -> bool:
        return (None if value is None else value["version"]) in (self.sure, *self.unsure)


class Findings:
    """What was wrong; written by all threads."""

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self.errors: list[str] = []
        self.swallowed: list[str] = []
        sys.unraisablehook = lambda u: self.swallowed.append(f"{u.exc_value!r} in {u.object!r}")
        threading.excepthook = lambda args: self.errors.append(repr(args.exc_value))


class Caller:
    """One thread's use of the cache, and what it knows of it."""

    def __init__(
        self, cache: RedisCache, findings: Findings, chance: random.Random, trouble: bool
    ) -> None:
        self.cache = cache
        self.findings = findings
        self.chance = chance
        self.trouble = trouble  # there may be no answer
        self.mine = {key: Mine() for key in OWN}
        self.begun: Counter[str] = Counter()  # keys, by operation
        self.ended: Counter[str] = Counter()

    def call(self, own: bool) -> None:
        what = self.chance.random()
        if own and what < 0.3:
            self.use_own(self.chance.choice(OWN))
        elif what < 0.6:
            self.read(self.chance.choice(KEYS))
        elif what < 0.8:
            self.read_many(self.chance.sample(KEYS, 5))
        elif what < 0.95:
            self.write(self.chance.sample(KEYS, 1 if what < 0.9 else 3))
        elif what < 0.98:
            self.cache.health()
            self.cache.stats()
        else:
            self.cache._connection.drop_connections()

    def read(self, key: str) -> None:
        self.begun["get"] += 1
        found = self.cache.lookup(key)
        self.ended["get"] += 1
        if found.outcome is Outcome.HIT:
            self.check(key, found.value)
        else:
            self.complain(f"{key}: {found}")

    def read_many(self, keys: list[str]) -> None:
        self.begun["get_many"] += len(keys)
        found = self.cache.get_many(keys)
        self.ended["get_many"] += len(keys)
        for key, value in found.items():
            self.check(key, value)
        if len(found) < len(keys):
            self.complain(f"{len(found)} of {len(keys)}")

    def write(self, keys: list[str]) -> None:
        values = {key: value_of(key, next(VERSIONS)) for key in keys}
        verb = "set" if len(keys) == 1 else "set_many"
        self.begun[verb] += len(keys)
        done = self.cache.set(*values.popitem()) if verb == "set" else self.cache.set_many(values)
        self.ended[verb] += len(keys)
        if not done:
            self.complain(verb)

    def use_own(self, key: str) -> None:
        """Read what this thread wrote: an older one is as wrong as another key's."""
        what = self.chance.random()
        if what < 0.6:
            self.read_own(key, self.mine[key])
        else:
            self.write_own(key, self.mine[key], next(VERSIONS) if what < 0.9 else None)

    def read_own(self, key: str, mine: Mine) -> None:
        self.begun["get"] += 1
        value = self.cache.get(key)
        self.ended["get"] += 1
        if value is not None:
            self.check(key, value)
        elif self.trouble:
            return
        if not mine.allows(value):
            found = None if value is None else value["version"]
            self.findings.wrong.append(f"{key}: {found}, not {mine.sure} or {mine.unsure}")

    def write_own(self, key: str, mine: Mine, version: int | None) -> None:
        verb = "delete" if version is None else "set"
        mine.unsure.append(version)
        self.begun[verb] += 1
        if version is None:
            done = self.cache.delete(key)
        else:
            done = self.cache.set(key, value_of(key, version))
        self.ended[verb] += 1
        if done:
            mine.sure = version
            mine.unsure = mine.unsure[-LATE:]
        else:
            self.complain(verb)

    def check(self, key: str, value: Any) -> None:
        if value != value_of(key, value["version"]):
            self.findings.wrong.append(f"{key}: {str(value)[:100]}")

    def complain(self, what: str) -> None:
        if not self.trouble:
            self.findings.errors.append(what)


class Fuzz:
    """One run."""

    def __init__(self, server: PrivateServer, settings: CacheSettings, chosen: Any) -> None:
        self.server = server
        self.by = chosen.by
        self.trouble = chosen.trouble
        self.random = random.Random(chosen.seed)
        self.findings = Findings()
        self.threads_before = set(threading.enumerate())
        made = RedisCacheFactory.create_cache(settings, metrics=[Sink()])
        assert isinstance(made, RedisCache)
        self.cache = made
        self.callers = [
            Caller(made, self.findings, random.Random(self.random.random()), chosen.trouble)
            for _ in range(4)
        ]
        self.stop = threading.Event()
        self.armed = False
        self.raised = 0
        self.kept: list[BaseException] = []

    def run(self, interrupts: int) -> dict[str, Any]:
        first = self.callers[0]
        first.begun["set_many"] += len(KEYS)
        assert self.cache.set_many({key: value_of(key, 0) for key in KEYS}, timeout=5.0)
        first.ended["set_many"] += len(KEYS)
        descriptors = open_files()
        work = [(self.traffic, (caller,)) for caller in self.callers[1:]]
        work += [(self.make_trouble, ())] if self.trouble else []
        threads = [threading.Thread(target=run, args=args, daemon=True) for run, args in work]
        for thread in threads:
            thread.start()
        signal.signal(signal.SIGALRM, self.interrupt)
        signal.signal(signal.SIGINT, self.interrupt)
        began = time.monotonic()
        with self.sender() if self.by == "sigint" else contextlib.nullcontext():
            while len(self.kept) < interrupts:
                self.interrupted_call()
        took_s = time.monotonic() - began
        self.stop.set()
        for thread in threads:
            thread.join(timeout=10)
        report = {
            "interrupts": len(self.kept),
            "operations": sum(caller.ended.total() for caller in self.callers),
            "seconds": round(took_s, 1),
            "threads_hung": sum(thread.is_alive() for thread in threads),
            "in_use": self.cache.health().connections_in_use,
            "waiting": len(self.cache._connection._server.pool._waiters),
            "miscounted": self.miscounted(),  # before the calls below, which nobody counted
            "back_s": self.wait_until(lambda: self.cache.get(KEYS[0]) is not None),
            "full_after_s": self.wait_until(lambda: self.parallel_calls() == LIMIT),
            "locks_held": held_locks_of(self.cache),
            "permits": len(self.cache._breaker._moment.permits),
            "breaker_changes": self.cache._breaker._moment.epoch,
            "descriptors_leaked": max(0, open_files() - descriptors - LIMIT),
        }
        self.cache.close()
        return report | {
            "threads_left_s": self.wait_until(lambda: not self.threads_left()),
            "retries": self.cache.stats().retries,
            "wrong": len(self.findings.wrong),
            "examples": self.findings.wrong[:3],
            "errors": self.findings.errors[:5],
            "swallowed": self.findings.swallowed[:5],
        }

    # Interrupts

    def interrupt(self, number: int, _frame: FrameType | None) -> None:
        if not self.armed:
            return
        self.armed = self.by == "storm"
        self.raised += 1
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        # The recipe of many programs for a time limit of their own is the second one.
        raise SoftLimit if random.random() < 0.5 else TimeoutError("took too long")

    @contextlib.contextmanager
    def sender(self) -> Iterator[None]:
        """Another process, which sends SIGINT once in a millisecond."""
        program = (
            "import os, random, sys, time\n"
            "while os.getppid() == int(sys.argv[1]):\n"
            "    time.sleep(random.uniform(1e-4, 2e-3))\n"
            "    os.kill(int(sys.argv[1]), 2)\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(os.getpid())], start_new_session=True
        )
        try:
            yield
        finally:
            process.kill()
            process.wait()

    def interrupted_call(self) -> None:
        first_s = self.random.uniform(1e-6, self.random.choice([150e-6, 1e-3]))
        again_s = self.random.uniform(50e-6, 400e-6) if self.by == "storm" else 0.0
        raised = self.raised
        came: BaseException | None = None
        try:
            try:
                self.armed = True
                if self.by != "sigint":
                    signal.setitimer(signal.ITIMER_REAL, first_s, again_s)
                self.callers[0].call(own=True)
            finally:
                self.armed = False
                signal.setitimer(signal.ITIMER_REAL, 0)
        except (SoftLimit, TimeoutError, KeyboardInterrupt) as error:
            came = error
        except Exception as error:  # noqa: BLE001 - nothing else may come out
            self.findings.errors.append(repr(error))
        if came is not None:
            self.kept.append(came)
        elif self.raised > raised:
            self.findings.swallowed.append("in a call")

    # Beside them

    def traffic(self, caller: Caller) -> None:
        while not self.stop.is_set():
            caller.call(own=False)
            time.sleep(0.0005)

    def make_trouble(self) -> None:
        chance = random.Random(self.random.random())
        while not self.stop.wait(chance.uniform(0.01, 0.05)):
            if chance.random() < 0.8:
                self.server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            else:
                self.server.pause()
                self.stop.wait(chance.uniform(0.02, 0.2))
                self.server.resume()

    # Afterwards

    def wait_until(self, true: Callable[[], bool], at_most_s: float = 10.0) -> float:
        """The seconds it took."""
        began = time.monotonic()
        while True:
            before_s = time.monotonic() - began
            if true() or before_s > at_most_s:
                return round(before_s, 1)
            time.sleep(0.01)

    def parallel_calls(self) -> int:
        """How many calls reach the server at the same time; all of them have to succeed there."""
        results: list[str] = []

        def call(timeout: float) -> None:
            found = self.cache.lookup(KEYS[0], timeout=timeout)
            results.append(found.reason or str(found.outcome))

        def start(count: int, timeout: float) -> list[threading.Thread]:
            threads = [threading.Thread(target=call, args=(timeout,)) for _ in range(count)]
            for thread in threads:
                thread.start()
            return threads

        self.server.pause()
        threads = start(LIMIT, 30.0)
        self.wait_until(lambda: self.cache.health().connections_in_use >= LIMIT, 1.0)
        for thread in start(LIMIT, 0.2):  # for these there is none left
            thread.join(timeout=10)
        self.server.resume()
        for thread in threads:
            thread.join(timeout=30)
        one_too_many = results.count("hit") != LIMIT or results.count("pool_exhausted") != LIMIT
        return -1 if one_too_many else LIMIT

    def miscounted(self) -> list[str]:
        """Operations that the cache counted more or less often than they happened."""
        begun: Counter[str] = Counter()
        ended: Counter[str] = Counter()
        counted: Counter[str] = Counter()
        for caller in self.callers:
            begun += caller.begun
            ended += caller.ended
        for (operation, _, _), count in self.cache.stats().operations.items():
            counted[operation] += count
        return [
            f"{name}: {ended[name]} of {begun[name]} ended, {counted[name]} counted"
            for name in begun
            if not ended[name] <= counted[name] <= begun[name]
        ]

    def threads_left(self) -> list[str]:
        return [t.name for t in threading.enumerate() if t not in self.threads_before]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@contextlib.contextmanager
def server_over(kind: str) -> Iterator[tuple[PrivateServer, CacheSettings]]:
    """A server that is reached over "unix", "tcp" or "tls", and settings for it."""
    with PrivateServer(tcp=kind == "tcp", tls=kind == "tls") as server:
        yield server, CacheSettings.from_url(server.url)


def watch_hiredis() -> list[str]:
    """Note whoever uses hiredis from now on."""
    used: list[str] = []
    if redis.utils.HIREDIS_AVAILABLE:
        import hiredis

        for name in ("Reader", "pack_command"):

            def note(*_: object, name: str = name, **__: object) -> None:
                used.append(name)
                raise AssertionError("hiredis is not to be used")

            setattr(hiredis, name, note)
    return used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("interrupts", type=int)
    parser.add_argument("--by", choices=["timer", "storm", "sigint"], default="timer")
    parser.add_argument("--over", choices=["unix", "tcp", "tls"], default="unix")
    parser.add_argument("--trouble", action="store_true")
    parser.add_argument("--without-hiredis", action="store_true")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)))
    chosen = parser.parse_args()
    print(f"seed {chosen.seed}", file=sys.stderr, flush=True)
    faulthandler.dump_traceback_later(60 + chosen.interrupts / 50, exit=True)
    used = watch_hiredis()
    with server_over(chosen.over) as (server, reached):
        settings = dataclasses.replace(
            reached,
            namespace="fuzz",
            max_connections=LIMIT,
            operation_timeout=0.1 if chosen.trouble else 10.0,
            health_check_interval=0.2,
            failure_threshold=2 if chosen.trouble else 5,
            reset_timeout=0.05,
            initial_backoff_ms=1,
        )
        report = Fuzz(server, settings, chosen).run(chosen.interrupts)
    installed = redis.utils.HIREDIS_AVAILABLE
    print(
        json.dumps(vars(chosen) | report | {"hiredis_installed": installed, "hiredis_used": used})
    )


if __name__ == "__main__":
    main()
