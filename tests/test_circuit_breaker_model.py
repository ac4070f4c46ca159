"""Any order of events: the breaker against a reference that fits on a screen."""

from __future__ import annotations

import math
import os
import signal
import threading
import warnings

import circuitbreaker
from breaker_kit import CLOSED, ENDS, HALF_OPEN, OPEN, WAIT_S, InFlight, end_in, run
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from jmcache.circuit_breaker import CircuitBreaker, CircuitState, Transition
from jmcache.testing import ManualClock

RESET_S, PROBES = 30.0, 2
FAILING, SLOW, SLOW_S, WINDOW_S, FEWEST = 0.5, 0.75, 1.0, 10.0, 4
FAILS = ("failure", "fatal")
SPEAKS = ("success", "answered", *FAILS)  # the others say nothing about Redis
Token = tuple[int, float, object]  # its era, when it was given, and the permit it is


class Ended(list[tuple[float, bool, bool]]):
    """How calls ended: when their tenth of the window began, whether they failed, were slow."""

    def count(self, at: float, failed: bool, slow: bool) -> None:
        step = self[-1][0] if self else -math.inf
        self.append((step if at < step + WINDOW_S / 10 else at, failed, slow))

    def share(self, of: int, at: float) -> float:
        known = self.known(of, at)
        return sum(known) / len(known) if len(known) >= FEWEST else 0.0

    def known(self, of: int, at: float) -> list[bool]:
        return [end[of] for end in self if end[0] > at - WINDOW_S]


class Reference:
    """What a breaker is, without threads."""

    def __init__(self, row: int, clock: ManualClock) -> None:
        self.row, self.clock, self.era, self.failures = row, clock, -1, 0
        self.go(CLOSED)

    def go(self, state: CircuitState) -> None:
        self.state, self.era, self.permits, self.ended = state, self.era + 1, {}, Ended()
        self.probe_at, self.failures = self.clock() + RESET_S, self.failures * (state is not CLOSED)

    def free(self) -> bool:
        return sum(self.clock() < over for over in self.permits.values()) < PROBES

    def admit(self, early: bool = False, lease_s: float = math.inf) -> Token | None:
        if self.state is OPEN and (early or self.clock() >= self.probe_at):
            self.go(HALF_OPEN)
        if self.state is OPEN or (self.state is HALF_OPEN and not self.free()):
            return None
        token = self.era, self.clock(), object()
        self.permits[token] = self.clock() + lease_s
        return token

    def settle(self, token: Token, how: str) -> None:
        at, over = self.clock(), self.permits.pop(token, math.inf)
        if token[0] != self.era or how not in SPEAKS or (self.state is HALF_OPEN and at >= over):
            return
        failed, slow = how in FAILS, at - token[1] > SLOW_S
        self.failures += failed
        if self.state is HALF_OPEN:
            self.go(OPEN if failed or slow else CLOSED)
        elif how != "answered":
            self.failures *= failed
            self.ended.count(at, failed, slow)
            shares = self.ended.share(1, at) * failed, self.ended.share(2, at) * slow
            if (
                how == "fatal"
                or self.failures >= self.row
                or shares[0] >= FAILING
                or shares[1] >= SLOW
            ):
                self.go(OPEN)


def make(row: int, clock: ManualClock) -> CircuitBreaker:
    return CircuitBreaker(
        row,
        RESET_S,
        PROBES,
        clock,
        failure_rate_threshold=FAILING,
        slow_call_threshold=SLOW_S,
        slow_call_rate_threshold=SLOW,
        rate_window=WINDOW_S,
        rate_min_calls=FEWEST,
        name="machine",
    )


def agree(breaker: CircuitBreaker, model: Reference) -> None:
    """Everything that can be seen of the one is what the other knows."""
    at = model.clock()
    over = model.state is OPEN and at >= model.probe_at
    assert breaker.state is (HALF_OPEN if over else model.state)
    assert breaker.failures == model.failures
    refused = model.state is OPEN and not over
    if model.state is HALF_OPEN:
        refused = not model.free()
    assert breaker.is_open == refused
    left_s = max(0.0, model.probe_at - at) if model.state is OPEN else 0.0
    assert breaker.retry_after_s == left_s
    shown = circuitbreaker.CircuitBreakerMonitor.get("machine")
    assert (shown.state, shown.failure_count) == (breaker.state, model.failures)
    window = breaker._moment.window
    assert (window is None) == (model.state is not CLOSED)
    if window is not None:
        failed, slow = (model.ended.known(of, at) for of in (1, 2))
        assert window.tally(at) == (len(failed), sum(failed), sum(slow))


