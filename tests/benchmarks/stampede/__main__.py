"""make bench-stampede: start the replicas of each contender, and count what they did."""

from __future__ import annotations

import argparse
import csv
import gzip
import itertools
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import redis
from benchmarks.stampede.contenders import CONTENDERS
from soak.peers import installed

from jmcache.testing import PrivateServer

_REPLICA = Path(__file__).with_name("replica.py")
_TRACE = Path(__file__).parents[2] / "soak" / "data" / "trace.csv.gz"
_LOOK_UPS = 20_000  # of it
_SHORTER = 60.0  # TTLs, so that entries expire while one looks
_WAITED_S = 0.02  # a call that took longer waited for somebody's load
_START_S = 1.0  # from the last "ready" to the beginning


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="make bench-stampede", description=__doc__)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--callers", type=int, default=16, help="threads or tasks in each")
    parser.add_argument("--rounds", type=int, default=5, help="of the cold key; medians are shown")
    parser.add_argument("--quick", action="store_true", help="one round, short scenes")
    parser.add_argument("--only", choices=CONTENDERS, action="append", help="these contenders")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    asked = parser.parse_args()
    rounds, seconds = (1, 4.0) if asked.quick else (asked.rounds, 10.0)
    names = asked.only or list(CONTENDERS)
    report: dict[str, Any] = {"machine": _machine()}
    bench = Bench(asked.processes, asked.callers)
    print(f"{asked.processes} processes, {asked.callers} threads or tasks in each; {_machine()}")
    report["cold"] = bench.cold(names, rounds)
    report["hot"] = bench.hot(names, seconds)
    report["trace"] = bench.trace(names, 4 * seconds)
    if asked.json:
        asked.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


class Bench:
    """So many processes of so many callers, on a server of their own."""

    def __init__(self, processes: int, callers: int) -> None:
        self._processes = processes
        self._callers = callers

    def cold(self, names: list[str], rounds: int) -> list[dict[str, Any]]:
        """All ask for one key that is not there, at one moment; the loader takes 200 ms."""
        print(f"\none cold key, a loader of 200 ms, medians of {rounds} rounds")
        _head("loader runs", "first value after", "all have it after", "longest call", "errors")
        scene = {"kind": "cold", "load_s": 0.2}
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for _ in range(rounds):  # in turn, so that what else the machine does hits all alike
            for name in names:
                found = self._run(name, scene)
                first_s = min(found["loads"])
                runs[name].append(
                    {
                        "loads": len(found["loads"]),
                        "first_ms": 1e3 * (first_s - found["begin"]),
                        "late_ms": 1e3 * (max(end for _, end in found["calls"]) - first_s),
                        "longest_ms": 1e3 * max(end - began for began, end in found["calls"]),
                        "errors": sum(found["errors"].values()),
                    }
                )
        rows = []
        for name, figures in runs.items():
            row = {what: statistics.median([one[what] for one in figures]) for what in figures[0]}
            rows.append({"name": name, **row})
            _row(
                name, f"{row['loads']:g}", f"{row['first_ms']:.0f} ms", f"+{row['late_ms']:.0f} ms",
                f"{row['longest_ms']:.0f} ms", f"{row['errors']:g}",
            )  # fmt: skip
        return rows

    def hot(self, names: list[str], seconds: float) -> list[dict[str, Any]]:
        """All ask for one key again and again, which is fresh for a second; 50 ms for a load."""
        fewest = int(seconds / 1.05) + 1
        print(
            f"\none hot key for {seconds:g} s, fresh for 1 s, a loader of 50 ms:"
            f" {fewest} runs are needed"
        )
        _head("loader runs", "calls", "waited", "99 of 100 below", "longest call", "errors")
        scene = {"kind": "hot", "load_s": 0.05, "ttl_s": 1, "seconds": seconds, "every_s": 0.1}
        return [self._judge(name, self._run(name, scene), fewest) for name in names]

    def trace(self, names: list[str], seconds: float) -> list[dict[str, Any]]:
        """Real look-ups with their TTLs, all by one clock, by all callers together."""
        every_s = seconds / _LOOK_UPS
        fewest = _fewest_loads(every_s)
        print(
            f"\n{_LOOK_UPS:,} real look-ups in {seconds:g} s, TTLs of 1 s to 24 min, a loader of"
            f" 20 ms: {fewest:,} runs are needed"
        )
        _head("loader runs", "calls", "waited", "99 of 100 below", "longest call", "errors")
        scene = {"kind": "trace", "load_s": 0.02, "file": str(_TRACE), "every_s": every_s}
        scene |= {"shorter": _SHORTER, "look_ups": _LOOK_UPS}
        return [self._judge(name, self._run(name, scene), fewest) for name in names]

    def _judge(self, name: str, found: dict[str, Any], fewest: int) -> dict[str, Any]:
        took = sorted([end - began for began, end in found["calls"]])
        row = {
            "name": name,
            "loads": len(found["loads"]),
            "fewest": fewest,
            "calls": len(took),
            "waited": sum([call_s > _WAITED_S for call_s in took]) / len(took),
            "p99_ms": 1e3 * took[int(0.99 * (len(took) - 1))],
            "longest_ms": 1e3 * took[-1],
            "errors": sum(found["errors"].values()),
        }
        _row(
            name, f"{row['loads']:,} ({row['loads'] / fewest:.2f} x)", f"{row['calls']:,}",
            f"{row['waited']:.1%}", f"{row['p99_ms']:.0f} ms", f"{row['longest_ms']:.0f} ms",
            f"{row['errors']}",
        )  # fmt: skip
        if found["errors"]:
            print(f"    {', '.join([f'{kind}: {n}' for kind, n in found['errors'].items()])}")
        return row

    def _run(self, name: str, scene: dict[str, Any]) -> dict[str, Any]:
        python = sys.executable if name.startswith("jmcache") else str(installed())
        callers = self._processes * self._callers
        with PrivateServer(tcp=True) as server:
            port = int(server.url.rsplit(":", 1)[1].split("/")[0])
            replicas = []
            for number in range(self._processes):
                here = {"first": number * self._callers, "here": self._callers, "callers": callers}
                replicas.append(
                    subprocess.Popen(
                        [python, str(_REPLICA), name, str(port), json.dumps(scene | here)],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        text=True,
                    )
                )
            try:
                return _gather(replicas)
            finally:
                for replica in replicas:
                    replica.kill()
                    replica.communicate()


