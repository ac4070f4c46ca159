"""Any order of events: the breaker against a reference that fits on a screen."""

from __future__ import annotations

import math

import circuitbreaker
from breaker_kit import (
    CLOSED,
    ENDS,
    HALF_OPEN,
    OPEN,
    InFlight,
    end_in,
    run,
)
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from jmcache.circuit_breaker import CircuitBreaker, CircuitState, Transition
from jmcache.testing import ManualClock


class Reference:
    """What a breaker is, without threads, in as few lines as it takes."""

    def __init__(self, threshold: int, reset: float, most: int, clock: ManualClock) -> None:
        self.threshold, self.reset, self.most, self.clock = threshold, reset, most, clock
        self.state, self.era, self.failures, self.probe_at = CLOSED, 0, 0, 0.0
        self.out: dict[object, float] = {}  # permit: when it expires

    def free(self) -> bool:
        return sum(self.clock() < end for end in self.out.values()) < self.most

    def admit(self, early: bool = False, lease: float = math.inf) -> object:
        if self.state is CLOSED:
            return self.era
        if self.state is OPEN and (early or self.clock() >= self.probe_at):
            self.go(HALF_OPEN)
        if self.state is OPEN or not self.free():
            return None
        token = object()
        self.out[token] = self.clock() + lease
        return token

    def go(self, state: CircuitState) -> None:
        self.state, self.era, self.out = state, self.era + 1, {}
        if state is OPEN:
            self.probe_at = self.clock() + self.reset
        if state is CLOSED:
            self.failures = 0

    def settle(self, token: object, how: str) -> None:
        if isinstance(token, int):
            probing = False
            valid = token == self.era
        else:
            probing = True
            valid = self.clock() < self.out.pop(token, -1.0)
        if not valid:
            return
        if how in ("failure", "fatal"):
            self.failures += 1
            if probing or how == "fatal" or self.failures >= self.threshold:
                self.go(OPEN)
        elif how == "success" or (how == "answered" and probing):
            self.failures = 0
            if probing:
                self.go(CLOSED)


class BreakerMachine(RuleBasedStateMachine):
    """Any order of calls that overlap, reports by hand and time: the breaker is its reference."""

    calls = Bundle("calls")

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.breaker = CircuitBreaker(2, 30.0, 2, self.clock, name="machine")
        self.model = Reference(2, 30.0, 2, self.clock)
        self.by_hand: list[object] = []
        self.flying: set[InFlight] = set()
        self.told: list[Transition] = []
        self.breaker.on_change(self.told.append)

    @rule(target=calls, early=st.booleans())
    def begin(self, early: bool) -> tuple[InFlight, object]:
        call = InFlight(self.breaker.probe if early else self.breaker.call)
        self.flying.add(call)
        token = self.model.admit(early)
        assert call.refused == (token is None)
        return call, token

    @rule(pair=consumes(calls), how=st.sampled_from(list(ENDS)))
    def end(self, pair: tuple[InFlight, object], how: str) -> None:
        call, token = pair
        call.end(how)
        self.flying.discard(call)
        if token is not None:
            self.model.settle(token, how)

    @rule(how=st.sampled_from(["failure", "failure", *ENDS]))
    def call_at_once(self, how: str) -> None:
        run(self.breaker.call, end_in, how)
        token = self.model.admit()
        if token is not None:
            self.model.settle(token, how)

    @rule()
    def ask_by_hand(self) -> None:
        token = self.model.admit(lease=30.0)
        assert self.breaker.is_allowed() == (token is not None)
        if token is not None:
            self.by_hand.append(token)

    @rule(how=st.sampled_from(list(ENDS)))
    def report_by_hand(self, how: str) -> None:
        error = ENDS[how]
        self.breaker.record_failure(error()) if error else self.breaker.record_success()
        if self.by_hand:
            self.model.settle(self.by_hand.pop(), how)
        elif self.model.state is CLOSED:
            self.model.settle(self.model.era, how)

    @rule(seconds=st.sampled_from([0.25, 15.0, 30.0, 100.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def shows_what_the_reference_knows(self) -> None:
        model, at = self.model, self.clock()
        over = model.state is OPEN and at >= model.probe_at
        assert self.breaker.state is (HALF_OPEN if over else model.state)
        assert self.breaker.failures == model.failures
        refused = model.state is not CLOSED and not over
        if model.state is HALF_OPEN:
            refused = not model.free()
        assert self.breaker.is_open == refused
        left = max(0.0, model.probe_at - at) if model.state is OPEN else 0.0
        assert self.breaker.retry_after_s == left
        shown = circuitbreaker.CircuitBreakerMonitor.get("machine")
        assert (shown.state, shown.failure_count) == (self.breaker.state, model.failures)
        # The era is one per change, so it also counts what was told.
        assert len(self.told) == model.era

    def teardown(self) -> None:
        for call in self.flying:
            call.end("foreign")
        self.breaker.close()


TestBreakerAgainstItsReference = BreakerMachine.TestCase
TestBreakerAgainstItsReference.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None
)
