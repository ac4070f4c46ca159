"""An interrupt at any point of a use of the near cache costs that call, and nothing else.

A signal's handler raises at any bytecode: Celery's soft time limit, a timer, Ctrl-C.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from interrupter import Interrupt, Interrupter

from jmcache import Cache, RedisCacheFactory, near


class Bench:
    """A cache whose near cache is on without anybody who listens, so that nothing comes between."""

    def __init__(self, settings: Callable[..., Any]) -> None:
        given = settings(near=True, operation_timeout=5.0)
        self.cache: Cache = RedisCacheFactory.create_cache(given)
        (backend,) = [
            one
            for one in RedisCacheFactory._backends.values()
            if one.connection.settings == given.connection_identity() or one.trackings
        ]
        self.coherence = self.cache._nearby._coherence
        for tracking in backend.trackings.values():
            tracking.stop()
        self.cache._health.stop()
        self.coherence.extend(self.coherence.open(), math.inf)
        self.near = self.cache._nearby._near
        self.version = 0

    def write(self) -> None:
        self.version += 1
        assert self.cache.set("k", [self.version], tags=["tag"])

    def keep(self) -> None:
        self.write()
        assert self.cache.get("k") == [self.version]
        assert len(self.near) == 1

    def heat(self) -> None:
        self.keep()
        for _ in range(3):
            self.cache.get("k")

    def check(self, where: str) -> None:
        """Nothing is held, and what is written is what is read, from this process."""
        assert self.coherence.lock.acquire(timeout=1.0), where
        self.coherence.lock.release()
        assert self.cache.invalidate_tags("tag")
        assert self.cache.get("k") is None, where
        self.write()
        for _ in range(4):
            assert self.cache.get("k") == [self.version], where
        assert len(self.near) == 1, f"nothing is kept any more after {where}"
        assert self.cache.clear()
        assert self.cache.get("k") is None, where
        assert (len(self.near), self.near.bytes_kept) == (0, 0), where


STEPS: dict[str, tuple[Callable[[Bench], object], Callable[[Bench], object]]] = {
    "a hit": (Bench.heat, lambda b: b.cache.get("k")),
    "a hit that is decoded": (Bench.keep, lambda b: [b.cache.get("k"), b.cache.get("k")]),
    "a read that is kept": (Bench.write, lambda b: b.cache.get("k")),
    "reads that are kept": (Bench.write, lambda b: b.cache.get_many(["k", "l"])),
    "set": (Bench.heat, lambda b: b.cache.set("k", ["new"], tags=["tag"])),
    "delete": (Bench.heat, lambda b: b.cache.delete("k")),
    "invalidate_tags": (Bench.heat, lambda b: b.cache.invalidate_tags("tag")),
    "clear": (Bench.heat, lambda b: b.cache.clear()),
}


@pytest.fixture
def bench(settings: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    # A write counts no longer when it is interrupted, in place of 10 s later: its frames are kept.
    monkeypatch.setattr(near, "_WRITING_S", 0.0)
    RedisCacheFactory.shutdown()
    yield Bench(settings)
    RedisCacheFactory.shutdown()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("file", ["/near.py", "/_nearby.py"])
@pytest.mark.parametrize(("before", "step"), STEPS.values(), ids=STEPS)
def test_an_interrupt_at_any_point_leaves_the_near_cache_true_and_in_use(
    before: Callable[[Bench], object],
    step: Callable[[Bench], object],
    file: str,
    bench: Bench,
) -> None:
    """A time limit would cost a worker its near cache, or have it show what is gone."""
    kept = []  # as an error tracker keeps exceptions, with their tracebacks and all frames
    point = 0
    while True:
        before(bench)
        with Interrupter(point, file) as interrupter:
            try:
                step(bench)
            except Interrupt as error:
                kept.append(error)
        if not interrupter.done:
            break
        point += 1
        bench.check(interrupter.where)
    assert point > 0
    assert len(kept) == point
