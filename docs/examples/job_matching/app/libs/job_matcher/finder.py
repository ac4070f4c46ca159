"""Rankings through the cache: look up, else rank and store. The same twice, called and awaited."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool

from app.core import journal
from app.libs.job_matcher.catalogue import Candidate
from app.libs.job_matcher.matcher import Filters, Match, job_matcher
from jmcache import Cache, Outcome
from jmcache.aio import AsyncRedisCache


@dataclass(frozen=True, slots=True)
class Answer:
    """A ranking, and what it took.

    Attributes:
        outcome: How the look-up in the cache ended.
        cache_s: Seconds spent on the cache, look-up and store together.
        match_s: Seconds spent on ranking; 0.0 for a hit.
    """

    matches: list[Match]
    outcome: Outcome
    cache_s: float
    match_s: float


def find_matches(cache: Cache, candidate: Candidate, filters: Filters) -> Answer:
    """Return the best matches for *candidate*, from the cache if it has them."""
    started = time.perf_counter()
    key = cache.generate_key("matches", candidate.id, **_question(candidate, filters))
    found = cache.lookup(key)
    looked = time.perf_counter()
    if found.is_hit:
        return _answer(found.value, found.outcome, looked - started, 0.0)
    matches = job_matcher().rank(candidate.skills, filters)
    ranked = time.perf_counter()
    cache.set(key, matches)
    stored = time.perf_counter()
    return _answer(matches, found.outcome, looked - started + stored - ranked, ranked - looked)


async def find_matches_async(
    cache: AsyncRedisCache, candidate: Candidate, filters: Filters
) -> Answer:
    """Return the best matches for *candidate*; ranks in a thread, so that the loop goes on."""
    started = time.perf_counter()
    key = await cache.generate_key("matches", candidate.id, **_question(candidate, filters))
    found = await cache.lookup(key)
    looked = time.perf_counter()
    if found.is_hit:
        return _answer(found.value, found.outcome, looked - started, 0.0)
    matches = await run_in_threadpool(job_matcher().rank, candidate.skills, filters)
    ranked = time.perf_counter()
    await cache.set(key, matches)
    stored = time.perf_counter()
    return _answer(matches, found.outcome, looked - started + stored - ranked, ranked - looked)


def _question(candidate: Candidate, filters: Filters) -> dict[str, Any]:
    # The skills are part of the key: a candidate who learns something asks a new question, and
    # nobody has to remember to delete the old answer.
    return {"skills": list(candidate.skills), **asdict(filters)}


def _answer(matches: list[Match], outcome: Outcome, cache_s: float, match_s: float) -> Answer:
    journal.note(outcome.value, cache_s, match_s)
    return Answer(matches, outcome, cache_s, match_s)
