"""Real match results: what the job-matching example ranks, cut to a size."""

from __future__ import annotations

import functools
import sys
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any

import ujson

_EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "job_matching"
_NOBODY = uuid.UUID(int=0)
_MATCH_BYTES = 250  # of one, at least

Result = dict[str, Any]


def result(kilobytes: float, candidate: int = 0) -> Result:
    """Return the best matches of a candidate, as many as fill *kilobytes* of JSON.

    Sizes are within a match of that, and never below. What is smaller than one match is one
    with its first fields only.
    """
    wanted = int(kilobytes * 1000)
    who, ranked = _ranked(candidate, 20 + wanted // _MATCH_BYTES)
    found: Result = {"candidate": who, "matches": []}
    size = len(ujson.dumps(found))
    for match in ranked:
        if size + len(ujson.dumps(match)) > 2 * wanted:
            fields = list(match.items())
            parts = [dict(fields[:n]) for n in range(1, len(fields))]
            match = next(p for p in parts if size + len(ujson.dumps(p)) >= wanted)
        found["matches"].append(match)
        size += len(ujson.dumps(match)) + 1
        if size >= wanted:
            return found
    raise ValueError(f"{who} has matches for {size} bytes only")


def typed(plain: Result) -> Result:
    """Return the same with datetimes and UUIDs in it, two in each match."""
    return {
        **plain,
        "matches": [
            match
            | {
                "posting_id": uuid.uuid5(_NOBODY, match["posting_id"]),
                "posted": datetime.fromisoformat(match["posted"]),
            }
            for match in plain["matches"]
        ],
    }


def as_text(with_types: Result) -> Result:
    """Return what `typed` made with all of it as strings: what ujson alone can write."""
    return {
        **with_types,
        "matches": [
            match | {"posting_id": str(match["posting_id"]), "posted": match["posted"].isoformat()}
            for match in with_types["matches"]
        ],
    }


@functools.cache
def _ranked(candidate: int, limit: int) -> tuple[str, list[dict[str, Any]]]:
    if str(_EXAMPLE) not in sys.path:
        sys.path.append(str(_EXAMPLE))
    from app.libs.job_matcher.catalogue import candidates
    from app.libs.job_matcher.matcher import job_matcher

    who = list(candidates().values())[candidate]
    ranked = job_matcher().rank(who.skills, limit=limit)
    return who.id, [dict(match) for match in ranked]
