"""The watch that every bound in the fault matrix is measured with."""

from __future__ import annotations

import threading
import time

from stopwatch import ALLOWED_S, SHED_S, Stopwatch


def test_a_call_that_takes_longer_than_its_limit_is_late(stopwatch: Stopwatch) -> None:
    """A watch that excuses everything lets every promise about time rot."""
    with stopwatch.call(0.02, "slow"):
        time.sleep(0.02 + ALLOWED_S + 0.1)
    with stopwatch.call(5.0, "quick"):
        pass
    stopwatch._lags.clear()  # on a machine that was on time
    (late,) = stopwatch.late()
    assert late.startswith("slow: ")
    assert stopwatch.longest_s >= 0.17
    assert stopwatch.calls == 2


def test_a_call_that_holds_the_interpreter_excuses_itself_in_vain(stopwatch: Stopwatch) -> None:
    """Decoding for half a second makes every thread late, also the one that measures lateness."""
    with stopwatch.call(0.02, "hog"):
        began = time.thread_time()
        while time.thread_time() - began < 0.4:
            sorted(range(300_000), key=lambda n: -n)
    assert len(stopwatch.late()) == 1


def test_time_in_which_the_machine_was_late_is_not_the_calls(
    stopwatch: Stopwatch,
) -> None:
    """A red test for each busy neighbour teaches people to ignore red tests."""
    began = time.monotonic()
    with stopwatch.call(0.02, "unlucky"):
        time.sleep(0.2)
    stopwatch._lags.append((began + 0.03, began + 1.0))
    assert stopwatch.late() == []


def test_a_slow_refusal_of_an_open_breaker_is_counted(stopwatch: Stopwatch) -> None:
    """At once means at once: a thousand calls of 5 ms are an outage of the service."""
    for _ in range(20):
        with stopwatch.call(1.0, shed=lambda: True):
            time.sleep(SHED_S + 0.002)
    stopwatch._lags.clear()
    # Not each of them on a busy machine, which keeps them waiting for a processor.
    assert 1 <= stopwatch.late_when_shed() <= stopwatch.shed == 20


def test_the_watch_leaves_no_thread_behind() -> None:
    """It looks for such threads itself."""
    with Stopwatch():
        assert "stopwatch" in {thread.name for thread in threading.enumerate()}
    assert "stopwatch" not in {thread.name for thread in threading.enumerate()}
