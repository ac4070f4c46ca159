"""The old cache and the new one side by side: what is compared, who answers, and the way back."""

from __future__ import annotations

import asyncio
import logging
import threading
import time

import pytest

from jmcache import AsyncRedisCache, CacheSettings, LocalCache, RedisCacheFactory
from jmcache.migration import AsyncSideBySide, SideBySide


class ResultsCache:
    """The old one: hands out what it was given, the object itself."""

    def __init__(self):
        self.kept = {}
        self.asked = 0

    def generate_key(self, *args, **kwargs):
        return repr((args, sorted(kwargs.items())))

    def get(self, key):
        self.asked += 1
        return self.kept.get(key)

    def set(self, key, value):
        self.kept[key] = value


@pytest.fixture
def old():
    return ResultsCache()


@pytest.fixture
def new():
    return LocalCache()


def test_both_are_written_and_the_old_one_answers_at_first(old, new):
    """A switch-over that begins with another answer is no comparison."""
    cache = SideBySide(old, new)
    key = cache.generate_key("c1", limit=3)
    value = [1, 2]
    cache.set(key, value)
    assert cache.get(key) is value
    assert new.get(key) == value
    found = cache.comparison()
    assert (found.reads, found.equal, found.different) == (1, 1, 0)


def test_all_keys_come_from_the_new_one_at_the_end(old, new):
    """Whoever removes the old cache must have seen the new one answer for everything."""
    cache = SideBySide(old, new, share=1.0)
    cache.set("k", [1])
    old.kept["k"] = ["old"]
    assert cache.get("k") == [1]
    assert cache.get("absent") is None


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_a_share_of_the_keys_comes_from_the_new_one(share, old, new):
    """Ten percent that are sixty would be an outage for sixty."""
    cache = SideBySide(old, new, share=share)
    for number in range(1000):
        old.kept[f"k{number}"] = "old"
        new.set(f"k{number}", "new")
    answers = [cache.get(f"k{number}") for number in range(1000)]
    assert abs(answers.count("new") / 1000 - share) < 0.05


def test_a_key_in_the_share_stays_there_while_it_grows(old, new):
    """Going back and forth between two caches shows a user two answers in turn."""
    cache = SideBySide(old, new)
    keys = [f"k{number}" for number in range(300)]
    for key in keys:
        old.kept[key] = "old"
        new.set(key, "new")
    before = set()
    for share in (0.1, 0.3, 0.7, 1.0):
        cache.share = share
        chosen = {key for key in keys if cache.get(key) == "new"}
        assert before <= chosen
        before = chosen


def test_the_kill_switch_leaves_the_old_one_alone(old, new):
    """The way back has to work at the moment when the new one is in trouble."""
    cache = SideBySide(old, new, share=1.0)
    cache.set("k", 1)
    cache.enabled = False
    old.kept["k"] = "old"
    assert cache.get("k") == "old"
    cache.set("only", 2)
    assert new.get("only") is None
    assert cache.comparison().reads == 0
    cache.enabled = True
    assert cache.get("k") == 1


def test_the_kill_switch_leaves_the_old_one_alone_for_coroutines_too(old, new):
    """Two classes, one promise."""

    async def use():
        cache = AsyncSideBySide(old, AsyncRedisCache(new), share=1.0)
        cache.enabled = False
        await cache.set("k", 1)
        assert await cache.get("k") == 1

    asyncio.run(use())
    assert new.get("k") is None


def test_what_is_past_its_ttl_in_the_new_one_is_no_answer(old, clock):
    """It is kept for those who ask for old values; the old cache handed out none."""
    new = LocalCache(clock=clock)
    new.get_or_set("k", lambda: "stale", ttl=10, stale_ttl=60)
    clock.advance(11)
    assert SideBySide(old, new, share=1.0).get("k") is None

    async def use():
        return await AsyncSideBySide(old, AsyncRedisCache(new), share=1.0).get("k")

    assert asyncio.run(use()) is None


@pytest.mark.parametrize("awaited", [False, True])
def test_what_the_new_one_cannot_keep_leaves_nothing_older_there(old, new, awaited):
    """The old cache has the new value, and a key in the share would go on with the one before."""

    async def set_awaited(value):
        await AsyncSideBySide(old, AsyncRedisCache(new), share=1.0).set("k", value)

    cache = SideBySide(old, new, share=1.0)
    cache.set("k", "v1")
    if awaited:
        asyncio.run(set_awaited(object()))
    else:
        cache.set("k", object())
    assert cache.get("k") is None


def test_after_the_kill_switch_nothing_older_comes_back(old, new):
    """What was written meanwhile is in the old cache alone; the new one had the value before it."""
    cache = SideBySide(old, new, share=1.0)
    cache.set("k", "v1")
    cache.enabled = False
    cache.set("k", "v2")
    assert cache.get("k") == "v2"
    cache.enabled = True
    assert cache.get("k") is None
    cache.set("k", "v3")
    assert cache.get("k") == "v3"


