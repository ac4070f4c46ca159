"""Eight processes of sixteen callers each on one cold key: one of them computes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from jmcache.testing import PrivateServer

PROCESSES = 8
CALLERS = 16
PATIENT: dict[str, Any] = {"operation_timeout": 10.0, "connection_timeout": 10.0}
_HOPS = 4
LATE_S = 0.03  # after the value was stored
ALLOWED_S = 0.05  # for the scheduler, and from the loader's end until the value is stored


class Row(NamedTuple):
    """What one caller got; moments by time.monotonic, which all processes share."""

    key: str
    began: float
    ended: float
    lag_s: float  # of its process, between the loader's end and its own
    got: dict[str, Any]

    @property
    def waited_s(self) -> float:
        """Seconds after the loader's end."""
        return self.ended - float(self.got["at"])


class Outcome(NamedTuple):
    ended: list[int]
    rows: list[Row]
    loads: Counter[str]

    @property
    def late_s(self) -> float:
        """Seconds that the last caller waited after the loader's end, the machine's lag taken off.

        A value goes from one process by Redis to another one and on to a thread. Each of them may
        have to wait for a processor as long as whoever waited longest.
        """
        lag_s = max(row.lag_s for row in self.rows)
        late_s = max(row.waited_s for row in self.rows)
        print(f"latest {late_s * 1000:.1f} ms after the load; the machine {lag_s * 1000:.1f} ms")
        return late_s - _HOPS * lag_s


class Running:
    """The program, until its outcome is asked for."""

    def __init__(self, server: PrivateServer, directory: Path, **asked: Any) -> None:
        self.directory = directory
        asked = {"processes": PROCESSES, "callers": CALLERS, "load_s": 0.2, **asked}
        asked |= {"url": server.url, "directory": str(directory)}
        program = Path(__file__).with_name("stampede.py")
        shared = os.environ.get("PYTHONPATH")
        path = os.pathsep.join(filter(None, [str(program.parent.parent), shared]))
        self.process = subprocess.Popen(
            [sys.executable, str(program), json.dumps(asked)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        )

    def wait_for_loads(self, count: int) -> None:
        until = time.monotonic() + 60.0
        while self.loads().total() < count:
            assert time.monotonic() < until, self.loads()
            time.sleep(0.002)

    def loads(self) -> Counter[str]:
        path = self.directory / "loads"
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        return Counter([line.split()[0] for line in lines])

    def outcome(self) -> Outcome:
        output, _ = self.process.communicate(timeout=120.0)
        assert self.process.returncode == 0
        ended, rows = json.loads(output)
        return Outcome(ended, [Row(*row) for row in rows], self.loads())


@contextmanager
def stampede(server: PrivateServer, directory: Path, **asked: Any) -> Iterator[Running]:
    running = Running(server, directory, **asked)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
        running.process.communicate()


@pytest.mark.parametrize("replicas", [0, 4], ids=["threads", "threads and event loops"])
def test_one_of_128_callers_computes_and_the_others_have_it_30_ms_later(
    replicas: int, redis_server: PrivateServer, tmp_path: Path
) -> None:
    """A service that starts anew would ask its database 128 times for one thing."""
    with stampede(redis_server, tmp_path, replicas=replicas, settings=PATIENT) as running:
        outcome = running.outcome()
    assert outcome.loads == {"cold": 1}
    assert outcome.ended == [0] * PROCESSES
    assert len(outcome.rows) == PROCESSES * CALLERS
    assert len({row.got["by"] for row in outcome.rows}) == 1
    waited = [row for row in outcome.rows if row.began < row.got["at"]]
    assert len(waited) > CALLERS, "nobody waited: nothing was tried"
    assert outcome.late_s < LATE_S + ALLOWED_S


def test_a_holder_that_is_killed_costs_its_lease_and_one_more_load(
    redis_server: PrivateServer, tmp_path: Path
) -> None:
    """The kernel kills one worker for its memory: the other 112 callers would compute at once."""
    lease_s = 1.0
    settings = PATIENT | {"lock_timeout": lease_s}
    with stampede(redis_server, tmp_path, kill_first=True, settings=settings) as running:
        outcome = running.outcome()
    assert outcome.loads == {"cold": 2}
    assert sorted(outcome.ended) == [-9] + [0] * (PROCESSES - 1)
    assert len(outcome.rows) == (PROCESSES - 1) * CALLERS
    assert len({row.got["by"] for row in outcome.rows}) == 1
    assert outcome.late_s < LATE_S + ALLOWED_S
    began = min(row.began for row in outcome.rows)
    lag_s = max(row.lag_s for row in outcome.rows)
    load_began = outcome.rows[0].got["at"] - 0.2
    print(f"the second load began {load_began - began:.3f} s after the first call")
    assert load_began - began > lease_s / 2
    assert load_began - began < lease_s + 2.0 + lag_s


def test_a_redis_that_is_killed_while_a_value_is_computed_costs_one_load_a_process(
    redis_server: PrivateServer, tmp_path: Path
) -> None:
    """The database would have 128 more questions at the moment when the cache is gone."""
    settings = {"health_check_interval": 0.5, "reset_timeout": 0.2, "max_retries": 1}
    asked: dict[str, Any] = {"load_s": 0.0, "keys": ["cold", "next"], "settings": settings}
    with stampede(redis_server, tmp_path, **asked) as running:
        running.wait_for_loads(1)
        redis_server.kill()
        running.wait_for_loads(PROCESSES)
        (tmp_path / "go on").touch()
        redis_server.start()
        (tmp_path / "next").touch()
        outcome = running.outcome()
    assert outcome.ended == [0] * PROCESSES
    assert outcome.loads["cold"] == PROCESSES
    assert outcome.loads["next"] == 1
    assert len(outcome.rows) == 2 * PROCESSES * CALLERS
