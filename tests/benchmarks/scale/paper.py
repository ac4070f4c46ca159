"""The same on paper: closed formulas for what the simulation counts."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import NamedTuple

from benchmarks.scale.costs import Costs
from benchmarks.scale.load import Fleet, Key, Keys

TOO_MUCH = 0.95  # of a Redis: from there on a wait is anything, and takes long to become so
_LONG = 20.0  # near_ttls in a TTL from which on their end does not matter


class Flow(NamedTuple):
    """What arrives at one Redis, of one kind.

    Attributes:
        per_s: Arrivals; those that come at the same moment are one.
        work_s: Seconds of work in an arrival.
        square: The mean of the square of those seconds.
    """

    per_s: float
    work_s: float
    square: float


class Paper(NamedTuple):
    """What is to be expected of a fleet, by formula. Of several Redis, of the mean one.

    Attributes:
        near_share: Of the look-ups, what the near caches answer.
        gets_per_s: Look-ups that reach Redis, all shards together.
        writes_per_s: SETs of what was missing, all together.
        keys_per_trip: How many keys a round trip is for.
        cpu: Seconds of work that arrive in a second; from 1 on it cannot be done.
        wire: The same of the network.
        latency_s: Mean of a look-up that reaches Redis; inf where that is too much for it.
    """

    near_share: float
    gets_per_s: float
    writes_per_s: float
    keys_per_trip: float
    cpu: float
    wire: float
    latency_s: float


def wait_s(flows: Iterable[Flow]) -> float:
    """Mean wait for one server, first come first served (Pollaczek and Khinchine); inf if too much.

    For arrivals at random. With all work the same and one flow it is M/D/1.
    """
    flows = list(flows)
    busy = sum([flow.per_s * flow.work_s for flow in flows])
    if busy >= 1:
        return math.inf
    return sum([flow.per_s * flow.square for flow in flows]) / (2 * (1 - busy))


def near_share(key: Key, lookups_per_s: float, processes: int, near_ttl: float) -> float:
    """The share of the look-ups of *key* that near caches answer.

    The key is in Redis for its TTL and away until the next look-up, which loads it. Within a TTL
    each process fetches it at its first look-up, and again at its first one *near_ttl* after that.
    """
    rate = key.share * lookups_per_s
    fetches = processes * _fetches(rate / processes, key.ttl_s, near_ttl)
    return (rate * key.ttl_s - fetches) / (1 + rate * key.ttl_s)


@functools.lru_cache(maxsize=32)
def near_shares(keys: Keys, fleet: Fleet) -> tuple[float, ...]:
    """Return for each key which share of its look-ups near caches answer."""
    if not fleet.near:
        return (0.0,) * len(keys.all)
    rate, processes = fleet.lookups_per_s, fleet.all_processes
    return tuple([near_share(key, rate, processes, fleet.near_ttl) for key in keys.all])


def _fetches(rate: float, ttl: float, near_ttl: float) -> float:
    """How often one process fetches in a TTL: a renewal process whose steps are near_ttl + Exp."""
    if ttl > _LONG * near_ttl:
        step = near_ttl + 1 / rate
        square = near_ttl**2 + 2 * near_ttl / rate + 2 / rate**2
        return ttl / step + square / (2 * step**2) - 1 / rate / step
    total, number = 0.0, 0
    while (left := ttl - number * near_ttl) > 0:
        # The chance that so many waits, one more than there were fetches, are over by then.
        term = below = math.exp(-rate * left)
        for place in range(1, number + 1):
            term *= rate * left / place
            below += term
        total += 1 - below
        number += 1
    return total


def paper(fleet: Fleet, keys: Keys, costs: Costs) -> Paper:
    """Return what is to be expected of *fleet*."""
    lookups = fleet.lookups_per_s
    kept = near_shares(keys, fleet._replace(shards=1, near_lag=1.0, combining=False))
    missed = [key.share * (1 - share) for key, share in zip(keys.all, kept, strict=True)]
    asked = sum(missed)
    writes = sum([key.share * lookups / (1 + key.share * lookups * key.ttl_s) for key in keys.all])
    sizes = [key.value_bytes for key in keys.all]
    mean = sum([share * size for share, size in zip(missed, sizes, strict=True)]) / asked
    square = sum([share * size**2 for share, size in zip(missed, sizes, strict=True)]) / asked

    # Of the keys that a user's request asks for, how many reach one shard: each with this chance.
    chance = asked / fleet.shards
    counts = {
        count: math.comb(fleet.together, count)
        * chance**count
        * (1 - chance) ** (fleet.together - count)
        for count in range(1, fleet.together + 1)
    }
    requests = fleet.all_processes * fleet.asks_per_s
    cpu, wire, trips = [], [], 0.0
    within = 0.0  # seconds that keys wait for those that came with them, all together
    for count, share in counts.items():
        per_s = requests * share
        # Combined, the first asks alone, and the others when its answer is there.
        sends = ([1, count - 1] if count > 1 else [1]) if fleet.combining else [count]
        for keys_sent in sends:
            parts = 1 if fleet.combining else keys_sent
            trips += per_s * parts
            cpu.append(_flow(per_s, keys_sent, parts, mean, square, costs))
            wire.append(_wire_flow(per_s, keys_sent, mean, square, fleet))
            if not fleet.combining:
                within += per_s * keys_sent * (keys_sent - 1) / 2 * costs.read(1, mean)
    gets = asked * lookups
    cpu += [Flow(per_s, work, work**2) for per_s, work in fleet.errands(writes, costs)]
    wait = wait_s(cpu) + wait_s(wire)
    own_gets = gets / fleet.shards
    busy = [sum([flow.per_s * flow.work_s for flow in flows]) for flows in (cpu, wire)]
    latency = wait + within / own_gets + fleet.round_trip_s
    if max(busy) > TOO_MUCH:
        latency = math.inf
    elif fleet.combining:
        latency += _combined_s(requests, counts, own_gets, mean, fleet, costs, wait)
    else:
        latency += costs.read(1, mean) + fleet.wire_s(mean)
    return Paper(
        near_share=1 - asked,
        gets_per_s=gets,
        writes_per_s=writes,
        keys_per_trip=own_gets / trips,
        cpu=busy[0],
        wire=busy[1],
        latency_s=latency,
    )


def _flow(per_s: float, count: int, parts: int, mean: float, square: float, costs: Costs) -> Flow:
    work = costs.trip * parts + costs.key * count + costs.byte * mean * count
    spread = costs.byte**2 * (square - mean**2) * count
    return Flow(per_s, work, work**2 + spread)


def _wire_flow(per_s: float, count: int, mean: float, square: float, fleet: Fleet) -> Flow:
    work = fleet.wire_s(mean * count)
    return Flow(per_s, work, work**2 + fleet.wire_s(1) ** 2 * (square - mean**2) * count)


def _combined_s(
    requests: float,
    counts: dict[int, float],
    gets: float,
    mean: float,
    fleet: Fleet,
    costs: Costs,
    wait: float,
) -> float:
    """Mean seconds of a look-up besides one wait and one way: its trip's, and that before it."""
    first = costs.read(1, mean) + fleet.wire_s(mean)
    total = 0.0
    for count, share in counts.items():
        rest = count - 1
        second = costs.read(rest, rest * mean) + fleet.wire_s(rest * mean)
        total += requests * share * (first + rest * (first + fleet.round_trip_s + wait + second))
    return total / gets
