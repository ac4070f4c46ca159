"""A process whose near cache is filled. Prints what it stored and what that took, as JSON.

python -m benchmarks.bench.memory PORT ENTRIES
"""

from __future__ import annotations

import gc
import json
import sys
import tracemalloc

import redis
from benchmarks.bench.contenders import Ours, OursNear
from benchmarks.bench.payloads import result

_TIMES = 3


def main(port: int, entries: int) -> dict[str, int]:
    """Fill Redis through another cache, then read all of it through the near one.

    Three times: what is asked for again may be kept in another form.
    """
    value = result(5)
    keys = [f"memory-{number}" for number in range(entries)]
    client = redis.Redis(port=port)
    writer = Ours(port)
    for key in keys:
        writer.set(key, value)
    # As Redis has them: what an entry is on the wire is what there is to be stored.
    names = client.keys("*memory-*")
    stored = sum(client.strlen(name) for name in names)
    near = OursNear(port, near_max_bytes=2 * stored)
    near.answers_itself(keys[0])
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for key in _TIMES * keys:
        near.get(key)
    gc.collect()
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    asked = client.info("stats")["keyspace_hits"]
    for key in keys:
        near.get(key)
    asked = client.info("stats")["keyspace_hits"] - asked
    near.close()
    writer.close()
    client.delete(*names)
    return {"stored": stored, "held": held, "kept": max(0, entries - asked)}


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]))))
