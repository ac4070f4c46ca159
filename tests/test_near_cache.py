"""A cache with a near cache promises what any cache does, and asks Redis less often."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from interrupter import Interrupt, Interrupter
from near_kit import LAG_S, MIB, PATIENCE_S

from jmcache import Cache, CacheSettings, Outcome, RedisCacheFactory, RedisSerializer
from jmcache.aio import AsyncRedisCache
from jmcache.cache import _nearby
from jmcache.cache._compute import Computation
from jmcache.envelope import Entry
from jmcache.errors import RedisConfigurationError
from jmcache.near import Coherence, NearCache, NearEntry
from jmcache.testing import FaultProxy, fake_manager

MATCHES = {"matches": [{"job": 1, "skills": ["python"]}], "total": 1}

Make = Callable[..., Cache]


@pytest.fixture
def make(redis_server) -> Iterator[Make]:
    """Make caches on redis_server with a near cache that is on."""
    made: list[Cache] = []
    RedisCacheFactory.shutdown()  # of other tests' caches: what is known of Redis is shared

    def make(*, url: str = redis_server.url, warm: bool = True, **options: Any) -> Cache:
        given = {name: options.pop(name) for name in ("serializer", "validate") if name in options}
        settings = {"namespace": "test", "near": True, "operation_timeout": 5.0, **options}
        cache = RedisCacheFactory.create_cache(CacheSettings.from_url(url, **settings), **given)
        made.append(cache)
        if warm and cache.settings.near:
            turn_on(cache)
        return cache

    yield make
    for cache in made:
        cache.close()


@pytest.fixture
def cache(make: Make) -> Cache:
    return make()


@pytest.fixture
def stranger(make: Make) -> Cache:
    """A cache of another process, as far as the first one can tell; it keeps nothing itself."""
    return make(near=False, connection_timeout=1.0)


def near_hits(cache: Cache) -> int:
    return sum(n for (*_, reason), n in cache.stats().operations.items() if reason == "near")


def near_kept(cache: Cache, keys: Iterable[str]) -> int:
    return sum(cache._nearby.holds(cache._key(key).name) for key in keys)


def until(holds: Callable[[], object], within_s: float = PATIENCE_S) -> None:
    ends_at = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < ends_at
        time.sleep(0.001)


def turn_on(cache: Cache) -> None:
    cache.set("warm", 1)
    before = near_hits(cache)
    until(lambda: cache.get("warm") == 1 and near_hits(cache) > before)


def keep(cache: Cache, key: str) -> None:
    """Have what is cached under *key* kept in this process."""

    def is_kept() -> bool:
        before = near_hits(cache)
        cache.get(key)
        return near_hits(cache) > before

    until(is_kept)


def hold(cache: Cache) -> None:
    """Have nothing but writes from now on change what is kept, however late the listener may be.

    It hears of this process's writes, too, some time after they are over.
    """
    written_at = time.monotonic()
    known = cache._nearby._coherence
    until(lambda: cache.get("warm") and known.until >= written_at + 0.9 * LAG_S)
    known.until = math.inf


def asked(server) -> int:
    """How many commands the server has had that read an entry."""
    stats = server.command("INFO", "commandstats")
    text = stats.decode() if isinstance(stats, bytes) else stats
    calls = [
        line for line in text.splitlines() if line.startswith(("cmdstat_get:", "cmdstat_mget"))
    ]
    return sum(int(line.partition("calls=")[2].partition(",")[0]) for line in calls)


# Hits


def test_a_hit_does_not_ask_redis(cache, redis_server):
    """It is what it is for: 4 us instead of 100."""
    cache.set("k", MATCHES)
    hold(cache)
    keep(cache, "k")
    before = asked(redis_server), near_hits(cache)
    for _ in range(10):
        assert cache.get("k") == MATCHES
    found = cache.lookup("k")
    assert (found.outcome, found.value, found.reason) == (Outcome.HIT, MATCHES, "")
    assert 0.0 <= found.age_s < 10.0
    assert cache.get_many(["k", "k"]) == {"k": MATCHES}
    assert cache.exists("k") is True
    assert cache.get_or_set("k", pytest.fail) == MATCHES
    assert asked(redis_server) == before[0]
    assert near_hits(cache) == before[1] + 13
    assert cache.stats().hits >= 13


def test_get_many_asks_for_the_others_alone(cache, redis_server):
    """And answers in the order of the keys."""
    cache.set_many({"a": 1, "b": 2, "c": 3})
    hold(cache)
    keep(cache, "b")
    before = asked(redis_server)
    assert list(cache.get_many(["a", "b", "c", "d"]).items()) == [("a", 1), ("b", 2), ("c", 3)]
    assert 1 <= asked(redis_server) - before <= 4


def test_values_are_read_only_from_the_first_read_on(cache):
    """Else code that changes what it got works in every test, and fails on the second hit."""
    cache.set("k", MATCHES)
    first = cache.get("k")
    keep(cache, "k")
    for value in (first, cache.get("k"), cache.lookup("k").value, cache.get_many(["k"])["k"]):
        with pytest.raises(TypeError, match="deepcopy"):
            value["matches"].append(1)
    computed = cache.get_or_set("new", lambda: {"a": [1]})
    with pytest.raises(TypeError, match="deepcopy"):
        computed["a"].append(2)
    mine = copy.deepcopy(cache.get("k"))
    mine["matches"].clear()
    assert cache.set("k", cache.get("k")) is True, "what was handed out can be kept again"
    assert cache.get("k") == MATCHES


def test_without_a_near_cache_values_are_the_callers_own(make):
    """As they always were."""
    cache = make(near=False)
    cache.set("k", MATCHES)
    cache.get("k")["matches"].append(1)
    assert type(cache.get_or_set("n", lambda: {"a": [1]})) is dict


def test_a_closed_cache_hands_out_values_that_are_the_callers_own(make):
    """Who computes them and who waits for that must not get values of different types."""
    cache = make()
    cache.close()
    body = cache._stops.pack(MATCHES)
    assert type(cache._stops.own(MATCHES)) is type(cache._stops.copy(body)) is dict


def test_a_value_of_a_class_is_each_callers_own(make):
    """Nothing keeps its attributes from being set."""

    @dataclass
    class Match:
        score: float

    serializer = RedisSerializer()
    serializer.register(Match)
    cache = make(serializer=serializer)
    cache.set("k", [Match(0.5)])
    keep(cache, "k")
    for _ in range(4):
        value = cache.get("k")
        assert value == [Match(0.5)]
        value[0].score = 1.0
        value.append(1)


def test_a_hit_is_validated(make):
    """A validator that was given is asked, wherever the value comes from."""
    cache = make(validate=lambda value: value != "bad")
    cache.set("k", MATCHES)
    keep(cache, "k")
    assert cache.get("k", validate=lambda value: "total" in value) == MATCHES
    found = cache.lookup("k", validate=lambda _: False)
    assert (found.outcome, found.reason) == (Outcome.CORRUPT, "invalid")
    assert cache.get("k") is None, "removed, as ever"
    with pytest.raises(TypeError):
        cache.get("k", validate=1)
    with pytest.raises(ValueError, match="timeout"):
        cache.get("k", timeout=-1)


def renames(value):
    value["title"] = value.pop("name")


def renames_or_says_why(value):
    try:
        renames(value)
    except TypeError as error:
        raise ValueError("not a job") from error


@pytest.mark.parametrize("validate", [renames, renames_or_says_why])
def test_a_validation_may_work_on_what_it_is_given(make, validate):
    """As pydantic's model_validator(mode="before") does: each entry would be removed from Redis."""
    cache = make(validate=validate, warm=False)
    cache.set("k", {"name": "cook"})
    found = [cache.lookup("k")]
    keep(cache, "k")
    found.append(cache.lookup("k", validate=validate))
    assert [(one.outcome, one.value) for one in found] == [(Outcome.HIT, {"name": "cook"})] * 2
    assert cache.get_many(["k"], validate=validate) == {"k": {"name": "cook"}}
    assert cache.get_or_set("k", pytest.fail, validate=validate) == {"name": "cook"}
    assert not [key for key in cache.stats().operations if key[1] == "corrupt"]
    cache.set("k", {"neither": 0})
    assert cache.lookup("k").outcome is Outcome.CORRUPT


