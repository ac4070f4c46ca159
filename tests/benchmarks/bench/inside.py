"""What has a bound of its own: single pieces of jmcache, and what it does to its process."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

import ujson
from benchmarks.bench.calls import alone, at_once, gathered
from benchmarks.bench.contenders import AWAITED, OURS, OursNear, has_near, settings_of_ours
from benchmarks.bench.payloads import as_text, result, typed
from benchmarks.bench.rounds import Contest, Plan, Run, expected_s, spread
from benchmarks.bench.session import Session

_IMPORTS = {
    "bare": "pass",
    "import jmcache": "import jmcache",
    "and make a cache": "import jmcache; jmcache.RedisCacheFactory",
}
_IMPORT_S, _LOOP_S, _MEMORY_S = 0.15, 0.4, 15.0  # about, of one step
_TICK_S = 0.001
_SCHEDULER = Path("/proc/thread-self/schedstat")
_NEAR_KEYS = 1_000
_CALLERS = 256
_GETS = 2  # of each of them


def pieces_s(plan: Plan) -> float:
    """Return about how long `run_pieces` takes."""
    return expected_s(14, plan)


def run_pieces(session: Session) -> None:
    """Measure single pieces of jmcache, each beside what it is compared with, if anything."""
    step_s = pieces_s(session.plan) / 7
    for name, contest in _pieces(session):
        session.contend({"side": "inside", "operation": name}, contest, step_s)


def _pieces(session: Session) -> Any:
    from jmcache import AsyncRedisCache, RedisCacheFactory, RedisSerializer, generate_key

    with RedisCacheFactory.create_cache(settings_of_ours(_closed_port())) as gone:
        while gone.health().breaker == "closed":
            gone.get("k")
        yield "get, breaker open", _only(alone(gone.get, "k"), 100)
        awaited = AsyncRedisCache(gone)
        yield "await get, breaker open", _only(gathered(session.loop, 1, awaited.get, "k"), 100)

    skills = ["python", "redis", "sql"]
    key = alone(lambda: generate_key("c00042", 1, skills=skills, country="Germany", remote=True))
    yield "generate_key, 5 arguments", _only(key, 100)

    value = typed(result(5))
    text, serializer = as_text(value), RedisSerializer()
    runs = {OURS: alone(serializer.serialize, value), "ujson": alone(ujson.dumps, text)}
    yield "serialize datetimes and UUIDs", Contest(runs, "ujson", 100)
    body, written = serializer.serialize(value), ujson.dumps(text)
    runs = {OURS: alone(serializer.deserialize, body), "ujson": alone(ujson.loads, written)}
    yield "deserialize datetimes and UUIDs", Contest(runs, "ujson", 100)

    with ThreadPoolExecutor(64) as threads:
        get = session.called[OURS].get
        session.called[OURS].set("convoy", result(5))
        runs = {f"{n} threads": at_once(threads, n, get, "convoy") for n in (4, 64)}
        yield "get, 64 threads beside 4", Contest(runs, "4 threads", 640)

    if has_near():
        near = OursNear(session.port)
        keys = [f"near-{number}" for number in range(_NEAR_KEYS)]
        near.set_many(dict.fromkeys(keys, result(5)))
        if near.answers_itself(keys[0]):
            yield "get, a near hit of 5 KB", _only(alone(near.get, keys[0]), 100)
            hit = gathered(session.loop, 1, AsyncRedisCache(near.cache).get, keys[0])
            yield "await get, a near hit of 5 KB", _only(hit, 100)
            in_turn = itertools.cycle(keys)
            among = alone(lambda: near.get(next(in_turn)))
            yield f"get, a near hit among {_NEAR_KEYS:,}", _only(among, _NEAR_KEYS)
        else:
            print("near cache: not measured, it asked Redis every time", file=sys.stderr)
        near.close()


def _only(run: Run, step: int) -> Contest:
    return Contest({OURS: run}, OURS, step)


def _closed_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def import_s(plan: Plan) -> float:
    """Return about how long `run_import` takes."""
    return plan.rounds * _IMPORT_S * len(_IMPORTS)


def run_import(session: Session) -> None:
    """Start interpreters, and see what an import adds to a start."""
    took: dict[str, list[float]] = {name: [] for name in _IMPORTS}
    for number in range(-1, session.plan.rounds):
        for name, code in _IMPORTS.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            if number >= 0:  # the first writes what it compiled
                took[name].append(time.perf_counter() - began)
        session.progress.show("import", import_s(session.plan), (number + 1) / session.plan.rounds)
    session.progress.add("import", import_s(session.plan))
    bare = took.pop("bare")
    for name, seconds in took.items():
        more = [a - b for a, b in zip(seconds, bare, strict=True)]
        _note(session, name, "s", more)


def loop_s(plan: Plan) -> float:
    """Return about how long `run_loop` takes."""
    return (plan.rounds + 1) * (len(AWAITED) + 1) * _LOOP_S


def run_loop(session: Session) -> None:
    """See how late a task that ticks every millisecond is while many read 50 KB each."""
    names = {name: contender.get for name, contender in session.awaited.items()}
    late: dict[str, list[_Lateness]] = {"idle": []} | {name: [] for name in names}
    for contender in session.awaited.values():
        session.loop.run_until_complete(contender.set("loop", result(50)))
    for number in range(-1, session.plan.rounds):
        for name in late:
            longest = session.loop.run_until_complete(_longest_lateness(names.get(name)))
            if number >= 0:
                late[name].append(longest)
        session.progress.show("loop", loop_s(session.plan), (number + 1) / session.plan.rounds)
    session.progress.add("loop", loop_s(session.plan))
    for name, found in late.items():
        _note(session, f"loop blocked, {name}", "ms", [one.blocked_s * 1e3 for one in found])
        _note(session, f"and kept from a core, {name}", "ms", [one.late_s * 1e3 for one in found])


class _Lateness(NamedTuple):
    """How late a task was at most, in seconds.

    Attributes:
        blocked_s: Less what its thread could have run, and the system had no core for it.
        late_s: With that.
    """

    blocked_s: float
    late_s: float


async def _longest_lateness(get: Callable[[str], Awaitable[Any]] | None) -> _Lateness:
    blocked_s = late_s = 0.0
    done = asyncio.Event()

    async def tick() -> None:
        nonlocal blocked_s, late_s
        with _Queue() as queue:
            while not done.is_set():
                queued_s, began = queue.waited_s(), time.perf_counter()
                await asyncio.sleep(_TICK_S)
                took_s = time.perf_counter() - began - _TICK_S
                late_s = max(late_s, took_s)
                blocked_s = max(blocked_s, took_s - (queue.waited_s() - queued_s))

    async def read() -> None:
        for _ in range(_GETS):
            if get is None:
                await asyncio.sleep(_LOOP_S / _GETS)
            else:
                await get("loop")

    ticking = asyncio.ensure_future(tick())
    await asyncio.gather(*[read() for _ in range(_CALLERS)])
    done.set()
    await ticking
    return _Lateness(blocked_s, late_s)


class _Queue:
    """What the system says of the calling thread's waits for a core; 0 where it says nothing."""

    def __enter__(self) -> Self:
        try:
            self._file: BinaryIO | None = _SCHEDULER.open("rb", buffering=0)
        except FileNotFoundError:
            self._file = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def waited_s(self) -> float:
        """Return the seconds it was ready to run and did not, since it began."""
        if self._file is None:
            return 0.0
        self._file.seek(0)
        return int(self._file.read().split()[1]) / 1e9


def memory_s(plan: Plan) -> float:
    """Return about how long `run_memory` takes."""
    return _MEMORY_S * plan.entries / 10_000 if has_near() else 0.0


def run_memory(session: Session) -> None:
    """See, in a process of its own, what a full near cache holds for each byte it stores."""
    if not has_near():
        return
    command = [sys.executable, "-m", "benchmarks.bench.memory"]
    command += [str(session.port), str(session.plan.entries)]
    session.progress.show("memory", memory_s(session.plan), 0.0)
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = json.loads(said)
    session.progress.add("memory", memory_s(session.plan))
    session.report["figures"]["near cache entries kept"] = {"unit": "", "all": [found["kept"]]}
    if found["kept"]:
        stored = found["stored"] * found["kept"] / session.plan.entries
        _note(session, "near cache bytes a byte stored", "x", [found["held"] / stored])


def _note(session: Session, name: str, unit: str, figures: list[float]) -> None:
    row = {"unit": unit, "all": figures, "spread": spread(figures), "worst": max(figures)}
    session.report["figures"][name] = row
