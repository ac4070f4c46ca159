"""From replies, journals and logs to figures."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.core.journal import Line

from showcase.clients import Reply

TIMELINE_STEP_S = 0.25


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line some process wrote, in the form of `app.core.logs`.

    Attributes:
        at: Seconds since 1970.
    """

    at: float
    pid: int
    level: str
    logger: str
    text: str


def percentile(values: Iterable[float], share: float) -> float:
    """Return the smallest value that *share* of all are not above; 0.0 of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def summary(replies: Sequence[Reply]) -> dict[str, Any]:
    """Return how many asked, hit, failed and were wrong, and how long they took."""
    latencies = [reply.latency_s * 1000 for reply in replies]
    hits = sum(reply.is_hit for reply in replies)
    return {
        "asked": len(replies),
        "hits": hits,
        "hit_ratio": round(hits / len(replies), 4) if replies else 0.0,
        "failed": sum(bool(reply.failure) for reply in replies),
        "wrong": sum(not reply.right and not reply.failure for reply in replies),
        "p50_ms": round(percentile(latencies, 0.5), 3),
        "p99_ms": round(percentile(latencies, 0.99), 3),
        "worst_ms": round(max(latencies, default=0.0), 3),
    }


def summaries(replies: Sequence[Reply]) -> dict[str, Any]:
    """Return a summary of all, and one for each way of asking, in alphabetical order."""
    users = sorted({reply.user for reply in replies}, key=str.casefold)
    by_user = {user: summary([reply for reply in replies if reply.user == user]) for user in users}
    return {"all": summary(replies), "by_user": by_user}


def answers(replies: Sequence[Reply]) -> dict[str, Any]:
    """Return how many were asked, wrong and failed, and a few of the failures in words."""
    figures = summary(replies)
    failures = sorted({f"{reply.user}: {reply.failure}" for reply in replies if reply.failure})
    return {name: figures[name] for name in ("asked", "wrong", "failed")} | {
        "failures": failures[:5]
    }


def asked_and_computed(lines: Iterable[Line]) -> dict[str, int]:
    """Return how many rankings were asked for, and how many of them had to be computed."""
    outcomes = Counter(line.outcome for line in lines)
    return {"asked": outcomes.total(), "computed": outcomes.total() - outcomes["hit"]}


def first_hits(lines: Iterable[Line], since: float) -> dict[int, float]:
    """Return the seconds from *since* to each process's first hit after it, by process id."""
    found: dict[int, float] = {}
    for line in sorted(lines, key=lambda line: line.at):
        if line.outcome == "hit" and line.at >= since:
            found.setdefault(line.pid, round(line.at - since, 3))
    return found


def log_lines(path: Path) -> list[LogLine]:
    """Return the log lines in a file; a traceback or a bare print counts with its process.

    A line in no known form is given the time and process of the line above it.
    """
    lines: list[LogLine] = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        parts = text.split(" ", 4)
        try:
            at, pid = float(parts[0]), int(parts[1])
            lines.append(LogLine(at, pid, parts[2], parts[3].rstrip(":"), parts[4]))
        except (ValueError, IndexError):
            above = lines[-1] if lines else LogLine(0.0, 0, "", "", "")
            lines.append(LogLine(above.at, above.pid, "", "", text))
    return lines


def timeline(replies: Sequence[Reply], killed: float, back: float) -> dict[str, Any]:
    """Return worst latency and hit ratio for each quarter of a second, from the first reply on.

    Args:
        killed: When the server was killed, in seconds since 1970.
        back: When it was back.
    """
    start = min(reply.at for reply in replies)
    slots: defaultdict[int, list[Reply]] = defaultdict(list)
    for reply in replies:
        slots[int((reply.at - start) / TIMELINE_STEP_S)].append(reply)
    return {
        "step_s": TIMELINE_STEP_S,
        "killed_s": round(killed - start, 3),
        "back_s": round(back - start, 3),
        "slots": [summary(slots[number]) for number in range(max(slots) + 1)],
    }
