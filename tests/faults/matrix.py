"""pytest's side of the fault matrix: the marker ``fault_row``, ``observe``, ``--fault-report``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from observation import Observation
from rows import ROWS
from stopwatch import Stopwatch

_SEEN = pytest.StashKey[dict[str, Any]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fault-report",
        metavar="FILE",
        help="append a JSON line for every test of a row of the fault matrix, also when only"
        " collecting",
    )
    parser.addoption(
        "--fault-row",
        metavar="N",
        type=int,
        action="append",
        help="run only the tests of this row of the fault matrix; may be repeated",
    )


def row_numbers(item: pytest.Item) -> list[int]:
    """The rows that a test is about."""
    numbers = [number for mark in item.iter_markers("fault_row") for number in mark.args]
    unknown = set(numbers) - {row.number for row in ROWS}
    assert not unknown, f"{item.nodeid}: no such row: {unknown}"
    return numbers


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if row_numbers(item):
            item.add_marker("faults")
    wanted = set(config.getoption("--fault-row") or ())
    if wanted:
        others = [item for item in items if not wanted & set(row_numbers(item))]
        items[:] = [item for item in items if item not in others]
        config.hook.pytest_deselected(items=others)


def pytest_collection_finish(session: pytest.Session) -> None:
    if session.config.option.collectonly:
        for item in session.items:
            _report(item, {})


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    seen = item.stash.setdefault(_SEEN, {"passed": True})
    seen["passed"] = seen["passed"] and report.passed
    if report.when == "teardown":
        _report(item, seen)
    return report


@pytest.fixture
def stopwatch() -> Iterator[Stopwatch]:
    """Times calls; the test asks whether any was late."""
    with Stopwatch() as running:
        yield running


@pytest.fixture
def observe(request: pytest.FixtureRequest, stopwatch: Stopwatch) -> Iterator[Observation]:
    """Watches the caches of a test of the fault matrix; see Observation."""
    observation = Observation(stopwatch)
    yield observation
    seen = request.node.stash.setdefault(_SEEN, {"passed": True})
    observation.close()
    if seen["passed"]:  # of a test that failed already, its own reason is the one to read
        observation.check()
        seen.update(observation.as_dict())


def _report(item: pytest.Item, seen: dict[str, Any]) -> None:
    path = item.config.getoption("--fault-report")
    numbers = row_numbers(item)
    if path is None or not numbers:
        return
    line = {"rows": numbers, "test": item.nodeid.partition("[")[0], **seen}
    with Path(path).open("a", encoding="utf-8") as report:  # one write: xdist's workers share it
        report.write(json.dumps(line) + "\n")