def test_after_the_kill_switch_nothing_older_comes_back_however_the_write_ended(old, new):
    """The old cache may have kept it before it failed."""
    cache = SideBySide(old, new, share=1.0)
    cache.set("k", "v1")
    cache.enabled = False

    def fails(key, value):
        old.kept[key] = value
        raise OSError

    old.set = fails
    with pytest.raises(OSError):
        cache.set("k", "v2")
    cache.enabled = True
    assert cache.get("k") is None


def test_the_kill_switch_takes_any_key_and_any_trouble(old, free_port_settings):
    """It is thrown because the new cache makes trouble: no write may have any of it then."""
    with RedisCacheFactory.create_cache(free_port_settings) as new:
        cache = SideBySide(old, new)
        cache.enabled = False
        for key in ("k", 5, ("a", 1)):
            cache.set(key, 1)
            assert cache.get(key) == 1
        assert "invalidations_owed" in new.health().reasons
    cache.set("k", 2)
    assert cache.get("k") == 2


def test_a_value_replaced_while_it_was_switched_off_was_not_changed_in_place(old, new):
    """Whoever looks for the callers that change values would look for nobody."""
    cache = SideBySide(old, new)
    cache.set("k", [1])
    cache.enabled = False
    cache.set("k", [2])
    cache.enabled = True
    cache.get("k")
    assert cache.comparison().mutated == 0


class Meanwhile(ResultsCache):
    """Has something done between the answer of this cache and that of the other."""

    def __init__(self):
        super().__init__()
        self.then = lambda: None

    def get(self, key):
        value = super().get(key)
        then, self.then = self.then, lambda: None
        then()
        return value


def test_a_read_around_a_write_is_not_compared(new):
    """The old value and the new one differ because they should: nobody has to look for a cause."""
    old = Meanwhile()
    cache = SideBySide(old, new)
    cache.set("k", [1])
    old.then = lambda: cache.set("k", [2])
    assert cache.get("k") == [1]
    found = cache.comparison()
    assert (found.reads, found.different, found.mutated) == (0, 0, 0)
    assert cache.get("k") == [2]
    found = cache.comparison()
    assert (found.reads, found.equal, found.mutated) == (1, 1, 0)


def test_a_read_within_a_write_is_not_compared(old, new):
    """The old cache has it already, the new one not yet."""
    cache = SideBySide(old, new)
    cache.set("k", [1])
    new_set = new.set

    def read_first(key, value):
        cache.get(key)
        return new_set(key, value)

    new.set = read_first
    cache.set("k", [2])
    found = cache.comparison()
    assert (found.reads, found.different, found.mutated) == (0, 0, 0)


def test_two_writes_at_a_time_are_no_change_in_place(old, new):
    """The old cache has the value of the one, and what was remembered last is that of the other."""
    cache = SideBySide(old, new)
    new_set = new.set

    def write_within(key, value):
        new.set = new_set
        cache.set(key, [2])
        return new_set(key, value)

    new.set = write_within
    old.set = lambda key, value: old.kept.setdefault(key, value)
    cache.set("k", [1])
    cache.get("k")
    assert cache.comparison().mutated == 0


def test_nobody_changes_anything_while_two_threads_read_and_write(old, new):
    """Of 20,000 reads 3,284 were counted as different, and 103 values as changed in place."""
    cache = SideBySide(old, new)
    done = threading.Event()

    def write():
        number = 0
        while not done.is_set():
            number += 1
            cache.set("k", [number])
            time.sleep(0)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(5000):
            cache.get("k")
    finally:
        done.set()
        writer.join(10.0)
    cache.get("k")
    found = cache.comparison()
    assert (found.different, found.mutated) == (0, 0)
    assert found.equal >= 1


class Ambiguous:
    """As an array: == is an array, too, and has no truth value."""

    def __eq__(self, other):
        return self

    def __bool__(self):
        raise ValueError("the truth value is ambiguous")

    __hash__ = None


def test_values_that_cannot_be_compared_are_different_and_still_returned(old, new):
    """The service only wanted to read."""
    cache = SideBySide(old, new)
    old.kept["k"] = value = Ambiguous()
    new.set("k", [1])
    assert cache.get("k") is value
    assert cache.comparison().different == 1

    def broken(a, b):
        raise RuntimeError

    cache = SideBySide(old, new, equal=broken)
    assert cache.get("k") is value
    assert cache.comparison().different == 1


def test_a_time_limit_is_no_difference(old, new):
    """Celery's, raised into whatever runs: it must come out."""

    class SoftTimeLimitExceeded(Exception):  # noqa: N818 - its name
        pass

    def slow(a, b):
        raise SoftTimeLimitExceeded

    old.kept["k"] = 1
    new.set("k", 1)
    with pytest.raises(SoftTimeLimitExceeded):
        SideBySide(old, new, equal=slow).get("k")


