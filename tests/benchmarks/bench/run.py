"""The command line, and the parts in their order. Runs where all contenders are installed."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import logging
import os
import platform
import sys
from collections.abc import Callable, Collection, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from benchmarks.bench import beside, inside, latency, replay, replicas, report
from benchmarks.bench.contenders import PACKAGES
from benchmarks.bench.progress import Progress
from benchmarks.bench.rounds import FULL, QUICK, Plan
from benchmarks.bench.session import Report, Session


class Part(NamedTuple):
    """Something that can be run alone."""

    expected_s: Callable[[Plan], float]
    run: Callable[[Session], None]


PARTS: dict[str, Part] = {
    **{
        name: Part(functools.partial(beside.part_s, name), functools.partial(beside.run_part, name))
        for name in beside.PARTS
    },
    "latency": Part(latency.part_s, latency.run_part),
    "inside": Part(inside.pieces_s, inside.run_pieces),
    "import": Part(inside.import_s, inside.run_import),
    "loop": Part(inside.loop_s, inside.run_loop),
    "memory": Part(inside.memory_s, inside.run_memory),
    "replicas": Part(replicas.part_s, replicas.run_part),
    "replay": Part(replay.part_s, replay.run_part),
}


def measure(
    port: int, plan: Plan, parts: Collection[str], names: Collection[str] | None = None
) -> Report:
    """Run *parts* with the contenders of *names*, None: all, on the server at *port*.

    It is emptied.
    """
    progress = Progress(sum([PARTS[name].expected_s(plan) for name in parts]))
    with Session(port, plan, progress, names) as session:
        for name, part in PARTS.items():
            if name in parts:
                part.run(session)
        progress.end()
        return session.report


def main(args: Sequence[str] | None = None) -> int:
    """Measure and print. What was missed is said, and is no error."""
    parser = argparse.ArgumentParser(prog="make bench", description="jmcache beside its peers")
    parser.add_argument("--quick", action="store_true", help="two minutes, less exact")
    parser.add_argument("--only", choices=PARTS, action="append", help="this part; may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--write", action="store_true", help="write docs/performance.md")
    parser.add_argument("--port", type=int, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--server", default="", help=argparse.SUPPRESS)
    asked = parser.parse_args(args)
    # One part breaks its connection on purpose: no news.
    logging.getLogger("jmcache").addHandler(logging.NullHandler())
    plan = QUICK if asked.quick else FULL
    before = about(asked.server, plan)
    found = measure(asked.port, plan, asked.only or PARTS) | {"about": before}
    print(report.as_text(found))
    if asked.json:
        asked.json.write_text(report.as_json(found), "utf-8")
    if asked.write:
        report.write(found)
    return 0


def about(server: str, plan: Plan) -> dict[str, object]:
    """Return the machine, how busy it is with others at this moment, and the versions."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # a contender that does not take part
            continue
    return {
        "machine": _machine(),
        "load": os.getloadavg()[0],
        "plan": dataclasses.asdict(plan),
        "python": platform.python_version(),
        "server": server,
        "packages": packages,
    }


def _machine() -> str:
    cores = len(os.sched_getaffinity(0))
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")
    system = f"{platform.system()} {platform.release().split('-')[0]}"
    return f"{cores} cores ({model or platform.machine()}), {system}"


if __name__ == "__main__":
    sys.exit(main())
