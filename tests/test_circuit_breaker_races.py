"""Many threads at once."""

from __future__ import annotations

import itertools
import random
import sys
import threading
import time

from breaker_kit import (
    CLOSED,
    ENDS,
    LEGAL,
    SoftTimeLimitExceeded,
    by_hand,
    end_in,
    trip_somehow,
)

from jmcache.circuit_breaker import CircuitBreaker, Transition
from jmcache.errors import (
    RedisCircuitBreakerOpenError,
    RedisError,
)


def test_fifty_threads_with_every_kind_of_end_never_see_two_probes():
    """The checks above, in all orders that a second of real threads finds."""
    breaker = CircuitBreaker(3, 0.002, 1, name="hammer")
    told: list[Transition] = []
    breaker.on_change(told.append)
    count = threading.Lock()
    probes_out = most_out = 0
    stop = time.monotonic() + 1.0
    broken: list[BaseException] = []

    def ask(rng: random.Random) -> str:
        nonlocal probes_out, most_out
        caller = sys._getframe(1).f_locals  # a probe's has the permit it was given
        probing = "permit" in caller and caller["permit"] is caller["token"]
        if probing:
            with count:
                probes_out += 1
                most_out = max(most_out, probes_out)
        try:
            if rng.random() < 0.3:
                time.sleep(rng.random() * 0.005)  # longer than the breaker is open: a late result
            return end_in(rng.choice([*ENDS, "success", "failure"]))
        finally:
            if probing:
                with count:
                    probes_out -= 1

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
    assert most_out == 1
    assert len(told) > 20
    assert told[0].before is CLOSED
    assert all(one.after is then.before for one, then in itertools.pairwise(told))
    assert {(t.before, t.after) for t in told} == LEGAL
    trip_somehow(breaker)
    assert breaker.probe(end_in, "success") == "PONG"
    assert breaker.state is CLOSED
    breaker.close()
