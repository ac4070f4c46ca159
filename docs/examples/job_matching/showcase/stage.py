"""What one run of the demo needs around it: a folder, a server, processes, and their end."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

from jmcache.testing import RedisServerNotFound
from showcase.display import Progress, screen
from showcase.interrupts import Interrupts, Stopped
from showcase.plan import Plan
from showcase.processes import Fleet
from showcase.scenario import Scenario
from showcase.servers import Server, choose_server
from showcase.service import Service


class Stage:
    """Everything a run leaves in the machine, so that it can be cleared away as one."""

    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts
        self._folder: Path | None = None
        self._fleet: Fleet | None = None
        self._server: Server | None = None

    def set_up(self, plan: Plan, progress: Progress) -> Scenario:
        """Return a run that is ready to begin.

        Raises:
            RedisServerNotFound: This machine has no server, and no imitation of one.
        """
        with self._interrupts.held():
            self._folder = Path(tempfile.mkdtemp(prefix="jmcache-demo-"))
            self._fleet = Fleet(self._interrupts, self._folder)
            self._server = choose_server(self._fleet, self._interrupts)
        return Scenario(plan, self._server, Service(self._fleet, self._folder), progress)

    def clear(self) -> None:
        """End and remove everything. Does nothing the second time."""
        with self._interrupts.held():
            if self._fleet is not None:
                self._fleet.end()
            if self._server is not None:
                self._server.end()
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)


def perform(plan: Plan, interrupts: Interrupts, *, as_json: bool) -> int:
    """Play the demo, print what came out, and return the exit code.

    Raises:
        Stopped: It was told to end. Everything started is gone by then.
    """
    progress = Progress(sys.stderr)
    stage = Stage(interrupts)
    try:
        try:
            report = stage.set_up(plan, progress).run()
        finally:
            stage.clear()
    except Stopped:
        # Only one is ever raised. It may have come between the end of the run and the clearing.
        stage.clear()
        progress.clear()
        raise
    except (RedisServerNotFound, RuntimeError) as error:
        progress.clear()
        print(f"the demo cannot be played: {error}", file=sys.stderr)
        return 2
    print(json.dumps(report) if as_json else f"\n{screen(report)}")
    for promise in report["promises"]:
        if not promise["held"]:
            print(f"BROKEN: {promise['promise']}: {promise['measured']}", file=sys.stderr)
    return 0 if report["ok"] else 1