# Awaited


def test_an_awaited_hit_takes_no_thread(cache, redis_server, monkeypatch):
    """A hop to a thread costs twenty times what the hit does."""
    awaited = AsyncRedisCache(cache)
    cache.set("k", MATCHES)
    hold(cache)
    keep(cache, "k")
    before = asked(redis_server)
    monkeypatch.setattr(awaited._threads, "begin", pytest.fail)

    async def read() -> None:
        for _ in range(5):
            assert await awaited.get("k") == MATCHES
            assert (await awaited.lookup("k")).reason == ""
            assert await awaited.get_or_set("k", pytest.fail) == MATCHES

    asyncio.run(read())
    assert asked(redis_server) == before


def test_an_awaited_hit_that_takes_long_is_taken_on_a_thread(cache, monkeypatch):
    """A large value to decode, or a validator, would hold up everybody on the loop."""
    awaited = AsyncRedisCache(cache)
    large = ["x" * 50] * 4000
    cache.set_many({"k": MATCHES, "large": large})
    hold(cache)
    keep(cache, "k")
    assert cache.get("large") == large
    assert near_kept(cache, ["large"]) == 1
    threads: list[threading.Thread] = []
    plain = cache._nearby._decode_plain

    def validate(_: object) -> bool:
        threads.append(threading.current_thread())
        return True

    def decode(body: bytes) -> object:
        threads.append(threading.current_thread())
        return plain(body)

    monkeypatch.setattr(cache._nearby, "_decode_plain", decode)

    async def read() -> None:
        assert await awaited.get("large") == large
        assert await awaited.get_or_set("large", pytest.fail) == large
        assert await awaited.get("k", validate=validate) == MATCHES
        assert await awaited.get_or_set("k", pytest.fail, validate=validate) == MATCHES

    before = near_hits(cache)
    asyncio.run(read())
    assert near_hits(cache) == before + 4
    assert len(threads) >= 4
    assert threading.main_thread() not in threads


