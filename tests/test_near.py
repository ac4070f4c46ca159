"""What a process keeps of Redis: true while it is handed out, bounded, and nobody's to change."""

from __future__ import annotations

import gc
import math
import os
import random
import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from jmcache.near import Coherence, NearCache, NearEntry
from jmcache.testing import ManualClock

SPACE = b"test:v1:#"
TAG = b"test:v1:tag#"
LAG = 0.1
MIB = 1024 * 1024


def name(number: int) -> bytes:
    return b"test:v1:key:%032x" % number


@pytest.fixture
def coherence(clock: ManualClock) -> Coherence:
    """Somebody listens, for the next hour."""
    coherence = Coherence(SPACE, clock=clock)
    coherence.extend(coherence.open(), clock() + 3600.0)
    return coherence


@pytest.fixture
def near(coherence: Coherence, clock: ManualClock) -> NearCache:
    return NearCache(coherence, MIB, 30.0, clock=clock)


def entry(
    number: int,
    body: bytes = b"body",
    *,
    until: float = math.inf,
    tags: tuple[bytes, ...] = (),
) -> NearEntry:
    return NearEntry(name(number), body, until=until, created_s=0.0, counters=tags)


def put(coherence: Coherence, near: NearCache, new: NearEntry) -> bool:
    token = coherence.begin()
    assert token is not None
    return near.insert(token, new)


def body_of(near: NearCache, number: int) -> bytes | None:
    found = near.get(name(number))
    return None if found is None else found.body


# What is kept


def test_an_entry_that_was_read_is_found(coherence, near):
    """Else every read goes to Redis."""
    assert put(coherence, near, entry(1, b"one"))
    assert body_of(near, 1) == b"one"
    assert body_of(near, 2) is None


def test_a_token_from_before_an_invalidation_keeps_nothing(coherence, near):
    """The value was on its way while another took its place: it would stay for its whole TTL."""
    token = coherence.begin()
    coherence.invalidate([name(1)])
    assert not near.insert(token, entry(1))
    assert near.insert(token, entry(2)), "the other name was not invalidated"
    assert put(coherence, near, entry(1)), "read after it"


def test_a_token_from_before_a_tag_was_invalidated_keeps_nothing_with_it(coherence, near):
    """The entry was valid when it was read, and is not any more."""
    token = coherence.begin()
    coherence.invalidate([TAG])
    assert not near.insert(token, entry(1, tags=(TAG,)))
    assert near.insert(token, entry(1))


@pytest.mark.parametrize("end", ["flush", "close", "open", "clear"])
def test_a_token_from_before_everything_was_forgotten_keeps_nothing(coherence, near, clock, end):
    """What happened while nobody listened, nobody told."""
    token = coherence.begin()
    if end == "clear":
        coherence.invalidate([b"test:v1:other", SPACE])
    else:
        getattr(coherence, end)()
    coherence.extend(coherence.open() if end in ("close", "open") else 1, clock() + 1.0)
    assert not near.insert(token, entry(1))


@pytest.mark.parametrize("end", ["flush", "close", "open", "clear"])
def test_nothing_outlives_the_end_of_listening(coherence, near, clock, end):
    """A FLUSHDB, a clear() or a connection that was lost: every entry may be wrong."""
    put(coherence, near, entry(1))
    if end == "clear":
        coherence.invalidate([SPACE])
    else:
        getattr(coherence, end)()
    coherence.extend(coherence.open() if end in ("close", "open") else 1, clock() + 1.0)
    assert body_of(near, 1) is None
    assert near.bytes_kept == 0


def test_an_invalidation_takes_the_name_alone(coherence, near):
    """Else one busy key empties the cache."""
    put(coherence, near, entry(1))
    put(coherence, near, entry(2))
    coherence.invalidate([name(1), b"test:v1:#lease{x}", b"whatever"])
    assert body_of(near, 1) is None
    assert body_of(near, 2) == b"body"


def test_a_tag_takes_all_that_depend_on_it(coherence, near):
    """invalidate_tags() is one counter in Redis, whose name is all that is told."""
    put(coherence, near, entry(1, tags=(TAG,)))
    put(coherence, near, entry(2, tags=(b"test:v1:other#", TAG)))
    put(coherence, near, entry(3, tags=(b"test:v1:other#",)))
    coherence.invalidate([TAG])
    assert [body_of(near, number) for number in (1, 2, 3)] == [None, None, b"body"]


