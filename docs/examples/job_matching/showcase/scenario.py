"""The story of the demo: start, cold, warm, outage, recovery; and what was measured in it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.libs.job_matcher.catalogue import candidates, postings
from app.libs.job_matcher.matcher import job_matcher

from showcase import measures
from showcase.clients import Client, Expected, Reply
from showcase.display import Progress
from showcase.plan import Plan
from showcase.promises import judge
from showcase.servers import Server
from showcase.service import Service
from showcase.traffic import Traffic

HOT = 12  # candidates that everybody asks for around the outage


@dataclass(frozen=True, slots=True)
class Outage:
    """Steady traffic with the server killed and started again in the middle of it.

    Attributes:
        killed: Seconds since 1970.
        back: Seconds since 1970 when the new server answered.
    """

    replies: list[Reply]
    killed: float
    back: float


class Scenario:
    """One run of the demo over processes of its own."""

    def __init__(self, plan: Plan, server: Server, service: Service, progress: Progress) -> None:
        self._plan = plan
        self._server = server
        self._service = service
        self._progress = progress
        self._ranking_s: list[float] = []

    def run(self) -> dict[str, Any]:
        """Play all phases; return the report, its promises judged.

        Raises:
            RuntimeError: A process did not come up.
        """
        spare, *asked = list(candidates())[: self._plan.candidates + 1]
        askers = self._start(self._expect([spare, *asked]), spare)
        began = time.time()
        cold = self._phase("cold", len(asked), askers, shared=asked)
        warm = self._phase("warm", len(asked) * len(askers), askers, each=asked)
        matches = measures.asked_and_computed(self._service.journal(began))
        outage = self._outage(askers, asked[:HOT])
        report: dict[str, Any] = {
            "server": self._server.describe(),
            "data": {
                "postings": len(postings()),
                "candidates": len(asked),
                "ranking_ms": round(measures.percentile(self._ranking_s, 0.5) * 1000, 3),
            },
            "cold": measures.summaries(cold),
            "warm": measures.summaries(warm),
            "matches": matches,
            "outage": self._outage_figures(outage),
            "recovery": {"seconds_to_hits": self._recovery(outage.back)},
            "timeline": measures.timeline(outage.replies, outage.killed, outage.back),
            "answers": measures.answers([*cold, *warm, *outage.replies]),
        }
        report["promises"] = judge(report)
        report["ok"] = all(promise["held"] for promise in report["promises"])
        return report

    def _expect(self, chosen: Sequence[str]) -> Expected:
        """Rank every candidate here, without any cache: what every answer is compared with."""
        self._progress.begin("ranking", len(chosen), "candidates, here, to compare with")
        matcher, expected = job_matcher(), {}
        for done, candidate_id in enumerate(chosen, 1):
            started = time.perf_counter()
            matches = matcher.rank(candidates()[candidate_id].skills)
            self._ranking_s.append(time.perf_counter() - started)
            expected[candidate_id] = json.loads(json.dumps(matches))
            self._progress.at(done)
        self._progress.end(len(chosen))
        return expected

    def _start(self, expected: Expected, spare: str) -> list[Client]:
        """Start everything; return the askers, each having had one answer, with *spare*."""
        self._progress.begin("starting", 8, "parts: a server, and who uses it")
        self._server.start()
        askers = self._service.start(self._server.environ(), expected)
        self._progress.at(1)
        self._service.await_answers(askers, spare, lambda number: self._progress.at(1 + number))
        self._progress.end(8)
        return askers

    def _phase(
        self,
        title: str,
        total: int,
        askers: Sequence[Client],
        *,
        shared: Sequence[str] = (),
        each: Sequence[str] = (),
    ) -> list[Reply]:
        """Have the askers ask *shared* between them, and *each* one by one."""
        self._progress.begin(title, total, "rankings asked for")
        traffic = Traffic()
        traffic.share_out(askers, shared)
        traffic.ask_each(askers, each)
        for done in traffic.watch():
            self._progress.at(done)
        self._progress.end(len(traffic.replies))
        return traffic.replies

    def _outage(self, askers: Sequence[Client], questions: Sequence[str]) -> Outage:
        """Kill the server in steady traffic and start it again."""
        plan = self._plan
        whole_s = plan.before_s + plan.outage_s + plan.after_s
        self._progress.begin("outage", whole_s, "s: traffic, server killed, server back")
        traffic = Traffic()
        traffic.keep_asking(askers, questions, every_s=plan.pace_s)
        began = time.monotonic()
        killed = back = 0.0
        for _ in traffic.watch():
            passed = time.monotonic() - began
            if not killed and passed >= plan.before_s:
                killed = time.time()
                self._server.kill()
            if not back and passed >= plan.before_s + plan.outage_s:
                self._server.start()
                back = time.time()
            if passed >= whole_s:
                traffic.stop()
            self._progress.at(min(passed, whole_s))
        self._progress.end(whole_s)
        return Outage(traffic.replies, killed, back)

    def _outage_figures(self, outage: Outage) -> dict[str, Any]:
        during = [reply for reply in outage.replies if outage.killed <= reply.at < outage.back]
        cache_ms = [reply.cache_s * 1000 for reply in during]
        logged = self._service.logged(outage.killed, outage.back)
        opened = [
            pid
            for pid, lines in logged.items()
            if any(line.level == "WARNING" and line.logger.startswith("jmcache") for line in lines)
        ]
        return {
            **measures.summaries(during),
            "seconds": round(outage.back - outage.killed, 3),
            "cache_p50_ms": round(measures.percentile(cache_ms, 0.5), 3),
            "cache_worst_ms": round(max(cache_ms, default=0.0), 3),
            "processes": sorted(self._service.users.values()),
            "breakers_opened": list(self._service.by_name(dict.fromkeys(opened))),
            "log_lines": self._service.by_name({pid: len(logged[pid]) for pid in logged}),
        }

    def _recovery(self, back: float) -> dict[str, float | None]:
        found = measures.first_hits(self._service.journal(back), back)
        return self._service.by_name({pid: found.get(pid) for pid in self._service.users})
