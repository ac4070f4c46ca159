"""One budget for everything a call waits for."""

from __future__ import annotations

import math

import pytest

from jmcache import Deadline
from jmcache.testing import ManualClock


def test_it_runs_down_with_the_clock(clock: ManualClock) -> None:
    """A budget that does not run down is none."""
    deadline = Deadline(0.25, clock)
    assert deadline.remaining() == pytest.approx(0.25)
    clock.advance(0.2)
    assert deadline.remaining() == pytest.approx(0.05)
    assert not deadline.expired


def test_it_is_over_at_its_end_and_never_below_nothing(clock: ManualClock) -> None:
    """A negative timeout on a socket waits for ever."""
    deadline = Deadline(0.25, clock)
    clock.advance(0.25)
    assert deadline.expired
    clock.advance(1000.0)
    assert deadline.remaining() == 0.0


def test_one_that_is_over_was_never_anything_else() -> None:
    """A call on the event loop must not wait, not even a moment."""
    assert Deadline.over().expired
    assert Deadline.over().remaining() == 0.0


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf, 3e6, 10**400, True, "1", None, [1]])
def test_it_refuses_what_is_no_number_of_seconds(seconds: object) -> None:
    """A wait without end is what it is there to prevent."""
    with pytest.raises(ValueError, match="timeout: seconds"):
        Deadline(seconds)  # type: ignore[arg-type]
