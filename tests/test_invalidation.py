"""Tags and clear: a miss in all processes at once, at the same cost for one entry or a million."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from computing_kit import SOON_S, Door, Loader, open_door, wait_until  # noqa: F401

from jmcache import Cache, CacheSettings, LocalCache, Outcome, RedisCacheFactory
from jmcache.connection._connection import Connection
from jmcache.invalidation import generation_of, read_counter
from jmcache.testing import PrivateCluster, PrivateServer
from jmcache.testing.cluster import slot_of

MakeSettings = Callable[..., CacheSettings]

# What nodes are asked by each other, by the health thread, and by the tests.
NOT_OURS = frozenset({"ping", "replconf", "info", "cluster|info", "cluster|slots", "cluster|nodes"})


@pytest.fixture
def cache(settings: MakeSettings) -> Iterator[Cache]:
    """In a real Redis, connected."""
    with RedisCacheFactory.create_cache(settings(operation_timeout=5.0)) as cache:
        cache.set("warm", 1)
        yield cache


@pytest.fixture
def trips(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each round trip of this process."""
    trips: list[int] = []
    exchange = Connection.exchange

    def counting(self: Connection, *args: Any, **options: Any) -> Any:
        trips.append(1)
        return exchange(self, *args, **options)

    monkeypatch.setattr(Connection, "exchange", counting)
    return trips


def commands_since_reset(server: PrivateServer) -> dict[str, int]:
    """How often each command was carried out since CONFIG RESETSTAT."""
    text = server.command("INFO", "commandstats").decode()
    lines = [line for line in text.splitlines() if line.startswith("cmdstat_")]
    stats = {
        line.split(":")[0].removeprefix("cmdstat_"): int(line.split("calls=")[1].split(",")[0])
        for line in lines
    }
    return {name: calls for name, calls in stats.items() if name != "config|resetstat"}


def commands_of(server: PrivateServer, work: Callable[[], object]) -> dict[str, int]:
    """The commands that *work* makes the server carry out."""
    server.command("CONFIG", "RESETSTAT")
    work()
    return commands_since_reset(server)


# What it does -----------------------------------------------------------------------------------


def test_a_tag_makes_every_entry_that_has_it_a_miss_and_no_other(cache: Cache) -> None:
    """Job 42 was withdrawn: whoever still sees it applies for nothing."""
    cache.set("a", 1, tags=("job:42", "berlin"))
    cache.set_many({"b": 2, "c": 3}, tags=("job:42",))
    cache.get_or_set("d", lambda: 4, tags=("job:42",))
    cache.set("other", 5, tags=("job:4",))
    cache.set("none", 6)
    assert cache.invalidate_tags("job:42") is True
    assert cache.get_many(["a", "b", "c", "d", "other", "none"]) == {"other": 5, "none": 6}
    found = cache.lookup("a")
    assert (found.outcome, found.value, found.reason) == (Outcome.MISS, None, "invalidated")
    assert cache.exists("a") is False
    assert cache.get_or_set("d", lambda: "anew", tags=("job:42",)) == "anew"


def test_one_of_its_tags_is_enough(cache: Cache) -> None:
    """A result mentions ten jobs; each of them may be withdrawn."""
    for tag in ("job:1", "job:2"):
        cache.set("k", 1, tags=("job:1", "job:2"))
        assert cache.get("k") == 1
        cache.invalidate_tags(tag)
        assert cache.get("k") is None


def test_what_is_written_afterwards_is_there(cache: Cache) -> None:
    """An entry that is born invalid would be computed at each call, for ever."""
    for value in range(3):
        cache.invalidate_tags("job:42")
        cache.clear()
        assert cache.set("k", value, tags=("job:42",)) is True
        assert cache.get("k") == value
        assert cache.set("plain", value) is True
        assert cache.get("plain") == value


