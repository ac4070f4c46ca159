"""Many threads at once: in all orders that a second or two of them find."""

from __future__ import annotations

import contextlib
import itertools
import random
import sys
import threading
import time
from collections.abc import Iterator

from breaker_kit import (
    CLOSED,
    ENDS,
    LEGAL,
    WAIT_S,
    SoftTimeLimitExceeded,
    by_hand,
    end_in,
    run,
    trip_somehow,
)

from jmcache.circuit_breaker import CircuitBreaker, Transition
from jmcache.errors import (
    RedisCircuitBreakerOpenError,
    RedisError,
)
from jmcache.testing import ManualClock


class Probes:
    """Counts those that are out at one time. Called by what is guarded, as its first act."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.out = self.most = self.all = 0

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        # From here over contextlib and who is guarded to the breaker: a probe has its permit there.
        caller = sys._getframe(3).f_locals
        probing = "permit" in caller and caller["permit"] is caller["token"]
        if probing:
            with self.lock:
                self.out += 1
                self.all += 1
                self.most = max(self.most, self.out)
        try:
            yield
        finally:
            if probing:
                with self.lock:
                    self.out -= 1


def test_sixteen_threads_let_go_together_never_see_two_probes():
    """B1, B2: at the very moment the open time is over, and a probe that is cancelled then."""
    seconds, parties = 2.0, 16
    clock, chance, probes = ManualClock(), random.Random(3), Probes()
    breaker = CircuitBreaker(1, 30.0, 1, clock, name="rounds", slow_call_threshold=5.0)
    over_at = time.monotonic() + seconds
    rounds, over = 0, False
    broken: list[BaseException] = []
    ends = [*ENDS, "foreign", "interrupt", "saturated"]  # most of them settle nothing

    def at_the_bell() -> None:
        nonlocal rounds, over
        rounds += 1
        over = time.monotonic() > over_at
        # Everybody is here, so nothing is out: no permit may be held.
        assert breaker._moment.held(clock()) == ()
        if breaker.state is CLOSED:
            run(breaker.call, end_in, "fatal")
        clock.advance(chance.choice([0.0, 30.0, 30.0, 1e6]))

    bell = threading.Barrier(parties, at_the_bell)

    def ask(rng: random.Random) -> str:
        with probes.one():
            if rng.random() < 0.3:
                time.sleep(0)  # let the others have their turn
            if rng.random() < 0.1:
                clock.advance(10.0)  # slow
            return end_in(rng.choice(ends))

    def work(seed: int) -> None:
        rng = random.Random(seed)
        verb = breaker.probe if seed % 4 == 0 else breaker.call
        try:
            while True:
                bell.wait(WAIT_S)
                if over:
                    return
                for _ in range(3):
                    run(verb, ask, rng)
        except BaseException as error:  # noqa: BLE001  # the main thread asks for it
            broken.append(error)
            bell.abort()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(parties)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert broken == []
    assert probes.most == 1
    assert probes.all > 50
    assert rounds > 50
    clock.advance(30.0)
    assert breaker.call(end_in, "success") == "PONG"
    assert breaker.state is CLOSED
    breaker.close()


def test_fifty_threads_with_every_kind_of_end_never_see_two_probes():
    """B1, B2, B8: every rule at once, with shares, late results and lost permits."""
    breaker = CircuitBreaker(
        3,
        0.002,
        1,
        failure_rate_threshold=0.5,
        slow_call_threshold=0.003,
        rate_window=0.05,
        rate_min_calls=3,
        name="hammer",
    )
    told: list[Transition] = []
    breaker.on_change(told.append)
    probes = Probes()
    stop = time.monotonic() + 1.0
    broken: list[BaseException] = []

    def ask(rng: random.Random) -> str:
        with probes.one():
            if rng.random() < 0.3:
                time.sleep(rng.random() * 0.005)  # longer than the breaker is open: a late result
            return end_in(rng.choice([*ENDS, "success", "failure"]))

    def hammer(seed: int) -> None:
        rng = random.Random(seed)
        verb = [breaker.call, breaker.call, breaker.call, breaker.probe][seed % 4]
        while time.monotonic() < stop:
            try:
                if rng.random() < 0.05:
                    by_hand(end_in, rng.choice([*ENDS]), breaker=breaker)
                else:
                    verb(ask, rng)
            except RedisCircuitBreakerOpenError:
                time.sleep(0.0005)
            except (RedisError, SoftTimeLimitExceeded, KeyboardInterrupt):
                pass
            except BaseException as error:  # noqa: BLE001  # the main thread asks for it
                broken.append(error)
                return

    threads = [threading.Thread(target=hammer, args=(seed,)) for seed in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert broken == []
    assert probes.most == 1
    assert len(told) > 20
    assert told[0].before is CLOSED
    assert all(one.after is then.before for one, then in itertools.pairwise(told))
    assert {(t.before, t.after) for t in told} == LEGAL
    trip_somehow(breaker)
    assert breaker.probe(end_in, "success") == "PONG"
    assert breaker.state is CLOSED
    breaker.close()
