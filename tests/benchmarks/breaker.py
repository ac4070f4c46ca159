"""What the breaker's shares gain and cost, on a real server behind a network that fails.

    python tests/benchmarks/breaker.py                  about five minutes
    python tests/benchmarks/breaker.py --seconds 5      less exact
    python tests/benchmarks/breaker.py --share 0.5      with another share of failures
    python tests/benchmarks/breaker.py --call           only what a successful call pays, 10 s

One worker reads an entry that is there, again and again, with 5 ms of other work between. Off, only
five failures in a row open the breaker; on, the setting in the row does so besides.

    asked    share of the calls that were let through to Redis
    in s     what the worker spent in the cache of all the time
    a hit    what it spent for each hit it got, misses included: a cache pays while computing the
             value takes longer than that
"""

from __future__ import annotations

import argparse
import itertools
import logging
import random
import statistics
import time
import timeit
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from jmcache import CircuitBreaker, RedisCacheFactory
from jmcache.testing import FaultProxy, PrivateServer

THINK_S = 0.005


@dataclass(frozen=True)
class Scenario:
    """A fault, and the settings under which it is met."""

    name: str
    fault: Callable[[FaultProxy], object]
    on: dict[str, Any]
    settings: dict[str, Any]


@dataclass(frozen=True)
class Result:
    """How one run of a scenario went."""

    waits_s: list[float]
    hits: int
    unasked: int

    def __str__(self) -> str:
        calls, spent_s = len(self.waits_s), sum(self.waits_s)
        p50, mean = statistics.median(self.waits_s), spent_s / calls
        return (
            f"{calls:>6}{1 - self.unasked / calls:>8.0%}{self.hits / calls:>8.1%}"
            f"{spent_s:>8.1f}{mean * 1000:>9.1f}{p50 * 1000:>8.1f}"
            f"{spent_s / max(1, self.hits) * 1000:>9,.0f} ms"
        )


def in_turn(pattern: str) -> Callable[[list[bytes]], bool]:
    """A trigger for reads and probes: "FFFFs" is four failures and a success, again and again."""
    return _for_each(lambda: itertools.cycle([letter == "F" for letter in pattern]))


def at_random(share: float) -> Callable[[list[bytes]], bool]:
    """A trigger for reads and probes that strikes so many of them."""
    chance = random.Random(1)
    return _for_each(lambda: iter(lambda: chance.random() < share, None))


def _for_each(turns: Callable[[], Iterator[bool]]) -> Callable[[list[bytes]], bool]:
    by_word = {b"GET": turns(), b"PING": turns()}

    def strikes(words: list[bytes]) -> bool:
        turn = by_word.get(bytes(words[0]).upper())
        return turn is not None and next(turn)

    return strikes


FAILURES = {"failure_rate_threshold": 0.75}
SLOW = {"slow_call_threshold": 0.1}
SCENARIOS = [
    Scenario(f"{how}: {what}", partial(fault, trigger), FAILURES, {})
    for how, trigger in [
        ("4 of 5 in turn", partial(in_turn, "FFFFs")),
        ("1 of 2 in turn", partial(in_turn, "Fs")),
        ("1 of 2 at random", partial(at_random, 0.5)),
        ("1 of 5 in turn", partial(in_turn, "Fssss")),
    ]
    for what, fault in [
        ("reply lost", lambda trigger, proxy: proxy.swallow_reply(on=trigger())),
        ("reset", lambda trigger, proxy: proxy.reset(on=trigger())),
    ]
] + [
    Scenario(
        f"answers in {seconds * 1000:.0f} ms, deadline {deadline_s * 1000:.0f} ms",
        lambda proxy, seconds=seconds: proxy.latency(seconds),
        SLOW,
        {"operation_timeout": deadline_s},
    )
    for seconds, deadline_s in [(0.4, 1.0), (0.2, 0.25)]
]


def run(scenario: Scenario, settings: dict[str, Any], seconds: float) -> Result:
    """Read for so many seconds behind the fault."""
    hits = unasked = 0
    waits_s: list[float] = []
    with PrivateServer() as server, FaultProxy(server) as proxy:
        chosen = {"failure_rate_threshold": None} | scenario.settings | settings
        with RedisCacheFactory.create_cache(proxy.settings(**chosen)) as cache:
            assert cache.set("k", "v")
            scenario.fault(proxy)
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                began = time.perf_counter()
                found = cache.lookup("k")
                waits_s.append(time.perf_counter() - began)
                hits += found.is_hit
                unasked += found.reason == "breaker_open"
                time.sleep(THINK_S)
    return Result(waits_s, hits, unasked)


def compare(seconds: float) -> None:
    """Print each scenario without and with its share."""
    print(
        f"{'':<34}{'calls':>6}{'asked':>8}{'hits':>8}{'in s':>8}{'mean ms':>9}{'p50 ms':>8}  a hit"
    )
    for scenario in SCENARIOS:
        print(scenario.name)
        print(f"    {'off':<30}{run(scenario, {}, seconds)}", flush=True)
        ((name, value),) = scenario.on.items()
        print(
            f"    {name}={value:<{29 - len(name)}}{run(scenario, scenario.on, seconds)}", flush=True
        )


def cost() -> None:
    """Print what a successful call pays for being counted, the best of many short rounds."""

    def nothing() -> None:
        pass

    ways: dict[str, Callable[[], object]] = {"the function alone": nothing}
    for name, options in [
        ("failures in a row", {}),
        ("and a share of failures", FAILURES),
        ("and a share of slow calls", FAILURES | SLOW),
    ]:
        breaker = CircuitBreaker(name=name, **options)
        ways[name] = lambda call=breaker.call: call(nothing)
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(400):
        for name, way in ways.items():
            best[name] = min(best[name], timeit.timeit(way, number=3000) / 3000)
    for name, took_s in best.items():
        print(f"{name:<29}{took_s * 1e9:>8.0f} ns")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=15.0, help="for each run")
    parser.add_argument("--share", type=float, default=0.75, help="of failures that opens it")
    parser.add_argument("--call", action="store_true", help="measure the breaker alone")
    chosen = parser.parse_args()
    FAILURES["failure_rate_threshold"] = chosen.share
    logging.disable(logging.WARNING)
    if chosen.call:
        cost()
    else:
        compare(chosen.seconds)


if __name__ == "__main__":
    main()