def test_clear_makes_everything_of_its_namespace_a_miss(
    cache: Cache, settings: MakeSettings
) -> None:
    """After a deploy with another ranking, nothing of before may be shown; nor others hurt."""
    with RedisCacheFactory.create_cache(settings(namespace="theirs")) as theirs:
        theirs.set("k", "theirs", tags=("job:42",))
        cache.set_many({"a": 1, "b": 2})
        cache.set("k", "mine", tags=("job:42",))
        assert cache.clear() is True
        assert cache.get_many(["a", "b", "k", "warm"]) == {}
        assert cache.invalidate_tags("job:42") is True
        assert theirs.get("k") == "theirs"


CHILD = """
import sys
from jmcache import CacheSettings, RedisCacheFactory
cache = RedisCacheFactory.create_cache(
    CacheSettings.from_url(sys.argv[1], namespace="test", operation_timeout=5.0))
for line in sys.stdin:
    verb, *words = line.split()
    print(getattr(cache, verb)(*words), flush=True)
"""


def test_it_holds_in_all_processes_at_once(cache: Cache, redis_server: PrivateServer) -> None:
    """The replica next door goes on showing the withdrawn job."""

    def ask(child: subprocess.Popen[str], line: str) -> str:
        assert child.stdin is not None
        assert child.stdout is not None
        print(line, file=child.stdin, flush=True)
        return child.stdout.readline().strip()

    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, redis_server.url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        first, second = children
        cache.set("tagged", 1, tags=("job:42",))
        cache.set("plain", 2)
        assert [ask(child, "get tagged") for child in children] == ["1", "1"]
        assert ask(first, "invalidate_tags job:42") == "True"
        assert ask(second, "get tagged") == "None"
        assert cache.get("tagged") is None
        assert [ask(child, "get plain") for child in children] == ["2", "2"]
        assert ask(second, "clear") == "True"
        assert ask(first, "get plain") == "None"
        assert cache.get("plain") is None
        assert ask(first, "set again 3") == "True"
        assert (ask(second, "get again"), cache.get("again")) == ("3", "3")
    finally:
        for child in children:
            child.communicate(timeout=SOON_S)


@pytest.mark.parametrize("verb", ["invalidate_tags", "clear"])
def test_a_load_that_began_before_is_not_stored_after_it(
    open_door: Callable[[Cache], Door],  # noqa: F811
    settings: MakeSettings,
    verb: str,
) -> None:
    """The loader has read the job before it was withdrawn, and brings it back."""
    door = open_door(RedisCacheFactory.create_cache(settings(operation_timeout=5.0)))
    old = Loader("withdrawn", waits=True)
    call = door.begin("get_or_set", "k", old, tags=("job:42",))
    assert old.begun.wait(SOON_S)
    assert getattr(door, verb)(*(("job:42",) if verb == "invalidate_tags" else ())) is True
    assert door.get_or_set("k", lambda: "new", tags=("job:42",), lock_timeout=0.2) == "new"
    old.may_end.set()
    assert call.result(SOON_S) == "withdrawn"
    assert door.get("k") in ("new", None)


def test_a_set_that_meets_a_clear_is_there_afterwards(
    cache: Cache, redis_server: PrivateServer
) -> None:
    """A cache that knows the counter of before writes entries that nobody can read."""
    counter = cache._keys.space_counter
    redis_server.command("INCR", counter)  # another process clears
    assert cache.set("k", 1) is True
    assert cache.get("k") == 1
    redis_server.command("FLUSHALL")
    assert cache.set("k", 2) is True
    assert cache.get("k") == 2
    redis_server.command("DEL", counter)
    assert cache.set_many({"a": 1, "b": 2}) is True
    assert cache.get_many(["a", "b"]) == {"a": 1, "b": 2}


