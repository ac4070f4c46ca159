"""What every cache promises, held against all seven: Redis, Valkey, a cluster, the fake, memory://.

Redis three times, once with signed entries and once with a near cache. The fake runs through our
own pool code on fakeredis; memory:// keeps everything in this process.
"""

from __future__ import annotations

import contextlib
import copy
import datetime as dt
import decimal
import math
import pickle
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import fakeredis
import pytest

from jmcache import Cache, CacheSettings, Deadline, Outcome, RedisCacheFactory
from jmcache.testing import fake_manager

MATCHES = [
    {"job": "p00017", "score": 0.8125, "skills": ["python", "redis"], "reason": None},
    {"job": "p00018", "score": 0.5, "skills": [], "reason": "remote"},
]


MakeCache = Callable[[str], Cache]


@pytest.fixture(params=["redis", "signed", "near", "valkey", "cluster", "fake", "memory"])
def make_cache(request: pytest.FixtureRequest) -> Iterator[MakeCache]:
    """Make caches in the same Redis (or fake, or process), each in the namespace it is given."""
    with contextlib.ExitStack() as opened:
        if request.param in ("redis", "signed", "near"):
            server = request.getfixturevalue("redis_server")
            secrets = ("s" * 32,) if request.param == "signed" else ()
            settings = CacheSettings.from_url(
                server.url,
                operation_timeout=5.0,
                entry_secrets=secrets,
                near=request.param == "near",
            )
        elif request.param == "valkey":
            url = request.getfixturevalue("valkey_server").url.replace("redis://", "valkey://")
            settings = CacheSettings.from_url(url, operation_timeout=5.0)
        elif request.param == "cluster":
            cluster = request.getfixturevalue("redis_cluster")
            settings = CacheSettings.from_url(cluster.url, operation_timeout=5.0)
        elif request.param == "fake":
            fake = fakeredis.FakeServer()
            settings = CacheSettings(operation_timeout=5.0)
        else:
            settings = CacheSettings.from_url("memory://")

        def make(namespace: str) -> Cache:
            connection = fake_manager(server=fake) if request.param == "fake" else None
            made = RedisCacheFactory.create_cache(
                settings, namespace=namespace, connection=connection
            )
            if (
                request.param == "near"
            ):  # through another, or what this one counts is not the test's
                _turn_on(
                    opened.enter_context(
                        RedisCacheFactory.create_cache(settings, namespace=namespace)
                    )
                )
            return opened.enter_context(made)

        yield make


def _turn_on(cache: Cache) -> None:
    """Let the near cache come on, which takes a moment after the first read."""
    cache.set("warm", 1)
    until = time.monotonic() + 10.0
    while ("get", "hit", "near") not in cache.stats().operations:
        assert cache.get("warm") == 1
        assert time.monotonic() < until
    cache.delete("warm")


@pytest.fixture
def cache(make_cache: MakeCache) -> Cache:
    return make_cache("contract")


def test_what_was_set_is_what_get_returns(cache: Cache) -> None:
    """Everybody is: it is what a cache is for."""
    assert cache.set("k", MATCHES) is True
    assert cache.get("k") == MATCHES


