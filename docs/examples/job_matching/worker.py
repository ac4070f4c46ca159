"""A synchronous worker: reads candidate ids, one a line, writes a JSON line for each.

By hand, from this folder: `printf 'c00001\\nc00002\\n' | python worker.py`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from app.core.logs import configure_logging
from app.libs.job_matcher.cache import cache, initialize_cache
from app.libs.job_matcher.catalogue import candidates
from app.libs.job_matcher.finder import find_matches
from app.libs.job_matcher.matcher import Filters, job_matcher


def work(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield the ranking of each candidate named by *lines*; empty lines are passed over."""
    for line in lines:
        candidate_id = line.strip()
        if not candidate_id:
            continue
        candidate = candidates().get(candidate_id)
        if candidate is None:
            yield {"candidate_id": candidate_id, "error": "no such candidate"}
            continue
        answer = find_matches(cache, candidate, Filters())
        yield {
            "candidate_id": candidate_id,
            "outcome": answer.outcome.value,
            "cache_s": answer.cache_s,
            "match_s": answer.match_s,
            "matches": answer.matches,
        }


def main() -> int:
    """Work until the input ends."""
    configure_logging()
    initialize_cache()
    job_matcher()
    with cache:
        for result in work(sys.stdin):
            print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
