"""Did a read return what was replaced or deleted too long before? Asked of logs of many processes.

Run as a program, it is one of the processes: readers, writers and deleters on one cache, whose
listener has a way to Redis of its own. It prints what they did.

    python near_checker.py '{"url": ..., "listener": ..., "seconds": 3, "seed": 1, "without": ""}'

All stamps are of CLOCK_MONOTONIC, which is one clock for all processes of a machine.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

KEYS = [f"key-{number}" for number in range(6)]
TAGGED = KEYS[::2]  # all with one tag


class Act(NamedTuple):
    """What somebody did.

    Attributes:
        process: Who.
        what: "read"; "write" for one value; "load" for one that may have been kept; "remove" for
            keys that are to be there no more.
        keys: Of which keys.
        value: Read or written; unique, so that it says who wrote it.
        began: Seconds.
        ended: Seconds.
        sure: Was it confirmed?
    """

    process: int
    what: str
    keys: tuple[str, ...]
    value: str | None
    began: float
    ended: float
    sure: bool = True


class Late(NamedTuple):
    """A read of what had been replaced, and by how much it came too late."""

    read: Act
    replaced: Act
    by_s: float


def judge(acts: Iterable[Act], bound_s: float) -> list[Late]:
    """Return the reads of values that were surely gone, *bound_s* or more before they began.

    Gone is a value once a confirmed act on its key is over that began after the value was written;
    for the process that did it, at once.
    """
    written: dict[str, Act] = {}
    replacing: dict[str, list[Act]] = defaultdict(list)
    reads = []
    for act in acts:
        if act.what == "read":
            reads.append(act)
            continue
        if act.what != "remove" and act.value is not None:
            written[act.value] = act
        if act.what != "load" and act.sure:
            for key in act.keys:
                replacing[key].append(act)
    late = []
    for read in reads:
        if read.value is None:
            continue
        origin = written[read.value]
        assert origin.keys == read.keys, "a value of another key"
        if not origin.sure:
            continue  # it may have come through at any time later
        for act in replacing[read.keys[0]]:
            allowed = 0.0 if act.process == read.process else bound_s
            by_s = read.began - act.ended - allowed
            if act.began > origin.ended and by_s > 0.0:
                late.append(Late(read, act, by_s))
                break
    return late


# One of the processes ---------------------------------------------------------------------------


class Process:
    """Readers and writers of one process."""

    def __init__(self, told: dict[str, Any]) -> None:
        from jmcache import CacheSettings, RedisCacheFactory
        from jmcache.connection import RedisConnectionManager

        self._seed: int = told["seed"]
        self._seconds: float = told["seconds"]
        self._over = threading.Event()
        self.acts: list[Act] = []
        self._numbers = iter(range(10**9))
        settings = CacheSettings.from_url(
            told["url"],
            near=True,
            near_lag=told["lag_s"],
            namespace="checked",
            operation_timeout=2.0,
            ttl=30.0,
        )
        self.cache = RedisCacheFactory.create_cache(settings)
        ears = RedisConnectionManager(CacheSettings.from_url(told["listener"]))
        trackings = RedisCacheFactory._backends[settings.connection_identity()].trackings
        (tracking,) = trackings.values()
        tracking._connect = ears.new_connection
        _remove_guard(told["without"])
        _take_your_time(random.Random(self._seed))

    def run(self) -> None:
        """Do everything for some time."""
        workers: list[Callable[[random.Random], None]] = [self._read] * 3 + [self._change]
        threads = [
            threading.Thread(target=self._repeat, args=(work, self._seed * 100 + number))
            for number, work in enumerate(workers)
        ]
        threads.append(threading.Thread(target=asyncio.run, args=(self._read_awaited(),)))
        for thread in threads:
            thread.start()
        self._over.wait(self._seconds)
        self._over.set()
        for thread in threads:
            thread.join()

    def _repeat(self, work: Callable[[random.Random], None], seed: int) -> None:
        choose = random.Random(seed)
        while not self._over.is_set():
            work(choose)

    def _note(
        self, what: str, keys: Iterable[str], value: Any, began: float, *, sure: bool = True
    ) -> None:
        self.acts.append(
            Act(self._seed, what, tuple(keys), value, began, time.monotonic(), bool(sure))
        )

    def _read(self, choose: random.Random) -> None:
        key = choose.choice(KEYS)
        began = time.monotonic()
        if choose.random() < 0.05:
            keys = choose.sample(KEYS, 3)
            found = self.cache.get_many(keys)
            for each in keys:
                value = found.get(each)
                self._note("read", [each], value and value["v"], began)
        else:
            value = self.cache.get(key)
            self._note("read", [key], value and value["v"], began)
        if choose.random() < 0.1:
            time.sleep(choose.random() * 0.002)

    async def _read_awaited(self) -> None:
        from jmcache.aio import AsyncRedisCache

        awaited = AsyncRedisCache(self.cache)

        async def read(seed: int) -> None:
            choose = random.Random(seed)
            while not self._over.is_set():
                key = choose.choice(KEYS)
                began = time.monotonic()
                value = await awaited.get(key)
                self._note("read", [key], value and value["v"], began)
                await asyncio.sleep(choose.random() * 0.001)

        await asyncio.gather(*[read(self._seed * 1000 + number) for number in range(4)])

    def _change(self, choose: random.Random) -> None:
        key = choose.choice(KEYS)
        began = time.monotonic()
        value = f"{self._seed}-{next(self._numbers)}"
        tags = ["tag"] if key in TAGGED else []
        what = choose.random()
        if what < 0.55:
            done = self.cache.set(key, {"v": value}, tags=tags)
            self._note("write", [key], value, began, sure=done)
        elif what < 0.75:
            done = self.cache.delete(key)
            self._note("remove", [key], None, began, sure=done)
        elif what < 0.9:
            got = self.cache.get_or_set(key, lambda: {"v": value}, tags=tags)
            if got["v"] == value:
                self._note("load", [key], value, began)
            else:
                self._note("read", [key], got["v"], began)
        elif what < 0.97:
            done = self.cache.invalidate_tags("tag")
            self._note("remove", TAGGED, None, began, sure=done)
        else:
            done = self.cache.clear()
            self._note("remove", KEYS, None, began, sure=done)
        time.sleep(choose.random() * 0.05)


def _take_your_time(choose: random.Random) -> None:
    """Stretch the moment between an answer and its being kept, in which others may be faster."""
    from jmcache.near import NearCache

    insert = NearCache.insert

    def slowly(*args: Any) -> bool:
        time.sleep(choose.random() * 0.01)
        return insert(*args)

    NearCache.insert = slowly  # type: ignore[method-assign]


def _remove_guard(name: str) -> None:
    """Take one of the guards away, to see it missed."""
    from jmcache import near

    truth: Any = near.Coherence
    if name == "lease":
        extend = truth.extend
        truth.extend = lambda self, session, _until: extend(self, session, float("inf"))
    elif name == "token":
        truth._admits = lambda self, *_: time.monotonic() < self.until
    elif name == "flush":
        truth._flush = lambda self: None
    elif name == "own writes":
        truth._begin_writing = truth._end_writing = lambda self, *_: None
    else:
        assert not name


def main() -> None:
    process = Process(json.loads(sys.argv[1]))
    print("ready", flush=True)
    sys.stdin.readline()
    process.run()
    stats = process.cache.stats()
    near = sum(n for (_, _, reason, *_), n in stats.operations.items() if reason == "near")
    print(json.dumps({"acts": process.acts, "near": near}), flush=True)


if __name__ == "__main__":
    main()
