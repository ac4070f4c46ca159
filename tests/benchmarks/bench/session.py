"""What every part of a run is handed: the server, the contenders, the plan, and the report."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Collection
from types import TracebackType
from typing import Any, Self

from benchmarks.bench.contenders import AWAITED, CALLED, chosen
from benchmarks.bench.payloads import result
from benchmarks.bench.progress import Progress
from benchmarks.bench.rounds import Contest, Plan, Turn, Turns, compete

Report = dict[str, Any]


class Session:
    """One run. The loop is for all that is awaited, and runs only while something is."""

    def __init__(
        self, port: int, plan: Plan, progress: Progress, names: Collection[str] | None = None
    ) -> None:
        """Make the contenders of *names*; None: all."""
        self.port = port
        self.plan = plan
        self.progress = progress
        self.report: Report = {"contests": [], "latency": [], "figures": {}, "replay": []}
        self.loop = asyncio.new_event_loop()
        result(5)  # reads the postings
        # Who allocates much makes the collector look at everything, ours too: not the contender's
        # doing.
        gc.collect()
        gc.freeze()
        self.called = chosen(CALLED, names, port)
        self.awaited = chosen(AWAITED, names, port)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for contender in self.called.values():
            contender.close()
        for contender in self.awaited.values():
            self.loop.run_until_complete(contender.close())
        self.loop.close()
        gc.unfreeze()

    def contend(self, case: dict[str, Any], contest: Contest, step_s: float) -> None:
        """Let them take turns, and put what it took into the report under *case*."""
        name = " ".join([str(value) for value in case.values()])
        turns = compete(contest, self.plan, lambda share: self.progress.show(name, step_s, share))
        self.progress.add(name, step_s)
        row = {**case, "reference": contest.reference, "turns": turns}
        self.report["contests"].append(row)


def turns_of(report: Report, **case: Any) -> Turns | None:
    """Return what the contest of *case* took; None where it was not held."""
    for row in report["contests"]:
        if all(row.get(name) == value for name, value in case.items()):
            return {name: [Turn(*turn) for turn in turns] for name, turns in row["turns"].items()}
    return None