@pytest.mark.parametrize("how", ["get", "get_or_set"])
def test_many_awaited_hits_at_a_time_do_not_hold_the_loop(make, monkeypatch, how):
    """Each takes a moment to decode; two hundred in one turn are a tenth of a second."""
    cache = make(near_max_bytes=2 * 1024 * 1024)  # none of them stays decoded
    awaited = AsyncRedisCache(cache)
    values = {f"k{number}": [number, "x" * 20_000] for number in range(50)}
    decoded: dict[bool, int] = {True: 0, False: 0}  # bytes, by whether the loop did it
    plain = cache._nearby._decode_plain

    def decode(body: bytes) -> object:
        decoded[threading.current_thread() is threading.main_thread()] += len(body)
        return plain(body)

    async def read(key: str) -> object:
        return await (awaited.get(key) if how == "get" else awaited.get_or_set(key, pytest.fail))

    async def read_all() -> None:
        assert await asyncio.gather(*map(read, values)) == list(values.values())

    cache.set_many(values)
    hold(cache)
    assert len(cache.get_many(values)) == near_kept(cache, values)
    before = near_hits(cache)
    monkeypatch.setattr(cache._nearby, "_decode_plain", decode)
    monkeypatch.setattr(_nearby, "_SPELL_S", 3600.0)
    asyncio.run(read_all())
    assert near_hits(cache) == before + 50
    assert 100_000 < decoded[True] <= 128 * 1024
    assert sum(decoded.values()) > 50 * 20_000

    monkeypatch.setattr(_nearby, "_SPELL_S", 0.0)
    decoded[True] = decoded[False] = 0
    asyncio.run(read_all())
    assert decoded[False] == 0, "the next spell has as much again"


