"""Who asks for what: replicas, their settings, and the keys of the real trace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from benchmarks.scale.costs import Costs
from soak.trace import Request

PING_SHARE = 0.4  # of near_lag, between the PINGs of a listener that is used
CANARIES_PER_S = 1.0  # that a process writes, to hear of it
CANARY_PREFIXES = 256  # that processes share
OVERHEAD_BYTES = 1.06  # times a value, for TCP and Ethernet in packets of 1,500 bytes


class Fleet(NamedTuple):
    """A service, and how it is set up.

    Attributes:
        processes: In each replica.
        asks_per_s: Requests of users, in each process; each looks up some keys at once.
        together: So many keys.
        shards: Redis servers that share the keys.
        combining: Look-ups of one process at one time are one round trip.
        near: Each process keeps entries, and listens.
        near_lag: Seconds, the setting.
        near_ttl: Seconds, the setting.
        gbit: Gigabits a second from each Redis.
        round_trip_s: Through the network, there and back.
    """

    replicas: int
    processes: int = 4
    asks_per_s: float = 12.5
    together: int = 8
    shards: int = 1
    combining: bool = False
    near: bool = False
    near_lag: float = 0.1
    near_ttl: float = 30.0
    gbit: float = 10.0
    round_trip_s: float = 0.0002

    @property
    def all_processes(self) -> int:
        """Of all replicas."""
        return self.replicas * self.processes

    @property
    def lookups_per_s(self) -> float:
        """Of all processes."""
        return self.all_processes * self.asks_per_s * self.together

    @property
    def pings_per_s(self) -> float:
        """Of all listeners."""
        return self.all_processes / (PING_SHARE * self.near_lag) if self.near else 0.0

    def news_s(self, costs: Costs) -> float:
        """Seconds of work whenever a name of the namespace changes, or expires."""
        return self.all_processes * costs.told + self.looked_at_s(costs) if self.near else 0.0

    def looked_at_s(self, costs: Costs) -> float:
        """Seconds in which Redis looks at the prefixes of canaries, at each change."""
        return min(self.all_processes, CANARY_PREFIXES) * costs.prefix

    def canary_s(self, costs: Costs) -> float:
        """Seconds in which Redis tells of a canary, written or expired."""
        listeners = max(1.0, self.all_processes / CANARY_PREFIXES)
        return listeners * costs.told + self.looked_at_s(costs)

    def wire_s(self, value_bytes: float) -> float:
        """Seconds that so many bytes of values take to leave a Redis."""
        return value_bytes * OVERHEAD_BYTES * 8 / (self.gbit * 1e9)

    def errands(self, writes_per_s: float, costs: Costs) -> list[tuple[float, float]]:
        """What one Redis does besides look-ups: how often a second, and seconds of work each.

        Args:
            writes_per_s: SETs of what was missing, all shards together.
        """
        own = writes_per_s / self.shards
        news = self.news_s(costs)
        errands = [(own, costs.write + news)]
        if self.near:
            canaries = self.all_processes * CANARIES_PER_S
            noticed = self.canary_s(costs)
            errands += [
                (self.pings_per_s, costs.ping),
                (own, news),  # of the expiry
                (canaries, costs.touch + noticed),
                (canaries, noticed),  # of its expiry
            ]
        return errands


class Key(NamedTuple):
    """One key of the trace.

    Attributes:
        share: Of all look-ups.
        value_bytes: What is stored.
        ttl_s: For so long.
    """

    share: float
    value_bytes: int
    ttl_s: float


class Keys:
    """All keys of a trace, and the order in which they were asked for.

    Attributes:
        all: The keys.
        asked: For each look-up of the trace, which of them.
    """

    def __init__(self, trace: Sequence[Request]) -> None:
        times = Counter([request.key for request in trace])
        places = {key: place for place, key in enumerate(times)}
        last = {request.key: request for request in trace}
        self.all = [
            Key(count / len(trace), last[key].value_bytes, last[key].ttl_s)
            for key, count in times.items()
        ]
        self.asked = [places[request.key] for request in trace]

    @property
    def mean_bytes(self) -> float:
        """Of a look-up."""
        return sum([key.share * key.value_bytes for key in self.all])

    def thinned(self, number: int) -> list[Key]:
        """Return so many keys that stand for all, each for as many look-ups as any other."""
        reached = list(accumulate([key.share for key in self.all]))
        chosen, place = [], 0
        for step in range(number):
            while reached[place] < (step + 0.5) / number:
                place += 1
            chosen.append(self.all[place])
        return chosen
