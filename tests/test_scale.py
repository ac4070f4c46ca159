"""The simulation of `benchmarks.scale` agrees with what is known, the page with what it prints."""

from __future__ import annotations

import math
import random
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from benchmarks.bench.plots import svg
from benchmarks.scale import __main__ as report
from benchmarks.scale.costs import Costs, measure
from benchmarks.scale.load import Fleet, Key, Keys
from benchmarks.scale.paper import Flow, near_share, paper, wait_s
from benchmarks.scale.simulate import Line, Simulation, near_hits
from soak.trace import Request, requests

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"

# Round figures, in the middle of what is measured.
COSTS = Costs(
    trip=7e-6, key=1e-6, byte=2e-10, write=8e-6, ping=7e-6, touch=7e-6, told=3e-6, prefix=5e-8
)
# One key, one size, and no other work: what is left is a queue out of a textbook.
ONE_KEY = Keys([Request("k", 5_000, 1e9)])
BARE = Costs(trip=10e-6, key=0.0, byte=0.0, write=0.0, ping=0.0, touch=0.0, told=0.0, prefix=0.0)


@pytest.fixture(scope="module")
def keys():
    return Keys(requests())


def simulated(fleet, keys, costs=COSTS, lookups=40_000, seed=1):
    return Simulation(fleet, keys, costs, lookups=lookups, seed=seed).run(lambda _share: None)


@pytest.mark.parametrize("busy", [0.3, 0.5, 0.8])
def test_a_line_with_random_arrivals_waits_as_in_m_d_1(busy):
    """rho / (2 (1 - rho)) services: what a queue that loses or invents work does not keep."""
    chance, line, now, waited = random.Random(7), Line(), 0.0, 0.0
    for _ in range(200_000):
        now += chance.expovariate(busy)
        waited += line.take(now, 1.0) - now - 1.0
    expected = busy / (2 * (1 - busy))
    assert waited / 200_000 == pytest.approx(expected, rel=0.05)
    assert wait_s([Flow(busy, 1.0, 1.0)]) == pytest.approx(expected)
    assert line.work_s / now == pytest.approx(busy, rel=0.02)


def test_the_wait_for_two_kinds_of_work_is_that_of_m_m_1_where_work_is_random():
    """The square of an exponential's mean is half the mean of its square: rho / (1 - rho)."""
    assert wait_s([Flow(0.3, 1.0, 2.0), Flow(0.2, 1.0, 2.0)]) == pytest.approx(0.5 / (1 - 0.5))
    assert wait_s([Flow(0.5, 2.0, 4.0)]) == math.inf


@pytest.mark.parametrize("busy", [0.2, 0.5, 0.8])
def test_a_fleet_that_asks_for_one_key_at_a_time_is_m_d_1(busy):
    """From request to answer: the round trip, the wait for Redis, the work, and the wire's time."""
    fleet = Fleet(50, asks_per_s=busy / 10e-6 / 200, together=1, gbit=1e9)
    seen = simulated(fleet, ONE_KEY, BARE, lookups=100_000)
    expected = fleet.round_trip_s + 10e-6 * (1 + busy / (2 * (1 - busy)))
    assert seen.mean_s == pytest.approx(expected, rel=0.01)
    wait = seen.mean_s - fleet.round_trip_s - 10e-6
    assert wait == pytest.approx(10e-6 * busy / (2 * (1 - busy)), rel=0.06)
    assert seen.cpu == pytest.approx(busy, rel=0.02)


def test_combining_asks_for_as_many_keys_as_came_during_a_round_trip():
    """max(1, Poisson(r S)) on the average: r S + exp(-r S), S being a round trip."""
    fleet = Fleet(5, asks_per_s=2_000.0, together=1, combining=True, gbit=1e9)
    seen = simulated(fleet, ONE_KEY, BARE, lookups=60_000)
    came = 2_000.0 * (fleet.round_trip_s + BARE.trip * 1.2)  # with a little wait for Redis
    assert seen.keys_per_trip == pytest.approx(came + math.exp(-came), rel=0.03)
    assert simulated(fleet._replace(combining=False), ONE_KEY, BARE).keys_per_trip == 1.0


