"""jmcache beside its peers: one operation, one size, so many callers at once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple

from benchmarks.bench.calls import at_once, gathered
from benchmarks.bench.contenders import CONTENDERS, REFERENCE
from benchmarks.bench.payloads import result
from benchmarks.bench.rounds import Contest, Plan, Run, expected_s
from benchmarks.bench.session import Session

KILOBYTES = (0.2, 5, 50, 500)
BUNDLE = 100  # keys
_SMALL_KB = 10
_CALL_S = 150e-6  # about, of 5 KB


class Case(NamedTuple):
    """What is measured; by these names it stands in the report."""

    side: str  # "called" or "awaited"
    operation: str
    kb: float = 5
    callers: int = 1


_BUNDLES = ("get_many", "set_many")
PARTS: dict[str, list[Case]] = {
    "called": [
        *[Case("called", "get", kb) for kb in KILOBYTES],
        *[Case("called", operation) for operation in ("set", *_BUNDLES)],
    ],
    "threads": [Case("called", "get", callers=callers) for callers in (4, 16, 64)],
    "tasks": [Case("awaited", "get", callers=callers) for callers in (1, 16, 64, 256)],
    "awaited": [
        *[Case("awaited", "get", kb, 16) for kb in KILOBYTES if kb != 5],
        Case("awaited", "set", callers=64),
        *[Case("awaited", operation) for operation in _BUNDLES],
    ],
}


def part_s(part: str, plan: Plan) -> float:
    """Return about how long a part takes."""
    return sum(_step_s(case, plan) for case in PARTS[part])


def run_part(part: str, session: Session) -> None:
    """Hold all contests of a part."""
    for case in PARTS[part]:
        with ThreadPoolExecutor(case.callers) as threads:
            runs = dict(_runs(case, session, threads))
            operations = BUNDLE if case.operation in _BUNDLES else 1
            contest = Contest(runs, REFERENCE[case.side], _least(case), operations)
            session.contend(case._asdict(), contest, _step_s(case, session.plan))


def _step_s(case: Case, plan: Plan) -> float:
    longest_s = max(plan.round_s, _least(case) * _CALL_S * (1 + case.kb / 20))
    return expected_s(len(CONTENDERS[case.side]), replace(plan, round_s=longest_s))


def _least(case: Case) -> int:
    """Calls of a turn, at least: some for each caller, for they do not begin at once."""
    if case.callers == 1:
        return 1
    return case.callers * (5 if case.callers <= 64 and case.kb < _SMALL_KB else 2)


def _runs(case: Case, session: Session, threads: ThreadPoolExecutor) -> Iterator[tuple[str, Run]]:
    value = result(case.kb)
    keys = [f"{case.operation}-{case.kb}-{number}" for number in range(BUNDLE)]
    args: dict[str, tuple[Any, ...]] = {
        "get": (keys[0],),
        "set": (keys[0], value),
        "get_many": (keys,),
        "set_many": (dict.fromkeys(keys, value),),
    }
    for name, contender in getattr(session, case.side).items():
        call, given = getattr(contender, case.operation), args[case.operation]
        if case.side == "awaited":
            yield name, gathered(session.loop, case.callers, call, *given)
            stored = session.loop.run_until_complete(_fill_awaited(case, contender, keys, value))
        else:
            yield name, at_once(threads, case.callers, call, *given)
            stored = _fill(case, contender, keys, value)
        if stored != value:
            raise RuntimeError(f"{name} did not give back what it was given")


def _fill(case: Case, contender: Any, keys: list[str], value: Any) -> Any:
    if case.operation in _BUNDLES:
        contender.set_many(dict.fromkeys(keys, value))
        return dict(contender.get_many(keys))[keys[-1]]
    contender.set(keys[0], value)
    return contender.get(keys[0])


async def _fill_awaited(case: Case, contender: Any, keys: list[str], value: Any) -> Any:
    if case.operation in _BUNDLES:
        await contender.set_many(dict.fromkeys(keys, value))
        found = await contender.get_many(keys)
        return list(found.values() if isinstance(found, dict) else found)[-1]
    await contender.set(keys[0], value)
    return await contender.get(keys[0])
