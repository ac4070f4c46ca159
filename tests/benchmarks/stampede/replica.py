"""One process of a stampede. Prints what its callers saw, as one JSON object.

    python replica.py CONTENDER PORT SCENE-AS-JSON

Says "ready" first, and begins at the moment it is then told: seconds by time.monotonic, which all
processes of a machine share. Needs nothing but the contender's own packages.
"""

from __future__ import annotations

import asyncio
import csv
import gzip
import itertools
import json
import logging
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from contenders import CONTENDERS

_VALUE = {"matches": [{"job": f"p{number:05}", "score": 0.5} for number in range(20)]}


class Replica:
    """What happens in this process."""

    def __init__(self, name: str, port: int, scene: dict[str, Any]) -> None:
        self.cache = CONTENDERS[name](port)
        self.awaited = getattr(self.cache, "awaited", False)
        self.scene = scene
        self.here = range(scene["first"], scene["first"] + scene["here"])
        self.loads: list[float] = []  # when each ended
        self.calls: list[tuple[float, float]] = []  # when each began, and ended
        self.errors: dict[str, int] = {}

    def run(self) -> dict[str, Any]:
        if self.awaited:
            asyncio.run(self.on_a_loop())
        else:
            self.on_threads()
        return {"loads": self.loads, "calls": self.calls, "errors": self.errors}

    # What a caller does

    def plan(self, caller: int) -> Iterator[tuple[float, str, float]]:
        """Yield when to ask, seconds after the beginning, for what key, and with which TTL."""
        scene = self.scene
        if scene["kind"] == "cold":
            yield 0.0, "cold", 600.0
        elif scene["kind"] == "hot":
            at = 0.0
            while at < scene["seconds"]:
                yield at, "hot", scene["ttl_s"]
                at += scene["every_s"]
        else:
            with gzip.open(scene["file"], "rt", encoding="ascii", newline="") as lines:
                rows = itertools.islice(csv.DictReader(lines), scene["look_ups"])
                for number, row in enumerate(rows):
                    if number % scene["callers"] == caller:
                        ttl_s = float(row["ttl_s"]) / scene["shorter"]
                        yield number * scene["every_s"], row["key"], ttl_s

    def load(self) -> Any:
        time.sleep(self.scene["load_s"])
        self.loads.append(time.monotonic())
        return _VALUE

    async def load_awaited(self) -> Any:
        await asyncio.sleep(self.scene["load_s"])
        self.loads.append(time.monotonic())
        return _VALUE

    def on_threads(self) -> None:
        self.cache.get("warm", lambda: 1, 60)  # so that a connection is there
        begin = told_when()
        threads = [threading.Thread(target=self.ask, args=(begin, caller)) for caller in self.here]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def ask(self, begin: float, caller: int) -> None:
        for at, key, ttl_s in self.plan(caller):
            time.sleep(max(0.0, begin + at - time.monotonic()))
            began = time.monotonic()
            try:
                self.cache.get(key, self.load, ttl_s)
            except Exception as error:  # noqa: BLE001 - counted, and shown
                self.note(error)
            self.calls.append((began, time.monotonic()))

    async def on_a_loop(self) -> None:
        await self.cache.get("warm", self.load_warm, 60)
        begin = await asyncio.to_thread(told_when)
        await asyncio.gather(*[self.ask_awaited(begin, caller) for caller in self.here])

    async def load_warm(self) -> int:
        return 1

    async def ask_awaited(self, begin: float, caller: int) -> None:
        for at, key, ttl_s in self.plan(caller):
            await asyncio.sleep(max(0.0, begin + at - time.monotonic()))
            began = time.monotonic()
            try:
                await self.cache.get(key, self.load_awaited, ttl_s)
            except Exception as error:  # noqa: BLE001 - counted, and shown
                self.note(error)
            self.calls.append((began, time.monotonic()))

    def note(self, error: Exception) -> None:
        name = f"{type(error).__name__} {str(error)[:60]}"
        self.errors[name] = self.errors.get(name, 0) + 1


def told_when() -> float:
    print("ready", flush=True)
    return float(sys.stdin.readline())


def main() -> None:
    logging.disable(logging.CRITICAL)
    name, port, scene = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    print(json.dumps(Replica(name, port, scene).run()), flush=True)


if __name__ == "__main__":
    main()