def call_at_once(
    breaker: CircuitBreaker, model: Reference, how: str, seconds: float, early: bool = False
) -> None:
    def func() -> str:
        model.clock.advance(seconds)
        return end_in(how)

    token = model.admit(early)
    run(breaker.probe if early else breaker.call, func)
    if token is not None:
        model.settle(token, how)


HOW = st.sampled_from(["failure", "success", *ENDS])
TOOK_S = st.sampled_from([0.0, 0.0, SLOW_S, 2 * SLOW_S])


class BreakerMachine(RuleBasedStateMachine):
    """Calls that overlap and are late, reports by hand, time, forks: the breaker is its model."""

    calls = Bundle("calls")

    @initialize(row=st.sampled_from([3, 1000]))  # or the shares would hardly come into play
    def begin_closed(self, row: int) -> None:
        self.clock = ManualClock()
        self.breaker = make(row, self.clock)
        self.model = Reference(row, self.clock)
        self.by_hand: list[Token] = []
        self.flying: set[InFlight] = set()
        self.told: list[Transition] = []
        self.breaker.on_change(self.told.append)

    @rule(target=calls, early=st.booleans())
    def begin(self, early: bool) -> tuple[InFlight, Token | None]:
        call = InFlight(self.breaker.probe if early else self.breaker.call)
        self.flying.add(call)
        token = self.model.admit(early)
        assert call.refused == (token is None)
        return call, token

    @rule(pair=consumes(calls), how=HOW)
    def end(self, pair: tuple[InFlight, Token | None], how: str) -> None:
        call, token = pair
        call.end(how)
        self.flying.discard(call)
        if token is not None:
            self.model.settle(token, how)

    @rule(how=HOW, seconds=TOOK_S, early=st.booleans())
    def call(self, how: str, seconds: float, early: bool) -> None:
        call_at_once(self.breaker, self.model, how, seconds, early)

    @rule(hows=st.lists(HOW, min_size=3, max_size=8))
    def call_several(self, hows: list[str]) -> None:
        for how in hows:
            call_at_once(self.breaker, self.model, how, 0.0)

    @rule()
    def ask_by_hand(self) -> None:
        token = self.model.admit(lease_s=RESET_S)
        assert self.breaker.is_allowed() == (token is not None)
        if token is not None:
            self.by_hand.append(token)

    @rule(how=HOW)
    def report_by_hand(self, how: str) -> None:
        error = ENDS[how]
        self.breaker.record_failure(error()) if error else self.breaker.record_success()
        if self.by_hand:
            self.model.settle(self.by_hand.pop(), how)
        elif self.model.state is CLOSED:
            self.model.settle((self.model.era, math.inf, None), how)

    @rule()
    def ask_by_hand_and_die(self) -> None:
        token = self.model.admit(lease_s=RESET_S)
        allowed: list[bool] = []
        thread = threading.Thread(target=lambda: allowed.append(self.breaker.is_allowed()))
        thread.start()
        thread.join(WAIT_S)
        assert allowed == [token is not None]
        self.model.permits.pop(token, None)

    @rule(seconds=st.sampled_from([0.25, SLOW_S, 9.0, WINDOW_S, 29.0, RESET_S, 1e9]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(hows=st.lists(HOW, max_size=6))
    def fork(self, hows: list[str]) -> None:
        with warnings.catch_warnings():
            # 3.12 warns of forks beside threads: that is what is tried here.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:  # no hypothesis from here on
            verdict = 1
            try:
                signal.alarm(WAIT_S)
                self.breaker.record_failure()  # on nothing that the parent admitted
                model = Reference(self.model.row, self.clock)
                model.settle((model.era, math.inf, None), "failure")
                for how in hows:
                    agree(self.breaker, model)
                    call_at_once(self.breaker, model, how, 2 * SLOW_S)
                agree(self.breaker, model)
                verdict = 0
            finally:
                os._exit(verdict)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    @invariant()
    def agrees_with_the_model(self) -> None:
        agree(self.breaker, self.model)
        assert len(self.told) == self.model.era  # one for each change, and each one told

    def teardown(self) -> None:
        for call in self.flying:
            call.end("foreign")
        # No permit leaks, whatever came before: everything is over, and Redis answers.
        self.breaker._by_hand.admissions.clear()
        assert self.breaker.probe(end_in, "success") == "PONG"
        self.breaker.close()


TestBreakerAgainstItsReference = BreakerMachine.TestCase
TestBreakerAgainstItsReference.settings = settings(
    max_examples=50, stateful_step_count=40, deadline=None
)
