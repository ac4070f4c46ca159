"""The command line and what it prints."""

from __future__ import annotations

import argparse
import math
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from benchmarks.bench.plots import Chart, svg
from benchmarks.bench.progress import Progress
from benchmarks.scale.costs import Costs, measure
from benchmarks.scale.load import CANARIES_PER_S, Fleet, Keys
from benchmarks.scale.paper import Paper, near_share, paper
from benchmarks.scale.simulate import Done, Seen, Simulation, near_hits
from soak.trace import requests

from jmcache.testing import find_server

_REPLICAS = (10, 100, 1000)
_ALONG = (10, 30, 100, 300, 1000)  # in the picture
_FULL = 0.5  # of a Redis, CPU or network: more are taken until the mean one has no more to do
_POOL = 10  # connections of a process, the default
_MAXCLIENTS = 10_000  # of a Redis, the default
_LAGS = (0.1, 0.5, 1.0, 5.0)

_DOCS = Path(__file__).parents[3] / "docs"
_BEGIN, _END = "<!-- scale: begin -->\n", "<!-- scale: end -->\n"


class Plan(NamedTuple):
    """How much is done."""

    trips: int  # for each cost
    lookups: int  # in each simulation
    keys: int  # whose near hits are simulated
    watched_s: float  # for so long


_THOROUGH = Plan(trips=20_000, lookups=120_000, keys=300, watched_s=60.0)
_QUICK = Plan(trips=3_000, lookups=20_000, keys=60, watched_s=30.0)


class Run(NamedTuple):
    """A fleet on paper and simulated."""

    name: str
    fleet: Fleet
    paper: Paper
    seen: Seen


def fleets(replicas: int, keys: Keys, costs: Costs) -> Iterator[tuple[str, Fleet]]:
    """Yield what a fleet of so many replicas can be set up as."""
    plain = Fleet(replicas)
    yield "one Redis", plain
    yield "one Redis, combined", plain._replace(combining=True)
    yield "near caches", plain._replace(near=True)
    yield "near caches, lag 1 s", plain._replace(near=True, near_lag=1.0)
    for fleet in (plain, plain._replace(combining=True)):
        shards = shards_for(fleet, keys, costs)
        if shards > 1:
            yield (
                f"{shards} shards{', combined' if fleet.combining else ''}",
                fleet._replace(shards=shards),
            )


def shards_for(fleet: Fleet, keys: Keys, costs: Costs) -> int:
    """Return how many Redis it takes until the mean one is half full at most."""
    shards = 1
    while True:
        expected = paper(fleet._replace(shards=shards), keys, costs)
        if max(expected.cpu, expected.wire) <= _FULL:
            return shards
        shards += 1


def run_all(plan: Plan, keys: Keys, costs: Costs, seed: int, done: Done) -> list[Run]:
    """Return all fleets on paper and simulated."""
    todo = [
        (name, fleet) for replicas in _REPLICAS for name, fleet in fleets(replicas, keys, costs)
    ]
    runs = []
    for number, (name, fleet) in enumerate(todo):
        simulation = Simulation(fleet, keys, costs, lookups=plan.lookups, seed=seed)
        seen = simulation.run(_part(done, number, len(todo)))
        runs.append(Run(name, fleet, paper(fleet, keys, costs), seen))
    return runs


def _part(done: Done, number: int, of: int) -> Done:
    return lambda share: done((number + share) / of)


# ── What is printed ─────────────────────────────────────────────────────────────────────────────


def costs_lines(costs: Costs) -> list[str]:
    """Return what a server spends."""
    names = {
        "a round trip, with the counter": costs.trip,
        "each GET in it": costs.key,
        "1,000 bytes of values": costs.byte * 1000,
        "a SET of 5 KB": costs.write,
        "a listener's PING": costs.ping,
        "a SET of a canary": costs.touch,
        "telling one listener of a change": costs.told,
        "looking at a prefix, at any change": costs.prefix,
    }
    return [
        "us of the server's one thread",
        *[f"  {name:<34}{seconds * 1e6:8.2f}" for name, seconds in names.items()],
    ]