@pytest.mark.parametrize("how", ["get", "get_or_set", "get from memory", "get while it is down"])
def test_a_reader_who_waits_for_nothing_leaves_others_their_turn(make, redis_server, how):
    """A loop of near hits never gives way by itself: nobody could even stop it."""
    in_memory = "memory" in how
    url = "memory://" if in_memory else redis_server.url
    cache = make(url=url, warm=not in_memory, reset_timeout=60.0)
    awaited = AsyncRedisCache(cache)
    cache.set("k", 1)
    if "down" in how:
        redis_server.stop()
        until(lambda: cache.lookup("k").reason == "breaker_open")
    elif not in_memory:
        hold(cache)
        keep(cache, "k")
    stopped: list[bool] = []

    async def read() -> int:
        asyncio.get_running_loop().call_soon(stopped.append, True)
        for count in range(1000):
            if stopped:
                return count
            if how == "get_or_set":
                await awaited.get_or_set("k", pytest.fail)
            else:
                await awaited.get("k")
        return 1000

    assert asyncio.run(read()) <= 256


def test_an_awaited_hit_is_had_however_busy_the_threads_are(cache, monkeypatch):
    """It is in this process: to answer "saturated" would be to lose what is at hand."""
    awaited = AsyncRedisCache(cache, max_threads=1)
    cache.set("k", [1, "x" * 20_000])
    hold(cache)
    assert cache.get("k")
    monkeypatch.setattr(_nearby, "_AT_ONCE", 0)  # so it is for a thread
    monkeypatch.setattr(_nearby.Nearby, "_is_little", lambda *_: False)
    monkeypatch.setattr("jmcache.aio._threads._QUEUE_PER_THREAD", 0)
    before = near_hits(cache)

    async def read() -> None:
        assert await awaited.get("k") == [1, "x" * 20_000]

    entry, _ = cache._nearby.find(cache._key("k").name)
    monkeypatch.setattr(type(entry), "is_cold", True)
    asyncio.run(read())
    assert near_hits(cache) == before + 1


# What is gone is gone: at once here


@pytest.mark.parametrize(
    "change",
    [
        lambda cache: cache.set("k", "new"),
        lambda cache: cache.set_many({"k": "new"}),
        lambda cache: cache.delete("k"),
        lambda cache: cache.delete_many(["k"]),
        lambda cache: cache.invalidate_tags("tag"),
        lambda cache: cache.clear(),
        lambda cache: cache.get_or_set("k", lambda: "new", force=True),
    ],
    ids=["set", "set_many", "delete", "delete_many", "invalidate_tags", "clear", "force"],
)
@pytest.mark.parametrize("through", ["itself", "another", "one without"])
def test_what_this_process_changes_is_changed_at_once(make, cache, change, through):
    """The writer reads his own write, in whichever thread and through whichever cache."""
    writer = {
        "itself": lambda: cache,
        "another": lambda: make(warm=False),
        "one without": lambda: make(near=False),
    }[through]()
    for _ in range(20):
        cache.set("k", "old", tags=["tag"])
        for _ in range(3):
            assert cache.get("k") == "old"
        change(writer)
        for _ in range(3):
            assert cache.get("k") in ("new", None)


def test_writers_read_their_own_writes_however_many_read_beside_them(cache):
    """A reader that was on its way keeps nothing that was written meanwhile."""
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            cache.get("k")

    with ThreadPoolExecutor(4) as readers:
        try:
            for _ in range(4):
                readers.submit(read)
            for number in range(300):
                assert cache.set("k", number)
                assert cache.get("k") == number
        finally:
            over.set()
    assert near_hits(cache) > 0


@pytest.mark.parametrize(
    "change",
    [
        lambda cache: cache.set("k", "new"),
        lambda cache: cache.delete("k"),
        lambda cache: cache.invalidate_tags("tag"),
        lambda cache: cache.clear(),
    ],
    ids=["set", "delete", "invalidate_tags", "clear"],
)
def test_what_others_change_is_changed_within_the_bound(cache, stranger, change):
    """Stated: 100 ms."""
    for _ in range(5):
        cache.set("k", "old", tags=["tag"])
        keep(cache, "k")
        change(stranger)
        changed_at = latest = began = time.monotonic()
        while cache.get("k") == "old":
            latest, began = began, time.monotonic()
        assert latest - changed_at < LAG_S, "began so late, and was answered with the old value"


