"""Taking turns in short rounds, and the arithmetic of what they took."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

_WARM_UPS = 2

Run = Callable[[int], Any]  # does its operation so many times


@dataclass(frozen=True)
class Plan:
    """How exact it is to be.

    Attributes:
        rounds: Turns of each contender in each contest.
        round_s: Seconds one turn of the contender they are compared with takes, about.
        samples: Calls of each contender whose latency is taken, in each setting.
        look_ups: Of the real trace.
        entries: In the near cache whose memory is measured.
    """

    rounds: int
    round_s: float
    samples: int
    look_ups: int
    entries: int


FULL = Plan(rounds=21, round_s=0.1, samples=12_000, look_ups=60_000, entries=10_000)
QUICK = Plan(rounds=5, round_s=0.02, samples=1_500, look_ups=5_000, entries=10_000)


class Spread(NamedTuple):
    """A median, and the middle half around it."""

    median: float
    low: float
    high: float


class Turn(NamedTuple):
    """What one operation took in one round, in microseconds.

    CPU time is the whole process's, all its threads, as the operating system counts it; the
    server is another process.
    """

    wall_us: float
    cpu_us: float


Turns = Mapping[str, Sequence[Turn]]  # of each contender, round by round


@dataclass(frozen=True)
class Contest:
    """The same in several ways.

    Attributes:
        reference: The one that the others are compared with.
        step: A turn does a multiple of so many.
        operations: That one of a turn's count stands for; a bundle counts its keys.
    """

    runs: Mapping[str, Run]
    reference: str
    step: int = 1
    operations: int = 1


def spread(figures: Sequence[float]) -> Spread:
    """Return the median and the quartiles of *figures*; of one figure, that three times."""
    if len(figures) == 1:
        return Spread(figures[0], figures[0], figures[0])
    low, _, high = statistics.quantiles(figures, n=4, method="inclusive")
    return Spread(statistics.median(figures), low, high)


def ratio(turns: Turns, ours: str, other: str, what: str = "wall_us") -> Spread:
    """Return the ratio of *ours* to *other*, taken in each round, so that both had the same day."""
    pairs = zip(turns[ours], turns[other], strict=True)
    return spread([getattr(a, what) / getattr(b, what) for a, b in pairs])


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest of *ordered* that at least *share* of them are not above."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def compete(contest: Contest, plan: Plan, on_turn: Callable[[float], None]) -> Turns:
    """Let the contenders take turns; *on_turn* is told the share done, from 0 to 1."""
    names = list(contest.runs)
    count = _count(contest, plan.round_s)
    turns: dict[str, list[Turn]] = {name: [] for name in names}
    gc.collect()
    for number in range(_WARM_UPS + plan.rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            turn = _take(contest.runs[name], count, contest.operations)
            if number >= _WARM_UPS:
                turns[name].append(turn)
        on_turn((number + 1) / (_WARM_UPS + plan.rounds))
    return turns


def expected_s(contenders: int, plan: Plan) -> float:
    """Return about how long `compete` takes."""
    return contenders * (_WARM_UPS + plan.rounds) * plan.round_s


def _count(contest: Contest, round_s: float) -> int:
    for run in contest.runs.values():  # connections are made here
        run(contest.step)
    reference = contest.runs[contest.reference]
    best_us = min(_take(reference, contest.step, 1).wall_us for _ in range(3))
    return contest.step * max(1, round(round_s * 1e6 / (best_us * contest.step)))


def _take(run: Run, count: int, operations: int) -> Turn:
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    run(count)
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    per_operation = 1e6 / (count * operations)
    return Turn(wall_s * per_operation, cpu_s * per_operation)
