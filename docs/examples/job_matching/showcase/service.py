"""The service as the demo runs it: two replicas, a worker and a Celery worker, and their askers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import celery
from app.core import folder_queue, journal

from showcase import measures
from showcase.clients import CeleryClient, Client, Expected, HttpClient, WorkerClient
from showcase.processes import Fleet, free_ports
from showcase.traffic import Traffic

PARTS = ("replica 1", "replica 2", "worker", "celery")
START_S = 30.0  # how long everything together may take to come up
# Variables that would lead the service to somebody else's Redis or queue.
FOREIGN = ("REDIS_", "JMCACHE_", "CELERY_", "JOB_MATCHING_")


class Service:
    """Six processes, five of which use the cache: Celery's parent only hands out tasks."""

    def __init__(self, fleet: Fleet, folder: Path) -> None:
        self._fleet = fleet
        self._folder = folder
        self._journal = folder / "journal"
        self._queue = folder / "queue"
        self._names: dict[int, str] = {}  # process id -> name, of those that use the cache
        self._parent: dict[int, str] = {}

    def start(self, redis: Mapping[str, str], expected: Expected) -> list[Client]:
        """Start the processes and return seven askers, two for each of Celery's children's sake.

        Args:
            redis: Where their Redis is, as variables of their environment.
            expected: What every answer is compared with.
        """
        environ = self._environ(redis)
        ports = dict(zip(PARTS[:2], free_ports(2), strict=True))
        for name, port in ports.items():
            # An asker may be idle for a while, until the slower ones are done too.
            options = ["--no-access-log", "--log-level", "warning", "--timeout-keep-alive", "120"]
            uvicorn = ["-m", "uvicorn", "app.main:app", "--port", str(port), *options]
            self._names[self._run(name, uvicorn, environ).pid] = name
        worker = self._run("worker", ["worker.py"], environ, piped=True)
        self._names[worker.pid] = "worker"
        options = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        pool = ["--pool", "prefork", "--concurrency", "2", "--loglevel", "WARNING", *options]
        parent = self._run("celery", ["-m", "celery", "-A", "tasks", "worker", *pool], environ)
        self._parent[parent.pid] = "Celery parent"
        queue = celery.Celery("demo")
        queue.conf.update(folder_queue.settings(self._queue))
        return [
            *(HttpClient("async endpoint", port, "matches", expected) for port in ports.values()),
            *(HttpClient("def endpoint", port, "report", expected) for port in ports.values()),
            WorkerClient("worker", worker, expected),
            *(CeleryClient("Celery task", queue, expected) for _ in range(2)),
        ]

    def await_answers(
        self, askers: Sequence[Client], candidate_id: str, progress: Callable[[int], None]
    ) -> None:
        """Ask until every asker has an answer and both of Celery's children gave one.

        Args:
            progress: Called with the number of askers that have their answer.

        Raises:
            RuntimeError: A process ended, or 30 s were not enough.
        """
        give_up = time.monotonic() + START_S
        for number, asker in enumerate(askers, 1):
            while (reply := asker.ask(candidate_id)).failure:
                self._insist_they_live()
                if time.monotonic() > give_up:
                    raise RuntimeError(f"{reply.user} gives no answer: {reply.failure}")
                time.sleep(0.05)
            progress(number)
        while len(children := self._children()) < 2:
            self._insist_they_live()
            if time.monotonic() > give_up:
                raise RuntimeError(f"{len(children)} of 2 Celery children answer")
            both = Traffic()
            both.ask_each(askers[-2:], [candidate_id] * 4)
            for _ in both.watch():
                pass
        for number, pid in enumerate(sorted(children), 1):
            self._names[pid] = f"Celery child {number}"

    @property
    def users(self) -> dict[int, str]:
        """Return the names of the processes that use the cache, by process id."""
        return dict(self._names)

    def by_name(self, figures: Mapping[int, Any]) -> dict[str, Any]:
        """Return figures by process name instead of process id, in alphabetical order."""
        names = self._names | self._parent
        return dict(sorted((names.get(pid, f"process {pid}"), figures[pid]) for pid in figures))

    def journal(self, since: float) -> list[journal.Line]:
        """Return what was asked of all processes since a moment, in seconds since 1970."""
        return [line for line in journal.read(self._journal) if line.at >= since]

    def logged(self, start: float, end: float) -> dict[int, list[measures.LogLine]]:
        """Return what each process logged between two moments, by process id, also nothing."""
        lines: dict[int, list[measures.LogLine]] = {pid: [] for pid in self._names | self._parent}
        for name in PARTS:
            for line in measures.log_lines(self._fleet.log(name)):
                if start <= line.at < end:
                    lines.setdefault(line.pid, []).append(line)
        return lines

    def _run(
        self, name: str, arguments: list[str], environ: dict[str, str], *, piped: bool = False
    ) -> subprocess.Popen[str]:
        return self._fleet.start(name, [sys.executable, *arguments], environ=environ, piped=piped)

    def _environ(self, redis: Mapping[str, str]) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        return {
            **own,
            **redis,
            "JOB_MATCHING_JOURNAL": str(self._journal),
            "JOB_MATCHING_QUEUE": str(self._queue),
            "TMPDIR": str(self._folder),  # kombu takes messages by moving them there
        }

    def _children(self) -> set[int]:
        """Return the process ids of Celery's children that have answered so far."""
        return {line.pid for line in journal.read(self._journal)} - set(self._names)

    def _insist_they_live(self) -> None:
        for name in PARTS:
            if self._fleet.has_ended(name):
                raise RuntimeError(f"{name} did not start: {self._fleet.last_words(name)}")