def runs_lines(runs: list[Run]) -> list[str]:
    """Return the fleets: on paper, simulated, and by how much the second is off."""
    groups = (("keys in a trip", 20), ("CPU of a Redis", 24), ("network of a Redis", 24))
    lines = [
        " " * 30
        + "".join([f"{name:^{width}}" for name, width in groups])
        + f"{'mean us of a GET':^24}{'simulated us':^21}{'answered':>12}",
        " " * 30
        + " paper   sim    off "
        + "   paper     sim    off " * 3
        + "    50%    99%  99.9%    a second",
    ]
    for replicas in _REPLICAS:
        own = [run for run in runs if run.fleet.replicas == replicas]
        lines += ["", f"{replicas:,} replicas, {own[0].fleet.lookups_per_s:,.0f} look-ups a second"]
        lines += [_run_line(run) for run in own]
    return lines


def _run_line(run: Run) -> str:
    expected, seen = run.paper, run.seen
    fits = not math.isinf(expected.latency_s)

    def pair(on_paper: float, simulated: float, form: str, width: int) -> str:
        off = _off(on_paper, simulated) if fits else ""
        return f"{on_paper:{width}{form}}{simulated:{width}{form}}{off:>7} "

    cells = [
        f"  {run.name:<28}",
        pair(expected.keys_per_trip, seen.keys_per_trip, ".2f", 6),
        pair(expected.cpu, seen.cpu, ".1%", 8),
        pair(expected.wire, seen.wire, ".1%", 8),
    ]
    if fits:
        cells.append(pair(expected.latency_s * 1e6, seen.mean_s * 1e6, ".0f", 8))
        cells += [f"{seen.percentile_s(share) * 1e6:7.0f}" for share in (0.5, 0.99, 0.999)]
    else:
        cells.append(f"{'    too much for it':<45}")
    return f"{''.join(cells)}{seen.gets_per_s:12,.0f}"


def _off(on_paper: float, simulated: float) -> str:
    return f"{simulated / on_paper - 1:+7.1%}"


def near_lines(plan: Plan, keys: Keys, seed: int, done: Done) -> list[str]:
    """Return what near caches find, on paper and simulated key by key."""
    chosen = keys.thinned(plan.keys)
    lines = [
        f"what is found, near caches of 30 s: {len(chosen)} keys that stand for {len(keys.all):,}",
        f"{'':18}{'by near caches, of all':^27}{'by Redis, of what it is asked':^31}",
        f"{'':18}" + f"{'   paper     sim    off':<28}" * 2,
    ]
    for number, replicas in enumerate(_REPLICAS):
        fleet = Fleet(replicas, near=True)
        rate, processes = fleet.lookups_per_s, fleet.all_processes
        near = mean([near_share(key, rate, processes, fleet.near_ttl) for key in chosen])
        missed = mean([1 / (1 + key.share * rate * key.ttl_s) for key in chosen])
        by_near, by_redis = near_hits(
            chosen,
            fleet,
            seed=seed,
            seconds=plan.watched_s,
            done=_part(done, number, len(_REPLICAS)),
        )
        cells = [
            f"{expected:8.1%}{seen:8.1%}{_off(expected, seen)}"
            for expected, seen in (
                (near, by_near),
                (1 - missed / (1 - near), by_redis / (1 - by_near)),
            )
        ]
        lines.append(f"  {f'{replicas:,} replicas':<16}{cells[0]:<28}{cells[1]}")
    return lines


def limits_lines(keys: Keys, costs: Costs) -> list[str]:
    """Return where the ends are, by arithmetic alone."""
    size = 5_000
    hottest = max([key.share for key in keys.all])
    fleet = Fleet(1)
    lines = ["where the ends are, for values of 5 KB"]
    for number in (1, 8, 64):
        per_s = number / costs.read(number, number * size)
        lines.append(f"  CPU, {number:>2} keys in a round trip      {per_s:10,.0f} GETs a second")
    for gbit in (1.0, 10.0):
        per_s = 1 / fleet._replace(gbit=gbit).wire_s(size)
        lines.append(f"  network, {gbit:>2.0f} Gbit/s               {per_s:10,.0f} GETs a second")
    alone = _FULL / (costs.read(1, size) * hottest) / fleet.lookups_per_s
    lines += [
        f"  the hottest key, {hottest:.2%} of all, fills half a Redis from {alone:,.0f} replicas",
        "",
        "connections, PINGs and news, four processes in a replica",
        f"  {'replicas':<26}{''.join([f'{replicas:>12,}' for replicas in _REPLICAS])}",
    ]

    def row(name: str, cell: Callable[[Fleet], str]) -> str:
        cells = [f"{cell(Fleet(replicas, near=True)):>12}" for replicas in _REPLICAS]
        return f"  {name:<26}{''.join(cells)}"

    lines += [
        row(f"connections, pools of {_POOL}", lambda it: f"{it.all_processes * (_POOL + 1):,}"),
        row("pool that maxclients allow", lambda it: f"{_MAXCLIENTS // it.all_processes - 1}"),
        row("keys written a second", lambda it: f"{paper(it, keys, costs).writes_per_s:.0f}"),
        *[
            row(
                f"PINGs, near_lag {lag:g} s",
                lambda it, lag=lag: _load(it._replace(near_lag=lag).pings_per_s, costs.ping),
            )
            for lag in _LAGS
        ],
        row("news of writes", lambda it: _news(it, keys, costs)),
        row("canaries", lambda it: _canaries(it, costs)),
        *[
            row(
                f"bound, near_lag {lag:g} s",
                lambda it, lag=lag: f"{break_even(it._replace(near_lag=lag), keys, costs):.1f}",
            )
            for lag in _LAGS
        ],
    ]
    return lines