@pytest.mark.parametrize(
    "fleet",
    [
        Fleet(10),
        Fleet(10, combining=True),
        Fleet(100),
        Fleet(100, combining=True),
        Fleet(100, shards=3),
        Fleet(10, near=True),
        Fleet(30, near=True, near_lag=1.0),
        Fleet(1000, shards=8),
    ],
    ids=lambda fleet: f"{fleet.replicas}-{fleet.shards}-{fleet.combining}-{fleet.near}",
)
def test_paper_and_simulation_agree(keys, fleet):
    """Either may be wrong; that both are in the same way is less likely."""
    expected, seen = paper(fleet, keys, COSTS), simulated(fleet, keys)
    assert seen.near_share == pytest.approx(expected.near_share, abs=0.02)
    assert seen.keys_per_trip == pytest.approx(expected.keys_per_trip, rel=0.03)
    assert seen.cpu == pytest.approx(expected.cpu, rel=0.08)
    assert seen.wire == pytest.approx(expected.wire, rel=0.08)
    assert seen.mean_s == pytest.approx(expected.latency_s, rel=0.05)
    assert seen.gets_per_s == pytest.approx(expected.gets_per_s, rel=0.05)


@pytest.mark.parametrize("ttl", [45.0, 300.0, 3600.0])
def test_near_caches_find_what_the_formula_says(ttl):
    """It decides whether a near cache is worth its PINGs."""
    fleet = Fleet(2, near=True)
    key = Key(share=0.01, value_bytes=1, ttl_s=ttl)
    near, redis = near_hits([key] * 10, fleet, seed=1, seconds=6_000, done=lambda _share: None)
    expected = near_share(key, fleet.lookups_per_s, fleet.all_processes, fleet.near_ttl)
    assert 0.5 < expected < 1.0
    assert 1 - near == pytest.approx(1 - expected, rel=0.05)  # what is fetched
    rate = key.share * fleet.lookups_per_s
    assert 1 - near - redis == pytest.approx(1 / (1 + rate * ttl), rel=0.25)


def test_more_than_a_redis_can_do_is_said_and_not_computed(keys):
    """A mean wait at 100 % is whatever the length of the simulation was."""
    for fleet in (Fleet(1000), Fleet(1000, combining=True), Fleet(1000, near=True)):
        assert paper(fleet, keys, COSTS).latency_s == math.inf
    shards = report.shards_for(Fleet(1000), keys, COSTS)
    busy = [paper(Fleet(1000, shards=it), keys, COSTS) for it in (shards - 1, shards)]
    assert max(busy[0].cpu, busy[0].wire) > 0.5 >= max(busy[1].cpu, busy[1].wire)


def test_a_longer_lag_takes_as_many_pings_less(keys):
    """100,000 a second from 4,000 processes at 0.1 s."""
    fleet = Fleet(1000, near=True)
    assert fleet.pings_per_s == pytest.approx(100_000)
    assert fleet._replace(near_lag=1.0).pings_per_s == pytest.approx(10_000)
    assert Fleet(1000).pings_per_s == 0
    less = paper(fleet, keys, COSTS).cpu - paper(fleet._replace(near_lag=1.0), keys, COSTS).cpu
    assert less == pytest.approx(90_000 * COSTS.ping)