@pytest.mark.parametrize("tags", [("",), (5,), (None,), (b"t",), ("\ud800",)])
def test_a_tag_that_is_no_text_is_refused(cache: Cache, tags: tuple[Any, ...]) -> None:
    """Taken as it comes, 42 and "42" would be two tags, and one of them would not work."""
    with pytest.raises((TypeError, ValueError), match="tags"):
        cache.invalidate_tags(*tags)
    with pytest.raises((TypeError, ValueError), match="tags"):
        cache.set("k", 1, tags=tags)
    with pytest.raises((TypeError, ValueError), match="tags"):
        cache.set_many({"k": 1}, tags=tags)


def test_more_tags_than_an_entry_has_room_for_are_refused_before_anything_is_loaded(
    cache: Cache,
) -> None:
    """Found when the value is to be stored, it costs the value."""
    tags = [f"job:{number}" for number in range(10_000)]
    with pytest.raises(ValueError, match="tags"):
        cache.get_or_set("k", pytest.fail, tags=tags)
    with pytest.raises(ValueError, match="tags"):
        cache.set("k", 1, tags=tags)
    assert cache.set("k", 1, tags=tags[:5000]) is True
    assert cache.get("k") == 1
    cache.invalidate_tags("job:4999")
    assert cache.get("k") is None


@pytest.mark.parametrize("tag", ["a b", "*", "é", "{x}", "t" * 9000, "#", "a:b"])
def test_any_text_is_a_tag(cache: Cache, tag: str) -> None:
    """Tags are made of what users call their jobs."""
    cache.set("k", 1, tags=(tag,))
    cache.set("other", 1, tags=("other",))
    assert cache.get("k") == 1
    cache.invalidate_tags(tag)
    assert cache.get_many(["k", "other"]) == {"other": 1}


def test_no_key_of_a_user_is_a_counter_or_a_lease(cache: Cache) -> None:
    """set("#", ...) would invalidate the namespace, and a forged counter bring entries back."""
    cache.set("k", 1, tags=("t",))
    for key in ("#", "t#", "t", "#lease{k}", "test:v1:#"):
        cache.set(key, 5)
        assert cache.get(key) == 5
        cache.delete(key)
    assert cache.get("k") == 1


# What it costs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["invalidate_tags", "clear"])
def test_it_costs_the_same_for_two_entries_and_for_a_thousand(
    cache: Cache, redis_server: PrivateServer, trips: list[int], verb: str
) -> None:
    """SCAN over ten million keys holds up everybody else for seconds."""

    def invalidate() -> None:
        trips.clear()
        getattr(cache, verb)(*(("job:42",) if verb == "invalidate_tags" else ()))

    counts = []
    for entries in (2, 1000):
        cache.set_many({f"{number}": number for number in range(entries)}, tags=("job:42",))
        counts.append(commands_of(redis_server, invalidate))
        assert trips == [1]
    assert counts[0] == counts[1] == {"set": 1, "incr": 1, "pexpire": 1}


def test_nothing_ever_searches_for_keys(
    cache: Cache, redis_server: PrivateServer, clock: object
) -> None:
    """Not one verb may use what no Redis with ten million keys survives."""

    def everything() -> None:
        cache.set("a", 1, tags=("t",))
        cache.set_many({"b": 2}, tags=("t",))
        cache.get_many(["a", "b", "c"])
        cache.get_or_set("d", lambda: 1, tags=("t", "u"), stale_ttl=5, early_refresh=0.5)
        cache.get_or_set_many(["d", "e"], lambda keys: dict.fromkeys(keys, 1))
        cache.invalidate_tags("t", "u")
        cache.clear()
        cache.delete_many(["a", "b"])

    used = commands_of(redis_server, everything)
    assert used.keys().isdisjoint({"keys", "scan", "sscan", "hscan", "zscan", "randomkey"})
    assert used.keys() <= {
        *("get", "set", "unlink", "incr", "pexpire", "eval", "del"),
    }


