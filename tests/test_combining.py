"""Reads of several threads that share a round trip: faster, and nobody is worse off for it."""

from __future__ import annotations

import ctypes
import random
import statistics
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from interrupter import Interrupt, Interrupter
from test_fork import in_child

import jmcache.errors
from jmcache import CacheSettings, Lookup, Outcome, RedisCache, RedisCacheFactory, combining, sizes
from jmcache.combining import Combiner
from jmcache.deadline import Deadline
from jmcache.errors import (
    RedisCircuitBreakerOpenError,
    RedisConnectionError,
    RedisCorruptEntryError,
    RedisError,
    RedisPoolExhaustedError,
    RedisProtocolError,
    RedisTimeoutError,
    RedisWrongTypeError,
)
from jmcache.testing import FaultProxy, ManualClock, PrivateServer

WAIT_S = 10.0  # for what happens at once, on a machine that is busy
LONG_S = 20.0  # for what does not happen; a test that fails takes so long

MakeSettings = Callable[..., CacheSettings]
Item = str | RedisError


class Line(deque[Any]):
    """Those that wait; says when somebody came."""

    def __init__(self) -> None:
        super().__init__()
        self._came = threading.Semaphore(0)

    def append(self, want: Any) -> None:
        super().append(want)
        self._came.release()

    def expect(self, callers: int) -> None:
        for _ in range(callers):
            assert self._came.acquire(timeout=WAIT_S)


class Source:
    """Answers "<key>!", or what *special* has for a key. A key in *held* waits until `release`."""

    def __init__(self) -> None:
        self.alone: list[str] = []
        self.together: list[list[str]] = []
        self.special: dict[str, Item] = {}
        self.ends_in: list[BaseException] = []  # the next common round trips
        self.held: set[str] = set()
        self.deadlines: list[Deadline] = []
        self._go = threading.Event()
        self._came = threading.Semaphore(0)

    def ask(self, key: str, deadline: Deadline) -> str:
        self.alone.append(key)
        self._arrive([key], deadline)
        answer = self._answer(key)
        if isinstance(answer, RedisError):
            raise answer
        return answer

    def ask_together(self, keys: Sequence[str], deadline: Deadline) -> list[Item]:
        self.together.append(list(keys))
        self._arrive(keys, deadline)
        if self.ends_in:
            raise self.ends_in.pop(0)
        return [self._answer(key) for key in keys]

    def expect(self, round_trips: int = 1) -> None:
        for _ in range(round_trips):
            assert self._came.acquire(timeout=WAIT_S)

    def release(self) -> None:
        self._go.set()

    def _arrive(self, keys: Sequence[str], deadline: Deadline) -> None:
        self.deadlines.append(deadline)
        self._came.release()
        if self.held.intersection(keys):
            assert self._go.wait(LONG_S)

    def _answer(self, key: str) -> Item:
        return self.special.get(key, f"{key}!")


class Rig:
    """A combiner, what it asks, and threads that use it."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self.combiner: Combiner[str, str] = Combiner(len)
        self.line = Line()
        self.combiner._waiting = self.line
        self.source = Source()
        self._threads = threads

    def crowd(self) -> None:
        self.combiner._crowd = 10.0

    def get(self, key: str, within: float | Deadline = LONG_S) -> str:
        deadline = within if isinstance(within, Deadline) else Deadline(within)
        return self.combiner.get(key, deadline, self.source.ask, self.source.ask_together)

    def begin(self, key: str, within: float | Deadline = LONG_S) -> Future[str]:
        return self._threads.submit(self.get, key, within)

    def line_up(self, *keys: str, within: float | Deadline = LONG_S) -> list[Future[str]]:
        """Let them wait, in this order."""
        begun = []
        for key in keys:
            begun.append(self.begin(key, within))
            self.line.expect(1)
        return begun

    def hold_one(self, key: str = "held") -> Future[str]:
        """Somebody is out, in a crowd."""
        self.crowd()
        self.source.held.add(key)
        begun = self.begin(key)
        self.source.expect()
        return begun

    def leave_together(self, *keys: str, within: float | Deadline = LONG_S) -> list[Future[str]]:
        """Let them wait for somebody who is out, and comes back."""
        self.crowd()
        self.combiner._out[self] = None
        begun = self.line_up(*keys, within=within)
        self.combiner._out.pop(self)
        self.combiner._ring_first()
        return begun

    def is_idle(self) -> bool:
        return not self.combiner._out and not self.line


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(80) as threads:
        yield threads


@pytest.fixture
def rig(threads: ThreadPoolExecutor) -> Iterator[Rig]:
    rig = Rig(threads)
    yield rig
    rig.source.release()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's patience ends while a test arranges its threads."""
    monkeypatch.setattr(combining, "_PATIENCE_S", LONG_S)
    monkeypatch.setattr(combining, "_LOOK_AGAIN_S", LONG_S)