def test_an_entry_ends_when_it_ends_in_redis(cache):
    """Not a moment later, though nobody says so."""
    for _ in range(5):
        cache.set("k", "old", ttl=0.2)
        written_at = latest = began = time.monotonic()
        while cache.get("k") is not None:
            latest, began = began, time.monotonic()
        assert latest - written_at < 0.2 + 0.001, "began so late, and was answered"


def test_what_went_stale_is_asked_for(cache, redis_server):
    """Redis knows whether somebody refreshes it; the near cache does not."""
    assert cache.get_or_set("k", lambda: 1, ttl=0.1, stale_ttl=60.0) == 1
    until(lambda: cache.lookup("k").outcome is Outcome.STALE)
    before = near_hits(cache)
    assert cache.lookup("k").outcome is Outcome.STALE
    assert near_hits(cache) == before


def test_early_refreshes_still_happen(cache):
    """A value that only ever came from the near cache would expire under everybody's hands."""
    numbers = iter(range(1000))

    def get() -> int:
        return cache.get_or_set("k", lambda: next(numbers), ttl=60.0, early_refresh=0.001)

    assert get() == 0
    until(lambda: get() > 0)


def test_an_early_refresh_that_was_decided_on_a_kept_value_is_not_decided_again(cache, monkeypatch):
    """It is a matter of chance: decided twice, it would hardly ever happen."""
    assert cache.get_or_set("k", lambda: 1) == 1
    keep(cache, "k")
    decisions = iter([True])
    monkeypatch.setattr(Computation, "_is_early", lambda *_: next(decisions, False))
    assert cache.get_or_set("k", lambda: 2) == 1
    until(lambda: cache.get("k") == 2)


def test_who_refreshes_early_already_is_asked_of_redis(cache, redis_server, monkeypatch):
    """Every hit of every process would try to be the one, as long as the load takes."""

    def get() -> int:
        return cache.get_or_set("k", lambda: 1, ttl=60.0, early_refresh=1e-9)

    assert get() == 1
    redis_server.command("SET", cache._key("k").lease, "somebody")
    keep(cache, "k")
    monkeypatch.setattr(Computation, "_refresh_soon", pytest.fail)
    for _ in range(10):
        assert get() == 1
    assert "refresh" not in cache.stats().events


# When Redis is away


def test_an_owed_delete_counts_at_once(make, redis_server, tcp_server):
    """It did not get through; the listener's connection, which is another, is well."""
    with FaultProxy(tcp_server) as proxy:
        cache = make(url=proxy.url, operation_timeout=0.3, max_retries=0)
        cache.set("k", "old")
        keep(cache, "k")
        proxy.swallow_request(on=b"UNLINK")
        assert cache.delete("k") is False
        for _ in range(100):
            assert cache.get("k") is None
        proxy.heal()


@pytest.mark.parametrize("what", ["entry", "tag", "namespace"])
def test_what_is_owed_is_not_handed_out_though_it_is_kept(cache, what):
    """A signal handler's exception in the wrong place, and the write that owes it told nobody."""
    cache.set("k", "old", tags=["tag"])
    keep(cache, "k")
    journal, spaces, slot = backend_of(cache).journal, cache._stops.spaces, cache._key("k")
    if what == "entry":
        journal.owe_deletes(spaces, [slot.name], [slot.lease])
    else:
        keys = cache._keys
        journal.owe_moves(
            spaces, [keys.tag_counter("tag") if what == "tag" else keys.space_counter]
        )
    assert cache.get("k") is None
    assert cache.get_many(["k"]) == {}


def test_a_settled_invalidation_is_told_before_it_is_owed_no_more(cache, monkeypatch):
    """What was read while it was owed is kept otherwise, until Redis tells of it too."""
    backend = backend_of(cache)
    coherence = cache._nearby._coherence
    slot, counter = cache._key("k"), cache._keys.tag_counter("tag")
    backend.journal.owe_deletes(cache._stops.spaces, [slot.name], [slot.lease])
    backend.journal.owe_moves(cache._stops.spaces, [counter])
    told = {}

    def invalidate(names):
        if threading.current_thread() is threading.main_thread():  # not the listener
            told.update({name: name in backend.journal.debts for name in names})

    monkeypatch.setattr(coherence, "invalidate", invalidate)
    backend._settle(cache._deadline(None))
    assert told == {slot.name: True, counter: True}
    assert not backend.journal