@pytest.mark.parametrize(
    "value",
    [
        (1, "1", True, None),
        {1: "a", "1": "b"},
        {"a", "b"},
        frozenset({1}),
        b"\x00\xff",
        decimal.Decimal("1.10"),
        uuid.UUID(int=7),
        dt.datetime(2023, 5, 1, 12, tzinfo=dt.UTC),
        dt.timedelta(days=1, microseconds=1),
        -0.0,
        math.inf,
        "\ud800 lone",
        2**80,
        "",
        0,
        False,
        [],
        {},
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_comes_back_with_its_type(cache: Cache, value: object) -> None:
    """A tuple that comes back as a list breaks code that used the old cache."""
    assert cache.set("k", value) is True
    found = copy.deepcopy(cache.get("k"))  # with a near cache, containers are read-only
    assert type(found) is type(value)
    assert found == value
    assert repr(found) == repr(value) or isinstance(value, (set, frozenset))


def test_a_key_never_set_is_a_miss(cache: Cache) -> None:
    """A caller that cannot tell a miss from an outage cannot shed load."""
    found = cache.lookup("nobody set this")
    assert (found.outcome, found.value, found.age_s) == (Outcome.MISS, None, None)
    assert found.reason == "absent"
    assert cache.get("nobody set this") is None


def test_a_cached_none_is_a_hit_whose_value_is_none(cache: Cache) -> None:
    """ "No match" is a result too, and computing it again and again is dear."""
    assert cache.set("k", None) is True
    found = cache.lookup("k")
    assert found.outcome is Outcome.HIT
    assert found.value is None
    assert cache.exists("k") is True
    assert cache.get_many(["k"]) == {"k": None}


def test_a_lookup_tells_the_age(cache: Cache) -> None:
    """Somebody showing results wants to write how old they are."""
    cache.set("k", 1)
    age_s = cache.lookup("k").age_s
    assert age_s is not None
    assert 0.0 <= age_s < 60.0


def test_a_later_set_replaces_an_earlier_one(cache: Cache) -> None:
    """A cache that keeps the first value shows old matches for ever."""
    cache.set("k", "old")
    cache.set("k", "new")
    assert cache.get("k") == "new"


def test_delete_says_that_it_is_gone_and_it_is(cache: Cache) -> None:
    """A withdrawn job must not be shown again."""
    cache.set("k", 1)
    assert cache.delete("k") is True
    assert cache.get("k") is None
    assert cache.delete("k") is True, "gone is gone, there before or not"


def test_exists_tells_an_entry_from_none(cache: Cache) -> None:
    """exists() that lies makes callers skip work that is needed."""
    assert cache.exists("k") is False
    cache.set("k", 1)
    assert cache.exists("k") is True


def test_get_many_returns_only_what_is_there(cache: Cache) -> None:
    """A None for a missing key could not be told from a cached None."""
    cache.set("a", 1)
    cache.set("c", [3])
    assert cache.get_many(["a", "b", "c", "a"]) == {"a": 1, "c": [3]}
    assert cache.get_many([]) == {}
    assert cache.get_many(key for key in ["a"]) == {"a": 1}


def test_set_many_keeps_everything_it_was_given(cache: Cache) -> None:
    """A page of matches is written at once, or half of it is missing the next time."""
    wanted = {f"k{number}": [number] for number in range(50)}
    assert cache.set_many(wanted) is True
    assert cache.get_many(wanted) == wanted
    assert cache.set_many({}) is True


def test_set_many_keeps_the_good_ones_and_says_false(cache: Cache) -> None:
    """One odd value must not cost the others their place, nor go unnoticed."""
    assert cache.set_many({"good": 1, "odd": object(), "also good": 2}) is False
    assert cache.get_many(["good", "odd", "also good"]) == {"good": 1, "also good": 2}


def test_delete_many_counts_what_was_there(cache: Cache) -> None:
    """The count is how a clean-up knows what it did."""
    cache.set_many({"a": 1, "b": 2})
    assert cache.delete_many(["a", "b", "c"]) == 2
    assert cache.delete_many([]) == 0
    assert cache.get_many(["a", "b"]) == {}


@pytest.mark.parametrize("method", ["get_many", "delete_many"])
def test_one_text_is_no_list_of_keys(cache: Cache, method: str) -> None:
    """get_many("abc") would quietly ask for "a", "b" and "c"."""
    with pytest.raises(TypeError, match="several keys"):
        getattr(cache, method)("abc")


@pytest.mark.parametrize("key", [b"k", 1, None, ("a",)])
def test_a_key_that_is_no_text_is_refused(cache: Cache, key: object) -> None:
    """1 and "1" as one key would show one candidate the other's matches."""
    with pytest.raises(TypeError, match="key"):
        cache.get(key)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="key"):
        cache.set(key, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "key",
    [
        "",
        " ",
        "a b",
        "a\r\nDEL b",
        "\x00",
        "*",
        "[a]",
        "{tag}",
        "é",
        "e\u0301",
        "\ud800",
        "k" * 9000,
    ],
    ids=ascii,
)
def test_any_text_is_a_key_of_its_own(cache: Cache, key: str) -> None:
    """A key that reaches another's entry shows somebody else's data."""
    others = ["_", "a_b", "a", "tag", "e", "k" * 8999]
    assert cache.set(key, "mine") is True
    assert cache.get(key) == "mine"
    assert cache.get_many(others) == {}


@pytest.mark.parametrize(
    "ttl",
    [0, -1, 0.0, math.nan, math.inf, -math.inf, True, "10", dt.timedelta(seconds=1), 2**63, [5]],
)
def test_a_ttl_that_is_no_number_of_seconds_is_refused(cache: Cache, ttl: object) -> None:
    """A TTL taken wrongly keeps data for ever, or not at all, and nobody is told."""
    with pytest.raises(ValueError, match="ttl"):
        cache.set("k", 1, ttl=ttl)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ttl"):
        cache.set_many({"k": 1}, ttl=ttl)  # type: ignore[arg-type]
    assert cache.get("k") is None


@pytest.mark.parametrize("timeout", [0, -1, math.nan, math.inf, True, "1"])
def test_a_timeout_that_is_no_number_of_seconds_is_refused(cache: Cache, timeout: object) -> None:
    """A timeout of nothing would make every call fail, and look like an outage."""
    with pytest.raises(ValueError, match="timeout"):
        cache.get("k", timeout=timeout)  # type: ignore[arg-type]


def test_a_deadline_that_runs_already_is_taken_as_it_is(cache: Cache) -> None:
    """A request that has a budget hands it down instead of starting a new one."""
    cache.set("k", 1)
    assert cache.get("k", timeout=Deadline(5.0)) == 1


def test_a_value_that_would_not_come_back_equal_is_refused_by_its_path(
    cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    """The one who logs in at night must see where, and nobody may see what."""
    odd = {"matches": [{}, {}, {}, {"score": complex(1, 98765)}]}
    assert cache.set("k", odd) is False
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert "matches[3].score" in lines[0]
    assert "complex" in lines[0]
    assert "98765" not in lines[0]
    assert cache.stats().refused == 1
    assert cache.get("k") is None


def test_a_value_over_the_limit_is_refused_and_logged(
    cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    """One giant result must not fill Redis, nor block it for everybody else."""
    assert cache.set("k", "x" * (1024 * 1024 + 1)) is False
    assert len(caplog.records) == 1
    assert "xxx" not in caplog.text
    assert cache.stats().refused == 1


def test_the_callers_copy_and_the_cached_one_are_two(cache: Cache) -> None:
    """The old cache handed out one shared object: sorting it in one request changed all others."""
    mine = {"matches": [1, 2, 3]}
    cache.set("k", mine)
    mine["matches"].append(4)
    first = cache.get("k")
    if cache.settings.near:  # one for all, and read-only
        with pytest.raises(TypeError, match="deepcopy"):
            first["matches"].clear()
    else:
        first["matches"].clear()
    assert cache.get("k") == {"matches": [1, 2, 3]}


def test_a_value_that_fails_its_validation_is_corrupt_and_removed(
    cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    """After a deploy with another shape, old entries must read as a miss, not crash a page."""

    def has_score(value: object) -> bool:
        return isinstance(value, dict) and "score" in value

    cache.set("good", {"score": 1})
    cache.set("bad", {"points": 1})
    assert cache.get("good", validate=has_score) == {"score": 1}
    found = cache.lookup("bad", validate=has_score)
    assert (found.outcome, found.value, found.reason) == (Outcome.CORRUPT, None, "invalid")
    assert cache.exists("bad") is False
    assert cache.stats().corrupt == 1
    cache.set("bad", {"points": 2})
    assert cache.get_many(["good", "bad"], validate=has_score) == {"good": {"score": 1}}
    assert len(caplog.records) == 1, "once a key, however often it is read"
    assert "points" not in caplog.text


def test_the_validation_of_the_cache_itself_holds_for_several_keys_too() -> None:
    """What one read refuses, another must not hand out."""
    settings = CacheSettings.from_url("memory://")
    with RedisCacheFactory.create_cache(settings, validate=lambda value: value > 0) as cache:
        cache.set_many({"good": 1, "bad": -1})
        assert cache.get_many(["good", "bad"]) == {"good": 1}
        assert cache.stats().corrupt == 1


def test_a_model_type_validates(cache: Cache) -> None:
    """Users hold their shapes in pydantic models and should not write them down twice."""

    class Model:
        @classmethod
        def model_validate(cls, value: object) -> object:
            if not isinstance(value, dict):
                raise ValueError("no dict")
            return cls()

    class Adapter:
        def validate_python(self, value: object) -> object:
            return Model.model_validate(value)

    cache.set("good", {})
    cache.set("bad", [])
    for validate in (Model, Adapter()):
        assert cache.get("good", validate=validate) == {}, "checked, not changed"
    assert cache.lookup("bad", validate=Model).outcome is Outcome.CORRUPT


def test_what_a_validator_raises_besides_is_the_callers(cache: Cache) -> None:
    """Celery's soft time limit is an ordinary Exception and may arrive inside any call of ours."""

    class TimeLimitError(Exception):
        pass

    def interrupted(value: object) -> bool:
        raise TimeLimitError

    cache.set("k", 1)
    with pytest.raises(TimeLimitError):
        cache.get("k", validate=interrupted)
    assert cache.get("k") == 1


def test_every_operation_counts_exactly_one_outcome(cache: Cache) -> None:
    """Figures that do not add up are worse than none: somebody will trust them."""
    cache.get("k")
    cache.set("k", 1)
    cache.lookup("k")
    cache.exists("k")
    cache.delete("k")
    cache.set("k", object())
    stats = cache.stats()
    assert sum(stats.operations.values()) == 6
    assert (stats.misses, stats.sets, stats.hits, stats.deletes, stats.refused) == (1, 1, 1, 1, 1)


def test_every_key_of_a_bundle_counts(cache: Cache) -> None:
    """Values written, values read: the figures must not depend on how they were sent."""
    cache.set_many({"a": 1, "b": 2, "odd": object()})
    cache.get_many(["a", "b", "c"])
    cache.delete_many(["a", "b"])
    stats = cache.stats()
    assert (stats.sets, stats.refused, stats.hits, stats.misses) == (2, 1, 2, 1)
    assert stats.deletes == 2


@pytest.mark.parametrize("value", [[], {}, 0, "", None])
def test_a_validator_may_return_the_value(cache: Cache, value: object) -> None:
    """An empty match list is a result; thrown away, it would be computed every time."""
    cache.set("k", value)
    assert cache.lookup("k", validate=lambda found: found).outcome is Outcome.HIT


@pytest.mark.parametrize("validate", [5, "x", 0])
def test_what_cannot_be_called_does_not_validate(cache: Cache, validate: object) -> None:
    """Taken for a no, it would remove every entry it is asked about."""
    cache.set("k", 1)
    with pytest.raises(TypeError, match="validate"):
        cache.get("k", validate=validate)
    assert cache.get("k") == 1


@pytest.mark.parametrize("given", [None, 5, "ab", ["a", "b"], {"a"}])
def test_what_holds_no_values_by_key_is_refused(cache: Cache, given: object) -> None:
    """The error has to name the argument, not what went wrong three calls further down."""
    with pytest.raises(TypeError, match="mapping"):
        cache.set_many(given)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["get_many", "delete_many"])
@pytest.mark.parametrize("given", [None, 5, b"ab"])
def test_what_is_no_list_of_keys_is_refused(cache: Cache, method: str, given: object) -> None:
    """The same for keys."""
    with pytest.raises(TypeError, match="keys"):
        getattr(cache, method)(given)


def test_large_bundles_end_within_their_deadline(cache: Cache) -> None:
    """Sealing and decoding take time too, and nobody waits for them longer than for the network."""
    cache.set_many({f"{number}": "x" * 700_000 for number in range(100)}, timeout=20.0)
    started = time.monotonic()
    cache.get_many([f"{number}" for number in range(100)], timeout=0.1)
    cache.set_many({f"{number}": "x" * 700_000 for number in range(100)}, timeout=0.1)
    assert time.monotonic() - started < 1.2, "several seconds, uncut"
    cache.delete_many([f"{number}" for number in range(100)], timeout=5.0)


def test_a_coroutine_function_does_not_validate(cache: Cache) -> None:
    """Its coroutine would be taken for a yes, for every value."""

    async def validate(value: object) -> bool:
        return False

    cache.set("k", 1)
    with pytest.raises(TypeError, match="validate"):
        cache.get("k", validate=validate)


def test_a_closed_cache_answers_as_unavailable(cache: Cache) -> None:
    """A late request during shutdown gets no results, not a traceback."""
    cache.set("k", 1)
    cache.close()
    cache.close()
    found = cache.lookup("k")
    assert (found.outcome, found.reason) == (Outcome.UNAVAILABLE, "closed")
    assert cache.set("k", 1) is False
    assert cache.get_many(["k"]) == {}
    assert cache.delete_many(["k"]) == 0
    assert cache.exists("k") is False


def test_a_cache_cannot_be_pickled(cache: Cache) -> None:
    """A pickled cache would carry a password and somebody else's sockets."""
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(cache)


def test_many_threads_see_only_values_of_their_own_key(cache: Cache) -> None:
    """Two candidates asking at once must never see each other's matches."""
    wrong: list[object] = []
    start = threading.Barrier(8)

    def work(thread: int) -> None:
        start.wait(timeout=10)
        for turn in range(60):
            key = f"{(thread + turn) % 5}"
            cache.set(key, {"key": key})
            found = cache.get(key)
            if found is not None and found != {"key": key}:
                wrong.append(found)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    assert wrong == []


def test_two_namespaces_see_nothing_of_each_other(make_cache: MakeCache) -> None:
    """Two services share one Redis and both have a candidate 42."""
    mine, theirs = make_cache("mine"), make_cache("theirs")
    mine.set("k", "mine")
    assert theirs.get("k") is None
    theirs.set("k", "theirs")
    assert mine.get("k") == "mine"


def test_two_caches_of_one_namespace_see_the_same(make_cache: MakeCache) -> None:
    """The replica next door computed it already: that is what sharing is for."""
    here, there = make_cache("shared"), make_cache("shared")
    here.set("k", [1])
    assert there.get("k") == [1]
    there.delete("k")
    assert here.get("k") is None


def test_a_tag_makes_its_entries_a_miss_and_clear_all_of_the_namespace(
    make_cache: MakeCache,
) -> None:
    """What works in development and not on the cluster is found by a customer."""
    here, there, theirs = make_cache("tags"), make_cache("tags"), make_cache("theirs")
    theirs.set("a", "theirs", tags=("job:42",))
    here.set("a", 1, tags=("job:42", "berlin"))
    here.set_many({"b": 2, "c": 3}, tags=("job:43",))
    here.set("d", 4)
    assert there.invalidate_tags("job:42", "nobody's") is True
    assert here.get_many(["a", "b", "c", "d"]) == {"b": 2, "c": 3, "d": 4}
    found = here.lookup("a")
    assert (found.outcome, found.reason) == (Outcome.MISS, "invalidated")
    assert there.clear() is True
    assert here.get_many(["a", "b", "c", "d"]) == {}
    assert here.set("a", 5, tags=("job:42",)) is True
    assert there.get("a") == 5
    assert theirs.get("a") == "theirs"
    assert here.invalidate_tags() is True
    assert there.get("a") == 5


def test_a_value_is_computed_once_and_found_by_all(make_cache: MakeCache) -> None:
    """The same order of stops, wherever it is kept."""
    here, there = make_cache("compute"), make_cache("compute")
    assert here.get_or_set("k", lambda: [1], tags=("t",)) == [1]
    assert there.get_or_set("k", pytest.fail, tags=("t",)) == [1]
    assert there.get("k") == [1]
    found = there.get_or_set_many(["k", "l", "m"], lambda keys: {key: key for key in keys})
    assert found == {"k": [1], "l": "l", "m": "m"}
    assert here.get_many(["l", "m"]) == {"l": "l", "m": "m"}
    here.invalidate_tags("t")
    assert there.get_or_set("k", lambda: [2], tags=("t",)) == [2]
    assert here.get_or_set("k", lambda: [3], force=True) == [3]
    assert there.get("k") == [3]
    with pytest.raises(ZeroDivisionError):
        here.get_or_set("fails", lambda: 1 // 0)
    assert there.get_or_set("fails", lambda: 1, lock_timeout=60.0, timeout=5.0) == 1


@pytest.mark.parametrize("undo", ["delete", "set", "invalidate_tags", "clear"])
def test_a_load_that_began_before_it_is_not_stored_after_it(
    make_cache: MakeCache, undo: str
) -> None:
    """What was deleted comes back, or what was set is replaced by what is older."""
    here, there = make_cache("undo"), make_cache("undo")
    words = {"delete": ("k",), "set": ("k", "newer"), "invalidate_tags": ("t",), "clear": ()}

    def load() -> str:
        assert getattr(there, undo)(*words[undo]) is True
        return "older"

    assert here.get_or_set("k", load, tags=("t",)) == "older"
    assert there.get("k") == ("newer" if undo == "set" else None)


def test_an_old_value_is_refreshed_while_it_is_handed_out(make_cache: MakeCache) -> None:
    """Nobody waits while there is something good enough, wherever it is kept."""
    here = make_cache("stale")
    options = {"ttl": 0.05, "stale_ttl": 60.0, "refresh": "inline"}
    assert here.get_or_set("k", lambda: "old", **options) == "old"
    give_up_at = time.monotonic() + 10
    while here.lookup("k").outcome is not Outcome.STALE:
        assert time.monotonic() < give_up_at
        time.sleep(0.005)
    assert here.get("k") is None
    assert here.get_or_set("k", lambda: "new", **options) == "old"
    assert here.lookup("k").value == "new"
