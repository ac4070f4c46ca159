"""The benchmark's own arithmetic and plumbing. Nothing here is about how long anything takes."""

from __future__ import annotations

import json
import os
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ujson
from benchmarks.bench import bars, report, run
from benchmarks.bench.contenders import OURS, PLAIN, PLAIN_AWAITED
from benchmarks.bench.payloads import as_text, result, typed
from benchmarks.bench.plots import Chart, svg
from benchmarks.bench.progress import Progress
from benchmarks.bench.rounds import (
    QUICK,
    Contest,
    Plan,
    Spread,
    Turn,
    compete,
    percentile,
    ratio,
    spread,
)

from jmcache.testing import PrivateServer

pytestmark = pytest.mark.redis  # most of it

TINY = Plan(rounds=1, round_s=0.001, samples=16, look_ups=400, entries=20)


def turns(*walls: float, cpu: float = 1.0) -> list[Turn]:
    return [Turn(wall, cpu) for wall in walls]


def one_contest(ours: list[Turn], plain: list[Turn], **case: Any) -> report.Report:
    case = {"side": "called", "operation": "get", "kb": 5, "callers": 1} | case
    row = {**case, "reference": PLAIN, "turns": {PLAIN: plain, OURS: ours}}
    return {"contests": [row], "latency": [], "figures": {}, "replay": []}


@pytest.fixture(scope="module")
def measured(_port_server: PrivateServer, tests_first: None) -> report.Report:
    """Every part, in little, with those contenders that are installed everywhere."""
    found = run.measure(_port_server.port, TINY, run.PARTS, {PLAIN, PLAIN_AWAITED, OURS})
    return found | {"about": run.about("redis-server 7", TINY)}


@pytest.fixture(scope="module")
def tests_first() -> Iterator[None]:
    """What the benchmark starts imports from here, as it does from `make`."""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        yield


def test_a_spread_is_the_median_and_the_quartiles() -> None:
    assert spread([5.0, 1.0, 3.0, 2.0, 4.0]) == Spread(3.0, 2.0, 4.0)
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0)


def test_a_ratio_is_taken_round_by_round() -> None:
    """Medians of each alone would call it even: what slowed one round slowed both in it."""
    found = {OURS: turns(1.0, 10.0, 4.0), PLAIN: turns(2.0, 4.0, 8.0)}
    assert ratio(found, OURS, PLAIN).median == 0.5
    assert ratio(found, OURS, PLAIN, "cpu_us") == Spread(1.0, 1.0, 1.0)


@pytest.mark.parametrize(("share", "found"), [(0.5, 5), (0.9, 9), (0.99, 10), (0.001, 1), (1, 10)])
def test_a_percentile_is_a_figure_that_occurred(share: float, found: float) -> None:
    assert percentile(list(range(1, 11)), share) == found


def test_contenders_take_turns_and_none_is_always_first() -> None:
    order: list[str] = []
    two = replace(TINY, rounds=2)

    def noting(name: str) -> Any:
        return lambda count: order.append(name)

    found = compete(Contest({"a": noting("a"), "b": noting("b")}, "a"), two, lambda share: None)
    assert {name: len(each) for name, each in found.items()} == {"a": 2, "b": 2}
    assert order[-8:] == ["a", "b", "b", "a", "a", "b", "b", "a"]


