"""Who asks the service for rankings: over HTTP, through the worker's pipe, through the queue.

Each client is used by one thread at a time and turns whatever goes wrong into a `Reply` that says
so; none of them raises.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import celery

PATIENCE_S = 10.0  # after this an answer counts as failed

Expected = Mapping[str, list[dict[str, Any]]]  # candidate id -> the matcher's own ranking


@dataclass(frozen=True, slots=True)
class Reply:
    """One ranking asked for, as the asker saw it.

    Attributes:
        user: Which way it was asked for, such as "async endpoint".
        at: Seconds since 1970 when the answer was there.
        latency_s: Seconds from asking to having the answer.
        outcome: The cache's word for the look-up; "hit" means that nothing was computed.
        cache_s: Seconds the service spent on the cache.
        match_s: Seconds the service spent on ranking.
        right: Is it what the matcher itself answers for this candidate?
        failure: What went wrong; empty when nothing did.
    """

    user: str
    at: float
    latency_s: float
    outcome: str = ""
    cache_s: float = 0.0
    match_s: float = 0.0
    right: bool = True
    failure: str = ""

    @property
    def is_hit(self) -> bool:
        """True when it came from the cache."""
        return self.outcome == "hit"


class Client(Protocol):
    """Something a candidate's ranking can be asked of."""

    def ask(self, candidate_id: str) -> Reply:
        """Return what came back, and how long it took."""


@dataclass(frozen=True, slots=True)
class Result:
    """What an answer holds, whichever way it came."""

    matches: list[dict[str, Any]]
    outcome: str
    cache_s: float
    match_s: float


class HttpClient:
    """Asks one endpoint of one replica, over a connection that is kept open."""

    def __init__(self, user: str, port: int, endpoint: str, expected: Expected) -> None:
        self._user = user
        self._endpoint = endpoint
        self._expected = expected
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)

    def ask(self, candidate_id: str) -> Reply:
        """Send one GET and read all of its answer."""

        def get() -> Result:
            self._connection.request("GET", f"/candidates/{candidate_id}/{self._endpoint}")
            response = self._connection.getresponse()
            body = response.read()
            if response.status != 200:
                raise ValueError(f"HTTP {response.status}")
            cache_s, match_s = _server_timing(response.headers["Server-Timing"])
            matches = json.loads(body)["matches"]
            return Result(matches, response.headers["X-Cache"], cache_s, match_s)

        reply = _timed(self._user, get, self._expected[candidate_id])
        if reply.failure:
            self._connection.close()  # the next request opens a new one
        return reply


class WorkerClient:
    """Asks the synchronous worker: a line into its stdin, a line out of its stdout."""

    def __init__(self, user: str, process: subprocess.Popen[str], expected: Expected) -> None:
        self._user = user
        self._process = process
        self._expected = expected

    def ask(self, candidate_id: str) -> Reply:
        """Send one id and read its line."""

        def work() -> Result:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            print(candidate_id, file=self._process.stdin, flush=True)
            return _result(json.loads(self._process.stdout.readline()))

        return _timed(self._user, work, self._expected[candidate_id])


class CeleryClient:
    """Sends a task to the queue and waits for its result."""

    def __init__(self, user: str, app: celery.Celery, expected: Expected) -> None:
        self._user = user
        self._app = app
        self._expected = expected

    def ask(self, candidate_id: str) -> Reply:
        """Send one task and read its result."""

        def run() -> Result:
            sent = self._app.send_task("job_matching.find_matches", [candidate_id])
            return _result(sent.get(timeout=PATIENCE_S, interval=0.01))

        return _timed(self._user, run, self._expected[candidate_id])


def _timed(user: str, ask: Callable[[], Result], expected: list[dict[str, Any]]) -> Reply:
    started = time.perf_counter()
    try:
        result = ask()
    # Also what a task of Celery's raised arrives here, so it can be anything: it is what the demo
    # counts, and the thread goes on.
    except Exception as error:  # noqa: BLE001
        took = time.perf_counter() - started
        failure = f"{type(error).__name__}: {error}"
        return Reply(user, time.time(), took, right=False, failure=failure)
    took = time.perf_counter() - started
    right = result.matches == expected
    return Reply(
        user, time.time(), took, result.outcome, result.cache_s, result.match_s, right=right
    )


def _result(message: dict[str, Any]) -> Result:
    return Result(message["matches"], message["outcome"], message["cache_s"], message["match_s"])


def _server_timing(header: str) -> tuple[float, float]:
    cache, match = (float(part.partition("dur=")[2]) / 1000 for part in header.split(","))
    return cache, match