def results(begun: Sequence[Future[Any]]) -> list[Any]:
    return [future.result(WAIT_S) for future in begun]


def errors(begun: Sequence[Future[Any]]) -> list[BaseException | None]:
    return [future.exception(WAIT_S) for future in begun]


# Who asks, and with whom ------------------------------------------------------------------------


def test_a_lone_caller_asks_alone_and_at_once(rig: Rig) -> None:
    """One thread would pay for the others that it does not have."""
    for crowd in (0.0, 10.0):
        rig.combiner._crowd = crowd
        assert rig.get("a") == "a!"
    assert rig.source.alone == ["a", "a"]
    assert not rig.source.together
    assert rig.line._came.acquire(blocking=False) is False


def test_four_ask_side_by_side_while_there_is_no_crowd(rig: Rig, patient: None) -> None:
    """Two or three threads would take turns, where Redis answers them all in the same time."""
    rig.source.held.update("abcd")
    out = [rig.begin(key) for key in "abcd"]
    rig.source.expect(4)
    assert sorted(rig.source.alone) == list("abcd")

    fifth = rig.line_up("e")
    rig.source.release()

    assert results(out + fifth) == ["a!", "b!", "c!", "d!", "e!"]
    assert rig.source.together == [["e"]]
    assert rig.is_idle()


def test_in_a_crowd_those_that_wait_leave_together_the_first_first(rig: Rig, patient: None) -> None:
    """64 threads at a time each fight for the interpreter at every step of a round trip."""
    out = rig.hold_one()
    waiting = rig.line_up(*"bcdefg")
    assert rig.source.alone == ["held"]
    assert not rig.source.together

    rig.source.release()

    assert results([out, *waiting]) == ["held!", "b!", "c!", "d!", "e!", "f!", "g!"]
    assert rig.source.alone == ["held"]
    assert rig.source.together == [list("bcdefg")]
    assert rig.is_idle()


