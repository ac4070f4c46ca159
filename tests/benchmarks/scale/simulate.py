"""A discrete-event simulation of a fleet and its Redis: what the formulas leave out happens here.

Requests come at random, each to some process, and ask for the keys that stand next in the trace.
What no near cache has goes to the key's Redis, which has one thread and one line to the network,
both first come first served. Listeners' PINGs, the writes of what was missing and the news of them
come in between.
"""

from __future__ import annotations

import heapq
import random
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from itertools import count
from typing import NamedTuple

from benchmarks.scale.costs import Costs
from benchmarks.scale.load import Fleet, Key, Keys
from benchmarks.scale.paper import near_shares

_MOST = 64  # keys in one round trip, as jmcache combines them
_WARM = 0.1  # of the time, in which nothing is counted yet
_SHOWN = 2_000  # steps between two signs of progress

Done = Callable[[float], object]


class Seen(NamedTuple):
    """What was counted. Of several Redis the mean one, and the busiest.

    Attributes:
        latencies_s: Of the look-ups that reached Redis, in order of length.
        gets_per_s: Look-ups that Redis answered, all shards together.
        near_share: Of the look-ups, what near caches answered.
        keys_per_trip: How many keys a round trip was for.
        cpu: Seconds of work that arrived in a second.
        wire: The same of the network.
        busiest: The work, of CPU or network, of the busiest Redis.
    """

    latencies_s: list[float]
    gets_per_s: float
    near_share: float
    keys_per_trip: float
    cpu: float
    wire: float
    busiest: float

    def percentile_s(self, share: float) -> float:
        """Return what this share of the look-ups were answered in."""
        return self.latencies_s[min(len(self.latencies_s) - 1, int(share * len(self.latencies_s)))]

    @property
    def mean_s(self) -> float:
        """The mean latency."""
        return sum(self.latencies_s) / len(self.latencies_s)


class Line:
    """Somebody who does one thing after the other, such as Redis or a network card.

    Attributes:
        work_s: What arrived that counts.
    """

    def __init__(self) -> None:
        self._free_at = 0.0
        self.work_s = 0.0

    def take(self, now: float, work_s: float, *, counts: bool = True) -> float:
        """Return when work that arrives *now* is done. Ask in the order of arrival."""
        self.work_s += work_s * counts
        self._free_at = max(now, self._free_at) + work_s
        return self._free_at


class _Shard:
    def __init__(self) -> None:
        self.cpu, self.wire = Line(), Line()


class _Gate:
    """The round trips of one process to one Redis, one at a time, when they are combined."""

    def __init__(self) -> None:
        self.is_out = False
        self.waiting: deque[tuple[float, int]] = deque()