def test_an_entry_goes_with_its_life_in_redis(coherence, near, clock):
    """An expired entry is gone for everybody else."""
    put(coherence, near, entry(1, until=clock() + 2.0))
    clock.advance(1.9)
    assert body_of(near, 1) is not None
    clock.advance(0.2)
    assert body_of(near, 1) is None
    assert len(near) == 0


def test_no_entry_is_kept_longer_than_the_limit(coherence, near, clock):
    """The backstop, should an invalidation be lost in a way that nobody thought of."""
    put(coherence, near, entry(1, until=clock() + 300.0))
    clock.advance(29.9)
    assert body_of(near, 1) is not None
    clock.advance(0.2)
    assert body_of(near, 1) is None


def test_nothing_is_handed_out_or_kept_past_the_last_word(clock):
    """A listener that hears nothing cannot tell silence from a cut cable."""
    coherence = Coherence(SPACE, clock=clock)
    near = NearCache(coherence, MIB, 30.0, clock=clock)
    woken = []
    coherence.wake = lambda: woken.append(clock())
    assert coherence.begin() is None
    session = coherence.open()
    coherence.extend(session, clock() + LAG)
    token = coherence.begin()
    put(coherence, near, entry(1))
    clock.advance(LAG)
    assert body_of(near, 1) is None
    assert not near.insert(token, entry(2))
    assert len(woken) == 2, "the listener is to know that it is wanted"
    coherence.extend(session, clock() + LAG)
    assert body_of(near, 1) == b"body", "it heard everything in between, only later"


def test_an_old_session_extends_nothing(coherence, near, clock):
    """A listener that was given up may come back from a long system call."""
    old = coherence.open()
    new = coherence.open()
    assert not coherence.extend(old, clock() + 1.0), "whoever says so is to know"
    assert coherence.begin() is None
    assert coherence.extend(new, clock() + 1.0)
    assert coherence.begin() is not None
    coherence.extend(new, clock() + 0.5)
    clock.advance(0.7)
    assert coherence.begin() is not None, "an answer that came late shortens nothing"


def test_the_end_of_an_old_session_ends_nothing(coherence, near, clock):
    """Its thread may come to its end when another listens already, and nobody would believe it."""
    old = coherence.open()
    new = coherence.open()
    coherence.extend(new, clock() + 1.0)
    put(coherence, near, entry(1))
    coherence.close(old)
    assert body_of(near, 1) == b"body"
    coherence.extend(new, clock() + 2.0)
    clock.advance(1.5)
    assert body_of(near, 1) == b"body"
    coherence.close(new)
    assert body_of(near, 1) is None


# Writes of this process


def test_nothing_is_kept_of_a_name_while_it_is_written(coherence, near):
    """A reader got the old value before the write came through, and would keep it after."""
    put(coherence, near, entry(1))
    with coherence.writing([name(1)]):
        assert body_of(near, 1) is None
        assert not put(coherence, near, entry(1)), "the old value, perhaps"
        token = coherence.begin()
        assert put(coherence, near, entry(2))
    assert not near.insert(token, entry(1))
    assert put(coherence, near, entry(1))


@pytest.mark.parametrize("counter", [SPACE, TAG])
def test_nothing_that_depends_on_a_counter_is_kept_while_it_is_moved(coherence, near, counter):
    """clear() and invalidate_tags() hold at once in the process that calls them."""
    put(coherence, near, entry(1, tags=(TAG,)))
    with coherence.writing([counter]):
        assert body_of(near, 1) is None
        token = coherence.begin()
        assert not near.insert(token, entry(1, tags=(TAG,)))
    assert not near.insert(token, entry(1, tags=(TAG,)))
    assert put(coherence, near, entry(1, tags=(TAG,)))


def test_writes_of_one_name_may_overlap(coherence, near):
    """The first that ends must not let in what the second is about to replace."""
    first, second = coherence.writing([name(1)]), coherence.writing([name(1)])
    with first:
        second.__enter__()
    assert not put(coherence, near, entry(1))
    second.__exit__(None, None, None)
    assert put(coherence, near, entry(1))


def test_a_writer_that_was_torn_away_keeps_nothing_out(coherence, near):
    """An exception from a signal handler may skip every clean-up there is."""
    writing = coherence.writing([name(1)])
    writing.__enter__()
    assert not put(coherence, near, entry(1))
    del writing
    gc.collect()
    assert put(coherence, near, entry(1))


def test_a_writer_whose_traceback_is_kept_keeps_nothing_out_for_long(coherence, near, clock):
    """Error trackers keep every frame an exception has passed through, for days."""
    writing = coherence.writing([name(1)])
    writing.__enter__()
    clock.advance(9.9)
    assert not put(coherence, near, entry(1))
    clock.advance(0.2)
    assert put(coherence, near, entry(1))


