"""What jmcache promises, and whether this run saw it kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from app.libs.job_matcher.cache import cache_settings

DEADLINE_S = cache_settings.operation_timeout
# A request makes two calls on the cache, a look-up and a store; each may use its whole deadline.
CALLS = 2
SLACK_S = 0.15  # until a busy machine runs the thread whose time is up
RECOVERY_S = 2.0
LOG_LINES = 10  # per process in the whole outage
WARM_HITS = 0.99


def judge(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return each promise with what was measured and whether it held."""
    return [
        {"promise": promise, "measured": measured, "held": held}
        for promise, measured, held in _promises(report)
    ]


def _promises(report: dict[str, Any]) -> Iterator[tuple[str, str, bool]]:
    answers, work, outage = report["answers"], report["matches"], report["outage"]
    yield (
        "every answer is the matcher's own",
        f"{answers['wrong']} wrong of {answers['asked']:,}",
        answers["wrong"] == 0,
    )
    yield (
        "no request fails, with Redis or without",
        f"{answers['failed']} failed" + "".join(f"; {text}" for text in answers["failures"]),
        answers["failed"] == 0,
    )
    yield (
        "an empty cache finds nothing",
        f"{report['cold']['all']['hits']} hits while cold",
        report["cold"]["all"]["hits"] == 0,
    )
    ratio = report["warm"]["all"]["hit_ratio"]
    yield f"warm hit ratio at least {WARM_HITS:.0%}", f"{ratio:.2%}", ratio >= WARM_HITS
    yield (
        "fewer rankings computed than asked for",
        f"{work['computed']:,} of {work['asked']:,}",
        work["computed"] < work["asked"],
    )
    unopened = sorted(set(outage["processes"]) - set(outage["breakers_opened"]))
    yield (
        "the breaker opens in every process",
        f"not in {', '.join(unopened)}" if unopened else f"all {len(outage['processes'])}",
        not unopened,
    )
    limit_ms = (CALLS * DEADLINE_S + SLACK_S) * 1000
    yield (
        f"in the outage the cache costs a request at most {limit_ms:.0f} ms",
        f"worst {outage['cache_worst_ms']:.0f} ms",
        outage["cache_worst_ms"] <= limit_ms,
    )
    over = {
        user: figures["worst_ms"] - report["cold"]["by_user"][user]["worst_ms"]
        for user, figures in outage["by_user"].items()
    }
    most_over = max(over, key=lambda user: over[user])
    yield (
        "and no request takes longer than that and the worst cold one of its kind",
        f"at most {max(0.0, over[most_over]):.0f} ms longer, {most_over}",
        over[most_over] <= limit_ms,
    )
    most = max(outage["log_lines"].values(), default=0)
    yield (
        f"at most {LOG_LINES} log lines a process in the outage",
        f"{most} at most, for {outage['all']['asked']} requests",
        most <= LOG_LINES,
    )
    recovery = report["recovery"]["seconds_to_hits"]
    late = [name for name, seconds in recovery.items() if seconds is None]
    slowest = max((seconds for seconds in recovery.values() if seconds is not None), default=0.0)
    yield (
        f"hits again in every process within {RECOVERY_S:.0f} s",
        f"never in {', '.join(late)}" if late else f"after {slowest:.2f} s",
        not late and slowest <= RECOVERY_S,
    )
