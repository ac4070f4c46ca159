"""The HTTP service. By hand, from this folder: `uvicorn app.main:app`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Query
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from app.core.logs import configure_logging
from app.libs.job_matcher.cache import async_cache
from app.libs.job_matcher.catalogue import Candidate, candidates
from app.libs.job_matcher.finder import Answer, find_matches, find_matches_async
from app.libs.job_matcher.matcher import Filters, Match, job_matcher
from jmcache import Cache
from jmcache.aio import AsyncRedisCache
from jmcache.integrations.fastapi import cache_lifespan, get_cache, get_sync_cache, health_router

configure_logging()


@asynccontextmanager
async def load_catalogue(_: FastAPI) -> AsyncIterator[None]:
    """Build the index before the first request, not during it."""
    await run_in_threadpool(job_matcher)
    yield


app = FastAPI(
    title="Job matching", lifespan=cache_lifespan(cache=async_cache, lifespan=load_catalogue)
)
app.include_router(health_router())


def known_candidate(candidate_id: str) -> Candidate:
    """Return the candidate of the path, or answer 404."""
    candidate = candidates().get(candidate_id)
    if candidate is None:
        raise HTTPException(404, f"no candidate {candidate_id}")
    return candidate


def asked_filters(
    country: str | None = None,
    category: str | None = None,
    remote: bool | None = None,
    min_salary_usd: Annotated[int | None, Query(ge=0)] = None,
) -> Filters:
    """Return the filters of the query string."""
    return Filters(country=country, category=category, remote=remote, min_salary_usd=min_salary_usd)


Person = Annotated[Candidate, Depends(known_candidate)]
Wanted = Annotated[Filters, Depends(asked_filters)]


@app.get("/candidates/{candidate_id}/matches")
async def matches(
    candidate: Person, filters: Wanted, cache: Annotated[AsyncRedisCache, Depends(get_cache)]
) -> JSONResponse:
    """Best matches first: an `async def` endpoint, the cache is awaited."""
    answer = await find_matches_async(cache, candidate, filters)
    return _response(answer, {"candidate_id": candidate.id, "matches": answer.matches})


@app.get("/candidates/{candidate_id}/report")
def report(
    candidate: Person, filters: Wanted, cache: Annotated[Cache, Depends(get_sync_cache)]
) -> JSONResponse:
    """What to learn next, with the matches: a plain `def` endpoint, in a thread of FastAPI's."""
    answer = find_matches(cache, candidate, filters)
    return _response(
        answer,
        {
            "candidate_id": candidate.id,
            "matches": answer.matches,
            "skills_to_learn": _skills_to_learn(answer.matches),
        },
    )


@app.get("/stats")
async def stats(cache: Annotated[AsyncRedisCache, Depends(get_cache)]) -> dict[str, Any]:
    """What the cache counted in this process."""
    return {"pid": os.getpid(), "cache": (await cache.stats()).as_dict()}


def _skills_to_learn(matches: list[Match]) -> list[str]:
    """Return the five skills that the matches most often miss, the commonest first."""
    missing = Counter(skill for match in matches for skill in match["skills_missing"])
    return [skill for skill, _ in sorted(missing.items(), key=lambda item: (-item[1], item[0]))[:5]]


def _response(answer: Answer, content: dict[str, Any]) -> JSONResponse:
    # Server-Timing, in milliseconds, is what browsers show in their network panel.
    timing = f"cache;dur={answer.cache_s * 1000:.3f}, match;dur={answer.match_s * 1000:.3f}"
    return JSONResponse(content, headers={"X-Cache": answer.outcome.value, "Server-Timing": timing})
