"""LocalStore: what is kept, how long, and how much of it. The cache on top is tested elsewhere."""

from __future__ import annotations

import dis
import itertools
import os
import random
import sys
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from jmcache.deadline import Deadline
from jmcache.local import LocalStore
from jmcache.testing import ManualClock

DEADLINE = Deadline(60.0)
LONG_MS = 300_000


def keep(store: LocalStore, *names: bytes, ttl_ms: int = LONG_MS) -> None:
    for name in names:
        store.set(name, b"blob of " + name, ttl_ms, DEADLINE)


def names_in(store: LocalStore, *names: bytes) -> set[bytes]:
    blobs = store.get_many(names, DEADLINE)
    return {name for name, blob in zip(names, blobs, strict=True) if blob is not None}


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "10", None])
def test_a_bound_that_cannot_hold_is_refused_by_name(wrong: object) -> None:
    """A typing error in a setting would otherwise show as a cache that never hits."""
    with pytest.raises(ValueError, match="max_entries"):
        LocalStore(wrong)  # type: ignore[arg-type]


def test_an_entry_is_there_until_its_last_millisecond_and_then_gone(clock: ManualClock) -> None:
    """A TTL that is off by one read shows an expired answer."""
    store = LocalStore(clock=clock)
    keep(store, b"a", ttl_ms=250)
    clock.advance(0.2499)
    assert store.get(b"a", DEADLINE) == b"blob of a"
    clock.advance(0.0001)
    assert store.get(b"a", DEADLINE) is None
    assert len(store) == 0


def test_writing_anew_gives_the_entry_its_new_ttl(clock: ManualClock) -> None:
    """The earlier, shorter life must not end the later one."""
    store = LocalStore(clock=clock)
    keep(store, b"a", ttl_ms=1_000)
    keep(store, b"a", ttl_ms=9_000)
    clock.advance(5.0)
    assert len(store) == 1
    assert names_in(store, b"a") == {b"a"}


def test_the_least_recently_used_entry_goes_and_a_read_is_a_use(clock: ManualClock) -> None:
    """Otherwise the most wanted entry is the first to be thrown out."""
    store = LocalStore(3, clock)
    keep(store, b"a", b"b", b"c")
    store.get(b"a", DEADLINE)
    keep(store, b"b")
    keep(store, b"d")
    assert names_in(store, b"a", b"b", b"c", b"d") == {b"a", b"b", b"d"}


def test_an_expired_entry_makes_room_before_a_live_one(clock: ManualClock) -> None:
    """A short-lived entry, recently used, must not outlive its time at a live one's cost."""
    store = LocalStore(3, clock)
    keep(store, b"old but live")
    keep(store, b"short", ttl_ms=10)
    keep(store, b"live")
    clock.advance(0.01)
    keep(store, b"new")
    assert names_in(store, b"old but live", b"live", b"new") == {b"old but live", b"live", b"new"}


def test_delete_counts_only_what_a_read_would_have_found(clock: ManualClock) -> None:
    """Redis counts the same way; a caller must not see which of the two it has."""
    store = LocalStore(clock=clock)
    keep(store, b"a", b"b")
    keep(store, b"expired", ttl_ms=1)
    clock.advance(1.0)
    assert store.delete([b"a", b"a", b"expired", b"never"], DEADLINE) == 1
    assert names_in(store, b"a", b"b") == {b"b"}


def test_bundles_do_what_the_single_verbs_do(clock: ManualClock) -> None:
    """get_many must keep the order asked for, or every caller gets its neighbour's value."""
    store = LocalStore(clock=clock)
    answers = store.set_many([(b"a", b"1", LONG_MS), (b"b", b"2", 1)], DEADLINE)
    assert answers == [None, None]
    clock.advance(1.0)
    assert store.get_many([b"b", b"a", b"c", b"a"], DEADLINE) == [None, b"1", None, b"1"]


def test_close_forgets_everything_and_may_be_repeated(clock: ManualClock) -> None:
    """A second close, from a context manager after a shutdown, is no error."""
    store = LocalStore(clock=clock)
    keep(store, b"a")
    store.close()
    store.close()
    store.drop_connections()
    store.ping(DEADLINE)
    assert len(store) == 0
    assert names_in(store, b"a") == set()


def test_rewriting_one_entry_for_ever_takes_no_more_memory(clock: ManualClock) -> None:
    """A service that refreshes the same few entries for weeks would otherwise leak."""
    store = LocalStore(10, clock)
    for _ in range(10_000):
        keep(store, b"a", b"b")
    assert len(store._expiries) <= 20
    clock.advance(LONG_MS / 1000)
    assert len(store) == 0


