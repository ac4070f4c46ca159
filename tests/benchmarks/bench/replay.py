"""Real look-ups by a clock, and what a cache saves on them: loads, seconds, round trips.

The look-ups are the soak's (tests/soak/data/NOTICE.md). They come `EVERY_S` apart, six times as
fast as the trace as a whole was timed, and live a sixth of their TTL, so what is still there when
it is asked for is what it would be. One thread reads, loads what is not there, and writes it.
"""

from __future__ import annotations

import time
from typing import Any

import ujson
from benchmarks.bench.contenders import CALLED, OURS, PLAIN, Make, OursNear, has_near
from benchmarks.bench.payloads import result
from benchmarks.bench.rounds import Plan
from benchmarks.bench.session import Session
from soak.trace import Request, requests

EVERY_S = 0.0005
SHORTER = 6
LOAD_S = 0.2  # that computing one value takes; counted, not waited for


def contenders() -> dict[str, Make]:
    """Return who takes part: those that give each value its own TTL."""
    near = {"jmcache, near": OursNear} if has_near() else {}
    peers = {name: CALLED[name] for name in (PLAIN, "cachelib", "django-redis")}
    return {OURS: CALLED[OURS], **near, **peers}


def part_s(plan: Plan) -> float:
    """Return about how long it takes."""
    return len(contenders()) * plan.look_ups * EVERY_S


def run_part(session: Session) -> None:
    """Replay the trace through each contender, on an empty server each time."""
    import redis

    names = session.called.keys()
    look_ups = requests()[: session.plan.look_ups]
    step_s = len(look_ups) * EVERY_S
    text = ujson.dumps(result(70))
    best = _best_hits(look_ups)
    with redis.Redis(port=session.port) as client:
        for name, make in contenders().items():
            if name not in names and not name.startswith(OURS):
                continue
            client.flushall()
            contender = make(session.port)
            contender.get("first")  # connects
            client.config_resetstat()
            found = _replay(session, name, contender, look_ups, text)
            answers = client.info("stats").get("total_writes_processed")
            contender.close()
            row = {"contender": name, "look_ups": len(look_ups), "best_hits": best, **found}
            # Answers the server sent: what is sent together comes back together. Less the one to
            # the reset; a push to a near cache counts.
            row["round_trips"] = None if answers is None else answers - 1
            session.report["replay"].append(row)
            session.progress.add(f"replay, {name}", step_s)


def _replay(
    session: Session, name: str, contender: Any, look_ups: list[Request], text: str
) -> dict[str, Any]:
    hits, in_cache_s, late = 0, 0.0, 0
    began = time.perf_counter()
    for number, (key, value_bytes, ttl_s) in enumerate(look_ups):
        due = began + number * EVERY_S
        asked = time.perf_counter()
        if asked < due:
            time.sleep(due - asked)
            asked = time.perf_counter()
        late += asked > due + 0.1
        if contender.get(key) is not None:
            hits += 1
        else:
            contender.set(key, text[:value_bytes], int(ttl_s) // SHORTER)
        in_cache_s += time.perf_counter() - asked
        if not number % 1000:
            session.progress.show(
                f"replay, {name}", len(look_ups) * EVERY_S, number / len(look_ups)
            )
    saved_s = hits * LOAD_S - in_cache_s
    return {"hits": hits, "in_cache_s": in_cache_s, "saved_s": saved_s, "late": late}


def _best_hits(look_ups: list[Request]) -> int:
    """What a cache that forgets nothing before its time and takes no time would find."""
    ends: dict[str, float] = {}
    hits = 0
    for number, (key, _, ttl_s) in enumerate(look_ups):
        at = number * EVERY_S
        if ends.get(key, 0.0) > at:
            hits += 1
        else:
            ends[key] = at + int(ttl_s) // SHORTER
    return hits