def backend_of(cache: Cache) -> Any:
    (backend,) = [
        one
        for one in RedisCacheFactory._backends.values()
        if one.connection.settings.connection_identity() == cache.settings.connection_identity()
    ]
    return backend


def test_without_redis_it_is_off(make, redis_server):
    """What was invalidated meanwhile, nobody can know."""
    cache = make(operation_timeout=0.2)
    cache.set("k", "old")
    keep(cache, "k")
    redis_server.pause()
    paused_at = latest = began = time.monotonic()
    while cache.get("k") is not None:
        latest, began = began, time.monotonic()
    assert latest - paused_at < LAG_S, "began so late, and was answered"
    assert cache.lookup("k").outcome is Outcome.UNAVAILABLE
    redis_server.resume()
    turn_on(cache)


def test_reconfigure_takes_it_along(make, cache, tcp_server, redis_server):
    """What the old Redis said is not true of the new one."""
    cache.set("k", "old")
    keep(cache, "k")
    cache.reconfigure(CacheSettings.from_url(tcp_server.url, operation_timeout=5.0))
    assert cache.get("k") is None
    turn_on(cache)
    cache.set("k", "new")
    keep(cache, "k")
    redis_server.command("FLUSHALL")
    tcp_server.command("FLUSHALL")
    until(lambda: cache.get("k") is None)


def test_a_near_cache_does_not_move_to_a_cluster(cache):
    """Each node tells of its own names only."""
    other = RedisCacheFactory.create_cache(
        CacheSettings.from_url(cache.settings.endpoint, namespace="x", operation_timeout=5.0)
    )
    moved = CacheSettings.from_url("redis+cluster://127.0.0.1:1")
    for one in (cache, other):
        with pytest.raises(RedisConfigurationError, match=r"near|cluster"):
            one.reconfigure(moved)
    assert cache.set("k", 1)
    other.close()


def test_without_the_right_to_ask_for_a_life_reads_go_on(make, redis_server):
    """A right that is missing costs what needs it, and nothing else."""
    redis_server.command("ACL", "SETUSER", "u", "on", ">pass", "~test:*", "+@all")
    cache = make(url=redis_server.url_for("u", "pass"))
    redis_server.command("ACL", "SETUSER", "u", "-pttl")
    cache.set("k", 1)
    for _ in range(5):
        assert cache.get("k") == 1
    assert cache.get_many(["k", "l"]) == {"k": 1}


# Its life


def test_in_memory_it_is_not_needed():
    """One setting for all environments."""
    with RedisCacheFactory.create_cache(CacheSettings.from_url("memory://", near=True)) as cache:
        cache.set("k", [1])
        cache.get("k").append(2)
        assert cache.get("k") == [1]


def test_on_a_fake_it_stays_off_and_everything_works(caplog):
    """A user's own tests, with the settings of production."""
    with RedisCacheFactory.create_cache(
        CacheSettings(near=True, operation_timeout=5.0), connection=fake_manager()
    ) as cache:
        cache.set("k", [1])
        assert cache.get("k") == [1]
        until(lambda: "no_tracking" in caplog.text)
        assert cache.get("k") == [1]
        assert near_hits(cache) == 0


def test_a_closed_cache_hands_nothing_out(make):
    """Closed is closed."""
    cache = make()
    tracking = backend_of(cache).trackings[b"test:v1:"]
    cache.set("k", 1)
    keep(cache, "k")
    cache.close()
    assert cache.lookup("k").reason == "closed"
    assert cache.get_many(["k"]) == {}
    until(lambda: not tracking._connections)


def test_the_last_one_of_a_namespace_that_is_closed_takes_the_listener_along(make, redis_server):
    """A service with a namespace for each tenant would keep something of each, for good."""
    neighbour = make(namespace="neighbour", near=False)
    first, second = make(), make()
    backend = backend_of(neighbour)
    (tracking,) = backend.trackings.values()
    first.close()
    first.close()
    assert backend.trackings == {b"test:v1:": tracking}
    keep(second, "warm")
    second.close()
    assert backend.trackings == {}
    until(lambda: not tracking._connections)
    third = make()
    redis_server.command("FLUSHALL")
    until(lambda: third.get("warm") is None)
    third.close()
    neighbour.reconfigure(CacheSettings.from_url("redis+cluster://127.0.0.1:1"))