def test_a_bundle_is_counted_by_its_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one operation it would stand a hundred times too slow beside single ones."""
    clock = iter(range(1000))
    monkeypatch.setattr("benchmarks.bench.rounds.time.perf_counter", lambda: next(clock))
    contest = Contest({"a": lambda count: None}, "a", step=2, operations=100)
    assert compete(contest, TINY, lambda share: None)["a"][0].wall_us == 1e6 / (2 * 100)


def test_what_is_measured_with_is_of_the_size_asked_for() -> None:
    sizes = {kb: len(ujson.dumps(result(kb))) / 1000 for kb in (0.2, 5, 50, 500)}
    assert all(kb <= size < 2 * kb for kb, size in sizes.items()), sizes
    assert 500 <= sizes[500] < 501


def test_typed_and_text_say_the_same() -> None:
    text = as_text(typed(result(5)))
    assert ujson.loads(ujson.dumps(text)) == text
    assert [m["posted"] for m in text["matches"]] == [m["posted"] for m in result(5)["matches"]]


@pytest.mark.parametrize(("ours", "kept"), [(1.0, True), (1.01, False), (0.5, True), (2.0, False)])
def test_a_bar_is_kept_up_to_its_bound_and_missed_beyond(ours: float, kept: bool) -> None:
    first = bars.judge(one_contest(turns(ours, ours), turns(1.0, 1.0)))[0]
    assert (first.number, first.kept) == (1, kept)


def test_a_bar_that_wants_more_is_missed_below() -> None:
    name = f"two processes, {OURS} x 1"
    for found, kept in ((1.9, True), (1.7, False)):
        figures = {name: {"unit": "x", "all": [found], "spread": [found] * 3, "worst": found}}
        empty = {"contests": [], "latency": [], "replay": [], "figures": figures}
        assert [verdict.kept for verdict in bars.judge(empty)] == [kept]


def test_no_pause_of_the_loop_is_forgiven_by_the_median() -> None:
    row = {"unit": "ms", "all": [1.0, 1.0, 9.0], "spread": [1.0, 1.0, 5.0], "worst": 9.0}
    figures = {f"loop blocked, {OURS}": row}
    empty = {"contests": [], "latency": [], "replay": [], "figures": figures}
    assert [verdict.kept for verdict in bars.judge(empty)] == [False]


def test_what_was_not_measured_is_not_judged(measured: report.Report) -> None:
    nothing: report.Report = {"contests": [], "latency": [], "figures": {}, "replay": []}
    assert bars.judge(nothing) == []
    numbers = {verdict.number for verdict in bars.judge(measured)}
    near = {6, 10}  # only where it hears from this server
    assert numbers | near == set(range(1, 11))


def test_every_part_leaves_its_figures(measured: report.Report) -> None:
    text = report.as_text(measured)
    for title in (*report.GROUPS, "Single calls", "Inside jmcache", "Real look-ups", "must hold"):
        assert title in text
    for row in measured["replay"]:
        assert row["look_ups"] == TINY.look_ups
        # One trip for each look-up, and one for what it wrote.
        assert row["round_trips"] >= TINY.look_ups
        assert row["hits"] <= row["best_hits"]


def test_json_has_every_round_and_the_verdicts(measured: report.Report) -> None:
    """From it anybody can judge again."""
    read = json.loads(report.as_json(measured))
    for row in read["contests"]:
        assert {len(each) for each in row["turns"].values()} == {TINY.rounds}
    assert bars.judge(read) == bars.judge(measured)
    assert len(read["verdicts"]) == len(bars.judge(measured))


def shapes(chart: Chart) -> tuple[list[ElementTree.Element], ...]:
    """Its circles, texts and lines."""
    root = ElementTree.fromstring(svg(chart))
    return tuple(root.findall(f"{{*}}{kind}") for kind in ("circle", "text", "polyline"))


@pytest.mark.parametrize("highest", [0.03, 0.99, 1.0, 7.4, 1_000.0, 12_345.0])
def test_no_point_of_a_chart_is_outside_of_its_scale(highest: float) -> None:
    """A line above the last mark would run through the title."""
    circles, _, lines = shapes(Chart("one", "a second", ["1", "2"], {"ours": [highest, 0.0]}))
    scale = [line.get("points", "").split()[0] for line in lines if line.get("stroke") == "#dddddd"]
    heights = [float(point.partition(",")[2]) for point in scale]
    top, bottom = sorted(float(circle.get("cy", "")) for circle in circles)
    assert min(heights) <= top
    assert bottom == max(heights)
    assert 4 <= len(scale) <= 9


def test_a_chart_says_what_it_shows() -> None:
    lines = {"ours": [1.0, 3.0], "A & B": [0.25, 2.0]}
    circles, texts, _ = shapes(Chart("one < two", "a second", ["1", "2"], lines))
    assert len(circles) == 4
    said = {text.text for text in texts}
    assert {"one < two", "a second", "ours", "A & B", "1", "2"} <= said


def test_writing_replaces_what_is_between_the_marks_only(
    measured: report.Report, tmp_path: Path
) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"before\n{report.BEGIN}\nwhat was\n{report.END}\nafter\n", "utf-8")
    report.write(measured, tmp_path)
    text = page.read_text("utf-8")
    assert text.startswith("before\n")
    assert text.endswith(f"{report.END}\nafter\n")
    assert "what was" not in text
    assert "redis-server 7" in text
    for name in report.charts(measured):
        assert f"images/{name}.svg" in text
        ElementTree.parse(tmp_path / "images" / f"{name}.svg")


def test_a_page_without_marks_is_not_written() -> None:
    with pytest.raises(ValueError, match="bench: begin"):
        report.replaced("a page", "text")


def test_the_page_in_docs_has_the_marks() -> None:
    page = (Path(__file__).parents[1] / "docs" / "performance.md").read_text("utf-8")
    assert report.replaced(page, "text") != page


def test_the_command_line_runs_what_it_is_told_and_writes_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = []

    def measure(*args: Any) -> report.Report:
        told.append(args)
        return one_contest(turns(2.0, 2.0), turns(1.0, 1.0))

    monkeypatch.setattr(run, "measure", measure)
    path = tmp_path / "figures.json"
    args = ["--port=7000", "--quick", "--only=import", f"--json={path}"]
    assert run.main(args) == 0
    assert told == [(7000, QUICK, ["import"])]
    assert "MISSED" in capsys.readouterr().out  # and exits with 0 all the same
    assert json.loads(path.read_text("utf-8"))["about"]["python"]


def test_the_time_left_goes_by_how_fast_it_went() -> None:
    progress = Progress(100.0)
    assert progress.line(25.0, "get", took_s=60.0).endswith("3:00 left  get")
    assert progress.line(0.0, "get", took_s=1.0).endswith("1:40 left  get")
    assert progress.line(120.0, "get", took_s=60.0).endswith("0:00 left  get")


def test_nothing_but_a_terminal_sees_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    """A log of a CI run would be nothing but bars."""
    progress = Progress(1.0)
    progress.add("get", 0.5)
    progress.end()
    assert capsys.readouterr().err == ""
