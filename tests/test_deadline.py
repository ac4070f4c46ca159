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


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf, 10**400, True, "1", None, [1]])
def test_it_refuses_what_is_no_number_of_seconds(seconds: object) -> None:
    """A wait without end is what it is there to prevent."""
    with pytest.raises(ValueError, match="timeout: seconds"):
        Deadline(seconds)  # type: ignore[arg-type]


def test_a_callers_timeout_is_at_most_a_day() -> None:
    """The system's own waits overflow after some weeks, in the middle of an exchange."""
    assert Deadline.of_call(86400.0, 1.0).remaining() > 86399.0
    with pytest.raises(ValueError, match=r"timeout: .* at most a day"):
        Deadline.of_call(86401.0, 1.0)


def test_a_caller_without_a_timeout_gets_the_default_and_with_a_deadline_that() -> None:
    """A second budget would start where one runs already."""
    running = Deadline(5.0)
    assert Deadline.of_call(running, 1.0) is running
    assert Deadline.of_call(None, 1.0).remaining() <= 1.0