def test_a_write_through_one_cache_reaches_all_of_the_process(coherence, near, clock):
    """Two caches of one namespace in one process are one writer to their caller."""
    other = NearCache(coherence, MIB, 30.0, clock=clock)
    put(coherence, other, entry(1))
    with coherence.writing([name(1)]):
        pass
    assert body_of(other, 1) is None


# Bounds


def test_the_least_recently_used_entries_make_room(coherence, near):
    """An unbounded cache is a leak."""
    body = bytes(100_000)
    for number in range(10):
        put(coherence, near, entry(number, body))
    assert near.bytes_kept <= MIB
    assert body_of(near, 0) is not None
    put(coherence, near, entry(10, body))
    assert body_of(near, 1) is None
    assert body_of(near, 0) is not None, "used since"
    assert len(near) == 10


def test_an_entry_larger_than_everything_is_not_kept(coherence, near):
    """It would throw out all others, and then itself."""
    put(coherence, near, entry(1))
    assert not put(coherence, near, entry(2, bytes(MIB)))
    assert body_of(near, 1) is not None


def test_replacing_and_forgetting_leave_nothing_behind(coherence, near, clock):
    """What is counted and not there makes the cache smaller, day by day."""
    for number in range(200):
        put(coherence, near, entry(number % 7, bytes(1000 * (number % 5)), tags=(TAG,)))
        found = near.get(name(number % 3))
        if found is not None:
            near.value(found, bytes.decode)
    coherence.invalidate([name(number) for number in range(7)])
    assert (len(near), near.bytes_kept) == (0, 0)
    assert not near._dependents
    assert not near._hot
    assert near._hot_bytes == 0


@pytest.mark.parametrize("limit", [64 * MIB, 1024 * MIB])
def test_memory_stays_within_bounds_for_ten_thousand_entries(limit):
    """Issue: 10,000 entries of 5 KB within 1.3 times the bytes stored, hot values included."""
    rows = [
        {"job_id": f"job-{n:06}", "score": n / 7, "skills": ["python", "sql"]} for n in range(60)
    ]
    body = repr(rows).encode()[:5000].ljust(5000)
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        coherence = Coherence(SPACE)
        coherence.extend(coherence.open(), math.inf)
        near = NearCache(coherence, limit, 30.0)
        for number in range(10_000):
            put(coherence, near, entry(number, body + b"%d" % number))
        for number in range(9_000, 10_000):
            for _ in range(2):
                found = near.get(name(number))
                near.value(found, lambda _: [dict(row) for row in rows * 2])
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(near) == 10_000
    assert len(near._hot) > 100
    assert after - before < 1.3 * 10_000 * 5_000


# Values


def test_of_a_cache_that_holds_little_every_value_stays_decoded(coherence, clock):
    """A thousand hot results are one service's day; decoding one takes twenty times a hit."""
    near = NearCache(coherence, 64 * MIB, 60.0, clock=clock)
    for number in range(1_000):
        put(coherence, near, entry(number, bytes(5_000)))
    for _ in range(3):
        for number in range(1_000):
            near.value(near.get(name(number)), lambda body: body[:10])
    assert len(near._hot) == 1_000
    for number in range(1_000, 4_000):  # no longer so few
        put(coherence, near, entry(number, bytes(5_000)))
    assert near._hot_bytes <= MIB


def test_the_value_of_a_hot_entry_is_decoded_once_and_shared(coherence, near):
    """Decoding is most of what a hit would cost."""
    put(coherence, near, entry(1))
    decoded = []

    def decode(body: bytes) -> list[bytes]:
        decoded.append(body)
        return [body]

    values = [near.value(near.get(name(1)), decode) for _ in range(5)]
    assert len(decoded) == 2
    assert values == [[b"body"]] * 5
    assert values[2] is values[4]
    for value in values:
        with pytest.raises(TypeError, match="deepcopy"):
            value.append(1)


def test_a_value_that_can_be_changed_is_never_shared(coherence, near):
    """One caller's change would be in everybody's results."""

    class Match:
        score = 1

    put(coherence, near, entry(1))
    values = [near.value(near.get(name(1)), lambda _: [Match()]) for _ in range(4)]
    assert len({id(value[0]) for value in values}) == 4
    values[0].append(1)
    assert [len(value) for value in values] == [2, 1, 1, 1]


