"""LocalStore: what is kept, how long, and how much of it. The cache on top is tested elsewhere."""

from __future__ import annotations

import dis
import itertools
import os
import random
import sys
import threading
import time
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

from jmcache import local
from jmcache.deadline import Deadline
from jmcache.local import LocalStore
from jmcache.store import COOLING, Item
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


def item(name: bytes, blob: bytes = b"blob", ttl_ms: int = LONG_MS) -> Item:
    return Item(name, blob, ttl_ms, b"lease " + name)


def test_a_lease_is_one_holders_until_it_ends_or_is_given_back(clock: ManualClock) -> None:
    """Two holders are two loads; one that never ends is no load at all."""
    store = LocalStore(clock=clock)
    names, leases = [b"a"], [b"lease a"]

    def take(token: bytes, steal: bool = False) -> bool:
        ((taken,), found) = store.take(names, leases, token, 1000, [b"#"], DEADLINE, steal=steal)
        assert found.holders == [token if taken else b"first"]
        return taken

    assert take(b"first") is True
    assert take(b"second") is False
    assert take(b"first") is False, "nor does its holder take it twice"
    store.free(leases, b"second", 0, DEADLINE)
    assert store.read(names, [], leases, DEADLINE).holders == [b"first"]
    store.free(leases, b"first", 0, DEADLINE)
    assert take(b"first") is True
    clock.advance(1.0)
    assert take(b"second") is True
    assert take(b"first", steal=True) is True


def test_only_its_holder_stores_and_storing_frees_the_lease() -> None:
    """A load whose lease was voided by a delete would bring back what was deleted."""
    store = LocalStore()
    store.take([b"a", b"b"], [b"lease a", b"lease b"], b"mine", 1000, [], DEADLINE)
    store.delete([b"b"], DEADLINE, [b"lease b"])
    assert store.write_held([item(b"a"), item(b"b")], b"mine", DEADLINE) == [True, False]
    assert names_in(store, b"a", b"b") == {b"a"}
    assert store.read([], [], [b"lease a"], DEADLINE).holders == [None]
    assert store.write_held([item(b"a", b"again")], b"mine", DEADLINE) == [False]


def test_writing_and_deleting_void_the_lease() -> None:
    """What loads under it began before, and knows less."""
    store = LocalStore()
    leases = [b"lease a", b"lease b"]
    store.take([b"a", b"b"], leases, b"mine", 1000, [], DEADLINE)
    store.write([item(b"a")], [], DEADLINE)
    store.delete([b"b"], DEADLINE, leases[1:])
    assert store.read([], [], leases, DEADLINE).holders == [None, None]


def test_a_lease_that_cools_is_nobodys_for_so_long(clock: ManualClock) -> None:
    """A loader that failed is left alone for a while."""
    store = LocalStore(clock=clock)
    store.take([b"a"], [b"lease a"], b"mine", 1000, [], DEADLINE)
    store.free([b"lease a"], b"mine", 5000, DEADLINE)
    taken, found = store.take([b"a"], [b"lease a"], b"other", 1000, [], DEADLINE)
    assert (taken, found.holders) == ([False], [COOLING])
    clock.advance(5.0)
    assert store.take([b"a"], [b"lease a"], b"other", 1000, [], DEADLINE)[0] == [True]


def test_a_counter_begins_with_the_time_and_only_grows() -> None:
    """One that begins at 0 again makes old entries valid."""
    store = LocalStore()

    def counter() -> int | None:
        (stored,) = store.read([], [b"#"], [], DEADLINE).counters
        return None if stored is None else int(stored)

    assert counter() is None
    before = time.time_ns() // 1000
    store.seed([b"#"], DEADLINE)
    first = counter()
    assert first is not None
    assert before <= first <= time.time_ns() // 1000
    store.seed([b"#"], DEADLINE)
    assert counter() == first, "seeded once"
    moved = []
    for _ in range(100):
        store.move([b"#"], DEADLINE)
        moved.append(counter())
    assert moved == sorted(set(moved))
    assert moved[0] > first  # type: ignore[operator]


def test_neither_leases_nor_counters_take_memory_for_ever(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody's leases end in time, but those of keys that nobody asks for again stay."""
    monkeypatch.setattr(local, "_LEASES", 10)
    monkeypatch.setattr(local, "_COUNTERS", 10)
    store = LocalStore(clock=clock)
    for number in range(1000):
        store.take([b"a"], [b"%d" % number], b"mine", 1000, [], DEADLINE)
        store.move([b"tag %d" % number], DEADLINE)
        clock.advance(0.5)
        assert len(store._leases) <= 10
        assert len(store._counters) <= 10
    assert store.read([], [b"tag 999"], [], DEADLINE).counters != [None]


@pytest.mark.parametrize(
    "call",
    [
        lambda store, names, items: store.read(names, names, names, DEADLINE),
        lambda store, names, items: store.write(items, names, DEADLINE),
        lambda store, names, items: store.take(names, names, b"t", 1000, names, DEADLINE),
        lambda store, names, items: store.write_held(items, b"mine", DEADLINE),
        lambda store, names, items: store.free(names, b"mine", 5, DEADLINE),
        lambda store, names, items: store.move(names, DEADLINE),
        lambda store, names, items: store.seed(names, DEADLINE),
        lambda store, names, items: store.delete(names, DEADLINE, names),
    ],
    ids=["read", "write", "take", "write_held", "free", "move", "seed", "delete"],
)
def test_no_verb_leaves_the_lock_held_when_a_loop_of_it_is_broken_off(
    call: Callable[..., object],
) -> None:
    """As below; from 3.12 on a comprehension is a loop where it stands."""
    store = LocalStore(2)
    names = [b"%d" % number for number in range(4)]
    items = [item(name) for name in names]
    store.take(names, [item.lease for item in items], b"mine", 60_000, [], DEADLINE)
    for _ in interrupted_in_each_loop(lambda: call(store, names, items)):
        assert not store._lock.locked()


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
