"""The same ranking as a Celery task.

By hand, from this folder: `celery -A tasks worker --pool prefork --concurrency 2`. Without
`CELERY_BROKER_URL` and `CELERY_RESULT_BACKEND` the queue and the results are folders under
`JOB_MATCHING_QUEUE`, so that nothing has to be installed to try it.
"""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from app.core import folder_queue
from app.core.logs import configure_logging
from app.libs.job_matcher.cache import cache
from app.libs.job_matcher.catalogue import candidates
from app.libs.job_matcher.finder import find_matches as find
from app.libs.job_matcher.matcher import Filters, job_matcher
from celery import Celery
from celery.signals import setup_logging, worker_init

import jmcache.integrations.celery

app = Celery("job_matching")
if "CELERY_BROKER_URL" not in os.environ:
    queue = os.environ.get("JOB_MATCHING_QUEUE") or f"{tempfile.gettempdir()}/job-matching-queue"
    app.conf.update(folder_queue.settings(Path(queue)))
app.conf.update(
    task_soft_time_limit=20,  # seconds; raises in the middle of whatever runs, the cache included
    worker_enable_remote_control=False,
    worker_prefetch_multiplier=1,
)
jmcache.integrations.celery.install(app)


@setup_logging.connect
def log_like_the_others(loglevel: int, **_: object) -> None:
    """Keep Celery from setting up logging of its own; `--loglevel` is for its own lines."""
    configure_logging()
    logging.getLogger("celery").setLevel(loglevel)


@worker_init.connect
def load_catalogue(**_: object) -> None:
    """Build the index once, before the fork: the children share its memory."""
    job_matcher()


@app.task(name="job_matching.find_matches")
def find_matches(candidate_id: str, filters: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the best matches for a candidate, and what it took."""
    answer = find(cache, candidates()[candidate_id], Filters(**(filters or {})))
    return {
        "candidate_id": candidate_id,
        "pid": os.getpid(),
        "outcome": answer.outcome.value,
        "cache_s": answer.cache_s,
        "match_s": answer.match_s,
        "matches": answer.matches,
    }