def test_nothing_is_left_of_namespaces_that_come_and_go(make):
    """37 KB each, and a collector that has little to do comes late."""
    neighbour = make(namespace="neighbour", near=False)
    backend, coherences = backend_of(neighbour), []
    gc.disable()
    try:
        for number in range(5):
            settings = CacheSettings.from_url(neighbour.settings.endpoint, near=True)
            with RedisCacheFactory.create_cache(settings, namespace=f"tenant-{number}") as cache:
                turn_on(cache)
                coherences.append(weakref.ref(cache._nearby._coherence))
            del cache
        until(lambda: [one() for one in coherences] == [None] * 5)
    finally:
        gc.enable()
    make(namespace="another", near=False)
    assert set(backend._coherences) == {b"neighbour:v1:", b"another:v1:"}


def test_a_write_of_a_closed_cache_is_one_of_this_process_still(make):
    """It may be on its way: who opens the next one would read what was there before it."""
    make(namespace="neighbour", near=False)  # so that their connections live on
    old = make()
    with old._nearby.writing([old._key("k").name]):
        old.close()
        new = make()
        assert new.set("k", 1)
        hold(new)
        for _ in range(3):
            assert new.get("k") == 1
        assert near_kept(new, ["k"]) == 0
    keep(new, "k")


def test_closing_it_may_be_interrupted_at_any_point(make):
    """A time limit that comes amid it would leave the next one of the namespace without any."""
    neighbour = make(namespace="neighbour", near=False)
    point = 0
    while True:
        cache = make(warm=False)
        with Interrupter(point, "/factory.py") as interrupter, contextlib.suppress(Interrupt):
            cache.close()
        if not interrupter.done:
            break
        point += 1
        again = make()
        cache.close()
        assert set(backend_of(neighbour).trackings) == {b"test:v1:"}, interrupter.where
        again.close()
        assert backend_of(neighbour).trackings == {}, interrupter.where
    assert point > 1


class ClosedMeanwhile(_nearby.Nearby):
    """Another thread closes it as soon as somebody has looked whether it is open."""

    @property
    def _near(self):
        near, self._still_open = self._still_open, None
        return near

    @_near.setter
    def _near(self, near):
        self._still_open = near


@pytest.mark.parametrize(
    "ask",
    [
        lambda nearby, _reading: nearby.begin(),
        lambda nearby, reading: nearby.keep(reading, b"k", Entry(b"1", created_ms=0), 1000, ()),
        lambda nearby, _reading: nearby.holds(b"k"),
        lambda nearby, _reading: nearby.find(b"k"),
        lambda nearby, _reading: nearby.forget(
            NearEntry(b"k", b"1", until=math.inf, created_s=0.0)
        ),
        lambda nearby, _reading: nearby.own([]),
    ],
)
def test_who_reads_while_it_is_closed_meets_no_error(ask):
    """A service that shuts down would fail requests that it could still answer."""
    coherence = Coherence(b"#")
    near = NearCache(coherence, MIB, 30.0)
    coherence.extend(coherence.open(), math.inf)
    nearby = ClosedMeanwhile(coherence, near, RedisSerializer().deserialize, time.time)
    reading = nearby.begin()
    assert reading is not None
    nearby._near = near
    ask(nearby, reading)
    assert not nearby.is_on


def test_a_forked_child_has_its_own(cache, redis_server):
    """And hears what its parent writes."""
    cache.set("k", "old")
    keep(cache, "k")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            assert near_hits(cache) == 0
            turn_on(cache)
            keep(cache, "k")
            redis_server.command("FLUSHALL")
            flushed_at = latest = began = time.monotonic()
            while cache.get("k") is not None:
                latest, began = began, time.monotonic()
            assert latest - flushed_at < LAG_S
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    until(lambda: cache.get("k") is None)
    turn_on(cache)