class Simulation:
    """One run. Everything that chance decides comes from one seed."""

    def __init__(self, fleet: Fleet, keys: Keys, costs: Costs, *, lookups: int, seed: int) -> None:
        """Take so many look-ups, all together."""
        self._fleet, self._keys, self._costs = fleet, keys, costs
        self._chance = random.Random(seed)
        self._end = lookups / fleet.lookups_per_s
        self._begin = self._end * _WARM
        self._steps = count()  # no two events compare further than this
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._shards = [_Shard() for _ in range(fleet.shards)]
        self._shard_of = [zlib.crc32(b"%d" % n) % fleet.shards for n in range(len(keys.all))]
        self._kept = near_shares(keys, fleet)
        self._gates: dict[tuple[int, int], _Gate] = {}
        self._asked = self._order()
        self._latencies: list[float] = []
        self._lookups = self._near = self._trips = self._sent = 0

    def run(self, done: Done) -> Seen:
        """Return what was counted; *done* is told which share of it is through."""
        fleet, costs = self._fleet, self._costs
        rate = fleet.lookups_per_s
        writes = sum(
            [key.share * rate / (1 + key.share * rate * key.ttl_s) for key in self._keys.all]
        )
        self._every(fleet.all_processes * fleet.asks_per_s, self._request)
        for shard in self._shards:
            for per_s, work_s in fleet.errands(writes, costs):
                self._every(per_s, self._work, shard, work_s)
        number = 0
        while self._events:
            now, _, act, args = heapq.heappop(self._events)
            act(now, *args)
            number += 1
            if number % _SHOWN == 0:
                done(min(1.0, now / self._end))
        return self._seen()

    def _seen(self) -> Seen:
        seconds = self._end - self._begin
        cpu = [shard.cpu.work_s / seconds for shard in self._shards]
        wire = [shard.wire.work_s / seconds for shard in self._shards]
        return Seen(
            latencies_s=sorted(self._latencies),
            gets_per_s=len(self._latencies) / seconds,
            near_share=self._near / self._lookups,
            keys_per_trip=self._sent / self._trips,
            cpu=sum(cpu) / len(cpu),
            wire=sum(wire) / len(wire),
            busiest=max(cpu + wire),
        )

    def _order(self) -> Iterator[int]:
        asked = self._keys.asked
        place = self._chance.randrange(len(asked))
        while True:
            yield asked[place % len(asked)]
            place += 1

    def _at(self, when: float, act: Callable[..., None], *args: object) -> None:
        heapq.heappush(self._events, (when, next(self._steps), act, args))

    def _every(self, per_s: float, act: Callable[..., None], *args: object) -> None:
        """Act at random moments, so often, until the end."""

        def again(now: float) -> None:
            act(now, *args)
            begin(now)

        def begin(now: float) -> None:
            when = now + self._chance.expovariate(per_s)
            if when < self._end:
                self._at(when, again)

        begin(0.0)

    def _counts(self, now: float) -> bool:
        return self._begin <= now < self._end

    def _work(self, now: float, shard: _Shard, work_s: float) -> None:
        shard.cpu.take(now, work_s, counts=self._counts(now))

    def _request(self, now: float) -> None:
        process = self._chance.randrange(self._fleet.all_processes)
        for _ in range(self._fleet.together):
            key = next(self._asked)
            counts = self._counts(now)
            self._lookups += counts
            if self._chance.random() < self._kept[key]:
                self._near += counts
                continue
            shard = self._shard_of[key]
            if not self._fleet.combining:
                self._send(now, None, shard, [(now, key)])
                continue
            gate = self._gates.setdefault((process, shard), _Gate())
            if gate.is_out:
                gate.waiting.append((now, key))
            else:
                self._send(now, gate, shard, [(now, key)])

    def _send(
        self, now: float, gate: _Gate | None, shard: int, wanted: list[tuple[float, int]]
    ) -> None:
        if gate is not None:
            gate.is_out = True
        if self._counts(now):
            self._trips += 1
            self._sent += len(wanted)
        self._at(now + self._fleet.round_trip_s / 2, self._arrive, gate, shard, wanted)

    def _arrive(
        self, now: float, gate: _Gate | None, shard: int, wanted: list[tuple[float, int]]
    ) -> None:
        size = sum([self._keys.all[key].value_bytes for _, key in wanted])
        redis = self._shards[shard]
        counts = self._counts(now)
        worked = redis.cpu.take(now, self._costs.read(len(wanted), size), counts=counts)
        sent = redis.wire.take(worked, self._fleet.wire_s(size), counts=counts)
        self._at(sent + self._fleet.round_trip_s / 2, self._answer, gate, shard, wanted)

    def _answer(
        self, now: float, gate: _Gate | None, shard: int, wanted: list[tuple[float, int]]
    ) -> None:
        for asked_at, _ in wanted:
            if self._begin <= asked_at and now <= self._end:
                self._latencies.append(now - asked_at)
        if gate is None:
            return
        gate.is_out = False
        if gate.waiting:
            number = min(_MOST, len(gate.waiting))
            self._send(now, gate, shard, [gate.waiting.popleft() for _ in range(number)])


def near_hits(
    chosen: list[Key], fleet: Fleet, *, seed: int, seconds: float, done: Done
) -> tuple[float, float]:
    """Return which share of the look-ups of these keys near caches answer, and which Redis.

    Each key on its own, with all its look-ups of all processes: nothing that a key does changes
    another, while a near cache has room. It is watched for *seconds*, or 400 look-ups if longer.
    """
    near = redis = 0.0
    for number, key in enumerate(chosen):
        by_near, by_redis = _watch(key, fleet, random.Random(f"{seed}.{number}"), seconds)
        near += by_near / len(chosen)
        redis += by_redis / len(chosen)
        done((number + 1) / len(chosen))
    return near, redis


def _watch(key: Key, fleet: Fleet, chance: random.Random, seconds: float) -> tuple[float, float]:
    rate = key.share * fleet.lookups_per_s
    # It may be in Redis or away when we begin to look, as often as it is.
    there = chance.random() < key.ttl_s / (key.ttl_s + 1 / rate)
    gone_at = chance.uniform(0, key.ttl_s) if there else 0.0
    kept_until: dict[int, float] = {}
    begin = fleet.near_ttl  # by then all that is in a near cache came there before our eyes
    end = begin + max(seconds, 400 / rate)
    now, lookups, near, redis = 0.0, 0, 0, 0
    while (now := now + chance.expovariate(rate)) < end:
        counts = now >= begin
        lookups += counts
        process = chance.randrange(fleet.all_processes)
        if now >= gone_at:  # a miss: loaded and set
            gone_at = now + key.ttl_s
        elif kept_until.get(process, 0.0) > now:
            near += counts
        else:
            redis += counts
            # Not beyond the TTL: Redis tells of an expiry.
            kept_until[process] = min(now + fleet.near_ttl, gone_at)
    return (near / lookups, redis / lookups) if lookups else (0.0, 0.0)