class StoreMachine(RuleBasedStateMachine):
    """The store beside a model that looks through everything at every step."""

    names = st.sampled_from([b"a", b"b", b"c", b"d", b"e", b"f"])
    blobs = st.binary(max_size=4)
    ttls = st.integers(min_value=1, max_value=3_000)

    @initialize(bound=st.integers(min_value=1, max_value=4))
    def begin(self, bound: int) -> None:
        self.clock = ManualClock()
        self.bound = bound
        self.store = LocalStore(bound, self.clock)
        self.model: OrderedDict[bytes, tuple[bytes, float]] = OrderedDict()

    @rule(seconds=st.sampled_from([0.001, 0.01, 0.5, 1.0, 2.5]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)
        now = self.clock()
        for name in [name for name, (_, at) in self.model.items() if now >= at]:
            del self.model[name]

    @rule(name=names, blob=blobs, ttl_ms=ttls)
    def set(self, name: bytes, blob: bytes, ttl_ms: int) -> None:
        self.store.set(name, blob, ttl_ms, DEADLINE)
        self.model_set(name, blob, ttl_ms)

    @rule(items=st.lists(st.tuples(names, blobs, ttls), max_size=5))
    def set_many(self, items: list[tuple[bytes, bytes, int]]) -> None:
        assert self.store.set_many(items, DEADLINE) == [None] * len(items)
        for item in items:
            self.model_set(*item)

    def model_set(self, name: bytes, blob: bytes, ttl_ms: int) -> None:
        self.model.pop(name, None)
        if len(self.model) == self.bound:
            self.model.popitem(last=False)
        self.model[name] = (blob, self.clock() + ttl_ms / 1000)

    @rule(name=names)
    def get(self, name: bytes) -> None:
        assert self.store.get(name, DEADLINE) == self.model_get(name)

    @rule(wanted=st.lists(names, max_size=5))
    def get_many(self, wanted: list[bytes]) -> None:
        found = [self.model_get(name) for name in wanted]
        assert self.store.get_many(wanted, DEADLINE) == found

    def model_get(self, name: bytes) -> bytes | None:
        if name not in self.model:
            return None
        self.model.move_to_end(name)
        return self.model[name][0]

    @rule(unwanted=st.lists(names, max_size=3))
    def delete(self, unwanted: list[bytes]) -> None:
        removed = sum(self.model.pop(name, None) is not None for name in unwanted)
        assert self.store.delete(unwanted, DEADLINE) == removed

    @rule()
    def count(self) -> None:
        assert len(self.store) == len(self.model)

    @invariant()
    def never_beyond_the_bound(self) -> None:
        if hasattr(self, "store"):
            assert len(self.store._entries) <= self.bound
            assert len(self.store._expiries) <= 2 * self.bound


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = hypothesis_settings(
    max_examples=150, stateful_step_count=40, deadline=None
)


def test_threads_never_see_another_names_blob_nor_one_entry_too_many() -> None:
    """Two threads in the dictionary at once would hand one customer another one's result."""
    store = LocalStore(8)
    together = threading.Barrier(4)

    def work(seed: int) -> int:
        dice = random.Random(seed)
        most = 0
        together.wait(timeout=5)
        for _ in range(2_000):
            name = b"%d" % dice.randrange(16)
            blob = store.get(name, DEADLINE)
            assert blob is None or blob.startswith(name + b":")
            store.set(name, name + b":%d" % seed, dice.randrange(1, 5), DEADLINE)
            if dice.random() < 0.1:
                store.delete([name], DEADLINE)
            most = max(most, len(store))
        return most

    switch_interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(max_workers=4) as threads:
            most = max(threads.map(work, range(4)))
    finally:
        sys.setswitchinterval(switch_interval)
    assert most <= 8


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


@pytest.mark.parametrize("verb", ["get_many", "set_many", "delete"])
def test_a_loop_broken_off_by_a_signal_handler_leaves_the_lock_free(verb: str) -> None:
    """From 3.12 on, a jump at the end of a loop may be no part of the ``with`` around it."""
    store = LocalStore(2)
    items = [(b"%d" % number, b"", LONG_MS) for number in range(4)]
    given = items if verb == "set_many" else [name for name, _, _ in items]
    keep(store, b"1", b"3")
    for _ in interrupted_in_each_loop(lambda: getattr(store, verb)(given, DEADLINE)):
        assert not store._lock.locked()


def test_a_child_forked_while_the_lock_is_held_starts_empty_and_works() -> None:
    """The lock's holder does not exist in the child: its first get would hang for ever."""
    store = LocalStore()
    keep(store, b"a")
    with store._lock:
        status = in_child(
            lambda: (
                len(store) == 0
                and store.set(b"b", b"1", LONG_MS, DEADLINE) is None
                and store.get(b"b", DEADLINE) == b"1"
            )
        )
    assert status == 0
    assert names_in(store, b"a", b"b") == {b"a"}


def in_child(check: Callable[[], bool]) -> int:
    """Return 0 when *check* holds in a forked child, its exit status otherwise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: "this process has threads"
        pid = os.fork()
    if pid == 0:
        threading.Timer(5.0, os._exit, (3,)).start()
        status = 2
        try:
            status = 0 if check() else 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