def test_what_near_caches_ask_of_a_redis_is_what_one_works_out_by_hand():
    """Paper and simulation both start from it."""
    told = 4_000 * 3e-6 + 256 * 5e-8  # 4,000 listeners, who share 256 prefixes of canaries
    canary = 4_000 / 256 * 3e-6 + 256 * 5e-8
    assert Fleet(1000, near=True).errands(200.0, COSTS) == [
        (200.0, pytest.approx(8e-6 + told)),
        (pytest.approx(100_000), 7e-6),
        (200.0, pytest.approx(told)),
        (4_000, pytest.approx(7e-6 + canary)),
        (4_000, pytest.approx(canary)),
    ]
    assert Fleet(1000, shards=4).errands(200.0, COSTS) == [(50.0, 8e-6)]


def test_below_so_many_writes_near_caches_spare_redis_work_and_above_they_do_not(keys):
    """Where everything is written often, a near cache costs Redis more than it asks less."""
    fleet, bare = Fleet(10, near=True, near_lag=1.0), Fleet(10)
    writes = report.break_even(fleet, keys, COSTS)
    assert writes > 1

    def busy(it, writes):
        errands = sum([per_s * work_s for per_s, work_s in it.errands(writes, COSTS)])
        asked = 1 - paper(it, keys, COSTS).near_share
        return errands + asked * it.lookups_per_s * COSTS.read(1, keys.mean_bytes)

    assert busy(fleet, writes * 0.9) - busy(bare, writes * 0.9) < 0
    assert busy(fleet, writes * 1.1) - busy(bare, writes * 1.1) > 0
    assert report.break_even(fleet._replace(near_lag=0.01), keys, COSTS) == 0


def test_one_seed_is_one_simulation(keys):
    """Whoever looks for a fault has to see it again."""
    one, again, other = [simulated(Fleet(10), keys, lookups=4_000, seed=it) for it in (3, 3, 4)]
    assert one == again != other


def test_thinned_keys_stand_for_the_look_ups_and_not_for_the_keys(keys):
    """Half of the keys were asked for once, and are a quarter of the look-ups."""
    chosen = keys.thinned(2_000)
    by_lookup = sum([key.share for key in keys.all if key.share > 1e-4])
    assert sum([key.share > 1e-4 for key in chosen]) / 2_000 == pytest.approx(by_lookup, abs=0.01)


@pytest.mark.redis
def test_every_cost_is_measured_and_is_in_proportion():
    """Zero, or a hundred times too much, would go unnoticed through all the arithmetic."""
    shares = []
    costs = measure(1_400, shares.append)
    for cost in (costs.trip, costs.write, costs.ping, costs.touch):
        assert 1e-7 < cost < 1e-3
    assert 0 < costs.key < costs.read(1, 5_000)
    assert costs.told > 0
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_the_picture_is_one_and_shows_every_fleet(keys):
    """It is what most readers will look at."""
    picture = report.chart(keys, COSTS)
    assert ET.fromstring(svg(picture)).tag.endswith("svg")
    assert all(len(line) == len(picture.across) for line in picture.lines.values())


def test_the_page_s_table_follows_from_the_costs_it_names(keys):
    """A table that nobody can work out again is a story."""
    block = PAGE.read_text("utf-8").partition("<!-- scale: begin -->")[2]
    block = block.partition("<!-- scale: end -->")[0]
    us = re.findall(r"^  \S.*?(\d+\.\d\d)$", block, re.MULTILINE)
    assert len(us) == len(Costs._fields)
    costs = Costs(*[float(cost) * 1e-6 for cost in us])
    costs = costs._replace(byte=costs.byte / 1000)
    names = ("one Redis", "one Redis, combined", "near caches", "near caches, lag 1 s")
    for replicas in (10, 100, 1000):
        fleets = dict(report.fleets(replicas, keys, costs))
        rows = block.partition(f"{replicas:,} replicas, ")[2]
        for name in names:
            row = re.search(rf"^  {name}  +[\d.]+ +[\d.]+.*? +([\d.]+)%", rows, re.MULTILINE)
            assert row is not None
            # The costs are rounded there, that of a prefix to a tenth of itself.
            assert float(row[1]) / 100 == pytest.approx(
                paper(fleets[name], keys, costs).cpu, rel=0.1
            )
