"""HealthThread: how often Redis is asked, and whom that may never hold up. Health: the answer.

Probes are counted by a semaphore; a test waits for one and needs no sleep.
"""

from __future__ import annotations

import _thread
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
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from jmcache.errors import (
    RedisCircuitBreakerOpenError,
    RedisMisconfiguredError,
    RedisTimeoutError,
)
from jmcache.health import Health, HealthThread
from jmcache.testing import ManualClock

NEVER_S = 600.0  # an interval that no test lives through
SOON_S = 5.0  # what a waiting test gives up after


class Server:
    """Answers probes, as it is told to, and counts them."""

    def __init__(self) -> None:
        self.probes = 0
        self.open = False
        self.error: BaseException | None = None
        self.moments: list[float] = []
        self._asked = threading.Semaphore(0)

    def probe(self) -> str:
        self.probes += 1
        self.moments.append(time.monotonic())
        self._asked.release()
        if self.error is not None:
            raise self.error
        return "PONG"

    def is_open(self) -> bool:
        return self.open

    def await_probe(self) -> None:
        assert self._asked.acquire(timeout=SOON_S), "no probe came"


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def make(server: Server) -> Iterator[Callable[..., HealthThread]]:
    made: list[HealthThread] = []

    def make(**options: object) -> HealthThread:
        given = {"interval": NEVER_S, "open_interval": NEVER_S, **options}
        made.append(HealthThread(server.probe, server.is_open, **given))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for health in made:
        health.stop()


def wait_until(holds: Callable[[], bool]) -> None:
    """For what no event tells of, such as the end of a thread."""
    give_up_at = time.monotonic() + SOON_S
    while not holds():
        assert time.monotonic() < give_up_at, "it never came true"
        time.sleep(0.001)


BEFORE: set[threading.Thread] = set()  # threads that other tests may have left


@pytest.fixture(autouse=True)
def _threads_before() -> None:
    BEFORE.clear()
    BEFORE.update(threading.enumerate())


def health_threads() -> list[threading.Thread]:
    threads = set(threading.enumerate()) - BEFORE
    return [thread for thread in threads if thread.name == "jmcache-health"]


def start_and_probe(health: HealthThread, server: Server) -> None:
    health.start()
    health.ring()
    server.await_probe()


# Its rhythm ---------------------------------------------------------------------------------------


def test_nothing_starts_before_the_first_start(make: Callable[..., HealthThread]) -> None:
    """A thread made at import would be lost in every worker that is forked later."""
    health = make()
    assert not health.running
    assert health_threads() == []


def test_it_probes_again_and_again_while_closed(
    make: Callable[..., HealthThread], server: Server
) -> None:
    """Without a rhythm a dead connection is found by a customer."""
    make(interval=0.005, open_interval=0.002).start()
    for _ in range(3):
        server.await_probe()


def test_while_closed_it_rests_a_whole_interval_also_before_the_first_probe(
    make: Callable[..., HealthThread], server: Server
) -> None:
    """Every worker that starts, or is healthy, would ask Redis for nothing."""
    health = make(interval=30.0, open_interval=1.0)
    assert health._step(health._turn) == 30.0
    assert server.probes == 0
    assert health._step(health._turn) == 30.0
    assert server.probes == 1


def test_it_goes_over_to_the_quick_rhythm_when_the_breaker_opens(
    make: Callable[..., HealthThread], server: Server
) -> None:
    """Redis would be back for up to 30 s before anybody noticed."""
    health = make(interval=NEVER_S, open_interval=0.004)
    health.start()
    server.open = True
    health.ring()
    for _ in range(4):
        server.await_probe()


@pytest.mark.parametrize("refused", ["auth", "sentinel_auth"])
def test_a_refused_login_is_tried_again_at_growing_distances(
    make: Callable[..., HealthThread], server: Server, clock: ManualClock, refused: str
) -> None:
    """A server that locks accounts would lock ours, and never see the password put right."""
    health = make(open_interval=1.0, rand=lambda: 0.5, clock=clock)
    server.open = True
    health._step(health._turn)  # begins

    def rest_s(reason: str, *, rung: bool = False) -> float | None:
        clock.advance(10.0)
        server.error = RedisMisconfiguredError(reason=reason)
        return health._step(health._turn, rung=rung)

    assert [rest_s(refused) for _ in range(5)] == [1.0, 2.0, 4.0, 4.0, 4.0]
    assert [rest_s(refused, rung=True), rest_s(refused)] == [1.0, 2.0]
    assert [rest_s("tls"), rest_s("tls"), rest_s(refused)] == [1.0, 1.0, 1.0]