def test_few_values_are_kept_decoded(coherence, near):
    """Decoded they take seven times the memory."""
    for number in range(100):
        put(coherence, near, entry(number, bytes(4000)))
        for _ in range(3):
            near.value(near.get(name(number)), lambda body: body[:10])
    assert near._hot_bytes <= MIB / 64
    assert list(near._hot) == [name(number) for number in range(96, 100)]
    again = []
    near.value(near.get(name(0)), lambda body: again.append(body))
    assert again, "it had to make room"


def test_the_more_a_cache_holds_the_more_values_stay_decoded(coherence, clock):
    """A gigabyte of entries with a megabyte of values decodes nearly every hit."""
    near = NearCache(coherence, 512 * MIB, 60.0, clock=clock)
    large, small = bytes(1_000_000), bytes(100_000)
    for number in range(100):
        put(coherence, near, entry(number, large))
    for number in range(100, 120):
        put(coherence, near, entry(number, small))
        for _ in range(2):
            near.value(near.get(name(number)), lambda body: body[:10])
    assert len(near._hot) == 20


def test_a_value_that_would_take_all_the_room_is_not_kept_decoded(coherence, near):
    """All others would make room for it, and then it for the next."""
    put(coherence, near, entry(1))
    put(coherence, near, entry(2, bytes(100_000)))
    for number in (1, 2):
        for _ in range(3):
            near.value(near.get(name(number)), lambda body: body[:10])
    assert list(near._hot) == [name(1)]


def test_a_value_decoded_of_what_is_gone_by_then_is_not_kept(coherence, near):
    """It would count for good, and be found by nobody."""
    put(coherence, near, entry(1))
    found = near.get(name(1))
    coherence.invalidate([name(1)])
    for _ in range(3):
        assert near.value(found, bytes.decode) == "body"
    assert (len(near._hot), near._hot_bytes) == (0, 0)


def test_a_value_that_two_decode_at_once_counts_once(coherence, near):
    """Else what is kept decoded shrinks, hit by hit."""
    put(coherence, near, entry(1))
    found = near.get(name(1))
    near.value(found, bytes.decode)

    def decode_beside_another(body: bytes) -> str:
        near.value(found, bytes.decode)
        return body.decode()

    near.value(found, decode_beside_another)
    assert near._hot_bytes == len(b"body")


# Threads and processes


def test_readers_and_an_invalidator_do_not_trip_over_each_other(coherence, clock):
    """A hit takes no lock: entries come and go while they are looked at."""
    near = NearCache(coherence, 40_000, 30.0, clock=clock)
    start = threading.Barrier(5)
    over = threading.Event()

    def read(seed: int) -> int:
        choose = random.Random(seed)
        start.wait()
        found = 0
        while not over.is_set():
            number = choose.randrange(100)
            hit = near.get(name(number))
            if hit is not None:
                found += 1
                assert near.value(hit, bytes.decode) == f"{number:01000}"
            else:
                put(coherence, near, entry(number, b"%01000d" % number, tags=(TAG,)))
        return found

    with ThreadPoolExecutor(4) as threads:
        readers = [threads.submit(read, seed) for seed in range(4)]
        start.wait()
        for round_ in range(300):
            coherence.invalidate(
                [name(round_ % 100), TAG] if round_ % 10 == 0 else [name(round_ % 100)]
            )
        over.set()
        assert sum(reader.result(timeout=30) for reader in readers) >= 0
    coherence.invalidate([SPACE])
    assert (near.bytes_kept, near._hot_bytes, len(near)) == (0, 0, 0)


def test_a_forked_child_starts_with_nothing_whatever_was_held(coherence, near):
    """The parent's listener does not tell the child; and its lock may be held for ever."""
    put(coherence, near, entry(1))
    assert coherence.lock.acquire()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            empty = near.get(name(1)) is None and coherence.begin() is None
            coherence.extend(coherence.open(), math.inf)
            kept = put(coherence, near, entry(1)) and near.get(name(1)) is not None
            status = 0 if empty and kept else 2
        finally:
            os._exit(status)
    coherence.lock.release()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert body_of(near, 1) is not None


# The model: everything that can happen, in any order


