"""Monitor, its sinks and OutageLog: what is counted, what is told, and what a log may hold."""

from __future__ import annotations

import _thread
import dataclasses
import dis
import gc
import itertools
import json
import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from interrupter import Interrupter

from jmcache.errors import RedisTimeoutError
from jmcache.monitoring import CacheStats, Monitor, OutageLog, _delivery
from jmcache.outcome import Outcome
from jmcache.testing import ManualClock

SOON_S = 5.0  # what a waiting test gives up after
ENDPOINT = "redis://127.0.0.1:6379/0"


class ListSink:
    """Keeps what it is told, and on which thread."""

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self.labels: dict[str, Mapping[str, str]] = {}
        self.timings: list[tuple[str, float]] = []
        self.gauges: list[tuple[str, float]] = []
        self.threads: set[threading.Thread] = set()

    def increment(self, name: str, value: int = 1, labels: Mapping[str, str] | None = None) -> None:
        self.counters[name] += value
        self._note(name, labels)

    def timing(self, name: str, seconds: float, labels: Mapping[str, str] | None = None) -> None:
        self.timings.append((name, seconds))
        self._note(name, labels)

    def gauge(self, name: str, value: float, labels: Mapping[str, str] | None = None) -> None:
        self.gauges.append((name, value))
        self._note(name, labels)

    def _note(self, name: str, labels: Mapping[str, str] | None) -> None:
        assert labels is not None
        self.labels[name] = labels
        self.threads.add(threading.current_thread())


class HangingSink(ListSink):
    """Takes its first measurement, and does not come back from it until it may."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.leave = threading.Event(), threading.Event()

    def increment(self, name: str, value: int = 1, labels: Mapping[str, str] | None = None) -> None:
        self.entered.set()
        self.leave.wait(SOON_S)
        super().increment(name, value, labels)


@dataclass(frozen=True)
class Change:
    """The part of a circuit breaker's Transition that is looked at."""

    before: str
    after: str
    reason: str = "refused"
    failures: int = 5
    cause: str = "5 failures in a row"
    name: str = "jmcache"


OPENS = Change("closed", "open")
PROBES = Change("open", "half_open", "probe")
FAILS = Change("half_open", "open")
CLOSES = Change("half_open", "closed", "success", 0)

MakeMonitor = Callable[..., Monitor]