def _gather(replicas: list[subprocess.Popen[str]]) -> dict[str, Any]:
    for replica in replicas:
        assert replica.stdout is not None
        if replica.stdout.readline() != "ready\n":
            raise RuntimeError("a replica did not start; what it said is above")
    begin = time.monotonic() + _START_S
    for replica in replicas:
        assert replica.stdin is not None
        replica.stdin.write(f"{begin}\n")
        replica.stdin.flush()
    found: dict[str, Any] = {"begin": begin, "loads": [], "calls": [], "errors": {}}
    for replica in replicas:
        assert replica.stdout is not None
        one = json.loads(replica.stdout.readline())
        found["loads"] += one["loads"]
        found["calls"] += one["calls"]
        for kind, count in one["errors"].items():
            found["errors"][kind] = found["errors"].get(kind, 0) + count
    return found


def _fewest_loads(every_s: float) -> int:
    """Loads that the trace needs if each took no time: of what is not there or over its TTL."""
    ends: dict[str, float] = {}
    loads = 0
    with gzip.open(_TRACE, "rt", encoding="ascii", newline="") as lines:
        for number, row in enumerate(itertools.islice(csv.DictReader(lines), _LOOK_UPS)):
            at = number * every_s
            if ends.get(row["key"], -1.0) < at:
                loads += 1
                ends[row["key"]] = at + float(row["ttl_s"]) / _SHORTER
    return loads


def _machine() -> str:
    return f"Python {platform.python_version()}, redis-py {redis.__version__}"


def _head(*columns: str) -> None:
    _row("", *columns)


def _row(name: str, *columns: str) -> None:
    print(f"  {name:<20}" + "".join([f"{column:>19}" for column in columns]), flush=True)


if __name__ == "__main__":
    sys.exit(main())
