"""Many processes with many threads or tasks ask for one key at the same moment.

Run as a program, by tests/test_compute_processes.py: makes a cache, uses it, forks as a Celery
worker or gunicorn with preload does, and prints as JSON what every caller got, and when. What the
loader did is in the file ``loads``, one line for each time it ran.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).with_name("faults")))

from stopwatch import Stopwatch

from jmcache import CacheSettings, RedisCache, RedisCacheFactory
from jmcache.aio import AsyncRedisCache


class Stampede:
    """One run. What the test asks for is in *asked*."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self.directory = Path(asked["directory"])
        self.processes: int = asked["processes"]
        self.callers: int = asked["callers"]
        self.replicas: int = asked.get("replicas", 0)  # of the processes; with an event loop
        self.load_s: float = asked["load_s"]
        self.kill_first: bool = asked.get("kill_first", False)
        self.keys: list[str] = asked.get("keys", ["cold"])
        self.settings = CacheSettings.from_url(
            asked["url"], namespace="stampede", **asked.get("settings", {})
        )
        made = RedisCacheFactory.create_cache(self.settings)
        assert isinstance(made, RedisCache)
        self.cache = made
        self.barrier = multiprocessing.get_context("fork").Barrier(self.processes)
        self.rows: list[tuple[str, float, float, float, Any]] = []

    def run(self) -> list[Any]:
        assert self.cache.set("warm", 1)  # with a connection and a thread before the fork
        context = multiprocessing.get_context("fork")
        children = [
            context.Process(target=self._child, args=(number,)) for number in range(self.processes)
        ]
        for child in children:
            child.start()
        for child in children:
            child.join()
        ended = [child.exitcode for child in children]
        rows = [
            row
            for path in self.directory.glob("rows-*")
            for row in json.loads(path.read_text("utf-8"))
        ]
        return [ended, rows]

    def _child(self, number: int) -> None:
        for key in self.keys:
            if key != self.keys[0]:
                self._wait_for((self.directory / key).exists)
                self._wait_for(lambda: self.cache.lookup("warm").outcome == "miss")
            self.barrier.wait(60.0)
            with Stopwatch() as watch:
                if number < self.replicas:
                    asyncio.run(self._ask_on_a_loop(key))
                else:
                    self._ask_on_threads(key)
                self._tell(watch, number)

    def _ask_on_threads(self, key: str) -> None:
        start = threading.Barrier(self.callers)

        def ask() -> None:
            start.wait(60.0)
            began = time.monotonic()
            got = self.cache.get_or_set(key, lambda: self._load(key), ttl=300)
            self.rows.append((key, began, time.monotonic(), 0.0, got))

        threads = [threading.Thread(target=ask) for _ in range(self.callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    async def _ask_on_a_loop(self, key: str) -> None:
        adapter = AsyncRedisCache(self.cache)

        async def load() -> Any:
            return await asyncio.to_thread(self._load, key)

        async def ask() -> None:
            began = time.monotonic()
            got = await adapter.get_or_set(key, load, ttl=300)
            self.rows.append((key, began, time.monotonic(), 0.0, got))

        await asyncio.gather(*[ask() for _ in range(self.callers)])

    def _load(self, key: str) -> dict[str, Any]:
        loads = self.directory / "loads"
        line = f"{key} {os.getpid()}\n".encode()
        descriptor = os.open(loads, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)
        if self.kill_first and loads.read_bytes().startswith(line):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.load_s:
            time.sleep(self.load_s)
        else:
            self._wait_for((self.directory / "go on").exists)
            # Nothing is kept while Redis is away: who comes after the load would load again.
            self._wait_for(
                lambda: self.cache.stats().events.get("coalesced", 0) >= self.callers - 1
            )
        return {"by": os.getpid(), "at": time.monotonic()}

    def _wait_for(self, condition: Callable[[], object]) -> None:
        until = time.monotonic() + 60.0
        while not condition():
            assert time.monotonic() < until
            time.sleep(0.002)

    def _tell(self, watch: Stopwatch, number: int) -> None:
        rows = [
            (key, began, ended, watch.lag_s(got["at"], ended), got)
            for key, began, ended, _, got in self.rows
        ]
        (self.directory / f"rows-{number}").write_text(json.dumps(rows), "utf-8")


if __name__ == "__main__":
    print(json.dumps(Stampede(json.loads(sys.argv[1])).run()))