@pytest.fixture
def make() -> Iterator[MakeMonitor]:
    made: list[Monitor] = []

    def make(*sinks: object, **options: object) -> Monitor:
        made.append(Monitor("jobs", sinks, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for monitor in made:
        monitor.close()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    return caplog


BEFORE: set[threading.Thread] = set()  # threads that other tests may have left


@pytest.fixture(autouse=True)
def _threads_before() -> None:
    BEFORE.clear()
    BEFORE.update(threading.enumerate())


def metrics_threads() -> list[threading.Thread]:
    threads = set(threading.enumerate()) - BEFORE
    return [thread for thread in threads if thread.name == "jmcache-metrics"]


def wait_until(holds: Callable[[], bool]) -> None:
    """For what no event tells of, such as the end of a thread."""
    give_up_at = time.monotonic() + SOON_S
    while not holds():
        assert time.monotonic() < give_up_at, "it never came true"
        time.sleep(0.001)


def levels(log: pytest.LogCaptureFixture) -> list[int]:
    return [record.levelno for record in log.records]


# Counting -----------------------------------------------------------------------------------------


def test_every_outcome_has_its_own_counter(make: MakeMonitor) -> None:
    """An outage counted as misses looks like a cold cache, and nobody is called."""
    monitor = make()
    for times, outcome in enumerate(Outcome, start=1):
        for _ in range(times):
            monitor.record("get", outcome, "", 0.001)
    stats = monitor.stats()
    for times, outcome in enumerate(Outcome, start=1):
        assert stats.operations["get", outcome.value, ""] == times
    assert (stats.hits, stats.stale, stats.misses, stats.unavailable) == (1, 2, 3, 4)
    assert (stats.saturated, stats.refused, stats.corrupt) == (5, 6, 7)
    assert stats.latency["get"].count == sum(range(1, len(Outcome) + 1))


def test_reasons_and_operations_are_kept_apart(make: MakeMonitor) -> None:
    """Whoever is on call needs to see what is unavailable, and why."""
    monitor = make()
    monitor.record("get", Outcome.UNAVAILABLE, "timeout", 0.25)
    monitor.record("get", Outcome.UNAVAILABLE, "breaker_open", 0.0)
    monitor.record("set", Outcome.UNAVAILABLE, "timeout", 0.25)
    stats = monitor.stats()
    assert stats.unavailable == 3
    assert dict(stats.operations) == {
        ("get", "unavailable", "timeout"): 1,
        ("get", "unavailable", "breaker_open"): 1,
        ("set", "unavailable", "timeout"): 1,
    }


def test_only_what_was_carried_out_counts_as_written_or_deleted(make: MakeMonitor) -> None:
    """A refused write among the sets says that values are cached which are not."""
    monitor = make()
    monitor.record("set", Outcome.DONE, "", 0.001)
    monitor.record("set", Outcome.REFUSED, "too_large", 0.001)
    monitor.record_many("set_many", [(Outcome.DONE, "")] * 3, 0.001)
    monitor.record("delete", Outcome.DONE, "", 0.001)
    monitor.record("exists", Outcome.DONE, "", 0.001)
    stats = monitor.stats()
    assert (stats.sets, stats.deletes, stats.refused) == (4, 1, 1)


def test_a_bundle_counts_every_key_and_one_latency(make: MakeMonitor) -> None:
    """One get_many of a thousand keys would drown the latency of all others, or hide 999 misses."""
    monitor = make()
    monitor.record_many(
        "get_many", [(Outcome.HIT, ""), (Outcome.MISS, "absent"), (Outcome.HIT, "")], 0.004
    )
    monitor.record_many("get_many", [], 0.004)
    stats = monitor.stats()
    assert (stats.hits, stats.misses) == (2, 1)
    assert stats.latency["get_many"].count == 1
    assert stats.latency["get_many"].max_s == 0.004


def test_the_hit_ratio_is_of_the_reads_that_got_an_answer(make: MakeMonitor) -> None:
    """During an outage it would fall, and somebody would tune TTLs instead of reviving Redis."""
    monitor = make()
    assert monitor.stats().hit_ratio == 0.0
    endings = [Outcome.HIT] * 6 + [Outcome.MISS, Outcome.STALE, Outcome.CORRUPT, Outcome.MISS]
    for outcome in endings + [Outcome.UNAVAILABLE] * 10 + [Outcome.SATURATED] * 10:
        monitor.record("get", outcome, "", 0.001)
    monitor.record("set", Outcome.DONE, "", 0.001)
    assert monitor.stats().hit_ratio == 0.6


@given(st.lists(st.floats(min_value=0.0, max_value=100.0), min_size=1, max_size=200))
def test_percentiles_are_never_too_good_and_less_than_twice_too_bad(seconds: list[float]) -> None:
    """A p99 that flatters hides the calls that people complain about."""
    monitor = Monitor("jobs")
    for each in seconds:
        monitor.record("get", Outcome.HIT, "", each)
    summary = monitor.stats().latency["get"]
    ordered = sorted(seconds)
    assert summary.count == len(seconds)
    assert summary.max_s == ordered[-1]
    for share, told in ((50, summary.p50_s), (99, summary.p99_s)):
        exact = ordered[-(-len(ordered) * share // 100) - 1]
        assert exact <= told
        assert told <= max(2 * exact, 1e-6) or told == summary.max_s


@pytest.mark.parametrize(("slow", "p99_s"), [(1, 0.000_128), (2, 4.0)])
def test_p99_is_what_99_of_100_calls_keep_to(make: MakeMonitor, slow: int, p99_s: float) -> None:
    """An objective of 99 % would be met or missed by one call in a hundred too many."""
    monitor = make()
    for _ in range(100 - slow):
        monitor.record("get", Outcome.HIT, "", 0.000_1)
    for _ in range(slow):
        monitor.record("get", Outcome.UNAVAILABLE, "timeout", 4.0)
    assert monitor.stats().latency["get"].p99_s == p99_s


def test_nothing_is_lost_between_threads(make: MakeMonitor) -> None:
    """Hits and misses must add up to the calls that were made."""
    monitor = make()
    together = threading.Barrier(4)

    def work(_: int) -> None:
        together.wait(timeout=SOON_S)
        for turn in range(2_000):
            monitor.record("get", Outcome.HIT if turn % 2 else Outcome.MISS, "", turn / 1e6)

    switch_interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(max_workers=4) as threads:
            list(threads.map(work, range(4)))
    finally:
        sys.setswitchinterval(switch_interval)
    stats = monitor.stats()
    assert (stats.hits, stats.misses) == (4_000, 4_000)
    assert stats.latency["get"].count == 8_000


def interrupted_in_each_loop(call: Callable[[], object]) -> Iterator[None]:
    """Yield after each run of *call* broken off at the end of a loop's turn, another one a run."""

    class InterruptError(Exception):
        pass

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal turns
        frame.f_trace_opcodes = True
        code = frame.f_code.co_code
        if event == "opcode" and dis.opname[code[frame.f_lasti]] == "JUMP_BACKWARD":
            turns += 1
            if turns == last:
                raise InterruptError
        return trace

    for last in itertools.count(1):
        turns = 0
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            call()
        except InterruptError:
            pass
        finally:
            sys.settrace(before)
        if turns < last:
            return
        yield


@pytest.mark.parametrize("verb", ["record_many", "stats", "note_refused"])
def test_a_loop_broken_off_by_a_signal_handler_leaves_the_lock_free(
    make: MakeMonitor, clock: ManualClock, verb: str
) -> None:
    """From 3.12 on, a jump at the end of a loop may be no part of the ``with`` around it."""
    monitor = make(clock=clock)
    endings = [(Outcome.MISS, "absent"), (Outcome.HIT, ""), (Outcome.HIT, "")]
    monitor.record_many("get_many", endings, 0.001)
    for number in range(32):
        monitor.note_refused(f"matches[{number}]", "Score", "unserializable")
    clock.advance(10.0)
    calls: dict[str, Callable[[], object]] = {
        "record_many": lambda: monitor.record_many("get_many", endings, 0.001),
        "stats": monitor.stats,
        "note_refused": lambda: monitor.note_refused("score", "Score", "unserializable"),
    }
    for _ in interrupted_in_each_loop(calls[verb]):
        assert not monitor._lock.locked()


# Reading ------------------------------------------------------------------------------------------


def some_stats(make: MakeMonitor) -> tuple[Monitor, CacheStats]:
    monitor = make()
    monitor.record("get", Outcome.HIT, "", 0.000_123)
    monitor.record("get", Outcome.MISS, "absent", 0.002)
    monitor.note_retry(RedisTimeoutError(), 0.1)
    return monitor, monitor.stats()


def test_stats_are_a_snapshot_that_nobody_can_change(make: MakeMonitor) -> None:
    """A report that changes while it is written adds up to nothing."""
    monitor, stats = some_stats(make)
    monitor.record("get", Outcome.HIT, "", 0.5)
    assert (stats.hits, stats.latency["get"].count, stats.retries) == (1, 2, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.hits = 2  # type: ignore[misc]
    with pytest.raises(TypeError):
        stats.operations["get", "hit", ""] = 2  # type: ignore[index]


def test_stats_turn_into_json_with_nothing_lost(make: MakeMonitor) -> None:
    """A stats route that fails to encode is found out in the outage it was made for."""
    _, stats = some_stats(make)
    plain = json.loads(json.dumps(stats.as_dict()))
    assert plain["operations"] == [
        {"operation": "get", "outcome": "hit", "reason": "", "count": 1},
        {"operation": "get", "outcome": "miss", "reason": "absent", "count": 1},
    ]
    assert plain["latency"]["get"]["max_s"] == 0.002
    assert plain["hit_ratio"] == 0.5
    assert set(plain) == {field.name for field in dataclasses.fields(stats)}


def test_the_repr_of_stats_can_be_read(make: MakeMonitor) -> None:
    """It is what people print first, and all that most of them ever look at."""
    _, stats = some_stats(make)
    text = repr(stats)
    assert text.startswith("<CacheStats hit_ratio=50.0%, hits=1, misses=1, ")
    assert "retries=1" in text
    assert "get: p50 0.128 ms, p99 2 ms, max 2 ms" in text


# Sinks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "outcome", "reason", "names"),
    [
        ("get", Outcome.HIT, "", {"redis.cache.hit"}),
        ("get", Outcome.STALE, "soft_ttl", {"redis.cache.stale"}),
        ("get", Outcome.MISS, "absent", {"redis.cache.miss"}),
        ("get", Outcome.CORRUPT, "checksum", {"redis.cache.corrupt", "redis.error"}),
        ("get", Outcome.UNAVAILABLE, "timeout", {"redis.cache.unavailable", "redis.error"}),
        (
            "get",
            Outcome.UNAVAILABLE,
            "breaker_open",
            {"redis.cache.unavailable", "redis.circuit_breaker.skip"},
        ),
        ("set", Outcome.SATURATED, "pool_exhausted", {"redis.cache.saturated"}),
        ("set", Outcome.REFUSED, "too_large", {"redis.cache.refused"}),
        ("set", Outcome.DONE, "", {"redis.cache.set"}),
        ("set_many", Outcome.DONE, "", {"redis.cache.set"}),
        ("delete", Outcome.DONE, "", {"redis.cache.delete"}),
    ],
)
def test_a_sink_gets_each_outcome_under_its_name(
    make: MakeMonitor, operation: str, outcome: Outcome, reason: str, names: set[str]
) -> None:
    """Dashboards and alarms are built on these names."""
    for single in (True, False):
        sink = ListSink()
        monitor = make(sink)
        if single:
            monitor.record(operation, outcome, reason, 0.004)
        else:
            monitor.record_many(operation, [(outcome, reason)], 0.004)
        assert monitor.flush()
        assert sink.counters == dict.fromkeys(names, 1)
        assert sink.timings == [(f"redis.cache.{operation}_latency", 0.004)]
        labels = {
            "namespace": "jobs",
            "operation": operation,
            "outcome": str(outcome),
            "reason": reason,
        }
        for name in (*names, f"redis.cache.{operation}_latency"):
            assert sink.labels[name] == labels


def test_a_sink_gets_a_bundle_as_its_parts_and_one_timing(make: MakeMonitor) -> None:
    """A sink's hits must be those of stats(), and a call of 100 keys took its time once."""
    sink = ListSink()
    monitor = make(sink)
    endings = [(Outcome.HIT, "")] * 3 + [(Outcome.CORRUPT, "magic")] * 2
    monitor.record_many("get_many", endings, 0.004)
    monitor.record_many("get_many", [], 0.004)
    assert monitor.flush()
    assert sink.counters == {
        "redis.cache.hit": 3,
        "redis.cache.corrupt": 2,
        "redis.error": 2,
    }
    assert sink.timings == [("redis.cache.get_many_latency", 0.004)]
    assert sink.labels["redis.cache.get_many_latency"]["outcome"] == "done"
    assert monitor.stats().sink_errors == 0


def test_a_sink_gets_retries_with_their_reason(make: MakeMonitor) -> None:
    """Retries are the first sign of a network that is going."""
    sink = ListSink()
    monitor = make(sink)
    monitor.note_retry(RedisTimeoutError(), 0.1)
    assert monitor.flush()
    assert sink.counters == {"redis.retry": 1}
    assert sink.labels["redis.retry"] == {"namespace": "jobs", "reason": "timeout"}


def test_opened_and_closed_count_outages_not_failed_probes(make: MakeMonitor) -> None:
    """An alarm on "opened" would ring once a second for one outage."""
    sink = ListSink()
    monitor = make(sink)
    for change in (OPENS, PROBES, FAILS, PROBES, FAILS, PROBES, CLOSES):
        monitor.on_change(change)
    assert monitor.flush()
    assert sink.counters == {"redis.circuit_breaker.opened": 1, "redis.circuit_breaker.closed": 1}
    assert [value for _, value in sink.gauges] == [2, 1, 2, 1, 2, 1, 0]
    assert {name for name, _ in sink.gauges} == {"redis.circuit_breaker.state"}
    assert sink.labels["redis.circuit_breaker.opened"] == {
        "namespace": "jobs",
        "reason": "refused",
    }


def test_labels_cannot_be_changed_by_one_sink_for_the_next(make: MakeMonitor) -> None:
    """A sink that adds its host name would rename every series of the one after it."""

    class Meddler(ListSink):
        def increment(
            self, name: str, value: int = 1, labels: Mapping[str, str] | None = None
        ) -> None:
            labels["host"] = "mine"  # type: ignore[index]

    sink = ListSink()
    monitor = make(Meddler(), sink)
    monitor.record("get", Outcome.HIT, "", 0.001)
    assert monitor.flush()
    assert "host" not in sink.labels["redis.cache.hit"]
    assert monitor.stats().sink_errors == 1


def test_a_failing_sink_is_counted_logged_once_and_harms_no_other(
    make: MakeMonitor, log: pytest.LogCaptureFixture
) -> None:
    """A statsd host that is gone must cost neither a request nor the other sink's figures."""

    class Broken(ListSink):
        def increment(
            self, name: str, value: int = 1, labels: Mapping[str, str] | None = None
        ) -> None:
            raise OSError("host secret-host is gone")

    sink = ListSink()
    monitor = make(Broken(), sink)
    for _ in range(10):
        monitor.record("get", Outcome.HIT, "", 0.001)
    assert monitor.flush()
    assert sink.counters["redis.cache.hit"] == 10
    assert monitor.stats().sink_errors == 10
    assert levels(log) == [logging.WARNING]
    assert "Broken" in log.text
    assert "secret-host" not in log.text


def test_a_sink_runs_on_a_thread_of_ours_and_never_on_the_callers(make: MakeMonitor) -> None:
    """On the caller's, a time limit raised in the sink would be taken for the sink's own error."""
    sink = ListSink()
    monitor = make(sink)
    monitor.record("get", Outcome.HIT, "", 0.001)
    assert monitor.flush()
    (thread,) = sink.threads
    assert thread.name == "jmcache-metrics"
    assert thread.daemon


def test_a_hanging_sink_holds_up_nobody_and_what_it_misses_is_counted(
    make: MakeMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A metrics backend that hangs would hang the service, or fill its memory."""
    monkeypatch.setattr(_delivery, "QUEUE_LIMIT", 50)
    sink = HangingSink()
    monitor = make(sink)
    monitor.record("get", Outcome.HIT, "", 0.001)
    assert sink.entered.wait(SOON_S)
    for _ in range(60):
        monitor.record("get", Outcome.HIT, "", 0.001)
    assert monitor.stats().dropped == 10
    assert monitor.stats().hits == 61
    assert not monitor.flush(0.01)
    sink.leave.set()
    assert monitor.flush()
    assert sink.counters["redis.cache.hit"] == 51


def test_without_sinks_no_thread_is_started(make: MakeMonitor) -> None:
    """Most applications have no sink, and read stats()."""
    monitor = make()
    monitor.record("get", Outcome.HIT, "", 0.001)
    monitor.on_change(OPENS)
    assert monitor.flush()
    assert metrics_threads() == []


def test_without_a_thread_to_be_had_measurements_are_dropped_and_counted(
    make: MakeMonitor, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container at its thread limit must go on serving, and its memory must not grow."""
    asked = []

    def no_thread(*thread: object) -> None:
        asked.append(thread)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_delivery, "QUEUE_LIMIT", 50)
    sink = ListSink()
    monitor = make(sink, clock=clock)
    with monkeypatch.context() as patch:
        patch.setattr(_thread, "start_new_thread", no_thread)
        for _ in range(60):
            monitor.record("get", Outcome.HIT, "", 0.001)
        assert not monitor.flush(0.01)
        assert len(asked) == 1
        clock.advance(5.0)
        assert not monitor.flush(0.01)
    assert len(asked) == 2
    assert monitor.stats().dropped == 10
    clock.advance(5.0)
    monitor.record("get", Outcome.HIT, "", 0.001)  # no room for it, but now a thread
    assert monitor.flush()
    assert sink.counters["redis.cache.hit"] == 50
    assert monitor.stats().dropped == 11


def test_measurements_come_in_batches_without_being_asked_for(make: MakeMonitor) -> None:
    """flush() is for tests: figures must arrive without it, also after a pause."""
    sink = ListSink()
    monitor = make(sink)
    for expected in (1, 2):
        monitor.record("get", Outcome.HIT, "", 0.001)
        wait_until(lambda: sink.counters["redis.cache.hit"] == expected)  # noqa: B023
        wait_until(lambda: monitor._delivery is not None and monitor._delivery._resting)


def test_close_delivers_what_is_left_ends_the_thread_and_may_be_repeated(
    make: MakeMonitor, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last figures of a short job are often all of its figures."""
    monkeypatch.setattr(_delivery, "PAUSE_S", 60.0)
    sink = ListSink()
    monitor = make(sink, clock=clock)
    for _ in range(100):
        monitor.record("get", Outcome.HIT, "", 0.001)
    monitor.close()
    assert sink.counters["redis.cache.hit"] == 100
    assert metrics_threads() == []
    monitor.close()
    clock.advance(5.0)
    monkeypatch.setattr(_thread, "start_new_thread", lambda *start: pytest.fail("started again"))
    monitor.record("get", Outcome.HIT, "", 0.001)
    assert monitor.flush()
    assert (monitor.stats().hits, monitor.stats().dropped) == (101, 1)


def test_a_sink_may_close_the_cache(make: MakeMonitor) -> None:
    """A sink that gives up, and takes the cache with it, would wait for itself."""
    took: list[float] = []

    class Closer(ListSink):
        def increment(
            self, name: str, value: int = 1, labels: Mapping[str, str] | None = None
        ) -> None:
            began = time.monotonic()
            monitor.close()
            took.append(time.monotonic() - began)

    monitor = make(Closer())
    monitor.record("get", Outcome.HIT, "", 0.001)
    wait_until(lambda: bool(took) and metrics_threads() == [])
    assert took[0] < 0.2


def test_the_standard_librarys_start_never_runs_in_a_callers_thread(
    make: MakeMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time limit's exception in it comes out as a KeyError, and the caller's task goes wrong."""
    starters: list[int] = []
    plain_start = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        starters.append(threading.get_ident())
        plain_start(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    monitor = make(ListSink())
    monitor.record("get", Outcome.HIT, "", 0.001)
    assert monitor.flush()
    assert len(starters) == 1
    assert threading.get_ident() not in starters


def test_close_waits_for_a_hanging_sink_no_longer_than_it_says(make: MakeMonitor) -> None:
    """A service would be killed at shutdown for the sake of its metrics."""
    sink = HangingSink()
    monitor = make(sink)
    monitor.record("get", Outcome.HIT, "", 0.001)
    assert sink.entered.wait(SOON_S)
    monitor.record("get", Outcome.HIT, "", 0.001)
    began = time.monotonic()
    monitor.close()
    assert time.monotonic() - began < 0.5
    assert monitor.stats().dropped == 1
    sink.leave.set()


@pytest.mark.parametrize("resting", [True, False])
def test_the_thread_of_a_monitor_that_nobody_closed_ends_with_it(resting: bool) -> None:
    """An application that makes a cache per request would collect threads."""
    sink = ListSink()
    monitor = Monitor("jobs", [sink])
    monitor.record("get", Outcome.HIT, "", 0.001)
    assert monitor.flush()
    if resting:
        assert monitor._delivery is not None
        wait_until(lambda delivery=monitor._delivery: delivery._resting)  # type: ignore[misc]
    else:
        monitor.record("get", Outcome.HIT, "", 0.001)
    gone = weakref.ref(monitor)
    del monitor
    gc.collect()
    assert gone() is None
    wait_until(lambda: metrics_threads() == [])
    assert sink.counters["redis.cache.hit"] == (1 if resting else 2)


def test_nothing_runs_when_a_monitor_goes_in_which_an_interrupt_would_be_lost() -> None:
    """A time limit that a task meets where it lets go of its cache would never reach the task."""
    monitors = [Monitor("jobs", [ListSink()])]
    monitors[0].record("get", Outcome.HIT, "", 0.001)
    assert monitors[0].flush()
    gone = weakref.ref(monitors[0])
    gc.collect()
    with Interrupter(0) as interrupter:
        monitors.clear()
    assert gone() is None
    assert not interrupter.done, interrupter.where
    wait_until(lambda: metrics_threads() == [])


def test_the_thread_of_a_childs_monitor_ends_with_it() -> None:
    """A worker that was forked would collect threads, though its parent does not."""
    monitors = [Monitor("jobs", [ListSink()])]

    def check() -> bool:
        monitors[0].record("get", Outcome.HIT, "", 0.001)
        if not monitors[0].flush():
            return False
        monitors.clear()
        gc.collect()
        wait_until(lambda: metrics_threads() == [])
        return True

    assert in_child(check) == 0


def test_of_two_threads_that_were_started_only_the_latest_works(
    make: MakeMonitor, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an exception in the middle of a start, sinks would be called by two at a time."""
    late: list[threading.Thread] = []
    sink = ListSink()
    monitor = make(sink, clock=clock)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda thread: late.append(thread))
        monitor.record("get", Outcome.HIT, "", 0.001)
        wait_until(lambda: bool(late))
    clock.advance(5.0)
    monitor.record("get", Outcome.HIT, "", 0.001)
    assert monitor.flush()
    late[0].start()
    late[0].join(SOON_S)
    assert not late[0].is_alive()
    assert len(metrics_threads()) == 1


def test_a_forked_child_counts_and_delivers_its_own_only(make: MakeMonitor) -> None:
    """Summed over all workers, the parent's figures would be there once for each of them."""
    sink = ListSink()
    monitor = make(sink)
    monitor.record("get", Outcome.HIT, "", 0.001)
    assert monitor.flush()
    assert monitor._delivery is not None

    def check() -> bool:
        if monitor.stats().hits:
            return False
        sink.counters.clear()
        monitor.record("get", Outcome.MISS, "absent", 0.001)
        return monitor.flush() and sink.counters == {"redis.cache.miss": 1}

    with monitor._lock, monitor._delivery._lock:
        assert in_child(check) == 0
    assert monitor.stats().hits == 1


def in_child(check: Callable[[], bool]) -> int:
    """Return 0 when *check* holds in a forked child, its exit status otherwise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: "this process has threads"
        pid = os.fork()
    if pid == 0:
        threading.Timer(SOON_S, os._exit, (3,)).start()
        status = 2
        try:
            status = 0 if check() else 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_the_interpreter_exits_at_once_while_a_sink_hangs() -> None:
    """A deployment would wait for its kill timeout at every restart."""
    program = """
        import threading, time
        from jmcache.monitoring import Monitor
        from jmcache.outcome import Outcome

        entered = threading.Event()

        class Sink:
            def increment(self, name, value=1, labels=None):
                entered.set()
                time.sleep(60)

        monitor = Monitor("jobs", [Sink()])
        monitor.record("get", Outcome.HIT, "", 0.001)
        assert entered.wait(5)
        print(time.monotonic())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    ended = time.monotonic()
    assert (done.returncode, done.stderr) == (0, "")
    assert ended - float(done.stdout) < 1.0


# Lines about single values ------------------------------------------------------------------------


def test_a_refused_value_is_named_by_path_type_and_reason(
    make: MakeMonitor, log: pytest.LogCaptureFixture
) -> None:
    """A developer must find the field without printing candidates' data into the log."""
    make().note_refused("matches[3].score", "Score", "unserializable")
    (record,) = log.records
    assert (record.name, record.levelno) == ("jmcache.cache", logging.WARNING)
    for word in ("jobs", "matches[3].score", "Score", "unserializable"):
        assert word in record.getMessage()
    assert record.jmcache["path"] == "matches[3].score"  # type: ignore[attr-defined]


def test_the_same_refusal_is_one_line_in_ten_seconds_with_the_number_suppressed(
    make: MakeMonitor, log: pytest.LogCaptureFixture, clock: ManualClock
) -> None:
    """One field that cannot be cached would write a line a request."""
    monitor = make(clock=clock)
    for _ in range(4):
        monitor.note_refused("matches[3].score", "Score", "unserializable")
    monitor.note_refused("matches[3].score", "Score", "too_deep")
    assert len(log.records) == 2
    clock.advance(9.9)
    monitor.note_refused("matches[3].score", "Score", "unserializable")
    assert len(log.records) == 2
    clock.advance(0.1)
    monitor.note_refused("matches[3].score", "Score", "unserializable")
    assert len(log.records) == 3
    assert "4 such lines suppressed" in log.records[-1].getMessage()


def test_a_flood_of_different_refusals_is_bounded_in_lines_and_memory(
    make: MakeMonitor, log: pytest.LogCaptureFixture, clock: ManualClock
) -> None:
    """Every index of a long list is another path."""
    monitor = make(clock=clock)
    for index in range(1_000):
        monitor.note_refused(f"matches[{index}]" + "x" * 10_000, "Score", "unserializable")
    assert len(log.records) == 32
    assert len(monitor._throttle._said) == 32
    assert max(len(record.getMessage()) for record in log.records) < 400
    clock.advance(10.0)
    monitor.note_refused("another", "Score", "unserializable")
    assert "968 such lines suppressed" in log.records[-1].getMessage()
    monitor.note_refused("a third", "Score", "unserializable")
    assert "suppressed" not in log.records[-1].getMessage()


def test_what_was_suppressed_is_told_though_its_line_never_comes_again(
    make: MakeMonitor, log: pytest.LogCaptureFixture, clock: ManualClock
) -> None:
    """The log would say one value was refused where there were five."""
    monitor = make(clock=clock)
    for _ in range(5):
        monitor.note_refused("matches[3]", "Score", "unserializable")
    clock.advance(10.0)
    for index in range(32):
        monitor.note_refused(f"skills[{index}]", "Score", "unserializable")
    assert "4 such lines suppressed" in log.records[-1].getMessage()


def test_a_name_from_the_value_cannot_forge_a_log_line(
    make: MakeMonitor, log: pytest.LogCaptureFixture
) -> None:
    """A profile field named by a stranger would write what it likes into our log."""
    make().note_refused("profile['x\n2026 ERROR all is lost']", "Score", "unserializable")
    assert "\n" not in log.records[0].getMessage()


def test_a_corrupt_entry_is_one_line_a_key(
    make: MakeMonitor, log: pytest.LogCaptureFixture, clock: ManualClock
) -> None:
    """A popular key that another program overwrites would fill the disk."""
    monitor = make(clock=clock)
    for _ in range(3):
        monitor.note_corrupt("a1b2c3", "checksum")
        clock.advance(60.0)
    monitor.note_corrupt("d4e5f6", "wrong_key")
    assert levels(log) == [logging.WARNING, logging.ERROR]
    assert "a1b2c3" in log.records[0].getMessage()
    assert "checksum" in log.records[0].getMessage()


def test_the_memory_of_corrupt_keys_is_bounded_and_keeps_the_recent_ones(
    make: MakeMonitor, log: pytest.LogCaptureFixture, clock: ManualClock
) -> None:
    """A foreign program that writes a million keys must not fill our memory too."""
    monitor = make(clock=clock)
    monitor.note_corrupt("popular", "magic")
    for number in range(2_000):
        monitor.note_corrupt(f"{number:x}", "magic")
        monitor.note_corrupt("popular", "magic")
        clock.advance(60.0)
    assert len(monitor._known_digests) == 1024
    assert sum("popular" in record.getMessage() for record in log.records) == 1


def test_a_flood_of_corrupt_entries_is_a_line_a_minute_for_each_of_two_reasons(
    make: MakeMonitor, log: pytest.LogCaptureFixture, clock: ManualClock
) -> None:
    """A line for each key of a foreign program hides what else is going on."""
    monitor = make(clock=clock)
    for number in range(1_000):
        for reason in ("magic", "checksum", "truncated"):
            monitor.note_corrupt(f"{number:x}{reason}", reason)
    assert len(log.records) == 2
    clock.advance(60.0)
    monitor.note_corrupt("another", "magic")
    assert "such lines suppressed" in log.records[-1].getMessage()


def test_what_redis_does_not_serve_is_said_as_soon_as_there_is_room_for_it(
    make: MakeMonitor, log: pytest.LogCaptureFixture, clock: ManualClock
) -> None:
    """Said once and then lost in a flood is never said."""
    monitor = make(clock=clock)
    monitor.note_corrupt("a", "magic")
    monitor.note_corrupt("b", "checksum")
    monitor.note_not_served("get", "noperm", "the ACL")
    assert len(log.records) == 2
    clock.advance(60.0)
    for _ in range(3):
        monitor.note_not_served("get", "noperm", "the ACL")
    assert len(log.records) == 3
    assert "the ACL" in log.records[-1].getMessage()


# Outages ------------------------------------------------------------------------------------------


@pytest.fixture
def outage(clock: ManualClock, log: pytest.LogCaptureFixture) -> OutageLog:
    return OutageLog(ENDPOINT, clock)


def test_an_outage_is_one_warning_a_summary_every_half_minute_and_one_info(
    outage: OutageLog, clock: ManualClock, log: pytest.LogCaptureFixture
) -> None:
    """A line a call buries the one that matters; none at all leaves the outage unseen."""
    outage.on_change(OPENS)
    for _ in range(700):
        clock.advance(0.1)
        outage.skipped()
    outage.on_change(PROBES)
    outage.on_change(CLOSES)
    assert levels(log) == [logging.WARNING, logging.INFO, logging.INFO, logging.INFO]
    opened, summary, _, closed = (record.getMessage() for record in log.records)
    assert {record.name for record in log.records} == {"jmcache.circuit_breaker"}
    assert ENDPOINT in opened
    assert "refused" in opened
    assert "open after 5 failures in a row, answering" in opened
    assert "30 s" in summary
    assert "300 operations" in summary
    assert "70.0 s" in closed
    assert "700 operations" in closed
    assert log.records[-1].jmcache["skipped"] == 700  # type: ignore[attr-defined]


def test_failed_probes_during_an_outage_log_nothing(
    outage: OutageLog, clock: ManualClock, log: pytest.LogCaptureFixture
) -> None:
    """A probe a second is 3,600 lines an hour."""
    outage.on_change(OPENS)
    for _ in range(100):
        clock.advance(1.0)
        outage.on_change(PROBES)
        outage.on_change(FAILS)
    assert levels(log) == [logging.WARNING]
    outage.on_change(PROBES)
    outage.skipped()
    assert "(refused)" in log.records[-1].getMessage()


def test_every_outage_begins_its_figures_anew(
    outage: OutageLog, clock: ManualClock, log: pytest.LogCaptureFixture
) -> None:
    """The second outage of the night would look as long as the night."""
    for _ in range(2):
        outage.on_change(OPENS)
        outage.skipped()
        clock.advance(2.0)
        outage.on_change(CLOSES)
        clock.advance(100.0)
    assert levels(log) == [logging.WARNING, logging.INFO] * 2
    assert "2.0 s" in log.records[3].getMessage()
    assert ", 1 operations" in log.records[3].getMessage()


@pytest.mark.parametrize(
    ("reason", "setting"),
    [
        ("auth", "password"),
        ("tls", "tls_ca_certs"),
        ("db", "db"),
        ("misconfigured", "password"),
    ],
)
def test_a_wrong_setting_is_one_error_that_names_it_in_place_of_the_warning(
    outage: OutageLog,
    clock: ManualClock,
    log: pytest.LogCaptureFixture,
    reason: str,
    setting: str,
) -> None:
    """No waiting cures it: somebody has to be told, once, what to change."""
    outage.on_change(dataclasses.replace(OPENS, reason=reason, failures=1))
    for _ in range(5):
        clock.advance(1.0)
        outage.on_change(PROBES)
        outage.on_change(dataclasses.replace(FAILS, reason=reason))
    assert levels(log) == [logging.ERROR]
    assert setting in log.records[0].getMessage()
    outage.on_change(CLOSES)
    assert levels(log) == [logging.ERROR, logging.INFO]


def test_an_outage_that_turns_out_to_be_a_wrong_setting_says_so_once(
    outage: OutageLog, log: pytest.LogCaptureFixture
) -> None:
    """Redis restarts with a password it had not before: the first reason is no longer the one."""
    outage.on_change(OPENS)
    for _ in range(3):
        outage.on_change(PROBES)
        outage.on_change(dataclasses.replace(FAILS, reason="auth"))
    assert levels(log) == [logging.WARNING, logging.ERROR]


def test_a_wrong_setting_is_blamed_again_in_the_next_outage_and_only_if_it_is_the_cause(
    outage: OutageLog, clock: ManualClock, log: pytest.LogCaptureFixture
) -> None:
    """A password that was wrong yesterday sends people the wrong way today."""
    for reason in ("auth", "auth", ""):
        outage.on_change(dataclasses.replace(OPENS, reason=reason))
        outage.on_change(CLOSES)
        clock.advance(60.0)
    assert levels(log) == [
        *(logging.ERROR, logging.INFO),
        *(logging.ERROR, logging.INFO),
        *(logging.WARNING, logging.INFO),
    ]


def test_redis_coming_and_going_all_the_time_is_a_few_lines_a_minute(
    outage: OutageLog, clock: ManualClock, log: pytest.LogCaptureFixture
) -> None:
    """A server that fails every two seconds would write sixty lines a minute, per process."""
    for _ in range(30):  # a minute
        outage.on_change(OPENS)
        outage.skipped()
        clock.advance(1.0)
        outage.on_change(CLOSES)
        clock.advance(1.0)
    assert levels(log) == [logging.WARNING, logging.INFO] * 3
    clock.advance(1.0)  # the first two lines are a minute old
    outage.on_change(OPENS)
    clock.advance(1.0)
    outage.on_change(CLOSES)
    assert levels(log) == [logging.WARNING, logging.INFO] * 4
    assert "27 short outages" in log.records[-1].getMessage()
    assert " 27 operations" in log.records[-1].getMessage()
    clock.advance(60.0)
    outage.on_change(OPENS)
    outage.on_change(CLOSES)
    assert "short outages" not in log.records[-1].getMessage()


def test_an_outage_among_many_that_lasts_is_warned_of_after_all(
    outage: OutageLog, clock: ManualClock, log: pytest.LogCaptureFixture
) -> None:
    """The one that stays would be the one that nobody reads about."""
    for _ in range(5):
        outage.on_change(OPENS)
        outage.on_change(CLOSES)
    log.clear()
    outage.on_change(OPENS)
    clock.advance(29.0)
    outage.skipped()
    assert levels(log) == []
    clock.advance(1.0)
    outage.skipped()
    clock.advance(30.0)
    outage.skipped()
    outage.on_change(CLOSES)
    assert levels(log) == [logging.WARNING, logging.INFO, logging.INFO]
    log.clear()
    for _ in range(5):  # the three lines that came late are some of the six in their minute
        outage.on_change(OPENS)
        outage.on_change(CLOSES)
    assert levels(log) == [logging.WARNING, logging.INFO]


def test_everything_at_once_is_ten_lines_a_minute(
    make: MakeMonitor, log: pytest.LogCaptureFixture, clock: ManualClock
) -> None:
    """In the night in which everything breaks somebody has to read this."""
    monitor = make(clock=clock)
    reads, writes = OutageLog(ENDPOINT, clock), OutageLog(ENDPOINT, clock, lines=2)
    said_at = []
    for second in range(600):
        log.clear()
        for outage in (reads, writes):
            outage.on_change(OPENS)
            outage.on_change(PROBES)
            outage.on_change(dataclasses.replace(FAILS, reason="auth"))
            outage.skipped()
        monitor.note_corrupt(f"{second:x}", "magic")
        monitor.note_corrupt(f"{second:x}", "wrong_key")
        monitor.note_not_served("get", "noperm", "the ACL")
        clock.advance(1.0)
        for outage in (reads, writes):
            outage.on_change(CLOSES)
        said_at += [second] * len(log.records)
    assert len(said_at) >= 60
    assert max(sum(at - 60 < one <= at for one in said_at) for at in said_at) <= 10


def test_late_news_of_an_outage_that_is_over_logs_nothing(
    outage: OutageLog, clock: ManualClock, log: pytest.LogCaptureFixture
) -> None:
    """An end without a beginning sends people looking for a gap in the log."""
    outage.skipped()
    outage.on_change(CLOSES)
    assert levels(log) == []
    outage.on_change(OPENS)
    outage.on_change(CLOSES)
    clock.advance(60.0)
    outage.skipped()
    assert levels(log) == [logging.WARNING, logging.INFO]
    assert "short outages" not in log.text


def test_an_outage_whose_beginning_was_missed_is_still_announced(
    outage: OutageLog, log: pytest.LogCaptureFixture
) -> None:
    """A time limit's exception can keep the first news from being told."""
    outage.on_change(PROBES)
    outage.on_change(FAILS)
    outage.on_change(CLOSES)
    assert levels(log) == [logging.WARNING, logging.INFO]


def test_no_handler_runs_under_the_lock(outage: OutageLog, clock: ManualClock) -> None:
    """A log handler that itself uses a cache would hang the process at the first outage."""

    class UsesTheCache(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            outage.skipped()
            return True

    handler = UsesTheCache()
    logger = logging.getLogger("jmcache.circuit_breaker")
    logger.addHandler(handler)

    def go_through_an_outage() -> None:
        outage.on_change(OPENS)
        clock.advance(30.0)
        outage.skipped()
        outage.on_change(CLOSES)

    thread = threading.Thread(target=go_through_an_outage, daemon=True)
    try:
        thread.start()
        thread.join(SOON_S)
        assert not thread.is_alive()
    finally:
        logger.removeHandler(handler)


def test_no_skipped_operation_is_lost_between_threads(
    outage: OutageLog, log: pytest.LogCaptureFixture
) -> None:
    """The closing line is what the cost of an outage is read from."""
    outage.on_change(OPENS)
    together = threading.Barrier(4)

    def work(_: int) -> None:
        together.wait(timeout=SOON_S)
        for _ in range(2_000):
            outage.skipped()

    switch_interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(max_workers=4) as threads:
            list(threads.map(work, range(4)))
    finally:
        sys.setswitchinterval(switch_interval)
    outage.on_change(CLOSES)
    assert log.records[-1].jmcache["skipped"] == 8_000  # type: ignore[attr-defined]


def test_a_child_forked_in_an_outage_begins_without_one(
    outage: OutageLog, log: pytest.LogCaptureFixture
) -> None:
    """Its circuit breaker is closed: it would never log the end, and never the next beginning."""
    outage.on_change(OPENS)

    def check() -> bool:
        outage.on_change(CLOSES)
        outage.on_change(OPENS)
        return levels(log) == [logging.WARNING] * 2

    with outage._lock:
        assert in_child(check) == 0


def test_logging_is_never_configured() -> None:
    """An application's own logging set-up would be ignored, or every line come twice."""
    program = """
        import logging
        from jmcache.monitoring import Monitor, OutageLog
        import jmcache.health

        names = ["", "jmcache", "jmcache.cache", "jmcache.circuit_breaker", "jmcache.health"]
        assert not any(logging.getLogger(name).handlers for name in names)
        assert all(logging.getLogger(name).level == 0 for name in names[1:])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_an_outage_whose_predecessors_end_was_not_heard_of_is_one_of_its_own(
    outage: OutageLog, clock: ManualClock, log: pytest.LogCaptureFixture
) -> None:
    """A signal handler that raised while listeners were told would silence every later outage."""
    outage.on_change(OPENS)
    clock.advance(3600.0)
    outage.on_change(OPENS)
    assert levels(log) == [logging.WARNING, logging.WARNING]
    clock.advance(2.0)
    outage.on_change(CLOSES)
    assert "2.0 s" in log.records[-1].getMessage()
