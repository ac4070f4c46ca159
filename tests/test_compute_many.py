"""get_or_set_many: one look, one load of what is missing, each key for itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from computing_kit import SOON_S, Door, Loader, events, open_door, wait_until  # noqa: F401

from jmcache import (
    Cache,
    CacheSettings,
    LoadContext,
    LocalCache,
    Outcome,
    RedisCacheFactory,
    load_context,
)
from jmcache.testing import ManualClock, PrivateServer

OpenDoor = Callable[[Cache], Door]


@pytest.fixture(params=["memory", "redis"])
def door(request: pytest.FixtureRequest, open_door: OpenDoor) -> Door:  # noqa: F811
    """To a cache in this process, and to one in Redis."""
    if request.param == "memory":
        return open_door(LocalCache())
    server: PrivateServer = request.getfixturevalue("redis_server")
    settings = CacheSettings.from_url(server.url, namespace="many", operation_timeout=5.0)
    return open_door(RedisCacheFactory.create_cache(settings))


class ManyLoader(Loader):
    """Returns the length of each key, "unknown" left out; knows what it was asked for."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.asked: list[list[str]] = []

    def __call__(self, keys: list[str]) -> dict[str, int]:  # type: ignore[override]
        self.asked.append(keys)
        super().__call__()
        return {key: len(key) for key in keys if key != "unknown"}


def test_only_what_is_missing_is_loaded_in_one_call(door: Door) -> None:
    """A page of 50 candidates makes 50 queries, or computes again the 49 that were there."""
    door.set_many({"a": "cached", "none": None})
    load = ManyLoader()
    found = door.get_or_set_many(["a", "bb", "none", "ccc", "bb"], load)
    assert found == {"a": "cached", "bb": 2, "none": None, "ccc": 3}
    assert load.asked == [["bb", "ccc"]]
    assert door.get_many(["bb", "ccc"]) == {"bb": 2, "ccc": 3}
    assert door.get_or_set_many(["a", "bb"], pytest.fail) == {"a": "cached", "bb": 2}
    assert door.get_or_set_many([], pytest.fail) == {}


def test_a_key_without_a_value_is_left_out_and_not_kept(door: Door) -> None:
    """A None in its place could not be told from a cached one."""
    load = ManyLoader()
    assert door.get_or_set_many(["unknown", "a"], load) == {"a": 1}
    assert door.get_or_set_many(["unknown", "a"], load) == {"a": 1}
    assert load.asked == [["unknown", "a"], ["unknown"]]


def test_one_look_one_lease_and_one_store(redis_server: PrivateServer) -> None:
    """Fifty round trips take fifty times as long as one."""
    settings = CacheSettings.from_url(redis_server.url, namespace="many", operation_timeout=5.0)
    with RedisCacheFactory.create_cache(settings) as cache:
        cache.set("warm", 1)  # the counter is there, the connection made
        trips = []
        ask = cache._stops.ask

        def counting(verb: Callable[..., Any], *args: Any, **options: Any) -> Any:
            trips.append(verb.__name__)
            return ask(verb, *args, **options)

        cache._stops.ask = counting  # type: ignore[method-assign]
        keys = [f"{number}" for number in range(50)]
        cache.get_or_set_many(keys, ManyLoader())
        assert trips == ["read", "take", "write_held"]
        assert cache.get_or_set_many(keys, pytest.fail) == {key: len(key) for key in keys}
        assert trips[3:] == ["read"]


def test_keys_that_somebody_loads_are_waited_for_and_the_others_loaded(door: Door) -> None:
    """Two pages share half their candidates: no candidate is computed twice."""
    first, second = ManyLoader(waits=True), ManyLoader()
    call = door.begin("get_or_set_many", ["a", "bb"], first)
    assert first.begun.wait(SOON_S)
    other = door.begin("get_or_set_many", ["bb", "ccc"], second)
    assert second.begun.wait(SOON_S)
    single = door.begin("get_or_set", "a", pytest.fail)
    wait_until(lambda: events(door.cache).get("coalesced") == 2)
    first.may_end.set()
    assert call.result(SOON_S) == {"a": 1, "bb": 2}
    assert other.result(SOON_S) == {"bb": 2, "ccc": 3}
    assert single.result(SOON_S) == 1
    assert (first.asked, second.asked) == ([["a", "bb"]], [["ccc"]])


def test_a_delete_of_one_key_voids_that_one_alone(door: Door) -> None:
    """The other 49 were computed for nothing, or the deleted one comes back."""
    load = ManyLoader(waits=True)
    call = door.begin("get_or_set_many", ["a", "bb"], load)
    assert load.begun.wait(SOON_S)
    assert door.delete("a") is True
    load.may_end.set()
    assert call.result(SOON_S) == {"a": 1, "bb": 2}
    assert door.get_many(["a", "bb"]) == {"bb": 2}