def test_an_untagged_read_costs_one_round_trip_and_a_tagged_one_at_most_two(
    cache: Cache, trips: list[int]
) -> None:
    """The price of tags is for those who use them."""
    cache.set("plain", 1)
    cache.set("tagged", 2, tags=("t", "u", "v"))
    cache.set_many({f"{number}": number for number in range(20)}, tags=("w",))

    def cost(verb: str, *args: Any, **options: Any) -> int:
        trips.clear()
        assert getattr(cache, verb)(*args, **options)
        return len(trips)

    assert cost("get", "plain") == 1
    assert cost("get_or_set", "plain", pytest.fail) == 1
    assert cost("get_many", ["plain", "warm", "none"]) == 1
    assert cost("set", "plain", 1) == 1
    assert cost("get", "tagged") == 2
    assert cost("get_many", ["plain", "tagged", *map(str, range(20))]) == 2
    assert cost("get_or_set", "tagged", pytest.fail) == 2
    assert cost("get_or_set", "tagged", pytest.fail, tags=("v", "u", "t")) == 1
    assert cost("set", "tagged", 2, tags=("t", "u", "v")) == 2
    assert cost("delete", "tagged") == 1


# Counters that go -------------------------------------------------------------------------------


def test_counters_that_were_evicted_or_flushed_bring_no_old_entry_back(
    cache: Cache, redis_server: PrivateServer
) -> None:
    """A counter that begins at 0 again makes last week's entries valid once more."""
    cache.set("k", "old", tags=("t",))
    names = [name for name in redis_server.command("KEYS", "*") if b"lease" not in name]
    kept = {name: redis_server.command("DUMP", name) for name in names}
    counters = [cache._keys.space_counter, cache._keys.tag_counter("t")]

    def put_back(*counters: bytes) -> None:
        for name in counters:
            redis_server.command("RESTORE", name, 0, kept[name], "REPLACE")

    entries = [name for name in names if name not in counters]
    for counter in counters:
        redis_server.command("DEL", counter)  # as an eviction does
        assert cache.get("k") is None
        assert cache.set("other", 1, tags=("t",)) is True  # begins it anew
        assert cache.get("other") == 1
        assert cache.get("k") is None
        redis_server.command("FLUSHALL")
        put_back(*entries)
        assert cache.get("k") is None, "neither without counters"
        cache.clear()
        cache.invalidate_tags("t")
        assert cache.get("k") is None, "nor with new ones"
        redis_server.command("FLUSHALL")
        put_back(*names)
        assert cache.get("k") == "old", "all of it put back is as it was"


def test_a_counter_that_is_not_ours_makes_a_miss_and_no_error(
    cache: Cache, redis_server: PrivateServer
) -> None:
    """Another program wrote under our name: nothing can be said, so nothing is."""
    cache.set("k", 1)
    redis_server.command("SET", cache._keys.space_counter, "not a number")
    assert cache.get("k") is None


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        (None, None),
        (b"", None),
        (b"0", 0),
        (b"-1", None),
        (b"1.5", None),
        (b"1e3", None),
        (b" 1", None),
        (b"9" * 20, int("9" * 20)),
        (b"9" * 21, None),
        ("\u0661".encode(), None),
    ],
)
def test_a_counter_is_digits_and_no_more_than_64_bits_have(
    stored: bytes | None, read: int | None
) -> None:
    """int() takes a lot more than what INCR writes, and a megabyte of digits takes minutes."""
    assert read_counter(stored) == read


def test_a_generation_is_not_known_as_long_as_one_counter_is_not() -> None:
    """Left out of the sum, a flushed counter would match by luck."""
    assert generation_of([3, 4]) == 7
    assert generation_of([]) == 0
    assert generation_of([3, None]) is None
    assert generation_of([2**64 - 1, 2]) == 1