def test_a_refused_login_is_never_tried_before_the_usual_pause(
    make: Callable[..., HealthThread], server: Server, clock: ManualClock
) -> None:
    """Whoever asks for slow checks would get quick ones just when they hurt."""
    health = make(open_interval=60.0, rand=lambda: 0.5, clock=clock)
    server.open = True
    server.error = RedisMisconfiguredError(reason="auth")
    health._step(health._turn)  # begins
    for _ in range(3):
        clock.advance(100.0)
        assert health._step(health._turn) == 60.0


def test_a_ring_while_it_probes_is_heard_after_the_probe(
    make: Callable[..., HealthThread], server: Server, clock: ManualClock
) -> None:
    """New settings that arrive during a probe of the old ones would wait for the next turn."""
    health = make(open_interval=1.0, clock=clock)
    server.open = True
    entered, leave = threading.Event(), threading.Event()

    def hang() -> None:
        entered.set()
        leave.wait(SOON_S)
        server.probe()

    health._probe = hang
    health.start()
    wait_until(lambda: health.running)
    health.ring()
    assert entered.wait(SOON_S)
    health.ring()
    leave.set()
    server.await_probe()
    clock.advance(0.6)
    server.await_probe()


@pytest.mark.parametrize(("dice", "rest_s"), [(0.0, 0.75), (0.5, 1.0), (1.0, 1.25)])
def test_the_quick_rhythm_is_spread_by_a_quarter(
    make: Callable[..., HealthThread], server: Server, dice: float, rest_s: float
) -> None:
    """A hundred replicas that lost Redis together must not come back as one wave."""
    health = make(open_interval=1.0, rand=lambda: dice, clock=ManualClock())
    server.open = True
    health._step(health._turn)  # begins
    assert health._step(health._turn) == pytest.approx(rest_s)
    assert server.probes == 1


def test_a_probe_that_hung_is_part_of_the_rest(server: Server) -> None:
    """Redis would be found back as much later as the probe before had hung."""
    clock = ManualClock()

    def hang() -> None:
        clock.advance(0.6)
        raise RedisTimeoutError

    health = HealthThread(hang, lambda: True, open_interval=1.0, rand=lambda: 0.5, clock=clock)
    health._step(health._turn)  # begins
    assert health._step(health._turn) == pytest.approx(0.4)


def test_however_often_it_rings_half_an_open_interval_lies_between_probes(
    make: Callable[..., HealthThread], server: Server
) -> None:
    """Every caller of a dying server rings; each ring a probe would be an attack on it."""
    health = make(open_interval=0.1)
    server.open = True
    start_and_probe(health, server)
    for _ in range(2):
        while not server._asked.acquire(blocking=False):
            health.ring()
    gaps = [later - earlier for earlier, later in itertools.pairwise(server.moments)]
    assert min(gaps) >= 0.05


def test_a_probe_that_rings_itself_does_not_bring_the_next_one_nearer(
    make: Callable[..., HealthThread], server: Server, clock: ManualClock
) -> None:
    """A failed probe changes the breaker's state twice, and each change rings."""
    health = make(open_interval=1.0, rand=lambda: 0.5, clock=clock)
    server.open = True
    health._step(health._turn)
    plain_probe, health._probe = health._probe, lambda: (health.ring(), plain_probe())
    health._step(health._turn)
    assert health._bell.locked()  # silent: the rest is a whole one


# What it reports ----------------------------------------------------------------------------------


def test_the_age_of_the_last_answer_grows_with_the_clock(
    make: Callable[..., HealthThread], server: Server, clock: ManualClock
) -> None:
    """An age that stands still says a dead Redis is well."""
    health = make(clock=clock)
    assert health.last_ok_age_s is None
    start_and_probe(health, server)
    wait_until(lambda: health.last_ok_age_s is not None)
    clock.advance(12.5)
    assert health.last_ok_age_s == 12.5


def test_an_expected_failure_is_counted_and_its_reason_told_until_the_next_answer(
    make: Callable[..., HealthThread], server: Server, clock: ManualClock, caplog: object
) -> None:
    """Whoever is on call would look for a cause that is over."""
    health = make(clock=clock)
    server.error = RedisMisconfiguredError(reason="auth")
    start_and_probe(health, server)
    wait_until(lambda: health.last_error_reason == "auth")
    assert (health.failures, health.unexpected_errors) == (1, 0)

    server.error = None
    clock.advance(NEVER_S)
    health.ring()
    server.await_probe()
    wait_until(lambda: health.last_error_reason is None)
    assert health.failures == 1