def test_what_the_loader_raises_comes_out_and_nothing_is_kept(door: Door) -> None:
    """As for one key."""

    class NoAnswerError(Exception):
        pass

    def load(keys: list[str]) -> dict[str, int]:
        raise NoAnswerError

    with pytest.raises(NoAnswerError):
        door.get_or_set_many(["a", "b"], load)
    assert door.get_or_set_many(["a", "b"], ManyLoader()) == {"a": 1, "b": 1}


@pytest.fixture
def timed(clock: ManualClock, open_door: OpenDoor) -> Door:  # noqa: F811
    """To a cache in this process, whose time is the test's."""
    return open_door(LocalCache(clock=clock))


def test_stale_ones_are_handed_out_and_refreshed_in_one_call(
    timed: Door, clock: ManualClock
) -> None:
    """One expired candidate would make the whole page wait."""
    options = {"ttl": 10.0, "stale_ttl": 60.0}
    timed.get_or_set_many(["a", "bb"], lambda keys: dict.fromkeys(keys, "old"), **options)
    clock.advance(11)
    timed.set("fresh", "fresh")
    load = ManyLoader()
    found = timed.get_or_set_many(["a", "bb", "fresh"], load, **options)
    assert found == {"a": "old", "bb": "old", "fresh": "fresh"}
    wait_until(lambda: timed.get_many(["a", "bb"]) == {"a": 1, "bb": 2})
    assert load.asked == [["a", "bb"]]


def test_all_old_ones_stand_in_for_a_load_that_fails(timed: Door, clock: ManualClock) -> None:
    """Fail-safe for a page as for a candidate."""
    options = {"ttl": 10.0, "stale_if_error": 900.0}
    timed.get_or_set_many(["a", "bb"], lambda keys: dict.fromkeys(keys, "old"), **options)
    clock.advance(11)

    def failing(keys: list[str]) -> dict[str, int]:
        raise ConnectionError

    assert timed.get_or_set_many(["a", "bb"], failing, **options) == {"a": "old", "bb": "old"}


def test_values_with_tags_are_invalidated_together(door: Door) -> None:
    """The tags of the call belong to each of its values."""
    door.get_or_set_many(["a", "bb"], ManyLoader(), tags=("job:42",))
    door.set("other", 1)
    assert door.invalidate_tags("job:42") is True
    assert door.get_many(["a", "bb", "other"]) == {"other": 1}


def test_values_that_stand_for_none_have_their_own_ttl(timed: Door, clock: ManualClock) -> None:
    """As for one key."""
    timed.get_or_set_many(["a", "b"], lambda keys: {"a": None, "b": 1}, ttl=60, negative_ttl=5)
    clock.advance(6)
    assert timed.get_many(["a", "b"]) == {"b": 1}


@pytest.mark.parametrize("given", [None, [1], "ab", 5])
def test_a_loader_that_returns_no_dict_is_an_error(door: Door, given: object) -> None:
    """A list in its place would be taken for keys."""
    with pytest.raises(TypeError, match="loader"):
        door.get_or_set_many(["a"], lambda keys: given)


@pytest.mark.parametrize("keys", [None, "ab", 5])
def test_what_is_no_list_of_keys_is_refused(door: Door, keys: object) -> None:
    """get_or_set_many("ab") would ask for "a" and "b"."""
    with pytest.raises(TypeError, match="keys"):
        door.get_or_set_many(keys, pytest.fail)


def test_each_key_counts(door: Door) -> None:
    """Figures that depend on how a value was asked for tell nothing."""
    door.set("a", 1)
    door.get_or_set_many(["a", "bb", "unknown"], ManyLoader())
    operations = door.cache.stats().operations
    assert operations["get_or_set_many", "hit", ""] == 1
    assert operations["get_or_set_many", "miss", "computed"] == 1
    assert operations["get_or_set_many", "miss", "absent"] == 1
    assert door.lookup("unknown").outcome is Outcome.MISS


def test_a_load_of_many_has_not_the_context_of_the_load_it_is_part_of(door: Door) -> None:
    """What it chose for itself would count for the outer value."""
    seen: list[LoadContext | None] = []

    def inner(keys: list[str]) -> dict[str, int]:
        seen.append(load_context())
        return dict.fromkeys(keys, 1)

    def outer(context: LoadContext) -> bool:
        assert door.cache.get_or_set_many(["a"], inner) == {"a": 1}
        return load_context() is context

    assert door.get_or_set("k", outer) is True
    assert seen == [None]
