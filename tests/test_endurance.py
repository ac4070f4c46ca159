"""The long runs, made short: they run, they judge, and a cache that fails them is found out."""

from __future__ import annotations

import os
import re
from typing import Any

import pytest
from soak import endurance

from jmcache import RedisCache


@pytest.mark.parametrize("name", ["forks", "recovery", "interrupts"])
def test_a_short_run_reaches_its_figures(name: str) -> None:
    run, _ = endurance.RUNS[name]
    missed = [figure for figure in run(3) if not figure.reached]
    assert missed == []


@pytest.mark.parametrize("name", ["crowd", "open"])
def test_a_run_that_measures_speed_has_something_to_measure(name: str) -> None:
    """Whether it is reached is for a quiet machine."""
    run, _ = endurance.RUNS[name]
    first, second = run(1)
    # Reads that share round trips wait for no connection, and miss nothing: they are counted.
    reads = re.search(r"misses among ([\d,]+) reads", first.what)
    measured = int(reads[1].replace(",", "")) if reads else first.found + second.found
    assert measured > 0.0


def test_a_child_that_reads_a_wrong_value_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = os.getpid()
    get = RedisCache.get

    def wrong_in_a_child(self: RedisCache, key: str, **options: Any) -> Any:
        return get(self, key, **options) if os.getpid() == parent else "another's"

    monkeypatch.setattr(RedisCache, "get", wrong_in_a_child)
    hung, wrong = endurance.forks(2)
    assert (hung.found, wrong.found) == (0, 2)


def test_a_figure_above_its_bar_is_missed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = [endurance.Figure("good, s", 1.0, 1.0), endurance.Figure("bad, s", 1.1, 1.0)]
    monkeypatch.setattr(endurance, "RUNS", {"both": (lambda _: figures, 1)})
    monkeypatch.setattr("sys.argv", ["endurance", "both"])
    assert endurance.main() == 1
    shown = capsys.readouterr().out
    assert "reached good, s: 1, at most 1" in shown
    assert "MISSED  bad, s: 1.1, at most 1" in shown


def test_an_unknown_run_is_refused_by_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["endurance", "crowds"])
    with pytest.raises(SystemExit):
        endurance.main()
    assert "no run crowds: choose from crowd, open, forks" in capsys.readouterr().err
