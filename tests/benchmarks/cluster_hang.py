"""One master of three hangs for three seconds under 16 threads: who gets an answer?

    python tests/benchmarks/cluster_hang.py

Prints the shares of reads that were answered, of keys of the two other masters and of its own:
with a circuit breaker for each node, and with the one around all of them alone.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any
from unittest import mock

from jmcache import CacheSettings, RedisCache, RedisCacheFactory
from jmcache.connection import RedisConnectionManager
from jmcache.errors import RedisError
from jmcache.testing import PrivateCluster

THREADS = 16
SECONDS = 3.0


def trips(_manager: RedisConnectionManager, error: RedisError) -> bool:
    return error.trips


def measure(cluster: PrivateCluster) -> str:
    with RedisCacheFactory.create_cache(CacheSettings.from_url(cluster.url)) as cache:
        assert isinstance(cache, RedisCache)
        owners = cluster.owners()
        dead = cluster.masters()[0]
        names = {f"key {n}": cache._keys.name(f"key {n}")[0] for n in range(300)}
        its = {key for key, name in names.items() if owners[cluster.slot_of(name)] is dead}
        assert cache.set_many(dict.fromkeys(names, 1), timeout=5.0)
        counts: Counter[tuple[bool, bool]] = Counter()
        over = threading.Event()

        def read(number: int) -> None:
            keys = list(names)
            while not over.wait(0.002):
                number += 7
                key = keys[number % len(keys)]
                counts[key in its, cache.get(key) == 1] += 1

        threads = [threading.Thread(target=read, args=(n,), daemon=True) for n in range(THREADS)]
        dead.pause()
        for thread in threads:
            thread.start()
        time.sleep(SECONDS)
        over.set()
        for thread in threads:
            thread.join(timeout=10)
        dead.resume()
    share: dict[bool, Any] = {
        own: counts[own, True] / max(1, counts[own, True] + counts[own, False])
        for own in (False, True)
    }
    return f"others' keys {share[False]:6.1%}, its own {share[True]:6.1%}, reads {counts.total()}"


def main() -> None:
    with PrivateCluster(node_timeout_s=60.0) as cluster:
        print("a breaker for each node:", measure(cluster))
        time.sleep(1.0)
        without = RedisConnectionManager.__init__

        def unguarded(self: RedisConnectionManager, *args: Any, **options: Any) -> None:
            without(self, *args, **options | {"make_guard": None})

        with (
            mock.patch.object(RedisConnectionManager, "__init__", unguarded),
            mock.patch.object(RedisConnectionManager, "holds_against", trips),
        ):
            print("one for all of them:    ", measure(cluster))


if __name__ == "__main__":
    main()