def test_every_way_two_answers_can_compare_is_counted(old, new, caplog):
    """A difference nobody counts is found by a customer."""
    cache = SideBySide(old, new)
    old.kept.update(same=1, other="secret-1", gone=3)
    new.set_many({"same": 1, "other": "secret-2", "fresh": 4})
    with caplog.at_level(logging.WARNING):
        for key in ("same", "other", "gone", "fresh", "never"):
            cache.get(key)
    found = cache.comparison()
    assert (found.equal, found.different, found.only_old, found.only_new, found.neither) == (
        1, 1, 1, 1, 1,
    )  # fmt: skip
    assert found.reads == 5
    assert found.old_s > 0.0
    assert found.new_s > 0.0
    assert "different values" in caplog.text
    assert "secret" not in caplog.text
    assert "other" not in caplog.text.split("jmcache.migration")[-1].replace("the other", "")


def test_values_the_new_one_cannot_keep_are_counted_by_place_and_type(old, new):
    """They are the work to be done before the switch."""
    cache = SideBySide(old, new)
    cache.set("a", {"when": object()})
    cache.set("b", {"when": object()})
    [(where, count)] = cache.comparison().unserializable.items()
    assert "when" in where
    assert "object" in where
    assert count == 2


def test_callers_that_change_what_they_were_given_are_counted(old, new):
    """They share changes through the old cache, and will not through the new one."""
    cache = SideBySide(old, new)
    cache.set("k", [1])
    cache.get("k").append(2)
    cache.get("k")
    cache.get("k")
    assert cache.comparison().mutated == 1


def test_a_new_cache_without_redis_costs_no_answer(old, free_port_settings):
    """The old cache needs no Redis, and must not begin to need one."""
    with RedisCacheFactory.create_cache(free_port_settings) as new:
        cache = SideBySide(old, new)
        cache.set("k", 1)
        assert cache.get("k") == 1
        assert cache.comparison().unavailable == 1


@pytest.fixture
def free_port_settings(tmp_path):
    return CacheSettings(unix_socket_path=str(tmp_path / "nobody.sock"))


@pytest.mark.parametrize("share", [-0.1, 1.1, True, "1"])
def test_a_share_that_is_none_is_refused_by_name(share, old, new):
    """Percent given as 10 would be everything."""
    with pytest.raises(ValueError, match="share: a number from 0 to 1"):
        SideBySide(old, new, share=share)


async def _is_same(a, b):
    return a == b


@pytest.mark.parametrize("equal", [5, None, _is_same], ids=["number", "none", "coroutine"])
def test_a_comparison_that_is_none_is_refused_by_name(equal, old, new):
    """Found at the first value that both have, it is found by a customer."""
    with pytest.raises(TypeError, match="equal: a plain function"):
        SideBySide(old, new, equal=equal)
    with pytest.raises(TypeError, match="equal: a plain function"):
        AsyncSideBySide(old, AsyncRedisCache(new), equal=equal)


def test_a_new_cache_that_is_none_is_refused_by_name(old, new):
    """The awaited one in the place of the plain one returns coroutines for values."""
    for wrong in (None, "redis://", AsyncRedisCache(new)):
        with pytest.raises(TypeError, match="new: a RedisCache or a LocalCache, not"):
            SideBySide(old, wrong)
    for wrong in (None, "redis://", new):
        with pytest.raises(TypeError, match="new: an AsyncRedisCache, not"):
            AsyncSideBySide(old, wrong)


def test_a_kill_switch_takes_true_and_false(old, new):
    """ "no" from an environment variable would be on."""
    cache = SideBySide(old, new)
    for wrong in ("no", 0, None):
        with pytest.raises(TypeError, match="enabled: True or False, not"):
            cache.enabled = wrong
    assert cache.enabled is True


def test_coroutines_have_the_same():
    """The old cache of the service is awaited."""

    class AwaitedCache(ResultsCache):
        async def get(self, key):
            return super().get(key)

        async def set(self, key, value):
            super().set(key, value)

        async def generate_key(self, *args, **kwargs):
            return super().generate_key(*args, **kwargs)

    async def use():
        old, new = AwaitedCache(), AsyncRedisCache(LocalCache())
        cache = AsyncSideBySide(old, new)
        key = await cache.generate_key("c1")
        await cache.set(key, [1])
        assert await cache.get(key) == [1]
        cache.share = 1.0
        old.kept[key] = ["old"]
        assert await cache.get(key) == [1]
        cache.enabled = False
        assert await cache.get(key) == ["old"]
        found = cache.comparison()
        assert (found.equal, found.different) == (1, 1)
        await cache.set(key, ["newer"])
        cache.enabled = True
        assert await cache.get(key) is None

    asyncio.run(use())
