"""How long single calls take: every one timed, the contenders in turn."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.bench.calls import at_once, gathered, timed, timed_awaited
from benchmarks.bench.contenders import CONTENDERS
from benchmarks.bench.payloads import result
from benchmarks.bench.rounds import Plan, Run, percentile
from benchmarks.bench.session import Session

SHARES = (0.5, 0.95, 0.99, 0.999)
SETTINGS = (("called", 1), ("called", 16), ("awaited", 64))
_BLOCKS = 8
_CALL_S = 150e-6  # about
_KEY = "latency"


def part_s(plan: Plan) -> float:
    """Return about how long it takes."""
    return sum([_step_s(side, plan) for side, _ in SETTINGS])


def run_part(session: Session) -> None:
    """Time the calls, and put their percentiles into the report."""
    for side, callers in SETTINGS:
        took: dict[str, list[float]] = {}
        with ThreadPoolExecutor(callers) as threads:
            runs: dict[str, Run] = {}
            for name, contender in getattr(session, side).items():
                took[name] = []
                if side == "awaited":
                    session.loop.run_until_complete(contender.set(_KEY, result(5)))
                    call = timed_awaited(contender.get, took[name])
                    runs[name] = gathered(session.loop, callers, call, _KEY)
                else:
                    contender.set(_KEY, result(5))
                    call = timed(contender.get, took[name])
                    runs[name] = at_once(threads, callers, call, _KEY)
            _take_turns(session, side, callers, runs, took)
        for name, microseconds in took.items():
            session.report["latency"].append(_row(side, callers, name, microseconds))


def _take_turns(
    session: Session, side: str, callers: int, runs: dict[str, Run], took: dict[str, list[float]]
) -> None:
    name = f"latency, {side} x {callers}"
    block = callers * math.ceil(session.plan.samples / _BLOCKS / callers)
    step_s = _step_s(side, session.plan)
    for contender, run in runs.items():
        run(block)  # the warm-up
        took[contender].clear()
    for number in range(_BLOCKS):
        for run in runs.values():
            run(block)
        session.progress.show(name, step_s, (number + 1) / _BLOCKS)
    session.progress.add(name, step_s)


def _row(side: str, callers: int, name: str, microseconds: list[float]) -> dict[str, Any]:
    ordered = sorted(microseconds)
    return {
        "side": side,
        "callers": callers,
        "contender": name,
        "calls": len(ordered),
        "us": {f"{100 * share:g}": percentile(ordered, share) for share in SHARES},
    }


def _step_s(side: str, plan: Plan) -> float:
    return len(CONTENDERS[side]) * plan.samples * _CALL_S
