"""A process whose near cache is filled. Prints what it stored and what that took of the
machine, as JSON.

python -m benchmarks.bench.memory PORT ENTRIES
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path

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
    near = OursNear(port, near_max_bytes=2 * stored, near_ttl=600.0)
    near.answers_itself(keys[0])
    gc.collect()
    before = _resident_bytes()
    first = _asked(client, near, keys)  # for all, but for the one that came before
    for _ in range(_TIMES - 1):
        again = _asked(client, near, keys)
    gc.collect()
    held = _resident_bytes() - before
    near.close()
    writer.close()
    client.delete(*names)
    return {"stored": stored, "held": held, "kept": round(entries * (1 - again / first))}


def _asked(client: redis.Redis, near: OursNear, keys: list[str]) -> int:
    """Read *keys*; return how many names were looked up in Redis and found."""
    before = client.info("stats")["keyspace_hits"]
    for key in keys:
        near.get(key)
    found: int = client.info("stats")["keyspace_hits"] - before
    return found


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]))))
