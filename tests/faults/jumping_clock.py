"""A program in which the wall clock jumps with each look: run by test_rows_of_this_process."""

from __future__ import annotations

import itertools
import json
import random
import sys
import time

_real, _real_ns = time.time, time.time_ns
# To or fro by chance, and further each time: whoever compares two looks finds them out of order.
_chance = random.Random(57)
_jumps_s = (look * _chance.choice((-1000, 1000)) for look in itertools.count())

_looked: set[str] = set()  # the modules that looked


def _jumping() -> float:
    _looked.add(sys._getframe(1).f_globals["__name__"])
    return _real() + next(_jumps_s)


def _jumping_ns() -> int:
    _looked.add(sys._getframe(1).f_globals["__name__"])
    return _real_ns() + next(_jumps_s) * 1_000_000_000


# Before anything of jmcache is imported: a default argument keeps what it was given then.
time.time, time.time_ns = _jumping, _jumping_ns

from observation import Observation, wait_for  # noqa: E402
from stopwatch import Stopwatch  # noqa: E402

from jmcache import CacheSettings, LocalCache, RedisCacheFactory  # noqa: E402
from jmcache.testing import PrivateServer  # noqa: E402


class Sink:
    """Takes every measurement."""

    def increment(self, *_: object) -> None:
        pass

    timing = gauge = increment


def look_everywhere(observe: Observation, server: PrivateServer) -> None:
    """Use what else has to do with time: memory, a pool that is used up, a refused password."""
    for made in (LocalCache(), RedisCacheFactory.create_cache("memory://")):
        memory = observe.watch(made)
        assert memory.set("k", 1) is True
        assert memory.set("short", 1, ttl=0.1) is True
        wait_for(lambda memory=memory: memory.get("short") is None)
        assert memory.get("k") == 1

    narrow = observe.cache(CacheSettings.from_url(server.url, max_connections=1), metrics=[Sink()])
    with observe.traffic(narrow, threads=4):
        assert narrow.get_many(["k0", "k1"]) == {"k0": [0], "k1": [1]}

    refused = observe.cache(CacheSettings.from_url(server.url, password="wrong", namespace="other"))
    assert {refused.lookup("k").reason for _ in range(10)} <= {"auth", "breaker_open"}


def main() -> None:
    with PrivateServer() as server, Stopwatch() as watch:
        observe = Observation(watch)
        cache = observe.cache(CacheSettings.from_url(server.url))
        with observe.fault():
            for number in range(100):
                assert cache.set(f"k{number}", [number], ttl=60) is True
                assert cache.get(f"k{number}") == [number]
                age_s = cache.lookup(f"k{number}").age_s
                assert age_s is not None
                assert age_s >= 0.0
            assert cache.set("short", 1, ttl=0.1) is True
            wait_for(lambda: cache.get("short") is None)
            server.pause()
            observe.nothing(cache, "timeout")
            assert {cache.lookup("k").reason for _ in range(100)} == {"breaker_open"}
            server.resume()
        observe.back(cache)
        look_everywhere(observe, server)
        observe.close()
        # An entry's times are to be the same on all hosts, and a counter that is begun anew only
        # has to be another number than it ever was. Nothing else is the wall clock's.
        ours = {name for name in _looked if name.startswith("jmcache.")}
        entries = {"jmcache.cache._stops", "jmcache.envelope"}
        counters = {"jmcache.local", "jmcache.connection._manager"}
        assert ours <= entries | counters, ours
        observe.check()
        print(json.dumps(observe.as_dict()))


if __name__ == "__main__":
    sys.exit(main())