def break_even(fleet: Fleet, keys: Keys, costs: Costs) -> float:
    """Return up to how many writes a second near caches spare Redis work; 0 if they never do."""
    found = paper(fleet, keys, costs).near_share * fleet.lookups_per_s
    spared = found * costs.read(1, keys.mean_bytes)
    idle = sum([per_s * work_s for per_s, work_s in fleet.errands(0.0, costs)])
    return max(0.0, spared - idle) / (2 * fleet.news_s(costs))


def _news(fleet: Fleet, keys: Keys, costs: Costs) -> str:
    writes = paper(fleet, keys, costs).writes_per_s
    return _load(2 * writes, fleet.news_s(costs))  # of the write and of the expiry


def _canaries(fleet: Fleet, costs: Costs) -> str:
    canaries = fleet.all_processes * CANARIES_PER_S
    return _load(canaries, costs.touch + 2 * fleet.canary_s(costs))


def _load(per_s: float, work_s: float) -> str:
    return f"{per_s * work_s:.0%}"


def chart(keys: Keys, costs: Costs) -> Chart:
    """Return the picture: how much of one thread of Redis a fleet takes."""
    shapes = {
        "near caches, lag 0.1 s": Fleet(1, near=True),
        "near caches, lag 1 s": Fleet(1, near=True, near_lag=1.0),
        "no near caches": Fleet(1),
        "combined": Fleet(1, combining=True),
    }
    return Chart(
        "Threads of Redis that a fleet keeps busy (paper)",
        "threads; a Redis has one. Across: replicas",
        [f"{replicas:,}" for replicas in _ALONG],
        {
            name: [paper(it._replace(replicas=replicas), keys, costs).cpu for replicas in _ALONG]
            for name, it in shapes.items()
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.scale", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less exact, in a few seconds")
    parser.add_argument("--seed", type=int, default=1, help="of all that chance decides")
    parser.add_argument("--write", action="store_true", help="and write docs/performance.md")
    options = parser.parse_args()
    plan = _QUICK if options.quick else _THOROUGH

    progress = Progress(100.0)
    costs = measure(plan.trips, lambda share: progress.show("measuring Redis", 30.0, share))
    progress.add("measuring Redis", 30.0)
    keys = Keys(requests())
    runs = run_all(
        plan, keys, costs, options.seed, lambda share: progress.show("simulating", 40.0, share)
    )
    progress.add("simulating", 40.0)
    near = near_lines(
        plan, keys, options.seed, lambda share: progress.show("near caches", 30.0, share)
    )
    progress.end()

    head = f"Python {platform.python_version()}, Redis {find_server().version}, seed {options.seed}"
    parts = [[head], costs_lines(costs), runs_lines(runs), near, limits_lines(keys, costs)]
    text = "\n\n".join(["\n".join([line.rstrip() for line in part]) for part in parts])
    print(text)
    if options.write:
        _write(text, chart(keys, costs))


def _write(text: str, picture: Chart) -> None:
    page = _DOCS / "performance.md"
    before, rest = page.read_text("utf-8").split(_BEGIN)
    _, after = rest.split(_END)
    block = f"```text\n{text}\n```\n\n![{picture.title}](images/scale.svg)\n"
    (_DOCS / "images").mkdir(exist_ok=True)
    (_DOCS / "images" / "scale.svg").write_text(svg(picture), "utf-8")
    page.write_text(f"{before}{_BEGIN}{block}{_END}{after}", "utf-8")


if __name__ == "__main__":
    main()