def test_counters_in_this_process_go_on_after_close_too() -> None:
    """memory:// forgets all at once: entries and counters."""
    cache = LocalCache()
    cache.set("k", 1, tags=("t",))
    cache.invalidate_tags("t")
    assert cache.get("k") is None
    cache.set("k", 2, tags=("t",))
    assert cache.get("k") == 2
    cache.clear()
    assert cache.get("k") is None


# In a cluster ------------------------------------------------------------------------------------


@pytest.fixture
def clustered(redis_cluster: PrivateCluster) -> Iterator[Cache]:
    """In a cluster, connected to all of its nodes."""
    chosen = CacheSettings.from_url(
        redis_cluster.url, namespace="parts", operation_timeout=1.0, max_retries=0
    )
    with RedisCacheFactory.create_cache(chosen) as cache:
        cache.set_many({f"warm {number}": number for number in range(30)}, timeout=5.0)
        yield cache


def test_an_operation_on_one_key_asks_one_node(
    redis_cluster: PrivateCluster, clustered: Cache
) -> None:
    """Two would be twice the trouble: either may be away."""
    for number in range(10):
        for work in (clustered.set, clustered.get_or_set, clustered.get, clustered.delete):
            args = [f"k{number}"]
            args += [lambda: 1] if work == clustered.get_or_set else []
            args += [1] if work == clustered.set else []
            masters = redis_cluster.masters()
            for node in masters:
                node.command("CONFIG", "RESETSTAT")
            assert work(*args)
            asked = [commands_since_reset(node).keys() - NOT_OURS for node in masters]
            assert len(list(filter(None, asked))) == 1, (work, asked)


def test_a_tag_whose_node_is_away_costs_its_entries_alone(
    redis_cluster: PrivateCluster, clustered: Cache
) -> None:
    """Of them nothing can be said. Those beside them are served, in the same call, too."""
    tag = clustered._keys.tag_counter("t")
    home = redis_cluster.master_of(tag)
    owners = redis_cluster.owners()
    keys = [f"k{number}" for number in range(40)]
    keys = [k for k in keys if owners[slot_of(clustered._keys.name(k)[0])] is not home]
    tagged, plain = keys[:5], keys[5:]
    assert clustered.set_many(dict.fromkeys(tagged, 1), tags=("t",), timeout=5.0)
    assert clustered.set_many(dict.fromkeys(plain, 1), timeout=5.0)
    for node in redis_cluster.nodes:
        node.command("CONFIG", "SET", "cluster-node-timeout", 60_000)
    home.pause()
    try:
        for _ in range(8):  # before its breaker opens, and after
            assert clustered.get_many(keys) == dict.fromkeys(plain, 1)
        found = clustered.lookup(tagged[0])
        assert (found.outcome, found.value) == (Outcome.UNAVAILABLE, None)
        assert found.reason in ("timeout", "node_down")
        assert clustered.set_many({tagged[0]: 2}, tags=("t",)) is False
        assert clustered.set(plain[0], 1) is True
        assert clustered.stats().corrupt == 0
    finally:
        home.resume()
        for node in redis_cluster.nodes:
            node.command("CONFIG", "SET", "cluster-node-timeout", 1500)
    wait_until(lambda: clustered.get_many(keys) == dict.fromkeys(keys, 1))


def test_a_batch_asks_for_tags_before_it_decodes_anything(redis_server, monkeypatch):
    """What it takes to decode the others would be missing for the question."""
    cache = RedisCacheFactory.create_cache(CacheSettings.from_url(redis_server.url))
    cache.set_many({"plain": 1, "other": 2})
    cache.set("tagged", 3, tags=("t",))
    seen = []
    for owner, name in ((cache._stops, "_learn_tags"), (cache._stops.nearby, "decode")):
        plain = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda *args, plain=plain, name=name: (seen.append(name), plain(*args))[1]
        )
    assert cache.get_many(["plain", "tagged", "other"]) == {"plain": 1, "tagged": 3, "other": 2}
    assert seen == ["_learn_tags", *["decode"] * 3]
