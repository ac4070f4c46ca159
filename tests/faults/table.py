"""Runs the fault matrix and writes its table into docs/error_handling.md (make faults-table)."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from importlib import metadata
from pathlib import Path
from typing import Any

from rows import KEPT_BY, ROWS, Row

from jmcache.testing import find_server

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/error_handling.md"
BEGIN, END = "<!-- faults-table: begin -->", "<!-- faults-table: end -->"
HEAD = """\
| # | fault | must | the caller gets | breaker | longest call | back after | kept by | tests |
| --: | --- | --- | --- | --- | --: | --: | --- | --- |
"""

Report = dict[str, Any]  # a line of --fault-report
Tests = dict[int, list[str]]  # by row: "tests/faults/test_x.py::test_y"


def run(*options: str) -> tuple[int, list[Report]]:
    """Let pytest run or collect every test of a row; return its exit code and what it reported."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.jsonl"
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-m", "fault_row", f"--fault-report={path}", *options],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL if "--collect-only" in options else None,
            check=False,
        )
        text = path.read_text("utf-8") if path.exists() else ""
    return done.returncode, [json.loads(line) for line in text.splitlines()]


def existing_tests() -> Tests:
    """Every test there is, by row."""
    files = (ROOT / "tests").rglob("test_*.py")
    marked = [str(path) for path in files if "fault_row" in path.read_text("utf-8")]
    code, reports = run("--collect-only", "-q", "-p", "no:cacheprovider", *marked)
    assert code == 0, "pytest cannot collect the tests"
    return _by_row(reports)


def table(reports: list[Report]) -> str:
    """The table, and above it where its figures come from."""
    tests = _by_row(reports)
    lines = [_line(row, [r for r in reports if row.number in r["rows"]], tests) for row in ROWS]
    return f"{_origin()}\n\n{HEAD}" + "".join(lines)


def tests_in(page: str) -> Tests:
    """Every row and test that the table on *page* names."""
    region = page.partition(BEGIN)[2].partition(END)[0]
    found: Tests = {}
    for line in re.findall(r"^\| \d+ \|.*$", region, flags=re.M):
        number, *_, links = [cell.strip() for cell in line.strip("|").split("|")]
        found[int(number)] = sorted(
            f"{path.removeprefix('../')}::{name}"
            for name, path in re.findall(r"\[(\w+)\]\(([^)]+)\)", links)
        )
    return found


def _by_row(reports: list[Report]) -> Tests:
    tests = defaultdict(set)
    for report in reports:
        for number in report["rows"]:
            tests[number].add(report["test"])
    return {number: sorted(names) for number, names in tests.items()}


def _line(row: Row, reports: list[Report], tests: Tests) -> str:
    reasons: dict[str, dict[str, None]] = defaultdict(dict)  # in order
    for report in reports:
        for ending in report.get("outcomes", ()):
            outcome, _, reason = ending.partition(" ")
            reasons[outcome][reason] = None
    gets = "; ".join(f"`{o}` ({', '.join(map(_code, names))})" for o, names in reasons.items())
    if not gets and any("outcomes" in report for report in reports):
        gets = "what it asked for"
    breaker = {effect for report in reports for effect in report.get("breaker", ())}
    links = [_link(test) for test in tests.get(row.number, ())]
    cells = [
        str(row.number),
        row.fault,
        row.bar,
        gets,
        ", ".join(sorted(breaker)) or ("nothing" if any("breaker" in r for r in reports) else ""),
        _longest(reports, "longest_s", " ms", 1000),
        _longest(reports, "back_s", " s", 1),
        _code(KEPT_BY[row.number]) if row.number in KEPT_BY else "",
        ", ".join(links),
    ]
    return f"| {' | '.join(cells)} |\n"


def _longest(reports: list[Report], name: str, unit: str, factor: float) -> str:
    seconds = [report[name] for report in reports if report.get(name) is not None]
    if not seconds:
        return ""
    return f"{max(seconds) * factor:.{0 if factor > 1 else 2}f}{unit}"


def _link(test: str) -> str:
    path, _, name = test.partition("::")
    return f"[{name}](../{path})"


def _code(word: str) -> str:
    return f"`{word}`"


def _origin() -> str:
    server = find_server()
    return (
        f"Printed by `make faults-table`: {os.cpu_count()} processors ({platform.machine()}),"
        f" {platform.system()} {platform.release().split('-')[0]}, Python"
        f" {platform.python_version()}, {server.kind} {server.version}, redis-py"
        f" {metadata.version('redis')}, a deadline of 250 ms."
    )


def main() -> int:
    code, reports = run(*sys.argv[1:])
    failed = sorted({report["test"] for report in reports if not report["passed"]})
    if code or failed:
        print(f"{PAGE.name} stays as it is: {failed or 'the tests did not run'}")
        return 1
    page = PAGE.read_text("utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table(reports)}{END}{after}", "utf-8")
    without = [row.number for row in ROWS if row.number not in _by_row(reports)]
    print(f"{PAGE.name}: {len(reports)} tests; rows without one: {without or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
