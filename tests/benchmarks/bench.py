"""jmcache beside plain redis-py with ujson, on one private server, in one run.

    make bench                  about a minute
    make bench ARGS=--quick     a few seconds, less exact
    make bench ARGS=--json      one JSON object

The contenders take turns in short rounds, so that what else the machine does hits all alike. The
figures are medians over the rounds; only ratios mean anything on another machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import redis
import redis.asyncio
import ujson

import jmcache
from jmcache import AsyncRedisCache, CacheSettings, RedisCache, RedisCacheFactory
from jmcache.testing import PrivateServer

MATCH = {
    "job": "p00017",
    "title": "Senior Data Engineer",
    "company": "Example GmbH",
    "location": "Berlin, Germany",
    "remote": True,
    "score": 0.8125,
    "skills": ["airflow", "python", "redis", "spark", "sql"],
    "missing": ["kafka"],
    "posted": "2023-05-01T12:00:00",
}
RESULT = {"candidate": "c00042", "matches": [MATCH | {"rank": rank} for rank in range(20)]}


@dataclass(frozen=True)
class Contest:
    """Two ways to do the same. Each runs its operation *count* times when called."""

    name: str
    ours: Callable[[int], None]
    plain: Callable[[int], None]
    count: int
    operations: int = 1  # that one of *count* stands for


def contests(server: PrivateServer, cache: RedisCache) -> list[Contest]:
    """Everything that is measured, in the order of the table."""
    pool = redis.BlockingConnectionPool.from_url(
        server.url, max_connections=64, protocol=2, timeout=5
    )
    plain = redis.Redis(connection_pool=pool)
    text = ujson.dumps(RESULT)
    keys = [f"many-{number}" for number in range(100)]
    plain.set("k", text, ex=600)
    plain.mset(dict.fromkeys(keys, text))
    cache.set("k", RESULT, ttl=600)
    cache.set_many(dict.fromkeys(keys, RESULT), ttl=600)

    def threaded(operation: Callable[[], Any], threads: ThreadPoolExecutor, parallel: int) -> Any:
        def run(count: int) -> None:
            share = count // parallel

            def work(_: int) -> None:
                for _ in range(share):
                    operation()

            list(threads.map(work, range(parallel)))

        return run

    def alone(operation: Callable[[], Any]) -> Callable[[int], None]:
        def run(count: int) -> None:
            for _ in range(count):
                operation()

        return run

    def plain_get() -> Any:
        return ujson.loads(plain.get("k"))

    def plain_set() -> Any:
        return plain.set("k", ujson.dumps(RESULT), ex=600)

    def plain_set_many() -> Any:
        pipe = plain.pipeline(transaction=False)
        for key in keys:
            pipe.set(key, ujson.dumps(RESULT), ex=600)
        return pipe.execute()

    found = [
        Contest("get, a hit of 5 KB", alone(lambda: cache.get("k")), alone(plain_get), 400),
        Contest("set, 5 KB", alone(lambda: cache.set("k", RESULT)), alone(plain_set), 300),
        Contest(
            "get_many, 100 keys",
            alone(lambda: cache.get_many(keys)),
            alone(lambda: [ujson.loads(blob) for blob in plain.mget(keys)]),
            10,
            100,
        ),
        Contest(
            "set_many, 100 keys",
            alone(lambda: cache.set_many(dict.fromkeys(keys, RESULT))),
            alone(plain_set_many),
            10,
            100,
        ),
    ]
    for parallel in (16, 64):
        threads = ThreadPoolExecutor(parallel)
        found.append(
            Contest(
                f"get, {parallel} threads",
                threaded(lambda: cache.get("k"), threads, parallel),
                threaded(plain_get, threads, parallel),
                640,
            )
        )
    return found


def async_contests(server: PrivateServer, cache: AsyncRedisCache) -> list[Contest]:
    """The same for coroutines, each contender with one event loop for the whole run."""
    loop = asyncio.new_event_loop()
    plain = redis.asyncio.Redis(
        connection_pool=redis.asyncio.BlockingConnectionPool.from_url(
            server.url, max_connections=64, protocol=2, timeout=5
        )
    )

    async def plain_get() -> Any:
        return ujson.loads(await plain.get("k"))

    def gathered(operation: Callable[[], Any], parallel: int) -> Callable[[int], None]:
        async def one(share: int) -> None:
            for _ in range(share):
                await operation()

        async def every(count: int) -> None:
            await asyncio.gather(*(one(count // parallel) for _ in range(parallel)))

        return lambda count: loop.run_until_complete(every(count))

    return [
        Contest(
            f"await get, {parallel} tasks",
            gathered(lambda: cache.get("k"), parallel),
            gathered(plain_get, parallel),
            640,
        )
        for parallel in (1, 16, 64)
    ]


def run(chosen: list[Contest], rounds: int) -> list[dict[str, Any]]:
    """Let the contenders take turns; return one row for each contest."""
    rows = []
    for number, contest in enumerate(chosen):
        seconds: dict[str, list[float]] = {"ours": [], "plain": []}
        for turn in range(rounds + 1):
            for side in ("ours", "plain") if turn % 2 else ("plain", "ours"):
                started = time.perf_counter()
                getattr(contest, side)(contest.count)
                if turn:  # the first is the warm-up
                    seconds[side].append(time.perf_counter() - started)
            show_progress(number + (turn + 1) / (rounds + 1), len(chosen), contest.name)
        per_call = 1e6 / (contest.count * contest.operations)
        ratios = sorted(a / b for a, b in zip(seconds["ours"], seconds["plain"], strict=True))
        rows.append(
            {
                "name": contest.name,
                "ours_us": round(statistics.median(seconds["ours"]) * per_call, 2),
                "plain_us": round(statistics.median(seconds["plain"]) * per_call, 2),
                "ratio": round(statistics.median(ratios), 2),
                "spread": [
                    round(ratios[len(ratios) // 4], 2),
                    round(ratios[len(ratios) * 3 // 4], 2),
                ],
            }
        )
    return rows


def show_progress(done: float, of: int, name: str) -> None:
    """One line on a terminal, nothing elsewhere."""
    if sys.stderr.isatty():
        filled = round(30 * done / of)
        print(f"\r[{'#' * filled:<30}] {name:<24}", end="", file=sys.stderr, flush=True)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="jmcache beside plain redis-py with ujson")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    wanted = parser.parse_args()
    with PrivateServer() as server:
        settings = CacheSettings.from_url(server.url, max_connections=64, operation_timeout=5.0)
        cache = RedisCacheFactory.create_cache(settings)
        assert isinstance(cache, RedisCache)
        with cache:
            chosen = contests(server, cache) + async_contests(server, AsyncRedisCache(cache))
            rows = run(chosen, 5 if wanted.quick else 21)
    about = {
        "python": platform.python_version(),
        "redis-py": redis.__version__,
        "jmcache": jmcache.__version__,
        "result bytes": len(ujson.dumps(RESULT)),
    }
    if sys.stderr.isatty():
        print(file=sys.stderr)
    if wanted.json:
        print(json.dumps({"about": about, "rows": rows}))
        return 0
    print("  ".join(f"{name} {value}" for name, value in about.items()))
    print(f"{'':<24}{'jmcache us':>12}{'plain us':>12}{'ratio':>8}   middle half")
    for row in rows:
        low, high = row["spread"]
        print(
            f"{row['name']:<24}{row['ours_us']:>12.1f}{row['plain_us']:>12.1f}{row['ratio']:>8.2f}"
            f"   {low:.2f} to {high:.2f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
