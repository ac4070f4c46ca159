"""The clock that moves only when it is told to."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from jmcache.testing import ManualClock


def test_it_stands_still_until_it_is_advanced():
    """A test that waits for a real clock is slow, and fails on a busy machine."""
    clock = ManualClock(start=5.0)
    assert (clock(), clock()) == (5.0, 5.0)
    clock.advance(0.25)
    assert clock() == 5.25


@pytest.mark.parametrize("seconds", [-0.001, float("nan")])
def test_it_never_goes_back(seconds):
    """What is measured with a monotonic clock may rely on that."""
    clock = ManualClock()
    with pytest.raises(ValueError, match="seconds"):
        clock.advance(seconds)
    assert clock() == 1000.0


def test_no_advance_is_lost_between_threads():
    """Two threads of a test that both advance would otherwise see a time that never was."""
    clock = ManualClock(start=0.0)
    with ThreadPoolExecutor(max_workers=4) as threads:
        list(threads.map(lambda _: [clock.advance(1.0) for _ in range(2000)], range(4)))
    assert clock() == 8000.0
