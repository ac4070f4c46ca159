"""Does the service go on when Redis does not? Run: pytest docs/examples/testing"""

from __future__ import annotations

import asyncio
import time

import pytest
from matching import matches_for, rank

from jmcache import Outcome

FAULTS = {
    "hangs": lambda proxy: proxy.blackhole(),
    "is gone": lambda proxy: proxy.refuse(),
    "is slow": lambda proxy: proxy.latency(0.4),
    "drips": lambda proxy: proxy.drip(every_s=0.05),
    "resets": lambda proxy: proxy.reset(after=10),
    "lies": lambda proxy: proxy.garbage(),
    "answers twice": lambda proxy: proxy.duplicate(late=True),
}


def test_matches_are_computed_when_redis_hangs(jmcache_cache, jmcache_proxy):
    jmcache_proxy.blackhole()
    assert matches_for("c1", cache=jmcache_cache) == rank("c1")


@pytest.mark.parametrize("fault", FAULTS)
def test_candidates_see_their_own_matches_whatever_redis_does(jmcache_cache, jmcache_proxy, fault):
    """A cache may be slow or empty. It may not show one candidate the matches of another."""
    for candidate in ("c1", "c2"):
        assert matches_for(candidate, cache=jmcache_cache) == rank(candidate)
    FAULTS[fault](jmcache_proxy)
    for candidate in ("c1", "c2") * 5:
        assert matches_for(candidate, cache=jmcache_cache) == rank(candidate)


def test_an_outage_costs_the_first_requests_a_moment_and_the_others_nothing(
    jmcache_cache, jmcache_proxy
):
    """A page that waits for a dead cache is a dead page. The deadline is 0.25 s for each call."""
    hole = jmcache_proxy.blackhole()
    for number in range(5):
        began = time.monotonic()
        matches_for(f"c{number}", cache=jmcache_cache)
        assert time.monotonic() - began < 2.0
    assert jmcache_cache.health().breaker == "open"
    seen = hole.triggered
    assert matches_for("c9", cache=jmcache_cache) == rank("c9")
    assert hole.triggered <= seen + 1, "nobody but the probe asks any more"


def test_the_cache_is_used_again_when_redis_is_back(jmcache_cache, jmcache_server):
    """Nobody should have to restart the service."""
    jmcache_server.kill()
    matches_for("c1", cache=jmcache_cache)
    jmcache_server.start()
    over = time.monotonic() + 10
    while jmcache_cache.lookup("k").outcome is not Outcome.MISS:
        assert time.monotonic() < over
        time.sleep(0.02)
    matches_for("c1", cache=jmcache_cache)
    key = jmcache_cache.generate_key("matches", "c1")
    assert jmcache_cache.get(key) == rank("c1")


def test_a_full_redis_costs_nothing_but_hits(jmcache_cache, jmcache_server):
    """What is stored can still be read."""
    matches_for("c1", cache=jmcache_cache)
    with jmcache_server.fill():
        assert matches_for("c2", cache=jmcache_cache) == rank("c2")
        assert jmcache_cache.lookup(jmcache_cache.generate_key("matches", "c1")).is_hit


def test_a_request_is_asked_once(jmcache_cache, jmcache_proxy):
    """What a request costs Redis is worth knowing before the load test."""
    # Of the entry: with each goes a GET of the counter that says whether it is still valid.
    reads = jmcache_proxy.watch(on=lambda words: words[0] == b"GET" and b":matches" in words[1])
    writes = jmcache_proxy.watch(on=lambda words: words[0] == b"SET" and b":matches" in words[1])
    matches_for("c1", cache=jmcache_cache)
    matches_for("c1", cache=jmcache_cache)
    assert (reads.triggered, writes.triggered) == (2, 1)


def test_coroutines_are_served_as_well(jmcache_async_cache, jmcache_proxy):
    async def main():
        jmcache_proxy.latency(0.4)
        found = await asyncio.gather(*(jmcache_async_cache.lookup(f"c{n}") for n in range(50)))
        assert {lookup.outcome for lookup in found} <= {Outcome.UNAVAILABLE, Outcome.SATURATED}

    asyncio.run(main())
