"""make soak: run it, show how it goes, say what it came to. Exit code 1: a promise was broken."""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from soak import peers, report
from soak.run import Plan, Progress, run

_PLAIN = ("jmcache", "jmcache-awaited")
_NEAR = ("jmcache-near", "jmcache-near-awaited")


def main() -> int:
    """Run what the command line asks for."""
    asked = _arguments()
    seed = random.SystemRandom().randrange(10**6) if asked.seed is None else asked.seed
    plan = Plan(
        seconds=asked.seconds,
        calls=asked.calls,
        seed=seed,
        processes=asked.processes,
        threads=asked.threads,
        contenders=_NEAR if asked.near else _PLAIN,
    )
    print(f"seed {seed}", flush=True)
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _end)
    try:
        return _compare(plan, asked.json) if asked.peers else _soak(plan, asked.json)
    except KeyboardInterrupt:
        _line()
        print("interrupted; everything that was started has been ended", file=sys.stderr)
        return 130


_told: list[int] = []  # signals


def _end(number: int, _frame: object) -> None:
    _told.append(number)
    _look()


def _look() -> None:
    """Do as a signal said, again where the exception was lost on its way: in a __del__, say."""
    if signal.SIGTERM in _told:
        sys.exit(143)
    if _told:
        raise KeyboardInterrupt


def _soak(plan: Plan, path: Path | None) -> int:
    found = run(plan, _show, _interval_s())
    _line()
    verdict = report.promises(found)
    print(report.text(found, verdict))
    _write(path, {**found, "promises": [promise._asdict() for promise in verdict]})
    return 0 if all(promise.held for promise in verdict) else 1


def _compare(plan: Plan, path: Path | None) -> int:
    runs = []
    for contender in peers.plans(plan):
        print(f"{contender.contenders[0]}:", flush=True)
        runs.append(run(contender, _show, _interval_s()))
        _line()
    print(report.table(runs))
    _write(path, {"runs": runs})
    return 0 if all(promise.held for promise in report.promises(runs[0])) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="of faults; 600")
    parser.add_argument(
        "--calls", type=int, default=0, help="until so many calls were made instead"
    )
    parser.add_argument("--seed", type=int, help="of faults and callers; random, and printed")
    parser.add_argument(
        "--processes", type=int, default=2, help="with threads, besides one of tasks"
    )
    parser.add_argument("--threads", type=int, default=16, help="in each process, and tasks")
    parser.add_argument("--near", action="store_true", help="with near caches")
    parser.add_argument("--peers", action="store_true", help="other clients in the same scenes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole report there")
    return parser.parse_args()


def _interval_s() -> float:
    return 0.5 if sys.stderr.isatty() else 10.0


def _show(now: Progress) -> None:
    _look()
    totals = now.totals
    line = (
        f"{int(now.left_s) // 60:02d}:{int(now.left_s) % 60:02d} left  {totals['calls']:,} calls"
        f"  {totals['hits']:,} hits  {now.episodes} faults  wrong {totals['wrong']}"
        f"  late {totals['late']}  {now.fault}"
    )
    if sys.stderr.isatty():
        filled = round(20 * min(now.share, 1.0))
        line = f"[{'#' * filled:<20}] {line}"[: shutil.get_terminal_size().columns - 1]
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
    else:
        print(line, file=sys.stderr, flush=True)


def _line() -> None:
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def _write(path: Path | None, what: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(what, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