class World:
    """A Redis with a clock, one process with a near cache, others that write."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.clock = ManualClock()
        self.coherence = Coherence(SPACE, clock=self.clock)
        self.near = NearCache(self.coherence, MIB, 30.0, clock=self.clock)
        self.version = 0
        self.redis: dict[int, bytes] = {}
        self.tag = 0  # a counter in Redis, on which all odd numbers depend
        self.replaced_at: dict[bytes, float] = {}  # body -> when it was replaced
        self.confirmed: set[bytes] = set()  # bodies that a write of ours has replaced, and is over
        self.pushes: list[Callable[[], None]] = []  # on their way, in order
        self.reads: list[Callable[[], None]] = []  # answers on their way
        self.writes: list[Callable[[], None]] = []  # of ours, at any stage
        self.session: int | None = None
        self.stalled_until = 0.0
        self.handed_out = 0

    def step(self) -> None:
        acts = [self.read, self.deliver] * 20 + [self.begin_read] * 8 + [self.go_on_reading] * 30
        acts += [self.write, self.own_write] * 2 + [self.ping] * 8 + [self.go_on_writing] * 24
        acts += [self.move, self.own_move, self.random.choice([self.cut, self.stall])]
        if self.session is None:
            acts += [self.listen] * 4
        self.random.choice(acts)()
        self.clock.advance(self.random.choice([0.0] * 9 + [0.001] * 9 + [0.02]))

    def replace(self, number: int, tell: bool = True) -> bytes | None:
        old = self.redis.get(number)
        self.version += 1
        self.redis[number] = b"%d of %d" % (self.version, number)
        if old is not None:
            self.replaced_at[old] = self.clock()
        if tell and self.session is not None:
            self.pushes.append(lambda: self.coherence.invalidate([name(number)]))
        return old

    def number(self) -> int:
        return self.random.randrange(4)

    def write(self) -> None:
        self.replace(self.number())

    def move(self) -> list[bytes]:
        """Another process invalidates the tag, or our own write comes through."""
        self.tag += 1
        gone = []
        for number in (1, 3):
            old = self.redis.pop(number, None)
            if old is not None:
                self.replaced_at[old] = self.clock()
                gone.append(old)
        if self.session is not None:
            self.pushes.append(lambda: self.coherence.invalidate([TAG]))
        return gone

    def own_write(self) -> None:
        number = self.number()
        self._own([name(number)], lambda: [self.replace(number)])

    def own_move(self) -> None:
        self._own([TAG], self.move)

    def _own(self, names: list[bytes], apply: Callable[[], list[bytes | None]]) -> None:
        writing = self.coherence.writing(names)
        writing.__enter__()

        def arrive() -> None:
            gone = apply()

            def answer() -> None:
                writing.__exit__(None, None, None)
                self.confirmed.update(body for body in gone if body is not None)

            self.writes.append(answer)

        self.writes.append(arrive)

    def go_on_writing(self) -> None:
        if self.writes:
            self.writes.pop(self.random.randrange(len(self.writes)))()

    def begin_read(self) -> None:
        number, token = self.number(), self.coherence.begin()
        if token is None:
            return

        def serve() -> None:
            body = self.redis.get(number)
            if body is not None:
                tags = (TAG,) if number % 2 else ()
                new = entry(number, body, tags=tags, until=self.clock() + 5.0)
                self.reads.append(lambda: self.near.insert(token, new))

        self.reads.append(serve)

    def go_on_reading(self) -> None:
        if self.reads:
            self.reads.pop(self.random.randrange(len(self.reads)))()

    def deliver(self) -> None:
        if self.pushes and self.clock() >= self.stalled_until:
            self.pushes.pop(0)()

    def stall(self) -> None:
        """The connection is silent for some time."""
        self.stalled_until = self.clock() + self.random.choice([0.05, 0.2])

    def ping(self) -> None:
        """The answer comes behind all that was pushed before."""
        session, sent_at = self.session, self.clock()
        if session is not None:
            self.pushes.append(lambda: self.coherence.extend(session, sent_at + 0.9 * LAG))

    def cut(self) -> None:
        """The connection is gone, with all that is on its way; found out at some later time."""
        if self.random.random() < 0.5:
            self.session = None
            self.pushes.clear()

    def listen(self) -> None:
        self.pushes.clear()
        self.stalled_until = 0.0
        self.session = self.coherence.open()

    def read(self) -> None:
        number = self.number()
        found = self.near.get(name(number))
        if found is not None:
            self.handed_out += 1
            assert found.body.endswith(b" of %d" % number)
            late = self.clock() - self.replaced_at.get(found.body, math.inf)
            assert late <= LAG, f"{found.body!r} was replaced {late} s ago"
            assert found.body not in self.confirmed, f"{found.body!r} was replaced by ourselves"


@pytest.mark.parametrize("seed", range(40))
def test_in_whatever_order_no_entry_is_older_than_the_bound(seed):
    """The one promise that everything here is for."""
    world = World(seed)
    world.listen()
    for _ in range(3000):
        world.step()
    assert world.handed_out > 20