def test_whoever_does_not_fit_in_leaves_next(
    rig: Rig, patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round trip without bound would make its first wait for its last."""
    monkeypatch.setattr(combining, "_MOST", 2)
    out = rig.hold_one()
    waiting = rig.line_up(*"bcdef")
    rig.source.release()
    assert results([out, *waiting]) == ["held!", "b!", "c!", "d!", "e!", "f!"]
    assert rig.source.together == [["b", "c"], ["d", "e"], ["f"]]


def test_a_crowd_that_has_gone_is_forgotten(rig: Rig, patient: None) -> None:
    """Threads that ask now and then would wait for each other long after the rush."""
    out = rig.hold_one()
    rig.source.release()
    out.result(WAIT_S)
    for _ in range(30):  # each finds one out, and waits for it alone
        rig.combiner._out[rig] = None
        waiting = rig.line_up("b") if not rig.combiner._has_room() else []
        rig.combiner._out.pop(rig)
        rig.combiner._ring_first()
        results(waiting)
    assert rig.combiner._crowd < combining._CROWD


def test_nobody_overtakes_those_that_wait(rig: Rig) -> None:
    """The thread that has just been served comes again before the others have woken up."""
    rig.crowd()
    rig.line.append(combining._Want("waits", Deadline(LONG_S)))
    assert rig.get("comes") == "comes!"
    assert rig.source.together == [["waits", "comes"]]
    assert not rig.source.alone


def test_64_threads_have_about_the_same_share(settings: MakeSettings) -> None:
    """A request of one thread would take seconds, and no mean would tell."""
    calls = 64 * 60

    def round_is_fair() -> bool:
        left = iter(range(calls))
        ended = iter(range(10 * calls))
        shares: Counter[int] = Counter()
        overtaken: list[int] = []  # calls of others that began or ended while one went on
        start = threading.Barrier(64)

        def caller(number: int) -> None:
            start.wait(WAIT_S)
            for _ in left:
                before = next(ended)
                assert cache.get(f"k{number}") == number
                overtaken.append(next(ended) - before)
                shares[number] += 1

        results([threads.submit(caller, number) for number in range(64)])
        assert sum(shares.values()) == calls
        fair_shares = min(shares.values()) >= calls / 64 / 3
        return fair_shares and max(overtaken) <= 30 * statistics.median(overtaken)

    given = settings(max_connections=64, operation_timeout=LONG_S)
    with RedisCacheFactory.create_cache(given) as cache, ThreadPoolExecutor(64) as threads:
        assert cache.set_many({f"k{number}": number for number in range(64)})
        # A busy machine may let one thread wait for a processor throughout a round, and those that
        # wait for its answer. Not in each round.
        assert any(round_is_fair() for _ in range(5))


# What a common answer is to each ----------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        RedisProtocolError("not what was asked for"),
        RedisCircuitBreakerOpenError("open", retry_after_s=3.5),
        RedisWrongTypeError("a list"),
        RedisConnectionError("reset", reason="tls"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_failed_round_trip_fails_its_members_each_with_an_error_of_its_own(
    rig: Rig, patient: None, error: RedisError
) -> None:
    """One object in several threads would gather the tracebacks of them all."""
    out = rig.hold_one()
    members = rig.line_up(*"bcd", within=Deadline(LONG_S))
    rig.source.ends_in = [error]
    rig.source.release()

    raised = errors(members)

    assert out.result(WAIT_S) == "held!"
    assert [type(one) for one in raised] == [type(error)] * 3
    assert [vars(one) for one in raised] == [vars(error)] * 3
    assert [str(one) for one in raised] == [str(error)] * 3
    assert len({id(one) for one in (*raised, error)}) == 4
    assert rig.source.together == [list("bcd")]
    assert rig.source.alone == ["held"]
    assert rig.get("next") == "next!"


def test_any_error_there_is_can_be_told_to_each(rig: Rig, patient: None) -> None:
    """An error that cannot be copied would come out of get as a TypeError."""
    known = vars(jmcache.errors).values()
    kinds = [kind for kind in known if isinstance(kind, type) and issubclass(kind, RedisError)]
    assert len(kinds) > 20
    for kind in kinds:
        if not issubclass(kind, RedisCorruptEntryError):
            rig.source.ends_in = [kind("why")]
            raised = errors(rig.leave_together("b", "c", within=Deadline(LONG_S)))
            assert [(type(one), str(one)) for one in raised] == [(kind, "why")] * 2
    assert not rig.source.alone


def test_an_error_of_one_key_is_no_other_members(rig: Rig, patient: None) -> None:
    """A list under one name would make a hundred good entries corrupt."""
    rig.hold_one()
    members = rig.line_up(*"bcd")
    rig.source.special["c"] = RedisWrongTypeError("a list")
    rig.source.release()
    assert isinstance(members[1].exception(WAIT_S), RedisWrongTypeError)
    assert results([members[0], members[2]]) == ["b!", "d!"]
    assert rig.source.alone == ["held"]


def test_a_common_reply_that_one_value_spoils_is_asked_for_one_by_one(
    rig: Rig, patient: None
) -> None:
    """Whoever stored a foreign giant would have taken everybody's cache away."""
    rig.hold_one()
    members = rig.line_up(*"bcd")
    giant = RedisCorruptEntryError("larger than any value of ours", reason="too_large")
    rig.source.ends_in = [giant]
    rig.source.special["c"] = giant
    rig.source.release()
    assert isinstance(members[1].exception(WAIT_S), RedisCorruptEntryError)
    assert results([members[0], members[2]]) == ["b!", "d!"]
    assert sorted(rig.source.alone) == ["b", "c", "d", "held"]


# Whose time it is -------------------------------------------------------------------------------


def test_who_waits_for_a_turn_waits_no_longer_than_its_own_time(rig: Rig, patient: None) -> None:
    """A caller with 50 ms would wait for another one's 60 s."""
    rig.hold_one()
    with pytest.raises(RedisTimeoutError):
        rig.get("b", within=0.05)
    assert not rig.line  # nobody asks for it any more
    assert rig.source.alone == ["held"]


def test_who_leaves_the_line_hands_the_bell_on(rig: Rig, patient: None, clock: ManualClock) -> None:
    """It rang for the first, whose time was over just then; nobody else would hear of it."""
    rig.hold_one()
    leaves, stays = rig.line_up("b", within=Deadline(0.05, clock)) + rig.line_up("c")
    clock.advance(1.0)
    assert isinstance(leaves.exception(WAIT_S), RedisTimeoutError)
    assert stays.result(WAIT_S) == "c!"
    assert rig.source.together == [["c"]]


def test_who_is_asked_for_waits_no_longer_than_its_own_time(
    rig: Rig, patient: None, clock: ManualClock
) -> None:
    """The leader has its own, and may wait for as long as it likes."""
    rig.source.held.add("b")
    leader, member = rig.leave_together("b", "c", within=Deadline(0.05, clock))
    rig.source.expect()
    clock.advance(1.0)
    assert isinstance(member.exception(WAIT_S), RedisTimeoutError)
    assert not leader.done()
    rig.source.release()
    assert leader.result(WAIT_S) == "b!"


@pytest.mark.parametrize(
    "error",
    [
        RedisTimeoutError("no answer"),
        RedisConnectionError("reset, and no time for a retry"),
        RedisPoolExhaustedError("no connection came free"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_who_has_more_time_than_the_leader_is_not_failed_for_want_of_it(
    rig: Rig, patient: None, error: RedisError
) -> None:
    """One impatient caller in front would fail sixty patient ones."""
    rig.hold_one()
    (leader,) = rig.line_up("b", within=5.0)
    (same,) = rig.line_up("c", within=5.0)
    (later,) = rig.line_up("d")
    rig.source.ends_in = [error]
    rig.source.release()
    assert isinstance(leader.exception(WAIT_S), type(error))
    assert isinstance(same.exception(WAIT_S), type(error))
    assert later.result(WAIT_S) == "d!"
    assert rig.source.together == [["b", "c", "d"]]
    assert rig.source.alone == ["held", "d"]


def test_the_deadline_of_a_common_round_trip_is_its_leaders(rig: Rig, patient: None) -> None:
    """A leader that waits for others' longer time breaks its own promise."""
    rig.hold_one()
    mine = Deadline(LONG_S)
    members = rig.line_up("b", within=mine) + rig.line_up("c", within=2 * LONG_S)
    rig.source.release()
    results(members)
    assert rig.source.deadlines[1] is mine


def test_a_slow_answer_holds_nobody_up_but_those_that_asked_for_it(rig: Rig) -> None:
    """One stalled connection would stop every thread of the process."""
    out = rig.hold_one("slow")
    for key in "abc":
        assert rig.get(key, within=WAIT_S) == f"{key}!"
    assert not out.done()
    rig.source.release()
    assert out.result(WAIT_S) == "slow!"


# How much in one round trip ---------------------------------------------------------------------


def test_a_large_value_is_asked_for_alone_from_the_second_time_on(rig: Rig, patient: None) -> None:
    """Everybody would wait for the megabytes of one."""
    large = "x" * sizes._LARGE
    rig.source.special["large"] = large
    rig.hold_one()
    first = rig.line_up("large", "b")
    rig.source.release()
    assert results(first) == [large, "b!"]
    assert rig.source.together == [["large", "b"]]

    rig.combiner._out[rig] = None  # somebody is out again
    assert rig.get("large") == large
    assert rig.source.alone == ["held", "large"]

    rig.source.special.pop("large")  # small by now: found out alone
    assert rig.get("large") == "large!"
    assert results(rig.leave_together("large", "b")) == ["large!", "b!"]
    assert rig.source.together[1:] == [["large", "b"]]


@pytest.mark.parametrize("size", [60_000, 200_000, 3 * sizes._MOST_BYTES])
def test_a_round_trip_is_bounded_by_the_bytes_that_are_expected(
    rig: Rig, patient: None, size: int
) -> None:
    """64 values of 60 KB make one reply of 4 MB, which the first waits for as long as the last."""
    seen = [f"seen{number}" for number in range(40)]
    keys = [f"k{number}" for number in range(12)]
    rig.source.special = dict.fromkeys([*seen, *keys], "x" * size)
    for key in seen:
        results(rig.leave_together(key))
    rig.source.together.clear()
    results(rig.leave_together(*keys))
    largest = max(map(len, rig.source.together))
    assert largest <= max(1, 1.02 * sizes._MOST_BYTES // size)
    assert largest >= min(8, sizes._MOST_BYTES // size)


def test_however_much_is_expected_one_is_asked_for(rig: Rig, patient: None) -> None:
    """With room for none, nobody would ever be asked for."""
    rig.combiner._sizes._expected = sizes._MOST_BYTES
    assert results(rig.leave_together("b", "c")) == ["b!", "c!"]
    assert rig.source.together == [["b"], ["c"]]


def test_one_giant_is_soon_forgotten(rig: Rig, patient: None) -> None:
    """All others would go one by one for as long as it takes to forget a gigabyte."""
    rig.combiner._size_of = lambda answer: 10**9 if answer == "giant!" else 5
    results(rig.leave_together("giant"))
    for number in range(10):
        results(rig.leave_together(f"k{number}"))
    results(rig.leave_together(*"bcdefghijk"))
    assert rig.source.together[-1] == list("bcdefghijk")


def test_what_is_known_to_be_large_makes_no_round_trip_smaller(rig: Rig, patient: None) -> None:
    """It is asked for alone; a hot one would make all others go one by one."""
    rig.source.special["large"] = "x" * sizes._MOST_BYTES
    for _ in range(50):
        results(rig.leave_together("small"))
        rig.get("large")
    letters = list("bcdefghijklmnopqrstuvwxyz")
    results(rig.leave_together(*letters))
    assert rig.source.together[-1] == letters


def test_no_more_than_a_thousand_large_keys_are_known(rig: Rig) -> None:
    """Each key that ever was large would stay in memory for ever."""
    for number in range(3 * sizes._LARGE_KEYS):
        rig.source.special = {f"k{number}": "x" * sizes._LARGE}
        rig.get(f"k{number}")
    assert len(rig.combiner._sizes._large) <= sizes._LARGE_KEYS


# Torn away --------------------------------------------------------------------------------------


def test_a_leader_that_is_torn_away_leaves_its_members_to_ask_by_themselves(
    rig: Rig, patient: None
) -> None:
    """A time limit of one task would be the end of sixty others."""
    rig.hold_one()
    leader, *members = rig.line_up(*"bcd")
    rig.source.ends_in = [KeyboardInterrupt()]
    rig.source.release()
    assert isinstance(leader.exception(WAIT_S), KeyboardInterrupt)
    assert results(members) == ["c!", "d!"]
    assert sorted(rig.source.alone) == ["c", "d", "held"]
    assert rig.is_idle()


def test_who_waits_behind_somebody_who_was_torn_away_leads_in_its_place(rig: Rig) -> None:
    """Nobody rings, and the first in the line never wakes up."""
    rig.hold_one()
    rig.line.append(combining._Want("gone", Deadline(LONG_S)))
    assert rig.get("b", within=WAIT_S) == "b!"
    assert rig.source.together == [["gone", "b"]]


def test_who_was_taken_by_somebody_who_was_torn_away_asks_alone(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The taker ended just between taking and noting whom."""
    monkeypatch.setattr(combining, "_PATIENCE_S", LONG_S)  # it does not lead before it is taken
    rig.hold_one()
    (member,) = rig.line_up("b")
    taken = rig.line[0]
    rig.line.clear()
    taken.turn = object()  # of nobody who is out
    taken.ring()
    assert member.result(WAIT_S) == "b!"
    assert rig.source.alone == ["held", "b"]


@pytest.mark.parametrize("main_leads", [True, False], ids=["a_leader", "a_member"])
def test_interrupted_at_any_point_it_leaves_nobody_waiting(
    threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, main_leads: bool
) -> None:
    """Celery's time limit is raised in the middle of whatever the main thread does."""
    monkeypatch.setattr(combining, "_PATIENCE_S", 0.1)
    kept = []  # with its traceback, as an error tracker keeps it
    points = 0
    while True:
        rig = Rig(threads)
        rig.crowd()
        rig.combiner._out[rig] = None
        members = rig.line_up("b", "c")
        if main_leads:
            rig.combiner._out.pop(rig)
        answer = None
        interrupter = Interrupter(points, only="combining")
        with interrupter:
            try:
                answer = rig.get("main", within=5.0)
            except Interrupt as error:
                kept.append(error)
        rig.combiner._out.pop(rig, None)

        assert answer in ("main!", None)
        assert results(members) == ["b!", "c!"], interrupter.where
        assert not rig.combiner._out, interrupter.where
        assert results(rig.leave_together("d", "e")) == ["d!", "e!"], interrupter.where
        if not interrupter.done:
            break
        points += 1
    assert points > 15
    assert kept


def test_a_child_asks_at_once_whoever_was_out_at_the_fork(rig: Rig, patient: None) -> None:
    """The threads that are to come back, and those that wait, exist in the parent alone."""
    rig.hold_one()
    rig.line_up("b", "c")

    def works() -> bool:
        rig.source.held.clear()
        return rig.get("d", within=5.0) == "d!" and rig.source.alone == ["held", "d"]

    assert in_child(works)
    assert len(rig.line) == 2


# Through the cache ------------------------------------------------------------------------------


class Gate:
    """Before each reading of *cache*: counts them, and holds those of a key until `release`."""

    def __init__(self, cache: RedisCache) -> None:
        self.names: list[Sequence[bytes]] = []
        self.states: list[str] = []  # of the breaker, at each
        self.cache = cache
        self.ends_in: list[RedisError | None] = []
        self.combiner: Any = cache._stops._combiner  # type: ignore[attr-defined]
        self.line = Line()
        self.combiner._waiting = self.line
        self.held = b""
        self._go = threading.Event()
        self._came = threading.Semaphore(0)
        self._read = cache._stops.store.read
        cache._stops.store.read = self.read  # type: ignore[method-assign]

    def read(self, names: Sequence[bytes], *args: Any) -> Any:
        if names:  # else the counters of tags
            self.names.append(names)
            self.states.append(str(self.cache._breaker.state))
        if self.held and any(self.held in name for name in names):
            self._came.release()
            assert self._go.wait(LONG_S)
        if names and self.ends_in:
            error = self.ends_in.pop(0)
            if error is not None:
                raise error
        return self._read(names, *args)

    def together(self, threads: ThreadPoolExecutor, *calls: Callable[[], Any]) -> list[Future[Any]]:
        """Let *calls* wait, in this order, and leave in one round trip."""
        self.combiner._crowd = 10.0
        self.held = b"held"
        self._go.clear()
        out = threads.submit(self.cache.lookup, "held")
        assert self._came.acquire(timeout=WAIT_S)
        begun = []
        for call in calls:
            begun.append(threads.submit(call))
            self.line.expect(1)
        self._go.set()
        out.result(WAIT_S)
        return begun


@pytest.fixture
def reset_timeout() -> float:
    """Seconds until an open breaker lets a probe through: at once."""
    return 1e-6


@pytest.fixture
def cache(settings: MakeSettings, reset_timeout: float) -> Iterator[RedisCache]:
    made = RedisCacheFactory.create_cache(
        settings(
            operation_timeout=LONG_S,
            max_retries=0,
            failure_threshold=2,
            reset_timeout=reset_timeout,
            max_value_bytes=100_000,
        )
    )
    assert isinstance(made, RedisCache)
    made._health.stop()  # it would probe, and close the breaker
    with made:
        assert made.set("held", 0)
        yield made


@pytest.fixture
def gate(cache: RedisCache, patient: None) -> Gate:
    return Gate(cache)


def test_the_same_key_is_fetched_once_and_each_has_a_copy_of_its_own(
    cache: RedisCache, gate: Gate, threads: ThreadPoolExecutor
) -> None:
    """A caller that adds to its list would add to everybody's."""
    assert cache.set("k", {"skills": ["sql"]})
    assert cache.set("other", "o")
    keys = ("k", "other", "k", "k")
    found = results(gate.together(threads, *(lambda key=key: cache.get(key) for key in keys)))
    assert [len(names) for names in gate.names] == [1, 2]
    found[0]["skills"].append("java")
    assert found[1:] == ["o", {"skills": ["sql"]}, {"skills": ["sql"]}]
    assert cache.stats().hits == 5


def test_a_failed_round_trip_counts_once_for_the_breaker_and_once_for_each_caller(
    cache: RedisCache, gate: Gate, threads: ThreadPoolExecutor
) -> None:
    """One reset among 64 threads would open the breaker of the whole process."""
    deadline = Deadline(LONG_S)

    def lookup() -> Lookup:
        return cache.lookup("k", timeout=deadline)

    gate.ends_in = [None, RedisConnectionError("reset")]
    found = results(gate.together(threads, *[lookup] * 5))
    assert [(one.outcome, one.reason) for one in found] == [(Outcome.UNAVAILABLE, "connection")] * 5
    assert cache.health().breaker == "closed"
    assert cache.stats().operations["get", "unavailable", "connection"] == 5
    assert cache.stats().unavailable == 5


def test_a_common_round_trip_is_one_probe(
    cache: RedisCache, gate: Gate, threads: ThreadPoolExecutor
) -> None:
    """Half-open lets one out: if each member were a probe, all others would be refused."""
    assert cache.set("k", 1)
    gate.ends_in = [RedisConnectionError("reset"), RedisConnectionError("reset")]
    assert cache.get("k") is None
    found = results(gate.together(threads, *[lambda: cache.lookup("k")] * 5))
    assert gate.states[-2:] == ["closed", "half_open"]
    assert [one.outcome for one in found] == [Outcome.HIT] * 5
    assert [len(names) for names in gate.names] == [1, 1, 1]
    assert cache.health().breaker == "closed"


@pytest.mark.parametrize("reset_timeout", [LONG_S])
def test_members_of_a_round_trip_that_is_refused_are_told_why(
    cache: RedisCache, gate: Gate, threads: ThreadPoolExecutor
) -> None:
    """They came while the breaker was closed; each is counted once, and Redis left in peace."""
    gate.ends_in = [RedisConnectionError("reset"), RedisConnectionError("reset")]
    assert cache.get("k") is None
    found = results(gate.together(threads, *[lambda: cache.lookup("k")] * 3))
    assert [one.reason for one in found] == ["breaker_open"] * 3
    assert len(gate.names) == 2
    assert cache.lookup("k").reason == "breaker_open"
    assert cache.stats().operations["get", "unavailable", "breaker_open"] == 4


def test_what_is_foreign_spoils_only_its_own_key(
    cache: RedisCache,
    gate: Gate,
    threads: ThreadPoolExecutor,
    redis_server: PrivateServer,
) -> None:
    """Somebody else's bytes would turn sixty hits into misses."""
    keys = ["a", "list", "b", "giant", "rubbish", "c", "nothing"]
    assert cache.set_many({key: key.upper() for key in "abc"})
    names = {key: cache._keys.name(key)[0] for key in keys}
    redis_server.command("LPUSH", names["list"], "x")
    redis_server.command("SET", names["giant"], b"x" * 20_000_000)
    redis_server.command("SET", names["rubbish"], b"not ours")

    def lookups() -> dict[str, tuple[Outcome, Any]]:
        begun = gate.together(threads, *(lambda key=key: cache.lookup(key) for key in keys))
        found = results(begun)
        return {key: (one.outcome, one.value) for key, one in zip(keys, found, strict=True)}

    found = lookups()
    for key in "abc":
        assert found[key] == (Outcome.HIT, key.upper())
    assert found["nothing"] == (Outcome.MISS, None)
    for key in ("list", "giant", "rubbish"):
        assert found[key] == (Outcome.CORRUPT, None)
        assert redis_server.command("EXISTS", names[key]) in (0, b"0", "0")
    assert cache.stats().corrupt == 3


def test_a_validation_runs_on_its_own_callers_thread_and_is_nobody_elses(
    cache: RedisCache, gate: Gate, threads: ThreadPoolExecutor
) -> None:
    """What a validator of one caller raises would come out of another's call."""
    assert cache.set("k", 7)
    ran_on = {}

    def look(name: str, verdict: Callable[[], bool]) -> Callable[[], tuple[int, Lookup]]:
        def validate(_value: object) -> bool:
            ran_on[name] = threading.get_ident()
            return verdict()

        return lambda: (threading.get_ident(), cache.lookup("k", validate=validate))

    def bug() -> bool:
        raise ZeroDivisionError

    one, broken, other = gate.together(
        threads, look("one", lambda: True), look("broken", bug), look("other", lambda: True)
    )
    for name, future in (("one", one), ("other", other)):
        thread, found = future.result(WAIT_S)
        assert found.value == 7
        assert ran_on[name] == thread
    assert isinstance(broken.exception(WAIT_S), ZeroDivisionError)
    assert len(gate.names) == 2

    (refused,) = gate.together(threads, lambda: cache.lookup("k", validate=lambda _: False))
    assert refused.result(WAIT_S).reason == "invalid"


def test_tags_and_clearing_count_in_a_common_round_trip(
    cache: RedisCache, gate: Gate, threads: ThreadPoolExecutor
) -> None:
    """A whole batch would be judged by the counters of its first entry."""
    assert cache.set("plain", 1)
    assert cache.set("sql", 2, tags=["sql"])
    assert cache.set("java", 3, tags=["java", "sql"])
    assert cache.set("ada", 4, tags=["ada"])
    keys = ["plain", "sql", "java", "ada"]

    def gets() -> list[Any]:
        return results(gate.together(threads, *(lambda key=key: cache.get(key) for key in keys)))

    assert gets() == [1, 2, 3, 4]
    assert cache.invalidate_tags("sql")
    assert gets() == [1, None, None, 4]
    assert cache.clear()
    assert gets() == [None] * 4


def test_what_redis_is_owed_a_delete_of_is_a_miss_in_a_common_round_trip(
    cache: RedisCache, gate: Gate, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was deleted while Redis was away; Redis is back, and was not told yet."""

    def fails(*_args: Any, **_options: Any) -> int:
        raise RedisConnectionError("reset")

    assert cache.set_many({"deleted": 1, "kept": 2})
    monkeypatch.setattr(cache._stops.store, "delete", fails)
    cache.delete("deleted")
    keys = ["kept", "deleted", "deleted"]
    found = results(gate.together(threads, *(lambda key=key: cache.lookup(key) for key in keys)))
    assert [one.value for one in found] == [2, None, None]
    assert [one.reason for one in found[1:]] == ["invalidated"] * 2


def test_a_stalled_connection_costs_only_those_that_asked_on_it(
    tcp_server: PrivateServer, threads: ThreadPoolExecutor
) -> None:
    """Of 8 threads one waits for its own time; the others go on over other connections."""
    with (
        FaultProxy(tcp_server) as proxy,
        RedisCacheFactory.create_cache(
            proxy.settings(namespace="stall", operation_timeout=5.0, max_connections=8)
        ) as cache,
    ):
        assert isinstance(cache, RedisCache)
        assert cache.set_many({f"k{number}": number for number in range(8)} | {"slow": 1})
        combiner: Any = cache._stops._combiner  # type: ignore[attr-defined]
        slow_name = cache._keys.name("slow")[0]
        stalled = proxy.stall(on=slow_name, times=1)
        slow = threads.submit(cache.lookup, "slow")
        proxy.wait_until(lambda: stalled.triggered)
        combiner._crowd = 10.0

        def reads(number: int) -> list[Any]:
            return [cache.get(f"k{number}") for _ in range(50)]

        found = results([threads.submit(reads, number) for number in range(8)])
        assert found == [[number] * 50 for number in range(8)]
        assert not slow.done()
        assert slow.result(WAIT_S).reason == "timeout"


class Torn(BaseException):
    """What is raised into a thread at any moment."""


# Torn away, what was made and not yet kept is left to the garbage collector, and so is what ran
# where nothing can come out: in a weak reference's callback, say.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_threads_that_are_torn_away_cost_the_others_neither_time_nor_connections(
    settings: MakeSettings,
) -> None:
    """A task runner that ends threads would leave others waiting, or a pool without connections."""
    over = threading.Event()
    longest = [0.0] * 16
    wrong: list[Any] = []
    kept: list[Torn] = []  # with their tracebacks, as an error tracker keeps them

    def read(number: int) -> None:
        while not over.is_set():
            started = time.monotonic()
            found = cache.lookup(f"k{number % 4}")
            longest[number] = max(longest[number], time.monotonic() - started)
            if found.value != {"k": number % 4}:
                wrong.append(found)

    def keep_reading(number: int) -> None:
        while not over.is_set():
            try:
                read(number)
            except Torn as error:
                kept.append(error)

    with RedisCacheFactory.create_cache(
        settings(operation_timeout=LONG_S, max_connections=3)
    ) as cache:
        assert isinstance(cache, RedisCache)
        assert cache.set_many({f"k{number}": {"k": number} for number in range(4)})
        threads = [threading.Thread(target=keep_reading, args=(n,)) for n in range(16)]
        for thread in threads:
            thread.start()
        for torn in range(320):
            number = threads[torn % 16].ident
            assert number is not None
            raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
            raise_in(ctypes.c_ulong(number), ctypes.py_object(Torn))
            over.wait(0.004)
        over.set()
        for thread in threads:
            thread.join(WAIT_S)
        assert not [thread for thread in threads if thread.is_alive()]

        combiner: Any = cache._stops._combiner  # type: ignore[attr-defined]
        pool = cache._connection._server.pool
        assert cache.get("k1") == {"k": 1}
        assert not combiner._out
        assert not combiner._waiting
        assert pool.alive == pool.idle <= 3
    assert not wrong
    assert len(kept) > 100
    assert max(longest) < LONG_S / 4


def test_a_child_of_a_busy_parent_reads_at_once(
    settings: MakeSettings, threads: ThreadPoolExecutor
) -> None:
    """Workers are forked while other threads of the parent read."""
    cache = RedisCacheFactory.create_cache(settings(operation_timeout=5.0))
    over = threading.Event()

    def reads() -> None:
        while not over.is_set():
            cache.get("k")

    with cache:
        assert cache.set("k", [1])
        busy = [threads.submit(reads) for _ in range(16)]
        try:
            for _ in range(10):
                assert in_child(lambda: cache.get("k") == [1])
        finally:
            over.set()
        results(busy)


@pytest.mark.parametrize("near", [False, True], ids=["shared", "near"])
def test_no_read_that_began_after_a_write_returned_sees_what_was_before(
    settings: MakeSettings, near: bool
) -> None:
    """What was deleted, replaced, untagged or cleared would be handed out from a common answer."""
    keys = [f"k{number}" for number in range(4)]
    lock = threading.Lock()
    begun: dict[str, int] = dict.fromkeys(keys, 0)
    stored: dict[str, int] = dict.fromkeys(keys, 0)
    floor: dict[str, int] = dict.fromkeys(keys, 0)  # no read that begins now sees less
    writing = {key: threading.Lock() for key in keys}
    wrong: list[Any] = []
    outcomes: Counter[Outcome] = Counter()
    ends_at = time.monotonic() + 2.0

    def settle(versions: dict[str, int]) -> None:
        with lock:
            for key, version in versions.items():
                floor[key] = max(floor[key], version)

    def write(number: int) -> None:
        rand = random.Random(f"writer {number}")
        while time.monotonic() < ends_at:
            key = rand.choice(keys)
            deed = rand.random()
            if deed < 0.1:
                there = dict(stored)
                if cache.clear() if deed < 0.05 else cache.invalidate_tags("all"):
                    settle({name: version + 1 for name, version in there.items()})
                continue
            with writing[key]:
                if deed < 0.3:
                    version = begun[key]
                    assert cache.delete(key) is not None
                    settle({key: version + 1})
                    begun[key] = version + 1
                else:
                    begun[key] += 1
                    if cache.set(key, [key, begun[key]], tags=["all"]):
                        stored[key] = begun[key]
                        settle({key: begun[key]})

    def read(number: int) -> None:
        rand = random.Random(f"reader {number}")
        while time.monotonic() < ends_at:
            key = rand.choice(keys)
            least = floor[key]
            found = cache.lookup(key)
            outcomes[found.outcome] += 1
            if found.outcome is Outcome.HIT:
                name, version = found.value
                if name != key or version < least:
                    wrong.append((key, least, found.value))

    with RedisCacheFactory.create_cache(settings(operation_timeout=5.0, near=near)) as cache:
        assert isinstance(cache, RedisCache)
        combiner: Any = cache._stops._combiner  # type: ignore[attr-defined]
        sizes: defaultdict[int, int] = defaultdict(int)
        asked = combiner._ask_for
        combiner._ask_for = lambda flock, *rest: (
            sizes.__setitem__(len(flock), sizes[len(flock)] + 1),
            asked(flock, *rest),
        )
        with ThreadPoolExecutor(19) as threads:
            writers = [threads.submit(write, number) for number in range(3)]
            results([threads.submit(read, number) for number in range(16)] + writers)
    assert not wrong
    assert outcomes[Outcome.HIT] > 100
    assert outcomes[Outcome.MISS] > 10
    assert near or max(sizes) > 4  # reads did share round trips
