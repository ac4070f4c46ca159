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

# Before anything of jmcache is imported: a default argument keeps what it was given then.
time.time = lambda: _real() + next(_jumps_s)
time.time_ns = lambda: _real_ns() + next(_jumps_s) * 1_000_000_000

from observation import Observation, wait_for  # noqa: E402
from stopwatch import Stopwatch  # noqa: E402

from jmcache import CacheSettings  # noqa: E402
from jmcache.testing import PrivateServer  # noqa: E402


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
        observe.close()
        observe.check()
        print(json.dumps(observe.as_dict()))


if __name__ == "__main__":
    sys.exit(main())