def test_not_being_let_through_as_the_probe_is_no_news_of_redis(
    make: Callable[..., HealthThread], server: Server, clock: ManualClock
) -> None:
    """The reason shown would be our own breaker instead of what is wrong with Redis."""
    health = make(clock=clock)
    server.error = RedisTimeoutError()
    start_and_probe(health, server)
    server.error = RedisCircuitBreakerOpenError()
    clock.advance(NEVER_S)
    health.ring()
    server.await_probe()
    wait_until(lambda: health.failures == 2)
    assert health.last_error_reason == "timeout"


def test_an_unexpected_error_is_logged_once_and_the_loop_goes_on(
    make: Callable[..., HealthThread], server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Once the health thread has died silently, customers are the probes again."""
    health = make(open_interval=0.002)
    server.error = ZeroDivisionError("a secret")
    start_and_probe(health, server)
    for _ in range(3):
        server.await_probe()
    server.error = None
    wait_until(lambda: health.last_ok_age_s is not None)
    assert health.unexpected_errors >= 3
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "ZeroDivisionError" in caplog.text
    assert "a secret" not in caplog.text


# Its life -----------------------------------------------------------------------------------------


def test_start_may_be_called_on_every_operation_and_starts_one_thread(
    make: Callable[..., HealthThread],
) -> None:
    """Every get calls it, from every thread."""
    health = make()
    callers = [threading.Thread(target=health.start) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(SOON_S)
    wait_until(lambda: health.running)
    health.start()
    assert len(health_threads()) == 1
    assert health_threads()[0].daemon


def test_stop_ends_it_at_once_and_for_good(
    make: Callable[..., HealthThread],
    server: Server,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A get that comes just after close would leave a thread behind in every closed cache."""
    health = make(clock=clock)
    start_and_probe(health, server)
    health.stop()
    health.stop()
    assert health_threads() == []
    clock.advance(5.0)
    monkeypatch.setattr(_thread, "start_new_thread", lambda *start: pytest.fail("started again"))
    health.start()
    assert not health.running


def test_stop_waits_for_a_hanging_probe_no_longer_than_it_says() -> None:
    """close() in a request's way would hang as long as the system call does."""
    entered, leave = threading.Event(), threading.Event()

    def hang() -> None:
        entered.set()
        leave.wait(SOON_S)

    health = HealthThread(hang, lambda: True, interval=0.001)
    health.start()
    try:
        assert entered.wait(SOON_S)
        began = time.monotonic()
        health.stop()
        assert time.monotonic() - began < 0.5
        assert not health.running
    finally:
        leave.set()
    wait_until(lambda: health_threads() == [])


def test_a_thread_stopped_in_its_probe_ends_with_the_probe(server: Server) -> None:
    """The rest after it would keep a closed cache's thread for another interval."""
    entered, leave = threading.Event(), threading.Event()

    def hang() -> None:
        entered.set()
        leave.wait(SOON_S)

    health = HealthThread(hang, server.is_open, interval=NEVER_S)
    health.start()
    health.ring()
    assert entered.wait(SOON_S)
    health.stop()
    leave.set()
    wait_until(lambda: health_threads() == [])


def test_stop_from_its_own_thread_does_not_wait_for_itself(server: Server) -> None:
    """A probe that finds the cache closed may be what closes it."""
    took: list[float] = []

    def close() -> None:
        began = time.monotonic()
        health.stop()
        took.append(time.monotonic() - began)

    health = HealthThread(close, server.is_open, interval=0.001)
    health.start()
    wait_until(lambda: bool(took) and health_threads() == [])
    assert took[0] < 0.2


def test_without_a_thread_to_be_had_it_is_tried_again_later_not_on_every_call(
    make: Callable[..., HealthThread],
    server: Server,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A container at its thread limit must still get its cached values, and not pay per call."""
    asked = []

    def no_thread(*thread: object) -> None:
        asked.append(thread)
        raise RuntimeError("can't start new thread")

    health = make(clock=clock)
    with monkeypatch.context() as patch:
        patch.setattr(_thread, "start_new_thread", no_thread)
        for _ in range(100):
            health.start()
        assert len(asked) == 1
        clock.advance(5.0)
        for _ in range(100):
            health.start()
    assert len(asked) == 2
    assert not health.running
    health.start()
    assert not health.running
    clock.advance(5.0)
    start_and_probe(health, server)
    assert health.running


def test_the_standard_librarys_start_never_runs_in_a_callers_thread(
    make: Callable[..., HealthThread], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time limit's exception in it comes out as a KeyError, and the caller's task goes wrong."""
    starters: list[int] = []
    plain_start = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        starters.append(threading.get_ident())
        plain_start(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    health = make()
    health.start()
    wait_until(lambda: health.running)
    assert len(starters) == 1
    assert threading.get_ident() not in starters


@pytest.mark.parametrize("too_late", [False, True])
def test_an_exception_from_a_signal_handler_while_it_starts_leaves_a_later_call_to_do_it(
    make: Callable[..., HealthThread],
    server: Server,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
    too_late: bool,
) -> None:
    """Celery's soft time limit, once, at the wrong moment, and the process never heals again."""
    plain_start = _thread.start_new_thread

    class TimeLimitError(Exception):
        pass

    def interrupted(*start: Any) -> None:
        if too_late:
            plain_start(*start)
        raise TimeLimitError

    health = make(clock=clock)
    with monkeypatch.context() as patch:
        patch.setattr(_thread, "start_new_thread", interrupted)
        with pytest.raises(TimeLimitError):
            health.start()
    clock.advance(5.0)
    start_and_probe(health, server)
    assert health.running


def test_of_two_threads_that_were_started_only_the_latest_works(
    make: Callable[..., HealthThread], clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that got going late would double every probe for the rest of the process."""
    late: list[threading.Thread] = []
    health = make(clock=clock)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda thread: late.append(thread))
        health.start()
        wait_until(lambda: bool(late))
    clock.advance(5.0)
    health.start()
    wait_until(lambda: health.running)
    late[0].start()
    late[0].join(SOON_S)
    assert not late[0].is_alive()
    assert len(health_threads()) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_probe_that_ends_the_thread_does_not_end_it_for_ever(
    make: Callable[..., HealthThread], server: Server, clock: ManualClock
) -> None:
    """The next start would take a dead thread for a running one."""
    health = make(clock=clock)
    server.error = SystemExit()
    start_and_probe(health, server)
    wait_until(lambda: not health.running and health_threads() == [])
    server.error = None
    clock.advance(5.0)
    health.start()
    wait_until(lambda: health.running)


def test_the_thread_of_an_owner_that_nobody_closed_ends_with_it(server: Server) -> None:
    """An application that makes a cache per request would collect threads."""

    class Cache:
        def __init__(self) -> None:
            self.health = HealthThread(self.probe, server.is_open, interval=NEVER_S)

        def probe(self) -> None:
            server.probe()

    cache = Cache()
    start_and_probe(cache.health, server)
    gone = weakref.ref(cache)
    wait_until(lambda: server.probes == 1)
    del cache

    def collected() -> bool:
        gc.collect()  # again: the thread may have been in its probe the time before
        return gone() is None and health_threads() == []

    wait_until(collected)


def test_a_forked_child_gets_a_thread_of_its_own_at_the_next_start(
    make: Callable[..., HealthThread], server: Server
) -> None:
    """Under gunicorn's preload and Celery's prefork no worker would ever heal."""
    health = make(open_interval=0.002)
    start_and_probe(health, server)
    with health._lock:
        status = in_child(lambda: probes_in_child(health, server))
    assert status == 0
    assert health.running


def probes_in_child(health: HealthThread, server: Server) -> bool:
    if health.running or health_threads():
        return False
    start_and_probe(health, server)
    wait_until(lambda: health.running)
    health.stop()
    return True


def test_the_interpreter_exits_at_once_with_the_thread_alive() -> None:
    """A deployment would wait for its kill timeout at every restart, or a command never return."""
    began = time.monotonic()
    program = """
        import threading, time
        from jmcache.health import HealthThread

        entered = threading.Event()

        def hang():
            entered.set()
            time.sleep(60)

        resting = HealthThread(print, lambda: False)
        hanging = HealthThread(hang, lambda: True, interval=0.001)
        resting.start()
        hanging.start()
        assert entered.wait(10)
        while not resting.running:
            time.sleep(0.001)
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
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert ended - float(done.stdout) < 5.0  # it would hang for 60 s
    assert ended - began < 20


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


# What the outside is told -------------------------------------------------------------------------


def test_a_degraded_service_is_still_live_and_ready() -> None:
    """One Redis would take every replica out of the load balancer together."""
    health = Health(status="degraded", breaker="open", reasons=("breaker_open",))
    assert health.live
    assert health.ready


def test_health_turns_into_json_with_nothing_lost() -> None:
    """A health route that fails to encode reads as a dead service."""
    health = Health(
        status="degraded",
        breaker="open",
        reasons=("breaker_open",),
        last_ok_age_s=1.5,
        connections_in_use=2,
        connections_limit=10,
        last_error_reason="timeout",
    )
    assert json.loads(json.dumps(health.as_dict())) == {
        "live": True,
        "ready": True,
        "status": "degraded",
        "breaker": "open",
        "reasons": ["breaker_open"],
        "last_ok_age_s": 1.5,
        "connections_in_use": 2,
        "connections_limit": 10,
        "last_error_reason": "timeout",
    }
